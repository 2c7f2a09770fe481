"""Time-series tables: how plain PostgreSQL describes and measures its own, and what the doctor makes of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from looked_at import ADD_TRADE, EXCHANGE_AND_SYMBOL, only

from pgtick.connection import DatabaseManager
from pgtick.doctor import examine
from pgtick.engines import get_engine, maintain
from pgtick.engines.plain import PlainEngine
from pgtick.tables import BUILT_IN_TABLES, INGEST_BATCHES

pytestmark = pytest.mark.engines("plain")

TABLE = "trade_snapshots"
DAY = timedelta(days=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
async def engine(db: DatabaseManager) -> PlainEngine:
    """The engine of ``db``, with exchange 1 and symbol 1 registered."""
    engine = await get_engine(db)
    assert isinstance(engine, PlainEngine)
    await db.execute(EXCHANGE_AND_SYMBOL)
    return engine


async def midnight(db: DatabaseManager) -> datetime:
    instant: datetime = await db.fetchval("SELECT date_trunc('day', now(), 'UTC')")
    return instant


async def add_trade(db: DatabaseManager, engine: PlainEngine, age: timedelta) -> None:
    now: datetime = await db.fetchval("SELECT now()")
    await engine.ensure_days(db, TABLE, [(now - age - EPOCH).days])
    await db.execute(ADD_TRADE, age)


async def drop_partitions(db: DatabaseManager) -> None:
    query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass"
    for (name,) in await db.fetch(query, TABLE):
        await db.execute(f"DROP TABLE {name}")


async def test_describe_says_how_each_table_is_kept(db: DatabaseManager, engine: PlainEngine) -> None:
    today = await midnight(db)
    infos = {info.table: info for info in await engine.describe(db)}
    assert list(infos) == sorted([*(table.name for table in BUILT_IN_TABLES), INGEST_BATCHES])
    info = infos["funding_rate_snapshots"]
    assert (info.kind, info.part_interval, info.retention, info.n_parts) == ("partitioned", DAY, 7 * DAY, 4)
    assert (info.oldest, info.newest) == (today, today + 4 * DAY)
    assert (info.retention_by, info.n_shards, info.findings) == ("pgtick maintain", None, ())


async def test_describe_without_partitions_names_today_and_tomorrow(db: DatabaseManager, engine: PlainEngine) -> None:
    for (name,) in await db.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass", TABLE
    ):
        await db.execute(f"DROP TABLE {name}")
    info = next(info for info in await engine.describe(db) if info.table == TABLE)
    assert (info.n_parts, info.oldest, info.newest) == (0, None, None)
    today = await midnight(db)
    assert [finding.split(",")[0] for finding in info.findings] == [
        f"no partition for today ({today:%Y-%m-%d})",
        f"no partition for tomorrow ({today + DAY:%Y-%m-%d})",
    ]


async def test_sizes_sum_rows_and_bytes_over_the_partitions(db: DatabaseManager, engine: PlainEngine) -> None:
    for n in range(2):
        await add_trade(db, engine, n * DAY)
    await db.execute(f"ANALYZE {TABLE}")
    size = next(size for size in await engine.sizes(db) if size.table == TABLE)
    assert (size.n_rows, size.n_parts) == (2, 5)
    parts = await db.fetch("SELECT relid FROM pg_partition_tree($1::regclass) WHERE isleaf", TABLE)
    total = [await db.fetchval("SELECT pg_total_relation_size($1)", relid) for (relid,) in parts]
    assert size.n_bytes == sum(total)
    assert 0 < size.n_index_bytes < size.n_bytes


async def test_sizes_of_a_table_without_partitions_are_zero(db: DatabaseManager, engine: PlainEngine) -> None:
    for (name,) in await db.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass", TABLE
    ):
        await db.execute(f"DROP TABLE {name}")
    size = next(size for size in await engine.sizes(db) if size.table == TABLE)
    assert (size.n_bytes, size.n_index_bytes, size.n_rows, size.n_parts) == (0, 0, 0, 0)


async def test_missing_tomorrow_is_found_and_maintain_is_what_to_do(db: DatabaseManager, engine: PlainEngine) -> None:
    tomorrow = await midnight(db) + DAY
    await db.execute(f"DROP TABLE {TABLE}_p{tomorrow:%Y%m%d}")
    finding = only(await examine(db), TABLE)
    assert finding.severity == "action"
    assert f"no partition for tomorrow ({tomorrow:%Y-%m-%d})" in finding.what
    assert finding.do == "run pgtick maintain"
    engine.forget(TABLE)
    await maintain(db)
    assert [finding.subject for finding in (await examine(db)).findings if finding.subject == TABLE] == []


async def test_partition_beyond_the_retention_is_found_until_maintenance_dropped_it(
    db: DatabaseManager, engine: PlainEngine
) -> None:
    await add_trade(db, engine, 6 * DAY)
    report = await examine(db)
    finding = next(finding for finding in report.findings if finding.subject == TABLE)
    assert finding.severity == "action"
    assert "retention is not in force, 1 partitions are older" in finding.what
    assert "pgtick maintain" in finding.do
    await maintain(db)
    assert [finding.subject for finding in (await examine(db)).findings if finding.subject == TABLE] == []


async def test_partition_that_maintenance_will_drop_soon_is_no_finding(
    db: DatabaseManager, engine: PlainEngine
) -> None:
    today = await midnight(db)
    await engine.ensure_days(db, TABLE, [(today - 4 * DAY - EPOCH).days])  # it ended three days ago, at midnight
    assert [finding for finding in (await examine(db)).findings if finding.subject == TABLE] == []


async def test_rows_of_a_partition_without_end_count_against_the_retention(
    db: DatabaseManager, engine: PlainEngine
) -> None:
    today = await midnight(db)
    await db.execute(f"CREATE TABLE older PARTITION OF {TABLE} FOR VALUES FROM (MINVALUE) TO ('{today.isoformat()}')")
    await db.execute(ADD_TRADE, 40 * DAY)
    finding = next(finding for finding in (await examine(db)).findings if finding.subject == TABLE)
    assert "retention is not in force: the oldest row is of" in finding.what
    assert "the retention is 3 days, 0:00:00" in finding.what


async def test_half_detached_partition_is_found_with_the_statement_that_ends_it(
    db: DatabaseManager, engine: PlainEngine
) -> None:
    day = await midnight(db) + 3 * DAY
    name = f"{TABLE}_p{day:%Y%m%d}"
    await db.execute(f"UPDATE pg_inherits SET inhdetachpending = true WHERE inhrelid = '{name}'::regclass")
    finding = only(await examine(db), TABLE)
    assert name in finding.what
    assert finding.do == f'ALTER TABLE "{TABLE}" DETACH PARTITION {name} FINALIZE'
    await db.execute(finding.do)
    assert [finding.subject for finding in (await examine(db)).findings if finding.subject == TABLE] == []


async def test_table_that_is_not_partitioned_is_found(db: DatabaseManager, engine: PlainEngine) -> None:
    await db.execute(
        "CREATE TABLE own (timestamp timestamptz, symbol_id int, PRIMARY KEY (symbol_id, timestamp));"
        "INSERT INTO pgtick_time_series VALUES ('own', '1 day', '1 day')"
    )
    report = await examine(db)
    assert "not partitioned" in only(report, "own").what
    info = next(series.info for series in report.series if series.table == "own")
    assert (info.kind, info.retention_by) == ("table", "nobody")


async def test_user_s_table_whose_key_serves_no_look_is_unseen(db: DatabaseManager, engine: PlainEngine) -> None:
    await engine.create(
        db, "own", "timestamp timestamptz, strategy int, PRIMARY KEY (strategy, timestamp)", chunk=DAY, retention=DAY
    )
    await engine.make_ahead(db)
    report = await examine(db)
    assert [unseen.subject for unseen in report.unseen] == ["rows of own"]
    assert [finding for finding in report.findings if finding.subject == "own"] == []


async def test_stale_exchange_is_found_and_an_inactive_one_is_not(db: DatabaseManager, engine: PlainEngine) -> None:
    await add_trade(db, engine, timedelta(minutes=11))
    finding = only(await examine(db), f"{TABLE}, A_SPOT")
    assert finding.severity == "action"
    assert "stale: the newest row is 0:11:0" in finding.what
    calm = await examine(db, stale_after={TABLE: DAY})
    assert not any(finding.subject.startswith(TABLE) for finding in calm.findings)
    await db.execute("UPDATE exchanges SET is_active = false")
    report = await examine(db)
    assert not any(finding.subject.startswith(TABLE) for finding in report.findings)
    (freshness,) = next(series for series in report.series if series.table == TABLE).exchanges
    assert not freshness.is_active
