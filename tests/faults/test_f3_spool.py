"""F3, the spool's part: a process is SIGKILLed while it appends, rotates, settles or takes over."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from faults.support import record, seeds
from pgtick.writer.segment import Entry, scan

TESTS = Path(__file__).parents[1]


class Log:
    """What the children have said: of each table the numbers that were begun and done."""

    def __init__(self) -> None:
        self.said: dict[tuple[str, str], set[int]] = defaultdict(set)

    def read(self, output: bytes) -> None:
        for line in output.decode().splitlines():
            what, table, number = line.split(" ")
            self.said[what, table].add(int(number))

    def next_number(self, table: str) -> int:
        return max(self.said["append", table], default=-1) + 1


def on_disk(folder: Path) -> dict[str, list[Entry]]:
    """Return what a start would find, by table, in its order."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for path in sorted(folder.rglob("*.pgtick"), key=lambda path: (path.name[:12], path.parent.name)):
        result = scan(path.read_bytes())
        assert result.damages == [], f"{path}: {result}"
        for entry in result.entries:
            found[entry.table].append(entry)
    return found


def kill_round(folder: Path, seed: int, log: Log) -> None:
    """Let one or two processes work on the folder, and kill each at a random moment."""
    chance = random.Random(seed)
    children = []
    for slot in range(chance.choice([1, 1, 2])):
        table = f"table_{slot}"
        fsync = chance.choice(["batch", "interval", "never"])
        arguments = [str(folder), str(seed), table, str(log.next_number(table)), fsync]
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", "faults.spool_child", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,  # what readline has read ahead, communicate would not return
                env={**os.environ, "PYTHONPATH": str(TESTS)},
            )
        )
    outputs = []
    for child in children:
        assert child.stdout is not None
        outputs.append(child.stdout.readline())  # it is open: the kill comes in the work, and sometimes right away
    time.sleep(chance.choice([0.0, 0.001, 0.02, 0.1]) * chance.random())
    for child, first in zip(children, outputs, strict=True):
        child.kill()
        rest, errors = child.communicate()
        assert child.returncode == -9, f"seed {seed}: {errors.decode()}"
        log.read(first + rest)


def judge(folder: Path, seed: int, log: Log) -> None:
    """0 acknowledged batches lost, none invented, order kept."""
    disk = on_disk(folder)
    for table in {table for _, table in log.said}:
        numbers = [entry.created_us for entry in disk[table]]
        assert numbers == sorted(set(numbers)), f"seed {seed}: {table}: {numbers}"
        lost = log.said["appended", table] - log.said["settle", table] - set(numbers)
        assert not lost, f"seed {seed}: {table}: {sorted(lost)} lost"
        assert set(numbers) <= log.said["append", table], f"seed {seed}: {table}: more than was appended"


def kill_often(tmp_path: Path, n_rounds: int) -> Log:
    log = Log()
    for seed in seeds(n_rounds):
        kill_round(tmp_path / "spool", seed, log)
        judge(tmp_path / "spool", seed, log)
    return log


def test_process_killed_at_work_on_its_spool_loses_and_doubles_nothing(tmp_path: Path) -> None:
    log = kill_often(tmp_path, 20)
    assert log.said["appended", "table_0"]


@pytest.mark.slow
def test_process_killed_300_times_at_work_on_its_spool_loses_and_doubles_nothing(tmp_path: Path) -> None:
    log = kill_often(tmp_path, 300)
    count = {
        what: sum(len(log.said[key]) for key in list(log.said) if key[0] == what) for what in ("appended", "settled")
    }
    assert min(count.values()) > 300
    record("F3", "300 kills at work on the spool", f"{count['appended']} batches appended, 0 lost, order kept")
