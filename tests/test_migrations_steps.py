"""Steps outside a transaction: each once, across failures and interruptions; repair; beside a concurrent index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from migration_files import BUILT_IN, command, write, write_sql

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, connect, open_manager, use_manager
from pgtick.errors import MigrationError
from pgtick.migrator import (
    find_unfinished,
    get_available_migrations,
    rollback_migration,
    run_pending_migrations,
    settle_step,
)

STEPS = """-- no-transaction
-- up
CREATE TABLE log (n int);
INSERT INTO log VALUES (1);
CREATE INDEX CONCURRENTLY log_n ON log (n);
VACUUM log;
INSERT INTO log SELECT {last};
-- down
DROP INDEX CONCURRENTLY log_n;
DROP TABLE log;
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


@pytest.fixture
async def opened(config: DatabaseConfig, mine: Path) -> AsyncIterator[DatabaseManager]:
    """A manager on a migrated database, in use, with the folder ``mine``."""
    dsn = config.to_dsn(with_password=True)
    db = await open_manager(DatabaseConfig.from_dsn(dsn, migration_folders=(str(mine),)))
    with use_manager(db):
        yield db
    await db.close()


async def steps(db: DatabaseManager) -> list[tuple[int, bool, str | None]]:
    query = "SELECT step, finished_at IS NOT NULL, error FROM pgtick_migration_steps ORDER BY direction DESC, step"
    return [tuple(record) for record in await db.fetch(query)]


async def logged(db: DatabaseManager) -> list[int]:
    return [record[0] for record in await db.fetch("SELECT n FROM log ORDER BY n")]


async def state(db: DatabaseManager) -> str:
    return str((await get_available_migrations(db))[-1]["state"])


async def test_steps_run_outside_a_transaction_and_are_on_record(opened: DatabaseManager, mine: Path) -> None:
    write_sql(mine, "001_a.sql", STEPS.format(last=2))
    assert await run_pending_migrations() == ["mine/001_a"]
    assert await logged(opened) == [1, 2]
    assert await steps(opened) == [(number, True, None) for number in range(1, 6)]
    assert await state(opened) == "applied"
    assert await find_unfinished() == []
    with pytest.raises(MigrationError, match=r"^taking mine/001_a back is not one transaction.*: say destructive$"):
        await rollback_migration("mine/001")
    await rollback_migration("mine/001", destructive=True)
    assert await steps(opened) == []
    assert await opened.fetchval("SELECT to_regclass('log')") is None
    assert await run_pending_migrations() == ["mine/001_a"]


async def test_step_that_the_server_refused_is_tried_again_and_those_before_it_are_not(
    opened: DatabaseManager, mine: Path
) -> None:
    write_sql(mine, "001_a.sql", STEPS.format(last="1 / 0"))
    for _ in range(2):
        with pytest.raises(MigrationError, match=r"^mine/001_a failed in step 5: division by zero \(the 4 before it"):
            await run_pending_migrations()
        assert await logged(opened) == [1]
        assert await state(opened) == "unfinished"
    assert (await steps(opened))[-1] == (5, False, "division by zero")
    ((finding),) = await find_unfinished()
    assert finding["advice"] == "the server refused it (division by zero): see to that, up"
    write_sql(mine, "001_a.sql", STEPS.format(last=2).replace("VALUES (1)", "VALUES (7)"))
    with pytest.raises(MigrationError, match=r"step 2 is done and its text was changed since(.|\n)*VALUES \(7\)$"):
        await run_pending_migrations()
    write_sql(mine, "001_a.sql", "\n".join(STEPS.format(last=2).splitlines()[:5]))
    with pytest.raises(MigrationError, match=r"step 4 is on record and the file has 3: restore"):
        await run_pending_migrations()
    write_sql(mine, "001_a.sql", STEPS.format(last=2))
    assert await run_pending_migrations() == ["mine/001_a"]
    assert await logged(opened) == [1, 2]


async def test_invalid_index_is_found_and_named_until_it_is_dropped(opened: DatabaseManager, mine: Path) -> None:
    await opened.execute("CREATE TABLE doubled AS SELECT 1 AS n FROM generate_series(1, 2)")
    text = "-- no-transaction\n-- up\nCREATE UNIQUE INDEX CONCURRENTLY doubled_n ON doubled (n);"
    write_sql(mine, "001_a.sql", text)
    drop = "DROP INDEX CONCURRENTLY doubled_n"
    with pytest.raises(
        MigrationError, match=rf"failed in step 1: could not create unique index .* first {drop}, which"
    ):
        await run_pending_migrations()
    with pytest.raises(MigrationError, match=rf"step 1 failed .* left an invalid index: first {drop}$"):
        await run_pending_migrations()
    step, index = await find_unfinished()
    assert drop in step["advice"]
    assert (index["what"], index["index"], index["table"]) == ("invalid index", "doubled_n", "doubled")
    assert index["advice"] == f"{drop}, then make it again"
    await opened.execute(drop)
    await opened.execute("DELETE FROM doubled WHERE ctid = (SELECT min(ctid) FROM doubled)")
    assert await run_pending_migrations() == ["mine/001_a"]
    assert await find_unfinished() == []


@asynccontextmanager
async def interrupted(opened: DatabaseManager, holding: str) -> AsyncIterator[None]:
    """Hold back a step by a lock, let the migrator be cancelled in it, and let the lock go."""
    holder = await connect(opened.config)
    try:
        async with holder.transaction():
            await holder.execute(holding)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(run_pending_migrations(opened), timeout=1.5)
            yield
    finally:
        await holder.close()


@pytest.mark.parametrize("finished", [False, True])
async def test_interrupted_step_stops_everything_until_repair_is_told(
    opened: DatabaseManager, mine: Path, finished: bool
) -> None:
    await opened.execute("CREATE TABLE log (n int)")
    write_sql(mine, "001_a.sql", "-- no-transaction\n-- up\nINSERT INTO log VALUES (1);\nINSERT INTO log VALUES (2);")
    await opened.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN LOCK exchanges; RETURN new; END'; "
    )
    await opened.execute(
        "CREATE TRIGGER slow BEFORE INSERT ON log FOR EACH ROW WHEN (new.n = 2) EXECUTE FUNCTION slow()"
    )
    async with interrupted(opened, "LOCK exchanges IN ACCESS SHARE MODE"):
        pass
    for call in (run_pending_migrations(), run_pending_migrations()):
        with pytest.raises(MigrationError, match=r"step 2 was started .* and never finished; see `repair`"):
            await call
    (finding,) = await find_unfinished()
    assert "look whether it is done" in finding["advice"]
    done = await settle_step("mine/001", finished=finished)
    assert done == {"migration": "mine/001_a", "step": 2, "now": "finished" if finished else "to be done again"}
    assert await run_pending_migrations() == ["mine/001_a"]
    assert await logged(opened) == ([1] if finished else [1, 2])
    with pytest.raises(MigrationError, match=r"^mine/001_a has no step that is not finished$"):
        await settle_step("mine/001", finished=True)


async def test_interrupted_concurrent_index_is_dropped_and_made_again(opened: DatabaseManager, mine: Path) -> None:
    await opened.execute("CREATE TABLE log AS SELECT 1 AS n")
    write_sql(mine, "001_a.sql", "-- no-transaction\n-- up\nCREATE INDEX CONCURRENTLY log_n ON log (n);")
    async with interrupted(opened, "LOCK log IN ROW EXCLUSIVE MODE"):
        step, index = await find_unfinished()
        assert step["advice"].startswith("DROP INDEX CONCURRENTLY log_n, repair mine/001 --again")
        assert index["index"] == "log_n"
    shown = command("repair", "--dsn", opened.config.to_dsn(with_password=True), "--folder", str(mine))
    assert shown.returncode == 3
    assert "invalid index log_n of log\n    DROP INDEX CONCURRENTLY log_n" in shown.stdout
    await opened.execute("DROP INDEX CONCURRENTLY log_n")
    assert (await find_unfinished())[0]["advice"].startswith("the index log_n is not there: repair mine/001 --again")
    place = ("--dsn", opened.config.to_dsn(with_password=True), "--folder", str(mine))
    assert command("repair", "mine/001", "--again", *place).returncode == 0
    assert command("up", *place).stdout.startswith("applied mine/001_a\n")  # of a table that no migration makes
    assert (command("repair", *place).returncode, command("repair", *place).stdout) == (0, "nothing to repair\n")


async def test_down_that_was_interrupted_goes_on_where_it_was(opened: DatabaseManager, mine: Path) -> None:
    write_sql(mine, "001_a.sql", STEPS.format(last=2).replace("DROP TABLE log", "SELECT 1 / 0;\nDROP TABLE log"))
    await run_pending_migrations()
    with pytest.raises(MigrationError, match=r"^mine/001_a failed in step 2: division by zero"):
        await rollback_migration("mine/001", destructive=True)
    assert await state(opened) == "unfinished"
    with pytest.raises(MigrationError, match=r"^mine/001 is half taken back: go on with down mine/001 --destructive"):
        await run_pending_migrations()
    assert (await settle_step("mine/001", finished=True))["step"] == 2
    await rollback_migration("mine/001", destructive=True)
    assert await opened.fetchval("SELECT to_regclass('log')") is None


async def test_python_file_has_a_step_for_each_execute(opened: DatabaseManager, mine: Path) -> None:
    body = (
        "py:db = get_db_manager(); await db.execute('CREATE TABLE log (n int)'); "
        "n = await db.fetchval('SELECT count(*) FROM pgtick_migrations'); "
        "await db.execute('INSERT INTO log VALUES ($1)', n); await db.execute('VACUUM log'){more}"
    )
    for more, reason in (
        ("; await db.execute('SELECT 1; SELECT 2')", r"failed in step 4: cannot insert multiple commands"),
        ("; await db.executemany('INSERT INTO log VALUES ($1)', [(1,)])", r"does execute\(\) and fetch\(\)"),
        ("; db.transaction and await db.transaction().__aenter__()", r"put what wants one into a migration of its own"),
    ):
        write(mine, "001_a.py", body.format(more=more), "DROP TABLE log", transaction=False)
        with pytest.raises(MigrationError, match=reason):
            await run_pending_migrations()
    write(mine, "001_a.py", body.format(more=""), "DROP TABLE log", transaction=False)
    await opened.execute("DELETE FROM pgtick_migration_steps WHERE step = 4")
    assert await run_pending_migrations() == ["mine/001_a"]
    assert await logged(opened) == [len(BUILT_IN)]
    await rollback_migration("mine/001", destructive=True)


async def test_lock_that_is_lost_in_a_step_stops_after_it(opened: DatabaseManager, mine: Path) -> None:
    await opened.execute("CREATE TABLE log (n int)")
    end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'pgtick: mine/001_a'"
    write_sql(
        mine, "001_a.sql", f"-- no-transaction\n-- up\nINSERT INTO log VALUES (1);\n{end};\nINSERT INTO log VALUES (2);"
    )
    with pytest.raises(MigrationError, match=r"^mine/001_a: the lock of the migration was lost .* step 2 ran"):
        await run_pending_migrations()
    assert await logged(opened) == [1]
    assert await run_pending_migrations() == ["mine/001_a"]
    assert await logged(opened) == [1, 2]


async def test_concurrent_index_waits_neither_for_the_lock_s_holder_nor_for_those_who_poll(
    opened: DatabaseManager, mine: Path
) -> None:
    await opened.execute("CREATE TABLE log AS SELECT n FROM generate_series(1, 1000) AS n")
    indexes = "\n".join(f"CREATE INDEX CONCURRENTLY log_{number} ON log (n);" for number in range(10))
    write_sql(mine, "001_a.sql", f"-- no-transaction\n-- up\n{indexes}")
    others: list[Any] = [await open_manager(opened.config) for _ in range(6)]
    try:
        async with asyncio.timeout(30):
            done = await asyncio.gather(*map(run_pending_migrations, [opened, *others]))
    finally:
        for other in others:
            await other.close()
    assert sorted(done) == [[]] * 6 + [["mine/001_a"]]
    assert len(await steps(opened)) == 10


async def test_concurrent_index_waits_longer_than_a_lock_may_take(opened: DatabaseManager, mine: Path) -> None:
    await opened.execute("CREATE TABLE log AS SELECT 1 AS n")
    import msgspec

    brief = msgspec.structs.replace(opened.config, migration_lock_timeout_s=0.2)
    write_sql(mine, "001_a.sql", "-- no-transaction\n-- up\nCREATE INDEX CONCURRENTLY log_n ON log (n);")
    db = await open_manager(brief)
    reader = await asyncpg.connect(**opened.config.connect_kwargs())
    try:
        transaction = reader.transaction()
        await transaction.start()
        await reader.execute("INSERT INTO log VALUES (2)")
        building = asyncio.create_task(run_pending_migrations(db))
        await asyncio.sleep(1)
        assert not building.done()
        await transaction.commit()
        assert await asyncio.wait_for(building, timeout=20) == ["mine/001_a"]
    finally:
        await reader.close()
        await db.close()
