"""Balances: insert, batch, latest, history, with symbol info, statistics."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pgtick.connection import get_db_manager
from pgtick.models import BalanceSnapshot
from pgtick.operations import generic
from pgtick.tables import BALANCES

__all__ = [
    "get_balance_history",
    "get_balance_stats",
    "get_balance_with_exchange_info",
    "get_latest_balance_by_exchange",
    "insert_balance",
    "insert_balance_batch",
]


async def insert_balance(row: BalanceSnapshot) -> int:
    """Insert one row and return its id."""
    row_id: int = await generic.insert(BALANCES, row)
    return row_id


async def insert_balance_batch(rows: Iterable[BalanceSnapshot], *, time_unit: str | None = None) -> int:
    """Store rows by COPY; return the server's count. See generic.insert_batch."""
    return await generic.insert_batch(BALANCES, rows, time_unit=time_unit)


async def get_latest_balance_by_exchange(
    exchange_id: int, asset_name: str, *, decimals: bool = False
) -> BalanceSnapshot | None:
    """Return the newest row, or None."""
    found: BalanceSnapshot | None = await generic.get_latest(BALANCES, exchange_id, asset_name, decimals=decimals)
    return found


async def get_balance_history(
    exchange_id: int,
    asset_name: str,
    start: datetime,
    end: datetime,
    *,
    limit: int | None = None,
    decimals: bool = False,
) -> list[BalanceSnapshot]:
    """Return the rows with start <= timestamp < end, oldest first."""
    return await generic.get_history(
        BALANCES, exchange_id, asset_name, start=start, end=end, limit=limit, decimals=decimals
    )


async def get_balance_with_exchange_info(exchange_id: int, asset_name: str) -> dict[str, Any] | None:
    """Return the newest balance with its exchange's name: ``entity``, ``exchange``, ``display_name``."""
    entity = await get_latest_balance_by_exchange(exchange_id, asset_name)
    if entity is None:
        return None
    exchange = await get_db_manager().fetchval("SELECT enum_value FROM exchanges WHERE id = $1", exchange_id)
    return {"entity": entity, "exchange": exchange, "display_name": f"{exchange}:{asset_name}"}


async def get_balance_stats(since: datetime | None = None) -> dict[str, Any]:
    """Return counts, bounds and averages; see generic.get_stats."""
    return await generic.get_stats(BALANCES, averages=(), since=since)
