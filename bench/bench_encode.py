"""Encoding rows: the budget is 500 ns a row, by the median; 1 µs for one by one, its symbol looked up in the cache."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick._fast.symbols import SymbolCache
from pgtick.models import BookTickerSnapshot, CachedSymbol
from pgtick.tables import BOOK_TICKERS

ROWS = 1000
BUDGET_NS = 500
APPEND_BUDGET_NS = 1000
START = datetime(2025, 3, 1, tzinfo=UTC)


def ticks(number: type[Any], *, with_sequence: bool = True) -> list[BookTickerSnapshot]:
    rng = random.Random(1)
    rows = []
    for i in range(ROWS):
        bid = round(rng.uniform(1, 70_000), 2)
        values = (bid, round(bid + 0.01, 2), round(rng.uniform(0, 5), 5), round(rng.uniform(0, 5), 5))
        numbers = [value if number is float else number(repr(value)) for value in values]
        rows.append(
            BookTickerSnapshot(
                timestamp=START + timedelta(milliseconds=i),
                symbol_id=i % 500,
                bid_price=numbers[0],
                ask_price=numbers[1],
                bid_qty=numbers[2],
                ask_qty=numbers[3],
                sequence_number=i if with_sequence else None,
            )
        )
    return rows


def as_tuples(rows: list[BookTickerSnapshot]) -> list[tuple[object, ...]]:
    return [tuple(getattr(row, name) for name in BOOK_TICKERS.column_names) for row in rows]


CASES: dict[str, list[Any]] = {
    "Struct, float": ticks(float),
    "Struct, float, content key": ticks(float, with_sequence=False),
    "Struct, str": ticks(str),
    "Struct, Decimal": ticks(Decimal),
    "tuple, float": as_tuples(ticks(float)),
}


@pytest.mark.benchmark(group="encode")
@pytest.mark.parametrize("case", CASES)
def test_encode(benchmark: Any, case: str) -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    rows = CASES[case]
    batch = benchmark(encoder.encode, rows)
    assert batch.n_rows == ROWS
    if benchmark.stats is None:  # benchmarks are disabled: it ran once, to see that it works
        return
    ns = benchmark.stats.stats.median / ROWS * 1e9
    benchmark.extra_info["ns_per_row"] = round(ns, 1)
    if case == "Struct, float":
        assert ns < BUDGET_NS, f"{ns:.0f} ns a row"


@pytest.mark.benchmark(group="append")
@pytest.mark.parametrize("case", CASES)
def test_append(benchmark: Any, case: str) -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    cache = SymbolCache()
    cache.load(
        [
            CachedSymbol(
                id=i,
                exchange_id=1,
                exchange="GATEIO_SPOT",
                symbol_base=f"BASE{i}",
                symbol_quote="USDT",
                exchange_symbol=f"BASE{i}_USDT",
            )
            for i in range(500)
        ]
    )
    rows = [(i % 500, row) for i, row in enumerate(CASES[case])]

    def append() -> EncodedBatch:
        batch = EncodedBatch()
        get, take = cache.get, encoder.append
        for i, (symbol_id, row) in enumerate(rows):
            if get(symbol_id) is not None:
                take(batch, row, i)
        return batch

    batch = benchmark(append)
    assert batch.n_rows == ROWS
    if benchmark.stats is None:
        return
    ns = benchmark.stats.stats.median / ROWS * 1e9
    benchmark.extra_info["ns_per_row"] = round(ns, 1)
    if case == "Struct, float":
        assert ns < APPEND_BUDGET_NS, f"{ns:.0f} ns a row"


@pytest.mark.benchmark(group="load")
def test_load(benchmark: Any) -> None:
    batch = RowEncoder(BOOK_TICKERS).encode(CASES["Struct, float"])
    rows, index_bytes = batch.rows(), batch.index_bytes()
    again = benchmark(EncodedBatch.load, rows, index_bytes, len(BOOK_TICKERS.columns), 0)
    assert again.days == batch.days
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_row"] = round(benchmark.stats.stats.median / ROWS * 1e9, 1)
