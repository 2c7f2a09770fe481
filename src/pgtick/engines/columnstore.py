"""The columnstore of hypertables: chunks that hardly change any more are compressed, by policy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from pgtick.connection import DatabaseManager
from pgtick.tables import quote_identifier

__all__ = ["add_columnstore", "has_policies", "keep_columnstore", "remove_columnstore"]

logger = logging.getLogger(__name__)

# initial_start: as with retention, nothing happens to a new table under its loader's hands.
_ADD_POLICY = """
CALL add_columnstore_policy(quote_ident($1)::regclass, after => $2::interval,
    schedule_interval => least($3::interval, interval '1 hour'),
    initial_start => now() + least($3::interval, interval '1 hour'))
"""
_REMOVE_POLICY = "CALL remove_columnstore_policy(quote_ident($1)::regclass, if_exists => true)"
_WRONG = """
SELECT s.table_name, s.chunk_interval, s.columnstore_after, c.segmentby IS NOT NULL AS is_enabled
FROM pgtick_time_series s
JOIN timescaledb_information.hypertable_columnstore_settings c
    ON c.hypertable = to_regclass(quote_ident(s.table_name))
LEFT JOIN timescaledb_information.jobs j ON j.proc_name = 'policy_compression'
    AND to_regclass(format('%I.%I', j.hypertable_schema, j.hypertable_name)) = c.hypertable
WHERE ((j.config ->> 'compress_after')::interval, j.schedule_interval) IS DISTINCT FROM
    (s.columnstore_after, CASE WHEN s.columnstore_after IS NOT NULL THEN least(s.chunk_interval, interval '1 hour') END)
ORDER BY 1
"""
_KEY = """
SELECT a.attname::text FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, position)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indisprimary AND i.indrelid = quote_ident($1)::regclass ORDER BY k.position
"""
# All chunks are made rows again: the server refuses to switch the columnstore off while one is compressed.
_REMOVE = """
DO $$ DECLARE series regclass; BEGIN
    FOR series IN SELECT to_regclass(quote_ident(table_name)) FROM pgtick_time_series
        JOIN timescaledb_information.hypertable_columnstore_settings
            ON hypertable = to_regclass(quote_ident(table_name)) AND segmentby IS NOT NULL
    LOOP
        CALL remove_columnstore_policy(series, if_exists => true);
        PERFORM decompress_chunk(chunk, true) FROM show_chunks(series) AS chunk;
        EXECUTE format('ALTER TABLE %s SET (timescaledb.enable_columnstore = false)', series);
    END LOOP;
END $$
"""


async def has_policies(db: DatabaseManager) -> bool:
    """Return whether the licence has policies, columnstore and aggregates: the community's has, Apache's has not."""
    return bool(await db.fetchval("SELECT current_setting('timescaledb.license') = 'timescale'"))


async def add_columnstore(
    db: DatabaseManager, table: str, key: Sequence[str], *, chunk: timedelta, after: timedelta
) -> None:
    """Have chunks that ended ``after`` ago compressed by the first column of the key, in the order of time.

    Every column of the key is part of it, so that the server finds a duplicate without decompressing the chunk.
    """
    await _enable(db, table, key)
    await db.execute("UPDATE pgtick_time_series SET columnstore_after = $2 WHERE table_name = $1", table, after)
    await db.execute(_ADD_POLICY, table, after, chunk)


async def _enable(db: DatabaseManager, table: str, key: Sequence[str]) -> None:
    leading, *rest = key
    order = ["timestamp", *(name for name in rest if name != "timestamp")]
    names = (", ".join(map(quote_identifier, columns)).replace("'", "''") for columns in ([leading], order))
    segments, ordered = names
    await db.execute(
        f"ALTER TABLE {quote_identifier(table)} SET (timescaledb.enable_columnstore, "
        f"timescaledb.segmentby = '{segments}', timescaledb.orderby = '{ordered}')"
    )


async def keep_columnstore(db: DatabaseManager) -> None:
    """Bring the policies in line with pgtick_time_series; without ``columnstore_after`` a table has none.

    Chunks that are compressed already stay so.
    """
    for record in await db.fetch(_WRONG):
        table, after = record["table_name"], record["columnstore_after"]
        async with db.transaction():
            await db.execute(_REMOVE_POLICY, table)
            if after is not None:
                if not record["is_enabled"]:
                    await _enable(db, table, [key[0] for key in await db.fetch(_KEY, table)])
                await db.execute(_ADD_POLICY, table, after, record["chunk_interval"])
        logger.info("set the columnstore policy of %s to %s", table, after)


async def remove_columnstore(db: DatabaseManager) -> None:
    """Make every compressed chunk rows again and switch the columnstore off."""
    await db.execute(_REMOVE)
