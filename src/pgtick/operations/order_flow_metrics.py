"""Order-flow metrics: insert, batch, latest, history, with symbol info, statistics."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pgtick.models import OrderFlowMetrics
from pgtick.operations import generic
from pgtick.tables import ORDER_FLOW_METRICS

__all__ = [
    "get_latest_order_flow_metrics_by_symbol",
    "get_order_flow_metrics_history",
    "get_order_flow_metrics_stats",
    "get_order_flow_metrics_with_symbol_info",
    "insert_order_flow_metrics",
    "insert_order_flow_metrics_batch",
]


async def insert_order_flow_metrics(row: OrderFlowMetrics) -> None:
    """Insert one row; the table has no ids."""
    await generic.insert(ORDER_FLOW_METRICS, row)


async def insert_order_flow_metrics_batch(rows: Iterable[OrderFlowMetrics], *, time_unit: str | None = None) -> int:
    """Store rows by COPY; return the server's count. See generic.insert_batch."""
    return await generic.insert_batch(ORDER_FLOW_METRICS, rows, time_unit=time_unit)


async def get_latest_order_flow_metrics_by_symbol(symbol_id: int, *, decimals: bool = False) -> OrderFlowMetrics | None:
    """Return the newest row, or None."""
    found: OrderFlowMetrics | None = await generic.get_latest(ORDER_FLOW_METRICS, symbol_id, decimals=decimals)
    return found


async def get_order_flow_metrics_history(
    symbol_id: int, start: datetime, end: datetime, *, limit: int | None = None, decimals: bool = False
) -> list[OrderFlowMetrics]:
    """Return the rows with start <= timestamp < end, oldest first."""
    return await generic.get_history(
        ORDER_FLOW_METRICS, symbol_id, start=start, end=end, limit=limit, decimals=decimals
    )


async def get_order_flow_metrics_with_symbol_info(symbol_id: int) -> dict[str, Any] | None:
    """Return the newest row of a symbol with the symbol: ``entity``, ``symbol``, ``display_name``."""
    return await generic.get_with_symbol_info(ORDER_FLOW_METRICS, symbol_id)


async def get_order_flow_metrics_stats(since: datetime | None = None) -> dict[str, Any]:
    """Return counts, bounds and averages; see generic.get_stats."""
    return await generic.get_stats(ORDER_FLOW_METRICS, averages=("ofi_score", "spread_bps"), since=since)
