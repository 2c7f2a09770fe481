"""Bring a batch into its table: straight COPY first, duplicates and refusals sorted out only when they occur."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

import asyncpg
import msgspec

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.engines import get_engine
from pgtick.errors import RowError
from pgtick.tables import Table, quote_identifier

__all__ = ["StoreResult", "encoder_of", "send", "store_batch", "store_rows"]

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)

#: A batch of so many rows goes in the order of its table's index: 1.1 times as fast for 10,000 rows, 1.3 times for
#: 200,000; smaller ones gain nothing (bench/bench_parallel.py).
SORT_ROWS = 10_000

#: From so many rows on a batch goes straight to where the engine keeps its day: 1.13 times as fast at 5,000 rows,
#: 1.23 at 200,000, and slower about 1,000 (docs/profile.md).
STRAIGHT_ROWS = 5_000

_encoders: dict[Table, RowEncoder] = {}

# What only the server can know of a row's data: SQLSTATE classes 22 (data) and 23 (integrity).
_DATA_ERRORS = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


class StoreResult(msgspec.Struct):
    """What became of a batch; ``n_stored`` is the server's count. The counts and errors add up."""

    n_stored: int = 0
    n_duplicates: int = 0
    errors: list[RowError] = msgspec.field(default_factory=list)


def encoder_of(table: Table) -> RowEncoder:
    """Return the table's encoder, made once."""
    encoder = _encoders.get(table)
    if encoder is None:
        encoder = _encoders[table] = RowEncoder(table)
    return encoder


async def store_rows(
    table: Table,
    rows: Iterable[object],
    *,
    time_unit: str | None = None,
    db: DatabaseManager | None = None,
) -> StoreResult:
    """Encode and store rows: Structs, tuples in wire order, or dicts.

    ``time_unit`` names the unit of integer times: s, ms, us or ns. A row that is refused, here or by the
    server, is in ``errors`` with its index, and harms no other. A row whose key is stored already counts as
    a duplicate. Connection errors pass through; nothing of the batch is then half stored in a transaction.
    """
    rows = list(rows)
    batch = encoder_of(table).encode(rows, time_unit=time_unit)
    return await store_batch(table, batch, rows, db=db)


async def store_batch(
    table: Table, batch: EncodedBatch, rows: list[Any] | None = None, *, db: DatabaseManager | None = None
) -> StoreResult:
    """Store an encoded batch; ``rows``, where it was encoded from rows, are for naming a refused one."""
    db = db or get_db_manager()
    result = StoreResult(errors=list(batch.errors))
    if batch.n_rows:
        if batch.n_rows >= SORT_ROWS:
            names = table.column_names
            batch = await asyncio.to_thread(batch.sorted, names.index(table.key[0]), names.index(table.time_column))
        engine = await get_engine(db)
        await engine.ensure_days(db, table.name, batch.days)
        await _store(db, table, batch, rows, 0, batch.n_rows, result)
        result.errors.sort(key=lambda error: error.index)
    return result


async def _store(
    db: DatabaseManager,
    table: Table,
    batch: EncodedBatch,
    rows: list[Any] | None,
    start: int,
    stop: int,
    result: StoreResult,
) -> None:
    engine = await get_engine(db)

    async def copy(target: str = table.name) -> int:
        async with engine.copying(db):
            return await db.copy_binary_to_table(target, table.column_names, batch.chunks(start, stop))

    async def store_new() -> int:
        return await _store_new(db, table, batch, start, stop)

    try:
        try:
            stored = await _send_straight(db, table, batch.days, stop - start, copy)
        except asyncpg.UniqueViolationError:
            stored = await send(db, table, batch.days, store_new)
    except _DATA_ERRORS as error:
        if stop - start == 1:
            result.errors.append(_row_error(table, batch, rows, start, error))
            return
        # Halving isolates the culprit in log2(n) further COPYs and stores everything else.
        middle = (start + stop) // 2
        await _store(db, table, batch, rows, start, middle, result)
        await _store(db, table, batch, rows, middle, stop, result)
        return
    result.n_stored += stored
    result.n_duplicates += stop - start - stored


async def _send_straight(
    db: DatabaseManager, table: Table, days: set[int], n_rows: int, copy: Callable[..., Awaitable[int]]
) -> int:
    """Copy a large batch to where the engine keeps its day; where that is gone or not allowed, to the table."""
    engine = await get_engine(db)
    target = engine.copy_target(db, table.name, days) if n_rows >= STRAIGHT_ROWS else table.name
    if target != table.name:
        try:
            return await _in_savepoint(db, lambda: copy(target))
        except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError) as error:
            logger.debug("%s is copied into instead: %s", table.name, error)
        except asyncpg.CheckViolationError as error:
            if error.constraint_name is not None:
                raise
    return await send(db, table, days, copy)


async def send(
    db: DatabaseManager, table: Table, days: Iterable[int], statement: Callable[[], Awaitable[Answer]]
) -> Answer:
    """Await ``statement``, in a savepoint where the caller is in a transaction, so that a refusal does not spoil it.

    Where the partition of one of the days is gone again, because another process dropped it, it is made and the
    statement awaited once more.
    """
    try:
        return await _in_savepoint(db, statement)
    except asyncpg.CheckViolationError as error:
        if error.constraint_name is not None:
            raise
    engine = await get_engine(db)
    engine.forget(table.name)
    await engine.ensure_days(db, table.name, days)
    return await _in_savepoint(db, statement)


async def _in_savepoint(db: DatabaseManager, statement: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        async with db.transaction() if db.in_transaction else nullcontext():
            return await statement()
    except asyncpg.PostgresError as error:
        meant = (await get_engine(db)).sorted_error(error)
        if meant is error:
            raise
        raise meant from error


async def _store_new(db: DatabaseManager, table: Table, batch: EncodedBatch, start: int, stop: int) -> int:
    """Store the rows whose key is new, through a temporary table; return how many."""
    name = quote_identifier(table.name)
    columns = ", ".join(quote_identifier(column) for column in table.column_names)
    engine = await get_engine(db)
    async with db.transaction(), engine.copying(db):
        await db.execute(
            f"CREATE TEMPORARY TABLE pgtick_incoming ON COMMIT DROP AS SELECT {columns} FROM {name} WITH NO DATA"
        )
        await db.copy_binary_to_table("pgtick_incoming", table.column_names, batch.chunks(start, stop))
        # Counted here, because the command tag of Citus counts the rows that were there already, too.
        n_stored: int = await db.fetchval(
            f"WITH stored AS (INSERT INTO {name} ({columns}) SELECT {columns} FROM pgtick_incoming "
            "ON CONFLICT DO NOTHING RETURNING 1) SELECT count(*) FROM stored"
        )
        # Not left to the commit: inside a caller's transaction the name must be free again.
        await db.execute("DROP TABLE pgtick_incoming")
    return n_stored


def _row_error(
    table: Table, batch: EncodedBatch, rows: list[Any] | None, place: int, error: asyncpg.PostgresError
) -> RowError:
    index = batch.origin(place)
    row = encoder_of(table).values(batch, place) if rows is None else rows[index]
    key = re.match(r"Key \(([^)]*)\)=", error.detail or "")  # a foreign key's error tells its column only there
    column = error.column_name or (key and key[1]) or error.constraint_name or "?"
    if isinstance(row, dict):
        value = row.get(column, row)
    elif isinstance(row, tuple):
        names = table.column_names
        value = row[names.index(column)] if column in names else row
    else:
        value = getattr(row, column, row)
    refusal = RowError(table.name, index, column, value, f"was refused by the server: {error}")
    refusal.__cause__ = error
    return refusal
