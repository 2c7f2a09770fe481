"""One batch to the server, exactly once: its row in the ledger and its rows in one transaction.

The straight COPY comes first, in one round trip with the ledger's row. When the server refuses a reference, the rows
that have it are looked for by their ids (``references``) and the others copied; when it reports a duplicate or
anything else, the batch goes the careful way (``careful``); all in one transaction, too. Inside a caller's transaction
there is no ledger: its commit decides.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from pgtick.connection import DatabaseManager
from pgtick.copying import copy_in
from pgtick.engines import get_engine
from pgtick.engines.base import Engine
from pgtick.errors import RowError, SchemaChangedError
from pgtick.tables import INGEST_BATCHES, INGEST_QUARANTINE, quote_literal
from pgtick.writer.batch import Batch, Refused, in_turns
from pgtick.writer.careful import Findings, copy_rows, copy_statement, store_carefully
from pgtick.writer.faults import DATA_ERRORS
from pgtick.writer.references import Refusal, find_strangers, references_of, without

__all__ = ["STRAIGHT_ROWS", "Delivery", "Way", "deliver"]

logger = logging.getLogger(__name__)

#: From so many rows on a batch goes straight to where the engine keeps its day: 1.13 times as fast at 5,000 rows,
#: 1.23 at 200,000, and slower about 1,000 (docs/profile.md).
STRAIGHT_ROWS = 5_000
_INSERT = f"INSERT INTO {INGEST_BATCHES} (batch_id, table_name, n_rows, n_duplicates, n_quarantined, timestamp) VALUES "
_COUNTS = f"SELECT n_rows, n_duplicates, n_quarantined FROM {INGEST_BATCHES} WHERE batch_id = $1 AND timestamp = $2"
# Another attempt at the batch may hang on a connection that is dead: it holds the batch's row in the ledger.
_END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = '{name}' AND pid <> pg_backend_pid() AND usename = current_user; "
)


class Way(enum.IntEnum):
    """How a batch goes; each way takes more rows that are bad than the one before it, and more time."""

    STRAIGHT = 0
    SIFTED = 1  # rows whose references are not there are taken out before the COPY
    CAREFUL = 2  # through a temporary table


class Delivery(msgspec.Struct):
    """What became of a batch: the counts add up to its rows.

    ``errors``: what the server refused; ``n_quarantined`` counts the rows in quarantine, refused before among them.
    ``was_committed``: an earlier attempt had stored it, of which the answer was lost. ``way``: that it went at last.
    """

    n_stored: int = 0
    n_duplicates: int = 0
    n_quarantined: int = 0
    errors: list[RowError] = msgspec.field(default_factory=list)
    was_committed: bool = False
    way: Way = Way.STRAIGHT


class _AlreadyCommittedError(Exception):
    """The batch's id is in the ledger."""


async def deliver(
    db: DatabaseManager, batch: Batch, *, quarantines: bool = True, way: Way = Way.STRAIGHT, timeout_s: float = 30.0
) -> Delivery:
    """Store the batch; sent before under its id, it is stored once.

    ``quarantines``: rows that are refused go to ingest_quarantine in the same transaction. ``way``: the first to be
    tried. Raises the server's error, sorted by the engine, and TimeoutError at the deadline; the
    connection is given up then, and nothing is stored or the ledger has it.
    """
    engine = await get_engine(db)
    sender = _Sender(db, engine, batch, quarantines, timeout_s)
    async with asyncio.timeout(None if db.in_transaction else timeout_s):
        await engine.ensure_days(db, batch.table.name, batch.rows.days)
        if not db.in_transaction:
            await engine.ensure_days(db, INGEST_BATCHES, {_day(batch)})
        try:
            return await sender.send(way)
        except _AlreadyCommittedError:
            committed = await _committed(db, batch)
            if committed is None:  # between two looks its day was dropped: it is old, and it is there
                return Delivery(n_stored=batch.rows.n_rows, n_quarantined=len(batch.refused), was_committed=True)
            return committed


async def _committed(db: DatabaseManager, batch: Batch) -> Delivery | None:
    """Return what the ledger has of the batch."""
    record = await db.fetchrow(_COUNTS, batch.id, batch.created, resets=False)
    if record is None:
        return None
    n_rows, n_duplicates, n_quarantined = record
    return Delivery(
        n_stored=n_rows - n_duplicates - n_quarantined,
        n_duplicates=n_duplicates,
        n_quarantined=n_quarantined,
        was_committed=True,
    )


class _Sender:
    """One attempt at a batch."""

    def __init__(self, db: DatabaseManager, engine: Engine, batch: Batch, quarantines: bool, timeout_s: float) -> None:
        self.db = db
        self.engine = engine
        self.batch = batch
        self.quarantines = quarantines
        self.timeout_s = timeout_s
        self.has_ledger = not db.in_transaction
        self.name = f"pgtick {batch.id}"

    async def send(self, way: Way) -> Delivery:
        if not self.batch.rows.n_rows:
            return await self._straight(self.batch.table.name)
        judges, cause = way > Way.STRAIGHT, None
        if way == Way.STRAIGHT:
            try:
                return await self._to_its_place(self._straight)
            except (asyncpg.UniqueViolationError, *DATA_ERRORS) as error:
                judges, cause = not isinstance(error, asyncpg.UniqueViolationError), error
            if not judges and self.has_ledger:  # the ledger's own key, or the table's
                committed = await _committed(self.db, self.batch)
                if committed is not None:
                    return committed
        if way == Way.SIFTED or isinstance(cause, asyncpg.ForeignKeyViolationError):
            try:
                return await self._to_its_place(lambda target: self._sifted(target, cause))
            except (asyncpg.UniqueViolationError, *DATA_ERRORS) as error:
                judges, cause = True, cause or error
        return await self._with_days(lambda: self._carefully(judges, cause))

    async def _to_its_place(self, attempt: Callable[[str], Awaitable[Delivery]]) -> Delivery:
        """Copy a large batch to where the engine keeps its day; where that is gone or not allowed, to the table."""
        table = self.batch.table.name
        target = self._target()
        if target != table:
            try:
                return await attempt(target)
            except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError) as error:
                logger.debug("%s is copied into instead: %s", table, error)
            except asyncpg.CheckViolationError as error:
                if error.constraint_name is not None:
                    raise
        return await self._with_days(lambda: attempt(table))

    def _target(self) -> str:
        table, rows = self.batch.table.name, self.batch.rows
        return self.engine.copy_target(self.db, table, rows.days) if rows.n_rows >= STRAIGHT_ROWS else table

    async def _with_days(self, attempt: Callable[[], Awaitable[Delivery]]) -> Delivery:
        """Await the attempt; where another process dropped a day's partition, make it and try once more."""
        try:
            return await attempt()
        except asyncpg.CheckViolationError as error:
            if error.constraint_name is not None:
                raise
        for table, days in ((self.batch.table.name, self.batch.rows.days), (INGEST_BATCHES, {_day(self.batch)})):
            self.engine.forget(table)
            if table != INGEST_BATCHES or self.has_ledger:
                await self.engine.ensure_days(self.db, table, days)
        return await attempt()

    async def _straight(self, target: str) -> Delivery:
        batch = self.batch
        n_refused = len(batch.refused) if self.quarantines else 0
        if self._fits_one_message:
            return await self._at_once(target)
        async with self._transaction(self._ledger_row(0, n_refused)) as connection:
            if batch.rows.n_rows:
                await copy_rows(connection, target, batch.table, batch.rows, self.timeout_s)
            if n_refused:
                await self._quarantine(connection, batch.refused)
        return Delivery(n_stored=batch.rows.n_rows, n_quarantined=n_refused)

    @property
    def _fits_one_message(self) -> bool:
        """Whether nothing goes astray when the server refuses it: see ``copying``.

        Attempts after the first are not sent so, as the ledger may refuse them, and there may be a pooler that nobody
        has told of.
        """
        batch = self.batch
        is_whole = batch.rows.n_rows and not (self.quarantines and batch.refused)
        return bool(self.has_ledger and is_whole and not self.db.config.pooler and not batch.n_sent)

    async def _at_once(self, target: str) -> Delivery:
        """Send ledger's row and rows in one round trip, which is a transaction: the bare COPY takes no less."""
        batch = self.batch
        async with self._own_connection() as connection:
            statements = f"{self._beginning()}; {self._ledger_row(0, 0)}; {copy_statement(target, batch.table)}"
            await copy_in(connection, statements, batch.rows.chunks(), self.timeout_s)
        return Delivery(n_stored=batch.rows.n_rows)

    async def _sifted(self, target: str, cause: asyncpg.PostgresError | None) -> Delivery:
        batch = self.batch
        async with self._transaction(None) as connection:
            references = await references_of(connection, batch.table)
            found = await find_strangers(connection, batch.table, batch.rows, references, cause)
            rest = without(batch.rows, set(found)) if found else batch.rows
            n_quarantined = await self._settle(connection, 0, found.values())
            if rest.n_rows:
                await copy_rows(connection, target, batch.table, rest, self.timeout_s)
        return Delivery(
            n_stored=rest.n_rows,
            n_quarantined=n_quarantined,
            errors=[error for error, _ in found.values()],
            way=Way.SIFTED,
        )

    async def _carefully(self, judges: bool, cause: asyncpg.PostgresError | None) -> Delivery:
        batch = self.batch
        async with self._transaction(None) as connection:
            found: Findings = await store_carefully(
                connection, batch.table, batch.rows, self.engine, judges=judges, target=self._target(), cause=cause
            )
            n_quarantined = await self._settle(connection, found.n_duplicates, found.refused)
        return Delivery(
            n_stored=found.n_stored,
            n_duplicates=found.n_duplicates,
            n_quarantined=n_quarantined,
            errors=[error for error, _ in found.refused],
            way=Way.CAREFUL,
        )

    async def _settle(self, connection: Any, n_duplicates: int, refusals: Iterable[Refusal]) -> int:
        """Enter what was found into ledger and quarantine; return how many rows went there."""
        refused: list[Refused] = []
        if self.quarantines:
            found = [Refused.of(self.batch.table, error, row) async for error, row in in_turns(refusals)]
            refused = self.batch.refused + found
        if self.has_ledger:
            await self._enter(connection, self._ledger_row(n_duplicates, len(refused)) or "")
        if refused:
            await self._quarantine(connection, refused)
        return len(refused)

    async def _quarantine(self, connection: Any, refused: Iterable[Refused]) -> None:
        batch = self.batch
        await connection.executemany(
            f"INSERT INTO {INGEST_QUARANTINE} (table_name, batch_id, row_index, column_name, reason, row) "
            "VALUES ($1, $2, $3, $4, $5, $6)",
            [(batch.table.name, batch.id, one.index, _text(one.column), _text(one.reason), one.row) for one in refused],
        )

    def _ledger_row(self, n_duplicates: int, n_quarantined: int) -> str | None:
        batch = self.batch
        if not self.has_ledger:
            return None
        n_rows = batch.rows.n_rows + (len(batch.refused) if self.quarantines else 0)
        return (
            f"{_INSERT}('{batch.id}', {quote_literal(batch.table.name)}, {n_rows}, {n_duplicates}, {n_quarantined}, "
            f"'{batch.created.isoformat()}')"
        )

    async def _enter(self, connection: Any, statement: str) -> None:
        try:
            await connection.execute(statement, timeout=self.timeout_s)
        except asyncpg.UniqueViolationError as error:
            raise _AlreadyCommittedError from error

    @asynccontextmanager
    async def _transaction(self, first: str | None) -> AsyncIterator[Any]:
        """Yield a connection in the batch's transaction, or in a savepoint of the caller's."""
        if self.has_ledger:
            async with self._own_connection() as connection:
                begin = f"BEGIN; {self._beginning()}"
                await self._enter(connection, f"{begin}; {first}" if first else begin)
                yield connection
                await connection.execute("COMMIT", timeout=self.timeout_s)
            return
        async with self._sorted(), self.db.transaction(), self.db.connection() as connection:
            if self.engine.copy_settings:
                await connection.execute(self.engine.copy_settings)
            yield connection

    def _beginning(self) -> str:
        """Return what an attempt says first, once; local, so that a transaction pooler may be in between."""
        end_others = _END_OTHERS.format(name=self.name) if self.batch.n_sent else ""
        self.batch.n_sent += 1
        return f"SET LOCAL application_name = '{self.name}'; {end_others}{self.engine.copy_settings}"

    @asynccontextmanager
    async def _own_connection(self) -> AsyncIterator[Any]:
        async with (
            self._sorted(),
            self.db.connection(resets=False) as connection,
            _given_up_on_failure(connection),
        ):
            yield connection

    @asynccontextmanager
    async def _sorted(self) -> AsyncIterator[None]:
        try:
            yield
        except asyncpg.PostgresError as error:
            meant = self.engine.sorted_error(error)
            if meant is error:
                raise
            raise meant from error


@asynccontextmanager
async def _given_up_on_failure(connection: Any) -> AsyncIterator[None]:
    """Roll back what the server refused; close a connection that is in doubt, which wakes its server process, too."""
    try:
        yield
    except (asyncpg.PostgresError, _AlreadyCommittedError, SchemaChangedError):
        try:
            if not _is_gone(connection) and connection.is_in_transaction():
                await connection.execute("ROLLBACK", timeout=5.0)
        except BaseException:
            _terminate(connection)
            raise
        raise
    except BaseException:
        _terminate(connection)
        raise


def _is_gone(connection: Any) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the pool has taken a lost connection back; that must not hide why
        return True


def _terminate(connection: Any) -> None:
    if not _is_gone(connection):
        connection.terminate()


def _day(batch: Batch) -> int:
    return int(batch.created.timestamp() // 86400)


def _text(text: str) -> str:
    """Return text that the server takes: without NUL and lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
