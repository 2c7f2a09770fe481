"""Quarantine: the rows that were refused, to be looked at, mended, stored after all, or dropped (docs/quarantine.md).

Whoever mends, replays or drops has to own the tables; a reader may look.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from itertools import groupby
from typing import Any
from uuid import UUID

import msgspec

from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.errors import PgtickError, RowError
from pgtick.tables import BUILT_IN_TABLES, Table
from pgtick.writer.encoders import encoder_of
from pgtick.writer.flush import store_rows
from pgtick.writer.row_json import from_json, to_json, types_of

__all__ = [
    "MENDED",
    "QuarantineCount",
    "QuarantinedRow",
    "ReplayCount",
    "Replayed",
    "StillRefused",
    "count_quarantine",
    "drop_quarantined",
    "fix_quarantined",
    "get_quarantined",
    "list_quarantine",
    "replay_quarantine",
]

#: The reason of a row that has been mended and breaks no rule that can be known before it is sent.
MENDED = "mended, to be replayed"

_REPLAY_ROWS = 5000
_COLUMNS = 'id, table_name, batch_id, row_index, column_name, reason, "row"::text AS row, quarantined_at'
_COUNTS = """
SELECT table_name AS "table", column_name AS "column", reason, count(*) AS n_rows, max(quarantined_at) AS newest
FROM ingest_quarantine WHERE $1::text IS NULL OR table_name = $1
GROUP BY 1, 2, 3 ORDER BY n_rows DESC, 1, 2, 3 LIMIT $2
"""
_NEWEST = (
    f"SELECT {_COLUMNS} FROM ingest_quarantine WHERE $1::text IS NULL OR table_name = $1 ORDER BY id DESC LIMIT $2"
)
# asyncpg knows text[], but asks on every new connection what a bigint[] is: half a minute on Citus.
_OF_IDS = "id = ANY ($1::text[]::bigint[])"
# FOR UPDATE, so that a second replay waits, and finds what is left.
_CHOSEN = f"""
SELECT {_COLUMNS} FROM ingest_quarantine
WHERE id > $1 AND ($2::text[] IS NULL OR id = ANY ($2::text[]::bigint[])) AND table_name = ANY ($3)
ORDER BY id LIMIT {_REPLAY_ROWS} FOR UPDATE
"""
_OF_OTHERS = f"""
SELECT table_name, count(*) AS n_rows FROM ingest_quarantine
WHERE ($1::text[] IS NULL OR {_OF_IDS}) AND ($2::text IS NULL OR table_name = $2) AND table_name <> ALL ($3)
GROUP BY 1 ORDER BY 1
"""
_NEW_REASONS = """
UPDATE ingest_quarantine q SET column_name = n.column_name, reason = n.reason
FROM unnest($1::text[]::bigint[], $2::text[], $3::text[]) n (id, column_name, reason) WHERE q.id = n.id
"""


class QuarantineCount(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of a table wait because of a column, for a reason."""

    table: str
    column: str
    reason: str
    n_rows: int
    newest: datetime


class QuarantinedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was refused: the ``row_index``-th of those that its writer was given; ``row`` is JSON."""

    id: int
    table_name: str
    batch_id: UUID
    row_index: int
    column_name: str
    reason: str
    row: str
    quarantined_at: datetime


class StillRefused(msgspec.Struct, frozen=True, kw_only=True):
    """A row that stays, with its new reason."""

    id: int
    table: str
    column: str
    reason: str


class ReplayCount(msgspec.Struct, kw_only=True):
    """What became of a table's rows."""

    n_stored: int = 0
    n_duplicates: int = 0
    n_refused: int = 0


class Replayed(msgspec.Struct, kw_only=True):
    """What a replay did, or with ``dry_run`` would do; ``unknown``: rows of tables that it was not told of."""

    tables: dict[str, ReplayCount] = {}
    refused: list[StillRefused] = []
    unknown: dict[str, int] = {}

    @property
    def is_complete(self) -> bool:
        """Whether nothing that was to be replayed is left."""
        return not self.refused and not self.unknown


async def count_quarantine(
    db: DatabaseManager | None = None, *, table: str | None = None, limit: int = 100
) -> list[QuarantineCount]:
    """Count the rows by table, column and reason, the most frequent first."""
    records = await (db or get_db_manager()).fetch(_COUNTS, table, limit)
    return [QuarantineCount(**record) for record in records]


async def list_quarantine(
    db: DatabaseManager | None = None, *, table: str | None = None, limit: int = 20
) -> list[QuarantinedRow]:
    """Return the newest rows, the newest first."""
    return [QuarantinedRow(**record) for record in await (db or get_db_manager()).fetch(_NEWEST, table, limit)]


async def get_quarantined(db: DatabaseManager | None, row_id: int) -> QuarantinedRow:
    """Return a row; PgtickError when there is none of this id."""
    query = f"SELECT {_COLUMNS} FROM ingest_quarantine WHERE id = $1"
    record = await (db or get_db_manager()).fetchrow(query, row_id)
    if record is None:
        raise _not_there([row_id])
    return QuarantinedRow(**record)


async def fix_quarantined(
    db: DatabaseManager | None,
    row_id: int,
    changes: Mapping[str, object],
    *,
    without: Collection[str] = (),
    tables: Iterable[Table] = (),
) -> RowError | None:
    """Change values of a row where it is kept; return what is still wrong with it, or None: replay it then.

    ``without``: names to leave out, which are no columns. ``tables``: beside the built-in ones. What only the server
    knows, an unknown symbol for example, shows in the replay.
    """
    db = db or get_db_manager()
    async with db.transaction():
        await db.execute("SELECT FROM ingest_quarantine WHERE id = $1 FOR UPDATE", row_id)
        kept = await get_quarantined(db, row_id)
        known = _known(tables)
        if kept.table_name not in known:
            raise PgtickError(f"row {row_id} is of {kept.table_name}, whose Table is not known")
        table = known[kept.table_name]
        text = _changed(table, kept, changes, without)
        errors = encoder_of(table).encode([_row_of(table, text)]).errors
        column, reason = (errors[0].column, errors[0].rule) if errors else (kept.column_name, MENDED)
        await db.execute(
            'UPDATE ingest_quarantine SET "row" = $2, column_name = $3, reason = $4 WHERE id = $1',
            row_id,
            text,
            _storable(column),
            _storable(reason),
        )
    return errors[0] if errors else None


def _changed(table: Table, kept: QuarantinedRow, changes: Mapping[str, object], without: Collection[str]) -> str:
    unknown = sorted(set(changes).difference(table.column_names))
    if unknown:
        raise PgtickError(f"{table.name} has no column {unknown[0]} that is written: {', '.join(table.column_names)}")
    forms = json.loads(kept.row)
    if not isinstance(forms, dict):
        raise PgtickError(f"row {kept.id} is no JSON object any more: {kept.row[:80]}")
    missing = sorted(set(without).difference(forms))
    if missing:
        raise PgtickError(f"row {kept.id} has no {missing[0]}; it has {', '.join(forms)}")
    forms |= json.loads(to_json(types_of(table), changes))
    return json.dumps({name: form for name, form in forms.items() if name not in without})


async def replay_quarantine(
    db: DatabaseManager | None = None,
    *,
    ids: Collection[int] | None = None,
    table: str | None = None,
    tables: Iterable[Table] = (),
    dry_run: bool = False,
) -> Replayed:
    """Store the rows of these ids, of this table, or all, and take them out of quarantine in the same transaction.

    A row that is refused again stays, with its new reason. ``tables``: beside the built-in ones. ``dry_run`` does all
    of it and rolls back. Several thousand rows are a transaction.
    """
    db = db or get_db_manager()
    chosen = None if ids is None else _texts(ids)
    if ids is not None:
        await _check_ids(db, ids)
    known = {name: one for name, one in _known(tables).items() if table in (None, name)}
    replayed = Replayed()
    for name, n_rows in await db.fetch(_OF_OTHERS, chosen, table, list(_known(tables))):
        replayed.unknown[name] = n_rows
    last: int | None = -1
    while last is not None:
        try:
            async with db.transaction():
                last = await _replay_some(db, known, chosen, last, replayed)
                if dry_run:
                    raise _RolledBackError
        except _RolledBackError:
            pass
    return replayed


class _RolledBackError(Exception):
    """Ends the transaction of a dry run."""


async def _replay_some(
    db: DatabaseManager, known: dict[str, Table], ids: list[str] | None, after: int, replayed: Replayed
) -> int | None:
    """Replay some rows in the transaction of the caller's; return the last id, or None when there were none."""
    records: list[Any] = await db.fetch(_CHOSEN, after, ids, list(known))
    by_table = sorted(records, key=lambda record: record["table_name"])
    for name, group in groupby(by_table, key=lambda record: record["table_name"]):
        rows = list(group)
        result = await store_rows(known[name], [_row_of(known[name], row["row"]) for row in rows], db=db)
        refused = {rows[error.index]["id"]: error for error in result.errors}
        done = [row["id"] for row in rows if row["id"] not in refused]
        await db.execute(f"DELETE FROM ingest_quarantine WHERE {_OF_IDS}", _texts(done))
        still = [
            StillRefused(id=row_id, table=name, column=_storable(error.column), reason=_storable(error.rule))
            for row_id, error in refused.items()
        ]
        await db.execute(_NEW_REASONS, _texts(refused), [one.column for one in still], [one.reason for one in still])
        count = replayed.tables.setdefault(name, ReplayCount())
        count.n_stored += result.n_stored
        count.n_duplicates += result.n_duplicates
        count.n_refused += len(still)
        replayed.refused += still
    return records[-1]["id"] if records else None


async def drop_quarantined(db: DatabaseManager | None, ids: Collection[int]) -> int:
    """Delete the rows of these ids for good; return how many."""
    db = db or get_db_manager()
    async with db.transaction():
        await _check_ids(db, ids)
        dropped = await db.fetch(f"DELETE FROM ingest_quarantine WHERE {_OF_IDS} RETURNING 1", _texts(ids))
    return len(dropped)


async def _check_ids(db: DatabaseManager, ids: Collection[int]) -> None:
    found = await db.fetch(f"SELECT id FROM ingest_quarantine WHERE {_OF_IDS}", _texts(ids))
    missing = set(ids).difference(record[0] for record in found)
    if missing:
        raise _not_there(sorted(missing))


def _texts(ids: Iterable[int]) -> list[str]:
    return list(map(str, ids))


def _not_there(ids: list[int]) -> PgtickError:
    told = ", ".join(map(str, ids))
    return PgtickError(f"in quarantine there is no row {told}: it was replayed or dropped, or never there")


def _known(tables: Iterable[Table]) -> dict[str, Table]:
    return {table.name: table for table in (*BUILT_IN_TABLES, *tables)}


def _row_of(table: Table, text: str) -> object:
    try:
        return from_json(types_of(table), text)
    except ValueError:  # edited by hand: a tuple of no fields is refused as what it is
        return ()


def _storable(text: str) -> str:
    """Return what a text column takes; a column that is unknown may be called anything."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
