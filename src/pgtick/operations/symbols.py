"""Symbols: ensure, relist, list, activate, deactivate. They are never deleted and their ids never change."""

from __future__ import annotations

import operator
from typing import Any

import asyncpg

from pgtick.cache_operations import announce_change, get_cached_symbol_by_exchange_symbol, refresh_symbol
from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.errors import ValidationError
from pgtick.models import CachedSymbol, Symbol
from pgtick.operations.exchanges import ensure_exchange

__all__ = [
    "activate_symbol",
    "deactivate_symbol",
    "ensure_symbol",
    "list_symbols",
    "relist_symbol",
    "resolve_symbol",
]

_COLUMNS = (
    "exchange_id",
    "symbol_base",
    "symbol_quote",
    "exchange_symbol",
    "settle",
    "expiry",
    "contract_size",
    "price_tick",
    "quantity_step",
    "min_quantity",
    "min_notional",
)
_DETAILS = _COLUMNS[4:]

# An active row wins, then the newest inactive one: an operator switched it off, and its ticks must not register it
# anew. Only what is not there is inserted, and two that insert at once meet at the unique index.
_FIND = """
SELECT id FROM symbols WHERE exchange_id = $1 AND exchange_symbol = $2
ORDER BY is_active DESC, id DESC LIMIT 1
"""
_INSERT = f"""
INSERT INTO symbols ({", ".join(_COLUMNS)})
VALUES ({", ".join(f"${n}" for n in range(1, len(_COLUMNS) + 1))})
ON CONFLICT (exchange_id, exchange_symbol) WHERE is_active
DO UPDATE SET exchange_symbol = excluded.exchange_symbol
RETURNING id
"""
_UPDATE_DETAILS = f"""
UPDATE symbols SET {", ".join(f"{name} = coalesce(${n}, {name})" for n, name in enumerate(_DETAILS, 2))},
    updated_at = now()
WHERE id = $1 AND ({
    " OR ".join(f"${n} IS DISTINCT FROM {name} AND ${n} IS NOT NULL" for n, name in enumerate(_DETAILS, 2))
})
"""


async def ensure_symbol(
    exchange_id: int, base: str, quote: str, exchange_symbol: str | None = None, **details: Any
) -> int:
    """Return the id of the symbol, registering it if it is new, race-free.

    ``exchange_symbol`` is the venue's own name (base + quote when left out), kept byte for byte.
    ``details``: settle, expiry, contract_size, price_tick, quantity_step, min_quantity, min_notional; those
    given and different from what is stored are updated. An inactive symbol keeps its id and stays inactive;
    see relist_symbol.
    """
    symbol = Symbol(
        exchange_id=exchange_id,
        symbol_base=base,
        symbol_quote=quote,
        exchange_symbol=base + quote if exchange_symbol is None else exchange_symbol,
        **details,
    )
    symbol.validate()
    for name in ("symbol_base", "symbol_quote", "exchange_symbol"):
        if not getattr(symbol, name):
            raise ValidationError("symbols", name, "", "must not be empty")
    db = get_db_manager()
    values = [_bindable(getattr(symbol, name)) for name in _COLUMNS]
    found: int | None = await db.fetchval(_FIND, values[0], values[3])
    has_details = any(value is not None for value in values[4:])
    symbol_id = found if found is not None and not has_details else await _store(db, found, values)
    await refresh_symbol(symbol_id)
    return symbol_id


async def _store(db: DatabaseManager, found: int | None, values: list[Any]) -> int:
    async with db.transaction():
        symbol_id: int = found if found is not None else await db.fetchval(_INSERT, *values)
        tag = await db.execute(_UPDATE_DETAILS, symbol_id, *values[4:])
        if found is None or tag == "UPDATE 1":
            await announce_change(db, symbol_id)
    return symbol_id


def _bindable(value: Any) -> Any:
    # asyncpg makes Decimal(float) of a float, which is not its shortest text. NumPy's repr is not the text either.
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, bytes):
        return value.decode()
    return operator.index(value) if hasattr(value, "__index__") else value


async def resolve_symbol(
    exchange: str, base: str, quote: str, exchange_symbol: str | None = None, **details: Any
) -> CachedSymbol:
    """Return the symbol from the cache, the database, or newly registered (its exchange too)."""
    own = base + quote if exchange_symbol is None else exchange_symbol
    found = await get_cached_symbol_by_exchange_symbol(exchange, own)
    if found is None:
        exchange_id = await ensure_exchange(exchange)
        await ensure_symbol(exchange_id, base, quote, own, **details)
        found = await get_cached_symbol_by_exchange_symbol(exchange, own)
        if found is None:
            raise RuntimeError(f"{exchange} {own} was registered and is not there")
    return found


async def relist_symbol(symbol_id: int) -> int:
    """Deactivate the symbol and register the same name anew; return the new id (a new generation)."""
    db = get_db_manager()
    columns = ", ".join(_COLUMNS)
    async with db.transaction():
        now = await db.fetchval("SELECT now()")  # bound: Citus refuses it inside of coalesce
        await db.execute(
            "UPDATE symbols SET is_active = false, delisted_at = coalesce(delisted_at, $2), updated_at = $2 "
            "WHERE id = $1",
            symbol_id,
            now,
        )
        try:
            async with db.transaction():
                new_id: int | None = await db.fetchval(
                    f"INSERT INTO symbols ({columns}, listed_at) SELECT {columns}, now() FROM symbols WHERE id = $1 "
                    "RETURNING id",
                    symbol_id,
                )
        except asyncpg.UniqueViolationError as error:
            rule = "cannot be listed again: another symbol of its name is active"
            raise ValidationError("symbols", "id", symbol_id, rule) from error
        if new_id is None:
            raise ValidationError("symbols", "id", symbol_id, "must be a symbol's id")
        await announce_change(db, symbol_id, new_id)
    await refresh_symbol(symbol_id)
    await refresh_symbol(new_id)
    return new_id


async def list_symbols(exchange_id: int | None = None, *, active_only: bool = False) -> list[Symbol]:
    """Return the symbols, of one exchange or of all, by exchange and venue's name; numbers as Decimal."""
    fields = ", ".join(Symbol.__struct_fields__)
    records = await get_db_manager().fetch(
        f"SELECT {fields} FROM symbols WHERE ($1::int IS NULL OR exchange_id = $1) AND (is_active OR NOT $2) "
        "ORDER BY exchange_id, exchange_symbol, id",
        exchange_id,
        active_only,
    )
    return [Symbol(**record) for record in records]


async def activate_symbol(symbol_id: int) -> bool:
    """Mark the symbol active; return whether there is one of that id.

    Raises ValidationError when another active symbol of the exchange has its name (it was relisted).
    """
    try:
        return await _set_active(symbol_id, True)
    except asyncpg.UniqueViolationError as error:
        rule = "cannot be active: its name was listed again, and only one symbol of a name is active at a time"
        raise ValidationError("symbols", "id", symbol_id, rule) from error


async def deactivate_symbol(symbol_id: int) -> bool:
    """Mark the symbol inactive, its rows stay; return whether there is one of that id."""
    return await _set_active(symbol_id, False)


async def _set_active(symbol_id: int, active: bool) -> bool:
    db = get_db_manager()
    async with db.transaction():  # where the caller is in one, a savepoint: a refusal must not spoil it
        tag = await db.execute("UPDATE symbols SET is_active = $2, updated_at = now() WHERE id = $1", symbol_id, active)
        await announce_change(db, symbol_id)
    await refresh_symbol(symbol_id)
    return tag == "UPDATE 1"
