"""How long one small thing takes: a 100-row batch, the newest row of a symbol; and how long a batch holds the loop."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg

from peers.data import make_batches
from peers.ladder import copy_bytes
from peers.measure import reason_of
from peers.schema import DEFAULT, clear
from peers.writers import (
    AsyncpgDecimals,
    AsyncpgExecutemany,
    AsyncpgFloats,
    Limit,
    Pgtick,
    Psycopg,
    Writer,
    open_writers,
)
from pgtick.connection import DatabaseManager
from pgtick.engines import get_engine
from pgtick.operations.book_ticker import get_latest_book_ticker_by_symbol
from pgtick.tables import BOOK_TICKERS

__all__ = [
    "NOTHING",
    "PGTICK_LATEST",
    "PREPARED",
    "Latency",
    "batch_latency",
    "latest_latency",
    "loop_held",
    "planning_ms",
]

BATCH_ROWS = 100
NOTHING = "nothing but the loop itself: 1 ms of sleep"
PREPARED = "limit: asyncpg, prepared fetchrow"
PGTICK_LATEST = "pgtick get_latest_book_ticker_by_symbol"
_LATEST = (
    f"SELECT {', '.join(BOOK_TICKERS.read_columns)} FROM {DEFAULT} WHERE symbol_id = {{}} AND timestamp > {{}} "
    "ORDER BY timestamp DESC, sequence_number DESC LIMIT 1"
)
_KINDS = (Limit, Pgtick, Psycopg, AsyncpgDecimals, AsyncpgFloats, AsyncpgExecutemany)


class Latency(NamedTuple):
    """Of one case, in seconds."""

    p50: float
    p99: float


def _of(samples: list[float]) -> Latency:
    return Latency(statistics.median(samples), statistics.quantiles(samples, n=100)[98])


async def _take_turns(cases: Mapping[str, Callable[[], Awaitable[float]]], turns: int) -> dict[str, Latency]:
    """Run each case once a turn, in an order that is drawn anew; a tenth more turns go before, unseen."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    rng = random.Random(5)
    for turn in range(turns + turns // 10 + 1):
        rng.shuffle(order)
        for name in order:
            seconds = await cases[name]()
            if turn > turns // 10:
                samples[name].append(seconds)
    return {name: _of(values) for name, values in samples.items()}


async def _writers(db: DatabaseManager, turns: int) -> tuple[list[Writer], dict[str, str], dict[str, list[Any]]]:
    """Return the writers, why others are missing, and for each its own batches, all of different keys."""
    await clear(db, DEFAULT)
    writers, skipped = await open_writers(db, _KINDS)
    needed = turns + turns // 10 + 1
    batches = make_batches(needed * len(writers) * BATCH_ROWS, BATCH_ROWS, 500)
    await (await get_engine(db)).ensure_days(db, DEFAULT, batches[0].encoded.days | batches[-1].encoded.days)
    prepared = {
        writer.name: [writer.prepare(batch) for batch in batches[i * needed : (i + 1) * needed]]
        for i, writer in enumerate(writers)
    }
    return writers, skipped, prepared


async def batch_latency(db: DatabaseManager, turns: int) -> tuple[dict[str, Latency], dict[str, str]]:
    """Measure a committed batch of 100 rows into the default table, by writer."""
    writers, skipped, prepared = await _writers(db, turns)

    def case(writer: Writer) -> Callable[[], Awaitable[float]]:
        async def run() -> float:
            rows = prepared[writer.name].pop()
            start = time.perf_counter()
            await writer.write(DEFAULT, rows)
            return time.perf_counter() - start

        return run

    result = await _take_turns({writer.name: case(writer) for writer in writers}, turns)
    for writer in writers:
        await writer.close()
    return result, skipped


async def loop_held(db: DatabaseManager, turns: int) -> tuple[dict[str, Latency], dict[str, str]]:
    """Measure by writer for how long at a stretch a batch of 100 rows keeps the loop from another task.

    The other task asks for its turn without pause; the most processor time that the thread spends between two of
    its turns is the sample. Wall-clock time would count the slices that the server takes of a busy machine.
    """
    writers, skipped, prepared = await _writers(db, turns)

    async def longest_gap(work: Awaitable[object]) -> float:
        longest = 0.0
        running = True

        async def tick() -> None:
            nonlocal longest
            last = time.thread_time()
            while running:
                await asyncio.sleep(0)
                now = time.thread_time()
                longest = max(longest, now - last)
                last = now

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        await work
        running = False
        await ticking
        return longest

    def case(writer: Writer) -> Callable[[], Awaitable[float]]:
        return lambda: longest_gap(writer.write(DEFAULT, prepared[writer.name].pop()))

    cases = {writer.name: case(writer) for writer in writers}
    cases[NOTHING] = lambda: longest_gap(asyncio.sleep(0.001))
    result = await _take_turns(cases, turns)
    for writer in writers:
        await writer.close()
    return result, skipped


async def latest_latency(db: DatabaseManager, n_symbols: int, turns: int) -> tuple[dict[str, Latency], dict[str, str]]:
    """Measure the newest row of a symbol on the default table, filled up to now."""
    await clear(db, DEFAULT)
    fresh = make_batches(20 * n_symbols, 5_000, n_symbols, datetime.now(UTC) - timedelta(minutes=1))
    await (await get_engine(db)).ensure_days(db, DEFAULT, fresh[0].encoded.days | fresh[-1].encoded.days)
    await copy_bytes(db, DEFAULT, fresh)
    await db.execute(f"ANALYZE {DEFAULT}")
    stored = sorted({row.symbol_id for batch in fresh for row in batch.structs})
    rng = random.Random(9)
    connection = await asyncpg.connect(**db.config.connect_kwargs())
    statement = await connection.prepare(_LATEST.format("$1", "$2"))
    query = _LATEST.format("%s", "%s")

    def since() -> datetime:
        return datetime.now(UTC) - timedelta(hours=1)

    async def timed(ask: Callable[[int], Awaitable[object]]) -> float:
        symbol = rng.choice(stored)
        start = time.perf_counter()
        found = await ask(symbol)
        seconds = time.perf_counter() - start
        assert found is not None
        return seconds

    async def by_psycopg(symbol: int) -> object:
        return cursor.execute(query, (symbol, since()), prepare=True).fetchone()

    cases: dict[str, Callable[[], Awaitable[float]]] = {
        PREPARED: lambda: timed(lambda symbol: statement.fetchrow(symbol, since())),
        PGTICK_LATEST: lambda: timed(get_latest_book_ticker_by_symbol),
        "asyncpg fetchrow": lambda: timed(
            lambda symbol: connection.fetchrow(_LATEST.format("$1", "$2"), symbol, since())
        ),
    }
    skipped = {}
    try:
        import psycopg

        sync = psycopg.connect(db.config.to_dsn(with_password=True), autocommit=True)
        cursor = sync.cursor(binary=True)
        cases["psycopg 3, prepared"] = lambda: timed(by_psycopg)
    except ImportError as error:
        skipped["psycopg 3, prepared"] = reason_of(error)
    result = await _take_turns(cases, turns)
    await connection.close()
    if not skipped:
        sync.close()
    return result, skipped


async def planning_ms(db: DatabaseManager, days: int = 3) -> tuple[float, int]:
    """Return the median planning time of the latest row, and over how many partitions, at full retention."""
    today = await db.fetchval("SELECT floor(extract(epoch FROM now()) / 86400)::int")
    await (await get_engine(db)).ensure_days(db, DEFAULT, range(today - days, today + days + 1))
    query = _LATEST.format("7", "now() - interval '1 hour'")
    times = []
    for _ in range(21):
        lines = await db.fetch(f"EXPLAIN (SUMMARY) {query}")
        line = next(record[0] for record in lines if record[0].startswith("Planning Time"))
        times.append(float(line.split()[2]))
    partitions = await db.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = $1::regclass", DEFAULT)
    return statistics.median(times), int(partitions)
