"""The four roles on TimescaleDB for real, at PGTICK_TEST_TIMESCALE_DSN; its own scheduler works as the owner."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime

import asyncpg
import msgspec
import pytest
from logins import Roles, roles_of
from rows import make_symbol, ticker

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database
from pgtick.engines import get_engine, maintain
from pgtick.migrator import run_pending_migrations
from pgtick.roles import set_up_roles
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import store_rows
from pgtick.writer.deliver import STRAIGHT_ROWS

TIMESCALE_DSN = os.environ.get("PGTICK_TEST_TIMESCALE_DSN")
LATE = datetime(2021, 4, 22, 12, tzinfo=UTC)


@pytest.mark.skipif(not TIMESCALE_DSN, reason="no TimescaleDB: PGTICK_TEST_TIMESCALE_DSN is not set")
async def test_roles_on_timescaledb() -> None:
    assert TIMESCALE_DSN is not None
    server = DatabaseConfig.from_dsn(TIMESCALE_DSN)
    name = f"pgtick_test_{os.getpid()}_roles"
    connection = await asyncpg.connect(**server.connect_kwargs())
    await connection.execute(f"CREATE DATABASE {name}")
    try:
        config = msgspec.structs.replace(server, database=name)
        async with roles_of(config) as roles:
            await roles.admin.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
            if await roles.admin.fetchval("SHOW timescaledb.license") != "timescale":
                pytest.skip("the server given has neither policies nor aggregates")
            await run_pending_migrations(roles.admin)
            await set_up_roles(roles.admin, prefix=roles.prefix)
            assert await set_up_roles(roles.admin, prefix=roles.prefix) == []
            await _work_on_timescale(roles)
    finally:
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()


async def _work_on_timescale(roles: Roles) -> None:
    writer = await initialize_database(await roles.login("writer"))
    try:
        assert (await get_engine(writer)).name == "timescale"
        symbol_id = await make_symbol()
        rows = [ticker(symbol_id, timestamp=LATE, sequence_number=n) for n in range(STRAIGHT_ROWS)]
        assert (await store_rows(BOOK_TICKERS, rows)).n_stored == STRAIGHT_ROWS
        assert (await store_rows(BOOK_TICKERS, [*rows, ticker(symbol_id)])).n_duplicates == STRAIGHT_ROWS
        assert await maintain(writer) is not None
        for statement in ("DELETE FROM book_ticker_snapshots", "SELECT drop_chunks('book_ticker_snapshots', now())"):
            with pytest.raises(asyncpg.PostgresError, match=r"permission denied|must be owner"):
                await writer.execute(statement)
    finally:
        await writer.close()
    async with roles.opened("monitor") as monitor:
        assert await monitor.fetchval("SELECT max(timestamp) FROM book_ticker_snapshots") is not None
    async with roles.opened("reader") as reader:
        assert await reader.fetchval("SELECT count(bid_price) FROM book_ticker_snapshots") == STRAIGHT_ROWS + 1
        assert await reader.fetchval("SELECT count(*) FROM mid_candles_1m") == 2
    await _run_retention(roles.admin)


async def _run_retention(db: DatabaseManager) -> None:
    """Have TimescaleDB's scheduler itself run the policy, as the tables' owner."""
    await db.execute(
        "SELECT alter_job(job_id, next_start => now()) FROM timescaledb_information.jobs "
        "WHERE hypertable_name = 'book_ticker_snapshots' AND proc_name = 'policy_retention'"
    )
    async with asyncio.timeout(60):
        while await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") != 1:  # noqa: ASYNC110  the server's state
            await asyncio.sleep(0.1)
