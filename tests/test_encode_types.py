"""The types of users' own tables: golden bytes, refusals, and the server's verdict."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import WHEN, fields

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick.connection import DatabaseManager
from pgtick.errors import RowError
from pgtick.models import EventTime, Row, Sql
from pgtick.tables import ENCODED_TYPES, Table


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
CREATE = """
CREATE TEMP TABLE other (n int GENERATED ALWAYS AS IDENTITY, timestamp timestamptz, i2 int2, f4 float4, name varchar,
    day date, uid uuid, data bytea, doc jsonb);
"""
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


async def _stream(batch: EncodedBatch) -> AsyncIterator[bytes]:
    for chunk in batch.chunks():
        yield chunk


def _random_row(rng: random.Random) -> tuple[object, ...]:
    doc = {
        "".join(rng.choices('ab"\\\n人', k=3)): rng.choice([rng.uniform(-1e9, 1e9), rng.getrandbits(80), None, ["x"]])
    }
    f4 = (
        struct.unpack(">d", struct.pack(">Q", rng.getrandbits(64)))[0] if rng.random() < 0.2 else rng.uniform(-1e6, 1e6)
    )
    if rng.random() < 0.3:  # halfway between two float4
        f4 = struct.unpack(">f", struct.pack(">I", rng.randrange(0x3F000000, 0x4F000000)))[0] * (1 + 2.0**-24)
    if not 1e-37 < abs(f4) < 3e38:
        f4 = 0.0
    return (
        WHEN,
        rng.randrange(32768),
        f4,
        "".join(rng.choices("aZ 人'\"\\\t", k=rng.randrange(9))),
        date.fromordinal(rng.randint(1, 3652059)),
        UUID(int=rng.getrandbits(128)),
        rng.randbytes(rng.randrange(20)),
        doc,
    )


async def test_bytes_are_what_the_server_makes_of_the_text(db: DatabaseManager) -> None:
    rng = random.Random(5)
    rows = [_random_row(rng) for _ in range(5_000)]
    batch = RowEncoder(OTHER).encode(rows)
    assert not batch.errors
    as_text = [
        (i, str(r[1]), repr(r[2]), r[3], str(r[4]), str(r[5]), "\\x" + r[6].hex(), json.dumps(r[7], ensure_ascii=False))  # type: ignore[attr-defined]
        for i, r in enumerate(rows)
    ]
    async with db.acquire() as connection:
        await connection.execute(
            CREATE
            + "CREATE TEMP TABLE texts (n int, i2 text, f4 text, name text, day text, uid text, data text, doc text)"
        )
        await connection.copy_to_table("other", source=_stream(batch), columns=OTHER.column_names, format="binary")
        await connection.copy_records_to_table("texts", records=as_text)
        types = {
            "i2": "int2",
            "f4": "float4",
            "name": "varchar",
            "day": "date",
            "uid": "uuid",
            "data": "bytea",
            "doc": "jsonb",
        }
        assert await connection.fetchval("SELECT count(*) FROM other") == len(rows)
        for column, type_ in types.items():
            wrong = await connection.fetch(
                f"SELECT t.{column}, o.{column}::text FROM other o JOIN texts t ON t.n = o.n - 1 "
                f"WHERE {'float4send' if type_ == 'float4' else ''}(o.{column}) IS DISTINCT FROM "
                f"{'float4send' if type_ == 'float4' else ''}(t.{column}::{type_}) LIMIT 3"
            )
            assert wrong == [], column
        await connection.execute("DROP TABLE other, texts")


async def test_raw_json_that_is_none_is_the_server_s_error(db: DatabaseManager) -> None:
    batch = RowEncoder(OTHER).encode([{"timestamp": WHEN, "doc": msgspec.Raw(b"{")}])
    async with db.acquire() as connection:
        await connection.execute(CREATE)
        with pytest.raises(asyncpg.InvalidTextRepresentationError):
            await connection.copy_to_table("other", source=_stream(batch), columns=OTHER.column_names, format="binary")
        await connection.execute("DROP TABLE other")
