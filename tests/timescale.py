"""Databases of a TimescaleDB server for the tests that want one: fixtures to be named in a module's own."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager

__all__ = ["DSN", "empty_database", "needs_timescale", "skip_unless_licence", "started"]

DSN = os.environ.get("PGTICK_TEST_TIMESCALE_DSN")
needs_timescale = pytest.mark.skipif(not DSN, reason="no TimescaleDB: PGTICK_TEST_TIMESCALE_DSN is not set")
_numbers = itertools.count()


@asynccontextmanager
async def empty_database() -> AsyncIterator[DatabaseConfig]:
    """Yield an empty database with the extension."""
    assert DSN is not None
    server = DatabaseConfig.from_dsn(DSN)
    config = msgspec.structs.replace(server, database=f"pgtick_test_{os.getpid()}_timescale{next(_numbers)}")
    connection = await asyncpg.connect(**server.connect_kwargs())
    try:
        await connection.execute(f"CREATE DATABASE {config.database}")
        manager = await open_manager(config)
        await manager.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        await manager.close()
        yield config
    finally:
        await connection.execute(f"DROP DATABASE {config.database} WITH (FORCE)")
        await connection.close()


@asynccontextmanager
async def started(config: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    """Yield a started manager, with exchange 1 and symbol 1."""
    manager = await initialize_database(config)
    try:
        await manager.execute(
            "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
            "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'C', 'BC')"
        )
        yield manager
    finally:
        await manager.close()


async def skip_unless_licence(db: DatabaseManager, licence: str) -> None:
    """Skip the test on a server of the other licence."""
    if await db.fetchval("SHOW timescaledb.license") != licence:
        pytest.skip(f"the server given does not have the licence {licence}")
