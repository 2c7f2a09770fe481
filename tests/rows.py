"""What the tests of operations and writer share: a symbol, and rows of every entity that differ by one number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import msgspec

from pgtick import models, tables
from pgtick.connection import DatabaseManager
from pgtick.operations import (
    arbitrage_opportunity,
    balance,
    book_ticker,
    exchanges,
    funding_rate,
    order_flow_metrics,
    symbols,
    trade,
)
from pgtick.tables import Table

__all__ = ["ENTITIES", "MINUTE", "NOW", "Entity", "make_symbol", "quarantined", "settled", "ticker", "until"]

NOW = datetime.now(UTC).replace(microsecond=123456)
MINUTE = timedelta(minutes=1)
ASSET = "USDT.E"


async def make_symbol(exchange: str = "GATEIO_SPOT", base: str = "BTC", quote: str = "USDT") -> int:
    return await symbols.ensure_symbol(await exchanges.ensure_exchange(exchange), base, quote, f"{base}_{quote}")


def ticker(symbol_id: int, **changes: object) -> models.BookTickerSnapshot:
    values: dict[str, object] = {
        "timestamp": NOW,
        "symbol_id": symbol_id,
        "bid_price": "50000.10",
        "ask_price": "50000.20",
        "bid_qty": 1.5,
        "ask_qty": 2,
        "sequence_number": 1,
    }
    return models.BookTickerSnapshot(**{**values, **changes})  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that in 20 s")


async def settled(db: DatabaseManager) -> None:
    """Wait until the pool is whole and the server has ended every other session of the database, but a listener's.

    What was sent whole before its connection was cut is carried out, and a session that has not begun with it yet
    looks as idle as any: only its end tells.
    """
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND query NOT ILIKE 'LISTEN%'"
    )
    for _ in range(1000):
        state = db.pool_state()
        if state["size"] == state["idle"] and await db.fetchval(others) <= db.pool_state()["size"]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{db.pool_state()}: connections are missing, or the server works for one that was cut")


async def quarantined(db: DatabaseManager) -> list[tuple[str, str, str]]:
    """Return table, column and reason of what is in quarantine, in its order."""
    query = "SELECT table_name, column_name, reason FROM ingest_quarantine ORDER BY id"
    return [tuple(record) for record in await db.fetch(query)]


class Entity(msgspec.Struct, frozen=True):
    """An entity by its name in the operations; ``row`` makes the row of n minutes ago for its leading id."""

    name: str
    module: ModuleType
    table: Table
    row: Callable[[int, int], Any]
    average: str | None

    def __getattr__(self, verb: str) -> Any:
        """Return the operation: insert, insert_batch, get_latest, get_history, get_info, get_stats."""
        of_exchange = self.table.key[0] == "exchange_id"
        name = {
            "insert": f"insert_{self.name}",
            "insert_batch": f"insert_{self.name}_batch",
            "get_latest": f"get_latest_{self.name}_by_{'exchange' if of_exchange else 'symbol'}",
            "get_history": f"get_{self.name}_history",
            "get_info": f"get_{self.name}_with_{'exchange' if of_exchange else 'symbol'}_info",
            "get_stats": f"get_{self.name}_stats",
        }.get(verb)
        if name is None:
            raise AttributeError(verb)
        assert name in self.module.__all__
        return getattr(self.module, name)

    def ids(self, leading_id: int) -> tuple[object, ...]:
        """Return the ids that the look-ups take."""
        return (leading_id, ASSET) if self.name == "balance" else (leading_id,)


def _trade(symbol_id: int, n: int) -> models.TradeSnapshot:
    return models.TradeSnapshot(
        timestamp=NOW - n * MINUTE, symbol_id=symbol_id, price="1.50", quantity=n, side="buy", trade_id=str(n)
    )


def _funding_rate(symbol_id: int, n: int) -> models.FundingRateSnapshot:
    return models.FundingRateSnapshot(
        timestamp=NOW - n * MINUTE, symbol_id=symbol_id, funding_rate="-0.0001", funding_time=NOW
    )


def _balance(exchange_id: int, n: int) -> models.BalanceSnapshot:
    return models.BalanceSnapshot(
        timestamp=NOW - n * MINUTE,
        exchange_id=exchange_id,
        asset_name=ASSET,
        available_balance="1.1",
        locked_balance=n,
    )


def _opportunity(symbol_id: int, n: int) -> models.ArbitrageOpportunity:
    return models.ArbitrageOpportunity(
        timestamp=NOW - n * MINUTE,
        symbol_id=symbol_id,
        buy_exchange_id=1,
        sell_exchange_id=1,
        buy_price=1,
        sell_price=2,
        spread_bps=10_000,
        detected_at=NOW,
    )


def _metrics(symbol_id: int, n: int) -> models.OrderFlowMetrics:
    return models.OrderFlowMetrics(
        timestamp=NOW - n * MINUTE,
        symbol_id=symbol_id,
        ofi_score=-1.5,
        microprice=1.0,
        mid_price=1.0,
        spread_bps=2.0,
        volume_imbalance=0.0,
    )


ENTITIES = (
    Entity(
        "book_ticker",
        book_ticker,
        tables.BOOK_TICKERS,
        lambda symbol_id, n: ticker(symbol_id, timestamp=NOW - n * MINUTE, sequence_number=n),
        "bid_price",
    ),
    Entity("trade", trade, tables.TRADES, _trade, "price"),
    Entity("funding_rate", funding_rate, tables.FUNDING_RATES, _funding_rate, "funding_rate"),
    Entity("balance", balance, tables.BALANCES, _balance, None),
    Entity("arbitrage_opportunity", arbitrage_opportunity, tables.ARBITRAGE_OPPORTUNITIES, _opportunity, "spread_bps"),
    Entity("order_flow_metrics", order_flow_metrics, tables.ORDER_FLOW_METRICS, _metrics, "ofi_score"),
)
