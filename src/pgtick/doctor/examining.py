"""The whole examination, look by look."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.doctor.examination import Examination
from pgtick.doctor.ingest import look_at_quarantine
from pgtick.doctor.report import MigrationState, Report
from pgtick.doctor.series import STALE_AFTER, look_at_series
from pgtick.doctor.server import look_at_clock, look_at_jobs, look_at_role, look_at_server
from pgtick.doctor.sessions import look_at_connections, look_at_transactions, look_at_waits
from pgtick.doctor.storage import look_at_indexes, look_at_sequences, look_at_size, look_at_transaction_ids
from pgtick.engines.advice import advise_intervals
from pgtick.errors import MigrationError, PgtickError
from pgtick.migrator import get_available_migrations
from pgtick.verify import verify_schema

__all__ = ["examine"]

_WAY_OUT = {
    "pending": "pgtick migrate up",
    "unfinished": "pgtick migrate repair",
    "changed": "restore the file and put the change into a new one, or pgtick migrate accept",
    "no file": "upgrade pgtick, or configure the folder that the migration is from (POSTGRES_MIGRATION_FOLDERS)",
}


async def examine(db: DatabaseManager | None = None, *, stale_after: Mapping[str, timedelta] | None = None) -> Report:
    """Look at everything, change nothing, and return what was found.

    ``stale_after`` is {table: age}: when an active exchange's newest row there is too old, beside what STALE_AFTER
    says. What the role may not see, or what is locked, is named in ``unseen``; only a database that cannot be
    reached is an error.
    """
    db = db or get_db_manager()
    if db.in_transaction:
        raise PgtickError("the doctor wants short transactions of its own: call it outside of transaction()")
    report = Report(database=db.config.database, examined_at=datetime.now(UTC))
    examination = Examination(db, report, {**STALE_AFTER, **(stale_after or {})})
    for look in _LOOKS:
        await look(examination)
    report.findings.sort(key=lambda finding: finding.severity)  # action before warning; otherwise as they came
    return report


async def _look_at_migrations(examination: Examination) -> None:
    async with examination.looking("migrations"):
        try:
            rows = await get_available_migrations(examination.db)
        except MigrationError as error:
            examination.find("action", "migrations", str(error), "mend the folder (POSTGRES_MIGRATION_FOLDERS)")
            return
        for row in rows:
            state = MigrationState(
                label=f"{row['namespace']}/{row['id']}_{row['name']}",
                state=row["state"],
                applied_at=row["applied_at"],
            )
            examination.report.migrations.append(state)
            if state.state != "applied":
                do = _WAY_OUT[state.state]
                examination.find("action", f"migration {state.label}", state.state, do)


async def _look_at_schema(examination: Examination) -> None:
    # In a transaction that changes nothing: what the last start, migration or verify has stored is what is declared.
    async with examination.looking("schema"):
        for drift in await verify_schema(examination.db):
            if drift.state == "unverifiable":
                examination.cannot_see("schema", f"{drift}; {drift.advice}")
            else:
                examination.find("action", "schema", str(drift), drift.advice)


async def _look_at_intervals(examination: Examination) -> None:
    if not examination.report.series:
        return  # the engine or the migrations say why
    async with examination.looking("chunk intervals"):
        for advice in await advise_intervals(examination.db):
            if not advice.fits:
                what, _, do = advice.reason.rpartition(": ")
                examination.find("warning", advice.table, what, do)


_LOOKS = (
    look_at_server,
    look_at_clock,
    look_at_role,
    _look_at_migrations,
    _look_at_schema,
    look_at_series,
    _look_at_intervals,
    look_at_quarantine,
    look_at_jobs,
    look_at_indexes,
    look_at_sequences,
    look_at_transaction_ids,
    look_at_size,
    look_at_connections,
    look_at_transactions,
    look_at_waits,
)
