"""Book tickers: insert, batch, latest, history, with symbol info, statistics."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pgtick.models import BookTickerSnapshot
from pgtick.operations import generic
from pgtick.tables import BOOK_TICKERS

__all__ = [
    "get_book_ticker_history",
    "get_book_ticker_stats",
    "get_book_ticker_with_symbol_info",
    "get_latest_book_ticker_by_symbol",
    "insert_book_ticker",
    "insert_book_ticker_batch",
]


async def insert_book_ticker(row: BookTickerSnapshot) -> int:
    """Insert one row and return its id."""
    row_id: int = await generic.insert(BOOK_TICKERS, row)
    return row_id


async def insert_book_ticker_batch(rows: Iterable[BookTickerSnapshot], *, time_unit: str | None = None) -> int:
    """Store rows by COPY; return the server's count. See generic.insert_batch."""
    return await generic.insert_batch(BOOK_TICKERS, rows, time_unit=time_unit)


async def get_latest_book_ticker_by_symbol(symbol_id: int, *, decimals: bool = False) -> BookTickerSnapshot | None:
    """Return the newest row, or None."""
    found: BookTickerSnapshot | None = await generic.get_latest(BOOK_TICKERS, symbol_id, decimals=decimals)
    return found


async def get_book_ticker_history(
    symbol_id: int, start: datetime, end: datetime, *, limit: int | None = None, decimals: bool = False
) -> list[BookTickerSnapshot]:
    """Return the rows with start <= timestamp < end, oldest first."""
    return await generic.get_history(BOOK_TICKERS, symbol_id, start=start, end=end, limit=limit, decimals=decimals)


async def get_book_ticker_with_symbol_info(symbol_id: int) -> dict[str, Any] | None:
    """Return the newest row of a symbol with the symbol: ``entity``, ``symbol``, ``display_name``."""
    return await generic.get_with_symbol_info(BOOK_TICKERS, symbol_id)


async def get_book_ticker_stats(since: datetime | None = None) -> dict[str, Any]:
    """Return counts, bounds and averages; see generic.get_stats."""
    return await generic.get_stats(BOOK_TICKERS, averages=("bid_price", "ask_price"), since=since)
