"""Adopt an existing database: one made by the guide's ``init-db.sql``, a similar one, or pgtick's own without a ledger.

In one transaction under the migrators' lock the old tables move to the schema ``pgtick_before``, pgtick's
migrations make theirs, and the rows are converted into them. A row that the new rules refuse stays where it is and
is told of; nothing is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal

import asyncpg
import msgspec

from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.engines import Engine, get_engine
from pgtick.errors import MigrationError
from pgtick.migrator.baseline_catalog import (
    BEFORE,
    describe,
    find_followers,
    find_tables,
    move_aside,
    qualified,
    read_table,
)
from pgtick.migrator.baseline_rows import UNITS, LiveTable, Plan, make_plan
from pgtick.migrator.files import LoadedMigration, discover
from pgtick.migrator.ledger import make_ledger, record
from pgtick.migrator.order import load_all
from pgtick.migrator.session import locked, migrating, told
from pgtick.models import Exchange, Symbol
from pgtick.tables import BUILT_IN_TABLES, INGEST_BATCHES, INGEST_QUARANTINE, quote_identifier

__all__ = ["BaselineReport", "RefusedRows", "TableReport", "baseline"]

logger = logging.getLogger(__name__)

_N_EXAMPLES = 3
_ROUTINE_NAMES = """
SELECT proname::text FROM pg_proc
WHERE pronamespace = quote_ident(current_schema())::regnamespace AND proname LIKE 'pgtick\\_%' ORDER BY 1
"""
_REGISTRY = "pgtick_time_series"
#: pgtick's own tables: made anew.
_OWN = [_REGISTRY, "pgtick_candles", INGEST_BATCHES, INGEST_QUARANTINE]


class _Target(msgspec.Struct, frozen=True):
    """What the new table asks of its rows."""

    table: str
    model: type[msgspec.Struct]
    key: tuple[str, ...]
    uniques: tuple[tuple[str, ...], ...]
    has_time: bool


#: In the order in which the rows go in: a reference finds its row.
_TARGETS = (
    _Target("exchanges", Exchange, ("id",), (("id",), ("enum_value",)), False),
    _Target("symbols", Symbol, ("id",), (("id",),), False),
    *(_Target(table.name, table.model, table.key, (table.key,), True) for table in BUILT_IN_TABLES),
)


class RefusedRows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that stay in ``pgtick_before`` because they break a rule of the new table; examples are JSON."""

    rule: str
    n_rows: int
    examples: tuple[str, ...]


class TableReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a table's rows: n_rows = n_moved + those refused."""

    table: str
    n_rows: int
    n_moved: int
    refused: tuple[RefusedRows, ...]
    left_behind: dict[str, int]  # columns that pgtick's table does not have, and how many values they hold
    n_past_retention: int
    notes: tuple[str, ...]


class BaselineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``baseline`` did, or with ``dry_run`` would do.

    ``action``: nothing (no table of pgtick's names is here), recorded (they are what the migrations make: only the
    ledger was written), adopted. ``recorded``: the migrations now in the ledger; ``pending``: those that ``up``
    applies next. ``advice``: what to look at or to do afterwards.
    """

    action: Literal["nothing", "recorded", "adopted"]
    dry_run: bool
    recorded: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    tables: tuple[TableReport, ...] = ()
    advice: tuple[str, ...] = ()


class _RolledBackError(Exception):
    """Raised inside a transaction to take it back, and caught around it."""

    def __init__(self, report: BaselineReport) -> None:
        self.report = report


async def baseline(db: DatabaseManager | None = None, *, dry_run: bool = False) -> BaselineReport:
    """Adopt the tables that are here; ``dry_run`` does all of it and rolls back.

    Raises MigrationError, with nothing changed, where there is a ledger already, a lock is not to be had, or a
    column has a type from which there is no way.
    """
    db = db or get_db_manager()
    if db.in_transaction:
        raise MigrationError("an adoption is a transaction of its own: call it outside of transaction()")
    async with migrating(db) as own:
        try:
            async with _failing_clearly(), locked(own, "baseline"):
                await own.execute("SET LOCAL extra_float_digits = 1")
                report = await _baseline(own, dry_run=dry_run)
                if dry_run:
                    raise _RolledBackError(report)
            for told_of in report.tables:  # not before: Citus has no ANALYZE in a transaction that has written
                await own.execute(f"ANALYZE {quote_identifier(told_of.table)}")
        except _RolledBackError as undone:
            report = undone.report
    logger.info("baseline: %s%s", report.action, " (dry run)" if dry_run else "")
    return report


@asynccontextmanager
async def _failing_clearly() -> AsyncIterator[None]:
    try:
        yield
    except (MigrationError, _RolledBackError):
        raise
    except asyncpg.LockNotAvailableError as error:
        raise MigrationError(
            f"a session uses the tables ({error}): nothing is changed; stop what reads and writes them, and try again"
        ) from error
    except asyncpg.OutOfMemoryError as error:
        raise MigrationError(
            f"{error}: nothing is changed; raise max_locks_per_transaction (a partition or chunk wants about four), "
            "or delete from the old tables what is past its retention"
        ) from error
    except Exception as error:
        raise MigrationError(f"the adoption failed, nothing is changed: {told(error)}") from error


async def _baseline(db: DatabaseManager, *, dry_run: bool) -> BaselineReport:
    if await db.fetchval("SELECT to_regclass('pgtick_migrations')") is not None:
        n_applied = await db.fetchval("SELECT count(*) FROM pgtick_migrations")
        if n_applied:
            raise MigrationError(
                f"there is nothing to adopt: this database has a ledger (pgtick_migrations, {n_applied} applied)"
            )
    migrations = await load_all(discover())
    tables = await find_tables(db, [target.table for target in _TARGETS])
    if not tables:
        return BaselineReport(action="nothing", dry_run=dry_run, pending=_labels(migrations))
    engine = await get_engine(db)  # now, while the tables that are there can tell
    tables += await find_tables(db, _OWN)
    await make_ledger(db)
    try:
        async with db.transaction():
            report = await _adopt(db, engine, tables, migrations, dry_run=dry_run)
            if report.action == "recorded":
                raise _RolledBackError(report)
    except _RolledBackError as undone:
        report = undone.report
        # They are what the migrations make: as they were, with the ledger that they lacked.
        for loaded in migrations[: len(report.recorded)]:
            await record(db, loaded.migration, loaded.migration.content)
    return report


async def _adopt(
    db: DatabaseManager, engine: Engine, tables: list[str], migrations: list[LoadedMigration], *, dry_run: bool
) -> BaselineReport:
    has_hypertables = engine.name == "timescale"
    before = await _described(db, has_hypertables=has_hypertables)
    advice = await move_aside(db, tables, has_hypertables=has_hypertables)
    n_applied, n_alike = await _make_tables(db, migrations, before, has_hypertables=has_hypertables)
    n_recorded = n_alike or n_applied
    report = BaselineReport(
        action="recorded" if n_alike else "adopted",
        dry_run=dry_run,
        recorded=_labels(migrations[:n_recorded]),
        pending=_labels(migrations[n_recorded:]),
    )
    if n_alike:
        return report
    reports = [await _move_rows(db, engine, target) for target in _TARGETS if target.table in tables]
    await engine.make_ahead(db)
    advice += await find_followers(db, has_hypertables=has_hypertables)
    advice += _retention_advice(reports)
    if INGEST_QUARANTINE in tables:
        n_refused = await db.fetchval(f"SELECT count(*) FROM {qualified(INGEST_QUARANTINE)}")
        if n_refused:
            advice.append(f"{n_refused} rows that a writer had refused stay in {qualified(INGEST_QUARANTINE)}")
    advice.append(f"the old tables are kept; when you need them no longer: DROP SCHEMA {BEFORE} CASCADE;")
    return msgspec.structs.replace(report, tables=tuple(reports), advice=tuple(advice))


def _labels(migrations: Iterable[LoadedMigration]) -> tuple[str, ...]:
    return tuple(loaded.migration.label for loaded in migrations)


async def _described(db: DatabaseManager, *, has_hypertables: bool) -> dict[str, list[str]]:
    """Return all that makes the tables that are there what they are, which have a retention, and pgtick's routines."""
    described = {}
    for table in (*_OWN, *(target.table for target in _TARGETS)):
        name = quote_identifier(table)
        if await db.fetchval("SELECT to_regclass($1)", name) is not None:
            described[table] = await describe(db, name, has_hypertables=has_hypertables)
    if _REGISTRY in described:
        registered = f"SELECT table_name FROM {_REGISTRY} WHERE table_name = ANY($1) ORDER BY 1"
        described["registered"] = [record[0] for record in await db.fetch(registered, list(described))]
    described["routines"] = [record[0] for record in await db.fetch(_ROUTINE_NAMES)]
    return described


async def _make_tables(
    db: DatabaseManager, migrations: list[LoadedMigration], before: dict[str, list[str]], *, has_hypertables: bool
) -> tuple[int, int | None]:
    """Apply the migrations; return how many were, and after how many it was all as before (None: after none).

    Those from the first on that is outside a transaction are applied in the ordinary way, by ``up``.
    """
    n_applied, n_alike = 0, None
    for loaded in migrations:
        if not loaded.transaction:
            break
        await loaded.up()
        await record(db, loaded.migration, loaded.migration.content)
        n_applied += 1
        if before == await _described(db, has_hypertables=has_hypertables):
            n_alike = n_applied
    return n_applied, n_alike


async def _move_rows(db: DatabaseManager, engine: Engine, target: _Target) -> TableReport:
    """Convert a table's rows, compare what arrived with what was sent, and tell of the rest."""
    name = quote_identifier(target.table)
    old, new = await read_table(db, qualified(target.table)), await read_table(db, name)
    plan = make_plan(old, new, target.model, target.key, target.uniques, await _find_units(db, old, new))
    logger.info("reading %s", old.name)
    day = "floor(extract(epoch FROM timestamp) / 86400)::int" if target.has_time else "0"
    listed = ", ".join(quote_identifier(column) for column in plan.columns)
    checksum = f"sum(hashtextextended(ROW({listed})::text, 0)::numeric)"
    survey: list[Any] = await db.fetch(
        f"SELECT pgtick_broken AS rule, CASE WHEN pgtick_broken IS NULL THEN {day} END AS day, count(*) AS n_rows, "
        f"{checksum} FILTER (WHERE pgtick_broken IS NULL) AS checksum "
        f"FROM (SELECT * FROM {plan.rows} OFFSET 0) s GROUP BY 1, 2 ORDER BY 1, 2"  # or the rules are asked thrice
    )
    good = [record for record in survey if record["rule"] is None]
    await _insert(db, engine, target, plan, good)
    sent = (sum(record["n_rows"] for record in good), sum(record["checksum"] for record in good))
    stored: Any = await db.fetchrow(f"SELECT count(*), coalesce({checksum}, 0) FROM {name}")
    if tuple(stored) != sent:
        raise MigrationError(f"{target.table}: {sent} rows and checksum were sent, {tuple(stored)} are stored")
    await _continue_ids(db, target.table, old)
    return TableReport(
        table=target.table,
        n_rows=sum(record["n_rows"] for record in survey),
        n_moved=sent[0],
        refused=tuple([await _refused(db, plan, rule, survey) for rule in {r["rule"]: 0 for r in survey} if rule]),
        left_behind=await _left_behind(db, old, plan),
        n_past_retention=await _past_retention(db, target),
        notes=tuple(await _notes(db, target, old, plan)),
    )


async def _find_units(db: DatabaseManager, old: LiveTable, new: LiveTable) -> dict[str, str]:
    """Return {column: unit} of the old epoch columns, told by the magnitude of their values."""
    units = {}
    for name, column in new.columns.items():
        had = old.columns.get(name)
        if column.type != "timestamp with time zone" or had is None or not had.type.endswith(("int", "integer")):
            continue
        value = f"{quote_identifier(name)}::bigint"
        counted = ", ".join(
            f"count(*) FILTER (WHERE {value} BETWEEN {low} AND {high}) AS {unit}"
            for unit, (low, high, _) in UNITS.items()
        )
        counts: Any = await db.fetchrow(f"SELECT {counted} FROM {old.name}")
        found = {unit: n_rows for unit, n_rows in counts.items() if n_rows}
        if len(found) > 1:
            told = ", ".join(f"{n_rows} rows in {unit}" for unit, n_rows in found.items())
            raise MigrationError(f"{old.name}.{name} mixes units ({told}): update the old table to one of them first")
        if found:
            units[name] = next(iter(found))
    return units


async def _insert(db: DatabaseManager, engine: Engine, target: _Target, plan: Plan, good: list[Any]) -> None:
    """Insert the rows that break no rule, a day at a time: what the server sorts and holds stays small."""
    if not good:
        return
    listed = ", ".join(quote_identifier(column) for column in plan.columns)
    ordered = ", ".join(quote_identifier(column) for column in target.key)
    days = "AND timestamp >= to_timestamp($1::float8 * 86400) AND timestamp < to_timestamp(($1::float8 + 1) * 86400) "
    query = (
        f"INSERT INTO {quote_identifier(target.table)} ({listed}) SELECT {listed} FROM {plan.rows} "
        f"WHERE pgtick_broken IS NULL {days if target.has_time else ''}ORDER BY {ordered}"
    )
    if target.has_time:
        await engine.ensure_days(db, target.table, [part["day"] for part in good])
    for part in good:
        tag = await db.execute(query, *([part["day"]] if target.has_time else []))
        if tag != f"INSERT 0 {part['n_rows']}":
            raise MigrationError(f"{target.table}: {part['n_rows']} rows were to go in, the server says {tag}")


async def _continue_ids(db: DatabaseManager, table: str, old: LiveTable) -> None:
    """Let the server number on where the old table had come to."""
    name = quote_identifier(table)
    sequence = await db.fetchval(
        "SELECT pg_get_serial_sequence($1, attname) FROM pg_attribute WHERE attrelid = $1::regclass AND attname = 'id'",
        name,
    )
    if sequence is None or "id" not in old.columns:
        return
    had = await db.fetchval("SELECT pg_get_serial_sequence($1, 'id')", old.name)
    newest = await db.fetchval(f"SELECT max(id) FROM {name}")
    last = f"greatest($1::bigint, (SELECT last_value FROM {had} WHERE is_called))" if had else "$1::bigint"
    await db.execute(f"SELECT setval('{sequence}', last) FROM (SELECT {last} AS last) s WHERE last > 0", newest)


async def _refused(db: DatabaseManager, plan: Plan, rule: str, survey: list[Any]) -> RefusedRows:
    n_rows = sum(record["n_rows"] for record in survey if record["rule"] == rule)
    examples = await db.fetch(
        f"SELECT to_jsonb(pgtick_row)::text FROM {plan.rows} WHERE pgtick_broken = $1 LIMIT {_N_EXAMPLES}", rule
    )
    return RefusedRows(rule=rule, n_rows=n_rows, examples=tuple(record[0] for record in examples))


async def _left_behind(db: DatabaseManager, old: LiveTable, plan: Plan) -> dict[str, int]:
    if not plan.left_behind:
        return {}
    counts = ", ".join(f"count({quote_identifier(column)})" for column in plan.left_behind)
    record: Any = await db.fetchrow(f"SELECT {counts} FROM {old.name}")
    return {column: count for column, count in zip(plan.left_behind, record, strict=True) if count}


async def _past_retention(db: DatabaseManager, target: _Target) -> int:
    if not target.has_time:
        return 0
    return int(
        await db.fetchval(
            f"SELECT count(*) FROM {quote_identifier(target.table)} "
            f"WHERE timestamp < now() - (SELECT retention FROM {_REGISTRY} WHERE table_name = $1)",
            target.table,
        )
    )


async def _notes(db: DatabaseManager, target: _Target, old: LiveTable, plan: Plan) -> list[str]:
    notes = []
    if plan.counted:
        counts = ", ".join(f"count(*) FILTER (WHERE {item.predicate})" for item in plan.counted)
        record: Any = await db.fetchrow(f"SELECT {counts} FROM {old.name} o")
        notes = [f"{item.text} ({n} rows)" for item, n in zip(plan.counted, record, strict=True) if n]
    if target.table == "symbols" and "id" in old.columns:
        active = "coalesce(o.is_active::text, 'true') IN ('true', '1')" if "is_active" in old.columns else "true"
        n_inactive = await db.fetchval(
            f"SELECT count(*) FROM symbols n JOIN {old.name} o USING (id) WHERE NOT n.is_active AND {active}"
        )
        if n_inactive:
            notes.append(
                "is_active is false now, since another active one of the exchange has the same exchange_symbol "
                f"({n_inactive} rows)"
            )
    return notes


def _retention_advice(reports: list[TableReport]) -> list[str]:
    return [
        f"{report.n_past_retention} rows of {report.table} are past its retention, and the next maintenance drops them "
        f"(they stay in {qualified(report.table)}): to keep them, before a service or `pgtick maintain` runs, "
        f"UPDATE {_REGISTRY} SET retention = '…' WHERE table_name = '{report.table}'; on TimescaleDB then "
        "`pgtick maintain`, which sets the policy"
        for report in reports
        if report.n_past_retention
    ]
