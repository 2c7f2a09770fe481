"""One COPY TO STDOUT from its first byte to its last, or stopped on the way with its connection intact."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pgtick._fast.decode import CopyDecoder

__all__ = ["CopyStream", "Progress"]

#: Called with the rows and bytes so far.
Progress = Callable[[int, int], object]

_TRAILER = b"\xff\xff"
#: asyncpg has no word for "no deadline" on one call, so it gets a far one, and the caller's are in force.
_FAR_S = 1e7
_END_S = 0.01
#: How long the server may take to cancel, before its connection is cut.
_PATIENCE_S = 10.0


class CopyStream:
    """Feeds the decoder; ``on_full`` takes its rows when it has as many as it may hold.

    asyncpg (0.32) does not survive a COPY that is left midway, whether its task is cancelled or the coroutine that
    takes the data raises: over the last piece the connection hangs until its deadline, and a piece that comes after the
    cancel passes for the end of the command. So the COPY has a task of its own, which is never cancelled and whose
    coroutine never raises; to end it early the server is asked to cancel, and its answer is waited for.
    """

    def __init__(
        self,
        connection: Any,
        sql: str,
        decoder: CopyDecoder,
        progress: Progress | None,
        on_full: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._connection = connection
        self._sql = sql
        self._decoder = decoder
        self._progress = progress
        self._on_full = on_full
        self._failure: Exception | None = None
        self._stopped = False
        self._cancel: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Run the COPY to its end; raises what taking the rows raised, DecodeError, or the server's error.

        Cancelled, it ends the query first and leaves the connection as it was.
        """
        task = asyncio.create_task(self.copy())
        try:
            await asyncio.wait({task})
        finally:
            await self.end(task)
        task.result()

    async def copy(self) -> None:
        """Do it in this task, which is ended by ``end`` alone."""
        try:
            # The line break ends a comment that the query may end with.
            await self._connection.copy_from_query(f"{self._sql}\n", output=self._sink, format="binary", timeout=_FAR_S)
        finally:
            if self._cancel is not None:  # so that it does not hit the next command
                await asyncio.wait({self._cancel})
                self._cancel.exception()
            if self._failure is not None:
                raise self._failure
        if not self._stopped:
            self._decoder.finish()

    async def end(self, task: asyncio.Task[None], discard: Callable[[], object] = lambda: None) -> None:
        """End the task that copies; ``discard`` makes way for rows that ``on_full`` still hands over."""
        self._stopped = True
        cancelled: asyncio.CancelledError | None = None
        patience = asyncio.get_running_loop().time() + _PATIENCE_S
        while not task.done():
            self._ask_to_cancel()
            discard()
            if asyncio.get_running_loop().time() > patience:
                self._connection.terminate()
            try:
                await asyncio.wait({task}, timeout=_END_S)
            except asyncio.CancelledError as error:  # once more: this takes a moment only, and must be done
                cancelled = error
        if not task.cancelled():
            task.exception()  # whoever wants it asks for it; nobody else shall be told that it was not retrieved
        if cancelled is not None:
            raise cancelled

    def _ask_to_cancel(self) -> None:
        if self._cancel is None:
            self._cancel = asyncio.get_running_loop().create_future()
            # What asyncpg's own deadlines call; a pooler passes it on, which pg_cancel_backend would not survive.
            self._connection._cancel_current_command(self._cancel)

    async def _sink(self, data: bytes) -> None:
        if not self._stopped and self._failure is None:
            try:
                await self._take(data)
            except Exception as error:
                self._failure = error
        if self._failure is not None and not data.endswith(_TRAILER):  # with it, this was the end
            self._ask_to_cancel()

    async def _take(self, data: bytes) -> None:
        self._decoder.feed(data)
        while self._decoder.full and self._on_full is not None:
            await self._on_full()
            if self._stopped:
                return
            self._decoder.feed(b"")
        if self._progress is not None:
            self._progress(self._decoder.n_rows, self._decoder.n_bytes)
