"""F4: the spool's disk is full, or fails: at every single call, and from every call on. The policy and nothing else."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from spooled import drain, files, opened

from faults.spool_child import numbered
from faults.support import record, seeds
from pgtick.errors import SpoolError, SpoolFullError
from pgtick.writer.segment import Record, scan
from pgtick.writer.spool import Fsync, Spool, WhenFull

TESTS = Path(__file__).parents[1]
DISK_BYTES = 1 << 20
CALLS = ("pwrite", "fsync", "ftruncate", "open", "unlink", "mkdir")


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], is_due: Callable[[int], bool], code: int, *, half: bool
) -> Iterator[list[str]]:
    """Let calls of the system fail; yield the list of those made. ``half``: a write is first half done."""
    made: list[str] = []

    def wrap(name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if is_due(len(made)):
                if half and name == "pwrite" and len(args[1]) > 1:
                    real(args[0], args[1][: len(args[1]) // 2], *args[2:])
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(os, name, wrap(name))
        yield made


class Run:
    """A few appends and settlings in small segments; what was accepted, refused, settled."""

    def __init__(self, spool: Spool, seed: int) -> None:
        self.spool = spool
        self.pending: list[Record] = []
        self.settled: list[Record] = []
        self.refused: list[Record] = []
        self._chance = random.Random(seed)

    def go(self) -> None:
        for number in range(14):
            batch = numbered("trades", number, self._chance)
            try:
                self.spool.append(batch)
            except SpoolError:
                self.refused.append(batch)
            else:
                self.pending.append(batch)
            with suppress(SpoolError):
                self.spool.sync()
            if number % 3 == 2:
                self.settle()

    def settle(self) -> None:
        try:
            oldest = self.spool.peek("trades")
        except SpoolError:  # it cannot be read now
            return
        assert oldest == (self.pending[0] if self.pending else None)
        if oldest is not None:
            self.spool.acknowledge("trades", oldest.batch_id)
            self.settled.append(self.pending.pop(0))

    def judge(self, *, may_be_back: bool) -> None:
        """Compare with what the living spool says, and with what the next process finds."""
        spool = self.spool
        assert spool.n_records("trades") == len(self.pending)
        assert spool.n_rows("trades") == sum(batch.n_rows for batch in self.pending)
        assert not spool.dropped
        for path in files(spool.folder):
            assert scan(path.read_bytes()).damages == [], path
        with suppress(SpoolError):
            spool.close()
        with opened(spool.folder) as next_one:
            found = drain(next_one).get("trades", [])
            assert next_one.n_bytes == 0
        assert list(spool.folder.rglob("*")) == []
        assert [batch for batch in found if batch in self.pending] == self.pending
        again = [batch for batch in found if batch not in self.pending]
        settled = [batch for batch in again if batch not in self.refused]
        # What was settled last comes again, from a segment that was not deleted yet.
        assert settled == self.settled[len(self.settled) - len(settled) :]
        assert may_be_back or settled == again


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what an fsync takes is not the question here."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="pgtick_test_") as folder:
        yield Path(folder)


def clean_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], fsync: Fsync) -> int:
    """Return how many of the calls are made when none fails."""
    with failing(monkeypatch, names, lambda _: False, errno.EIO, half=False) as made:
        spool = Spool(tmp_path / "clean", segment_bytes=600, fsync=fsync, fsync_interval_s=0.0)
        spool.open()
        run = Run(spool, 1)
        run.go()
    run.judge(may_be_back=False)
    assert not run.refused
    return len(made)


@pytest.mark.parametrize("fsync", ["batch", "interval", "never"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("name", CALLS)
def test_any_one_call_that_fails_costs_at_most_its_batch(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, fsync: Fsync
) -> None:
    """ "Fail the N-th write", for every N: the batch is refused, everything else is as if nothing had been."""
    n_refused = 0
    for nth in range(1, clean_run(memory_path, monkeypatch, (name,), fsync) + 1):
        spool = Spool(memory_path / f"{nth}", segment_bytes=600, fsync=fsync, fsync_interval_s=0.0)
        spool.open()
        run = Run(spool, 1)
        with failing(monkeypatch, (name,), nth.__eq__, code, half=bool(nth % 2)):
            run.go()
        assert len(run.refused) <= 1
        n_refused += len(run.refused)
        run.judge(may_be_back=False)
    if name == "pwrite" or (name == "fsync" and fsync == "batch"):
        assert n_refused


@pytest.mark.parametrize("fsync", ["batch", "interval", "never"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
def test_a_disk_that_fails_from_any_call_on_costs_nothing_that_was_accepted(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, fsync: Fsync
) -> None:
    for first in range(1, clean_run(memory_path, monkeypatch, CALLS, fsync) + 1):
        spool = Spool(memory_path / f"{first}", segment_bytes=600, fsync=fsync, fsync_interval_s=0.0)
        spool.open()
        run = Run(spool, 1)
        with failing(monkeypatch, CALLS, lambda n, first=first: n >= first, code, half=bool(first % 2)):  # type: ignore[misc]
            run.go()
            assert run.refused
        for number in range(100, 103):  # the disk is well again: so is the spool
            batch = numbered("trades", number, random.Random(1))
            spool.append(batch)
            run.pending.append(batch)
        run.settle()
        run.judge(may_be_back=True)  # refused and written whole, where no call was left to take it away


def test_an_unreadable_disk_is_told_and_nothing_is_taken_for_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as spool:
        batch = numbered("trades", 1, random.Random(1))
        spool.append(batch)
        with monkeypatch.context() as patch:

            def unreadable(*_: object) -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            patch.setattr(Path, "open", unreadable)
            with pytest.raises(SpoolError, match="cannot read trades: Input/output error"):
                spool.peek("trades")
        assert spool.peek("trades") == batch


# A real small disk


def small_disk(*arguments: str) -> str:
    """Run this module's ``on_small_disk`` in a mount namespace of its own, on a file system of 1 MB."""
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no small file system: unshare --mount is not possible here")
    script = 'mount -t tmpfs -o size=1m,mode=0700 tmpfs "$1" && shift && exec "$@"'
    folder = arguments[0]
    ran = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", folder, sys.executable, "-m", "faults.test_f4_spool", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def on_small_disk(folder: Path, seed: int, when_full: WhenFull, fsync: Fsync) -> None:
    """Fill the disk through the spool, judge, make room, go on, judge again."""
    chance = random.Random(seed)
    assert os.statvfs(folder).f_blocks * os.statvfs(folder).f_frsize == DISK_BYTES
    (folder / "other").write_bytes(bytes(chance.randrange(DISK_BYTES // 2)))  # the disk is not the spool's alone
    spool = Spool(folder / "spool", segment_bytes=chance.randrange(20_000, 200_000), when_full=when_full, fsync=fsync)
    spool.open()
    pending: list[Record] = []
    n_dropped = 0
    reasons: list[str] = []
    for number in itertools.count():
        batch = numbered(f"t{chance.randrange(3)}", number, chance)
        batch.body += chance.randbytes(chance.randrange(30_000))
        try:
            spool.append(batch)
        except SpoolFullError as error:
            reasons.append(str(error))
        else:
            pending.append(batch)
        dropped = spool.take_dropped()
        for table, n_rows in dropped.items():
            assert when_full == "drop_oldest"
            n_dropped += n_rows
            while n_rows > 0:
                oldest = next(each for each in pending if each.table == table)
                pending.remove(oldest)
                n_rows -= oldest.n_rows
            assert n_rows == 0
        judge_disk(spool, pending)
        if len(reasons) >= 5 or number >= 200:
            break
    assert all("No space left on device" in reason for reason in reasons)
    assert (n_dropped > 0, bool(reasons)) == ((True, False) if when_full == "drop_oldest" else (False, True))
    (folder / "other").unlink(missing_ok=True)  # room again: without a restart it goes on
    batch = numbered("t0", 10_000, chance)
    spool.append(batch)
    pending.append(batch)
    judge_disk(spool, pending)
    spool.close()
    with opened(folder / "spool") as next_one:
        got = drain(next_one)
    assert got == {name: [each for each in pending if each.table == name] for name in got}
    assert sum(map(len, got.values())) == len(pending)
    print(f"{len(pending)} kept, {len(reasons)} refused, {n_dropped} rows dropped")


def judge_disk(spool: Spool, pending: list[Record]) -> None:
    """No corrupt segment, nothing unfinished in one, exact counts."""
    n_rows: Counter[str] = Counter()
    for batch in pending:
        n_rows[batch.table] += batch.n_rows
    assert {name: spool.n_rows(name) for name in spool.tables()} == n_rows
    found = set()
    for path in files(spool.folder):
        result = scan(path.read_bytes())
        assert (result.damages, result.torn_at) == ([], None), path
        found |= {entry.batch_id for entry in result.entries}
    assert found == {batch.batch_id for batch in pending}
    assert spool.n_bytes == sum(path.stat().st_size for path in files(spool.folder))


@pytest.mark.parametrize("fsync", ["batch", "never"])
@pytest.mark.parametrize("when_full", ["wait", "raise", "drop_oldest"])
def test_full_disk_does_what_the_policy_says_and_no_segment_is_corrupt(
    tmp_path: Path, when_full: WhenFull, fsync: Fsync
) -> None:
    for seed in seeds(2):
        small_disk(str(tmp_path), str(seed), when_full, fsync)


@pytest.mark.slow
def test_full_disk_100_times_does_what_the_policy_says_and_no_segment_is_corrupt(tmp_path: Path) -> None:
    policies = itertools.cycle(itertools.product(("wait", "raise", "drop_oldest"), ("batch", "interval", "never")))
    for seed, (when_full, fsync) in zip(seeds(100), policies, strict=False):
        small_disk(str(tmp_path), str(seed), when_full, fsync)
    record(
        "F4", "a disk of 1 MB full, 100 seeds over all policies", "the policy kept, 0 corrupt segments, counts exact"
    )


if __name__ == "__main__":
    on_small_disk(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])  # type: ignore[arg-type]
