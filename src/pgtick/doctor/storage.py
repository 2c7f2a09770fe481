"""The database as a whole: its size, broken indexes, numbers that run out."""

from __future__ import annotations

from typing import Any

from pgtick.doctor import queries
from pgtick.doctor.examination import Examination

__all__ = ["look_at_indexes", "look_at_sequences", "look_at_size", "look_at_transaction_ids"]

_USED_UP, _NEARLY_USED_UP = 0.95, 0.80
# Autovacuum begins at its limit by itself, so being a little above it is normal; at two thousand million
# transactions the server stops taking writes.
_LATE, _DANGEROUS = 1.5, 1_000_000_000


async def look_at_size(examination: Examination) -> None:
    """Ask for the size of the database."""
    async with examination.looking("size of the database"):
        examination.report.database_bytes = await examination.db.fetchval(queries.DATABASE_SIZE)


async def look_at_indexes(examination: Examination) -> None:
    """Look for indexes that are not valid and not being built: they cost every write and serve no read."""
    async with examination.looking("indexes"):
        for record in await examination.db.fetch(queries.INVALID_INDEXES):
            if record["is_partitioned"]:
                do = (
                    f"CREATE INDEX on each partition that lacks it, then ALTER INDEX {record['index']} ATTACH PARTITION"
                )
            else:
                do = f"REINDEX INDEX CONCURRENTLY {record['index']}, or DROP INDEX CONCURRENTLY and create it again"
            what = f"not valid, on {record['table']}: a concurrent build failed, or parts are missing"
            examination.find("action", f"index {record['index']}", what, do)


async def look_at_sequences(examination: Examination) -> None:
    """Compare what sequences and identity columns have given out with their maximum."""
    async with examination.looking("sequences"):
        hidden = []
        for record in await examination.db.fetch(queries.SEQUENCES):
            if not record["is_visible"]:
                hidden.append(record["sequence"])
                continue
            used = (record["last_value"] or 0) / record["max_value"]
            if used >= _NEARLY_USED_UP:
                examination.find(
                    "action" if used >= _USED_UP else "warning",
                    f"sequence {record['sequence']}",
                    f"{used:.0%} of its numbers are given out ({record['last_value']} of {record['max_value']})",
                    _widen(record),
                )
        if hidden:
            examination.cannot_see("sequences", f"GRANT SELECT ON SEQUENCE {', '.join(hidden)}")


def _widen(record: Any) -> str:
    widen = f"ALTER SEQUENCE {record['sequence']} AS bigint"
    if record["type"] == "bigint":
        return f"ALTER SEQUENCE {record['sequence']} MAXVALUE, or RESTART where numbers are free again"
    if record["table"] is None:
        return widen
    return (
        f"{widen}; ALTER TABLE {record['table']} ALTER COLUMN {record['column']} TYPE bigint "
        "(rewrites the table; triggers and views that use the column go before and come back after)"
    )


async def look_at_transaction_ids(examination: Examination) -> None:
    """Compare the age of the oldest transaction ids with the age at which autovacuum is forced."""
    async with examination.looking("transaction ids"):
        for record in await examination.db.fetch(queries.TRANSACTION_IDS):
            for kind in ("transactions", "multixacts"):
                age, forced = record[f"n_{kind}"], record[f"n_{kind}_forced"]
                if age > min(_LATE * forced, _DANGEROUS):
                    examination.find(
                        "action" if age > _DANGEROUS else "warning",
                        f"database {record['database']}",
                        f"its oldest row versions are {age:,} {kind} old, autovacuum was due at {forced:,}",
                        "find what holds it back (see vacuum above), then VACUUM (FREEZE, VERBOSE) in that database",
                    )
