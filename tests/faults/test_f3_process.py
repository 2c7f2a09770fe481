"""F3: the writer's process is SIGKILLed while it appends to its spool, begins a segment, replays or acknowledges."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from faults import child
from faults.proxy import Proxy
from faults.support import assert_adds_up, managed, record, seeds, stored_numbers, until
from pgtick.config import DatabaseConfig
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

TESTS = Path(__file__).parents[1]
AT_ONCE = 3
ROUND_NUMBERS = 1_000_000  # apart, so that the rounds share a table


async def run_until_killed(proxy: Proxy, spool: Path, start: int, kill_at: str, delay_s: float) -> tuple[set[int], int]:
    """Run a process until it is killed, the server now away and now back; return what was safe, and what was given."""
    arguments = [proxy.config().to_dsn(), str(spool), str(start), kill_at, str(delay_s)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, child.__file__, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    safe: set[int] = set()
    given = start
    flapping, is_over = None, asyncio.Event()
    try:
        async with asyncio.timeout(60):
            async for line in process.stdout:
                what, _, number = line.decode().strip().partition(" ")
                if what == "up":
                    flapping = asyncio.create_task(flap(proxy, is_over))
                elif what == "safe":
                    safe.update(range(int(number), int(number) + child.ROWS_A_FLUSH))
                else:
                    given = int(number) + child.ROWS_A_FLUSH
            told = (await process.stderr.read()).decode()
        assert await process.wait() == -9, f"it was not killed but ended: {told}"
    finally:
        if flapping is not None:
            is_over.set()
            await flapping
        if process.returncode is None:
            process.kill()
            await process.wait()
    return safe, given


async def flap(proxy: Proxy, is_over: asyncio.Event) -> None:
    """Let the server be away and back in turn; not cancelled, since that would leave a socket behind."""
    while not is_over.is_set():
        await proxy.refuse()
        proxy.reset_all()
        await asyncio.sleep(0.25)
        await proxy.listen()
        await asyncio.sleep(0.15)


async def survive_kills(config: DatabaseConfig, spool: Path, seed: int, start: int, n_kills: int) -> set[str]:
    """Kill processes on one spool, one after the other; then a last one replays. Return where they were killed."""
    chance = random.Random(seed)
    safe: set[int] = set()
    first = start
    places: set[str] = set()
    for _ in range(n_kills):
        place = chance.choice(list(child.PLACES))
        kill_at = f"{place}:{chance.randint(1, 8)}"
        places.add(place)
        async with Proxy(config) as proxy:
            was_safe, start = await run_until_killed(proxy, spool, start, kill_at, chance.uniform(0, 0.003))
        safe |= was_safe
    async with managed(config) as db, Writer(db, spool=spool) as writer:
        counts = writer.metrics.counts_of(BOOK_TICKERS.name)
        await until(lambda: counts.n_spooled == 0, f"seed {seed}: the spool is replayed: {counts}")
        assert_adds_up(writer, seed=seed)
    assert (counts.n_dropped, counts.n_quarantined) == (0, 0), f"seed {seed}"
    assert [path for path in spool.rglob("*.pgtick") if path.is_file()] == [], f"seed {seed}"
    found = {number: n for number, n in (await stored_numbers(config)).items() if first <= number < start}
    lost = safe - found.keys()
    assert not lost, f"seed {seed}: {len(lost)} acknowledged rows are lost: {sorted(lost)[:5]}"
    assert all(n == 1 for n in found.values()), f"seed {seed}: rows are there twice: the replay is not idempotent"
    return places


async def survive_all(config: DatabaseConfig, spool: Path, n_rounds: int, n_kills: int) -> set[str]:
    several = asyncio.Semaphore(AT_ONCE)

    async def survive(n: int, seed: int) -> set[str]:
        async with several:
            return await survive_kills(config, spool / str(n), seed, n * ROUND_NUMBERS, n_kills)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(survive(n, seed)) for n, seed in enumerate(seeds(n_rounds))]
    return set().union(*(task.result() for task in tasks))


async def test_process_killed_around_its_spool_loses_nothing_that_was_safe(
    keyless: DatabaseConfig, tmp_path: Path
) -> None:
    await survive_all(keyless, tmp_path, 3, 3)


@pytest.mark.slow
async def test_process_killed_300_times_around_its_spool_loses_nothing_that_was_safe(
    keyless: DatabaseConfig, tmp_path: Path
) -> None:
    places = await survive_all(keyless, tmp_path, 60, 5)
    assert places == set(child.PLACES)
    record("F3", "300 kills in append, rotate, replay, acknowledge", "0 acknowledged rows lost, 0 doubled")
