"""A process with a writer, to be killed: it says on its output which rows it was told are safe.

``python child.py DSN SPOOL FIRST_NUMBER KILL_AT KILL_AFTER_S``: at the n-th call of a part of the spool (append,
rotate, peek, acknowledge, as ``append:3``), or after a while (``time``), it is SIGKILLed from within.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from faults.support import managed, tickers_of
from pgtick.config import DatabaseConfig
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer
from pgtick.writer.spool import Spool

ROWS_A_FLUSH = 20
SEGMENT_BYTES = 8000  # about three batches

#: What is killed in: the Spool's method that does it.
PLACES = {"append": "append", "rotate": "_segment_for", "replay": "peek", "acknowledge": "acknowledge"}


def kill_soon(delay_s: float) -> None:
    def kill() -> None:
        deadline = time.perf_counter() + delay_s
        while time.perf_counter() < deadline:
            time.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


def arm(place: str, nth: int, delay_s: float) -> None:
    """Have the process killed a moment after the n-th entry of the spool's method."""
    name = PLACES[place]
    method: Callable[..., Any] = getattr(Spool, name)
    n_calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == nth:
            kill_soon(delay_s)
        return method(*args, **kwargs)

    setattr(Spool, name, call)


async def run(dsn: str, folder: str, start: int) -> None:
    """Hand rows over and flush, and say so, until killed; the server is there now and then."""
    spool = Spool(folder, segment_bytes=SEGMENT_BYTES)
    async with (
        managed(DatabaseConfig.from_dsn(dsn)) as db,
        Writer(db, spool=spool, retry_s=0.02, max_rows=ROWS_A_FLUSH, flush_timeout_s=1.0) as writer,
    ):
        os.write(1, b"up\n")
        while True:
            numbers = range(start, start + ROWS_A_FLUSH)
            os.write(1, f"given {start}\n".encode())
            await writer.add_many(BOOK_TICKERS, tickers_of(numbers))
            await writer.flush()
            os.write(1, f"safe {start}\n".encode())
            start = numbers.stop


if __name__ == "__main__":
    dsn, folder, first, kill_at, delay = sys.argv[1:]
    where, _, nth = kill_at.partition(":")
    if where == "time":
        kill_soon(float(delay))
    else:
        arm(where, int(nth), float(delay))
    asyncio.run(run(dsn, folder, int(first)))
