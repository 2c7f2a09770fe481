"""Spool: batches on disk while the server is away. The form of its files is in ``segment``, its page docs/spool.md."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, get_args

from pgtick.errors import SpoolError, SpoolFullError
from pgtick.writer import segment as form
from pgtick.writer.lockdir import LockedFolder, make_private, numbered_folders, sync_folder
from pgtick.writer.segment import Entry, Record, Segment

__all__ = ["Fsync", "Record", "Spool", "WhenFull"]

logger = logging.getLogger(__name__)

WhenFull = Literal["wait", "raise", "drop_oldest"]
Fsync = Literal["batch", "interval", "never"]

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


class Spool:
    """Batches of one process in segment files, in order per table; those of dead processes are taken over.

    Thread-safe; every method may wait for the disk, but the counts are there at once. ``when_full`` says what becomes
    of a batch at ``max_bytes`` or on a full disk: ``wait`` and ``raise`` both refuse it with SpoolFullError (the
    writer waits, or lets ``add`` raise), ``drop_oldest`` deletes whole segments, the oldest first, until it fits.
    ``fsync``: after each batch, every ``fsync_interval_s``, or when the system sees fit. Nothing is made on disk
    before the first batch. A closed spool may be opened again.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        max_bytes: int = 1 << 30,
        when_full: WhenFull = "wait",
        fsync: Fsync = "batch",
        fsync_interval_s: float = 1.0,
        segment_bytes: int = 16 << 20,
    ) -> None:
        for name, value, known in (("when_full", when_full, WhenFull), ("fsync", fsync, Fsync)):
            if value not in get_args(known):
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(get_args(known))}")
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self.when_full = when_full
        self.fsync = fsync
        self.fsync_interval_s = fsync_interval_s
        self.segment_bytes = segment_bytes
        #: Rows that nobody gets any more, by table: dropped by ``drop_oldest``, or found unreadable.
        self.dropped: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._pid = 0
        self._clear()

    def _clear(self) -> None:
        self._folders: list[LockedFolder] = []  # the first is written to
        self._queues: dict[str, deque[Segment]] = {}
        self._writing: dict[str, Segment] = {}
        self._undeleted: list[Segment] = []
        self._n_rows: Counter[str] = Counter()
        self._n_records: Counter[str] = Counter()
        self._n_bytes = 0
        self._next_number = 1
        self._next_sync_s = 0.0
        self._peeked: dict[str, Entry] = {}
        self._dropped_late: dict[str, Entry] = {}

    # The counts are kept, not counted, so that an event loop may ask without waiting for the disk.

    @property
    def n_bytes(self) -> int:
        """All segment files of this process."""
        return self._n_bytes

    @property
    def is_empty(self) -> bool:
        """Whether no batch is pending."""
        return not any(self._n_records.values())

    def n_rows(self, table: str) -> int:
        """Return how many rows of the table are pending."""
        return self._n_rows[table]

    def n_records(self, table: str) -> int:
        """Return how many batches of the table are pending."""
        return self._n_records[table]

    def tables(self) -> list[str]:
        """Return the names of the tables of which batches are pending."""
        return sorted(name for name, count in self._n_records.items() if count)

    def take_dropped(self) -> Counter[str]:
        """Return ``dropped`` and begin it anew.

        A count may be negative: of a batch that was dropped while it was on its way, and has been stored after all.
        """
        with self._lock:
            dropped, self.dropped = self.dropped, Counter()
            return dropped

    def open(self) -> list[str]:
        """Take over what dead processes have left; return the tables of which batches are pending."""
        with self._lock:
            if self._pid == os.getpid():
                return self.tables()
            self._clear()
            try:
                import crc32c  # noqa: F401  at the end of an interpreter it would be too late

                self._adopt()
            except (OSError, ImportError) as error:
                for folder in self._folders:
                    folder.let_go()
                raise SpoolError(f"the spool {self.folder} cannot be opened: {error}") from error
            self._pid = os.getpid()
            return self.tables()

    def close(self) -> None:
        """Sync (unless ``fsync`` is never), close and unlock; what is pending stays for the next process.

        SpoolError when the sync fails; the spool is closed all the same.
        """
        with self._lock:
            if self._pid != os.getpid():  # a forked child has nothing of its own here
                return
            try:
                self.sync()
            finally:
                for segment in self._writing.values():
                    segment.close()
                self._delete()
                for folder in self._folders:
                    folder.let_go()
                self._pid = 0
                self._writing, self._folders = {}, []

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        with self._lock:
            if self._pid != os.getpid():
                raise SpoolError(f"the spool {self.folder} is not open in this process")
            try:
                yield
            except OSError as error:
                kind = SpoolFullError if error.errno in _DISK_IS_FULL else SpoolError
                raise kind(f"the spool {self.folder} cannot {what}: {error.strerror or error}") from error

    def peek(self, table: str) -> Record | None:
        """Return the oldest pending batch of the table, read from the disk and checked.

        One that is damaged is counted in ``dropped``, its file is kept aside, and the next is returned.
        """
        with self._guard(f"read {table}"):
            self._dropped_late.pop(table, None)
            queue = self._queues.get(table)
            while queue:
                entry = next(iter(queue[0].pending.values()))
                record = None
                with suppress(FileNotFoundError):
                    record = form.read(queue[0].path, entry)
                if record is not None:
                    self._peeked[table] = entry
                    return record
                logger.error("%s: %d rows cannot be read any more", queue[0].path, entry.n_rows)
                self.dropped[table] += entry.n_rows
                queue[0].is_damaged = True
                self._settle(queue[0], entry)
            return None

    def acknowledge(self, table: str, batch_id: uuid.UUID) -> None:
        """Let go of a batch that is settled; its file is deleted when no other in it is pending."""
        with self._guard(f"let go of {table}"):
            segment = self._segment_of(table, batch_id)
            if segment is not None:
                self._settle(segment, segment.pending[batch_id])
                return
            late = self._dropped_late.pop(table, None)
            if late is not None and late.batch_id == batch_id:
                self.dropped[table] -= late.n_rows

    def discard(self, table: str) -> int:
        """Delete everything that is pending of the table; return the rows. They are not counted in ``dropped``."""
        with self._guard(f"delete {table}"):
            n_rows = self._n_rows[table]
            for segment in list(self._queues.get(table, ())):
                self._retire(segment)
            return n_rows

    def _segment_of(self, table: str, batch_id: uuid.UUID) -> Segment | None:
        return next((segment for segment in self._queues.get(table, ()) if batch_id in segment.pending), None)

    def _settle(self, segment: Segment, entry: Entry) -> None:
        del segment.pending[entry.batch_id]
        self._n_rows[segment.table] -= entry.n_rows
        self._n_records[segment.table] -= 1
        if not segment.pending:
            self._retire(segment)

    def _retire(self, segment: Segment) -> None:
        """Delete the segment with whatever is pending in it."""
        for entry in list(segment.pending.values()):
            self._n_rows[segment.table] -= entry.n_rows
            self._n_records[segment.table] -= 1
        self._queues[segment.table].remove(segment)
        if self._writing.get(segment.table) is segment:
            del self._writing[segment.table]
        self._undeleted.append(segment)
        self._delete()

    def _delete(self) -> None:
        """Delete the files that are due; those that cannot be deleted stay due: sent twice they would be harmless."""
        for segment in tuple(self._undeleted):
            try:
                segment.retire()
                self._undeleted.remove(segment)
                self._n_bytes -= segment.n_bytes
                self._sync_names(segment.path.parent)
            except OSError as error:
                logger.warning("%s: its deletion fails: %s", segment.path, error)

    def append(self, record: Record) -> None:
        """Write the batch, synced as ``fsync`` says; one that is pending already is left as it is.

        SpoolFullError at the cap or on a full disk, SpoolError when the disk fails; then nothing of it is kept.
        """
        with self._guard(f"take a batch of {record.table}"):
            if self._segment_of(record.table, record.batch_id) is not None:
                return
            size = form.n_bytes_of(record) + len(form.MAGIC)
            if size > self.max_bytes:
                raise SpoolFullError(f"a batch of {size} bytes is larger than the spool may be, {self.max_bytes}")
            while True:
                while self._n_bytes + size > self.max_bytes:
                    if not self._drop_oldest():
                        raise SpoolFullError(f"the spool {self.folder} is full: {self.max_bytes} bytes")
                try:
                    self._write(record, size)
                    return
                except OSError as error:
                    if error.errno not in _DISK_IS_FULL or not self._drop_oldest():
                        raise

    def _write(self, record: Record, size: int) -> None:
        segment = self._segment_for(record.table, size)
        start = segment.n_bytes
        try:
            segment.write(form.encode(record, start))
            self._sync_as_set(segment)
        except BaseException:
            self._take_back(segment, start)
            raise
        self._n_bytes += segment.n_bytes - start
        place = (start, segment.n_bytes - start)
        self._add(segment, Entry(record.batch_id, record.table, record.created_us, record.n_rows, *place))

    def _add(self, segment: Segment, entry: Entry) -> None:
        segment.pending[entry.batch_id] = entry
        self._n_rows[segment.table] += entry.n_rows
        self._n_records[segment.table] += 1

    def _segment_for(self, table: str, size: int) -> Segment:
        """Return the segment to write to: the present one, or the next."""
        segment = self._writing.get(table)
        if segment is not None and segment.n_bytes + size <= self.segment_bytes:
            return segment
        folder = self._own_folder()
        number, self._next_number = self._next_number, self._next_number + 1
        made = Segment.create(folder.path, number, table)
        try:
            self._sync_names(folder.path)
        except OSError:
            made.retire()
            raise
        if segment is not None:
            self._finish(segment)
        self._writing[table] = made
        self._queues.setdefault(table, deque()).append(made)
        self._n_bytes += made.n_bytes
        return made

    def _own_folder(self) -> LockedFolder:
        gone = [folder for folder in self._folders if not folder.is_there()]
        for folder in gone:
            folder.let_go()
            self._folders.remove(folder)
        if not self._folders:
            make_private(self.folder)
            taken = (LockedFolder.take(self.folder / f"{number:03d}") for number in itertools.count())
            self._folders.append(next(folder for folder in taken if folder is not None))
            self._sync_names(self.folder)
        return self._folders[0]

    def _take_back(self, segment: Segment, start: int) -> None:
        """Take away what was written behind ``start``; after an error nothing more goes into the file."""
        segment.cut(start)
        self._n_bytes += segment.n_bytes - start
        if segment.pending:
            self._finish(segment)
        else:
            self._retire(segment)

    def _finish(self, segment: Segment) -> None:
        """End the writing to a segment that stays."""
        if self.fsync != "never":
            try:
                segment.sync()
            except OSError as error:
                logger.error("%s cannot be synced, a power cut may cost it: %s", segment.path, error)
        segment.close()
        if self._writing.get(segment.table) is segment:
            del self._writing[segment.table]

    def _drop_oldest(self) -> bool:
        """Delete the oldest segment of all tables, where that is the policy; say whether there was one."""
        heads = [queue[0] for queue in self._queues.values() if queue]
        if self.when_full != "drop_oldest" or not heads:
            return False
        oldest = min(heads, key=lambda segment: segment.number)
        n_rows = sum(entry.n_rows for entry in oldest.pending.values())
        self.dropped[oldest.table] += n_rows
        peeked = self._peeked.get(oldest.table)
        if peeked is not None and peeked.batch_id in oldest.pending:
            self._dropped_late[oldest.table] = peeked
        logger.warning("the spool is full: %d rows of %s dropped with %s", n_rows, oldest.table, oldest.path.name)
        self._retire(oldest)
        return True

    def sync(self) -> None:
        """Force to the disk what is not there yet, unless ``fsync`` is never; SpoolError when it may be lost."""
        if self.fsync == "never":
            return
        with self._guard("be synced"):
            self._next_sync_s = time.monotonic() + self.fsync_interval_s
            errors = []
            for segment in list(self._writing.values()):
                try:
                    segment.sync()
                except OSError as error:  # once reported, the kernel takes the lost pages for written
                    errors.append(error)
                    self._finish(segment)
            if errors:
                raise errors[0]

    def _sync_as_set(self, segment: Segment) -> None:
        if self.fsync == "batch":
            segment.sync()
        elif self.fsync == "interval" and time.monotonic() >= self._next_sync_s:
            segment.sync()
            try:
                self.sync()
            except SpoolError as error:
                logger.error("%s", error)

    def _sync_names(self, folder: Path) -> None:
        if self.fsync != "never":
            sync_folder(folder)

    def _adopt(self) -> None:
        found: list[Segment] = []
        for path in numbered_folders(self.folder):
            numbers = [int(file.name[:12]) for file in path.glob("[0-9]*-*") if file.name[:12].isdecimal()]
            self._next_number = max([self._next_number, *(number + 1 for number in numbers)])
            folder = LockedFolder.take(path)
            if folder is None:
                continue
            segments = [segment for file in sorted(path.glob("*" + form.SUFFIX)) if (segment := Segment.load(file))]
            found += segments
            if segments:
                self._folders.append(folder)
            else:
                folder.let_go()
        # Numbers go up over all folders: what is written from now on comes after all that is found.
        for segment in sorted(found, key=lambda segment: segment.number):
            self._take_over(segment)

    def _take_over(self, segment: Segment) -> None:
        entries, segment.pending = segment.pending, {}
        self._queues.setdefault(segment.table, deque()).append(segment)
        self._n_bytes += segment.n_bytes
        for entry in entries.values():
            if self._segment_of(segment.table, entry.batch_id) is None:  # else it is in two files after an I/O error
                self._add(segment, entry)
        if not segment.pending:
            self._retire(segment)
