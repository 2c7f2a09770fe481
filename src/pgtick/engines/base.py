"""Engine: what the engines have in common, and the things in which they differ."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from pgtick.connection import DatabaseManager
from pgtick.engines.candles import CandleKind
from pgtick.tables import quote_identifier

__all__ = ["Engine", "SeriesInfo", "SeriesSize", "add_reference_triggers", "fetch_briefly"]

logger = logging.getLogger(__name__)

# Under the server's deadlock_timeout (1 s), so that it is maintenance that gives way and never ingest; whoever
# comes after a waiting exclusive lock waits too, so it is short.
_LOCK_TIMEOUT = "500ms"
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.5

# The server's clock decides what is old: a wrong clock of a client must not drop rows. In UTC, as in
# pgtick_drop_partition: days are not of the same length everywhere.
_CUTOFFS = (
    "SELECT table_name, greatest((now() AT TIME ZONE 'UTC' - retention) AT TIME ZONE 'UTC', 'epoch') AS cutoff "
    "FROM pgtick_time_series "
    "WHERE to_regclass(quote_ident(table_name)) IS NOT NULL ORDER BY table_name"
)


class SeriesSize(msgspec.Struct, frozen=True, kw_only=True):
    """How large a time-series table is, all its partitions or chunks (and shards) together."""

    table: str
    n_bytes: int  # rows, TOAST and indexes
    n_index_bytes: int
    n_rows: int  # the planner's estimate
    n_parts: int  # partitions or chunks


class SeriesInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How a time-series table is kept."""

    table: str
    kind: str  # "partitioned", "hypertable", "distributed"
    part_interval: timedelta  # what a new partition or chunk spans
    retention: timedelta  # as in pgtick_time_series
    n_parts: int
    oldest: datetime | None  # where the oldest part begins; None: there is none, or it has no bound
    newest: datetime | None  # where the newest part ends
    retention_by: str  # who drops what is old: "policy, every 0:30:00", "pgtick maintain"
    n_shards: int | None = None
    findings: tuple[str, ...] = ()  # what is not as it should be, each with what to do


class Engine(ABC):
    """What an engine does for time-series tables, which it knows by their rows in pgtick_time_series."""

    name: str
    #: Settings of the transaction of a COPY into a time-series table, and of what takes its place.
    copy_settings = ""
    #: Whether a statement may have a temporary table and exchanges or symbols in it.
    joins_temporary_tables = True

    @abstractmethod
    async def create(
        self, db: DatabaseManager, table: str, columns: str, *, chunk: timedelta, retention: timedelta
    ) -> None:
        """Create a time-series table from the text of its columns and constraints, and register it."""

    @abstractmethod
    async def drop_older_than(
        self, db: DatabaseManager, table: str, cutoff: datetime, *, dry_run: bool = False
    ) -> list[str]:
        """Drop what ends at the cutoff or before; return the names of what went, or with ``dry_run`` would go.

        What is in use for seconds on end is left for the next time, with a warning.
        """

    async def ensure_days(self, db: DatabaseManager, table: str, days: Iterable[int]) -> None:  # noqa: B027
        """See to it that rows of these days (since 1970-01-01 UTC) find their place."""

    async def make_ahead(self, db: DatabaseManager, days: int = 3) -> None:  # noqa: B027
        """See to it that rows of today and the next days find their place, in every time-series table."""

    def copy_target(self, db: DatabaseManager, table: str, days: Collection[int]) -> str:
        """Return the table that a large batch of rows of these days is best copied into: it, or a part of it."""
        return table

    def forget(self, table: str) -> None:  # noqa: B027
        """Forget what is remembered of the table, because the server says otherwise (23514 without a constraint)."""

    def sorted_error(self, error: asyncpg.PostgresError) -> asyncpg.PostgresError:
        """Return the error that a refused statement means: itself, but where the engine hides it in another."""
        return error

    def since(self, window: timedelta) -> str:
        """Return SQL for the instant that long ago or a little longer, by which the planner leaves old parts out."""
        # The server's now() and not a parameter: from the sixth time on a session plans without the parameters'
        # values, and TimescaleDB then leaves old chunks out by now() alone (0.1 ms instead of 6, bench_planning).
        return f"now() - interval '{window.total_seconds():.0f} seconds'"

    async def candle_view(self, db: DatabaseManager, kind: CandleKind, width: timedelta) -> str | None:
        """Return the aggregate that candles of this width are best made from, quoted, or None: from rows."""
        return None

    async def apply_retention(self, db: DatabaseManager, *, dry_run: bool = False) -> dict[str, list[str]]:
        """Drop what is wholly older than its table's retention; return the names by table.

        A table that fails does not keep the others from it; the first error is raised at the end.
        """
        dropped: dict[str, list[str]] = {}
        failure: asyncpg.PostgresError | None = None
        for table, cutoff in await db.fetch(_CUTOFFS):
            try:
                dropped[table] = await self.drop_older_than(db, table, cutoff, dry_run=dry_run)
            except asyncpg.PostgresError as error:
                logger.warning("the retention of %s is not in force: %s", table, error)
                failure = failure or error
        if failure is not None:
            raise failure
        return dropped

    @abstractmethod
    async def sizes(self, db: DatabaseManager) -> list[SeriesSize]:
        """Return the size of every time-series table that is there, by name."""

    @abstractmethod
    async def describe(self, db: DatabaseManager) -> list[SeriesInfo]:
        """Return how every time-series table that is there is kept, by name."""

    async def _register(self, db: DatabaseManager, table: str, chunk: timedelta, retention: timedelta) -> None:
        await db.execute("INSERT INTO pgtick_time_series VALUES ($1, $2, $3)", table, chunk, retention)


async def fetch_briefly(db: DatabaseManager, query: str, *args: object, settings: str = "") -> list[Any] | None:
    """Run a statement that needs exclusive locks, in a transaction of its own, without holding up others.

    It waits for its locks half a second, a few times; returns None when they were not to be had. ``settings``:
    statements that come first in the transaction.
    """
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            await asyncio.sleep(_LOCK_PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311  no secret depends on it
        try:
            async with db.transaction():
                await db.execute(f"{settings} SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                return await db.fetch(query, *args)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            continue
    return None


async def add_reference_triggers(db: DatabaseManager, table: str, arguments: Sequence[str]) -> None:
    """Check the table's references once a statement; ``arguments`` are pairs: column, referenced table."""
    quoted = ", ".join("'" + argument.replace("'", "''") + "'" for argument in arguments)
    for event in ("INSERT", "UPDATE"):
        await db.execute(
            f"CREATE TRIGGER check_references_{event.lower()} AFTER {event} ON {quote_identifier(table)} "
            "REFERENCING NEW TABLE AS incoming FOR EACH STATEMENT "
            f"EXECUTE FUNCTION pgtick_check_references({quoted})"
        )
