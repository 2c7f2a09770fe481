"""Budgets of the way to the server: a 100-row batch and the latest row, each under 5 ms by the median."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest

from pgtick.connection import initialize_database
from pgtick.embedded import start_embedded
from pgtick.models import BookTickerSnapshot
from pgtick.operations.book_ticker import get_latest_book_ticker_by_symbol, insert_book_ticker_batch
from pgtick.operations.symbols import resolve_symbol

BUDGET_S = 0.005


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    """A loop with an initialised database on an embedded server that syncs to disk as in production."""
    with tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder:
        from pathlib import Path

        server = start_embedded(Path(folder) / "data")
        try:
            with asyncio.Runner() as loop:
                loop.run(server.create_database("pgtick_bench"))
                db = loop.run(initialize_database(server.config("pgtick_bench")))
                yield loop
                loop.run(db.close())
        finally:
            server.stop()


@pytest.mark.benchmark(group="database")
def test_insert_batch_of_100(benchmark: Any, runner: Any) -> None:
    symbol = runner.run(resolve_symbol("BENCH_SPOT", "BTC", "USDT"))
    numbers = count(1)

    def batch() -> tuple[tuple[list[BookTickerSnapshot]], dict[str, Any]]:
        now = datetime.now(UTC)
        rows = [
            BookTickerSnapshot(
                timestamp=now,
                symbol_id=symbol.id,
                bid_price=50000.1,
                ask_price=50000.2,
                bid_qty=1.5,
                ask_qty=2.25,
                sequence_number=next(numbers),
            )
            for _ in range(100)
        ]
        return (rows,), {}

    benchmark.pedantic(
        lambda rows: runner.run(insert_book_ticker_batch(rows)), setup=batch, rounds=200, warmup_rounds=10
    )
    assert benchmark.stats.stats.median < BUDGET_S


@pytest.mark.benchmark(group="database")
def test_latest_row(benchmark: Any, runner: Any) -> None:
    symbol = runner.run(resolve_symbol("BENCH_SPOT", "BTC", "USDT"))
    now = datetime.now(UTC)
    row = BookTickerSnapshot(timestamp=now, symbol_id=symbol.id, bid_price=1, ask_price=2, sequence_number=0)
    runner.run(insert_book_ticker_batch([row]))
    found = benchmark.pedantic(
        lambda: runner.run(get_latest_book_ticker_by_symbol(symbol.id)), rounds=300, warmup_rounds=20
    )
    assert found is not None
    assert benchmark.stats.stats.median < BUDGET_S
