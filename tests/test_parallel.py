"""Columns into their table, and over several connections at once: counts, order, what a failure leaves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import numpy as np
import pytest
from arrow_maker import Column, Stream
from rows import NOW, make_symbol, settled, ticker

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.errors import BatchError, ParallelError, PgtickError, RowError, ValidationError
from pgtick.operations.generic import insert_columns
from pgtick.tables import BOOK_TICKERS, TRADES
from pgtick.writer import StoreResult, copy_parallel, flush, store_columns, store_rows

N = 4000


@pytest.fixture
async def symbols(db: DatabaseManager) -> list[int]:
    return [await make_symbol(base=f"S{i}") for i in range(9)]


def book_columns(symbols: list[int], n: int = N, start: int = 0) -> dict[str, Any]:
    """Return columns of n tickers whose symbols come in turn and whose times run backwards."""
    numbers = np.arange(start, start + n)
    return {
        "timestamp": np.datetime64(NOW.replace(tzinfo=None), "us") - numbers,
        "symbol_id": np.array(symbols)[numbers % len(symbols)],
        "bid_price": numbers + 1,
        "ask_price": (numbers + 1) / 8,
        "sequence_number": numbers,
        "update_type": "ticker",
    }


async def stored(db: DatabaseManager) -> list[Any]:
    """Return what the table holds in the order in which it came."""
    return await db.fetch(
        "SELECT sequence_number AS n, symbol_id, timestamp, bid_price, ask_price, xmin::text AS transaction "
        "FROM book_ticker_snapshots ORDER BY id"
    )


async def test_columns_are_stored_once_and_counted(db: DatabaseManager, symbols: list[int]) -> None:
    columns = book_columns(symbols)
    scales = {"bid_price": 2}
    assert await store_columns(BOOK_TICKERS, columns, scales=scales) == StoreResult(n_stored=N)
    assert await insert_columns(BOOK_TICKERS, book_columns(symbols, N + 5), scales=scales) == 5
    assert await store_columns(BOOK_TICKERS, columns, scales=scales, db=db) == StoreResult(n_duplicates=N)
    rows = sorted(await stored(db), key=lambda row: row["n"])
    assert [(row["n"], row["bid_price"], row["ask_price"]) for row in rows] == [
        (i, Decimal(i + 1).scaleb(-2), Decimal(repr((i + 1) / 8))) for i in range(N + 5)
    ]


async def test_refused_columns_name_index_and_value(db: DatabaseManager, symbols: list[int]) -> None:
    columns = book_columns(symbols, 100)
    columns["ask_price"][7] = np.nan
    columns["symbol_id"][40] = 999_999
    result = await store_columns(BOOK_TICKERS, columns)
    assert result.n_stored == 98
    first, refused = result.errors
    assert (first.index, first.column) == (7, "ask_price")
    assert refused.index == 40
    assert "was refused by the server" in refused.rule
    assert 999_999 in (refused.value if isinstance(refused.value, tuple) else (refused.value,))
    with pytest.raises(BatchError, match=r"1 of 1 rows"):
        await insert_columns(BOOK_TICKERS, {**book_columns(symbols, 1), "bid_price": [0]})
    with pytest.raises(ValidationError, match=r"book_ticker_snapshots\.bid: .* must be a column"):
        await insert_columns(BOOK_TICKERS, {**columns, "bid": 1})


async def test_a_large_batch_goes_in_the_order_of_the_index(
    db: DatabaseManager, symbols: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush, "SORT_ROWS", 100)
    columns = book_columns(symbols, 110)
    columns["ask_price"][7] = 0
    columns["symbol_id"][40] = 999_999
    first = await store_columns(BOOK_TICKERS, book_columns(symbols, 99, start=1000))
    result = await store_columns(BOOK_TICKERS, columns)
    again = await store_rows(
        BOOK_TICKERS, [ticker(symbols[0], sequence_number=9000 + i // 2, bid_qty=i) for i in range(200)]
    )
    assert (first.n_stored, result.n_stored, again.n_stored, again.n_duplicates) == (99, 108, 100, 100)
    assert [error.index for error in result.errors] == [7, 40]
    rows = await stored(db)
    assert [row["n"] for row in rows[:99]] == list(range(1000, 1099))
    assert [(r["symbol_id"], r["timestamp"]) for r in rows[99:207]] == sorted(
        (r["symbol_id"], r["timestamp"]) for r in rows[99:207]
    )
    # Of two rows with one key the first that was given is kept, sorted or not.
    assert [
        r["bid_qty"]
        for r in await db.fetch(
            "SELECT bid_qty::int FROM book_ticker_snapshots WHERE bid_qty IS NOT NULL ORDER BY sequence_number"
        )
    ] == list(range(0, 200, 2))


# ---------------------------------------------------------------- several connections


@pytest.mark.parametrize("connections", [1, 2, 4])
@pytest.mark.parametrize("kind", ["columns", "rows", "structured"])
async def test_every_symbol_goes_over_one_connection_in_order(
    db: DatabaseManager, symbols: list[int], connections: int, kind: str
) -> None:
    columns = book_columns(symbols)
    columns["ask_price"][11] = -1
    data: Any = columns
    rows = [
        {name: value[i].item() if isinstance(value, np.ndarray) else value for name, value in columns.items()}
        | {"timestamp": int(columns["timestamp"][i].astype("i8"))}
        for i in range(N)
    ]
    if kind == "rows":
        data = iter(rows)
    if kind == "structured":
        data = np.zeros(
            N,
            [
                (name, value.dtype if name != "update_type" else "U6")
                for name, value in {**columns, "update_type": np.array("ticker")}.items()
            ],
        )
        for name, value in columns.items():
            data[name] = value
    seen: list[int] = []
    result = await copy_parallel(
        BOOK_TICKERS,
        data,
        connections=connections,
        batch_rows=300,
        time_unit="us",
        progress=lambda total: seen.append(total.n_stored),
    )
    assert (result.n_stored, result.n_duplicates) == (N - 1, 0)
    assert [(error.index, error.column) for error in result.errors] == [(11, "ask_price")]
    assert sum(part.n_stored for part in result.parts) == N - 1
    assert len(result.parts) == connections
    assert all(part.n_stored > 0 for part in result.parts)
    assert seen == sorted(seen)
    assert seen[-1] == N - 1
    got = await stored(db)
    assert sorted(row["n"] for row in got) == [i for i in range(N) if i != 11]
    assert max(Counter(row["transaction"] for row in got).values()) <= 300
    # Within a stretch of 2 x connections x 300 rows the times of a symbol ascend; the stretches come in turn.
    stretch = 2 * connections * 300
    for symbol in symbols:
        numbers = [row["n"] for row in got if row["symbol_id"] == symbol]
        expected = [i for i in range(N) if symbols[i % 9] == symbol and i != 11]
        position = {n: (at // stretch, -n) for at, n in enumerate(i for i in range(N) if kind != "rows" or i != 11)}
        assert numbers == sorted(expected, key=position.__getitem__)
    again = await copy_parallel(BOOK_TICKERS, columns, connections=connections)
    assert (again.n_stored, again.n_duplicates, len(again.errors)) == (0, N - 1, 1)


async def test_equal_trades_stay_apart_across_stretches(db: DatabaseManager, symbols: list[int]) -> None:
    n = 100
    columns = {"timestamp": NOW, "symbol_id": [symbols[0]] * n, "price": 1, "quantity": 2, "side": "buy"}
    assert (await copy_parallel(TRADES, columns, connections=1, batch_rows=7)).n_stored == n
    assert await store_columns(TRADES, columns) == StoreResult(n_duplicates=n)


async def test_a_part_that_fails_stops_the_others_in_order(
    config: DatabaseConfig, db: DatabaseManager, symbols: list[int]
) -> None:
    sent = 0

    def cut(total: StoreResult) -> None:
        nonlocal sent
        sent += 1
        if sent == 3:
            raise ConnectionError("cut")

    with pytest.raises(ParallelError, match="the copy into book_ticker_snapshots stopped") as caught:
        await copy_parallel(BOOK_TICKERS, book_columns(symbols), connections=2, batch_rows=50, progress=cut)
    assert isinstance(caught.value.__cause__, ConnectionError)
    result = caught.value.result
    counted = Counter(row["symbol_id"] for row in await stored(db))
    assert 0 < result.n_stored == counted.total() < N
    assert sum(part.n_stored for part in result.parts) == result.n_stored
    await settled(db)
    rest = await copy_parallel(BOOK_TICKERS, book_columns(symbols), connections=2)
    assert (rest.n_stored, rest.n_duplicates) == (N - result.n_stored, result.n_stored)


async def test_a_schema_that_changed_fails_the_copy(db: DatabaseManager, symbols: list[int]) -> None:
    await db.execute("ALTER TABLE book_ticker_snapshots RENAME COLUMN bid_qty TO bid_size")
    with pytest.raises(ParallelError) as caught:
        await copy_parallel(BOOK_TICKERS, book_columns(symbols), batch_rows=10)
    assert isinstance(caught.value.__cause__, asyncpg.UndefinedColumnError)
    assert caught.value.result.n_stored == 0


async def test_a_stream_that_fails_says_what_is_stored(db: DatabaseManager, symbols: list[int]) -> None:
    def stream(chunks: int) -> Stream:
        n = 100
        values = book_columns(symbols, n)
        columns = [
            Column("timestamp", "tsu:UTC", [None, values["timestamp"].tobytes()], n),
            Column("symbol_id", "l", [None, values["symbol_id"].astype("i8").tobytes()], n),
            Column("bid_price", "l", [None, values["bid_price"].astype("i8").tobytes()], n),
            Column("ask_price", "g", [None, values["ask_price"].tobytes()], n),
            Column("update_type", "u", [None, np.zeros(n + 1, "i4").tobytes(), b"x"], n),
        ]
        return Stream(*columns, chunks=chunks, fails=5)

    with pytest.raises(ParallelError) as caught:
        await copy_parallel(BOOK_TICKERS, stream(5), batch_rows=25)
    assert str(caught.value.__cause__) == "book_ticker_snapshots: the Arrow stream failed: the disk is gone"
    # What was read before is on its way when the stream fails, and may be left out.
    assert caught.value.result.n_stored == len(await stored(db)) > 0
    assert caught.value.result.n_stored + caught.value.result.n_duplicates <= 500
    with pytest.raises(PgtickError, match="the disk is gone") as nothing:
        await copy_parallel(BOOK_TICKERS, stream(0), batch_rows=25)
    assert not isinstance(nothing.value, ParallelError)


async def test_cancelled_it_leaves_the_pool_whole(db: DatabaseManager, symbols: list[int]) -> None:
    started = asyncio.Event()
    task = asyncio.create_task(
        copy_parallel(BOOK_TICKERS, book_columns(symbols), batch_rows=20, progress=lambda _: started.set())
    )
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(db)
    counted = Counter(row["transaction"] for row in await stored(db))
    assert set(counted.values()) <= {20, *range(1, 20)}
    assert (await copy_parallel(BOOK_TICKERS, book_columns(symbols))).n_stored == N - counted.total()


async def test_what_cannot_be_parallel_is_refused(config: DatabaseConfig, db: DatabaseManager) -> None:
    columns = book_columns([1], 3)
    for wrong in (0, db.config.max_connections + 1):
        with pytest.raises(ValueError, match="connections must be 1 to"):
            await copy_parallel(BOOK_TICKERS, columns, connections=wrong)
    with pytest.raises(ValueError, match="batch_rows must be 1 or more"):
        await copy_parallel(BOOK_TICKERS, columns, batch_rows=0)
    with pytest.raises(TypeError, match="scales and masks are for columns"):
        await copy_parallel(BOOK_TICKERS, [ticker(1)], scales={"bid_price": 2})
    with pytest.raises(ValidationError, match=r"bid_price: 'bool' cannot be encoded") as caught:
        await copy_parallel(BOOK_TICKERS, {**columns, "bid_price": np.ones(3, bool)})
    assert not isinstance(caught.value, RowError)
    async with db.transaction():
        with pytest.raises(PgtickError, match="it cannot be part of a transaction"):
            await copy_parallel(BOOK_TICKERS, columns)
    assert (await copy_parallel(BOOK_TICKERS, book_columns([1], 0))).n_stored == 0


@pytest.fixture
async def narrow(config: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    manager = await open_manager(msgspec.structs.replace(config, max_connections=1))
    yield manager
    await manager.close()


async def test_another_manager_may_be_given(db: DatabaseManager, narrow: DatabaseManager, symbols: list[int]) -> None:
    result = await copy_parallel(BOOK_TICKERS, book_columns(symbols), connections=1, db=narrow)
    assert result.n_stored == len(await stored(db)) == N
