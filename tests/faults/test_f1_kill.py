"""F1: the server is SIGKILLed at a random byte of a COPY."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from faults.proxy import Cut, Proxy
from faults.servers import Cluster
from faults.support import BYTES_A_ROW, assert_adds_up, assert_stored, managed, record, seeds, tickers_of, until
from pgtick.config import DatabaseConfig
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

ROWS_A_KILL = 5000
GOES_ON_S = 5.0


async def kill_often(cluster: Cluster, proxy: Proxy, keyless: DatabaseConfig, spool: Path, n_kills: int) -> float:
    """Hand over rows while the server is killed again and again; return the longest time until it went on."""
    longest_s = 0.0
    async with managed(proxy.config()) as db, Writer(db, spool=spool) as writer:
        for n, seed in enumerate(seeds(n_kills)):
            chance = random.Random(seed)
            at_byte = chance.randrange(1, ROWS_A_KILL * BYTES_A_ROW)
            cut = proxy.arm(Cut("copy_data", at_byte=at_byte, action=cluster.kill))
            await writer.add_many(BOOK_TICKERS, tickers_of(range(n * ROWS_A_KILL, (n + 1) * ROWS_A_KILL)))
            await until(lambda cut=cut: cut.cut_s is not None, f"seed {seed}: no COPY reached byte {at_byte}")  # type: ignore[misc]
            n_stored = writer.counts[BOOK_TICKERS.name].n_stored
            await asyncio.sleep(chance.uniform(0, 0.5))
            await asyncio.to_thread(cluster.start)
            back_s = time.monotonic()
            await until(
                lambda n_stored=n_stored: writer.counts[BOOK_TICKERS.name].n_stored > n_stored,  # type: ignore[misc]
                f"seed {seed}: going on after the server is back",
            )
            longest_s = max(longest_s, time.monotonic() - back_s)
            assert longest_s <= GOES_ON_S, f"seed {seed}: it went on {longest_s:.1f} s after the server was back"
            assert_adds_up(writer, seed=seed)
            await writer.flush()
    assert_adds_up(writer)
    counts = writer.counts[BOOK_TICKERS.name]
    n_rows = (n + 1) * ROWS_A_KILL
    assert (counts.n_accepted, counts.n_stored, counts.n_duplicates) == (n_rows, n_rows, 0)
    await assert_stored(keyless, range(n_rows))
    return longest_s


async def test_server_killed_within_a_copy_loses_and_doubles_nothing(
    cluster: Cluster, proxy: Proxy, keyless: DatabaseConfig, tmp_path: Path
) -> None:
    await kill_often(cluster, proxy, keyless, tmp_path / "spool", 3)


@pytest.mark.slow
async def test_server_killed_200_times_within_a_million_rows_loses_and_doubles_nothing(
    cluster: Cluster, proxy: Proxy, keyless: DatabaseConfig, tmp_path: Path
) -> None:
    longest_s = await kill_often(cluster, proxy, keyless, tmp_path / "spool", 200)
    record("F1", "200 kills, 1,000,000 rows", f"0 lost, 0 doubled; went on {longest_s:.1f} s after the server was back")
