"""F8: the server is slowed to 1 % while rows come in faster than it takes them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from array import array
from pathlib import Path

import pytest

from faults.servers import Cluster
from faults.support import assert_adds_up, assert_stored, managed, record, ticker_of
from pgtick.config import DatabaseConfig
from pgtick.errors import BufferFullError
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

SHARE = 0.01
ADD_P99_S = 0.001
ROWS_A_TURN = 50
MOST_ROWS = 4_000_000
N_BEFORE = 20_000  # rows, at full speed


def resident_bytes() -> int:
    """Return this process's resident memory, after what is free went back to the system."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def give_back() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


async def fill(writer: Writer, took: array[float], for_s: float) -> tuple[int, bool]:
    """Hand over rows for so long, and note what each add below the cap took; return the next number; was it full?"""
    n = N_BEFORE
    was_full = False
    ends = time.monotonic() + for_s
    while time.monotonic() < ends:
        rows = [ticker_of(number) for number in range(n, n + ROWS_A_TURN)]
        try:
            for row in rows:
                started = time.perf_counter()
                await writer.add(BOOK_TICKERS, row)
                took[n - N_BEFORE] = time.perf_counter() - started
                n += 1
        except BufferFullError:
            was_full = True
            await asyncio.sleep(0.02)
        await asyncio.sleep(0)
    return n, was_full


async def survive_slowness(
    cluster: Cluster, config: DatabaseConfig, max_bytes: int, for_s: float
) -> tuple[float, float]:
    """Return memory's growth as a share of the cap, and the 99th percentile of add in seconds."""
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, resident_bytes())
            await asyncio.sleep(0.05)

    async with managed(config) as db:
        writer = Writer(db, max_bytes=max_bytes, when_full="raise", spool=False, close_timeout_s=120)
        await writer.add_many(BOOK_TICKERS, (ticker_of(number) for number in range(N_BEFORE)))
        await writer.flush()  # everything is imported, and the allocator has what every flush needs
        took = array("d", range(MOST_ROWS))  # the test's own memory, there before
        give_back()
        before = resident_bytes()
        watching = asyncio.create_task(watch())
        with cluster.slowed(SHARE):
            n, was_full = await fill(writer, took, for_s)
            assert_adds_up(writer)
        watching.cancel()
        await writer.flush()
        await writer.close()
    assert was_full, "the cap was not reached"
    assert_adds_up(writer)
    counts = writer.counts[BOOK_TICKERS.name]
    assert (counts.n_stored, counts.n_duplicates, counts.n_refused) == (n, 0, 0)
    await assert_stored(config, range(n))
    growth = (peak - before) / max_bytes
    p99_s = sorted(took[: n - N_BEFORE])[(n - N_BEFORE) * 99 // 100]
    print(f"memory {growth:.3f} x the cap, add p99 {p99_s * 1e6:.0f} us")
    assert growth <= 1.10, f"memory grew by {growth:.2f} times the cap"
    assert p99_s <= ADD_P99_S, f"add took {p99_s * 1e3:.2f} ms (p99)"
    return growth, p99_s


async def test_slow_server_costs_no_more_memory_than_the_cap_and_holds_up_no_add(
    cluster: Cluster, keyless: DatabaseConfig
) -> None:
    await survive_slowness(cluster, keyless, 32 << 20, 12.0)


@pytest.mark.slow
async def test_server_slowed_to_1_percent_for_60_s_costs_no_more_memory_than_the_cap(
    cluster: Cluster, keyless: DatabaseConfig
) -> None:
    growth, p99_s = await survive_slowness(cluster, keyless, 64 << 20, 60.0)
    told = f"resident memory {growth:.2f} x the cap, add p99 {p99_s * 1e6:.0f} us, 0 lost, 0 doubled"
    record("F8", "1 % for 60 s, cap of 64 MiB", told)
