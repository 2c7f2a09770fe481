"""Batch: what is delivered as one, under one id: encoded rows, and those that were refused of them."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec

from pgtick._fast.batch import EncodedBatch
from pgtick.errors import RowError, SpoolError
from pgtick.tables import Table
from pgtick.writer.row_json import to_json, types_of
from pgtick.writer.spool import Record

__all__ = ["Batch", "Refused", "fingerprint_of", "in_turns"]

Item = TypeVar("Item")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Refused(msgspec.Struct, array_like=True):
    """A row on its way to quarantine; ``row`` is JSON."""

    index: int
    column: str
    reason: str
    row: str

    @classmethod
    def of(cls, table: Table, error: RowError, row: Mapping[str, object]) -> Refused:
        """Make one of the refusal and the row's values."""
        return cls(error.index, error.column, error.rule, to_json(types_of(table), row))


async def in_turns(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield the items, and let the event loop have its turn after each 32, refused rows: about half a millisecond."""
    for n, item in enumerate(items, 1):
        yield item
        if not n % 32:
            await asyncio.sleep(0)


class Batch:
    """Rows that are stored in one transaction; ``id`` and ``created`` stay the same however often it is sent."""

    __slots__ = ("created", "id", "is_from_spool", "n_sent", "refused", "rows", "sealed_s", "table")

    def __init__(
        self,
        table: Table,
        rows: EncodedBatch,
        refused: list[Refused] | None = None,
        *,
        id: uuid.UUID | None = None,  # noqa: A002  the field's name
        created: datetime | None = None,
    ) -> None:
        self.table = table
        self.rows = rows
        self.refused = refused or []
        self.id = id or uuid.uuid4()
        self.created = created or datetime.now(UTC)
        self.n_sent = 0
        self.sealed_s = 0.0
        self.is_from_spool = False

    @property
    def n_rows(self) -> int:
        """All its rows, the refused ones among them."""
        return self.rows.n_rows + len(self.refused)

    def to_record(self) -> Record:
        """Return it as the spool keeps it."""
        body = msgspec.msgpack.encode((self.rows.rows(), self.rows.index_bytes(), self.refused))
        created_us = (self.created - _EPOCH) // timedelta(microseconds=1)
        return Record(
            batch_id=self.id,
            table=self.table.name,
            created_us=created_us,
            n_rows=self.n_rows,
            body=body,
            fingerprint=fingerprint_of(self.table),
        )

    @classmethod
    def from_record(cls, table: Table, record: Record) -> Batch:
        """Return what the spool kept; SpoolError when it was written for other columns or is damaged."""
        if record.fingerprint != fingerprint_of(table):
            raise SpoolError(f"{table.name}: batch {record.batch_id} in the spool has other columns than the table now")
        try:
            rows, indices, refused = msgspec.msgpack.decode(record.body, type=tuple[bytes, bytes, list[Refused]])
            time = table.column_names.index(table.time_column)
            if table.columns[time].type != "timestamptz":
                time = -1  # a date needs no partition of its day
            encoded = EncodedBatch.load(rows, indices, len(table.columns), time)
        except (msgspec.DecodeError, ValueError) as error:
            raise SpoolError(f"{table.name}: batch {record.batch_id} in the spool cannot be read: {error}") from error
        created = _EPOCH + timedelta(microseconds=record.created_us)
        batch = cls(table, encoded, refused, id=record.batch_id, created=created)
        batch.is_from_spool = True
        batch.n_sent = 1  # perhaps: before it went to the spool
        return batch


def fingerprint_of(table: Table) -> bytes:
    """Return 16 bytes that stand for the names and types of the columns that are written."""
    text = "\n".join(f"{column.name}\0{column.type}" for column in table.columns)
    return hashlib.sha256(text.encode()).digest()[:16]
