"""What every entity can do, for any Table; the entity modules give it typed names.

All parameters are bound; identifiers come from Tables and are quoted. Read back, a number is a float (the
nearest double) unless ``decimals=True`` asks for Decimal; NULL stays None and zero stays zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from pgtick.cache_operations import get_cached_symbol_by_id
from pgtick.connection import get_db_manager
from pgtick.engines import get_engine
from pgtick.errors import BatchError, RowError, ValidationError
from pgtick.tables import Table, quote_identifier
from pgtick.writer.columns import store_columns
from pgtick.writer.encoders import encoder_of
from pgtick.writer.flush import send, store_rows

__all__ = [
    "check_instant",
    "check_limit",
    "get_history",
    "get_latest",
    "get_stats",
    "get_with_symbol_info",
    "insert",
    "insert_batch",
    "insert_columns",
]

#: How far back the newest row is looked for, step by step; then without bound.
LATEST_WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=14))


async def insert(table: Table, row: object, *, time_unit: str | None = None) -> Any:
    """Insert one row and return its id, an int (None for a table without ids).

    A row whose key is stored already returns the id it has. Raises ValidationError before anything is
    sent, and lets the server's own errors pass.
    """
    try:
        values = encoder_of(table).canonical(row, time_unit=time_unit)
    except RowError as error:
        raise ValidationError(error.table, error.column, error.value, error.rule) from None
    db = get_db_manager()
    names = table.column_names
    by_name = dict(zip(names, values, strict=True))
    instant: datetime = by_name[table.time_column]
    days = {int(instant.timestamp() // 86400)}
    await (await get_engine(db)).ensure_days(db, table.name, days)
    returned = "id" if table.has_id else "NULL::bigint"
    columns = ", ".join(map(quote_identifier, names))
    places = ", ".join(f"${n}" for n in range(1, len(names) + 1))
    name = quote_identifier(table.name)
    query = f"INSERT INTO {name} ({columns}) VALUES ({places}) ON CONFLICT DO NOTHING RETURNING {returned}"
    inserted = await send(db, table, days, lambda: db.fetchrow(query, *values, resets=False))
    if inserted is not None or not table.has_id:
        return inserted[0] if inserted is not None else None
    condition = " AND ".join(f"{quote_identifier(key)} = ${n}" for n, key in enumerate(table.key, 1))
    key = [by_name[column] for column in table.key]
    existing: int = await db.fetchval(f"SELECT id FROM {name} WHERE {condition}", *key, resets=False)
    return existing


async def insert_batch(table: Table, rows: Iterable[object], *, time_unit: str | None = None) -> int:
    """Store rows by COPY; return how many the server stored (rows it had already are not counted).

    Raises BatchError when rows were refused; it names each, and all others are stored.
    """
    result = await store_rows(table, rows, time_unit=time_unit)
    if result.errors:
        raise BatchError(table.name, result.n_stored, result.n_duplicates, result.errors)
    return result.n_stored


async def insert_columns(
    table: Table,
    columns: object,
    *,
    time_unit: str | None = None,
    scales: Mapping[str, int] | None = None,
    masks: Mapping[str, object] | None = None,
) -> int:
    """Store columns by COPY (see store_columns); return and raise as insert_batch does."""
    result = await store_columns(table, columns, time_unit=time_unit, scales=scales, masks=masks)
    if result.errors:
        raise BatchError(table.name, result.n_stored, result.n_duplicates, result.errors)
    return result.n_stored


def check_instant(table: str, name: str, value: object) -> None:
    """Raise ValidationError unless the value is an aware datetime: asyncpg takes a naive one for local time."""
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise ValidationError(table, name, value, "must be an aware datetime")


def check_limit(table: str, value: object) -> None:
    """Raise ValidationError unless the value is None or an int >= 0."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValidationError(table, "limit", value, "must be None or an int >= 0")


def _select_list(table: Table) -> str:
    return ", ".join(map(quote_identifier, table.read_columns))


def _to_model(table: Table, record: Any, decimals: bool) -> Any:
    values = dict(record)
    if not decimals:
        for name, value in values.items():
            if isinstance(value, Decimal):
                values[name] = float(value)
    return table.model(**values)


async def get_latest(table: Table, *ids: object, decimals: bool = False) -> Any | None:
    """Return the newest row for the leading key columns' values (a symbol_id), or None.

    The query is bounded in time, so that it touches few partitions, and widens only when it finds nothing.
    """
    condition = " AND ".join(f"{quote_identifier(key)} = ${n}" for n, key in enumerate(table.key[: len(ids)], 1))
    order = _newest_first_after(table, len(ids))
    head = f"SELECT {_select_list(table)} FROM {quote_identifier(table.name)} WHERE {condition}"
    time = quote_identifier(table.time_column)
    db = get_db_manager()
    engine = await get_engine(db)
    for window in LATEST_WINDOWS:
        query = f"{head} AND {time} > {engine.since(window)} ORDER BY {order} LIMIT 1"
        record = await db.fetchrow(query, *ids, resets=False)
        if record is not None:
            return _to_model(table, record, decimals)
    record = await db.fetchrow(f"{head} ORDER BY {order} LIMIT 1", *ids, resets=False)
    return None if record is None else _to_model(table, record, decimals)


def _newest_first_after(table: Table, n_ids: int) -> str:
    rest = [key for key in table.key[n_ids:] if key != table.time_column]
    return ", ".join(f"{quote_identifier(name)} DESC" for name in (table.time_column, *rest))


async def get_history(
    table: Table,
    *ids: object,
    start: datetime,
    end: datetime,
    limit: int | None = None,
    decimals: bool = False,
) -> list[Any]:
    """Return the rows with start <= time < end, oldest first, those of one instant by the rest of their key.

    Raises ValidationError for an instant that is not aware and for a limit that is not an int >= 0.
    """
    check_instant(table.name, "start", start)
    check_instant(table.name, "end", end)
    check_limit(table.name, limit)
    n = len(ids)
    time = quote_identifier(table.time_column)
    conditions = [f"{quote_identifier(key)} = ${i}" for i, key in enumerate(table.key[:n], 1)]
    conditions += [f"{time} >= ${n + 1}", f"{time} < ${n + 2}"]
    rest = [key for key in table.key[n:] if key != table.time_column]
    order = ", ".join(map(quote_identifier, (table.time_column, *rest)))
    records = await get_db_manager().fetch(
        f"SELECT {_select_list(table)} FROM {quote_identifier(table.name)} "
        f"WHERE {' AND '.join(conditions)} ORDER BY {order} LIMIT ${n + 3}",
        *ids,
        start,
        end,
        limit,
        resets=False,
    )
    return [_to_model(table, record, decimals) for record in records]


async def get_with_symbol_info(table: Table, symbol_id: int) -> dict[str, Any] | None:
    """Return the newest row with its symbol, from the cache where it is there; None when there is no row.

    Keys: ``entity`` (the model), ``symbol`` (CachedSymbol or None), ``display_name``.
    """
    entity = await get_latest(table, symbol_id)
    if entity is None:
        return None
    symbol = await get_cached_symbol_by_id(symbol_id)
    display = f"{symbol.exchange}:{symbol.symbol_base}/{symbol.symbol_quote}" if symbol else "Unknown"
    return {"entity": entity, "symbol": symbol, "display_name": display}


async def get_stats(table: Table, *, averages: tuple[str, ...] = (), since: datetime | None = None) -> dict[str, Any]:
    """Return counts and bounds: total_records, unique_<leading key>s, earliest_record, latest_record, avg_….

    Reads every row since ``since`` (all of them without it): seconds on a large table. An average over no
    row is None.
    """
    if since is not None:
        check_instant(table.name, "since", since)
    leading = table.key[0]
    noun = {"symbol_id": "unique_symbols", "exchange_id": "unique_exchanges"}.get(leading, f"unique_{leading}")
    time = quote_identifier(table.time_column)
    # Named here and not by the server, which would cut a long name.
    names = ["total_records", noun, "earliest_record", "latest_record", *(f"avg_{column}" for column in averages)]
    average_columns = "".join(f", avg({quote_identifier(column)})" for column in averages)
    record = await get_db_manager().fetchrow(
        f"SELECT count(*), count(DISTINCT {quote_identifier(leading)}), min({time}), max({time}){average_columns} "
        f"FROM {quote_identifier(table.name)} WHERE $1::timestamptz IS NULL OR {time} >= $1",
        since,
    )
    values = [float(value) if isinstance(value, Decimal) else value for value in record or ()]
    return dict(zip(names, values, strict=True))
