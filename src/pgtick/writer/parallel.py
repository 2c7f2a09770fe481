"""Backfills over several connections: rows split by their leading key, each part in order, in bounded batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from pgtick._fast.batch import EncodedBatch
from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.errors import ParallelError, PgtickError
from pgtick.tables import Table
from pgtick.writer.encoders import encoder_of
from pgtick.writer.flush import StoreResult, store_batch

__all__ = ["ParallelResult", "copy_parallel"]

#: So many batches for each connection are encoded and sorted together: the more, the better the index likes it.
BATCHES_AHEAD = 2


class ParallelResult(StoreResult):
    """A StoreResult of the whole, and of each part; ``errors`` holds also what was refused before any part had it."""

    parts: list[StoreResult] = msgspec.field(default_factory=list)


class _Copy:
    """The parts of one copy: a queue and a task for each connection."""

    def __init__(self, table: Table, connections: int, batch_rows: int, db: DatabaseManager) -> None:
        self.table = table
        self.batch_rows = batch_rows
        self.db = db
        self.result = ParallelResult(parts=[StoreResult() for _ in range(connections)])
        self.failure: BaseException | None = None
        self.progress: Callable[[StoreResult], object] | None = None
        self._queues: list[asyncio.Queue[EncodedBatch | None]] = [asyncio.Queue(1) for _ in range(connections)]
        self._part_of: dict[bytes, int] = {}
        self._loads = [0] * connections

    async def run(self, slabs: Iterator[EncodedBatch]) -> None:
        """Send everything; a failure of one part stops all behind the batches that they are sending."""
        tasks = [asyncio.create_task(self._send(part)) for part in range(len(self._queues))]
        try:
            await self._feed(slabs)
            for queue in self._queues:
                await queue.put(None)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _feed(self, slabs: Iterator[EncodedBatch]) -> None:
        try:
            while self.failure is None and (slab := await asyncio.to_thread(self._next, slabs)) is not None:
                self.result.errors.extend(slab.errors)
                for part, ranges in enumerate(self._split(slab)):
                    for some in _bounded(ranges, self.batch_rows):
                        await self._queues[part].put(slab.take(some))
        except Exception as error:  # a stream may fail behind rows that are stored by then
            if not self._part_of:
                raise
            self.failure = self.failure or error

    def _next(self, slabs: Iterator[EncodedBatch]) -> EncodedBatch | None:
        names = self.table.column_names
        slab = next(slabs, None)
        if slab is None:
            return None
        return slab.sorted(names.index(self.table.key[0]), names.index(self.table.time_column))

    def _split(self, slab: EncodedBatch) -> list[list[tuple[int, int]]]:
        """Return each part's ranges; a key that is new goes to the part that has the fewest rows so far."""
        split: list[list[tuple[int, int]]] = [[] for _ in self._queues]
        for key, start, stop in slab.runs(self.table.column_names.index(self.table.key[0])):
            part = self._part_of.get(key)
            if part is None:
                part = self._part_of[key] = self._loads.index(min(self._loads))
            self._loads[part] += stop - start
            split[part].append((start, stop))
        return split

    async def _send(self, part: int) -> None:
        """Store a part's batches in order. Behind a failure they are taken and left out."""
        result = self.result.parts[part]
        while (batch := await self._queues[part].get()) is not None:
            if self.failure is not None:
                continue
            try:
                stored = await store_batch(self.table, batch, db=self.db)
                for total in (result, self.result):
                    total.n_stored += stored.n_stored
                    total.n_duplicates += stored.n_duplicates
                    total.errors.extend(stored.errors)
                if self.progress is not None:
                    self.progress(self.result)
            except Exception as error:  # whatever it is, the other parts must end in order before it is raised
                self.failure = self.failure or error


def _bounded(ranges: list[tuple[int, int]], n_rows: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the ranges in lists of up to n_rows rows."""
    some: list[tuple[int, int]] = []
    room = n_rows
    for start, stop in ranges:
        while start < stop:
            end = min(stop, start + room)
            some.append((start, end))
            room -= end - start
            start = end
            if room == 0:
                yield some
                some, room = [], n_rows
    if some:
        yield some


def _slabs(table: Table, data: Any, n_rows: int, options: dict[str, Any]) -> Iterator[EncodedBatch]:
    """Yield encoded batches of up to n_rows rows of columns, or of rows."""
    names = getattr(getattr(data, "dtype", None), "names", None)
    if isinstance(data, Mapping) or names or hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__"):
        yield from encoder_of(table).column_batches(data, n_rows, **options)
        return
    if options.get("scales") or options.get("masks"):
        raise TypeError("scales and masks are for columns, not for rows")
    rows: Iterable[object] = data
    whole = encoder_of(table).encode(rows, time_unit=options["time_unit"])
    first = whole.take([])
    first.errors.extend(whole.errors)
    yield first
    for start in range(0, whole.n_rows, n_rows):
        yield whole.take([(start, min(start + n_rows, whole.n_rows))])


async def copy_parallel(
    table: Table,
    data: object,
    *,
    connections: int = 2,
    batch_rows: int = 50_000,
    time_unit: str | None = None,
    scales: Mapping[str, int] | None = None,
    masks: Mapping[str, object] | None = None,
    progress: Callable[[StoreResult], object] | None = None,
    db: DatabaseManager | None = None,
) -> ParallelResult:
    """Store columns, or rows, over several connections of the pool.

    All rows of one leading key (a symbol) go over one connection, in order: sorted by time within each stretch
    of 2 x ``connections`` x ``batch_rows`` rows, the stretches as they come; a few such stretches are in memory,
    encoded, however long an Arrow stream is. ``progress`` gets the totals behind each batch. Refused rows are in
    ``errors``, as with store_columns.

    When a part fails (its connection, the schema), or the stream, the others finish the batches that they are
    sending and stop: ParallelError, whose ``result`` says what each part has stored.
    """
    db = db or get_db_manager()
    if not 1 <= connections <= db.config.max_connections:
        raise ValueError(f"connections must be 1 to {db.config.max_connections}, the pool's, not {connections}")
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be 1 or more, not {batch_rows}")
    if db.in_transaction:
        raise PgtickError("copy_parallel has connections of its own: it cannot be part of a transaction")
    copy = _Copy(table, connections, batch_rows, db)
    copy.progress = progress
    options = {"time_unit": time_unit, "scales": scales, "masks": masks}
    await copy.run(_slabs(table, data, BATCHES_AHEAD * connections * batch_rows, options))
    copy.result.errors.sort(key=lambda error: error.index)
    if copy.failure is not None:
        raise ParallelError(table.name, copy.result) from copy.failure
    return copy.result
