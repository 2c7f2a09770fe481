"""Reading from a real server: the same values as records, in chunks, in time, and the pool full afterwards."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import numpy as np
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.errors import DecodeError, PgtickError, QueryError, StatementTimeoutError
from pgtick.models import BookTickerSnapshot
from pgtick.operations.book_ticker import insert_book_ticker_batch
from pgtick.operations.symbols import resolve_symbol
from pgtick.reader import Columns, Decimal128, Fixed, read_chunks, read_columns, read_structs

EVERY_TYPE = """
SELECT (i - 3)::int2 AS a, i::int4 * -70000 AS b, i::int8 << 40 AS c, i::float4 / 3 AS d, i::float8 / 7 AS e,
    i % 2 = 0 AS f, 'é''' || i AS g, ('v' || i)::varchar(5) AS h, ('b' || i)::bpchar(8) AS j, ('n' || i)::name AS k,
    timestamptz '2025-03-01 12:00:00.123456+02' + i * interval '1 day 1 microsecond' AS l,
    timestamp '1999-12-31 23:59:59.999999' - i * interval '100 days' AS m, date '1969-12-30' + i AS n,
    md5(i::text)::uuid AS o, decode(md5(i::text), 'hex') AS p, json_build_object('i', i) AS q,
    jsonb_build_object('i', i, 's', 'é') AS r, i * 1.10 AS s, -i::numeric(30, 20) / 3 AS t
FROM generate_series(1, $1) AS i
"""


def idle(db: DatabaseManager) -> bool:
    state = db.pool_state()
    return state["size"] == state["idle"]


async def settled(db: DatabaseManager) -> bool:
    """Whether the pool gets full again and gives connections that work."""
    for _ in range(200):
        if idle(db):
            break
        await asyncio.sleep(0.01)
    return idle(db) and await db.fetchval("SELECT 1") == 1


async def test_every_type_reads_as_records_do(db: DatabaseManager) -> None:
    records = await db.fetch(EVERY_TYPE, 50)
    got = await read_columns(EVERY_TYPE, 50, decimals="decimal")
    assert got.names == tuple(records[0].keys())
    for name in got.names:
        assert got.objects(name) == [record[name] for record in records], name


async def test_every_type_reads_null_as_null(db: DatabaseManager) -> None:
    nulls = ", ".join(f"CASE WHEN i = 2 THEN {name} END AS {name}" for name in "abcdefghjklmnopqrst")
    query = f"SELECT {nulls} FROM (SELECT row_number() OVER () AS i, * FROM ({EVERY_TYPE}) AS x) AS y"
    got = await read_columns(query, 3)
    for name in got.names:
        assert got.masks[name].tolist() == [True, False, True]
        assert [value is None for value in got.objects(name)] == [True, False, True]


async def test_numeric_reads_in_each_form(db: DatabaseManager) -> None:
    query = "SELECT x AS a, x AS b, x AS c, x AS d FROM (VALUES (50000.10), (NULL), (-0.00000001)) AS v (x)"
    got = await read_columns(query, decimals={"b": "decimal", "c": Fixed(8), "d": Decimal128(8, 20)})
    assert got.objects("a") == [50000.1, None, -1e-8]
    assert [str(value) for value in got["b"]] == ["50000.10", "None", "-1E-8"]
    assert got["c"].tolist() == [5000010000000, 0, -1]
    assert got.objects("d") == [Decimal("50000.1"), None, Decimal("-1e-8")]
    assert got.masks["c"].tolist() == [False, True, False]


async def test_numeric_that_does_not_fit_is_named_and_nothing_else_is_lost(db: DatabaseManager) -> None:
    query = "SELECT i, CASE i WHEN 3 THEN $1::numeric ELSE i END AS x FROM generate_series(1, 100) AS i"
    for value, rule in (
        (Decimal("0.001"), "0.001 has more decimals"),
        (Decimal("1e20"), "100000000000000000000 is too"),
    ):
        with pytest.raises(DecodeError) as caught:
            await read_columns(query, value, decimals=Fixed(2))
        assert (caught.value.row, caught.value.column) == (2, "x")
        assert caught.value.reason.startswith(rule)
        assert await settled(db)
    for special in ("NaN", "Infinity"):
        if special == "Infinity" and db.server_version < 140000:
            continue
        assert not np.isfinite((await read_columns("SELECT $1::numeric AS x", Decimal(special)))["x"][0])
        with pytest.raises(DecodeError, match=f"row 0, column x: {special} is not finite"):
            await read_columns("SELECT $1::numeric AS x", Decimal(special), decimals="decimal")


@pytest.mark.parametrize("literal", ["timestamptz 'infinity'", "timestamp '-infinity'", "date 'infinity'"])
async def test_infinite_time_is_an_error_that_says_what_to_do(db: DatabaseManager, literal: str) -> None:
    with pytest.raises(DecodeError, match=r"row 0, column t: -?infinity is no date or time here: select NULLIF"):
        await read_columns(f"SELECT {literal} AS t")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            'SELECT 1 AS a, int4range(1, 2) AS "x y"',
            "column 'x y': type int4range cannot be read: cast it.*\"x y\"::text",
        ),
        ("SELECT ARRAY[1] AS l", r"column 'l': type int4\[\] cannot be read"),
        ("SELECT 1 AS a, 2 AS a", "column 'a': two columns"),
        ("SELECT", "query: it returns no columns"),
        ("CREATE TABLE never (i int4)", "query: it returns no columns"),
    ],
)
async def test_query_that_cannot_be_read_is_refused_before_it_runs(
    db: DatabaseManager, query: str, message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        await read_columns(query)
    assert await settled(db)
    assert await db.fetchval("SELECT to_regclass('never')") is None


@pytest.mark.parametrize("decimals", ["double", Fixed(39), Decimal128(0, 39), {"nope": "float"}, {"i": "decimal"}])
async def test_form_that_no_numeric_has_is_refused(db: DatabaseManager, decimals: Any) -> None:
    with pytest.raises(QueryError, match="decimals: "):
        await read_columns("SELECT 1 AS i, 1.5 AS x", decimals=decimals)


@pytest.mark.parametrize("query", ["SELECT 1 AS i;", "SELECT 1 AS i -- one", "VALUES (1) /* ; */ ;; "])
async def test_query_with_a_comment_or_semicolon_at_its_end_is_read(db: DatabaseManager, query: str) -> None:
    assert next(iter((await read_columns(query)).columns.values())).tolist() == [1]


@pytest.mark.parametrize("query", ["SELECT 1 AS i) TO STDOUT; DROP TABLE trade_snapshots; --", "SELECT 1; SELECT 2"])
async def test_query_that_is_more_than_one_is_refused_by_the_server(db: DatabaseManager, query: str) -> None:
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await read_columns(query)
    assert await db.fetchval("SELECT to_regclass('trade_snapshots') IS NOT NULL")


async def test_query_that_returns_what_it_writes_is_kept(db: DatabaseManager) -> None:
    await db.execute("CREATE TABLE written (i int4)")
    got = await read_columns("INSERT INTO written SELECT generate_series(1, $1) RETURNING i * 2 AS n", 3)
    assert got["n"].tolist() == [2, 4, 6]
    assert await db.fetchval("SELECT count(*) FROM written") == 3


async def test_structs_are_the_rows_as_they_were_stored(db: DatabaseManager) -> None:
    symbol = await resolve_symbol("READ_SPOT", "BTC", "USDT")
    start = datetime(2025, 3, 1, tzinfo=UTC)
    rows = [
        BookTickerSnapshot(
            timestamp=start + timedelta(milliseconds=i),
            symbol_id=symbol.id,
            bid_price=f"{100 + i}.10",
            ask_price=f"{101 + i}.25",
            bid_qty="0.00000001" if i % 2 else None,
            ask_qty="5",
            sequence_number=i,
        )
        for i in range(2500)
    ]
    await insert_book_ticker_batch(rows)
    query = (
        "SELECT timestamp, symbol_id, bid_price, ask_price, bid_qty, ask_qty, sequence_number "
        "FROM book_ticker_snapshots WHERE symbol_id = $1 AND timestamp >= $2 ORDER BY timestamp"
    )
    got = await read_structs(BookTickerSnapshot, query, symbol.id, start, decimals="decimal")
    assert len(got) == len(rows)
    for stored, given in zip(got, rows, strict=True):
        assert stored.timestamp == given.timestamp
        assert [str(stored.bid_price), str(stored.ask_price)] == [given.bid_price, given.ask_price]
        assert stored.bid_qty == (None if given.bid_qty is None else Decimal(given.bid_qty))
        assert stored.sequence_number == given.sequence_number
    floats = await read_structs(BookTickerSnapshot, query, symbol.id, start)
    assert [row.bid_price for row in floats] == [float(row.bid_price) for row in rows]


class Pair(msgspec.Struct):
    a: int
    b: str = "?"


async def test_structs_of_columns_that_do_not_make_the_model_are_refused(db: DatabaseManager) -> None:
    assert await read_structs(Pair, "SELECT 1 AS a") == [Pair(1)]
    with pytest.raises(QueryError, match="column 'c': Pair has no such field"):
        await read_structs(Pair, "SELECT 1 AS a, 2 AS c")
    with pytest.raises(QueryError, match="column 'a': Pair needs it"):
        await read_structs(Pair, "SELECT 'x' AS b")


NUMBERS = "SELECT i, i * 1.5 AS x, 'row ' || i AS t FROM (SELECT generate_series(1, $1) AS i) AS s"


async def test_chunks_are_the_whole_in_order(db: DatabaseManager) -> None:
    chunks = [chunk async for chunk in read_chunks(NUMBERS, 10_500, n_rows=1000)]
    assert [len(chunk) for chunk in chunks] == [1000] * 10 + [500]
    assert [chunk.first_row for chunk in chunks] == list(range(0, 10_500, 1000))
    assert np.concatenate([chunk["i"] for chunk in chunks]).tolist() == list(range(1, 10_501))
    assert chunks[-1]["t"][-1] == "row 10500"
    assert [chunk async for chunk in read_chunks(NUMBERS, 0)] == []
    assert [len(chunk) async for chunk in read_chunks(NUMBERS, 2000, n_rows=1000)] == [1000, 1000]
    assert await settled(db)


async def test_progress_counts_rows_and_bytes_up_to_the_whole(db: DatabaseManager) -> None:
    for_columns: list[tuple[int, int]] = []
    await read_columns(NUMBERS, 20_000, progress=lambda *seen: for_columns.append(seen))
    for_chunks: list[tuple[int, int]] = []
    async for _ in read_chunks(NUMBERS, 20_000, n_rows=300, progress=lambda *seen: for_chunks.append(seen)):
        pass
    for seen in (for_columns, for_chunks):
        assert seen == sorted(seen)
        assert seen[-1][0] == 20_000
    assert for_columns[-1] == for_chunks[-1]


async def test_server_waits_while_a_chunk_is_worked_on(db: DatabaseManager) -> None:
    seen: list[int] = []
    query = "SELECT generate_series(1, 200000) AS i, repeat('x', 1000) AS t"
    async with aclosing(read_chunks(query, n_rows=1000, progress=lambda n, _: seen.append(n))) as chunks:
        await anext(chunks)
        await asyncio.sleep(0.5)
        assert seen[-1] < 10_000
    assert await settled(db)


async def test_loop_left_early_ends_the_query_and_leaves_the_pool_full(db: DatabaseManager) -> None:
    endless = "SELECT generate_series(1, 1000000000) AS i"
    async for chunk in read_chunks(endless, n_rows=1000):
        assert chunk["i"][0] == 1
        break
    assert await settled(db)
    async with aclosing(read_chunks(endless, n_rows=1000)) as chunks:
        await anext(chunks)
    assert idle(db)
    assert await db.fetchval("SELECT 1") == 1
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%1000000000%' AND state = 'active'"
    assert await db.fetchval(f"{running} AND datname = current_database() AND pid <> pg_backend_pid()") == 0


async def test_error_in_the_caller_s_loop_or_progress_ends_the_query(db: DatabaseManager) -> None:
    def fail(n_rows: int, n_bytes: int) -> None:
        raise ZeroDivisionError(n_rows)

    async def work(chunks: AsyncGenerator[Columns]) -> None:
        async with aclosing(chunks):
            async for _ in chunks:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work(read_chunks(NUMBERS, 1_000_000, n_rows=100))
    with pytest.raises(ZeroDivisionError):
        await read_columns(NUMBERS, 1_000_000, progress=fail)
    with pytest.raises(ZeroDivisionError):
        await work(read_chunks(NUMBERS, 1_000_000, progress=fail))
    assert await settled(db)


async def test_error_of_the_server_amid_the_rows_passes_through(db: DatabaseManager) -> None:
    query = "SELECT 1 / (i - 30000) AS x FROM generate_series(1, 100000) AS i"
    with pytest.raises(asyncpg.DivisionByZeroError):
        await read_columns(query)
    seen: list[int] = []

    async def collect() -> None:
        async for chunk in read_chunks(query, n_rows=1000):
            seen.extend(chunk["x"].tolist())

    with pytest.raises(asyncpg.DivisionByZeroError):
        await collect()
    assert len(seen) in range(0, 29_001, 1000)
    assert await settled(db)


async def test_deadline_ends_the_query(db: DatabaseManager) -> None:
    with pytest.raises(StatementTimeoutError, match=r"0\.2 s"):
        await read_columns("SELECT pg_sleep(30)::text AS x", timeout_s=0.2)
    assert await settled(db)
    with pytest.raises(StatementTimeoutError):
        async for _ in read_chunks("SELECT pg_sleep(30)::text AS x", timeout_s=0.2):
            pass
    assert await settled(db)
    assert len(await read_columns("SELECT pg_sleep(0.3)::text AS x", timeout_s=math.inf)) == 1


async def test_deadline_of_chunks_does_not_count_the_caller_s_time(db: DatabaseManager) -> None:
    n_rows = 0
    async for chunk in read_chunks(NUMBERS, 3000, n_rows=1000, timeout_s=0.5):
        await asyncio.sleep(0.6)
        n_rows += len(chunk)
    assert n_rows == 3000


@pytest.mark.parametrize("seed", range(4))
async def test_reading_cancelled_anywhere_keeps_its_very_connection(db: DatabaseManager, seed: int) -> None:
    dice = random.Random(seed)
    pid = await db.fetchval("SELECT pg_backend_pid()")

    async def chunks(n: int, stop_after: int) -> None:
        async for chunk in read_chunks(NUMBERS, n, n_rows=dice.choice([1, 10, 1000])):
            if chunk.first_row >= stop_after:
                break
            await asyncio.sleep(0)

    seen: set[type[BaseException]] = set()
    for _ in range(60):
        n = dice.choice([1, 10, 1000, 5000, 200_000])
        whole = dice.random() < 0.5
        task = asyncio.ensure_future(read_columns(NUMBERS, n) if whole else chunks(n, dice.choice([1, 3000, n])))
        for _ in range(dice.randrange(60)):
            await asyncio.sleep(0)
        if dice.random() < 0.5:
            await asyncio.sleep(dice.random() * 0.03)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, BaseException):
            seen.add(type(outcome))
        assert await settled(db)
        assert await db.fetchval("SELECT pg_backend_pid()") == pid
    assert seen == {asyncio.CancelledError}


async def test_reading_inside_a_transaction_sees_its_rows(db: DatabaseManager) -> None:
    async with db.transaction():
        await db.execute("CREATE TABLE fresh AS SELECT 7 AS i")
        assert (await read_columns("SELECT i FROM fresh WHERE i = $1", 7))["i"].tolist() == [7]
        with pytest.raises(QueryError):
            await read_columns("SELECT int4range(1, 2) AS r")
        with pytest.raises(PgtickError, match="outside of transaction"):
            async for _ in read_chunks("SELECT i FROM fresh"):
                pass
        assert await db.fetchval("SELECT count(*) FROM fresh") == 1


async def test_reading_works_with_the_statement_cache_off(config: DatabaseConfig, db: DatabaseManager) -> None:
    manager = await open_manager(msgspec.structs.replace(config, pooler=True))
    try:
        with use_manager(manager):
            got = await read_columns(EVERY_TYPE, 3)
            assert len(got) == 3
            assert [len(chunk) async for chunk in read_chunks(NUMBERS, 5, n_rows=2)] == [2, 2, 1]
    finally:
        await manager.close()


async def test_many_readers_share_a_small_pool(db: DatabaseManager) -> None:
    results = await asyncio.gather(*(read_columns(NUMBERS, 100 * n) for n in range(1, 30)))
    assert [len(result) for result in results] == [100 * n for n in range(1, 30)]
    assert idle(db)
