"""All migrations, loaded, in the one order in which they are applied."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from pgtick.errors import MigrationError
from pgtick.migrator.files import BUILT_IN, LoadedMigration, Migration

__all__ = ["find", "load_all", "needed_by"]

Key = tuple[str, str]


def find(migrations: Iterable[Migration], migration_id: str) -> Migration:
    """Return the migration that is called so: "002", "mine/002" or "mine/002_name"."""
    wanted = migration_id if "/" in migration_id else f"{BUILT_IN}/{migration_id}"
    for migration in migrations:
        if wanted in ("/".join(migration.key), migration.label):
            return migration
    raise MigrationError(f"there is no migration {wanted}")


async def load_all(files: Sequence[Migration]) -> list[LoadedMigration]:
    """Load every file of discover(), then order them: in a folder by number, across folders by what they depend on.

    Where nothing else decides, pgtick's come first, then the folders as they are configured.
    """
    loaded = {file.key: await file.load() for file in files}
    places = {key: place for place, key in enumerate(loaded)}
    graph = {key: needed_by(migration, files) for key, migration in loaded.items()}
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = [loaded[key].migration.label for key in reversed(error.args[1])]
        raise MigrationError(f"migrations wait for each other: {' needs '.join(circle)}") from None
    return [loaded[key] for key in _in_order(sorter, places)]


def _in_order(sorter: TopologicalSorter[Key], places: Mapping[Key, int]) -> Iterable[Key]:
    ready: list[tuple[int, Key]] = []
    while sorter.is_active():
        for key in sorter.get_ready():
            heapq.heappush(ready, (places[key], key))
        _, first = heapq.heappop(ready)
        yield first
        sorter.done(first)


def needed_by(loaded: LoadedMigration, files: Sequence[Migration]) -> list[Key]:
    """Return the migrations that come before this one: that before it in its folder, and what it names."""
    migration = loaded.migration
    before = [file.key for file in files if file.namespace == migration.namespace and file.id < migration.id][-1:]
    for name in loaded.needed_migrations:
        try:
            before.append(find(files, name).key)
        except MigrationError as error:
            raise MigrationError(f"{migration.label} depends on {name}: {error}") from None
    return before
