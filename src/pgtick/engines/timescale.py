"""TimescaleDB: hypertables with a retention policy; with the Apache licence, chunks are dropped by pgtick."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from pgtick.connection import DatabaseManager
from pgtick.tables import quote_identifier

__all__ = ["TimescaleEngine"]


class TimescaleEngine:
    """Chunks make themselves; retention is a policy, or drop_chunks where the licence has no policies."""

    name = "timescale"

    async def create(
        self, db: DatabaseManager, table: str, columns: str, *, chunk: timedelta, retention: timedelta
    ) -> None:
        """Create a hypertable from the text of its columns and constraints."""
        await db.execute(f"CREATE TABLE {quote_identifier(table)} ({columns})")
        await db.execute(
            "SELECT create_hypertable($1::regclass, 'timestamp', chunk_time_interval => $2::interval)",
            table,
            chunk,
        )
        if await _has_policies(db):
            await _add_policy(db, table, retention)
        await db.execute("INSERT INTO pgtick_time_series VALUES ($1, $2, $3)", table, chunk, retention)

    async def ensure_days(self, db: DatabaseManager, table: str, days: Iterable[int]) -> None:
        """Do nothing: a chunk is made by the row that needs it."""

    async def make_ahead(self, db: DatabaseManager, days: int = 3) -> None:
        """Do nothing: a chunk is made by the row that needs it."""

    async def apply_retention(self, db: DatabaseManager, *, dry_run: bool = False) -> dict[str, list[str]]:
        """Bring the policies in line with pgtick_time_series, or drop old chunks; return those by table."""
        dropped: dict[str, list[str]] = {}
        policies = await _has_policies(db)
        for table, retention in await db.fetch("SELECT table_name, retention FROM pgtick_time_series"):
            cutoff = datetime.now(UTC) - retention
            if dry_run or not policies:
                dropped[table] = await self.drop_older_than(db, table, cutoff, dry_run=dry_run)
            else:
                async with db.transaction():
                    # With if_not_exists a changed interval only warns: remove it first.
                    await db.execute("SELECT remove_retention_policy($1::regclass, if_exists => true)", table)
                    await _add_policy(db, table, retention)
                dropped[table] = []
        return dropped

    async def drop_older_than(
        self, db: DatabaseManager, table: str, cutoff: datetime, *, dry_run: bool = False
    ) -> list[str]:
        """Drop the chunks that end before the cutoff; return their names."""
        verb = "show_chunks" if dry_run else "drop_chunks"
        records = await db.fetch(f"SELECT {verb}($1::regclass, older_than => $2::timestamptz)::text", table, cutoff)
        return [record[0] for record in records]


async def _has_policies(db: DatabaseManager) -> bool:
    return bool(await db.fetchval("SELECT current_setting('timescaledb.license') = 'timescale'"))


async def _add_policy(db: DatabaseManager, table: str, retention: timedelta) -> None:
    # The default schedule is a day, far coarser than the chunks.
    await db.execute(
        "SELECT add_retention_policy($1::regclass, drop_after => $2::interval, schedule_interval => interval '1 hour')",
        table,
        retention,
    )
