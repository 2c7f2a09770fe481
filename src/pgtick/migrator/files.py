"""The files of migrations: find them, in order, and load them; nothing here touches the database by itself."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from pgtick.connection import DatabaseManager
from pgtick.errors import MigrationError

__all__ = ["BUILT_IN", "LoadedMigration", "Migration", "discover", "migrate_result", "places_of"]

_NAME = r"(\d{3})_([a-z0-9_]+)\.py"
_ALMOST = r"\d.*\.(py|sql)"
BUILT_IN = "pgtick"


class Migration(msgspec.Struct, frozen=True):
    """A migration's file, as it was found."""

    namespace: str
    id: str
    name: str
    source: str
    where: str

    @property
    def key(self) -> tuple[str, str]:
        """What the ledger knows it by."""
        return self.namespace, self.id

    @property
    def checksum(self) -> str:
        """SHA-256 of the content; white space at the ends of lines does not count."""
        text = "\n".join(line.rstrip() for line in self.source.splitlines()).rstrip()
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.namespace}/{self.id}_{self.name}"

    async def load(self) -> LoadedMigration:
        """Run the file and check what it says of itself; nothing touches the database."""
        module = ModuleType(f"pgtick_migrations.{self.namespace}.{self.id}_{self.name}")
        module.__file__ = self.where
        sys.modules[module.__name__] = module  # dataclasses look there for their own module
        try:
            exec(compile(self.source, self.where, "exec"), module.__dict__)  # noqa: S102  the operator's file
            for needed in ("migrate_up", "migrate_down", "get_migration_info"):
                if not inspect.iscoroutinefunction(getattr(module, needed, None)):
                    raise MigrationError(f"{self.label} has no async def {needed}()")
            info = await module.get_migration_info()
            said, dependencies = (info["id"], info["name"]), info.get("dependencies", ())
        except MigrationError:
            raise
        except Exception as error:
            raise MigrationError(f"{self.label} cannot be loaded: {type(error).__name__}: {error}") from error
        if said != (self.id, self.name):
            raise MigrationError(f"{self.label}: get_migration_info() says {said[0]}_{said[1]}, unlike its file's name")
        if isinstance(dependencies, str):
            raise MigrationError(f"{self.label}: dependencies must be a list of tables, not the text {dependencies!r}")
        return LoadedMigration(self, module, tuple(dependencies))


class LoadedMigration(msgspec.Struct, frozen=True):
    """A migration whose file was run."""

    migration: Migration
    module: ModuleType
    dependencies: tuple[str, ...]

    async def up(self, db: DatabaseManager) -> dict[str, Any]:
        """Apply and record it, in the caller's transaction and with ``db`` in use."""
        result = migrate_result(self.migration, await self.module.migrate_up())
        await db.execute(
            "INSERT INTO pgtick_migrations (namespace, id, name, checksum) VALUES ($1, $2, $3, $4)",
            *self.migration.key,
            self.migration.name,
            self.migration.checksum,
        )
        return result


def migrate_result(migration: Migration, returned: object) -> dict[str, Any]:
    """Return what migrate_up or migrate_down returned, completed; raise where it says that it failed."""
    result = returned if isinstance(returned, dict) else {}
    if result.get("success") is False:
        raise MigrationError(f"{migration.label} says that it failed: {result.get('errors')}")
    return {**result, "migration": migration.label, "success": True}


def places_of(folders: Iterable[str]) -> dict[str, Any]:
    """Return {namespace: folder}, pgtick's own first."""
    from importlib import resources  # here: it is a quarter of what importing pgtick costs beside asyncpg

    places: dict[str, Any] = {BUILT_IN: resources.files("pgtick.migrations")}
    for name in folders:
        folder = Path(name).resolve()
        if folder.name in places:
            raise MigrationError(
                f"migration folder {folder}: the ledger tells folders apart by their names, "
                f"and {folder.name!r} is {places[folder.name]} already: rename it"
            )
        if not folder.is_dir():
            raise MigrationError(f"the migration folder {folder} does not exist")
        places[folder.name] = folder
    return places


def discover(folders: Sequence[str] = ()) -> list[Migration]:
    """Return pgtick's migrations and those of the user's folders, in the order in which they are applied."""
    return [migration for place in places_of(folders).items() for migration in _read_folder(*place)]


def _read_folder(namespace: str, folder: Any) -> Iterable[Migration]:
    numbered: dict[str, Migration] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        match = re.fullmatch(_NAME, file.name)
        if match is None:
            if re.fullmatch(_ALMOST, file.name, re.IGNORECASE):
                raise MigrationError(
                    f"{namespace}/{file.name}: a migration is named NNN_name.py, three digits and a_z0_9"
                )
            continue
        number, name = match.groups()
        if number in numbered:
            raise MigrationError(f"{namespace}/{number} exists twice: {numbered[number].name} and {name}")
        if int(number) != len(numbered) + 1:
            raise MigrationError(f"{namespace}/{len(numbered) + 1:03d} is missing before {namespace}/{number}_{name}")
        try:
            source = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MigrationError(f"{namespace}/{file.name} cannot be read: {error}") from error
        numbered[number] = Migration(namespace, number, name, source, str(file))
    return numbered.values()
