"""Writer: rows collected per table and flushed by size and age."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import asyncpg

from pgtick.connection import DatabaseManager
from pgtick.tables import Table
from pgtick.writer.flush import StoreResult, store_rows

__all__ = ["Writer"]

logger = logging.getLogger(__name__)

_RETRY_S = 1.0  # each try encodes what waits anew


class Writer:
    """Collect rows and store them in batches.

    A batch goes out when ``max_rows`` are waiting or the oldest has waited ``max_age_s``. At ``max_buffered``
    rows in all, ``add`` waits for a flush. Rows of a flush that fails go back to the front and are tried
    again with the next flush; ``close()`` raises if the last one fails. ``totals`` adds up, a table:
    accepted = stored + duplicates + refused + waiting.
    """

    def __init__(
        self,
        db: DatabaseManager | None = None,
        *,
        max_rows: int = 1000,
        max_age_s: float = 0.2,
        max_buffered: int = 200_000,
    ) -> None:
        self._db = db
        self._max_rows = max_rows
        self._max_age_s = max_age_s
        self._max_buffered = max_buffered
        self._waiting: dict[Table, list[Any]] = {}
        self._lock = asyncio.Lock()
        self._timer: asyncio.Task[None] | None = None
        self.totals: dict[str, StoreResult] = {}
        self.n_accepted = 0
        self._n_settled = 0
        self._next_try = 0.0

    @property
    def n_waiting(self) -> int:
        """Rows accepted and not yet settled, those under way to the server among them."""
        return self.n_accepted - self._n_settled

    async def add(self, table: Table, row: object) -> None:
        """Accept a row; wait only when a batch is full or the cap is reached.

        At the cap a flush must have succeeded first: its error is raised, and the row is not accepted. Below it a
        flush that fails is logged and tried again a second later.
        """
        if self.n_waiting >= self._max_buffered:
            await self.flush()
        waiting = self._waiting.setdefault(table, [])
        waiting.append(row)
        self.n_accepted += 1
        if len(waiting) >= self._max_rows and time.monotonic() >= self._next_try:
            await self._try_to_flush()
        elif self._timer is None:
            self._timer = asyncio.create_task(self._flush_later())

    async def flush(self) -> None:
        """Store everything that waits. What cannot be stored is kept, and the first error raised at the end.

        A table that the server refuses does not keep the others from it; a connection error ends the flush.
        """
        failure: asyncpg.PostgresError | None = None
        async with self._lock:
            for table in list(self._waiting):
                rows = self._waiting.pop(table)
                try:
                    result = await store_rows(table, rows, db=self._db)
                except BaseException as error:
                    # Rows that came meanwhile stay behind those that were first.
                    self._waiting[table] = rows + self._waiting.get(table, [])
                    if not isinstance(error, asyncpg.PostgresError):
                        raise
                    failure = failure or error
                else:
                    self._settle(table, len(rows), result)
        if failure is not None:
            raise failure

    def _settle(self, table: Table, n_rows: int, result: StoreResult) -> None:
        self._n_settled += n_rows
        total = self.totals.setdefault(table.name, StoreResult())
        total.n_stored += result.n_stored
        total.n_duplicates += result.n_duplicates
        total.errors.extend(result.errors)
        for error in result.errors:
            logger.warning("%s", error)

    async def _flush_later(self) -> None:
        try:
            await asyncio.sleep(self._max_age_s)
        finally:
            self._timer = None
        await self._try_to_flush()

    async def _try_to_flush(self) -> None:
        try:
            await self.flush()
        except Exception as error:  # the rows are kept; flush, close, and add at the cap raise it
            self._next_try = time.monotonic() + _RETRY_S
            logger.warning("flush failed, %d rows are kept: %s", self.n_waiting, error)

    async def close(self) -> None:
        """Flush what waits and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)
        await self.flush()

    async def __aenter__(self) -> Writer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
