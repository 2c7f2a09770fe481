"""A COPY BINARY stream taken apart, and the executable specification of numeric's wire form."""

from __future__ import annotations

import struct
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import pytest
from hypothesis import strategies as st

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick.errors import RowError
from pgtick.models import BookTickerSnapshot, EventTime, Row, Sql, TradeSnapshot
from pgtick.tables import Table

#: For tests that take memory away, count references or interleave threads.
untraced = pytest.mark.skipif(
    sys.gettrace() is not None, reason="a tracer would be without memory too, keeps frames and switches threads"
)
WHEN = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
WHEN_US = 794145600_123456  # since 2000-01-01
DAY = 20148
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"


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


def book(**changes: Any) -> BookTickerSnapshot:
    given = {"timestamp": WHEN, "symbol_id": 5, "bid_price": 1.5, "ask_price": "1.60", "sequence_number": 9}
    return BookTickerSnapshot(**{**given, **changes})


def trade(**changes: Any) -> TradeSnapshot:
    given = {"timestamp": WHEN, "symbol_id": 5, "price": 1.5, "quantity": 2, "side": "buy"}
    return TradeSnapshot(**{**given, **changes})
