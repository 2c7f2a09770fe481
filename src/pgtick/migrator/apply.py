"""Migrations: find, order, lock, check, apply, record.

A migration is a file ``NNN_name.py`` with coroutines ``migrate_up``, ``migrate_down`` and ``get_migration_info``, or
``NNN_name.sql`` with parts ``-- up`` and ``-- down``. Each runs in one transaction with its row in the ledger, under
a polled advisory lock of that transaction; what cannot run in one is done step by step (steps). Inside,
``get_db_manager()`` is that transaction, on a connection of its own with the deadlines of migrations.

Without a manager in use the functions here open the database that the environment names, and close it again.

Ids are "002" for pgtick's own and "folder/002" for those of a user's folder.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import asyncpg

from pgtick.config import HftConfig
from pgtick.connection import DatabaseManager, add_start_step, get_db_manager, open_manager, use_manager
from pgtick.engines import get_engine
from pgtick.errors import MigrationError, NotInitializedError
from pgtick.migrator.files import LoadedMigration, Migration, discover, places_of
from pgtick.migrator.ledger import (
    Ledger,
    check_ledger,
    is_changed,
    make_ledger,
    read_ledger,
    read_steps,
    record,
    unfinished,
)
from pgtick.migrator.loss import read_tables_with_rows, what_is_lost
from pgtick.migrator.order import find, load_all, needed_by
from pgtick.migrator.session import migrating, told, turn
from pgtick.migrator.steps import forget_steps, stepping

__all__ = [
    "get_available_migrations",
    "known",
    "rollback_migration",
    "run_migration",
    "run_pending_migrations",
]

logger = logging.getLogger(__name__)


async def known(db: DatabaseManager, *, going_up: bool = True) -> tuple[list[LoadedMigration], Ledger]:
    """Return the files, loaded and in order, and the ledger, which agree."""
    if db.in_transaction:
        raise MigrationError("every migration has a transaction of its own: migrate outside of transaction()")
    files = discover(db.config.migration_folders)
    ledger = await read_ledger(db)
    check_ledger({file.key: file for file in files}, places_of(db.config.migration_folders), ledger)
    migrations = await load_all(files)
    if not going_up:
        return migrations, ledger
    for key, direction in unfinished(await read_steps(db), ledger).items():
        if key in ledger and direction == "down":
            name = "/".join(key)
            raise MigrationError(f"{name} is half taken back: go on with down {name} --destructive (see `repair`)")
    return migrations, ledger


def _files(migrations: Sequence[LoadedMigration]) -> list[Migration]:
    return [loaded.migration for loaded in migrations]


def _find(migrations: Sequence[LoadedMigration], migration_id: str) -> LoadedMigration:
    wanted = find(_files(migrations), migration_id)
    return next(loaded for loaded in migrations if loaded.migration == wanted)


def _refuse_other_version(migration: Migration, ledger: Ledger) -> None:
    if migration.key in ledger and is_changed(migration, ledger[migration.key]):
        raise MigrationError(f"{migration.label} was applied meanwhile by another version of its file")


async def _apply(db: DatabaseManager, loaded: LoadedMigration) -> dict[str, Any] | None:
    """Apply one migration; return None when another process has done it meanwhile."""
    migration = loaded.migration
    async with turn(db, migration) as ledger:
        _refuse_other_version(migration, ledger)
        if migration.key in ledger:
            return None
        for table in loaded.needed_tables:
            if await db.fetchval("SELECT to_regclass($1)", table) is None:
                raise MigrationError(f"{migration.label} needs the table {table}, which is not there")
        if loaded.transaction:
            result = await _in_one_transaction(db, migration, loaded.up)
        else:
            async with stepping(db, migration, "up"):
                result = await loaded.up()
        await make_ledger(db)
        await record(db, migration, migration.content)
    logger.info("applied %s", migration.label)
    return result


async def _in_one_transaction(
    db: DatabaseManager, migration: Migration, do: Callable[[], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Do it, and refuse it where it ended the transaction by itself: what is done is not what the ledger would say."""
    transaction_id = await db.fetchval("SELECT pg_current_xact_id()::text")
    failure: Exception | None = None
    try:
        result = await do()
    except Exception as error:
        failure = error
    try:
        status = await db.fetchval("SELECT pg_xact_status($1::text::xid8)", transaction_id)
    except (asyncpg.PostgresError, asyncpg.InterfaceError):  # of a transaction that failed, as transactions do
        status = "in progress"
    if status != "in progress":
        by, left = ("COMMIT", "kept") if status == "committed" else ("ROLLBACK", "gone")
        because = f" before it failed ({told(failure)})" if failure else ""
        raise MigrationError(
            f"{migration.label} ended its own transaction{because}, by a {by} in it or in what it calls: what came "
            f"before that is {left}, what came after it stood outside of any transaction, and the ledger does not have "
            "it. Undo by hand what is left of it, take that statement out (for what wants no transaction there is "
            "-- no-transaction), and try again"
        ) from failure
    if failure is not None:
        raise failure
    return result


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
async def run_pending_migrations(db: DatabaseManager | None = None, *, to: str | None = None) -> list[str]:
    """Apply what is not applied, in order; return what was ("pgtick/001_…"). With ``to``, no further than that one.

    All files are loaded before the first is applied. The first failure (MigrationError) stops the rest; what
    was applied before it stays.
    """
    db = db or get_db_manager()
    migrations, ledger = await known(db)
    if to is not None:
        migrations = migrations[: migrations.index(_find(migrations, to)) + 1]
    pending = [loaded for loaded in migrations if loaded.migration.key not in ledger]
    if not pending:
        return []
    async with migrating(db) as own:
        return [loaded.migration.label for loaded in pending if await _apply(own, loaded) is not None]


@_opens_what_is_not_open
async def run_migration(migration_id: str) -> dict[str, Any]:
    """Apply one migration; return what its migrate_up returned, with ``migration``, ``success`` and ``applied``.

    ``applied`` is False when it was applied already. One that comes before it and is pending is an error.
    """
    db = get_db_manager()
    migrations, ledger = await known(db)
    wanted = _find(migrations, migration_id)
    label, key = wanted.migration.label, wanted.migration.key
    files = _files(migrations)
    for needed in needed_by(wanted, files):
        if needed not in ledger and key not in ledger:
            raise MigrationError(f"{label} comes after {find(files, '/'.join(needed)).label}, which is not applied")
    result = None
    if key not in ledger:
        async with migrating(db) as own:
            result = await _apply(own, wanted)
    return {**(result or {"migration": label, "success": True}), "applied": result is not None}


@_opens_what_is_not_open
async def rollback_migration(migration_id: str, *, destructive: bool = False) -> dict[str, Any]:
    """Take one migration back; return what its migrate_down returned, with ``migration`` and ``success``.

    Where rows would go with it, or it runs outside a transaction, it wants ``destructive=True``. The server refuses
    while others depend on it.
    """
    db = get_db_manager()
    migrations, _ = await known(db, going_up=False)
    loaded = _find(migrations, migration_id)
    migration = loaded.migration
    if loaded.migrate_down is not None and not loaded.transaction and not destructive:
        raise MigrationError(
            f"taking {migration.label} back is not one transaction, so what goes with it cannot be found out before: "
            "say destructive"
        )
    async with migrating(db) as own, turn(own, migration) as ledger:
        _refuse_other_version(migration, ledger)
        if migration.key not in ledger and migration.key not in unfinished(await read_steps(own), ledger):
            raise MigrationError(f"{migration.label} is not applied")
        if loaded.transaction:
            result = await _in_one_transaction(own, migration, functools.partial(_down, own, loaded, destructive))
        else:
            async with stepping(own, migration, "down"):
                result = await loaded.down()
        await own.execute("DELETE FROM pgtick_migrations WHERE namespace = $1 AND id = $2", *migration.key)
        await forget_steps(own, migration)
    logger.warning("took back %s", migration.label)
    return result


async def _down(db: DatabaseManager, loaded: LoadedMigration, destructive: bool) -> dict[str, Any]:
    if destructive:
        return await loaded.down()
    before = await read_tables_with_rows(db)
    result = await loaded.down()
    if lost := await what_is_lost(db, before):
        raise MigrationError(f"taking {loaded.migration.label} back loses {', '.join(lost)}: say destructive")
    return result


@_opens_what_is_not_open
async def get_available_migrations(db: DatabaseManager | None = None) -> list[dict[str, Any]]:
    """Return every migration in order: namespace, id, name, checksum, applied_at (None: pending) and state.

    ``state``: applied, pending, changed (since it was applied), unfinished (half applied or half taken back, outside
    a transaction), or no file (applied by another version, or from a folder that is not configured here); checksum is
    the file's, without a file the ledger's.
    """
    db = db or get_db_manager()
    files = {file.key: file for file in _files(await load_all(discover(db.config.migration_folders)))}
    ledger = await read_ledger(db)
    half = unfinished(await read_steps(db), ledger)
    rows = []
    for key in dict.fromkeys((*files, *ledger)):
        file = files.get(key)
        row: Any = ledger.get(key)
        rows.append(
            {
                "namespace": key[0],
                "id": key[1],
                "name": file.name if file else row["name"],
                "checksum": file.checksum if file else row["checksum"],
                "applied_at": row["applied_at"] if row else None,
                "state": "unfinished" if key in half else _state(file, row),
            }
        )
    return rows


def _state(file: Migration | None, row: Any) -> str:
    if file is None:
        return "no file"
    if row is None:
        return "pending"
    return "changed" if is_changed(file, row) else "applied"


async def _start(db: DatabaseManager) -> None:
    await run_pending_migrations(db)
    await (await get_engine(db)).make_ahead(db)


add_start_step(10, _start)
