"""The cryptofeed adapter with messages of our own making: the same path as the recordings, always there."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rows import quarantined

from pgtick.adapters.cryptofeed import CryptofeedStore, exchange_enum, to_instant
from pgtick.adapters.recordings import replay_recordings
from pgtick.connection import DatabaseManager
from pgtick.errors import ConfigError, PgtickError, ValidationError
from pgtick.operations.cross_exchange import get_latest_prices
from pgtick.operations.symbols import list_symbols

cryptofeed = pytest.importorskip("cryptofeed", reason="the extra cryptofeed is not installed")
from cryptofeed.types import Funding, L1Book, OrderBook, Ticker, Trade  # noqa: E402  after the check

# cryptofeed leaves its own sessions and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

TIME_S = 1_700_000_000.123
INSTANT = datetime(2023, 11, 14, 22, 13, 20, 123_000, tzinfo=UTC)


def _gateio_futures(folder: Path, messages: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Write a recording of GATEIO_FUTURES in cryptofeed's own format."""
    contracts = [
        {"name": name, "in_delisting": False, "order_price_round": tick}
        for name, tick in (("BTC_USDT", "0.1"), ("人生K线_USDT", "0.000000001"))
    ]
    subscription = {channel: ["BTC-USDT-PERP", "人生K线-USDT-PERP"] for channel in ("ticker", "trades", "funding")}
    instruments = folder / "GATEIO_FUTURES.0"
    instruments.write_text(
        f"https://api.gateio.ws/api/v4/futures/usdt/contracts -> {TIME_S}: {json.dumps(contracts)}\n"
        f"configuration: {json.dumps(subscription)}\n"
    )
    stream = folder / "GATEIO_FUTURES.ws.1.0"
    stream.write_text("".join(f"{TIME_S + 1}: {json.dumps(message)}\n" for message in messages))
    return {"GATEIO_FUTURES": [str(instruments), str(stream)]}


def _book_ticker(update_id: int, bid: str, ask: str, symbol: str = "BTC_USDT") -> dict[str, Any]:
    return {
        "time": 1_700_000_000,
        "channel": "futures.book_ticker",
        "event": "update",
        "error": None,
        "result": {"t": 1_700_000_000_123, "u": update_id, "s": symbol, "b": bid, "B": 1, "a": ask, "A": 2},
    }


def _trades(*sizes: int) -> dict[str, Any]:
    return {
        "time": 1_700_000_000,
        "channel": "futures.trades",
        "event": "update",
        "error": None,
        "result": [
            {
                "size": size,
                "id": 27_753_479 + n,
                "create_time": 1_700_000_000,
                "create_time_ms": 1_700_000_000_123,
                "price": "97000.10",
                "contract": "BTC_USDT",
            }
            for n, size in enumerate(sizes)
        ],
    }


TICKERS = {
    "time": 1_700_000_000,
    "time_ms": 1_700_000_000_123,
    "channel": "futures.tickers",
    "event": "update",
    "error": None,
    "result": [
        {"contract": "BTC_USDT", "funding_rate": "-0.000114", "funding_rate_indicative": "0", "mark_price": "97000"}
    ],
}


async def test_recording_of_our_own_goes_through_the_parsers_and_is_stored_exactly(
    db: DatabaseManager, tmp_path: Path
) -> None:
    messages = [
        _book_ticker(1, "97000.10", "97000.20"),
        _book_ticker(2, "97000.10", "97000.30"),  # another event of the same millisecond
        _book_ticker(2, "97000.10", "97000.30"),  # the same event, delivered again
        _book_ticker(3, "0.000000000001", "0.000000000002", "人生K线_USDT"),
        _trades(-108, 5),
        TICKERS,
    ]
    store = await replay_recordings(_gateio_futures(tmp_path, messages))
    assert dict(store.n_events) == {"ticker": 4, "trades": 2, "funding": 1}
    tickers = store.writer.counts["book_ticker_snapshots"]
    assert (tickers.n_stored, tickers.n_duplicates, tickers.n_quarantined) == (3, 1, 0)
    rows = await db.fetch(
        "SELECT e.enum_value, s.exchange_symbol, b.timestamp, b.bid_price::text, b.ask_price::text, b.bid_qty, "
        "b.sequence_number FROM book_ticker_snapshots b JOIN symbols s ON s.id = b.symbol_id "
        "JOIN exchanges e ON e.id = s.exchange_id ORDER BY sequence_number"
    )
    assert [tuple(row) for row in rows] == [
        ("GATEIO_FUTURES", "BTC_USDT", INSTANT, "97000.10", "97000.20", None, 1),
        ("GATEIO_FUTURES", "BTC_USDT", INSTANT, "97000.10", "97000.30", None, 2),
        ("GATEIO_FUTURES", "人生K线_USDT", INSTANT, "0.000000000001", "0.000000000002", None, 3),
    ]
    trades = await db.fetch("SELECT price::text, quantity::text, side, trade_id FROM trade_snapshots ORDER BY trade_id")
    assert [tuple(row) for row in trades] == [
        ("97000.10", "108", "sell", "27753479"),
        ("97000.10", "5", "buy", "27753480"),
    ]
    funding = await db.fetchrow("SELECT timestamp, funding_rate::text, next_funding_time FROM funding_rate_snapshots")
    assert funding is not None
    assert tuple(funding) == (INSTANT, "-0.000114", None)
    ticks = {symbol.exchange_symbol: symbol.price_tick for symbol in await list_symbols()}
    assert ticks == {"BTC_USDT": Decimal("0.1"), "人生K线_USDT": Decimal("0.000000001")}

    again = await replay_recordings(_gateio_futures(tmp_path, messages))
    assert {name: (t.n_stored, t.n_duplicates) for name, t in again.writer.counts.items()} == {
        "book_ticker_snapshots": (0, 4),
        "trade_snapshots": (0, 2),
        "funding_rate_snapshots": (0, 1),
    }


async def test_live_feed_takes_the_callbacks(db: DatabaseManager, tmp_path: Path) -> None:
    from cryptofeed import FeedHandler
    from cryptofeed.defines import TICKER, TRADES
    from cryptofeed.exchanges import GateioFutures
    from cryptofeed.symbols import Symbols

    known = Symbols.data.pop("GATEIO_FUTURES", None)
    Symbols.set("GATEIO_FUTURES", {"BTC-USDT-PERP": "BTC_USDT"}, {"tick_size": {}, "instrument_type": {}})
    try:
        async with CryptofeedStore() as store:
            feed = GateioFutures(
                symbols=["BTC-USDT-PERP"], channels=[TICKER, TRADES], callbacks=store.callbacks(TICKER, TRADES)
            )
            FeedHandler(config={"log": {"disabled": True}}).add_feed(feed)
            await feed.message_handler(json.dumps(_book_ticker(7, "1", "2")), None, TIME_S)
            await feed.message_handler(json.dumps(_trades(3)), None, TIME_S)
    finally:
        Symbols.data.pop("GATEIO_FUTURES")
        if known is not None:
            Symbols.data["GATEIO_FUTURES"] = known
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots WHERE sequence_number = 7") == 1
    assert await db.fetchval("SELECT count(*) FROM trade_snapshots WHERE quantity = 3") == 1


async def test_l1_book_keeps_its_sizes_and_zero_stays_zero(db: DatabaseManager) -> None:
    async with CryptofeedStore() as store:
        book = L1Book("DERIBIT", "BTC-USD-PERP", *map(Decimal, ("97000.5", "0", "97001", "12.50")), TIME_S)
        await store.l1_book(book, TIME_S + 1)
    row = await db.fetchrow(
        "SELECT timestamp, bid_price::text, bid_qty::text, ask_price::text, ask_qty::text, update_type "
        "FROM book_ticker_snapshots"
    )
    assert row is not None
    assert tuple(row) == (INSTANT, "97000.5", "0", "97001", "12.50", "l1_book")


async def test_l2_book_becomes_a_row_when_its_top_changes(db: DatabaseManager) -> None:
    book = OrderBook("BINANCE", "BTC-USDT", max_depth=0)
    book.timestamp = TIME_S
    book.book.bids = {Decimal("97000.1"): Decimal("1.5"), Decimal("96999"): Decimal("9")}
    async with CryptofeedStore() as store:
        await store.l2_book(book, TIME_S)
        assert store.n_one_sided == 1
        book.book.asks = {Decimal("97000.2"): Decimal("2")}
        await store.l2_book(book, TIME_S)
        book.book.bids[Decimal("96999")] = Decimal("8")  # below the top
        await store.l2_book(book, TIME_S)
        assert store.n_unchanged == 1
        book.book.bids[Decimal("97000.1")] = Decimal("1.4")  # the same instant, another top
        await store.l2_book(book, TIME_S)
    rows = await db.fetch(
        "SELECT bid_price::text, bid_qty::text, ask_price::text, ask_qty::text, sequence_number < 0 "
        "FROM book_ticker_snapshots ORDER BY bid_qty"
    )
    assert [tuple(row) for row in rows] == [
        ("97000.1", "1.4", "97000.2", "2", True),
        ("97000.1", "1.5", "97000.2", "2", True),
    ]


SIZES = [{"bid": Decimal("1"), "at": INSTANT, "bidSize": size} for size in (15, 16)]


@pytest.mark.parametrize(
    ("channel", "first", "second"),
    [
        ("ticker", *SIZES),
        ("ticker", [340, {"b": ["1", 3, "2.5"]}, "ticker"], [340, {"b": ["1", 3, "2.6"]}, "ticker"]),
        ("ticker", "message 1", "message 2"),
        ("l1_book", *SIZES),
    ],
)
async def test_like_events_of_one_instant_are_as_many_rows_as_messages(
    db: DatabaseManager, channel: str, first: Any, second: Any
) -> None:
    def event(raw: Any, ask: int = 2) -> Any:
        if channel == "ticker":
            return Ticker("BITMEX", "BTC-USD-PERP", Decimal(1), Decimal(ask), TIME_S, raw=raw)
        return L1Book("BITMEX", "BTC-USD-PERP", *map(Decimal, (1, 5, ask, 5)), TIME_S, raw=raw)

    # first twice, second, and a message that bears two quotes
    events = [event(first), event(copy.deepcopy(first)), event(second), event(second, ask=3)]
    for expected in ((3, 1), (0, 4)):
        async with CryptofeedStore() as store:
            for each in events:
                await store.callbacks()[channel](each, TIME_S)
        total = store.writer.counts["book_ticker_snapshots"]
        assert (total.n_stored, total.n_duplicates, total.n_quarantined) == (*expected, 0)
    assert await db.fetchval("SELECT max(sequence_number) < 0 FROM book_ticker_snapshots")


async def test_like_tickers_without_a_message_are_one(db: DatabaseManager) -> None:
    async with CryptofeedStore() as store:
        for ask in (2, 2, 3):
            await store.ticker(Ticker("KRAKEN", "BTC-USD", Decimal(1), Decimal(ask), TIME_S), TIME_S)
    total = store.writer.counts["book_ticker_snapshots"]
    assert (total.n_stored, total.n_duplicates) == (2, 1)


async def test_l2_top_that_comes_back_within_one_instant_is_three_rows(db: DatabaseManager) -> None:
    for expected in ((3, 0), (0, 3)):
        book = OrderBook("BITMEX", "BTC-USD-PERP", max_depth=0)
        book.timestamp = TIME_S
        book.book.asks = {Decimal(3): Decimal(1)}
        async with CryptofeedStore() as store:
            for number, bid_size in enumerate(("1.5", "1.4", "1.5")):
                book.book.bids = {Decimal(2): Decimal(bid_size)}
                book.raw = {"number": number, "data": [["2", bid_size]]}
                await store.l2_book(book, TIME_S)
        total = store.writer.counts["book_ticker_snapshots"]
        assert (total.n_stored, total.n_duplicates) == expected


async def test_l2_book_of_a_recording_without_a_time_is_counted_and_left_out(db: DatabaseManager) -> None:
    book = OrderBook("BINANCE", "BTC-USDT", max_depth=0)
    book.book.bids, book.book.asks = {Decimal(1): Decimal(1)}, {Decimal(2): Decimal(1)}
    async with CryptofeedStore(recorded=True) as store:
        await store.l2_book(book, TIME_S)  # a float: the playing machine's clock
        assert store.n_untimed == 1
        await store.l2_book(book, str(TIME_S))  # type: ignore[arg-type]  # playback hands on text
    assert await db.fetchval("SELECT array_agg(timestamp) FROM book_ticker_snapshots") == [INSTANT]


async def test_trades_without_an_id_are_kept_apart_and_a_second_delivery_is_not(db: DatabaseManager) -> None:
    def trade(price: str) -> Trade:
        return Trade("BITFINEX", "BTC-USD", "buy", Decimal("0.5"), Decimal(price), TIME_S)

    for expected in ((3, 0), (0, 3)):
        async with CryptofeedStore() as store:
            for price in ("97000", "97000", "97001"):  # two alike in one instant are two
                await store.trade(trade(price), TIME_S)
        total = store.writer.counts["trade_snapshots"]
        assert (total.n_stored, total.n_duplicates) == expected
    assert await db.fetchval("SELECT count(DISTINCT trade_id) FROM trade_snapshots") == 3


async def test_funding_keeps_the_next_time(db: DatabaseManager) -> None:
    async with CryptofeedStore() as store:
        event = Funding("BINANCE_FUTURES", "BTC-USDT-PERP", None, Decimal("0.00010000"), TIME_S + 3600, TIME_S)
        await store.funding(event, TIME_S)
    row = await db.fetchrow("SELECT funding_rate::text, next_funding_time - timestamp FROM funding_rate_snapshots")
    assert row is not None
    assert row[0] == "0.00010000"
    assert row[1].total_seconds() == 3600


async def test_ticker_without_a_time_takes_the_receipt_s(db: DatabaseManager) -> None:
    async with CryptofeedStore() as store:
        await store.ticker(Ticker("KRAKEN", "BTC-USD", Decimal(1), Decimal(2), None), TIME_S)
    assert await db.fetchval("SELECT timestamp FROM book_ticker_snapshots") == INSTANT


async def test_bad_price_is_refused_by_name_and_the_rest_is_stored(db: DatabaseManager) -> None:
    async with CryptofeedStore() as store:
        await store.ticker(Ticker("KRAKEN", "BTC-USD", Decimal("NaN"), Decimal(2), TIME_S), TIME_S)
        await store.ticker(Ticker("KRAKEN", "BTC-USD", Decimal(1), Decimal(2), TIME_S), TIME_S)
    total = store.writer.counts["book_ticker_snapshots"]
    assert total.n_stored == 1
    assert await quarantined(db) == [("book_ticker_snapshots", "bid_price", "must be finite")]


async def test_symbols_are_registered_with_market_and_expiry(db: DatabaseManager) -> None:
    names = [("BINANCE", "ETH-USDT"), ("OKX", "BTC-USD-22K27"), ("DERIBIT", "BTC-USD-30000-23M30-call")]
    async with CryptofeedStore() as store:
        for feed_id, name in names:
            await store.ticker(Ticker(feed_id, name, Decimal(1), Decimal(2), TIME_S), TIME_S)
    rows = await db.fetch(
        "SELECT e.enum_value, s.symbol_base, s.symbol_quote, s.expiry FROM symbols s "
        "JOIN exchanges e ON e.id = s.exchange_id ORDER BY s.id"
    )
    assert [tuple(row) for row in rows] == [
        ("BINANCE_SPOT", "ETH", "USDT", None),
        ("OKX_FUTURES", "BTC", "USD", datetime(2022, 5, 27, tzinfo=UTC)),
        ("DERIBIT_OPTIONS", "BTC", "USD", datetime(2023, 6, 30, tzinfo=UTC)),
    ]
    assert len(await get_latest_prices(datetime(2020, 1, 1, tzinfo=UTC))) == 3


@pytest.mark.parametrize(
    ("feed_id", "kind", "expected"),
    [
        ("GATEIO", "spot", "GATEIO_SPOT"),
        ("GATEIO_FUTURES", "perpetual", "GATEIO_FUTURES"),
        ("OKX", "futures", "OKX_FUTURES"),
        ("BINANCE_DELIVERY", "perpetual", "BINANCE_DELIVERY_FUTURES"),
        ("DERIBIT", "option", "DERIBIT_OPTIONS"),
        ("DERIBIT", "call", "DERIBIT_OPTIONS"),
        ("DERIBIT", "put", "DERIBIT_OPTIONS"),
        ("DERIBIT", "option_combo", "DERIBIT_OPTIONS"),
        ("DERIBIT", "future", "DERIBIT_FUTURES"),
        ("DERIBIT", "future_combo", "DERIBIT_FUTURES"),
        ("DERIBIT", "spread", "DERIBIT_FUTURES"),
        ("DERIBIT", "currency", "DERIBIT_SPOT"),
        ("BITFLYER", "fx", "BITFLYER_SPOT"),
    ],
)
def test_exchange_enum_of_a_feed_and_instrument(feed_id: str, kind: str, expected: str) -> None:
    assert exchange_enum(feed_id, kind) == expected


async def test_instrument_type_is_the_feed_s_word_and_one_without_a_market_is_a_named_error(
    db: DatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptofeed.symbols import Symbols

    names = {"BTC-JPY-FX": "FX_BTC_JPY", "BTC": "BTC", "BTC-USD": "BTC_WARRANT"}
    kinds = {"BTC-JPY-FX": "fx", "BTC": "currency", "BTC-USD": "warrant"}
    known = {"BITFLYER": {"normalized": names, "info": {"instrument_type": kinds}}}
    monkeypatch.setattr(Symbols, "data", known)
    async with CryptofeedStore() as store:
        for name in ("BTC-JPY-FX", "BTC"):
            await store.ticker(Ticker("BITFLYER", name, Decimal(1), Decimal(2), TIME_S), TIME_S)
        with pytest.raises(ValidationError) as caught:
            await store.ticker(Ticker("BITFLYER", "BTC-USD", Decimal(1), Decimal(2), TIME_S), TIME_S)
    assert str(caught.value) == (
        "exchanges.market_type: 'warrant' of BITFLYER BTC-USD is an instrument type without a market"
    )
    rows = await db.fetch(
        "SELECT e.enum_value, s.exchange_symbol, s.symbol_base, s.symbol_quote, s.expiry FROM book_ticker_snapshots "
        "JOIN symbols s ON s.id = symbol_id JOIN exchanges e ON e.id = s.exchange_id ORDER BY s.id"
    )
    assert [tuple(row) for row in rows] == [
        ("BITFLYER_SPOT", "FX_BTC_JPY", "BTC", "JPY", None),
        ("BITFLYER_SPOT", "BTC", "BTC", "BTC", None),
    ]


@pytest.mark.parametrize("text", ["1700000000.1234567", 1700000000.1234567])
def test_to_instant_rounds_to_the_microsecond(text: float | str) -> None:
    assert to_instant(text) == datetime(2023, 11, 14, 22, 13, 20, 123_457, tzinfo=UTC)


async def test_replay_of_files_without_a_configuration_is_a_named_error(db: DatabaseManager, tmp_path: Path) -> None:
    feeds = _gateio_futures(tmp_path, [])
    instruments = Path(feeds["GATEIO_FUTURES"][0])
    instruments.write_text(instruments.read_text().splitlines()[0] + "\n")
    with pytest.raises(ConfigError, match="configuration"):
        await replay_recordings(feeds)


async def test_replay_of_a_broken_message_names_the_feed_and_leaves_cryptofeed_whole(
    db: DatabaseManager, tmp_path: Path
) -> None:
    from cryptofeed.connection import HTTPAsyncConn, HTTPSync

    reads = HTTPAsyncConn.read, HTTPSync.read
    broken = _book_ticker(1, "1", "2")
    del broken["result"]["b"]
    with pytest.raises(PgtickError, match="GATEIO_FUTURES: the recording cannot be played: KeyError"):
        await replay_recordings(_gateio_futures(tmp_path, [broken]))
    assert (HTTPAsyncConn.read, HTTPSync.read) == reads
