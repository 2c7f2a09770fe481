"""A process's own folder in the spool: made for this user only, locked as long as the process lives."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["LockedFolder", "is_locked", "make_private", "numbered_folders", "sync_folder"]

_LOCK = "lock"
_LOOK_S = 0.02
_NUMBERED = re.compile(r"\d{3,}")


def make_private(folder: Path) -> None:
    """Make the folder and those above it that are missing, for this user only."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(PermissionError):  # one may write to a folder that one may not read
            sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Force the folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numbered_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of processes, living and dead, by number."""
    if root.is_dir():
        names = (path for path in root.iterdir() if _NUMBERED.fullmatch(path.name))
        yield from sorted(names, key=lambda path: int(path.name))


def is_locked(folder: Path) -> bool:
    """Say whether a living process holds the folder."""
    import fcntl  # not on Windows, where `import pgtick` is to work all the same

    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class LockedFolder:
    """A folder that this process alone writes to; the lock goes with the process, however it ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> LockedFolder | None:
        """Lock the folder, made where it is missing; None when another one has it."""
        import fcntl

        try:
            path.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # its holder has just removed it
            return None
        folder = cls(path, descriptor)
        for pause_s in (_LOOK_S, 0):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(pause_s)  # `is_locked` has it for a moment
            except OSError:
                os.close(descriptor)
                raise
        else:
            os.close(descriptor)
            return None
        if folder.is_there():
            return folder
        os.close(descriptor)
        return None

    def is_there(self) -> bool:
        """Say whether the locked file is still the folder's: it may have been removed and made anew."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path / _LOCK))
        except FileNotFoundError:
            return False

    def let_go(self) -> None:
        """Unlock the folder, and remove it when nothing is in it."""
        try:
            if self.is_there() and [path.name for path in self.path.iterdir()] == [_LOCK]:
                (self.path / _LOCK).unlink()
                self.path.rmdir()
        except OSError:
            pass  # another process has just taken it, or the disk is read-only: it lies empty until the next start
        finally:
            os.close(self._descriptor)
