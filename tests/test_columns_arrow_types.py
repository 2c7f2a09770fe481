"""Every Arrow type that pgtick takes, laid out by hand: no library is needed for it."""

from __future__ import annotations

import struct
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from arrow_maker import Column, OneArray, Stream
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_columns import OTHER, same
from test_columns_hostile import released, time
from wire import WHEN, WIDE, fields, oracle

from pgtick._fast.encode import RowEncoder
from pgtick.tables import Table

pytestmark = pytest.mark.core

WIDE_ENCODER = RowEncoder(WIDE)
NUM = WIDE.column_names.index("num")


def check(table: Table, form: str, column: str, buffers: list[bytes | None], values: list[Any], **options: Any) -> None:
    """Hold that the values become what rows of them become, also cut out of a longer array that has NULLs."""
    encoder = RowEncoder(table)
    rows = [{"timestamp": WHEN, column: value} for value in values]
    made = OneArray(time(len(values)), Column(column, form, buffers, len(values), **options))
    same(encoder.encode_columns(made), encoder.encode(rows))
    assert released(made)
    validity = bytes([0b11111101, 0xFF])  # the second is NULL
    made = OneArray(
        time(len(values)),
        Column(column, form, [validity, *buffers[1:]], len(values) - 1, offset=1, **options),
        n=len(values) - 1,
    )
    nulled = [None, *values[2:]]
    same(encoder.encode_columns(made), encoder.encode([{"timestamp": WHEN, column: value} for value in nulled]))
    made = OneArray(
        time(len(values)),
        Column(column, form, [validity, *buffers[1:]], len(values), **options),
        n=len(values) - 1,
        offset=1,
    )
    same(encoder.encode_columns(made), encoder.encode([{"timestamp": WHEN, column: value} for value in nulled]))


def packed(code: str, *values: Any) -> list[bytes | None]:
    return [None, struct.pack(f"<{len(values)}{code}", *values)]


@pytest.mark.parametrize(
    ("form", "code", "values"),
    [
        ("c", "b", [-128, 0, 127]),
        ("C", "B", [0, 1, 255]),
        ("s", "h", [-(2**15), 0, 2**15 - 1]),
        ("S", "H", [0, 1, 2**16 - 1]),
        ("i", "i", [-(2**31), 0, 2**31 - 1]),
        ("I", "I", [0, 1, 2**32 - 1]),
        ("l", "q", [-(2**63), 0, 2**63 - 1]),
        ("L", "Q", [0, 1, 2**64 - 1]),
    ],
)
def test_integers(form: str, code: str, values: list[int]) -> None:
    for column in ("i4", "i8", "f8", "num", "positive"):
        check(WIDE, form, column, packed(code, *values), values)
    for column in ("i2", "f4"):
        check(OTHER, form, column, packed(code, *values), values)


def test_floats() -> None:
    values = [0.1, -1.5, 5e-324, float("nan"), 1e22]
    for column in ("f8", "num", "not_negative"):
        check(WIDE, "g", column, packed("d", *values), values)
    check(WIDE, "f", "num", packed("f", 0.1, -0.0, 16777216, 1e-45), ["0.1", "0", "16777216", "1e-45"])
    check(OTHER, "f", "f4", packed("f", 0.5, -2.25, 3.0), [0.5, -2.25, 3.0])


def test_bits() -> None:
    check(
        WIDE, "b", "flag", [None, bytes([0b01101010, 0b1])], [False, True, False, True, False, True, True, False, True]
    )


def test_times() -> None:
    seconds = 1_740_830_400
    for unit, per, rest in (("s", 1, 0), ("m", 1000, 123), ("u", 10**6, 123_456), ("n", 10**9, 123_456_789)):
        counts = [seconds * per + rest, 0, -1, 2**62, (seconds + 7) * per]
        values = [
            datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=rest * 10**6 // per),
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime(1969, 12, 31, tzinfo=UTC),
            datetime(9999, 1, 1, tzinfo=UTC),
            datetime.fromtimestamp(seconds + 7, UTC),
        ]
        check(WIDE, f"ts{unit}:Asia/Tokyo", "later", packed("q", *counts), values)


def test_dates() -> None:
    values = [date(1, 1, 1), date(1969, 12, 31), date(2025, 3, 1), date(9999, 12, 31)]
    counts = [(value - date(1970, 1, 1)).days for value in values]
    check(OTHER, "tdD", "day", packed("i", *counts), values)


@pytest.mark.parametrize("form", ["u", "U", "z", "Z"])
def test_texts_and_bytes(form: str) -> None:
    texts = ["12.50", "", "人生", "1e-9"]
    data = [text.encode() for text in texts]
    offsets = [sum(map(len, data[:i])) for i in range(5)]
    buffers = [*packed("q" if form.isupper() else "i", *offsets), b"".join(data)]
    check(WIDE, form, "num", buffers, texts)
    if form in "uU":
        check(WIDE, form, "name", buffers, texts)
        check(WIDE, form, "side", buffers, texts)
    else:
        check(OTHER, form, "raw", buffers, data)


def test_views() -> None:
    texts = ["short", "twelve bytes", "a longer text, elsewhere", "1.5"]
    heap = b"a longer text, elsewhere"
    views = b"".join(
        struct.pack("<i12s", len(text), text.encode())
        if len(text) <= 12
        else struct.pack("<i4sii", len(text), text[:4].encode(), 1, 0)
        for text in texts
    )
    buffers = [None, views, b"", heap, struct.pack("<2q", 0, len(heap))]
    check(WIDE, "vu", "name", buffers, texts)
    check(WIDE, "vu", "num", buffers, texts)
    check(OTHER, "vz", "raw", buffers, [text.encode() for text in texts])


def test_uuids() -> None:
    keys = [UUID(int=1), UUID(int=2**128 - 1), UUID(int=5)]
    check(OTHER, "w:16", "key", [None, b"".join(key.bytes for key in keys)], keys)
    text = "".join(map(str, keys))
    check(OTHER, "u", "key", [*packed("i", 0, 36, 72, 108), text.encode()], keys)
    check(OTHER, "w:3", "raw", [None, b"abcdef\0\0\0"], [b"abc", b"def", b"\0\0\0"])


def test_dictionaries() -> None:
    values = Column("", "u", [b"\3", *packed("i", 0, 3, 7, 9)[1:], b"buysell??"], 3)
    check(WIDE, "c", "side", packed("b", 1, 0, 1, 2), ["sell", "buy", "sell", None], dictionary=values)
    numbers = Column("", "g", packed("d", 0.1, -0.2), 2)
    check(WIDE, "L", "num", packed("Q", 1, 0, 1), [-0.2, 0.1, -0.2], dictionary=numbers)


def test_nothing() -> None:
    encoder = RowEncoder(WIDE)
    made = Stream(time(), Column("num", "n", [], 3), Column("name", "n", [], 3))
    same(encoder.encode_columns(made), encoder.encode([{"timestamp": WHEN}] * 3))
    assert released(made)


@st.composite
def integers_of(draw: st.DrawFn) -> tuple[int, int, int]:
    """Draw the bits of a decimal, an integer that fits, and a scale."""
    bits = draw(st.sampled_from([32, 64, 128, 256]))
    size = draw(st.integers(1, bits - 1))
    return bits, draw(st.integers(-(2**size), 2**size - 1)), draw(st.integers(-60, 90))


@settings(max_examples=2000, deadline=None)
@given(integers_of())
@example((128, -(2**127), 0))
@example((128, 2**127 - 1, 38))
@example((256, -(2**255), 76))
@example((128, 2**64, 0))
@example((128, 2**64 - 1, 4))
@example((128, 10**36, -3))
@example((256, 10**72, 72))
@example((128, 0, 5))
def test_decimals_are_exact(drawn: tuple[int, int, int]) -> None:
    bits, number, scale = drawn
    column = Column("num", f"d:38,{scale},{bits}", [None, number.to_bytes(bits // 8, "little", signed=True)], 1)
    (row,) = fields(WIDE_ENCODER.encode_columns(OneArray(time(1), column)))
    assert row[NUM] == oracle(f"{number}e{-scale}")


def test_decimals_obey_the_rules_and_are_named() -> None:
    numbers = [150, -1, 0, 10**30, -(10**30)]
    values = [Decimal(f"{number}e-2") for number in numbers]
    data = b"".join(number.to_bytes(16, "little", signed=True) for number in numbers)
    for column in ("num", "positive", "not_negative"):
        check(WIDE, "d:38,2", column, [None, data], values)
    made = OneArray(time(5), Column("positive", "d:38,2", [None, data], 5))
    refused = WIDE_ENCODER.encode_columns(made).errors
    assert [str(error.value) for error in refused] == ["-0.01", "0.00", str(values[4])]
