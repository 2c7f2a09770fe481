"""Four roles, each with the least that its work needs: owner, writer, reader, monitor (docs/roles.md).

What they should have is compared with what the catalogs say, and only the difference is run: so a second run does
nothing, and a later one mends what new tables, or somebody's GRANT, have brought.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import asyncpg

from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.errors import PgtickError
from pgtick.tables import quote_identifier

__all__ = ["set_up_roles"]

logger = logging.getLogger(__name__)

_KINDS = ("owner", "writer", "reader", "monitor")
_MAX_NAME_BYTES = 63
_STATISTICS = "pg_read_all_stats"
_CHUNKS = "_timescaledb_internal"
# Who runs this may be a superuser, and in pgtick's schema anybody may have been allowed to create objects: so
# nothing but its place is looked up there.
_PLACE = "SELECT pg_catalog.to_regclass('pgtick_time_series')::pg_catalog.oid"
# The setting of Citus, which is nothing elsewhere: statements on series and lookup tables in one transaction.
_SETTINGS = """
SET LOCAL citus.multi_shard_modify_mode = 'sequential';
SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL lock_timeout = '5s';
SELECT pg_advisory_xact_lock(hashtext('pgtick roles'))
"""

# {class of object: {kind of role: privileges}}; "columns" are those that tell how fresh a table is, and of the
# quarantine how many rows there are of which table, without them: SELECT (…).
_SELECT = frozenset({"SELECT"})
_STORE = frozenset({"SELECT", "INSERT"})
_WANTED: dict[str, dict[str, frozenset[str]]] = {
    "series": {"writer": _STORE, "reader": _SELECT, "monitor": frozenset({"columns"})},
    "partition": {"writer": _STORE, "reader": _SELECT},
    "lookup": {"writer": _STORE | {"UPDATE"}, "reader": _SELECT, "monitor": _SELECT},
    "candles": {"writer": _SELECT, "reader": _SELECT},
    "quarantine": {"writer": _STORE, "reader": _SELECT, "monitor": frozenset({"columns"})},
    "bookkeeping": {"writer": _SELECT, "reader": _SELECT, "monitor": _SELECT},
    "sequence": {"writer": frozenset({"USAGE"})},
    "definer": {"writer": frozenset({"EXECUTE"})},
    "schema": {"owner": frozenset({"USAGE", "CREATE"})} | dict.fromkeys(_KINDS[1:], frozenset({"USAGE"})),
    # Duplicates are told apart in a temporary table.
    "database": dict.fromkeys(_KINDS[:2], frozenset({"CONNECT", "TEMPORARY"}))
    | dict.fromkeys(_KINDS[2:], frozenset({"CONNECT"})),
    "later tables": {"writer": _STORE, "reader": _SELECT},
    "later sequences": {"writer": frozenset({"USAGE"})},
}
#: What everybody may go on doing; in a schema that others use too only the making of objects is ours to forbid.
_PUBLIC_KEEPS = {"schema": frozenset({"USAGE"}), "database": frozenset({"CONNECT", "TEMPORARY", "CREATE"})}

_SITUATION = """
SELECT current_user::text AS me, n.nspname::text AS schema, current_database()::text AS database,
       u.rolsuper AS is_superuser,
       EXISTS (SELECT FROM pg_extension WHERE extname IN ('timescaledb', 'citus')) AS owner_logs_in,
       EXISTS (SELECT FROM pg_class k WHERE k.relname = 'pgtick_candles' AND k.relnamespace = n.oid
           AND has_table_privilege(k.oid, 'SELECT')) AS has_candles,
       u.rolsuper OR coalesce((SELECT bool_or(pg_has_role(m.member, 'USAGE') AND m.admin_option) FROM pg_auth_members m
           WHERE m.roleid = 'pg_read_all_stats'::regrole), false)
           OR u.rolcreaterole AND current_setting('server_version_num')::int < 160000 AS may_grant_statistics
FROM pg_roles u, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE u.rolname = current_user AND c.oid = $1
"""
_ROLES = """
SELECT rolname::text AS name, rolcanlogin AS may_log_in,
       rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls AS is_more,
       pg_has_role(current_user, oid, 'USAGE') AND pg_has_role(current_user, oid, $2) AS is_mine,
       EXISTS (SELECT FROM pg_auth_members m WHERE m.roleid = 'pg_read_all_stats'::regrole AND m.member = r.oid)
           AS sees_statistics
FROM pg_roles r WHERE rolname = ANY ($1::text[])
"""
# A row for each privilege of one of the roles ($1) or of everybody on one of pgtick's objects; $1[1] is the owner.
_OBJECTS = """
WITH home AS (
    SELECT n.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = $2
), series AS (
    SELECT c.oid, ARRAY(
        SELECT format('SELECT (%I)', a.attname) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND (a.attname = 'timestamp' OR a.attnum = (
            SELECT indkey[0] FROM pg_index WHERE indrelid = c.oid AND indisprimary))) AS columns
    FROM {schema}.pgtick_time_series s JOIN pg_class c ON c.relname = s.table_name
    JOIN home ON home.oid = c.relnamespace
), relations AS (
    SELECT c.oid, coalesce(s.columns, CASE WHEN c.relname = 'ingest_quarantine'
            THEN '{{SELECT (quarantined_at),SELECT (table_name)}}'::text[] ELSE '{{}}' END) AS columns,
        CASE WHEN s.oid IS NOT NULL THEN 'series' WHEN c.relname IN ('exchanges', 'symbols') THEN 'lookup'
            WHEN c.relname = 'ingest_quarantine' THEN 'quarantine' ELSE 'bookkeeping' END AS class
    FROM pg_class c JOIN home ON home.oid = c.relnamespace LEFT JOIN series s ON s.oid = c.oid
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND (s.oid IS NOT NULL
        OR c.relname IN ('exchanges', 'symbols', 'ingest_quarantine') OR c.relname ^@ 'pgtick_')
    UNION ALL
    SELECT c.oid, '{{}}', 'partition' FROM pg_inherits i JOIN series s ON s.oid = i.inhparent
    JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
    UNION ALL
    SELECT c.oid, '{{}}', 'candles' FROM pg_class c JOIN home ON home.oid = c.relnamespace
    WHERE c.relkind IN ('v', 'm') AND c.relname = ANY ($3::text[])
), objects AS (
    SELECT 'TABLE' AS kind, r.class, format('%I.%I', n.nspname, c.relname) AS name, c.relowner AS owner,
           coalesce(c.relacl, acldefault('r', c.relowner)) AS acl, r.columns, r.oid AS table_oid
    FROM relations r JOIN pg_class c ON c.oid = r.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    SELECT 'SEQUENCE', 'sequence', format('%I.%I', n.nspname, c.relname), c.relowner,
           coalesce(c.relacl, acldefault('s', c.relowner)), '{{}}', NULL
    FROM relations r JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = r.oid
        AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    JOIN pg_class c ON c.oid = d.objid AND c.relkind = 'S' JOIN pg_namespace n ON n.oid = c.relnamespace
    UNION ALL
    SELECT 'ROUTINE', CASE WHEN prosecdef THEN 'definer' ELSE 'routine' END,
           format('%I.%I(%s)', home.nspname, proname, pg_get_function_identity_arguments(p.oid)), proowner,
           coalesce(proacl, acldefault('f', proowner)), '{{}}', NULL
    FROM pg_proc p JOIN home ON home.oid = pronamespace WHERE proname ^@ 'pgtick_'
    UNION ALL
    SELECT 'SCHEMA', 'schema', quote_ident(nspname), nspowner, coalesce(nspacl, acldefault('n', nspowner)), '{{}}', NULL
    FROM home
    UNION ALL
    SELECT 'DATABASE', 'database', quote_ident(datname), datdba, coalesce(datacl, acldefault('d', datdba)), '{{}}', NULL
    FROM pg_database WHERE datname = current_database()
    UNION ALL
    SELECT later.kind, 'later ' || lower(later.kind), '', NULL, (
        SELECT defaclacl FROM pg_default_acl JOIN home ON home.oid = defaclnamespace
        JOIN pg_roles o ON o.oid = defaclrole WHERE o.rolname = ($1::text[])[1] AND defaclobjtype = later.letter
    ), '{{}}', NULL
    FROM (VALUES ('TABLES', 'r'), ('SEQUENCES', 'S')) later (kind, letter)
), privileges AS (
    SELECT o.kind, o.name, a.grantee, a.privilege_type AS privilege FROM objects o, aclexplode(o.acl) a
    UNION ALL
    SELECT o.kind, o.name, x.grantee, format('%s (%I)', x.privilege_type, a.attname)
    FROM objects o JOIN pg_attribute a ON a.attrelid = o.table_oid AND NOT a.attisdropped, aclexplode(a.attacl) x
)
SELECT o.kind, o.class, o.name, o.columns, pg_get_userbyid(o.owner)::text AS owner,
       coalesce(pg_has_role(o.owner, 'USAGE'), true) AS is_mine, p.privilege, r.rolname::text AS grantee
FROM objects o LEFT JOIN (
    privileges p LEFT JOIN pg_roles r ON r.oid = p.grantee
) ON p.kind = o.kind AND p.name = o.name AND (p.grantee = 0 OR r.rolname = ANY ($1::text[]))
ORDER BY o.kind, o.name, p.privilege
"""


async def set_up_roles(
    db: DatabaseManager | None = None, *, prefix: str = "pgtick", dry_run: bool = False
) -> list[str]:
    """Make the roles, hand pgtick's objects to the owner, grant what is missing and revoke what is too much.

    Runs in one transaction; returns the statements that it ran, or with ``dry_run`` would run: none the second time.
    The roles are called ``{prefix}_owner``, ``_writer``, ``_reader`` and ``_monitor`` and belong to the whole server.
    Whoever is not a superuser needs CREATEROLE, the tables, and the database or rights that its owner granted.
    """
    db = db or get_db_manager()
    if db.in_transaction:
        raise PgtickError("roles are set up in a transaction of their own: call it outside of transaction()")
    names = {kind: f"{prefix}_{kind}" for kind in _KINDS}
    if max(len(name.encode()) for name in names.values()) > _MAX_NAME_BYTES:
        raise PgtickError(f"prefix {prefix!r}: {names['monitor']} is longer than {_MAX_NAME_BYTES} bytes")
    async with db.transaction():
        place = await db.fetchval(_PLACE)
        await db.execute(_SETTINGS)
        situation = await db.fetchrow(_SITUATION, place)
        if situation is None:
            raise PgtickError("there are no tables of pgtick in this database: migrate it first")
        statements = await _role_statements(db, names, situation)
        schema = quote_identifier(situation["schema"])
        candles = situation["has_candles"] and await db.fetch(f"SELECT candle_view FROM {schema}.pgtick_candles")
        views = [record[0] for record in candles or ()]
        records = await db.fetch(_OBJECTS.format(schema=schema), list(names.values()), place, views)
        statements += _object_statements(records, names, situation)
        if not dry_run:
            for statement in statements:
                await _execute(db, statement)
    return statements


async def _execute(db: DatabaseManager, statement: str) -> None:
    try:
        await db.execute(statement)
    except asyncpg.PostgresError as error:
        refused = f"nothing is changed, since this was refused: {statement}: {error}"
        if _CHUNKS in str(error):  # the server wants it of who becomes the owner, though chunks are made without it
            refused += (
                f"; a superuser may do all this, or GRANT CREATE ON SCHEMA {_CHUNKS} TO that role when it is there"
            )
        raise PgtickError(refused) from error
    logger.info("%s", statement)


async def _role_statements(db: DatabaseManager, names: dict[str, str], situation: Any) -> list[str]:
    """Return what makes the roles, and the one who runs this a member of the owner."""
    has_set_option = db.server_version >= 160000
    records = await db.fetch(_ROLES, list(names.values()), "SET" if has_set_option else "MEMBER")
    there = {record["name"]: record for record in records}
    for name, record in there.items():
        if record["is_more"] or (record["may_log_in"] and name != names["owner"]):
            raise PgtickError(f"role {name} may log in or has rights over the server: choose another prefix")
    statements = [f"CREATE ROLE {quote_identifier(name)} NOLOGIN" for name in names.values() if name not in there]
    owner, monitor = there.get(names["owner"]), there.get(names["monitor"])
    if situation["owner_logs_in"] and not (owner and owner["may_log_in"]):
        # TimescaleDB runs its policies as the tables' owner, and Citus goes to the other nodes as whom a function runs
        # as: both fail where that role may not log in.
        statements.append(f"ALTER ROLE {quote_identifier(names['owner'])} LOGIN")
    if not situation["is_superuser"] and not (owner and owner["is_mine"]):
        option = " WITH INHERIT TRUE, SET TRUE" if has_set_option else ""
        me = quote_identifier(situation["me"])
        statements.append(f"GRANT {quote_identifier(names['owner'])} TO {me}{option}")
    if not (monitor and monitor["sees_statistics"]):
        statement = f"GRANT {_STATISTICS} TO {quote_identifier(names['monitor'])}"
        if situation["may_grant_statistics"]:
            statements.append(statement)
        else:
            logger.warning("the monitor does not see other sessions until a superuser runs: %s", statement)
    return statements


class _Object:
    """One of pgtick's objects, with who has what on it; everybody (PUBLIC) is None."""

    def __init__(self, record: Any) -> None:
        self.kind: str = record["kind"]
        self.class_: str = record["class"]
        self.name: str = record["name"]
        self.owner: str | None = record["owner"]
        self.is_mine: bool = record["is_mine"]
        self.columns = frozenset(record["columns"])
        self.has: dict[str | None, set[str]] = {}

    @property
    def is_shared(self) -> bool:
        """Whether others use it as well, so that it keeps its owner."""
        return self.kind in ("SCHEMA", "DATABASE")

    def difference(self, kind: str | None, role: str | None) -> tuple[set[str], set[str]]:
        """Return what is too much and what is missing for a kind of role; None is everybody."""
        has = self.has.get(role, set())
        if role is None:
            checked = self.kind == "TABLE" or self.class_ in ("sequence", "definer", "schema")
            return (has - _PUBLIC_KEEPS.get(self.class_, frozenset()) if checked else set()), set()
        if role == self.owner or (kind == "owner" and not self.is_shared):
            return set(), set()
        wanted = _WANTED.get(self.class_, {}).get(str(kind), frozenset())
        if "columns" in wanted:
            wanted = self.columns
        surplus = has - wanted
        if any("(" not in privilege for privilege in surplus):
            has = {privilege for privilege in has if "(" not in privilege}  # a table's REVOKE takes its columns' along
        return surplus, set(wanted - has)


def _objects(records: Iterable[Any]) -> list[_Object]:
    objects: dict[tuple[str, str], _Object] = {}
    for record in records:
        key = record["kind"], record["name"]
        if key not in objects:
            objects[key] = _Object(record)
        if record["privilege"] is not None:
            objects[key].has.setdefault(record["grantee"], set()).add(record["privilege"])
    return list(objects.values())


def _object_statements(records: Iterable[Any], names: dict[str, str], situation: Any) -> list[str]:
    """Return what hands over, revokes and grants: the shared objects first, since an owner needs a place to create."""
    objects = _objects(records)
    shared = [one for one in objects if one.is_shared]
    own = [one for one in objects if not one.is_shared]
    owner = quote_identifier(names["owner"])
    handed_over = [
        # Of a continuous aggregate ALTER TABLE would hand over the view alone, without what is kept for it.
        f"ALTER {'MATERIALIZED VIEW' if one.class_ == 'candles' else one.kind} {one.name} OWNER TO {owner}"
        for one in own
        if one.kind in ("TABLE", "ROUTINE") and one.owner != names["owner"]
    ]
    before = f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {quote_identifier(situation['schema'])} "
    return [*_grants(shared, names, before), *handed_over, *_grants(own, names, before)]


def _grants(objects: list[_Object], names: dict[str, str], before: str) -> list[str]:
    """Return the REVOKEs, then the GRANTs; one statement for all objects that want the same."""
    groups: dict[tuple[bool, str, str, str], list[str]] = {}
    for kind, role in ((None, None), *names.items()):
        for one in objects:
            for grants, privileges in enumerate(one.difference(kind, role)):
                if not one.is_mine and one.is_shared:
                    privileges = _left_to_others(one, bool(grants), privileges, role)
                if privileges:
                    key = bool(grants), one.kind, ", ".join(sorted(privileges)), role or ""
                    groups.setdefault(key, []).append(one.name)
    statements = []
    for (grants, kind, what, role), places in sorted(groups.items(), key=lambda group: group[0][0]):
        later = kind in ("TABLES", "SEQUENCES")
        on = kind if later else f"{kind} {', '.join(places)}"
        who = quote_identifier(role) if role else "PUBLIC"
        verb, preposition = ("GRANT", "TO") if grants else ("REVOKE", "FROM")
        statements.append(f"{before if later else ''}{verb} {what} ON {on} {preposition} {who}")
    return statements


def _left_to_others(one: _Object, grants: bool, privileges: set[str], role: str | None) -> set[str]:
    """Return nothing where everybody has what is missing; else say who may run what this role may not."""
    left = privileges - one.has.get(None, set()) if grants else privileges
    if left:
        what = f"{', '.join(sorted(left))} ON {one.kind} {one.name}"
        who = quote_identifier(role) if role else "PUBLIC"
        if grants:
            raise PgtickError(f"only {one.owner} may, and has to run before: GRANT {what} TO {who}")
        logger.warning("only %s may, and should run: REVOKE %s FROM %s", one.owner, what, who)
    return set()
