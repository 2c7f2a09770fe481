"""Segment files that a crash or the disk has harmed: what is whole comes back, what is not is never lost in silence."""

from __future__ import annotations

import logging
import random
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spooled import drain, files, make_record, opened

from pgtick.errors import SpoolError
from pgtick.writer import segment as form
from pgtick.writer.segment import MAGIC, Record, encode, scan


def _segment(tmp_path: Path, *sizes: int) -> tuple[Path, list[Record]]:
    """Write one segment with records of these sizes; a living spool's file, closed."""
    records = [make_record(size=size) for size in sizes]
    with opened(tmp_path) as spool:
        for record in records:
            spool.append(record)
    (path,) = files(tmp_path)
    return path, records


def _ends(records: list[Record]) -> list[int]:
    ends = [len(MAGIC)]
    for record in records:
        ends.append(ends[-1] + form.n_bytes_of(record))
    return ends


def _read(path: Path, content: bytes) -> list[Record]:
    """Return the records of which the scan says that they are whole, read as the spool reads them."""
    path.write_bytes(content)
    found = [form.read(path, entry) for entry in scan(content).entries]
    assert None not in found
    return [record for record in found if record is not None]


def test_a_file_s_bytes_are_laid_out_as_the_docs_say() -> None:
    import struct
    import uuid
    from zlib import crc32

    record = Record(uuid.UUID(int=7), "trades", 1_700_000_000_000_000, 3, b"body", b"12345678")
    payload = (
        (7).to_bytes(16, "big")
        + struct.pack(">qIHB", 1_700_000_000_000_000, 3, 6, 8)
        + b"trades"
        + b"12345678"
        + b"body"
    )  # fmt: skip
    crc32c = _crc32c_by_the_book
    head = b"\xd7rec" + struct.pack(">II", len(payload), crc32c(payload))
    assert encode(record, 8) == head + struct.pack(">I", crc32c((8).to_bytes(8, "big") + head)) + payload
    assert crc32c(b"123456789") == 0xE3069283 != crc32(b"123456789")  # RFC 3720, appendix B.4's polynomial


def _crc32c_by_the_book(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_every_truncation_gives_the_whole_records_before_it(tmp_path: Path) -> None:
    path, records = _segment(tmp_path, 5, 0, 40)
    content, ends = path.read_bytes(), _ends(records)
    for size in range(len(content)):
        cut = scan(content[:size])
        n_whole = sum(end <= size for end in ends[1:])
        assert _read(path, content[:size]) == records[:n_whole]
        assert cut.damages == []
        assert cut.torn_at == (None if size in ends else 0 if size < len(MAGIC) else ends[n_whole])


def test_every_flipped_byte_costs_at_most_the_record_it_is_in(tmp_path: Path) -> None:
    path, records = _segment(tmp_path, 30, 30, 30)
    content, ends = path.read_bytes(), _ends(records)
    for place in range(len(content)):
        harmed = bytearray(content)
        harmed[place] ^= 0x41
        hit = sum(end <= place for end in ends) - 1
        expected = [record for index, record in enumerate(records) if index != hit]
        assert _read(path, bytes(harmed)) == expected, place
        result = scan(bytes(harmed))
        assert result.damages == [(0, len(MAGIC)) if hit < 0 else (ends[hit], ends[hit + 1])], place


@given(seed=st.integers(0, 2**32), n_records=st.integers(0, 8), n_harms=st.integers(1, 4))
def test_whatever_is_overwritten_the_records_beside_it_come_back(seed: int, n_records: int, n_harms: int) -> None:
    rng = random.Random(seed)
    records = [make_record(size=rng.randrange(200)) for _ in range(n_records)]
    ends = _ends(records)
    content = MAGIC + b"".join(encode(record, start) for record, start in zip(records, ends, strict=False))
    harmed = bytearray(content)
    for _ in range(n_harms):
        start, end = sorted(rng.randrange(len(MAGIC), len(content) + 1) for _ in range(2))
        end = min(end, start + 60)
        harmed[start:end] = rng.randbytes(end - start)
    whole = {
        records[index].batch_id
        for index in range(n_records)
        if harmed[ends[index] : ends[index + 1]] == content[ends[index] : ends[index + 1]]
    }
    result = scan(bytes(harmed))
    assert {entry.batch_id for entry in result.entries} >= whole
    covered = sorted(
        [(entry.offset, entry.offset + entry.n_bytes) for entry in result.entries]
        + result.damages
        + ([(result.torn_at, len(harmed))] if result.torn_at is not None else [])
    )
    assert [start for start, _ in covered] == [len(MAGIC), *(end for _, end in covered)][: len(covered)]  # without gaps


def test_a_record_inside_a_damaged_record_s_body_is_never_taken_for_one(tmp_path: Path) -> None:
    hidden = make_record("hidden")
    outer = make_record()
    outer.body = encode(hidden, len(MAGIC)) * 3  # a segment file as the content of a row, say
    last = make_record()
    with opened(tmp_path) as spool:
        for record in (outer, last):
            spool.append(record)
    (path,) = files(tmp_path)
    harmed = bytearray(path.read_bytes())
    harmed[len(MAGIC)] ^= 1  # its head is not to be found
    assert _read(path, bytes(harmed)) == [last]


def test_bytes_full_of_marks_are_searched_without_reading_them_again_and_again() -> None:
    mark = encode(make_record(), 0)[:4]
    content = MAGIC + (mark + (1 << 20).to_bytes(4, "big") + bytes(8)) * 60_000
    assert scan(content).damages == [(len(MAGIC), len(content))]


@pytest.mark.parametrize("size", [1, 9, 30, 50])
def test_a_torn_tail_is_cut_and_told(tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture) -> None:
    path, records = _segment(tmp_path, 10, 10)
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(encode(make_record(), whole)[:size])
    with caplog.at_level(logging.WARNING), opened(tmp_path) as spool:
        assert f"the last {size} bytes, not finished, are cut" in caplog.text
        assert path.stat().st_size == whole
        assert drain(spool) == {"trades": records}
    assert list(tmp_path.rglob("*.damaged")) == []


def test_a_tail_of_zeros_as_a_power_cut_leaves_it_is_cut(tmp_path: Path) -> None:
    path, records = _segment(tmp_path, 10)
    with path.open("ab") as file:
        file.write(bytes(4096))
    with opened(tmp_path) as spool:
        assert drain(spool) == {"trades": records}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_damaged_record_costs_no_other_and_its_file_is_kept_aside(
    tmp_path: Path, index: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, records = _segment(tmp_path, 50, 50, 50)
    content = bytearray(path.read_bytes())
    content[_ends(records)[index] + 60] ^= 0x10
    path.write_bytes(content)
    with caplog.at_level(logging.ERROR), opened(tmp_path) as spool:
        assert "are damaged" in caplog.text
        assert spool.n_records("trades") == 2
        del records[index]
        assert drain(spool) == {"trades": records}
    (aside,) = tmp_path.rglob("*.damaged")
    assert aside.read_bytes() == content
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    with opened(tmp_path) as spool:
        assert spool.is_empty
        spool.append(make_record())
        assert int(files(tmp_path)[0].name[:12]) == int(aside.name[:12]) + 1


def test_a_record_damaged_while_the_process_lives_is_counted_as_dropped(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        records = [make_record(n_rows=number) for number in range(1, 4)]
        for record in records:
            spool.append(record)
        (path,) = files(tmp_path)
        content = bytearray(path.read_bytes())
        content[_ends(records)[1] - 1] ^= 1
        path.write_bytes(content)
        assert drain(spool) == {"trades": records[1:]}
        assert spool.take_dropped() == {"trades": 1}
        assert spool.is_empty
    assert len(list(tmp_path.rglob("*.damaged"))) == 1


def test_a_file_of_nothing_but_damage_is_kept_aside_at_once(tmp_path: Path) -> None:
    path, _ = _segment(tmp_path, 50)
    path.write_bytes(b"x" * 100)
    with opened(tmp_path) as spool:
        assert spool.is_empty
    assert [aside.name for aside in tmp_path.rglob("*.damaged")] == [path.name + ".damaged"]


def test_a_file_of_another_version_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, _ = _segment(tmp_path, 50)
    content = b"PGTICK\x02\n" + path.read_bytes()[9:]
    path.write_bytes(content)
    with pytest.raises(SpoolError, match="version 2"):
        scan(content)
    with opened(tmp_path) as spool:
        assert "stays as it is: version 2" in caplog.text
        spool.append(make_record())
        assert spool.n_records("trades") == 1
    assert path.read_bytes() == content


def test_files_that_are_not_the_spool_s_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "000").mkdir()
    for name in ("notes.txt", "x.pgtick", "1-y.pgtick"):
        (tmp_path / "000" / name).write_text("mine")
    (tmp_path / "notes").mkdir()
    with opened(tmp_path) as spool:
        assert spool.is_empty
        spool.append(make_record())
        assert len(drain(spool)["trades"]) == 1
    assert {path.name for path in tmp_path.rglob("*")} >= {"notes.txt", "x.pgtick", "1-y.pgtick", "notes"}


def test_a_batch_that_the_form_cannot_hold_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for record in (make_record(n_rows=-1), make_record(n_rows=2**32), make_record("x" * 70_000)):
            with pytest.raises(SpoolError, match="does not fit"):
                spool.append(record)
        assert spool.is_empty
        assert spool.n_bytes == 0
        assert files(tmp_path) == []
