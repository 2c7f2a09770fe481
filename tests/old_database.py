"""An old database for the tests of the adoption: the guide's script, and thousands of rows with hard values."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from pgtick.connection import DatabaseManager

SCRIPT = Path(__file__).with_name("guide_init_db.sql")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TABLES = (
    "exchanges",
    "symbols",
    "book_ticker_snapshots",
    "trade_snapshots",
    "funding_rate_snapshots",
    "balance_snapshots",
    "arbitrage_opportunities",
    "order_flow_metrics",
)

# Several days, some past the retention, few chunks each (a chunk takes its time to make); steps of 1e-8, zero
# quantities, NULL wherever the guide's tables let it in.
_ROWS = """
INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol, is_active, created_at) VALUES
    (1, 'BTC', 'USDT', 'BTCUSDT', NULL, NULL), (2, 'BTC', 'USDT', 'BTC_USDT', true, now()),
    (3, 'BTC', 'USDT', 'BTC_USDT', true, now()), (3, 'MYX', 'USDT', 'MYX_USDT', false, now());

INSERT INTO book_ticker_snapshots
    (timestamp, symbol_id, bid_price, bid_qty, ask_price, ask_qty, sequence_number, update_type, created_at)
SELECT now() - n / 500 * interval '1 day' - n % 500 * interval '1.000123 s',
    1 + n % 4, n * 0.00000001, CASE n % 5 WHEN 0 THEN 0 ELSE n / 3.0 END,
    999999999999.99999999 - n, n * 1.00000001, CASE WHEN n % 3 <> 0 THEN 9007199254740993 + n END,
    CASE WHEN n % 7 <> 0 THEN 'diff' END, CASE WHEN n % 11 <> 0 THEN now() - n / 500 * interval '1 day' END
FROM generate_series(1, 3000) n;

INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id, quote_quantity, is_buyer, is_maker)
SELECT now() - n / 600 * interval '1 day' - n % 600 * interval '0.5 s',
    1 + n % 4, n * 0.00000001, n % 2, CASE n % 2 WHEN 0 THEN 'buy' ELSE 'sell' END,
    CASE WHEN n % 3 <> 0 THEN 'T' || n END, CASE WHEN n % 4 <> 0 THEN n * 0.1 END,
    CASE n % 3 WHEN 0 THEN true WHEN 1 THEN false END, CASE n % 3 WHEN 1 THEN true WHEN 2 THEN false END
FROM generate_series(1, 3000) n;

INSERT INTO funding_rate_snapshots (timestamp, symbol_id, funding_rate, funding_time, next_funding_time)
SELECT now() - n / 24 * interval '1 day' - n % 24 * interval '1 min',
    3 + n % 2, (n - 100) * 0.00000001, 1700000000001 + n * 3600000,
    CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN 0 ELSE 1700028800999 + n END
FROM generate_series(1, 240) n;

INSERT INTO balance_snapshots (timestamp, exchange_id, asset_name, available_balance, locked_balance, frozen_balance,
    borrowing_balance, interest_balance)
SELECT now() - n / 80 * interval '1 day' - n % 80 * interval '1 min',
    1 + n % 3, CASE n % 4 WHEN 0 THEN 'USDT.E' ELSE 'BTC' END,
    (ARRAY[0.1, 16777217, 0, 1e-7, 123456.79, 3.4e38, 1e-45, 33554431])[1 + n % 8]::real, n / 7.0,
    CASE n % 3 WHEN 0 THEN NULL WHEN 1 THEN 0 ELSE 0.3 END, CASE WHEN n % 5 = 0 THEN 1e10 END, NULL
FROM generate_series(1, 1200) n;

INSERT INTO arbitrage_opportunities (timestamp, symbol_id, buy_exchange_id, sell_exchange_id, buy_price, sell_price,
    spread_bps, max_volume_quote, detected_at, executed)
SELECT now() - n / 10 * interval '1 day' - n % 10 * interval '1 min',
    1 + n % 4, 1, 2 + n % 2, n * 0.00000001, n * 0.00000002, (n - 50) * 0.0001,
    CASE WHEN n % 2 = 0 THEN 0 END, CASE WHEN n % 4 <> 0 THEN now() END, CASE n % 3 WHEN 0 THEN NULL ELSE n % 3 = 1 END
FROM generate_series(1, 100) n;

INSERT INTO order_flow_metrics
    (timestamp, symbol_id, ofi_score, microprice, mid_price, spread_bps, volume_imbalance)
SELECT now() - n / 125 * interval '1 day' - n % 125 * interval '1 s',
    1 + n % 4, (n - 500) * 0.001, n * 0.00000001, 1234567890.12345678 + n,
    0.1 * n, -0.123456
FROM generate_series(1, 1000) n;
"""


async def make_schema(db: DatabaseManager) -> bool:
    """Run the guide's script; return whether the tables are hypertables."""
    script = SCRIPT.read_text("utf-8")
    has_timescale = await db.fetchval("SELECT true FROM pg_extension WHERE extname = 'timescaledb'")
    if not has_timescale:
        script = "\n".join(line for line in script.splitlines() if not line.endswith("-- timescale"))
    elif await db.fetchval("SELECT current_setting('timescaledb.license') <> 'timescale'"):
        script = re.sub("SELECT add_retention_policy.*", "", script)
    await db.execute(script)
    if has_timescale:  # a policy's first run is at once: it would drop the old rows before anybody adopts them
        await db.execute(
            "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs "
            "WHERE proc_name = 'policy_retention'"
        )
    return bool(has_timescale)


async def make_database(db: DatabaseManager) -> bool:
    """Make the guide's database with rows; return whether its tables are hypertables."""
    has_timescale = await make_schema(db)
    await db.execute(_ROWS)
    return has_timescale


async def rows_of(db: DatabaseManager, table: str) -> list[dict[str, Any]]:
    """Return every row of a table, in an order of their own."""
    records = await db.fetch(f"SELECT * FROM {table}")
    return sorted((dict(record) for record in records), key=lambda row: (row.get("id", 0), str(row.get("timestamp"))))


def adopted(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """Return what the old row must be afterwards, column by column, by Python alone."""
    stands_in = {
        "sequence_number": -1,
        "trade_id": "-1",
        "update_type": "snapshot",
        "is_active": True,
        "executed": False,
        "created_at": row.get("timestamp"),
        "detected_at": row.get("timestamp"),
    }
    new = {}
    for name, value in row.items():
        if name == "total_balance":
            continue
        if value is None:
            new[name] = stands_in.get(name)
        elif name in ("funding_time", "next_funding_time"):
            new[name] = EPOCH + timedelta(milliseconds=value)
        elif table == "balance_snapshots" and isinstance(value, float):
            new[name] = Decimal(str(np.float32(value)))
        elif table == "order_flow_metrics" and isinstance(value, Decimal):
            new[name] = float(value)
        else:
            new[name] = value
    return new
