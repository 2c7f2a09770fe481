"""Migrations: find, order, lock, check, apply, record.

A migration is a file ``NNN_name.py`` with coroutines ``migrate_up``, ``migrate_down`` and
``get_migration_info``. Each runs in one transaction with its row in the ledger, under a polled advisory lock of
that transaction (so it works behind a pooler). Inside, ``get_db_manager()`` is that transaction, on a connection
of its own without the pool's statement deadline.

Without a manager in use the functions here open the database that the environment names, and close it again.

Ids are "002" for pgtick's own and "folder/002" for those of a user's folder.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

import asyncpg
import msgspec

from pgtick.config import HftConfig
from pgtick.connection import DatabaseManager, add_start_step, get_db_manager, open_manager, use_manager
from pgtick.engines import get_engine
from pgtick.errors import MigrationError, NotInitializedError
from pgtick.migrator.files import BUILT_IN, LoadedMigration, Migration, discover, migrate_result, places_of

__all__ = [
    "get_available_migrations",
    "rollback_migration",
    "run_migration",
    "run_pending_migrations",
]

logger = logging.getLogger(__name__)

_LOCK = 7_463_816_502  # "pgtick" on a telephone's keys, roughly: any constant of our own does
_LOCK_WAIT_S = 60.0
_LOCK_POLL_S = 0.05
_STATEMENT_TIMEOUT_S = 86_400.0  # a large table's index takes what it takes; the pool's deadline is for queries

LEDGER = """
CREATE TABLE IF NOT EXISTS pgtick_migrations (
    namespace text NOT NULL, id text NOT NULL, name text NOT NULL, checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (namespace, id)
)
"""
# Read committed, since the ledger is read after the wait for the lock. Whoever comes after a waiting exclusive
# lock waits too, so a migration gives way to a long query; its own statements may take as long as they like.
_SETTINGS = """
SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = 0
"""
_HOLDER = """
SELECT format('pid %s, application %s, since %s', pid, quote_literal(coalesce(application_name, '?')), xact_start)
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32) + objid::bigint = $1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


_Ledger = dict[tuple[str, str], Any]


async def _read_ledger(db: DatabaseManager) -> _Ledger:
    if await db.fetchval("SELECT to_regclass('pgtick_migrations')") is None:
        return {}
    records = await db.fetch("SELECT * FROM pgtick_migrations ORDER BY namespace, id")
    return {(record["namespace"], record["id"]): record for record in records}


def _is_changed(migration: Migration, record: Any) -> bool:
    return (migration.name, migration.checksum) != (record["name"], record["checksum"])


def _check_ledger(migrations: list[Migration], namespaces: Iterable[str], ledger: _Ledger) -> None:
    """Refuse a database that other files than these have made; folders that are not configured do not count."""
    files = {migration.key: migration for migration in migrations}
    for key, record in ledger.items():
        applied = f"{record['namespace']}/{record['id']}_{record['name']}"
        if key not in files and record["namespace"] in namespaces:
            raise MigrationError(
                f"{applied} is applied and its file is not here: a newer version made this database, "
                "and an older one must not write to it; upgrade, or take it back with that version"
            )
        if key in files and _is_changed(files[key], record):
            raise MigrationError(
                f"{applied} was changed after it was applied: restore the file and put the change into a new one"
            )


@asynccontextmanager
async def _migrating(db: DatabaseManager) -> AsyncIterator[DatabaseManager]:
    """Open a manager for migrations, one connection without the pool's statement deadline, and have it in use."""
    own = await open_manager(
        msgspec.structs.replace(
            db.config, statement_timeout_s=_STATEMENT_TIMEOUT_S, min_connections=1, max_connections=1
        )
    )
    try:
        with use_manager(own):
            yield own
    finally:
        await own.close()


@asynccontextmanager
async def _turn(db: DatabaseManager, migration: Migration) -> AsyncIterator[_Ledger]:
    """Open the transaction, wait for the lock, yield the ledger; an error names the migration."""
    try:
        async with db.transaction():
            await db.execute(_SETTINGS)
            await _lock(db)
            await db.execute("SELECT set_config('application_name', $1, true)", f"pgtick: {migration.label}")
            ledger = await _read_ledger(db)
            if migration.key in ledger and _is_changed(migration, ledger[migration.key]):
                raise MigrationError(f"{migration.label} was applied meanwhile by another version of its file")
            yield ledger
    except MigrationError:
        raise
    except asyncpg.LockNotAvailableError as error:
        raise MigrationError(
            f"{migration.label} gave way to a session that holds a lock on what it changes ({error}): "
            "nothing of it is applied; try again when that session is done"
        ) from error
    except Exception as error:
        raise MigrationError(f"{migration.label} failed: {_told(error)}") from error


def _told(error: Exception) -> str:
    if isinstance(error, asyncpg.PostgresError):  # without the hint, which may recommend CASCADE
        parts = (error.args[0] if error.args else None, getattr(error, "detail", None))
        return "; ".join(str(part) for part in parts if part)
    return f"{type(error).__name__}: {error}"


async def _lock(db: DatabaseManager) -> None:
    deadline = asyncio.get_running_loop().time() + _LOCK_WAIT_S
    while not await db.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
        if asyncio.get_running_loop().time() > deadline:
            holder = await db.fetchval(_HOLDER, _LOCK)
            raise MigrationError(
                f"another session has been migrating for {_LOCK_WAIT_S:g} s: {holder or 'it has just finished'}"
            )
        await asyncio.sleep(_LOCK_POLL_S)


async def _apply(db: DatabaseManager, loaded: LoadedMigration) -> dict[str, Any] | None:
    """Apply one migration; return None when another process has done it meanwhile."""
    async with _turn(db, loaded.migration) as ledger:
        if loaded.migration.key in ledger:
            return None
        for table in loaded.dependencies:
            if await db.fetchval("SELECT to_regclass($1)", table) is None:
                raise MigrationError(f"{loaded.migration.label} needs the table {table}, which is not there")
        await db.execute(LEDGER)
        result = await loaded.up(db)
    logger.info("applied %s", loaded.migration.label)
    return result


async def _known(db: DatabaseManager) -> tuple[list[Migration], _Ledger]:
    """Return the files and the ledger, which agree."""
    if db.in_transaction:
        raise MigrationError("every migration has a transaction of its own: migrate outside of transaction()")
    migrations = discover(db.config.migration_folders)
    ledger = await _read_ledger(db)
    _check_ledger(migrations, places_of(db.config.migration_folders), ledger)
    return migrations, ledger


P = ParamSpec("P")
R = TypeVar("R")


def _opens_what_is_not_open(function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Let the function open the environment's database where no manager is given or in use: in a one-liner."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not any(isinstance(value, DatabaseManager) for value in (*args, *kwargs.values())):
            try:
                get_db_manager()
            except NotInitializedError:
                own = await open_manager(HftConfig().get_database_config())
                try:
                    with use_manager(own):
                        return await function(*args, **kwargs)
                finally:
                    await own.close()
        return await function(*args, **kwargs)

    return call


@_opens_what_is_not_open
async def run_pending_migrations(db: DatabaseManager | None = None) -> list[str]:
    """Apply what is not applied, in order; return what was ("pgtick/001_…").

    All files are loaded before the first is applied. The first failure (MigrationError) stops the rest; what
    was applied before it stays.
    """
    db = db or get_db_manager()
    migrations, ledger = await _known(db)
    pending = [await migration.load() for migration in migrations if migration.key not in ledger]
    if not pending:
        return []
    async with _migrating(db) as own:
        return [loaded.migration.label for loaded in pending if await _apply(own, loaded) is not None]


def _find(migrations: list[Migration], migration_id: str) -> Migration:
    wanted = migration_id if "/" in migration_id else f"{BUILT_IN}/{migration_id}"
    for migration in migrations:
        if wanted in ("/".join(migration.key), migration.label):
            return migration
    raise MigrationError(f"there is no migration {wanted}")


@_opens_what_is_not_open
async def run_migration(migration_id: str) -> dict[str, Any]:
    """Apply one migration; return what its migrate_up returned, with ``migration``, ``success`` and ``applied``.

    ``applied`` is False when it was applied already. One before it in its folder that is pending is an error.
    """
    db = get_db_manager()
    migrations, ledger = await _known(db)
    wanted = _find(migrations, migration_id)
    for migration in migrations:
        if migration.namespace == wanted.namespace and migration.id < wanted.id and migration.key not in ledger:
            raise MigrationError(f"{wanted.label} comes after {migration.label}, which is not applied")
    result = None
    if wanted.key not in ledger:
        loaded = await wanted.load()
        async with _migrating(db) as own:
            result = await _apply(own, loaded)
    return {**(result or {"migration": wanted.label, "success": True}), "applied": result is not None}


@_opens_what_is_not_open
async def rollback_migration(migration_id: str, *, destructive: bool = False) -> dict[str, Any]:
    """Take one migration back; return what its migrate_down returned, with ``migration`` and ``success``.

    It drops tables with their rows, so it wants ``destructive=True``. The server refuses while others depend on it.
    """
    db = get_db_manager()
    migrations, _ = await _known(db)
    migration = _find(migrations, migration_id)
    if not destructive:
        raise MigrationError(f"taking {migration.label} back drops its tables with all rows: say destructive")
    loaded = await migration.load()
    async with _migrating(db) as own, _turn(own, migration) as ledger:
        if migration.key not in ledger:
            raise MigrationError(f"{migration.label} is not applied")
        result = migrate_result(migration, await loaded.module.migrate_down())
        await own.execute("DELETE FROM pgtick_migrations WHERE namespace = $1 AND id = $2", *migration.key)
    logger.warning("took back %s", migration.label)
    return result


@_opens_what_is_not_open
async def get_available_migrations(db: DatabaseManager | None = None) -> list[dict[str, Any]]:
    """Return every migration in order: namespace, id, name, checksum, applied_at (None: pending) and state.

    ``state``: applied, pending, changed (since it was applied), or no file (applied by another version, or from
    a folder that is not configured here); checksum is the file's, without a file the ledger's.
    """
    db = db or get_db_manager()
    files = {migration.key: migration for migration in discover(db.config.migration_folders)}
    ledger = await _read_ledger(db)
    rows = []
    for key in dict.fromkeys((*files, *ledger)):
        file = files.get(key)
        record: Any = ledger.get(key)
        rows.append(
            {
                "namespace": key[0],
                "id": key[1],
                "name": file.name if file else record["name"],
                "checksum": file.checksum if file else record["checksum"],
                "applied_at": record["applied_at"] if record else None,
                "state": _state(file, record),
            }
        )
    return rows


def _state(file: Migration | None, record: Any) -> str:
    if file is None:
        return "no file"
    if record is None:
        return "pending"
    return "changed" if _is_changed(file, record) else "applied"


async def _start(db: DatabaseManager) -> None:
    await run_pending_migrations(db)
    await (await get_engine(db)).make_ahead(db)


add_start_step(10, _start)
