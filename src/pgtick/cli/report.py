"""What the demo and the replay print after reading back."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from pgtick.cache_operations import get_cache_stats, symbol_cache
from pgtick.connection import get_db_manager
from pgtick.operations.cross_exchange import get_cross_exchange_spreads, get_latest_prices
from pgtick.writer.metrics import Counts

__all__ = ["print_prices", "print_rows", "print_system", "time_lookup_ns"]


_MAX_SKEW = timedelta(minutes=1)  # recordings of other years are no spread
_NUMBERS = {"stored", "duplicates", "quarantined", "spooled", "rows/s", "bid", "ask"}


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,.10f}".rstrip("0").rstrip(".")


def _grid(title: str, *columns: str) -> Grid:
    grid = Grid(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        grid.add_column(column, justify="right" if column in _NUMBERS else "left", no_wrap=True)
    return grid


def print_rows(console: Console, counts: dict[str, Counts], seconds: float) -> None:
    """Print per table what became of the rows."""
    grid = _grid(f"rows, in {seconds:.1f} s", "table", "stored", "duplicates", "quarantined", "spooled", "rows/s")
    for name, total in sorted(counts.items()):
        rate = f"{(total.n_stored + total.n_duplicates) / seconds:,.0f}" if seconds else ""
        grid.add_row(
            name,
            f"{total.n_stored:,}",
            f"{total.n_duplicates:,}",
            f"{total.n_quarantined:,}",
            f"{total.n_spooled:,}",
            rate,
        )
    console.print(grid)


async def print_prices(console: Console, since: datetime, *, limit: int = 8) -> None:
    """Print the newest prices and the widest spread between exchanges."""
    grid = _grid("newest prices", "exchange", "symbol", "bid", "ask", "at (UTC)")
    for row in (await get_latest_prices(since))[:limit]:
        at = row["timestamp"].astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        grid.add_row(row["exchange"], row["exchange_symbol"], _number(row["bid_price"]), _number(row["ask_price"]), at)
    console.print(grid)
    spreads = await get_cross_exchange_spreads(since, limit=1, max_skew=_MAX_SKEW)
    if not spreads:
        console.print("no pair was quoted on two exchanges within a minute: no spread to show")
    for spread in spreads:
        console.print(
            f"widest spread: {spread['symbol_base']}/{spread['symbol_quote']} buy on {spread['buy_exchange']} at "
            f"{_number(spread['buy_price'])}, sell on {spread['sell_exchange']} at {_number(spread['sell_price'])}: "
            f"[bold]{spread['spread_bps']:.2f} bps[/bold]",
            soft_wrap=True,
        )


def time_lookup_ns(n: int = 200_000) -> float:
    """Return the time of one cache look-up by id in ns, loop included."""
    cache = symbol_cache()
    ids = [symbol.id for symbol in cache.symbols()] or [1]
    get, sample = cache.get, (ids * (n // len(ids) + 1))[:n]
    started = time.perf_counter_ns()
    for symbol_id in sample:
        get(symbol_id)
    return (time.perf_counter_ns() - started) / n


async def print_system(console: Console, data_dir: str | None, psql: str | None) -> None:
    """Print the cache's figures and where the data is."""
    stats = get_cache_stats()
    console.print(
        f"symbol cache: {stats['size']} symbols, {stats['hits']:,} hits, {stats['misses']:,} misses, "
        f"{time_lookup_ns():.0f} ns a look-up"
    )
    db = get_db_manager()
    version = await db.fetchval("SHOW server_version")
    size = await db.fetchval("SELECT pg_size_pretty(pg_database_size(current_database()))")
    console.print(f"PostgreSQL {version}, database {db.config.database}: {size}")
    if data_dir:
        console.print(f"the data is in {data_dir}", soft_wrap=True)
    if psql:
        console.print(f"connect, while `pgtick server` runs: {psql}", soft_wrap=True)


def hours_ago(hours: float) -> datetime:
    """Return the aware instant so many hours before now."""
    return datetime.now(UTC) - timedelta(hours=hours)
