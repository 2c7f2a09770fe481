"""F13: sixteen migrators at once, one holding the lock killed, a concurrent index among the steps."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from migration_files import BUILT_IN, write_sql

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, connect, open_manager, use_manager
from pgtick.errors import MigrationError
from pgtick.migrator import find_unfinished, run_pending_migrations, settle_step

N_MIGRATORS = 16
STEPS = """
import os
from pathlib import Path
from pgtick.connection import get_db_manager

async def migrate_up():
    db = get_db_manager()
    Path(__file__).with_suffix(".holder").write_text(str(os.getpid()))  # whoever is here has the lock
    await db.execute("CREATE TABLE IF NOT EXISTS log (n int)")
    await db.execute("INSERT INTO log VALUES (2)")
    await db.execute("CREATE INDEX CONCURRENTLY log_n ON log (n)")
    await db.execute("INSERT INTO log VALUES (4)")
    await db.execute("VACUUM log")

async def migrate_down():
    pass

async def get_migration_info():
    return {"id": "001", "name": "steps", "transaction": False}
"""


async def start(config: DatabaseConfig) -> asyncio.subprocess.Process:
    arguments = ["-m", "pgtick.migrations", "up", "--dsn", config.to_dsn(with_password=True)]
    arguments += ["--folder", config.migration_folders[0]]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=pipe, stderr=pipe)


async def kill_the_holder(folder: Path, processes: list[asyncio.subprocess.Process]) -> bool:
    """Kill the process that holds the lock, in a step of chance; False when it was done before."""
    said = folder / "001_steps.holder"
    while not said.exists() or not said.read_text():
        assert any(process.returncode is None for process in processes)
        await asyncio.sleep(0.002)
    await asyncio.sleep(random.uniform(0, 0.05))
    (holder,) = (process for process in processes if process.pid == int(said.read_text()))
    if holder.returncode is None:
        holder.kill()
    await holder.wait()
    return holder.returncode == -signal.SIGKILL


async def settle(db: DatabaseManager) -> None:
    """Do what repair says, until nothing is left."""
    async with asyncio.timeout(30):
        while findings := await find_unfinished(db):
            steps = [finding for finding in findings if finding["what"] == "step"]
            advice = (steps or findings)[0]["advice"]
            if advice.startswith("process"):
                await asyncio.sleep(0.05)
                continue
            if advice.startswith("DROP INDEX CONCURRENTLY "):
                await db.execute(advice.split(",")[0])
            if not steps:
                continue
            if "look whether" in advice:
                inserts = steps[0]["step"] in (2, 4)  # the others may be done twice
                done = inserts and await db.fetchval("SELECT count(*) FROM log WHERE n = $1", steps[0]["step"])
                await settle_step("mine/001", finished=bool(done))
            elif "repair" in advice:
                await settle_step("mine/001", finished="--finished" in advice)
            return


async def storm(dsn: str, folder: Path) -> None:
    """One round: each step once, nobody hangs, everybody else is done or says to repair."""
    config = DatabaseConfig.from_dsn(dsn, migration_folders=(str(folder),))
    (folder / "001_steps.holder").unlink(missing_ok=True)
    processes = [await start(config) for _ in range(N_MIGRATORS)]
    killed = await kill_the_holder(folder, processes)
    async with asyncio.timeout(300):
        answers = await asyncio.gather(*(process.communicate() for process in processes))
    codes = [process.returncode for process in processes]
    assert codes.count(-signal.SIGKILL) == killed
    for code, (said, errors) in zip(codes, answers, strict=True):
        assert code in (0, -signal.SIGKILL) or b"never finished; see `repair`" in errors, (said, errors)
    db = await open_manager(config)
    try:
        with use_manager(db):
            for _ in range(3):
                try:
                    await run_pending_migrations()
                    break
                except MigrationError as error:
                    if "never finished" not in str(error):
                        raise
                    await settle(db)
            await check(db)
    finally:
        await db.close()


async def check(db: DatabaseManager) -> None:
    assert await find_unfinished() == []
    applied = [row[0] for row in await db.fetch("SELECT namespace || '/' || id FROM pgtick_migrations ORDER BY 1")]
    assert applied == sorted([*(label[:10] for label in BUILT_IN), "mine/001", "mine/002"])
    logged: list[Any] = await db.fetch("SELECT n, count(*) FROM log GROUP BY n ORDER BY n")
    assert [tuple(row) for row in logged] == [(2, 1), (4, 1), (100, 1)]
    assert await db.fetchval("SELECT count(*) FROM pgtick_migration_steps WHERE finished_at IS NOT NULL") == 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "001_steps.py").write_text(STEPS)
    write_sql(tmp_path / "mine", "002_last.sql", "-- up\nINSERT INTO log VALUES (100);")
    return tmp_path / "mine"


async def _rounds(dsn: str, folder: Path, n_rounds: int) -> None:
    config = DatabaseConfig.from_dsn(dsn)
    for number in range(n_rounds):
        name = f"{config.database}_{number}"
        admin = await connect(config)
        try:
            await admin.execute(f"CREATE DATABASE {name}")
            fresh = msgspec.structs.replace(config, database=name)
            await storm(fresh.to_dsn(with_password=True), folder)
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            await admin.close()


async def test_sixteen_migrators_with_one_killed_do_each_step_once(dsn: str, folder: Path) -> None:
    await _rounds(dsn, folder, 2)


@pytest.mark.slow
async def test_hundred_rounds_of_sixteen_migrators_do_each_step_once(dsn: str, folder: Path) -> None:
    await _rounds(dsn, folder, int(os.environ.get("PGTICK_TEST_ROUNDS", "100")))
