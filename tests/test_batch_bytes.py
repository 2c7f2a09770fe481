"""A batch as bytes and made again from them, whatever the bytes are."""

from __future__ import annotations

import re
import struct
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import COLUMNS, DAY, WHEN, WHEN_US, WIDE, book

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick.tables import BOOK_TICKERS

pytestmark = pytest.mark.core

N_COLUMNS = len(BOOK_TICKERS.columns)
SAMPLE = RowEncoder(BOOK_TICKERS).encode(
    [
        book(),
        book(bid_price=0),
        book(bid_qty=1, update_type="盘口", timestamp=WHEN + timedelta(days=1)),
        book(timestamp=WHEN - timedelta(days=700)),
    ]
)
ROWS = SAMPLE.rows()
INDICES = SAMPLE.index_bytes()


def load(rows: bytes = ROWS, index_bytes: bytes = INDICES, n_columns: int = N_COLUMNS, time: int = 0) -> EncodedBatch:
    return EncodedBatch.load(rows, index_bytes, n_columns, time)


def row(*fields: bytes | None) -> bytes:
    lengths = [b"\xff" * 4 if field is None else struct.pack(">i", len(field)) + field for field in fields]
    return struct.pack(">h", len(fields)) + b"".join(lengths)


def test_load_of_a_batch_s_bytes_gives_the_batch() -> None:
    batch = load()
    assert batch.indices == SAMPLE.indices == [0, 2, 3]
    assert struct.pack("<3q", 0, 2, 3) == batch.index_bytes() == INDICES
    assert b"".join(batch.chunks()) == b"".join(SAMPLE.chunks())
    assert batch.days == SAMPLE.days == {DAY, DAY + 1, DAY - 700}
    assert batch.errors == []
    assert batch.sorted(1, 0).rows() == SAMPLE.sorted(1, 0).rows()
    assert batch.runs(1) == SAMPLE.runs(1)
    assert batch.take([(1, 3)]).rows() == SAMPLE.take([(1, 3)]).rows()
    assert batch.n_allocated >= batch.n_bytes
    encoder = RowEncoder(BOOK_TICKERS)
    assert [encoder.values(batch, i) for i in range(3)] == [encoder.values(SAMPLE, i) for i in range(3)]
    assert encoder.append(batch, book(), 4)
    assert batch.rows() == ROWS + encoder.encode([book()]).rows()


def test_load_of_nothing_is_an_empty_batch() -> None:
    batch = load(b"", b"")
    assert (batch.n_rows, batch.rows(), batch.index_bytes(), batch.days) == (0, b"", b"", set())


def test_load_of_many_rows_gives_every_index() -> None:
    batch = RowEncoder(BOOK_TICKERS).encode([book(sequence_number=i) for i in range(2000)])
    batch.shift(2**40)
    again = load(batch.rows(), batch.index_bytes())
    assert again.indices == batch.indices == list(range(2**40, 2**40 + 2000))
    assert again.rows() == batch.rows()


def test_load_of_every_truncation_is_refused() -> None:
    for n in range(len(ROWS)):
        with pytest.raises(ValueError, match=f"byte .* of {n}: "):
            load(ROWS[:n])
    for n in range(len(INDICES)):
        with pytest.raises(ValueError, match="more rows than indices" if n % 8 == 0 else "are not eight a row"):
            load(index_bytes=INDICES[:n])
    with pytest.raises(ValueError, match=f"byte {len(ROWS)} of {len(ROWS)}: fewer rows than indices"):
        load(index_bytes=INDICES + bytes(8))


@settings(max_examples=1000, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(ROWS) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, len(INDICES) - 1), st.integers(0, 255)), max_size=3),
)
def test_load_of_changed_bytes_is_refused_or_whole(
    changes: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    rows, index_bytes = bytearray(ROWS), bytearray(INDICES)
    for at, byte in changes:
        rows[at] = byte
    for at, byte in others:
        index_bytes[at] = byte
    check(bytes(rows), bytes(index_bytes))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=24))
def test_load_of_any_bytes_is_refused_or_whole(rows: bytes, index_bytes: bytes) -> None:
    check(rows, index_bytes, n_columns=1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.none() | st.binary(max_size=9), min_size=2, max_size=2), max_size=6))
def test_load_of_any_fields_is_refused_or_whole(rows: list[list[bytes | None]]) -> None:
    check(b"".join(row(*fields) for fields in rows), bytes(8 * len(rows)), n_columns=2)


def check(rows: bytes, index_bytes: bytes, n_columns: int = N_COLUMNS) -> None:
    """Whatever the bytes are, they are refused, or the batch is those bytes and can be used."""
    try:
        batch = load(rows, index_bytes, n_columns)
    except ValueError as error:
        assert re.match(r"byte \d+ of \d+: |\d+ bytes of indices", str(error))  # noqa: PT017
        return
    assert (batch.rows(), batch.index_bytes()) == (rows, index_bytes)
    assert all(14245 <= day <= 2932896 for day in batch.days)
    assert sorted(batch.sorted(n_columns - 1, 0).indices) == sorted(batch.indices)
    assert sum(stop - start for _, start, stop in batch.runs(n_columns - 1)) == batch.n_rows
    assert batch.take([(0, batch.n_rows)]).rows() == rows


TIME = struct.pack(">q", WHEN_US)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"\0", "byte 0 of 1: fewer rows than indices"),
        (row(TIME), "byte 0 of 14: a row whose number of fields is not that of the columns"),
        (b"\xff\xff", "byte 0 of 2: a row whose number of fields is not that of the columns"),
        (b"\0\2\0\0\0", "byte 2 of 5: a field's length is cut off"),
        (row(TIME, b"abc")[:-1], "byte 14 of 20: a field is longer than what is left"),
        (b"\0\2\x7f\xff\xff\xff", "byte 2 of 6: a field is longer than what is left"),
        (b"\0\2\xff\xff\xff\xfe" + bytes(8), "byte 2 of 14: a field's length is negative"),
        (b"\0\2\x80\0\0\0" + bytes(8), "byte 2 of 14: a field's length is negative"),
        (row(b"abcd", None), "byte 2 of 14: a time is not eight bytes long"),
        (row(b"", None), "byte 2 of 10: a time is not eight bytes long"),
        (row(struct.pack(">q", 284083200_000000 - 1), None), "byte 2 of 18: a time lies before 2009 or behind 9999"),
        (row(struct.pack(">q", -1), None), "byte 2 of 18: a time lies before 2009 or behind 9999"),
        (row(struct.pack(">q", -(2**63)), None), "byte 2 of 18: a time lies before 2009 or behind 9999"),
        (row(struct.pack(">q", 2**63 - 1), None), "byte 2 of 18: a time lies before 2009 or behind 9999"),
        (row(TIME, None) + b"\0", "byte 18 of 19: more rows than indices"),
    ],
)
def test_load_says_what_is_wrong_and_where(rows: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        load(rows, bytes(8), n_columns=2)


@pytest.mark.parametrize(("us", "day"), [(284083200_000000, 14245), (252455615999_999999, 2932896)])
def test_load_notes_the_first_day_and_the_last(us: int, day: int) -> None:
    assert load(row(struct.pack(">q", us)), bytes(8), n_columns=1).days == {day}


def test_load_without_a_time_notes_no_day() -> None:
    batch = RowEncoder(WIDE).encode([{"timestamp": WHEN}])
    later = COLUMNS.index("later")
    assert load(batch.rows(), bytes(8), len(COLUMNS), later).days == set()
    assert load(batch.rows(), bytes(8), len(COLUMNS), -1).days == set()
    assert load(batch.rows(), bytes(8), len(COLUMNS), 0).days == {DAY}


@pytest.mark.parametrize(("n_columns", "time"), [(0, -1), (-1, -1), (8, 8), (8, -2), (32768, 0), (65544, 0)])
def test_load_with_a_place_that_is_none_is_refused(n_columns: int, time: int) -> None:
    with pytest.raises(ValueError, match=f"no time at place {time} of {n_columns} columns"):
        load(n_columns=n_columns, time=time)


@pytest.mark.parametrize("wrong", [None, bytearray(ROWS), memoryview(ROWS), "x"])
def test_load_of_what_is_not_bytes_is_a_type_error(wrong: object) -> None:
    with pytest.raises(TypeError):
        load(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        load(index_bytes=wrong)  # type: ignore[arg-type]


def test_shift_moves_every_index_or_none() -> None:
    batch = load()
    batch.shift(10)
    assert batch.indices == [10, 12, 13]
    batch.shift(-11)
    assert batch.indices == [-1, 1, 2]
    assert load(index_bytes=batch.index_bytes()).indices == [-1, 1, 2]
    for offset in (2**63 - 2, -(2**63)):
        with pytest.raises(OverflowError, match=f"cannot be shifted by {offset}"):
            batch.shift(offset)
        assert batch.indices == [-1, 1, 2]
    batch.shift(2**63 - 3)
    assert batch.indices[-1] == 2**63 - 1
