"""The encoder against bytes laid out by hand and against a small oracle of its own.

More than 400 lines: a third of it is the two tables of values taken and values refused.
"""

from __future__ import annotations

import math
import random
import struct
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from types import SimpleNamespace
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgtick._fast.encode import EncodedBatch, RowEncoder, content_number
from pgtick.errors import RowError, ValidationError
from pgtick.models import BookTickerSnapshot, EventTime, Row, Sql, TradeSnapshot
from pgtick.tables import BOOK_TICKERS, FUNDING_RATES, TRADES, Table

WHEN = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
WHEN_US = 794145600_123456  # since 2000-01-01
DAY = 20148
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NOT_NUMBER = "must be a number: float, Decimal, int, or decimal text"


class Wide(Row, kw_only=True):
    """Every type, each nullable but the time."""

    timestamp: EventTime
    i4: Annotated[int | None, Sql(type="int4")] = None
    i8: Annotated[int | None, Sql(type="int8", rule=">= 0")] = None
    f8: Annotated[float | None, Sql(type="float8", rule="> 0")] = None
    num: Annotated[Any | None, Sql(type="numeric")] = None
    positive: Annotated[Decimal | None, Sql(type="numeric", rule="> 0")] = None
    not_negative: Annotated[Decimal | None, Sql(type="numeric", rule=">= 0")] = None
    name: Annotated[str | None, Sql(type="text")] = None
    side: Annotated[str | None, Sql(type="text", rule=("buy", "sell"))] = None
    flag: Annotated[bool | None, Sql(type="bool")] = None
    later: Annotated[datetime | None, Sql(type="timestamptz", max_ahead=timedelta(days=31))] = None


WIDE = Table("wide", Wide, key=("timestamp",))
COLUMNS = WIDE.column_names


def fields(batch: EncodedBatch) -> list[list[bytes | None]]:
    """Take a whole stream apart again."""
    data = b"".join(batch.chunks())
    assert data.startswith(HEADER)
    at = len(HEADER)
    rows = []
    while True:
        (n,) = struct.unpack_from(">h", data, at)
        at += 2
        if n == -1:
            break
        row: list[bytes | None] = []
        for _ in range(n):
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            row.append(None if length < 0 else data[at : at + length])
            at += max(length, 0)
        rows.append(row)
    assert at == len(data) == batch.n_bytes
    assert len(rows) == batch.n_rows
    return rows


def encode_one(column: str, value: object, **options: Any) -> bytes | None:
    given = {"timestamp": WHEN, column: value}
    if column == "timestamp":
        given = {"timestamp": value}
    batch = RowEncoder(WIDE).encode([given], **options)
    if batch.errors:
        raise batch.errors[0]
    return fields(batch)[0][COLUMNS.index(column)]


def broken(column: str, value: object, **options: Any) -> str:
    with pytest.raises(RowError) as caught:
        encode_one(column, value, **options)
    assert caught.value.table == "wide"
    assert caught.value.column == column
    assert caught.value.value is value
    return caught.value.rule


def oracle(text: str) -> bytes:
    """Lay a decimal text out as numeric_send does, with Python's integers."""
    mantissa, _, exponent = text.lower().partition("e")
    negative = mantissa.startswith("-")
    whole, _, decimals = mantissa.lstrip("+-").partition(".")
    shift = int(exponent or 0) - len(decimals)
    scale = max(-shift, 0)
    number = int(whole + decimals)
    places = -(-scale // 4)  # groups behind the point
    number *= 10 ** (shift + 4 * places)
    groups = []
    while number:
        number, group = divmod(number, 10000)
        groups.append(group)
    weight = len(groups) - places - 1
    while groups and groups[0] == 0:
        groups.pop(0)
    if not groups:
        return struct.pack(">HhHH", 0, 0, 0, scale)
    sign = 0x4000 if negative else 0
    return struct.pack(f">HhHH{len(groups)}H", len(groups), weight, sign, scale, *reversed(groups))


# ---------------------------------------------------------------- golden bytes


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("timestamp", WHEN, struct.pack(">q", WHEN_US)),
        ("i4", 1, b"\0\0\0\1"),
        ("i4", -(2**31), b"\x80\0\0\0"),
        ("i4", np.int64(7), b"\0\0\0\7"),
        ("i8", 2**63 - 1, b"\x7f" + b"\xff" * 7),
        ("f8", 0.1, struct.pack(">d", 0.1)),
        ("f8", 3, struct.pack(">d", 3.0)),
        ("f8", np.float64(0.1), struct.pack(">d", 0.1)),
        ("name", "人生K线/USDT", "人生K线/USDT".encode()),
        ("name", "", b""),
        ("side", "sell", b"sell"),
        ("flag", True, b"\1"),
        ("flag", False, b"\0"),
        ("later", None, None),
        ("name", None, None),
        # digits, weight, sign, scale, then the groups of four
        ("num", "50000.10", struct.pack(">HhHH3H", 3, 1, 0, 2, 5, 0, 1000)),
        ("num", b"1e-9", struct.pack(">HhHH1H", 1, -3, 0, 9, 1000)),
        ("num", "-44.123456", struct.pack(">HhHH3H", 3, 0, 0x4000, 6, 44, 1234, 5600)),
        ("num", 44.123456, struct.pack(">HhHH3H", 3, 0, 0, 6, 44, 1234, 5600)),
        ("num", 5000000000.000001, struct.pack(">HhHH5H", 5, 2, 0, 6, 50, 0, 0, 0, 100)),
        ("num", 1e-12, struct.pack(">HhHH1H", 1, -3, 0, 12, 1)),
        ("num", 1e15, struct.pack(">HhHH1H", 1, 3, 0, 0, 1000)),
        ("num", 1e22, struct.pack(">HhHH1H", 1, 5, 0, 0, 100)),
        ("num", 5.0, struct.pack(">HhHH1H", 1, 0, 0, 0, 5)),
        ("num", 0.1, struct.pack(">HhHH1H", 1, -1, 0, 1, 1000)),
        ("num", "0.00", struct.pack(">HhHH", 0, 0, 0, 2)),
        ("num", "-0.00", struct.pack(">HhHH", 0, 0, 0, 2)),
        ("num", -0.0, struct.pack(">HhHH", 0, 0, 0, 0)),
        ("num", Decimal("-0.0"), struct.pack(">HhHH", 0, 0, 0, 1)),
        ("num", "1e3", struct.pack(">HhHH1H", 1, 0, 0, 0, 1000)),
        ("num", "1.5e-3", struct.pack(">HhHH1H", 1, -1, 0, 4, 15)),
        ("num", "1.50e1", struct.pack(">HhHH1H", 1, 0, 0, 1, 15)),
        ("num", "+.5", struct.pack(">HhHH1H", 1, -1, 0, 1, 5000)),
        ("num", "5.", struct.pack(">HhHH1H", 1, 0, 0, 0, 5)),
        ("num", Decimal("1E+3"), struct.pack(">HhHH1H", 1, 0, 0, 0, 1000)),
        ("num", 10000, struct.pack(">HhHH1H", 1, 1, 0, 0, 1)),
        ("num", -(2**63), struct.pack(">HhHH5H", 5, 4, 0x4000, 0, 922, 3372, 368, 5477, 5808)),
        ("num", np.int64(12), struct.pack(">HhHH1H", 1, 0, 0, 0, 12)),
        ("num", np.float64(0.1), struct.pack(">HhHH1H", 1, -1, 0, 1, 1000)),
        ("num", "1e-16383", struct.pack(">HhHH1H", 1, -4096, 0, 16383, 10)),
        ("num", "1e131071", struct.pack(">HhHH1H", 1, 32767, 0, 0, 1000)),
        ("num", "0e1000000000", struct.pack(">HhHH", 0, 0, 0, 0)),
    ],
)
def test_golden_bytes(column: str, value: object, expected: bytes | None) -> None:
    assert encode_one(column, value) == expected


def test_largest_numbers() -> None:
    assert encode_one("num", 10**131072 - 1) == struct.pack(">HhHH", 32768, 32767, 0, 0) + b"\x27\x0f" * 32768
    assert encode_one("num", "9" * 131072 + "." + "9" * 16383) == (
        struct.pack(">HhHH", 36864, 32767, 0, 16383) + b"\x27\x0f" * 36863 + struct.pack(">H", 9990)
    )
    for value in (
        10**131072,
        -(10**131072),
        10**1000000,
        "1e131072",
        "1e-16384",
        "0e-16384",
        Decimal("1e999999"),
    ):
        assert broken("num", value) == "must fit numeric"
    assert broken("not_negative", -(10**200_000)) == "must be >= 0"


DIGITS = st.text("0123456789", min_size=1, max_size=30)


@st.composite
def decimal_texts(draw: st.DrawFn) -> str:
    sign = draw(st.sampled_from(["", "-", "+"]))
    text = sign + draw(DIGITS)
    if draw(st.booleans()):
        text += "." + draw(st.one_of(DIGITS, st.just("0000"), st.just("")))
    if draw(st.booleans()):
        text += draw(st.sampled_from("eE")) + str(draw(st.integers(-60, 60)))
    return text


@settings(max_examples=2000, deadline=None)
@given(decimal_texts())
@example("9999999999999999999")
@example("10000000000000000000")
@example("0.00000000000000000001")
@example("18446744073709551616")
def test_numeric_of_text(text: str) -> None:
    assert encode_one("num", text) == encode_one("num", text.encode()) == oracle(text)


@settings(max_examples=1000, deadline=None)
@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_numeric_of_decimal(value: Decimal) -> None:
    if value.adjusted() < 1000 and value.as_tuple().exponent > -1000:  # type: ignore[operator]
        assert encode_one("num", value) == oracle(str(value))


@settings(max_examples=1000, deadline=None)
@given(st.integers(-(10**60), 10**60))
@example(2**63)
@example(-(2**63) - 1)
@example(2**64)
def test_numeric_of_int(value: int) -> None:
    assert encode_one("num", value) == oracle(str(value))


def float_text(value: float) -> str:
    """The float's repr with the point, and the zero behind it, gone where it is whole."""
    text = repr(value)
    return text[:-2] if text.endswith(".0") else text


@settings(max_examples=3000, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(5e-324)
@example(1.7976931348623157e308)
@example(999999999999999.9)
@example(1e-22)
@example(2.5e-23)
def test_numeric_of_float(value: float) -> None:
    assert encode_one("num", value) == oracle(float_text(value))


def test_many_floats_one_batch() -> None:
    # One encoder, so that the remembered scale of one value meets the next.
    rng = random.Random(7)
    values = [round(rng.uniform(0, 10 ** rng.randint(-8, 9)), rng.randint(0, 12)) for _ in range(20_000)]
    values += [rng.uniform(0, 1) * 10.0 ** rng.randint(-20, 20) for _ in range(20_000)]
    values += [struct.unpack(">d", struct.pack(">Q", rng.getrandbits(63) % (0x7FF << 52)))[0] for _ in range(20_000)]
    rng.shuffle(values)
    batch = RowEncoder(WIDE).encode({"timestamp": WHEN, "num": value} for value in values)
    place = COLUMNS.index("num")
    for value, row in zip(values, fields(batch), strict=True):
        assert row[place] == oracle(float_text(value)), value


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("timestamp", None, "must not be NULL"),
        (
            "timestamp",
            WHEN.replace(tzinfo=None),
            "must be aware: a naive datetime would be read in the machine's zone",
        ),
        ("timestamp", 1740830400, "must be an aware datetime, or an int with its time_unit named"),
        ("timestamp", True, "must be an aware datetime, or an int with its time_unit named"),
        ("timestamp", "2025-03-01", "must be an aware datetime, or an int with its time_unit named"),
        ("timestamp", datetime(2008, 12, 31, tzinfo=UTC), "must lie between 2009-01-01 and now + 1 d"),
        ("timestamp", datetime(9999, 12, 31, tzinfo=UTC), "must lie between 2009-01-01 and now + 1 d"),
        ("timestamp", datetime(1, 1, 1, tzinfo=UTC), "must lie between 2009-01-01 and now + 1 d"),
        ("later", datetime(2999, 1, 1, tzinfo=UTC), "must lie between 2009-01-01 and now + 31 d"),
        ("i4", True, "must be an int"),
        ("i4", 1.0, "must be an int"),
        ("i4", "1", "must be an int"),
        ("i4", 2**31, "must fit int4"),
        ("i4", -(2**31) - 1, "must fit int4"),
        ("i4", 2**70, "must fit int4"),
        ("i8", 2**63, "must fit int8"),
        ("i8", -1, "must be >= 0"),
        ("f8", True, "must be a float"),
        ("f8", "1.0", "must be a float"),
        ("f8", Decimal(1), "must be a float"),
        ("f8", math.nan, "must be finite"),
        ("f8", -math.inf, "must be finite"),
        ("f8", 10**400, "must be finite"),
        ("f8", 0.0, "must be > 0"),
        ("num", True, NOT_NUMBER),
        ("num", np.True_, NOT_NUMBER),
        ("num", "", NOT_NUMBER),
        ("num", ".", NOT_NUMBER),
        ("num", "-", NOT_NUMBER),
        ("num", "e5", NOT_NUMBER),
        ("num", "1e", NOT_NUMBER),
        ("num", "1e+", NOT_NUMBER),
        ("num", "1e5.0", NOT_NUMBER),
        ("num", "1.2.3", NOT_NUMBER),
        ("num", " 1", NOT_NUMBER),
        ("num", "1 ", NOT_NUMBER),
        ("num", "1_000", NOT_NUMBER),
        ("num", "1,5", NOT_NUMBER),
        ("num", "0x10", NOT_NUMBER),
        ("num", "١", NOT_NUMBER),
        ("num", "\ud800", NOT_NUMBER),
        ("num", "1\0", NOT_NUMBER),
        ("num", bytearray(b"1"), NOT_NUMBER),
        ("num", [1], NOT_NUMBER),
        ("num", 1 + 0j, NOT_NUMBER),
        ("num", np.array([1, 2]), NOT_NUMBER),
        ("num", np.float32(0.1), NOT_NUMBER),
        ("num", math.nan, "must be finite"),
        ("num", math.inf, "must be finite"),
        ("num", "NaN", "must be finite"),
        ("num", b"-inf", "must be finite"),
        ("num", "Infinity", "must be finite"),
        ("num", Decimal("NaN"), "must be finite"),
        ("num", Decimal("sNaN"), "must be finite"),
        ("num", Decimal("NaN123"), "must be finite"),
        ("num", Decimal("-Infinity"), "must be finite"),
        ("num", "1e99999999999999999999", "must fit numeric"),
        ("num", "1e-99999999999999999999", "must fit numeric"),
        ("positive", 0.0, "must be > 0"),
        ("positive", "0.00", "must be > 0"),
        ("positive", "-1", "must be > 0"),
        ("positive", -1e-300, "must be > 0"),
        ("positive", -(10**40), "must be > 0"),
        ("positive", Decimal("-0"), "must be > 0"),
        ("not_negative", -1, "must be >= 0"),
        ("not_negative", "-1111111111111111111111", "must be >= 0"),
        ("name", b"x", "must be a str"),
        ("name", 5, "must be a str"),
        ("name", "a\0b", "must not contain NUL"),
        ("name", "\udc80", "must be valid Unicode"),
        ("side", "Buy", "must be one of buy, sell"),
        ("side", "", "must be one of buy, sell"),
        ("flag", 1, "must be a bool"),
        ("flag", "true", "must be a bool"),
    ],
)
def test_refused(column: str, value: object, rule: str) -> None:
    assert broken(column, value) == rule


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bid_price", 0),
        ("bid_price", None),
        ("bid_price", "x"),
        ("bid_price", math.nan),
        ("ask_price", True),
        ("bid_qty", -1),
        ("symbol_id", 2**31),
        ("symbol_id", 1.5),
        ("sequence_number", 2**63),
        ("update_type", 3),
        ("update_type", "a\0"),
        ("update_type", "\ud800"),
        ("timestamp", datetime(2025, 1, 1)),
        ("timestamp", datetime(2008, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_models_say_the_same(field: str, value: object) -> None:
    row = book(**{field: value})
    with pytest.raises(ValidationError) as expected:
        row.validate()
    (error,) = RowEncoder(BOOK_TICKERS).encode([row]).errors
    assert (error.table, error.column, error.rule) == ("book_ticker_snapshots", field, expected.value.rule)


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("value", "unit", "us"),
    [
        (1740830400, "s", 794145600_000000),
        (1740830400_123, "ms", 794145600_123000),
        (1740830400_123456, "us", WHEN_US),
        (1740830400_123456_999, "ns", WHEN_US),
        (np.int64(1740830400_123456_999), "ns", WHEN_US),
        (WHEN, "ns", WHEN_US),
        (1230768000, "s", 284083200_000000),
    ],
)
def test_integer_times(value: object, unit: str, us: int) -> None:
    assert encode_one("timestamp", value, time_unit=unit) == struct.pack(">q", us)


@pytest.mark.parametrize("value", [0, -1, 1230767999, 1740830400_000, 2**62, 2**70, -(2**70)])
def test_integer_times_of_another_unit(value: int) -> None:
    assert broken("timestamp", value, time_unit="s") == "must lie between 2009-01-01 and now + 1 d"


def test_no_such_unit() -> None:
    with pytest.raises(ValueError, match="time_unit is s, ms, us or ns, not 'min'"):
        RowEncoder(WIDE).encode([], time_unit="min")


@settings(max_examples=500, deadline=None)
@given(
    st.datetimes(datetime(2009, 1, 2), datetime(2025, 12, 30)),
    st.sampled_from(
        [
            UTC,
            timezone(timedelta(hours=5, minutes=30)),
            timezone(timedelta(hours=-11, seconds=-7, microseconds=3)),
            ZoneInfo("Europe/Berlin"),
            ZoneInfo("UTC"),
        ]
    ),
    st.integers(0, 1),
)
def test_datetimes(naive: datetime, zone: tzinfo, fold: int) -> None:
    value = naive.replace(tzinfo=zone, fold=fold)
    us = (value.astimezone(UTC) - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert encode_one("timestamp", value) == struct.pack(">q", us)
    batch = RowEncoder(WIDE).encode([{"timestamp": value, "num": 1}])
    assert batch.days == {(value.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days}


def test_the_window_moves_with_now() -> None:
    now = datetime.now(UTC)
    encode_one("timestamp", now + timedelta(hours=23))
    encode_one("later", now + timedelta(days=30))
    broken("timestamp", now + timedelta(hours=25))
    broken("later", now + timedelta(days=32))


# ---------------------------------------------------------------- rows


def book(**changes: Any) -> BookTickerSnapshot:
    given = {"timestamp": WHEN, "symbol_id": 5, "bid_price": 1.5, "ask_price": "1.60", "sequence_number": 9}
    return BookTickerSnapshot(**{**given, **changes})


def trade(**changes: Any) -> TradeSnapshot:
    given = {"timestamp": WHEN, "symbol_id": 5, "price": 1.5, "quantity": 2, "side": "buy"}
    return TradeSnapshot(**{**given, **changes})


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
