"""The server under the comparison: a private PostgreSQL 18 that syncs to disk, or the one given; and what it is."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import asyncpg
import msgspec

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database
from pgtick.embedded import start_embedded

__all__ = ["describe", "open_database", "server_config"]

LIBRARIES = [
    "pgtick",
    "asyncpg",
    "msgspec",
    "numpy",
    "psycopg",
    "psycopg-binary",
    "pgcopy",
    "psycopg2",
    "pgpq",
    "adbc-driver-postgresql",
    "connectorx",
    "pyarrow",
    "cryptofeed",
]
SETTINGS = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "jit",
]


@contextmanager
def server_config(dsn: str | None) -> Iterator[DatabaseConfig]:
    """Yield the server's configuration; without a DSN a private server is started, and removed at the end."""
    if dsn is not None:
        yield DatabaseConfig.from_dsn(dsn)
        return
    with (
        tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder,
        start_embedded(Path(folder) / "data") as server,
    ):
        yield server.config()


@asynccontextmanager
async def open_database(server: DatabaseConfig, n_symbols: int) -> AsyncIterator[DatabaseManager]:
    """Yield a manager of a new database with symbols 1 … n_symbols; the database is dropped at the end."""
    name = f"pgtick_peers_{os.getpid()}"
    admin = await asyncpg.connect(**server.connect_kwargs())
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        try:
            db = await initialize_database(msgspec.structs.replace(server, database=name))
            try:
                await db.execute(
                    "INSERT INTO exchanges (enum_value, exchange_name, market_type) "
                    "VALUES ('BENCH_SPOT', 'BENCH', 'SPOT')"
                )
                await db.execute(
                    "INSERT INTO symbols (id, exchange_id, symbol_base, symbol_quote, exchange_symbol) "
                    "SELECT n, 1, 'COIN' || n, 'USDT', 'COIN' || n || '_USDT' FROM generate_series(1, $1::int) n",
                    n_symbols,
                )
                yield db
            finally:
                await db.close()
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def describe(db: DatabaseManager) -> dict[str, str]:
    """Return what the figures depend on: versions and settings, by name; never a host's name or a path."""
    busy = f"{os.getloadavg()[1]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    facts = {
        "load average over the last five minutes (the run itself makes about 1)": busy,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"
        if sys.platform == "linux"
        else f"{os.cpu_count()} cores, {platform.platform()}",
        "Python": platform.python_version(),
        "PostgreSQL": str(await db.fetchval("SHOW server_version")),
        "connection": "Unix socket" if db.config.host.startswith("/") else "TCP",
    }
    for setting in SETTINGS:
        facts[setting] = str(await db.fetchval("SELECT current_setting($1)", setting))
    for library in LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            facts[library] = "not installed"
    return facts
