"""Rows to their table at once: what Writer does in the background, for one batch and with an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

import asyncpg
import msgspec

from pgtick._fast.batch import EncodedBatch
from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.engines import get_engine
from pgtick.errors import RowError
from pgtick.tables import Table
from pgtick.writer.batch import Batch
from pgtick.writer.deliver import Delivery, deliver
from pgtick.writer.encoders import encoder_of
from pgtick.writer.faults import Fault, fault_of

__all__ = ["StoreResult", "send", "store_batch", "store_rows"]

Answer = TypeVar("Answer")

#: A batch of so many rows goes in the order of its table's index: 1.1 times as fast for 10,000 rows, 1.3 times for
#: 200,000; smaller ones gain nothing (bench/bench_parallel.py).
SORT_ROWS = 10_000


class StoreResult(msgspec.Struct):
    """What became of a batch; ``n_stored`` is the server's count. The counts and errors add up."""

    n_stored: int = 0
    n_duplicates: int = 0
    errors: list[RowError] = msgspec.field(default_factory=list)


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
    a duplicate. Outside of a transaction a batch whose connection is lost is sent once more, and the ledger tells
    whether it had been committed; a second such error passes through, as the first does inside a transaction.
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
        done = await _delivered(db, Batch(table, batch))
        result.n_stored, result.n_duplicates = done.n_stored, done.n_duplicates
        result.errors += [_named(error, rows) for error in done.errors]
        result.errors.sort(key=lambda error: error.index)
    return result


async def _delivered(db: DatabaseManager, batch: Batch) -> Delivery:
    timeout_s = db.config.statement_timeout_s
    try:
        return await deliver(db, batch, quarantines=False, timeout_s=timeout_s)
    except Exception as error:
        is_unknown = batch.n_sent and not isinstance(error, TimeoutError) and fault_of(error) is Fault.RETRY
        if db.in_transaction or not is_unknown:
            raise
    return await deliver(db, batch, quarantines=False, timeout_s=timeout_s)


def _named(error: RowError, rows: list[Any] | None) -> RowError:
    """Return the refusal with the value that the caller gave, where it is known."""
    if rows is None:
        return error
    row = rows[error.index]
    if isinstance(row, dict):
        value = row.get(error.column, error.value)
    elif isinstance(row, tuple):
        value = error.value
    else:
        value = getattr(row, error.column, error.value)
    named = RowError(error.table, error.index, error.column, value, error.rule)
    named.__cause__ = error.__cause__
    return named


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
