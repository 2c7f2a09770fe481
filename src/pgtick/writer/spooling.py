"""Spooling: batches from a writer's memory to its spool and back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager
from pgtick.embedded import state_folder
from pgtick.errors import SpoolError, SpoolFullError
from pgtick.tables import BUILT_IN_TABLES, Table
from pgtick.writer.batch import Batch
from pgtick.writer.lane import Lane
from pgtick.writer.metrics import Metrics
from pgtick.writer.quiet_log import QuietLogger
from pgtick.writer.spool import Spool

__all__ = ["Spooling", "spool_folder"]

logger = QuietLogger(logging.getLogger(__name__))

_PAUSE_S = 1.0  # after the spool was full, or could not be written


def spool_folder(config: DatabaseConfig) -> Path:
    """Return where a database's rows are spooled unless another place is named."""
    return state_folder() / "spool" / quote(f"{config.host}:{config.port}/{config.database}", safe="")


class Spooling:
    """A writer's spool, opened when it is first needed, or when an earlier process has left rows in it."""

    def __init__(self, spool: Spool | Path | str | bool | None, lanes: dict[Table, Lane], metrics: Metrics) -> None:
        self._given = spool
        self._lanes = lanes
        self._metrics = metrics
        self._lock = asyncio.Lock()
        self._spool: Spool | None = None
        self._is_writable = False
        self._next_try_s = 0.0
        self._counted: set[str] = set()
        self._syncing: asyncio.TimerHandle | None = None
        self._sync: asyncio.Future[None] | None = None  # held, so that it is not collected
        self.is_open = False  # or found to be empty
        self.raises = False

    @property
    def can_keep(self) -> bool:
        """Whether batches may be brought to it now."""
        return self._given is not False and time.monotonic() >= self._next_try_s

    async def recover(self, db: DatabaseManager, lane_of: Callable[[Table], Lane]) -> None:
        """Find what earlier processes have left; their tables get lanes."""
        self.is_open = True
        if self._given is False:
            return
        self._spool = self._given if isinstance(self._given, Spool) else Spool(self._folder(db))
        if not self._spool.folder.is_dir():
            return
        try:
            tables = set(await asyncio.to_thread(self._spool.open))
            self._is_writable = True
        except (SpoolError, OSError) as error:
            logger.warning("open", "the spool cannot be opened, rows wait in memory: %s", error)
            return
        known = {table.name: table for table in (*BUILT_IN_TABLES, *self._lanes)}
        for name in tables & known.keys():
            self.adopt(lane_of(known[name]))
        for name in tables - known.keys():
            logger.warning(f"unknown {name}", "the spool holds rows of %s: they go when its Table is first used", name)

    def adopt(self, lane: Lane) -> None:
        """Count what the spool holds of a lane's table."""
        name = lane.table.name
        if self._spool is None or not self._is_writable or name in self._counted:
            return
        self._counted.add(name)
        n_rows = self._spool.n_rows(name)
        lane.counts.n_recovered += n_rows
        lane.counts.n_spooled += n_rows

    async def keep(self, lane: Lane) -> None:
        """Bring a lane's sealed batches to the spool, oldest first."""
        async with self._lock:
            while lane.sealed and not lane.in_hand:
                batch = lane.sealed[0][1]
                # Once begun it is carried through: a cancellation must not leave it in both places, or in none.
                appended = asyncio.ensure_future(asyncio.to_thread(self._append, batch))
                try:
                    await asyncio.shield(appended)
                except asyncio.CancelledError:
                    await asyncio.wait([appended])
                    if appended.exception() is None:
                        self._moved(lane, batch)
                    raise
                except (SpoolError, OSError) as error:
                    self._refused(error)
                    return
                self._moved(lane, batch)
        self._sync_later()

    def _sync_later(self) -> None:
        """Sync behind the last batch, too, where the spool syncs on an interval."""
        spool = self._spool
        if spool is None or spool.fsync != "interval" or self._syncing is not None:
            return

        def sync() -> None:
            self._syncing = None
            if self._is_writable:
                self._sync = asyncio.ensure_future(asyncio.to_thread(self._sync_now, spool))

        self._syncing = asyncio.get_running_loop().call_later(spool.fsync_interval_s, sync)

    def _sync_now(self, spool: Spool) -> None:
        try:
            spool.sync()
        except SpoolError as error:
            logger.warning("sync", "the spool could not be synced: %s", error)

    def keep_all(self, db: DatabaseManager | None = None) -> int:
        """Bring everything in memory to the spool, without an event loop; return how many rows are left."""
        left = 0
        for lane in self._lanes.values():
            for batch in lane.batches():
                try:
                    if self._given is False:
                        raise SpoolError("there is no spool")
                    if self._spool is None and db is not None:
                        self._spool = self._given if isinstance(self._given, Spool) else Spool(self._folder(db))
                    self._append(batch)
                    lane.sealed = [pair for pair in lane.sealed if pair[1] is not batch]
                    self._moved(lane, batch)
                except (SpoolError, OSError) as error:
                    self._refused(error)
                    left += batch.n_rows
        return left

    async def oldest(self, lane: Lane) -> Batch | None:
        """Return the oldest batch of the lane's table in the spool."""
        spool = self._spool
        if spool is None:
            return None
        record = await asyncio.to_thread(spool.peek, lane.table.name)
        self._count_dropped()  # what it found unreadable
        if record is None:
            return None
        return Batch.from_record(lane.table, record)

    async def acknowledge(self, lane: Lane, batch: Batch) -> None:
        """Let go of a batch of the spool that is settled."""
        if self._spool is not None:
            # Not awaited under cancellation: the ledger makes another delivery harmless.
            await asyncio.to_thread(self._spool.acknowledge, lane.table.name, batch.id)
            self._count_dropped()
            self._look()

    def close(self) -> None:
        """Sync and unlock it."""
        if self._syncing is not None:
            self._syncing.cancel()
        if self._spool is not None and self._is_writable:
            self._is_writable = False
            try:
                self._spool.close()
            except SpoolError as error:
                logger.warning("close", "the spool is closed, and a power cut may cost its newest rows: %s", error)

    def _folder(self, db: DatabaseManager) -> Path:
        return Path(self._given) if isinstance(self._given, Path | str) else spool_folder(db.config)

    def _append(self, batch: Batch) -> None:
        if self._spool is None:
            raise SpoolError("there is no spool")
        if not self._is_writable:
            self._spool.open()
            self._is_writable = True
            for lane in list(self._lanes.values()):  # what a process has left that died after this one's start
                self.adopt(lane)
        self._spool.append(batch.to_record())

    def _moved(self, lane: Lane, batch: Batch) -> None:
        if lane.sealed and lane.sealed[0][1] is batch:
            lane.sealed.pop(0)
        lane.leave(batch)
        self._counted.add(lane.table.name)
        lane.counts.n_buffered -= batch.n_rows
        lane.counts.n_spooled += batch.n_rows
        self.raises = False
        self._count_dropped()
        self._look()

    def _count_dropped(self) -> None:
        dropped = self._spool.take_dropped() if self._spool is not None else Counter[str]()
        for name, n_rows in dropped.items():
            counts = self._metrics.counts_of(name)
            counts.n_spooled -= n_rows
            counts.n_dropped += n_rows
            logger.warning(
                f"dropped {name}",
                "%d rows of %s are dropped, or cannot be read",
                n_rows,
                name,
            )

    def _refused(self, error: Exception) -> None:
        self._next_try_s = time.monotonic() + _PAUSE_S
        self._metrics.n_spool_errors += 1
        self.raises = isinstance(error, SpoolFullError) and self._spool is not None and self._spool.when_full == "raise"
        logger.warning("spool", "batches stay in memory, the spool takes none: %s", error)

    def _look(self) -> None:
        if self._spool is not None:
            self._metrics.spool_bytes = self._spool.n_bytes
            self._metrics.spool_records = sum(self._spool.n_records(name) for name in self._metrics.counts)
            self._metrics.max_spool_bytes = self._spool.max_bytes
