"""The metrics of a real Writer at its real work: what a scrape and a health call tell in fair weather and in foul."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rows import make_symbol, ticker, until

from pgtick.adapters.prometheus import WriterCollector, serve_metrics
from pgtick.connection import DatabaseManager
from pgtick.tables import BOOK_TICKERS, TRADES
from pgtick.writer import Writer
from pgtick.writer import metrics as metrics_room

TABLE = BOOK_TICKERS.name


@pytest.fixture
async def symbol_id(db: DatabaseManager) -> int:
    return await make_symbol()


async def scraped(url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    def fetch() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(fetch)
    return {
        (sample.name, tuple(sample.labels[label] for label in sorted(sample.labels, reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@asynccontextmanager
async def locked(db: DatabaseManager) -> AsyncIterator[None]:
    async with db.acquire() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {TABLE} IN SHARE MODE")
        yield


async def test_scrape_of_a_writer_at_work_adds_up(db: DatabaseManager, symbol_id: int) -> None:
    async with Writer(max_age_s=60, spool=False) as writer:
        with serve_metrics(writer, port=0) as served:
            await writer.add_many(BOOK_TICKERS, [ticker(symbol_id, sequence_number=n) for n in range(50)])
            await writer.flush()
            again = [ticker(symbol_id, sequence_number=n) for n in range(40, 60)]
            again += [ticker(symbol_id, sequence_number=60, bid_price=0), ticker(999_999, sequence_number=61)]
            await writer.add_many(BOOK_TICKERS, again)
            await writer.flush()
            await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=70))
            told = await scraped(served.url)
    outcomes = ("accepted", "stored", "duplicate", "quarantined", "dropped", "refused")
    assert [told["pgtick_rows_total", (TABLE, outcome)] for outcome in outcomes] == [73, 60, 10, 2, 0, 0]
    assert told["pgtick_rows_buffered", (TABLE,)] == 1
    assert told["pgtick_buffer_bytes", ()] > 0
    assert told["pgtick_oldest_buffered_seconds", (TABLE,)] > 0
    assert told["pgtick_flush_seconds_count", (TABLE,)] == 2
    assert told["pgtick_batch_rows_sum", (TABLE,)] == 72
    assert told["pgtick_attempt_seconds_count", (TABLE,)] >= 2
    assert told["pgtick_careful_batches_total", ()] >= 1
    assert told["pgtick_server_up", ()] == 1
    assert told["pgtick_pool_connections", ("max",)] == db.pool_state()["max"]
    assert writer.health().is_ok


async def test_health_of_a_writer_whose_server_stalls_says_away_until_it_answers(
    db: DatabaseManager, symbol_id: int
) -> None:
    async with Writer(max_age_s=0.05, flush_timeout_s=0.2, retry_s=60, spool=False) as writer:
        async with locked(db):
            await writer.add(BOOK_TICKERS, ticker(symbol_id))
            await until(lambda: not writer.health().is_ok)
            health = writer.health()
            assert not health.server_is_up
            assert health.reasons == ["the server is away since 0 s"]
            (table,) = health.tables
            assert table.counts.n_buffered == 1
            assert table.last_error is not None
            assert table.oldest_buffered_s is not None
            assert writer.metrics.n_timeouts >= 1
            assert writer.metrics.n_retries.total() >= 1
        await writer.flush()
        health = writer.health({TABLE: 60.0, TRADES.name: 0.0})
        assert health.server_is_up
        assert health.reasons == [f"{TRADES.name}: nothing stored in the 0 s since the start"]
        assert health.tables[0].last_error is None


async def test_health_of_a_table_that_lost_a_column_says_stopped_until_it_is_back(
    db: DatabaseManager, symbol_id: int
) -> None:
    async with Writer(max_age_s=0.05, spool=False) as writer:
        await db.execute(f"ALTER TABLE {TABLE} RENAME COLUMN bid_price TO bid")
        await writer.add(BOOK_TICKERS, ticker(symbol_id))
        await until(lambda: not writer.health().is_ok)
        (reason,) = writer.health().reasons
        assert reason.startswith(f"{TABLE}: flushing is stopped: ")
        assert "bid_price" in reason
        with serve_metrics(writer, port=0) as served:
            told = await scraped(served.url)
        assert told["pgtick_table_stopped", (TABLE,)] == 1
        assert told["pgtick_server_up", ()] == 1
        await db.execute(f"ALTER TABLE {TABLE} RENAME COLUMN bid TO bid_price")
        await until(lambda: writer.health().is_ok)
        assert writer.counts[TABLE].n_stored == 1


async def test_collecting_in_a_thread_while_a_writer_works_sees_counts_that_add_up(
    db: DatabaseManager, symbol_id: int
) -> None:
    stop, seen = threading.Event(), []

    def collect(collector: WriterCollector) -> None:
        while not stop.is_set():
            told = {family.name: family.samples for family in collector.collect()}
            now = sum(sample.value for name in ("buffered", "spooled") for sample in told[f"pgtick_rows_{name}"])
            rows = {sample.labels["outcome"]: sample.value for sample in told["pgtick_rows"]}
            settled = sum(rows.get(outcome, 0) for outcome in ("stored", "duplicate", "quarantined", "dropped"))
            seen.append((rows.get("accepted", 0), settled + now))

    async with Writer(max_rows=10, max_age_s=0.01, spool=False) as writer:
        collecting = asyncio.create_task(asyncio.to_thread(collect, WriterCollector(writer)))
        try:
            for number in range(500):
                await writer.add(BOOK_TICKERS, ticker(symbol_id, sequence_number=number))
                if number % 10 == 0:
                    await asyncio.sleep(0.002)
            await writer.flush()
            await until(lambda: bool(seen) and seen[-1][0] == 500)
        finally:
            stop.set()
            await collecting
    assert len({accepted for accepted, _ in seen}) > 5
    assert [pair for pair in seen if pair[0] != pair[1]] == []


async def test_scrape_while_the_event_loop_is_stalled_answers_all_the_same(
    db: DatabaseManager, symbol_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_room, "_PATIENCE_S", 0.1)
    async with Writer(max_age_s=60, spool=False) as writer:
        await writer.add(BOOK_TICKERS, ticker(symbol_id))
        refreshed: list[int] = []
        writer.metrics.refreshers.append(lambda: refreshed.append(threading.get_ident()))
        with ThreadPoolExecutor() as threads:
            health = threads.submit(writer.health).result(10)  # the loop stands still here
        assert health.tables[0].counts.n_accepted == 1
        assert refreshed == []
        await asyncio.sleep(0)
        assert refreshed == []  # nobody waits for it any more
        await asyncio.to_thread(writer.health)
        assert refreshed == [threading.get_ident()]
