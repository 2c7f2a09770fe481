"""F6: the table changes while rows are written: a column dropped, retyped, made NOT NULL."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from faults.support import NOW, assert_adds_up, managed, record, ticker_of, until
from pgtick.config import DatabaseConfig
from pgtick.errors import SchemaChangedError
from pgtick.models import BookTickerSnapshot
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

TABLE = BOOK_TICKERS.name
CHANGES = {
    "dropped": (f"ALTER TABLE {TABLE} DROP COLUMN ask_qty", f"ALTER TABLE {TABLE} ADD COLUMN ask_qty numeric"),
    "retyped": (
        f"ALTER TABLE {TABLE} ALTER COLUMN bid_qty TYPE float8",
        f"ALTER TABLE {TABLE} ALTER COLUMN bid_qty TYPE numeric",
    ),
    "made NOT NULL": (
        f"BEGIN; LOCK TABLE {TABLE}; UPDATE {TABLE} SET ask_qty = 0; "
        f"ALTER TABLE {TABLE} ALTER COLUMN ask_qty SET NOT NULL; COMMIT",
        f"ALTER TABLE {TABLE} ALTER COLUMN ask_qty DROP NOT NULL",
    ),
    "renamed": (
        f"ALTER TABLE {TABLE} RENAME COLUMN ask_qty TO other",
        f"ALTER TABLE {TABLE} RENAME COLUMN other TO ask_qty",
    ),
    "gone with its table": (f"ALTER TABLE {TABLE} RENAME TO away", f"ALTER TABLE away RENAME TO {TABLE}"),
}
N_ROWS = 500


@contextlib.asynccontextmanager
async def fed(writer: Writer) -> AsyncIterator[list[int]]:
    """Hand over a row every millisecond meanwhile; yield the numbers."""
    numbers: list[int] = []

    async def feed() -> None:
        while True:
            row: BookTickerSnapshot = ticker_of(len(numbers))
            await writer.add(BOOK_TICKERS, row)
            numbers.append(row.sequence_number or 0)
            await asyncio.sleep(0.001)

    task = asyncio.create_task(feed())
    try:
        yield numbers
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("change", CHANGES)
async def test_table_changed_under_the_writer_keeps_its_rows_and_resumes(keyless: DatabaseConfig, change: str) -> None:
    there, back = CHANGES[change]
    connection = await asyncpg.connect(**keyless.connect_kwargs())
    async with managed(keyless) as db, Writer(db, spool=False, max_age_s=0.05) as writer:
        counts = writer.metrics.counts_of(TABLE)
        async with fed(writer) as numbers:
            await until(lambda: len(numbers) > 100 and counts.n_stored > 50, "rows are stored")
            await connection.execute(there)
            with pytest.raises(SchemaChangedError, match=TABLE):  # noticed within a flush
                await writer.flush()
            assert TABLE in writer.metrics.lanes_stopped
            n_stored = counts.n_stored
            n_then = len(numbers)
            await until(lambda: len(numbers) > n_then + N_ROWS, "rows are accepted meanwhile")
            assert counts.n_stored == n_stored
            assert_adds_up(writer)
            await connection.execute(back)
            await until(lambda: counts.n_stored > n_stored + N_ROWS, "it resumes without a restart")
        await writer.flush()
        assert writer.metrics.lanes_stopped == {}
    assert_adds_up(writer)
    assert (counts.n_stored, counts.n_quarantined, counts.n_duplicates) == (len(numbers), 0, 0)
    query = f"SELECT sequence_number FROM {TABLE} WHERE bid_price = sequence_number + 1.25 AND timestamp = $1"
    stored = await connection.fetch(f"{query} ORDER BY 1", NOW)
    assert [number for (number,) in stored] == numbers
    await connection.close()
    record("F6", f"a column {change}", "noticed within a flush, rows kept, resumes; 0 lost, 0 doubled")
