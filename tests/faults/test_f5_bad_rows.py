"""F5: bad rows among good ones: those that the encoder refuses, and those that only the server knows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from faults.support import assert_adds_up, assert_stored, managed, record, seeds, ticker_of
from pgtick.config import DatabaseConfig
from pgtick.models import BookTickerSnapshot
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

Spoil = Callable[[BookTickerSnapshot], None]


def make_nan(row: BookTickerSnapshot) -> None:
    row.bid_price = float("nan")


def make_unknown(row: BookTickerSnapshot) -> None:
    row.symbol_id = 999_999


KINDS: dict[str, tuple[Spoil, str, str]] = {
    "the encoder's": (make_nan, "bid_price", "must be"),
    "the server's": (make_unknown, "symbol_id", "was refused by the server"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


async def store(config: DatabaseConfig, rows: list[Any]) -> tuple[float, int]:
    """Store rows through a new writer; return how long it took, and how many went to quarantine."""
    async with managed(config) as db:
        started = time.perf_counter()
        async with Writer(db, spool=False) as writer:
            await writer.add_many(BOOK_TICKERS, rows)
            await writer.flush()
        took_s = time.perf_counter() - started
    assert_adds_up(writer)
    counts = writer.counts[BOOK_TICKERS.name]
    assert counts.n_stored + counts.n_quarantined == counts.n_accepted == len(rows)
    return took_s, counts.n_quarantined


async def store_with_bad_rows(config: DatabaseConfig, n_rows: int, n_bad: int, kind: str) -> float:
    """Store rows without and with bad ones; return how many times as long it took."""
    (seed,) = seeds(1)
    spoil, column, reason = KINDS[kind]
    bad = set(random.Random(seed).sample(range(n_rows), n_bad))
    clean_s, n_quarantined = await store(config, [ticker_of(number) for number in range(n_rows, 2 * n_rows)])
    assert n_quarantined == 0
    rows = [ticker_of(number) for number in range(n_rows)]
    for number in bad:
        spoil(rows[number])
    took_s, n_quarantined = await store(config, rows)
    assert n_quarantined == n_bad, f"seed {seed}"
    await assert_stored(config, set(range(2 * n_rows)) - bad, seed=seed)
    connection = await asyncpg.connect(**config.connect_kwargs())
    try:
        found = await connection.fetch(
            "SELECT row_index, column_name, reason, (row ->> 'sequence_number')::int FROM ingest_quarantine"
        )
    finally:
        await connection.close()
    assert sorted((index, number) for index, _, _, number in found) == sorted((n, n) for n in bad), f"seed {seed}"
    assert {name for _, name, _, _ in found} == {column}, f"seed {seed}"
    assert all(reason in why for _, _, why, _ in found), f"seed {seed}: {found[0]}"
    return took_s / clean_s


@kinds
@pytest.mark.parametrize("n_bad", [1, 30])
async def test_bad_rows_go_to_quarantine_and_every_good_one_is_stored(
    keyed: DatabaseConfig, n_bad: int, kind: str
) -> None:
    await store_with_bad_rows(keyed, 12_000, n_bad, kind)


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("n_bad", [1, 10, 1000])
async def test_bad_rows_of_100_000_take_at_most_twice_the_time(keyed: DatabaseConfig, n_bad: int, kind: str) -> None:
    times = await store_with_bad_rows(keyed, 100_000, n_bad, kind)
    record(
        "F5",
        f"{n_bad:,} of 100,000, {kind}",
        f"all others stored, each with index, column, reason; {times:.2f} x the clean time",
    )
    assert times <= 2.0
