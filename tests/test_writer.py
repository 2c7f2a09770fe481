"""The way of a row: duplicates, refusals, partitions that went away, also in a transaction; the Writer's counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from rows import NOW, make_symbol, ticker

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.models import TradeSnapshot
from pgtick.operations.book_ticker import insert_book_ticker
from pgtick.tables import BOOK_TICKERS, TRADES
from pgtick.writer import StoreResult, Writer, store_rows

LATE = datetime(2021, 4, 22, 12, tzinfo=UTC)
PARTITION = f"{BOOK_TICKERS.name}_p{LATE:%Y%m%d}"

in_and_out_of_a_transaction = pytest.mark.parametrize(
    "in_transaction", [False, True], ids=["alone", "in a transaction"]
)


@pytest.fixture
async def symbol_id(db: DatabaseManager) -> int:
    return await make_symbol()


@pytest.fixture
async def other(config: DatabaseConfig, db: DatabaseManager) -> AsyncIterator[DatabaseManager]:
    """Another process's manager of the same database."""
    manager = await open_manager(config)
    yield manager
    await manager.close()


def rows_of(symbol_id: int, *numbers: int, **changes: object) -> list[Any]:
    return [ticker(symbol_id, sequence_number=n, **changes) for n in numbers]


@in_and_out_of_a_transaction
async def test_duplicates_and_refusals_of_one_batch_are_told_apart(
    db: DatabaseManager, symbol_id: int, in_transaction: bool
) -> None:
    async with db.transaction() if in_transaction else nullcontext():
        first = await store_rows(BOOK_TICKERS, rows_of(symbol_id, *range(50)))
        mixed = [*rows_of(symbol_id, *range(40, 60)), *rows_of(symbol_id, 60, 60), *rows_of(999_999, 61)]
        mixed[5].bid_price = float("nan")
        second = await store_rows(BOOK_TICKERS, mixed)
        third = await store_rows(BOOK_TICKERS, rows_of(symbol_id, *range(60)))
    assert (first.n_stored, first.n_duplicates, first.errors) == (50, 0, [])
    assert (second.n_stored, second.n_duplicates) == (11, 10)
    assert [error.index for error in second.errors] == [5, 22]
    assert (third.n_stored, third.n_duplicates, third.errors) == (0, 60, [])
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 61


async def test_many_batches_at_once_store_each_key_once(db: DatabaseManager, symbol_id: int) -> None:
    results = await asyncio.gather(
        *(store_rows(BOOK_TICKERS, rows_of(symbol_id, *range(n, n + 100))) for n in range(0, 200, 10))
    )
    assert sum(result.n_stored for result in results) == 290
    assert sum(result.n_stored + result.n_duplicates for result in results) == 20 * 100
    assert all(not result.errors for result in results)
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 290


@pytest.mark.engines("plain", "citus")
@in_and_out_of_a_transaction
@pytest.mark.parametrize("way", ["batch", "duplicates", "insert"])
async def test_partition_that_another_process_dropped_is_made_again(
    db: DatabaseManager, other: DatabaseManager, symbol_id: int, in_transaction: bool, way: str
) -> None:
    assert (await store_rows(BOOK_TICKERS, rows_of(symbol_id, 1, timestamp=LATE))).n_stored == 1
    await other.execute(f"DROP TABLE {PARTITION}")
    rows = rows_of(symbol_id, 1, 2, timestamp=LATE)
    async with db.transaction() if in_transaction else nullcontext():
        if way == "insert":
            for row in rows:
                assert await insert_book_ticker(row)
        elif way == "duplicates":
            kept = rows_of(symbol_id, 3)
            assert (await store_rows(BOOK_TICKERS, kept)).n_stored == 1
            assert await store_rows(BOOK_TICKERS, [*kept, *rows]) == StoreResult(n_stored=2, n_duplicates=1)
        else:
            assert await store_rows(BOOK_TICKERS, rows) == StoreResult(n_stored=2)
    assert await db.fetchval(f"SELECT count(*) FROM {PARTITION}") == 2


async def test_writer_counts_add_up_while_rows_are_under_way(db: DatabaseManager, symbol_id: int) -> None:
    async with db.acquire() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {BOOK_TICKERS.name} IN SHARE MODE")
        writer = Writer(max_rows=10, max_age_s=60)
        for row in rows_of(symbol_id, *range(9)):
            await writer.add(BOOK_TICKERS, row)
        flush = asyncio.create_task(writer.flush())
        await asyncio.sleep(0.2)
        assert not flush.done()
        await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=8))
        assert (writer.n_accepted, writer.n_waiting) == (10, 10)
    await flush
    assert writer.n_waiting == 1
    await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=9, bid_price=0))
    await writer.close()
    total = writer.totals[BOOK_TICKERS.name]
    assert (total.n_stored, total.n_duplicates, len(total.errors), writer.n_waiting) == (9, 1, 1, 0)


async def test_writer_waits_at_its_cap_for_rows_under_way(db: DatabaseManager, symbol_id: int) -> None:
    async with db.acquire() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {BOOK_TICKERS.name} IN SHARE MODE")
        writer = Writer(max_rows=1000, max_age_s=60, max_buffered=5)
        for row in rows_of(symbol_id, *range(5)):
            await writer.add(BOOK_TICKERS, row)
        flush = asyncio.create_task(writer.flush())
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):  # and what was not accepted is not stored
            await asyncio.wait_for(writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=5)), 0.2)
    await flush
    await writer.close()
    assert writer.totals[BOOK_TICKERS.name].n_stored == writer.n_accepted == 5


async def test_table_that_is_away_keeps_its_rows_and_holds_up_no_other(
    db: DatabaseManager, symbol_id: int, caplog: pytest.LogCaptureFixture
) -> None:
    trade = TradeSnapshot(timestamp=NOW, symbol_id=symbol_id, price=1, quantity=1, side="buy", trade_id="1")
    writer = Writer(max_age_s=60)
    await db.execute(f"ALTER TABLE {BOOK_TICKERS.name} RENAME TO away")
    for row in rows_of(symbol_id, 1, 2):
        await writer.add(BOOK_TICKERS, row)
    await writer.add(TRADES, trade)
    with pytest.raises(asyncpg.UndefinedTableError):
        await writer.flush()
    assert (writer.totals[TRADES.name].n_stored, writer.n_waiting) == (1, 2)
    await db.execute(f"ALTER TABLE away RENAME TO {BOOK_TICKERS.name}")
    await writer.close()
    assert (writer.totals[BOOK_TICKERS.name].n_stored, writer.n_waiting) == (2, 0)


async def test_writer_flushes_by_age_and_keeps_what_failed(
    db: DatabaseManager, symbol_id: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with Writer(max_age_s=0.01) as writer:
        await writer.add(BOOK_TICKERS, ticker(symbol_id))
        for _ in range(500):
            await asyncio.sleep(0.01)
            if writer.n_waiting == 0:
                break
        assert writer.totals[BOOK_TICKERS.name].n_stored == 1
        await db.execute(f"ALTER TABLE {BOOK_TICKERS.name} RENAME TO away")
        with caplog.at_level(logging.WARNING, logger="pgtick"):
            await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=2))
            for _ in range(500):
                await asyncio.sleep(0.01)
                if "flush failed, 1 rows are kept" in caplog.text:
                    break
        assert writer.n_waiting == 1
        await db.execute(f"ALTER TABLE away RENAME TO {BOOK_TICKERS.name}")
    assert writer.totals[BOOK_TICKERS.name].n_stored == 2


async def test_rows_of_a_lost_connection_are_kept_and_stored_by_the_next_flush(
    config: DatabaseConfig, other: DatabaseManager, symbol_id: int
) -> None:
    own = await open_manager(msgspec.structs.replace(config, max_connections=1, min_connections=1))
    try:
        writer = Writer(own, max_age_s=60)
        for row in rows_of(symbol_id, *range(100), timestamp=NOW - timedelta(seconds=1)):
            await writer.add(BOOK_TICKERS, row)
        async with other.transaction():
            await other.execute(f"LOCK TABLE {BOOK_TICKERS.name} IN SHARE MODE")
            flush = asyncio.create_task(writer.flush())
            query = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"
            )
            for _ in range(500):
                await asyncio.sleep(0.01)
                if await other.fetchval(query, config.database):
                    break
            with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
                await flush
        assert writer.n_waiting == 100
        await writer.close()
        assert (writer.totals[BOOK_TICKERS.name].n_stored, writer.n_waiting) == (100, 0)
    finally:
        await own.close()


async def test_outage_costs_no_row_and_the_cap_is_one(db: DatabaseManager, symbol_id: int) -> None:
    writer = Writer(db, max_rows=10, max_age_s=60, max_buffered=30)
    await db.execute(f"ALTER TABLE {BOOK_TICKERS.name} RENAME TO away")
    for row in rows_of(symbol_id, *range(30)):
        await writer.add(BOOK_TICKERS, row)
    with pytest.raises(asyncpg.PostgresError):
        await writer.add(BOOK_TICKERS, *rows_of(symbol_id, 30))
    assert (writer.n_accepted, writer.n_waiting) == (30, 30)
    await db.execute(f"ALTER TABLE away RENAME TO {BOOK_TICKERS.name}")
    await writer.add(BOOK_TICKERS, *rows_of(symbol_id, 30))
    await writer.close()
    assert (writer.n_accepted, writer.n_waiting, writer.totals[BOOK_TICKERS.name].n_stored) == (31, 0, 31)
