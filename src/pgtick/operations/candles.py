"""Candles of trades and of mids, on every engine by the same call and with the same figures.

They are computed in the database: from TimescaleDB's continuous aggregates where there are any that the width is
a multiple of, else from the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from pgtick.connection import get_db_manager
from pgtick.engines import get_engine
from pgtick.engines.candles import MID_CANDLES, TRADE_CANDLES, CandleKind, select_candles
from pgtick.errors import ValidationError
from pgtick.operations.generic import check_instant

__all__ = [
    "MidCandle",
    "TradeCandle",
    "get_mid_candles",
    "get_mid_candles_by_symbols",
    "get_trade_candles",
    "get_trade_candles_by_symbols",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# asyncpg knows text[], but asks on every new connection what an int[] is, which takes seconds on Citus.
_OF_SYMBOLS = "symbol_id = ANY($1::text[]::int[])"


class MidCandle(msgspec.Struct, frozen=True, kw_only=True):
    """The mids, (bid + ask) / 2, of the book tickers from ``timestamp`` on, for the width asked for."""

    symbol_id: int
    timestamp: datetime
    open: float | Decimal
    high: float | Decimal
    low: float | Decimal
    close: float | Decimal
    n_updates: int


class TradeCandle(msgspec.Struct, frozen=True, kw_only=True):
    """The trades from ``timestamp`` on; ``quote_volume`` is the venue's, where it gives none price * quantity."""

    symbol_id: int
    timestamp: datetime
    open: float | Decimal
    high: float | Decimal
    low: float | Decimal
    close: float | Decimal
    volume: float | Decimal
    quote_volume: float | Decimal
    n_trades: int


async def get_mid_candles(
    symbol_id: int, start: datetime, end: datetime, width: timedelta, *, decimals: bool = False
) -> list[MidCandle]:
    """Return the candles that begin at start <= timestamp < end, oldest first, each whole.

    They begin at multiples of ``width`` since 1970-01-01 UTC; where there is no row there is no candle. Open and
    close are the first and the last by (timestamp, sequence_number).
    """
    return await _candles(MID_CANDLES, MidCandle, "symbol_id = $1", symbol_id, start, end, width, decimals)


async def get_mid_candles_by_symbols(
    symbol_ids: Iterable[int], start: datetime, end: datetime, width: timedelta, *, decimals: bool = False
) -> list[MidCandle]:
    """Return get_mid_candles() of several symbols, by symbol_id and timestamp."""
    ids = list(map(str, symbol_ids))
    return await _candles(MID_CANDLES, MidCandle, _OF_SYMBOLS, ids, start, end, width, decimals)


async def get_trade_candles(
    symbol_id: int, start: datetime, end: datetime, width: timedelta, *, decimals: bool = False
) -> list[TradeCandle]:
    """Return the candles that begin at start <= timestamp < end, oldest first, each whole.

    They begin at multiples of ``width`` since 1970-01-01 UTC; where there is no trade there is no candle. Open and
    close are the first and the last by timestamp, those of one instant by their ids: the shorter first, then byte
    by byte, which for numbers is their order.
    """
    return await _candles(TRADE_CANDLES, TradeCandle, "symbol_id = $1", symbol_id, start, end, width, decimals)


async def get_trade_candles_by_symbols(
    symbol_ids: Iterable[int], start: datetime, end: datetime, width: timedelta, *, decimals: bool = False
) -> list[TradeCandle]:
    """Return get_trade_candles() of several symbols, by symbol_id and timestamp."""
    ids = list(map(str, symbol_ids))
    return await _candles(TRADE_CANDLES, TradeCandle, _OF_SYMBOLS, ids, start, end, width, decimals)


async def _candles(
    kind: CandleKind,
    struct: type[Any],
    symbols: str,
    ids: object,
    start: datetime,
    end: datetime,
    width: timedelta,
    decimals: bool,
) -> list[Any]:
    check_instant(kind.source, "start", start)
    check_instant(kind.source, "end", end)
    if not isinstance(width, timedelta) or width <= timedelta(0):
        raise ValidationError(kind.source, "width", width, "must be a timedelta > 0")
    db = get_db_manager()
    view = await (await get_engine(db)).candle_view(db, kind, width)
    records = await db.fetch(
        select_candles(kind, view, width, symbols),
        ids,
        _next_border(start, width),
        _next_border(end, width),
        width,
        resets=False,
    )
    candles = []
    for record in records:
        values = {"timestamp" if name == "bucket" else name: value for name, value in record.items()}
        if not decimals:
            values = {name: float(value) if isinstance(value, Decimal) else value for name, value in values.items()}
        candles.append(struct(**values))
    return candles


def _next_border(instant: datetime, width: timedelta) -> datetime:
    """Return the first border of candles at the instant or after it."""
    try:
        return _EPOCH - (_EPOCH - instant) // width * width
    except OverflowError:  # datetime.max stands for "whatever there is"
        return instant
