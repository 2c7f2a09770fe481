"""Queries across exchanges: by ids and joins, as of an instant, in a stable order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rows import MINUTE, NOW, make_symbol, ticker

from pgtick import models
from pgtick.connection import DatabaseManager
from pgtick.errors import ValidationError
from pgtick.operations import balance, book_ticker, cross_exchange, exchanges, funding_rate, symbols

SECOND = timedelta(seconds=1)
SINCE = NOW - 60 * MINUTE


@pytest.fixture
async def pair(db: DatabaseManager) -> tuple[int, int]:
    """BTC/USDT on two exchanges: asked for 100 on the one, bid 101 for on the other a second before."""
    cheap, dear = await make_symbol("GATEIO_SPOT"), await make_symbol("MEXC_SPOT")
    rows = [
        ticker(cheap, bid_price=99, ask_price=100),
        ticker(dear, bid_price=101, ask_price=102, timestamp=NOW - SECOND),
        ticker(cheap, bid_price=98, ask_price=99, timestamp=NOW - 2 * SECOND),
    ]
    assert await book_ticker.insert_book_ticker_batch(rows) == 3
    return cheap, dear


async def test_latest_prices_are_each_symbols_newest(pair: tuple[int, int]) -> None:
    await book_ticker.insert_book_ticker(ticker(await make_symbol("MEXC_SPOT", "ETH"), timestamp=NOW - 3 * SECOND))
    found = await cross_exchange.get_latest_prices(SINCE)
    assert [(p["exchange"], p["symbol_base"], p["bid_price"]) for p in found] == [
        ("GATEIO_SPOT", "BTC", 99.0),
        ("MEXC_SPOT", "BTC", 101.0),
        ("MEXC_SPOT", "ETH", 50000.1),
    ]
    (eth,) = await cross_exchange.get_latest_prices(SINCE, base="ETH", quote="USDT", decimals=True)
    assert str(eth["bid_price"]) == "50000.10"
    assert await cross_exchange.get_latest_prices(SINCE, base="ETH' OR true --") == []
    assert await cross_exchange.get_latest_prices(NOW) == []


async def test_spreads_buy_at_the_ask_and_sell_at_the_bid(pair: tuple[int, int]) -> None:
    best, worst = await cross_exchange.get_cross_exchange_spreads(SINCE)
    assert (best["buy_exchange"], best["sell_exchange"], best["spread_bps"]) == ("GATEIO_SPOT", "MEXC_SPOT", 100.0)
    assert (best["buy_price"], best["sell_price"], best["skew"]) == (100.0, 101.0, SECOND)
    assert best["symbol_id"] == pair[0]
    assert worst["spread_bps"] < 0
    (limited,) = await cross_exchange.get_cross_exchange_spreads(SINCE, limit=1, decimals=True)
    assert limited["spread_bps"] == Decimal(100)
    assert len(await cross_exchange.get_cross_exchange_spreads(SINCE, max_skew=SECOND)) == 2
    assert await cross_exchange.get_cross_exchange_spreads(SINCE, max_skew=SECOND / 2) == []


async def test_dated_contracts_meet_only_their_own_expiry(db: DatabaseManager) -> None:
    ids = []
    for exchange, month in (("OKX_FUTURES", 3), ("GATEIO_FUTURES", 3), ("GATEIO_FUTURES", 6)):
        exchange_id = await exchanges.ensure_exchange(exchange)
        expiry = datetime(2027, month, 26, 8, tzinfo=UTC)
        ids.append(await symbols.ensure_symbol(exchange_id, "BTC", "USD", f"BTC-USD-{month}", expiry=expiry))
    await book_ticker.insert_book_ticker_batch([ticker(symbol_id) for symbol_id in ids])
    found = await cross_exchange.get_cross_exchange_spreads(SINCE)
    assert {(s["buy_exchange"], s["sell_exchange"]) for s in found} == {
        ("OKX_FUTURES", "GATEIO_FUTURES"),
        ("GATEIO_FUTURES", "OKX_FUTURES"),
    }
    assert len(found) == 2


async def test_spread_history_takes_the_others_newest_at_or_before(pair: tuple[int, int]) -> None:
    cheap, dear = pair
    (row,) = await cross_exchange.get_spread_history(cheap, dear, SINCE, NOW + SECOND)
    assert (row["timestamp"], row["other_timestamp"], row["spread_bps"]) == (NOW, NOW - SECOND, 100.0)
    assert await cross_exchange.get_spread_history(cheap, dear, SINCE, NOW) == [], "the end is not part of it"
    assert await cross_exchange.get_spread_history(cheap, dear, SINCE, NOW + SECOND, tolerance=SECOND / 2) == []
    await book_ticker.insert_book_ticker(ticker(dear, bid_price=103, ask_price=104, sequence_number=2))
    (row,) = await cross_exchange.get_spread_history(cheap, dear, NOW, NOW + SECOND)
    assert (row["other_timestamp"], row["other_bid_price"]) == (NOW, 103.0), "an equal instant counts as before"


async def test_pair_summary_counts_over_exchanges(pair: tuple[int, int]) -> None:
    (summary,) = await cross_exchange.get_pair_summary(SINCE)
    assert (summary["symbol_base"], summary["snapshot_count"], summary["exchange_count"]) == ("BTC", 3, 2)
    assert summary["avg_bid_price"] == pytest.approx((99 + 101 + 98) / 3)


async def test_funding_rates_are_counted_by_exchange(db: DatabaseManager) -> None:
    assert await cross_exchange.get_funding_rate_counts(SINCE) == []
    rows = [
        models.FundingRateSnapshot(timestamp=NOW - n * MINUTE, symbol_id=symbol_id, funding_rate=0, funding_time=NOW)
        for symbol_id, n_rows in ((await make_symbol("MEXC_FUTURES"), 3), (await make_symbol("GATEIO_FUTURES"), 2))
        for n in range(n_rows)
    ]
    assert await funding_rate.insert_funding_rate_batch(rows) == 5
    assert await cross_exchange.get_funding_rate_counts(SINCE) == [
        {"exchange": "GATEIO_FUTURES", "funding_rate_count": 2},
        {"exchange": "MEXC_FUTURES", "funding_rate_count": 3},
    ]


async def test_balances_of_an_exchange_are_the_newest_first(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("GATEIO_FUTURES")
    rows = [
        models.BalanceSnapshot(
            timestamp=NOW - n * MINUTE, exchange_id=exchange_id, asset_name=asset, available_balance=n, locked_balance=1
        )
        for n in range(3)
        for asset in ("USDT", "BTC")
    ]
    assert await balance.insert_balance_batch(rows) == 6
    found = await cross_exchange.get_balance_history_by_exchange("GATEIO_FUTURES", "USDT", NOW - 2 * MINUTE)
    assert [(b["available_balance"], b["total_balance"]) for b in found] == [(0.0, 1.0), (1.0, 2.0)]
    assert await cross_exchange.get_balance_history_by_exchange("MEXC_SPOT", "USDT", SINCE) == []


async def test_naive_instants_and_wrong_limits_are_refused(db: DatabaseManager) -> None:
    naive = datetime(2026, 1, 1)
    asked: list[Callable[[], Awaitable[Any]]] = [
        lambda: cross_exchange.get_latest_prices(naive),
        lambda: cross_exchange.get_cross_exchange_spreads(naive),
        lambda: cross_exchange.get_cross_exchange_spreads(SINCE, limit=-1),
        lambda: cross_exchange.get_spread_history(1, 2, naive, NOW),
        lambda: cross_exchange.get_spread_history(1, 2, NOW, naive),
        lambda: cross_exchange.get_pair_summary(naive),
        lambda: cross_exchange.get_funding_rate_counts(naive),
        lambda: cross_exchange.get_balance_history_by_exchange("GATEIO_SPOT", "USDT", naive),
    ]
    for ask in asked:
        with pytest.raises(ValidationError):
            await ask()
