"""Ingest as the least-privileged role: the whole Writer as a member of pgtick_writer, and nothing beyond it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
from logins import Roles, roles_of
from rows import make_symbol, quarantined, ticker

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database
from pgtick.errors import SchemaChangedError
from pgtick.roles import set_up_roles
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer
from pgtick.writer.batch import Batch
from pgtick.writer.deliver import deliver
from pgtick.writer.encoders import encoder_of

pytestmark = pytest.mark.engines("plain")
LATE = datetime(2021, 4, 22, 12, tzinfo=UTC)
COUNTED = "SELECT count(*) FROM book_ticker_snapshots"


@pytest.fixture
async def roles(config: DatabaseConfig) -> AsyncIterator[Roles]:
    async with roles_of(config) as roles:
        await set_up_roles(roles.admin, prefix=roles.prefix)
        yield roles


@pytest.fixture
async def as_writer(roles: Roles) -> AsyncIterator[DatabaseManager]:
    """The published manager of a login that is a member of the writer's role and of no other."""
    manager = await initialize_database(await roles.login("writer"))
    assert not await manager.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    yield manager
    await manager.close()


async def test_writer_role_stores_tells_duplicates_and_quarantines_and_the_ledger_says_so(
    roles: Roles, as_writer: DatabaseManager
) -> None:
    symbol_id = await make_symbol()
    async with Writer(as_writer, max_age_s=60, spool=False) as writer:
        await writer.add_many(BOOK_TICKERS, [ticker(symbol_id, sequence_number=n) for n in range(100)])
        await writer.flush()
        rows = [ticker(symbol_id, sequence_number=n) for n in range(90, 110)]  # 10 are there
        rows.append(ticker(999_999, sequence_number=200))  # what only the server knows
        rows.append(ticker(symbol_id, sequence_number=201, bid_price="NaN"))  # what is refused here
        rows.append(ticker(symbol_id, sequence_number=202, timestamp=LATE))  # a day without a partition
        await writer.add_many(BOOK_TICKERS, rows)
    counts = writer.counts[BOOK_TICKERS.name]
    assert (counts.n_accepted, counts.n_stored, counts.n_duplicates, counts.n_quarantined) == (123, 111, 10, 2)
    assert await roles.admin.fetchval(COUNTED) == 111
    assert sorted(column for _, column, _ in await quarantined(roles.admin)) == ["bid_price", "symbol_id"]
    ledger = await roles.admin.fetchrow("SELECT sum(n_duplicates), sum(n_quarantined), count(*) FROM ingest_batches")
    assert ledger is not None
    assert (ledger[0], ledger[1]) == (10, 2)
    assert ledger[2] >= 2


async def test_writer_role_sends_a_batch_again_under_its_id_and_finds_it(
    roles: Roles, as_writer: DatabaseManager
) -> None:
    symbol_id = await make_symbol()
    batch = Batch(
        BOOK_TICKERS, encoder_of(BOOK_TICKERS).encode([ticker(symbol_id, sequence_number=n) for n in range(9)])
    )
    first, second = await deliver(as_writer, batch), await deliver(as_writer, batch)
    assert (first.n_stored, first.was_committed) == (9, False)
    assert (second.n_stored, second.was_committed) == (9, True)
    assert await roles.admin.fetchval(COUNTED) == 9


async def test_writer_role_keeps_what_it_may_not_store_and_stores_it_when_it_may(
    roles: Roles, as_writer: DatabaseManager, tmp_path: Path
) -> None:
    symbol_id = await make_symbol()
    grantee = roles.name("writer")
    await roles.admin.execute(f"REVOKE INSERT ON book_ticker_snapshots FROM {grantee}")
    writer = Writer(as_writer, max_age_s=60, spool=tmp_path / "spool", close_timeout_s=2)
    await writer.add(BOOK_TICKERS, ticker(symbol_id))
    with pytest.raises(SchemaChangedError, match="permission denied"):
        await writer.flush()
    assert writer.n_waiting == 1
    await roles.admin.execute(f"GRANT INSERT ON book_ticker_snapshots TO {grantee}")
    await writer.flush()
    await writer.close()
    assert writer.counts[BOOK_TICKERS.name].n_stored == 1
    assert await roles.admin.fetchval(COUNTED) == 1


@pytest.mark.parametrize("table", ["book_ticker_snapshots", "{partition}", "ingest_batches", "ingest_quarantine"])
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM {table}",
        "UPDATE {table} SET {column} = {column}",
        "TRUNCATE {table}",
        "DROP TABLE {table}",
        "ALTER TABLE {table} ADD COLUMN mine int",
        "ALTER TABLE {table} DISABLE TRIGGER ALL",
        "CREATE INDEX mine ON {table} ({column})",
        "CREATE TRIGGER mine AFTER INSERT ON {table} EXECUTE FUNCTION pgtick_refuse()",
        "DO $$ BEGIN LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; END $$",
        "INSERT INTO {table} SELECT * FROM {table} ON CONFLICT ON CONSTRAINT {table}_pkey DO UPDATE SET {column} = 1",
    ],
)
async def test_writer_role_may_add_rows_and_nothing_else(
    roles: Roles, as_writer: DatabaseManager, table: str, statement: str
) -> None:
    symbol_id = await make_symbol()
    async with Writer(as_writer, max_age_s=60, spool=False) as writer:
        await writer.add(BOOK_TICKERS, ticker(symbol_id))
        await writer.add(BOOK_TICKERS, ticker(symbol_id, bid_price="NaN"))
    before = await everything(roles)
    day = f"{datetime.now(UTC):%Y%m%d}"
    table = table.format(partition=f"book_ticker_snapshots_p{day}")
    column = {"ingest_batches": "n_rows", "ingest_quarantine": "row_index"}.get(table, "bid_qty")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await as_writer.execute(statement.format(table=table, column=column))
    assert await everything(roles) == before


async def everything(roles: Roles) -> list[tuple[object, ...]]:
    tables = ("book_ticker_snapshots", "ingest_batches", "ingest_quarantine")
    query = " UNION ALL ".join(f"SELECT to_jsonb(t)::text FROM {table} t" for table in tables)
    return [tuple(record) for record in await roles.admin.fetch(query + " ORDER BY 1")]
