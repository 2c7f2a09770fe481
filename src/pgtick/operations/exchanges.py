"""Exchanges: ensure, list, activate, deactivate. They are never deleted and their ids never change."""

from __future__ import annotations

from pgtick.cache_operations import announce_change, refresh_cache
from pgtick.connection import get_db_manager
from pgtick.errors import ValidationError
from pgtick.models import Exchange

__all__ = ["activate_exchange", "deactivate_exchange", "ensure_exchange", "list_exchanges"]

# What is there is found without burning a number of the identity; what is not is inserted race-free.
_FIND = "SELECT id FROM exchanges WHERE enum_value = $1"
_INSERT = """
INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ($1, $2, $3)
ON CONFLICT (enum_value) DO UPDATE SET enum_value = excluded.enum_value
RETURNING id
"""


async def ensure_exchange(enum_value: str) -> int:
    """Return the id of the exchange, registering it if it is new.

    ``enum_value`` is ``{NAME}_{SPOT|FUTURES|OPTIONS}``, such as GATEIO_FUTURES; perpetuals are FUTURES.
    """
    name, _, market_type = str(enum_value).rpartition("_")
    if not name:
        raise ValidationError("exchanges", "enum_value", enum_value, "must be {NAME}_{SPOT|FUTURES|OPTIONS}")
    Exchange(enum_value=enum_value, exchange_name=name, market_type=market_type).validate()
    db = get_db_manager()
    found: int | None = await db.fetchval(_FIND, enum_value)
    if found is not None:
        return found
    async with db.transaction():
        exchange_id: int = await db.fetchval(_INSERT, enum_value, name, market_type)
        await announce_change(db)
    return exchange_id


async def list_exchanges(*, active_only: bool = False) -> list[Exchange]:
    """Return the exchanges by enum_value."""
    records = await get_db_manager().fetch(
        "SELECT id, enum_value, exchange_name, market_type, is_active, created_at, updated_at "
        "FROM exchanges WHERE is_active OR NOT $1 ORDER BY enum_value",
        active_only,
    )
    return [Exchange(**record) for record in records]


async def activate_exchange(exchange_id: int) -> bool:
    """Mark the exchange active; return whether there is one of that id."""
    return await _set_active(exchange_id, True)


async def deactivate_exchange(exchange_id: int) -> bool:
    """Mark the exchange inactive, its rows stay; return whether there is one of that id."""
    return await _set_active(exchange_id, False)


async def _set_active(exchange_id: int, active: bool) -> bool:
    db = get_db_manager()
    async with db.transaction():
        tag = await db.execute(
            "UPDATE exchanges SET is_active = $2, updated_at = now() WHERE id = $1", exchange_id, active
        )
        await announce_change(db)
    await refresh_cache()  # its symbols are as active as it is
    return tag == "UPDATE 1"
