"""Stores what ccxt's methods return: sync or async, by REST or by ccxt.pro's ``watch_*``.

    async with CcxtStore() as store:
        book = await exchange.watch_order_book("BTC/USDT:USDT")
        await store.order_book(exchange, book, exchange.milliseconds())

Every method takes the exchange object, what it returned, and when that came, in ms since 1970: the time of
what bears none of its own. Numbers are stored as ccxt gives them. They are floats, whose shortest text is the
venue's up to 15 digits, without its trailing zeros; with ``exchange.number = str`` they are the venue's text,
except in order books. Exchanges and symbols are registered as they appear, from ``exchange.markets``.
ccxt itself is never imported.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from pgtick.adapters.ccxt_markets import MARKET_TYPES, exchange_enum, resolve_market, to_instant
from pgtick.adapters.store import FeedStore, made_trade_id
from pgtick.connection import DatabaseManager
from pgtick.errors import ValidationError
from pgtick.models import BalanceSnapshot, BookTickerSnapshot, FundingRateSnapshot, TradeSnapshot
from pgtick.operations.exchanges import ensure_exchange
from pgtick.tables import BALANCES, BOOK_TICKERS, FUNDING_RATES, TRADES

__all__ = ["CcxtStore"]

logger = logging.getLogger(__name__)


class CcxtStore(FeedStore):
    """Collects what ccxt returns and stores it through a Writer.

    ``n_events`` counts by kind what was handed over; ``n_unchanged`` the tickers and books that left best bid
    and ask as they were (a book ticker is a change of the top), ``n_one_sided`` those with no bid or no ask,
    ``n_rateless`` the funding rates without a rate (dated futures have none), ``n_unlisted`` by (exchange,
    symbol) what is not among ``exchange.markets`` or cannot be registered. All others became rows: see
    ``writer.counts``.
    """

    def __init__(self, db: DatabaseManager | None = None, **writer_options: Any) -> None:
        super().__init__(db, **writer_options)
        self.n_unchanged = 0
        self.n_one_sided = 0
        self.n_rateless = 0
        self.n_unlisted: Counter[tuple[str, str]] = Counter()
        self._symbol_ids: dict[tuple[str, str], int] = {}
        self._exchange_ids: dict[str, int] = {}
        self._registering = asyncio.Lock()
        self._tops: dict[tuple[int, str], tuple[Any, ...]] = {}

    async def ticker(self, exchange: Any, ticker: Mapping[str, Any], receipt_ms: float) -> None:
        """Store the top of a Ticker (fetch_ticker, watch_ticker), when it has changed."""
        bid, ask = (ticker.get("bid"), ticker.get("bidVolume")), (ticker.get("ask"), ticker.get("askVolume"))
        await self._top(exchange, "ticker", ticker["symbol"], (*bid, *ask), ticker.get("timestamp") or receipt_ms)

    async def tickers(self, exchange: Any, tickers: Mapping[str, Any], receipt_ms: float) -> None:
        """Store Tickers by symbol (fetch_tickers, fetch_bids_asks, watch_tickers, watch_bids_asks)."""
        for ticker in _each(tickers):
            await self.ticker(exchange, ticker, receipt_ms)

    async def order_book(self, exchange: Any, book: Mapping[str, Any], receipt_ms: float) -> None:
        """Store the top of an OrderBook with its sizes (fetch_order_book, watch_order_book), when it has changed."""
        # ccxt.pro goes on changing the book: all of it is read before the first await.
        bid, ask = (tuple(side[0][:2]) if side else (None, None) for side in (book["bids"], book["asks"]))
        instant = book.get("timestamp") or receipt_ms
        await self._top(exchange, "l2_book", book["symbol"], (*bid, *ask), instant, book.get("nonce"))

    async def trades(self, exchange: Any, trades: Iterable[Mapping[str, Any]], receipt_ms: float) -> None:
        """Store public Trades (fetch_trades, watch_trades, watch_trades_for_symbols).

        A trade without an id gets one of its content and its occurrence among its like in this list: a list
        that overlaps the one before it adds only what is new.
        """
        seen: defaultdict[int, Counter[tuple[Any, ...]]] = defaultdict(Counter)
        for trade in _each(trades):
            self.n_events["trades"] += 1
            symbol_id = await self._symbol_id(exchange, trade["symbol"])
            if symbol_id is None:
                continue
            instant = to_instant(trade.get("timestamp") or receipt_ms)
            price, quantity, side = _number(trade.get("price")), _number(trade.get("amount")), trade.get("side")
            trade_id = trade.get("id")
            if trade_id is None:
                trade_id = made_trade_id(seen[symbol_id], instant, price, quantity, side)
            row = TradeSnapshot(
                timestamp=instant,
                symbol_id=symbol_id,
                price=price,
                quantity=quantity,
                side=side,
                trade_id=str(trade_id),
            )
            await self.writer.add(TRADES, row)

    async def funding_rate(self, exchange: Any, rate: Mapping[str, Any], receipt_ms: float) -> None:
        """Store a FundingRate (fetch_funding_rate, watch_funding_rate); without a funding time, its own is that."""
        self.n_events["funding"] += 1
        if rate.get("fundingRate") is None:
            self.n_rateless += 1
            return
        symbol_id = await self._symbol_id(exchange, rate["symbol"])
        if symbol_id is None:
            return
        instant = to_instant(rate.get("timestamp") or receipt_ms)
        funding_ms, next_ms = rate.get("fundingTimestamp"), rate.get("nextFundingTimestamp")
        row = FundingRateSnapshot(
            timestamp=instant,
            symbol_id=symbol_id,
            funding_rate=_number(rate["fundingRate"]),
            funding_time=to_instant(funding_ms) if funding_ms else instant,
            next_funding_time=to_instant(next_ms) if next_ms else None,
        )
        await self.writer.add(FUNDING_RATES, row)

    async def funding_rates(self, exchange: Any, rates: Iterable[Any], receipt_ms: float) -> None:
        """Store FundingRates, by symbol (fetch_funding_rates, watch_funding_rates) or fetch_funding_rate_history's."""
        for rate in _each(rates):
            await self.funding_rate(exchange, rate, receipt_ms)

    async def balance(
        self, exchange: Any, balance: Mapping[str, Any], receipt_ms: float, *, market_type: str | None = None
    ) -> None:
        """Store a Balance (fetch_balance, watch_balance): a row for each asset of which it says anything.

        ``free`` is available, ``used`` locked, ``debt`` borrowed. ``market_type`` is ccxt's (spot, swap,
        future, option) and tells whose account it is; the exchange's ``defaultType`` when left out.
        """
        self.n_events["balance"] += 1
        kind = exchange_enum(exchange.id, market_type or exchange.options.get("defaultType") or "spot")
        instant = to_instant(balance.get("timestamp") or receipt_ms)
        free, used, total, debt = (dict(balance.get(name) or {}) for name in ("free", "used", "total", "debt"))
        if kind not in self._exchange_ids:
            self._exchange_ids[kind] = await ensure_exchange(kind)
        for asset in {**total, **free, **used}:
            if free.get(asset) is None and used.get(asset) is None and total.get(asset) is None:
                continue
            row = BalanceSnapshot(
                timestamp=instant,
                exchange_id=self._exchange_ids[kind],
                asset_name=asset,
                available_balance=_number(free.get(asset)),
                locked_balance=_number(used.get(asset)),
                borrowing_balance=_number(debt.get(asset)),
            )
            await self.writer.add(BALANCES, row)

    async def _top(
        self, exchange: Any, kind: str, name: str, top: tuple[Any, ...], ms: float, nonce: int | None = None
    ) -> None:
        self.n_events[kind] += 1
        if _absent(top[0]) or _absent(top[2]):
            self.n_one_sided += 1
            return
        symbol_id = await self._symbol_id(exchange, name)
        if symbol_id is None:
            return
        last = self._tops.get((symbol_id, kind), ())
        if last[:4] == top:
            self.n_unchanged += 1
            return
        self._tops[symbol_id, kind] = (*top, ms, nonce)
        bid_price, bid_qty, ask_price, ask_qty = map(_number, top)
        row = BookTickerSnapshot(
            timestamp=to_instant(ms),
            symbol_id=symbol_id,
            bid_price=bid_price,
            bid_qty=bid_qty,
            ask_price=ask_price,
            ask_qty=ask_qty,
            # Some of ccxt's books keep a snapshot's number while deltas change them: that is no event's own.
            sequence_number=nonce if nonce is not None and nonce > 0 and last[4:] != (ms, nonce) else None,
            update_type=kind,
        )
        await self.writer.add(BOOK_TICKERS, row)

    async def _symbol_id(self, exchange: Any, name: str) -> int | None:
        key = (exchange.id, name)
        if key in self._symbol_ids:
            return self._symbol_ids[key]
        market = (exchange.markets or {}).get(name)
        if market is None or market["type"] not in MARKET_TYPES:
            self._not_stored(key, "it is not among the exchange's loaded markets")
            return None
        async with self._registering:
            if key not in self._symbol_ids:
                try:
                    self._symbol_ids[key] = await resolve_market(exchange, market)
                except ValidationError as error:
                    self._not_stored(key, error)
        return self._symbol_ids.get(key)

    def _not_stored(self, key: tuple[str, str], reason: object) -> None:
        if key not in self.n_unlisted:
            logger.warning("%s %s: not stored: %s", *key, reason)
        self.n_unlisted[key] += 1


def _each(several: Any) -> list[Any]:
    return list(several.values() if isinstance(several, Mapping) else several)


def _absent(price: Any) -> bool:
    """Whether a side is empty: None, or the 0 that some venues write."""
    return price is None or not str(price).strip("0.")


def _number(value: Any) -> Any:
    # ccxt's Precise is its text.
    return value if value is None or isinstance(value, (float, str, int, Decimal)) else str(value)
