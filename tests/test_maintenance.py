"""Maintenance: runs by itself, one process at a time, goes on after errors, and ends with its manager."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager
from pgtick.engines import get_engine, maintain
from pgtick.errors import PgtickError

pytestmark = pytest.mark.engines("plain", "citus")

TABLE = "trade_snapshots"
OLD_DAY = 18_739
OLD = "trade_snapshots_p20210422"


@asynccontextmanager
async def service(config: DatabaseConfig, **changes: object) -> AsyncIterator[DatabaseManager]:
    """A started manager on a database with a partition that is far too old."""
    manager = await initialize_database(msgspec.structs.replace(config, **changes))
    try:
        await make_old_partition(manager)
        yield manager
    finally:
        await manager.close()


async def make_old_partition(db: DatabaseManager) -> None:
    engine = await get_engine(db)
    engine.forget(TABLE)
    await engine.ensure_days(db, TABLE, [OLD_DAY])


async def is_there(db: DatabaseManager, name: str = OLD) -> bool:
    return await db.fetchval("SELECT to_regclass($1)", name) is not None


async def is_gone(db: DatabaseManager) -> bool:
    return not await is_there(db)


async def is_waited_for(reader: Any) -> bool:
    query = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'trade_snapshots'::regclass"
    return bool(await reader.fetchval(query))


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await condition():  # noqa: ASYNC110  it is the server's state that is waited for
            await asyncio.sleep(0.02)


def tasks() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "pgtick maintenance"]


async def test_service_drops_what_is_old_again_and_again(config: DatabaseConfig) -> None:
    async with service(config, maintenance_interval_s=0.2) as db:
        await wait_until(lambda: is_gone(db))
        await make_old_partition(db)
        await wait_until(lambda: is_gone(db))


async def test_service_makes_partitions_ahead(config: DatabaseConfig) -> None:
    async with service(config, maintenance_interval_s=0.2) as db:
        last = await db.fetchval("SELECT now() AT TIME ZONE 'UTC' + interval '3 days'")
        name = f"trade_snapshots_p{last:%Y%m%d}"
        await db.execute(f"DROP TABLE {name}")
        (await get_engine(db)).forget(TABLE)
        await wait_until(lambda: is_there(db, name))


async def test_service_does_not_drop_anything_at_its_very_start(config: DatabaseConfig) -> None:
    async with service(config, maintenance_interval_s=3600.0) as db:
        assert len(tasks()) == 1
        await asyncio.sleep(0.3)
        assert await is_there(db)


async def test_interval_zero_switches_it_off(config: DatabaseConfig) -> None:
    async with service(config, maintenance_interval_s=0.0):
        assert tasks() == []


async def test_one_process_at_a_time(config: DatabaseConfig) -> None:
    reader = await asyncpg.connect(**config.connect_kwargs())
    other = await open_manager(config)
    try:
        async with service(config, maintenance_interval_s=0.0) as db:
            async with reader.transaction():
                await reader.fetch("SELECT * FROM trade_snapshots")
                first = asyncio.create_task(maintain(db))
                await wait_until(lambda: is_waited_for(reader))
                assert await maintain(other) is None
            dropped = await first
            assert dropped is not None
            assert dropped[TABLE] == [OLD]
            assert await maintain(other) is not None
    finally:
        await other.close()
        await reader.close()


async def test_a_pool_of_one_connection_behind_a_pooler_is_enough(config: DatabaseConfig) -> None:
    async with service(config, maintenance_interval_s=0.0, max_connections=1, pooler=True) as db:
        dropped = await maintain(db)
        assert dropped is not None
        assert dropped[TABLE] == [OLD]


async def test_dry_run_drops_nothing(config: DatabaseConfig) -> None:
    async with service(config, maintenance_interval_s=0.0) as db:
        would_go = await maintain(db, dry_run=True)
        assert would_go is not None
        assert would_go[TABLE] == [OLD]
        assert await is_there(db)


async def test_maintenance_inside_a_transaction_is_refused(config: DatabaseConfig) -> None:
    async with service(config, maintenance_interval_s=0.0) as db, db.transaction():
        with pytest.raises(PgtickError, match="outside of transaction"):
            await maintain(db)


async def test_errors_are_logged_and_it_goes_on(config: DatabaseConfig, caplog: pytest.LogCaptureFixture) -> None:
    async with service(config, maintenance_interval_s=0.1) as db:
        async with db.transaction():
            await make_old_partition(db)
            await db.execute(f"CREATE VIEW v AS SELECT * FROM {OLD}")

        async def has_failed() -> bool:
            return "maintenance failed" in caplog.text

        with caplog.at_level(logging.WARNING):
            await wait_until(has_failed)
        await db.execute("DROP VIEW v")
        await wait_until(lambda: is_gone(db))


@pytest.mark.engines("plain")  # Citus keeps sessions of its own
async def test_close_in_the_midst_leaves_no_task_and_no_session(config: DatabaseConfig) -> None:
    reader = await asyncpg.connect(**config.connect_kwargs())

    async def is_alone() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = $1"
        return bool(await reader.fetchval(query, "client backend") == 1)

    try:
        async with reader.transaction():
            await reader.fetch("SELECT * FROM trade_snapshots")
            async with service(config, maintenance_interval_s=0.1):
                await wait_until(lambda: is_waited_for(reader))
            assert tasks() == []
        await wait_until(is_alone)
    finally:
        await reader.close()
