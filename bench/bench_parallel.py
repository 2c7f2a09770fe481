"""Sorting a batch, and several connections: columns into the default book_ticker_snapshots, server included.

``python bench/bench_parallel.py [rounds]`` prints, for each size of batch, the median over interleaved rounds of how
much faster sorted batches and more connections are. It starts an embedded server of its own, with fsync on.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pgtick.connection import DatabaseManager, initialize_database
from pgtick.embedded import start_embedded
from pgtick.engines import get_engine
from pgtick.operations.symbols import resolve_symbol
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import copy_parallel
from pgtick.writer.encoders import encoder_of

SYMBOLS = 500
SIZES = {100: 20_000, 1_000: 50_000, 10_000: 100_000, 200_000: 200_000}  # rows a batch: rows a round
PARALLEL_ROWS = 400_000


def columns(ids: list[int], n: int, start: int) -> dict[str, Any]:
    """Return n ticks of all symbols as they arrive: in the order of time, symbols at random."""
    rng = np.random.default_rng(start)
    bids = np.round(rng.uniform(1, 70_000, n), 2)
    now = np.datetime64(datetime.now(UTC).replace(tzinfo=None), "us")
    return {
        "timestamp": now - 10 * np.arange(n, 0, -1),
        "symbol_id": np.array(ids)[rng.integers(0, len(ids), n)],
        "bid_price": bids,
        "ask_price": np.round(bids + 0.01, 2),
        "bid_qty": np.round(rng.uniform(0, 5, n), 5),
        "ask_qty": np.round(rng.uniform(0, 5, n), 5),
        "sequence_number": np.arange(start, start + n),
        "update_type": "ticker",
    }


async def timed(work: Awaitable[object]) -> float:
    start = time.perf_counter()
    await work
    return time.perf_counter() - start


async def send(db: DatabaseManager, data: dict[str, Any], size: int, in_order: bool) -> None:
    """COPY the columns in batches of ``size``; sorting is part of the time, encoding too."""
    for batch in encoder_of(BOOK_TICKERS).column_batches(data, size):
        ready = batch.sorted(1, 0) if in_order else batch
        await db.copy_binary_to_table(BOOK_TICKERS.name, BOOK_TICKERS.column_names, ready.chunks())


async def compare(db: DatabaseManager, ids: list[int], rounds: int) -> None:
    for size, n in SIZES.items():
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(rounds):
            for in_order in (False, True) if turn % 2 else (True, False):
                await db.execute(f"TRUNCATE {BOOK_TICKERS.name}")
                data = columns(ids, n, turn)
                times[in_order].append(await timed(send(db, data, size, in_order)))
        ratios = [plain / ordered for plain, ordered in zip(times[False], times[True], strict=True)]
        rate = n / statistics.median(times[False]) / 1000
        print(f"sorted, {size:>7,} rows a batch: {statistics.median(ratios):.2f} x  ({rate:.0f} krows/s unsorted)")
    parallel: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for turn in range(rounds):
        for connections in sorted(parallel, reverse=bool(turn % 2)):
            await db.execute(f"TRUNCATE {BOOK_TICKERS.name}")
            data = columns(ids, PARALLEL_ROWS, turn)
            parallel[connections].append(await timed(copy_parallel(BOOK_TICKERS, data, connections=connections, db=db)))
    for connections, took in parallel.items():
        ratios = [one / other for one, other in zip(parallel[1], took, strict=True)]
        rate = PARALLEL_ROWS / statistics.median(took) / 1000
        print(f"copy_parallel, {connections} connections: {statistics.median(ratios):.2f} x  ({rate:.0f} krows/s)")


async def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder:
        server = start_embedded(Path(folder) / "data")
        try:
            await server.create_database("pgtick_bench")
            db = await initialize_database(server.config("pgtick_bench"))
            try:
                ids = [(await resolve_symbol("BENCH_SPOT", f"B{i}", "USDT")).id for i in range(SYMBOLS)]
                engine = await get_engine(db)
                await engine.ensure_days(db, BOOK_TICKERS.name, {int(time.time() // 86400)})
                await compare(db, ids, rounds)
            finally:
                await db.close()
        finally:
            server.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
