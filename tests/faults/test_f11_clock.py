"""F11: the wall clock steps by an hour, and zone and daylight saving change."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from faults import clock_child
from faults.support import record
from pgtick.config import DatabaseConfig
from pgtick.tables import BOOK_TICKERS

TESTS = Path(__file__).parents[1]
LATE_S = 5.0  # of a busy machine; a timer that goes by the wall clock is an hour late, or never comes


def find_libfaketime() -> Path | None:
    places = [
        path for root in ("/usr/lib", "/usr/local/lib") for path in Path(root).glob("**/faketime/libfaketime.so.1")
    ]
    return places[0] if places else None


async def run_child(config: DatabaseConfig, *arguments: str, **environment: str) -> list[tuple[str, float, float]]:
    """Return for each step its name, the wall clock behind it, and how long the flush by age took."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, clock_child.__file__, config.to_dsn(), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(TESTS)} | environment,
    )  # fmt: skip
    async with asyncio.timeout(120):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    steps = []
    for line in output.decode().splitlines():
        name, _, values = line.partition(": ")
        wall, took = values.split()
        steps.append((name, float(wall), float(took)))
    return steps


async def judge(config: DatabaseConfig, steps: list[tuple[str, float, float]]) -> None:
    assert len(steps) == len(clock_child.ZONES)
    for name, _, took_s in steps:
        assert took_s < clock_child.MAX_AGE_S + LATE_S, f"{name}: the timer took {took_s:.1f} s"
    connection = await asyncpg.connect(**config.connect_kwargs())
    try:
        query = f"SELECT sequence_number, timestamp FROM {BOOK_TICKERS.name} ORDER BY 1"
        found = [tuple(row) for row in await connection.fetch(query)]
        assert await connection.fetchval("SELECT sum(n_rows) FROM ingest_batches") == len(found)
    finally:
        await connection.close()
    around = clock_child.AROUND
    assert found == [(n, around[n % len(around)]) for n in range(len(clock_child.ZONES) * len(around))]


async def test_zone_and_daylight_saving_that_change_move_no_instant(keyless: DatabaseConfig) -> None:
    await judge(keyless, await run_child(keyless))


async def test_clock_that_steps_by_an_hour_moves_no_instant_and_no_timer(
    keyless: DatabaseConfig, tmp_path: Path
) -> None:
    library = find_libfaketime()
    if library is None:
        pytest.skip("no libfaketime (Debian's package faketime)")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    started = time.time()
    steps = await run_child(
        keyless,
        str(clock),
        LD_PRELOAD=str(library),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    for (name, wall, _), step in zip(steps, clock_child.STEPS, strict=True):
        assert abs(wall - started - int(step)) < 300, f"{name}: the clock did not step"
    await judge(keyless, steps)
    record(
        "F11",
        "clock + 1 h, - 1 h, + 30 min; five zones; both changes of the clocks",
        "instants unchanged, timers unmoved",
    )
