"""The ccxt adapter with the real ccxt, offline: the venues' raw messages go through its parsers into PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from ccxt_venues import TIME_MS, answer, binance, gate, okx
from rows import quarantined

from pgtick.adapters.ccxt import CcxtStore
from pgtick.adapters.ccxt_markets import exchange_enum, market_details, to_instant
from pgtick.connection import DatabaseManager
from pgtick.errors import ValidationError
from pgtick.operations.exchanges import list_exchanges
from pgtick.operations.symbols import list_symbols, resolve_symbol

ccxt = pytest.importorskip("ccxt", reason="the extra ccxt is not installed")
pro = pytest.importorskip("ccxt.pro", reason="this ccxt has no ccxt.pro")

INSTANT = datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)
RECEIPT_MS = TIME_MS + 1000
SPOT, SWAP, DATED = "BTC/USDT", "BTC/USDT:USDT", "BTC/USDT:USDT-271231"
BOOK_TICKER = {"symbol": "BTCUSDT", "bidPrice": "97000.10", "bidQty": "1.50", "askPrice": "97000.20", "askQty": "0.00"}
TRADE = {"a": 26129, "p": "97000.10", "q": "0.00470", "f": 1, "l": 1, "T": TIME_MS, "m": True, "M": True}


async def _twice(deliver: Callable[[CcxtStore], Awaitable[None]], table: str, n_rows: int) -> CcxtStore:
    """Deliver to a store, and the same again to another: its rows are duplicates. Return the first."""
    stores = []
    for expected in ((n_rows, 0), (0, n_rows)):
        async with CcxtStore() as store:
            await deliver(store)
        total = store.writer.counts[table]
        assert (total.n_stored, total.n_duplicates, total.n_quarantined) == (*expected, 0)
        stores.append(store)
    return stores[0]


async def _rows(db: DatabaseManager, columns: str, table: str) -> list[tuple[Any, ...]]:
    records = await db.fetch(
        f"SELECT e.enum_value, s.exchange_symbol, {columns} FROM {table} t JOIN symbols s ON s.id = t.symbol_id "
        "JOIN exchanges e ON e.id = s.exchange_id ORDER BY e.enum_value, t.id"
    )
    return [tuple(record) for record in records]


BOOK_COLUMNS = "timestamp, bid_price::text, bid_qty::text, ask_price::text, ask_qty::text, update_type"


@pytest.mark.parametrize(
    ("number", "texts"),
    [(float, ("97000.1", "1.5", "97000.2", "0")), (str, ("97000.10", "1.50", "97000.20", "0.00"))],
)
async def test_tickers_keep_their_numbers_and_a_zero_size(
    db: DatabaseManager, number: type, texts: tuple[str, ...]
) -> None:
    exchange = answer(binance(ccxt, number), ticker__bookTicker=[BOOK_TICKER])

    async def deliver(store: CcxtStore) -> None:
        for _ in range(2):  # the second leaves the top as it is
            await store.tickers(exchange, exchange.fetch_bids_asks(), TIME_MS)
        assert (store.n_events["ticker"], store.n_unchanged) == (2, 1)

    await _twice(deliver, "book_ticker_snapshots", 1)
    rows = await _rows(db, f"{BOOK_COLUMNS}, sequence_number < 0", "book_ticker_snapshots")
    assert rows == [("BINANCE_SPOT", "BTCUSDT", INSTANT, *texts, "ticker", True)]


async def test_ticker_without_sizes_has_none_and_one_without_a_side_is_no_row(db: DatabaseManager) -> None:
    raw = {"contract": "BTC_USDT", "last": "97000.1", "lowest_ask": "97000.2", "highest_bid": "97000.1"}
    exchange = answer(gate(ccxt), **{"{settle}__tickers": [raw]})
    async with CcxtStore() as store:
        await store.ticker(exchange, exchange.fetch_ticker(SWAP), TIME_MS)
        empty = exchange.parse_ticker({**raw, "highest_bid": None})
        for bid in (None, 0.0, "0.000"):  # what ccxt makes of no bid, and what venues write
            await store.ticker(exchange, {**empty, "bid": bid}, TIME_MS)
        assert store.n_one_sided == 3
    rows = await _rows(db, BOOK_COLUMNS, "book_ticker_snapshots")
    assert rows == [("GATEIO_FUTURES", "BTC_USDT", INSTANT, "97000.1", None, "97000.2", None, "ticker")]


async def test_order_book_becomes_a_row_when_its_top_changes_and_keeps_the_nonce(db: DatabaseManager) -> None:
    exchange = binance(ccxt)

    def book(update_id: int, bid: str, depth: str) -> Any:
        raw = {"lastUpdateId": update_id, "T": TIME_MS, "E": TIME_MS, "asks": [["97000.2", "2"]]}
        return answer(exchange, depth={**raw, "bids": [[bid, "1.5"], ["0.00000001", depth]]}).fetch_order_book(SWAP)

    async def deliver(store: CcxtStore) -> None:
        for update_id, bid, depth in ((7, "97000.1", "1"), (8, "97000.1", "2"), (9, "0.00000012", "2")):
            await store.order_book(exchange, book(update_id, bid, depth), RECEIPT_MS)
        await store.order_book(exchange, book(9, "97000.1", "1"), RECEIPT_MS)  # another top under the same number
        await store.order_book(exchange, {**book(10, "1", "1"), "asks": []}, RECEIPT_MS)
        assert (store.n_unchanged, store.n_one_sided) == (1, 1)

    await _twice(deliver, "book_ticker_snapshots", 3)
    rows = await _rows(db, f"{BOOK_COLUMNS}, greatest(sequence_number, 0)", "book_ticker_snapshots")
    name = ("BINANCE_FUTURES", "BTCUSDT", INSTANT)
    rest = ("1.5", "97000.2", "2", "l2_book")
    expected = [(*name, "97000.1", *rest, 7), (*name, "0.00000012", *rest, 9), (*name, "97000.1", *rest, 0)]
    assert sorted(rows) == sorted(expected)


async def test_watched_book_is_stored_as_it_is_at_the_call(db: DatabaseManager) -> None:
    exchange = okx(pro)
    client = exchange.client("wss://ws.okx.com:8443/ws/v5/public")

    def message(action: str, bid: list[str], ms: int, sequence: int) -> dict[str, Any]:
        data = {"asks": [["97000.2", "0.5", "0", "1"]], "bids": [bid], "ts": str(ms), "seqId": sequence}
        return {
            "arg": {"channel": "books", "instId": "BTC-USD-SWAP"},
            "action": action,
            "data": [{**data, "prevSeqId": sequence - 1 if action == "update" else -1}],
        }

    try:
        async with CcxtStore() as store:
            for action, bid, ms in (
                ("snapshot", ["97000.1", "3", "0", "1"], TIME_MS),
                ("update", ["97000.1", "4", "0", "2"], TIME_MS),
                ("update", ["96000", "1", "0", "1"], TIME_MS + 1),
            ):
                exchange.handle_message(client, message(action, bid, ms, 100 + store.n_events["l2_book"]))
                await store.order_book(exchange, exchange.orderbooks["BTC/USD:BTC"], RECEIPT_MS)
            assert store.n_unchanged == 1
    finally:
        await exchange.close()
    rows = await _rows(db, "timestamp, bid_price::text, bid_qty::text, sequence_number", "book_ticker_snapshots")
    name = ("OKX_FUTURES", "BTC-USD-SWAP", INSTANT)
    assert sorted(rows) == [(*name, "97000.1", "3", 100), (*name, "97000.1", "4", 101)]


@pytest.mark.parametrize(("number", "price"), [(float, "97000.1"), (str, "97000.10")])
async def test_trades_keep_the_venue_s_id(db: DatabaseManager, number: type, price: str) -> None:
    exchange = answer(binance(ccxt, number), aggTrades=[TRADE, {**TRADE, "a": 26130, "m": False, "q": "1234567.89"}])

    async def deliver(store: CcxtStore) -> None:
        await store.trades(exchange, exchange.fetch_trades(SPOT), RECEIPT_MS)

    await _twice(deliver, "trade_snapshots", 2)
    rows = await _rows(db, "timestamp, price::text, quantity::text, side, trade_id", "trade_snapshots")
    name = ("BINANCE_SPOT", "BTCUSDT", INSTANT, price)
    quantity = "0.0047" if number is float else "0.00470"
    assert sorted(rows) == [(*name, quantity, "sell", "26129"), (*name, "1234567.89", "buy", "26130")]


async def test_trades_without_an_id_are_kept_apart_and_an_overlap_adds_only_the_new(db: DatabaseManager) -> None:
    exchange = gate(ccxt)
    raw = {"size": -5, "create_time_ms": 1_700_000_000.123, "price": "97000.1", "contract": "BTC_USDT"}
    like, other = exchange.parse_trade(raw), exchange.parse_trade({**raw, "size": 5})
    assert like["id"] is None
    async with CcxtStore() as store:
        for trades in ([like, like], [like, like, other]):
            await store.trades(exchange, trades, RECEIPT_MS)
    total = store.writer.counts["trade_snapshots"]
    assert (total.n_stored, total.n_duplicates) == (3, 2)
    rows = await _rows(db, "quantity::text, side", "trade_snapshots")
    name = ("GATEIO_FUTURES", "BTC_USDT", "5")
    assert sorted(rows) == [(*name, "buy"), (*name, "sell"), (*name, "sell")]


async def test_funding_rates_keep_their_times_and_dated_futures_have_none(db: DatabaseManager) -> None:
    raw = {"symbol": "BTCUSDT", "lastFundingRate": "-0.00011400", "nextFundingTime": TIME_MS + 3_600_000}
    dated = {"symbol": "BTCUSDT_271231", "lastFundingRate": "", "nextFundingTime": 0, "time": TIME_MS}
    venue = answer(binance(ccxt), premiumIndex=[{**raw, "time": TIME_MS}, dated])
    swap = okx(ccxt, str)
    untimed = {"instId": "BTC-USD-SWAP", "fundingRate": "0.0000", "fundingTime": str(TIME_MS + 1)}
    rate = swap.parse_funding_rate({**untimed, "nextFundingTime": str(TIME_MS + 2)})

    async def deliver(store: CcxtStore) -> None:
        await store.funding_rates(venue, venue.fetch_funding_rates(), RECEIPT_MS)
        assert store.n_rateless == 1
        await store.funding_rate(swap, rate, RECEIPT_MS)
        history = {"symbol": SWAP, "fundingRate": 1e-8, "timestamp": TIME_MS - 1}
        await store.funding_rates(venue, [history], RECEIPT_MS)

    await _twice(deliver, "funding_rate_snapshots", 3)
    columns = "timestamp, funding_rate::text, funding_time, next_funding_time"
    one_ms, second = timedelta(milliseconds=1), timedelta(seconds=1)
    assert set(await _rows(db, columns, "funding_rate_snapshots")) == {
        ("BINANCE_FUTURES", "BTCUSDT", INSTANT, "-0.000114", INSTANT + timedelta(hours=1), None),
        ("BINANCE_FUTURES", "BTCUSDT", INSTANT - one_ms, "0.00000001", INSTANT - one_ms, None),
        ("OKX_FUTURES", "BTC-USD-SWAP", INSTANT + second, "0.0000", INSTANT + one_ms, INSTANT + 2 * one_ms),
    }


@pytest.mark.parametrize(("number", "free"), [(float, "0.1"), (str, "0.10000000")])
async def test_balance_is_a_row_for_each_asset_of_which_it_says_anything(
    db: DatabaseManager, number: type, free: str
) -> None:
    assets = [("BTC", free, "0.00000001"), ("USDT", "0", "0"), ("ETH", None, None)]
    raw = [{"asset": asset, "free": available, "locked": locked} for asset, available, locked in assets]
    venue = answer(binance(ccxt, number), account={"updateTime": TIME_MS, "balances": raw})

    async def deliver(store: CcxtStore) -> None:
        await store.balance(venue, venue.fetch_balance(), RECEIPT_MS)

    await _twice(deliver, "balance_snapshots", 2)
    rows = await db.fetch(
        "SELECT e.enum_value, timestamp, asset_name, available_balance::text, locked_balance::text, "
        "borrowing_balance, frozen_balance FROM balance_snapshots b JOIN exchanges e ON e.id = b.exchange_id ORDER BY 3"
    )
    assert [tuple(row) for row in rows] == [
        ("BINANCE_SPOT", INSTANT, "BTC", free, "0.00000001", None, None),
        ("BINANCE_SPOT", INSTANT, "USDT", "0", "0", None, None),
    ]


async def test_balance_without_a_time_takes_the_receipt_s_and_the_market_named(db: DatabaseManager) -> None:
    exchange = okx(ccxt)
    details = [{"ccy": "BTC", "eq": "5", "availEq": "2"}, {"ccy": "ETH", "eq": "5"}]
    balance = exchange.parse_balance_by_type("trading", {"data": [{"details": details}]})
    async with CcxtStore() as store:
        await store.balance(exchange, balance, TIME_MS, market_type="swap")
        with pytest.raises(ValidationError, match="market_type"):
            await store.balance(exchange, balance, TIME_MS, market_type="moon")
    rows = await db.fetch("SELECT timestamp, asset_name, available_balance, locked_balance FROM balance_snapshots")
    assert [tuple(row) for row in rows] == [(INSTANT, "BTC", 2, 3)]
    assert [exchange.enum_value for exchange in await list_exchanges()] == ["OKX_FUTURES"]
    # A total alone does not say what is available.
    assert await quarantined(db) == [("balance_snapshots", "available_balance", "must not be NULL")]


async def test_symbols_are_registered_with_all_that_the_market_says(db: DatabaseManager) -> None:
    venues = [binance(ccxt), gate(ccxt, str), okx(ccxt)]
    async with CcxtStore() as store:
        for exchange in venues:
            for name in exchange.markets:
                await store.ticker(exchange, {"symbol": name, "bid": 1.0, "ask": 2.0}, TIME_MS)
    names = {exchange.id: exchange.enum_value for exchange in await list_exchanges()}
    expiry = datetime(2027, 12, 31, 8, tzinfo=UTC)
    numbers = ("contract_size", "price_tick", "quantity_step", "min_quantity", "min_notional")
    rows = {
        (
            *(names[s.exchange_id], s.exchange_symbol, s.symbol_base, s.symbol_quote, s.settle, s.expiry),
            *(None if getattr(s, name) is None else str(getattr(s, name)) for name in numbers),
        )
        for s in await list_symbols()
    }
    contract = ("BTC", "USDT", "USDT")
    rules = ("0.1", "0.001", "0.001", "100.0")
    assert rows == {
        ("BINANCE_SPOT", "BTCUSDT", "BTC", "USDT", None, None, None, "0.01", "0.00001", "0.00001", "5.0"),
        ("BINANCE_FUTURES", "BTCUSDT", *contract, None, "1.0", *rules),
        ("BINANCE_FUTURES", "BTCUSDT_271231", *contract, expiry, "1.0", *rules),
        ("GATEIO_SPOT", "人生K线_USDT", "人生K线", "USDT", None, None, None, "1E-12", "0.001", "0.001", "3"),
        ("GATEIO_FUTURES", "BTC_USDT", *contract, None, "0.0001", "0.1", "1", "1", None),
        ("OKX_FUTURES", "BTC-USD-SWAP", "BTC", "USD", "BTC", None, "100.0", "0.1", "1.0", "1.0", None),
        ("OKX_OPTIONS", "BTC-USD-271231-100000-C", "BTC", "USD", "BTC", expiry, "1.0", "0.0005", "1.0", "1.0", None),
    }


async def test_symbol_known_before_keeps_its_id_and_gets_its_details(db: DatabaseManager) -> None:
    before = await resolve_symbol("BINANCE_SPOT", "BTC", "USDT", "BTCUSDT", price_tick="0.1")
    exchange = binance(ccxt)
    async with CcxtStore() as store:
        await store.ticker(exchange, {"symbol": SPOT, "bid": 1.0, "ask": 2.0}, TIME_MS)
    (symbol,) = await list_symbols()
    assert (symbol.id, symbol.price_tick, symbol.min_notional) == (before.id, Decimal("0.01"), 5)


async def test_what_cannot_be_stored_is_named_and_the_rest_is_stored(
    db: DatabaseManager, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = binance(ccxt)
    exchange.markets[SWAP]["limits"]["amount"]["min"] = -1.0
    tickers = [
        {"symbol": "MOON/USDT", "bid": 1.0, "ask": 2.0},
        {"symbol": SWAP, "bid": 1.0, "ask": 2.0},
        {"symbol": DATED, "bid": float("nan"), "ask": 2.0},
        {"symbol": SPOT, "bid": 1.0, "ask": 2.0, "timestamp": TIME_MS * 1000},  # µs
        {"symbol": SPOT, "bid": 1.0, "ask": 3.0},
    ]
    async with CcxtStore() as store:
        for _ in range(2):
            await store.tickers(exchange, {str(n): ticker for n, ticker in enumerate(tickers)}, TIME_MS)
    assert store.n_unlisted == {("binance", "MOON/USDT"): 2, ("binance", SWAP): 2}
    logged = [record.getMessage() for record in caplog.records if record.name == "pgtick.adapters.ccxt"]
    assert [message.split(": not stored: ")[0] for message in logged] == ["binance MOON/USDT", f"binance {SWAP}"]
    assert "symbols" in logged[1]
    assert "min_quantity" in logged[1]
    refused = await quarantined(db)
    assert ("book_ticker_snapshots", "bid_price", "must be finite") in refused
    assert {column for _, column, _ in refused} == {"bid_price", "timestamp"}
    assert await _rows(db, "ask_price", "book_ticker_snapshots") == [("BINANCE_SPOT", "BTCUSDT", 3)]


async def test_precise_is_its_text(db: DatabaseManager) -> None:
    number = ccxt.Precise if hasattr(ccxt, "Precise") else sys.modules["ccxt.base.precise"].Precise
    exchange = binance(ccxt)
    async with CcxtStore() as store:
        ticker = {"symbol": SPOT, "bid": number("0.1234567890123456789"), "ask": number("97000.25")}
        await store.ticker(exchange, ticker, TIME_MS)
    assert await _rows(db, "bid_price::text, ask_price::text", "book_ticker_snapshots") == [
        ("BINANCE_SPOT", "BTCUSDT", "0.1234567890123456789", "97000.25")
    ]


@pytest.mark.parametrize(
    ("mode", "price", "amount", "expected"),
    [
        (ccxt.TICK_SIZE, 1e-8, "0", (Decimal("1E-8"), None)),
        (ccxt.DECIMAL_PLACES, 2, "0", (Decimal("0.01"), Decimal(1))),
        (ccxt.DECIMAL_PLACES, -2, 3.0, (Decimal(100), Decimal("0.001"))),
        (ccxt.SIGNIFICANT_DIGITS, 5, 8, (None, None)),
    ],
)
def test_market_details_follow_the_precision_mode(mode: int, price: Any, amount: Any, expected: Any) -> None:
    details = market_details({"precision": {"price": price, "amount": amount}}, mode)
    assert (details["price_tick"], details["quantity_step"]) == expected


@pytest.mark.parametrize(
    ("exchange_id", "kind", "expected"),
    [
        ("binance", "spot", "BINANCE_SPOT"),
        ("binanceusdm", "swap", "BINANCE_FUTURES"),
        ("gate", "future", "GATEIO_FUTURES"),
        ("gateio", "swap", "GATEIO_FUTURES"),
        ("okx", "option", "OKX_OPTIONS"),
    ],
)
def test_exchange_enum_of_an_id_and_a_market_type(exchange_id: str, kind: str, expected: str) -> None:
    assert exchange_enum(exchange_id, kind) == expected


def test_to_instant_is_exact_to_the_millisecond() -> None:
    assert to_instant(TIME_MS) == INSTANT


def test_import_of_the_adapter_does_not_import_ccxt() -> None:
    code = "import sys, pgtick.adapters.ccxt; print('ccxt' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "False\n"
