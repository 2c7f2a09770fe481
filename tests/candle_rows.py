"""Rows for candles, and the candles of them computed the slow way: by sorting, with exact decimals."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

from rows import ticker

from pgtick.models import BookTickerSnapshot, TradeSnapshot
from pgtick.operations.candles import MidCandle, TradeCandle

__all__ = ["END", "EPOCH", "HOUR", "START", "mid_candles", "tickers", "trade_candles", "trades"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
#: Where the rows begin: on an hour, and so far back that nothing of what policies would do is in the way.
START = EPOCH + (datetime.now(UTC) - EPOCH) // HOUR * HOUR - 4 * HOUR
END = START + 3 * HOUR


def _instants(chance: random.Random, n: int) -> list[datetime]:
    # Milliseconds in clusters, so that many rows share an instant, a bucket holds many, and many are empty.
    clusters = [START + timedelta(seconds=chance.randrange(2 * 3600)) for _ in range(n // 10)]
    return [chance.choice(clusters) + timedelta(milliseconds=chance.randrange(0, 3000, 250)) for _ in range(n)]


def tickers(symbol_id: int, n: int, seed: int) -> list[BookTickerSnapshot]:
    """Return rows in no order, prices of up to 12 decimals and 13 digits before them."""
    chance = random.Random(seed)
    rows = []
    for number, instant in enumerate(_instants(chance, n)):
        bid = Decimal(chance.randrange(1, 10**13)).scaleb(-chance.randrange(13))
        rows.append(
            ticker(
                symbol_id,
                timestamp=instant,
                bid_price=bid,
                ask_price=bid + Decimal(chance.randrange(10)).scaleb(-12),
                sequence_number=chance.choice((1, -1)) * (10**15 + number),
            )
        )
    return rows


def trades(symbol_id: int, n: int, seed: int) -> list[TradeSnapshot]:
    """Return rows in no order, ids of 1 to 4 digits and others, some with the venue's quote quantity, some of zero."""
    chance = random.Random(seed)
    return [
        TradeSnapshot(
            timestamp=instant,
            symbol_id=symbol_id,
            price=Decimal(chance.randrange(1, 10**9)).scaleb(-chance.randrange(13)),
            quantity=Decimal(chance.randrange(10**9)).scaleb(-9) if number % 50 else 0,
            side=chance.choice(("buy", "sell")),
            trade_id=f"{chance.choice(('a-', 'B-', 'ä'))}{number}" if number % 7 == 0 else str(number),
            quote_quantity=Decimal(number).scaleb(-3) if number % 3 == 0 else None,
        )
        for number, instant in enumerate(_instants(chance, n))
    ]


def _grouped(rows: Iterable[Any], width: timedelta, order: Callable[[Any], Any]) -> list[tuple[int, datetime, Any]]:
    groups: dict[tuple[int, datetime], list[Any]] = defaultdict(list)
    for row in rows:
        groups[row.symbol_id, EPOCH + (row.timestamp - EPOCH) // width * width].append(row)
    return [(*key, sorted(groups[key], key=order)) for key in sorted(groups)]


def mid_candles(rows: Iterable[BookTickerSnapshot], width: timedelta) -> list[MidCandle]:
    """Return the candles, by symbol and time."""
    candles = []
    for symbol_id, instant, group in _grouped(rows, width, lambda row: (row.timestamp, row.sequence_number)):
        mids = [(Decimal(row.bid_price) + Decimal(row.ask_price)) / 2 for row in group]
        candles.append(
            MidCandle(
                symbol_id=symbol_id,
                timestamp=instant,
                open=mids[0],
                high=max(mids),
                low=min(mids),
                close=mids[-1],
                n_updates=len(mids),
            )
        )
    return candles


def trade_candles(rows: Iterable[TradeSnapshot], width: timedelta) -> list[TradeCandle]:
    """Return the candles, by symbol and time."""
    with localcontext(prec=200):  # the sums of 28 digits that Decimal starts with are rounded
        return _trade_candles(rows, width)


def _trade_candles(rows: Iterable[TradeSnapshot], width: timedelta) -> list[TradeCandle]:
    candles = []
    for symbol_id, instant, group in _grouped(
        rows, width, lambda row: (row.timestamp, len(row.trade_id), row.trade_id.encode())
    ):
        prices = [Decimal(row.price) for row in group]
        amounts = [
            Decimal(row.price) * Decimal(row.quantity) if row.quote_quantity is None else Decimal(row.quote_quantity)
            for row in group
        ]
        candles.append(
            TradeCandle(
                symbol_id=symbol_id,
                timestamp=instant,
                open=prices[0],
                high=max(prices),
                low=min(prices),
                close=prices[-1],
                volume=sum((Decimal(row.quantity) for row in group), Decimal(0)),
                quote_volume=sum(amounts, Decimal(0)),
                n_trades=len(prices),
            )
        )
    return candles
