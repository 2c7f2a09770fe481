"""What rows taking a migration back would lose, found out inside its transaction."""

from __future__ import annotations

import json
from typing import Any

from pgtick.connection import DatabaseManager
from pgtick.tables import quote_identifier

__all__ = ["read_tables_with_rows", "what_is_lost"]

# Tables that hold rows themselves: partitions and chunks by the name of what they are part of. pgtick's own books
# and the extensions' do not count; what a continuous aggregate has computed does.
_TABLES = r"""
SELECT c.oid, n.nspname, c.relname, has_table_privilege(c.oid, 'SELECT') AS readable,
    coalesce((SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid LIMIT 1)::regclass::text,
        c.oid::regclass::text) AS name,
    (SELECT jsonb_object_agg(attnum, attname) FROM pg_attribute
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)::text AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND c.relname !~ '^pgtick_'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast'
    AND (n.nspname !~ '^(_timescaledb_|columnar)' OR c.relname ~ '^_(hyper|materialized_hypertable)_')
ORDER BY c.oid
"""
_DELETED = "SELECT relid AS oid, n_tup_del FROM pg_stat_xact_all_tables WHERE n_tup_del > 0"


def _columns(table: Any) -> dict[str, str]:
    return dict(json.loads(table["columns"] or "{}"))


async def _has_rows(db: DatabaseManager, table: Any) -> bool:
    if not table["readable"]:
        return True  # nobody can tell: it is asked for
    name = f"{quote_identifier(table['nspname'])}.{quote_identifier(table['relname'])}"
    # Citus brings what a subquery finds to the coordinator, so it is one row, and of a column.
    return bool(await db.fetchval(f"SELECT EXISTS (SELECT 1 FROM ONLY {name} LIMIT 1)"))


async def read_tables_with_rows(db: DatabaseManager) -> dict[int, Any]:
    """Return {oid: what is known of it} of the tables that have rows."""
    return {table["oid"]: table for table in await db.fetch(_TABLES) if await _has_rows(db, table)}


async def what_is_lost(db: DatabaseManager, before: dict[int, Any]) -> list[str]:
    """Return what has gone since: tables, columns and rows, by name."""
    after = {table["oid"]: table for table in await db.fetch(_TABLES)}
    deleted = {row["oid"]: row["n_tup_del"] for row in await db.fetch(_DELETED)}
    lost: dict[str, None] = {}  # ordered, each once: a table has many partitions
    for oid, table in before.items():
        name = table["name"]
        if oid not in after:
            lost[f"the rows of {name}"] = None
            continue
        kept = _columns(after[oid])
        for number, column in _columns(table).items():
            if number not in kept:  # by number: a new name is no loss
                lost[f"the column {column} of {name}"] = None
        if not await _has_rows(db, after[oid]):
            lost[f"the rows of {name}"] = None
        elif oid in deleted:
            lost[f"{deleted[oid]} rows of {name}"] = None
    return list(lost)
