"""TimescaleDB: hypertables with a retention policy; with the Apache licence, chunks are dropped by pgtick."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from pgtick.connection import DatabaseManager
from pgtick.engines.base import Engine, fetch_briefly
from pgtick.tables import quote_identifier

__all__ = ["TimescaleEngine"]

logger = logging.getLogger(__name__)

# The default schedule is a day, far coarser than the chunks. The first run is one interval away, so that rows
# loaded into a new table are not dropped under the loader's hands.
_ADD_POLICY = """
SELECT add_retention_policy(quote_ident(table_name)::regclass, drop_after => retention,
    schedule_interval => least(chunk_interval, interval '1 hour'),
    initial_start => now() + least(chunk_interval, interval '1 hour'))
FROM pgtick_time_series WHERE table_name = $1
"""
_WRONG_POLICIES = """
SELECT s.table_name FROM pgtick_time_series s
LEFT JOIN timescaledb_information.jobs j ON j.proc_name = 'policy_retention'
    AND to_regclass(format('%I.%I', j.hypertable_schema, j.hypertable_name)) = to_regclass(quote_ident(s.table_name))
WHERE to_regclass(quote_ident(s.table_name)) IS NOT NULL
    AND ((j.config ->> 'drop_after')::interval, j.schedule_interval) IS DISTINCT FROM
        (s.retention, least(s.chunk_interval, interval '1 hour'))
ORDER BY 1
"""
_CHUNK_ENDS = """
SELECT DISTINCT range_end FROM timescaledb_information.chunks
WHERE format('%I.%I', hypertable_schema, hypertable_name)::regclass = quote_ident($1)::regclass AND range_end <= $2
ORDER BY 1
"""


class TimescaleEngine(Engine):
    """Chunks make themselves; retention is a policy, or drop_chunks where the licence has no policies."""

    name = "timescale"

    async def create(
        self, db: DatabaseManager, table: str, columns: str, *, chunk: timedelta, retention: timedelta
    ) -> None:
        """Create a hypertable, with the primary key as its only index."""
        await db.execute(f"CREATE TABLE {quote_identifier(table)} ({columns})")
        await db.execute(
            "SELECT create_hypertable(quote_ident($1)::regclass, 'timestamp', "
            "chunk_time_interval => $2::interval, create_default_indexes => false)",
            table,
            chunk,
        )
        await self._register(db, table, chunk, retention)
        if await _has_policies(db):
            await db.execute(_ADD_POLICY, table)

    async def apply_retention(self, db: DatabaseManager, *, dry_run: bool = False) -> dict[str, list[str]]:
        """Bring the policies in line with pgtick_time_series, or drop old chunks; return those by table."""
        if dry_run or not await _has_policies(db):
            return await super().apply_retention(db, dry_run=dry_run)
        for record in await db.fetch(_WRONG_POLICIES):
            async with db.transaction():
                # With if_not_exists a changed interval only warns: remove it first.
                await db.execute(
                    "SELECT remove_retention_policy(quote_ident($1)::regclass, if_exists => true)", record["table_name"]
                )
                await db.execute(_ADD_POLICY, record["table_name"])
            logger.info("set the retention policy of %s", record["table_name"])
        return {}

    async def drop_older_than(
        self, db: DatabaseManager, table: str, cutoff: datetime, *, dry_run: bool = False
    ) -> list[str]:
        """Drop the chunks that end at the cutoff or before, each in a short transaction of its own."""
        if dry_run:
            query = "SELECT show_chunks(quote_ident($1)::regclass, older_than => $2::timestamptz)::text"
            return [record[0] for record in await db.fetch(query, table, cutoff)]
        dropped: list[str] = []
        for record in await db.fetch(_CHUNK_ENDS, table, cutoff):
            chunks = await fetch_briefly(
                db,
                "SELECT drop_chunks(quote_ident($1)::regclass, older_than => $2::timestamptz)::text",
                table,
                record["range_end"],
            )
            if chunks is None:
                logger.warning("chunks of %s before %s are in use: dropped next time", table, record["range_end"])
                break
            dropped += [chunk[0] for chunk in chunks]
        return dropped


async def _has_policies(db: DatabaseManager) -> bool:
    return bool(await db.fetchval("SELECT current_setting('timescaledb.license') = 'timescale'"))
