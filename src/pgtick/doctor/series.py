"""The time-series tables: how they are kept, how large they are, and how fresh their rows are."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from pgtick import tables
from pgtick.doctor.examination import Examination
from pgtick.doctor.report import Freshness, Series
from pgtick.engines import Engine, SeriesInfo, get_engine
from pgtick.errors import ConfigError
from pgtick.tables import quote_identifier

__all__ = ["STALE_AFTER", "look_at_series"]

#: When an active exchange's newest row is too old. Opportunities come when they come, so they have no such age.
STALE_AFTER = {
    tables.BOOK_TICKERS.name: timedelta(minutes=10),
    tables.TRADES.name: timedelta(minutes=10),
    tables.ORDER_FLOW_METRICS.name: timedelta(hours=1),
    tables.BALANCES.name: timedelta(hours=6),
    tables.FUNDING_RATES.name: timedelta(hours=9),  # venues set them every eight hours, most of them
}

_TIME = "timestamp"
_KEY = """
SELECT array_agg(a.attname::text ORDER BY k.n)
FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int[]) WITH ORDINALITY k (attnum, n)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = quote_ident($1)::regclass AND i.indisprimary
"""
# What the leading column of a key refers to, and the exchange of each.
_LEADING = {
    "symbol_id": "SELECT s.id, e.enum_value, e.is_active FROM symbols s JOIN exchanges e ON e.id = s.exchange_id",
    "exchange_id": "SELECT id, enum_value, is_active FROM exchanges",
}
# No form but these reads an entry or two a symbol and partition, whatever the table's size. Citus refuses the first.
_BOUNDS_OF_ALL = """
SELECT id, (SELECT min(timestamp) FROM {table} WHERE {lead} = id) AS oldest,
       (SELECT max(timestamp) FROM {table} WHERE {lead} = id) AS newest
FROM unnest($1::text[]::int[]) id
"""
_BOUNDS_OF_ONE = (
    "SELECT $1::int AS id, min(timestamp) AS oldest, max(timestamp) AS newest FROM {table} WHERE {lead} = $1"
)
# Where a second column (asset_name) stands between, its values are found by skipping from one to the next.
_BOUNDS_SKIPPING = """
WITH RECURSIVE found (value) AS (
    (SELECT {second} FROM {table} WHERE {lead} = $1 ORDER BY {second} LIMIT 1)
    UNION ALL
    SELECT (SELECT {second} FROM {table} WHERE {lead} = $1 AND {second} > value ORDER BY {second} LIMIT 1)
    FROM found WHERE value IS NOT NULL
)
SELECT $1::int AS id,
       min((SELECT min(timestamp) FROM {table} WHERE {lead} = $1 AND {second} = value)) AS oldest,
       max((SELECT max(timestamp) FROM {table} WHERE {lead} = $1 AND {second} = value)) AS newest
FROM found WHERE value IS NOT NULL
"""


class _Bounds(msgspec.Struct, frozen=True):
    id: int
    oldest: datetime
    newest: datetime


async def look_at_series(examination: Examination) -> None:
    """Look at every time-series table of the database."""
    engine = None
    async with examination.looking("engine"):
        try:
            engine = await get_engine(examination.db)
        except ConfigError as error:
            examination.find("action", "engine", str(error), "set engine (POSTGRES_ENGINE) to auto")
    if engine is None:
        return
    examination.report.engine = engine.name
    async with examination.looking("time-series tables"):
        if await examination.db.fetchval("SELECT to_regclass('pgtick_time_series')") is None:
            return  # the migrations say why
        for info in await engine.describe(examination.db):
            examination.report.series.append(Series(table=info.table, info=info))
            for text in info.findings:
                what, _, do = text.partition(": ")
                examination.find("action", info.table, what, do or "pgtick maintain")
    async with examination.looking("sizes"):
        sizes = {size.table: size for size in await engine.sizes(examination.db)}
        for series in examination.report.series:
            series.size = sizes.get(series.table)
    for series in examination.report.series:
        if series.table == tables.INGEST_BATCHES:
            continue  # neither exchanges nor a rate at which batches come
        async with examination.looking(f"rows of {series.table}"):
            await _look_at_rows(examination, engine, series)


async def _look_at_rows(examination: Examination, engine: Engine, series: Series) -> None:
    key = await examination.db.fetchval(_KEY, series.table) or []
    if _TIME not in key[1:3] or key[0] not in _LEADING:
        examination.cannot_see(
            f"rows of {series.table}",
            "a primary key that begins with symbol_id or exchange_id, and has the timestamp second or third",
        )
        return
    leading = {record["id"]: record for record in await examination.db.fetch(_LEADING[key[0]])}
    now = await examination.db.fetchval("SELECT clock_timestamp()")
    bounds = await _bounds(examination, engine, series.table, key, leading)
    by_exchange: dict[str, list[_Bounds]] = {}
    for found in bounds:
        by_exchange.setdefault(leading[found.id]["enum_value"], []).append(found)
    for exchange, spans in sorted(by_exchange.items()):
        newest = max(found.newest for found in spans)
        series.exchanges.append(
            Freshness(
                exchange=exchange,
                is_active=leading[spans[0].id]["is_active"],
                oldest=min(found.oldest for found in spans),
                newest=newest,
                age_s=(now - newest).total_seconds(),
            )
        )
    series.oldest = min((freshness.oldest for freshness in series.exchanges), default=None)
    series.newest = max((freshness.newest for freshness in series.exchanges), default=None)
    _judge_freshness(examination, series)
    _judge_retention(examination, series.info, series.oldest, now)


async def _bounds(
    examination: Examination, engine: Engine, table: str, key: list[str], ids: Iterable[int]
) -> list[_Bounds]:
    """Return the bounds of each leading id that has rows."""
    names = {"table": table, "lead": key[0], "second": key[1]}
    quoted = {place: quote_identifier(name) for place, name in names.items()}
    if key[1] == _TIME and engine.name != "citus":
        records = await examination.db.fetch(_BOUNDS_OF_ALL.format(**quoted), list(map(str, ids)))
    else:
        query = (_BOUNDS_OF_ONE if key[1] == _TIME else _BOUNDS_SKIPPING).format(**quoted)
        records = [record for id_ in ids for record in await examination.db.fetch(query, id_)]
    return [_Bounds(**record) for record in records if record["newest"] is not None]


def _judge_freshness(examination: Examination, series: Series) -> None:
    limit = examination.stale_after.get(series.table)
    for freshness in series.exchanges:
        if limit is not None and freshness.is_active and freshness.age_s > limit.total_seconds():
            examination.find(
                "action",
                f"{series.table}, {freshness.exchange}",
                f"stale: the newest row is {timedelta(seconds=round(freshness.age_s))} old, "
                f"{freshness.newest:%Y-%m-%d %H:%M:%S} UTC",
                "look at that feed and its writer's log; an exchange that is no longer followed is deactivated "
                "(its is_active in exchanges)",
            )


def _judge_retention(examination: Examination, info: SeriesInfo, oldest: datetime | None, now: datetime) -> None:
    # Two spans: a part goes only when all of it is too old, and somebody has to come by. An engine's findings say why.
    if oldest is None or info.findings or oldest >= now - info.retention - 2 * info.part_interval:
        return
    examination.find(
        "action",
        info.table,
        f"retention is not in force: the oldest row is of {oldest:%Y-%m-%d %H:%M} UTC, the retention is "
        f"{info.retention}, and dropping is left to {info.retention_by}",
        "pgtick maintain, and see why it does not run by itself",
    )
