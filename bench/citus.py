"""Citus against plain PostgreSQL on one server: ingest, the latest row and its planning, at full retention.

``python bench/citus.py DSN [shards] [rounds]``: DSN of a superuser on a server that has Citus. Two databases of
the bench's own, one with the extension, one without; rounds are interleaved, medians printed.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from bench_parallel import PARALLEL_ROWS, columns, timed

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.engines import get_engine
from pgtick.migrator import run_pending_migrations
from pgtick.operations import generic
from pgtick.operations.symbols import resolve_symbol
from pgtick.tables import BALANCES, BOOK_TICKERS, Table
from pgtick.writer import copy_parallel, store_columns

SYMBOLS = 500
BATCHES = {100: 2_000, 10_000: 100_000, 200_000: 200_000}  # rows a batch: rows a round
KEPT_DAYS = {BOOK_TICKERS: 3, BALANCES: 14}
LOOK_UPS = 200


async def make(server: DatabaseConfig, name: str, shards: int | None) -> tuple[DatabaseManager, list[int]]:
    """Return a manager of a new database with every partition of the retention, and its symbols."""
    admin = await open_manager(server)
    try:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE {name}")
        if shards:
            await admin.execute(f"ALTER DATABASE {name} SET citus.shard_count = {shards}")
    finally:
        await admin.close()
    db = await open_manager(msgspec.structs.replace(server, database=name, max_connections=4))
    if shards:
        await db.execute("CREATE EXTENSION citus")
    await run_pending_migrations(db)
    engine = await get_engine(db)
    today = int(time.time() // 86400)
    for table, days in KEPT_DAYS.items():
        await engine.ensure_days(db, table.name, range(today - days, today + 4))
    with use_manager(db):
        return db, [(await resolve_symbol("BENCH_SPOT", f"B{i}", "USDT")).id for i in range(SYMBOLS)]


async def ingest(db: DatabaseManager, ids: list[int], size: int, n: int, turn: int) -> float:
    await db.execute(f"TRUNCATE {BOOK_TICKERS.name}")
    batches = [columns(ids, size, turn * n + start) for start in range(0, n, size)]

    async def send() -> None:
        for batch in batches:
            await store_columns(BOOK_TICKERS, batch, db=db)

    return n / await timed(send())


async def parallel(db: DatabaseManager, ids: list[int], connections: int, turn: int) -> float:
    await db.execute(f"TRUNCATE {BOOK_TICKERS.name}")
    data = columns(ids, PARALLEL_ROWS, turn)
    return PARALLEL_ROWS / await timed(copy_parallel(BOOK_TICKERS, data, connections=connections, db=db))


async def look_up(db: DatabaseManager, ids: list[int]) -> float:
    """Return the median time of the newest row, in ms."""
    with use_manager(db):
        times = [await timed(generic.get_latest(BOOK_TICKERS, ids[n % SYMBOLS])) for n in range(LOOK_UPS)]
    return statistics.median(times) * 1000


async def planning(db: DatabaseManager, table: Table, ids: tuple[Any, ...], window: timedelta) -> float:
    """Return the time that the server plans the newest row's query, in ms; on Citus coordinator and shard together."""
    where = " AND ".join(f"{name} = '{value}'" for name, value in zip(table.key, ids, strict=False))
    since = (datetime.now(UTC) - window).isoformat()
    query = (
        f"EXPLAIN (ANALYZE, SUMMARY) SELECT * FROM {table.name} WHERE {where} AND timestamp > '{since}' "
        "ORDER BY timestamp DESC LIMIT 1"
    )
    plan = "\n".join(record[0] for record in await db.fetch(query))
    return sum(map(float, re.findall(r"Planning Time: ([\d.]+) ms", plan)))


async def main(dsn: str, shards: int, rounds: int) -> None:
    server = DatabaseConfig.from_dsn(dsn)
    kinds: dict[str, int | None] = {"plain": None, f"Citus, {shards} shards": shards}
    names = {kind: f"pgtick_bench_{os.getpid()}_{n}" for n, kind in enumerate(kinds)}
    made = {kind: await make(server, names[kind], count) for kind, count in kinds.items()}
    measured: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    for turn in range(rounds):
        for kind in sorted(kinds, reverse=bool(turn % 2)):
            db, ids = made[kind]
            for size, n in BATCHES.items():
                rate = await ingest(db, ids, size, n, turn)
                measured[kind].setdefault(f"{size:,} rows a batch, rows/s", []).append(rate)
            for connections in (1, 2, 4):
                rate = await parallel(db, ids, connections, turn)
                measured[kind].setdefault(f"copy_parallel, {connections} connections, rows/s", []).append(rate)
            measured[kind].setdefault("latest row, ms", []).append(await look_up(db, ids))
            for table, key in ((BOOK_TICKERS, (ids[0],)), (BALANCES, (1, "BTC"))):
                for window in generic.LATEST_WINDOWS:
                    times = [await planning(db, table, key, window) for _ in range(20)]
                    measured[kind].setdefault(f"planning, {table.name}, {window}, ms", []).extend(times)
    for what in measured["plain"]:
        medians = {kind: statistics.median(times[what]) for kind, times in measured.items()}
        print(f"{what}: " + "; ".join(f"{kind} {median:,.3f}" for kind, median in medians.items()))
    for db, _ in made.values():
        await db.close()
    admin = await open_manager(server)
    for name in names.values():
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[2:]]
    asyncio.run(main(sys.argv[1], given[0] if given else 32, given[1] if len(given) > 1 else 5))
