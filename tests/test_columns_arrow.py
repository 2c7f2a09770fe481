"""Arrow tables of the libraries that people have: pyarrow, pandas, Polars, DuckDB."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_columns import OTHER, as_rows, keeps_refused, same
from wire import WHEN, WIDE

from pgtick._fast.encode import RowEncoder
from pgtick.errors import ValidationError
from pgtick.tables import BOOK_TICKERS, TRADES

pa = pytest.importorskip("pyarrow")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lists(draw: st.DrawFn, n: int, values: st.SearchStrategy[Any]) -> list[Any]:
    found: list[Any] = draw(st.lists(st.none() | values, min_size=n, max_size=n))
    return found


@st.composite
def arrow_numbers(draw: st.DrawFn, n: int) -> tuple[Any, list[Any]]:
    kind = draw(st.sampled_from(["decimal128", "decimal256", "float64", "float32", "int", "text"]))
    if kind.startswith("decimal"):
        digits = 38 if kind == "decimal128" else 76
        scale = draw(st.integers(-5, digits))
        most = 10**digits - 1
        values = lists(draw, n, st.integers(-most, most) | st.integers(-(10**9), 10**9))
        # Not pa.array: it cannot make every decimal of a negative scale.
        data = b"".join((v or 0).to_bytes(16 if digits == 38 else 32, "little", signed=True) for v in values)
        valid = np.packbits(np.array([v is not None for v in values], bool), bitorder="little").tobytes()
        buffers = [pa.py_buffer(valid), pa.py_buffer(data)]
        array = pa.Array.from_buffers(getattr(pa, kind)(digits, scale), n, buffers)
        return array, [v if v is None else Decimal(f"{v}e{-scale}") for v in values]
    if kind == "float64":
        values = lists(draw, n, st.floats())
        return pa.array(values, "f8", from_pandas=False), values
    if kind == "float32":
        values = lists(draw, n, st.floats(width=32, allow_nan=False, allow_infinity=False))
        return pa.array(values, "f4"), [v if v is None else repr(np.float32(v).item()) and short(v) for v in values]
    if kind == "int":
        name = draw(st.sampled_from(["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]))
        bits = int(name.strip("uint"))
        low, high = (0, 2**bits - 1) if name[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        values = lists(draw, n, st.integers(low, high))
        return pa.array(values, name), values
    values = lists(draw, n, st.sampled_from(["1.50", "x", "1e-9", "-0.0", "NaN"]))
    return pa.array(values, "utf8"), values


def short(value: float) -> str:
    text = np.format_float_positional(np.float32(value), unique=True, trim="-")
    return "0" if text == "-0" else text


@st.composite
def arrow_texts(draw: st.DrawFn, n: int) -> tuple[Any, list[Any]]:
    values = lists(draw, n, st.text(max_size=20) | st.sampled_from(["buy", "sell"]))
    type_ = draw(st.sampled_from([pa.utf8(), pa.large_utf8(), pa.string_view(), None]))
    if type_ is None:
        return pa.array(values, "utf8").dictionary_encode(), values
    return pa.array(values, type_), values


@st.composite
def arrow_times(draw: st.DrawFn, n: int) -> tuple[Any, list[Any]]:
    unit, ns = draw(st.sampled_from([("s", 10**9), ("ms", 10**6), ("us", 1000), ("ns", 1)]))
    after = st.integers(0, 86400 * 10**9 * 700)
    counts = lists(draw, n, after.map(lambda after: (1_700_000_000 * 10**9 + after) // ns))
    values = [c if c is None else EPOCH + timedelta(microseconds=c * ns // 1000) for c in counts]
    return pa.array(counts, "int64").cast(pa.timestamp(unit, tz="Asia/Tokyo")), values


def cut(draw: st.DrawFn, array: Any) -> Any:
    """Return an equal array that is a slice of a longer one, perhaps in chunks."""
    if len(array) and draw(st.booleans()):
        head, tail = array.slice(0, 1), array.slice(len(array) - 1)
        array = pa.concat_arrays([tail, head, array, head]).slice(2, len(array))
    at = draw(st.integers(0, len(array)))
    return pa.chunked_array([array.slice(0, at), array.slice(at)], array.type)


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_arrow_becomes_what_its_rows_become(data: st.DataObject) -> None:
    draw: Any = data.draw
    n = draw(st.integers(0, 6))
    arrays: dict[str, Any] = {}
    rows: dict[str, list[Any]] = {}
    kinds: dict[str, Any] = {"timestamp": arrow_times(n), "num": arrow_numbers(n), "name": arrow_texts(n)}
    kinds |= {"positive": arrow_numbers(n), "side": arrow_texts(n), "later": arrow_times(n)}
    for name, kind in kinds.items():
        array, rows[name] = draw(kind)
        arrays[name] = cut(draw, array)
    rows["flag"] = lists(draw, n, st.booleans())
    arrays["flag"] = cut(draw, pa.array(rows["flag"], pa.bool_()))
    rows["i4"] = lists(draw, n, st.integers(0, 2**32 - 1))
    arrays["i4"] = cut(draw, pa.array(rows["i4"], pa.uint32()))
    encoder = RowEncoder(WIDE)
    expected = encoder.encode(as_rows(rows, n))
    table = pa.table(arrays)
    same(encoder.encode_columns(table), expected)
    same(encoder.encode_columns(pa.RecordBatchReader.from_batches(table.schema, table.to_batches())), expected)
    same(encoder.encode_columns(arrays), expected)
    keeps_refused(WIDE, table, as_rows(rows, n))
    if n:
        same(encoder.encode_columns(table.combine_chunks().to_batches()[0]), expected)


def test_other_types_of_arrow() -> None:
    import uuid

    day, key = date(2025, 3, 1), uuid.UUID(int=7)
    columns = {
        "timestamp": pa.array([WHEN, WHEN], pa.timestamp("us", "UTC")),
        "i2": pa.array([-5, None], pa.int64()),
        "f4": pa.array([0.1, None], pa.float64()),
        "day": pa.array([day, None], pa.date32()),
        "key": pa.array([key.bytes, None], pa.binary(16)),
        "raw": pa.array([b"\0x", None], pa.large_binary()),
        "extra": pa.nulls(2),
    }
    rows = [
        {"timestamp": WHEN, "i2": -5, "f4": 0.1, "day": day, "key": key, "raw": b"\0x"},
        {"timestamp": WHEN},
    ]
    encoder = RowEncoder(OTHER)
    same(encoder.encode_columns(pa.table(columns)), encoder.encode(rows))
    same(encoder.encode_columns({**columns, "key": pa.array([str(key), None])}), encoder.encode(rows))
    with pytest.raises(ValidationError, match=r"other\.extra: 'Arrow utf8' cannot be encoded as jsonb"):
        encoder.encode_columns({**columns, "extra": pa.array(["{}", None])})


@pytest.mark.parametrize(
    ("column", "array", "message"),
    [
        ("later", pa.array([WHEN.replace(tzinfo=None)]), "wide.later: 'Arrow timestamp' must have a zone"),
        ("num", pa.array([[1]]), "wide.num: 'Arrow list' cannot be encoded as numeric"),
        ("num", pa.array([{"a": 1}]), "wide.num: 'Arrow struct' cannot be encoded"),
        ("num", pa.array([[("a", 1)]], pa.map_(pa.utf8(), pa.int8())), "wide.num: 'Arrow map' cannot be encoded"),
        ("num", pa.array([True]), "wide.num: 'Arrow bool' cannot be encoded as numeric"),
        ("num", pa.array([timedelta(1)]), "wide.num: 'Arrow duration' cannot be encoded as numeric"),
        ("name", pa.array([b"x"]), "wide.name: 'Arrow binary' cannot be encoded as text"),
        ("i4", pa.array([Decimal(1)]), "wide.i4: 'Arrow decimal' cannot be encoded as int4"),
        ("i4", pa.array([1, 2]), "wide.i4: 2 values must be 1, as timestamp has"),
    ],
)
def test_a_type_that_does_not_fit_is_refused_by_name(column: str, array: Any, message: str) -> None:
    stamps = pa.array([WHEN], pa.timestamp("us", "UTC"))
    encoder = RowEncoder(WIDE)
    with pytest.raises(ValidationError, match=message):
        encoder.encode_columns({"timestamp": stamps, column: array})
    with pytest.raises(ValidationError, match=r"wide\.num: .* takes no mask"):
        encoder.encode_columns({"timestamp": stamps, "num": pa.array([1])}, masks={"num": [True]})


def trades(n: int = 1000) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
    columns: dict[str, list[Any]] = {
        "timestamp": [WHEN + timedelta(milliseconds=i) for i in range(n)],
        "symbol_id": [i % 7 for i in range(n)],
        "price": [Decimal(i + 1).scaleb(-3) for i in range(n)],
        "quantity": [i / 8 for i in range(n)],
        "side": [("buy", "sell")[i % 2] for i in range(n)],
        "trade_id": [None if i % 3 else f"a trade with a long name, {i}" for i in range(n)],
        "is_buyer": [None if i % 5 == 0 else i % 2 == 0 for i in range(n)],
    }
    return columns, as_rows(columns, n)


def test_pandas_through_arrow() -> None:
    pd = pytest.importorskip("pandas", minversion="2.2")
    columns, rows = trades()
    encoder = RowEncoder(TRADES)
    same(encoder.encode_columns(pd.DataFrame(columns)), encoder.encode(rows))
    frame = pd.DataFrame(columns).astype({"side": "category"})
    same(encoder.encode_columns(frame), encoder.encode(rows))
    same(encoder.encode_columns({name: frame[name] for name in frame}), encoder.encode(rows))


def test_polars_through_arrow() -> None:
    pl = pytest.importorskip("polars")
    columns, rows = trades()
    frame = pl.DataFrame(columns, schema_overrides={"price": pl.Decimal(20, 3)})
    encoder = RowEncoder(TRADES)
    same(encoder.encode_columns(frame), encoder.encode(rows))
    same(encoder.encode_columns(frame.with_columns(pl.col("side").cast(pl.Categorical))), encoder.encode(rows))
    same(encoder.encode_columns({name: frame[name] for name in frame.columns}), encoder.encode(rows))
    same(encoder.encode_columns(pl.concat([frame[:400], frame[400:]], rechunk=False)), encoder.encode(rows))


def test_duckdb_through_arrow() -> None:
    duckdb = pytest.importorskip("duckdb")
    _, rows = trades(5000)
    query = """
        SELECT to_timestamp(1740830400) + interval 123456 microseconds + i * interval 1 millisecond AS timestamp,
            (i % 7)::int AS symbol_id, ((i + 1)::decimal(18, 3) / 1000)::decimal(18, 3) AS price, i / 8 AS quantity,
            CASE i % 2 WHEN 0 THEN 'buy' ELSE 'sell' END AS side,
            CASE i % 3 WHEN 0 THEN 'a trade with a long name, ' || i END AS trade_id,
            CASE WHEN i % 5 <> 0 THEN i % 2 = 0 END AS is_buyer
        FROM range(5000) AS t(i)
    """
    batch = RowEncoder(TRADES).encode_columns(duckdb.sql(query))
    same(batch, RowEncoder(TRADES).encode(rows))


def test_a_column_is_no_table() -> None:
    with pytest.raises(ValidationError, match=r"wide.\*: 'Arrow int64' must be a table"):
        RowEncoder(WIDE).encode_columns(pa.chunked_array([[1, 2]]))


def test_scaled_integers_of_arrow() -> None:
    columns = {"timestamp": WHEN, "symbol_id": 5, "ask_price": "2", "update_type": "x"}
    encoder = RowEncoder(BOOK_TICKERS)
    batch = encoder.encode_columns({**columns, "bid_price": pa.array([150, 7])}, scales={"bid_price": 2})
    same(batch, encoder.encode([{**columns, "bid_price": "1.50"}, {**columns, "bid_price": "0.07"}]))
