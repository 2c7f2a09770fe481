"""Findings about a whole server, on one of the tests' own: connections and transaction ids near their limits."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import msgspec
import pytest
from looked_at import only

from pgtick.config import DatabaseConfig
from pgtick.connection import connect, initialize_database, open_manager
from pgtick.doctor import examine, queries
from pgtick.embedded import start_embedded
from pgtick.operations.symbols import resolve_symbol

N_MAX, N_RESERVED = 16, 3
SETTINGS = {
    "max_connections": N_MAX,
    "superuser_reserved_connections": N_RESERVED,
    "autovacuum_freeze_max_age": 100_000,
    "autovacuum": "off",
    "fsync": "off",
    "max_prepared_transactions": 1,
    "shared_buffers": "'2MB'",
}
# A subtransaction that writes takes a transaction id.
BURN = """
DO $$ BEGIN
    FOR i IN 1 .. 151000 LOOP
        BEGIN INSERT INTO burnt VALUES (i); EXCEPTION WHEN division_by_zero THEN END;
    END LOOP;
END $$
"""


async def _execute(config: DatabaseConfig, *statements: str) -> None:
    connection = await connect(config)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def small() -> Iterator[DatabaseConfig]:
    """A server with room for few."""
    with tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder:
        place = Path(folder) / "data"
        with start_embedded(place) as server:
            asyncio.run(
                _execute(server.config(), *(f"ALTER SYSTEM SET {name} = {value}" for name, value in SETTINGS.items()))
            )
        with start_embedded(place) as server:
            yield server.config()


async def test_connections_near_the_limit_are_a_warning_and_at_the_limit_to_act_on(small: DatabaseConfig) -> None:
    db = await open_manager(small)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(db.close)

        async def occupy(n: int) -> None:
            for _ in range(n):
                connection = await asyncpg.connect(
                    **{**small.connect_kwargs(), "server_settings": {"application_name": "greedy"}}
                )
                stack.push_async_callback(connection.close)

        assert not any(finding.subject == "connections" for finding in (await examine(db)).findings)
        await occupy(10)
        report = await examine(db)
        assert only(report, "connections").severity == "warning"
        assert "11 of 13 are in use (10 of greedy, 1 of pgtick)" in only(report, "connections").what
        assert report.connections is not None
        assert (report.connections.n_max, report.connections.n_reserved) == (N_MAX, N_RESERVED)
        await occupy(2)
        assert only(await examine(db), "connections").severity == "action"


async def test_day_that_is_larger_than_the_memory_is_advised_on(small: DatabaseConfig) -> None:
    await _execute(small, "CREATE DATABASE advised")
    db = await initialize_database(msgspec.structs.replace(small, database="advised"))
    try:
        await resolve_symbol("A_SPOT", "B", "U")
        rows = (
            "INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id) "
            "SELECT date_trunc('day', now(), 'UTC') + n * interval '1 microsecond', 1, 1, 1, 'buy', n::text "
            "FROM generate_series({}) n"
        )
        await db.execute(rows.format("1, 100"))
        assert not any("shared_buffers" in finding.do for finding in (await examine(db)).findings)
        await db.execute(rows.format("101, 60000"))
        finding = next(f for f in (await examine(db)).findings if "shared_buffers" in f.what)
        assert (finding.severity, finding.subject) == ("warning", "trade_snapshots")
        assert finding.do.startswith("raise shared_buffers")
    finally:
        await db.close()


async def test_old_transaction_ids_are_found(small: DatabaseConfig) -> None:
    db = await open_manager(small)
    holder = await connect(small)
    try:
        assert not any(finding.subject.startswith("database") for finding in (await examine(db)).findings)
        await db.execute("CREATE TABLE burnt (n int)")
        # Its snapshot keeps the forced vacuum from winning before the doctor has looked.
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        await db.execute(BURN)
        finding = only(await examine(db), "database postgres")
        assert finding.severity == "warning"
        assert "transactions old, autovacuum was due at 100,000" in finding.what
        await holder.execute("ROLLBACK")
        await db.execute("VACUUM (FREEZE)")
        assert not any(finding.subject == "database postgres" for finding in (await examine(db)).findings)
    finally:
        await holder.close()
        await db.close()


async def test_prepared_transaction_and_abandoned_slot_hold_back_vacuum(
    small: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        queries, "VACUUM_HELD_BACK", queries.VACUUM_HELD_BACK.replace("'10 minutes'", "'1 millisecond'")
    )
    db = await open_manager(small)
    try:
        await _execute(small, "BEGIN", "CREATE TABLE prepared (n int)", "PREPARE TRANSACTION 'it''s'")
        await db.execute("SELECT pg_create_physical_replication_slot('nobody', true)")
        held = [finding for finding in (await examine(db)).findings if finding.subject == "vacuum"]
        assert [finding.what.split(" for ")[0] for finding in held] == [
            "held back by prepared transaction it's",
            "held back by replication slot nobody, which nobody reads",
        ]
        for finding in held:
            await db.execute(finding.do)
        assert not any(finding.subject == "vacuum" for finding in (await examine(db)).findings)
    finally:
        await db.close()
