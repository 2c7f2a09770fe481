"""Compressed chunks for real, at PGTICK_TEST_TIMESCALE_DSN: everything goes on working on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from timescale import empty_database, needs_timescale, skip_unless_licence, started

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager
from pgtick.engines import Engine, get_engine, maintain
from pgtick.engines.series import create_series
from pgtick.migrator import rollback_migration, run_pending_migrations
from pgtick.tables import BUILT_IN_TABLES, TRADES
from pgtick.writer import store_rows

pytestmark = needs_timescale

TABLE = TRADES.name
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
#: Half a day ago: behind the six hours in which late rows are expected. In the middle of a chunk.
THEN = datetime.now(UTC).replace(minute=15, second=0, microsecond=0) - 12 * HOUR
AFTER = {
    "arbitrage_opportunities": 2 * DAY,
    "balance_snapshots": DAY,
    "book_ticker_snapshots": 6 * HOUR,
    "funding_rate_snapshots": DAY,
    "order_flow_metrics": DAY,
    "trade_snapshots": 6 * HOUR,
}
_POLICIES = (
    "SELECT hypertable_name::text, (config ->> 'compress_after')::interval, schedule_interval "
    "FROM timescaledb_information.jobs WHERE proc_name = 'policy_compression'"
)
_COMPRESSED = "SELECT count(*) FROM timescaledb_information.chunks WHERE is_compressed AND hypertable_name = $1"


@pytest.fixture
async def empty() -> AsyncIterator[DatabaseConfig]:
    async with empty_database() as config:
        yield config


@pytest.fixture
async def db(empty: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    async with started(empty) as manager:
        await skip_unless_licence(manager, "timescale")
        yield manager


@pytest.fixture
async def engine(db: DatabaseManager) -> Engine:
    return await get_engine(db)


def trade(number: int, **changes: Any) -> dict[str, Any]:
    values = {
        "timestamp": THEN + number * timedelta(seconds=1),
        "symbol_id": 1,
        "price": f"{number + 1}.10",
        "quantity": 1,
        "side": "buy",
        "trade_id": str(number),
    }
    return {**values, **changes}


async def compress(db: DatabaseManager, table: str = TABLE) -> int:
    """Run the table's policy; return how many chunks are compressed."""
    job = await db.fetchval(
        "SELECT job_id FROM timescaledb_information.jobs "
        "WHERE proc_name = 'policy_compression' AND hypertable_name = $1",
        table,
    )
    await db.execute(f"CALL run_job({job})")
    return int(await db.fetchval(_COMPRESSED, table))


@pytest.fixture
async def compressed(db: DatabaseManager) -> None:
    """A compressed chunk of 100 trades."""
    assert (await store_rows(TRADES, [trade(n) for n in range(100)], db=db)).n_stored == 100
    assert await compress(db) == 1


async def count(db: DatabaseManager) -> int:
    return int(await db.fetchval(f"SELECT count(*) FROM {TABLE}"))


async def test_every_table_is_compressed_by_its_leading_column_after_its_window(db: DatabaseManager) -> None:
    settings = await db.fetch(
        "SELECT hypertable::text, segmentby, replace(orderby, '\"', '') AS orderby "
        "FROM timescaledb_information.hypertable_columnstore_settings WHERE segmentby IS NOT NULL"
    )
    expected = {
        table.name: (table.key[0], ",".join(["timestamp", *(c for c in table.key[1:] if c != "timestamp")]))
        for table in BUILT_IN_TABLES
    }
    assert {record["hypertable"]: (record["segmentby"], record["orderby"]) for record in settings} == expected
    policies = {table: (after, every) for table, after, every in await db.fetch(_POLICIES)}
    assert {table: after for table, (after, _) in policies.items()} == AFTER
    assert policies[TABLE][1] == HOUR / 2
    assert policies["balance_snapshots"][1] == HOUR
    kept = dict(map(tuple, await db.fetch("SELECT table_name, retention FROM pgtick_time_series")))
    assert all(after < kept[table] for table, after in AFTER.items())


async def test_rows_read_back_from_a_compressed_chunk_as_they_were(db: DatabaseManager, compressed: None) -> None:
    rows = await db.fetch(f"SELECT timestamp, price::text FROM {TABLE} WHERE symbol_id = 1 ORDER BY timestamp")
    assert [tuple(row) for row in rows] == [(trade(n)["timestamp"], f"{n + 1}.10") for n in range(100)]


async def test_late_rows_and_duplicates_are_stored_once_in_a_compressed_chunk(
    db: DatabaseManager, compressed: None
) -> None:
    result = await store_rows(TRADES, [trade(n) for n in range(50, 150)], db=db)
    assert (result.n_stored, result.n_duplicates, result.errors) == (50, 50, [])
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.copy_records_to_table(
            TABLE,
            [(THEN, 1, 1, 1, "buy", "0")],
            ("timestamp", "symbol_id", "price", "quantity", "side", "trade_id"),
        )
    assert await count(db) == 150
    assert await compress(db) == 1
    assert await count(db) == 150


async def test_references_and_checks_hold_for_compressed_chunks(db: DatabaseManager, compressed: None) -> None:
    result = await store_rows(TRADES, [trade(200, symbol_id=99), trade(201)], db=db)
    assert result.n_stored == 1
    assert isinstance(result.errors[0].__cause__, asyncpg.ForeignKeyViolationError)
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="77"):
        await db.execute(f"UPDATE {TABLE} SET symbol_id = 77")
    with pytest.raises(asyncpg.CheckViolationError):
        await db.execute(f"UPDATE {TABLE} SET price = 'NaN' WHERE trade_id = '5'")
    assert await count(db) == 101


async def test_update_and_delete_work_on_compressed_chunks(db: DatabaseManager, compressed: None) -> None:
    assert await db.execute(f"UPDATE {TABLE} SET is_maker = true WHERE trade_id = '5'") == "UPDATE 1"
    assert await db.execute(f"DELETE FROM {TABLE} WHERE symbol_id = 1 AND timestamp < $1", trade(3)["timestamp"])
    assert await db.fetchval(f"SELECT count(*) FROM {TABLE} WHERE is_maker") == 1
    assert await count(db) == 97


async def test_retention_drops_compressed_chunks(db: DatabaseManager, engine: Engine, compressed: None) -> None:
    assert await engine.drop_older_than(db, TABLE, THEN) == []
    assert len(await engine.drop_older_than(db, TABLE, THEN + HOUR)) == 1
    assert await count(db) == 0


async def test_generated_columns_and_updates_survive_compression(db: DatabaseManager) -> None:
    """The balances' total is generated; opportunities are updated after they were stored."""
    then = THEN - 3 * DAY
    await db.execute(
        "INSERT INTO balance_snapshots (timestamp, exchange_id, asset_name, available_balance, locked_balance) "
        "VALUES ($1, 1, 'A', 1.5, 2)",
        then,
    )
    await db.execute(
        "INSERT INTO arbitrage_opportunities (timestamp, symbol_id, buy_exchange_id, sell_exchange_id, buy_price, "
        "sell_price, spread_bps, detected_at) VALUES ($1, 1, 1, 1, 1, 2, 3, $1)",
        then,
    )
    assert await compress(db, "balance_snapshots") == 1
    assert await compress(db, "arbitrage_opportunities") == 1
    assert str(await db.fetchval("SELECT total_balance FROM balance_snapshots")) == "3.5"
    await db.execute("UPDATE balance_snapshots SET locked_balance = 3")
    assert str(await db.fetchval("SELECT total_balance FROM balance_snapshots")) == "4.5"
    assert await db.execute("UPDATE arbitrage_opportunities SET executed = true, duration_ms = 7") == "UPDATE 1"


async def test_changed_window_changes_that_table_s_policy_only(db: DatabaseManager) -> None:
    await db.execute("UPDATE pgtick_time_series SET columnstore_after = '1 day' WHERE table_name = $1", TABLE)
    await db.execute("UPDATE pgtick_time_series SET columnstore_after = NULL WHERE table_name = 'balance_snapshots'")
    await maintain(db)
    policies = {table: after for table, after, _ in await db.fetch(_POLICIES)}
    assert policies == {**{t: a for t, a in AFTER.items() if t != "balance_snapshots"}, TABLE: DAY}


async def test_own_table_is_compressed_when_its_window_is_set(db: DatabaseManager) -> None:
    table = 'Ticks "of" 人生\'s'
    await create_series(
        db,
        table,
        'timestamp timestamptz NOT NULL, symbol_id int NOT NULL, "N\'o" int, '
        'PRIMARY KEY (symbol_id, timestamp, "N\'o")',
        references={"symbol_id": "symbols"},
        chunk=HOUR,
        retention=3 * DAY,
    )
    await db.copy_records_to_table(table, [(THEN, 1, n) for n in range(10)], ("timestamp", "symbol_id", "N'o"))
    await maintain(db)
    assert len(await db.fetch(_POLICIES)) == len(AFTER)
    await db.execute("UPDATE pgtick_time_series SET columnstore_after = '2 hours' WHERE table_name = $1", table)
    await maintain(db)
    assert await compress(db, table) == 1


async def test_rollback_leaves_the_rows_and_can_be_applied_again(db: DatabaseManager, compressed: None) -> None:
    await rollback_migration("005", destructive=True)
    assert await count(db) == 100
    assert await db.fetchval(_COMPRESSED, TABLE) == 0
    assert await db.fetch(_POLICIES) == []
    assert await run_pending_migrations() == ["pgtick/005_columnstore_and_candles"]
    assert len(await db.fetch(_POLICIES)) == len(AFTER)
