"""The declared schema: made by running the applied migrations in a scratch schema that is always rolled back.

The declaration is the migrations themselves; there is no second list. A role that may not create a schema takes what
another has stored in pgtick_declared_schema, if it is of the same migrations.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.engines import get_engine
from pgtick.errors import MigrationError
from pgtick.migrator.apply import get_available_migrations
from pgtick.migrator.files import LoadedMigration, discover
from pgtick.migrator.order import load_all
from pgtick.tables import quote_identifier
from pgtick.verify.catalog import Item, read_items

__all__ = ["Declaration", "Place", "get_declaration", "read_place"]

_FORMAT = 2  # of what is stored: raise it when the same migrations are declared in another way
_STORE_LOCK = 7_463_816_504  # the maintenance's, plus one
_LOCK_TIMEOUT = "2s"  # for what a migration touches outside of the scratch schema, which it should not

# The schemas after the live one stay in the search_path; the live one only where an extension's functions are in it.
_PLACE = """
SELECT current_schema()::text AS schema, quote_ident(current_schema()) AS quoted, current_user::text AS role,
    to_json(current_schemas(false))::text AS search_path,
    EXISTS (SELECT FROM pg_extension WHERE extnamespace = quote_ident(current_schema())::regnamespace)
        AS holds_extension,
    (SELECT json_agg(extname || ' ' || extversion ORDER BY extname) FROM pg_extension)::text AS extensions,
    coalesce(current_setting('timescaledb.license', true), '') AS licence,
    has_database_privilege(current_database(), 'CREATE') AND current_setting('transaction_read_only') = 'off'
        AS may_create, to_regclass('pgtick_declared_schema') IS NOT NULL AS has_store
"""
_STORE = """
CREATE TABLE pgtick_declared_schema (
    server_version int NOT NULL, checksum text NOT NULL, declaration jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (server_version, checksum)
);
COMMENT ON TABLE pgtick_declared_schema IS 'what the applied migrations declare, for pgtick verify; made by itself';
GRANT SELECT ON pgtick_declared_schema TO PUBLIC;
"""  # anybody may read as much in the catalogs


# Of statements that a migration runs outside of a transaction.
_OUTSIDE_ONLY = re.compile(r"\bCONCURRENTLY\b|\bWITH\s*\(\s*timescaledb\.transaction_per_chunk[^)]*\)", re.IGNORECASE)
_NAMES = """
SELECT relname::text FROM pg_class WHERE relnamespace = $1::text::regnamespace
UNION ALL
SELECT format('%s(%s)', proname, pg_get_function_identity_arguments(oid)) FROM pg_proc
WHERE pronamespace = $1::text::regnamespace
"""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The live schema, and what the role may do beside it."""

    schema: str
    quoted: str  # the schema, as the server quotes it where need be
    search_path: tuple[str, ...]
    role: str
    holds_extension: bool
    extensions: tuple[str, ...]
    licence: str
    may_create: bool
    has_store: bool

    @property
    def extension_names(self) -> set[str]:
        """The extensions without their versions."""
        return {extension.partition(" ")[0] for extension in self.extensions}


class Declaration(msgspec.Struct, frozen=True):
    """What the applied migrations declare; ``unverifiable`` is [(migration, why it could not be run)]."""

    items: list[Item]
    unverifiable: list[tuple[str, str]]


async def read_place(db: DatabaseManager) -> Place:
    """Return where the manager's tables are."""
    row = await db.fetchrow(_PLACE)
    assert row is not None  # noqa: S101  a query without FROM
    lists = {name: msgspec.json.decode(row[name]) for name in ("search_path", "extensions")}
    return msgspec.convert({**row, **lists}, Place)


async def get_declaration(db: DatabaseManager, place: Place, *, anew: bool) -> Declaration | None:
    """Return what is declared; None when the role may not find out and nobody has stored it.

    It is made, and stored where the role may, when it is wanted ``anew`` or not stored yet.
    """
    listed = await get_available_migrations(db)
    applied = [row for row in listed if row["state"] == "applied"]
    changed = [
        (f"{row['namespace']}/{row['id']}_{row['name']}", "its file was changed after it was applied")
        for row in listed
        if row["state"] == "changed"
    ]
    if not applied:
        return Declaration([], changed)
    checksum = await _checksum(db, place, applied)
    version = db.server_version // 10_000
    if place.has_store and not (anew and place.may_create):
        query = "SELECT declaration::text FROM pgtick_declared_schema WHERE server_version = $1 AND checksum = $2"
        stored = await db.fetchval(query, version, checksum)
        if stored is not None:
            found = msgspec.json.decode(stored, type=Declaration)
            return Declaration(found.items, found.unverifiable + changed)
    if not place.may_create:
        return None
    made = await _make(db, place, {(row["namespace"], row["id"]) for row in applied})
    await _store(db, place, version, checksum, made)
    return Declaration(made.items, made.unverifiable + changed)


async def _checksum(db: DatabaseManager, place: Place, applied: list[dict[str, Any]]) -> str:
    """Return a checksum of all that the declaration depends on."""
    migrations = [(row["namespace"], row["id"], row["name"], row["checksum"]) for row in applied]
    known = [extension for extension in place.extensions if extension.startswith(("timescaledb ", "citus "))]
    engine = (await get_engine(db)).name
    return hashlib.sha256(
        msgspec.json.encode([_FORMAT, place.schema, engine, known, place.licence, migrations])
    ).hexdigest()


async def _store(db: DatabaseManager, place: Place, version: int, checksum: str, made: Declaration) -> None:
    try:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock($1)", _STORE_LOCK)
            if await db.fetchval("SELECT to_regclass('pgtick_declared_schema')") is None:
                await db.execute(_STORE)
            await db.execute(
                "INSERT INTO pgtick_declared_schema VALUES ($1, $2, $3::text::jsonb) "
                "ON CONFLICT (server_version, checksum) "
                "DO UPDATE SET declaration = EXCLUDED.declaration, made_at = now()",
                version,
                checksum,
                msgspec.json.encode(made).decode(),
            )
    except asyncpg.InsufficientPrivilegeError:  # a role that may create schemas, and owns no tables here
        pass


class _RollBackError(Exception):
    """Ends the scratch schema; nobody sees it."""


@asynccontextmanager
async def _rolled_back(db: DatabaseManager) -> AsyncIterator[None]:
    """Open a transaction that is rolled back whatever happens."""
    try:
        async with db.transaction():
            yield
            raise _RollBackError
    except _RollBackError:
        pass


async def _make(db: DatabaseManager, place: Place, applied: set[tuple[str, str]]) -> Declaration:
    """Run the applied migrations in a scratch schema, read it, and roll everything back."""
    files = discover(db.config.migration_folders)
    loaded = [migration for migration in await load_all(files) if migration.migration.key in applied]
    # One that wants quotes where the live one does: what a migration makes of its schema's name is then alike.
    scratch = f"{'pgtick' if place.quoted == place.schema else 'Pgtick'}_verify_{secrets.token_hex(8)}"
    # The engine of the live tables, not that of an empty schema; and one connection, which holds the transaction.
    engine = (await get_engine(db)).name
    own = await open_manager(msgspec.structs.replace(db.config, engine=engine, min_connections=1, max_connections=1))
    try:
        with use_manager(own):
            async with _rolled_back(own):
                await _enter(own, place, scratch)
                makers, unverifiable = await _run(own, place, scratch, loaded)
                items = await read_items(own, scratch, place.extension_names)
    finally:
        await own.close()
    failed = {label.partition("/")[0] for label, _ in unverifiable}
    return Declaration(
        [
            Item(item.table, item.kind, item.name, _named(item.text, scratch, place))
            for item in items.values()
            if makers.get(item.table or item.name) not in failed
        ],
        unverifiable,
    )


def _named(text: str, scratch: str, place: Place) -> str:
    """Return the text with the live schema's name for the scratch schema's: quoted, as a literal, and bare."""
    literal = "'" + place.schema.replace("'", "''") + "'"
    text = text.replace(quote_identifier(scratch), place.quoted).replace(f"'{scratch}'", literal)
    return text.replace(scratch, place.schema)


async def _enter(db: DatabaseManager, place: Place, scratch: str) -> None:
    beside = [schema for schema in place.search_path if schema != place.schema or place.holds_extension]
    path = ", ".join(quote_identifier(schema) for schema in (scratch, *beside))
    await db.execute(f"CREATE SCHEMA {quote_identifier(scratch)}")
    if "citus" in place.extension_names:  # several steps of DDL in one transaction go over one connection a node
        await db.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
    await db.execute(
        "SELECT set_config('search_path', $1, true), set_config('lock_timeout', $2, true), "
        "set_config('application_name', 'pgtick verify', true)",
        path,
        _LOCK_TIMEOUT,
    )


async def _run(
    db: DatabaseManager, place: Place, scratch: str, migrations: list[LoadedMigration]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Run what can be run; return {table or function: namespace that made it} and [(migration, why it could not)].

    After one that fails, those after it in its folder are not run: what they change may not be there. The tables
    of such a folder are not compared, for nobody knows what they should be; those of other folders are.
    """
    makers: dict[str, str] = {}
    unverifiable: list[tuple[str, str]] = []
    failed: dict[str, str] = {}
    for loaded in migrations:
        file = loaded.migration
        before = (file.namespace, *(name.partition("/")[0] for name in loaded.needed_migrations))
        culprit = next((failed[namespace] for namespace in before if namespace in failed), None)
        if culprit is not None:
            failed[file.namespace] = culprit
            unverifiable.append((file.label, f"it comes after {culprit}"))
            continue
        try:
            async with db.transaction():
                await _apply(db, place, loaded)
        except Exception as error:  # a migration is anybody's code
            failed[file.namespace] = file.label
            reason = " ".join(str(error).split()) or type(error).__name__
            unverifiable.append((file.label, f"in an empty schema it fails: {reason}"))
        for (name,) in await db.fetch(_NAMES, quote_identifier(scratch)):
            makers.setdefault(name, file.namespace)
    return makers, unverifiable


async def _apply(db: DatabaseManager, place: Place, loaded: LoadedMigration) -> None:
    query = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = to_regclass($1)"
    for table in loaded.needed_tables:
        if await db.fetchval(query, table) in (None, place.quoted):  # not there, or the live one
            raise MigrationError(f"the table {table}, which it needs, could not be made")
    with use_manager(db if loaded.transaction else _InTransaction(db)):
        await loaded.up()


class _InTransaction(DatabaseManager):
    """A manager that does inside the transaction what a migration without one would do outside."""

    def __init__(self, db: DatabaseManager) -> None:
        super().__init__(db.config, None, db.server_version)
        self._db = db

    @asynccontextmanager
    async def connection(self, *, resets: bool = True) -> AsyncIterator[Any]:
        async with self._db.connection(resets=resets) as connection:
            yield connection

    async def execute(self, query: str, *args: object) -> str:
        """Run the statement without what wants no transaction; leave VACUUM and the like out: they declare nothing."""
        try:
            async with self._db.transaction():
                return await self._db.execute(_OUTSIDE_ONLY.sub(" ", query), *args)
        except asyncpg.ActiveSQLTransactionError:
            return ""
