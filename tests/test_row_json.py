"""A row in quarantine: exact there and back, for every type, and what was refused stays refused."""

from __future__ import annotations

import json
import math
import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgtick.models import EventTime, Row, Sql
from pgtick.rules import ENCODED_TYPES, broken_rule
from pgtick.tables import TRADES, Table
from pgtick.writer.encoders import encoder_of
from pgtick.writer.row_json import Unfit, from_json, read_back, row_values, to_json, types_of, value_of

WHEN = datetime(2026, 11, 24, 1, 2, 3, 456789, tzinfo=UTC)


def table_of(type_name: str) -> Table:
    fields: dict[str, Any] = {
        "timestamp": EventTime,
        "x": Annotated[Any, Sql(type=type_name)],
        "y": Annotated[Any | None, Sql(type="text")],
    }
    model = type("Model", (Row,), {"__annotations__": fields, "__module__": __name__, "y": None}, kw_only=True)
    return Table("t", model, key=("timestamp",))


TABLES = {name: table_of(name) for name in sorted(ENCODED_TYPES)}
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
ZONES = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


class Side(str, Enum):  # noqa: UP042  the older way, whose str() is not its value
    BUY = "buy"


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError

    def __index__(self) -> int:
        raise RuntimeError

    def utcoffset(self) -> timedelta:
        raise RuntimeError


ANYTHING: st.SearchStrategy[Any] = st.one_of(
    st.integers(),
    st.integers(-(1 << 64), 1 << 64),
    st.floats(),
    st.decimals(),
    TEXTS,
    st.booleans(),
    st.binary(max_size=8),
    st.binary(max_size=8).map(bytearray),
    st.datetimes(datetime(2009, 1, 1), datetime(2026, 11, 1), timezones=st.one_of(st.none(), ZONES)),
    st.dates(),
    st.uuids(),
    st.uuids().map(str),
    JSONS,
    JSONS.map(lambda value: msgspec.Raw(json.dumps(value).encode())),
    st.binary(max_size=4).map(msgspec.Raw),
    st.sampled_from(
        [Side.BUY, object(), np.int32(7), np.float64(0.1), np.float32(0.1), np.bool_(True), b"1.50", "1e9"]
    ),
    st.sampled_from([10**5000, -(10**40), Decimal("1e-400"), Decimal("sNaN"), "-0", -0.0, math.nan, "NaN", "Infinity"]),
    st.sampled_from(["5", "true", "2026-11-24", "\\x00", '{"a": 1}', "null", "", {"repr": "5"}, {1, 2}, msgspec.Raw()]),
)


def is_json(raw: msgspec.Raw) -> bool:
    try:
        return broken_rule(json.loads(bytes(raw), parse_int=str, parse_float=str), Sql(type="jsonb")) is None
    except ValueError:
        return False


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(sorted(ENCODED_TYPES)), ANYTHING)
@example("jsonb", {"x\0": "\ud800"})
@example("jsonb", msgspec.Raw(b"1.00000000000000000000000000001e400"))
@example("numeric", 1.0)
@example("int8", "5")
@example("text", 5)
def test_row_that_waited_encodes_to_the_same_bytes_or_is_refused_again(type_name: str, value: Any) -> None:
    table, types = TABLES[type_name], types_of(TABLES[type_name])
    row = {"timestamp": WHEN, "x": value, "y": "é"}
    text = to_json(types, row_values(table, row))
    assert text.isascii()
    again = from_json(types, text)
    first, second = (encoder_of(table).encode([one]) for one in (row, again))
    if type_name == "jsonb" and isinstance(value, msgspec.Raw) and not is_json(value):  # the server refuses it
        assert second.errors
        return
    assert first.rows() == second.rows()
    assert [error.column for error in first.errors] == [error.column for error in second.errors]
    # A second wait changes nothing any more.
    assert to_json(types, again) == text or type_name == "jsonb"


@pytest.mark.parametrize(
    ("type_name", "value", "form"),
    [
        ("numeric", Decimal("1.50"), '"1.50"'),
        ("numeric", 0.1, "0.1"),
        ("numeric", math.nan, '"NaN"'),
        ("int8", 1 << 53, "9007199254740992"),
        ("int8", (1 << 53) + 1, '"9007199254740993"'),
        ("text", "a\0\ud800", '"a\\u0000\\ud800"'),
        ("text", Side.BUY, '"buy"'),
        ("text", 5, '{"repr": "5"}'),
        ("timestamptz", WHEN.astimezone(timezone(timedelta(hours=2))), '"2026-11-24T01:02:03.456789+00:00"'),
        ("timestamptz", datetime(2026, 1, 1), '"2026-01-01T00:00:00.000000"'),
        ("date", date(2026, 1, 2), '"2026-01-02"'),
        ("bool", True, "true"),
        ("float8", 1e300, "1e+300"),
        ("float8", -math.inf, '"-Infinity"'),
        ("bytea", b"\x00\xff", '"\\\\x00ff"'),
        ("uuid", uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        ("jsonb", {"a": [1, None]}, '"{\\"a\\":[1,null]}"'),
        ("jsonb", {1, 2}, '{"repr": "{1, 2}"}'),
        ("numeric", None, "null"),
    ],
)
def test_form_is_what_the_page_says(type_name: str, value: Any, form: str) -> None:
    assert to_json({"x": type_name}, {"x": value}) == f'{{"x": {form}}}'


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(ENCODED_TYPES)), st.data())
def test_what_the_server_gave_back_for_naming_encodes_to_the_same_bytes(type_name: str, data: st.DataObject) -> None:
    table = TABLES[type_name]
    value = data.draw(ANYTHING)
    batch = encoder_of(table).encode([(WHEN, value, None)])
    if batch.n_rows and not (isinstance(value, msgspec.Raw) and not is_json(value)):
        text = to_json(types_of(table), read_back(table, encoder_of(table).values(batch, 0)))
        again = encoder_of(table).encode([from_json(types_of(table), text)])
        assert not again.errors
        if type_name not in ("numeric", "jsonb"):  # read back in another notation of the same value
            assert again.rows() == batch.rows()


def test_rows_of_every_kind_become_the_same_values() -> None:
    values = {"timestamp": WHEN, "symbol_id": 1, "price": "0", "quantity": 1, "side": "buy", "trade_id": "7"}
    rest = {name: None for name in TRADES.column_names if name not in values}
    row = TRADES.model(**values)
    whole = {name: getattr(row, name) for name in TRADES.column_names}
    assert {name: whole[name] for name in values} == values
    assert row_values(TRADES, row) == whole
    assert row_values(TRADES, tuple(whole.values())) == whole
    assert row_values(TRADES, {**values, "id": 7}) == values
    assert set(rest) | set(values) == set(whole)


@pytest.mark.parametrize("n_fields", [1, 2, 4, 5])
def test_tuple_of_another_length_is_kept_whole_and_stays_refused(n_fields: int) -> None:
    table = TABLES["text"]
    row = (WHEN, "a", "b", "c", "d")[:n_fields]
    values = row_values(table, row)
    assert [value for name, value in values.items() if name != "*"] == list(row)
    again = from_json(types_of(table), to_json(types_of(table), values))
    assert encoder_of(table).encode([again]).errors


def test_row_without_a_field_stays_refused_though_the_column_may_be_null() -> None:
    class Partial:
        timestamp = WHEN
        x = "a"

        @property
        def y(self) -> str:
            raise RuntimeError

    table = TABLES["text"]
    again = from_json(types_of(table), to_json(types_of(table), row_values(table, Partial())))
    assert again == {"timestamp": WHEN, "x": "a", "y": Unfit("<no value: RuntimeError>")}
    assert encoder_of(table).encode([again]).errors[0].column == "y"


@pytest.mark.parametrize(
    ("time_unit", "count"),
    [
        ("s", 1_700_000_000),
        ("ms", 1_700_000_000_000),
        ("us", 1_700_000_000 * 10**6),
        ("ns", 1_700_000_000 * 10**9 + 999),
    ],
)
def test_integer_time_keeps_its_unit(time_unit: str, count: int) -> None:
    row = {"timestamp": count, "x": "a"}
    assert row_values(TABLES["text"], row, time_unit=time_unit)["timestamp"] == datetime.fromtimestamp(1.7e9, UTC)
    again = row_values(TABLES["text"], {"timestamp": 10**30, "x": "a"}, time_unit=time_unit)
    assert again["timestamp"] == 10**30


def test_value_too_long_for_the_server_keeps_its_beginning_only() -> None:
    text = to_json({"x": "text", "y": "bytea"}, {"x": "a" * 20_000_000, "y": bytes(20_000_000)})
    assert len(text) < 300


@pytest.mark.parametrize(
    ("type_name", "text", "value"),
    [
        ("int4", "-5", -5),
        ("int4", "5.0", Unfit("'5.0'")),
        ("float8", "0.5", 0.5),
        ("bool", "true", True),
        ("bool", "yes", "yes"),
        ("timestamptz", "2026-11-24T01:02:03.456789Z", WHEN),
        ("timestamptz", "yesterday", Unfit("'yesterday'")),
        ("bytea", "\\xff", b"\xff"),
        ("jsonb", "{", Unfit("'{'")),
        ("text", "null", "null"),
    ],
)
def test_text_of_a_user_is_read_by_the_column_s_type(type_name: str, text: str, value: object) -> None:
    assert value_of(type_name, text) == value


@pytest.mark.parametrize("type_name", sorted(ENCODED_TYPES))
def test_value_whose_methods_raise_keeps_its_type_s_name(type_name: str) -> None:
    said = "<Hostile, whose repr raised RuntimeError>"
    assert to_json({"x": type_name}, {"x": Hostile()}) == f'{{"x": {{"repr": "{said}"}}}}'


def test_text_that_is_no_object_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="a row is a JSON object"):
        from_json({}, "[1]")
