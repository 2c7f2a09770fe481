"""A cluster that may be killed, a migrated database in it for each test, and a way to it by the proxy."""

from __future__ import annotations

import asyncio
import gc
import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
import pytest
from rows import make_symbol

from faults.proxy import Proxy
from faults.servers import Cluster
from pgtick.config import DatabaseConfig
from pgtick.connection import open_manager, use_manager
from pgtick.engines import get_engine
from pgtick.migrator import run_pending_migrations
from pgtick.tables import BUILT_IN_TABLES

_numbers = itertools.count()
KEYED = "pgtick_test_faults_keyed"
KEYLESS = "pgtick_test_faults_keyless"


async def _make_templates(cluster: Cluster) -> None:
    await cluster.execute(f"CREATE DATABASE {KEYED}")
    db = await open_manager(cluster.config(KEYED))
    try:
        await run_pending_migrations(db)
        await (await get_engine(db)).make_ahead(db)
        with use_manager(db):
            assert await make_symbol() == 1
    finally:
        await db.close()
    await cluster.execute(f"CREATE DATABASE {KEYLESS} TEMPLATE {KEYED}")
    connection = await asyncpg.connect(**cluster.config(KEYLESS).connect_kwargs())
    query = "SELECT conname FROM pg_constraint WHERE conrelid = $1::text::regclass AND contype IN ('p', 'u')"
    try:
        for table in BUILT_IN_TABLES:
            for (name,) in await connection.fetch(query, table.name):
                await connection.execute(f'ALTER TABLE {table.name} DROP CONSTRAINT "{name}"')
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def faults_cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        cluster = Cluster(Path(folder) / "server").create()
        try:
            cluster.start()
            asyncio.run(_make_templates(cluster))
            yield cluster
        finally:
            cluster.remove()


@pytest.fixture
def cluster(faults_cluster: Cluster) -> Cluster:
    """The cluster, running; it may be killed."""
    if not faults_cluster.is_up:
        faults_cluster.start()
    return faults_cluster


@asynccontextmanager
async def _clone(cluster: Cluster, template: str) -> AsyncIterator[DatabaseConfig]:
    name = f"pgtick_test_faults{next(_numbers)}"
    await cluster.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield msgspec.structs.replace(cluster.config(name), connect_timeout_s=5.0, max_connections=3)
    if not cluster.is_up:
        await asyncio.to_thread(cluster.start)
    await cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def keyless(cluster: Cluster) -> AsyncIterator[DatabaseConfig]:
    """A migrated database with symbol 1, whose tables have no key: what was stored twice is there twice."""
    async with _clone(cluster, KEYLESS) as config:
        yield config


@pytest.fixture
async def keyed(cluster: Cluster) -> AsyncIterator[DatabaseConfig]:
    """A migrated database with symbol 1."""
    async with _clone(cluster, KEYED) as config:
        yield config


@pytest.fixture
async def proxy(keyless: DatabaseConfig) -> AsyncIterator[Proxy]:
    async with Proxy(keyless) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
async def loop_errors() -> AsyncIterator[list[str]]:
    """Fail the test when an exception reached nobody: of a task, or of a callback.

    But for one of asyncpg: its copy_in leaves the waiter behind when the line breaks while it writes.
    """
    found: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: found.append(f"{context['message']}: {context.get('exception')!r}"))
    yield found
    gc.collect()
    assert [told for told in found if "never retrieved: ConnectionDoesNotExistError" not in told] == []
