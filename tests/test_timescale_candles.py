"""Candles from continuous aggregates for real, at PGTICK_TEST_TIMESCALE_DSN: the same figures, and they stay."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from candle_rows import END, HOUR, START, mid_candles, tickers, trade_candles, trades
from rows import ticker
from timescale import empty_database, needs_timescale, skip_unless_licence, started

from pgtick.connection import DatabaseManager
from pgtick.engines import Engine, get_engine, maintain
from pgtick.engines.candles import MID_CANDLES, TRADE_CANDLES
from pgtick.operations import candles
from pgtick.operations.book_ticker import insert_book_ticker_batch
from pgtick.operations.trade import insert_trade_batch

pytestmark = needs_timescale

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
VIEWS = {f"{kind}_candles_{suffix}" for kind in ("mid", "trade") for suffix in ("1s", "1m", "1h")}
_REFRESH = (
    "SELECT hypertable_name::text, (config ->> 'start_offset')::interval, (config ->> 'end_offset')::interval, "
    "schedule_interval FROM timescaledb_information.jobs WHERE proc_name = 'policy_refresh_continuous_aggregate'"
)
_RETENTION = (
    "SELECT hypertable_name::text, (config ->> 'drop_after')::interval FROM timescaledb_information.jobs "
    "WHERE proc_name = 'policy_retention' AND hypertable_name LIKE '%candles%'"
)


@pytest.fixture
async def db() -> AsyncIterator[DatabaseManager]:
    async with empty_database() as config, started(config) as manager:
        yield manager


@pytest.fixture
async def engine(db: DatabaseManager) -> Engine:
    return await get_engine(db)


@pytest.fixture
async def community(db: DatabaseManager) -> None:
    await skip_unless_licence(db, "timescale")


async def refresh(db: DatabaseManager) -> None:
    """Run the refresh policies, the narrow candles' first."""
    for suffix in ("1s", "1m", "1h"):
        for kind in ("mid", "trade"):
            job = await db.fetchval(
                "SELECT job_id FROM timescaledb_information.jobs "
                "WHERE proc_name = 'policy_refresh_continuous_aggregate' AND hypertable_name = $1",
                f"{kind}_candles_{suffix}",
            )
            await db.execute(f"CALL run_job({job})")


async def n_materialized(db: DatabaseManager, view: str) -> int:
    schema, name = await db.fetchrow(  # type: ignore[misc]
        "SELECT quote_ident(materialization_hypertable_schema), quote_ident(materialization_hypertable_name) "
        "FROM timescaledb_information.continuous_aggregates WHERE view_name = $1",
        view,
    )
    return int(await db.fetchval(f"SELECT count(*) FROM {schema}.{name}"))


async def check_candles(db: DatabaseManager, engine: Engine, ticker_rows: list[Any], trade_rows: list[Any]) -> None:
    is_community = await db.fetchval("SHOW timescaledb.license") == "timescale"
    for width, suffix in (
        (SECOND / 2, None),
        (SECOND, "1s"),
        (90 * SECOND, "1s"),
        (MINUTE, "1m"),
        (HOUR, "1h"),
        (2 * HOUR, "1h"),
        (DAY, "1h"),
    ):
        view = await engine.candle_view(db, MID_CANDLES, width)
        assert view == (f"mid_candles_{suffix}" if is_community and suffix else None)
        found: list[Any] = await candles.get_mid_candles(1, START - DAY, END, width, decimals=True)
        assert found == mid_candles(ticker_rows, width), width
        found = await candles.get_trade_candles(1, START - DAY, END, width, decimals=True)
        assert found == trade_candles(trade_rows, width), width


async def test_candles_are_the_rows_candles_whatever_they_are_read_from(db: DatabaseManager, engine: Engine) -> None:
    """On a server of either licence, with aggregates or without."""
    ticker_rows, trade_rows = tickers(1, 1000, seed=1), trades(1, 1000, seed=2)
    await insert_book_ticker_batch(ticker_rows)
    await insert_trade_batch(trade_rows)
    await check_candles(db, engine, ticker_rows, trade_rows)


async def test_filled_aggregates_have_the_same_candles_and_late_rows_come_in(
    db: DatabaseManager, engine: Engine, community: None
) -> None:
    ticker_rows, trade_rows = tickers(1, 1000, seed=1), trades(1, 1000, seed=2)
    chance = random.Random(3)
    chance.shuffle(ticker_rows)
    chance.shuffle(trade_rows)
    for part in (slice(0, 800), slice(800, 1000)):
        await insert_book_ticker_batch(ticker_rows[part])
        await insert_trade_batch(trade_rows[part])
        await refresh(db)
        await check_candles(db, engine, ticker_rows[: part.stop], trade_rows[: part.stop])
    assert await n_materialized(db, "mid_candles_1s") == len(mid_candles(ticker_rows, SECOND))
    assert await n_materialized(db, "trade_candles_1h") == len(trade_candles(trade_rows, HOUR))


async def test_newest_row_is_in_the_candle_though_not_in_the_aggregate(db: DatabaseManager, community: None) -> None:
    await insert_book_ticker_batch([ticker(1, timestamp=START)])
    await refresh(db)
    now: Any = await db.fetchval("SELECT now()")
    await insert_book_ticker_batch([ticker(1, timestamp=now)])
    for width in (SECOND, MINUTE, HOUR):
        assert len(await candles.get_mid_candles(1, START, now + SECOND, width)) == 2


async def test_late_rows_by_every_way_come_in_with_the_next_refresh(db: DatabaseManager, community: None) -> None:
    await insert_book_ticker_batch([ticker(1, timestamp=START)])
    await refresh(db)
    columns = ("timestamp", "symbol_id", "bid_price", "ask_price", "sequence_number", "update_type")
    query = f"INSERT INTO book_ticker_snapshots ({', '.join(columns)}) VALUES ($1, $2, $3, $4, $5, $6)"
    now: Any = await db.fetchval("SELECT now()")

    def row(hours: float, number: int = 1) -> tuple[object, ...]:
        return (START + hours * HOUR, 1, 1, 1, number, "x")

    await db.execute(query, *row(0.1))
    await db.copy_records_to_table("book_ticker_snapshots", [row(n / 10) for n in range(2, 25)], columns)
    # Stamped now and committed when a refresh has gone past it.
    await db.execute(
        "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs WHERE job_id > 999"
    )
    async with db.transaction():
        await db.execute("SELECT 1")
        await db.copy_records_to_table("book_ticker_snapshots", [(now, *row(0)[1:])], columns)
        other = await asyncpg.connect(**db.config.connect_kwargs())
        try:
            for view in ("mid_candles_1s", "mid_candles_1m"):
                await other.execute(f"CALL refresh_continuous_aggregate('{view}', NULL, NULL)")
        finally:
            await other.close()
    await compress_all(db)
    await db.copy_records_to_table("book_ticker_snapshots", [row(n / 10 + 0.01) for n in range(2, 25)], columns)
    for view in ("mid_candles_1s", "mid_candles_1m"):
        await db.execute(f"CALL refresh_continuous_aggregate('{view}', NULL, NULL)")
    for width in (SECOND, MINUTE):
        found = await candles.get_mid_candles(1, START, now + SECOND, width)
        assert sum(candle.n_updates for candle in found) == 1 + 1 + 23 + 1 + 23, width


async def compress_all(db: DatabaseManager) -> None:
    for record in await db.fetch("SELECT show_chunks('book_ticker_snapshots')::text"):
        await db.execute(f"CALL convert_to_columnstore('{record[0]}')")


async def test_refresh_reaches_back_as_far_as_rows_are_kept(db: DatabaseManager, community: None) -> None:
    half = HOUR / 2
    assert {tuple(record) for record in await db.fetch(_REFRESH)} == {
        (f"{kind}_candles_{suffix}", 3 * DAY - half, end, schedule)
        for kind in ("mid", "trade")
        for suffix, end, schedule in (
            ("1s", MINUTE, MINUTE),
            ("1m", MINUTE, MINUTE),
            ("1h", 10 * MINUTE, 5 * MINUTE),
        )
    }
    assert dict(map(tuple, await db.fetch(_RETENTION))) == {
        f"{kind}_candles_{suffix}": kept
        for kind in ("mid", "trade")
        for suffix, kept in (("1s", 14 * DAY), ("1m", 180 * DAY))
    }


async def test_changed_retention_moves_the_reach_of_what_is_made_from_it(db: DatabaseManager, community: None) -> None:
    await db.execute("UPDATE pgtick_time_series SET retention = '2 days' WHERE table_name = 'trade_snapshots'")
    await db.execute("UPDATE pgtick_candles SET retention = '1 day' WHERE candle_view = 'mid_candles_1s'")
    await db.execute("UPDATE pgtick_candles SET retention = NULL WHERE candle_view = 'mid_candles_1m'")
    await maintain(db)
    reach = {view: start for view, start, *_ in await db.fetch(_REFRESH)}
    half = HOUR / 2
    assert reach == {
        "mid_candles_1s": 3 * DAY - half,
        "mid_candles_1m": DAY - half,
        "mid_candles_1h": DAY - half,
        **dict.fromkeys((view for view in VIEWS if view.startswith("trade")), 2 * DAY - half),
    }
    assert dict(map(tuple, await db.fetch(_RETENTION))) == {
        "mid_candles_1s": DAY,
        "trade_candles_1s": 14 * DAY,
        "trade_candles_1m": 180 * DAY,
    }
    jobs = "SELECT array_agg(job_id ORDER BY job_id) FROM timescaledb_information.jobs"
    before = await db.fetchval(jobs)
    await maintain(db)
    assert await db.fetchval(jobs) == before, "what is in line is left alone"


async def test_candles_of_dropped_rows_stay_though_the_retention_is_lengthened_later(
    db: DatabaseManager, engine: Engine, community: None
) -> None:
    then = START - 2 * DAY
    rows = [ticker(1, timestamp=then + n * SECOND, bid_price=n + 1, sequence_number=n) for n in range(100)]
    rows += [ticker(1, timestamp=START + n * SECOND, sequence_number=n) for n in range(5)]
    await insert_book_ticker_batch(rows)
    await refresh(db)
    retention = "UPDATE pgtick_time_series SET retention = $1 WHERE table_name = 'book_ticker_snapshots'"
    await db.execute(retention, DAY)
    await maintain(db)
    assert await engine.drop_older_than(db, "book_ticker_snapshots", START - DAY) != []
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 5
    for days in (1, 30):
        await db.execute(retention, days * DAY)
        await maintain(db)
        await refresh(db)
        for width in (SECOND, MINUTE, HOUR):
            found: list[Any] = await candles.get_mid_candles(1, START - 3 * DAY, END, width, decimals=True)
            assert found == mid_candles(rows, width), (days, width)
    reach = {view: start for view, start, *_ in await db.fetch(_REFRESH)}
    assert DAY - HOUR < reach["mid_candles_1s"] < 2 * DAY, "it grows with the age of the oldest row"
    assert reach["trade_candles_1s"] == 3 * DAY - HOUR / 2


async def test_retention_too_short_for_hours_stops_their_refresh_and_says_so(
    db: DatabaseManager, community: None, caplog: pytest.LogCaptureFixture
) -> None:
    await db.execute("UPDATE pgtick_time_series SET retention = '90 minutes' WHERE table_name = 'trade_snapshots'")
    await maintain(db)
    assert {view for view, *_ in await db.fetch(_REFRESH)} == VIEWS - {"trade_candles_1h"}
    assert "trade_candles_1h is not refreshed" in caplog.text
    now: Any = await db.fetchval("SELECT now()")
    await insert_trade_batch([row for row in trades(1, 500, seed=1) if row.timestamp < now])
    assert len(await candles.get_trade_candles(1, START, now, HOUR)) >= 2, "from rows"


async def test_apache_licence_has_no_aggregates_and_no_columnstore(db: DatabaseManager, engine: Engine) -> None:
    await skip_unless_licence(db, "apache")
    assert await db.fetchval("SELECT count(*) FROM pgtick_candles") == 0
    assert await db.fetchval("SELECT count(columnstore_after) FROM pgtick_time_series") == 0
    assert await engine.candle_view(db, TRADE_CANDLES, HOUR) is None
    assert await maintain(db) is not None
