"""Real servers: the embedded PostgreSQL 18, another one, TimescaleDB, Citus; a migrated clone for each test.

The databases of the last two have their extension. A test of what not every engine does is marked with those that
do: ``@pytest.mark.engines("plain", "citus")``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import hypothesis
import pytest
from no_secrets import SENTINEL, pytest_configure  # noqa: F401  a hook: it starts the watch

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager
from pgtick.embedded import start_embedded
from pgtick.engines import get_engine
from pgtick.migrator import run_pending_migrations
from pgtick.verify import verify_schema

# An example's time says nothing here: the machines are noisy, and the core's tests run under sanitizers, too.
hypothesis.settings.register_profile("pgtick", deadline=None)
hypothesis.settings.load_profile("pgtick")

PREFIX = f"pgtick_test_{os.getpid()}_"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def embedded_config() -> Iterator[DatabaseConfig]:
    with (
        tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder,
        start_embedded(Path(folder) / "data") as server,
    ):
        asyncio.run(_execute(server.config(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"))
        yield server.config()


@pytest.fixture(scope="session", autouse=True)
def _state_folder() -> Iterator[None]:
    """Keep spools out of the folders of whoever runs the tests."""
    with tempfile.TemporaryDirectory(prefix="pgtick") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGTICK_STATE_DIR", folder)
        yield


EXTENSIONS = {"timescale": "timescaledb", "citus": "citus"}


def _kind_of_server(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("server_kind")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a test that is marked with its engines out on the servers of others."""
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("engines")
        kind = _kind_of_server(item)
        is_elsewhere = marker and kind and (kind if kind in EXTENSIONS else "plain") not in marker.args
        (left_out if is_elsewhere else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip here and not in a fixture, so that the report has a line for a server and not for a test."""
    kind = _kind_of_server(item)
    if kind in EXTENSIONS and not os.environ.get(f"PGTICK_TEST_{kind.upper()}_DSN"):
        pytest.skip(f"no {kind}: PGTICK_TEST_{kind.upper()}_DSN is not set")


@pytest.fixture(scope="session", params=["embedded", "other", *EXTENSIONS])
def server_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, server_kind: str) -> DatabaseConfig:
    if server_kind == "embedded":
        config: DatabaseConfig = request.getfixturevalue("embedded_config")
        return config
    if server_kind in EXTENSIONS:
        return DatabaseConfig.from_dsn(os.environ[f"PGTICK_TEST_{server_kind.upper()}_DSN"])
    candidates = [
        DatabaseConfig(host="/var/run/postgresql", database="postgres", user=user) for user in ("root", "postgres")
    ]
    if os.environ.get("PGTICK_TEST_DSN"):
        candidates = [DatabaseConfig.from_dsn(os.environ["PGTICK_TEST_DSN"])]
    for candidate in candidates:
        try:
            asyncio.run(_execute(candidate, "SELECT 1"))
        except (OSError, asyncpg.PostgresError):
            continue
        return candidate
    pytest.skip("no server at PGTICK_TEST_DSN or on the local socket")


async def _execute(config: DatabaseConfig, *statements: str) -> None:
    connection = await asyncpg.connect(**config.connect_kwargs())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _named(server: DatabaseConfig, name: str) -> DatabaseConfig:
    """Return the configuration of a database, with a password everywhere, also where the server asks for none."""
    assert name.startswith("pgtick_test_")
    import msgspec

    return msgspec.structs.replace(server, database=name, password=server.password or f"{SENTINEL}@/#?%: of a test")


async def _create(server: DatabaseConfig, name: str, kind: str) -> None:
    await _execute(server, f"CREATE DATABASE {name}")
    if kind in EXTENSIONS:
        await _execute(_named(server, name), f"CREATE EXTENSION IF NOT EXISTS {EXTENSIONS[kind]}")
    if kind == "citus":  # few shards, because each has every partition, and tests make many
        await _execute(server, f"ALTER DATABASE {name} SET citus.shard_count = 2")


@pytest.fixture(scope="session")
def template(server: DatabaseConfig, server_kind: str) -> Iterator[str]:
    name = f"{PREFIX}template{next(_numbers)}"

    async def make() -> None:
        await _create(server, name, server_kind)
        db = await open_manager(_named(server, name))
        try:
            await run_pending_migrations(db)
            await (await get_engine(db)).make_ahead(db)  # which every test's start would need anew
            assert await verify_schema(db) == []  # stored, so that the clones need not make it at their start
        finally:
            await db.close()
        # The extensions' workers would hold it, and a template that is in use cannot be cloned.
        await _execute(
            server,
            f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )

    asyncio.run(make())
    yield name
    asyncio.run(_execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def dsn(server: DatabaseConfig, server_kind: str) -> AsyncIterator[str]:
    """A fresh empty database."""
    name = f"{PREFIX}{next(_numbers)}"
    await _create(server, name, server_kind)
    yield _named(server, name).to_dsn(with_password=True)
    await _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def config(server: DatabaseConfig, template: str) -> AsyncIterator[DatabaseConfig]:
    """A clone of the migrated template."""
    name = f"{PREFIX}{next(_numbers)}"
    await _execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _named(server, name)
    await _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def db(config: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    """The published manager of a clone."""
    manager = await initialize_database(config)
    yield manager
    await manager.close()
