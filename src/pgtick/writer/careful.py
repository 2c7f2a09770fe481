"""The careful way of a batch: through a temporary table, where duplicates and bad rows are told apart.

The rules that the catalogs know are judged for all rows at once, checks and NOT NULL in one query, references by their
ids in another, so that bad rows by the hundred do not cost a COPY each. What they do not tell is found by halving, in
savepoints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import asyncpg
import msgspec

from pgtick._fast.batch import EncodedBatch
from pgtick.copying import copy_in
from pgtick.engines.base import Engine
from pgtick.errors import SchemaChangedError
from pgtick.tables import Table, quote_identifier
from pgtick.writer.batch import in_turns
from pgtick.writer.faults import DATA_ERRORS
from pgtick.writer.references import Reference, Refusal, find_strangers, references_of, refusal, without

__all__ = ["Findings", "copy_rows", "copy_statement", "store_carefully"]

_CHECKS = """
SELECT conname::text, pg_get_expr(conbin, conrelid),
       ARRAY(SELECT a.attname::text FROM unnest(conkey) WITH ORDINALITY k (n, i)
             JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = k.n ORDER BY k.i)
FROM pg_constraint c
WHERE conrelid = quote_ident($1)::regclass AND contype = 'c' AND coalesce((to_jsonb(c) ->> 'conenforced')::bool, true)
"""
_NOT_NULL = """
SELECT attname::text FROM pg_attribute
WHERE attrelid = quote_ident($1)::regclass AND attnotnull AND attnum > 0 AND NOT attisdropped
"""
_JUDGE = """
WITH judged AS (SELECT pgtick_n AS n, CASE {cases} END AS broken FROM pgtick_incoming i)
DELETE FROM pgtick_incoming USING judged WHERE pgtick_n = judged.n AND judged.broken IS NOT NULL
RETURNING judged.n, judged.broken
"""

_REMOVE = "DELETE FROM pgtick_incoming USING unnest($1::text[]::bigint[]) AS given (n) WHERE pgtick_n = given.n"
_NO_NULL = "must not be NULL"


class _Rule(msgspec.Struct):
    column: str
    says: str
    is_broken: str  # SQL over the incoming rows, called i


class Findings(msgspec.Struct):
    """What the careful way found; the refusals with their rows, by place in the batch."""

    n_stored: int = 0
    n_duplicates: int = 0
    refused: list[Refusal] = msgspec.field(default_factory=list)


async def store_carefully(
    connection: Any,
    table: Table,
    rows: EncodedBatch,
    engine: Engine,
    *,
    judges: bool,
    target: str | None = None,
    cause: asyncpg.PostgresError | None = None,
) -> Findings:
    """Store what is new and obeys, inside a transaction of the caller's.

    ``judges``: look for rows that break a rule of the catalogs; ``target``: where the engine keeps the rows' day, if
    anywhere; ``cause``: what the straight COPY was refused for.
    """
    columns = ", ".join(quote_identifier(column) for column in table.column_names)
    await connection.execute(
        f"CREATE TEMPORARY TABLE pgtick_incoming ON COMMIT DROP AS SELECT {columns} FROM "
        f"{quote_identifier(table.name)} WITH NO DATA; "
        "ALTER TABLE pgtick_incoming ADD COLUMN pgtick_n bigint GENERATED ALWAYS AS IDENTITY (MINVALUE 0)"
    )
    await copy_rows(connection, "pgtick_incoming", table, rows)
    work = _Work(connection, table, rows, engine)
    if judges:
        await work.judge(cause)
    if not judges or not await work.copy_rest(target or table.name):
        await work.insert(0, rows.n_rows)
    # Not left to the commit: inside a caller's transaction the name must be free again.
    await connection.execute("DROP TABLE pgtick_incoming")
    found = work.found
    found.n_duplicates = rows.n_rows - found.n_stored - len(found.refused)
    found.refused.sort(key=lambda pair: pair[0].index)
    return found


class _Work:
    def __init__(self, connection: Any, table: Table, rows: EncodedBatch, engine: Engine) -> None:
        self.connection = connection
        self.table = table
        self.rows = rows
        self.engine = engine
        self.found = Findings()
        self.places: set[int] = set()  # of the refused rows
        name = quote_identifier(table.name)
        columns = ", ".join(quote_identifier(column) for column in table.column_names)
        # Counted here, because the command tag of Citus counts the rows that were there already, too.
        self.query = (
            f"WITH stored AS (INSERT INTO {name} ({columns}) SELECT {columns} FROM pgtick_incoming "
            "WHERE pgtick_n >= $1 AND pgtick_n < $2 ORDER BY pgtick_n ON CONFLICT DO NOTHING RETURNING 1) "
            "SELECT count(*) FROM stored"
        )

    async def judge(self, cause: asyncpg.PostgresError | None) -> None:
        """Take the rows out that break a rule of the catalogs; of several rules of a row the first is told."""
        references = await references_of(self.connection, self.table)
        joined = [one for one in references if self.engine.joins_temporary_tables and not one.is_by_id(self.table)]
        await self._judge_by(await _rules(self.connection, self.table, joined), cause)
        strangers = await find_strangers(self.connection, self.table, self.rows, references, cause)
        for place in strangers.keys() - self.places:
            self.places.add(place)
            self.found.refused.append(strangers[place])
        if strangers:
            await self.connection.execute(_REMOVE, list(map(str, strangers)))

    async def _judge_by(self, rules: list[_Rule], cause: asyncpg.PostgresError | None) -> None:
        if not rules:
            return
        cases = " ".join(f"WHEN {rule.is_broken} THEN {n}" for n, rule in enumerate(rules))
        async for place, broken in in_turns(await self.connection.fetch(_JUDGE.format(cases=cases))):
            if rules[broken].says == _NO_NULL:
                self._check_schema(rules[broken].column)
            self._refuse(place, rules[broken].column, rules[broken].says, cause)

    async def copy_rest(self, target: str) -> bool:
        """Copy what was judged good straight, at half of an INSERT's cost; say whether the server took it."""
        rest = without(self.rows, self.places)
        if not rest.n_rows:
            return True
        try:
            async with _Savepoint(self.connection):
                await copy_rows(self.connection, target, self.table, rest)
        except asyncpg.PostgresError as error:
            gone = asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError  # the target, not the table
            if not isinstance(self.engine.sorted_error(error), (*DATA_ERRORS, *gone)):
                raise
            return False
        self.found.n_stored += rest.n_rows
        return True

    async def insert(self, start: int, stop: int) -> None:
        """Store the rows start..stop; halve what is refused until the culprit is alone."""
        try:
            async with _Savepoint(self.connection):
                self.found.n_stored += await self.connection.fetchval(self.query, start, stop)
            return
        except asyncpg.PostgresError as error:
            meant = self.engine.sorted_error(error)
            is_partition = isinstance(meant, asyncpg.CheckViolationError) and meant.constraint_name is None
            if not isinstance(meant, DATA_ERRORS) or is_partition:
                raise
            if stop - start == 1:
                key = re.match(r"Key \(([^)]*)\)=", meant.detail or "")  # a reference's error tells it only there
                column = meant.column_name or (key and key[1]) or meant.constraint_name or "?"
                if isinstance(meant, asyncpg.NotNullViolationError):
                    self._check_schema(str(column))
                self._refuse(start, str(column), str(meant), meant)
                return
        middle = (start + stop) // 2
        await self.insert(start, middle)
        await self.insert(middle, stop)

    def _check_schema(self, column: str) -> None:
        """Raise for a NULL that the Table allows: the column has been changed, the row is not bad."""
        if any(known.name == column and known.nullable for known in self.table.columns):
            raise SchemaChangedError(self.table.name, f"{column} has been made NOT NULL, and there are rows without it")

    def _refuse(self, place: int, column: str, says: str, cause: asyncpg.PostgresError | None) -> None:
        self.places.add(place)
        self.found.refused.append(refusal(self.table, self.rows, place, column, says, cause))


class _Savepoint:
    """A savepoint by hand: asyncpg knows nothing of a transaction that began in one round trip with more."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def __aenter__(self) -> None:
        await self.connection.execute("SAVEPOINT pgtick_half")

    async def __aexit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        if isinstance(error, asyncpg.PostgresError):
            await self.connection.execute("ROLLBACK TO SAVEPOINT pgtick_half")
        if error is None:
            await self.connection.execute("RELEASE SAVEPOINT pgtick_half")


async def _rules(connection: Any, table: Table, references: Iterable[Reference]) -> list[_Rule]:
    written = set(table.column_names)
    rules = [
        _Rule(column, _NO_NULL, f"i.{quote_identifier(column)} IS NULL")
        for (column,) in await connection.fetch(_NOT_NULL, table.name)
        if column in written
    ]
    for name, expression, columns in await connection.fetch(_CHECKS, table.name):
        if columns and written.issuperset(columns):
            rules.append(_Rule(columns[0], f"breaks the check {name}", f"({expression}) IS FALSE"))
    for reference in references:
        own = [f"i.{quote_identifier(column)}" for column in reference.columns]
        known = " AND ".join(f"{value} IS NOT NULL" for value in own)
        rules.append(_Rule(reference.columns[0], reference.says, f"{known} AND {reference.is_missing(*own)}"))
    return rules


def copy_statement(target: str, table: Table) -> str:
    """Return the COPY of a table's rows into the target, which is the table, a day's part of it or one like it."""
    columns = ", ".join(quote_identifier(column) for column in table.column_names)
    return f"COPY {quote_identifier(target)} ({columns}) FROM STDIN (FORMAT binary)"


async def copy_rows(
    connection: Any, target: str, table: Table, rows: EncodedBatch, timeout_s: float | None = None
) -> None:
    """Copy a table's encoded rows into the target; without a deadline of its own the connection's holds."""
    await copy_in(connection, copy_statement(target, table), rows.chunks(), timeout_s)
