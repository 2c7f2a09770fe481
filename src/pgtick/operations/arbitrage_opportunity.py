"""Arbitrage opportunities: insert, batch, latest, history, with symbol info, statistics."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pgtick.models import ArbitrageOpportunity
from pgtick.operations import generic
from pgtick.tables import ARBITRAGE_OPPORTUNITIES

__all__ = [
    "get_arbitrage_opportunity_history",
    "get_arbitrage_opportunity_stats",
    "get_arbitrage_opportunity_with_symbol_info",
    "get_latest_arbitrage_opportunity_by_symbol",
    "insert_arbitrage_opportunity",
    "insert_arbitrage_opportunity_batch",
]


async def insert_arbitrage_opportunity(row: ArbitrageOpportunity) -> int:
    """Insert one row and return its id."""
    row_id: int = await generic.insert(ARBITRAGE_OPPORTUNITIES, row)
    return row_id


async def insert_arbitrage_opportunity_batch(
    rows: Iterable[ArbitrageOpportunity], *, time_unit: str | None = None
) -> int:
    """Store rows by COPY; return the server's count. See generic.insert_batch."""
    return await generic.insert_batch(ARBITRAGE_OPPORTUNITIES, rows, time_unit=time_unit)


async def get_latest_arbitrage_opportunity_by_symbol(
    symbol_id: int, *, decimals: bool = False
) -> ArbitrageOpportunity | None:
    """Return the newest row, or None."""
    found: ArbitrageOpportunity | None = await generic.get_latest(ARBITRAGE_OPPORTUNITIES, symbol_id, decimals=decimals)
    return found


async def get_arbitrage_opportunity_history(
    symbol_id: int, start: datetime, end: datetime, *, limit: int | None = None, decimals: bool = False
) -> list[ArbitrageOpportunity]:
    """Return the rows with start <= timestamp < end, oldest first."""
    return await generic.get_history(
        ARBITRAGE_OPPORTUNITIES, symbol_id, start=start, end=end, limit=limit, decimals=decimals
    )


async def get_arbitrage_opportunity_with_symbol_info(symbol_id: int) -> dict[str, Any] | None:
    """Return the newest row of a symbol with the symbol: ``entity``, ``symbol``, ``display_name``."""
    return await generic.get_with_symbol_info(ARBITRAGE_OPPORTUNITIES, symbol_id)


async def get_arbitrage_opportunity_stats(since: datetime | None = None) -> dict[str, Any]:
    """Return counts, bounds and averages; see generic.get_stats."""
    return await generic.get_stats(ARBITRAGE_OPPORTUNITIES, averages=("spread_bps",), since=since)
