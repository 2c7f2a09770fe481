"""TimescaleDB: hypertables with a retention policy; with the Apache licence, chunks are dropped by pgtick."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from pgtick.connection import DatabaseManager
from pgtick.engines.base import Engine, SeriesInfo, SeriesSize, fetch_briefly
from pgtick.engines.candles import CandleKind, find_candle_view, keep_candle_policies
from pgtick.engines.columnstore import has_policies, keep_columnstore
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

_SIZES = """
SELECT s.table_name, z.total_bytes::bigint, z.index_bytes::bigint, approximate_row_count(relation),
    (SELECT count(*) FROM show_chunks(relation))
FROM pgtick_time_series s
CROSS JOIN LATERAL (SELECT to_regclass(quote_ident(s.table_name)) AS relation) r
CROSS JOIN LATERAL hypertable_detailed_size(relation) z
WHERE relation IS NOT NULL ORDER BY 1
"""
_DESCRIBE = """
SELECT s.table_name, max(j.schedule_interval), max(d.time_interval), s.retention, count(DISTINCT c.chunk_name)::int,
    min(c.range_start), max(c.range_end)
FROM pgtick_time_series s
JOIN pg_class r ON r.oid = to_regclass(quote_ident(s.table_name))
JOIN pg_namespace n ON n.oid = r.relnamespace
JOIN timescaledb_information.dimensions d ON (d.hypertable_schema, d.hypertable_name) = (n.nspname, r.relname)
LEFT JOIN timescaledb_information.chunks c ON (c.hypertable_schema, c.hypertable_name) = (n.nspname, r.relname)
LEFT JOIN timescaledb_information.jobs j ON (j.hypertable_schema, j.hypertable_name) = (n.nspname, r.relname)
    AND j.proc_name = 'policy_retention' AND j.scheduled
GROUP BY s.table_name, s.retention ORDER BY 1
"""
# A job that is late by more than its schedule finds no worker, or the scheduler is not running.
_TROUBLED_JOBS = """
WITH expected AS (
    SELECT table_name, table_name AS relation, 'policy_retention' AS proc, 'retention' AS what FROM pgtick_time_series
    UNION ALL SELECT table_name, table_name, 'policy_compression', 'columnstore' FROM pgtick_time_series
        WHERE columnstore_after IS NOT NULL
    UNION ALL SELECT source_table, candle_view, 'policy_refresh_continuous_aggregate', 'refresh of ' || candle_view
        FROM pgtick_candles
    UNION ALL SELECT source_table, candle_view, 'policy_retention', 'retention of ' || candle_view
        FROM pgtick_candles WHERE retention IS NOT NULL
)
SELECT e.table_name, e.what, j.job_id, j.scheduled, t.last_run_status, j.next_start AT TIME ZONE 'UTC' AS next_start,
    (SELECT err_message FROM timescaledb_information.job_errors x WHERE x.job_id = j.job_id
     ORDER BY start_time DESC LIMIT 1) AS error
FROM expected e
LEFT JOIN timescaledb_information.jobs j ON j.proc_name = e.proc
    AND to_regclass(quote_ident(j.hypertable_schema) || '.' || quote_ident(j.hypertable_name))
        = to_regclass(quote_ident(e.relation))
LEFT JOIN timescaledb_information.job_stats t USING (job_id)
WHERE to_regclass(quote_ident(e.relation)) IS NOT NULL AND (j.job_id IS NULL OR NOT j.scheduled
    OR t.last_run_status = 'Failed' OR j.next_start < now() - j.schedule_interval - interval '10 minutes')
ORDER BY 1, 2
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
        if await has_policies(db):
            await db.execute(_ADD_POLICY, table)

    async def apply_retention(self, db: DatabaseManager, *, dry_run: bool = False) -> dict[str, list[str]]:
        """Bring the policies in line with pgtick_time_series, or drop old chunks; return those by table."""
        if dry_run or not await has_policies(db):
            return await super().apply_retention(db, dry_run=dry_run)
        for record in await db.fetch(_WRONG_POLICIES):
            async with db.transaction():
                # With if_not_exists a changed interval only warns: remove it first.
                await db.execute(
                    "SELECT remove_retention_policy(quote_ident($1)::regclass, if_exists => true)", record["table_name"]
                )
                await db.execute(_ADD_POLICY, record["table_name"])
            logger.info("set the retention policy of %s", record["table_name"])
        await keep_columnstore(db)
        await keep_candle_policies(db)
        return {}

    async def candle_view(self, db: DatabaseManager, kind: CandleKind, width: timedelta) -> str | None:
        """Return the continuous aggregate of the widest candles that ``width`` is a multiple of, or None."""
        return await find_candle_view(db, kind, width)

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

    async def sizes(self, db: DatabaseManager) -> list[SeriesSize]:
        """Return the size of every hypertable, compressed chunks included."""
        names = ("table", "n_bytes", "n_index_bytes", "n_rows", "n_parts")
        return [SeriesSize(**dict(zip(names, record, strict=True))) for record in await db.fetch(_SIZES)]

    async def describe(self, db: DatabaseManager) -> list[SeriesInfo]:
        """Return how every hypertable is kept; findings tell of policies that are missing, paused or failing."""
        has_jobs = await has_policies(db)
        findings: dict[str, list[str]] = {}
        for record in await db.fetch(_TROUBLED_JOBS) if has_jobs else ():
            findings.setdefault(record["table_name"], []).append(_finding(record))
        described = []
        for table, every, *values in await db.fetch(_DESCRIBE):
            part_interval, retention, n_parts, oldest, newest = values
            kept_by = f"policy, every {every}" if every is not None else "nothing" if has_jobs else "pgtick maintain"
            described.append(
                SeriesInfo(
                    table=table,
                    kind="hypertable",
                    part_interval=part_interval,
                    retention=retention,
                    n_parts=n_parts,
                    oldest=oldest,
                    newest=newest,
                    retention_by=kept_by,
                    findings=tuple(findings.get(table, ())),
                )
            )
        return described


def _finding(record: Any) -> str:
    what, job_id = record["what"], record["job_id"]
    if job_id is None:
        return f"the policy for {what} is missing: run pgtick maintain"
    if not record["scheduled"]:
        return f"the policy for {what} is paused: SELECT alter_job({job_id}, scheduled => true)"
    if record["last_run_status"] == "Failed":
        return (
            f"the policy for {what} fails ({record['error'] or 'reason unknown'}): "
            f"CALL run_job({job_id}) when it is mended"
        )
    return (
        f"the policy for {what} should have run at {record['next_start']:%Y-%m-%d %H:%M} UTC and has not: "
        "raise timescaledb.max_background_workers and max_worker_processes"
    )
