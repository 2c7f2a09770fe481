"""Rows encoded one by one onto a batch: the bytes, days, keys and errors that encode gives, and nothing half done."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core_memory import CASES, fails_at_every_allocation
from wire import DAY, HEADER, TRAILER, WHEN, book, trade, untraced

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick.tables import BOOK_TICKERS, TRADES, Table

pytestmark = pytest.mark.core

BOOKS = [book(sequence_number=i, timestamp=WHEN + timedelta(days=i % 3)) for i in range(3000)]


def as_tuple(row: object) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in BOOK_TICKERS.column_names)


MIXED: list[object] = [
    book(),
    msgspec.structs.asdict(book(bid_price="0.10")),
    as_tuple(book(sequence_number=None)),
    book(bid_price=-1, update_type="x" * 500),
    (1, 2),
    {**msgspec.structs.asdict(book()), "bid": 1},
    object(),
    book(timestamp=WHEN - timedelta(days=9), sequence_number=None),
    book(timestamp=WHEN + timedelta(days=40), update_type="y" * 500 + "\0"),
]
TRADE_ROWS: list[object] = [trade(), trade(price=2), trade(), trade(side="x"), trade(), trade(trade_id="7")]
TIMES = [{**msgspec.structs.asdict(book()), "timestamp": 1740830400123 + i} for i in range(3)]


def what(batch: EncodedBatch) -> tuple[object, ...]:
    """All that is in a batch."""
    errors = [(error.index, error.column, error.value, error.rule) for error in batch.errors]
    return batch.rows(), batch.indices, batch.days, errors, batch.n_rows, batch.n_bytes


@pytest.mark.parametrize(
    ("table", "rows", "unit"),
    [
        (BOOK_TICKERS, BOOKS, None),
        (BOOK_TICKERS, MIXED * 3, None),
        (TRADES, TRADE_ROWS * 3, None),
        (BOOK_TICKERS, [*TIMES, book()], "ms"),
        (BOOK_TICKERS, TIMES, None),
        *((table, rows, None) for table, rows in CASES.values()),
    ],
)
def test_append_gives_what_encode_gives(table: Table, rows: list[object], unit: str | None) -> None:
    encoder = RowEncoder(table)
    expected = encoder.encode(rows, time_unit=unit)
    batch = EncodedBatch()
    taken = [encoder.append(batch, row, i, time_unit=unit) for i, row in enumerate(rows)]
    assert what(batch) == what(expected)
    assert [i for i, was_taken in enumerate(taken) if was_taken] == expected.indices
    assert b"".join(batch.chunks()) == b"".join(expected.chunks()) == HEADER + batch.rows() + TRAILER


@settings(deadline=None)
@given(st.lists(st.sampled_from(MIXED), max_size=40), st.lists(st.integers(0, 9), max_size=12))
def test_extend_with_limits_gives_what_encode_gives(rows: list[object], limits: list[int]) -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    batch = EncodedBatch()
    left = iter(rows)
    done = 0
    for limit in [*limits, 1000]:
        taken = encoder.extend(batch, left, done, limit)
        assert taken == min(limit, len(rows) - done)
        done += taken
        assert batch.n_rows + len(batch.errors) == done
    assert what(batch) == what(encoder.encode(rows))


def test_extend_takes_no_row_more_than_its_limit() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    batch = EncodedBatch()
    rows = iter(BOOKS[:10])
    assert [encoder.extend(batch, rows, 7, limit) for limit in (-1, 0, 4)] == [0, 0, 4]
    assert batch.indices == [7, 8, 9, 10]
    assert list(rows) == BOOKS[4:10]
    # A list is no iterator: it begins anew.
    assert encoder.extend(batch, BOOKS, 0, 2) == encoder.extend(batch, BOOKS, 0, 2) == 2
    largest = 2**63 - 1
    assert encoder.extend(batch, BOOKS, largest - 2, 10) == 2
    assert batch.indices[-2:] == [largest - 2, largest - 1]


def test_extend_when_the_iterator_raises_keeps_the_rows_before() -> None:
    def rows() -> Iterator[object]:
        yield from (book(), book(bid_price=0), book(bid_price=2))
        raise ZeroDivisionError("mine")

    encoder = RowEncoder(BOOK_TICKERS)
    batch = EncodedBatch()
    with pytest.raises(ZeroDivisionError, match="mine"):
        encoder.extend(batch, rows(), 5, 100)
    assert (batch.indices, [error.index for error in batch.errors]) == ([5, 7], [6])
    assert batch.rows() == encoder.encode([book(), book(bid_price=2)]).rows()
    with pytest.raises(TypeError):
        encoder.extend(batch, 5, 0, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="time_unit is s, ms, us or ns, not 'min'"):
        encoder.extend(batch, rows(), 0, 1, time_unit="min")


class Wrong:
    """A row whose fourth field raises; what it does before that it is told."""

    def __init__(self, act: Any = None) -> None:
        self.__dict__.update(msgspec.structs.asdict(book(timestamp=WHEN + timedelta(days=5))))
        del self.ask_price
        self.act = act

    def __getattr__(self, name: str) -> Any:
        if name != "ask_price":
            raise AttributeError(name)
        if self.act is None:
            raise ZeroDivisionError("mine")
        self.act()
        return "1.60"


def test_append_when_a_row_raises_leaves_the_batch_as_it_was() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    batch = encoder.encode(MIXED)
    before = what(batch)
    with pytest.raises(ZeroDivisionError, match="mine"):
        encoder.append(batch, Wrong(), 100)
    assert what(batch) == before
    with pytest.raises(ZeroDivisionError, match="mine"):
        encoder.extend(batch, iter([book(), Wrong(), book()]), 100, 9)
    assert encoder.append(batch, book(), 102)
    assert batch.indices[-2:] == [100, 102]
    assert batch.rows() == encoder.encode([*MIXED, book(), book()]).rows()


def test_a_row_that_changes_its_own_batch_is_stopped() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    batch = EncodedBatch()
    encoder.append(batch, book(), 0)
    encoder.append(batch, book(sequence_number=1), 1)
    before = what(batch)
    for act in (
        lambda: encoder.append(batch, book(), 2),
        lambda: encoder.extend(batch, [book()], 2, 1),
        batch.shrink,
        lambda: batch.sorted(1, 0),
    ):
        with pytest.raises(RuntimeError, match="the batch is in use"):
            encoder.append(batch, Wrong(act), 2)
        assert what(batch) == before
    # What only reads sees the whole rows, and another batch is free.
    other = EncodedBatch()
    seen: list[object] = []

    def look() -> None:
        seen.append(what(batch))
        encoder.append(other, book(), 0)
        b"".join(batch.chunks())

    assert encoder.append(batch, Wrong(look), 2)
    assert seen == [before]
    assert (batch.n_rows, other.n_rows) == (3, 1)


def test_append_of_two_classes_in_turn_reads_each_by_its_own_layout() -> None:
    class Backward(msgspec.Struct):
        update_type: str
        sequence_number: int
        ask_qty: float | None
        bid_qty: float | None
        ask_price: object
        bid_price: object
        symbol_id: int
        timestamp: object

    row = book(update_type="x")
    backward = Backward(*reversed(as_tuple(row)))  # type: ignore[arg-type]
    encoder = RowEncoder(BOOK_TICKERS)
    batch = EncodedBatch()
    for i in range(6):
        assert encoder.append(batch, (row, backward, as_tuple(row))[i % 3], i)
    assert batch.rows() == 6 * encoder.encode([row]).rows()


def test_wrong_arguments_are_type_errors() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    batch = EncodedBatch()
    with pytest.raises(TypeError):
        encoder.append(None, book(), 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        encoder.append(batch, book(), "0")  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        encoder.append(batch, book(), 2**63)
    with pytest.raises(ValueError, match="time_unit is s, ms, us or ns, not 'm'"):
        encoder.append(batch, book(), 0, time_unit="m")
    assert what(batch) == what(encoder.encode([]))


@untraced
def test_append_without_memory_leaves_the_batch_as_it_was() -> None:
    testcapi = pytest.importorskip("_testcapi", reason="this Python is built without _testcapi")
    encoder = RowEncoder(TRADES)
    # The 257th row needs room for its place; a long text needs room for its bytes; a twin is counted.
    rows = [trade(price=i) for i in range(1, 257)]
    last = msgspec.structs.asdict(trade(side="buy", price="1." + "7" * 16_000, timestamp=WHEN + timedelta(days=1)))
    expected = encoder.encode([*rows, last, last])
    n_failed = 0
    for n in itertools.count():
        batch = encoder.encode(rows)
        before = what(batch)
        failed = False
        testcapi.set_nomemory(n, n + 1)
        try:
            encoder.append(batch, last, 256)
        except MemoryError:
            failed = True
        finally:
            testcapi.remove_mem_hooks()
        if not failed:
            break
        n_failed += 1
        rest = what(batch)
        assert (rest[0], rest[1], rest[3]) == (before[0], before[1], before[3])
        assert encoder.append(batch, last, 256)
        assert encoder.append(batch, last, 257)
        assert what(batch) == what(expected)
    assert n_failed > 1


@untraced
def test_batch_without_memory_is_made_whole_or_not_at_all() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    batch = encoder.encode(BOOKS)
    rows, index_bytes = batch.rows(), batch.index_bytes()
    before = what(batch)
    assert fails_at_every_allocation(lambda: EncodedBatch.load(rows, index_bytes, 8, 0)) > 3
    assert fails_at_every_allocation(lambda: batch.shrink()) > 1
    assert what(batch) == before


@untraced
def test_n_allocated_is_what_python_counts() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    encoder.encode(BOOKS)
    tracemalloc.start()
    try:
        batch = EncodedBatch()
        start = tracemalloc.get_traced_memory()[0] - batch.n_allocated
        for n in (1, 300, 3000):
            encoder.extend(batch, BOOKS, 0, n)
            # Counted there as well: errors, the numbers of this test.
            assert abs(tracemalloc.get_traced_memory()[0] - start - batch.n_allocated) < 1000, n
        assert batch.n_allocated > batch.n_bytes + 16 * batch.n_rows
        rows = batch.rows()
        del rows
        batch.shrink()
        assert abs(tracemalloc.get_traced_memory()[0] - start - batch.n_allocated) < 1000
    finally:
        tracemalloc.stop()


def test_n_allocated_grows_with_the_contents_that_are_counted() -> None:
    encoder = RowEncoder(TRADES)
    rows = [trade(price=i) for i in range(1, 10_001)]
    keyless = [trade(price=i, trade_id=str(-(2**62) - i)) for i in range(1, 10_001)]
    batch, plain = encoder.encode(rows), encoder.encode(keyless)
    assert batch.n_bytes < plain.n_bytes + 10_000
    assert 12 * 10_000 < batch.n_allocated - plain.n_allocated < 100 * 10_000
    before = batch.n_allocated
    batch.shrink()
    assert batch.n_allocated < before - 12 * 10_000


def test_shrink_keeps_the_rows_and_lets_more_come() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    batch = EncodedBatch()
    batch.shrink()
    assert what(batch) == what(encoder.encode([]))
    assert batch.n_allocated < 100
    for i, row in enumerate(BOOKS[:700]):
        assert encoder.append(batch, row, i)
        if i % 100 == 5:
            before = what(batch)
            batch.shrink()
            assert what(batch) == before
            assert batch.n_allocated < batch.n_bytes + 16 * batch.n_rows + 1100
    assert what(batch) == what(encoder.encode(BOOKS[:700]))
    # How often a content came is forgotten: the twin gets the key of the row before it.
    twins = RowEncoder(TRADES).encode([trade()])
    lone = twins.rows()
    twins.shrink()
    RowEncoder(TRADES).append(twins, trade(), 1)
    assert twins.rows() == lone * 2


def test_sorted_and_take_of_an_appended_batch_keep_days_and_indices() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    batch = EncodedBatch()
    for i in range(6):
        encoder.append(batch, BOOKS[i], 10 + i)
    in_order = batch.sorted(1, 0)
    assert in_order.indices == [10, 13, 11, 14, 12, 15]
    assert in_order.days == batch.days == {DAY, DAY + 1, DAY + 2}
    assert batch.take([(4, 6), (0, 1)]).indices == [14, 15, 10]
    assert batch.take([(0, 0), (6, 6)]).rows() == b"" == EncodedBatch().take([(0, 0)]).rows()
    assert EncodedBatch().sorted(1, 0).n_rows == 0
