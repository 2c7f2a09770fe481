"""validate() and the encoder read the same rules: what one refuses the other refuses, in the same words."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgtick import models
from pgtick._fast.encode import RowEncoder
from pgtick.errors import ValidationError
from pgtick.models import Row, Sql
from pgtick.rules import ENCODED_TYPES
from pgtick.tables import BUILT_IN_TABLES, Table

NOW = datetime.now(UTC)


class Everything(Row, kw_only=True):
    """A column of every type under every rule, nullable and not."""

    table_name: ClassVar[str] = "everything"

    timestamp: Annotated[Any, Sql(type="timestamptz")] = NOW
    later: Annotated[Any, Sql(type="timestamptz", max_ahead=timedelta(days=31))] = NOW
    number: Annotated[Any, Sql(type="numeric")] = 1
    positive: Annotated[Any, Sql(type="numeric", rule="> 0")] = 1
    not_negative: Annotated[Any, Sql(type="numeric", rule=">= 0")] = 1
    optional: Annotated[Any | None, Sql(type="numeric", rule="> 0")] = None
    double: Annotated[Any, Sql(type="float8")] = 1.0
    positive_double: Annotated[Any, Sql(type="float8", rule="> 0")] = 1.0
    small: Annotated[Any, Sql(type="int4")] = 1
    large: Annotated[Any, Sql(type="int8", rule=">= 0")] = 1
    content: Annotated[Any | None, Sql(type="int8", content_key=True)] = None
    text: Annotated[Any, Sql(type="text")] = ""
    side: Annotated[Any, Sql(type="text", rule=("buy", "sell"))] = "buy"
    flag: Annotated[Any, Sql(type="bool")] = True
    tiny: Annotated[Any, Sql(type="int2", rule="> 0")] = 1
    single: Annotated[Any, Sql(type="float4", rule=">= 0")] = 1.0
    name: Annotated[Any, Sql(type="varchar")] = ""
    day: Annotated[Any, Sql(type="date")] = date(2025, 1, 1)
    uid: Annotated[Any, Sql(type="uuid")] = UUID(int=1)
    data: Annotated[Any, Sql(type="bytea")] = b""
    document: Annotated[Any, Sql(type="jsonb")] = "{}"


EVERYTHING = Table("everything", Everything, key=("small", "timestamp"))
assert {column.type for column in EVERYTHING.columns} == ENCODED_TYPES
ENCODER = RowEncoder(EVERYTHING)
COLUMNS = EVERYTHING.column_names


class Raising(tzinfo):
    """A zone that does not know its offset: a datetime that has a tzinfo and is naive all the same."""

    def utcoffset(self, when: datetime | None) -> None:
        return None

    dst = utcoffset

    def tzname(self, when: datetime | None) -> str:
        return "nowhere"


class LikeAnInt:
    def __index__(self) -> int:
        return 7


class DecimalLike(Decimal):
    """A subclass whose text is none."""

    def __str__(self) -> str:
        return "not a number"


HOSTILE: list[Any] = [
    None, True, False, 0, -0.0, 1, -1, 0.0, 0.1, 1e-12, 1e15, 5e-324, 1.7976931348623157e308,
    float("nan"), float("inf"), float("-inf"), np.int64(5), np.int64(-5), np.uint64(2**64 - 1), np.float64(0.1),
    np.float64("nan"), np.float32(0.5), np.bool_(True), np.str_("1.5"), np.bytes_(b"1.5"), np.datetime64("2024-01-01"),
    LikeAnInt(), DecimalLike("1.5"), DecimalLike("NaN"),
    2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400,
    10**131072 - 1, 10**131072, -(10**131072), 2**435412, -(2**435413),
    Decimal("NaN"), Decimal("sNaN"), Decimal("-sNaN123"), Decimal("NaN5"), Decimal("Infinity"), Decimal("-Infinity"),
    Decimal("1E-16383"), Decimal("1E-16384"), Decimal("1E+131071"), Decimal("1E+131072"), Decimal("0E-16384"),
    Decimal("0E+999999"), Decimal("1E+1073741824"), Decimal("-0"),
    "", " ", "1", " 1", "1 ", " 1 ", "1\n", "1_000", "1,5", "+1", "++1", "-1", "-0", "+-1", "1.", ".5", ".",
    "-.5", "1.5.2", "1.5e5.5",
    "1e5", "1E5", "1e+5", "1e", "1e+", "e5", ".e5", "1e5.5", "1e-400", "1e-16383", "1e-16384", "0e-16384", "1e131071",
    "1e131072", "0e131072", "0.1e131072", "1e1073741823", "0e1073741823", "1e1073741824", "0e1073741824",
    "1e-1073741823", "-1e1073741824", "1e" + "0" * 5000 + "1", "1e" + "9" * 5000, "1e-" + "9" * 5000, "9" * 131072,
    "9" * 131073, "0" * 200_000 + "1", "0." + "0" * 16382 + "1", "0." + "0" * 16383 + "1", "0." + "0" * 16384,
    "nan", "NaN", "-nan", "+NAN", "sNaN", "nan1", "inf", "-Inf", "Infinity", "infinit", "ınf", "Infinıty",
    "٣", "３", "1e٣", "²", "½", "−1", "0x10", "1\0", "\0", "nan\0", "\ud800", "1\ud800",
    b"1.5", b"-1", b" 1", b"nan", b"\xff", b"1\0", b"", "1".encode("utf-16"), bytearray(b"1.5"), memoryview(b"1"),
    "buy", "sell", "BUY", "buy ", "人生K线/USDT", "a\0b", "é", "x" * 100_000,
    NOW, datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=Raising()), datetime(2009, 1, 1, tzinfo=UTC),
    datetime(2008, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
    datetime(2009, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))),
    NOW + timedelta(hours=23), NOW + timedelta(hours=25), NOW + timedelta(days=30), NOW + timedelta(days=32),
    NOW.date(), NOW.timestamp(), 1_700_000_000_000, "2024-01-01T00:00:00Z",
    [], (), {}, object, 1j, 32767, 32768, -32769, 3.4e38, 3.5e38, 1e-45, 1e-46, 7e-46, date.min, date.max, UUID(int=0),
    str(UUID(int=0)), UUID(int=0).bytes, "0" * 32, memoryview(b"abcd")[::2], np.arange(3), np.arange(4)[::2],
    {"a": "\0"}, "\\u0000",
    {"a": float("nan")}, {1: 2}, {(1,): 2}, [NOW], {"a": "\ud800"}, msgspec.Raw(b"{"), [[]] * 3,
]  # fmt: skip

VALUES = st.one_of(
    st.sampled_from(HOSTILE),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.decimals(),
    st.booleans(),
    st.none(),
    st.text(),
    st.binary(max_size=12),
    st.text("0123456789.eE+-_ nNaAiIfFsS٣\0", max_size=12),
    st.from_regex(r"[+-]?[0-9]{0,25}\.?[0-9]{0,25}([eE][+-]?[0-9]{1,7})?", fullmatch=True),
    st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=-11, minutes=-30)))),
)


def refusal_of_validate(row: Row) -> tuple[str, str] | None:
    try:
        row.validate()
    except ValidationError as error:
        return error.column, error.rule
    return None


def refusal_of_encoder(encoder: RowEncoder, row: Row) -> tuple[str, str] | None:
    errors = encoder.encode([row]).errors
    return (errors[0].column, errors[0].rule) if errors else None


@pytest.mark.parametrize("column", COLUMNS)
def test_hostile_value_in_every_type_is_refused_by_both_or_by_none(column: str) -> None:
    for value in HOSTILE:
        row = msgspec.structs.replace(Everything(), **{column: value})
        assert refusal_of_validate(row) == refusal_of_encoder(ENCODER, row), f"{type(value)} {str(value)[:60]!r}"


@settings(max_examples=600, deadline=None)
@given(column=st.sampled_from(COLUMNS), value=VALUES)
@example(column="number", value="1_000")
def test_any_value_in_any_column_is_refused_by_both_or_by_none(column: str, value: Any) -> None:
    row = msgspec.structs.replace(Everything(), **{column: value})
    assert refusal_of_validate(row) == refusal_of_encoder(ENCODER, row)


@settings(max_examples=200, deadline=None)
@given(values=st.dictionaries(st.sampled_from(COLUMNS), VALUES, min_size=2))
def test_first_of_several_broken_rules_is_the_same_for_both(values: dict[str, Any]) -> None:
    row = msgspec.structs.replace(Everything(), **values)
    assert refusal_of_validate(row) == refusal_of_encoder(ENCODER, row)


@settings(max_examples=300, deadline=None)
@given(table=st.sampled_from(BUILT_IN_TABLES), data=st.data())
def test_built_in_models_and_their_encoders_agree(table: Table, data: st.DataObject) -> None:
    good: dict[str, Any] = {"timestamptz": NOW, "text": "buy", "bool": True, "float8": 1.5}
    values = {column.name: good.get(column.type, 1) for column in table.columns}
    row = table.model(**values)
    assert isinstance(row, Row)
    assert refusal_of_validate(row) is None
    column = data.draw(st.sampled_from(table.column_names))
    changed = msgspec.structs.replace(row, **{column: data.draw(VALUES)})
    assert refusal_of_validate(changed) == refusal_of_encoder(RowEncoder(table), changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bid_price": float("nan")}, "book_ticker_snapshots.bid_price: nan must be finite"),
        ({"bid_price": 0}, "book_ticker_snapshots.bid_price: 0 must be > 0"),
        ({"bid_qty": "-1"}, "book_ticker_snapshots.bid_qty: '-1' must be >= 0"),
        ({"timestamp": datetime(2024, 1, 1)}, "must be aware"),
        ({"timestamp": 1_700_000_000}, "time_unit named"),
        ({"symbol_id": None}, "book_ticker_snapshots.symbol_id: None must not be NULL"),
        ({"update_type": "a\0"}, "must not contain NUL"),
    ],
)
def test_refusal_names_table_field_value_and_rule(changes: dict[str, Any], message: str) -> None:
    row = models.BookTickerSnapshot(timestamp=NOW, symbol_id=1, bid_price=1, ask_price=2)
    row.validate()
    with pytest.raises(ValidationError) as caught:
        msgspec.structs.replace(row, **changes).validate()
    assert message in str(caught.value)
