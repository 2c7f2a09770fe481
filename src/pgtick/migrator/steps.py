"""Steps outside a transaction: each statement is recorded before and after, and done once.

One connection holds the lock, idle in a transaction without a snapshot; the steps run on another one. A concurrent
index waits for transactions with a snapshot and for locks on its table: the first has neither.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import asyncpg

from pgtick.connection import DatabaseManager, connect, use_manager
from pgtick.errors import MigrationError
from pgtick.migrator.files import Migration
from pgtick.migrator.ledger import read_steps
from pgtick.migrator.session import holds_lock, milliseconds, rest, told

__all__ = ["INVALID_INDEXES", "STEP_NAME", "forget_steps", "stepping"]

#: The application_name of the session that runs steps.
STEP_NAME = "pgtick step: {}"
_STEPS = """
CREATE TABLE IF NOT EXISTS pgtick_migration_steps (
    namespace text NOT NULL, id text NOT NULL, direction text NOT NULL CHECK (direction IN ('up', 'down')),
    step int NOT NULL, statement text NOT NULL, started_at timestamptz NOT NULL, finished_at timestamptz, error text,
    invalid_index text, PRIMARY KEY (namespace, id, direction, step)
)
"""
_START = """
INSERT INTO pgtick_migration_steps (namespace, id, direction, step, statement, started_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp()) ON CONFLICT (namespace, id, direction, step) DO UPDATE
SET statement = excluded.statement, started_at = excluded.started_at, error = NULL, invalid_index = NULL
"""
_FINISH = """
UPDATE pgtick_migration_steps SET finished_at = clock_timestamp()
WHERE (namespace, id, direction, step) = ($1, $2, $3, $4)
"""
_FAIL = """
UPDATE pgtick_migration_steps SET error = $5, invalid_index = $6
WHERE (namespace, id, direction, step) = ($1, $2, $3, $4)
"""
#: Indexes that a concurrent build left half made, by name; a parent's waits for its partitions' and is another matter.
INVALID_INDEXES = """
SELECT i.indexrelid::regclass::text AS index, i.indrelid::regclass::text AS table,
    (SELECT pid FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid) AS pid
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT i.indisvalid AND c.relkind = 'i' AND n.nspname = ANY(current_schemas(false))
ORDER BY 1
"""


class _StepManager(DatabaseManager):
    """A manager on one connection, each execute() of which is a step."""

    def __init__(
        self, holder: DatabaseManager, connection: Any, migration: Migration, direction: str, records: Iterable[Any]
    ) -> None:
        super().__init__(holder.config, None, holder.server_version)
        self._holder = holder
        self._connection = connection
        self._migration = migration
        self._direction = direction
        self._records = {record["step"]: record for record in records}
        self._step = 0

    @asynccontextmanager
    async def connection(self, *, resets: bool = True) -> AsyncIterator[Any]:
        with self._statement_deadline():
            yield self._connection

    async def execute(self, query: str, *args: object) -> str:
        """Do the next step, unless it is done; its text is what it is known by."""
        self._step += 1
        label, query = self._migration.label, query.strip()
        if self._is_done(query):
            return ""
        concurrently = re.search(r"\bCONCURRENTLY\b", query, re.IGNORECASE) is not None
        before = await self._invalid() if concurrently else set()
        # Those steps hold nobody up while they wait, and a deadline would leave an invalid index behind.
        lock_ms = 0 if concurrently else milliseconds(self.config.migration_lock_timeout_s)
        await self._connection.execute(f"SET lock_timeout = {lock_ms}")
        await self._connection.execute(_START, *self._key, query)
        try:
            # Not execute(), whose protocol takes several statements at once, in one transaction.
            await self._connection.fetch(query, *args)
        except asyncpg.PostgresError as error:
            if self._connection.is_closed():
                raise MigrationError(
                    f"{label}: the connection was lost in step {self._step}, and whether it is done is not known: "
                    f"see `repair` ({told(error)})"
                ) from error
            await self._failed(error, sorted(await self._invalid() - before) if concurrently else [])
        await self._connection.execute(_FINISH, *self._key)
        if not await holds_lock(self._holder):
            raise MigrationError(
                f"{label}: the lock of the migration was lost (its connection was ended) while step {self._step} ran; "
                "the step is done and recorded: go up again"
            )
        return ""

    @property
    def _key(self) -> tuple[str, str, str, int]:
        return (*self._migration.key, self._direction, self._step)

    def _is_done(self, query: str) -> bool:
        record = self._records.get(self._step)
        if record is None or (record["error"] is not None and record["invalid_index"] is None):
            return False  # new, or refused by the server: it may be tried, and may have been corrected
        label, name = self._migration.label, "/".join(self._migration.key)
        if record["error"] is not None:
            raise MigrationError(
                f"{label}: step {self._step} failed ({record['error']}) and left an invalid index: first "
                f"DROP INDEX CONCURRENTLY {record['invalid_index']}"
            )
        if record["finished_at"] is None:
            raise MigrationError(
                f"{label}: step {self._step} was started {record['started_at']:%Y-%m-%d %H:%M:%S %Z} and never "
                f"finished; see `repair`, then say repair {name} --again or --finished: {record['statement'][:200]}"
            )
        if record["statement"] != query:
            raise MigrationError(
                f"{label}: step {self._step} is done and its text was changed since: restore it, and put the change "
                f"into a step after those that are done\napplied: {record['statement']}\nfile: {query}"
            )
        return True

    async def _invalid(self) -> set[str]:
        return {record["index"] for record in await self._connection.fetch(INVALID_INDEXES)}

    async def _failed(self, error: asyncpg.PostgresError, left: list[str]) -> NoReturn:
        await self._connection.execute(_FAIL, *self._key, told(error), left[0] if left else None)
        way = f"first DROP INDEX CONCURRENTLY {left[0]}, which it left invalid, then" if left else "see to it and"
        done = f"the {self._step - 1} before it are done and recorded" if self._step > 1 else "none was before it"
        raise MigrationError(
            f"{self._migration.label} failed in step {self._step}: {told(error)} ({done}; {way} go on with the same "
            "command)"
        ) from error

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        raise MigrationError(f"{self._migration.label}: outside a transaction a migration does execute() and fetch()")
        yield

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        raise MigrationError(
            f"{self._migration.label} is outside a transaction: put what wants one into a migration of its own"
        )
        yield

    async def executemany(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        """Refuse: the rows would be one step that may be half done."""
        async with self.acquire():
            pass

    async def copy_records_to_table(
        self, table: str, records: Iterable[Sequence[object]], columns: Sequence[str]
    ) -> int:
        """Refuse, as executemany()."""
        async with self.acquire():
            return 0

    async def copy_binary_to_table(self, table: str, columns: Sequence[str], chunks: Iterable[bytes]) -> int:
        """Refuse, as executemany()."""
        async with self.acquire():
            return 0

    def check_all_reached(self) -> None:
        """Refuse a file that has fewer statements than were done of it."""
        if beyond := sorted(step for step in self._records if step > self._step):
            raise MigrationError(
                f"{self._migration.label}: step {beyond[0]} is on record and the file has {self._step}: restore the "
                f"statement: {self._records[beyond[0]]['statement'][:200]}"
            )


@asynccontextmanager
async def stepping(holder: DatabaseManager, migration: Migration, direction: str) -> AsyncIterator[None]:
    """Have a manager in use whose every execute() is a recorded step; ``holder`` is in the lock's transaction."""
    connection = await connect(holder.config)
    try:
        await connection.execute(
            "SELECT set_config('application_name', $1, false), set_config('statement_timeout', $2, false), "
            "set_config('tcp_keepalives_idle', '60', false), set_config('idle_session_timeout', '0', false)",
            STEP_NAME.format(migration.label),
            str(milliseconds(holder.config.migration_statement_timeout_s)),
        )
        if await connection.fetchval("SELECT to_regclass('pgtick_migration_steps')") is None:
            await connection.execute(_STEPS)
        records = [
            record
            for record in await read_steps(holder)
            if (record["namespace"], record["id"], record["direction"]) == (*migration.key, direction)
        ]
        invalid = {record["index"] for record in await connection.fetch(INVALID_INDEXES)}
        known = [{**record, "invalid_index": _still(record["invalid_index"], invalid)} for record in records]
        await rest(holder)
        manager = _StepManager(holder, connection, migration, direction, known)
        with use_manager(manager):
            yield
        manager.check_all_reached()
    finally:
        await _close(connection)


def _still(index: str | None, invalid: set[str]) -> str | None:
    return index if index in invalid else None


async def _close(connection: Any) -> None:
    try:
        await connection.close(timeout=5)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()


async def forget_steps(db: DatabaseManager, migration: Migration) -> None:
    """Delete the records of the steps, where there are any."""
    if await db.fetchval("SELECT to_regclass('pgtick_migration_steps')") is not None:
        query = "DELETE FROM pgtick_migration_steps WHERE namespace = $1 AND id = $2"
        await db.execute(query, *migration.key)
