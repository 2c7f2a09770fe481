"""What lies in a spool, looked at without touching it: for ``pgtick spool status`` and ``verify``."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pgtick.errors import SpoolError
from pgtick.writer.lockdir import is_locked, numbered_folders
from pgtick.writer.segment import DAMAGED, SUFFIX, scan

__all__ = ["SpoolFile", "look_into"]


class SpoolFile(msgspec.Struct):
    """A file of a spool. ``is_live``: its process runs; then the end may be unfinished, and settled rows be in it."""

    path: Path
    is_live: bool
    is_kept_aside: bool
    n_bytes: int
    tables: list[str] = []
    n_batches: int = 0
    n_rows: int = 0
    oldest_us: int | None = None
    newest_us: int | None = None
    damages: list[tuple[int, int]] = []
    n_unfinished_bytes: int = 0
    problem: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every byte that was finished can be read."""
        return not (self.is_kept_aside or self.damages or self.problem)


def look_into(folder: Path) -> list[SpoolFile]:
    """Read every file of the spool, in the order of replay, those kept aside too."""
    found = []
    for process in numbered_folders(folder):
        is_live = is_locked(process)
        for path in process.iterdir():
            if path.name.endswith((SUFFIX, SUFFIX + DAMAGED)):
                file = _look_at(path, is_live)
                if file is not None:
                    found.append(file)
    return sorted(found, key=lambda file: (file.path.name, file.path.parent.name))


def _look_at(path: Path, is_live: bool) -> SpoolFile | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # settled meanwhile
        return None
    except OSError as error:
        return SpoolFile(path, is_live, path.name.endswith(DAMAGED), 0, problem=error.strerror)
    file = SpoolFile(path, is_live, path.name.endswith(DAMAGED), len(content))
    try:
        result = scan(content)
    except SpoolError as error:
        file.problem = str(error)
        return file
    file.tables = sorted({entry.table for entry in result.entries})
    file.n_batches = len(result.entries)
    file.n_rows = sum(entry.n_rows for entry in result.entries)
    created = [entry.created_us for entry in result.entries]
    file.oldest_us, file.newest_us = min(created, default=None), max(created, default=None)
    file.damages = result.damages
    file.n_unfinished_bytes = 0 if result.torn_at is None else len(content) - result.torn_at
    return file
