"""What the fault tests share: seeds, rows that are told by their number, and the judgement at the end."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.models import BookTickerSnapshot
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

__all__ = [
    "BYTES_A_ROW",
    "assert_adds_up",
    "assert_stored",
    "managed",
    "record",
    "seeds",
    "stored_numbers",
    "ticker_of",
    "tickers_of",
    "until",
]

NOW = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
#: What ``ticker_of`` takes in a COPY, at the least: a cut beyond the last byte would never be made.
BYTES_A_ROW = 90


def seeds(n: int) -> list[int]:
    """Return n seeds, printed with what fails; PGTICK_FAULT_SEED repeats one round."""
    given = os.environ.get("PGTICK_FAULT_SEED")
    if given:
        return [int(given)]
    base = random.SystemRandom().randrange(1 << 30)
    print(f"seeds {base} to {base + n - 1}")
    return list(range(base, base + n))


def ticker_of(number: int) -> BookTickerSnapshot:
    """Return a row of which every value follows from its number."""
    return BookTickerSnapshot(
        timestamp=NOW,
        symbol_id=1,
        bid_price=f"{number + 1}.25",
        ask_price=f"{number + 1}.75",
        bid_qty=number,
        sequence_number=number,
    )


def tickers_of(numbers: Iterable[int]) -> list[BookTickerSnapshot]:
    return [ticker_of(number) for number in numbers]


@asynccontextmanager
async def managed(config: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    """A manager without any start step, closed at the end whatever has become of the server."""
    db = await open_manager(config)
    try:
        yield db
    finally:
        await db.close()


def assert_adds_up(*writers: Writer, seed: int | None = None) -> None:
    for writer in writers:
        for name, c in writer.counts.items():
            became = c.n_stored + c.n_duplicates + c.n_quarantined + c.n_spooled + c.n_buffered + c.n_dropped
            assert c.n_accepted + c.n_recovered == became, f"seed {seed}: {name}: {c}"
            assert min(c.n_spooled, c.n_buffered, c.n_dropped, c.n_duplicates) >= 0, f"seed {seed}: {name}: {c}"


async def stored_numbers(
    config: DatabaseConfig, only: range | None = None, table: str = BOOK_TICKERS.name
) -> Counter[int]:
    """Return how often each number is in the table, past every proxy; a row that is not its number's is an error."""
    connection = await asyncpg.connect(**config.connect_kwargs())
    try:
        wrong = await connection.fetchval(
            f"SELECT count(*) FROM {table} WHERE (bid_price, ask_price, bid_qty, symbol_id, timestamp) "
            "IS DISTINCT FROM (sequence_number + 1.25, sequence_number + 1.75, sequence_number, 1, $1)",
            NOW,
        )
        assert wrong == 0, f"{wrong} rows have other values than were handed over"
        query = f"SELECT sequence_number FROM {table}"
        if only is not None:
            query += f" WHERE sequence_number >= {only.start} AND sequence_number < {only.stop}"
        return Counter(n for (n,) in await connection.fetch(query))
    finally:
        await connection.close()


async def assert_stored(
    config: DatabaseConfig, expected: Iterable[int], *, seed: int | None = None, only: range | None = None
) -> None:
    """Compare the table with what was handed over, key by key; ``only``: within these numbers."""
    found = await stored_numbers(config, only)
    wanted = set(expected)
    lost = sorted(wanted - found.keys())
    doubled = sorted(number for number, n in found.items() if n > 1)
    strange = sorted(found.keys() - wanted)
    is_wrong = lost or doubled or strange
    assert not is_wrong, (
        f"seed {seed}: {len(lost)} lost {lost[:5]}, {len(doubled)} doubled {doubled[:5]}, "
        f"{len(strange)} never handed over {strange[:5]}"
    )


async def until(condition: Callable[[], bool], what: str, within_s: float = 60.0) -> None:
    """Wait for the condition; what a test waits for has a deadline, so that it fails and does not hang."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.005)


def record(fault: str, figure: str, result: str) -> None:
    """Keep a full figure's result for docs/reliability.md (faults/report.py)."""
    print(f"{fault}: {figure}: {result}")
    path = os.environ.get("PGTICK_FAULT_REPORT")
    if path:
        line: dict[str, Any] = {"fault": fault, "figure": figure, "result": result}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
