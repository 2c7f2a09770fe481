"""Findings about sessions, indexes and sequences, each provoked on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest
from looked_at import MONITOR, as_role, only

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.doctor import Finding, examine, queries
from pgtick.engines import get_engine


@pytest.fixture
async def other(config: DatabaseConfig, db: DatabaseManager) -> AsyncIterator[Any]:
    """Somebody else's session on the same database."""
    connection = await asyncpg.connect(**config.connect_kwargs())
    yield connection
    await connection.close()


def shorten(monkeypatch: pytest.MonkeyPatch, name: str, span: str) -> None:
    """Have the query look for what lasts longer than an instant, so that the test does not last as long."""
    query: str = getattr(queries, name)
    assert f"interval '{span}'" in query
    monkeypatch.setattr(queries, name, query.replace(f"interval '{span}'", "interval '1 millisecond'"))


async def found(db: DatabaseManager, subject: str) -> list[Finding]:
    return [finding for finding in (await examine(db)).findings if finding.subject.startswith(subject)]


async def test_session_idle_in_a_transaction_is_found_and_the_statement_ends_it(
    db: DatabaseManager, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await other.execute("BEGIN; SELECT 1")
    session = f"session {other.get_server_pid()}"
    assert await found(db, session) == [], "a minute is granted"
    shorten(monkeypatch, "IDLE_IN_TRANSACTION", "1 minute")
    (finding,) = await found(db, session)
    assert finding.severity == "action"
    assert "idle in a transaction" in finding.what
    assert "application pgtick" in finding.what
    await db.execute(finding.do.split(", or ")[1])
    async with asyncio.timeout(5):
        while await found(db, session):  # noqa: ASYNC110  it is the server's state that is waited for
            await asyncio.sleep(0.05)


async def test_long_transaction_that_holds_back_vacuum_is_found(
    db: DatabaseManager, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, "VACUUM_HELD_BACK", "10 minutes")
    assert await found(db, "vacuum") == []
    await other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    (finding,) = await found(db, "vacuum")
    assert finding.severity == "action"
    assert f"session {other.get_server_pid()}" in finding.what
    assert finding.do == f"SELECT pg_terminate_backend({other.get_server_pid()})"
    await other.execute("ROLLBACK")
    assert await found(db, "vacuum") == []


async def test_session_that_waits_for_a_lock_is_found_with_who_blocks_it(
    db: DatabaseManager, other: Any, config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, "WAITING_LOCKS", "10 seconds")
    waiter = await asyncpg.connect(**config.connect_kwargs())
    try:
        async with other.transaction():
            await other.execute("LOCK exchanges IN SHARE MODE")
            await waiter.execute("BEGIN")
            waiting = asyncio.create_task(waiter.execute("LOCK exchanges IN ROW EXCLUSIVE MODE"))
            session = f"session {waiter.get_server_pid()}"
            async with asyncio.timeout(5):
                while not await found(db, session):  # noqa: ASYNC110  the server's state
                    await asyncio.sleep(0.05)
            (finding,) = await found(db, session)
            assert "for RowExclusiveLock on exchanges" in finding.what
            assert f"blocked by {other.get_server_pid()}" in finding.what
            who = await db.fetch(finding.do)
            assert {record["pid"] for record in who} == {waiter.get_server_pid(), other.get_server_pid()}
        await waiting
        assert await found(db, session) == []
    finally:
        await waiter.close()


async def test_invalid_index_is_found_and_rebuilding_it_is_the_way_out(db: DatabaseManager) -> None:
    await db.execute("CREATE TABLE own (n int); INSERT INTO own VALUES (1), (1)")
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON own (n)")
    finding = only(await examine(db), "index broken")
    assert finding.severity == "action"
    assert "on own" in finding.what
    await db.execute("DELETE FROM own")
    await db.execute(finding.do.split(",")[0])
    assert await found(db, "index") == []


async def test_partitioned_index_that_lacks_parts_is_found(db: DatabaseManager) -> None:
    await db.execute(
        "CREATE TABLE own (n int) PARTITION BY RANGE (n);"
        "CREATE TABLE own_1 PARTITION OF own FOR VALUES FROM (0) TO (9); CREATE INDEX partial ON ONLY own (n)"
    )
    finding = only(await examine(db), "index partial")
    assert "ATTACH PARTITION" in finding.do
    await db.execute("CREATE INDEX part ON own_1 (n); ALTER INDEX partial ATTACH PARTITION part")
    assert await found(db, "index") == []


async def test_sequence_near_its_end_is_found_and_what_to_do_widens_it(db: DatabaseManager) -> None:
    await db.execute(
        "CREATE TABLE own (id int GENERATED BY DEFAULT AS IDENTITY); SELECT setval('own_id_seq', 1800000000)"
    )
    assert only(await examine(db), "sequence own_id_seq").severity == "warning"
    await db.execute("SELECT setval('own_id_seq', 2100000000)")
    finding = only(await examine(db), "sequence own_id_seq")
    assert finding.severity == "action"
    assert "98% of its numbers are given out (2100000000 of 2147483647)" in finding.what
    assert "ALTER TABLE own ALTER COLUMN id TYPE bigint" in finding.do
    await db.execute(finding.do.split(" (")[0])
    assert await found(db, "sequence") == []
    await db.execute("INSERT INTO own VALUES (3000000000); SELECT setval('own_id_seq', 3000000000)")


async def test_refused_rows_are_a_warning_that_a_monitor_sees_too(db: DatabaseManager, config: DatabaseConfig) -> None:
    assert await found(db, "trade_snapshots") == []
    await db.execute(
        'INSERT INTO ingest_quarantine (table_name, batch_id, row_index, column_name, reason, "row") '
        "SELECT 'trade_snapshots', gen_random_uuid(), n, 'price', 'must be > 0', '{}' FROM generate_series(1, 3) n"
    )
    (finding,) = await found(db, "trade_snapshots")
    assert finding.severity == "warning"
    assert finding.what.startswith("3 refused rows are in quarantine, the newest of 20")
    assert finding.do.startswith("pgtick quarantine list --table trade_snapshots")
    async with as_role(config, f"{config.database}_monitor", *MONITOR) as monitor:
        assert await found(monitor, "trade_snapshots") == [finding]


async def test_owner_that_is_no_superuser_is_warned(db: DatabaseManager, config: DatabaseConfig) -> None:
    role = f"{config.database}_owner"
    async with as_role(config, role, *MONITOR, "GRANT CREATE ON SCHEMA public") as owner:
        assert await found(owner, "role") == []
        await owner.execute("CREATE TABLE own (n int)")
        (finding,) = await found(owner, "role")
    assert finding.severity == "warning"
    assert f"{role} owns tables" in finding.what


async def test_unencrypted_connection_to_another_machine_is_found(db: DatabaseManager) -> None:
    assert await found(db, "TLS") == [], "this machine's"
    # The connection is what it is; that its host were another machine is made up.
    db.config = msgspec.structs.replace(db.config, host="db.example.internal", sslmode="disable")
    (finding,) = await found(db, "TLS")
    assert finding.severity == "action"
    assert "sslmode=verify-full" in finding.do


async def test_schema_that_is_not_the_declared_one_is_found(db: DatabaseManager) -> None:
    assert await found(db, "schema") == []
    await db.execute("ALTER TABLE symbols DROP COLUMN settle")
    (finding,) = await found(db, "schema")
    assert finding.severity == "action"
    assert finding.what.startswith("symbols: column settle is missing")
    await db.execute(finding.do)
    assert await found(db, "schema") == []


async def test_changed_migration_is_found(db: DatabaseManager) -> None:
    await db.execute("UPDATE pgtick_migrations SET checksum = 'x' WHERE id = '002'")
    finding = only(await examine(db), "migration pgtick/002_")
    assert (finding.severity, finding.what) == ("action", "changed")
    await db.execute("UPDATE pgtick_migrations SET id = '999' WHERE id = '002'")
    findings = await found(db, "migration")
    assert [finding.what for finding in findings] == ["pending", "no file"]


async def test_engine_that_is_not_there_is_found(db: DatabaseManager, config: DatabaseConfig) -> None:
    wrong = "timescale" if (await get_engine(db)).name == "plain" else "plain"
    other = await open_manager(msgspec.structs.replace(config, engine=wrong))
    try:
        report = await examine(other)
    finally:
        await other.close()
    assert only(report, "engine").severity == "action"
    assert report.engine is None
    assert report.series == []
