"""Candles: the SQL that makes them, and TimescaleDB's continuous aggregates of them.

Every candle is put together from narrower ones, first from those of at most a second, which are made from rows:
so the memory that a candle takes does not grow with the rows in it, and an aggregate, which is made of the same
text, gives the same figures.
"""

from __future__ import annotations

import logging
import math
from datetime import timedelta

import msgspec

from pgtick.connection import DatabaseManager

__all__ = [
    "MID_CANDLES",
    "TRADE_CANDLES",
    "WANTED_CANDLE_POLICIES",
    "CandleKind",
    "create_candle_views",
    "drop_candle_views",
    "find_candle_view",
    "keep_candle_policies",
    "select_candles",
]

logger = logging.getLogger(__name__)

_SECOND = timedelta(seconds=1)


class CandleKind(msgspec.Struct, frozen=True, kw_only=True):
    """How candles are made from the rows of a table, and wider ones from narrower ones."""

    name: str  # its aggregates are called <name>_1s, …
    source: str
    price: str
    order: str  # which of two rows comes first: decides open and close
    from_rows: str
    from_candles: str


MID_CANDLES = CandleKind(
    name="mid_candles",
    source="book_ticker_snapshots",
    price="(bid_price + ask_price) * 0.5",  # a division would round
    order="timestamp, sequence_number",
    from_rows="count(*) AS n_updates",
    from_candles="sum(n_updates)::bigint AS n_updates",
)
TRADE_CANDLES = CandleKind(
    name="trade_candles",
    source="trade_snapshots",
    price="price",
    # Ids that are numbers in the order of numbers, others in any order that is the same on every server.
    order='timestamp, char_length(trade_id), trade_id COLLATE "C"',
    from_rows="sum(quantity) AS volume, sum(coalesce(quote_quantity, price * quantity)) AS quote_volume, "
    "count(*) AS n_trades",
    from_candles="sum(volume) AS volume, sum(quote_volume) AS quote_volume, sum(n_trades)::bigint AS n_trades",
)
_KINDS = (MID_CANDLES, TRADE_CANDLES)

# suffix, width, chunk interval, retention (None: for ever). They outlive the rows; a second's candles take as much
# room as the rows of a quiet symbol do, an hour's hardly any.
_VIEWS = (
    ("1s", timedelta(seconds=1), timedelta(hours=4), timedelta(days=14)),
    ("1m", timedelta(minutes=1), timedelta(days=7), timedelta(days=180)),
    ("1h", timedelta(hours=1), timedelta(days=90), None),
)


def _from_rows(kind: CandleKind, bucket: str, condition: str = "") -> str:
    # One array for both, so that the rows are sorted once; it holds a second's prices at most.
    prices = f"(array_agg({kind.price} ORDER BY {kind.order}))"
    return (
        f"SELECT symbol_id, {bucket} AS bucket, {prices}[1] AS open, max({kind.price}) AS high, "
        f"min({kind.price}) AS low, {prices}[count(*)] AS close, {kind.from_rows} "
        f"FROM {kind.source}{condition} GROUP BY symbol_id, {bucket}"
    )


def _from_candles(kind: CandleKind, bucket: str, source: str, condition: str = "") -> str:
    return (
        f"SELECT symbol_id, {bucket} AS bucket, (array_agg(open ORDER BY narrow.bucket))[1] AS open, "
        "max(high) AS high, min(low) AS low, (array_agg(close ORDER BY narrow.bucket))[count(*)] AS close, "
        f"{kind.from_candles} FROM {source} narrow{condition} GROUP BY symbol_id, {bucket}"
    )


def select_candles(kind: CandleKind, view: str | None, width: timedelta, symbols: str) -> str:
    """Return the query for candles of that width, from the aggregate or, without one, from rows.

    ``symbols`` compares symbol_id with $1; $2 and $3 are start and end, on the borders of candles, $4 is the width.
    """
    origin = "timestamptz '1970-01-01 00:00:00+00'"
    bucket = f"date_bin($4::interval, narrow.bucket, {origin})"
    if view is not None:
        condition = f" WHERE {symbols} AND narrow.bucket >= $2 AND narrow.bucket < $3"
        query = _from_candles(kind, bucket, view, condition)
    else:
        narrow_us = math.gcd(*(interval // timedelta(microseconds=1) for interval in (width, _SECOND)))
        narrow = f"date_bin(interval '{narrow_us} microseconds', timestamp, {origin})"
        rows = _from_rows(kind, narrow, f" WHERE {symbols} AND timestamp >= $2 AND timestamp < $3")
        query = _from_candles(kind, bucket, f"({rows})")
    return f"{query} ORDER BY 1, 2"


# What refreshing may reach back to. Rows that are gone must not be looked for: their candles would go as well. So
# it stays inside what every table below keeps, by a margin for a refresh that runs while chunks are dropped.
_PLAN = """
SELECT c.candle_view, c.source_table, c.width, c.retention,
    least(s.retention, (SELECT min(n.retention) FROM pgtick_candles n
                        WHERE n.source_table = c.source_table AND n.width < c.width))
        - least(s.chunk_interval, s.retention / 10) AS reach,
    least(greatest(c.width, interval '1 minute'), interval '10 minutes') AS end_offset,
    least(greatest(c.width, interval '1 minute'), interval '5 minutes') AS schedule
FROM pgtick_candles c JOIN pgtick_time_series s ON s.table_name = c.source_table
"""
_ADD_REFRESH = f"""
SELECT add_continuous_aggregate_policy(quote_ident(candle_view)::regclass,
    start_offset => coalesce($2::interval, reach), end_offset => end_offset, schedule_interval => schedule,
    initial_start => now() + schedule)
FROM ({_PLAN}) p
WHERE candle_view = coalesce($1, candle_view) AND coalesce($2::interval, reach) >= end_offset + 2 * width
"""
_ADD_RETENTION = """
SELECT add_retention_policy(quote_ident(candle_view)::regclass, drop_after => retention,
    schedule_interval => interval '1 hour', initial_start => now() + interval '1 hour')
FROM pgtick_candles WHERE candle_view = coalesce($1, candle_view) AND retention IS NOT NULL
"""
# When the reach grows (the retention was lengthened), it grows with the age of the oldest row and no faster:
# the candles of rows that were dropped before would be refreshed to nothing.
WANTED_CANDLE_POLICIES = f"""
WITH plan AS ({_PLAN}), made AS (
    SELECT candle_view, source_table, width, materialization_hypertable_schema AS schema,
        materialization_hypertable_name AS name
    FROM plan JOIN timescaledb_information.continuous_aggregates
        ON to_regclass(format('%I.%I', view_schema, view_name)) = to_regclass(quote_ident(candle_view))
), below AS (
    SELECT candle_view, nspname AS schema, relname AS name FROM made
    JOIN pg_class r ON r.oid = to_regclass(quote_ident(source_table)) JOIN pg_namespace n ON n.oid = relnamespace
    UNION ALL
    SELECT m.candle_view, b.schema, b.name FROM made m
    JOIN made b ON b.source_table = m.source_table AND b.width < m.width
), oldest AS (
    SELECT candle_view, now() - max(first) AS age FROM (
        SELECT candle_view, min(range_start) AS first FROM below
        JOIN timescaledb_information.chunks ON (hypertable_schema, hypertable_name) = (schema, name)
        GROUP BY candle_view, name
    ) f GROUP BY candle_view
), jobs AS (
    SELECT to_regclass(quote_ident(hypertable_schema) || '.' || quote_ident(hypertable_name)) AS view, proc_name,
        schedule_interval, (config ->> 'start_offset')::interval AS start_offset,
        (config ->> 'end_offset')::interval AS end_offset, (config ->> 'drop_after')::interval AS drop_after
    FROM timescaledb_information.jobs
), wanted AS (
    SELECT p.*, j.start_offset AS old_start, j.end_offset AS old_end, j.schedule_interval AS old_schedule,
        k.drop_after, CASE WHEN j.start_offset IS NULL THEN least(reach, coalesce(age, reach))
            ELSE least(reach, greatest(j.start_offset, age)) END AS start_offset
    FROM plan p JOIN made USING (candle_view) LEFT JOIN oldest USING (candle_view)
    LEFT JOIN jobs j ON j.view = to_regclass(quote_ident(candle_view))
        AND j.proc_name = 'policy_refresh_continuous_aggregate'
    LEFT JOIN jobs k ON k.view = to_regclass(quote_ident(candle_view)) AND k.proc_name = 'policy_retention'
)
"""
_WRONG = f"""{WANTED_CANDLE_POLICIES}
SELECT candle_view, start_offset, start_offset >= end_offset + 2 * width AS is_long_enough FROM wanted
WHERE drop_after IS DISTINCT FROM retention
    OR CASE WHEN start_offset >= end_offset + 2 * width
        THEN (old_start, old_end, old_schedule) IS DISTINCT FROM (start_offset, end_offset, schedule)
        ELSE old_start IS NOT NULL END
ORDER BY 1
"""
_FIND = """
SELECT quote_ident(candle_view) FROM pgtick_candles
WHERE source_table = $1 AND to_regclass(quote_ident(candle_view)) IS NOT NULL
    AND (extract(epoch FROM $2::interval) * 1000000)::bigint % (extract(epoch FROM width) * 1000000)::bigint = 0
ORDER BY width DESC LIMIT 1
"""


# TimescaleDB notes for the next refresh what INSERT and UPDATE change behind the last one, but not what COPY brings
# into a table that has a trigger with a transition table (2.29: copy.c notes in its multi-insert path only). So the
# first and the last row of each minute are updated to what they are, which notes all between them, chunk by chunk.
# Rows of the last 30 s need none of it: a refresh ends a minute ago, or earlier. In a transaction of several
# statements it may have gone further before the end, so there every statement's rows are touched.
_TOUCH_LATE_ROWS = """
CREATE FUNCTION pgtick_touch_late_rows() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timescaledb.max_tuples_decompressed_per_dml_transaction = 0 AS $$
DECLARE late record;
BEGIN
    IF now() = statement_timestamp()
        AND (SELECT min(timestamp) FROM incoming) > clock_timestamp() - interval '30 seconds' THEN
        RETURN NULL;
    END IF;
    FOR late IN SELECT DISTINCT i.symbol_id, i.timestamp FROM incoming i JOIN (
        SELECT unnest(ARRAY[min(timestamp), max(timestamp)]) AS at FROM incoming
        GROUP BY date_bin('1 minute', timestamp, timestamptz 'epoch')
    ) border ON i.timestamp = border.at LOOP
        EXECUTE format('UPDATE %I.%I SET created_at = created_at WHERE symbol_id = $1 AND timestamp = $2',
            TG_TABLE_SCHEMA, TG_TABLE_NAME) USING late.symbol_id, late.timestamp;
    END LOOP;
    RETURN NULL;
END $$;
"""


async def find_candle_view(db: DatabaseManager, kind: CandleKind, width: timedelta) -> str | None:
    """Return the aggregate of the widest candles that ``width`` is a multiple of, or None."""
    view: str | None = await db.fetchval(_FIND, kind.source, width, resets=False)
    return view


async def create_candle_views(db: DatabaseManager) -> None:
    """Create the continuous aggregates, each from the one before, with their policies; inside a transaction.

    They are filled by the policies; what is not in them yet is computed when they are read.
    """
    for kind in _KINDS:
        narrow = None
        for suffix, width, chunk, retention in _VIEWS:
            view = f"{kind.name}_{suffix}"
            seconds = f"{width // _SECOND} seconds"
            query = (
                _from_rows(kind, f"time_bucket('{seconds}', timestamp)")
                if narrow is None
                else _from_candles(kind, f"time_bucket('{seconds}', narrow.bucket)", narrow)
            )
            await db.execute(
                f"CREATE MATERIALIZED VIEW {view} WITH (timescaledb.continuous, timescaledb.materialized_only = false, "
                f"timescaledb.chunk_interval = '{chunk // _SECOND} seconds') AS\n{query}\nWITH NO DATA"
            )
            await db.execute("INSERT INTO pgtick_candles VALUES ($1, $2, $3, $4)", view, kind.source, width, retention)
            narrow = view
    await db.execute(_ADD_REFRESH, None, None)
    await db.execute(_ADD_RETENTION, None)
    if db.server_version < 180000:  # before, no table has such a trigger: see create_series
        return
    await db.execute(_TOUCH_LATE_ROWS)
    for kind in _KINDS:
        await db.execute(
            f"CREATE TRIGGER touch_late_rows AFTER INSERT ON {kind.source} REFERENCING NEW TABLE AS incoming "
            "FOR EACH STATEMENT EXECUTE FUNCTION pgtick_touch_late_rows()"
        )


async def drop_candle_views(db: DatabaseManager) -> None:
    """Drop the continuous aggregates with their candles."""
    for kind in _KINDS:
        for suffix, *_ in reversed(_VIEWS):
            await db.execute(f"DROP MATERIALIZED VIEW IF EXISTS {kind.name}_{suffix}")
        await db.execute(f"DROP TRIGGER IF EXISTS touch_late_rows ON {kind.source}")
    await db.execute("DROP FUNCTION IF EXISTS pgtick_touch_late_rows()")


async def keep_candle_policies(db: DatabaseManager) -> None:
    """Bring the aggregates' policies in line with pgtick_candles and with the retention of what they are made from."""
    for record in await db.fetch(_WRONG):
        view = record["candle_view"]
        async with db.transaction():
            await db.execute(
                "SELECT remove_continuous_aggregate_policy(quote_ident($1)::regclass, if_exists => true)", view
            )
            await db.execute("SELECT remove_retention_policy(quote_ident($1)::regclass, if_exists => true)", view)
            await db.execute(_ADD_REFRESH, view, record["start_offset"])
            await db.execute(_ADD_RETENTION, view)
        if record["is_long_enough"]:
            logger.info("set the policies of %s", view)
        else:
            logger.warning("%s is not refreshed: what it is made from is kept too short a time", view)
