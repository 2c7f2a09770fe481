"""Migrations: what is found, refused, applied, kept after a failure, and taken back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from migration_files import BUILT_IN, MIGRATION, write

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager, use_manager
from pgtick.engines import get_engine
from pgtick.errors import MigrationError
from pgtick.migrator import (
    get_available_migrations,
    rollback_migration,
    run_migration,
    run_pending_migrations,
)
from pgtick.migrator.files import discover

TIMESCALE_DSN = os.environ.get("PGTICK_TEST_TIMESCALE_DSN")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine"


@pytest.fixture
async def opened(dsn: str, mine: Path) -> AsyncIterator[DatabaseManager]:
    """A manager on an empty database, in use, with the folder ``mine``."""
    mine.mkdir(exist_ok=True)
    db = await open_manager(DatabaseConfig.from_dsn(dsn, migration_folders=(str(mine),)))
    with use_manager(db):
        yield db
    await db.close()


async def tables(db: DatabaseManager) -> set[str]:
    records = await db.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return {record[0] for record in records}


async def applied(db: DatabaseManager) -> list[str]:
    if await db.fetchval("SELECT to_regclass('pgtick_migrations')") is None:
        return []
    query = "SELECT namespace || '/' || id || '_' || name FROM pgtick_migrations ORDER BY namespace <> 'pgtick', 1"
    return [record[0] for record in await db.fetch(query)]


# What is found


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["1_short.py"], "mine/1_short.py: a migration is named NNN_name.py"),
        (["001-dash.py"], "mine/001-dash.py: a migration is named"),
        (["001_Upper.py"], "mine/001_Upper.py: a migration is named"),
        (["0001_long.py"], "mine/0001_long.py: a migration is named"),
        (["1_a.sql"], "mine/1_a.sql: a migration is named"),
        (["001_a.SQL"], "mine/001_a.SQL: a migration is named"),
        (["001_a.py", "001_b.sql"], "mine/001 exists twice: a and b"),
        (["001_a.py", "003_c.py"], "mine/002 is missing before mine/003_c"),
        (["002_b.py"], "mine/001 is missing before mine/002_b"),
        (["001_a.py", "001_b.py"], "mine/001 exists twice: a and b"),
    ],
)
def test_folder_with_a_wrong_name_a_gap_or_a_double_is_refused(mine: Path, files: list[str], reason: str) -> None:
    for file in files:
        write(mine, file)
    with pytest.raises(MigrationError, match=f"^{reason}"):
        discover([str(mine)])


def test_other_files_of_a_folder_are_not_migrations(mine: Path) -> None:
    write(mine, "001_a.py")
    for name in ("__init__.py", "__main__.py", "README.md", "helpers.py", "001_a.py.orig", "001_a.pyc"):
        (mine / name).write_text("")
    (mine / "__pycache__").mkdir()
    assert [migration.label for migration in discover([str(mine)])] == [*BUILT_IN, "mine/001_a"]


def test_folders_that_the_ledger_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    for name in ("a/same", "b/same", "pgtick"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(MigrationError, match=r"'same' is .*a/same already"):
        discover([str(tmp_path / "a/same"), str(tmp_path / "b/same")])
    with pytest.raises(MigrationError, match=r"'pgtick' is .* already: rename it"):
        discover([str(tmp_path / "pgtick")])
    with pytest.raises(MigrationError, match="absent does not exist"):
        discover([str(tmp_path / "absent")])


def test_file_that_is_not_text_is_named(mine: Path) -> None:
    mine.mkdir()
    (mine / "001_a.py").write_bytes(b"\xff\xfe")
    with pytest.raises(MigrationError, match=r"mine/001_a.py cannot be read"):
        discover([str(mine)])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def migrate_up(:", "cannot be loaded: SyntaxError"),
        ("async def migrate_up(): pass", r"has no async def migrate_down\(\)"),
        ("def migrate_up(): pass", r"has no async def migrate_up\(\)"),
        (MIGRATION.format(up="pass", down="pass", info={"id": "002"}), "cannot be loaded: KeyError: 'name'"),
    ],
)
async def test_file_that_cannot_be_loaded_is_named_before_anything_is_applied(
    opened: DatabaseManager, mine: Path, source: str, reason: str
) -> None:
    write(mine, "001_good.py", "CREATE TABLE good ()")
    (mine / "002_bad.py").write_text(source)
    with pytest.raises(MigrationError, match=f"^mine/002_bad {reason}"):
        await run_pending_migrations()
    assert await tables(opened) == set()


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"id": "003"}, "says 003_bad, unlike its file's name"),
        ({"transaction": "no"}, "transaction must be True or False, not 'no'"),
        ({"name": "other"}, "says 002_other, unlike its file's name"),
        ({"dependencies": "symbols"}, "dependencies must be a list of tables and migrations, not 'symbols'"),
    ],
)
async def test_file_that_says_wrong_things_of_itself_is_refused(
    opened: DatabaseManager, mine: Path, info: dict[str, Any], reason: str
) -> None:
    write(mine, "001_good.py", "CREATE TABLE good ()")
    write(mine, "002_bad.py", **info)
    with pytest.raises(MigrationError, match=f"^mine/002_bad: .*{reason}"):
        await run_pending_migrations()
    assert await tables(opened) == set()


async def test_file_may_define_dataclasses(opened: DatabaseManager, mine: Path) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()")
    source = (mine / "001_a.py").read_text()
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    n: int\n"
    (mine / "001_a.py").write_text(head + source)
    assert await run_pending_migrations() == [*BUILT_IN, "mine/001_a"]


# What is applied


async def test_pending_migrations_are_applied_in_order_and_once(opened: DatabaseManager, mine: Path) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()", dependencies=["symbols"])
    assert await run_pending_migrations() == [*BUILT_IN, "mine/001_a"]
    assert await run_pending_migrations() == []
    write(mine, "002_only_alters.py", "ALTER TABLE a ADD COLUMN n int", dependencies=["a"])
    assert await run_pending_migrations() == ["mine/002_only_alters"]
    assert await applied(opened) == [*BUILT_IN, "mine/001_a", "mine/002_only_alters"]
    assert {"a", "exchanges", "symbols", "pgtick_migrations"} <= await tables(opened)


async def test_failure_takes_its_own_work_back_keeps_the_earlier_and_stops_the_rest(
    opened: DatabaseManager, mine: Path
) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()")
    write(mine, "002_b.py", "CREATE TABLE b (); SELECT 1 / 0")
    write(mine, "003_c.py", "CREATE TABLE c ()")
    with pytest.raises(MigrationError, match=r"^mine/002_b failed: division by zero$") as caught:
        await run_pending_migrations()
    assert isinstance(caught.value.__cause__, asyncpg.DivisionByZeroError)
    assert {"a", "b", "c"} & await tables(opened) == {"a"}
    assert await applied(opened) == [*BUILT_IN, "mine/001_a"]
    write(mine, "002_b.py", "CREATE TABLE b ()")
    assert await run_pending_migrations() == ["mine/002_b", "mine/003_c"]


@pytest.mark.parametrize(
    ("up", "reason"),
    [
        ("py:raise KeyError('x')", "failed: KeyError: 'x'"),
        ("py:return {'success': False, 'errors': ['no room']}", r"says that it failed: \['no room'\]"),
        ("CREATE INDEX CONCURRENTLY i ON symbols (id)", "failed: CREATE INDEX CONCURRENTLY cannot run inside"),
        ("ALTER TABLE exchanges DROP COLUMN id", "failed: cannot drop column id .*; .* depends on column id"),
    ],
)
async def test_failure_of_any_kind_is_an_error_that_names_the_migration(
    opened: DatabaseManager, mine: Path, up: str, reason: str
) -> None:
    write(mine, "001_a.py", up)
    with pytest.raises(MigrationError, match=f"^mine/001_a {reason}") as caught:
        await run_pending_migrations()
    assert "CASCADE" not in str(caught.value)
    assert await applied(opened) == BUILT_IN


async def test_dependency_that_is_not_there_is_refused(opened: DatabaseManager, mine: Path) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()", dependencies=["symbols", "no_such_table"])
    with pytest.raises(MigrationError, match=r"^mine/001_a needs the table no_such_table, which is not there$"):
        await run_pending_migrations()
    assert await applied(opened) == BUILT_IN


async def test_failed_start_publishes_nothing_and_can_be_repeated(dsn: str, mine: Path) -> None:
    write(mine, "001_a.py", "SELECT 1 / 0")
    config = DatabaseConfig.from_dsn(dsn, migration_folders=(str(mine),))
    with pytest.raises(MigrationError, match="mine/001_a failed"):
        await initialize_database(config)
    write(mine, "001_a.py", "CREATE TABLE a ()")
    db = await initialize_database(config)
    assert await applied(db) == [*BUILT_IN, "mine/001_a"]
    await db.close()


async def test_long_migration_is_not_cut_by_the_pool_s_deadline(dsn: str, mine: Path) -> None:
    write(mine, "001_slow.py", "SELECT pg_sleep(1.5); CREATE TABLE a ()")
    config = DatabaseConfig.from_dsn(dsn, migration_folders=(str(mine),), statement_timeout_s=1.0)
    db = await open_manager(config)
    try:
        await db.execute(f"ALTER DATABASE {config.database} SET statement_timeout = '1s'")
        with pytest.raises(TimeoutError):
            await db.execute("SELECT pg_sleep(1.5)")
        assert (await run_pending_migrations(db))[-1] == "mine/001_slow"
    finally:
        await db.close()


async def test_migration_inside_a_caller_s_transaction_is_refused(opened: DatabaseManager) -> None:
    async with opened.transaction():
        with pytest.raises(MigrationError, match="outside of transaction"):
            await run_pending_migrations()


async def test_session_that_is_serializable_by_default_sees_what_others_applied(dsn: str) -> None:
    config = DatabaseConfig.from_dsn(dsn)
    db = await open_manager(config)
    try:
        await db.execute(f"ALTER DATABASE {config.database} SET default_transaction_isolation = 'serializable'")
        others = [await open_manager(config) for _ in range(4)]
        done = await asyncio.gather(*map(run_pending_migrations, others))
        assert sorted(chain(*done)) == BUILT_IN
        for other in others:
            await other.close()
    finally:
        await db.close()


# What is refused because the database was made by other files


async def test_file_changed_after_it_was_applied_is_refused_with_the_way_out(
    opened: DatabaseManager, mine: Path
) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()")
    await run_pending_migrations()
    original = (mine / "001_a.py").read_text()
    (mine / "001_a.py").write_text(original.replace("\n", "   \r\n") + "\n\n")
    assert await run_pending_migrations() == []  # white space at the ends of lines is no change
    write(mine, "001_a.py", "CREATE TABLE a (n int)")
    write(mine, "002_b.py", "CREATE TABLE b ()")
    for call in (run_pending_migrations(), run_migration("mine/002"), rollback_migration("mine/001", destructive=True)):
        with pytest.raises(MigrationError, match=r"^mine/001_a was changed after .*: restore .* into a new one, or, "):
            await call
    assert "b" not in await tables(opened)
    assert [row["state"] for row in await get_available_migrations()][-2:] == ["changed", "pending"]
    (mine / "001_a.py").write_text(original)
    assert await run_pending_migrations() == ["mine/002_b"]


async def test_file_renamed_after_it_was_applied_is_refused(opened: DatabaseManager, mine: Path) -> None:
    write(mine, "001_a.py")
    await run_pending_migrations()
    (mine / "001_a.py").rename(mine / "001_b.py")
    with pytest.raises(MigrationError, match=r"^mine/001_a was changed after it was applied"):
        await run_pending_migrations()


async def test_database_of_a_newer_version_is_refused_by_an_older_one(opened: DatabaseManager, mine: Path) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()")
    write(mine, "002_newer.py", "CREATE TABLE b ()")
    await run_pending_migrations()
    (mine / "002_newer.py").unlink()
    with pytest.raises(MigrationError, match=r"^mine/002_newer is applied and its file is not here: .*upgrade"):
        await run_pending_migrations()
    last = (await get_available_migrations())[-1]
    assert (last["namespace"], last["id"], last["name"], last["state"]) == ("mine", "002", "newer", "no file")
    assert last["applied_at"] is not None
    (mine / "001_a.py").unlink()
    with pytest.raises(MigrationError, match=r"^mine/001_a is applied and its file is not here"):
        await run_pending_migrations()


async def test_program_without_a_folder_works_on_a_database_that_has_its_migrations(
    opened: DatabaseManager, mine: Path
) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()")
    await run_pending_migrations()
    db = await initialize_database(msgspec.structs.replace(opened.config, migration_folders=()))
    states = {row["namespace"]: row["state"] for row in await get_available_migrations(db)}
    assert states == {"pgtick": "applied", "mine": "no file"}
    await db.close()


# One at a time, and back


async def test_run_migration_says_what_it_did_and_keeps_the_order(opened: DatabaseManager) -> None:
    with pytest.raises(MigrationError, match=r"^pgtick/002_.* comes after pgtick/001_.*, which is not applied$"):
        await run_migration("002")
    done = await run_migration("001")
    assert done == {
        "migration": BUILT_IN[0],
        "success": True,
        "applied": True,
        "tables_created": ["exchanges", "symbols"],
    }
    assert await run_migration(BUILT_IN[0]) == {"migration": BUILT_IN[0], "success": True, "applied": False}
    assert await applied(opened) == BUILT_IN[:1]
    with pytest.raises(MigrationError, match=r"^there is no migration pgtick/777$"):
        await run_migration("777")


async def test_rollback_wants_a_destructive_yes_and_up_works_again(opened: DatabaseManager) -> None:
    await run_pending_migrations()
    await opened.execute(
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT')"
    )
    await opened.execute(
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) "
        "SELECT id, 'B', 'U', 'BU' FROM exchanges"
    )
    await (await get_engine(opened)).make_ahead(opened)
    await opened.execute(
        "INSERT INTO order_flow_metrics (timestamp, symbol_id, ofi_score, microprice, mid_price, spread_bps, "
        "volume_imbalance) "
        "SELECT now(), id, 1, 1, 1, 1, 0 FROM symbols"
    )
    before = await tables(opened)
    with pytest.raises(
        MigrationError, match=r"pgtick/004_.* back loses the rows of order_flow_metrics: say destructive$"
    ):
        await rollback_migration("004")
    assert await tables(opened) == before
    for label in reversed(BUILT_IN):
        done = await rollback_migration(label, destructive=True)
        assert done["success"]
        assert done.get("tables_dropped") or done["functions_dropped"]
    assert await tables(opened) == {"pgtick_migrations"}
    assert await opened.fetchval("SELECT count(*) FROM pg_proc WHERE proname LIKE 'pgtick%'") == 0
    with pytest.raises(MigrationError, match=r"^pgtick/004_.* is not applied$"):
        await rollback_migration("004", destructive=True)
    assert await run_pending_migrations() == BUILT_IN
    assert await opened.fetchval("SELECT to_regclass('order_flow_metrics')") is not None


async def test_rollback_of_what_others_depend_on_is_refused_by_the_server(opened: DatabaseManager) -> None:
    await run_pending_migrations()
    before = await tables(opened)
    with pytest.raises(MigrationError, match=f"^{BUILT_IN[0]} failed: cannot drop .* depends? on ") as caught:
        await rollback_migration("001", destructive=True)
    assert isinstance(caught.value.__cause__, asyncpg.DependentObjectsStillExistError)
    assert "CASCADE" not in str(caught.value)
    assert await tables(opened) == before
    assert await applied(opened) == BUILT_IN


async def test_rollback_that_fails_changes_nothing(opened: DatabaseManager, mine: Path) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()", "DROP TABLE a; SELECT 1 / 0")
    await run_pending_migrations()
    with pytest.raises(MigrationError, match=r"^mine/001_a failed: division by zero$"):
        await rollback_migration("mine/001", destructive=True)
    assert "a" in await tables(opened)
    assert await applied(opened) == [*BUILT_IN, "mine/001_a"]


@pytest.mark.skipif(not TIMESCALE_DSN, reason="no TimescaleDB: PGTICK_TEST_TIMESCALE_DSN is not set")
async def test_migrations_go_up_and_all_the_way_down_on_timescaledb() -> None:
    server = DatabaseConfig.from_dsn(str(TIMESCALE_DSN))
    name = f"pgtick_test_{os.getpid()}_down"
    admin = await asyncpg.connect(**server.connect_kwargs())
    await admin.execute(f"CREATE DATABASE {name}")
    db = await open_manager(msgspec.structs.replace(server, database=name))
    try:
        await db.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        with use_manager(db):
            for _ in range(2):
                assert await run_pending_migrations() == BUILT_IN
                assert await db.fetchval("SELECT count(*) FROM timescaledb_information.hypertables") == 7
                with pytest.raises(MigrationError, match=r"failed: cannot drop .* depends? on "):
                    await rollback_migration("001", destructive=True)
                for label in reversed(BUILT_IN):
                    await rollback_migration(label, destructive=True)
                assert await tables(db) == {"pgtick_migrations"}
    finally:
        await db.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
