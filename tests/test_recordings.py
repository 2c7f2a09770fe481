"""Real recordings through cryptofeed's parsers into PostgreSQL and back, compared as exact decimals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pgtick.adapters.cryptofeed import CryptofeedStore
from pgtick.adapters.recordings import replay_recordings
from pgtick.connection import DatabaseManager
from pgtick.writer import StoreResult

RECORDINGS = Path(__file__).parents[2] / "shared" / "data" / "recordings"
EVENTS = {
    "GATEIO": {"ticker": 22, "trades": 9},
    "GATEIO_FUTURES": {"ticker": 75},
    "BINANCE": {"ticker": 84, "trades": 2},
    "BINANCE_FUTURES": {"ticker": 613, "trades": 91},
    "OKX": {"ticker": 28, "trades": 74},
    "BITMEX": {"ticker": 436, "trades": 27},
}
TICKER_COLUMNS = "timestamp, symbol_id, bid_price, ask_price, bid_qty, ask_qty, update_type"
TRADE_COLUMNS = "timestamp, symbol_id, price, quantity, side, trade_id"

needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recordings beside the checkout")
# cryptofeed leaves its own sessions and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")


def _files(feed: str) -> list[str]:
    return sorted(str(path) for path in RECORDINGS.glob(f"{feed}.*"))


@needs_recordings
@pytest.mark.parametrize("feed", EVENTS)
async def test_recording_is_stored_exactly_and_a_second_replay_adds_nothing(db: DatabaseManager, feed: str) -> None:
    handed: dict[str, list[Any]] = {"book_ticker_snapshots": [], "trade_snapshots": []}
    store = CryptofeedStore(recorded=True, on_row=lambda table, row: handed[table].append(row))
    await replay_recordings({feed: _files(feed)}, store=store)
    for channel, n_events in EVENTS[feed].items():
        assert store.n_events[channel] == n_events
    tops = store.n_events["l2_book"] - store.n_unchanged - store.n_one_sided - store.n_untimed
    assert len(handed["book_ticker_snapshots"]) == store.n_events["ticker"] + tops
    for table, columns in (("book_ticker_snapshots", TICKER_COLUMNS), ("trade_snapshots", TRADE_COLUMNS)):
        names = columns.split(", ")
        key = "sequence_number" if table == "book_ticker_snapshots" else "trade_id"
        # A second event of the same key, or without one of the same content, is a duplicate.
        distinct = {(tuple(getattr(row, name) for name in names), getattr(row, key)) for row in handed[table]}
        expected = Counter(values for values, _ in distinct)
        stored = Counter(tuple(row) for row in await db.fetch(f"SELECT {columns} FROM {table}"))
        assert stored == expected
        total = store.writer.totals.get(table, StoreResult())
        assert not total.errors
        assert total.n_stored == len(distinct)
        assert total.n_duplicates == len(handed[table]) - len(distinct)
    again = await replay_recordings({feed: _files(feed)})
    for table, total in again.writer.totals.items():
        assert total.n_stored == 0
        assert total.n_duplicates == len(handed[table])
