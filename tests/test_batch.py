"""Batches in another order, and parts of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from wire import WHEN

from pgtick._fast.encode import RowEncoder
from pgtick.tables import BALANCES, BOOK_TICKERS

pytestmark = pytest.mark.core


def test_sorted_batches_keep_every_row() -> None:
    rng = np.random.default_rng(1)
    n = 5000
    columns: dict[str, Any] = {
        "timestamp": np.datetime64("2025-03-09T12", "us") - rng.integers(0, 4, n).astype("m8[D]"),
        "symbol_id": rng.integers(-3, 3, n),
        "bid_price": np.arange(1, n + 1),
        "ask_price": np.arange(1, n + 1) / 8,
        "sequence_number": np.arange(n),
        "update_type": "ticker",
    }
    encoder = RowEncoder(BOOK_TICKERS)
    batch = encoder.encode_columns(columns)
    day = columns["timestamp"].astype("M8[D]")
    order = np.lexsort((columns["timestamp"], columns["symbol_id"], day))
    in_order = batch.sorted(1, 0)
    assert in_order.indices == order.tolist()
    assert in_order.days == batch.days
    assert in_order.sorted(1, 0) is in_order
    again = {name: value[order] if isinstance(value, np.ndarray) else value for name, value in columns.items()}
    assert b"".join(in_order.chunks()) == b"".join(encoder.encode_columns(again).chunks())
    assert [encoder.values(in_order, i)[6] for i in (0, n - 1)] == [order[0], order[-1]]
    runs = in_order.runs(1)
    assert [start for _, start, _ in runs] == [0, *[stop for _, _, stop in runs[:-1]]]
    assert Counter(int.from_bytes(key, "big", signed=True) for key, _, _ in runs) == dict.fromkeys(range(-3, 3), 4)
    for start, stop in ((-1, 2), (3, 2), (0, n + 1)):
        with pytest.raises(ValueError, match=f"no rows {start} to {stop} in a batch of {n}"):
            in_order.take([(start, stop)])
    for wrong in (-1, n):
        with pytest.raises(IndexError):
            in_order.origin(wrong)
        with pytest.raises(IndexError):
            encoder.values(in_order, wrong)


def test_texts_are_in_the_order_of_their_first_bytes() -> None:
    names = ["BTC", "ETH", "", "A long name, B", "A long name, A", "USDT.E", "BTC"]
    rows = [
        {"timestamp": WHEN, "exchange_id": 1, "asset_name": name, "available_balance": 1, "locked_balance": 0}
        for name in names
    ]
    batch = RowEncoder(BALANCES).encode(rows).sorted(2, 0)
    assert [names[i] for i in batch.indices] == sorted(names, key=lambda name: name[:8])
    assert (b"BTC", 3, 5) in batch.runs(2)


def test_column_batches_follow_each_other() -> None:
    columns: dict[str, Any] = {"timestamp": WHEN, "symbol_id": np.arange(10), "bid_price": 1, "ask_price": 1}
    columns["update_type"] = "x"
    columns["symbol_id"][4] = 2**40
    encoder = RowEncoder(BOOK_TICKERS)
    batches = list(encoder.column_batches(columns, 4))
    assert [batch.indices for batch in batches] == [[0, 1, 2, 3], [5, 6, 7], [8, 9]]
    assert [[error.index for error in batch.errors] for batch in batches] == [[], [4], []]
    assert [len(batch.indices) for batch in encoder.column_batches(columns, 5)] == [4, 5]
    with pytest.raises(ValueError, match="n_rows must be 1 or more, not 0"):
        list(encoder.column_batches(columns, 0))
