"""Rows whose exchange, symbol or other reference is not there: looked for by the ids alone, before the COPY.

A batch has thousands of rows and few ids, so this costs one query, where the temporary table of ``careful`` costs a
second COPY. The server judges the reference again at the COPY: what goes missing in between is refused there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import asyncpg
import msgspec

from pgtick._fast.batch import EncodedBatch
from pgtick.errors import RowError
from pgtick.tables import Table, quote_identifier
from pgtick.writer.batch import in_turns
from pgtick.writer.encoders import encoder_of
from pgtick.writer.row_json import read_back

__all__ = ["Reference", "Refusal", "find_strangers", "references_of", "refusal", "without"]

Refusal = tuple[RowError, dict[str, Any]]

# A foreign key, and pairs of column and referenced table that a trigger checks once a statement (migration 001).
_FOREIGN_KEYS = """
SELECT ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY k (n, i)
             JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.n ORDER BY k.i) AS columns,
       c.confrelid::regclass::text AS target,
       ARRAY(SELECT quote_ident(a.attname) FROM unnest(c.confkey) WITH ORDINALITY k (n, i)
             JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.n ORDER BY k.i) AS target_columns
FROM pg_constraint c
WHERE c.conrelid = quote_ident($1)::regclass AND c.contype = 'f'
  AND coalesce((to_jsonb(c) ->> 'conenforced')::bool, true)
"""
_CHECKED_BY_TRIGGER = """
SELECT DISTINCT n.nspname::text AS schema, t.tgargs FROM pg_trigger t
JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.tgrelid = quote_ident($1)::regclass AND p.proname = 'pgtick_check_references'
"""
_INTEGERS = ("int2", "int4", "int8")


class Reference(msgspec.Struct, frozen=True):
    """Columns of a table and those they refer to; the target's names are quoted."""

    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]

    @property
    def says(self) -> str:
        """What is wrong with a row that refers to nothing."""
        return f"there is no such row in {self.target}"

    def is_by_id(self, table: Table) -> bool:
        """Whether ``find_strangers`` looks for it: one column of integers."""
        types = {column.name: column.type for column in table.columns}
        return len(self.columns) == 1 and types[self.columns[0]] in _INTEGERS

    def is_missing(self, *values: str) -> str:
        """Return SQL that is true where no row of the target has the values, which are SQL and not NULL."""
        pairs = " AND ".join(f"r.{there} = {value}" for there, value in zip(self.target_columns, values, strict=True))
        return f"NOT EXISTS (SELECT FROM {self.target} r WHERE {pairs})"


async def references_of(connection: Any, table: Table) -> list[Reference]:
    """Return what the table's written columns refer to, as its catalogs tell."""
    found = [
        Reference(tuple(record["columns"]), record["target"], tuple(record["target_columns"]))
        for record in await connection.fetch(_FOREIGN_KEYS, table.name)
    ]
    for record in await connection.fetch(_CHECKED_BY_TRIGGER, table.name):
        arguments = record["tgargs"].decode().split("\0")
        for column, target in zip(arguments[0::2], arguments[1::2], strict=False):
            place = f"{quote_identifier(record['schema'])}.{quote_identifier(target)}"
            found.append(Reference((column,), place, ("id",)))
    written = set(table.column_names)
    return [reference for reference in found if written.issuperset(reference.columns)]


async def find_strangers(
    connection: Any,
    table: Table,
    rows: EncodedBatch,
    references: Iterable[Reference],
    cause: asyncpg.PostgresError | None = None,
) -> dict[int, Refusal]:
    """Return {place: refusal} of the rows that refer to nothing by one integer column, in their order."""
    parts: list[str] = []
    arguments: list[list[str]] = []
    looked_for: list[tuple[Reference, dict[int, list[tuple[int, int]]]]] = []
    for reference in references:
        if not reference.is_by_id(table):
            continue
        runs: dict[int, list[tuple[int, int]]] = {}
        for field, start, stop in rows.runs(table.column_names.index(reference.columns[0])):
            if field:  # not NULL
                runs.setdefault(int.from_bytes(field, "big", signed=True), []).append((start, stop))
        # asyncpg knows text[], but asks on every new connection what a bigint[] is: half a minute on Citus.
        parts.append(
            f"SELECT {len(looked_for)} AS n, id FROM unnest(${len(looked_for) + 1}::text[]::bigint[]) AS given (id) "
            f"WHERE {reference.is_missing('given.id')}"
        )
        arguments.append(list(map(str, runs)))
        looked_for.append((reference, runs))
    broken: dict[int, Reference] = {}
    if parts:
        for n, id_ in await connection.fetch(" UNION ALL ".join(parts), *arguments):
            reference, runs = looked_for[n]
            for start, stop in runs[id_]:
                broken |= dict.fromkeys(range(start, stop), reference)
    return {
        place: refusal(table, rows, place, reference.columns[0], reference.says, cause)
        async for place, reference in in_turns(sorted(broken.items(), key=lambda item: item[0]))
    }


def refusal(
    table: Table, rows: EncodedBatch, place: int, column: str, says: str, cause: asyncpg.PostgresError | None
) -> Refusal:
    """Return the refusal of a batch's row by the server, with the row as it was encoded."""
    values = encoder_of(table).values(rows, place)
    row = read_back(table, values)
    error = RowError(
        table.name, rows.origin(place), column, row.get(column, values), f"was refused by the server: {says}"
    )
    error.__cause__ = cause
    return error, row


def without(rows: EncodedBatch, places: set[int]) -> EncodedBatch:
    """Return the batch's other rows."""
    bad = sorted(places)
    ranges = zip([0, *(place + 1 for place in bad)], [*bad, rows.n_rows], strict=True)
    return rows.take([(start, stop) for start, stop in ranges if start < stop])
