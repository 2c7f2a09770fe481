"""The spool against a list: random operations, with restarts, crashes and harmed disks in between."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from spooled import files, make_record

from pgtick.errors import SpoolFullError
from pgtick.writer.spool import Fsync, Record, Spool, WhenFull

TABLES = st.sampled_from(["trades", "book/ticks", "ü"])


class SpoolAgainstList(RuleBasedStateMachine):
    """``pending`` is what the spool must hold; ``settled`` may come again after a restart, but never before it."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.pending: dict[str, list[Record]] = defaultdict(list)
        self.settled: dict[str, list[Record]] = defaultdict(list)
        self.n_accepted = self.n_settled = self.n_dropped = 0

    @initialize(
        segment_bytes=st.sampled_from([1, 500, 5000]),
        max_bytes=st.sampled_from([1500, 4000, 1 << 20]),
        when_full=st.sampled_from(["wait", "raise", "drop_oldest"]),
        fsync=st.sampled_from(["batch", "interval", "never"]),
    )
    def start(self, segment_bytes: int, max_bytes: int, when_full: WhenFull, fsync: Fsync) -> None:
        self.spool = Spool(
            self.root / "s", segment_bytes=segment_bytes, max_bytes=max_bytes, when_full=when_full, fsync=fsync
        )
        assert self.spool.open() == []

    @rule(table=TABLES, size=st.integers(0, 900), n_rows=st.integers(1, 9))
    def append(self, table: str, size: int, n_rows: int) -> None:
        record = make_record(table, size=size, n_rows=n_rows)
        n_bytes = self.spool.n_bytes
        try:
            self.spool.append(record)
        except SpoolFullError:
            assert self.spool.when_full != "drop_oldest"
            assert n_bytes + size + 200 > self.spool.max_bytes
            return
        self.n_accepted += n_rows
        self.pending[table].append(record)
        self.take_dropped()

    def take_dropped(self) -> None:
        for table, n_rows in self.spool.take_dropped().items():
            self.n_dropped += n_rows
            while n_rows > 0:  # whole batches, the oldest of the table
                n_rows -= self.pending[table].pop(0).n_rows
            assert n_rows == 0

    @rule(table=TABLES)
    def settle(self, table: str) -> None:
        record = self.spool.peek(table)
        assert record == (self.pending[table][0] if self.pending[table] else None)
        if record is not None:
            self.spool.acknowledge(table, record.batch_id)
            self.settled[table].append(self.pending[table].pop(0))
            self.n_settled += record.n_rows

    @rule()
    def close_and_open(self) -> None:
        self.spool.close()
        self.reopen()

    @rule()
    def die_and_start_again(self) -> None:
        for folder in self.spool._folders:  # what the kernel does with a dead process's locks
            os.close(folder._descriptor)
        self.spool._folders.clear()
        for segment in self.spool._writing.values():
            segment.close()
        self.reopen()

    def reopen(self) -> None:
        old = self.spool
        self.spool = Spool(
            old.folder,
            segment_bytes=old.segment_bytes,
            max_bytes=old.max_bytes,
            when_full=old.when_full,
            fsync=old.fsync,
        )
        tables = self.spool.open()
        assert tables == self.spool.tables()
        for table in {*tables, *self.pending}:
            # What was settled in a segment that was not deleted yet comes again, before what is pending.
            n_again = self.spool.n_records(table) - len(self.pending[table])
            assert n_again >= 0
            again = self.settled[table][len(self.settled[table]) - n_again :]
            self.pending[table][:0] = again
            del self.settled[table][len(self.settled[table]) - n_again :]
            self.n_settled -= sum(record.n_rows for record in again)

    @invariant()
    def the_counts_add_up(self) -> None:
        if hasattr(self, "spool"):
            n_spooled = 0
            for table, records in self.pending.items():
                assert self.spool.n_records(table) == len(records)
                assert self.spool.n_rows(table) == sum(record.n_rows for record in records)
                n_spooled += self.spool.n_rows(table)
            assert self.n_accepted == self.n_settled + self.n_dropped + n_spooled
            assert self.spool.n_bytes == sum(path.stat().st_size for path in files(self.root))
            assert self.spool.is_empty == (n_spooled == 0)

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            if self.spool.is_empty:
                assert list((self.root / "s").rglob("*")) == []
        shutil.rmtree(self.root)


TestSpoolAgainstList = SpoolAgainstList.TestCase
TestSpoolAgainstList.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
