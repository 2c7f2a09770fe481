"""Large batches go straight to their day's partition, where that is possible, and end up in the table in any case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from rows import make_symbol, ticker

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.engines import get_engine
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import store_rows
from pgtick.writer.deliver import STRAIGHT_ROWS

pytestmark = pytest.mark.engines("plain")

DAY = datetime(2022, 3, 4, 12, tzinfo=UTC)
PARTITION = f"{BOOK_TICKERS.name}_p20220304"
ROLE = "pgtick_test_parent_only"


@pytest.fixture
async def symbol_id(db: DatabaseManager) -> int:
    """A symbol, and a partition that notes which table a statement inserts into."""
    engine = await get_engine(db)
    symbol = await make_symbol()
    await engine.ensure_days(db, BOOK_TICKERS.name, {(DAY - datetime(1970, 1, 1, tzinfo=UTC)).days})
    await db.execute(
        "CREATE TABLE targets (name text); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "$$ BEGIN INSERT INTO targets VALUES (TG_TABLE_NAME); RETURN NULL; END $$"
    )
    for table in (BOOK_TICKERS.name, PARTITION):
        await db.execute(f"CREATE TRIGGER note AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION note()")
    return symbol


def rows_of(symbol_id: int, n: int, *, days: int = 1) -> list[Any]:
    return [ticker(symbol_id, timestamp=DAY + timedelta(days=i % days), sequence_number=i) for i in range(n)]


async def targets(db: DatabaseManager) -> list[str]:
    return [record["name"] for record in await db.fetch("SELECT name FROM targets")]


async def test_large_batch_of_one_day_goes_to_its_partition(db: DatabaseManager, symbol_id: int) -> None:
    result = await store_rows(BOOK_TICKERS, rows_of(symbol_id, STRAIGHT_ROWS))
    assert (result.n_stored, result.n_duplicates, result.errors) == (STRAIGHT_ROWS, 0, [])
    # Before 17 an identity column numbers no rows there.
    assert await targets(db) == [PARTITION if db.server_version >= 170000 else BOOK_TICKERS.name]
    stored = await db.fetchrow(f"SELECT count(*), count(DISTINCT id), count(created_at) FROM {BOOK_TICKERS.name}")
    assert stored is not None
    assert tuple(stored) == (STRAIGHT_ROWS,) * 3


@pytest.mark.parametrize(("n", "days"), [(STRAIGHT_ROWS - 1, 1), (STRAIGHT_ROWS, 2)])
async def test_small_batch_and_one_of_two_days_go_to_the_table(
    db: DatabaseManager, symbol_id: int, n: int, days: int
) -> None:
    assert (await store_rows(BOOK_TICKERS, rows_of(symbol_id, n, days=days))).n_stored == n
    assert await targets(db) == [BOOK_TICKERS.name]


async def test_duplicates_and_refusals_are_told_apart_there_too(db: DatabaseManager, symbol_id: int) -> None:
    rows = rows_of(symbol_id, STRAIGHT_ROWS)
    await store_rows(BOOK_TICKERS, rows[:100])
    rows[4000] = ticker(999_999, timestamp=DAY)
    result = await store_rows(BOOK_TICKERS, rows)
    assert (result.n_stored, result.n_duplicates) == (STRAIGHT_ROWS - 101, 100)
    assert [(error.index, error.column, error.value) for error in result.errors] == [(4000, "symbol_id", 999_999)]
    assert result.errors[0].table == BOOK_TICKERS.name


async def test_partition_that_another_process_dropped_is_made_again(db: DatabaseManager, symbol_id: int) -> None:
    await db.execute(f"DROP TABLE {PARTITION}")
    assert (await store_rows(BOOK_TICKERS, rows_of(symbol_id, STRAIGHT_ROWS))).n_stored == STRAIGHT_ROWS
    assert await db.fetchval(f"SELECT count(*) FROM {PARTITION}") == STRAIGHT_ROWS


async def test_role_without_rights_on_the_partition_writes_to_the_table(
    config: DatabaseConfig, db: DatabaseManager, symbol_id: int
) -> None:
    await db.execute(
        f"DROP ROLE IF EXISTS {ROLE}; CREATE ROLE {ROLE} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {ROLE};"
        f"GRANT INSERT ON {BOOK_TICKERS.name}, ingest_batches TO {ROLE}"
    )
    writer = await open_manager(msgspec.structs.replace(config, user=ROLE))
    try:
        result = await store_rows(BOOK_TICKERS, rows_of(symbol_id, STRAIGHT_ROWS), db=writer)
        assert (result.n_stored, result.errors) == (STRAIGHT_ROWS, [])
        assert await targets(db) == [BOOK_TICKERS.name]
    finally:
        await writer.close()
        await db.execute(f"DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")
