"""Migrators that meet: many at once, one that hangs, one that is killed, one that meets a long query."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import open_manager
from pgtick.errors import MigrationError
from pgtick.migrator import run_pending_migrations
from pgtick.migrator.files import discover

BUILT_IN = [migration.label for migration in discover()]

# Hangs in its transaction, with the lock and a table made, where the environment says so.
HANGING = """
import asyncio
import os
from pgtick.connection import get_db_manager

async def migrate_up():
    await get_db_manager().execute("CREATE TABLE a ()")
    if os.environ.get("PGTICK_TEST_HANG"):
        await asyncio.sleep(600)

async def migrate_down():
    pass

async def get_migration_info():
    return {"id": "001", "name": "hanging", "dependencies": []}
"""
ALTERING = HANGING.replace("hanging", "altering").replace("CREATE TABLE a ()", "ALTER TABLE exchanges ADD COLUMN x int")


async def migrate(config: DatabaseConfig) -> list[str]:
    db = await open_manager(config)
    try:
        return await run_pending_migrations(db)
    finally:
        await db.close()


async def fetch(config: DatabaseConfig, query: str) -> list[Any]:
    connection = await asyncpg.connect(**config.connect_kwargs())
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()


async def start_process(config: DatabaseConfig, **environment: str) -> asyncio.subprocess.Process:
    arguments = ["-m", "pgtick.migrations", "up", "--json", "--dsn", config.to_dsn(with_password=True)]
    for folder in config.migration_folders:
        arguments += ["--folder", folder]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=environment or None, stdout=pipe, stderr=pipe
    )


@asynccontextmanager
async def hanging_process(config: DatabaseConfig) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that holds the lock, in the midst of mine/001_hanging."""
    process = await start_process(config, PGTICK_TEST_HANG="1")
    held = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
    held += " AND application_name = 'pgtick: mine/001_hanging' AND query LIKE 'CREATE TABLE a%'"
    try:
        async with asyncio.timeout(30):
            while not await fetch(config, held):
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def config(dsn: str, tmp_path: Path) -> DatabaseConfig:
    """An empty database and the folder ``mine``."""
    (tmp_path / "mine").mkdir()
    return DatabaseConfig.from_dsn(dsn, migration_folders=(str(tmp_path / "mine"),))


def write(config: DatabaseConfig, name: str, source: str) -> None:
    (Path(config.migration_folders[0]) / name).write_text(source)


async def test_sixteen_migrators_at_once_apply_everything_once_and_all_succeed(config: DatabaseConfig) -> None:
    write(config, "001_hanging.py", HANGING)
    done = await asyncio.gather(*(migrate(config) for _ in range(16)))
    assert sorted(chain(*done)) == sorted([*BUILT_IN, "mine/001_hanging"])
    assert (await fetch(config, "SELECT count(*) FROM pgtick_migrations"))[0][0] == len(BUILT_IN) + 1


async def test_processes_at_once_apply_everything_once_and_all_succeed(config: DatabaseConfig) -> None:
    processes = [await start_process(config) for _ in range(4)]
    done = []
    for process in processes:
        output, errors = await process.communicate()
        assert process.returncode == 0, errors
        done += json.loads(output)
    assert sorted(done) == BUILT_IN


async def test_wait_for_another_migrator_is_bounded_and_names_it(config: DatabaseConfig) -> None:
    config = msgspec.structs.replace(config, migration_wait_s=0.3)
    write(config, "001_hanging.py", HANGING)
    async with hanging_process(config):
        ((holder,),) = await fetch(
            config, "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgtick: mine/001_hanging'"
        )
        started = time.monotonic()
        with pytest.raises(MigrationError) as caught:
            await migrate(config)
        assert 0.3 <= time.monotonic() - started < 5
        said = (
            f"another session has been migrating for 0.3 s: pid {holder}, application 'pgtick: mine/001_hanging', since"
        )
        assert said in str(caught.value)


async def test_migrator_killed_while_it_holds_the_lock_leaves_nothing_and_the_next_goes_on(
    config: DatabaseConfig,
) -> None:
    write(config, "001_hanging.py", HANGING)
    async with hanging_process(config) as process:
        waiting = asyncio.create_task(migrate(config))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        process.kill()
        async with asyncio.timeout(20):
            assert await waiting == ["mine/001_hanging"]
    assert len(await fetch(config, "SELECT FROM pgtick_migrations")) == len(BUILT_IN) + 1


async def test_migration_gives_way_to_a_long_query_and_can_be_repeated(config: DatabaseConfig) -> None:
    config = msgspec.structs.replace(config, migration_lock_timeout_s=0.2)
    await migrate(config)
    write(config, "001_altering.py", ALTERING)
    reader = await asyncpg.connect(**config.connect_kwargs())
    try:
        async with reader.transaction():
            await reader.fetch("SELECT * FROM exchanges")
            with pytest.raises(MigrationError, match=r"^mine/001_altering gave way to a session that holds a lock"):
                await asyncio.wait_for(migrate(config), timeout=20)
            # Nobody is kept waiting behind it.
            async with asyncio.timeout(2):
                await fetch(config, "SELECT * FROM exchanges")
    finally:
        await reader.close()
    assert await migrate(config) == ["mine/001_altering"]


async def test_cancelled_migration_leaves_nothing(config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(config)
    write(config, "001_hanging.py", HANGING)
    monkeypatch.setenv("PGTICK_TEST_HANG", "1")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(migrate(config), timeout=1.0)
    monkeypatch.delenv("PGTICK_TEST_HANG")
    assert await fetch(config, "SELECT 1 WHERE to_regclass('a') IS NULL")
    assert await migrate(config) == ["mine/001_hanging"]
