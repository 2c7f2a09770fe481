"""verify finds each planted drift, by its name, and nothing beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import asyncpg
import msgspec
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager
from pgtick.verify import Drift, verify_schema

# Others have no partitions; for TimescaleDB see tests/test_verify_timescale.py.
pytestmark = pytest.mark.engines("plain")

S, T = "symbols", "trade_snapshots"
PRICE = "trade_snapshots_price_check"
POSITIVE = "price > 0 AND price < 'Infinity'"

# {name: (SQL, what is found)}; {p} is a partition of trade_snapshots.
PLANTED: dict[str, tuple[str, list[tuple[str, str, str, str]]]] = {
    "column dropped": (f"ALTER TABLE {S} DROP COLUMN settle", [(S, "column", "settle", "missing")]),
    "column added": (f"ALTER TABLE {T} ADD COLUMN v text NOT NULL DEFAULT ''", [(T, "column", "v", "extra")]),
    "column renamed": (
        f"ALTER TABLE {S} RENAME settle TO settles",
        [(S, "column", "settle", "missing"), (S, "column", "settles", "extra")],
    ),
    "column retyped": (f"ALTER TABLE {T} ALTER price TYPE numeric(20, 8)", [(T, "column", "price", "changed")]),
    "column collated": (f'ALTER TABLE {S} ALTER settle TYPE text COLLATE "C"', [(S, "column", "settle", "changed")]),
    "default dropped": (f"ALTER TABLE {T} ALTER created_at DROP DEFAULT", [(T, "column", "created_at", "changed")]),
    "default changed": (f"ALTER TABLE {S} ALTER is_active SET DEFAULT false", [(S, "column", "is_active", "changed")]),
    "not null dropped": (f"ALTER TABLE {T} ALTER side DROP NOT NULL", [(T, "column", "side", "changed")]),
    "not null added": (f"ALTER TABLE {S} ALTER settle SET NOT NULL", [(S, "column", "settle", "changed")]),
    "identity dropped": (f"ALTER TABLE {T} ALTER id DROP IDENTITY", [(T, "column", "id", "changed")]),
    "identity always": (f"ALTER TABLE {S} ALTER id SET GENERATED ALWAYS", [(S, "column", "id", "changed")]),
    "expression dropped": (
        "ALTER TABLE balance_snapshots ALTER total_balance DROP EXPRESSION",
        [("balance_snapshots", "column", "total_balance", "changed")],
    ),
    "check dropped": (f"ALTER TABLE {T} DROP CONSTRAINT {PRICE}", [(T, "check", PRICE, "missing")]),
    "check loosened": (
        f"ALTER TABLE {T} DROP CONSTRAINT {PRICE}, ADD CONSTRAINT {PRICE} CHECK (price > 0)",
        [(T, "check", PRICE, "changed")],
    ),
    "check not valid": (
        f"ALTER TABLE {T} DROP CONSTRAINT {PRICE}, ADD CONSTRAINT {PRICE} CHECK ({POSITIVE}) NOT VALID",
        [(T, "check", PRICE, "changed")],
    ),
    "check added": (f"ALTER TABLE {T} ADD CONSTRAINT c CHECK (price < 9)", [(T, "check", "c", "extra")]),
    "primary key dropped": (
        f"ALTER TABLE {T} DROP CONSTRAINT trade_snapshots_pkey",
        [(T, "primary key", "trade_snapshots_pkey", "missing")],
    ),
    "primary key of others": (
        f"ALTER TABLE {T} DROP CONSTRAINT trade_snapshots_pkey, ADD PRIMARY KEY (timestamp, symbol_id, trade_id)",
        [(T, "primary key", "trade_snapshots_pkey", "changed")],
    ),
    "primary key not in the partitions": (
        f"ALTER TABLE {T} DROP CONSTRAINT trade_snapshots_pkey;"
        f"ALTER TABLE ONLY {T} ADD PRIMARY KEY (symbol_id, timestamp, trade_id)",
        [(T, "primary key", "trade_snapshots_pkey", "changed")],
    ),
    "unique key dropped": (
        "ALTER TABLE exchanges DROP CONSTRAINT exchanges_enum_value_key",
        [("exchanges", "unique key", "exchanges_enum_value_key", "missing")],
    ),
    "foreign key dropped": (
        f"ALTER TABLE {T} DROP CONSTRAINT trade_snapshots_symbol_id_fkey",
        [(T, "foreign key", "trade_snapshots_symbol_id_fkey", "missing")],
    ),
    "foreign key not valid": (
        f"ALTER TABLE {S} DROP CONSTRAINT symbols_exchange_id_fkey, ADD FOREIGN KEY (exchange_id) "
        "REFERENCES exchanges NOT VALID",
        [(S, "foreign key", "symbols_exchange_id_fkey", "changed")],
    ),
    "foreign key cascades": (
        f"ALTER TABLE {S} DROP CONSTRAINT symbols_exchange_id_fkey, ADD FOREIGN KEY (exchange_id) "
        "REFERENCES exchanges ON DELETE CASCADE",
        [(S, "foreign key", "symbols_exchange_id_fkey", "changed")],
    ),
    "unique index dropped": ("DROP INDEX uq_symbols_active", [(S, "index", "uq_symbols_active", "missing")]),
    "unique index of all rows": (
        f"DROP INDEX uq_symbols_active; CREATE UNIQUE INDEX uq_symbols_active ON {S} (exchange_id, exchange_symbol)",
        [(S, "index", "uq_symbols_active", "changed")],
    ),
    "index added": (f"CREATE INDEX mine ON {T} (timestamp)", [(T, "index", "mine", "extra")]),
    "index marked invalid": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_symbols_pair'::regclass",
        [(S, "index", "ix_symbols_pair", "changed")],
    ),
    "trigger dropped": (f"DROP TRIGGER keep_rows ON {S}", [(S, "trigger", "keep_rows", "missing")]),
    "trigger disabled": (f"ALTER TABLE {S} DISABLE TRIGGER keep_rows", [(S, "trigger", "keep_rows", "changed")]),
    "trigger of another event": (
        f"DROP TRIGGER touch ON {S}; CREATE TRIGGER touch BEFORE INSERT ON {S} "
        "FOR EACH ROW EXECUTE FUNCTION pgtick_touch()",
        [(S, "trigger", "touch", "changed")],
    ),
    "trigger added": (
        f"CREATE TRIGGER mine BEFORE INSERT ON {T} FOR EACH ROW EXECUTE FUNCTION pgtick_refuse()",
        [(T, "trigger", "mine", "extra")],
    ),
    "function replaced": (
        "CREATE OR REPLACE FUNCTION pgtick_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        [("", "function", "pgtick_refuse()", "changed")],
    ),
    "function with its owner's rights": (
        "ALTER FUNCTION pgtick_touch() SECURITY DEFINER",
        [("", "function", "pgtick_touch()", "changed")],
    ),
    "function dropped": (
        "DROP FUNCTION pgtick_touch() CASCADE",
        [
            ("", "function", "pgtick_touch()", "missing"),
            ("exchanges", "trigger", "touch", "missing"),
            (S, "trigger", "touch", "missing"),
        ],
    ),
    "row of pgtick_time_series deleted": (
        f"DELETE FROM pgtick_time_series WHERE table_name = '{T}'",
        [(T, "setting", "pgtick_time_series", "missing")],
    ),
    "pgtick_time_series dropped": (
        "DROP TABLE pgtick_time_series",
        [("pgtick_time_series", "table", "pgtick_time_series", "missing")],
    ),
    "table dropped": (
        "DROP TABLE order_flow_metrics",
        [("order_flow_metrics", "table", "order_flow_metrics", "missing")],
    ),
    "table unlogged": (
        "ALTER TABLE pgtick_time_series SET UNLOGGED",
        [("pgtick_time_series", "table", "pgtick_time_series", "changed")],
    ),
    "table with row security": (f"ALTER TABLE {S} ENABLE ROW LEVEL SECURITY", [(S, "table", S, "changed")]),
    "partition detached": (f"ALTER TABLE {T} DETACH PARTITION {{p}}", [(T, "partition", "{p}", "changed")]),
    "partition without a default": (
        "ALTER TABLE {p} ALTER created_at DROP DEFAULT",
        [("{p}", "column", "created_at", "changed")],
    ),
    "partition unlogged": ("ALTER TABLE {p} SET UNLOGGED", [("{p}", "table", "{p}", "changed")]),
    "partition with a check of its own": (
        "ALTER TABLE {p} ADD CONSTRAINT mine CHECK (price < 9)",
        [("{p}", "constraint", "mine", "extra")],
    ),
}
OF_18: dict[str, tuple[str, list[tuple[str, str, str, str]]]] = {
    "not null not valid": (
        f"ALTER TABLE {S} ALTER exchange_symbol DROP NOT NULL; ALTER TABLE {S} ADD NOT NULL exchange_symbol NOT VALID",
        [(S, "column", "exchange_symbol", "changed")],
    ),
    "foreign key enforced": (
        f"ALTER TABLE {T} DROP CONSTRAINT trade_snapshots_symbol_id_fkey, ADD FOREIGN KEY (symbol_id) REFERENCES {S}",
        [(T, "foreign key", "trade_snapshots_symbol_id_fkey", "changed")],
    ),
    "trigger with other arguments": (
        f"DROP TRIGGER check_references_insert ON {T}; CREATE TRIGGER check_references_insert AFTER INSERT ON {T} "
        "REFERENCING NEW TABLE AS incoming FOR EACH STATEMENT "
        "EXECUTE FUNCTION pgtick_check_references('symbol_id', 'exchanges')",
        [(T, "trigger", "check_references_insert", "changed")],
    ),
    "trigger of the table disabled": (
        f"ALTER TABLE {T} DISABLE TRIGGER check_references_insert",
        [(T, "trigger", "check_references_insert", "changed")],
    ),
    "partition without its trigger": (
        "DROP TRIGGER check_references_insert ON {p}",
        [("{p}", "trigger", "check_references_insert", "missing")],
    ),
    "partition with its trigger disabled": (
        "ALTER TABLE {p} DISABLE TRIGGER check_references_update",
        [("{p}", "trigger", "check_references_update", "changed")],
    ),
}


@pytest.fixture(scope="module")
def base(server: DatabaseConfig, template: str) -> Iterator[DatabaseConfig]:
    """A started database for all tests here, which take back what they plant."""
    name = f"{template}_planted"

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(**server.connect_kwargs())
        await connection.execute(statement)
        await connection.close()

    async def start() -> DatabaseConfig:
        await execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        config = msgspec.structs.replace(server, database=name)
        await (await initialize_database(config)).close()
        return config

    yield asyncio.run(start())
    asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def db(base: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    """A manager inside a transaction that is rolled back."""
    manager = await open_manager(base)
    try:
        with suppress(_RollBackError):
            async with manager.transaction():
                yield manager
                raise _RollBackError
    finally:
        await manager.close()


class _RollBackError(Exception):
    pass


async def partition(db: DatabaseManager) -> str:
    return str(
        await db.fetchval(f"SELECT min(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = '{T}'::regclass")
    )


def told(drifts: list[Drift]) -> list[tuple[str, str, str, str]]:
    return [(drift.table, drift.kind, drift.name, drift.state) for drift in drifts]


async def check(db: DatabaseManager, sql: str, expected: list[tuple[str, str, str, str]]) -> None:
    part = await partition(db)
    await db.execute(sql.format(p=part))
    drifts = await verify_schema(db)
    wanted = [tuple(text.format(p=part) for text in row) for row in expected]
    assert told(drifts) == wanted
    for drift in drifts:
        assert "\n" not in str(drift)
        assert drift.name in str(drift)
        assert drift.table in str(drift)
        assert drift.advice


@pytest.mark.parametrize("name", PLANTED)
async def test_planted_drift_is_found_alone(db: DatabaseManager, name: str) -> None:
    await check(db, *PLANTED[name])


@pytest.mark.parametrize("name", OF_18)
async def test_planted_drift_of_postgresql_18_is_found_alone(db: DatabaseManager, name: str) -> None:
    if db.server_version < 180000:
        pytest.skip("PostgreSQL 18 has it")
    await check(db, *OF_18[name])


async def test_partitions_that_lack_an_index_are_named(db: DatabaseManager) -> None:
    await check(db, *PLANTED["primary key not in the partitions"])
    (drift,) = await verify_schema(db)
    assert f"INVALID, lacking in {await partition(db)}, " in drift.live


# What the advice says is done, and then there is no drift: where it is SQL.
REPAIRED = [
    *("column dropped", "check dropped", "check loosened", "check not valid", "primary key dropped"),
    *("unique key dropped", "foreign key dropped", "unique index dropped", "trigger dropped"),
    *("trigger disabled", "trigger of another event", "function replaced"),
]


@pytest.mark.parametrize("name", REPAIRED)
async def test_advice_in_sql_repairs_the_drift(db: DatabaseManager, name: str) -> None:
    await db.execute(PLANTED[name][0])
    (drift,) = await verify_schema(db)
    assert drift.advice.endswith(";")
    await db.execute(drift.advice)
    assert await verify_schema(db) == []
