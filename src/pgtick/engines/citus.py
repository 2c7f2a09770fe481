"""Citus: the daily partitions of plain PostgreSQL, distributed over the nodes by their leading key column."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from pgtick.connection import DatabaseManager
from pgtick.engines.base import SeriesInfo, SeriesSize
from pgtick.engines.citus_errors import is_english, sorted_error
from pgtick.engines.plain import PlainEngine

__all__ = ["CitusEngine"]

# Triggers of a reference table run on every node. Those that only refuse say the same everywhere and stay. `touch`
# would set another updated_at on each node, and no transaction with a NOTIFY can be prepared for the other nodes:
# pgtick's operations do both by themselves.
_MAKE_REFERENCE_TABLES = """
SET LOCAL citus.enable_unsafe_triggers = on;
DO $$
DECLARE
    lookup regclass;
BEGIN
    FOREACH lookup IN ARRAY ARRAY['exchanges', 'symbols']::regclass[] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = lookup AND repmodel = 't');
        EXECUTE format('DROP TRIGGER IF EXISTS touch ON %s', lookup);
        EXECUTE format('DROP TRIGGER IF EXISTS notify ON %s', lookup);
        PERFORM create_reference_table(lookup);
    END LOOP;
END $$;
"""
# Else a table that has to do with a reference table by a foreign key becomes a "Citus local table", and one with an
# identity cannot go on from there to a distributed one.
_STAY_LOCAL = "SET LOCAL citus.enable_local_reference_table_foreign_keys = off"
# Several steps of DDL in one transaction have to go over one connection a node.
_SEQUENTIAL = "SET LOCAL citus.multi_shard_modify_mode = 'sequential'"
# Beside those that are there: the default is a group of citus.shard_count shards, which may have been changed since.
_DISTRIBUTE = """
SELECT create_distributed_table(indrelid, attname, colocate_with => coalesce((
    SELECT logicalrelid::text FROM pgtick_time_series
    JOIN pg_dist_partition ON logicalrelid = to_regclass(quote_ident(table_name))
    JOIN pg_dist_colocation USING (colocationid)
    WHERE (distributioncolumntype, distributioncolumncollation) = (atttypid, attcollation)
    ORDER BY colocationid, logicalrelid LIMIT 1), 'default'))
FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
WHERE indrelid = quote_ident($1)::regclass AND indisprimary
"""

_SIZES = """
SELECT s.table_name AS "table", count(p.oid) AS n_parts,
       coalesce(sum(citus_total_relation_size(p.oid)), 0)::bigint AS n_bytes,
       coalesce(sum(citus_total_relation_size(p.oid) - citus_table_size(p.oid)), 0)::bigint AS n_index_bytes,
       coalesce(sum((SELECT sum(result::float8) FROM run_command_on_shards(
           p.oid, $$SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = '%s'::regclass$$) WHERE success)),
           0)::bigint AS n_rows
FROM pgtick_time_series s
LEFT JOIN pg_inherits ON inhparent = to_regclass(quote_ident(s.table_name)) AND NOT inhdetachpending
LEFT JOIN pg_class p ON p.oid = inhrelid
WHERE to_regclass(quote_ident(s.table_name)) IS NOT NULL
GROUP BY s.table_name ORDER BY s.table_name
"""
_SERIES = """
SELECT s.table_name, s.retention, count(p.partition) AS n_parts,
       min(p.from_value::timestamptz) AS oldest, max(p.to_value::timestamptz) AS newest,
       (SELECT count(*) FROM pg_dist_shard WHERE logicalrelid = to_regclass(quote_ident(s.table_name))) AS n_shards,
       (SELECT count(*) FROM pg_dist_node WHERE shouldhaveshards AND isactive) AS n_nodes,
       coalesce(max(p.to_value::timestamptz), now()) > now() AS is_ahead
FROM pgtick_time_series s
LEFT JOIN time_partitions p ON p.parent_table = to_regclass(quote_ident(s.table_name))
WHERE to_regclass(quote_ident(s.table_name)) IS NOT NULL
GROUP BY s.table_name, s.retention ORDER BY s.table_name
"""
_LANGUAGES = "SELECT DISTINCT result FROM run_command_on_all_nodes('SHOW lc_messages') WHERE success ORDER BY 1"


class CitusEngine(PlainEngine):
    """Partitions a day, each in as many shards as the table has; the lookup tables are on every node."""

    name = "citus"
    # A COPY goes over one connection a node. By itself it opens one a shard, anew for each batch: 908 ms for 100 rows
    # and 32 shards, against 49 ms (docs/citus.md). And a caller's transaction could register no symbol behind it.
    copy_settings = _SEQUENTIAL
    joins_temporary_tables = False  # behind a COPY to other nodes it is sent there, where there is no such table
    _drop_settings = "SET LOCAL citus.propagate_set_commands = 'local';"  # the lock_timeout holds on every node

    async def create(
        self, db: DatabaseManager, table: str, columns: str, *, chunk: timedelta, retention: timedelta
    ) -> None:
        """Create a partitioned table, distributed by the first column of its primary key.

        The first of them makes reference tables of exchanges and symbols.
        """
        async with db.transaction():
            await db.execute(_STAY_LOCAL)
            await db.execute(_SEQUENTIAL)
            await db.execute(_MAKE_REFERENCE_TABLES)
            await super().create(db, table, columns, chunk=chunk, retention=retention)
            if (await db.execute(_DISTRIBUTE, table)).endswith(" 0"):
                raise ValueError(
                    f"table {table!r} must have a primary key: its first column is what it is distributed by"
                )

    def copy_target(self, db: DatabaseManager, table: str, days: Collection[int]) -> str:
        """Return the table: Citus finds shard and partition of a row."""
        return table

    async def _make_partition(self, db: DatabaseManager, table: str, start: datetime) -> str:
        async with db.transaction():
            await db.execute(_SEQUENTIAL)
            return await super()._make_partition(db, table, start)

    def since(self, window: timedelta) -> str:
        """Return a constant, another one each hour.

        By now() every partition is planned for, and locked even where the plan is kept: 1.4 ms for 18 of them.
        """
        return f"'{datetime.now(UTC) - window:%Y-%m-%d %H:00+00}'::timestamptz"

    def sorted_error(self, error: asyncpg.PostgresError) -> asyncpg.PostgresError:
        """Return what a refused COPY means; see the function of this name."""
        return sorted_error(error)

    async def sizes(self, db: DatabaseManager) -> list[SeriesSize]:
        """Return the size of every time-series table that is there, by name: all shards on all nodes."""
        return [SeriesSize(**record) for record in await db.fetch(_SIZES)]

    async def describe(self, db: DatabaseManager) -> list[SeriesInfo]:
        """Return how every time-series table that is there is kept, by name."""
        languages = [record["result"] for record in await db.fetch(_LANGUAGES)]
        foreign = tuple(
            f"lc_messages is {language}, and what a COPY is refused for is read from English messages: "
            "ALTER SYSTEM SET lc_messages = 'C' on every node"
            for language in languages
            if not is_english(language)
        )
        return [_info(record, foreign) for record in await db.fetch(_SERIES)]


def _info(record: Any, findings: tuple[str, ...]) -> SeriesInfo:
    table, n_shards, n_nodes = record["table_name"], record["n_shards"], record["n_nodes"]
    own = []
    if n_shards == 0:
        own.append(f"{table} is not distributed: make it anew on Citus, or see docs/citus.md")
    elif n_shards < n_nodes:
        own.append(
            f"{table} has {n_shards} shards on {n_nodes} nodes, so that some have nothing of it: split shards as in "
            "docs/citus.md"
        )
    if not record["is_ahead"]:
        own.append(f"{table} has no partition for today: pgtick maintain")
    return SeriesInfo(
        table=table,
        kind="distributed" if n_shards else "partitioned",
        part_interval=timedelta(days=1),
        retention=record["retention"],
        n_parts=record["n_parts"],
        oldest=record["oldest"],
        newest=record["newest"],
        retention_by="pgtick maintain",
        n_shards=n_shards or None,
        findings=(*own, *findings),
    )
