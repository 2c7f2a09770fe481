"""The SQL that makes the schema on Citus, which needs no Citus to be looked at."""

from __future__ import annotations

import re

import pytest

from pgtick.migrator.render import render_sql
from pgtick.tables import BUILT_IN_TABLES


@pytest.fixture
async def script() -> str:
    return await render_sql("citus", 18)


async def test_lookup_tables_are_reference_tables_before_the_first_table_is_distributed(script: str) -> None:
    assert script.index("CREATE EXTENSION IF NOT EXISTS citus") < script.index("CREATE TABLE exchanges")
    assert script.index("create_reference_table(lookup)") < script.index("create_distributed_table(")
    assert script.index('CREATE TABLE "book_ticker_snapshots"') < script.index("create_distributed_table(")


@pytest.mark.parametrize("table", [table.name for table in BUILT_IN_TABLES])
async def test_table_is_partitioned_by_time_and_distributed_by_its_key(script: str, table: str) -> None:
    made = re.search(
        rf'CREATE TABLE "{table}" \((.*?)\) PARTITION BY RANGE \(timestamp\);(.*?)(?=CREATE TABLE|\Z)',
        script,
        re.DOTALL,
    )
    assert made is not None
    columns, rest = made.groups()
    assert "FOREIGN KEY" in columns
    assert "NOT ENFORCED" not in columns
    distribution = re.search(r"SELECT create_distributed_table\(.*?;", rest, re.DOTALL)
    assert distribution is not None
    assert f"quote_ident('{table}')::regclass" in distribution[0]
    assert "attnum = indkey[0]" in distribution[0]
    assert "CREATE TRIGGER check_references" not in rest


async def test_what_a_node_s_trigger_must_not_do_is_dropped_and_what_refuses_stays(script: str) -> None:
    assert "DROP TRIGGER IF EXISTS touch" in script
    assert "DROP TRIGGER IF EXISTS notify" in script
    assert script.count("DROP TRIGGER") == 2 * (
        len(BUILT_IN_TABLES) + 1
    )  # ingest_batches; each table's step is whole: it is the first or not
    assert "SET LOCAL citus.enable_unsafe_triggers = on" in script
