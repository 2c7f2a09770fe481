"""The types of users' own tables: golden bytes and refusals."""

from __future__ import annotations

import math
import struct
from datetime import UTC, date, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import WHEN, fields

from pgtick._fast.encode import RowEncoder
from pgtick.errors import RowError
from pgtick.models import EventTime, Row, Sql
from pgtick.rules import ENCODED_TYPES
from pgtick.tables import Table


class Other(Row, kw_only=True):
    """What the eight tables do not need."""

    timestamp: EventTime
    i2: Annotated[int | None, Sql(type="int2", rule=">= 0")] = None
    f4: Annotated[float | None, Sql(type="float4")] = None
    name: Annotated[str | None, Sql(type="varchar")] = None
    day: Annotated[date | None, Sql(type="date")] = None
    uid: Annotated[UUID | None, Sql(type="uuid")] = None
    data: Annotated[bytes | None, Sql(type="bytea")] = None
    doc: Annotated[Any | None, Sql(type="jsonb")] = None


OTHER = Table("other", Other, key=("timestamp",))
pytestmark = pytest.mark.core
UID = UUID("12345678-9abc-def0-1234-56789abcdef0")


def encode_one(column: str, value: object) -> bytes | None:
    batch = RowEncoder(OTHER).encode([{"timestamp": WHEN, column: value}])
    if batch.errors:
        raise batch.errors[0]
    return fields(batch)[0][OTHER.column_names.index(column)]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("i2", 32767, b"\x7f\xff"),
        ("i2", np.int16(7), b"\0\7"),
        ("f4", 0.1, struct.pack(">f", 0.1)),
        ("f4", -3, struct.pack(">f", -3)),
        ("f4", 1e-45, b"\0\0\0\1"),
        # Halfway between 1 and the next float4; its shortest text lies above that.
        ("f4", 1 + 2.0**-24, struct.pack(">f", 1 + 2.0**-23)),
        ("name", "人生", "人生".encode()),
        ("day", date(2000, 1, 1), bytes(4)),
        ("day", date(1999, 12, 31), b"\xff" * 4),
        ("day", date(2024, 2, 29), struct.pack(">i", 8825)),
        ("day", date(1, 1, 1), struct.pack(">i", -730119)),
        ("uid", UID, UID.bytes),
        ("uid", str(UID).upper(), UID.bytes),
        ("data", b"\0\xff", b"\0\xff"),
        ("data", bytearray(b"x"), b"x"),
        ("data", memoryview(b"xyz")[1:], b"yz"),
        ("data", np.arange(2, dtype=">i2"), b"\0\0\0\1"),
        ("doc", {"a": [1, 0.1, None, True, "人"]}, '\1{"a":[1,0.1,null,true,"人"]}'.encode()),
        ("doc", "text", b'\1"text"'),
        ("doc", "\\u0000", b'\1"\\\\u0000"'),
        ("doc", msgspec.Raw(b"[1.50]"), b"\1[1.50]"),
        *((column, None, None) for column in OTHER.column_names[1:]),
    ],
)
def test_golden_bytes(column: str, value: object, expected: bytes | None) -> None:
    assert encode_one(column, value) == expected


NOT_JSON = "must be a JSON value with finite numbers, or msgspec.Raw"


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("i2", 32768, "must fit int2"),
        ("i2", -1, "must be >= 0"),
        ("i2", True, "must be an int"),
        ("i2", 1.0, "must be an int"),
        ("f4", math.inf, "must be finite"),
        ("f4", 3.5e38, "must fit float4"),
        ("f4", 1e-46, "must fit float4"),
        ("f4", "1", "must be a float"),
        ("name", "a\0b", "must not contain NUL"),
        ("day", datetime(2025, 1, 1, tzinfo=UTC), "must be a date without a time"),
        ("day", "2025-01-01", "must be a date without a time"),
        ("uid", "1234", "must be a UUID or its text"),
        ("uid", UID.bytes, "must be a UUID or its text"),
        ("data", "text", "must be bytes or another buffer"),
        ("data", memoryview(b"abcd")[::2], "must be bytes or another buffer"),
        ("doc", math.nan, NOT_JSON),
        ("doc", {"a": {1, 2}}, NOT_JSON),
        ("doc", {"a": "x\0y"}, "must not contain NUL"),
        ("doc", {"a": "\ud800"}, "must be valid Unicode"),
    ],
)
def test_broken_rule_is_named_and_leaves_nothing(column: str, value: object, rule: str) -> None:
    good = {"timestamp": WHEN, "i2": 1}
    batch = RowEncoder(OTHER).encode([good, {"timestamp": WHEN, column: value}, good])
    assert [(e.index, e.column, e.rule) for e in batch.errors] == [(1, column, rule)]
    assert batch.errors[0].value is value
    assert fields(batch)[0] == fields(batch)[1]


def test_circular_value_is_no_json() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(RowError, match="must be a JSON value"):
        encode_one("doc", circle)


def test_type_that_cannot_be_encoded_is_refused_when_the_table_is_made() -> None:
    class Wrong(Row, kw_only=True):
        timestamp: EventTime
        place: Annotated[str, Sql(type="inet")]

    with pytest.raises(ValueError, match=r"wrong\.place: type inet is not one of .*uuid"):
        Table("wrong", Wrong, key=("timestamp",))


def test_every_type_of_a_table_has_its_encoder() -> None:
    for name in ENCODED_TYPES:
        fields_: dict[str, Any] = {"timestamp": EventTime, "x": Annotated[Any, Sql(type=name)]}
        model = type("Model", (Row,), {"__annotations__": fields_, "__module__": __name__}, kw_only=True)
        RowEncoder(Table("t", model, key=("timestamp",)))


@settings(max_examples=300, deadline=None)
@given(
    st.dates(),
    st.uuids(),
    st.binary(),
    st.integers(0, 32767),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_canonical_gives_back_what_was_given(day: date, uid: UUID, data: bytes, i2: int, f4: float) -> None:
    row = (WHEN, i2, f4, "x", day, uid, data, {"a": 1})
    assert RowEncoder(OTHER).canonical(row) == (*row[:-1], '{"a":1}')
