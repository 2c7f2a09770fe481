"""verify: no drift where there is none; what it leaves behind, whom it asks, whom it stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager
from pgtick.errors import SchemaDriftError
from pgtick.migrator import run_pending_migrations
from pgtick.verify import Drift, declaration, verify_schema
from pgtick.verify.catalog import read_items

USERS = """
from datetime import timedelta
from pgtick.connection import get_db_manager
from pgtick.engines.series import create_series

async def migrate_up():
    db = get_db_manager()
    {body}

async def migrate_down():
    pass

async def get_migration_info():
    return {{"id": "{number}", "name": "{name}", "dependencies": {dependencies}}}
"""
OWN_TABLES = """await create_series(
        db, "own_ticks", "timestamp timestamptz NOT NULL, symbol_id int NOT NULL, note text COLLATE \\"C\\", "
        "PRIMARY KEY (symbol_id, timestamp)", references={"symbol_id": "symbols"},
        chunk=timedelta(hours=1), retention=timedelta(days=2))
    await db.execute(\"\"\"
        CREATE TYPE own_side AS ENUM ('buy', 'sell');
        CREATE TABLE own (
            id serial PRIMARY KEY, side own_side NOT NULL DEFAULT 'buy', other int REFERENCES own,
            price numeric(20, 8) UNIQUE, EXCLUDE USING btree (side WITH =)
        );
        CREATE VIEW own_prices AS SELECT side, price FROM own JOIN symbols ON symbols.id = own.id;
        CREATE FUNCTION own_next(n int) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT n + 1';
        INSERT INTO own (price) VALUES (1);
    \"\"\")"""


def write(folder: Path, number: str, name: str, body: str, dependencies: list[str] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    text = USERS.format(number=number, name=name, body=body, dependencies=dependencies or [])
    (folder / f"{number}_{name}.py").write_text(text)


def told(drifts: list[Drift]) -> list[tuple[str, str, str, str]]:
    return [(drift.table, drift.kind, drift.name, drift.state) for drift in drifts]


async def store_rows(db: DatabaseManager) -> None:
    await db.execute(
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) "
        "SELECT id, 'B', quote, 'B' || quote FROM exchanges, unnest(ARRAY['C', 'D']) quote;"
        "INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id) "
        "SELECT now(), id, 1, 1, 'buy', 't' FROM symbols"
    )


async def test_fresh_database_has_no_drift(db: DatabaseManager) -> None:
    await store_rows(db)
    assert await db.fetchval("SELECT count(*) FROM pg_inherits") > 0
    assert await verify_schema(db) == []


async def test_database_without_migrations_has_no_drift(dsn: str) -> None:
    db = await open_manager(DatabaseConfig.from_dsn(dsn))
    try:
        assert await verify_schema(db) == []
    finally:
        await db.close()


@pytest.fixture
async def in_odd_schema(dsn: str) -> AsyncIterator[DatabaseManager]:
    """A manager whose tables are not in public, but in a schema whose name wants quotes."""
    config = DatabaseConfig.from_dsn(dsn)
    connection = await asyncpg.connect(**config.connect_kwargs())
    await connection.execute(
        f'CREATE SCHEMA "Tick\'s"; ALTER DATABASE {config.database} SET search_path = "Tick\'s", public'
    )
    await connection.close()
    db = await initialize_database(config)
    yield db
    await db.close()


async def test_schema_of_another_name_has_no_drift_and_its_own_is_found(in_odd_schema: DatabaseManager) -> None:
    assert await in_odd_schema.fetchval("SELECT current_schema()") == "Tick's"
    assert await verify_schema(in_odd_schema) == []
    await in_odd_schema.execute("DROP INDEX ix_symbols_pair")
    assert told(await verify_schema(in_odd_schema)) == [("symbols", "index", "ix_symbols_pair", "missing")]


async def test_users_folder_has_no_drift_and_its_own_is_found(config: DatabaseConfig, tmp_path: Path) -> None:
    write(tmp_path / "firm", "001", "own", OWN_TABLES, ["symbols"])
    db = await initialize_database(msgspec.structs.replace(config, migration_folders=(str(tmp_path / "firm"),)))
    try:
        assert await verify_schema(db) == []
        await db.execute(
            "DROP VIEW own_prices; ALTER TABLE own ALTER price TYPE numeric; DROP FUNCTION own_next;"
            "CREATE VIEW own_prices AS SELECT side, price FROM own"
        )
        assert told(await verify_schema(db)) == [
            ("", "function", "own_next(n integer)", "missing"),
            ("own", "column", "price", "changed"),
            ("own_prices", "definition", "own_prices", "changed"),
        ]
    finally:
        await db.close()


async def test_migration_that_an_empty_schema_cannot_run_is_named_and_the_rest_is_compared(
    config: DatabaseConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "firm"
    write(folder, "001", "tables", 'await db.execute("CREATE TABLE mine (id int)")')
    write(folder, "002", "data", 'assert await db.fetchval("SELECT count(*) FROM symbols"), "no symbols yet"')
    write(folder, "003", "after", 'await db.execute("ALTER TABLE mine ADD COLUMN name text")')
    started = await initialize_database(config)
    await store_rows(started)
    await started.close()
    db = await open_manager(msgspec.structs.replace(config, migration_folders=(str(folder),)))
    try:
        await run_pending_migrations(db)
        await db.execute("DROP INDEX ix_symbols_pair; ALTER TABLE mine ADD COLUMN more text")
        drifts = await verify_schema(db)
        assert told(drifts) == [
            ("", "migration", "firm/002_data", "unverifiable"),
            ("", "migration", "firm/003_after", "unverifiable"),
            ("symbols", "index", "ix_symbols_pair", "missing"),
        ]
        assert "no symbols yet" in str(drifts[0])
        assert "after firm/002_data" in str(drifts[1])
    finally:
        await db.close()


async def test_migration_outside_a_transaction_is_declared_like_any_other(
    config: DatabaseConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "firm"
    folder.mkdir()
    (folder / "001_index.sql").write_text(
        "-- no-transaction\n-- depends: symbols\n-- up\nCREATE INDEX CONCURRENTLY firm_settle ON symbols (settle);\n"
        "VACUUM symbols;\nCREATE INDEX CONCURRENTLY firm_expiry ON symbols (expiry);\n"
        "-- down\nDROP INDEX firm_settle, firm_expiry;\n"
    )
    db = await open_manager(msgspec.structs.replace(config, migration_folders=(str(folder),)))
    try:
        await run_pending_migrations(db)
        assert await verify_schema(db) == []
        await db.execute("DROP INDEX firm_settle")
        assert told(await verify_schema(db)) == [("symbols", "index", "firm_settle", "missing")]
    finally:
        await db.close()


async def test_file_changed_after_it_was_applied_is_named(config: DatabaseConfig, tmp_path: Path) -> None:
    folder = tmp_path / "firm"
    write(folder, "001", "tables", 'await db.execute("CREATE TABLE mine (id int)")')
    db = await open_manager(msgspec.structs.replace(config, migration_folders=(str(folder),)))
    try:
        await run_pending_migrations(db)
        assert await verify_schema(db) == []
        write(folder, "001", "tables", 'await db.execute("CREATE TABLE mine (id bigint)")')
        assert told(await verify_schema(db)) == [("", "migration", "firm/001_tables", "unverifiable")]
    finally:
        await db.close()


_LEFT = """
SELECT (SELECT array_agg(nspname::text ORDER BY 1) FROM pg_namespace) AS schemas,
    (SELECT count(*) FROM pg_class) AS n_relations, (SELECT count(*) FROM pg_proc) AS n_functions,
    (SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS n_locks
"""


async def test_nothing_is_left_behind(db: DatabaseManager) -> None:
    before = await db.fetchrow(_LEFT)
    for _ in range(2):
        assert await verify_schema(db) == []
    assert await db.fetchrow(_LEFT) == before
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgtick verify'"
    assert await db.fetchval(query) == 0


async def test_verify_holds_up_nobody(db: DatabaseManager, monkeypatch: pytest.MonkeyPatch) -> None:
    await store_rows(db)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def wait_inside(*args: Any) -> Any:
        entered.set()
        await go_on.wait()
        return await read_items(*args)

    monkeypatch.setattr(declaration, "read_items", wait_inside)
    verifying = asyncio.create_task(verify_schema(db))
    async with asyncio.timeout(20):
        await entered.wait()
    for statement in (  # rows, a symbol, DDL: while the scratch schema is open
        "INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id) "
        "SELECT now(), id, 1, 1, 'buy', 'u' FROM symbols",
        "UPDATE symbols SET price_tick = 1",
        "ALTER TABLE symbols ADD COLUMN firm text",
        "ALTER TABLE symbols DROP COLUMN firm",
        "ALTER TABLE trade_snapshots ADD COLUMN firm text",
        "ALTER TABLE trade_snapshots DROP COLUMN firm",
    ):
        async with db.transaction():
            await db.execute("SET LOCAL lock_timeout = '200ms'")
            await db.execute(statement)
    go_on.set()
    assert await verifying == []


async def test_role_that_may_not_create_takes_what_is_stored(db: DatabaseManager, config: DatabaseConfig) -> None:
    role = f"{config.database}_reader"
    await db.execute(
        f"CREATE ROLE {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};"
        "DELETE FROM pgtick_declared_schema; DROP INDEX ix_symbols_pair"
    )
    try:
        async with db.transaction():
            await db.execute(f"SET LOCAL ROLE {role}")
            (drift,) = await verify_schema(db)
        assert (drift.kind, drift.state) == ("schema", "unverifiable")
        assert role in str(drift)
        assert "GRANT CREATE ON DATABASE" in str(drift)
        await verify_schema(db)
        async with db.transaction():
            await db.execute(f"SET LOCAL ROLE {role}")
            assert told(await verify_schema(db)) == [("symbols", "index", "ix_symbols_pair", "missing")]
    finally:
        await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_stored_declaration_of_other_migrations_is_not_taken(db: DatabaseManager) -> None:
    await db.execute("UPDATE pgtick_declared_schema SET checksum = 'other'")
    async with db.transaction():
        await db.execute("SET LOCAL transaction_read_only = on")
        assert told(await verify_schema(db)) == [("", "schema", "public", "unverifiable")]


async def test_invalid_index_of_a_failed_concurrent_build_is_found(db: DatabaseManager) -> None:
    await db.execute(
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) "
        "VALUES (1, 'B', 'C', 'BC'), (1, 'B', 'D', 'BD')"
    )
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.execute("CREATE UNIQUE INDEX CONCURRENTLY mine ON symbols (symbol_base)")
    (drift,) = await verify_schema(db)
    assert told([drift]) == [("symbols", "index", "mine", "extra")]
    assert "INVALID" in str(drift)


async def drifted(config: DatabaseConfig) -> None:
    connection = await asyncpg.connect(**config.connect_kwargs())
    await connection.execute("DROP INDEX ix_symbols_pair; ALTER TABLE symbols ADD COLUMN firm text")
    await connection.close()


async def test_start_warns_of_each_drift(config: DatabaseConfig, caplog: pytest.LogCaptureFixture) -> None:
    await drifted(config)
    with caplog.at_level(logging.WARNING):
        await (await initialize_database(config)).close()
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("schema: symbols: column firm is not declared: text")
    assert second.startswith("schema: symbols: index ix_symbols_pair is missing; declared: CREATE INDEX")


async def test_start_is_refused_where_it_is_asked_for(config: DatabaseConfig) -> None:
    await (await initialize_database(msgspec.structs.replace(config, verify="refuse"))).close()
    await drifted(config)
    with pytest.raises(SchemaDriftError, match=r"2 places.*ix_symbols_pair") as caught:
        await initialize_database(msgspec.structs.replace(config, verify="refuse"))
    assert told(list(caught.value.drifts))[0] == ("symbols", "column", "firm", "extra")


async def test_start_that_does_not_look_says_nothing(config: DatabaseConfig, caplog: pytest.LogCaptureFixture) -> None:
    await drifted(config)
    with caplog.at_level(logging.WARNING):
        await (await initialize_database(msgspec.structs.replace(config, verify="off"))).close()
    assert caplog.records == []


async def test_first_start_stores_what_is_declared(dsn: str) -> None:
    db = await initialize_database(DatabaseConfig.from_dsn(dsn))
    try:
        query = "SELECT jsonb_array_length(declaration -> 'items') FROM pgtick_declared_schema"
        assert await db.fetchval(query) > 150
    finally:
        await db.close()
