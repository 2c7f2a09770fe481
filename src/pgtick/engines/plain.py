"""Plain PostgreSQL 15–18: a partition a day."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import asyncpg

from pgtick.connection import DatabaseManager
from pgtick.tables import quote_identifier

__all__ = ["PlainEngine"]

logger = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SUFFIX = "_p%Y%m%d"


class PlainEngine:
    """Daily partitions, made ahead and when a batch needs them; retention drops whole partitions."""

    name = "plain"

    def __init__(self) -> None:
        self._known: dict[str, set[int]] = {}

    async def create(
        self, db: DatabaseManager, table: str, columns: str, *, chunk: timedelta, retention: timedelta
    ) -> None:
        """Create a time-series table from the text of its columns and constraints."""
        await db.execute(f"CREATE TABLE {quote_identifier(table)} ({columns}) PARTITION BY RANGE (timestamp)")
        await _register(db, table, chunk, retention)

    async def ensure_days(self, db: DatabaseManager, table: str, days: Iterable[int]) -> None:
        """Make the partitions of these days (since 1970-01-01 UTC) where they are missing."""
        known = self._known.setdefault(table, set())
        missing = sorted(set(days) - known)
        if not missing:
            return
        checked = await _checked_columns(db, table)
        for day in missing:
            start = _EPOCH + timedelta(days=day)
            await _make_partition(db, table, start, checked)
            if not db.in_transaction:  # a rolled-back partition is not there
                known.add(day)

    async def make_ahead(self, db: DatabaseManager, days: int = 3) -> None:
        """Make the partitions of today and the next days for every time-series table."""
        today = (datetime.now(UTC) - _EPOCH).days
        for record in await db.fetch("SELECT table_name FROM pgtick_time_series ORDER BY table_name"):
            await self.ensure_days(db, record["table_name"], range(today, today + days + 1))

    async def apply_retention(self, db: DatabaseManager, *, dry_run: bool = False) -> dict[str, list[str]]:
        """Drop the partitions that are wholly older than their table's retention; return them by table."""
        dropped: dict[str, list[str]] = {}
        for table, retention in await db.fetch("SELECT table_name, retention FROM pgtick_time_series"):
            cutoff = datetime.now(UTC) - retention
            dropped[table] = await self.drop_older_than(db, table, cutoff, dry_run=dry_run)
        return dropped

    async def drop_older_than(
        self, db: DatabaseManager, table: str, cutoff: datetime, *, dry_run: bool = False
    ) -> list[str]:
        """Drop each partition that ends before the cutoff, in a short transaction of its own."""
        records = await db.fetch(
            "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = $1::regclass ORDER BY 1",
            table,
        )
        old = []
        for record in records:
            try:
                day = datetime.strptime(record["name"], table + _SUFFIX).replace(tzinfo=UTC)
            except ValueError:
                continue  # not made by pgtick
            if day + timedelta(days=1) <= cutoff:
                old.append(record["name"])
        if not dry_run:
            for name in old:
                await _drop(db, name)
            self._known.pop(table, None)
        return old


async def _register(db: DatabaseManager, table: str, chunk: timedelta, retention: timedelta) -> None:
    await db.execute("INSERT INTO pgtick_time_series VALUES ($1, $2, $3)", table, chunk, retention)


async def _checked_columns(db: DatabaseManager, table: str) -> list[tuple[str, str]]:
    """Return the trigger arguments of the table's set-based references: a partition carries them itself."""
    records = await db.fetch(
        "SELECT a.attname AS column, c.confrelid::regclass::text AS target FROM pg_constraint c "
        "JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1] "
        "WHERE c.conrelid = $1::regclass AND c.contype = 'f' AND c.conparentid = 0 "
        "AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.conrelid AND NOT t.tgisinternal "
        "AND t.tgname LIKE 'check_references%') ORDER BY 1",
        table,
    )
    return [(record["column"], record["target"]) for record in records]


async def _make_partition(db: DatabaseManager, table: str, start: datetime, checked: list[tuple[str, str]]) -> None:
    name = table + start.strftime(_SUFFIX)
    try:
        async with db.transaction():
            # Two processes that make the same day wait for each other here, not in a deadlock.
            await db.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"pgtick partition {table}")
            if await db.fetchval("SELECT to_regclass($1)", name) is not None:
                return
            await db.execute(
                f"CREATE TABLE {quote_identifier(name)} PARTITION OF {quote_identifier(table)} "
                f"FOR VALUES FROM ('{start.isoformat()}') TO ('{(start + timedelta(days=1)).isoformat()}')"
            )
            if checked:
                arguments = ", ".join(f"'{column}', '{target}'" for column, target in checked)
                await db.execute(
                    f"CREATE TRIGGER check_references_insert AFTER INSERT ON {quote_identifier(name)} "
                    "REFERENCING NEW TABLE AS incoming FOR EACH STATEMENT "
                    f"EXECUTE FUNCTION pgtick_check_references({arguments})"
                )
    except (asyncpg.DuplicateTableError, asyncpg.UniqueViolationError):
        logger.debug("partition %s was made by another process", name)


async def _drop(db: DatabaseManager, name: str) -> None:
    async with db.transaction():
        await db.execute("SET LOCAL lock_timeout = '2s'")
        await db.execute(f"DROP TABLE {name}")
