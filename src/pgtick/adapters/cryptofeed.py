"""Backend callbacks for cryptofeed's FeedHandler and its raw_data_collection.playback.

    async with CryptofeedStore() as store:
        handler.add_feed(Binance(symbols=["BTC-USDT"], channels=[TICKER, TRADES, L2_BOOK],
                                 callbacks=store.callbacks(TICKER, TRADES, L2_BOOK)))

Every value is stored as cryptofeed hands it over, as an exact decimal. Exchanges and symbols are registered
as they appear; cryptofeed's feed id and the instrument's type decide the market: GATEIO with a spot
instrument is GATEIO_SPOT, GATEIO_FUTURES stays itself, BINANCE_DELIVERY is BINANCE_DELIVERY_FUTURES.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pgtick._fast.encode import content_number
from pgtick.adapters.store import FeedStore, made_trade_id
from pgtick.connection import DatabaseManager
from pgtick.errors import ValidationError
from pgtick.models import BookTickerSnapshot, CachedSymbol, FundingRateSnapshot, TradeSnapshot
from pgtick.operations.symbols import resolve_symbol
from pgtick.tables import BOOK_TICKERS, FUNDING_RATES, TRADES

__all__ = ["CryptofeedStore", "exchange_enum", "to_instant"]

Callback = Callable[[Any, float], Awaitable[None]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# By the types of cryptofeed.defines, and what its feeds say beside them (future, spread).
_MARKETS = {
    **dict.fromkeys(("spot", "fx", "currency"), "SPOT"),
    **dict.fromkeys(("perpetual", "futures", "future", "future_combo", "spread"), "FUTURES"),
    **dict.fromkeys(("option", "call", "put", "option_combo"), "OPTIONS"),
}
# Where the venues put a book ticker's own number.
_SEQUENCE_FIELDS = ("u", "seqId", "sequence", "seq")


def to_instant(seconds: float | str) -> datetime:
    """Return seconds since 1970 as an aware datetime, to the nearest µs.

    cryptofeed gives floats; its playback hands on the recording's text.
    """
    return _EPOCH + timedelta(microseconds=round(float(seconds) * 1_000_000))


def exchange_enum(feed_id: str, instrument_type: str, symbol: str = "") -> str:
    """Return the exchange's enum value for a feed and an instrument's type; ``symbol`` is for the error's message.

    Raises ValidationError for a type that belongs to no market.

    >>> exchange_enum("GATEIO", "spot"), exchange_enum("OKX", "perpetual")
    ('GATEIO_SPOT', 'OKX_FUTURES')
    """
    market = _MARKETS.get(instrument_type)
    if market is None:
        rule = f"of {feed_id} {symbol}".rstrip() + " is an instrument type without a market"
        raise ValidationError("exchanges", "market_type", instrument_type, rule)
    return feed_id if feed_id.endswith(f"_{market}") else f"{feed_id}_{market}"


class CryptofeedStore(FeedStore):
    """Collects what cryptofeed hands over and stores it through a Writer.

    ``n_events`` counts by channel what was handed over; ``n_unchanged`` the book updates that left best bid
    and ask as they were (a book ticker is a change of the top), ``n_one_sided`` those with no bid or no ask
    (a price is never made up). All others became rows: see ``writer.counts``. ``recorded``: a recording is
    played, where a book fetched by REST bears the playing machine's time (a float; recorded times are text);
    those without a time of the venue's are left out and counted in ``n_untimed``.
    """

    def __init__(self, db: DatabaseManager | None = None, *, recorded: bool = False, **writer_options: Any) -> None:
        super().__init__(db, **writer_options)
        self.n_unchanged = 0
        self.n_one_sided = 0
        self.n_untimed = 0
        self._recorded = recorded
        self._symbols: dict[tuple[str, str], CachedSymbol] = {}
        self._registering = asyncio.Lock()
        self._tops: dict[int, tuple[Any, ...]] = {}
        self._instants: dict[int, tuple[datetime, Counter[tuple[Any, ...]]]] = {}

    def callbacks(self, *channels: str) -> dict[str, Callback]:
        """Return {channel: callback} for cryptofeed's ``callbacks=``; without channels, for all that are known."""
        known: dict[str, Callback] = {
            "ticker": self.ticker,
            "trades": self.trade,
            "funding": self.funding,
            "l1_book": self.l1_book,
            "l2_book": self.l2_book,
        }
        return {channel: known[channel] for channel in channels} if channels else known

    async def ticker(self, event: Any, receipt_timestamp: float) -> None:
        """Store a Ticker; it has no quantities, so they are NULL."""
        self.n_events["ticker"] += 1
        symbol = await self._symbol(event)
        await self.writer.add(
            BOOK_TICKERS,
            BookTickerSnapshot(
                timestamp=to_instant(event.timestamp or receipt_timestamp),
                symbol_id=symbol.id,
                bid_price=event.bid,
                ask_price=event.ask,
                sequence_number=_sequence(event, "ticker", event.bid, event.ask),
                update_type="ticker",
            ),
        )

    async def l1_book(self, event: Any, receipt_timestamp: float) -> None:
        """Store an L1Book with its sizes."""
        self.n_events["l1_book"] += 1
        symbol = await self._symbol(event)
        top = (event.bid_price, event.bid_size, event.ask_price, event.ask_size)
        await self.writer.add(
            BOOK_TICKERS,
            BookTickerSnapshot(
                timestamp=to_instant(event.timestamp or receipt_timestamp),
                symbol_id=symbol.id,
                bid_price=top[0],
                bid_qty=top[1],
                ask_price=top[2],
                ask_qty=top[3],
                sequence_number=_sequence(event, "l1_book", *top),
                update_type="l1_book",
            ),
        )

    async def l2_book(self, event: Any, receipt_timestamp: float) -> None:
        """Store the top of an L2 book with its sizes, when it has changed."""
        self.n_events["l2_book"] += 1
        if self._recorded and not event.timestamp and not isinstance(receipt_timestamp, str):
            self.n_untimed += 1
            return
        bids, asks = event.book.bids, event.book.asks
        if not len(bids) or not len(asks):
            self.n_one_sided += 1
            return
        symbol = await self._symbol(event)
        top = (*bids.index(0), *asks.index(0))
        if self._tops.get(symbol.id) == top:
            self.n_unchanged += 1
            return
        self._tops[symbol.id] = top
        await self.writer.add(
            BOOK_TICKERS,
            BookTickerSnapshot(
                timestamp=to_instant(event.timestamp or receipt_timestamp),
                symbol_id=symbol.id,
                bid_price=top[0],
                bid_qty=top[1],
                ask_price=top[2],
                ask_qty=top[3],
                # Not the venue's number: a ticker of the same instant may carry it too, and is another event.
                sequence_number=_message_number(event, "l2_book", *top),
                update_type="l2_book",
            ),
        )

    async def trade(self, event: Any, receipt_timestamp: float) -> None:
        """Store a Trade."""
        self.n_events["trades"] += 1
        symbol = await self._symbol(event)
        instant = to_instant(event.timestamp or receipt_timestamp)
        await self.writer.add(
            TRADES,
            TradeSnapshot(
                timestamp=instant,
                symbol_id=symbol.id,
                price=event.price,
                quantity=event.amount,
                side=event.side,
                trade_id=str(event.id) if event.id is not None else self._made_id(symbol.id, instant, event),
            ),
        )

    async def funding(self, event: Any, receipt_timestamp: float) -> None:
        """Store a Funding; cryptofeed's ``timestamp`` is both the event's and the funding's time."""
        self.n_events["funding"] += 1
        symbol = await self._symbol(event)
        instant = to_instant(event.timestamp or receipt_timestamp)
        following = event.next_funding_time
        await self.writer.add(
            FUNDING_RATES,
            FundingRateSnapshot(
                timestamp=instant,
                symbol_id=symbol.id,
                funding_rate=event.rate,
                funding_time=instant,
                next_funding_time=None if following is None else to_instant(following),
            ),
        )

    async def _symbol(self, event: Any) -> CachedSymbol:
        key = (event.exchange, event.symbol)
        found = self._symbols.get(key)
        if found is None:
            async with self._registering:
                found = self._symbols[key] = await _register(event.exchange, event.symbol)
        return found

    def _made_id(self, symbol_id: int, instant: datetime, event: Any) -> str:
        # Only the newest instant's: the same message of an earlier one, delivered again, is a duplicate.
        known, seen = self._instants.get(symbol_id, (None, Counter()))
        if known != instant:
            seen = Counter()
            self._instants[symbol_id] = (instant, seen)
        return made_trade_id(seen, instant, event.price, event.amount, event.side)


def _sequence(event: Any, *content: Any) -> int | None:
    """Return the venue's own number, without one that of the message."""
    raw = event.raw
    if isinstance(raw, dict):
        inner = raw.get("result")
        fields = inner if isinstance(inner, dict) else raw
        for name in _SEQUENCE_FIELDS:
            value = fields.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
            if isinstance(value, str) and value.isascii() and value.isdigit():
                return int(value)
    return _message_number(event, *content)


def _message_number(event: Any, *content: Any) -> int | None:
    """Return a number of the row's content and the message it came in; None, for the writer's, without a message.

    Like content of two messages in one instant (BitMEX's quotes differ in sizes that a Ticker does not have)
    is two events; the same message, delivered again, is a duplicate.
    """
    # repr() knows what any parser leaves in a message (Decimal, datetime), and takes half of json's time for a quote.
    return None if event.raw is None else content_number(repr((content, event.raw)).encode())


def _expiry(name: str) -> datetime | None:
    """Return the day of a dated name (BTC-USD-22K27 is 2022-05-27) at 00:00 UTC: it does not tell the hour."""
    for part in name.split("-"):
        match = re.fullmatch(r"(\d\d)([FGHJKMNQUVXZ])(\d{1,2})", part)
        if match:
            year, month, day = match.groups()
            return datetime(2000 + int(year), "FGHJKMNQUVXZ".index(month) + 1, int(day), tzinfo=UTC)
    return None


async def _register(feed_id: str, name: str) -> CachedSymbol:
    from cryptofeed.symbols import Symbols, str_to_symbol

    instrument = str_to_symbol(name)
    own, kind = name, instrument.type
    details: dict[str, Any] = {}
    if instrument.type in ("futures", "option"):
        details["expiry"] = _expiry(name)
    if Symbols.populated(feed_id):
        mapping, info = Symbols.get(feed_id)
        own = str(mapping.get(name, name))
        # The feed's word: the name alone makes a future of BTC-JPY-FX.
        kind = info.get("instrument_type", {}).get(name, kind)
        tick = info.get("tick_size", {}).get(name)
        if tick is not None and Decimal(str(tick)) > 0:
            details["price_tick"] = str(tick)
    return await resolve_symbol(exchange_enum(feed_id, kind, name), instrument.base, instrument.quote, own, **details)
