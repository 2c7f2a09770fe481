"""Migrations: find, order, lock, check, apply, record.

A migration is a file ``NNN_name.py`` with coroutines ``migrate_up``, ``migrate_down`` and
``get_migration_info``. Each runs in one transaction with its row in the ledger, under a polled advisory lock of
that transaction (so it works behind a pooler). Inside, ``get_db_manager()`` is that transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import re
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from pgtick.connection import DatabaseManager, add_start_step, get_db_manager, use_manager
from pgtick.engines import get_engine
from pgtick.errors import MigrationError

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
_NAME = re.compile(r"(\d{3})_([a-z0-9_]+)\.py")
_BUILT_IN = "pgtick"


class _Migration(msgspec.Struct, frozen=True):
    namespace: str
    id: str
    name: str
    source: str
    where: str

    @property
    def checksum(self) -> str:
        text = "\n".join(line.rstrip() for line in self.source.splitlines()).rstrip()
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def label(self) -> str:
        return f"{self.namespace}/{self.id}_{self.name}"

    def load(self) -> ModuleType:
        spec = importlib.util.spec_from_loader(f"pgtick_migration_{self.namespace}_{self.id}", loader=None)
        assert spec is not None  # noqa: S101  no loader was asked to find it
        module = importlib.util.module_from_spec(spec)
        try:
            exec(compile(self.source, self.where, "exec"), module.__dict__)  # noqa: S102  the operator's file
        except Exception as error:
            raise MigrationError(f"{self.label} cannot be loaded: {error}") from error
        for needed in ("migrate_up", "migrate_down", "get_migration_info"):
            if not hasattr(module, needed):
                raise MigrationError(f"{self.label} has no {needed}()")
        return module


def _discover(folders: tuple[str, ...]) -> list[_Migration]:
    found: list[_Migration] = []
    for namespace, folder in [(_BUILT_IN, resources.files("pgtick.migrations"))] + [
        (Path(name).resolve().name, Path(name)) for name in folders
    ]:
        numbered: dict[str, _Migration] = {}
        if not folder.is_dir():
            raise MigrationError(f"the migration folder {folder} does not exist")
        for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
            match = _NAME.fullmatch(file.name)
            if not match:
                continue
            number, name = match.groups()
            if number in numbered:
                raise MigrationError(f"{namespace}/{number} exists twice: {numbered[number].name} and {name}")
            numbered[number] = _Migration(namespace, number, name, file.read_text("utf-8"), str(file))
        for place, number in enumerate(numbered, 1):
            if int(number) != place:
                raise MigrationError(f"{namespace}/{place:03d} is missing before {numbered[number].label}")
        found += numbered.values()
    return found


_LEDGER = """
CREATE TABLE IF NOT EXISTS pgtick_migrations (
    namespace text NOT NULL, id text NOT NULL, name text NOT NULL, checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (namespace, id)
)
"""


async def _applied(db: DatabaseManager) -> dict[tuple[str, str], Any]:
    if await db.fetchval("SELECT to_regclass('pgtick_migrations')") is None:
        return {}
    return {(r["namespace"], r["id"]): r for r in await db.fetch("SELECT * FROM pgtick_migrations")}


def _check_unchanged(migrations: list[_Migration], applied: dict[tuple[str, str], Any]) -> None:
    for migration in migrations:
        record = applied.get((migration.namespace, migration.id))
        if record is not None and record["checksum"] != migration.checksum:
            raise MigrationError(
                f"{migration.label} was changed after it was applied: restore it and put the change into a new file"
            )


async def _lock(db: DatabaseManager) -> None:
    deadline = asyncio.get_running_loop().time() + _LOCK_WAIT_S
    while not await db.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
        if asyncio.get_running_loop().time() > deadline:
            raise MigrationError(
                f"another process has been migrating for {_LOCK_WAIT_S:.0f} s; see pg_locks where locktype = 'advisory'"
            )
        await asyncio.sleep(_LOCK_POLL_S)


async def _apply(db: DatabaseManager, migration: _Migration) -> bool:
    """Apply one migration; return False when another process has done it meanwhile."""
    module = migration.load()
    with use_manager(db):
        async with db.transaction():
            await _lock(db)
            await db.execute(_LEDGER)
            if (migration.namespace, migration.id) in await _applied(db):
                return False
            info = await module.get_migration_info()
            for table in info.get("dependencies", ()):
                if await db.fetchval("SELECT to_regclass($1)", table) is None:
                    raise MigrationError(f"{migration.label} needs the table {table}, which is not there")
            await module.migrate_up()
            await db.execute(
                "INSERT INTO pgtick_migrations (namespace, id, name, checksum) VALUES ($1, $2, $3, $4)",
                migration.namespace,
                migration.id,
                migration.name,
                migration.checksum,
            )
    logger.info("applied %s", migration.label)
    return True


async def run_pending_migrations(db: DatabaseManager | None = None) -> list[str]:
    """Apply what is not applied, in order; return what was. The first failure stops the rest."""
    db = db or get_db_manager()
    migrations = _discover(db.config.migration_folders)
    applied = await _applied(db)
    _check_unchanged(migrations, applied)
    done = []
    for migration in migrations:
        if (migration.namespace, migration.id) not in applied and await _apply(db, migration):
            done.append(migration.label)
    return done


def _find(db: DatabaseManager, migration_id: str) -> _Migration:
    namespace, _, number = migration_id.rpartition("/")
    for migration in _discover(db.config.migration_folders):
        if (migration.namespace, migration.id) == (namespace or _BUILT_IN, number):
            return migration
    raise MigrationError(f"there is no migration {migration_id}")


async def run_migration(migration_id: str) -> bool:
    """Apply one migration ("002", or "folder/002" for a user's); return False when it is applied already."""
    db = get_db_manager()
    return await _apply(db, _find(db, migration_id))


async def rollback_migration(migration_id: str, *, destructive: bool = False) -> None:
    """Take one migration back. It drops tables with their rows, so it wants ``destructive=True``."""
    db = get_db_manager()
    migration = _find(db, migration_id)
    if not destructive:
        raise MigrationError(f"taking {migration.label} back drops its tables with all rows: say destructive")
    module = migration.load()
    with use_manager(db):
        async with db.transaction():
            await _lock(db)
            key = (migration.namespace, migration.id)
            if key not in await _applied(db):
                raise MigrationError(f"{migration.label} is not applied")
            await module.migrate_down()
            await db.execute("DELETE FROM pgtick_migrations WHERE namespace = $1 AND id = $2", *key)
    logger.warning("took back %s", migration.label)


async def get_available_migrations(db: DatabaseManager | None = None) -> list[dict[str, Any]]:
    """Return every migration in order: namespace, id, name, checksum, applied_at (None: pending)."""
    db = db or get_db_manager()
    applied = await _applied(db)
    return [
        {
            "namespace": migration.namespace,
            "id": migration.id,
            "name": migration.name,
            "checksum": migration.checksum,
            "applied_at": record["applied_at"] if record is not None else None,
        }
        for migration in _discover(db.config.migration_folders)
        for record in [applied.get((migration.namespace, migration.id))]
    ]


async def _start(db: DatabaseManager) -> None:
    await run_pending_migrations(db)
    await (await get_engine(db)).make_ahead(db)


add_start_step(10, _start)
