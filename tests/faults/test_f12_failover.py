"""F12: the server is restarted, fails over to its standby, or is read-only for a while."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from faults.proxy import Proxy
from faults.servers import Cluster
from faults.support import assert_adds_up, assert_stored, managed, record, ticker_of, until
from pgtick.config import DatabaseConfig
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

TABLE = BOOK_TICKERS.name
N_CYCLES = {"short": 1, "full": 20}
forms = pytest.mark.parametrize("form", ["short", pytest.param("full", marks=pytest.mark.slow)])


@contextlib.asynccontextmanager
async def fed(config: DatabaseConfig, spool: Path) -> AsyncIterator[tuple[Writer, list[int]]]:
    """Hand rows to a writer meanwhile, one a millisecond; yield it with the numbers."""
    numbers: list[int] = []

    async def feed() -> None:
        while True:
            await writer.add(BOOK_TICKERS, ticker_of(len(numbers)))
            numbers.append(len(numbers))
            await asyncio.sleep(0.001)

    async with managed(config) as db, Writer(db, max_age_s=0.05, spool=spool) as writer:
        task = asyncio.create_task(feed())
        try:
            yield writer, numbers
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await writer.flush()


async def goes_on(writer: Writer) -> None:
    n_stored = writer.metrics.counts_of(TABLE).n_stored
    await until(lambda: writer.metrics.counts_of(TABLE).n_stored > n_stored + 100, f"it goes on: {writer.counts}")


async def judge(writer: Writer, numbers: list[int], config: DatabaseConfig) -> None:
    assert_adds_up(writer)
    counts = writer.counts[TABLE]
    assert (counts.n_stored, counts.n_duplicates, counts.n_quarantined) == (len(numbers), 0, 0)
    retries = writer.metrics.n_retries
    assert retries["retry"] > 0
    assert sum(retries.values()) == retries["retry"], f"not sorted as retry: {retries}"
    await assert_stored(config, numbers)


async def restart(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.stop)
    await asyncio.sleep(1.5)
    await asyncio.to_thread(cluster.start)


async def read_only_for_a_while(cluster: Cluster) -> None:
    await cluster.execute("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    await asyncio.sleep(1.5)
    await cluster.execute(
        "SET default_transaction_read_only = off",
        "ALTER SYSTEM RESET default_transaction_read_only",
        "SELECT pg_reload_conf()",
    )


@forms
@pytest.mark.parametrize("trouble", [restart, read_only_for_a_while])
async def test_server_in_trouble_is_tried_again_and_loses_nothing(
    cluster: Cluster, keyless: DatabaseConfig, tmp_path: Path, trouble: Callable[[Cluster], Awaitable[None]], form: str
) -> None:
    async with fed(keyless, tmp_path / "spool") as (writer, numbers):
        for _ in range(N_CYCLES[form]):
            await goes_on(writer)
            n_before = sum(writer.metrics.n_retries.values())
            started = time.monotonic()
            await trouble(cluster)
            await goes_on(writer)
            n_tries = sum(writer.metrics.n_retries.values()) - n_before
            # 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2 … s, halved by the jitter at most; in_flight at once for the first.
            longest = 2 + 2 * (5 + (time.monotonic() - started))
            assert 1 <= n_tries <= longest, f"not backed off: {n_tries} tries"
    await judge(writer, numbers, keyless)
    if form == "full":
        record(
            "F12", f"{trouble.__name__.replace('_', ' ')}, 20 times", "sorted as retry, backed off, 0 lost, 0 doubled"
        )


async def test_pauses_between_tries_differ_and_grow(proxy: Proxy, tmp_path: Path) -> None:
    async with managed(proxy.config()) as db:
        writers = [Writer(db, spool=tmp_path / str(n)) for n in range(4)]
        await proxy.refuse()
        proxy.reset_all()
        tried: list[list[float]] = [[] for _ in writers]
        for n, writer in enumerate(writers):
            await writer.add(BOOK_TICKERS, ticker_of(n))

        def look() -> bool:
            for times, writer in zip(tried, writers, strict=True):
                n_tries = sum(writer.metrics.n_retries.values())
                times += [time.monotonic()] * (n_tries - len(times))
            return all(len(times) >= 5 for times in tried)

        await until(look, "five tries each")
        pauses = [[after - before for before, after in itertools.pairwise(times)] for times in tried]
        assert all(some[3] > some[0] for some in pauses), pauses
        assert len({round(some[3], 2) for some in pauses}) > 1, pauses
        await proxy.listen()
        for writer in writers:
            await writer.close()
            assert_adds_up(writer)


@forms
async def test_failover_to_the_standby_is_followed_and_loses_nothing(
    cluster: Cluster, keyless: DatabaseConfig, tmp_path: Path, form: str
) -> None:
    primary, others = cluster, []
    with tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        try:
            async with Proxy(keyless) as proxy:
                async with fed(proxy.config(), tmp_path / "spool") as (writer, numbers):
                    for n in range({"short": 1, "full": 5}[form]):
                        standby = await asyncio.to_thread(primary.create_standby, Path(folder) / str(n))
                        others.append(standby)
                        await commit_together(primary)
                        await goes_on(writer)
                        await fail_over(primary, standby, proxy, writer)
                        await goes_on(writer)
                        primary = standby
                await judge(writer, numbers, msgspec.structs.replace(keyless, port=primary.port))
        finally:
            for other in others:
                other.remove()
            reset_to_alone(cluster)
    if form == "full":
        record("F12", "fail-over to a synchronous standby, 5 times", "sorted as retry, followed, 0 lost, 0 doubled")


async def fail_over(primary: Cluster, standby: Cluster, proxy: Proxy, writer: Writer) -> None:
    """Kill the primary; the address leads to the standby, which is read-only at first."""
    n_before = sum(writer.metrics.n_retries.values())
    primary.kill()
    await asyncio.sleep(0.5)
    proxy.switch(msgspec.structs.replace(proxy.target, port=standby.port))
    await until(lambda: sum(writer.metrics.n_retries.values()) > n_before, "the fail-over is noticed")
    await asyncio.sleep(1.0)
    await asyncio.to_thread(standby.promote)
    await standby.execute("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")


async def commit_together(primary: Cluster) -> None:
    """Have a commit wait until the standby has it."""
    await primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")


def reset_to_alone(cluster: Cluster) -> None:
    """Take the standby out of the settings: a commit would wait for it."""
    path = cluster.data / "postgresql.auto.conf"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "synchronous_standby_names" not in line) + "\n")
