"""NumPy columns against the same rows: equal bytes, keys, days and refusals, whatever the columns are."""

from __future__ import annotations

import threading
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import DAY, WHEN, WIDE, fields, untraced

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick.errors import RowError, ValidationError
from pgtick.models import EventTime, Row, Sql
from pgtick.tables import BOOK_TICKERS, TRADES, Table

pytestmark = pytest.mark.core

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def same(columns: EncodedBatch, rows: EncodedBatch) -> None:
    """Hold that columns became what rows became."""
    assert [(e.index, e.column, e.rule) for e in columns.errors] == [(e.index, e.column, e.rule) for e in rows.errors]
    assert columns.indices == rows.indices
    assert columns.days == rows.days
    assert b"".join(columns.chunks()) == b"".join(rows.chunks())


def as_rows(columns: dict[str, list[Any]], n: int) -> list[dict[str, Any]]:
    return [{name: values[i] for name, values in columns.items()} for i in range(n)]


def keeps_refused(table: Table, given_: Any, rows: list[dict[str, Any]], **options: Any) -> None:
    """Hold that of a refused row each value that its column takes alone is kept as it would be stored, others raw."""
    encoder = RowEncoder(table)
    refused: list[tuple[tuple[Any, ...], dict[str, object]]] = []
    errors = [
        error for batch in encoder.column_batches(given_, 2, refused=refused, **options) for error in batch.errors
    ]
    for error, (values, unfit) in zip(errors, refused, strict=True):
        assert unfit.get(error.column, None) is error.value or repr(unfit[error.column]) == repr(error.value)
        for place, name in enumerate(table.column_names):
            alone = encoder.encode([{"timestamp": WHEN, name: rows[error.index].get(name)}])
            if alone.errors:
                assert values[place] is None
                assert name in unfit or rows[error.index].get(name) is None
            else:
                assert name not in unfit
                assert repr(values[place]) == repr(encoder.values(alone, 0)[place])


# ---------------------------------------------------------------- what is drawn: an array and its Python values


def shown(draw: st.DrawFn, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an equal array that lies in memory in another way."""
    way = draw(st.sampled_from(["as it is", "every second", "backwards", "swapped", "read-only", "unaligned"]))
    if way == "every second":
        return np.repeat(array, 2)[::2]
    if way == "backwards":
        return array[::-1].copy()[::-1]
    if way == "swapped":
        return array.astype(array.dtype.newbyteorder())
    if way == "read-only":
        array.flags.writeable = False
    if way == "unaligned":
        packed = np.empty(len(array), dtype=[("pad", "u1"), ("x", array.dtype)])
        packed["x"] = array
        return packed["x"]
    return array


UNITS_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "25us": 25 * 10**3}
UNITS_NS |= {"m": 60 * 10**9, "h": 3600 * 10**9, "D": 86400 * 10**9, "W": 7 * 86400 * 10**9}
WIDTHS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
TEXTS = st.text(st.characters(exclude_categories=()), max_size=6).map(lambda text: text.rstrip("\0"))


@st.composite
def ints(draw: st.DrawFn, n: int) -> tuple[Any, list[Any]]:
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(WIDTHS)))
    info = np.iinfo(dtype)
    values = draw(st.lists(st.integers(int(info.min), int(info.max)), min_size=n, max_size=n))
    return np.array(values, dtype), values


@st.composite
def floats(draw: st.DrawFn, n: int) -> tuple[Any, list[Any]]:
    ticks = st.integers(-(10**9), 10**9).map(lambda tick: tick / 1000)
    values = draw(st.lists(st.floats() | ticks, min_size=n, max_size=n))
    return np.array(values, "f8"), values


@st.composite
def times(draw: st.DrawFn, n: int) -> tuple[Any, list[Any]]:
    unit, ns = draw(st.sampled_from(list(UNITS_NS.items())))
    near = st.integers(0, 86400 * 10**9 * 700).map(lambda after: (1_700_000_000 * 10**9 + after) // ns)
    counts = draw(st.lists(near | st.integers(0, 2**62 // ns), min_size=n, max_size=n))
    values = [EPOCH + timedelta(microseconds=count * ns // 1000) for count in counts]
    return np.array(counts, "i8").view(f"M8[{unit}]"), values


@st.composite
def texts(draw: st.DrawFn, n: int) -> tuple[Any, list[Any]]:
    values = draw(st.lists(TEXTS | st.sampled_from(["buy", "sell"]), min_size=n, max_size=n))
    kind = draw(st.sampled_from(["U", "O", "list"]))
    return (values if kind == "list" else np.array(values, object if kind == "O" else "U8")), values


@st.composite
def numbers(draw: st.DrawFn, n: int) -> tuple[Any, list[Any], int | None]:
    kind = draw(st.sampled_from(["float", "int", "fixed", "text", "bytes", "object"]))
    if kind == "float":
        return *draw(floats(n)), None
    if kind in ("int", "fixed"):
        array, values = draw(ints(n))
        if kind == "int":
            return array, values, None
        scale = draw(st.integers(-3, 20))
        return array, [Decimal(value).scaleb(-scale) for value in values], scale
    written = st.decimals(allow_nan=True, places=4, min_value=-(10**20), max_value=10**20).map(str)
    values = draw(st.lists(written | st.sampled_from(["x", "", "1e5", "é"]), min_size=n, max_size=n))
    if kind == "bytes":
        return np.array([value.encode() for value in values], "S40"), values, None
    return np.array(values, "U40" if kind == "text" else object), values, None


@st.composite
def wide_columns(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, int], dict[str, Any], int]:
    n = draw(st.integers(0, 5))
    given: dict[str, Any] = {}
    rows: dict[str, list[Any]] = {}
    scales: dict[str, int] = {}
    masks: dict[str, Any] = {}
    kinds: dict[str, Any] = {"timestamp": times(n), "later": times(n), "i4": ints(n), "i8": ints(n), "name": texts(n)}
    kinds |= {"f8": floats(n) | ints(n), "num": numbers(n), "positive": numbers(n), "not_negative": numbers(n)}
    kinds |= {"side": texts(n)}
    for name, kind in kinds.items():
        if name not in ("timestamp", "num") and draw(st.booleans()):
            continue
        array, values, *scale = draw(kind)
        if isinstance(array, np.ndarray):
            array = shown(draw, array)
            if name != "timestamp" and draw(st.booleans()):
                mask = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
                values = [None if masked else value for value, masked in zip(values, mask, strict=True)]
                if draw(st.booleans()):
                    array = np.ma.MaskedArray(array, mask)
                else:
                    masks[name] = mask
        if scale and scale[0] is not None:
            scales[name] = scale[0]
        given[name], rows[name] = array, values
    return given, rows, scales, masks, n


@settings(max_examples=1000, deadline=None)
@given(wide_columns())
def test_columns_become_what_their_rows_become(
    drawn: tuple[dict[str, Any], dict[str, list[Any]], dict[str, int], dict[str, Any], int],
) -> None:
    given_, rows, scales, masks, n = drawn
    encoder = RowEncoder(WIDE)
    same(encoder.encode_columns(given_, scales=scales, masks=masks), encoder.encode(as_rows(rows, n)))
    keeps_refused(WIDE, given_, as_rows(rows, n), scales=scales, masks=masks)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, "7"]), st.booleans()), max_size=12))
def test_content_keys_are_made_as_for_rows(drawn: list[tuple[int, str | None, bool]]) -> None:
    rows = [
        {
            "timestamp": WHEN,
            "symbol_id": 5,
            "price": price,
            "quantity": 1.5,
            "side": "buy",
            "trade_id": trade_id,
            "is_buyer": buyer,
        }
        for price, trade_id, buyer in drawn
    ]
    columns = {name: np.array([row[name] for row in rows], object) for name in ("price", "trade_id")}
    columns["is_buyer"] = np.array([row["is_buyer"] for row in rows], bool)
    scalars = {"timestamp": WHEN, "symbol_id": 5, "quantity": 1.5, "side": "buy"}
    encoder = RowEncoder(TRADES)
    same(encoder.encode_columns({**columns, **scalars}), encoder.encode(rows))
    books = [{"timestamp": WHEN, "symbol_id": i, "bid_price": 1, "ask_price": 2, "update_type": "x"} for i in range(9)]
    encoder = RowEncoder(BOOK_TICKERS)
    columns = {name: np.array([row[name] for row in books]) for name in ("symbol_id", "bid_price")}
    given_ = {**columns, "timestamp": WHEN, "ask_price": "2", "update_type": "x"}
    same(encoder.encode_columns(given_), encoder.encode(books))
    with_mask = {"sequence_number": np.ma.MaskedArray(np.arange(9), True)}
    same(encoder.encode_columns({**given_, **with_mask}), encoder.encode(books))


# ---------------------------------------------------------------- single kinds


def one(column: str, array: Any, **options: Any) -> list[bytes | None]:
    batch = RowEncoder(WIDE).encode_columns({"timestamp": WHEN, column: array}, **options)
    if batch.errors:
        raise batch.errors[0]
    return [row[WIDE.column_names.index(column)] for row in fields(batch)]


def by_rows(column: str, values: list[Any], **options: Any) -> list[bytes | None]:
    batch = RowEncoder(WIDE).encode([{"timestamp": WHEN, column: value} for value in values], **options)
    assert not batch.errors
    return [row[WIDE.column_names.index(column)] for row in fields(batch)]


def test_a_float_of_four_bytes_is_its_own_shortest_text() -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 2**32, 5000, dtype="u4").view("f4")
    array = np.concatenate([array[np.isfinite(array)], np.array([0.1, -0.0, 1e-45, 3.4e38, 16777216], "f4")])
    texts_ = [np.format_float_positional(x, unique=True, trim="-") for x in array]
    texts_ = ["0" if text == "-0" else text for text in texts_]
    assert one("num", array) == by_rows("num", texts_)
    assert one("f8", array[array > 0]) == by_rows("f8", [float(x) for x in array[array > 0]])


def test_bools_bytes_and_nothing() -> None:
    assert one("flag", np.array([True, False])) == [b"\1", b"\0"]
    assert one("flag", np.array([2, 0], "u1").view(bool)) == [b"\1", b"\0"]
    assert one("name", np.array(["x", "é"], "U1"))[1] == "é".encode()
    assert one("name", np.array([b"ab\0\0", "人".encode()], "S4")) == [b"ab", "人".encode()]
    assert one("later", np.array(["2025-03-01", "NaT"], "M8[s]"))[1] is None
    assert one("num", [1, None, "2.50", Decimal("1e3"), 0.1]) == by_rows("num", [1, None, "2.50", Decimal("1e3"), 0.1])
    assert one("name", np.array(["a", "b"]), masks={"name": [True, False]}) == [None, b"b"]


def test_one_value_of_numpys_is_the_same_for_all_rows() -> None:
    scalars = {"i4": np.int64(5), "flag": np.bool_(True), "num": np.float32(0.1), "name": np.str_("x")}
    encoder = RowEncoder(WIDE)
    columns = {"timestamp": np.datetime64("2025-03-01T12:00:00.123456"), "i8": np.arange(3), **scalars}
    rows = [{"timestamp": WHEN, "i8": i, "i4": 5, "flag": True, "num": "0.1", "name": "x"} for i in range(3)]
    same(encoder.encode_columns(columns), encoder.encode(rows))
    same(encoder.encode_columns({**columns, "num": np.array(1)}, scales={"num": 1}), encoder.encode(rows))
    with pytest.raises(ValidationError, match=r"wide\.num: .* must be an array to have a scale or a mask"):
        encoder.encode_columns(columns, masks={"num": [True]})


def test_integer_times_count_the_unit_that_is_named() -> None:
    array = np.array([1_740_830_400_123_456_789], "i8")
    encoder = RowEncoder(BOOK_TICKERS)
    given_ = {"timestamp": array, "symbol_id": 5, "bid_price": 1, "ask_price": 2, "update_type": "x"}
    same(encoder.encode_columns(given_, time_unit="ns"), encoder.encode([{**given_, "timestamp": WHEN}]))
    with pytest.raises(ValidationError, match=r"timestamp: 'int64' must be an aware datetime, or an int with its"):
        encoder.encode_columns(given_)


class Other(Row, kw_only=True):
    """The types that the built-in tables do not have."""

    timestamp: EventTime
    i2: Annotated[int | None, Sql(type="int2")] = None
    f4: Annotated[float | None, Sql(type="float4")] = None
    day: Annotated[date | None, Sql(type="date")] = None
    key: Annotated[UUID | None, Sql(type="uuid")] = None
    raw: Annotated[bytes | None, Sql(type="bytea")] = None
    extra: Annotated[Any | None, Sql(type="jsonb")] = None


OTHER = Table("other", Other, key=("timestamp",))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_other_types_become_what_their_rows_become(data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 4))
    smalls, small_values = data.draw(ints(n))
    reals, real_values = data.draw(floats(n) | ints(n))
    columns: dict[str, Any] = {"i2": smalls, "f4": reals}
    days = data.draw(st.lists(st.dates(), min_size=n, max_size=n))
    keys = data.draw(st.lists(st.uuids(), min_size=n, max_size=n))
    raws = data.draw(st.lists(st.binary(max_size=5).map(lambda raw: raw.rstrip(b"\0")), min_size=n, max_size=n))
    extras: list[Any] = data.draw(st.lists(st.none() | st.dictionaries(TEXTS, st.floats()), min_size=n, max_size=n))
    key_array = data.draw(
        st.sampled_from([keys, np.array([str(key) for key in keys], "U36"), np.array([k.bytes for k in keys], "V16")])
    )
    columns |= {"day": np.array(days, "M8[D]"), "key": key_array, "raw": np.array(raws, "S5"), "extra": extras}
    rows = {"i2": small_values, "f4": real_values, "day": days, "key": keys, "raw": raws, "extra": extras}
    encoder = RowEncoder(OTHER)
    whole = [{"timestamp": WHEN, **row} for row in as_rows(rows, n)]
    same(encoder.encode_columns({"timestamp": WHEN, **columns}), encoder.encode(whole))
    keeps_refused(OTHER, {"timestamp": WHEN, **columns}, whole)


def test_a_date_is_whole_days_within_pythons_years() -> None:
    encoder = RowEncoder(OTHER)
    with pytest.raises(ValidationError, match=r"other\.day: 'datetime64\[s\]' cannot be encoded as date"):
        encoder.encode_columns({"timestamp": WHEN, "day": np.zeros(1, "M8[s]")})
    batch = encoder.encode_columns({"timestamp": WHEN, "day": np.array([-719163, 2932897, 0], "i8").view("M8[D]")})
    assert {error.rule for error in batch.errors} == {"must lie between 0001-01-01 and 9999-12-31"}
    assert batch.indices == [2]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (np.array(["a\0b"]), "must not contain NUL"),
        (np.array(["\ud800"]), "must be valid Unicode"),
        (np.array([0x110000], "u4").view("U1"), "must be valid Unicode"),
        (np.array([b"\xff"]), "must be valid Unicode"),
        (np.array([b"\xc0\x80"]), "must be valid Unicode"),
        (np.array([b"\xed\xa0\x80"]), "must be valid Unicode"),
        (np.array([b"\xf4\x90\x80\x80"]), "must be valid Unicode"),
        (np.array([b"abcdefgh\xe4\xba"]), "must be valid Unicode"),
        ([5], "must be a str"),
    ],
)
def test_text_that_is_none_is_refused(value: Any, rule: str) -> None:
    with pytest.raises(RowError) as caught:
        one("name", value)
    assert (caught.value.column, caught.value.index, caught.value.rule) == ("name", 0, rule)


def test_a_refused_value_is_named_as_python_has_it() -> None:
    def refused(column: str, array: Any, **options: Any) -> Any:
        with pytest.raises(RowError) as caught:
            one(column, array, **options)
        return caught.value.value

    assert refused("positive", np.array([-5], "i2"), scales={"positive": 1}) == Decimal("-0.5")
    assert refused("positive", np.array([-0.5], "f4")) == -0.5
    assert refused("i4", np.array([2**64 - 1], "u8")) == 2**64 - 1
    assert refused("side", np.array(["bought"])) == "bought"
    assert refused("side", np.array([b"bought"])) == b"bought"
    assert refused("side", ["bought"]) == "bought"
    assert refused("later", np.array(["1999-01-01"], "M8[D]")) == np.datetime64("1999-01-01")
    assert np.isnan(refused("num", np.array([np.nan])))


def test_a_refused_row_is_kept_whole() -> None:
    columns = {
        "timestamp": np.array(["2025-03-01T12:00:00.123456"] * 3, "M8[us]"),
        "symbol_id": 5,
        "bid_price": np.array([1, -2, 3], "i8"),
        "ask_price": np.array([0.1, np.nan, 0.2], "f4"),
        "bid_qty": np.ma.MaskedArray(np.array([0.1, 0.2, 0.3], "f4"), [False, False, True]),
        "ask_qty": ["1.5", Decimal("2.50"), "nothing"],
        "update_type": np.str_("x"),
    }
    refused: list[tuple[tuple[Any, ...], dict[str, object]]] = []
    encoder = RowEncoder(BOOK_TICKERS)
    (batch,) = encoder.column_batches(columns, 10, scales={"bid_price": 2}, refused=refused)
    assert [(error.index, error.column) for error in batch.errors] == [(1, "bid_price"), (2, "ask_qty")]
    named = [(dict(zip(BOOK_TICKERS.column_names, values, strict=True)), unfit) for values, unfit in refused]
    kept = {"timestamp": WHEN, "symbol_id": 5, "sequence_number": None, "update_type": "x"}
    assert named[0][0] == {
        **kept,
        "bid_price": None,
        "ask_price": None,
        "bid_qty": Decimal("0.2"),
        "ask_qty": Decimal("2.50"),
    }
    assert repr(named[0][1]) == "{'bid_price': Decimal('-0.02'), 'ask_price': nan}"
    assert named[1] == (
        {**kept, "bid_price": Decimal("0.03"), "ask_price": Decimal("0.2"), "bid_qty": None, "ask_qty": None},
        {"ask_qty": "nothing"},
    )


# ---------------------------------------------------------------- what is wrong with a whole column


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"bid": [1]}, {}, r"\.bid: \[1\] must be a column of the table"),
        ({"bid_price": np.array([1.5, 2])}, {}, r"\.bid_price: 2 values must be 3, as timestamp has"),
        ({"bid_price": np.ones((3, 1))}, {}, r"\.bid_price: \(3, 1\) must have one dimension"),
        ({"bid_price": np.ones(3, "c16")}, {}, r"\.bid_price: 'complex128' cannot be encoded as numeric"),
        ({"bid_price": np.ones(3, "f2")}, {}, r"\.bid_price: 'float16' cannot be encoded as numeric"),
        ({"bid_price": np.ones(3, bool)}, {}, r"\.bid_price: 'bool' cannot be encoded as numeric"),
        ({"bid_price": np.ones(3, "i8,i8")}, {}, r"\.bid_price: .* cannot be encoded as numeric"),
        ({"symbol_id": np.ones(3)}, {}, r"\.symbol_id: 'float64' cannot be encoded as int4"),
        ({"update_type": np.ones(3)}, {}, r"\.update_type: 'float64' cannot be encoded as text"),
        ({"timestamp": np.zeros(3, "M8[M]")}, {}, r"\.timestamp: 'datetime64\[M\]' must count one of W, D, h"),
        ({"timestamp": np.zeros(3, "M8")}, {}, r"\.timestamp: 'datetime64' must count"),
        ({"timestamp": np.zeros(3, "m8[s]")}, {}, r"\.timestamp: 'timedelta64\[s\]' cannot be encoded"),
        ({"symbol_id": "five"}, {}, r"\.symbol_id: 'five' must be an int"),
        ({"symbol_id": None}, {}, r"\.symbol_id: None must not be NULL"),
        ({}, {"scales": {"bid": 2}}, r"\.bid: 2 must be a column of the table"),
        ({}, {"scales": {"bid_price": 2}}, r"\.bid_price: 'float64' takes no scale"),
        ({}, {"scales": {"symbol_id": 2}}, r"\.symbol_id: 'int64' takes no scale"),
        ({"bid_price": np.ones(3, "i8")}, {"scales": {"bid_price": 16384}}, r"\.bid_price: 16384 must be a scale"),
        ({}, {"masks": {"ask_price": [True]}}, r"\.ask_price: 1 must be an array to have a scale or a mask"),
        ({}, {"masks": {"bid_price": [True]}}, r"\.bid_price: .* must have a mask of 3 bools"),
        ({}, {"masks": {"bid_price": [1, 0, 0]}}, r"\.bid_price: .* must have a mask of 3 bools"),
    ],
)
def test_a_wrong_column_is_named_before_anything_is_encoded(
    changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    columns = {
        "timestamp": np.array(["2025-03-01T12:00"] * 3, "M8[ms]"),
        "symbol_id": np.arange(3),
        "bid_price": np.ones(3),
        "ask_price": 1,
        "update_type": "x",
    }
    encoder = RowEncoder(BOOK_TICKERS)
    assert encoder.encode_columns(columns).days == {DAY}
    with pytest.raises(ValidationError, match="^book_ticker_snapshots" + message) as caught:
        encoder.encode_columns({**columns, **changes}, **options)
    assert not isinstance(caught.value, RowError)


def test_what_is_no_column_is_refused() -> None:
    encoder = RowEncoder(BOOK_TICKERS)
    with pytest.raises(TypeError, match="a mapping of names to arrays"):
        encoder.encode_columns(5)
    with pytest.raises(ValidationError, match="must be given: the column takes no NULL"):
        encoder.encode_columns({"timestamp": np.zeros(3, "M8[s]")})
    with pytest.raises(ValidationError, match="nothing says how many"):
        encoder.encode_columns({"timestamp": WHEN, "symbol_id": 1, "bid_price": 1, "ask_price": 1, "update_type": "x"})


def test_columns_that_the_server_makes_are_left_out() -> None:
    columns = {"timestamp": WHEN, "symbol_id": [1], "bid_price": 1, "ask_price": 1, "update_type": "x"}
    encoder = RowEncoder(BOOK_TICKERS)
    same(encoder.encode_columns({**columns, "id": [1], "created_at": ["x"]}), encoder.encode_columns(columns))


def test_a_structured_array_is_its_fields() -> None:
    array = np.zeros(2, [("timestamp", "M8[us]"), ("num", "f8"), ("i8", ">i8")])
    array["timestamp"] = "2025-03-01"
    array["num"] = [0.1, 0.2]
    array["i8"] = [3, 4]
    batch = RowEncoder(WIDE).encode_columns(array)
    assert [row[WIDE.column_names.index("i8")] for row in fields(batch)] == [b"\0" * 7 + b"\3", b"\0" * 7 + b"\4"]


@untraced
def test_other_threads_run_while_columns_are_encoded() -> None:
    n = 2_000_000
    columns = {
        "timestamp": np.datetime64("2025-03-01", "us") + np.arange(n),
        "num": np.arange(n),
        "f8": np.full(n, 0.5),
        "name": np.full(n, "text"),
    }
    encoder = RowEncoder(WIDE)
    done = threading.Event()

    def encode() -> None:
        encoder.encode_columns(columns)
        done.set()

    thread = threading.Thread(target=encode)
    turns = 0
    thread.start()
    while not done.is_set():
        turns += 1
        done.wait(0.001)
    thread.join()
    # With the GIL held this thread would get a turn or two, each after sys.getswitchinterval().
    assert turns > 10


def test_an_object_that_raises_passes_through() -> None:
    class Wrong(datetime):
        def utcoffset(self) -> Any:
            raise ZeroDivisionError("mine")

    wrong = Wrong(2025, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    with pytest.raises(ZeroDivisionError, match="mine"):
        one("later", [wrong, wrong])
