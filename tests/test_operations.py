"""Operations against a real server: what goes in comes out, and what is refused is named."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest

import pgtick
from pgtick import models, operations
from pgtick.connection import DatabaseManager
from pgtick.errors import BatchError, ValidationError
from pgtick.operations import (
    arbitrage_opportunity,
    balance,
    book_ticker,
    cross_exchange,
    exchanges,
    funding_rate,
    order_flow_metrics,
    symbols,
    trade,
)

assert operations is not None
NOW = datetime.now(UTC).replace(microsecond=123456)


async def make_symbol(exchange: str = "GATEIO_SPOT", base: str = "BTC", quote: str = "USDT") -> int:
    return await symbols.ensure_symbol(await exchanges.ensure_exchange(exchange), base, quote, f"{base}_{quote}")


def ticker(symbol_id: int, **changes: object) -> models.BookTickerSnapshot:
    values: dict[str, object] = {
        "timestamp": NOW,
        "symbol_id": symbol_id,
        "bid_price": "50000.10",
        "ask_price": "50000.20",
        "bid_qty": 1.5,
        "ask_qty": 2,
        "sequence_number": 1,
    }
    return models.BookTickerSnapshot(**{**values, **changes})  # type: ignore[arg-type]


async def test_book_ticker_round_trip_keeps_the_scale(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    row_id = await book_ticker.insert_book_ticker(ticker(symbol_id))
    latest = await book_ticker.get_latest_book_ticker_by_symbol(symbol_id, decimals=True)
    assert latest is not None
    assert latest.id == row_id
    assert str(latest.bid_price) == "50000.10"
    assert latest.timestamp == NOW
    as_float = await book_ticker.get_latest_book_ticker_by_symbol(symbol_id)
    assert as_float is not None
    assert as_float.ask_price == 50000.2
    assert isinstance(as_float.bid_qty, float)


async def test_insert_again_returns_the_same_id(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    assert await book_ticker.insert_book_ticker(ticker(symbol_id)) == await book_ticker.insert_book_ticker(
        ticker(symbol_id)
    )


async def test_batch_counts_come_from_the_server_and_duplicates_are_not_stored(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    rows = [ticker(symbol_id, sequence_number=n) for n in range(100)]
    assert await book_ticker.insert_book_ticker_batch(rows) == 100
    assert await book_ticker.insert_book_ticker_batch([*rows, ticker(symbol_id, sequence_number=100)]) == 1
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 101


async def test_two_events_with_one_timestamp_are_two_rows(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    rows = [ticker(symbol_id, sequence_number=None), ticker(symbol_id, sequence_number=None, bid_price=49999)]
    assert await book_ticker.insert_book_ticker_batch(rows) == 2
    assert await book_ticker.insert_book_ticker_batch(rows) == 0


async def test_bad_rows_are_named_and_the_rest_is_stored(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    rows = [ticker(symbol_id, sequence_number=n) for n in range(10)]
    rows[3].bid_price = float("nan")
    rows[5].timestamp = datetime(2026, 1, 1)
    rows[7].symbol_id = 999_999
    with pytest.raises(BatchError) as caught:
        await book_ticker.insert_book_ticker_batch(rows)
    error = caught.value
    assert error.n_stored == 7
    assert [(e.index, e.column) for e in error.errors[:2]] == [(3, "bid_price"), (5, "timestamp")]
    assert error.errors[2].index == 7
    assert "999999" in str(error.errors[2])
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 7


async def test_tiny_prices_and_large_quantities_are_exact(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    await book_ticker.insert_book_ticker_batch([ticker(symbol_id, bid_price=1e-12, bid_qty=1e15)])
    latest = await book_ticker.get_latest_book_ticker_by_symbol(symbol_id, decimals=True)
    assert latest is not None
    assert latest.bid_price == Decimal("1E-12")
    assert latest.bid_qty == Decimal(10) ** 15


async def test_zero_and_null_quantities_stay_what_they_are(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    await book_ticker.insert_book_ticker(ticker(symbol_id, bid_qty=0, ask_qty=None))
    latest = await book_ticker.get_latest_book_ticker_by_symbol(symbol_id)
    assert latest is not None
    assert latest.bid_qty == 0.0
    assert latest.ask_qty is None


async def test_single_insert_refuses_what_a_batch_refuses(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    with pytest.raises(ValidationError, match=r"bid_price: -1 must be > 0"):
        await book_ticker.insert_book_ticker(ticker(symbol_id, bid_price=-1))
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await book_ticker.insert_book_ticker(ticker(999_999))


async def test_history_is_half_open_and_ordered(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    rows = [ticker(symbol_id, timestamp=NOW - timedelta(days=n), sequence_number=n) for n in range(5)]
    assert await book_ticker.insert_book_ticker_batch(rows) == 5
    found = await book_ticker.get_book_ticker_history(symbol_id, NOW - timedelta(days=3), NOW)
    assert [row.sequence_number for row in found] == [3, 2, 1]
    with pytest.raises(ValidationError):
        await book_ticker.get_book_ticker_history(symbol_id, datetime(2026, 1, 1), NOW)


async def test_latest_widens_to_years_ago(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    old = datetime(2021, 4, 22, 12, tzinfo=UTC)
    await book_ticker.insert_book_ticker_batch([ticker(symbol_id, timestamp=old)])
    latest = await book_ticker.get_latest_book_ticker_by_symbol(symbol_id)
    assert latest is not None
    assert latest.timestamp == old


async def test_symbol_info_and_stats(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    assert (await book_ticker.get_book_ticker_stats())["avg_bid_price"] is None
    await book_ticker.insert_book_ticker(ticker(symbol_id))
    info = await book_ticker.get_book_ticker_with_symbol_info(symbol_id)
    assert info is not None
    assert info["display_name"] == "GATEIO_SPOT:BTC/USDT"
    stats = await book_ticker.get_book_ticker_stats()
    assert stats["total_records"] == stats["unique_symbols"] == 1
    assert stats["avg_bid_price"] == 50000.1


async def test_every_other_entity_round_trips(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    exchange_id = await exchanges.ensure_exchange("GATEIO_SPOT")
    a_trade = models.TradeSnapshot(timestamp=NOW, symbol_id=symbol_id, price="1.50", quantity=2, side="buy")
    assert await trade.insert_trade_batch([a_trade, a_trade]) == 2  # no ids: two like trades are two
    assert await trade.insert_trade_batch([a_trade, a_trade]) == 0
    assert await trade.insert_trade(a_trade)
    funding = models.FundingRateSnapshot(timestamp=NOW, symbol_id=symbol_id, funding_rate=-0.0001, funding_time=NOW)
    assert await funding_rate.insert_funding_rate(funding)
    found = await funding_rate.get_latest_funding_rate_by_symbol(symbol_id)
    assert found is not None
    assert (found.funding_rate, found.next_funding_time) == (-0.0001, None)
    a_balance = models.BalanceSnapshot(
        timestamp=NOW, exchange_id=exchange_id, asset_name="USDT.E", available_balance="1.1", locked_balance=2
    )
    assert await balance.insert_balance_batch([a_balance]) == 1
    held = await balance.get_latest_balance_by_exchange(exchange_id, "USDT.E", decimals=True)
    assert held is not None
    assert held.total_balance == Decimal("3.1")
    info = await balance.get_balance_with_exchange_info(exchange_id, "USDT.E")
    assert info is not None
    assert info["display_name"] == "GATEIO_SPOT:USDT.E"
    found_gap = models.ArbitrageOpportunity(
        timestamp=NOW,
        symbol_id=symbol_id,
        buy_exchange_id=exchange_id,
        sell_exchange_id=exchange_id,
        buy_price=1,
        sell_price=2,
        spread_bps=10000,
        detected_at=NOW,
    )
    assert await arbitrage_opportunity.insert_arbitrage_opportunity(found_gap)
    flow = models.OrderFlowMetrics(
        timestamp=NOW, symbol_id=symbol_id, ofi_score=-1.5, microprice=1.0, mid_price=1.0, spread_bps=2.0,
        volume_imbalance=0.0,
    )  # fmt: skip
    await order_flow_metrics.insert_order_flow_metrics(flow)
    back = await order_flow_metrics.get_latest_order_flow_metrics_by_symbol(symbol_id)
    assert back is not None
    assert (back.ofi_score, back.ofi_normalized) == (-1.5, None)


async def test_ensure_symbol_from_many_tasks_registers_once(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("MEXC_SPOT")
    ids = await asyncio.gather(
        *(symbols.ensure_symbol(exchange_id, "人生K线", "USDT", "人生K线/USDT") for _ in range(20))
    )
    assert len(set(ids)) == 1
    found = pgtick.cached_get_symbol("MEXC_SPOT", "人生K线", "USDT")
    assert found is not None
    assert found.exchange_symbol == "人生K线/USDT"


async def test_inactive_symbol_keeps_its_id_and_relisting_makes_a_new_one(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    assert await symbols.deactivate_symbol(symbol_id)
    assert await make_symbol() == symbol_id
    new_id = await symbols.relist_symbol(symbol_id)
    assert new_id != symbol_id
    assert await make_symbol() == new_id
    found = pgtick.cached_get_symbol("GATEIO_SPOT", "BTC", "USDT")
    assert found is not None
    assert found.id == new_id


async def test_symbol_details_are_updated_and_symbols_are_listed(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("OKX_FUTURES")
    symbol_id = await symbols.ensure_symbol(exchange_id, "BTC", "USD", "BTC-USD-SWAP", price_tick=0.1)
    assert await symbols.ensure_symbol(exchange_id, "BTC", "USD", "BTC-USD-SWAP", price_tick="0.01") == symbol_id
    (listed,) = await symbols.list_symbols(exchange_id)
    assert listed.price_tick == Decimal("0.01")


async def test_rows_of_exchanges_and_symbols_cannot_be_deleted(db: DatabaseManager) -> None:
    await make_symbol()
    with pytest.raises(asyncpg.PostgresError, match="deactivate"):
        await db.execute("DELETE FROM symbols")


@pytest.mark.parametrize("name", ["GATEIO", "GATEIO_SWAP", "_SPOT"])
async def test_ensure_exchange_refuses_a_wrong_form(db: DatabaseManager, name: str) -> None:
    with pytest.raises(ValidationError):
        await exchanges.ensure_exchange(name)


async def test_exchanges_are_listed_and_switched(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("CRYPTO_COM_SPOT")
    assert await exchanges.deactivate_exchange(exchange_id)
    assert await exchanges.list_exchanges(active_only=True) == []
    assert await exchanges.activate_exchange(exchange_id)
    (listed,) = await exchanges.list_exchanges()
    assert (listed.exchange_name, listed.market_type) == ("CRYPTO_COM", "SPOT")


async def test_cross_exchange_queries(db: DatabaseManager) -> None:
    cheap = await make_symbol("GATEIO_SPOT")
    dear = await make_symbol("MEXC_SPOT")
    rows = [
        ticker(cheap, bid_price=99, ask_price=100),
        ticker(dear, bid_price=101, ask_price=102, timestamp=NOW - timedelta(seconds=1)),
        ticker(cheap, bid_price=98, ask_price=99, timestamp=NOW - timedelta(seconds=2)),
    ]
    await book_ticker.insert_book_ticker_batch(rows)
    since = NOW - timedelta(hours=1)
    assert [p["bid_price"] for p in await cross_exchange.get_latest_prices(since)] == [99.0, 101.0]
    best = (await cross_exchange.get_cross_exchange_spreads(since))[0]
    assert (best["buy_exchange"], best["sell_exchange"], best["spread_bps"]) == (
        "GATEIO_SPOT",
        "MEXC_SPOT",
        100.0,
    )
    history = await cross_exchange.get_spread_history(cheap, dear, since, NOW + timedelta(seconds=1))
    assert [(h["timestamp"], h["other_timestamp"]) for h in history] == [(NOW, NOW - timedelta(seconds=1))]
    (pair,) = await cross_exchange.get_pair_summary(since)
    assert (pair["snapshot_count"], pair["exchange_count"]) == (3, 2)
    assert await cross_exchange.get_funding_rate_counts(since) == []
    assert await cross_exchange.get_balance_history_by_exchange("GATEIO_SPOT", "USDT", since) == []


async def test_transaction_spans_operations_and_rolls_back(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    with pytest.raises(RuntimeError, match="changed my mind"):  # noqa: PT012  the error comes after the rows
        async with db.transaction():
            await book_ticker.insert_book_ticker_batch([ticker(symbol_id)])
            await book_ticker.insert_book_ticker_batch([ticker(symbol_id), ticker(symbol_id, sequence_number=2)])
            raise RuntimeError("changed my mind")
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 0


async def test_another_process_adds_a_symbol_and_the_cache_follows(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("GATEIO_SPOT")
    other = await asyncpg.connect(**db.config.connect_kwargs())
    try:
        symbol_id = await other.fetchval(
            "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) "
            "VALUES ($1, 'SOL', 'USDT', 'SOL_USDT') RETURNING id",
            exchange_id,
        )
    finally:
        await other.close()
    for _ in range(100):
        if pgtick.cached_get_symbol_by_id(symbol_id) is not None:
            break
        await asyncio.sleep(0.05)
    found = pgtick.cached_get_symbol_by_id(symbol_id)
    assert found is not None
    assert found.exchange == "GATEIO_SPOT"


async def test_a_miss_falls_through_to_the_database(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    pgtick.symbol_cache().load([])
    assert pgtick.cached_get_symbol_by_id(symbol_id) is None
    found = await pgtick.get_cached_symbol_by_id(symbol_id)
    assert found is not None
    assert found.symbol_base == "BTC"
    assert await pgtick.get_cached_symbol_by_id(999_999) is None
