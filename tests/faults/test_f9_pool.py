"""F9: many tasks want one of few connections: each is served or told at its deadline, and none leaks."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import msgspec
import pytest

from faults.support import managed, record, seeds
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager
from pgtick.errors import AcquireTimeoutError, StatementTimeoutError

POOL = 5
DEADLINE_S = 0.5
LATE_S = 2.0  # of a loop that 1,000 tasks keep busy
Outcomes = Counter[str]


async def take_one(db: DatabaseManager, chance: random.Random) -> str:
    """Want a connection; return what came of it."""
    started = time.monotonic()
    kind = chance.random()
    try:
        if kind < 0.9:
            async with db.connection(resets=False) as connection:
                assert not connection.is_closed()
        elif kind < 0.995:
            number = chance.randrange(1 << 30)
            assert await db.fetchval(f"SELECT {number}", resets=False) == number
        elif kind < 0.9975:
            await asyncio.wait_for(db.execute("SELECT pg_sleep(0.05)"), chance.random() * 0.05)
        else:
            await db.execute("SELECT pg_sleep(0.02)")
    except AcquireTimeoutError:
        waited_s = time.monotonic() - started
        assert DEADLINE_S <= waited_s <= DEADLINE_S + LATE_S, waited_s
        return "told at its deadline"
    except StatementTimeoutError:
        return "statement ended at its deadline"
    except TimeoutError:
        return "gave up"
    return "served"


async def fight(config: DatabaseConfig, n_tasks: int, n_rounds: int, seed: int) -> Outcomes:
    """Let tasks want connections for so many rounds; return what came of them."""
    tight = msgspec.structs.replace(config, max_connections=POOL, acquire_timeout_s=DEADLINE_S)
    outcomes: Outcomes = Counter()

    async def want(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        for _ in range(n_rounds):
            outcomes[await take_one(db, chance)] += 1
            await asyncio.sleep(0)

    async with managed(tight) as db:
        await asyncio.gather(*(want(number) for number in range(n_tasks)))
        assert sum(outcomes.values()) == n_tasks * n_rounds, f"seed {seed}: {outcomes}"
        assert outcomes["served"] > 0
        await asyncio.sleep(0.2)  # what was given up while it was on its way is closed in the background
        state = db.pool_state()
        assert state["idle"] == state["size"] <= POOL, f"seed {seed}: {state}"
        async with asyncio.timeout(5):  # all five can be had at once
            await asyncio.gather(*(db.execute("SELECT pg_sleep(0.1)") for _ in range(POOL)))
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'"
        assert await db.fetchval(query, tight.database) <= POOL, f"seed {seed}"
    return outcomes


async def test_tasks_on_a_small_pool_are_served_or_told_and_nothing_leaks(keyless: DatabaseConfig) -> None:
    (seed,) = seeds(1)
    await fight(keyless, 200, 20, seed)


@pytest.mark.slow
async def test_1000_tasks_for_10_000_rounds_are_served_or_told_and_nothing_leaks(keyless: DatabaseConfig) -> None:
    (seed,) = seeds(1)
    outcomes = await fight(keyless, 1000, 10_000, seed)
    told = ", ".join(f"{n:,} {what}" for what, n in outcomes.most_common())
    record("F9", "1,000 tasks, 10,000 rounds each, a pool of 5", f"{told}; no connection leaked")
