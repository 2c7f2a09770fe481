"""Which chunk interval fits: from the rate and the size of recent rows and the server's memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from pgtick.connection import DatabaseManager
from pgtick.engines.base import SeriesInfo
from pgtick.engines.choice import get_engine

__all__ = ["IntervalAdvice", "advise_intervals"]

_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_STEPS = (
    *(n * _MINUTE for n in (1, 5, 15, 30)),
    *(n * _HOUR for n in (1, 2, 6, 12)),
    _DAY,
    7 * _DAY,
)
# With more, planning a query that is not bounded in time takes longer than running it (docs/timescaledb.md).
_MAX_PARTS = 200
# What retention drops is whole parts, so this much of a table is kept longer than asked for.
_MAX_PART_OF_RETENTION = 1 / 6

# The newest part that is full and not compressed, else the newest. The planner's count, as it makes it: by the rows
# a page when last analysed; a part that never was is small, and counted.
_CHUNKS = """
SELECT format('%I.%I', chunk_schema, chunk_name)::regclass AS part, range_start AS start, range_end AS stop
FROM timescaledb_information.chunks
WHERE to_regclass(format('%I.%I', hypertable_schema, hypertable_name)) = quote_ident($1)::regclass AND NOT is_compressed
"""
_PARTITIONS = r"""
SELECT part, (regexp_match(bounds, 'FROM \(''([^'']+)'))[1]::timestamptz AS start,
    (regexp_match(bounds, 'TO \(''([^'']+)'))[1]::timestamptz AS stop
FROM (SELECT inhrelid::regclass AS part, pg_get_expr(relpartbound, c.oid) AS bounds FROM pg_inherits
      JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = quote_ident($1)::regclass) p
"""
_RECENT = """
SELECT part::text, extract(epoch FROM least(stop, now()) - start)::float8 AS seconds,
    pg_total_relation_size(part)::float8 AS n_bytes,
    pg_relation_size(part) / current_setting('block_size')::int AS n_pages,
    c.reltuples::float8 AS n_rows, c.relpages AS n_counted_pages
FROM ({parts}) p JOIN pg_class c ON c.oid = part
WHERE start <= now() AND pg_relation_size(part) > 0 ORDER BY (stop <= now()) DESC, start DESC LIMIT 1
"""


class IntervalAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """What a table's chunk interval is and should be, and why; the same where nothing is to be done."""

    table: str
    rows_per_s: float
    bytes_per_row: float  # with its part of the indexes
    current: timedelta
    advised: timedelta
    fits: bool
    reason: str  # what is; where it does not fit, after the last ": " what to do


async def advise_intervals(db: DatabaseManager) -> list[IntervalAdvice]:
    """Return advice for every time-series table that has rows, by name.

    The parts that are written to, of all tables together, should fit into shared_buffers, which by custom are a
    quarter of the memory: then an insert finds the index in memory. Each table has an equal share of them.
    """
    engine = await get_engine(db)
    query = _RECENT.format(parts=_CHUNKS if engine.name == "timescale" else _PARTITIONS)
    measured: list[tuple[SeriesInfo, float, float]] = []
    for info in await engine.describe(db):
        record = await db.fetchrow(query, info.table)
        if record is not None:
            n_rows = await _count(db, record)
            if n_rows:
                measured.append((info, n_rows / max(record["seconds"], 1), record["n_bytes"] / n_rows))
    memory: int = await db.fetchval("SELECT pg_size_bytes(current_setting('shared_buffers'))")
    share = memory / max(len(measured), 1)
    return [_advise(*values, share, is_fixed=engine.name != "timescale") for values in measured]


async def _count(db: DatabaseManager, record: Any) -> float:
    if record["n_rows"] > 0 and record["n_counted_pages"] > 0:
        return float(record["n_rows"] / record["n_counted_pages"] * record["n_pages"])
    return float(await db.fetchval(f"SELECT count(*) FROM {record['part']}"))


def _advise(
    info: SeriesInfo, rows_per_s: float, bytes_per_row: float, share: float, *, is_fixed: bool
) -> IntervalAdvice:
    current = info.part_interval
    bytes_per_s = rows_per_s * bytes_per_row
    size = bytes_per_s * current.total_seconds()
    longest = min(share / bytes_per_s, info.retention.total_seconds() * _MAX_PART_OF_RETENTION)
    fitting = max((step for step in _STEPS if step.total_seconds() <= longest), default=_STEPS[0])
    advised, fits = current, False
    told = f"{current} of rows take {_megabytes(size)}, the table's share of shared_buffers is {_megabytes(share)}"
    if size > share and is_fixed:
        reason = f"{told}: raise shared_buffers, or move to TimescaleDB, whose chunks may be shorter than a day"
    elif size > share and fitting < current:
        advised = fitting
        reason = f"{told}: SELECT set_chunk_time_interval('{info.table}', interval '{_sql(advised)}')"
    elif size > share:
        reason = f"{told}, and no shorter interval is sensible: raise shared_buffers"
    elif info.retention / current > _MAX_PARTS and fitting > current and not is_fixed:
        advised = fitting
        reason = (
            f"{info.retention / current:.0f} chunks are more than planning should see: "
            f"SELECT set_chunk_time_interval('{info.table}', interval '{_sql(advised)}')"
        )
    else:
        fits = True
        reason = f"{told}: as it should be"
    return IntervalAdvice(
        table=info.table,
        rows_per_s=rows_per_s,
        bytes_per_row=bytes_per_row,
        current=current,
        advised=advised,
        fits=fits,
        reason=reason,
    )


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:,.1f} MB"


def _sql(interval: timedelta) -> str:
    return f"{interval // _MINUTE} minutes"
