"""What the catalogs say of the tables that are adopted, and moving them out of the way."""

from __future__ import annotations

from typing import Any

from pgtick.connection import DatabaseManager
from pgtick.errors import MigrationError
from pgtick.migrator.baseline_rows import Check, LiveColumn, LiveTable
from pgtick.tables import quote_identifier

__all__ = ["BEFORE", "describe", "find_followers", "find_tables", "move_aside", "qualified", "read_table"]

#: The schema in which the old tables are kept.
BEFORE = "pgtick_before"

_TABLES = """
SELECT relname::text AS name, relkind::text AS kind, relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
    OR pg_has_role(relowner, 'USAGE') AS mine
FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relname = ANY($1::text[])
    AND relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY relname
"""
_COLUMNS = """
SELECT attname::text AS name, format_type(atttypid, NULL) AS type, typtype = 'e' AS is_enum, attnotnull AS not_null,
    CASE WHEN attgenerated <> '' THEN pg_get_expr(adbin, adrelid) END AS generated,
    attidentity <> '' OR (adbin IS NOT NULL AND attgenerated = '') AS has_default
FROM pg_attribute JOIN pg_type t ON t.oid = atttypid LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_CHECKS = """
SELECT pg_get_expr(conbin, conrelid) AS expression, conname || ': ' || pg_get_constraintdef(oid) AS definition
FROM pg_constraint WHERE conrelid = $1::regclass AND contype = 'c' ORDER BY conname
"""
_UNIQUES = """
SELECT ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = indrelid AND attnum = ANY(indkey::int2[])) AS names
FROM pg_index WHERE indrelid = $1::regclass AND indisunique AND indisvalid AND indpred IS NULL AND indexprs IS NULL
"""
# All that makes a table what it is, in one order: two tables are the same if this is.
_DESCRIPTION = """
SELECT format('kind %s %s', relkind, pg_get_partkeydef(oid)) FROM pg_class WHERE oid = $1::regclass
UNION ALL
SELECT format('column %s %s not null %s identity %s generated %s default %s', attname, format_type(atttypid, atttypmod),
    attnotnull, attidentity, attgenerated, pg_get_expr(adbin, adrelid))
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraint ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::regclass AND contype <> 'n'
UNION ALL
SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = $1::regclass
UNION ALL
SELECT format('%s %s %s', pg_get_triggerdef(t.oid), tgenabled, md5(prosrc))
FROM pg_trigger t JOIN pg_proc p ON p.oid = tgfoid
WHERE tgrelid = $1::regclass AND NOT tgisinternal
ORDER BY 1
"""
_PARTITIONS = """
SELECT relid::regclass::text FROM pg_partition_tree($1::regclass) WHERE relid <> $1::regclass
"""
_ROUTINES = """
SELECT oid::regprocedure::text FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'pgtick\\_%' AND prokind IN ('f', 'p')
"""
_POLICIES = """
SELECT format('%I.%I', hypertable_schema, hypertable_name) AS name, config ->> 'drop_after' AS drop_after
FROM timescaledb_information.jobs
WHERE proc_name = 'policy_retention' AND hypertable_schema = current_schema() AND hypertable_name = ANY($1::text[])
"""
_CANDLES = """
SELECT format('%I.%I', view_schema, view_name) AS name, format('%I', view_name) AS candles
FROM timescaledb_information.continuous_aggregates WHERE view_schema = current_schema()
    AND view_name IN (SELECT candle_view FROM pgtick_candles) ORDER BY 1
"""
_VIEWS = """
SELECT DISTINCT v.oid::regclass::text AS name, d.refobjid::regclass::text AS old
FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
JOIN pg_class v ON v.oid = r.ev_class JOIN pg_namespace n ON n.oid = v.relnamespace
JOIN pg_class t ON d.refclassid = 'pg_class'::regclass AND t.oid = d.refobjid
WHERE t.relnamespace = $1::regnamespace AND v.oid <> t.oid AND n.nspname NOT LIKE '\\_timescaledb\\_%'
ORDER BY 1
"""
_AGGREGATES = """
SELECT format('%I.%I', view_schema, view_name) AS name, format('%I.%I', hypertable_schema, hypertable_name) AS old
FROM timescaledb_information.continuous_aggregates WHERE hypertable_schema = $1 AND view_schema <> $1
"""
_KEYS = """
SELECT conrelid::regclass::text AS name, quote_ident(conname) AS key, pg_get_constraintdef(c.oid) AS definition
FROM pg_constraint c JOIN pg_class t ON t.oid = confrelid JOIN pg_class u ON u.oid = conrelid
JOIN pg_namespace n ON n.oid = u.relnamespace
WHERE contype = 'f' AND t.relnamespace = $1::regnamespace AND u.relnamespace <> t.relnamespace AND conparentid = 0
    AND n.nspname NOT LIKE '\\_timescaledb\\_%'
ORDER BY 1, 2
"""
_TRIGGERS = """
SELECT tgname::text AS name, tgrelid::regclass::text AS old FROM pg_trigger g JOIN pg_class t ON t.oid = tgrelid
JOIN pg_proc p ON p.oid = tgfoid JOIN pg_namespace n ON n.oid = pronamespace
WHERE t.relnamespace = $1::regnamespace AND NOT tgisinternal AND n.nspname NOT LIKE '\\_timescaledb\\_%'
    AND proname NOT LIKE 'pgtick\\_%' AND tgparentid = 0
ORDER BY 2, 1
"""
_GRANTS = """
SELECT format('GRANT %s ON %I TO %s;', string_agg(privilege_type, ', ' ORDER BY privilege_type), relname,
    CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END) AS statement
FROM pg_class, aclexplode(relacl)
WHERE relnamespace = $1::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition AND grantee <> relowner
GROUP BY relname, grantee ORDER BY relname, 1
"""
_OWNERS = """
SELECT format('ALTER TABLE %I OWNER TO %I;', relname, pg_get_userbyid(relowner)) AS statement FROM pg_class
WHERE relnamespace = $1::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    AND pg_get_userbyid(relowner) <> current_user
ORDER BY relname
"""


def qualified(table: str) -> str:
    """Return the old table's name for SQL."""
    return f"{BEFORE}.{quote_identifier(table)}"


async def find_tables(db: DatabaseManager, names: list[str]) -> list[str]:
    """Return which of the names are tables of the current schema; refuse what is not to be moved."""
    found = await db.fetch(_TABLES, names)
    for record in found:
        if record["kind"] not in ("r", "p"):
            raise MigrationError(
                f"{record['name']} is a view or a foreign table here, and pgtick needs a table: rename it"
            )
        if not record["mine"]:
            raise MigrationError(f"{record['name']} belongs to another role: run this as its owner")
    if found and await db.fetchval(
        "SELECT true FROM pg_class WHERE relnamespace = to_regnamespace($1) LIMIT 1", BEFORE
    ):
        raise MigrationError(
            f"the schema {BEFORE} holds what an earlier adoption has kept: ALTER SCHEMA {BEFORE} RENAME TO another "
            "name, or drop it, and try again"
        )
    return [record["name"] for record in found]


async def read_table(db: DatabaseManager, name: str) -> LiveTable:
    """Return the table of this quoted name as the catalog has it."""
    columns = [LiveColumn(**record) for record in await db.fetch(_COLUMNS, name)]
    checks = tuple(Check(**record) for record in await db.fetch(_CHECKS, name))
    uniques = tuple(frozenset(record["names"]) for record in await db.fetch(_UNIQUES, name))
    return LiveTable(name, {column.name: column for column in columns}, checks, uniques)


async def describe(db: DatabaseManager, name: str, *, has_hypertables: bool) -> list[str]:
    """Return all that makes the table what it is; schemas are left out, so that it can be compared."""
    schema = await db.fetchval("SELECT quote_ident(current_schema())")
    lines = [record[0] for record in await db.fetch(_DESCRIPTION, name)]
    if has_hypertables:
        interval = await db.fetchval(
            "SELECT time_interval::text FROM timescaledb_information.dimensions "
            "WHERE format('%I.%I', hypertable_schema, hypertable_name)::regclass = $1::regclass",
            name,
        )
        lines.append(f"hypertable {interval}")
    return sorted(line.replace(f"{BEFORE}.", "").replace(f"{schema}.", "") for line in lines)


async def move_aside(db: DatabaseManager, tables: list[str], *, has_hypertables: bool) -> list[str]:
    """Move the tables to the schema pgtick_before, with what is theirs; return what is to be told."""
    notes = []
    await db.execute(f"CREATE SCHEMA IF NOT EXISTS {BEFORE}")
    if has_hypertables:
        if "pgtick_candles" in tables:
            notes += await _move_candles(db)
        for record in await db.fetch(_POLICIES, tables):
            # It would go on dropping what is kept.
            await db.execute("SELECT remove_retention_policy($1::regclass)", record["name"])
            notes.append(f"{record['name']} had a retention of {record['drop_after']}, which is gone from it")
    for table in tables:
        name = quote_identifier(table)
        for record in await db.fetch(_PARTITIONS, name):  # their names would be in the way
            await db.execute(f"ALTER TABLE {record[0]} SET SCHEMA {BEFORE}")
        await db.execute(f"ALTER TABLE {name} SET SCHEMA {BEFORE}")
    for record in await db.fetch(_ROUTINES):
        await db.execute(f"ALTER ROUTINE {record[0]} SET SCHEMA {BEFORE}")
    return notes


async def _move_candles(db: DatabaseManager) -> list[str]:
    """Move pgtick's own aggregates, which keep candles of rows that are long gone, without what would change them."""
    notes = []
    for record in await db.fetch(_CANDLES):
        await db.execute(
            "SELECT remove_continuous_aggregate_policy($1::regclass, if_exists => true), "
            "remove_retention_policy($1::regclass, if_exists => true)",
            record["name"],
        )
        await db.execute(f"ALTER MATERIALIZED VIEW {record['name']} SET SCHEMA {BEFORE}")
        notes.append(
            f"{record['candles']} is made of the rows that came along: older candles are in "
            f"{BEFORE}.{record['candles']}"
        )
    return notes


async def find_followers(db: DatabaseManager, *, has_hypertables: bool) -> list[str]:
    """Return what stays with the old tables and wants a look, each with what to do."""
    views: list[Any] = await db.fetch(_VIEWS, BEFORE)
    if has_hypertables:
        views += await db.fetch(_AGGREGATES, BEFORE)
    advice = [
        f"the view {record['name']} goes on reading {record['old']}: make it again to read the new table"
        for record in views
    ]
    for record in await db.fetch(_KEYS, BEFORE):
        definition = record["definition"].replace(f"{BEFORE}.", "")
        advice.append(
            f"a key of {record['name']} goes on looking into the old table: "
            f"ALTER TABLE {record['name']} DROP CONSTRAINT {record['key']}; "
            f"ALTER TABLE {record['name']} ADD {definition};"
        )
    advice += [
        f"the trigger {record['name']} stays at {record['old']}: make it again at the new table if it is needed"
        for record in await db.fetch(_TRIGGERS, BEFORE)
    ]
    advice += [f"the new table has not what the old one had: {r['statement']}" for r in await db.fetch(_GRANTS, BEFORE)]
    advice += [f"the old table's owner is another: {r['statement']}" for r in await db.fetch(_OWNERS, BEFORE)]
    return advice
