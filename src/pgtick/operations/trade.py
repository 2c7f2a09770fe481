"""Trades: insert, batch, latest, history, with symbol info, statistics."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pgtick.models import TradeSnapshot
from pgtick.operations import generic
from pgtick.tables import TRADES

__all__ = [
    "get_latest_trade_by_symbol",
    "get_trade_history",
    "get_trade_stats",
    "get_trade_with_symbol_info",
    "insert_trade",
    "insert_trade_batch",
]


async def insert_trade(row: TradeSnapshot) -> int:
    """Insert one row and return its id."""
    row_id: int = await generic.insert(TRADES, row)
    return row_id


async def insert_trade_batch(rows: Iterable[TradeSnapshot], *, time_unit: str | None = None) -> int:
    """Store rows by COPY; return the server's count. See generic.insert_batch."""
    return await generic.insert_batch(TRADES, rows, time_unit=time_unit)


async def get_latest_trade_by_symbol(symbol_id: int, *, decimals: bool = False) -> TradeSnapshot | None:
    """Return the newest row, or None."""
    found: TradeSnapshot | None = await generic.get_latest(TRADES, symbol_id, decimals=decimals)
    return found


async def get_trade_history(
    symbol_id: int, start: datetime, end: datetime, *, limit: int | None = None, decimals: bool = False
) -> list[TradeSnapshot]:
    """Return the rows with start <= timestamp < end, oldest first."""
    return await generic.get_history(TRADES, symbol_id, start=start, end=end, limit=limit, decimals=decimals)


async def get_trade_with_symbol_info(symbol_id: int) -> dict[str, Any] | None:
    """Return the newest row of a symbol with the symbol: ``entity``, ``symbol``, ``display_name``."""
    return await generic.get_with_symbol_info(TRADES, symbol_id)


async def get_trade_stats(since: datetime | None = None) -> dict[str, Any]:
    """Return counts, bounds and averages; see generic.get_stats."""
    return await generic.get_stats(TRADES, averages=("price", "quantity"), since=since)
