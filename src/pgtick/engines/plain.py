"""Plain PostgreSQL 15–18: a partition a day."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from pgtick.connection import DatabaseManager
from pgtick.engines.base import Engine, fetch_briefly
from pgtick.tables import quote_identifier

__all__ = ["PlainEngine"]

logger = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)
_SUFFIX = "_p%Y%m%d"
_MAX_NAME_BYTES = 63 - len("_p20260101")  # PostgreSQL cuts longer names, and all days would be one

_PARTITIONS = r"""
SELECT name, relname, (regexp_match(bounds, 'FROM \(''([^'']+)'))[1]::timestamptz AS start,
       (regexp_match(bounds, 'TO \(''([^'']+)'))[1]::timestamptz AS stop
FROM (SELECT c.oid::regclass::text AS name, c.relname::text AS relname, pg_get_expr(c.relpartbound, c.oid) AS bounds
      FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
      WHERE inhparent = quote_ident($1)::regclass AND NOT inhdetachpending) p
WHERE bounds <> 'DEFAULT' ORDER BY start
"""


class _Partition(msgspec.Struct, frozen=True):
    """``name`` is quoted and qualified where need be, ``relname`` not; a bound that is None has no end."""

    name: str
    relname: str
    start: datetime | None
    stop: datetime | None

    def holds_day(self, start: datetime) -> bool:
        return (self.start is None or self.start <= start) and (self.stop is None or start + _DAY <= self.stop)


class PlainEngine(Engine):
    """Daily partitions, made ahead and when a batch needs them; retention drops whole partitions.

    Both are done by functions on the server (migration 005), so that the role that writes need not own the tables.
    What a partition holds is read from its bounds, so partitions of other lengths and names count as well.
    """

    name = "plain"

    def __init__(self) -> None:
        self._known: dict[str, dict[int, str]] = {}  # table: {day: its partition}

    async def create(
        self, db: DatabaseManager, table: str, columns: str, *, chunk: timedelta, retention: timedelta
    ) -> None:
        """Create a partitioned table; ``chunk`` is for other engines, here it is a day."""
        if len(table.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"table name {table!r} must be at most {_MAX_NAME_BYTES} bytes long")
        await db.execute(f"CREATE TABLE {quote_identifier(table)} ({columns}) PARTITION BY RANGE (timestamp)")
        await self._register(db, table, chunk, retention)

    async def ensure_days(self, db: DatabaseManager, table: str, days: Iterable[int]) -> None:
        """Make the partitions of these days where they are missing."""
        known = self._known.setdefault(table, {})
        missing = sorted(set(days) - known.keys())
        if not missing:
            return
        partitions = await _partitions(db, table)
        for day in missing:
            start = _EPOCH + day * _DAY
            name = next((partition.relname for partition in partitions if partition.holds_day(start)), None)
            if name is None:
                name = await _make_partition(db, table, start)
            if not db.in_transaction:  # a rolled-back partition is not there
                known[day] = name

    def copy_target(self, db: DatabaseManager, table: str, days: Collection[int]) -> str:
        """Return the day's partition where all rows are of one day, and the partition is one of pgtick's.

        On the parent a statement trigger makes COPY insert row by row; the partition, which carries the trigger
        itself, takes them by the thousand (docs/profile.md). Before PostgreSQL 17 an identity column of the parent
        numbers no rows there.
        """
        if len(days) != 1 or db.server_version < 170000:
            return table
        (day,) = days
        own = table + (_EPOCH + day * _DAY).strftime(_SUFFIX)
        return own if self._known.get(table, {}).get(day) == own else table

    async def make_ahead(self, db: DatabaseManager, days: int = 3) -> None:
        """Make the partitions of today and the next days for every time-series table, where the role may."""
        today = await db.fetchval("SELECT floor(extract(epoch FROM now()) / 86400)::int")
        records = await db.fetch(
            "SELECT table_name FROM pgtick_time_series "
            "WHERE to_regclass(quote_ident(table_name)) IS NOT NULL ORDER BY table_name"
        )
        # A reader's start must not depend on whether the writer's service has been at it.
        if await db.fetchval("SELECT has_function_privilege('pgtick_make_partition(text, date)', 'EXECUTE')"):
            for record in records:
                await self.ensure_days(db, record["table_name"], range(today, today + days + 1))

    def forget(self, table: str) -> None:
        """Forget which days have a partition: another process may have dropped one."""
        self._known.pop(table, None)

    async def drop_older_than(
        self, db: DatabaseManager, table: str, cutoff: datetime, *, dry_run: bool = False
    ) -> list[str]:
        """Drop each partition that ends at the cutoff or before, in a short transaction of its own.

        The server refuses to drop what lies within the retention, whatever the cutoff (42501).
        """
        old = [p.name for p in await _partitions(db, table) if p.stop is not None and p.stop <= cutoff]
        if dry_run:
            return old
        self.forget(table)
        dropped = []
        for name in old:
            answer = await fetch_briefly(db, "SELECT pgtick_drop_partition(to_regclass($1))", name)
            if answer is None:
                logger.warning("partition %s is in use: it is dropped next time", name)
            elif answer[0][0]:  # else another process was first
                dropped.append(name)
        return dropped


async def _partitions(db: DatabaseManager, table: str) -> list[_Partition]:
    return [_Partition(**record) for record in await db.fetch(_PARTITIONS, table)]


async def _make_partition(db: DatabaseManager, table: str, start: datetime) -> str:
    async with db.transaction():  # where the caller is in one, a savepoint: a refusal must not spoil it
        name: str = await db.fetchval("SELECT pgtick_make_partition($1, $2)", table, start.date())
    return name
