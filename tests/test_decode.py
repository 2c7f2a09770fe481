"""The decoder from its bytes alone: golden streams, pieces of any size, and hostile bytes."""

from __future__ import annotations

import pickle
import struct
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import HEADER, TRAILER, oracle

from pgtick._fast.decode import CopyDecoder
from pgtick._fast.result import Columns
from pgtick.errors import DecodeError

pytestmark = pytest.mark.core
FLOAT = ("float",)
ID = UUID("00112233-4455-6677-8899-aabbccddeeff")

# type: (OID, its bytes, the object, Arrow's format apart)
GOLDEN: dict[str, tuple[int, bytes, object]] = {
    "bool": (16, b"\1", True),
    "bytea": (17, b"\0\xff", b"\0\xff"),
    "name": (19, b"pg_class", "pg_class"),
    "int8": (20, struct.pack(">q", -(2**63)), -(2**63)),
    "int2": (21, struct.pack(">h", -32768), -32768),
    "int4": (23, struct.pack(">i", 2**31 - 1), 2**31 - 1),
    "text": (25, "人生K线/USDT".encode(), "人生K线/USDT"),
    "json": (114, b'{"a": 1}', '{"a": 1}'),
    "float4": (700, struct.pack(">f", 0.1), float(np.float32(0.1))),
    "float8": (701, struct.pack(">d", 0.1), 0.1),
    "bpchar": (1042, b"ab  ", "ab  "),
    "varchar": (1043, b"", ""),
    "date": (1082, struct.pack(">i", -36524), date(1900, 1, 1)),
    "timestamp": (1114, struct.pack(">q", -1), datetime(1999, 12, 31, 23, 59, 59, 999999)),
    "timestamptz": (1184, struct.pack(">q", 794145600_123456), datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)),
    "numeric": (1700, oracle("50000.10"), 50000.1),
    "uuid": (2950, ID.bytes, ID),
    "jsonb": (3802, b'\1{"a": 1}', '{"a": 1}'),
}


def field(data: bytes | None) -> bytes:
    return struct.pack(">i", -1) if data is None else struct.pack(">i", len(data)) + data


def row(*values: bytes | None) -> bytes:
    return struct.pack(">h", len(values)) + b"".join(map(field, values))


def stream(*rows: bytes) -> bytes:
    return HEADER + b"".join(rows) + TRAILER


def decode(columns: list[tuple[str, int, tuple[Any, ...]]], *pieces: bytes) -> Columns:
    decoder = CopyDecoder(columns)
    for piece in pieces:
        decoder.feed(piece)
    decoder.finish()
    return decoder.take()


def refused(columns: list[tuple[str, int, tuple[Any, ...]]], data: bytes) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(columns, data)
    return caught.value


ALL = [(name, oid, FLOAT) for name, (oid, _, _) in GOLDEN.items()]
ALL_ROWS = stream(
    row(*(data for _, data, _ in GOLDEN.values())),
    row(*(None for _ in GOLDEN)),
    row(*(data for _, data, _ in GOLDEN.values())),
)


@pytest.mark.parametrize("name", GOLDEN)
def test_value_of_each_type_is_read_and_its_null_told_apart(name: str) -> None:
    oid, data, value = GOLDEN[name]
    result = decode([(name, oid, FLOAT)], stream(row(data), row(None), row(data)))
    assert result.objects(name) == [value, None, value]
    assert result.masks[name].tolist() == [False, True, False]
    column = result.columns[name]
    assert column.shape == (3,)
    assert not column.flags.writeable
    if column.dtype.kind == "M":
        assert np.isnat(column).tolist() == [False, True, False]
        plain: Any = value.replace(tzinfo=None) if isinstance(value, datetime) else value
        assert column[0] == np.datetime64(plain)
    elif column.dtype.kind == "f":
        assert np.isnan(column).tolist() == [False, True, False]
        assert float(column[0]) == value
    else:
        assert column[0] == value
        assert column[1] == (None if column.dtype == object else 0)


def test_numpy_type_is_the_column_s_own() -> None:
    kinds = {name: column.dtype.str for name, column in decode(ALL, ALL_ROWS).columns.items()}
    assert {name: kind for name, kind in kinds.items() if kind != "|O"} == {
        "bool": "|b1",
        "int2": "<i2",
        "int4": "<i4",
        "int8": "<i8",
        "float4": "<f4",
        "float8": "<f8",
        "date": "<M8[D]",
        "timestamp": "<M8[us]",
        "timestamptz": "<M8[us]",
        "numeric": "<f8",
    }


def test_column_without_null_has_a_mask_of_false() -> None:
    result = decode([("n", 23, FLOAT)], stream(*[row(struct.pack(">i", n)) for n in range(5)]))
    assert result.masks["n"].tolist() == [False] * 5
    assert result["n"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="m"):
        result["m"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_stream_in_pieces_of_any_size_gives_the_same(size: int) -> None:
    pieces = [ALL_ROWS[at : at + size] for at in range(0, len(ALL_ROWS), size)]
    whole, cut = decode(ALL, ALL_ROWS), decode(ALL, *pieces)
    for name in GOLDEN:
        assert cut.objects(name) == whole.objects(name)


@given(st.lists(st.integers(0, len(ALL_ROWS)), max_size=12), st.integers(1, 4))
def test_stream_cut_anywhere_and_taken_in_chunks_gives_the_same(cuts: list[int], max_rows: int) -> None:
    edges = [0, *sorted(cuts), len(ALL_ROWS)]
    decoder = CopyDecoder(ALL, max_rows)
    chunks = []
    for start, stop in pairwise(edges):
        decoder.feed(ALL_ROWS[start:stop])
        while decoder.full:
            chunks.append(decoder.take())
            decoder.feed(b"")
    decoder.finish()
    chunks.append(decoder.take())
    assert [chunk.first_row for chunk in chunks] == [max_rows * n for n in range(len(chunks))]
    assert decoder.n_rows == 3
    assert decoder.n_bytes == len(ALL_ROWS)
    whole = decode(ALL, ALL_ROWS)
    for name in GOLDEN:
        assert [value for chunk in chunks for value in chunk.objects(name)] == whole.objects(name)


@given(st.lists(st.one_of(st.none(), st.text(), st.text("aé人😀", min_size=20)), max_size=50), st.integers(1, 300))
def test_texts_of_any_length_and_nulls_survive(texts: list[str | None], size: int) -> None:
    data = stream(*[row(None if text is None else text.encode()) for text in texts])
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert decode([("t", 25, FLOAT)], *pieces).objects("t") == texts


def test_thousands_of_rows_grow_every_column_and_its_mask() -> None:
    values = [None if n % 7 == 3 else n for n in range(5000)]
    rows = [
        row(*([None, None] if n is None else [struct.pack(">q", n), b"%d" % n]), oracle(str(i)))
        for i, n in enumerate(values)
    ]
    result = decode([("n", 20, FLOAT), ("t", 25, FLOAT), ("x", 1700, FLOAT)], stream(*rows))
    assert result.objects("n") == values
    assert result.objects("t") == [None if n is None else str(n) for n in values]
    assert result["x"].tolist() == list(range(5000))
    assert result.masks["t"].tolist() == [n is None for n in values]


def test_header_with_an_extension_is_passed_over() -> None:
    for size in (0, 1, 100, 70_000):
        extension = struct.pack(">i", size) + b"\xff" * size
        data = HEADER[:15] + extension + row(b"\1") + TRAILER
        for pieces in ([data], [data[at : at + 9] for at in range(0, len(data), 9)]):
            assert decode([("b", 16, FLOAT)], *pieces).objects("b") == [True]


def test_result_without_rows_has_empty_columns() -> None:
    result = decode(ALL, HEADER + TRAILER)
    assert len(result) == 0
    assert all(len(column) == 0 for column in result.columns.values())
    assert all(len(mask) == 0 for mask in result.masks.values())
    assert result.objects("text") == []


def test_every_truncation_is_an_error_with_its_offset() -> None:
    for stop in range(len(ALL_ROWS)):
        error = refused(ALL, ALL_ROWS[:stop])
        assert error.offset == stop
        assert "ends" in error.reason


@given(st.integers(0, len(ALL_ROWS) * 8 - 1), st.integers(1, 200))
def test_flipped_bit_is_another_result_or_an_error_but_no_crash(bit: int, size: int) -> None:
    data = bytearray(ALL_ROWS)
    data[bit // 8] ^= 1 << bit % 8
    errors: list[DecodeError] = []
    try:
        result = decode(ALL, *[bytes(data[at : at + size]) for at in range(0, len(data), size)])
    except DecodeError as error:
        errors.append(error)
    else:
        assert len(result) <= 3
        for name in result.names:
            with suppress(DecodeError):  # a year that datetime has not
                assert len(result.objects(name)) == len(result)
    for refusal in errors:
        assert refusal.offset is not None
        assert 0 <= refusal.offset <= len(data)


@given(st.binary(max_size=400), st.booleans())
def test_noise_is_an_error_but_no_crash(noise: bytes, with_header: bool) -> None:
    columns = [("t", 25, FLOAT), ("x", 1700, ("decimal",)), ("n", 1700, ("fixed", 2))]
    with pytest.raises(DecodeError):
        decode(columns, (HEADER if with_header else b"") + noise + b"\0")


NUMERIC = struct.Struct(">HhHH")


@pytest.mark.parametrize(
    ("oid", "data", "reason"),
    [
        (16, b"\2", "no bool"),
        (16, b"", "length"),
        (20, bytes(7), "length"),
        (21, bytes(3), "length"),
        (23, bytes(8), "length"),
        (700, bytes(8), "length"),
        (701, bytes(4), "length"),
        (1082, bytes(8), "length"),
        (1184, bytes(9), "length"),
        (2950, bytes(15), "length"),
        (25, b"a\xff", "UTF-8"),
        (25, b"\xc0\x80", "UTF-8"),  # overlong
        (25, b"\xed\xa0\x80", "UTF-8"),  # a surrogate
        (25, b"\xf4\x90\x80\x80", "UTF-8"),  # above U+10FFFF
        (25, b"abcdefg\xe4\xba", "UTF-8"),  # cut
        (3802, b"\2{}", "jsonb"),
        (3802, b"", "jsonb"),
        (1184, struct.pack(">q", 2**63 - 1), "infinity is no"),
        (1114, struct.pack(">q", -(2**63)), "infinity is no"),
        (1082, struct.pack(">i", 2**31 - 1), "infinity is no"),
        (1184, struct.pack(">q", 2**63 - 2), "too far"),
        (1082, struct.pack(">i", 2**31 - 2), "too far"),
        (1700, bytes(7), "no numeric"),
        (1700, NUMERIC.pack(1, 0, 0, 0), "no numeric"),  # a digit is missing
        (1700, NUMERIC.pack(65535, 0, 0, 0), "no numeric"),
        (1700, NUMERIC.pack(1, 0, 0, 0) + struct.pack(">H", 10000), "no numeric"),
        (1700, NUMERIC.pack(6, 0, 0, 0) + struct.pack(">6H", 1, 1, 1, 1, 1, 10000), "no numeric"),
        (1700, NUMERIC.pack(0, 0, 0x1234, 0), "no numeric"),
        (1700, NUMERIC.pack(0, 0, 0, 0x4000), "no numeric"),
    ],
)
def test_field_that_no_server_sends_is_named(oid: int, data: bytes, reason: str) -> None:
    good = {oid: sample for oid, sample, _ in GOLDEN.values()}[oid]
    error = refused([("a", 16, FLOAT), ("b", oid, FLOAT)], stream(row(b"\1", good), row(b"\0", data)))
    assert reason in error.reason
    assert error.column == "b"
    assert error.row == 1
    assert error.offset == len(HEADER) + len(row(b"\1", good)) + 2 + 5 + 4
    assert f"byte {error.offset}, row 1, column b: " in str(error)


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        (b"PGCOPY\n\xff\r\n\1" + bytes(8), 0, "begin"),
        (HEADER[:11] + b"\0\1\0\0" + bytes(4), 11, "flag"),
        (HEADER[:11] + b"\x80\0\0\0" + bytes(4), 11, "flag"),
        (HEADER[:15] + b"\xff\xff\xff\xff", 15, "extension"),
        (HEADER + b"\0\2", 19, "number of fields"),
        (HEADER + b"\xff\xfe", 19, "number of fields"),
        (HEADER + b"\0\1\xff\xff\xff\xfe", 21, "length"),
        (HEADER + b"\0\1\x40\0\0\0", 21, "length"),
        (HEADER + TRAILER + b"\0", 21, "behind the trailer"),
    ],
)
def test_frame_that_no_server_sends_is_an_error_at_its_place(data: bytes, offset: int, reason: str) -> None:
    error = refused([("b", 16, FLOAT)], data)
    assert error.offset == offset
    assert reason in error.reason


def test_garbage_that_comes_after_the_trailer_is_refused_too() -> None:
    decoder = CopyDecoder([("b", 16, FLOAT)])
    decoder.feed(HEADER + TRAILER)
    decoder.finish()
    with pytest.raises(DecodeError, match=r"byte 21: .*behind the trailer"):
        decoder.feed(b"\0")


def test_decoder_after_an_error_raises_it_again() -> None:
    decoder = CopyDecoder([("b", 16, FLOAT)])
    with pytest.raises(DecodeError) as first:
        decoder.feed(HEADER + row(b"\1") + row(b"\7"))
    for call in (lambda: decoder.feed(b""), decoder.take, decoder.finish):
        with pytest.raises(DecodeError) as again:
            call()
        assert again.value is first.value


def test_year_that_datetime_has_not_is_told_by_row_and_kept_by_numpy() -> None:
    far = 9_000_000_000_000_000_000
    result = decode([("t", 1184, FLOAT)], stream(row(struct.pack(">q", 0)), row(struct.pack(">q", far))))
    assert result["t"][1] == np.datetime64(far + 946684800_000000, "us")
    with pytest.raises(DecodeError, match="row 1, column t: a year outside of 1 to 9999"):
        result.objects("t")


def test_error_can_be_pickled() -> None:
    error = DecodeError("is no bool", offset=3, row=0, column="b")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.__dict__) == (str(error), error.__dict__)


@pytest.mark.parametrize("columns", [[], [("n", 1700, ("decimal128", 39, 0))], [("n", 1700, ("fixed", 39))]])
def test_decoder_of_impossible_columns_is_refused(columns: list[tuple[str, int, tuple[Any, ...]]]) -> None:
    with pytest.raises(ValueError, match=r"at least one column|no such decimals"):
        CopyDecoder(columns)


def test_field_in_many_pieces_is_not_decoded_anew_for_each() -> None:
    text = "x" * 3_000_000
    data = stream(row(b"\1", text.encode(), text.encode()))
    columns = [("b", 16, FLOAT), ("t", 25, FLOAT), ("u", 25, FLOAT)]
    result = decode(columns, *[data[at : at + 4096] for at in range(0, len(data), 4096)])
    assert result.objects("u") == [text]
    assert result.objects("t") == [text]


def test_columns_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="CopyDecoder"):
        Columns()


def test_arrays_outlive_their_columns() -> None:
    array = decode([("x", 1700, FLOAT)], stream(*[row(oracle("1.5"))] * 10_000))["x"]
    decode([("x", 1700, FLOAT)], stream(*[row(oracle("2.5"))] * 10_000))
    assert array.sum() == 15_000


def test_decimal_objects_keep_the_scale() -> None:
    texts = ["50000.10", "0.00", "-0.000000001", "12000", "1e30", "0", "99990000.0001", "-1234.50"]
    result = decode([("x", 1700, ("decimal",))], stream(*[row(oracle(text)) for text in texts]))
    assert [f"{value:f}" for value in result["x"]] == [f"{Decimal(text):f}" for text in texts]
