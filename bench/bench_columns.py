"""Encoding columns: the budget is 500 ns a row, by the median."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from pgtick._fast.encode import RowEncoder
from pgtick.tables import BOOK_TICKERS

ROWS = 10_000
BUDGET_NS = 500
PLACES = {"bid_price": 2, "ask_price": 2, "bid_qty": 5, "ask_qty": 5}


def ticks() -> dict[str, Any]:
    """Return columns with the four numbers as fixed point."""
    rng = np.random.default_rng(1)
    bids = rng.integers(100, 7_000_000, ROWS)
    return {
        "timestamp": np.datetime64("2025-03-01", "us") + 1000 * np.arange(ROWS),
        "symbol_id": np.arange(ROWS, dtype="i4") % 500,
        "bid_price": bids,
        "ask_price": bids + 1,
        "bid_qty": rng.integers(0, 500_000, ROWS),
        "ask_qty": rng.integers(0, 500_000, ROWS),
        "sequence_number": np.arange(ROWS),
        "update_type": "ticker",
    }


def numbers_as(change: Any) -> dict[str, Any]:
    return {name: change(value, PLACES[name]) if name in PLACES else value for name, value in ticks().items()}


def texts(value: Any, places: int) -> Any:
    return np.array([str(Decimal(int(number)).scaleb(-places)) for number in value])


def arrow(digits: int | None) -> Any:
    """Return an Arrow table, its numbers as decimals or as doubles."""
    pa = pytest.importorskip("pyarrow")

    def column(value: Any, places: int) -> Any:
        if digits is None:
            return pa.array(value / 10**places)
        return pa.array([Decimal(int(n)).scaleb(-places) for n in value], pa.decimal128(digits, places))

    columns = numbers_as(column)
    columns["timestamp"] = pa.array(columns["timestamp"]).cast(pa.timestamp("us", "UTC"))
    columns["update_type"] = pa.array([columns["update_type"]] * ROWS)
    return pa.table(columns)


CASES: dict[str, Any] = {
    "NumPy, int64 with a scale": ticks,
    "NumPy, float64": lambda: numbers_as(lambda value, places: value / 10**places),
    "NumPy, float64, content key": lambda: {
        **numbers_as(lambda value, places: value / 10**places),
        "sequence_number": None,
    },
    "NumPy, float64, masked": lambda: numbers_as(
        lambda value, places: np.ma.MaskedArray(value / 10**places, (value % 2 == 0) & (places == 5))
    ),
    "NumPy, U": lambda: numbers_as(texts),
    "objects, float": lambda: numbers_as(lambda value, places: (value / 10**places).tolist()),
    "Arrow, decimal128": lambda: arrow(38),
    "Arrow, float64": lambda: arrow(None),
}


@pytest.mark.benchmark(group="encode columns")
@pytest.mark.parametrize("case", CASES)
def test_encode_columns(benchmark: Any, case: str) -> None:
    columns = CASES[case]()
    scales = PLACES if "scale" in case else None
    encoder = RowEncoder(BOOK_TICKERS)
    batch = benchmark(encoder.encode_columns, columns, scales=scales)
    assert batch.n_rows == ROWS
    if benchmark.stats is None:  # benchmarks are disabled: it ran once, to see that it works
        return
    ns = benchmark.stats.stats.median / ROWS * 1e9
    benchmark.extra_info["ns_per_row"] = round(ns, 1)
    assert ns < BUDGET_NS, f"{ns:.0f} ns a row"


@pytest.mark.benchmark(group="sort")
@pytest.mark.parametrize("rows", [1_000, 10_000, 200_000])
def test_sort(benchmark: Any, rows: int) -> None:
    columns = {name: np.resize(value, rows) for name, value in ticks().items() if name != "update_type"}
    columns["timestamp"] = np.datetime64("2025-03-01", "us") + np.arange(rows)
    batch = RowEncoder(BOOK_TICKERS).encode_columns({**columns, "update_type": "ticker"})
    in_order = benchmark(batch.sorted, 1, 0)
    assert in_order.n_rows == rows
    if benchmark.stats is not None:
        benchmark.extra_info["ns_per_row"] = round(benchmark.stats.stats.median / rows * 1e9, 1)
