"""Columns as Arrow: what pyarrow, Polars, DuckDB and pandas make of them, and that memory outlives its maker."""

from __future__ import annotations

import gc
import struct
import threading
from decimal import Decimal
from typing import Any

import pytest
from test_decode import ALL, ALL_ROWS, FLOAT, GOLDEN, decode, row, stream
from wire import oracle

from pgtick._fast.result import Columns
from pgtick.errors import DecodeError

pytestmark = pytest.mark.core
pa = pytest.importorskip("pyarrow")


def table(result: Columns) -> Any:
    made = pa.table(result)
    made.validate(full=True)
    return made


def test_pyarrow_takes_every_type() -> None:
    result = decode(ALL, ALL_ROWS)
    got = table(result)
    assert {name: str(got.schema.field(name).type) for name in got.column_names} == {
        "bool": "bool",
        "bytea": "large_binary",
        "name": "large_string",
        "int8": "int64",
        "int2": "int16",
        "int4": "int32",
        "text": "large_string",
        "json": "large_string",
        "float4": "float",
        "float8": "double",
        "bpchar": "large_string",
        "varchar": "large_string",
        "date": "date32[day]",
        "timestamp": "timestamp[us]",
        "timestamptz": "timestamp[us, tz=UTC]",
        "numeric": "double",
        "uuid": "fixed_size_binary[16]",
        "jsonb": "large_string",
    }
    for name in GOLDEN:
        values = result.objects(name)
        assert got[name].to_pylist() == [value.bytes if value and name == "uuid" else value for value in values]
        assert got[name].null_count == 1


def test_no_byte_of_a_value_is_copied() -> None:
    result = decode([("x", 1700, FLOAT), ("t", 25, FLOAT)], stream(*[row(oracle("1.5"), b"ab")] * 100))
    chunk = table(result)["x"].chunk(0)
    assert chunk.buffers()[1].address == result["x"].ctypes.data
    assert chunk.to_numpy(zero_copy_only=True).ctypes.data == result["x"].ctypes.data
    assert table(result)["t"].chunk(0).buffers()[2].address == table(result)["t"].chunk(0).buffers()[2].address


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 64, 1000, 5000])
def test_bits_of_bools_and_nulls_are_right_at_any_length(n: int) -> None:
    flags = [None if i % 5 == 2 else i % 3 == 0 for i in range(n)]
    result = decode([("b", 16, FLOAT)], stream(*[row(None if flag is None else bytes([flag])) for flag in flags]))
    assert table(result)["b"].to_pylist() == flags
    assert result.objects("b") == flags


def test_decimal128_is_exact_to_its_last_digit() -> None:
    texts = ["9" * 20 + "." + "9" * 18, "-0.000000000000000001", "0", "-50000.10"]
    rows = stream(*[row(oracle(text)) for text in texts], row(None))
    got = table(decode([("x", 1700, ("decimal128", 38, 18))], rows))
    assert str(got["x"].type) == "decimal128(38, 18)"
    assert got["x"].to_pylist() == [*map(Decimal, texts), None]
    with pytest.raises(DecodeError, match=r"row 0, column x: 99999999999999999999\.9+ is too large"):
        decode([("x", 1700, ("decimal128", 37, 18))], rows)


def test_fixed_point_goes_out_as_int64_and_decimal_objects_not_at_all() -> None:
    rows = stream(row(oracle("1.25")), row(None))
    assert table(decode([("x", 1700, ("fixed", 2))], rows))["x"].to_pylist() == [125, None]
    result = decode([("x", 1700, ("decimal",))], rows)
    with pytest.raises(TypeError, match=r"column 'x'.*Decimal128"):
        pa.table(result)


def test_export_can_be_repeated_and_dropped_unused() -> None:
    result = decode(ALL, ALL_ROWS)
    for _ in range(100):
        result.__arrow_c_stream__()
        result.__arrow_c_array__()
        result.__arrow_c_schema__()
    assert table(result).equals(table(result))
    assert pa.schema(result) == table(result).schema
    assert pa.record_batch(result).num_rows == 3


def test_column_taken_out_outlives_everything_else() -> None:
    result = decode(ALL, ALL_ROWS)
    column = pa.table(result)["text"]
    batch = pa.record_batch(result)
    del result
    gc.collect()
    decode(ALL, ALL_ROWS)  # reuses memory that was freed too early
    assert column.to_pylist() == ["人生K线/USDT", None, "人生K线/USDT"]
    assert batch["int4"].to_pylist() == [2**31 - 1, None, 2**31 - 1]


def test_last_owner_may_be_another_thread() -> None:
    tables = [table(decode(ALL, ALL_ROWS)) for _ in range(50)]
    thread = threading.Thread(target=tables.clear)
    thread.start()
    thread.join()
    assert not tables


def test_stream_ends_after_its_one_batch() -> None:
    reader = pa.RecordBatchReader.from_stream(decode(ALL, ALL_ROWS))
    assert reader.read_next_batch().num_rows == 3
    with pytest.raises(StopIteration):
        reader.read_next_batch()


def test_column_name_of_any_script_is_kept() -> None:
    assert table(decode([("人生 K", 23, FLOAT)], stream(row(struct.pack(">i", 1))))).column_names == ["人生 K"]


def test_polars_takes_it() -> None:
    pl = pytest.importorskip("polars")
    result = decode(ALL, ALL_ROWS)
    frame = pl.DataFrame(result)
    assert frame.shape == (3, len(GOLDEN))
    assert frame["text"].to_list() == result.objects("text")
    assert frame["timestamptz"].to_list() == result.objects("timestamptz")
    exact = pl.DataFrame(decode([("x", 1700, ("decimal128", 20, 2))], stream(row(oracle("50000.10")))))
    assert exact["x"].to_list() == [Decimal("50000.10")]


def test_duckdb_takes_it() -> None:
    duckdb = pytest.importorskip("duckdb")
    result = decode(ALL, ALL_ROWS)
    columns = duckdb.connect().from_arrow(pa.RecordBatchReader.from_stream(result)).fetchall()
    assert [record[list(GOLDEN).index("numeric")] for record in columns] == [50000.1, None, 50000.1]


def test_pandas_takes_it() -> None:
    pd = pytest.importorskip("pandas")
    if not hasattr(pd.DataFrame, "from_arrow"):
        pytest.skip("pandas of before 3.0")
    frame = pd.DataFrame.from_arrow(decode(ALL, ALL_ROWS))
    assert frame["int8"].tolist()[0] == -(2**63)
    assert frame["text"].isna().tolist() == [False, True, False]
