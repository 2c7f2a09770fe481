"""The rows that all peers get: book tickers whose prices move by ticks, in every form that a peer takes."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any

from pgtick._fast.encode import RowEncoder
from pgtick.models import BookTickerSnapshot
from pgtick.tables import BOOK_TICKERS

__all__ = ["COLUMNS", "NUMERIC_COLUMNS", "Batch", "make_batches", "make_rows", "noon_yesterday"]

COLUMNS = BOOK_TICKERS.column_names
NUMERIC_COLUMNS = ("bid_price", "ask_price", "bid_qty", "ask_qty")
STEP = timedelta(microseconds=250)  # 4,000 events a second, no two with one timestamp: the guide's key allows none


class Batch:
    """Rows as Structs with float prices, in the order of their arrival; the other forms are made when asked for."""

    def __init__(self, structs: list[BookTickerSnapshot]) -> None:
        self.structs = structs

    def __len__(self) -> int:
        return len(self.structs)

    @cached_property
    def floats(self) -> list[tuple[Any, ...]]:
        """Tuples in wire order, prices as float."""
        return [tuple(getattr(row, name) for name in COLUMNS) for row in self.structs]

    @cached_property
    def decimals(self) -> list[tuple[Any, ...]]:
        """Tuples in wire order, prices as Decimal."""
        return [tuple(Decimal(repr(v)) if type(v) is float else v for v in row) for row in self.floats]

    @cached_property
    def encoded(self) -> Any:
        """The finished COPY BINARY stream (an EncodedBatch)."""
        return RowEncoder(BOOK_TICKERS).encode(self.structs)

    @cached_property
    def chunks(self) -> list[bytes]:
        """The same, cut for the socket."""
        return list(self.encoded.chunks())

    @cached_property
    def arrow(self) -> Any:
        """An Arrow record batch, prices as decimal128."""
        import pyarrow as pa

        price = pa.decimal128(20, 8)
        types: dict[str, Any] = dict.fromkeys(NUMERIC_COLUMNS, price)
        types |= {"timestamp": pa.timestamp("us", "UTC"), "symbol_id": pa.int32()}
        types |= {"sequence_number": pa.int64(), "update_type": pa.string()}
        columns = zip(COLUMNS, zip(*self.decimals, strict=True), strict=True)
        return pa.RecordBatch.from_pydict(
            {name: pa.array(values, types[name]) for name, values in columns}  # never inferred
        )

    @cached_property
    def columns(self) -> dict[str, Any]:
        """NumPy columns: times as datetime64[us], prices as float64; the type of update is one for all."""
        import numpy as np

        columns: dict[str, Any] = dict(zip(COLUMNS, zip(*self.floats, strict=True), strict=True))
        times = [moment.replace(tzinfo=None) for moment in columns["timestamp"]]
        return {
            "timestamp": np.array(times, "datetime64[us]"),
            "symbol_id": np.array(columns["symbol_id"], np.int32),
            **{name: np.array(columns[name], np.float64) for name in NUMERIC_COLUMNS},
            "sequence_number": np.array(columns["sequence_number"], np.int64),
            "update_type": columns["update_type"][0],
        }

    def sorted(self) -> Batch:
        """Return the rows by (symbol, time)."""
        return Batch(sorted(self.structs, key=lambda row: (row.symbol_id, row.timestamp)))


def noon_yesterday() -> datetime:
    """Return an instant from which a run's rows stay within one day, all in the past."""
    return (datetime.now(UTC) - timedelta(days=1)).replace(hour=12, minute=0, second=0, microsecond=0)


def make_rows(n_rows: int, n_symbols: int, start: datetime) -> Iterator[BookTickerSnapshot]:
    """Yield rows of symbols 1 … n_symbols: each price walks by its own ticks, seven digits at most."""
    rng = random.Random(7)
    # By symbol: price in ticks, decimals of the tick. An array, since ints that come and go would scatter the rows.
    prices = array("q", (rng.randrange(10_000, 9_000_000) for _ in range(n_symbols)))
    places = array("b", (rng.choice((1, 2, 2, 3, 4, 6)) for _ in range(n_symbols)))
    for i in range(n_rows):
        number = rng.randrange(n_symbols)
        ticks = prices[number] = max(1, prices[number] + rng.randint(-3, 3))
        scale = 10 ** places[number]
        yield BookTickerSnapshot(
            timestamp=start + i * STEP,
            symbol_id=number + 1,
            bid_price=ticks / scale,
            ask_price=(ticks + rng.randint(1, 3)) / scale,
            bid_qty=rng.randrange(1, 5_000_000) / 100_000,
            ask_qty=rng.randrange(1, 5_000_000) / 100_000,
            sequence_number=i + 1,
        )


def make_batches(n_rows: int, batch_rows: int, n_symbols: int, start: datetime | None = None) -> list[Batch]:
    """Return the rows cut into batches."""
    rows = list(make_rows(n_rows, n_symbols, start or noon_yesterday()))
    return [Batch(rows[i : i + batch_rows]) for i in range(0, n_rows, batch_rows)]
