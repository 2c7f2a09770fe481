"""Migrations in SQL, their order over several folders, and files that end their own transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from migration_files import BUILT_IN, write, write_sql

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.errors import MigrationError
from pgtick.migrator import accept_migration, get_available_migrations, rollback_migration, run_pending_migrations
from pgtick.migrator.sqlfile import parse_sql, split_statements


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


@pytest.fixture
async def opened(dsn: str, mine: Path) -> AsyncIterator[DatabaseManager]:
    """A manager on an empty database, in use, with the folder ``mine``."""
    db = await open_manager(DatabaseConfig.from_dsn(dsn, migration_folders=(str(mine),)))
    with use_manager(db):
        yield db
    await db.close()


# The form


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SELECT 1;", "line 1: there is SQL above the first marker"),
        ("", "has no line -- up"),
        ("-- down\nSELECT 1;", "has no line -- up"),
        ("-- up\n-- down\nSELECT 1;", "has nothing under -- up"),
        ("-- up\n  ;; -- nothing\n/* at all */", "has nothing under -- up"),
        ("-- up\nSELECT 1;\n-- up\nSELECT 2;", "line 3: a second marker -- up"),
        ("-- up\nSELECT 1;\n-- down\n-- down\n", "line 4: a second marker -- down"),
        ("-- down\nSELECT 1;\n-- up\nSELECT 1;", "line 3: after -- down, a marker -- up"),
        ("-- dependson: a\n-- up\nSELECT 1;", "line 1: -- dependson: a is no header"),
        ("-- no_transaction\n-- up\nSELECT 1;", "line 1: -- no_transaction is no header"),
        ("-- no-transaction: yes\n-- up\nSELECT 1;", "line 1: .* is no header"),
        ("-- depends:\n-- up\nSELECT 1;", "line 1: -- depends: is no header"),
        ("-- up\n-- no-transaction\nSELECT 1;", "line 2: -- no-transaction belongs above"),
    ],
)
def test_sql_file_of_a_wrong_form_is_refused_by_name_and_line(text: str, reason: str) -> None:
    with pytest.raises(MigrationError, match=rf"^mine/001_a.*{reason}"):
        parse_sql("mine/001_a", text)


def test_sql_file_is_read_into_its_parts() -> None:
    text = "-- What this is for, in words.\n--depends: a , mine/002\n-- no-transaction\n\n--  UP \nSELECT 1;\n"
    text += "-- down\nSELECT 2"
    file = parse_sql("mine/001_a", text)
    assert (file.up, file.down, file.dependencies, file.transaction) == (
        "SELECT 1;",
        "SELECT 2",
        ("a", "mine/002"),
        False,
    )
    assert parse_sql("mine/001_a", "-- up\nSELECT 1").down is None


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM 1; RETURN 2; END; $$", "SELECT 1"],
        ["DO $x$ DECLARE a int; BEGIN IF a = 1 THEN PERFORM 'x;$$'; END IF; END $x$", "SELECT 2"],
        ["CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END"],
        ["INSERT INTO a VALUES ('x;y''z;', E'x\\';y')", "SELECT ';'", "SELECT 'x\\'"],
        ["SELECT 1 -- a; b'\n + 2", 'SELECT /* a; "b */ 1', 'CREATE TABLE "a;b" (x int)'],
        ["CREATE INDEX CONCURRENTLY IF NOT EXISTS i ON t (a)", "VACUUM t", "REINDEX INDEX CONCURRENTLY i"],
        ["CREATE MATERIALIZED VIEW v WITH (x.y) AS SELECT a$b$c FROM t GROUP BY 1 WITH NO DATA", "CALL p()"],
    ],
)
def test_statements_are_split_where_the_server_would(statements: list[str]) -> None:
    assert split_statements("m", ";\n\n".join([*statements, "-- the end"])) == statements


@pytest.mark.parametrize(
    "text",
    [
        "SELECT /* a /* ; */ ; */ 1; SELECT 2",
        "CREATE TABLE a (begin int); SELECT 1",
        "CREATE RULE r AS ON INSERT TO t DO ALSO (INSERT INTO a VALUES (1); INSERT INTO b VALUES (2))",
        "SELECT 'x\\'; SELECT ';'",
        "SELECT 'x; SELECT 2",
        "DO $$ BEGIN;",
    ],
)
def test_statement_whose_end_is_not_certain_is_refused(text: str) -> None:
    with pytest.raises(MigrationError, match=r"^m: where a statement ends is not certain"):
        split_statements("m", text)


# Up and down


async def test_sql_and_python_are_one_sequence_up_and_down(opened: DatabaseManager, mine: Path) -> None:
    body = "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END;"
    write_sql(
        mine,
        "001_a.sql",
        f"-- depends: symbols\n-- up\nCREATE TABLE a (n int);\n{body}\n-- down\nDROP TABLE a;\nDROP FUNCTION f;",
    )
    write(mine, "002_b.py", "INSERT INTO a VALUES (f())", dependencies=["a"])
    write_sql(mine, "003_c.sql", "-- up\nALTER TABLE a ADD COLUMN m int;")
    assert await run_pending_migrations() == [*BUILT_IN, "mine/001_a", "mine/002_b", "mine/003_c"]
    assert [tuple(row) for row in await opened.fetch("SELECT * FROM a")] == [(2, None)]
    with pytest.raises(MigrationError, match=r"^mine/003_c has no part -- down: it cannot be taken back$"):
        await rollback_migration("mine/003", destructive=True)
    with pytest.raises(MigrationError, match=r"^taking mine/001_a back loses the rows of a: say destructive$"):
        await rollback_migration("mine/001")
    assert (await rollback_migration("mine/001", destructive=True))["success"]
    assert await opened.fetchval("SELECT to_regclass('a')") is None


async def test_sql_that_fails_is_taken_back_whole(opened: DatabaseManager, mine: Path) -> None:
    write_sql(mine, "001_a.sql", "-- up\nCREATE TABLE a ();\nSELECT 1 / 0;")
    with pytest.raises(MigrationError, match=r"^mine/001_a failed: division by zero$"):
        await run_pending_migrations()
    assert await opened.fetchval("SELECT to_regclass('a')") is None


@pytest.mark.parametrize(
    ("down", "lost"),
    [
        ("DROP TABLE a", "the rows of a"),
        ("TRUNCATE a", "the rows of a"),
        ("DELETE FROM a WHERE n = 1", "1 rows of a"),
        ("ALTER TABLE a DROP COLUMN m", "the column m of a"),
        ("DROP TABLE p", "the rows of p"),
        ("DROP TABLE p1", "the rows of p"),
        ("ALTER TABLE a RENAME m TO o; ALTER TABLE a RENAME TO b", None),
        ("DROP TABLE empty; INSERT INTO a VALUES (3)", None),
        ("ALTER TABLE a ALTER n TYPE bigint", None),
    ],
)
async def test_down_asks_for_a_yes_exactly_where_rows_go(
    opened: DatabaseManager, mine: Path, down: str, lost: str | None
) -> None:
    write_sql(
        mine,
        "001_a.sql",
        "-- up\nCREATE TABLE a (n int, m int);\nCREATE TABLE empty ();\n"
        "CREATE TABLE p (n int) PARTITION BY RANGE (n);\n"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9);\nINSERT INTO p VALUES (1);\n"
        f"INSERT INTO a VALUES (1), (2);\n-- down\n{down};",
    )
    await run_pending_migrations()
    if lost is None:
        assert (await rollback_migration("mine/001"))["success"]
        return
    with pytest.raises(MigrationError, match=rf"^taking mine/001_a back loses {lost}: say destructive$"):
        await rollback_migration("mine/001")
    assert await opened.fetchval("SELECT count(*) FROM a WHERE m IS NULL") == 2
    assert (await rollback_migration("mine/001", destructive=True))["success"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("CREATE TABLE a ();\nCOMMIT;\nCREATE TABLE b ();", {"a", "b"}),
        ("CREATE TABLE a ();\nCOMMIT;\nBEGIN;\nCREATE TABLE b ();", {"a"}),
        ("CREATE TABLE a ();\nCOMMIT;\nSELECT 1 / 0;", {"a"}),
        ("CREATE TABLE a ();\nROLLBACK;\nCREATE TABLE b ();", {"b"}),
    ],
)
async def test_migration_that_ends_its_own_transaction_is_refused_and_says_what_is_left(
    opened: DatabaseManager, mine: Path, text: str, left: set[str]
) -> None:
    write_sql(mine, "001_a.sql", f"-- up\n{text}")
    how = "ROLLBACK .* gone" if "ROLLBACK" in text else "COMMIT .* kept"
    with pytest.raises(MigrationError, match=rf"^mine/001_a ended its own transaction.*, by a {how}, .* Undo by hand"):
        await run_pending_migrations()
    assert [row["state"] for row in await get_available_migrations()][-1] == "pending"
    found = await opened.fetch("SELECT relname FROM pg_class WHERE relname IN ('a', 'b') AND relkind = 'r'")
    assert {record[0] for record in found} == left


# One order over all folders


async def test_folders_are_one_order_by_what_they_depend_on(dsn: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_sql(one, "001_a.sql", "-- up\nCREATE TABLE a ();")
    write_sql(one, "002_c.sql", "-- depends: two/001, pgtick/002\n-- up\nALTER TABLE b ADD COLUMN n int;")
    write(two, "001_b.py", "CREATE TABLE b ()", dependencies=["one/001_a"])
    write_sql(two, "002_d.sql", "-- depends: one/002_c\n-- up\nALTER TABLE b RENAME n TO m;")
    db = await open_manager(DatabaseConfig.from_dsn(dsn, migration_folders=(str(two), str(one))))
    try:
        with use_manager(db):
            assert await run_pending_migrations() == [*BUILT_IN, "one/001_a", "two/001_b", "one/002_c", "two/002_d"]
            assert [row["namespace"] for row in await get_available_migrations()][-4:] == ["one", "two", "one", "two"]
    finally:
        await db.close()


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (
            ["mine/003"],
            "^migrations wait for each other: mine/00._. needs (mine/00._. needs ){1,2}mine/00._.$",
        ),
        (["mine/001"], "^migrations wait for each other: mine/001_a needs mine/001_a$"),
        (["other/001"], "^mine/001_a depends on other/001: there is no migration other/001$"),
        (["mine/009"], "^mine/001_a depends on mine/009: there is no migration mine/009$"),
    ],
)
async def test_circle_or_unknown_dependency_is_named_before_anything_is_applied(
    opened: DatabaseManager, mine: Path, needs: list[str], reason: str
) -> None:
    write(mine, "001_a.py", dependencies=needs)
    write(mine, "002_b.py")
    write(mine, "003_c.py")
    with pytest.raises(MigrationError, match=reason):
        await run_pending_migrations()
    assert await opened.fetchval("SELECT to_regclass('pgtick_migrations')") is None


# A file that changed, and a ledger of an older version


async def test_changed_file_is_shown_and_can_be_accepted(opened: DatabaseManager, mine: Path) -> None:
    write_sql(mine, "001_a.sql", "-- up\nCREATE TABLE a (n int);")
    await run_pending_migrations()
    write_sql(mine, "001_a.sql", "-- up\n" + "CREATE TABLE a (n int); -- as it was\n" * 50)
    with pytest.raises(MigrationError, match=r"-CREATE TABLE a \(n int\);\n\+CREATE(.|\n)*… and \d+ lines more$"):
        await run_pending_migrations()
    accepted = await accept_migration("mine/001")
    assert accepted["migration"] == "mine/001_a"
    assert "as it was" in accepted["difference"]
    assert await run_pending_migrations() == []
    assert (await accept_migration("mine/001"))["difference"] == ""
    write_sql(mine, "002_b.sql", "-- up\nSELECT 1;")
    with pytest.raises(MigrationError, match=r"^mine/002_b is not applied"):
        await accept_migration("mine/002")


async def test_ledger_of_an_older_version_is_read_as_it_is_and_brought_up_by_the_first_that_writes(
    opened: DatabaseManager, mine: Path
) -> None:
    write_sql(mine, "001_a.sql", "-- up\nCREATE TABLE a (n int);")
    await run_pending_migrations()
    await opened.execute("ALTER TABLE pgtick_migrations DROP COLUMN content")
    role = f"{opened.config.database}_reader"
    await opened.execute(f"CREATE ROLE {role}; GRANT SELECT ON pgtick_migrations TO {role}")
    try:
        async with opened.transaction():
            await opened.execute(f"SET LOCAL ROLE {role}")
            assert {row["state"] for row in await get_available_migrations()} == {"applied"}
        write_sql(mine, "001_a.sql", "-- up\nCREATE TABLE a (n bigint);")
        with pytest.raises(MigrationError, match=r"changed after .*\nhow is not known: no content is on record"):
            await run_pending_migrations()
        assert "not known" in (await accept_migration("mine/001"))["difference"]
        write_sql(mine, "002_b.sql", "-- up\nSELECT 1;")
        assert await run_pending_migrations() == ["mine/002_b"]
        contents = await opened.fetch("SELECT content IS NULL FROM pgtick_migrations WHERE namespace = 'mine'")
        assert [record[0] for record in contents] == [False, False]
    finally:
        await opened.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_migration_s_statements_have_their_own_deadline(opened: DatabaseManager, mine: Path) -> None:
    write_sql(mine, "001_slow.sql", "-- up\nSELECT pg_sleep(20);")
    config = msgspec.structs.replace(opened.config, migration_statement_timeout_s=0.2)
    db = await open_manager(config)
    try:
        with pytest.raises(MigrationError, match=r"canceling statement due to statement timeout"):
            await run_pending_migrations(db)
    finally:
        await db.close()
