"""Citus for real, at PGTICK_TEST_CITUS_DSN: what is distributed how, what guards it, partitions, refusals sorted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from rows import make_symbol

from pgtick.cache_operations import CHANNEL
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.engines import get_engine, maintain
from pgtick.engines.citus import CitusEngine
from pgtick.engines.series import create_series
from pgtick.errors import ConfigError
from pgtick.migrator.render import render_sql
from pgtick.operations import exchanges, generic, symbols
from pgtick.tables import BALANCES, BOOK_TICKERS, BUILT_IN_TABLES, INGEST_BATCHES, TRADES, Table
from pgtick.verify import verify_schema
from pgtick.writer import store_rows

pytestmark = pytest.mark.parametrize("server_kind", ["citus"], indirect=True)

TABLE = TRADES.name
NOW = datetime.now(UTC)
LATE = datetime(2021, 4, 22, 12, tzinfo=UTC)
LATE_DAY = (LATE - datetime(1970, 1, 1, tzinfo=UTC)).days
DAY = timedelta(days=1)


@pytest.fixture
async def engine(db: DatabaseManager) -> CitusEngine:
    """The engine of ``db``, with exchange 1 and symbol 1 registered."""
    engine = await get_engine(db)
    assert isinstance(engine, CitusEngine)
    assert await make_symbol() == 1
    return engine


@pytest.fixture
async def other(config: DatabaseConfig, engine: CitusEngine) -> AsyncIterator[DatabaseManager]:
    """Another process's manager of the same database."""
    manager = await open_manager(config)
    yield manager
    await manager.close()


def trade(when: datetime = NOW, trade_id: str = "1", **changes: object) -> dict[str, Any]:
    row = {"timestamp": when, "symbol_id": 1, "price": 1, "quantity": 1, "side": "buy", "trade_id": trade_id}
    return {**row, **changes}


def partition_of(day: datetime) -> str:
    return f"{TABLE}_p{day:%Y%m%d}"


async def partitions(db: DatabaseManager, table: str = TABLE) -> list[str]:
    query = "SELECT partition::text FROM time_partitions WHERE parent_table = quote_ident($1)::regclass ORDER BY 1"
    return [record[0] for record in await db.fetch(query, table)]


async def test_lookup_tables_are_on_every_node_and_series_are_distributed_together(
    db: DatabaseManager, engine: CitusEngine
) -> None:
    query = (
        "SELECT table_name::text, citus_table_type::text, distribution_column::text, colocation_id FROM citus_tables"
    )
    found = {record[0]: tuple(record)[1:] for record in await db.fetch(query)}
    assert {table for table, (kind, _, _) in found.items() if kind == "reference"} == {"exchanges", "symbols"}
    columns = {table.name: table.key[0] for table in BUILT_IN_TABLES}
    assert {table: found[table][:2] for table in columns} == {
        table: ("distributed", column) for table, column in columns.items()
    }
    assert len({found[table][2] for table in columns}) == 1


async def test_script_for_citus_makes_what_the_migrations_make(db: DatabaseManager, dsn: str) -> None:
    query = (
        "SELECT t.table_name::text, citus_table_type, distribution_column::text, "
        "array_agg(conname::text ORDER BY conname) "
        "FROM citus_tables t LEFT JOIN pg_constraint c ON c.conrelid = t.table_name "
        "WHERE t.table_name NOT IN (SELECT partition FROM time_partitions) GROUP BY 1, 2, 3 ORDER BY 1"
    )
    script = (await render_sql("citus", db.server_version // 10_000)).replace("\\set ON_ERROR_STOP on", "")
    scripted = await open_manager(DatabaseConfig.from_dsn(dsn))
    try:
        await scripted.execute(script)
        made = await scripted.fetch(query)
        assert len(made) == len(BUILT_IN_TABLES) + 1 + 2
        assert list(map(tuple, made)) == list(map(tuple, await db.fetch(query)))
        assert (await get_engine(scripted)).name == "citus"
    finally:
        await scripted.close()


async def test_references_are_enforced_by_ordinary_keys(db: DatabaseManager, engine: CitusEngine) -> None:
    names = [table.name for table in BUILT_IN_TABLES]
    query = (
        "SELECT conrelid::regclass::text, count(*), bool_and(conenforced) FROM pg_constraint "
        "WHERE contype = 'f' AND conrelid = ANY($1::regclass[]::oid[]) GROUP BY 1"
    )
    expected = {name: (3 if name == "arbitrage_opportunities" else 1, True) for name in names}
    assert {record[0]: tuple(record)[1:] for record in await db.fetch(query, names)} == expected
    assert await db.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'check_references%'") == 0


async def test_rows_and_ids_of_the_lookup_tables_stay(db: DatabaseManager, engine: CitusEngine) -> None:
    for statement in (
        "DELETE FROM symbols",
        "DELETE FROM exchanges",
        "TRUNCATE exchanges CASCADE",
        "UPDATE symbols SET id = 77",
        "UPDATE exchanges SET id = 77",
    ):
        with pytest.raises(asyncpg.RestrictViolationError, match="deactivate"):
            await db.execute(statement)
    assert await db.fetchval("SELECT count(*) FROM symbols WHERE id = 1") == 1


async def test_change_of_a_symbol_or_exchange_sets_its_updated_at(db: DatabaseManager, engine: CitusEngine) -> None:
    async def ages(table: str) -> list[bool]:
        query = f"SELECT updated_at > created_at AS is_newer FROM {table} ORDER BY id"
        return [record["is_newer"] for record in await db.fetch(query)]

    assert (await ages("symbols"), await ages("exchanges")) == ([False], [False])
    await symbols.ensure_symbol(1, "BTC", "USDT", "BTC_USDT", price_tick="0.1")
    await exchanges.deactivate_exchange(1)
    assert (await ages("symbols"), await ages("exchanges")) == ([True], [True])
    assert await symbols.relist_symbol(1) == 2
    row = await db.fetchrow("SELECT delisted_at = updated_at AS is_delisted FROM symbols WHERE id = 1")
    assert row is not None
    assert row["is_delisted"]


async def test_operations_tell_other_processes_what_they_changed(db: DatabaseManager, engine: CitusEngine) -> None:
    heard: list[str] = []
    listener = await asyncpg.connect(**db.config.connect_kwargs())
    try:
        await listener.add_listener(CHANNEL, lambda *message: heard.append(message[3]))
        await make_symbol()  # there already: nobody is told
        symbol_id = await symbols.ensure_symbol(1, "SOL", "USDT", "SOL_USDT")
        await symbols.ensure_symbol(1, "SOL", "USDT", "SOL_USDT", price_tick="0.1")
        await symbols.deactivate_symbol(symbol_id)
        await symbols.activate_symbol(symbol_id)
        new_id = await symbols.relist_symbol(symbol_id)
        await exchanges.ensure_exchange("OKX_SPOT")
        await exchanges.deactivate_exchange(1)
        with pytest.raises(RuntimeError):  # noqa: PT012  what is rolled back is not told
            async with db.transaction():
                await symbols.ensure_symbol(1, "ADA", "USDT", "ADA_USDT")
                raise RuntimeError
        expected = [*[str(symbol_id)] * 5, str(new_id), "", ""]
        async with asyncio.timeout(10):
            while len(heard) < len(expected):  # noqa: ASYNC110  it is the server that is waited for
                await asyncio.sleep(0.02)
    finally:
        await listener.close()
    assert heard == expected


async def test_copy_that_is_refused_names_row_column_and_rule(db: DatabaseManager, engine: CitusEngine) -> None:
    rows = [
        trade(trade_id="good"),
        trade(trade_id="orphan", symbol_id=99),
        trade(trade_id="good"),
        trade(trade_id="late", when=LATE),
    ]
    result = await store_rows(TRADES, rows, db=db)
    assert (result.n_stored, result.n_duplicates) == (2, 1)
    (error,) = result.errors
    assert (error.index, error.column, error.value) == (1, "symbol_id", 99)
    assert isinstance(error.__cause__, asyncpg.ForeignKeyViolationError)
    again = await store_rows(TRADES, rows, db=db)
    assert (again.n_stored, again.n_duplicates, len(again.errors)) == (0, 3, 1)


_ROW = {"id": 1, "timestamp": NOW, "symbol_id": 1, "price": 1, "quantity": 1, "side": "buy", "trade_id": "x"}


@pytest.mark.parametrize(
    ("changes", "kind", "constraint", "column"),
    [
        ({"trade_id": "there"}, asyncpg.UniqueViolationError, f"{partition_of(NOW)}_pkey", None),
        ({"symbol_id": 99}, asyncpg.ForeignKeyViolationError, "trade_snapshots_symbol_id_fkey", None),
        ({"price": -1}, asyncpg.CheckViolationError, "trade_snapshots_price_check", None),
        ({"price": None}, asyncpg.NotNullViolationError, None, "price"),
        ({"timestamp": LATE}, asyncpg.CheckViolationError, None, None),
    ],
)
async def test_each_refusal_of_copy_is_told_as_xx000_and_sorted_into_its_class(
    db: DatabaseManager,
    engine: CitusEngine,
    changes: dict[str, object],
    kind: type[asyncpg.PostgresError],
    constraint: str | None,
    column: str | None,
) -> None:
    await store_rows(TRADES, [trade(trade_id="there")], db=db)
    row = {**_ROW, **changes}
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.copy_records_to_table(TABLE, [tuple(row.values())], list(row))
    assert caught.value.sqlstate == "XX000"
    meant = engine.sorted_error(caught.value)
    assert (type(meant), meant.constraint_name, meant.column_name) == (kind, constraint, column)


@pytest.mark.parametrize(
    ("expression", "value"), [("a * 2", 2**31 - 1), ("(a::numeric * 1e131071)::int", 100)], ids=["int", "numeric"]
)
async def test_overflow_of_a_generated_column_is_sorted_into_its_class(
    db: DatabaseManager, engine: CitusEngine, expression: str, value: int
) -> None:
    await db.execute(f"CREATE TABLE made (a int, b int GENERATED ALWAYS AS ({expression}) STORED)")
    await db.execute("SELECT create_distributed_table('made', 'a')")
    with pytest.raises(asyncpg.InternalServerError) as caught:
        await db.copy_records_to_table("made", [(value,)], ["a"])
    assert type(engine.sorted_error(caught.value)) is asyncpg.NumericValueOutOfRangeError


async def test_batch_in_a_caller_s_transaction_is_stored_and_sorted_out(
    db: DatabaseManager, engine: CitusEngine
) -> None:
    async with db.transaction():
        symbol_id = await symbols.ensure_symbol(1, "SOL", "USDT", "SOL_USDT")
        rows = [trade(), trade(), trade(trade_id="2", symbol_id=symbol_id), trade(trade_id="3", symbol_id=99)]
        result = await store_rows(TRADES, [*rows, trade(LATE)], db=db)
        assert (result.n_stored, result.n_duplicates, len(result.errors)) == (3, 1, 1)
        assert await db.fetchval(f"SELECT count(*) FROM {TABLE}") == 3
    assert await db.fetchval(f"SELECT count(*) FROM {TABLE}") == 3


@pytest.mark.parametrize("in_transaction", [False, True], ids=["alone", "in a transaction"])
async def test_batch_for_another_node_is_sorted_out(
    db: DatabaseManager, engine: CitusEngine, config: DatabaseConfig, in_transaction: bool
) -> None:
    """The shard is reached by a connection, as on any other node: there is no temporary table, no error has names."""
    await db.execute(f"ALTER DATABASE {config.database} SET citus.enable_local_execution = off")
    await db.execute(f"ALTER TABLE {TABLE} ADD CONSTRAINT no_seven CHECK (quantity <> 7)")
    away = await open_manager(config)
    try:
        good = [trade(trade_id="late", when=LATE), *(trade(trade_id=str(n)) for n in range(20))]
        stranger, checked = trade(trade_id="s", symbol_id=99), trade(trade_id="c", quantity=7)
        async with away.transaction() if in_transaction else nullcontext():
            first = await store_rows(TRADES, [*good, stranger, checked], db=away)
            again = await store_rows(TRADES, [*good, trade(trade_id="new"), checked], db=away)
            mixed = await store_rows(TRADES, [*good, stranger, trade(trade_id="newer"), checked], db=away)
            with use_manager(away), pytest.raises(asyncpg.CheckViolationError) as refused:
                await generic.insert(TRADES, checked)
            assert await away.fetchval("SELECT 1") == 1
    finally:
        await away.close()
    assert refused.value.constraint_name == "no_seven"
    assert [(one.n_stored, one.n_duplicates) for one in (first, again, mixed)] == [(21, 0), (1, 21), (1, 21)]
    assert [(error.index, error.column) for error in first.errors] == [(21, "symbol_id"), (22, "quantity")]
    assert [error.index for error in again.errors] == [22]
    assert [error.index for error in mixed.errors] == [21, 23]
    assert await db.fetchval(f"SELECT count(*) FROM {TABLE}") == 23


async def test_late_rows_get_their_partitions_in_a_transaction_behind_others(
    db: DatabaseManager, engine: CitusEngine
) -> None:
    async with db.transaction():
        for n in range(3):
            assert (await store_rows(TRADES, [trade(LATE + n * DAY)], db=db)).n_stored == 1
        assert await db.fetchval(f"SELECT count(*) FROM {TABLE}") == 3
        assert (await store_rows(BALANCES, [balance(LATE)], db=db)).n_stored == 1
    assert (await partitions(db))[:3] == [partition_of(LATE + n * DAY) for n in range(3)]


def balance(when: datetime) -> dict[str, object]:
    return {"timestamp": when, "exchange_id": 1, "asset_name": "BTC", "available_balance": 1, "locked_balance": 1}


async def test_partition_made_by_many_at_once_is_made_once(
    db: DatabaseManager, engine: CitusEngine, other: DatabaseManager
) -> None:
    theirs = await get_engine(other)
    days = range(LATE_DAY, LATE_DAY + 3)
    before = await partitions(db)
    await asyncio.gather(
        *(engine.ensure_days(db, TABLE, days) for _ in range(3)),
        *(theirs.ensure_days(other, TABLE, reversed(days)) for _ in range(3)),
    )
    assert await partitions(db) == [partition_of(LATE + n * DAY) for n in range(3)] + before


async def test_partition_is_made_while_others_read_and_write_the_table(
    db: DatabaseManager, engine: CitusEngine, other: DatabaseManager
) -> None:
    async with other.transaction():
        await other.fetch(f"SELECT * FROM {TABLE}")
        await store_rows(TRADES, [trade()], db=other)
        async with asyncio.timeout(5):
            await store_rows(TRADES, [trade(LATE)], db=db)
    assert await db.fetchval(f"SELECT count(*) FROM {TABLE}") == 2


async def test_partition_dropped_by_another_process_is_made_again(
    db: DatabaseManager, engine: CitusEngine, other: DatabaseManager
) -> None:
    assert (await store_rows(TRADES, [trade(LATE)], db=db)).n_stored == 1
    assert await (await get_engine(other)).drop_older_than(other, TABLE, LATE + DAY) == [partition_of(LATE)]
    assert (await store_rows(TRADES, [trade(LATE)], db=db)).n_stored == 1
    assert partition_of(LATE) in await partitions(db)


async def test_retention_drops_whole_partitions_and_a_dry_run_only_names_them(
    db: DatabaseManager, engine: CitusEngine
) -> None:
    await store_rows(TRADES, [trade(LATE + n * DAY) for n in range(3)], db=db)
    expected = [partition_of(LATE + n * DAY) for n in range(3)]
    would_go = await maintain(db, dry_run=True)
    assert would_go is not None
    assert would_go[TABLE] == expected
    assert await engine.drop_older_than(db, TABLE, LATE + DAY) == expected[:1]
    dropped = await maintain(db)
    assert dropped is not None
    assert dropped[TABLE] == expected[1:]
    assert await db.fetchval(f"SELECT count(*) FROM {TABLE}") == 0
    shards = "SELECT count(*) FROM pg_class WHERE relname LIKE 'trade_snapshots_p2021%' AND relkind = 'r'"
    assert await db.fetchval(shards) == 0


async def test_retention_waits_for_a_reader_and_ingest_goes_on_meanwhile(
    db: DatabaseManager, engine: CitusEngine, other: DatabaseManager
) -> None:
    await store_rows(TRADES, [trade(LATE)], db=db)
    reading = asyncio.Event()

    async def read() -> None:
        async with other.transaction():
            await other.fetch(f"SELECT * FROM {TABLE} WHERE symbol_id = 1")
            reading.set()
            await asyncio.sleep(0.8)  # longer than one attempt waits
            for n in range(3):
                assert (await store_rows(TRADES, [trade(trade_id=f"n{n}")], db=other)).n_stored == 1

    reader = asyncio.create_task(read())
    await reading.wait()
    assert await engine.drop_older_than(db, TABLE, LATE + DAY) == [partition_of(LATE)]
    await reader


@pytest.mark.parametrize(("table", "ids", "days"), [(BOOK_TICKERS, (1,), 3), (BALANCES, (1, "BTC"), 14)])
@pytest.mark.parametrize("window", generic.LATEST_WINDOWS[:2], ids=["hour", "day"])
async def test_latest_row_at_full_retention_is_planned_for_one_shard_in_under_a_millisecond(
    db: DatabaseManager, engine: CitusEngine, table: Table, ids: tuple[object, ...], days: int, window: timedelta
) -> None:
    today = (NOW - datetime(1970, 1, 1, tzinfo=UTC)).days
    await engine.ensure_days(db, table.name, range(today - days, today + 4))
    assert len(await partitions(db, table.name)) == days + 4
    where = " AND ".join(f"{column} = '{value}'" for column, value in zip(table.key, ids, strict=False))
    query = (
        f"EXPLAIN (ANALYZE, SUMMARY) SELECT * FROM {table.name} WHERE {where} "
        f"AND timestamp > '{(NOW - window).isoformat()}' ORDER BY timestamp DESC LIMIT 1"
    )
    plans = ["\n".join(record[0] for record in await db.fetch(query)) for _ in range(20)]
    assert "Task Count: 1" in plans[-1]
    assert plans[-1].count("Index Scan") <= 5  # today, yesterday and the days ahead
    # The coordinator's and the shard's; the least of twenty, because others use the machine as well.
    assert min(sum(map(float, re.findall(r"Planning Time: ([\d.]+) ms", plan))) for plan in plans) < 1


async def test_sizes_count_the_shards_of_all_partitions(db: DatabaseManager, engine: CitusEngine) -> None:
    before = {size.table: size for size in await engine.sizes(db)}
    assert set(before) == {*(table.name for table in BUILT_IN_TABLES), INGEST_BATCHES}
    await store_rows(TRADES, [trade(trade_id=str(n), when=NOW - n * DAY) for n in range(2)], db=db)
    await store_rows(TRADES, [trade(trade_id=f"n{n}") for n in range(2000)], db=db)
    await db.execute(f"ANALYZE {TABLE}")
    size = {size.table: size for size in await engine.sizes(db)}[TABLE]
    assert size.n_parts == before[TABLE].n_parts + 1
    assert size.n_rows == 2002
    assert size.n_bytes > before[TABLE].n_bytes + 100_000
    assert 0 < size.n_index_bytes < size.n_bytes


async def test_tables_are_described_with_their_shards(db: DatabaseManager, engine: CitusEngine) -> None:
    described = {info.table: info for info in await engine.describe(db)}
    assert set(described) == {*(table.name for table in BUILT_IN_TABLES), INGEST_BATCHES}
    info = described[BALANCES.name]
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    assert (info.kind, info.part_interval, info.retention, info.n_shards) == ("distributed", DAY, 14 * DAY, 2)
    assert (info.oldest, info.newest, info.n_parts) == (midnight, midnight + 4 * DAY, 4)
    assert info.findings == ()


async def test_what_is_not_as_it_should_be_is_a_finding(db: DatabaseManager, engine: CitusEngine) -> None:
    for partition in await partitions(db):
        await db.execute(f"DROP TABLE {partition}")
    (finding,) = {info.table: info for info in await engine.describe(db)}[TABLE].findings
    assert finding == f"{TABLE} has no partition for today: pgtick maintain"


async def test_names_that_need_quoting_work(db: DatabaseManager, engine: CitusEngine) -> None:
    table = 'Ticks "of" 人生\'s'
    await create_series(
        db,
        table,
        'id bigint GENERATED BY DEFAULT AS IDENTITY, timestamp timestamptz NOT NULL, "Symbol" int NOT NULL, '
        'PRIMARY KEY ("Symbol", timestamp)',
        references={"Symbol": "symbols"},
        chunk=DAY,
        retention=3 * DAY,
    )
    await engine.ensure_days(db, table, [LATE_DAY])
    await db.copy_records_to_table(table, [(LATE, 1)], ("timestamp", "Symbol"))
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.copy_records_to_table(table, [(LATE, 99)], ("timestamp", "Symbol"))
    assert isinstance(engine.sorted_error(caught.value), asyncpg.ForeignKeyViolationError)
    assert table in {size.table for size in await engine.sizes(db)}
    assert len((await engine.apply_retention(db))[table]) == 1


async def test_later_table_is_beside_those_that_are_there_whatever_the_number_of_shards(
    db: DatabaseManager, engine: CitusEngine
) -> None:
    columns = "timestamp timestamptz, {} NOT NULL, PRIMARY KEY (key, timestamp)"
    async with db.transaction():
        await db.execute("SET LOCAL citus.shard_count = 3")
        for table, key in (("mine", "key int"), ("named", "key text"), ("named_too", "key text")):
            await create_series(db, table, columns.format(key), references={}, chunk=DAY, retention=3 * DAY)
    query = "SELECT table_name::text, colocation_id, shard_count FROM citus_tables"
    found = {record[0]: tuple(record)[1:] for record in await db.fetch(query)}
    assert found["mine"] == found[TABLE]
    assert found["named"] == found["named_too"] != found[TABLE]
    assert found["named"][1] == 3


async def test_table_without_a_key_to_distribute_by_is_refused(db: DatabaseManager, engine: CitusEngine) -> None:
    with pytest.raises(ValueError, match="must have a primary key"):
        await engine.create(db, "keyless", "timestamp timestamptz", chunk=DAY, retention=DAY)
    assert await db.fetchval("SELECT to_regclass('keyless')") is None


@pytest.mark.parametrize("wanted", ["plain", "timescale"])
async def test_engine_that_the_tables_are_not_made_for_is_refused(config: DatabaseConfig, wanted: str) -> None:
    manager = await open_manager(msgspec.structs.replace(config, engine=wanted))
    try:
        with pytest.raises(ConfigError, match="the tables of this database are made for citus"):
            await get_engine(manager)
    finally:
        await manager.close()


@pytest.mark.parametrize("wanted", ["auto", "citus", "plain"])
async def test_new_database_with_the_extension_takes_citus_unless_told_otherwise(dsn: str, wanted: str) -> None:
    manager = await open_manager(DatabaseConfig.from_dsn(dsn, engine=wanted))
    try:
        assert (await get_engine(manager)).name == ("plain" if wanted == "plain" else "citus")
    finally:
        await manager.close()


# --- verify ---


async def test_verify_leaves_nothing_behind_on_the_nodes(db: DatabaseManager) -> None:
    kept = ("partition", "shard", "placement", "colocation", "object", "schema", "cleanup")
    counts = ", ".join(f"(SELECT count(*) FROM pg_dist_{name})" for name in kept)
    query = f"SELECT {counts}, (SELECT count(*) FROM pg_namespace), (SELECT count(*) FROM pg_class)"
    assert await verify_schema(db) == []
    before = await db.fetchrow(query)
    assert await verify_schema(db) == []
    assert await db.fetchrow(query) == before


@pytest.mark.parametrize(
    ("statement", "table", "state", "live"),
    [
        (
            "SELECT update_distributed_table_colocation('order_flow_metrics', colocate_with => 'none')",
            "order_flow_metrics",
            "changed",
            "by hash of symbol_id, beside order_flow_metrics",
        ),
        # Citus takes neither of them back, for the identity columns: as after a restore that lost the metadata.
        ("DELETE FROM pg_dist_partition WHERE logicalrelid = 'trade_snapshots'::regclass", TABLE, "missing", ""),
        (
            "UPDATE pg_dist_partition SET repmodel = 's' WHERE logicalrelid = 'exchanges'::regclass",
            "exchanges",
            "changed",
            "local table",
        ),
    ],
    ids=["not co-located", "not distributed", "no reference table"],
)
async def test_verify_finds_what_is_not_distributed_as_declared(
    db: DatabaseManager, statement: str, table: str, state: str, live: str
) -> None:
    await db.execute(statement)
    (drift,) = await verify_schema(db)
    assert (drift.table, drift.kind, drift.state, drift.live) == (table, "distribution", state, live)
    assert drift.advice == "distribute it as declared (docs/citus.md)"
