"""The way of a row: duplicates, refusals, partitions that went away, also in a transaction; the Writer's counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rows import NOW, make_symbol, quarantined, ticker, until

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.errors import BufferFullError, RowError, SchemaChangedError, UnavailableError, WriterClosedError
from pgtick.models import TradeSnapshot
from pgtick.operations.book_ticker import insert_book_ticker
from pgtick.tables import BOOK_TICKERS, TRADES
from pgtick.writer import StoreResult, Writer, store_rows
from pgtick.writer.batch import Batch
from pgtick.writer.deliver import deliver
from pgtick.writer.encoders import encoder_of

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


@asynccontextmanager
async def locked(db: DatabaseManager, table: str = BOOK_TICKERS.name) -> AsyncIterator[None]:
    """Let nobody store into the table meanwhile."""
    async with db.acquire() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {table} IN SHARE MODE")
        yield


def adds_up(writer: Writer) -> bool:
    return all(
        c.n_accepted + c.n_recovered
        == c.n_stored + c.n_duplicates + c.n_quarantined + c.n_spooled + c.n_buffered + c.n_dropped
        for c in writer.counts.values()
    )


async def test_writer_counts_add_up_while_rows_are_under_way(db: DatabaseManager, symbol_id: int) -> None:
    writer = Writer(max_age_s=60)
    async with locked(db):
        for row in rows_of(symbol_id, *range(9)):
            await writer.add(BOOK_TICKERS, row)
        flush = asyncio.create_task(writer.flush())
        await asyncio.sleep(0.2)
        assert not flush.done()
        await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=8))
        assert (writer.n_accepted, writer.n_waiting) == (10, 10)
        assert adds_up(writer)
    await flush
    assert writer.n_waiting == 1
    await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=9, bid_price=0))
    await writer.close()
    total = writer.counts[BOOK_TICKERS.name]
    assert (total.n_stored, total.n_duplicates, total.n_quarantined, writer.n_waiting) == (9, 1, 1, 0)
    assert adds_up(writer)
    assert await quarantined(db) == [(BOOK_TICKERS.name, "bid_price", "must be > 0")]
    index, row = await db.fetchrow("SELECT row_index, row FROM ingest_quarantine") or (None, "")
    assert (index, json.loads(row)["ask_price"]) == (10, "50000.20")


@pytest.mark.parametrize("when_full", ["wait", "raise"])
async def test_cap_in_bytes_holds_up_or_raises_and_takes_nothing_more(
    db: DatabaseManager, symbol_id: int, when_full: str
) -> None:
    writer = Writer(max_age_s=60, max_bytes=100_000, when_full=when_full)
    async with locked(db):
        expected = BufferFullError if when_full == "raise" else TimeoutError

        async def add_all() -> None:
            for row in rows_of(symbol_id, *range(10_000)):
                await writer.add(BOOK_TICKERS, row)

        with pytest.raises(expected):
            await asyncio.wait_for(add_all(), 5)
        n = writer.n_accepted
        assert 100 < n < 5000
        assert adds_up(writer)
    await writer.close()
    assert writer.counts[BOOK_TICKERS.name].n_stored == n
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == n


async def test_table_that_is_away_keeps_its_rows_and_holds_up_no_other(db: DatabaseManager, symbol_id: int) -> None:
    trade = TradeSnapshot(timestamp=NOW, symbol_id=symbol_id, price=1, quantity=1, side="buy", trade_id="1")
    writer = Writer(max_age_s=60)
    await db.execute(f"ALTER TABLE {BOOK_TICKERS.name} RENAME TO away")
    for row in rows_of(symbol_id, 1, 2):
        await writer.add(BOOK_TICKERS, row)
    await writer.add(TRADES, trade)
    with pytest.raises(SchemaChangedError, match=BOOK_TICKERS.name):
        await writer.flush()
    await until(lambda: writer.counts[TRADES.name].n_stored == 1)
    assert writer.n_waiting == 2
    assert not writer.health().is_ok
    await db.execute(f"ALTER TABLE away RENAME TO {BOOK_TICKERS.name}")
    await until(lambda: writer.n_waiting == 0)
    assert writer.counts[BOOK_TICKERS.name].n_stored == 2
    assert writer.health().is_ok
    await writer.close()


async def test_writer_flushes_by_age_and_by_size(db: DatabaseManager, symbol_id: int) -> None:
    async with Writer(max_age_s=0.01) as by_age, Writer(max_rows=10, max_age_s=60) as by_size:
        await by_age.add(BOOK_TICKERS, ticker(symbol_id))
        await until(lambda: by_age.counts[BOOK_TICKERS.name].n_stored == 1)
        await by_size.add_many(BOOK_TICKERS, rows_of(symbol_id, *range(100, 135)))
        await until(lambda: by_size.counts[BOOK_TICKERS.name].n_stored == 30)
        assert by_size.n_waiting == 5


async def test_rows_of_a_lost_connection_are_stored_once_without_a_word(
    config: DatabaseConfig, db: DatabaseManager, other: DatabaseManager, symbol_id: int
) -> None:
    writer = Writer(max_age_s=60)
    await writer.add_many(BOOK_TICKERS, rows_of(symbol_id, *range(100)))
    async with locked(other):
        flush = asyncio.create_task(writer.flush())
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"
        for _ in range(500):
            await asyncio.sleep(0.01)
            if await other.fetchval(query, config.database):
                break
    await flush
    assert (writer.counts[BOOK_TICKERS.name].n_stored, writer.n_waiting) == (100, 0)
    await writer.close()


async def test_server_that_stays_away_is_told_without_a_spool_and_spooled_with_one(
    db: DatabaseManager, symbol_id: int, tmp_path: Path
) -> None:
    kept = Writer(max_age_s=60, retry_s=0.3, flush_timeout_s=0.2, spool=False, close_timeout_s=0.5)
    spooled = Writer(max_age_s=60, retry_s=0.3, flush_timeout_s=0.2, spool=tmp_path / "spool")
    async with locked(db):
        for writer, start in ((kept, 0), (spooled, 100)):
            await writer.add_many(BOOK_TICKERS, rows_of(symbol_id, *range(start, start + 50)))
        with pytest.raises(UnavailableError):
            await kept.flush()
        with pytest.raises((UnavailableError, TimeoutError)):
            await kept.close()
        assert kept.n_waiting == 50
        await spooled.close()
        assert (spooled.n_waiting, spooled.counts[BOOK_TICKERS.name].n_spooled) == (0, 50)
        assert adds_up(spooled)
    await kept.close()  # again, now that the server takes them
    assert (kept.n_waiting, kept.counts[BOOK_TICKERS.name].n_stored) == (0, 50)
    again = Writer(max_age_s=60, spool=tmp_path / "spool")
    async with again:
        assert again.counts[BOOK_TICKERS.name].n_recovered == 50
        await again.flush()
        await until(lambda: again.counts[BOOK_TICKERS.name].n_spooled == 0)
    assert again.counts[BOOK_TICKERS.name].n_stored == 50
    assert adds_up(again)
    query = "SELECT count(*) FROM book_ticker_snapshots WHERE sequence_number >= 100"
    assert await db.fetchval(query) == 50


async def test_batch_sent_twice_under_its_id_is_stored_and_counted_once(db: DatabaseManager, symbol_id: int) -> None:
    batch = Batch(BOOK_TICKERS, encoder_of(BOOK_TICKERS).encode(rows_of(symbol_id, *range(50))))
    first = await deliver(db, batch)
    second = await deliver(db, batch)
    assert (first.n_stored, first.was_committed) == (50, False)
    assert (second.n_stored, second.n_duplicates, second.was_committed) == (50, 0, True)
    third = await deliver(db, Batch(BOOK_TICKERS, batch.rows))
    again = await deliver(db, Batch(BOOK_TICKERS, batch.rows))
    assert (third.n_stored, third.n_duplicates, again.n_duplicates) == (0, 50, 50)
    assert await db.fetchval("SELECT sum(n_duplicates) FROM ingest_batches") == 100


async def test_rows_that_only_the_server_refuses_go_to_quarantine_in_the_same_transaction(
    db: DatabaseManager, symbol_id: int
) -> None:
    await db.execute("ALTER TABLE book_ticker_snapshots ADD CONSTRAINT no_seven CHECK (sequence_number <> 7)")
    async with Writer(max_age_s=60) as writer:
        await writer.add_many(BOOK_TICKERS, rows_of(symbol_id, *range(10)))
        await writer.add(BOOK_TICKERS, ticker(999_999, sequence_number=10))
        await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=3))
    total = writer.counts[BOOK_TICKERS.name]
    assert (total.n_stored, total.n_duplicates, total.n_quarantined) == (9, 1, 2)
    assert [column for _, column, _ in await quarantined(db)] == ["sequence_number", "symbol_id"]
    records = await db.fetch("SELECT row_index FROM ingest_quarantine ORDER BY id")
    assert [record[0] for record in records] == [7, 10]
    assert adds_up(writer)


async def test_refused_row_raises_where_it_is_asked_for(db: DatabaseManager, symbol_id: int) -> None:
    async with Writer(refused="raise") as writer:
        with pytest.raises(RowError, match="bid_price"):
            await writer.add(BOOK_TICKERS, ticker(symbol_id, bid_price=0))
        rows = rows_of(symbol_id, 1, 2, 3)
        rows[1].bid_price = float("nan")
        with pytest.raises(RowError, match="column bid_price: nan"):
            await writer.add_many(BOOK_TICKERS, rows)
    total = writer.counts[BOOK_TICKERS.name]
    assert (total.n_accepted, total.n_refused, total.n_stored) == (1, 2, 1)
    with pytest.raises(WriterClosedError):
        await writer.add(BOOK_TICKERS, ticker(symbol_id))


async def test_columns_are_rows_like_others(db: DatabaseManager, symbol_id: int) -> None:
    columns = {
        "timestamp": [NOW] * 30,
        "symbol_id": symbol_id,
        "bid_price": [1.0] * 29 + [-1.0],
        "ask_price": 2.0,
        "sequence_number": list(range(30)),
        "update_type": "x",
    }
    async with Writer(max_rows=10) as writer:
        await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=100))
        await writer.add_columns(BOOK_TICKERS, columns)
    total = writer.counts[BOOK_TICKERS.name]
    assert (total.n_stored, total.n_quarantined) == (30, 1)
    assert await db.fetchval("SELECT row_index FROM ingest_quarantine") == 30
    assert adds_up(writer)


async def test_writer_used_inside_a_transaction_is_no_part_of_it(db: DatabaseManager, symbol_id: int) -> None:
    writer = Writer(max_age_s=60)

    async def work_that_fails() -> None:
        async with db.transaction():
            await writer.add(BOOK_TICKERS, ticker(symbol_id))
            await writer.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work_that_fails()
    await writer.close()
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 1


async def test_row_that_itself_raises_leaves_those_before_it_accepted(db: DatabaseManager, symbol_id: int) -> None:
    class Wrong:
        @property
        def timestamp(self) -> datetime:
            raise ZeroDivisionError

    rows = rows_of(symbol_id, 1, 2)
    rows[1].bid_price = 0
    async with Writer(max_age_s=60) as writer:
        with pytest.raises(ZeroDivisionError):
            await writer.add_many(BOOK_TICKERS, [*rows, Wrong(), *rows_of(symbol_id, 3)])
        await writer.add_many(BOOK_TICKERS, rows_of(symbol_id, 4, 5))
        assert adds_up(writer)
    total = writer.counts[BOOK_TICKERS.name]
    assert (total.n_accepted, total.n_stored, total.n_quarantined) == (4, 3, 1)
    assert await db.fetchval("SELECT row_index FROM ingest_quarantine") == 1
