"""Arrow arrays that are wrong: each is an error that says where, none a crash, and all that was taken is released."""

from __future__ import annotations

import gc
import struct
from typing import Any

import pytest
from arrow_maker import Column, OneArray, Stream
from test_columns import same
from wire import WHEN, WIDE, fields

from pgtick._fast.encode import RowEncoder
from pgtick.errors import PgtickError, RowError, ValidationError

pytestmark = pytest.mark.core

ENCODER = RowEncoder(WIDE)
WHEN_UNIX = 1_740_830_400_123_456
NAME = WIDE.column_names.index("name")


def time(n: int = 3) -> Column:
    return Column("timestamp", "tsu:UTC", [None, struct.pack(f"<{n}q", *[WHEN_UNIX] * n)], n)


def texts(form: str, offsets: list[int], data: bytes = b"abcdef", n: int = 3, **options: Any) -> Column:
    return Column(
        "name", form, [None, struct.pack(f"<{len(offsets)}{'q' if form == 'U' else 'i'}", *offsets), data], n, **options
    )


def released(made: Any) -> bool:
    gc.collect()
    return bool(made.taken) and made.taken == made.released


@pytest.mark.parametrize("kind", [OneArray, Stream])
def test_a_table_is_read_and_released_once(kind: Any) -> None:
    made = kind(time(), texts("u", [0, 1, 3, 6]))
    batch = ENCODER.encode_columns(made)
    assert [row[NAME] for row in fields(batch)] == [b"a", b"bc", b"def"]
    same(batch, ENCODER.encode([{"timestamp": WHEN, "name": name} for name in ("a", "bc", "def")]))
    assert released(made)


def test_chunks_of_a_stream_follow_each_other() -> None:
    made = Stream(time(), texts("u", [0, 1, 1, 7], b"a\xff"), chunks=3)
    batch = ENCODER.encode_columns(made)
    assert batch.indices == [0, 1, 3, 4, 6, 7]
    assert [error.index for error in batch.errors] == [2, 5, 8]
    assert made.taken["array"] == 3
    assert released(made)


def test_a_stream_that_fails_says_what_it_said() -> None:
    made = Stream(time(), chunks=2, fails=5)
    with pytest.raises(PgtickError, match="wide: the Arrow stream failed: the disk is gone"):
        ENCODER.encode_columns(made)
    assert released(made)


@pytest.mark.parametrize("form", ["u", "U"])
@pytest.mark.parametrize(
    ("offsets", "bad"),
    [
        ([0, 4, 2, 6], [1]),  # backwards
        ([2, 0, 1, 1], [0, 1, 2]),  # before the first
        ([0, 9, 9, 6], [0, 1, 2]),  # behind the last
        ([-3, 1, 2, 3], [0]),
        ([0, -1, -1, 3], [0, 1, 2]),
        ([0, 2**31 - 1, 3, 3], [0, 1]),
    ],
)
def test_offsets_that_lead_outside_refuse_their_rows(form: str, offsets: list[int], bad: list[int]) -> None:
    made = OneArray(time(), texts(form, offsets))
    batch = ENCODER.encode_columns(made)
    assert [(e.index, e.column, e.rule) for e in batch.errors] == [
        (i, "name", "must lie inside of its column's data") for i in bad
    ]
    assert batch.n_rows == 3 - len(bad)
    assert released(made)


def view(n: int, index: int, offset: int) -> bytes:
    return struct.pack("<i4sii", n, b"abcd", index, offset)


@pytest.mark.parametrize(
    "wrong", [view(13, 0, 8), view(13, 1, 0), view(13, -1, 0), view(13, 0, -1), view(-1, 0, 0), view(2**31 - 1, 0, 0)]
)
def test_views_that_lead_outside_refuse_their_rows(wrong: bytes) -> None:
    views = struct.pack("<i12s", 2, b"ab") + wrong + view(13, 0, 7)
    column = Column("name", "vu", [None, views, bytes(range(65, 85)), struct.pack("<q", 20)], 3)
    made = OneArray(time(), column)
    batch = ENCODER.encode_columns(made)
    assert [(e.index, e.rule) for e in batch.errors] == [(1, "must lie inside of its column's data")]
    assert [row[NAME] for row in fields(batch)] == [b"ab", bytes(range(72, 85))]
    assert released(made)


@pytest.mark.parametrize(
    ("form", "entries"), [("c", b"\0\2\xff"), ("C", b"\0\2\xff"), ("l", struct.pack("<3q", 0, 2, -9))]
)
def test_dictionary_indices_outside_refuse_their_rows(form: str, entries: bytes) -> None:
    values = Column("", "u", [b"\1", struct.pack("<3i", 0, 2, 2), b"ab"], 2)
    made = OneArray(time(), Column("name", form, [None, entries], 3, dictionary=values))
    batch = ENCODER.encode_columns(made)
    rule = "must be an index into its column's dictionary"
    assert [(e.index, e.column, e.rule) for e in batch.errors] == [(1, "name", rule), (2, "name", rule)]
    assert [row[NAME] for row in fields(batch)] == [b"ab"]
    second = OneArray(time(1), Column("name", form, [None, entries[-1:] * 0 + b"\1" + bytes(7)], 1, dictionary=values))
    assert [row[NAME] for row in fields(ENCODER.encode_columns(second))] == [None]
    assert released(made)


@pytest.mark.parametrize(
    ("text", "rule"), [(b"a\0bcde", "must not contain NUL"), (b"\xc3\x28\xff\xff\xff\xff", "must be valid Unicode")]
)
def test_text_that_is_none_refuses_its_row(text: bytes, rule: str) -> None:
    batch = ENCODER.encode_columns(OneArray(time(1), texts("u", [0, 6], text, 1)))
    assert [(e.column, e.rule) for e in batch.errors] == [("name", rule)]


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (texts("u", [0, 1, 2, 3], n=2), {}, "2 values for 3 rows"),
        (texts("u", [0, 1, 2, 3]), {"offset": 1}, "3 values for 4 rows"),
        (texts("u", [0, 1, 2, 3]), {"offset": -1}, "offset -1"),
        (texts("u", [0, 1, 2, 3]), {"n": -1}, "length -1"),
        (texts("u", [0, 1, 2, 3], offset=-1), {}, "offset -1, length 3"),
        (texts("u", [0, 1, 2, 3], n_buffers=2), {}, "2 buffers"),
        (Column("name", "u", [None, None, b"abc"], 3), {}, "no data"),
        (Column("name", "u", [None, struct.pack("<4i", 0, 1, 2, 3), None], 3), {}, "no data"),
        (Column("num", "g", [None, None], 3), {}, "no data"),
        (Column("name", "vu", [None, bytes(48)], 3, n_buffers=2), {}, "2 buffers"),
        (Column("name", "vu", [None, bytes(48), b"", None], 3), {}, "no lengths of its buffers"),
        (Column("num", "d:5", [None, bytes(48)], 3), {}, "cannot be in an Arrow schema: d:5"),
        (Column("num", "d:5,2,7", [None, bytes(48)], 3), {}, "cannot be in an Arrow schema"),
        (Column("num", "d:5,99999", [None, bytes(48)], 3), {}, "cannot be in an Arrow schema"),
        (Column("name", "w:-1", [None, bytes(48)], 3), {}, "cannot be in an Arrow schema"),
        (Column("later", "tsx:UTC", [None, bytes(48)], 3), {}, "cannot be in an Arrow schema"),
        (Column("later", "tsu:", [None, bytes(48)], 3), {}, "wide.later: 'Arrow timestamp' must have a zone"),
        (Column("num", "+l", [None, bytes(48)], 3), {}, "wide.num: 'Arrow list' cannot be encoded as numeric"),
        (Column("num", "+w:3", [None], 3), {}, "wide.num: 'Arrow fixed_size_list' cannot be encoded as numeric"),
        (Column("num", "e", [None, bytes(6)], 3), {}, "wide.num: 'Arrow float16' cannot be encoded as numeric"),
        (Column("num", "?", [None, bytes(6)], 3), {}, r"wide.num: 'Arrow format \?' cannot be encoded as numeric"),
        (Column("i4", "g", [None, bytes(24)], 3), {}, "wide.i4: 'Arrow float64' cannot be encoded as int4"),
        (Column("unknown", "g", [None, bytes(24)], 3), {}, "wide.unknown: .* must be a column of the table"),
        (Column("timestamp", "g", [None, bytes(24)], 3), {}, "wide.timestamp: .* must be there once"),
    ],
)
@pytest.mark.parametrize("kind", [OneArray, Stream])
def test_a_table_that_cannot_be_is_an_error_and_released(
    kind: Any, column: Column, options: dict[str, Any], message: str
) -> None:
    made = kind(time(), column, **options)
    with pytest.raises(ValidationError, match=message) as caught:
        ENCODER.encode_columns(made)
    assert not isinstance(caught.value, RowError)
    caught.value.__traceback__ = None
    del caught
    assert released(made)


def test_what_was_taken_already_is_an_error() -> None:
    made = OneArray(time())
    capsules = made.__arrow_c_array__()

    class Again:
        def __arrow_c_array__(self) -> Any:
            return capsules

    assert ENCODER.encode_columns(Again()).n_rows == 3
    with pytest.raises(PgtickError, match="wide: the Arrow array was taken already"):
        ENCODER.encode_columns(Again())
    assert released(made)


def test_no_column_lacks() -> None:
    with pytest.raises(ValidationError, match=r"wide\.timestamp: None must be given"):
        ENCODER.encode_columns(OneArray(texts("u", [0, 1, 2, 3])))
