"""Segment files of the spool: the form of a record, and the reading of a file that a crash or the disk has harmed.

A file is ``MAGIC`` and records. A record is a head (mark, length and CRC-32C of the payload, CRC-32C of the head and
its place in the file) and a payload that is complete in itself: batch id, table, fingerprint of its columns, rows,
body.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import uuid
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import msgspec

from pgtick.errors import SpoolError

__all__ = ["DAMAGED", "MAGIC", "SUFFIX", "Entry", "Record", "Scan", "Segment", "encode", "n_bytes_of", "read", "scan"]

logger = logging.getLogger(__name__)

MAGIC = b"PGTICK\x01\n"  # the 7th byte is the version of the form
SUFFIX = ".pgtick"
DAMAGED = ".damaged"

_MARK = b"\xd7rec"
_VOID = b"\xd7voi"  # over the mark of what could not be taken away
# The place is part of the head's checksum: a record that lies inside another one's body is never taken for one.
_HEAD = struct.Struct(">4sIII")
_PAYLOAD = struct.Struct(">16sqIHB")
_MAX_NAME = 80


class Record(msgspec.Struct):
    """A batch as the spool keeps it; ``created_us`` counts from 1970 in UTC, ``n_rows`` has the refused rows too."""

    batch_id: uuid.UUID
    table: str
    created_us: int
    n_rows: int
    body: bytes
    fingerprint: bytes


class Entry(msgspec.Struct, frozen=True):
    """Where a record lies in its file, and what counts of it."""

    batch_id: uuid.UUID
    table: str
    created_us: int
    n_rows: int
    offset: int
    n_bytes: int


class Scan(msgspec.Struct):
    """What a file holds: whole records, damaged stretches (start, end), and where an unfinished record begins."""

    entries: list[Entry]
    damages: list[tuple[int, int]]
    torn_at: int | None


def _crc32c(data: bytes | memoryview, start: int = 0) -> int:
    from crc32c import crc32c  # `import pgtick` stays light

    return crc32c(data, start)


def _head_sum(head: bytes, offset: int) -> int:
    return _crc32c(head, _crc32c(offset.to_bytes(8, "big")))


def encode(record: Record, offset: int) -> bytes:
    """Return the record's bytes for that place in a file."""
    table = record.table.encode()
    try:
        fixed = _PAYLOAD.pack(
            record.batch_id.bytes, record.created_us, record.n_rows, len(table), len(record.fingerprint)
        )
        fixed += table + record.fingerprint
        payload_sum = _crc32c(record.body, _crc32c(fixed))
        head = _HEAD.pack(_MARK, len(fixed) + len(record.body), payload_sum, 0)[:-4]
    except struct.error as error:
        raise SpoolError(f"{record.table}: batch {record.batch_id} does not fit the spool's form: {error}") from error
    return b"".join((head, _head_sum(head, offset).to_bytes(4, "big"), fixed, record.body))


def n_bytes_of(record: Record) -> int:
    """Return the length that ``encode`` gives it."""
    return _HEAD.size + _PAYLOAD.size + len(record.table.encode()) + len(record.fingerprint) + len(record.body)


def _payload_at(data: memoryview, start: int, offset: int) -> tuple[int, memoryview | None] | None:
    """Return where the record at ``start`` ends and its payload (None: damaged); None where no head is."""
    head = data[start : start + _HEAD.size]
    if len(head) < _HEAD.size:
        return None
    mark, length, payload_sum, head_sum = _HEAD.unpack(head)
    if mark != _MARK or head_sum != _head_sum(bytes(head[:-4]), offset):
        return None
    end = start + _HEAD.size + length
    payload = data[start + _HEAD.size : end]
    is_whole = len(payload) == length >= _PAYLOAD.size and _crc32c(payload) == payload_sum
    return end, payload if is_whole else None


def _parse(payload: memoryview) -> Record:
    batch_id, created_us, n_rows, n_table, n_fingerprint = _PAYLOAD.unpack_from(payload)
    table_end = _PAYLOAD.size + n_table
    body_at = table_end + n_fingerprint
    return Record(
        batch_id=uuid.UUID(bytes=batch_id),
        table=str(payload[_PAYLOAD.size : table_end], "utf-8"),
        created_us=created_us,
        n_rows=n_rows,
        body=bytes(payload[body_at:]),
        fingerprint=bytes(payload[table_end:body_at]),
    )


def read(path: Path, entry: Entry) -> Record | None:
    """Return the record that lies there, checked again; None when it is damaged."""
    with path.open("rb") as file:
        file.seek(entry.offset)
        data = memoryview(file.read(entry.n_bytes))
    found = _payload_at(data, 0, entry.offset)
    return None if found is None or found[1] is None else _parse(found[1])


def scan(content: bytes) -> Scan:
    """Find every whole record, over damaged stretches too: by the length where the head is whole, or by the next head.

    SpoolError when the file is of another version of the form.
    """
    result = Scan([], [], None)
    data, at, size = memoryview(content), min(len(MAGIC), len(content)), len(content)
    if content[:at] != MAGIC[:at]:  # rot: the records tell all that is needed
        result.damages.append((0, at))
    elif at < len(MAGIC):
        result.torn_at = 0
        return result
    while at < size:
        found = _payload_at(data, at, at)
        if found is not None and found[1] is not None:
            end, record = found[0], _parse(found[1])
            place = (at, end - at)
            result.entries.append(Entry(record.batch_id, record.table, record.created_us, record.n_rows, *place))
        elif found is not None and found[0] <= size:
            end = found[0]
            result.damages.append((at, end))
        else:
            end = _next_head(content, at + 1)
            if end == size and (found is not None or _is_unfinished(content[at:])):
                result.torn_at = at  # cut short by a kill, or never filled by a disk that lost its power
                break
            result.damages.append((at, end))
        at = end
    if not result.entries and result.damages and content[:6] == MAGIC[:6] and content[6] != MAGIC[6]:
        raise SpoolError(f"version {content[6]} of the spool's files is not known here")
    return result


def _is_unfinished(tail: bytes) -> bool:
    return len(tail) < _HEAD.size or tail.startswith(_VOID) or not tail.strip(b"\0")


def _next_head(content: bytes, at: int) -> int:
    """Return where the next whole head is, or the file's end."""
    data = memoryview(content)
    while (at := content.find(_MARK, at)) >= 0:
        if _payload_at(data, at, at) is not None:
            return at
        at += 1
    return len(content)


def _file_name(number: int, table: str) -> str:
    """Return the name of a table's segment; a long name is cut, with a hash of the whole."""
    quoted = quote(table, safe="").replace(".", "%2E")
    if len(quoted) > _MAX_NAME:
        quoted = f"{quoted[:_MAX_NAME]}-{hashlib.sha256(table.encode()).hexdigest()[:16]}"
    return f"{number:012d}-{quoted}{SUFFIX}"


class Segment:
    """A file of records of one table: written at its end until it is closed, deleted when nothing in it is pending."""

    __slots__ = ("descriptor", "is_damaged", "is_dirty", "n_bytes", "number", "path", "pending", "table")

    def __init__(self, path: Path, number: int, table: str, n_bytes: int) -> None:
        self.path = path
        self.number = number
        self.table = table
        self.n_bytes = n_bytes
        self.pending: dict[uuid.UUID, Entry] = {}
        self.descriptor = -1  # not being written to
        self.is_dirty = False
        self.is_damaged = False

    @classmethod
    def create(cls, folder: Path, number: int, table: str) -> Segment:
        """Make the file, for this user only; OSError leaves none."""
        path = folder / _file_name(number, table)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        segment = cls(path, number, table, 0)
        segment.descriptor = os.open(path, flags, 0o600)
        try:
            segment.write(MAGIC)
        except OSError:
            segment.retire()
            raise
        return segment

    @classmethod
    def load(cls, path: Path) -> Segment | None:
        """Read what a dead process has left; what it had not finished is cut. None: unreadable, left as it is."""
        try:
            content, number = path.read_bytes(), int(path.name[:12])
            result = scan(content)
        except (OSError, SpoolError, ValueError) as error:
            logger.error("%s stays as it is: %s", path, error)
            return None
        n_bytes = len(content)
        if result.torn_at is not None:
            logger.warning("%s: the last %d bytes, not finished, are cut", path, n_bytes - result.torn_at)
            n_bytes = result.torn_at
            with suppress(OSError):
                os.truncate(path, n_bytes)
        for start, end in result.damages:
            logger.error("%s: bytes %d to %d are damaged; the file is kept aside when it is done", path, start, end)
        segment = cls(path, number, result.entries[0].table if result.entries else "", n_bytes)
        segment.is_damaged = bool(result.damages)
        segment.pending = {entry.batch_id: entry for entry in result.entries}
        return segment

    def write(self, data: bytes) -> None:
        """Write at the end; an OSError may leave a part, which ``cut`` takes away."""
        rest = memoryview(data)
        self.is_dirty = True
        while rest:
            n_written = os.pwrite(self.descriptor, rest, self.n_bytes)
            self.n_bytes += n_written
            rest = rest[n_written:]

    def cut(self, n_bytes: int) -> None:
        """Take away what is behind that place; where that fails too, spoil its head, and close for good."""
        with suppress(OSError):
            os.ftruncate(self.descriptor, n_bytes)
            self.n_bytes = n_bytes
            return
        # Where this fails too, what is whole there is sent once more after a restart: harmless by the ledger.
        with suppress(OSError):
            os.pwrite(self.descriptor, _VOID.ljust(_HEAD.size, b"\0"), n_bytes)
        self.close()

    def sync(self) -> None:
        """Force what was written to the disk."""
        if self.descriptor >= 0 and self.is_dirty:
            os.fsync(self.descriptor)
            self.is_dirty = False

    def close(self) -> None:
        """Close for writing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):  # the descriptor is gone in any case
                os.close(descriptor)

    def retire(self) -> None:
        """Delete the file, or keep it aside as ``….damaged`` when a part of it could not be read."""
        self.close()
        with suppress(FileNotFoundError):
            if self.is_damaged:
                os.replace(self.path, self.path.with_name(self.path.name + DAMAGED))
            else:
                self.path.unlink()
