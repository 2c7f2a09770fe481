"""Real recordings through cryptofeed's parsers into PostgreSQL and back, compared as exact decimals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pgtick.adapters.cryptofeed import CryptofeedStore
from pgtick.adapters.recordings import replay_recordings
from pgtick.connection import DatabaseManager

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
# What cryptofeed reads from each recording, and the changes of the top in its L2 books.
EVENTS = {
    "GATEIO": {"ticker": 22, "l2_book": 66, "trades": 9},
    "GATEIO_FUTURES": {"ticker": 75, "l2_book": 42, "trades": 0},
    "BINANCE": {"ticker": 84, "l2_book": 48, "trades": 2},
    "BINANCE_FUTURES": {"ticker": 613, "l2_book": 229, "trades": 91},
    "OKX": {"ticker": 28, "l2_book": 204, "trades": 74},
    "BITMEX": {"ticker": 436, "l2_book": 460, "trades": 27},
}
# Where the venue numbers its book tickers.
NUMBERS: dict[str, Callable[[Any], int]] = {
    "GATEIO_FUTURES": lambda raw: raw["result"]["u"],
    "BINANCE": lambda raw: raw["u"],
    "BINANCE_FUTURES": lambda raw: raw["u"],
}
SYMBOL = (
    "e.enum_value, s.symbol_base, s.symbol_quote, s.exchange_symbol, (extract(epoch FROM r.timestamp) * 1000000)::int8"
)
JOINS = "r JOIN symbols s ON s.id = r.symbol_id JOIN exchanges e ON e.id = s.exchange_id"
BOOK_TICKER_QUERY = (
    f"SELECT r.update_type, {SYMBOL}, r.bid_price::text, r.bid_qty::text, r.ask_price::text, r.ask_qty::text, "
    f"CASE WHEN r.sequence_number >= 0 THEN r.sequence_number END FROM book_ticker_snapshots {JOINS}"
)
TRADE_QUERY = f"SELECT {SYMBOL}, r.price::text, r.quantity::text, r.side, r.trade_id FROM trade_snapshots {JOINS}"

needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recordings beside the checkout")
# cryptofeed leaves its own sessions and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


def _files(feed: str) -> list[str]:
    return sorted(str(path) for path in RECORDINGS.glob(f"{feed}.*"))


def _exact(value: object) -> str:
    """Return the decimal text that PostgreSQL shows for an exactly stored value."""
    return format(Decimal(str(value)), "f")


def _instant_us(seconds: float | str) -> int:
    return int((Decimal(str(seconds)) * 1_000_000).to_integral_value())


def _market(event: Any) -> tuple[str, str, str, str]:
    """Return (enum value, base, quote, venue's own symbol), from the event's names and the recording's instruments."""
    from cryptofeed.symbols import Symbols

    base, quote, *kind = event.symbol.split("-")
    market = "FUTURES" if kind else "SPOT"
    enum_value = f"{event.exchange.removesuffix('_FUTURES')}_{market}"
    return enum_value, base, quote, Symbols.get(event.exchange)[0][event.symbol]


class ListeningStore(CryptofeedStore):
    """Writes down what cryptofeed hands to the callbacks, in front of them, as the rows that must come of it."""

    def __init__(self) -> None:
        super().__init__(recorded=True)
        self.handed: dict[str, list[tuple[Any, ...]]] = {"ticker": [], "l2_book": [], "trades": []}
        self._last: dict[str, tuple[str, ...]] = {}

    def callbacks(self, *channels: str) -> dict[str, Callable[[Any, float], Awaitable[None]]]:
        listeners = {"ticker": self._hear_ticker, "l2_book": self._hear_l2_book, "trades": self._hear_trade}

        def heard(channel: str, callback: Callable[[Any, float], Awaitable[None]]) -> Any:
            async def hear(event: Any, receipt_timestamp: float) -> None:
                listeners[channel](event, receipt_timestamp)
                await callback(event, receipt_timestamp)

            return hear

        return {name: heard(name, callback) for name, callback in super().callbacks(*listeners).items()}

    def _hear_ticker(self, event: Any, _: float) -> None:
        number = NUMBERS[event.exchange](event.raw) if event.exchange in NUMBERS else None
        bid, ask = _exact(event.bid), _exact(event.ask)
        place = (*_market(event), _instant_us(event.timestamp))
        self.handed["ticker"].append(("ticker", *place, bid, None, ask, None, number))

    def _hear_l2_book(self, event: Any, receipt_timestamp: float | str) -> None:
        seconds = event.timestamp or receipt_timestamp
        fetched_while_playing = seconds is receipt_timestamp and isinstance(seconds, float)
        if fetched_while_playing or not len(event.book.bids) or not len(event.book.asks):
            return
        top = tuple(map(_exact, (*event.book.bids.index(0), *event.book.asks.index(0))))
        if self._last.get(event.symbol) != top:
            self._last[event.symbol] = top
            self.handed["l2_book"].append(("l2_book", *_market(event), _instant_us(seconds), *top, None))

    def _hear_trade(self, event: Any, _: float) -> None:
        place = (*_market(event), _instant_us(event.timestamp))
        self.handed["trades"].append((*place, _exact(event.price), _exact(event.amount), event.side, event.id))


async def _stored(db: DatabaseManager) -> list[list[tuple[Any, ...]]]:
    return [[tuple(row) for row in await db.fetch(query)] for query in (BOOK_TICKER_QUERY, TRADE_QUERY)]


@needs_recordings
@pytest.mark.parametrize("feed", EVENTS)
async def test_recording_is_stored_exactly_and_a_second_replay_adds_nothing(db: DatabaseManager, feed: str) -> None:
    store = ListeningStore()
    await replay_recordings({feed: _files(feed)}, store=store)
    handed = store.handed
    assert {channel: len(events) for channel, events in handed.items()} == EVENTS[feed]
    book_tickers, trades = await _stored(db)
    # Counters, not sets: like events of one millisecond are as many rows.
    assert Counter(book_tickers) == Counter(handed["ticker"] + handed["l2_book"])
    assert Counter(trades) == Counter(handed["trades"])
    counts = {"book_ticker_snapshots": len(book_tickers), "trade_snapshots": len(trades)}
    counts = {table: n_rows for table, n_rows in counts.items() if n_rows}
    totals = store.writer.counts
    assert {table: (t.n_stored, t.n_duplicates, t.n_quarantined) for table, t in totals.items()} == {
        table: (n_rows, 0, 0) for table, n_rows in counts.items()
    }

    again = await replay_recordings({feed: _files(feed)})
    assert {table: (t.n_stored, t.n_duplicates, t.n_quarantined) for table, t in again.writer.counts.items()} == {
        table: (0, n_rows, 0) for table, n_rows in counts.items()
    }
    assert list(map(Counter, await _stored(db))) == [Counter(book_tickers), Counter(trades)]


@needs_recordings
async def test_bitmex_like_quotes_of_one_millisecond_are_all_stored(db: DatabaseManager) -> None:
    await replay_recordings({"BITMEX": _files("BITMEX")})
    rows = await db.fetch(
        "SELECT count(*) FROM book_ticker_snapshots WHERE update_type = 'ticker' "
        "GROUP BY symbol_id, timestamp, bid_price, ask_price HAVING count(*) > 1"
    )
    assert sum(row[0] - 1 for row in rows) == 20
