"""The command from outside: what it prints, its exit codes, and what it leaves in the database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from click.testing import CliRunner, Result

from pgtick.cli.commands import pgtick
from pgtick.config import DatabaseConfig

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(pgtick, arguments)


def fetchval(config: DatabaseConfig, query: str) -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(**config.connect_kwargs())
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())


@pytest.fixture
def empty(server: DatabaseConfig) -> Any:
    """The configuration of an empty database whose name the demo accepts."""
    name = f"pgtick_test_{os.getpid()}_demo"
    fetchval(server, f"CREATE DATABASE {name}")
    yield msgspec.structs.replace(server, database=name)
    fetchval(server, f"DROP DATABASE {name} WITH (FORCE)")


def test_demo_stores_rows_and_prints_what_a_newcomer_wants_to_see(empty: DatabaseConfig) -> None:
    result = run("demo", "--seconds", "0.5", "--batch", "200", "--dsn", empty.to_dsn(with_password=True))
    assert result.exit_code == 0, result.output
    for said in (
        "book_ticker_snapshots",
        "trade_snapshots",
        "funding_rate_snapshots",
        "a 100-row batch takes",
        "newest prices",
        "GATEIO_FUTURES",
        "widest spread",
        "symbol cache: 12 symbols",
        "ns a look-up",
        "PostgreSQL 1",
    ):
        assert said in result.output
    assert fetchval(empty, "SELECT count(*) FROM book_ticker_snapshots") >= 200
    assert fetchval(empty, "SELECT count(*) FROM funding_rate_snapshots") == 4


def test_demo_refuses_a_database_that_is_not_its_own(server: DatabaseConfig) -> None:
    result = run("demo", "--dsn", server.to_dsn())
    assert result.exit_code == 1
    assert "must end in _demo" in result.output


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recordings beside the checkout")
@pytest.mark.filterwarnings("ignore")  # cryptofeed leaves its own sessions and files to the garbage collector
def test_replay_says_what_was_stored_and_the_second_time_how_many_were_there(empty: DatabaseConfig) -> None:
    files = sorted(map(str, RECORDINGS.glob("GATEIO_FUTURES.*")))
    first = run("replay", *files, "--dsn", empty.to_dsn(with_password=True))
    assert first.exit_code == 0, first.output
    stored = fetchval(empty, "SELECT count(*) FROM book_ticker_snapshots")
    assert stored > 0
    assert "newest prices" in first.output
    second = run("replay", *files, "--dsn", empty.to_dsn(with_password=True))
    assert second.exit_code == 0, second.output
    assert f"{stored:,}" in second.output
    assert fetchval(empty, "SELECT count(*) FROM book_ticker_snapshots") == stored


def test_replay_without_the_instruments_names_the_missing_file(tmp_path: Path) -> None:
    stream = tmp_path / "GATEIO.ws.1.0"
    stream.write_text("")
    result = run("replay", str(stream))
    assert result.exit_code == 1
    assert "GATEIO.0" in result.output


def test_migrate_goes_up_says_its_status_and_down_wants_a_destructive_yes(empty: DatabaseConfig) -> None:
    dsn = ("--dsn", empty.to_dsn(with_password=True))
    before = json.loads(run("migrate", "status", *dsn).output)
    assert [migration["applied_at"] for migration in before] == [None] * len(before)
    assert run("migrate", *dsn).exit_code == 0
    after = json.loads(run("migrate", "status", *dsn).output)
    assert all(migration["applied_at"] for migration in after)
    assert run("migrate", "down", *dsn).exit_code == 2
    refused = run("migrate", "down", "004", *dsn)
    assert refused.exit_code == 1
    assert "destructive" in refused.output
    assert fetchval(empty, "SELECT to_regclass('order_flow_metrics') IS NOT NULL")
    assert run("migrate", "down", "004", "--destructive", *dsn).exit_code == 0
    assert fetchval(empty, "SELECT to_regclass('order_flow_metrics') IS NULL")


def test_maintain_drops_old_partitions_and_a_dry_run_only_says_so(empty: DatabaseConfig) -> None:
    dsn = ("--dsn", empty.to_dsn(with_password=True))
    assert run("migrate", *dsn).exit_code == 0
    old = "trade_snapshots_p20200101"
    fetchval(
        empty, f"CREATE TABLE {old} PARTITION OF trade_snapshots FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')"
    )
    for options, gone in ((["--dry-run"], False), ([], True)):
        result = run("maintain", *options, *dsn)
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["trade_snapshots"] == [old]
        assert fetchval(empty, f"SELECT to_regclass('{old}') IS NULL") is gone


def test_unreachable_server_is_a_message_without_a_traceback_or_the_password() -> None:
    result = run("migrate", "status", "--dsn", "postgresql://somebody:s3cret@127.0.0.1:1/nowhere?sslmode=disable")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith("Error: ")
    assert "s3cret" not in result.output


def test_server_runs_until_it_is_told_to_stop(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("state")
    command = [sys.executable, "-c", "from pgtick.cli import main; main()", "server"]
    environment = {**os.environ, "PGTICK_STATE_DIR": str(folder), "COLUMNS": "500"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = {}
        for line in process.stdout:
            name, _, value = line.strip().partition(": ")
            said[name] = value
            if name.startswith("it runs"):
                break
        psql = subprocess.run(
            f'{said["psql"]} -Atc "SELECT count(*) FROM exchanges"', shell=True, capture_output=True, text=True
        )
        assert psql.stdout == "0\n", psql.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    assert not (folder / "postgres" / "postmaster.pid").exists()
