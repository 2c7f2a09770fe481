"""The encoder against bytes laid out by hand and against a small oracle of its own."""

from __future__ import annotations

import math
import random
import struct
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire import COLUMNS, WHEN, WHEN_US, WIDE, book, broken, decimal_texts, encode_one, fields, oracle

from pgtick._fast.encode import RowEncoder
from pgtick.errors import ValidationError
from pgtick.tables import BOOK_TICKERS

pytestmark = pytest.mark.core

NOT_NUMBER = "must be a number: float, Decimal, int, or decimal text"


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
