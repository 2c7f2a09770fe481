"""Lane: what a writer holds of one table, and what became of its rows."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from pgtick._fast.batch import EncodedBatch
from pgtick.tables import Table
from pgtick.writer.batch import Batch, Refused
from pgtick.writer.deliver import Delivery, Way
from pgtick.writer.encoders import encoder_of
from pgtick.writer.metrics import Counts
from pgtick.writer.row_json import row_values

__all__ = ["Lane", "TableSettings"]

_REFUSED_BYTES = 512  # about what a refused row takes on its way to quarantine


class TableSettings(msgspec.Struct, frozen=True):
    """When a table's rows go out: so many, or when the oldest is so old."""

    max_rows: int = 5000
    max_age_s: float = 0.2


class Lane:
    """One table's rows on their way: an open batch, sealed ones in their order, and the spool's in front of them.

    ``n_bytes`` is the memory of all that is held, and ``counts`` tells where each row is.
    """

    def __init__(self, table: Table, settings: TableSettings, counts: Counts) -> None:
        self.table = table
        self.settings = settings
        self.counts = counts
        self.encoder = encoder_of(table)
        self.open = EncodedBatch()
        self.open_bytes = 0
        self.refused: list[Refused] = []
        self.sealed: list[tuple[int, Batch]] = []  # in the order of their numbers
        self.in_hand: set[Batch] = set()
        self.sealed_bytes = 0
        self.oldest_s: float | None = None  # of the open batch's first row
        self.is_stopped = False
        self.error: BaseException | None = None
        self.way = Way.STRAIGHT  # that a batch goes first
        self.n_careful = 0  # for so many batches more, when it is not the straight one
        self.is_busy = False  # with its spool
        self.failing_since_s: float | None = None
        self.n_failures = 0
        self.n_failures_in_a_row = 0
        self.n_timeouts = 0  # in a row
        self.next_try_s = 0.0
        self._numbers = itertools.count()
        self._number_of: dict[Batch, int] = {}

    @property
    def n_handed(self) -> int:
        """The index of the next row: how many have been handed over, refused ones among them."""
        return self.counts.n_accepted + self.counts.n_refused

    @property
    def n_open(self) -> int:
        """Rows that are not sealed yet."""
        return self.open.n_rows + len(self.refused)

    @property
    def oldest_held_s(self) -> float:
        """When the oldest row in memory was handed over, or sealed; by the monotonic clock."""
        times = [batch.sealed_s for batch in self.batches()]
        return min(times) if times else self.oldest_s or time.monotonic()

    def refuse(self, row: object, time_unit: str | None) -> None:
        """Take the newest refusal of the open batch for quarantine, with its row."""
        self.refused.append(
            Refused.of(self.table, self.open.errors.pop(), row_values(self.table, row, time_unit=time_unit))
        )

    def extend(self, rows: Iterator[Any], limit: int, time_unit: str | None) -> int:
        """Accept up to ``limit`` rows; return how many. When a row itself raises, those before it are accepted."""
        taken = list(itertools.islice(rows, limit))
        base, n_before = self.n_handed, self.n_open
        try:
            self.encoder.extend(self.open, iter(taken), base, len(taken), time_unit=time_unit)
        finally:
            errors = list(self.open.errors)
            self.open.errors.clear()
            for error in errors:
                row = row_values(self.table, taken[error.index - base], time_unit=time_unit)
                self.refused.append(Refused.of(self.table, error, row))
            self.counts.n_accepted += self.n_open - n_before
            self.counts.n_buffered += self.n_open - n_before
        return len(taken)

    def seal(self) -> Batch | None:
        """Close the open batch, so that rows that come now go into the next one."""
        if not self.n_open:
            return None
        self.open.shrink()
        batch = Batch(self.table, self.open, self.refused)
        self.open, self.refused, self.open_bytes, self.oldest_s = EncodedBatch(), [], 0, None
        return self.put(batch)

    def put(self, batch: Batch) -> Batch:
        """Queue a batch behind the others."""
        batch.sealed_s = time.monotonic()
        number = self._number_of[batch] = next(self._numbers)
        self.sealed.append((number, batch))
        self.sealed_bytes += bytes_of(batch)
        return batch

    def take(self) -> Batch | None:
        """Take the oldest sealed batch in hand."""
        if not self.sealed:
            return None
        batch = self.sealed.pop(0)[1]
        self.in_hand.add(batch)
        return batch

    def give_back(self, batch: Batch) -> None:
        """Put a batch that was in hand where it was."""
        self.in_hand.discard(batch)
        number = self._number_of.get(batch)
        if number is not None:  # else it went to the spool, because the writer was closed meanwhile
            bisect.insort(self.sealed, (number, batch), key=lambda pair: pair[0])

    def leave(self, batch: Batch) -> None:
        """Forget a batch that is settled, or in the spool."""
        self.in_hand.discard(batch)
        if self._number_of.pop(batch, None) is not None:
            self.sealed_bytes -= bytes_of(batch)

    def settle(self, batch: Batch, delivery: Delivery) -> None:
        """Count what became of a batch's rows."""
        counts = self.counts
        if batch.is_from_spool:
            counts.n_spooled -= batch.n_rows
        else:
            counts.n_buffered -= batch.n_rows
        counts.n_stored += delivery.n_stored
        counts.n_duplicates += delivery.n_duplicates
        counts.n_quarantined += delivery.n_quarantined
        self.error = None
        self.leave(batch)

    def batches(self) -> Iterable[Batch]:
        """Return what is in memory, oldest first."""
        held = [*self.sealed, *((self._number_of.get(batch, -1), batch) for batch in self.in_hand)]
        return [batch for _, batch in sorted(held, key=lambda pair: pair[0]) if not batch.is_from_spool]


def bytes_of(batch: Batch) -> int:
    """Return the memory that a batch takes."""
    # A sixteenth more is what the allocator takes beside it: resident memory is 1.06 times n_allocated.
    return batch.rows.n_allocated * 17 // 16 + _REFUSED_BYTES * len(batch.refused)
