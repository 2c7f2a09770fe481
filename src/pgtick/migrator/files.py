"""The files of migrations, Python or SQL: find them, and load them; nothing here touches the database by itself."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from pgtick.connection import get_db_manager
from pgtick.errors import MigrationError
from pgtick.migrator.sqlfile import parse_sql, split_statements

__all__ = ["BUILT_IN", "LoadedMigration", "Migration", "discover", "places_of"]

_NAME = r"(\d{3})_([a-z0-9_]+)\.(?:py|sql)"
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
    def content(self) -> str:
        """The text without what does not count: white space at the ends of lines, empty lines at the end."""
        return "\n".join(line.rstrip() for line in self.source.splitlines()).rstrip()

    @property
    def checksum(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.namespace}/{self.id}_{self.name}"

    async def load(self) -> LoadedMigration:
        """Run or read the file and check what it says of itself; nothing touches the database."""
        return self._load_sql() if self.where.endswith(".sql") else await self._load_python()

    def _load_sql(self) -> LoadedMigration:
        file = parse_sql(self.label, self.source)

        def runner(text: str | None) -> Callable[[], Awaitable[object]] | None:
            if text is None:
                return None
            # In a transaction the server itself splits the text; outside of one each statement is a step.
            statements = [text] if file.transaction else split_statements(self.label, text)

            async def run() -> None:
                for statement in statements:
                    await get_db_manager().execute(statement)

            return run

        up = runner(file.up)
        assert up is not None  # noqa: S101  parse_sql wants that part
        return LoadedMigration(self, up, runner(file.down), file.dependencies, file.transaction)

    async def _load_python(self) -> LoadedMigration:
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
            transaction = info.get("transaction", True)
        except MigrationError:
            raise
        except Exception as error:
            raise MigrationError(f"{self.label} cannot be loaded: {type(error).__name__}: {error}") from error
        if said != (self.id, self.name):
            raise MigrationError(f"{self.label}: get_migration_info() says {said[0]}_{said[1]}, unlike its file's name")
        if isinstance(dependencies, str) or not all(isinstance(name, str) for name in dependencies):
            rule = "dependencies must be a list of tables and migrations, not"
            raise MigrationError(f"{self.label}: {rule} {dependencies!r}")
        if not isinstance(transaction, bool):
            raise MigrationError(f"{self.label}: transaction must be True or False, not {transaction!r}")
        return LoadedMigration(self, module.migrate_up, module.migrate_down, tuple(dependencies), transaction)


class LoadedMigration(msgspec.Struct, frozen=True):
    """A migration whose file was read; what it does, it does with the manager in use."""

    migration: Migration
    migrate_up: Callable[[], Awaitable[object]]
    migrate_down: Callable[[], Awaitable[object]] | None
    dependencies: tuple[str, ...]
    transaction: bool

    @property
    def needed_tables(self) -> list[str]:
        """The tables that must be there before it is applied."""
        return [name for name in self.dependencies if "/" not in name]

    @property
    def needed_migrations(self) -> list[str]:
        """The migrations that must be applied before it is."""
        return [name for name in self.dependencies if "/" in name]

    async def up(self) -> dict[str, Any]:
        """Do it; return what migrate_up returned, completed."""
        return self._checked(await self.migrate_up())

    async def down(self) -> dict[str, Any]:
        """Take it back; return what migrate_down returned, completed."""
        if self.migrate_down is None:
            raise MigrationError(f"{self.migration.label} has no part -- down: it cannot be taken back")
        return self._checked(await self.migrate_down())

    def _checked(self, returned: object) -> dict[str, Any]:
        result = returned if isinstance(returned, dict) else {}
        if result.get("success") is False:
            raise MigrationError(f"{self.migration.label} says that it failed: {result.get('errors')}")
        return {**result, "migration": self.migration.label, "success": True}


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
    """Return pgtick's migrations and those of the user's folders, folder by folder; nothing is run."""
    return [migration for place in places_of(folders).items() for migration in _read_folder(*place)]


def _read_folder(namespace: str, folder: Any) -> Iterable[Migration]:
    numbered: dict[str, Migration] = {}
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        match = re.fullmatch(_NAME, file.name)
        if match is None:
            if re.fullmatch(_ALMOST, file.name, re.IGNORECASE):
                raise MigrationError(
                    f"{namespace}/{file.name}: a migration is named NNN_name.py or NNN_name.sql, "
                    "three digits and a_z0_9"
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
