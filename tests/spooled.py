"""What tests of the spool share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgtick.writer import buffer
from pgtick.writer.buffer import Writer
from pgtick.writer.spool import Record, Spool

__all__ = ["abandon", "drain", "files", "make_record", "opened"]


def abandon(writer: Writer) -> None:
    """Leave a writer as a killed process does: what it has in memory is nobody's."""
    writer._is_closed = True
    writer._sender.stop()
    buffer._open_writers.discard(writer)


def make_record(table: str = "trades", *, size: int = 100, n_rows: int = 5) -> Record:
    """Return a batch of random bytes."""
    return Record(uuid.uuid4(), table, 1_700_000_000_000_000, n_rows, os.urandom(size), b"f" * 16)


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[Spool]:
    """Yield a spool that is open."""
    spool = Spool(folder, **settings)
    spool.open()
    try:
        yield spool
    finally:
        spool.close()


def drain(spool: Spool) -> dict[str, list[Record]]:
    """Take everything out, by table, in order."""
    drained: dict[str, list[Record]] = {}
    for table in spool.tables():
        while (record := spool.peek(table)) is not None:
            drained.setdefault(table, []).append(record)
            spool.acknowledge(table, record.batch_id)
    return drained


def files(folder: Path) -> list[Path]:
    """Return the segment files of all processes."""
    return sorted(folder.rglob("*.pgtick"))
