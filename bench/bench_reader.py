"""Budgets of the way out: decoding a row, and a whole read against a COPY that is drained and thrown away."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgtick._fast.decode import CopyDecoder
from pgtick._fast.encode import RowEncoder
from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.embedded import start_embedded
from pgtick.models import BookTickerSnapshot
from pgtick.reader import read_chunks, read_columns
from pgtick.tables import BOOK_TICKERS

ROWS = 20_000
READ_ROWS = 200_000
BUDGET_NS = 300
#: The target is 0.9; a busy machine gets headroom.
LEAST_OF_LIMIT = 0.7
OIDS = {"timestamptz": 1184, "int4": 23, "int8": 20, "numeric": 1700, "text": 25}
FORMS = [("float",), ("fixed", 8), ("decimal128", 38, 8), ("decimal",)]
START = datetime(2025, 3, 1, tzinfo=UTC)


def columns(form: tuple[Any, ...]) -> list[tuple[str, int, tuple[Any, ...]]]:
    return [(column.name, OIDS[column.type], form) for column in BOOK_TICKERS.columns]


@pytest.fixture(scope="module")
def pieces() -> list[bytes]:
    rows = [
        BookTickerSnapshot(
            timestamp=START + timedelta(milliseconds=i),
            symbol_id=i % 500,
            bid_price=round(50000.1 + i * 0.01, 2),
            ask_price=round(50000.2 + i * 0.01, 2),
            bid_qty=round(1.25 + i % 1000 * 0.00001, 5),
            ask_qty=round(2.5 + i % 999 * 0.00000001, 8),
            sequence_number=i,
        )
        for i in range(ROWS)
    ]
    return [bytes(chunk) for chunk in RowEncoder(BOOK_TICKERS).encode(rows).chunks()]


@pytest.mark.benchmark(group="decode")
@pytest.mark.parametrize(
    "form", [("float",), ("fixed", 8), ("decimal128", 38, 8), ("decimal",)], ids=lambda form: form[0]
)
def test_decode(benchmark: Any, pieces: list[bytes], form: tuple[Any, ...]) -> None:
    def decode() -> int:
        decoder = CopyDecoder(columns(form))
        for piece in pieces:
            decoder.feed(piece)
        decoder.finish()
        return len(decoder.take())

    assert benchmark(decode) == ROWS
    if benchmark.stats is None:  # benchmarks are disabled: it ran once, to see that it works
        return
    ns = benchmark.stats.stats.median / ROWS * 1e9
    benchmark.extra_info["ns_per_row"] = round(ns, 1)
    assert ns < BUDGET_NS, f"{ns:.0f} ns a row"


QUERY = "SELECT * FROM read_bench"


@pytest.fixture(scope="module")
def runner() -> Iterator[tuple[asyncio.Runner, DatabaseManager]]:
    with (
        tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder,
        start_embedded(Path(folder) / "data") as server,
        asyncio.Runner() as loop,
    ):
        db = loop.run(open_manager(server.config()))
        loop.run(
            db.execute(
                f"""CREATE TABLE read_bench AS SELECT timestamptz '2025-03-01' + i * interval '1 ms' AS timestamp,
                (i % 500)::int4 AS symbol_id, round(50000 + (random() * 100)::numeric, 2) AS bid_price,
                round(50001 + (random() * 100)::numeric, 2) AS ask_price, round((random() * 10)::numeric, 8) AS bid_qty,
                round((random() * 10)::numeric, 8) AS ask_qty, i::int8 AS sequence_number, 'stream' AS source
                FROM generate_series(1, {READ_ROWS}) AS i"""
            )
        )
        yield loop, db
        loop.run(db.close())


async def drain(db: DatabaseManager) -> None:
    async def sink(_: bytes) -> None:
        pass

    async with db.acquire() as connection:
        await connection.copy_from_query(QUERY, output=sink, format="binary")


async def to_numpy(db: DatabaseManager) -> None:
    with use_manager(db):
        assert len((await read_columns(QUERY)).columns) == 8


async def in_chunks(db: DatabaseManager) -> None:
    with use_manager(db):
        assert sum([len(chunk) async for chunk in read_chunks(QUERY, n_rows=20_000)]) == READ_ROWS


@pytest.mark.benchmark(group="read")
def test_read_keeps_up_with_the_server(benchmark: Any, runner: tuple[asyncio.Runner, DatabaseManager]) -> None:
    loop, db = runner
    ways: tuple[Callable[[DatabaseManager], Coroutine[Any, Any, None]], ...] = (drain, to_numpy, in_chunks)
    seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}

    def one_round() -> None:
        for way in ways:
            start = time.perf_counter()
            loop.run(way(db))
            seconds[way.__name__].append(time.perf_counter() - start)

    benchmark.pedantic(one_round, rounds=9, warmup_rounds=1)
    if benchmark.stats is None:
        return
    for way in (to_numpy, in_chunks):
        ratio = statistics.median(
            limit / mine for limit, mine in zip(seconds["drain"], seconds[way.__name__], strict=True)
        )
        benchmark.extra_info[f"{way.__name__}_of_the_limit"] = round(ratio, 2)
        assert ratio > LEAST_OF_LIMIT, f"{way.__name__}: {ratio:.2f} of the drained limit"
