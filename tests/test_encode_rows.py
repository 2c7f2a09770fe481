"""Rows, the stream, content keys: what a batch becomes as a whole."""

from __future__ import annotations

import struct
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire import DAY, HEADER, TRAILER, WHEN, WIDE, book, decimal_texts, encode_one, fields, trade

from pgtick._fast.encode import RowEncoder, content_number
from pgtick.errors import RowError
from pgtick.models import BookTickerSnapshot
from pgtick.tables import BOOK_TICKERS, FUNDING_RATES, TRADES

pytestmark = pytest.mark.core


def test_every_kind_of_row_is_the_same() -> None:
    row = book(update_type="盘口")
    values = {name: getattr(row, name) for name in BOOK_TICKERS.column_names}
    encoder = RowEncoder(BOOK_TICKERS)

    class WithProperty:
        def __init__(self) -> None:
            self.__dict__.update({k: v for k, v in values.items() if k != "bid_price"})

        @property
        def bid_price(self) -> float:
            return 1.5

    class Slotted:
        __slots__ = tuple(values)

    slotted = Slotted()
    for name, value in values.items():
        setattr(slotted, name, value)

    class Derived(BookTickerSnapshot):
        pass

    rows = [
        row,
        tuple(values.values()),
        values,
        {k: v for k, v in values.items() if v is not None},
        msgspec.structs.asdict(row),
        SimpleNamespace(**values),
        WithProperty(),
        slotted,
        Derived(**values),
    ]
    batch = encoder.encode(rows)
    assert batch.errors == []
    taken = fields(batch)
    assert len(taken) == len(rows)
    assert all(fields_ == taken[0] for fields_ in taken)
    assert batch.indices == list(range(len(rows)))
    assert encoder.canonical(row) == encoder.canonical(tuple(values.values()))


def test_rows_of_the_wrong_shape() -> None:
    batch = RowEncoder(BOOK_TICKERS).encode(
        [(1, 2), {**msgspec.structs.asdict(book()), "bid": 1}, object(), None, 5, book()]
    )
    assert [(e.index, e.column, e.rule) for e in batch.errors] == [
        (0, "*", "must have 8 fields"),
        (1, "bid", "must be a column of the table"),
        (2, "timestamp", "must be an attribute of the row"),
        (3, "timestamp", "must be an attribute of the row"),
        (4, "timestamp", "must be an attribute of the row"),
    ]
    assert isinstance(batch.errors[2].__cause__, AttributeError)
    assert batch.indices == [5]


def test_a_slot_that_was_never_set() -> None:
    class Slotted:
        __slots__ = BOOK_TICKERS.column_names

    (error,) = RowEncoder(BOOK_TICKERS).encode([Slotted()]).errors
    assert error.rule == "must be an attribute of the row"


def test_bad_rows_leave_nothing_behind() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    good = [book(sequence_number=i, timestamp=WHEN + timedelta(days=i % 3)) for i in range(3000)]
    rows: list[object] = []
    kept = []
    for i, row in enumerate(good):
        if i % 7 == 3:
            rows.append(book(timestamp=WHEN - timedelta(days=400), update_type="x" * (i * 10) + "\0"))
        kept.append(len(rows))
        rows.append(row)
    batch = encoder.encode(iter(rows))
    alone = encoder.encode(good)
    assert b"".join(batch.chunks()) == b"".join(alone.chunks())
    assert batch.indices == kept
    assert [error.index for error in batch.errors] == sorted(set(range(len(rows))) - set(kept))
    # The day of a refused row needs no chunk.
    assert batch.days == {DAY, DAY + 1, DAY + 2}


def test_other_errors_pass_and_the_encoder_lives_on() -> None:
    class Wrong:
        timestamp = WHEN

        @property
        def symbol_id(self) -> int:
            raise ZeroDivisionError("mine")

    class Zone(tzinfo):
        def utcoffset(self, _: datetime | None) -> timedelta:
            raise LookupError("no such zone")

        def dst(self, _: datetime | None) -> timedelta | None:
            return None

        def tzname(self, _: datetime | None) -> str | None:
            return None

    class Liar(datetime):
        def utcoffset(self) -> Any:
            return 3

    encoder = RowEncoder(BOOK_TICKERS)
    before = b"".join(encoder.encode([book()]).chunks())
    with pytest.raises(ZeroDivisionError, match="mine"):
        encoder.encode([book(), Wrong()])
    with pytest.raises(LookupError, match="no such zone"):
        encoder.encode([book(), book(timestamp=WHEN.replace(tzinfo=Zone()))])
    with pytest.raises(TypeError, match="utcoffset"):
        encoder.encode([book(timestamp=Liar(2025, 1, 1, tzinfo=Zone()))])
    with pytest.raises(TypeError):
        encoder.encode(5)  # type: ignore[arg-type]
    assert b"".join(encoder.encode([book()]).chunks()) == before


def test_a_row_that_encodes_while_it_is_encoded() -> None:
    encoder = RowEncoder(BOOK_TICKERS)

    class Nested:
        def __init__(self) -> None:
            self.__dict__.update(msgspec.structs.asdict(book()))

        @property
        def ask_price(self) -> str:
            assert encoder.encode([book()] * 2000).n_rows == 2000
            return "1.60"

    nested, plain = fields(encoder.encode([Nested(), book()]))
    assert nested == plain


# ---------------------------------------------------------------- the stream


@pytest.mark.parametrize("size", [1, 10, 100, 65536])
@pytest.mark.parametrize(("start", "stop"), [(0, None), (0, 0), (3, 7), (9, 10), (9, 99), (50, None), (7, 3)])
def test_chunks(start: int, stop: int | None, size: int) -> None:
    rows = [book(sequence_number=i) for i in range(10)]
    encoder = RowEncoder(BOOK_TICKERS)
    chunks = list(encoder.encode(rows).chunks(start, stop, size))
    assert b"".join(chunks) == b"".join(encoder.encode(rows[start:stop]).chunks())
    assert all(len(chunk) <= size + len(HEADER) + len(TRAILER) for chunk in chunks)


@pytest.mark.parametrize("wrong", [{"start": -1}, {"stop": -1}, {"size": 0}])
def test_chunks_of_nothing_sensible(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="none may be negative"):
        list(RowEncoder(BOOK_TICKERS).encode([]).chunks(**wrong))


def test_an_empty_batch() -> None:
    batch = RowEncoder(BOOK_TICKERS).encode([])
    assert list(batch.chunks()) == [HEADER + TRAILER]
    assert (batch.n_rows, batch.indices, batch.errors, batch.days, batch.n_bytes) == (0, [], [], set(), 21)


# ---------------------------------------------------------------- content keys


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
@example(bytes(31))
@example(bytes(32))
def test_content_number(data: bytes) -> None:
    assert content_number(data) == (-(xxhash.xxh64_intdigest(data) >> 1) or -1)


def without(row: list[bytes | None], place: int) -> bytes:
    """The bytes of a row's other fields."""
    others = row[:place] + row[place + 1 :]
    return b"".join(b"\xff" * 4 if field is None else struct.pack(">i", len(field)) + field for field in others)


def test_int8_content_key() -> None:
    rows = [
        book(sequence_number=None),
        book(sequence_number=None, bid_price=1.4),
        book(sequence_number=None),
        book(),
    ]
    first, other, again, given = fields(RowEncoder(BOOK_TICKERS).encode(rows))
    place = BOOK_TICKERS.column_names.index("sequence_number")
    assert first[place] == struct.pack(">q", content_number(without(first, place)))
    assert first == again
    assert other[place] != first[place]
    assert given[place] == struct.pack(">q", 9)
    assert without(given, place) == without(first, place)


def test_text_content_key_counts_twins() -> None:
    rows = [trade(), trade(price=1.4), trade(), trade(), trade(trade_id="7")]
    encoder = RowEncoder(TRADES)
    first, other, second, third, given = fields(encoder.encode(rows))
    place = TRADES.column_names.index("trade_id")
    content = without(first, place)
    assert first[place] == str(content_number(content)).encode()
    assert second[place] == str(content_number(content + struct.pack(">i", 2))).encode()
    assert third[place] == str(content_number(content + struct.pack(">i", 3))).encode()
    assert given[place] == b"7"
    assert len({first[place], other[place], second[place], third[place]}) == 4
    assert fields(encoder.encode(rows)) == [first, other, second, third, given]


def test_a_refused_row_is_no_twin() -> None:
    encoder = RowEncoder(TRADES)
    lone = fields(encoder.encode([trade()]))
    assert fields(encoder.encode([trade(side="x"), trade()])) == lone


# ---------------------------------------------------------------- canonical


def test_canonical() -> None:
    encoder = RowEncoder(FUNDING_RATES)
    assert encoder.canonical((1740830400, 1, "-0.00010", 1740859200, None), time_unit="s") == (
        WHEN.replace(microsecond=0),
        1,
        Decimal("-0.00010"),
        WHEN.replace(hour=20, microsecond=0),
        None,
    )
    with pytest.raises(RowError, match="row 0, column symbol_id: 'x' must be an int"):
        encoder.canonical((WHEN, "x", 1, WHEN, None))


@settings(max_examples=1000, deadline=None)
@given(decimal_texts())
def test_canonical_keeps_value_and_scale(text: str) -> None:
    value = RowEncoder(FUNDING_RATES).canonical((WHEN, 1, text, WHEN, None))[2]
    assert isinstance(value, Decimal)
    assert value == Decimal(text)
    assert encode_one("num", value) == encode_one("num", text)


def test_canonical_of_every_type() -> None:
    given = (WHEN, 1, 2, 0.5, "1.50", 1, 0, "x", "buy", True, WHEN)
    assert RowEncoder(WIDE).canonical(given) == (*given[:4], Decimal("1.50"), 1, 0, *given[7:])


def test_the_content_key_of_canonical_is_that_of_encode() -> None:
    row = trade()
    place = TRADES.column_names.index("trade_id")
    (encoded,) = fields(RowEncoder(TRADES).encode([row]))
    key = RowEncoder(TRADES).canonical(row)[place]
    assert key.encode() == encoded[place]
    assert int(key) < 0
