"""Sender: takes sealed batches to the server, a few at a time, and decides what a failure means for their table."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import asyncpg

from pgtick.connection import DatabaseManager
from pgtick.errors import PgtickError, SchemaChangedError, SpoolError, UnavailableError
from pgtick.tables import Table
from pgtick.writer.batch import Batch
from pgtick.writer.deliver import Delivery, Way, deliver
from pgtick.writer.faults import Fault, fault_of
from pgtick.writer.lane import Lane
from pgtick.writer.metrics import Metrics, without_secrets
from pgtick.writer.quiet_log import QuietLogger
from pgtick.writer.spooling import Spooling

__all__ = ["Sender"]

logger = QuietLogger(logging.getLogger(__name__))

_FIRST_PAUSE_S = 0.1
_CAREFUL_BATCHES = 20  # a refused attempt takes as long as one that is taken
_LONGEST_PAUSE_S = 2.0  # a server that is back is noticed so soon


class Owner(Protocol):
    """What a sender needs of its Writer."""

    metrics: Metrics

    @property
    def db(self) -> DatabaseManager: ...

    @property
    def spooling(self) -> Spooling: ...

    @property
    def is_half_full(self) -> bool: ...

    def lanes(self) -> dict[Table, Lane]: ...

    def make_room(self) -> None: ...


class Sender:
    """Up to ``in_flight`` tasks; each takes one batch after the other, and they end when there is nothing to do.

    A table that fails has one attempt at a time, after a pause with jitter that doubles up to 2 s; others go on.
    """

    def __init__(self, writer: Owner, in_flight: int, flush_timeout_s: float, retry_s: float) -> None:
        self._writer = writer
        self._in_flight = in_flight
        self._flush_timeout_s = flush_timeout_s
        self._retry_s = retry_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakers: set[asyncio.TimerHandle] = set()
        self._changed = asyncio.Event()
        self._is_stopped = False

    def wake(self) -> None:
        """See whether there is something to do."""
        if self._is_stopped:
            return
        while len(self._tasks) < self._in_flight and (job := self._pick()) is not None:
            # Not in the context of who adds: it may be inside a transaction, which these are not part of.
            task = asyncio.get_running_loop().create_task(self._run(job), context=contextvars.Context())
            self._tasks.add(task)
            self._writer.metrics.in_flight = len(self._tasks)
            task.add_done_callback(self._done)

    def start(self) -> None:
        """Go on after ``stop``."""
        self._is_stopped = False

    def stop(self) -> None:
        """Cancel what is on its way; its batches go back to their tables."""
        self._is_stopped = True
        for waker in self._wakers:
            waker.cancel()
        for task in self._tasks:
            task.cancel()

    async def stopped(self) -> None:
        """Return when all tasks have ended."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drain(self) -> None:
        """Return when what is sealed now has left the memory; see Writer.flush for the errors."""
        lanes = list(self._writer.lanes().values())
        waiting = {lane: (set(lane.batches()), lane.n_failures) for lane in lanes}
        for lane in lanes:
            lane.next_try_s = 0.0
        while True:
            changed = self._changed
            self.wake()
            failure: PgtickError | None = None
            is_done = True
            for lane, (batches, n_failures) in waiting.items():
                if not batches & set(lane.batches()):
                    continue
                error = self._failure(lane) if lane.n_failures > n_failures else None
                failure = failure or error
                is_done = is_done and error is not None
            if is_done:
                if failure is not None:
                    raise failure
                return
            await changed.wait()

    def _failure(self, lane: Lane) -> PgtickError | None:
        """Return what a flush raises for the lane, or None: wait on."""
        if lane.is_stopped:
            return lane.error if isinstance(lane.error, PgtickError) else None
        is_long = lane.failing_since_s is not None and time.monotonic() - lane.failing_since_s >= self._retry_s
        if is_long and not self._writer.spooling.can_keep:
            error = UnavailableError(
                f"{lane.table.name}: no batch could be stored for {self._retry_s:g} s, {lane.counts.n_buffered} rows "
                f"are kept in memory: {lane.error}"
            )
            error.__cause__ = lane.error
            return error
        return None

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._writer.metrics.in_flight = len(self._tasks)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("sender", "a task of the sender ended, and goes on anew: %r", error)
        self._notify()
        if not self._is_stopped:
            self.wake()

    def _notify(self) -> None:
        self._changed, changed = asyncio.Event(), self._changed
        changed.set()

    def _pick(self) -> tuple[Lane, Callable[[], Any]] | None:
        """Return a lane with what is to be done for it; the lane waits its turn behind the others then."""
        now = time.monotonic()
        lanes = self._writer.lanes()
        for table, lane in list(lanes.items()):
            if lane.is_busy:
                continue
            job: Callable[[], Any] | None = None
            if self._should_spool(lane, now):
                lane.is_busy = True
                job = partial(self._writer.spooling.keep, lane)
            elif now >= lane.next_try_s and not (lane.failing_since_s is not None and lane.in_hand):
                if lane.counts.n_spooled:
                    if not lane.in_hand:
                        lane.is_busy = True
                        job = partial(self._replay, lane)
                elif (batch := lane.take()) is not None:
                    job = partial(self._attempt, lane, batch)
            if job is not None:
                lanes[table] = lanes.pop(table)
                return lane, job
        return None

    def _should_spool(self, lane: Lane, now: float) -> bool:
        if not lane.sealed or lane.in_hand or not self._writer.spooling.can_keep:
            return False
        if lane.failing_since_s is None:
            return bool(lane.counts.n_spooled) and self._writer.is_half_full
        is_long = now - lane.failing_since_s >= self._retry_s and not lane.is_stopped
        return is_long or self._writer.is_half_full or bool(lane.counts.n_spooled)

    async def _run(self, job: tuple[Lane, Callable[[], Any]]) -> None:
        lane, work = job
        try:
            await work()
        finally:
            lane.is_busy = False
            self._writer.make_room()

    async def _replay(self, lane: Lane) -> None:
        try:
            batch = await self._writer.spooling.oldest(lane)
        except SpoolError as error:
            self._fail(lane, error)
            return
        if batch is not None:
            lane.in_hand.add(batch)
            await self._attempt(lane, batch)

    async def _attempt(self, lane: Lane, batch: Batch) -> None:
        metrics = self._writer.metrics
        started = time.monotonic()
        longest_s = max(self._writer.db.config.statement_timeout_s, self._flush_timeout_s)
        timeout_s = min(self._flush_timeout_s * 2 ** min(lane.n_timeouts, 16), longest_s)
        try:
            delivery = await deliver(self._writer.db, batch, way=lane.way, timeout_s=timeout_s)
        except BaseException as error:
            if batch.is_from_spool:
                lane.in_hand.discard(batch)
            else:
                lane.give_back(batch)
            if not isinstance(error, Exception):
                raise
            metrics.observe_attempt(lane.table.name, time.monotonic() - started)
            await self._failed(lane, error)
            return
        if batch.is_from_spool:
            await self._writer.spooling.acknowledge(lane, batch)
        self._settled(lane, batch, delivery, started, metrics)

    def _settled(self, lane: Lane, batch: Batch, delivery: Delivery, started: float, metrics: Any) -> None:
        lane.settle(batch, delivery)
        lane.is_stopped, lane.failing_since_s, lane.next_try_s, lane.n_timeouts = False, None, 0.0, 0
        # What has bad rows has more of them: the way that took them is the first until so many batches had none.
        if delivery.errors:
            lane.way, lane.n_careful = delivery.way, _CAREFUL_BATCHES
        elif lane.n_careful:
            lane.n_careful -= 1
            if not lane.n_careful:
                lane.way = Way.STRAIGHT
        now = time.monotonic()
        name = lane.table.name
        metrics.n_already_committed += delivery.was_committed
        metrics.n_careful += delivery.way == Way.CAREFUL
        metrics.observe_attempt(name, now - started)
        if not batch.is_from_spool:
            metrics.observe_flush(name, now - batch.sealed_s, batch.n_rows)
        metrics.note_stored(name)
        for error in delivery.errors:
            logger.warning(f"refused {name}", "in quarantine: %s", error)
        self.look()
        self._notify()

    async def _failed(self, lane: Lane, error: Exception) -> None:
        fault = fault_of(error)
        if isinstance(error, TimeoutError):
            lane.n_timeouts += 1
            self._writer.metrics.n_timeouts += 1
        self._writer.metrics.n_retries[fault.value] += 1
        if fault is Fault.RETRY:
            lane.error = error
            lane.is_stopped = False
        else:
            lane.is_stopped = True
            lane.error = SchemaChangedError(
                lane.table.name, f"its rows are kept and tried again, since the server refuses the table: {error}"
            )
            lane.error.__cause__ = error
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError | asyncpg.AdminShutdownError):
            await self._writer.db.expire_connections()  # a standby now: new ones go to the new primary
        self._fail(lane, error)

    def _fail(self, lane: Lane, error: Exception) -> None:
        now = time.monotonic()
        if isinstance(error, SpoolError):
            lane.is_stopped, lane.error = True, error
        lane.n_failures += 1
        if lane.failing_since_s is None:
            lane.failing_since_s = now
            lane.n_failures_in_a_row = 0
        lane.n_failures_in_a_row += 1
        longest = min(_FIRST_PAUSE_S * 2 ** min(lane.n_failures_in_a_row - 1, 10), _LONGEST_PAUSE_S)
        pause_s = longest * random.uniform(0.5, 1.0)  # noqa: S311  no secret depends on it
        lane.next_try_s = now + pause_s
        self._wake_in(pause_s)
        logger.warning(
            f"failed {lane.table.name}",
            "%s: %d rows are kept, next try in %.1f s: %s: %s",
            lane.table.name,
            lane.counts.n_buffered + lane.counts.n_spooled,
            pause_s,
            type(error).__name__,
            without_secrets(str(error)),
        )
        self._writer.metrics.note_error(lane.table.name, error)
        self.look()
        self._notify()

    def _wake_in(self, pause_s: float) -> None:
        def wake() -> None:
            self._wakers.discard(waker)
            self.wake()

        waker = asyncio.get_running_loop().call_later(pause_s + 0.001, wake)
        self._wakers.add(waker)

    def look(self) -> None:
        """Bring the gauges of the metrics up to date."""
        metrics = self._writer.metrics
        lanes = self._writer.lanes().values()
        failing = [lane.failing_since_s for lane in lanes if lane.failing_since_s is not None and not lane.is_stopped]
        metrics.away_since_s = min(failing, default=None)
        metrics.lanes_stopped = {lane.table.name: str(lane.error) for lane in lanes if lane.is_stopped}
        metrics.oldest_buffered_s = {lane.table.name: lane.oldest_held_s for lane in lanes if lane.counts.n_buffered}
