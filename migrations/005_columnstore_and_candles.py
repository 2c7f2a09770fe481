"""Migration 005: compressed chunks and candle aggregates where TimescaleDB's community licence has them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pgtick.connection import get_db_manager
from pgtick.engines import get_engine
from pgtick.engines.candles import create_candle_views, drop_candle_views
from pgtick.engines.columnstore import add_columnstore, has_policies, remove_columnstore

SQL = """
ALTER TABLE pgtick_time_series ADD COLUMN columnstore_after interval CHECK (columnstore_after > interval '0');
COMMENT ON COLUMN pgtick_time_series.columnstore_after IS
    'how old chunks are compressed, NULL: never; change it here';
CREATE TABLE pgtick_candles (
    candle_view text PRIMARY KEY, source_table text NOT NULL, width interval NOT NULL, retention interval
);
COMMENT ON TABLE pgtick_candles IS 'the candle aggregates and how long they are kept, NULL: for ever; change it here';
"""

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
# table: key, chunk interval, columnstore_after. A late row finds its place in a compressed chunk too, only slower:
# what is left uncompressed is the time in which many are expected.
COLUMNSTORE = {
    # Rows that a writer has spooled while the database was away come in when it is back, hours later.
    "book_ticker_snapshots": (("symbol_id", "timestamp", "sequence_number"), HOUR / 2, 6 * HOUR),
    "trade_snapshots": (("symbol_id", "timestamp", "trade_id"), HOUR / 2, 6 * HOUR),
    # Venues' histories are asked again for the last day after a gap.
    "funding_rate_snapshots": (("symbol_id", "timestamp"), HOUR, DAY),
    "balance_snapshots": (("exchange_id", "asset_name", "timestamp"), 6 * HOUR, DAY),
    # executed and duration_ms are updated while an opportunity lasts and when its orders have settled.
    "arbitrage_opportunities": (("symbol_id", "timestamp", "buy_exchange_id", "sell_exchange_id"), DAY, 2 * DAY),
    # Computed again from books and trades after a gap in them, so no sooner than those.
    "order_flow_metrics": (("symbol_id", "timestamp"), HOUR, DAY),
}


async def migrate_up() -> dict[str, Any]:
    """Add what holds the settings, and the policies and aggregates where there are any."""
    db = get_db_manager()
    engine = await get_engine(db)
    await db.execute(SQL)
    if engine.name == "timescale" and await has_policies(db):
        for table, (key, chunk, after) in COLUMNSTORE.items():
            await add_columnstore(db, table, key, chunk=chunk, after=after)
        await create_candle_views(db)
    return {"success": True, "tables_created": ["pgtick_candles"]}


async def migrate_down() -> dict[str, Any]:
    """Drop the aggregates with their candles and make compressed chunks rows again."""
    db = get_db_manager()
    engine = await get_engine(db)
    if engine.name == "timescale" and await has_policies(db):
        await drop_candle_views(db)
        await remove_columnstore(db)
    await db.execute("DROP TABLE pgtick_candles; ALTER TABLE pgtick_time_series DROP COLUMN columnstore_after")
    return {"success": True, "tables_dropped": ["pgtick_candles"]}


async def get_migration_info() -> dict[str, Any]:
    """Describe the migration."""
    return {
        "id": "005",
        "name": "columnstore_and_candles",
        "tables_created": ["pgtick_candles"],
        "dependencies": ["book_ticker_snapshots", "trade_snapshots"],
    }
