"""TimescaleDB for real, at PGTICK_TEST_TIMESCALE_DSN; run it against a server of either licence."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest
from timescale import empty_database, needs_timescale, skip_unless_licence, started

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.engines import Engine, get_engine, maintain
from pgtick.engines.series import create_series
from pgtick.migrator import run_pending_migrations
from pgtick.tables import BUILT_IN_TABLES, INGEST_BATCHES, TRADES
from pgtick.writer import store_rows

pytestmark = needs_timescale

TABLE = TRADES.name
NOW = datetime.now(UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
# chunk interval, retention: docs/schema.md
GUIDE = {
    "book_ticker_snapshots": (30 * MINUTE, 3 * DAY),
    "trade_snapshots": (30 * MINUTE, 3 * DAY),
    "funding_rate_snapshots": (60 * MINUTE, 7 * DAY),
    "balance_snapshots": (360 * MINUTE, 14 * DAY),
    "arbitrage_opportunities": (DAY, 14 * DAY),
    "order_flow_metrics": (60 * MINUTE, 7 * DAY),
    "ingest_batches": (DAY, 7 * DAY),
}
_POLICIES = (
    "SELECT hypertable_name::text, job_id, (config ->> 'drop_after')::interval AS retention, schedule_interval "
    "FROM timescaledb_information.jobs WHERE proc_name = 'policy_retention' AND hypertable_name NOT LIKE '%candles%'"
)


@pytest.fixture
async def empty() -> AsyncIterator[DatabaseConfig]:
    async with empty_database() as config:
        yield config


@pytest.fixture
async def db(empty: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    async with started(empty) as manager:
        yield manager


@pytest.fixture
async def engine(db: DatabaseManager) -> Engine:
    return await get_engine(db)


@pytest.fixture
async def community(db: DatabaseManager) -> None:
    await skip_unless_licence(db, "timescale")


@pytest.fixture
async def apache(db: DatabaseManager) -> None:
    await skip_unless_licence(db, "apache")


async def store_days(db: DatabaseManager, n_days: int) -> None:
    """Store one trade a day, from half a day ago back."""
    rows = [
        {
            "timestamp": NOW - (n + 0.5) * DAY,
            "symbol_id": 1,
            "price": 1,
            "quantity": 1,
            "side": "buy",
            "trade_id": f"{n}",
        }
        for n in range(n_days)
    ]
    assert (await store_rows(TRADES, rows, db=db)).n_stored == n_days


async def count(db: DatabaseManager) -> int:
    return int(await db.fetchval(f"SELECT count(*) FROM {TABLE}"))


async def test_tables_are_hypertables_at_the_guide_s_intervals(db: DatabaseManager, engine: Engine) -> None:
    assert engine.name == "timescale"
    dimensions = await db.fetch(
        "SELECT hypertable_name::text, time_interval FROM timescaledb_information.dimensions "
        "WHERE hypertable_schema = 'public'"
    )
    assert dict(map(tuple, dimensions)) == {table: chunk for table, (chunk, _) in GUIDE.items()}
    assert set(GUIDE) == {*(table.name for table in BUILT_IN_TABLES), INGEST_BATCHES}
    indexes = await db.fetch("SELECT indexname::text FROM pg_indexes WHERE tablename = ANY($1) ORDER BY 1", list(GUIDE))
    assert [record[0] for record in indexes] == sorted(f"{table}_pkey" for table in GUIDE)


async def test_policies_keep_the_guide_s_retention_and_run_as_often_as_chunks_end(
    db: DatabaseManager, community: None
) -> None:
    policies = {r["hypertable_name"]: (r["schedule_interval"], r["retention"]) for r in await db.fetch(_POLICIES)}
    assert policies == {table: (min(chunk, 60 * MINUTE), kept) for table, (chunk, kept) in GUIDE.items()}


async def test_policy_drops_old_chunks(db: DatabaseManager, community: None) -> None:
    await store_days(db, 6)
    job = await db.fetchval(f"SELECT job_id FROM ({_POLICIES}) p WHERE hypertable_name = $1", TABLE)
    await db.execute(f"CALL run_job({job})")
    assert await count(db) == 3


async def test_changed_retention_changes_that_table_s_policy_only(
    db: DatabaseManager, engine: Engine, community: None
) -> None:
    before = {r["hypertable_name"]: r["job_id"] for r in await db.fetch(_POLICIES)}
    await engine.apply_retention(db)
    assert {r["hypertable_name"]: r["job_id"] for r in await db.fetch(_POLICIES)} == before
    await db.execute("UPDATE pgtick_time_series SET retention = '5 days' WHERE table_name = $1", TABLE)
    await engine.apply_retention(db)
    after = {r["hypertable_name"]: r for r in await db.fetch(_POLICIES)}
    assert after[TABLE]["retention"] == 5 * DAY
    assert {name for name, record in after.items() if record["job_id"] != before[name]} == {TABLE}


async def test_missing_policy_is_put_back_by_maintenance(db: DatabaseManager, community: None) -> None:
    await db.execute("SELECT remove_retention_policy($1::regclass)", TABLE)
    assert len(await db.fetch(_POLICIES)) == len(GUIDE) - 1
    await maintain(db)
    assert len(await db.fetch(_POLICIES)) == len(GUIDE)


async def test_without_policies_maintenance_drops_old_chunks(db: DatabaseManager, apache: None) -> None:
    await store_days(db, 6)
    assert await db.fetch(_POLICIES) == []
    dropped = await maintain(db)
    assert dropped is not None
    assert {table: len(names) for table, names in dropped.items() if names} == {TABLE: 3}
    assert await count(db) == 3


async def test_drop_older_than_keeps_the_chunk_of_the_cutoff(db: DatabaseManager, engine: Engine) -> None:
    await store_days(db, 6)
    assert len(await engine.drop_older_than(db, TABLE, NOW - 4 * DAY)) == 2
    cutoff = NOW - 3.5 * DAY  # inside the chunk of the row of that instant
    assert await engine.drop_older_than(db, TABLE, cutoff) == []
    assert await count(db) == 4


async def test_dry_run_names_the_chunks_and_drops_nothing(db: DatabaseManager, engine: Engine) -> None:
    await store_days(db, 6)
    would_go = await maintain(db, dry_run=True)
    assert would_go is not None
    assert {table: len(names) for table, names in would_go.items() if names} == {TABLE: 3}
    assert await count(db) == 6
    assert sorted(await engine.drop_older_than(db, TABLE, NOW - 3 * DAY)) == sorted(would_go[TABLE])


async def test_references_are_checked_in_copy_insert_and_update(db: DatabaseManager) -> None:
    await store_days(db, 1)
    orphan = {"timestamp": NOW, "symbol_id": 99, "price": 1, "quantity": 1, "side": "buy", "trade_id": "x"}
    result = await store_rows(TRADES, [orphan, {**orphan, "symbol_id": 1}], db=db)
    assert result.n_stored == 1
    assert [error.index for error in result.errors] == [0]
    assert isinstance(result.errors[0].__cause__, asyncpg.ForeignKeyViolationError)
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="77"):
        await db.execute(f"UPDATE {TABLE} SET symbol_id = 77")
    assert await count(db) == 2


async def test_reader_of_an_old_chunk_holds_up_retention_and_not_ingest(db: DatabaseManager, engine: Engine) -> None:
    await store_days(db, 6)
    reader = await asyncpg.connect(**db.config.connect_kwargs())
    try:
        async with reader.transaction():
            await reader.fetch(f"SELECT * FROM {TABLE}")
            dropping = asyncio.create_task(engine.drop_older_than(db, TABLE, NOW - 3 * DAY))
            query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
            async with asyncio.timeout(10):
                while not await reader.fetchval(query):  # noqa: ASYNC110  it is the server's state that is waited for
                    await asyncio.sleep(0.02)
            started = asyncio.get_running_loop().time()
            for n in range(10):
                row = {"timestamp": NOW, "symbol_id": 1, "price": 1, "quantity": 1, "side": "buy", "trade_id": f"n{n}"}
                assert (await store_rows(TRADES, [row], db=db)).n_stored == 1
            assert asyncio.get_running_loop().time() - started < 0.4  # a wait would last _LOCK_TIMEOUT, 0.5 s
        assert len(await dropping) == 3
    finally:
        await reader.close()


async def test_names_that_need_quoting_work(db: DatabaseManager, engine: Engine) -> None:
    table = 'Ticks "of" 人生\'s'
    await create_series(
        db,
        table,
        "timestamp timestamptz NOT NULL, symbol_id int NOT NULL, PRIMARY KEY (symbol_id, timestamp)",
        references={"symbol_id": "symbols"},
        chunk=30 * MINUTE,
        retention=3 * DAY,
    )
    columns = ("timestamp", "symbol_id")
    await db.copy_records_to_table(table, [(NOW - (n + 0.5) * DAY, 1) for n in range(6)], columns)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await db.copy_records_to_table(table, [(NOW, 99)], columns)
    assert len(await engine.drop_older_than(db, table, NOW - 3 * DAY)) == 3
    await engine.apply_retention(db)


async def test_extension_beside_partitioned_tables_changes_nothing(empty: DatabaseConfig) -> None:
    plain = await open_manager(msgspec.structs.replace(empty, engine="plain"))
    try:
        await run_pending_migrations(plain)
    finally:
        await plain.close()
    manager = await open_manager(empty)
    try:
        assert (await get_engine(manager)).name == "plain"
    finally:
        await manager.close()


async def test_sizes_and_description_tell_of_chunks_and_retention(db: DatabaseManager, engine: Engine) -> None:
    await store_days(db, 2)
    await db.execute(f"ANALYZE {TABLE}")
    sizes = {size.table: size for size in await engine.sizes(db)}
    assert list(sizes) == sorted(GUIDE)
    found = sizes[TABLE]
    assert (found.n_rows, found.n_parts) == (2, 2)
    assert 0 < found.n_index_bytes < found.n_bytes
    assert sizes["balance_snapshots"].n_parts == 0
    described = {info.table: info for info in await engine.describe(db)}
    assert {t: (info.part_interval, info.retention) for t, info in described.items()} == GUIDE
    info = described[TABLE]
    assert (info.kind, info.n_parts, info.findings) == ("hypertable", 2, ())
    assert info.oldest is not None
    assert info.newest is not None
    assert info.oldest <= NOW - 1.5 * DAY < NOW - 0.5 * DAY < info.newest
    assert described["balance_snapshots"].oldest is None
    community = await db.fetchval("SHOW timescaledb.license") == "timescale"
    assert info.retention_by == ("policy, every 0:30:00" if community else "pgtick maintain")


async def test_policies_that_do_not_run_are_findings(db: DatabaseManager, engine: Engine, community: None) -> None:
    jobs = {record["hypertable_name"]: record["job_id"] for record in await db.fetch(_POLICIES)}
    await db.execute("SELECT remove_retention_policy('balance_snapshots')")
    await db.execute("SELECT alter_job($1, scheduled => false)", jobs["order_flow_metrics"])
    await db.execute("CALL remove_columnstore_policy('order_flow_metrics')")
    await db.execute("SELECT remove_continuous_aggregate_policy('mid_candles_1m')")
    # A view on a chunk keeps it, and the rest of the table, from being dropped.
    await db.execute("INSERT INTO funding_rate_snapshots VALUES (1, $1, 1, 1, $1)", NOW - 10 * DAY)
    chunk = await db.fetchval("SELECT show_chunks('funding_rate_snapshots')::text")
    await db.execute(f"CREATE VIEW on_chunk AS SELECT * FROM {chunk}")
    job = jobs["funding_rate_snapshots"]
    await db.execute("SELECT alter_job($1, next_start => now())", job)
    failed = f"SELECT last_run_status FROM timescaledb_information.job_stats WHERE job_id = {job}"
    async with asyncio.timeout(60):
        while await db.fetchval(failed) != "Failed":  # noqa: ASYNC110  it is the server's state that is waited for
            await asyncio.sleep(0.1)
    await db.execute("SELECT _timescaledb_functions.stop_background_workers()")
    await db.execute("SELECT alter_job($1, next_start => now() - interval '1 day')", jobs["arbitrage_opportunities"])
    findings = {info.table: info.findings for info in await engine.describe(db)}
    assert findings["balance_snapshots"] == ("the policy for retention is missing: run pgtick maintain",)
    assert findings["order_flow_metrics"] == (
        "the policy for columnstore is missing: run pgtick maintain",
        f"the policy for retention is paused: SELECT alter_job({jobs['order_flow_metrics']}, scheduled => true)",
    )
    (candles,) = findings["book_ticker_snapshots"]
    assert "refresh of mid_candles_1m is missing" in candles
    (failing,) = findings["funding_rate_snapshots"]
    assert re.match(r"the policy for retention fails \(.*on_chunk|.*depend", failing)
    assert f"CALL run_job({job})" in failing
    (late,) = findings["arbitrage_opportunities"]
    assert "should have run at" in late
    assert "max_background_workers" in late
    assert findings[TABLE] == ()
    await maintain(db)
    findings = {info.table: info.findings for info in await engine.describe(db)}
    assert findings["balance_snapshots"] == findings["book_ticker_snapshots"] == ()
