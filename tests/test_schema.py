"""The live schema is what the models say, and typed SQL cannot get round its rules."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest

from pgtick import models
from pgtick.connection import DatabaseManager
from pgtick.engines import get_engine
from pgtick.models import sql_fields
from pgtick.tables import BUILT_IN_TABLES, INGEST_BATCHES, Table

LOOKUP_MODELS: tuple[type[models.Row], ...] = (models.Exchange, models.Symbol)
ALL_MODELS = (*LOOKUP_MODELS, *(table.model for table in BUILT_IN_TABLES))
SQL_TYPES = {
    "int4": "integer",
    "int8": "bigint",
    "float8": "double precision",
    "numeric": "numeric",
    "text": "text",
    "bool": "boolean",
    "timestamptz": "timestamp with time zone",
}
NOW = datetime.now(UTC)

_COLUMNS = """
SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type, NOT attnotnull AS nullable,
       attidentity <> '' AS identity, attgenerated <> '' AS generated, pg_get_expr(adbin, adrelid) AS default
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""

# A good row of every table; every test spoils one value of it.
GOOD_ROWS: dict[str, dict[str, str]] = {
    "exchanges": {"enum_value": "'X_SPOT'", "exchange_name": "'X'", "market_type": "'SPOT'"},
    "symbols": {"exchange_id": "1", "symbol_base": "'X'", "symbol_quote": "'Y'", "exchange_symbol": "'XY'"},
    "book_ticker_snapshots": {
        "symbol_id": "1",
        "bid_price": "1",
        "ask_price": "1",
        "sequence_number": "1",
        "update_type": "'ticker'",
    },
    "trade_snapshots": {"symbol_id": "1", "price": "1", "quantity": "1", "side": "'buy'", "trade_id": "'1'"},
    "funding_rate_snapshots": {"symbol_id": "1", "funding_rate": "0", "funding_time": "now()"},
    "balance_snapshots": {
        "exchange_id": "1",
        "asset_name": "'USDT'",
        "available_balance": "0",
        "locked_balance": "0",
    },
    "arbitrage_opportunities": {
        "symbol_id": "1",
        "buy_exchange_id": "1",
        "sell_exchange_id": "1",
        "buy_price": "1",
        "sell_price": "1",
        "spread_bps": "0",
        "detected_at": "now()",
    },
    "order_flow_metrics": {
        "symbol_id": "1",
        "ofi_score": "0",
        "microprice": "0",
        "mid_price": "0",
        "spread_bps": "0",
        "volume_imbalance": "0",
    },
}
REFERENCES = [
    (table.name, column)
    for table in BUILT_IN_TABLES
    for column in table.column_names
    if column.endswith("_id") and column != "trade_id"
]


@pytest.fixture
async def seeded(db: DatabaseManager) -> DatabaseManager:
    """``db`` with exchange 1 and symbol 1."""
    await db.execute(
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'C', 'BC')"
    )
    # Rows are inserted by hand at NOW, which midnight may have made yesterday.
    for table in BUILT_IN_TABLES:
        await (await get_engine(db)).ensure_days(db, table.name, {int(NOW.timestamp() // 86400)})
    return db


async def insert(db: DatabaseManager, table: str, **changes: str) -> None:
    values = {**GOOD_ROWS[table], **changes}
    if table not in ("exchanges", "symbols"):
        values.setdefault("timestamp", "now()")
    await db.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(values.values())})")


def model_name(model: type[msgspec.Struct]) -> str:
    return model.__name__


@pytest.mark.parametrize("model", ALL_MODELS, ids=model_name)
async def test_live_columns_are_the_model_s(db: DatabaseManager, model: type[models.Row]) -> None:
    live = {record["name"]: record for record in await db.fetch(_COLUMNS, model.table_name)}
    fields = sql_fields(model)
    assert sorted(live) == sorted({*fields, "created_at"})
    for name, (sql, optional) in fields.items():
        column = live[name]
        assert column["type"] == SQL_TYPES[sql.type], name
        if sql.made_by_server:
            assert column["identity"] or column["default"] is not None, name
            assert column["nullable"] == column["generated"], name
        else:
            assert column["nullable"] == (optional and not sql.content_key), name
            assert not column["identity"], name
            assert not column["generated"], name


@pytest.mark.parametrize("model", ALL_MODELS, ids=model_name)
async def test_live_defaults_are_the_model_s(db: DatabaseManager, model: type[models.Row]) -> None:
    live = {record["name"]: record for record in await db.fetch(_COLUMNS, model.table_name)}
    for field in msgspec.structs.fields(model):
        sql, _ = sql_fields(model)[field.name]
        column = live[field.name]
        if sql.made_by_server or column["default"] is None:
            continue
        assert await db.fetchval(f"SELECT {column['default']}") == field.default, field.name
    for name in {"created_at", "updated_at"} & live.keys():
        assert live[name]["default"] == "now()"
        assert not live[name]["nullable"]
    if "id" in live:
        assert live["id"]["identity"]


@pytest.mark.parametrize("table", BUILT_IN_TABLES, ids=lambda table: table.name)
async def test_primary_key_is_the_table_s_and_the_only_index(db: DatabaseManager, table: Table) -> None:
    indexes = await db.fetch(
        "SELECT indisprimary, ARRAY(SELECT attname::text FROM unnest(indkey::int2[]) WITH ORDINALITY AS k (num, place) "
        "JOIN pg_attribute ON attrelid = indrelid AND attnum = num ORDER BY place) AS columns "
        "FROM pg_index WHERE indrelid = $1::regclass",
        table.name,
    )
    assert [(record["indisprimary"], tuple(record["columns"])) for record in indexes] == [(True, table.key)]


async def test_time_series_tables_hold_foreign_keys_only(db: DatabaseManager) -> None:
    registered = [r[0] for r in await db.fetch("SELECT table_name FROM pgtick_time_series")]
    names_of_models = {table.name for table in BUILT_IN_TABLES}
    assert sorted(registered) == sorted(names_of_models | {INGEST_BATCHES})
    for table in names_of_models:
        names = {record["name"] for record in await db.fetch(_COLUMNS, table)}
        assert names & {"symbol_id", "exchange_id"}, table
        assert not names & {"exchange", "exchange_name", "enum_value", "symbol", "symbol_base", "symbol_quote"}, table


async def test_references_are_declared_where_that_holds_nobody_up(db: DatabaseManager) -> None:
    declared = await db.fetch(
        "SELECT c.conrelid::regclass::text AS table, a.attname::text AS column, c.confrelid::regclass::text AS target "
        "FROM pg_constraint c JOIN pg_attribute a ON attrelid = conrelid AND attnum = conkey[1] "
        "JOIN pgtick_time_series s ON s.table_name = c.conrelid::regclass::text WHERE contype = 'f' "
        # From PostgreSQL 18 on a key to a partitioned table's partitions has rows of its own.
        "AND conparentid = 0"
    )
    expected = {(t, c, "symbols" if c == "symbol_id" else "exchanges") for t, c in REFERENCES}
    if (await get_engine(db)).name == "timescale" and db.server_version >= 180000:
        expected = set()
    assert {tuple(record) for record in declared} == expected


@pytest.mark.parametrize("table", GOOD_ROWS)
async def test_the_good_rows_are_good(seeded: DatabaseManager, table: str) -> None:
    await insert(seeded, table)


def bad_numbers() -> list[tuple[str, str, str]]:
    cases = []
    for model in ALL_MODELS:
        for name, (sql, _) in sql_fields(model).items():
            if sql.type not in ("numeric", "float8") or sql.made_by_server:
                continue
            table = str(model.table_name)  # type: ignore[attr-defined]
            cases += [(table, name, "'NaN'"), (table, name, "'Infinity'"), (table, name, "'-Infinity'")]
            if sql.rule == "> 0":
                cases.append((table, name, "0"))
            if sql.rule is not None:
                cases.append((table, name, "-1e-20"))
    return cases


async def test_no_number_that_breaks_its_rule_gets_in_by_typed_sql(seeded: DatabaseManager) -> None:
    cases = bad_numbers()
    assert ("trade_snapshots", "price", "0") in cases
    for table, column, value in cases:
        with pytest.raises(asyncpg.CheckViolationError) as caught:
            await insert(seeded, table, **{column: value})
        assert caught.value.constraint_name is not None
        assert column in caught.value.constraint_name, (table, column, value)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("trade_snapshots", "side", "'BUY'"),
        ("exchanges", "market_type", "'SWAP'"),
        ("exchanges", "enum_value", "'X_FUTURES'"),
        ("arbitrage_opportunities", "duration_ms", "-1"),
    ],
)
async def test_text_that_breaks_its_rule_is_refused(
    seeded: DatabaseManager, table: str, column: str, value: str
) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(seeded, table, **{column: value})


@pytest.mark.parametrize("table", ["exchanges", "symbols"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "TRUNCATE {} CASCADE", "UPDATE {} SET id = 7"])
async def test_rows_of_lookup_tables_stay_and_keep_their_ids(
    seeded: DatabaseManager, table: str, statement: str
) -> None:
    with pytest.raises(asyncpg.PostgresError, match="deactivate") as caught:
        await seeded.execute(statement.format(table))
    assert caught.value.sqlstate == "23001"
    assert await seeded.fetchval(f"SELECT array_agg(id) FROM {table}") == [1]
    await seeded.execute(f"UPDATE {table} SET is_active = false")


def assert_names_orphan(error: asyncpg.PostgresError, table: str, column: str, orphan: int) -> None:
    assert error.sqlstate == "23503"
    text = f"{error} {error.detail or ''}"
    assert table in text
    assert column in text
    assert str(orphan) in text


async def copy_row(db: DatabaseManager, table: str, values: dict[str, str]) -> None:
    source = await db.fetchrow(f"SELECT {', '.join(f'{value} AS {name}' for name, value in values.items())}")
    assert source is not None
    columns: Sequence[str] = tuple(values)
    await db.copy_records_to_table(table, [tuple(source)], columns)


@pytest.mark.engines("plain", "timescale")  # COPY on Citus has no SQLSTATE: tests/test_engine_citus.py
@pytest.mark.parametrize(("table", "column"), REFERENCES)
async def test_orphans_are_refused_by_copy_insert_and_update(seeded: DatabaseManager, table: str, column: str) -> None:
    values: dict[str, Any] = {"timestamp": "now()", **GOOD_ROWS[table]}
    with pytest.raises(asyncpg.ForeignKeyViolationError) as caught:
        await insert(seeded, table, **{column: "4711"})
    assert_names_orphan(caught.value, table, column, 4711)
    with pytest.raises(asyncpg.ForeignKeyViolationError) as caught:
        await copy_row(seeded, table, {**values, column: "4712"})
    assert_names_orphan(caught.value, table, column, 4712)
    await copy_row(seeded, table, values)
    with pytest.raises(asyncpg.ForeignKeyViolationError) as caught:
        await seeded.execute(f"UPDATE {table} SET {column} = 4713")
    assert_names_orphan(caught.value, table, column, 4713)
    assert await seeded.fetchval(f"SELECT count(*) FROM {table} WHERE {column} = 1") == 1


@pytest.mark.engines("plain", "timescale")  # COPY on Citus has no SQLSTATE: tests/test_engine_citus.py
async def test_orphans_are_refused_in_an_upsert_and_in_a_move_to_another_day(seeded: DatabaseManager) -> None:
    await insert(seeded, "funding_rate_snapshots", timestamp=f"'{NOW.isoformat()}'")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await seeded.execute(
            "INSERT INTO funding_rate_snapshots (timestamp, symbol_id, funding_rate, funding_time) "
            "VALUES ($1, 1, 0, now()) ON CONFLICT (symbol_id, timestamp) DO UPDATE SET symbol_id = 99",
            NOW,
        )
    if (await get_engine(seeded)).name == "plain":  # TimescaleDB moves no row
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await seeded.execute(
                "UPDATE funding_rate_snapshots SET timestamp = timestamp + interval '1 day', symbol_id = 99"
            )
    assert await seeded.fetchval("SELECT array_agg(symbol_id) FROM funding_rate_snapshots") == [1]


@pytest.mark.engines("plain", "timescale")  # COPY on Citus has no SQLSTATE: tests/test_engine_citus.py
async def test_one_orphan_refuses_its_whole_statement(seeded: DatabaseManager) -> None:
    rows = [(NOW, symbol_id, 0, NOW) for symbol_id in (1, 2)]
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await seeded.copy_records_to_table(
            "funding_rate_snapshots", rows, ("timestamp", "symbol_id", "funding_rate", "funding_time")
        )
    assert await seeded.fetchval("SELECT count(*) FROM funding_rate_snapshots") == 0


async def test_references_do_not_depend_on_the_session_s_search_path(seeded: DatabaseManager) -> None:
    insert_row = (
        "INSERT INTO public.funding_rate_snapshots (timestamp, symbol_id, funding_rate, funding_time) "
        f"VALUES ('{NOW.isoformat()}', $1, 0, now())"
    )
    async with seeded.transaction():
        await seeded.execute("SET LOCAL search_path = ''")
        await seeded.execute(insert_row, 1)
    async with seeded.acquire() as connection:
        await connection.execute("CREATE TEMPORARY TABLE symbols (id int); INSERT INTO symbols VALUES (999)")
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await connection.execute(insert_row, 999)
        await connection.execute("DROP TABLE pg_temp.symbols")
