"""Funding rates: insert, batch, latest, history, with symbol info, statistics."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pgtick.models import FundingRateSnapshot
from pgtick.operations import generic
from pgtick.tables import FUNDING_RATES

__all__ = [
    "get_funding_rate_history",
    "get_funding_rate_stats",
    "get_funding_rate_with_symbol_info",
    "get_latest_funding_rate_by_symbol",
    "insert_funding_rate",
    "insert_funding_rate_batch",
]


async def insert_funding_rate(row: FundingRateSnapshot) -> int:
    """Insert one row and return its id."""
    row_id: int = await generic.insert(FUNDING_RATES, row)
    return row_id


async def insert_funding_rate_batch(rows: Iterable[FundingRateSnapshot], *, time_unit: str | None = None) -> int:
    """Store rows by COPY; return the server's count. See generic.insert_batch."""
    return await generic.insert_batch(FUNDING_RATES, rows, time_unit=time_unit)


async def get_latest_funding_rate_by_symbol(symbol_id: int, *, decimals: bool = False) -> FundingRateSnapshot | None:
    """Return the newest row, or None."""
    found: FundingRateSnapshot | None = await generic.get_latest(FUNDING_RATES, symbol_id, decimals=decimals)
    return found


async def get_funding_rate_history(
    symbol_id: int, start: datetime, end: datetime, *, limit: int | None = None, decimals: bool = False
) -> list[FundingRateSnapshot]:
    """Return the rows with start <= timestamp < end, oldest first."""
    return await generic.get_history(FUNDING_RATES, symbol_id, start=start, end=end, limit=limit, decimals=decimals)


async def get_funding_rate_with_symbol_info(symbol_id: int) -> dict[str, Any] | None:
    """Return the newest row of a symbol with the symbol: ``entity``, ``symbol``, ``display_name``."""
    return await generic.get_with_symbol_info(FUNDING_RATES, symbol_id)


async def get_funding_rate_stats(since: datetime | None = None) -> dict[str, Any]:
    """Return counts, bounds and averages; see generic.get_stats."""
    return await generic.get_stats(FUNDING_RATES, averages=("funding_rate",), since=since)
