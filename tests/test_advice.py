"""The advice on chunk intervals: its arithmetic, and measured on real TimescaleDB chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from timescale import empty_database, needs_timescale, started

from pgtick.connection import DatabaseManager
from pgtick.engines.advice import IntervalAdvice, _advise, advise_intervals
from pgtick.engines.base import SeriesInfo

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MB = 2**20


def advise(
    rows_per_s: float, *, current: timedelta = HOUR / 2, retention: timedelta = 3 * DAY, is_fixed: bool = False
) -> IntervalAdvice:
    info = SeriesInfo(
        table="t",
        kind="hypertable",
        part_interval=current,
        retention=retention,
        n_parts=1,
        oldest=None,
        newest=None,
        retention_by="",
    )
    return _advise(info, rows_per_s, 200.0, 1024 * MB, is_fixed=is_fixed)


@pytest.mark.parametrize(
    ("rows_per_s", "current", "advised"),
    [
        (100, HOUR / 2, HOUR / 2),  # fits
        (5_000, HOUR / 2, 15 * MINUTE),  # 1.7 GB in half an hour
        (50_000, HOUR / 2, MINUTE),
        (10**7, HOUR / 2, MINUTE),
        (10**7, MINUTE, MINUTE),
        (1, MINUTE, 12 * HOUR),  # 4,320 chunks; a sixth of the retention at most
        (1_000, MINUTE, HOUR),
        (1, 12 * HOUR, 12 * HOUR),
    ],
)
def test_advised_interval_fits_memory_and_retention(rows_per_s: float, current: timedelta, advised: timedelta) -> None:
    found = advise(rows_per_s, current=current)
    assert found.advised == advised
    assert found.current == current
    assert ("set_chunk_time_interval" in found.reason) == (advised != current)
    assert found.fits == ("as it should be" in found.reason)


def test_days_of_plain_postgresql_that_exceed_memory_are_told() -> None:
    found = advise(1_000, current=DAY, is_fixed=True)
    assert found.advised == DAY
    assert "raise shared_buffers" in found.reason
    assert "as it should be" in advise(10, current=DAY, is_fixed=True).reason


@pytest.fixture
async def db() -> AsyncIterator[DatabaseManager]:
    async with empty_database() as config, started(config) as manager:
        yield manager


@needs_timescale
@pytest.mark.parametrize("analyze", [False, True])
async def test_rate_and_size_are_measured_from_the_newest_full_chunk(db: DatabaseManager, analyze: bool) -> None:
    assert await advise_intervals(db) == []
    now: Any = await db.fetchval("SELECT date_bin('30 minutes', now(), 'epoch')")
    columns = ("timestamp", "symbol_id", "bid_price", "ask_price", "sequence_number", "update_type")

    def rows(start: datetime, n: int) -> list[tuple[object, ...]]:
        return [(start + i * timedelta(milliseconds=100), 1, 1, 1, i, "x") for i in range(n)]

    for start, n in ((now - 2 * HOUR, 100), (now - HOUR / 2, 9_000), (now, 10)):
        await db.copy_records_to_table("book_ticker_snapshots", rows(start, n), columns)
    if analyze:
        await db.execute("ANALYZE book_ticker_snapshots")
    (advice,) = await advise_intervals(db)
    assert advice.table == "book_ticker_snapshots"
    assert advice.rows_per_s == pytest.approx(9_000 / 1800, rel=0.02)
    assert 100 < advice.bytes_per_row < 400
    assert advice.advised == advice.current == HOUR / 2
