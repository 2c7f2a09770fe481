"""The doctor: a healthy database has no findings, least privilege is enough, and the report is data."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from click.testing import CliRunner, Result
from looked_at import ADD_TRADE, EXCHANGE_AND_SYMBOL, MONITOR, as_role, only

import pgtick.doctor.server
from pgtick.cli.commands import pgtick as command
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager, use_manager
from pgtick.doctor import Report, examine
from pgtick.errors import PgtickError
from pgtick.tables import BUILT_IN_TABLES, INGEST_BATCHES

ROLE = f"pgtick_test_{os.getpid()}_monitor"
SECOND = timedelta(seconds=1)


async def test_fresh_database_seen_by_a_monitor_has_no_findings_and_nothing_unseen(
    db: DatabaseManager, config: DatabaseConfig
) -> None:
    async with as_role(config, ROLE, *MONITOR) as monitor:
        report = await examine(monitor)
    assert report.findings == []
    assert report.unseen == []
    assert report.exit_code == 0


async def test_report_says_what_is(db: DatabaseManager) -> None:
    await db.execute(EXCHANGE_AND_SYMBOL)
    await db.execute(ADD_TRADE, 30 * SECOND)
    await db.execute(
        "INSERT INTO balance_snapshots (timestamp, exchange_id, asset_name, available_balance, locked_balance) "
        "SELECT now() - n * interval '1 minute', 1, 'C' || n % 3, 1, 0 FROM generate_series(1, 9) n"
    )
    report = await examine(db)
    assert report.database == db.config.database
    assert report.server is not None
    assert report.server.version.split()[0] == (await db.fetchval("SHOW server_version")).split()[0]
    assert report.server.extensions["plpgsql"] == "1.0"
    assert report.role is not None
    assert report.role.is_superuser == await db.fetchval("SELECT current_setting('is_superuser') = 'on'")
    assert [migration.state for migration in report.migrations] == ["applied"] * len(report.migrations)
    assert len(report.migrations) >= 4
    assert report.database_bytes is not None
    assert report.database_bytes > 1_000_000
    assert report.connections is not None
    assert report.connections.n_max == int(await db.fetchval("SHOW max_connections"))
    assert report.connections.n_by_application["pgtick"] >= 1
    series = {series.table: series for series in report.series}
    assert set(series) == {*(table.name for table in BUILT_IN_TABLES), INGEST_BATCHES}
    (trades,) = series["trade_snapshots"].exchanges
    assert trades.exchange == "A_SPOT"
    assert trades.oldest == trades.newest == await db.fetchval("SELECT timestamp FROM trade_snapshots")
    assert 30 <= trades.age_s < 60
    (balances,) = series["balance_snapshots"].exchanges
    assert balances.newest - balances.oldest == 480 * SECOND
    assert series["order_flow_metrics"].exchanges == []
    size = series["trade_snapshots"].size
    assert size is not None
    assert size.n_bytes > size.n_index_bytes > 0


async def test_report_survives_json(db: DatabaseManager) -> None:
    await db.execute(EXCHANGE_AND_SYMBOL)
    await db.execute(ADD_TRADE, 3600 * SECOND)
    report = await examine(db)
    assert report.findings
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


async def test_role_without_any_right_gets_a_report_that_says_what_it_may_not_see(
    db: DatabaseManager, config: DatabaseConfig
) -> None:
    async with as_role(config, ROLE) as nobody:
        report = await examine(nobody)
    assert report.findings == []
    unseen = {unseen.subject: unseen.needs for unseen in report.unseen}
    assert "GRANT pg_monitor TO" in unseen["sessions of other roles"]
    assert "pgtick_migrations" in unseen["migrations"]
    assert "pgtick_time_series" in unseen["engine"]
    assert "symbols_id_seq" in unseen["sequences"]
    assert report.server is not None
    assert report.clock is not None
    assert report.connections is not None
    assert report.connections.n_used >= 2, "its own and the owner's"
    assert report.series == []


async def test_table_that_may_not_be_read_does_not_keep_the_others_from_it(
    db: DatabaseManager, config: DatabaseConfig
) -> None:
    await db.execute(EXCHANGE_AND_SYMBOL)
    async with as_role(config, ROLE, *MONITOR) as monitor:
        await db.execute(f"REVOKE SELECT ON trade_snapshots FROM {ROLE}")
        report = await examine(monitor)
    assert [unseen.subject for unseen in report.unseen] == ["rows of trade_snapshots"]
    assert len(report.series) == len(BUILT_IN_TABLES) + 1


@pytest.mark.engines("plain")  # on Citus the lock is waited for on the nodes, until the look's ten seconds are over
async def test_locked_table_is_unseen_within_seconds(db: DatabaseManager, config: DatabaseConfig) -> None:
    holder = await asyncpg.connect(**config.connect_kwargs())
    try:
        async with holder.transaction():
            await holder.execute("LOCK trade_snapshots IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(10):
                report = await examine(db)
    finally:
        await holder.close()
    needs = {unseen.subject: unseen.needs for unseen in report.unseen}
    assert "exclusive lock" in needs["time-series tables"]
    assert report.connections is not None, "what comes later is looked at"


async def test_examination_changes_nothing_and_is_refused_in_a_transaction(db: DatabaseManager) -> None:
    async with db.transaction():
        with pytest.raises(PgtickError, match="outside of transaction"):
            await examine(db)
    before = await db.fetchval("SELECT pg_current_xact_id()::text::bigint")
    with use_manager(db):
        await examine()
    assert await db.fetchval("SELECT pg_current_xact_id()::text::bigint") == before + 1


async def test_clock_that_differs_is_a_finding_and_one_that_does_not_is_none(
    db: DatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = await examine(db)
    assert report.clock is not None
    assert abs(report.clock.skew_s) <= report.clock.uncertainty_s + 0.01, "the server is on this machine"
    assert not any(finding.subject == "clock" for finding in report.findings)
    monkeypatch.setattr(pgtick.doctor.server, "time", lambda: time.time() + 3)
    report = await examine(db)
    assert only(report, "clock").severity == "action"
    assert "3.0 s behind" in only(report, "clock").what


async def test_database_without_the_schema_is_told_to_migrate(dsn: str) -> None:
    db = await open_manager(DatabaseConfig.from_dsn(dsn))
    try:
        report = await examine(db)
    finally:
        await db.close()
    pending = [finding for finding in report.findings if finding.subject.startswith("migration pgtick/")]
    assert {(finding.what, finding.do) for finding in pending} == {("pending", "pgtick migrate up")}
    assert len(pending) == len(report.migrations) >= 4
    assert report.exit_code == 3


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["doctor", *arguments])


def prepare(config: DatabaseConfig, age: timedelta) -> str:
    async def go() -> None:
        db = await initialize_database(config)
        try:
            await db.execute(EXCHANGE_AND_SYMBOL)
            await db.execute(ADD_TRADE, age)
        finally:
            await db.close()

    asyncio.run(go())
    return config.to_dsn(with_password=True)


@pytest.fixture
def sync_config(server: DatabaseConfig, template: str) -> Any:
    """A clone for the command, which has an event loop of its own."""
    name = f"pgtick_test_{os.getpid()}_doctor"

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(**server.connect_kwargs())
        await connection.execute(statement)
        await connection.close()

    asyncio.run(execute(f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield msgspec.structs.replace(server, database=name)
    asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


def test_command_exits_0_with_warnings_alone_and_3_with_something_to_act_on(sync_config: DatabaseConfig) -> None:
    dsn = prepare(sync_config, 90 * SECOND)
    healthy = run("--dsn", dsn)
    assert healthy.exit_code == 0, healthy.output
    assert "warning role" in healthy.output, "the tests' user is a superuser"
    assert "trade_snapshots" in healthy.output
    assert re.search(r"A_SPOT 9\d\.\d s", healthy.output)
    stale = run("--dsn", dsn, "--stale-after", "trade_snapshots=60")
    assert stale.exit_code == 3, stale.output
    assert "action trade_snapshots, A_SPOT: stale" in stale.output


def test_command_prints_the_whole_report_as_json(sync_config: DatabaseConfig) -> None:
    result = run("--dsn", prepare(sync_config, 3600 * SECOND), "--json")
    assert result.exit_code == 3
    report = msgspec.json.decode(result.output, type=Report)
    assert only(report, "trade_snapshots, A_SPOT").severity == "action"
    assert json.loads(result.output)["database"] == sync_config.database
    assert report.examined_at > datetime.now(UTC) - timedelta(minutes=1)


def test_command_exits_1_when_it_cannot_look(server: DatabaseConfig) -> None:
    gone = msgspec.structs.replace(server, database="pgtick_test_not_there")
    result = run("--dsn", gone.to_dsn(with_password=True), "--json")
    assert result.exit_code == 1
    assert "does not exist" in result.output


def test_command_refuses_an_age_that_is_none() -> None:
    result = run("--stale-after", "trade_snapshots=soon")
    assert result.exit_code == 2
    assert "TABLE=SECONDS" in result.output
