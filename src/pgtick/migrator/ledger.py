"""What is applied: the ledger, the steps of migrations outside a transaction, and files that changed since."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pgtick.connection import DatabaseManager
from pgtick.errors import MigrationError
from pgtick.migrator.files import Migration

__all__ = [
    "LEDGER",
    "Ledger",
    "check_ledger",
    "difference",
    "is_changed",
    "make_ledger",
    "read_ledger",
    "read_steps",
    "record",
    "unfinished",
]

LEDGER = """
CREATE TABLE IF NOT EXISTS pgtick_migrations (
    namespace text NOT NULL, id text NOT NULL, name text NOT NULL, checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(), content text, PRIMARY KEY (namespace, id)
)
"""
_DIFFERENCE_LINES = 30

#: {(namespace, id): row}
Ledger = dict[tuple[str, str], Any]


async def read_ledger(db: DatabaseManager) -> Ledger:
    """Return what is applied."""
    if await db.fetchval("SELECT to_regclass('pgtick_migrations')") is None:
        return {}
    records = await db.fetch("SELECT * FROM pgtick_migrations ORDER BY namespace, id")
    return {(record["namespace"], record["id"]): record for record in records}


async def make_ledger(db: DatabaseManager) -> None:
    """Make the ledger, or bring one of an older version up to date; with the lock held."""
    if await db.fetchval("SELECT to_regclass('pgtick_migrations')") is None:
        await db.execute(LEDGER)
        return
    has_content = (
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'pgtick_migrations'::regclass "
        "AND attname = 'content' AND NOT attisdropped)"
    )
    if not await db.fetchval(has_content):  # asked first: ALTER TABLE locks readers out, even where it does nothing
        await db.execute("ALTER TABLE pgtick_migrations ADD COLUMN IF NOT EXISTS content text")


async def record(db: DatabaseManager, migration: Migration, content: str | None) -> None:
    """Write that the migration is applied."""
    await db.execute(
        "INSERT INTO pgtick_migrations (namespace, id, name, checksum, content) VALUES ($1, $2, $3, $4, $5)",
        *migration.key,
        migration.name,
        migration.checksum,
        content,
    )


async def read_steps(db: DatabaseManager) -> list[Any]:
    """Return the recorded steps of migrations outside a transaction, in their order."""
    if await db.fetchval("SELECT to_regclass('pgtick_migration_steps')") is None:
        return []
    return await db.fetch("SELECT * FROM pgtick_migration_steps ORDER BY namespace, id, direction DESC, step")


def unfinished(steps: Iterable[Any], applied: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return {key: "up" or "down"} of the migrations that are half applied or half taken back."""
    known = set(applied)
    found: dict[tuple[str, str], str] = {}
    for step in steps:
        key = (step["namespace"], step["id"])
        if step["direction"] == "down" or key not in known:
            found[key] = step["direction"]
    return found


def is_changed(migration: Migration, row: Any) -> bool:
    """Whether the file is not the one that was applied."""
    return (migration.name, migration.checksum) != (row["name"], row["checksum"])


def difference(migration: Migration, row: Any) -> str:
    """Return how the file differs from what was applied, as a short unified diff."""
    if migration.name != row["name"]:
        return f"its name was {row['name']}"
    if row.get("content") is None:
        return "how is not known: no content is on record (it came from a script or an older version)"
    old, new = row["content"].splitlines(), migration.content.splitlines()
    lines = list(difflib.unified_diff(old, new, "applied", "file", lineterm="", n=1))
    more = [f"… and {len(lines) - _DIFFERENCE_LINES} lines more"] if len(lines) > _DIFFERENCE_LINES else []
    return "\n".join([*lines[:_DIFFERENCE_LINES], *more])


def check_ledger(files: Mapping[tuple[str, str], Migration], namespaces: Iterable[str], ledger: Ledger) -> None:
    """Refuse a database that other files than these have made; folders that are not configured do not count."""
    for key, row in ledger.items():
        applied = f"{row['namespace']}/{row['id']}_{row['name']}"
        if key not in files and row["namespace"] in namespaces:
            raise MigrationError(
                f"{applied} is applied and its file is not here: a newer version made this database, "
                "and an older one must not write to it; upgrade, or take it back with that version"
            )
        if key in files and is_changed(files[key], row):
            raise MigrationError(
                f"{applied} was changed after it was applied: restore the file and put the change into a new one, or, "
                f"where the database is as the file is now, accept {'/'.join(key)}\n{difference(files[key], row)}"
            )
