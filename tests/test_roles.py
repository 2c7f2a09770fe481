"""The four roles: each does its work, and the server refuses it everything else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import msgspec
import pytest
from logins import KINDS, Roles, roles_of
from rows import make_symbol, ticker

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager
from pgtick.engines import get_engine, maintain
from pgtick.errors import MigrationError, PgtickError
from pgtick.migrator import get_available_migrations, run_pending_migrations
from pgtick.operations.book_ticker import get_latest_book_ticker_by_symbol
from pgtick.operations.symbols import deactivate_symbol, resolve_symbol
from pgtick.roles import set_up_roles
from pgtick.tables import BOOK_TICKERS, TRADES, quote_identifier
from pgtick.writer import copy_parallel, store_rows
from pgtick.writer.deliver import STRAIGHT_ROWS

LATE = datetime(2021, 4, 22, 12, tzinfo=UTC)

MIGRATION = """
from datetime import timedelta
from pgtick.connection import get_db_manager
from pgtick.engines.series import create_series

async def migrate_up():
    await create_series(
        get_db_manager(), 'Own "ticks"', 'timestamp timestamptz, symbol_id int, PRIMARY KEY (symbol_id, timestamp)',
        references={"symbol_id": "symbols"}, chunk=timedelta(days=1), retention=timedelta(days=3),
    )

async def migrate_down():
    pass

async def get_migration_info():
    return {"id": "001", "name": "own", "dependencies": []}
"""


@pytest.fixture
async def bare(config: DatabaseConfig) -> AsyncIterator[Roles]:
    """A migrated database without the roles."""
    async with roles_of(config) as roles:
        yield roles


@pytest.fixture
async def roles(bare: Roles) -> Roles:
    """The roles, set up."""
    await set_up_roles(bare.admin, prefix=bare.prefix)
    return bare


@pytest.fixture
async def writer(roles: Roles) -> AsyncIterator[DatabaseManager]:
    """A service's published manager, logged in as a writer."""
    manager = await initialize_database(await roles.login("writer"))
    yield manager
    await manager.close()


# --- setting up ---


async def test_second_run_changes_nothing(bare: Roles) -> None:
    statements = await set_up_roles(bare.admin, prefix=bare.prefix)
    assert len(statements) > 20
    assert await set_up_roles(bare.admin, prefix=bare.prefix) == []


async def test_dry_run_says_what_would_run_and_runs_nothing(bare: Roles) -> None:
    would_run = await set_up_roles(bare.admin, prefix=bare.prefix, dry_run=True)
    assert await bare.admin.fetchval("SELECT count(*) FROM pg_roles WHERE rolname ^@ $1", bare.prefix) == 0
    assert await set_up_roles(bare.admin, prefix=bare.prefix) == would_run


async def test_owner_owns_everything_of_pgtick_and_nothing_else(bare: Roles) -> None:
    await (await get_engine(bare.admin)).make_ahead(bare.admin)
    await bare.admin.execute("CREATE TABLE theirs (); CREATE FUNCTION theirs() RETURNS int RETURN 1")
    await set_up_roles(bare.admin, prefix=bare.prefix)
    query = (
        "SELECT DISTINCT pg_get_userbyid(relowner) = $1 FROM pg_class WHERE relkind <> 'i' AND relkind <> 'I' "
        "AND relnamespace = 'public'::regnamespace AND relname {0} 'theirs' AND NOT EXISTS "
        "(SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e') "
        "UNION ALL "
        "SELECT DISTINCT pg_get_userbyid(proowner) = $1 FROM pg_proc "
        "WHERE pronamespace = 'public'::regnamespace AND proname {0} 'theirs' AND NOT EXISTS "
        "(SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'e')"
    )
    owner = f"{bare.prefix}_owner"
    assert [record[0] for record in await bare.admin.fetch(query.format("<>"), owner)] == [True, True]
    assert [record[0] for record in await bare.admin.fetch(query.format("="), owner)] == [False, False]


async def test_what_was_granted_beyond_is_revoked_and_what_is_missing_granted(roles: Roles) -> None:
    writer, reader, monitor = (roles.name(kind) for kind in KINDS[1:])
    async with roles.admin.transaction():
        for statement in (
            "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
            f"GRANT DELETE ON trade_snapshots TO {writer}",
            f"GRANT SELECT ON trade_snapshots TO {monitor}",
            f"GRANT SELECT (price) ON trade_snapshots TO {monitor}",
            "GRANT UPDATE (price) ON trade_snapshots TO PUBLIC",
            "GRANT CREATE ON SCHEMA public TO PUBLIC",
            "GRANT EXECUTE ON ROUTINE pgtick_drop_partition TO PUBLIC",
            f"REVOKE SELECT ON symbols FROM {reader}",
            "CREATE TABLE pgtick_later ()",
            "ALTER TABLE trade_snapshots OWNER TO CURRENT_USER",
        ):
            await roles.admin.execute(statement)
    statements = await set_up_roles(roles.admin, prefix=roles.prefix)
    owner = roles.name("owner")
    assert [statement.replace("public.", "") for statement in statements] == [
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        f"ALTER TABLE pgtick_later OWNER TO {owner}",
        f"ALTER TABLE trade_snapshots OWNER TO {owner}",
        "REVOKE EXECUTE ON ROUTINE pgtick_drop_partition(partition regclass) FROM PUBLIC",
        "REVOKE UPDATE (price) ON TABLE trade_snapshots FROM PUBLIC",
        f"REVOKE DELETE ON TABLE trade_snapshots FROM {writer}",
        f"REVOKE SELECT, SELECT (price) ON TABLE trade_snapshots FROM {monitor}",
        f"GRANT SELECT ON TABLE pgtick_later TO {writer}",
        f"GRANT SELECT ON TABLE pgtick_later, symbols TO {reader}",
        f"GRANT SELECT ON TABLE pgtick_later TO {monitor}",
        f'GRANT SELECT ("timestamp"), SELECT (symbol_id) ON TABLE trade_snapshots TO {monitor}',
    ]
    assert await set_up_roles(roles.admin, prefix=roles.prefix) == []


@pytest.mark.engines("plain", "citus")
async def test_owner_may_log_in_only_where_nodes_are_reached_as_it(roles: Roles) -> None:
    may = await roles.admin.fetchval("SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", f"{roles.prefix}_owner")
    assert may == ((await get_engine(roles.admin)).name == "citus")


@pytest.mark.parametrize("attribute", ["LOGIN", "CREATEROLE"])
async def test_role_of_the_name_that_is_more_than_a_group_is_refused(bare: Roles, attribute: str) -> None:
    await bare.admin.execute(f"CREATE ROLE {bare.name('reader')} {attribute}")
    with pytest.raises(PgtickError, match="_reader may log in or has rights over the server: choose another prefix"):
        await set_up_roles(bare.admin, prefix=bare.prefix)


async def test_prefix_that_the_server_would_cut_is_refused(bare: Roles) -> None:
    with pytest.raises(PgtickError, match="x_monitor is longer than 63 bytes"):
        await set_up_roles(bare.admin, prefix="x" * 56)


async def test_database_that_is_not_migrated_is_refused(dsn: str) -> None:
    db = await open_manager(DatabaseConfig.from_dsn(dsn))
    try:
        with pytest.raises(PgtickError, match="migrate it first"):
            await set_up_roles(db)
    finally:
        await db.close()


# --- by a plain user with CREATEROLE ---


async def test_plain_user_who_owns_the_database_sets_up_and_goes_on_migrating(
    dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    async with roles_of(DatabaseConfig.from_dsn(dsn)) as roles:
        login = await roles.login("plain", "CREATEROLE")
        await roles.admin.execute(f"ALTER DATABASE {roles.config.database} OWNER TO {quote_identifier(login.user)}")
        db = await open_manager(msgspec.structs.replace(login, migration_folders=(str(folder),)))
        try:
            await run_pending_migrations(db)
            if await db.fetchval("SELECT count(*) FROM pgtick_candles"):  # only its superuser may hand aggregates over
                with pytest.raises(PgtickError, match="GRANT CREATE ON SCHEMA _timescaledb_internal TO that role"):
                    await set_up_roles(db, prefix=roles.prefix)
                await db.execute(f"CREATE ROLE {roles.name('owner')}")
                await roles.admin.execute(f"GRANT CREATE ON SCHEMA _timescaledb_internal TO {roles.name('owner')}")
            with caplog.at_level(logging.WARNING):
                assert len(await set_up_roles(db, prefix=roles.prefix)) > 20
            told = "until a superuser runs: GRANT pg_read_all_stats" in caplog.text
            assert told == (db.server_version >= 160000)
            assert await set_up_roles(db, prefix=roles.prefix) == []
            (folder / "001_own.py").write_text(MIGRATION)
            assert await run_pending_migrations(db) == ["own/001_own"]
            assert f'ALTER TABLE public."Own ""ticks""" OWNER TO {roles.name("owner")}' in await set_up_roles(
                db, prefix=roles.prefix
            )
            assert await set_up_roles(db, prefix=roles.prefix) == []
        finally:
            await db.close()
        async with roles.opened("writer") as writer:
            if (await get_engine(writer)).name != "timescale":
                await (await get_engine(writer)).make_ahead(writer)
            await writer.execute(
                "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT')"
            )


async def test_user_without_the_rights_is_told_what_is_to_be_run_and_nothing_is_done(bare: Roles) -> None:
    login = await bare.login("plain", "CREATEROLE")
    await bare.admin.execute(f"GRANT SELECT ON pgtick_time_series TO {quote_identifier(login.user)}")
    db = await open_manager(login)
    try:
        with pytest.raises(PgtickError, match="may, and has to run before: GRANT CREATE ON SCHEMA public TO"):
            await set_up_roles(db, prefix=bare.prefix)
        await bare.admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
        with pytest.raises(PgtickError, match=r"nothing is changed, since this was refused: ALTER ROUTINE .* owner"):
            await set_up_roles(db, prefix=bare.prefix)
    finally:
        await db.close()
    assert await bare.admin.fetchval("SELECT count(*) FROM pg_roles WHERE rolname ^@ $1", bare.prefix) == 1


async def test_tables_of_later_migrations_by_the_owner_are_covered(roles: Roles, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "001_own.py").write_text(MIGRATION)
    login = await roles.login("owner")
    await roles.admin.execute(
        f"ALTER ROLE {quote_identifier(login.user)} SET role = {quote_identifier(roles.prefix + '_owner')}"
    )
    owner = await initialize_database(msgspec.structs.replace(login, migration_folders=(str(folder),)))
    try:
        assert await owner.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'Own \"ticks\"'") == (
            f"{roles.prefix}_owner"
        )
        symbol_id = await make_symbol()
    finally:
        await owner.close()
    table = '"Own ""ticks"""'
    async with roles.opened("writer") as writer:
        await (await get_engine(writer)).ensure_days(writer, 'Own "ticks"', [LATE.toordinal() - 719_163])
        await writer.execute(f"INSERT INTO {table} VALUES ($1, $2)", LATE, symbol_id)
    async with roles.opened("reader") as reader:
        assert await reader.fetchval(f"SELECT count(*) FROM {table}") == 1
    # A column of a table cannot be granted ahead: the monitor's freshness wants another run.
    (statement,) = await set_up_roles(roles.admin, prefix=roles.prefix)
    assert statement.startswith('GRANT SELECT ("timestamp"), SELECT (symbol_id) ON TABLE public."Own ""ticks"""')


# --- the writer ---


@pytest.mark.engines("plain", "citus")
async def test_writer_starts_on_a_migrated_database_and_keeps_it(writer: DatabaseManager) -> None:
    symbol = await resolve_symbol("GATEIO_SPOT", "BTC", "USDT")
    assert (await store_rows(BOOK_TICKERS, [ticker(symbol.id, timestamp=LATE)])).n_stored == 1
    dropped = await maintain(writer)
    assert dropped is not None
    assert dropped[BOOK_TICKERS.name] == ["book_ticker_snapshots_p20210422"]
    assert await writer.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 0
    await writer.close()
    again = await initialize_database(writer.config)
    try:
        assert again.symbols.get(symbol.id) is not None
    finally:
        await again.close()


async def test_writer_stores_batches_duplicates_and_late_rows(writer: DatabaseManager) -> None:
    symbol = await resolve_symbol("GATEIO_SPOT", "BTC", "USDT", contract_size=1)
    rows = [ticker(symbol.id, sequence_number=n) for n in range(10)]
    result = await store_rows(BOOK_TICKERS, [*rows[:9], ticker(999_999)])
    assert (result.n_stored, [error.column for error in result.errors]) == (9, ["symbol_id"])
    result = await store_rows(BOOK_TICKERS, rows)
    assert (result.n_stored, result.n_duplicates, result.errors) == (1, 9, [])
    assert (await store_rows(BOOK_TICKERS, [ticker(symbol.id, timestamp=LATE)])).n_stored == 1
    latest = await get_latest_book_ticker_by_symbol(symbol.id)
    assert latest is not None
    assert latest.sequence_number == 9
    assert await deactivate_symbol(symbol.id)


@pytest.mark.engines("plain")  # others take every row through the table
async def test_writer_copies_large_batches_straight_into_partitions_of_its_own_making(
    roles: Roles, writer: DatabaseManager
) -> None:
    symbol_id = await make_symbol()
    await store_rows(BOOK_TICKERS, [ticker(symbol_id, timestamp=LATE, sequence_number=1)])
    partition = "book_ticker_snapshots_p20210422"
    await roles.admin.execute(
        "CREATE TABLE targets (name text); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "$$ BEGIN INSERT INTO targets VALUES (TG_TABLE_NAME); RETURN NULL; END $$;"
        f"CREATE TRIGGER note AFTER INSERT ON {partition} FOR EACH STATEMENT EXECUTE FUNCTION note()"
    )
    rows = [ticker(symbol_id, timestamp=LATE, sequence_number=n) for n in range(STRAIGHT_ROWS + 1)]
    assert (await store_rows(BOOK_TICKERS, [rows[0], *rows[2:]])).n_stored == STRAIGHT_ROWS
    straight = [record[0] for record in await roles.admin.fetch("SELECT name FROM targets")]
    assert straight == ([partition] if writer.server_version >= 170000 else [])
    result = await store_rows(BOOK_TICKERS, rows)
    assert (result.n_stored, result.n_duplicates, result.errors) == (0, STRAIGHT_ROWS + 1, [])


async def test_writer_copies_over_several_connections(writer: DatabaseManager) -> None:
    ids = [await make_symbol(base=base) for base in ("BTC", "ETH")]
    rows = [ticker(one, timestamp=LATE + timedelta(days=n % 3), sequence_number=n) for n in range(60) for one in ids]
    result = await copy_parallel(BOOK_TICKERS, rows, connections=2, batch_rows=7)
    assert (result.n_stored, result.errors) == (120, [])


async def test_writer_does_not_migrate(bare: Roles) -> None:
    await bare.admin.execute("DELETE FROM pgtick_migrations WHERE id = '004'")
    await set_up_roles(bare.admin, prefix=bare.prefix)
    with pytest.raises(MigrationError, match=r"004_analytics failed: .*permission denied"):
        await initialize_database(await bare.login("writer"))


async def test_writer_notes_batches_and_refused_rows_beside_what_it_copies(
    roles: Roles, writer: DatabaseManager
) -> None:
    symbol_id = await make_symbol()
    async with writer.transaction():
        await writer.execute(
            "INSERT INTO ingest_batches (batch_id, table_name, n_rows, n_duplicates, n_quarantined, timestamp) "
            "VALUES ('00000000-0000-0000-0000-000000000001', 'book_ticker_snapshots', 1, 0, 1, now())"
        )
        result = await store_rows(BOOK_TICKERS, [ticker(symbol_id)], db=writer)
        await writer.execute(
            'INSERT INTO ingest_quarantine (table_name, batch_id, row_index, column_name, reason, "row") VALUES '
            "('book_ticker_snapshots', '00000000-0000-0000-0000-000000000001', 0, 'bid_price', 'must be > 0', '{}')"
        )
    assert result.n_stored == 1
    query = "SELECT (SELECT count(*) FROM ingest_batches) + (SELECT count(*) FROM ingest_quarantine)"
    assert await roles.admin.fetchval(query) == 2
    with pytest.raises(asyncpg.UniqueViolationError):
        await writer.execute("INSERT INTO ingest_batches SELECT * FROM ingest_batches")


@pytest.mark.engines("plain", "citus")
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM trade_snapshots",
        "UPDATE trade_snapshots SET price = 2",
        "TRUNCATE trade_snapshots",
        "DROP TABLE trade_snapshots",
        "ALTER TABLE trade_snapshots ADD COLUMN note text",
        "DELETE FROM {partition}",
        "DROP TABLE {partition}",
        "ALTER TABLE trade_snapshots DETACH PARTITION {partition}",
        "DELETE FROM ingest_batches",
        "UPDATE ingest_batches SET n_rows = 0",
        "DELETE FROM ingest_quarantine",
        "UPDATE ingest_quarantine SET reason = 'none'",
        "DELETE FROM symbols",
        "TRUNCATE exchanges CASCADE",
        "ALTER TABLE symbols DISABLE TRIGGER ALL",
        "UPDATE pgtick_time_series SET retention = '1 second'",
        "INSERT INTO pgtick_time_series VALUES ('mine', '1 day', '1 day')",
        "INSERT INTO pgtick_migrations VALUES ('pgtick', '999', 'mine', '')",
        "CREATE TABLE public.mine ()",
        "CREATE FUNCTION public.mine() RETURNS int RETURN 1",
        "CREATE SCHEMA mine",
        "CREATE TRIGGER mine AFTER INSERT ON symbols EXECUTE FUNCTION pgtick_refuse()",
        "ALTER FUNCTION pgtick_drop_partition RESET ALL",
        "SET ROLE {owner}",
        "SELECT pgtick_drop_partition('{partition}')",
        "SELECT pgtick_drop_partition('symbols')",
        "SELECT pgtick_drop_partition('trade_snapshots')",
        "SELECT pgtick_drop_partition('elsewhere_1')",
        "SELECT pgtick_make_partition('symbols', '2021-04-22')",
        "SELECT pgtick_make_partition('elsewhere', '2021-04-22')",
        "SELECT pgtick_make_partition('x'' OR true; DROP TABLE symbols --', '2021-04-22')",
    ],
)
@pytest.mark.engines("plain")
async def test_writer_is_refused_by_the_server(roles: Roles, writer: DatabaseManager, statement: str) -> None:
    partition = f"trade_snapshots_p{await writer.fetchval('SELECT now()'):%Y%m%d}"
    await roles.admin.execute(
        "CREATE TABLE elsewhere (timestamp timestamptz) PARTITION BY RANGE (timestamp);"
        "CREATE TABLE elsewhere_1 PARTITION OF elsewhere FOR VALUES FROM ('2001-01-01') TO ('2002-01-01')"
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await writer.execute(statement.format(partition=partition, owner=roles.name("owner")))
    assert await roles.admin.fetchval("SELECT to_regclass($1) IS NOT NULL", partition)


# --- reader and monitor ---


async def test_reader_starts_also_where_no_partition_is_ahead_and_reads(roles: Roles) -> None:
    reader = await initialize_database(await roles.login("reader"))
    try:
        assert {migration["state"] for migration in await get_available_migrations()} == {"applied"}
        for table in ("trade_snapshots", "symbols", "exchanges", "pgtick_time_series"):
            await reader.fetch(f"SELECT * FROM {table}")
    finally:
        await reader.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT')",
        "INSERT INTO trade_snapshots (timestamp, symbol_id) VALUES (now(), 1)",
        "UPDATE symbols SET is_active = false",
        "COPY trade_snapshots FROM PROGRAM 'true'",
        "CREATE TABLE public.mine ()",
        "SELECT nextval('symbols_id_seq')",
        "SELECT pgtick_make_partition('trade_snapshots', '2021-04-22')",
        "SELECT pgtick_drop_partition('trade_snapshots')",
    ],
)
@pytest.mark.parametrize("kind", ["reader", "monitor"])
async def test_reader_and_monitor_are_refused_by_the_server(roles: Roles, kind: str, statement: str) -> None:
    async with roles.opened(kind) as db:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute(statement)


async def test_monitor_sees_how_fresh_tables_are_and_no_prices(roles: Roles, writer: DatabaseManager) -> None:
    await store_rows(BOOK_TICKERS, [ticker(await make_symbol())])
    async with roles.opened("monitor") as db:
        query = (
            "SELECT e.enum_value, count(*), max(t.timestamp) FROM book_ticker_snapshots t "
            "JOIN symbols s ON s.id = t.symbol_id JOIN exchanges e ON e.id = s.exchange_id GROUP BY 1"
        )
        assert [tuple(record)[:2] for record in await db.fetch(query)] == [("GATEIO_SPOT", 1)]
        await db.fetch("SELECT max(timestamp) FROM balance_snapshots GROUP BY exchange_id")
        for table in ("pgtick_migrations", "pgtick_time_series", "symbols", "exchanges"):
            await db.fetch(f"SELECT * FROM {table}")
        assert await db.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '<insufficient%'") == 0
        await db.fetch("SELECT table_name, count(table_name), max(quarantined_at) FROM ingest_quarantine GROUP BY 1")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.fetch('SELECT "row" FROM ingest_quarantine')
        for query in ("SELECT bid_price FROM book_ticker_snapshots", "SELECT total_balance FROM balance_snapshots"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.fetch(query)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.fetch("SELECT asset_name FROM balance_snapshots")


# --- the functions that run as the owner ---


@pytest.mark.engines("plain", "citus")
async def test_partition_has_the_grants_of_its_table(roles: Roles, writer: DatabaseManager) -> None:
    await roles.login("else")
    await roles.admin.execute(f"GRANT DELETE ON trade_snapshots TO PUBLIC, {roles.name('else_login')}")
    name = await writer.fetchval("SELECT pgtick_make_partition('trade_snapshots', '2021-04-22')")
    query = "SELECT relacl::text[], relowner FROM pg_class WHERE oid = $1::text::regclass"
    ours, table = [await roles.admin.fetchrow(query, one) for one in (name, "trade_snapshots")]
    assert ours is not None
    assert table is not None
    assert ours["relowner"] == table["relowner"]
    assert sorted(ours["relacl"]) == sorted(table["relacl"])


@pytest.mark.engines("plain", "citus")
async def test_partition_within_the_retention_is_not_dropped_for_its_owner_either(roles: Roles) -> None:
    async with roles.opened("owner") as owner:
        engine = await get_engine(owner)
        await engine.make_ahead(owner)
        today = await owner.fetchval("SELECT now()")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="trade_snapshots keeps its rows for 3 days"):
            await engine.drop_older_than(owner, TRADES.name, today + timedelta(days=2))


@pytest.mark.engines("plain", "citus")
@pytest.mark.parametrize("day", ["infinity", "-infinity"])
@pytest.mark.engines("plain")
async def test_day_without_an_end_is_refused(roles: Roles, writer: DatabaseManager, day: str) -> None:
    with pytest.raises(asyncpg.PostgresError):
        await writer.execute(f"SELECT pgtick_make_partition('trade_snapshots', '{day}')")


# What a session can set, and what anybody who may create objects can put before or beside pgtick's own: better
# matches of what the functions call, each of which would tell as whom it ran.
_TRAP = """
CREATE FUNCTION {schema}.trap(text) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'trap ran as %', current_user USING ERRCODE = 'ZZ001'; END $$;
CREATE FUNCTION {schema}.quote_ident(name) RETURNS text RETURN {schema}.trap('');
CREATE FUNCTION {schema}.hashtext(varchar) RETURNS int RETURN {schema}.trap('')::int;
CREATE FUNCTION {schema}.hashtext(text) RETURNS int RETURN {schema}.trap('')::int;
CREATE FUNCTION {schema}.format(text, text, text, text) RETURNS text RETURN {schema}.trap('');
CREATE FUNCTION {schema}.format(text, text, text) RETURNS text RETURN {schema}.trap('');
CREATE FUNCTION {schema}.format(text, name, name) RETURNS text RETURN {schema}.trap('');
CREATE FUNCTION {schema}.now() RETURNS timestamptz RETURN '2999-01-01'::timestamptz;
CREATE FUNCTION {schema}.equal(name, text) RETURNS bool RETURN {schema}.trap('')::bool;
CREATE OPERATOR {schema}.= (LEFTARG = name, RIGHTARG = text, FUNCTION = {schema}.equal);
CREATE FUNCTION {schema}.later(timestamptz, timestamptz) RETURNS bool RETURN false;
CREATE OPERATOR {schema}.> (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = {schema}.later);
CREATE FUNCTION {schema}.pgtick_check_references() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
"""
_SESSION = """
CREATE TEMPORARY TABLE pgtick_time_series AS SELECT 'elsewhere' AS table_name, interval '1 s' AS retention;
CREATE TEMPORARY TABLE trade_snapshots (timestamp timestamptz) PARTITION BY RANGE (timestamp);
CREATE TEMPORARY TABLE pg_inherits (inhrelid oid, inhparent oid, inhdetachpending bool);
CREATE TEMPORARY TABLE pg_class (oid oid, relname name);
SET search_path = pg_temp, trap, public, pg_catalog;
SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kolkata'; SET intervalstyle = 'iso_8601';
SET standard_conforming_strings = off; SET escape_string_warning = off; SET quote_all_identifiers = on;
"""


@pytest.mark.engines("plain", "citus")
async def test_nothing_of_the_caller_runs_as_the_owner_or_leads_astray(roles: Roles, writer: DatabaseManager) -> None:
    admin = roles.admin
    await admin.execute(
        "CREATE SCHEMA trap; CREATE TABLE elsewhere (timestamp timestamptz) PARTITION BY RANGE (timestamp);"
        f"GRANT ALL ON SCHEMA trap, public TO {roles.name('writer')};"
    )
    today = await admin.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    async with writer.acquire() as session:
        await session.execute(_TRAP.format(schema="trap"))
        beside = _TRAP.format(schema="public").replace(
            "CREATE FUNCTION public.pgtick_check", "CREATE FUNCTION trap.check"
        )
        await session.execute(beside)
        await session.execute(_SESSION)
        make, drop = (
            "SELECT public.pgtick_make_partition($1, $2)",
            "SELECT public.pgtick_drop_partition($1::text::regclass)",
        )
        assert await session.fetchval(make, "trade_snapshots", LATE.date()) == "trade_snapshots_p20210422"
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="not a partitioned table of pgtick_time_series"):
            await session.fetchval(make, "elsewhere", LATE.date())
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="is not dropped: it ends at"):
            await session.fetchval(drop, f"public.trade_snapshots_p{today:%Y%m%d}")
        triggers = await session.fetch(
            "SELECT tgname, tgfoid::regprocedure::text FROM pg_catalog.pg_trigger "
            "WHERE tgrelid = $1::text::regclass AND NOT tgisinternal",
            "public.trade_snapshots_p20210422",
        )
        set_based = writer.server_version >= 180000 and (await get_engine(admin)).name == "plain"
        names = ("check_references_insert", "check_references_update") if set_based else ()
        function = '"public"."pgtick_check_references"()'
        assert sorted(map(tuple, triggers)) == [(name, function) for name in names]
        await session.execute("SET search_path = pg_catalog; SET timezone = 'UTC'; SET datestyle = 'ISO'")
        bounds = "SELECT pg_get_expr(relpartbound, oid) FROM pg_catalog.pg_class WHERE oid = $1::text::regclass"
        assert await session.fetchval(bounds, "public.trade_snapshots_p20210422") == (
            "FOR VALUES FROM ('2021-04-22 00:00:00+00') TO ('2021-04-23 00:00:00+00')"
        )
        assert await session.fetchval(drop, "public.trade_snapshots_p20210422") is True
    # The one who sets up the roles does not step into it either.
    with pytest.raises(asyncpg.PostgresError, match="trap ran as"):
        await admin.fetchval("SELECT quote_ident(rolname) FROM pg_roles")
    statements = await set_up_roles(admin, prefix=roles.prefix)
    assert f"REVOKE CREATE ON SCHEMA public FROM {roles.name('writer')}" in statements
