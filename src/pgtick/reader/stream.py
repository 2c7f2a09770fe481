"""One COPY TO STDOUT from its first byte to its last, or stopped on the way with its connection intact."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pgtick._fast.decode import CopyDecoder

__all__ = ["CopyStream", "Progress"]

#: Called with the rows and bytes so far.
Progress = Callable[[int, int], object]

_TRAILER = b"\xff\xff"
#: asyncpg has no word for "no deadline" on one call, so it gets a far one, and the caller's are in force.
_FAR_S = 1e7


class _StoppedError(Exception):
    pass


class CopyStream:
    """Feeds the decoder; ``on_full`` takes its rows when it has as many as it may hold.

    asyncpg cancels the query when the coroutine that takes the data raises or is cancelled, but hangs until
    its deadline when that was the last piece (protocol.pyx: the cancel waits for an answer that has come
    already). So an error over a piece that may be the last is kept until asyncpg is done, and stopping never
    cancels what runs inside that coroutine.
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
        #: Whether a piece is being taken, so that the task must not be cancelled.
        self.taking = False

    async def run(self) -> None:
        """Run the COPY to its end; raises what taking the rows raised, DecodeError, or the server's error."""
        try:
            # The line break ends a comment that the query may end with.
            await self._connection.copy_from_query(f"{self._sql}\n", output=self._sink, format="binary", timeout=_FAR_S)
        finally:
            if self._failure is not None:
                raise self._failure
        self._decoder.finish()

    def stop(self) -> None:
        """Have the next piece, or the one that is being taken, end the COPY."""
        self._stopped = True

    async def _sink(self, data: bytes) -> None:
        self.taking = True
        try:
            if self._failure is None:
                await self._take(data)
        except Exception as error:
            self._failure = error
        finally:
            self.taking = False
        if self._failure is not None and not data.endswith(_TRAILER):
            raise self._failure

    async def _take(self, data: bytes) -> None:
        if self._stopped:
            raise _StoppedError
        self._decoder.feed(data)
        while self._decoder.full and self._on_full is not None:
            await self._on_full()
            if self._stopped:
                raise _StoppedError
            self._decoder.feed(b"")
        if self._progress is not None:
            self._progress(self._decoder.n_rows, self._decoder.n_bytes)
