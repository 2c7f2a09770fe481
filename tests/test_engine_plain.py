"""Plain PostgreSQL: partitions are there before their rows, also late ones, and go as a whole."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import asyncpg
import msgspec
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.engines import base, get_engine
from pgtick.engines.plain import PlainEngine
from pgtick.engines.series import create_series
from pgtick.errors import ConfigError
from pgtick.tables import BUILT_IN_TABLES, TRADES
from pgtick.writer import store_rows

pytestmark = pytest.mark.engines("plain")

TABLE = TRADES.name
LATE = datetime(2021, 4, 22, 12, tzinfo=UTC)
LATE_DAY = (LATE - datetime(1970, 1, 1, tzinfo=UTC)).days
DAY = timedelta(days=1)


@pytest.fixture
async def engine(db: DatabaseManager) -> PlainEngine:
    """The engine of ``db``, with exchange 1 and symbol 1 registered."""
    engine = await get_engine(db)
    assert isinstance(engine, PlainEngine)
    await db.execute(
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'C', 'BC')"
    )
    return engine


@pytest.fixture
async def other(config: DatabaseConfig, engine: PlainEngine) -> AsyncIterator[DatabaseManager]:
    """Another process's manager of the same database."""
    manager = await open_manager(config)
    yield manager
    await manager.close()


def trade(when: datetime, trade_id: str = "1", symbol_id: int = 1) -> dict[str, object]:
    return {
        "timestamp": when,
        "symbol_id": symbol_id,
        "price": 1,
        "quantity": 1,
        "side": "buy",
        "trade_id": trade_id,
    }


async def partitions(db: DatabaseManager, table: str = TABLE) -> list[str]:
    query = (
        "SELECT relname::text FROM pg_inherits JOIN pg_class ON oid = inhrelid "
        "WHERE inhparent = quote_ident($1)::regclass"
    )
    return sorted(record[0] for record in await db.fetch(query, table))


def name_of(day: datetime, table: str = TABLE) -> str:
    return f"{table}_p{day:%Y%m%d}"


async def test_start_makes_today_and_three_days_ahead_for_every_table(db: DatabaseManager, engine: PlainEngine) -> None:
    today = await db.fetchval("SELECT now()")
    for table in BUILT_IN_TABLES:
        assert await partitions(db, table.name) == [name_of(today + n * DAY, table.name) for n in range(4)]


async def test_late_rows_get_their_partitions(db: DatabaseManager, engine: PlainEngine) -> None:
    days = [LATE + 40 * n * DAY for n in range(3)]
    result = await store_rows(TRADES, [trade(day) for day in days], db=db)
    assert (result.n_stored, result.errors) == (3, [])
    assert (await partitions(db))[:3] == [name_of(day) for day in days]


async def test_partition_made_by_many_at_once_is_made_once(
    db: DatabaseManager, engine: PlainEngine, other: DatabaseManager
) -> None:
    theirs = await get_engine(other)
    days = range(LATE_DAY, LATE_DAY + 5)
    before = await partitions(db)
    await asyncio.gather(
        *(engine.ensure_days(db, TABLE, days) for _ in range(5)),
        *(theirs.ensure_days(other, TABLE, reversed(days)) for _ in range(5)),
    )
    assert await partitions(db) == [name_of(LATE + n * DAY) for n in range(5)] + before


async def test_partition_of_a_rolled_back_transaction_is_made_again(db: DatabaseManager, engine: PlainEngine) -> None:
    with pytest.raises(RuntimeError):  # noqa: PT012  the error comes after the partition
        async with db.transaction():
            await engine.ensure_days(db, TABLE, [LATE_DAY])
            raise RuntimeError
    assert name_of(LATE) not in await partitions(db)
    await engine.ensure_days(db, TABLE, [LATE_DAY])
    assert name_of(LATE) in await partitions(db)


async def test_partition_is_made_while_others_read_and_write_the_table(
    db: DatabaseManager, engine: PlainEngine, other: DatabaseManager
) -> None:
    async with other.transaction():
        await other.fetch(f"SELECT * FROM {TABLE}")
        await store_rows(TRADES, [trade(datetime.now(UTC))], db=other)
        async with asyncio.timeout(5):
            await store_rows(TRADES, [trade(LATE)], db=db)
    assert await db.fetchval(f"SELECT count(*) FROM {TABLE}") == 2


async def test_partition_dropped_by_another_process_is_made_again_after_forget(
    db: DatabaseManager, engine: PlainEngine, other: DatabaseManager
) -> None:
    await engine.ensure_days(db, TABLE, [LATE_DAY])
    await (await get_engine(other)).drop_older_than(other, TABLE, LATE + DAY)
    engine.forget(TABLE)
    await engine.ensure_days(db, TABLE, [LATE_DAY])
    assert name_of(LATE) in await partitions(db)


async def test_partition_has_what_the_table_has(db: DatabaseManager, engine: PlainEngine) -> None:
    await engine.ensure_days(db, "balance_snapshots", [LATE_DAY])
    await db.execute(
        "INSERT INTO balance_snapshots (timestamp, exchange_id, asset_name, available_balance, locked_balance) "
        "VALUES ($1, 1, 'USDT', 1.5, 2)",
        LATE,
    )
    row = await db.fetchrow("SELECT id, total_balance, created_at FROM balance_snapshots")
    assert row is not None
    assert row["id"] == 1
    assert row["total_balance"] == Decimal("3.5")
    assert row["created_at"] is not None
    query = "SELECT count(*) FROM pg_index WHERE indrelid = $1::regclass AND indisprimary"
    assert await db.fetchval(query, name_of(LATE, "balance_snapshots")) == 1


async def test_rows_sent_straight_to_a_partition_are_checked(db: DatabaseManager, engine: PlainEngine) -> None:
    await store_rows(TRADES, [trade(LATE)], db=db)
    partition = name_of(LATE)
    columns = ("id", *TRADES.column_names)
    row = (7, LATE, 99, 1, 1, "buy", "2", None, None, None)
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="99"):
        await db.copy_records_to_table(partition, [row], columns)
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="77"):
        await db.execute(f"UPDATE {partition} SET symbol_id = 77")
    known = (7, LATE, 1, *row[3:])
    assert await db.copy_records_to_table(partition, [known], columns) == 1


async def test_retention_drops_whole_partitions_and_keeps_the_day_of_the_cutoff(
    db: DatabaseManager, engine: PlainEngine
) -> None:
    days = [LATE + n * DAY for n in range(3)]
    await store_rows(TRADES, [trade(day) for day in days], db=db)
    kept = await partitions(db)
    dropped = await engine.drop_older_than(db, TABLE, days[2])
    assert dropped == [name_of(days[0]), name_of(days[1])]
    assert await partitions(db) == kept[2:]
    assert await db.fetchval(f"SELECT count(*) FROM {TABLE}") == 1


async def test_retention_is_the_table_s_own(db: DatabaseManager, engine: PlainEngine) -> None:
    old = await db.fetchval("SELECT now() - interval '5 days'")
    for table in BUILT_IN_TABLES:
        await engine.ensure_days(db, table.name, [(old - datetime(1970, 1, 1, tzinfo=UTC)).days])
    dropped = await engine.apply_retention(db)
    assert {table for table, names in dropped.items() if names} == {TABLE, "book_ticker_snapshots"}
    await db.execute("UPDATE pgtick_time_series SET retention = '4 days' WHERE table_name = 'order_flow_metrics'")
    assert (await engine.apply_retention(db))["order_flow_metrics"] == [name_of(old, "order_flow_metrics")]


async def test_dry_run_names_what_would_go_and_drops_nothing(db: DatabaseManager, engine: PlainEngine) -> None:
    await store_rows(TRADES, [trade(LATE)], db=db)
    before = await partitions(db)
    assert (await engine.apply_retention(db, dry_run=True))[TABLE] == [name_of(LATE)]
    assert await partitions(db) == before


async def test_retention_waits_for_a_reader_that_ends(
    db: DatabaseManager, engine: PlainEngine, other: DatabaseManager
) -> None:
    await store_rows(TRADES, [trade(LATE)], db=db)

    async def read() -> None:
        async with other.transaction():
            await other.fetch(f"SELECT * FROM {TABLE}")
            await asyncio.sleep(0.8)  # longer than one attempt waits

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    assert await engine.drop_older_than(db, TABLE, LATE + DAY) == [name_of(LATE)]
    await reading


async def test_retention_leaves_a_partition_in_use_for_the_next_time(
    db: DatabaseManager,
    engine: PlainEngine,
    other: DatabaseManager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(base, "_LOCK_ATTEMPTS", 2)
    monkeypatch.setattr(base, "_LOCK_PAUSE_S", 0.01)
    await store_rows(TRADES, [trade(LATE), trade(LATE + DAY)], db=db)
    async with other.transaction():
        await other.fetch(f"SELECT * FROM {name_of(LATE)}")
        with caplog.at_level(logging.WARNING):
            assert await engine.drop_older_than(db, TABLE, LATE + 2 * DAY) == [name_of(LATE + DAY)]
    assert f"partition {name_of(LATE)} is in use" in caplog.text
    assert await engine.drop_older_than(db, TABLE, LATE + 2 * DAY) == [name_of(LATE)]


async def test_retention_that_fails_for_one_table_goes_on_with_the_others(
    db: DatabaseManager, engine: PlainEngine, caplog: pytest.LogCaptureFixture
) -> None:
    for table in ("book_ticker_snapshots", TABLE):
        await engine.ensure_days(db, table, [LATE_DAY])
    await db.execute(f"CREATE VIEW v AS SELECT * FROM {name_of(LATE, 'book_ticker_snapshots')}")
    with pytest.raises(asyncpg.DependentObjectsStillExistError):
        await engine.apply_retention(db)
    assert "the retention of book_ticker_snapshots is not in force" in caplog.text
    assert name_of(LATE) not in await partitions(db)


async def test_names_that_need_quoting_work(db: DatabaseManager, engine: PlainEngine) -> None:
    table = 'Ticks "of" 人生\'s'
    await create_series(
        db,
        table,
        'timestamp timestamptz NOT NULL, "Symbol" int NOT NULL, PRIMARY KEY ("Symbol", timestamp)',
        references={"Symbol": "symbols"},
        chunk=DAY,
        retention=3 * DAY,
    )
    await engine.ensure_days(db, table, [LATE_DAY])
    await db.copy_records_to_table(table, [(LATE, 1)], ("timestamp", "Symbol"))
    for target in (table, name_of(LATE, table)):
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await db.copy_records_to_table(target, [(LATE, 99)], ("timestamp", "Symbol"))
    assert len((await engine.apply_retention(db))[table]) == 1
    assert await partitions(db, table) == []


async def test_name_too_long_for_its_partitions_is_refused(db: DatabaseManager, engine: PlainEngine) -> None:
    with pytest.raises(ValueError, match="at most 53 bytes"):
        await engine.create(db, "x" * 54, "timestamp timestamptz", chunk=DAY, retention=DAY)


async def test_partition_of_another_length_counts_for_its_days(db: DatabaseManager, engine: PlainEngine) -> None:
    await db.execute(
        f"CREATE TABLE april PARTITION OF {TABLE} FOR VALUES FROM ('2021-04-01 00:00+00') TO ('2021-05-01 00:00+00')"
    )
    assert (await store_rows(TRADES, [trade(LATE)], db=db)).n_stored == 1
    assert "april" in await partitions(db)
    assert name_of(LATE) not in await partitions(db)
    assert await engine.drop_older_than(db, TABLE, datetime(2021, 4, 30, tzinfo=UTC)) == []
    assert await engine.drop_older_than(db, TABLE, datetime(2021, 5, 1, tzinfo=UTC)) == ["april"]


async def test_detached_partition_is_left_alone_by_retention(db: DatabaseManager, engine: PlainEngine) -> None:
    await store_rows(TRADES, [trade(LATE)], db=db)
    await db.execute(f"ALTER TABLE {TABLE} DETACH PARTITION {name_of(LATE)}")
    assert (await engine.apply_retention(db))[TABLE] == []
    assert await db.fetchval(f"SELECT count(*) FROM {name_of(LATE)}") == 1


async def test_table_dropped_by_hand_does_not_stop_the_others(db: DatabaseManager, engine: PlainEngine) -> None:
    await engine.ensure_days(db, TABLE, [LATE_DAY])
    await db.execute("DROP TABLE arbitrage_opportunities")
    await engine.make_ahead(db)
    assert (await engine.apply_retention(db))[TABLE] == [name_of(LATE)]


@pytest.mark.parametrize("wanted", ["timescale", "citus"])
async def test_engine_that_the_tables_are_not_made_for_is_refused(
    config: DatabaseConfig, engine: PlainEngine, wanted: str
) -> None:
    manager = await open_manager(msgspec.structs.replace(config, engine=wanted))
    try:
        with pytest.raises(ConfigError, match="the tables of this database are made for plain"):
            await get_engine(manager)
    finally:
        await manager.close()


@pytest.mark.parametrize(("wanted", "extension"), [("timescale", "timescaledb"), ("citus", "citus")])
async def test_engine_without_its_extension_is_refused(dsn: str, wanted: str, extension: str) -> None:
    manager = await open_manager(DatabaseConfig.from_dsn(dsn, engine=wanted))
    try:
        with pytest.raises(ConfigError, match=f"CREATE EXTENSION {extension}"):
            await get_engine(manager)
    finally:
        await manager.close()
