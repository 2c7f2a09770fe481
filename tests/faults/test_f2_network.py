"""F2: the line to the server is reset, closed or swallowed at a message of the protocol; also around a pooler."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from pathlib import Path

import asyncpg
import msgspec
import pytest
from test_pooler import running_pgbouncer

from faults.proxy import MANNERS, POINTS, Cut, Proxy
from faults.servers import Cluster
from faults.support import (
    BYTES_A_ROW,
    assert_adds_up,
    assert_stored,
    managed,
    record,
    seeds,
    ticker_of,
    tickers_of,
    until,
)
from pgtick.config import DatabaseConfig
from pgtick.models import BookTickerSnapshot
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

N_ROWS = 300
N_FIRST = 10  # of them before anything breaks
NOTICED_S = 10.0
AT_ONCE = 8
# What only a new connection comes by, and only a batch with rows that the server refuses; the others every batch does.
POINTS_OF_A_CONNECTION = ("startup", "auth")
POINTS_OF_A_REFUSAL = ("begin", "begin_answer", "commit", "commit_sent", "commit_answer")

_strangers = itertools.count(1_000_000)  # symbols that are not there


async def survive_a_cut(config: DatabaseConfig, where: str, how: str, seed: int, start: int, spool: Path) -> float:
    """Store rows while the line breaks there; return how long it took to notice."""
    strangers = strangers_for(where)
    chance = random.Random(seed)
    numbers = range(start, start + N_ROWS)
    cut = Cut(where, how, at_byte=chance.randrange(1, (N_ROWS - N_FIRST) * BYTES_A_ROW))
    async with Proxy(config) as proxy, managed(proxy.config()) as db, Writer(db, spool=spool) as writer:
        await writer.add_many(BOOK_TICKERS, tickers_of(numbers[:N_FIRST]))
        await writer.flush()
        proxy.arm(cut)
        if where in POINTS_OF_A_CONNECTION:
            proxy.reset_all()
        adding = asyncio.create_task(writer.add_many(BOOK_TICKERS, [*tickers_of(numbers[N_FIRST:]), *strangers]))
        await until(proxy.made.is_set, f"seed {seed}: the cut at {where}")
        heals_in_s = chance.uniform(0, 12) if how == "black hole" else 0.0
        healing = asyncio.get_running_loop().call_later(heals_in_s, proxy.heal)
        n_before, cut_s = sum(writer.metrics.n_retries.values()), time.monotonic()
        counts = writer.counts[BOOK_TICKERS.name]

        def settled() -> bool:
            return (counts.n_stored, counts.n_quarantined) == (N_ROWS, len(strangers))

        await until(
            lambda: sum(writer.metrics.n_retries.values()) > n_before or settled(),
            f"seed {seed}: {where}, {how}: that the peer is dead was not noticed",
            NOTICED_S,
        )
        noticed_s = time.monotonic() - cut_s
        await adding
        await until(settled, f"seed {seed}: {where}, {how}: all is stored: {writer.counts}")
        healing.cancel()
    assert_adds_up(writer, seed=seed)
    assert writer.counts[BOOK_TICKERS.name].n_duplicates == 0, f"seed {seed}: {where}, {how}"
    await assert_stored(config, numbers, seed=seed, only=numbers)
    await assert_quarantined(config, strangers, seed)
    return noticed_s


def strangers_for(where: str) -> list[BookTickerSnapshot]:
    """Return the row of a symbol that is not there, if that place is reached only with one."""
    if where not in POINTS_OF_A_REFUSAL:
        return []
    return [msgspec.structs.replace(ticker_of(0), symbol_id=next(_strangers))]


async def assert_quarantined(config: DatabaseConfig, rows: list[BookTickerSnapshot], seed: int) -> None:
    connection = await asyncpg.connect(**config.connect_kwargs())
    query = "SELECT count(*) FROM ingest_quarantine WHERE (row ->> 'symbol_id')::int = $1"
    try:
        for row in rows:
            assert await connection.fetchval(query, row.symbol_id) == 1, f"seed {seed}: {row}"
    finally:
        await connection.close()


async def survive_cuts(config: DatabaseConfig, cases: list[tuple[str, str, int]], spool: Path) -> float:
    """Survive all cases, a few at once; return the longest time until one was noticed."""
    several = asyncio.Semaphore(AT_ONCE)

    async def survive(n: int, where: str, how: str, seed: int) -> float:
        async with several:
            return await survive_a_cut(config, where, how, seed, n * N_ROWS, spool / str(n))

    longest = [0.0]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(survive(n, *case)) for n, case in enumerate(cases)]
    return max([*longest, *(task.result() for task in tasks)])


def cases_of(numbers: list[int]) -> list[tuple[str, str, int]]:
    """Return place and manner for each seed: half of them where the answer to a commit or a COPY is at stake."""
    cases = []
    for seed in numbers:
        chance = random.Random(seed)
        places = (
            list(POINTS)
            if chance.random() < 0.5
            else ["copy_done_sent", "copy_answer", "ready", "commit_sent", "commit_answer"]
        )
        cases.append((chance.choice(places), chance.choice(MANNERS), seed))
    return cases


async def test_line_cut_at_every_message_loses_and_doubles_nothing(keyless: DatabaseConfig, tmp_path: Path) -> None:
    manners = ["reset", "close"]
    places = [(where, how) for where in POINTS for how in manners]
    places += [(where, "black hole") for where in ("copy_answer", "ready", "commit_answer")]
    cases = [(*place, seed) for place, seed in zip(places, seeds(len(places)), strict=False)]
    await survive_cuts(keyless, cases, tmp_path)


@pytest.mark.parametrize("pooler_is_behind", [False, True], ids=["client, proxy, pooler", "client, pooler, proxy"])
async def test_line_cut_around_a_pooler_loses_and_doubles_nothing(
    cluster: Cluster, keyless: DatabaseConfig, tmp_path: Path, pooler_is_behind: bool
) -> None:
    uid = cluster.folder.stat().st_uid  # it will not run as root, either
    async with Proxy(keyless) as proxy:
        with running_pgbouncer(proxy.config() if pooler_is_behind else keyless, "transaction", 4, uid) as pooler:
            pooled = msgspec.structs.replace(pooler, database=keyless.database, user="postgres", max_connections=3)
            if not pooler_is_behind:
                proxy.target = pooled
            config = pooled if pooler_is_behind else proxy.config()
            await survive_in_turn(config, keyless, proxy, tmp_path)


async def survive_in_turn(config: DatabaseConfig, direct: DatabaseConfig, proxy: Proxy, spool: Path) -> None:
    numbers: range = range(0)
    async with managed(config) as db, Writer(db, spool=spool) as writer:
        for seed in seeds(6):
            where, how, _ = cases_of([seed])[0]
            where = where if where not in POINTS_OF_A_CONNECTION else "copy_answer"
            proxy.arm(Cut(where, "reset" if how == "black hole" else how, at_byte=100))
            rows, strangers = range(numbers.stop, numbers.stop + N_ROWS), strangers_for(where)
            await writer.add_many(BOOK_TICKERS, [*tickers_of(rows), *strangers])
            await until(proxy.made.is_set, f"seed {seed}: the cut at {where}")
            await writer.flush()
            numbers = range(rows.stop)
            assert_adds_up(writer, seed=seed)
            await assert_stored(direct, numbers, seed=seed)
            await assert_quarantined(direct, strangers, seed)
    counts = writer.counts[BOOK_TICKERS.name]
    assert (counts.n_stored, counts.n_duplicates) == (len(numbers), 0)


async def test_server_that_refuses_connections_gets_its_rows_later(proxy: Proxy, keyless: DatabaseConfig) -> None:
    async with managed(proxy.config()) as db, Writer(db, spool=False) as writer:
        await proxy.refuse()
        proxy.reset_all()
        await writer.add_many(BOOK_TICKERS, tickers_of(range(N_ROWS)))
        await until(lambda: sum(writer.metrics.n_retries.values()) > 2, "it is tried again")
        assert_adds_up(writer)
        await proxy.listen()
        await writer.flush()
    assert_adds_up(writer)
    await assert_stored(keyless, range(N_ROWS))


@pytest.mark.slow
async def test_500_cuts_lose_and_double_nothing(keyless: DatabaseConfig, tmp_path: Path) -> None:
    noticed_s = await survive_cuts(keyless, cases_of(seeds(500)), tmp_path)
    record("F2", "500 seeds", f"0 lost, 0 doubled; a dead peer noticed within {noticed_s:.1f} s")
