"""Writer: rows from the event loop to their tables, each exactly once (docs/reliability.md)."""

from __future__ import annotations

import asyncio
import atexit
import logging
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.errors import BufferFullError, PgtickError, SpoolFullError, WriterClosedError
from pgtick.tables import Table
from pgtick.writer.batch import Batch, Refused, in_turns
from pgtick.writer.lane import Lane, TableSettings
from pgtick.writer.metrics import Counts, Health, Metrics, health
from pgtick.writer.row_json import read_back
from pgtick.writer.sender import Sender
from pgtick.writer.spool import Spool
from pgtick.writer.spooling import Spooling

__all__ = ["Writer"]

logger = logging.getLogger(__name__)

_open_writers: weakref.WeakSet[Writer] = weakref.WeakSet()
_CHUNK_ROWS = 1000  # so many rows are encoded before the event loop gets its turn: about 0.2 ms


class Writer:
    """Take rows, and see to it that each is stored exactly once, or spooled, or quarantined with its reason.

    A table's rows go out when ``max_rows`` wait or the oldest has waited ``max_age_s``; ``tables`` holds the settings
    of single tables. ``max_bytes`` caps the memory of all rows; at the cap ``add`` waits or raises BufferFullError
    (``when_full``). ``refused``: a row that breaks a rule goes to quarantine, or ``add`` raises RowError and has not
    accepted it. ``in_flight`` batches are on their way at once, each with ``flush_timeout_s`` an attempt, doubled
    after each attempt that ran out. A server that is away for ``retry_s`` gets its rows from the spool later
    (``spool``: a Spool, its folder, False for none, None for the place in docs/spool.md); without a spool they wait
    in memory. ``counts`` by table always add up.

    For one event loop. ``add`` waits for nothing below the cap.
    """

    def __init__(
        self,
        db: DatabaseManager | None = None,
        *,
        max_rows: int = 5000,
        max_age_s: float = 0.2,
        max_bytes: int = 64 << 20,
        when_full: str = "wait",
        refused: str = "quarantine",
        in_flight: int = 2,
        flush_timeout_s: float = 8.0,
        retry_s: float = 10.0,
        close_timeout_s: float = 10.0,
        spool: Spool | Path | str | bool | None = None,
        tables: Mapping[Table, TableSettings] | None = None,
    ) -> None:
        if when_full not in ("wait", "raise"):
            raise ValueError(f"when_full is wait or raise, not {when_full!r}")
        if refused not in ("quarantine", "raise"):
            raise ValueError(f"refused is quarantine or raise, not {refused!r}")
        if min(max_rows, max_bytes, in_flight) < 1 or min(max_age_s, retry_s) < 0 or flush_timeout_s <= 0:
            raise ValueError("max_rows, max_bytes and in_flight must be 1 or more, no time may be negative")
        self._db = db
        self._settings = TableSettings(max_rows, max_age_s)
        self._table_settings = dict(tables or {})
        self._max_bytes = max_bytes
        self._waits = when_full == "wait"
        self._quarantines = refused == "quarantine"
        self._close_timeout_s = close_timeout_s
        self._lanes: dict[Table, Lane] = {}
        self._n_bytes = 0  # as of the last look; see _count_bytes
        self._room = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.metrics = Metrics()
        self.metrics.max_bytes = max_bytes
        self._spooling = Spooling(spool, self._lanes, self.metrics)
        self._sender = Sender(self, in_flight, flush_timeout_s, retry_s)
        self.metrics.refreshers.append(self._sender.look)
        _open_writers.add(self)

    @property
    def db(self) -> DatabaseManager:
        """The manager that rows go through."""
        return self._db or get_db_manager()

    @property
    def counts(self) -> dict[str, Counts]:
        """What became of the rows, by table's name."""
        return self.metrics.counts

    @property
    def n_accepted(self) -> int:
        """Rows accepted, of all tables."""
        return sum(counts.n_accepted for counts in self.counts.values())

    @property
    def n_waiting(self) -> int:
        """Rows in memory, those on their way among them."""
        return sum(counts.n_buffered for counts in self.counts.values())

    def health(self, stale_after: Mapping[str, float] | None = None) -> Health:
        """Return what an operator wants to know; ``stale_after``: seconds by table without a stored row."""
        return health(self.metrics, stale_after)

    async def add(self, table: Table, row: object, *, time_unit: str | None = None) -> None:
        """Accept a row; wait only at the cap."""
        lane = self._lanes.get(table)
        if lane is None or self._n_bytes >= self._max_bytes or self._is_closed or self._spooling.raises:
            lane = await self._admit(table)
        counts, batch = lane.counts, lane.open
        if not lane.encoder.append(batch, row, counts.n_accepted + counts.n_refused, time_unit=time_unit):
            if not self._quarantines:
                counts.n_refused += 1
                raise batch.errors.pop()
            lane.refuse(row, time_unit)
        counts.n_accepted += 1
        counts.n_buffered += 1
        size = batch.n_allocated
        if size != lane.open_bytes:
            self._n_bytes += size - lane.open_bytes
            lane.open_bytes = size
        if batch.n_rows + len(lane.refused) >= lane.settings.max_rows:  # n_open, without the call of a property
            self._seal(lane)
        elif lane.oldest_s is None:
            self._start_age(lane)

    async def add_many(self, table: Table, rows: Iterable[object], *, time_unit: str | None = None) -> None:
        """Accept rows in their order, giving the event loop its turn. With refused="raise" those before it are in."""
        source = iter(rows)
        if not self._quarantines:
            for row in source:
                await self.add(table, row, time_unit=time_unit)
            return
        while True:
            lane = await self._admit(table)
            room = min(_CHUNK_ROWS, max(lane.settings.max_rows - lane.n_open, 1))
            try:
                n_taken = lane.extend(source, room, time_unit)
            finally:
                self._count_bytes()
                if lane.n_open >= lane.settings.max_rows:
                    self._seal(lane)
                elif lane.n_open and lane.oldest_s is None:
                    self._start_age(lane)
            if not n_taken:
                return
            if n_taken == _CHUNK_ROWS:
                await asyncio.sleep(0)

    async def add_columns(
        self,
        table: Table,
        columns: object,
        *,
        time_unit: str | None = None,
        scales: Mapping[str, int] | None = None,
        masks: Mapping[str, object] | None = None,
    ) -> None:
        """Accept columns (docs/columns.md), encoded in a thread; they must not change until this returns."""
        lane = await self._admit(table)
        refused: list[tuple[tuple[Any, ...], dict[str, object]]] = []
        batches = lane.encoder.column_batches(
            columns, lane.settings.max_rows, time_unit=time_unit, scales=scales, masks=masks, refused=refused
        )
        n_before = 0
        while (encoded := await asyncio.to_thread(next, batches, None)) is not None:
            errors = list(encoded.errors)
            encoded.errors.clear()
            kept = [
                Refused.of(table, error, read_back(table, values) | unfit)
                async for error, (values, unfit) in in_turns(zip(errors, refused, strict=True))
            ]
            refused.clear()
            await self._admit(table)
            # Their places in the columns become numbers of rows handed over, others of meanwhile among them.
            base = lane.n_handed - n_before
            n_before += encoded.n_rows + len(errors)
            encoded.shift(base)
            for error in errors:
                error.index += base
            for row in kept:
                row.index += base
            if errors and not self._quarantines:
                lane.counts.n_refused += len(errors)
            self._seal(lane)
            encoded.shrink()
            batch = Batch(table, encoded, kept if self._quarantines else [])
            lane.counts.n_accepted += batch.n_rows
            lane.counts.n_buffered += batch.n_rows
            if batch.n_rows:
                lane.put(batch)
            self._count_bytes()
            self._sender.wake()
            if errors and not self._quarantines:
                raise errors[0]

    async def flush(self) -> None:
        """Return when everything accepted so far is stored, quarantined or in the spool.

        Raises SchemaChangedError for a table that is stopped, UnavailableError when the server is away and there is no
        spool; rows are kept in both.
        """
        for lane in list(self._lanes.values()):
            self._seal(lane)
        await self._sender.drain()

    async def close(self) -> None:
        """Flush within ``close_timeout_s``, spool what is left, and end; cancelled, it spools at once.

        Raises what kept rows from both; they are in memory then, and ``close`` can be called again.
        """
        if self._is_closed and not self.n_waiting:
            return
        self._is_closed = True
        self._sender.start()  # where an earlier close has left rows
        self._room.set()
        failure: BaseException | None = None
        try:
            async with asyncio.timeout(self._close_timeout_s):
                await self.flush()
        except (PgtickError, TimeoutError) as error:
            failure = error
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._sender.stop()
            for lane in self._lanes.values():
                lane.seal()
            left = self._spooling.keep_all()
            self._spooling.close()
        await self._sender.stopped()
        if left:
            raise failure or PgtickError(f"{left} rows could be neither stored nor spooled") from failure
        _open_writers.discard(self)

    async def __aenter__(self) -> Writer:
        await self._recover()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def lanes(self) -> dict[Table, Lane]:
        """Return the tables' lanes."""
        return self._lanes

    def lane(self, table: Table) -> Lane:
        """Return the table's lane, made when it is new."""
        lane = self._lanes.get(table)
        if lane is None:
            counts = self.metrics.counts_of(table.name)
            lane = self._lanes[table] = Lane(table, self._table_settings.get(table, self._settings), counts)
            self._spooling.adopt(lane)
        return lane

    @property
    def spooling(self) -> Spooling:
        """The way to the spool and back."""
        return self._spooling

    async def _recover(self) -> None:
        if not self._spooling.is_open and not self._is_closed:
            self._db = self.db  # the senders have no context of who adds
            self.metrics.pool_state = self._db.pool_state
            await self._spooling.recover(self.db, self.lane)
            self._sender.wake()

    async def _admit(self, table: Table) -> Lane:
        """Wait for room, and make what a first row needs; raise where rows are not accepted."""
        if self._is_closed:
            raise WriterClosedError("the writer is closed: this row was not accepted")
        await self._recover()
        lane = self.lane(table)
        if self._spooling.raises:
            raise SpoolFullError("the spool is full, and its policy is to raise: this row was not accepted")
        # When nothing is held, nothing will go: one row is taken, however small the cap.
        while self._count_bytes() >= self._max_bytes and self.n_waiting:
            if not self._waits:
                raise BufferFullError(f"{self._n_bytes} bytes are buffered, max_bytes is {self._max_bytes}")
            self._seal(lane)
            self._room.clear()
            await self._room.wait()
            if self._is_closed:
                raise WriterClosedError("the writer was closed meanwhile: this row was not accepted")
        return lane

    def _start_age(self, lane: Lane) -> None:
        lane.oldest_s = time.monotonic()
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer.when() > loop.time() + lane.settings.max_age_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(lane.settings.max_age_s, self._seal_old)

    def _seal_old(self) -> None:
        """Seal what is old enough, and come again for the next."""
        self._timer = None
        now = time.monotonic()
        next_s: float | None = None
        for lane in list(self._lanes.values()):  # sealing wakes the sender, which gives the others their turn
            if lane.oldest_s is None:
                continue
            left = lane.oldest_s + lane.settings.max_age_s - now
            if left <= 0.001:
                self._seal(lane)
            else:
                next_s = left if next_s is None else min(next_s, left)
        if next_s is not None:
            self._timer = asyncio.get_running_loop().call_later(next_s, self._seal_old)

    def _seal(self, lane: Lane) -> None:
        if lane.seal() is not None:
            self._count_bytes()
            self._sender.wake()

    def _count_bytes(self) -> int:
        n_bytes = 0
        for lane in self._lanes.values():
            lane.open_bytes = lane.open.n_allocated
            n_bytes += lane.open_bytes + lane.sealed_bytes
        self._n_bytes = self.metrics.n_bytes_buffered = n_bytes
        return n_bytes

    def make_room(self) -> None:
        """Let those go on who wait at the cap, if there is room."""
        if self._count_bytes() < self._max_bytes:
            self._room.set()

    @property
    def is_half_full(self) -> bool:
        """Whether half of the cap is taken."""
        return self._n_bytes * 2 >= self._max_bytes

    def keep_at_exit(self) -> None:
        """Spool what is in memory, without an event loop."""
        for lane in self._lanes.values():
            lane.seal()
        left = self._spooling.keep_all(self._db)
        self._spooling.close()
        if left:
            logger.error("%d rows are lost: the interpreter exits, and they could be neither stored nor spooled", left)


@atexit.register
def _keep_all_at_exit() -> None:
    for writer in list(_open_writers):
        if writer.n_waiting:
            writer.keep_at_exit()
