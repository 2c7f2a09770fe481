"""Candles from the same call on every engine, against candles computed here from the same rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from candle_rows import END, EPOCH, HOUR, START, mid_candles, tickers, trade_candles, trades
from rows import make_symbol, ticker

from pgtick.connection import DatabaseManager
from pgtick.engines.candles import MID_CANDLES, select_candles
from pgtick.errors import ValidationError
from pgtick.migrator.render import render_sql
from pgtick.models import TradeSnapshot
from pgtick.operations import candles
from pgtick.operations.book_ticker import insert_book_ticker_batch
from pgtick.operations.trade import insert_trade_batch

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
WIDTHS = [SECOND / 4, SECOND, 1.5 * SECOND, 7 * SECOND, MINUTE, 5 * MINUTE, HOUR, 4 * HOUR, 24 * HOUR, 168 * HOUR]
FIRST = START - 168 * HOUR  # the first week's candle begins before the rows


def trade(symbol_id: int, **changes: Any) -> TradeSnapshot:
    values: dict[str, Any] = {"timestamp": START, "price": 1, "quantity": 1, "side": "buy", "trade_id": "1"}
    return TradeSnapshot(symbol_id=symbol_id, **{**values, **changes})


GETTERS = [candles.get_mid_candles, candles.get_trade_candles]
BATCH_GETTERS = [candles.get_mid_candles_by_symbols, candles.get_trade_candles_by_symbols]


@pytest.fixture
async def symbol_ids(db: DatabaseManager) -> list[int]:
    return [await make_symbol("GATEIO_SPOT", "BTC"), await make_symbol("MEXC_SPOT", "ETH")]


async def test_candles_of_every_width_are_those_of_the_rows(symbol_ids: list[int]) -> None:
    one, other = symbol_ids
    ticker_rows = tickers(one, 1500, seed=1) + tickers(other, 300, seed=2)
    trade_rows = trades(one, 1500, seed=3) + trades(other, 300, seed=4)
    await insert_book_ticker_batch(ticker_rows)
    await insert_trade_batch(trade_rows)
    for width in WIDTHS:
        mids = mid_candles(ticker_rows, width)
        traded = trade_candles(trade_rows, width)
        assert len(mids) > 2 * (width < HOUR)
        for batch_get, get, expected in (
            (candles.get_mid_candles_by_symbols, candles.get_mid_candles, mids),
            (candles.get_trade_candles_by_symbols, candles.get_trade_candles, traded),
        ):
            found: list[Any] = await batch_get(reversed(symbol_ids), FIRST, END, width, decimals=True)
            assert found == expected, width
            single: list[Any] = await get(one, FIRST, END, width, decimals=True)
            assert single == [candle for candle in expected if candle.symbol_id == one]


async def test_open_and_close_of_one_instant_go_by_the_venue_s_numbers(symbol_ids: list[int]) -> None:
    symbol_id = symbol_ids[0]
    await insert_book_ticker_batch(
        ticker(symbol_id, timestamp=START, bid_price=price, ask_price=price, sequence_number=number)
        for price, number in ((3, 10), (1, 9), (2, -5))
    )
    (mid,) = await candles.get_mid_candles(symbol_id, START, END, HOUR)
    assert (mid.open, mid.high, mid.low, mid.close, mid.n_updates) == (2, 3, 1, 3, 3)
    await insert_trade_batch(
        trade(symbol_id, timestamp=START, price=price, trade_id=trade_id)
        for price, trade_id in ((3, "10"), (1, "9"), (4, "a9"), (2, "B9"))
    )
    (traded,) = await candles.get_trade_candles(symbol_id, START, END, HOUR)
    assert (traded.open, traded.high, traded.low, traded.close, traded.n_trades) == (1, 4, 1, 4, 4)


async def test_candle_begins_in_the_range_and_is_whole(symbol_ids: list[int]) -> None:
    symbol_id = symbol_ids[0]
    await insert_book_ticker_batch(
        ticker(symbol_id, timestamp=START + n * 20 * SECOND, sequence_number=n) for n in range(12)
    )

    async def found(start: datetime, end: datetime) -> dict[datetime, int]:
        rows = await candles.get_mid_candles(symbol_id, start, end, MINUTE)
        return {row.timestamp: row.n_updates for row in rows}

    minutes = [START + n * MINUTE for n in range(4)]
    assert await found(START, END) == dict.fromkeys(minutes, 3)
    assert await found(START + SECOND, END) == dict.fromkeys(minutes[1:], 3), "the first has begun before"
    assert await found(START, minutes[2]) == dict.fromkeys(minutes[:2], 3), "the end is not part of it"
    assert await found(START, minutes[2] + SECOND) == dict.fromkeys(minutes[:3], 3), "the last is not cut"
    assert await found(END, START) == {}
    assert await found(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)) == dict.fromkeys(minutes, 3)


async def test_borders_are_utc_whatever_the_zone_asked_in(db: DatabaseManager, symbol_ids: list[int]) -> None:
    symbol_id = symbol_ids[0]
    await insert_book_ticker_batch([ticker(symbol_id, timestamp=START)])
    await db.execute(f"ALTER DATABASE {db.config.database} SET timezone = 'Asia/Kathmandu'")
    zone = timezone(timedelta(hours=5, minutes=45))
    (candle,) = await candles.get_mid_candles(symbol_id, FIRST.astimezone(zone), END.astimezone(zone), 24 * HOUR)
    assert candle.timestamp == EPOCH + (START - EPOCH) // (24 * HOUR) * 24 * HOUR


async def test_mid_is_exact_and_floats_are_the_nearest(symbol_ids: list[int]) -> None:
    symbol_id = symbol_ids[0]
    bid, ask = Decimal("0.123456789012345678901234567890"), Decimal("0.123456789012345678901234567891")
    await insert_book_ticker_batch([ticker(symbol_id, timestamp=START, bid_price=bid, ask_price=ask)])
    (exact,) = await candles.get_mid_candles(symbol_id, START, END, SECOND, decimals=True)
    assert exact.open == exact.close == Decimal("0.1234567890123456789012345678905")
    (rounded,) = await candles.get_mid_candles(symbol_id, START, END, SECOND)
    assert isinstance(rounded.open, float)
    assert rounded.open == float(exact.open)


@pytest.mark.parametrize("get", GETTERS)
async def test_symbol_without_rows_has_no_candles(symbol_ids: list[int], get: Any) -> None:
    assert await get(symbol_ids[0], START, END, MINUTE) == []
    assert await get(10**6, START, END, MINUTE) == []


@pytest.mark.parametrize("get", [*GETTERS, *BATCH_GETTERS])
async def test_arguments_that_are_wrong_are_refused_by_name(symbol_ids: list[int], get: Any) -> None:
    ids = symbol_ids if get in BATCH_GETTERS else symbol_ids[0]
    naive = START.replace(tzinfo=None)
    for name, arguments in {
        "start": (naive, END, MINUTE),
        "end": (START, naive, MINUTE),
        "width": (START, END, timedelta(0)),
        " width": (START, END, 60),
    }.items():
        with pytest.raises(ValidationError) as refused:
            await get(ids, *arguments)
        assert refused.value.column == name.strip()


@pytest.mark.parametrize(("engine", "version", "n"), [("timescale", 18, 6), ("timescale", 17, 6), ("plain", 18, 0)])
async def test_script_of_the_schema_holds_aggregates_for_timescaledb_only(engine: str, version: int, n: int) -> None:
    script = await render_sql(engine, version)
    for statement in (
        "CREATE MATERIALIZED VIEW",
        "INSERT INTO pgtick_candles",
        "CALL add_columnstore_policy",
        "timescaledb.enable_columnstore",
    ):
        assert script.count(statement) == n, statement
    assert script.count("SELECT add_continuous_aggregate_policy") == (n > 0)
    assert script.count("CREATE TRIGGER touch_late_rows") == 2 * (n > 0 and version >= 18)
    assert "ADD COLUMN columnstore_after" in script


def test_query_reads_the_aggregate_where_there_is_one_and_rows_else() -> None:
    from_view = select_candles(MID_CANDLES, "mid_candles_1m", 5 * MINUTE, "symbol_id = $1")
    assert "FROM mid_candles_1m" in from_view
    assert "book_ticker_snapshots" not in from_view
    from_rows = select_candles(MID_CANDLES, None, 1.5 * SECOND, "symbol_id = $1")
    assert "FROM book_ticker_snapshots" in from_rows
    assert "interval '500000 microseconds'" in from_rows, "what divides both the width and a second"
