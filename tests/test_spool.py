"""The spool: what is in it comes out of it, in order, whatever process reads it; sizes, policies, permissions."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from spooled import drain, files, make_record, opened

from pgtick.errors import SpoolError, SpoolFullError
from pgtick.writer.lockdir import LockedFolder
from pgtick.writer.spool import Fsync, Spool, WhenFull


def test_batches_come_back_whole_and_in_order_per_table(tmp_path: Path) -> None:
    records = [make_record(f"t{number % 3}", size=number * 7) for number in range(60)]
    with opened(tmp_path, segment_bytes=600) as spool:
        for record in records:
            spool.append(record)
        assert spool.tables() == ["t0", "t1", "t2"]
        assert spool.n_records("t1") == 20
        assert spool.n_rows("t1") == sum(record.n_rows for record in records if record.table == "t1")
        assert not spool.is_empty
        assert drain(spool) == {name: [each for each in records if each.table == name] for name in ("t0", "t1", "t2")}


def test_another_process_s_leftovers_come_before_what_is_new(tmp_path: Path) -> None:
    records = [make_record() for _ in range(30)]
    for first in range(0, 30, 10):
        with opened(tmp_path, segment_bytes=700) as spool:
            for record in records[first : first + 10]:
                spool.append(record)
    with opened(tmp_path) as spool:
        assert drain(spool) == {"trades": records}


def test_folders_of_several_dead_processes_are_all_taken_over_in_order(tmp_path: Path) -> None:
    first, second, third = (Spool(tmp_path, segment_bytes=400) for _ in range(3))
    records = [make_record() for _ in range(9)]
    for spool, mine in ((first, records[:3]), (second, records[3:6])):
        spool.open()
        for record in mine:
            spool.append(record)
    second.close()
    third.open()  # takes the second's folder over; the first still lives
    assert third.n_records("trades") == 3
    for record in records[6:]:
        third.append(record)
    third.close()
    first.close()
    assert {path.parent.name for path in files(tmp_path)} == {"000", "001"}
    with opened(tmp_path) as spool:
        got = drain(spool)["trades"]
    assert sorted(got, key=records.index) == records
    assert [record for record in got if record in records[3:]] == records[3:]  # one process's after what it took over


def test_order_is_that_of_time_over_all_folders_that_are_taken_over(tmp_path: Path) -> None:
    records = [make_record() for _ in range(9)]
    first, second = Spool(tmp_path, segment_bytes=1), Spool(tmp_path, segment_bytes=1)
    for spool, mine in ((first, records[:3]), (second, records[3:6])):  # at the same time, so in two folders
        spool.open()
        for record in mine:
            spool.append(record)
    first.close()
    second.close()
    with opened(tmp_path, segment_bytes=1) as third:  # writes to the first one's folder
        for record in records[6:]:
            third.append(record)
    assert [len(files(tmp_path / name)) for name in ("000", "001")] == [6, 3]
    with opened(tmp_path) as spool:
        assert drain(spool) == {"trades": records}


def test_a_batch_that_is_in_two_files_counts_once(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        records = [make_record(), make_record()]
        for record in records:
            spool.append(record)
    (path,) = files(tmp_path)
    path.with_name("000000000009-trades.pgtick").write_bytes(path.read_bytes())
    with opened(tmp_path) as spool:
        assert spool.n_records("trades") == 2
        assert drain(spool) == {"trades": records}
        assert files(tmp_path) == []


def test_a_lock_file_that_its_holder_removes_meanwhile_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock = fcntl.flock

    def removed_and_made_anew(descriptor: int, operation: int) -> None:
        (tmp_path / "000" / "lock").unlink()
        (tmp_path / "000" / "lock").touch()
        flock(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", removed_and_made_anew)
        assert LockedFolder.take(tmp_path / "000") is None
    taken = LockedFolder.take(tmp_path / "000")
    assert taken is not None
    assert LockedFolder.take(tmp_path / "000") is None
    taken.let_go()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as living:
        record = make_record()
        living.append(record)
        program = f"from pgtick.writer.spool import Spool; s = Spool({str(tmp_path)!r}); print(s.open()); s.close()"
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert ran.stdout == "[]\n"
        assert living.peek("trades") == record


def test_acknowledged_segments_are_deleted_and_nothing_is_left_in_the_end(tmp_path: Path) -> None:
    with opened(tmp_path / "spool", segment_bytes=1000) as spool:
        assert not (tmp_path / "spool").exists()  # nothing is made before it is needed
        records = [make_record(size=300) for _ in range(9)]
        for record in records:
            spool.append(record)
        n_files = len(files(tmp_path))
        for record in records[:4]:
            spool.acknowledge("trades", record.batch_id)
        assert len(files(tmp_path)) < n_files
        assert spool.n_bytes == sum(path.stat().st_size for path in files(tmp_path))
        for record in records[4:]:
            spool.acknowledge("trades", record.batch_id)
        assert files(tmp_path) == []
        assert spool.n_bytes == 0
        assert spool.is_empty
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_batch_appended_twice_is_there_once(tmp_path: Path) -> None:
    record = make_record()
    with opened(tmp_path) as spool:
        spool.append(record)
        spool.append(record)
        assert spool.n_records("trades") == 1
        assert drain(spool) == {"trades": [record]}


def test_acknowledging_what_is_not_there_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(make_record())
        spool.acknowledge("trades", uuid.uuid4())
        spool.acknowledge("other", uuid.uuid4())
        assert spool.n_records("trades") == 1
        assert not spool.dropped


@pytest.mark.parametrize("policy", ["wait", "raise"])
def test_at_the_cap_a_batch_is_refused_and_nothing_of_it_kept(tmp_path: Path, policy: WhenFull) -> None:
    with opened(tmp_path, max_bytes=5000, when_full=policy, segment_bytes=1000) as spool:
        accepted = [make_record(size=400) for _ in range(10)]
        for record in accepted:
            spool.append(record)
        with pytest.raises(SpoolFullError, match="is full: 5000 bytes"):
            spool.append(make_record(size=400))
        assert spool.n_bytes == sum(path.stat().st_size for path in files(tmp_path)) <= 5000
        spool.acknowledge("trades", accepted[0].batch_id)
        spool.acknowledge("trades", accepted[1].batch_id)  # the first segment goes: there is room again
        record = make_record(size=400)
        spool.append(record)
        assert drain(spool) == {"trades": [*accepted[2:], record]}
        assert not spool.dropped


def test_drop_oldest_drops_whole_segments_over_all_tables_and_counts_the_rows(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=5000, when_full="drop_oldest", segment_bytes=1000) as spool:
        records = [make_record(f"t{number % 2}", size=400) for number in range(40)]
        for record in records:
            spool.append(record)
            assert sum(path.stat().st_size for path in files(tmp_path)) <= 5000
        dropped, left = spool.take_dropped(), drain(spool)
        for name in ("t0", "t1"):
            mine = [record for record in records if record.table == name]
            assert 0 < len(left[name]) < len(mine)
            assert left[name] == mine[-len(left[name]) :]
            assert dropped[name] + sum(record.n_rows for record in left[name]) == sum(each.n_rows for each in mine)


def test_drop_oldest_takes_the_quiet_table_s_older_rows_before_the_busy_one_s(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=5000, when_full="drop_oldest", segment_bytes=1) as spool:
        quiet = [make_record("quiet", size=400, n_rows=3) for _ in range(2)]
        busy = [make_record("busy", size=400) for _ in range(9)]
        for record in quiet + busy:
            spool.append(record)
        assert spool.take_dropped() == {"quiet": 3}
        assert drain(spool) == {"quiet": quiet[1:], "busy": busy}


def test_a_batch_dropped_on_its_way_and_stored_after_all_does_not_count_as_dropped(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=2000, when_full="drop_oldest", segment_bytes=900) as spool:
        records = [make_record(size=700, n_rows=number) for number in range(1, 6)]
        spool.append(records[0])
        assert spool.peek("trades") == records[0]
        for record in records[1:]:
            spool.append(record)
        dropped = sum(record.n_rows for record in records[:-2])
        assert spool.dropped["trades"] == dropped
        spool.acknowledge("trades", records[0].batch_id)
        assert spool.dropped["trades"] == dropped - records[0].n_rows
        assert drain(spool) == {"trades": records[-2:]}


@pytest.mark.parametrize("policy", ["wait", "raise", "drop_oldest"])
def test_a_batch_larger_than_the_cap_is_refused_by_every_policy(tmp_path: Path, policy: WhenFull) -> None:
    with opened(tmp_path, max_bytes=1000, when_full=policy) as spool:
        kept = make_record(size=300)
        spool.append(kept)
        with pytest.raises(SpoolFullError, match="larger than the spool"):
            spool.append(make_record(size=1000))
        assert drain(spool) == {"trades": [kept]}
        assert not spool.dropped


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_files_are_for_their_user_alone_under_any_umask(tmp_path: Path) -> None:
    root = tmp_path / "state" / "spool"
    with opened(root) as spool:
        for table in ("trades", "öffentlich/../x", "a" * 300):
            spool.append(make_record(table))
        seen = [tmp_path / "state", *(tmp_path / "state").rglob("*")]
        assert len(seen) == 7
        for path in seen:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    with opened(root) as spool:
        assert len(drain(spool)) == 3


@pytest.mark.parametrize("table", ["../../etc/passwd", ".", "", "a\nb", "ü" * 100, "x" * 63, "a.damaged", "%2F"])
def test_any_table_name_makes_a_safe_file_name_and_comes_back(tmp_path: Path, table: str) -> None:
    with opened(tmp_path) as spool:
        spool.append(make_record(table))
    (path,) = files(tmp_path)
    assert path.parent.parent == tmp_path
    assert len(path.name.encode()) < 128
    assert path.name.isascii()
    with opened(tmp_path) as spool:
        assert spool.tables() == [table]


@pytest.mark.parametrize("policy", ["batch", "interval", "never"])
def test_fsync_is_called_as_often_as_the_policy_says(
    tmp_path: Path, policy: Fsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    with opened(tmp_path / "spool", fsync=policy, fsync_interval_s=1000.0) as spool:
        spool.append(make_record())  # on an interval, the first is due
        synced.clear()
        for _ in range(10):
            spool.append(make_record())
        assert synced == ["file"] * (10 if policy == "batch" else 0)
        spool.sync()
        assert synced == ["file"] * {"batch": 10, "interval": 1, "never": 0}[policy]
        spool.append(make_record("other"))
        assert ("folder" in synced) == (policy != "never")
        synced.clear()
    assert ("file" in synced) == (policy == "interval")


def test_a_spool_that_is_not_open_or_was_forked_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(SpoolError, match="not open"):
        spool.append(make_record())
    spool.close()
    with opened(tmp_path) as spool:
        record = make_record()
        spool.append(record)
        parent = os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: parent + 1)
            with pytest.raises(SpoolError, match="not open in this process"):
                spool.append(make_record())
            spool.close()  # in the child it changes nothing
        assert drain(spool) == {"trades": [record]}


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="when_full is 'drop'"):
        Spool("x", when_full="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fsync is 'always'"):
        Spool("x", fsync="always")  # type: ignore[arg-type]


def test_a_spool_whose_folder_is_deleted_while_it_runs_says_so_and_goes_on(tmp_path: Path) -> None:
    import shutil

    with opened(tmp_path / "spool") as spool:
        lost, kept = make_record(n_rows=3), make_record("other")
        spool.append(lost)
        shutil.rmtree(tmp_path / "spool")
        assert spool.peek("trades") is None
        assert spool.take_dropped() == {"trades": 3}
        spool.append(kept)
        assert drain(spool) == {"other": [kept]}


def test_threads_that_append_peek_and_acknowledge_lose_and_double_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, segment_bytes=2000, fsync="never") as spool:
        records = {f"t{number}": [make_record(f"t{number}") for _ in range(200)] for number in range(4)}
        got: dict[str, list[object]] = {name: [] for name in records}

        def produce(name: str) -> None:
            for record in records[name]:
                spool.append(record)

        def consume(name: str) -> None:
            while len(got[name]) < len(records[name]):
                record = spool.peek(name)
                if record is not None:
                    got[name].append(record)
                    spool.acknowledge(name, record.batch_id)

        threads = [threading.Thread(target=work, args=(name,)) for name in records for work in (produce, consume)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == records
        assert spool.is_empty
        assert spool.n_bytes == 0
