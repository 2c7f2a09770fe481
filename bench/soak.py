"""Stream the demo's market through a Writer for an hour and tell whether memory and the pool stay flat.

    .venv/bin/python bench/soak.py [SECONDS [ROWS_A_SECOND]]

Exit code 1 when the resident memory of the last third is more than 5 % above that of the second, a connection is not
back in the pool, a task is left, or the counts do not add up.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from pgtick.cli.market import INSTRUMENTS, SimulatedMarket
from pgtick.connection import initialize_database
from pgtick.embedded import start_embedded
from pgtick.operations.symbols import resolve_symbol
from pgtick.tables import BUILT_IN_TABLES
from pgtick.writer import Writer

SAMPLE_S = 5.0
MOST_GROWTH = 1.05
TABLES = {table.name: table for table in BUILT_IN_TABLES}


def resident_mb() -> float:
    """Return this process's resident memory in MB; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


async def stream(writer: Writer, market: SimulatedMarket, seconds: float, rate: float) -> list[float]:
    """Hand over rows at the rate; return the resident memory, sampled."""
    samples: list[float] = []
    started = time.monotonic()
    n_rows = 0
    while (elapsed := time.monotonic() - started) < seconds:
        for row in market.rows(100):
            await writer.add(TABLES[row.table_name], row)
        n_rows += 100
        if elapsed >= len(samples) * SAMPLE_S:
            samples.append(resident_mb())
            if len(samples) % 12 == 1:
                print(f"{elapsed:7.0f} s  {n_rows:12,} rows  {samples[-1]:7.1f} MB", flush=True)
        await asyncio.sleep(max(0.0, started + n_rows / rate - time.monotonic()))
    return samples


async def soak(seconds: float, rate: float) -> list[str]:
    """Return what is not as it should be."""
    wrong = []
    with (
        tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder,
        start_embedded(Path(folder) / "data") as server,
    ):
        await server.create_database("pgtick_soak_demo")
        db = await initialize_database(
            msgspec.structs.replace(server.config("pgtick_soak_demo"), maintenance_interval_s=0.0)
        )
        symbols = [await resolve_symbol(*instrument[:4]) for instrument in INSTRUMENTS]
        n_tasks = len(asyncio.all_tasks())
        async with Writer(db) as writer:
            samples = await stream(writer, SimulatedMarket([symbol.id for symbol in symbols]), seconds, rate)
        third = len(samples) // 3
        growth = statistics.median(samples[2 * third :]) / statistics.median(samples[third : 2 * third])
        pool = db.pool_state()
        print(f"memory: last third {growth:.3f} times the second; pool {pool}; counts {writer.counts}")
        if growth > MOST_GROWTH:
            wrong.append(f"memory grew {growth:.3f} times")
        if pool["size"] != pool["idle"]:
            wrong.append(f"connections are out: {pool}")
        if len(asyncio.all_tasks()) > n_tasks:
            wrong.append(f"tasks are left: {asyncio.all_tasks()}")
        wrong += [f"{table}: the counts do not add up" for table, c in writer.counts.items() if not c.adds_up]
        for table, counts in writer.counts.items():
            n_there = await db.fetchval(f"SELECT count(*) FROM {table}")
            if n_there != counts.n_stored:
                wrong.append(f"{table}: {n_there} rows are there, {counts.n_stored} were counted")
        await db.close()
    return wrong


if __name__ == "__main__":
    problems = asyncio.run(
        soak(float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0, float(sys.argv[2]) if len(sys.argv) > 2 else 20_000.0)
    )
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))
