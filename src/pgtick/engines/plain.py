"""Plain PostgreSQL 15–18: a partition a day."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from pgtick.connection import DatabaseManager
from pgtick.engines.base import Engine, SeriesInfo, SeriesSize, fetch_briefly
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

_SIZES = """
SELECT s.table_name AS "table", coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint AS n_bytes,
       coalesce(sum(pg_indexes_size(c.oid)), 0)::bigint AS n_index_bytes,
       coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint AS n_rows, count(c.oid) AS n_parts
FROM pgtick_time_series s
LEFT JOIN LATERAL pg_partition_tree(to_regclass(quote_ident(s.table_name))) t ON t.isleaf
LEFT JOIN pg_class c ON c.oid = t.relid
WHERE to_regclass(quote_ident(s.table_name)) IS NOT NULL GROUP BY 1 ORDER BY 1
"""
_SERIES = """
SELECT table_name, retention, relkind = 'p' AS is_partitioned, date_trunc('day', now(), 'UTC') AS today,
       array(SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = c.oid AND inhdetachpending) AS detaching
FROM pgtick_time_series JOIN pg_class c ON c.oid = to_regclass(quote_ident(table_name)) ORDER BY table_name
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

    Both are done by functions on the server (migration 006), so that the role that writes need not own the tables.
    What a partition holds is read from its bounds, so partitions of other lengths and names count as well.
    """

    name = "plain"
    _drop_settings = ""

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
                name = await self._make_partition(db, table, start)
            if not db.in_transaction:  # a rolled-back partition is not there
                known[day] = name

    async def _make_partition(self, db: DatabaseManager, table: str, start: datetime) -> str:
        async with db.transaction():  # where the caller is in one, a savepoint: a refusal must not spoil it
            name: str = await db.fetchval("SELECT pgtick_make_partition($1, $2)", table, start.date())
        return name

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
        function = "to_regprocedure('pgtick_make_partition(text, date)')"
        if await db.fetchval(f"SELECT has_function_privilege({function}, 'EXECUTE')"):
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
            drop = "SELECT pgtick_drop_partition(to_regclass($1))"
            answer = await fetch_briefly(db, drop, name, settings=self._drop_settings)
            if answer is None:
                logger.warning("partition %s is in use: it is dropped next time", name)
            elif answer[0][0]:  # else another process was first
                dropped.append(name)
        return dropped

    async def sizes(self, db: DatabaseManager) -> list[SeriesSize]:
        """Return the size of every time-series table that is there, all its partitions together, by name."""
        return [SeriesSize(**record) for record in await db.fetch(_SIZES)]

    async def describe(self, db: DatabaseManager) -> list[SeriesInfo]:
        """Return how every time-series table that is there is kept, by name, from its partitions' bounds."""
        return [_info(record, await _partitions(db, record["table_name"])) for record in await db.fetch(_SERIES)]


def _info(record: Any, partitions: list[_Partition]) -> SeriesInfo:
    starts = [partition.start for partition in partitions]
    stops = [partition.stop for partition in partitions]
    return SeriesInfo(
        table=record["table_name"],
        kind="partitioned" if record["is_partitioned"] else "table",
        part_interval=_DAY,
        retention=record["retention"],
        n_parts=len(partitions),
        oldest=None if None in starts else min(filter(None, starts), default=None),
        newest=None if None in stops else max(filter(None, stops), default=None),
        retention_by="pgtick maintain" if record["is_partitioned"] else "nobody",
        findings=tuple(_findings(record, partitions)),
    )


def _findings(record: Any, partitions: list[_Partition]) -> Iterator[str]:
    """Yield what is not as it should be, each as "what is: what to do"."""
    if not record["is_partitioned"]:
        yield "is not partitioned, so nothing of it is ever dropped: adopt it with pgtick migrate baseline"
        return
    today = record["today"]
    for word, day in (("today", today), ("tomorrow", today + _DAY)):
        if not any(partition.holds_day(day) for partition in partitions):
            yield f"no partition for {word} ({day:%Y-%m-%d}), its rows would wait for one: run pgtick maintain"
    # A day more than the retention, since a partition goes only when all of it is too old and maintenance came by.
    limit = today - record["retention"] - _DAY
    old = [partition.name for partition in partitions if partition.stop is not None and partition.stop <= limit]
    if old:
        yield (
            f"retention is not in force, {len(old)} partitions are older than it by more than a day, the oldest "
            f"{old[0]}: run pgtick maintain, and see why nobody does (maintenance_interval_s, cron, a long reader)"
        )
    for name in record["detaching"]:
        yield (
            f"partition {name} is half detached, its rows are not seen: "
            f"ALTER TABLE {quote_identifier(record['table_name'])} DETACH PARTITION {name} FINALIZE"
        )


async def _partitions(db: DatabaseManager, table: str) -> list[_Partition]:
    return [_Partition(**record) for record in await db.fetch(_PARTITIONS, table)]
