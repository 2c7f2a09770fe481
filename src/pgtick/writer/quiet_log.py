"""Log lines that a long outage cannot turn into a flood.

The two libraries for it, log-rate-limit 1.4 and ratelimitingfilter 1.5, are filters by ``time.time()``: a clock set
back by an hour would silence a writer for an hour. Both go by the message; a key of our own needs no ``extra``.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

__all__ = ["QuietLogger"]

_MAX_KEYS = 200


class QuietLogger:
    """Log the first line of a key at once, then at most one an interval, which tells how many were left out.

    The interval is of the monotonic clock. The least recently used of more than 200 keys is forgotten, and its next
    line counts as a first one.
    """

    def __init__(
        self, logger: logging.Logger, interval_s: float = 10.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._clock = clock
        #: By key: when its last line was logged, and how many were left out since.
        self._last: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def warning(self, key: str, message: str, *args: Any) -> None:
        """Log a warning, or count it; ``key`` names what is alike (a kind and a table, never a message)."""
        now = self._clock()
        logged, n_left_out = self._last.pop(key, (None, 0))
        if logged is not None and now - logged < self._interval_s:
            self._last[key] = (logged, n_left_out + 1)
            return
        self._last[key] = (now, 0)
        if len(self._last) > _MAX_KEYS:
            self._last.popitem(last=False)
        if n_left_out:
            message, args = message + " (and %d more like it)", (*args, n_left_out)
        self._logger.warning(message, *args, stacklevel=2)

    def forget(self, key: str) -> None:
        """Let the key's next line be logged at once: its trouble is over."""
        self._last.pop(key, None)
