"""The core without memory, and the memory that it gives back."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from uuid import UUID

import pytest
from wire import WHEN, WIDE, book, fields, trade, untraced

from pgtick._fast.decode import CopyDecoder
from pgtick._fast.encode import RowEncoder
from pgtick._fast.result import READABLE_TYPES
from pgtick.tables import BOOK_TICKERS, TRADES, Table

pytestmark = [pytest.mark.core, untraced]

# Long texts and odd numbers take the ways that allocate; the refused ones make errors.
WIDE_ROWS = [
    {"timestamp": WHEN, "num": Decimal("1." + "7" * 60), "name": "x" * 5000, "i8": 2**40, "side": "buy"},
    {"timestamp": WHEN, "num": 10**40, "f8": 0.1, "flag": True},
    {"timestamp": WHEN, "num": "nan"},
    {"timestamp": WHEN, "i8": -1},
] * 20
CASES: dict[str, tuple[Table, list[object]]] = {
    "Structs": (BOOK_TICKERS, [book(sequence_number=i) for i in range(300)]),
    "content keys": (TRADES, [trade(price=1 + i % 7) for i in range(300)]),
    "dicts": (WIDE, list(WIDE_ROWS)),
}


def fails_at_every_allocation(act: Callable[[], object], most: int = 4000) -> int:
    """Let the first, the second … allocation of ``act`` fail; return how many it makes."""
    testcapi = pytest.importorskip("_testcapi", reason="this Python is built without _testcapi")
    for n in range(most):
        failed = False
        testcapi.set_nomemory(n, n + 1)
        try:
            act()
        except MemoryError:
            failed = True
        finally:
            testcapi.remove_mem_hooks()
        if not failed:
            return n
    return most


@pytest.mark.parametrize("case", CASES)
def test_encode_without_memory_raises_and_the_next_batch_is_whole(case: str) -> None:
    table, rows = CASES[case]
    encoder = RowEncoder(table)
    expected = b"".join(encoder.encode(rows).chunks())
    assert fails_at_every_allocation(lambda: encoder.encode(rows)) > 3
    assert b"".join(encoder.encode(rows).chunks()) == expected


def test_encoder_is_made_whole_or_not_at_all() -> None:
    assert fails_at_every_allocation(lambda: RowEncoder(BOOK_TICKERS)) > 3
    assert len(fields(RowEncoder(BOOK_TICKERS).encode([book()]))) == 1


@pytest.mark.parametrize("case", CASES)
def test_encode_keeps_no_reference_and_no_memory(case: str) -> None:
    table, rows = CASES[case]
    encoder = RowEncoder(table)

    def work() -> None:
        batch = encoder.encode(rows)
        b"".join(batch.chunks())
        assert batch.n_rows + len(batch.errors) == len(rows)

    for _ in range(5):
        work()
    watched = [WHEN, *rows[:3], UUID(int=1)]
    counts = [sys.getrefcount(value) for value in watched]
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            work()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert [sys.getrefcount(value) for value in watched] == counts
    assert grown < 20_000, "200 batches left something behind"


N = 500


def test_encode_arrow_without_memory_raises_and_the_next_batch_is_whole() -> None:
    # Not NumPy's arrays: without memory NumPy itself loses references of its dtypes.
    pyarrow = pytest.importorskip("pyarrow")
    whole = pyarrow.table({name: [getattr(book(), name)] * N for name in ("timestamp", "symbol_id", "sequence_number")})
    prices = pyarrow.array([Decimal("1.25")] * N)
    table = whole.append_column("bid_price", prices).append_column("ask_price", prices)
    table = table.append_column("update_type", pyarrow.array(["ticker"] * N))
    encoder = RowEncoder(BOOK_TICKERS)
    expected = b"".join(encoder.encode_columns(table).chunks())
    assert fails_at_every_allocation(lambda: encoder.encode_columns(table)) > 5
    assert b"".join(encoder.encode_columns(table).chunks()) == expected
    refused = pyarrow.array([Decimal(i % 10) for i in range(N)])  # of every tenth row, which is kept
    table = table.set_column(table.column_names.index("ask_price"), "ask_price", refused)

    def keep() -> list[object]:
        kept: list[tuple[tuple[object, ...], dict[str, object]]] = []
        assert len(list(encoder.column_batches(table, 200, refused=kept))) == 3
        return list(kept)

    whole_rows = keep()
    assert fails_at_every_allocation(keep) > 5
    assert keep() == whole_rows
    assert len(whole_rows) == N // 10


def test_decode_without_memory_raises_and_the_next_reading_is_whole() -> None:
    stream = b"".join(RowEncoder(TRADES).encode([trade(price=1 + i) for i in range(N)]).chunks())
    oids = {name: oid for oid, name in READABLE_TYPES.items()}
    layout = [(column.name, oids[column.type], ("decimal",)) for column in TRADES.columns]

    def decode() -> dict[str, list[object]]:
        decoder = CopyDecoder(layout)
        decoder.feed(stream)
        decoder.finish()
        columns = decoder.take()
        assert len(columns.columns) == len(layout)
        return {name: columns.objects(name) for name, *_ in layout}

    expected = decode()
    assert fails_at_every_allocation(decode) > 5
    assert decode() == expected
    assert expected["price"] == [Decimal(1 + i) for i in range(N)]
