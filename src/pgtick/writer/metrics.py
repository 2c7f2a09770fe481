"""What a writer tells of itself: counts, histograms, gauges, and a health report in plain words."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TypeVar

import msgspec

from pgtick.writer.quiet_log import QuietLogger

__all__ = ["BOUNDS_ROWS", "BOUNDS_S", "Counts", "Health", "Histogram", "Metrics", "Stored", "TableHealth", "health"]
__all__ += ["quantile_of", "without_secrets"]

logger = QuietLogger(logging.getLogger(__name__))

#: Upper bounds of the buckets, seconds: from a socket's round trip to beyond every deadline of the writer.
BOUNDS_S = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 60.0),
)
#: The same for the rows of a batch.
BOUNDS_ROWS = (1.0, 10.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6)

#: From this share of its cap on, a buffer or a spool is a reason to look.
_NEARLY_FULL = 0.9
_MAX_ERROR = 300
#: How long a reading on another thread waits for a busy event loop.
_PATIENCE_S = 1.0

T = TypeVar("T")

# What stands for a password in a DSN, in a key=value string, in a URL's query.
_SECRETS = (
    (re.compile(r"(?<=://)([^\s/@:]*):\S*@"), r"\1:***@"),
    (re.compile(r"(?i)\b(\w*(?:password|passwd|secret|token))(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,;&]+)"), r"\1\2***"),
)


def without_secrets(text: str) -> str:
    """Return the text's first line with passwords of DSNs and of key=value pairs masked, shortened."""
    line = text.strip().split("\n", 1)[0]
    for pattern, mask in _SECRETS:
        line = pattern.sub(mask, line)
    return line if len(line) <= _MAX_ERROR else line[: _MAX_ERROR - 1] + "…"


class Counts(msgspec.Struct):
    """What became of a table's rows. Each row is in exactly one of the counts after ``n_recovered``."""

    n_accepted: int = 0
    #: Found in a spool at start: accepted by an earlier process.
    n_recovered: int = 0
    n_stored: int = 0
    n_duplicates: int = 0
    n_quarantined: int = 0
    #: In the spool now.
    n_spooled: int = 0
    #: In memory now, batches under way to the server among them.
    n_buffered: int = 0
    #: Thrown away by the spool's policy ``drop_oldest``.
    n_dropped: int = 0
    #: ``refused="raise"``: told to the caller, never accepted.
    n_refused: int = 0

    @property
    def n_settled(self) -> int:
        """Rows whose way is at its end: stored, duplicate, quarantined or dropped."""
        return self.n_stored + self.n_duplicates + self.n_quarantined + self.n_dropped

    @property
    def adds_up(self) -> bool:
        """Whether every row that came in is accounted for."""
        return self.n_accepted + self.n_recovered == self.n_settled + self.n_spooled + self.n_buffered


def quantile_of(bounds: Sequence[float], cumulative: Sequence[float], q: float) -> float | None:
    """Return the q-quantile, interpolated within its bucket as Prometheus does; None without observations.

    ``cumulative`` has one value more than ``bounds``: all observations. What lies beyond the last bound is
    told as that bound.
    """
    total = cumulative[-1]
    if total <= 0:
        return None
    rank = q * total
    index = bisect_left(cumulative, rank)
    if index >= len(bounds):
        return bounds[-1]
    below = cumulative[index - 1] if index else 0.0
    low = bounds[index - 1] if index else 0.0
    inside = cumulative[index] - below
    return low + (bounds[index] - low) * ((rank - below) / inside if inside > 0 else 1.0)


class Histogram:
    """Observations in buckets with fixed upper bounds, as Prometheus has them; an observation costs a bisection."""

    __slots__ = ("_counts", "bounds", "n", "total")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS_S) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.n = 0
        #: The sum of all observations, in the unit of the bounds.
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value; one that equals a bound belongs below it."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.n += 1
        self.total += value

    @property
    def cumulative(self) -> list[int]:
        """How many observations are at most each bound, and last: all of them."""
        total, sums = 0, []
        for count in self._counts:
            total += count
            sums.append(total)
        return sums

    @property
    def buckets(self) -> list[tuple[float, int]]:
        """The pairs (upper bound, observations up to it), the last bound infinite."""
        return list(zip((*self.bounds, math.inf), self.cumulative, strict=True))

    def quantile(self, q: float) -> float | None:
        """Return the q-quantile as ``quantile_of`` does."""
        return quantile_of(self.bounds, self.cumulative, q)


class Stored(msgspec.Struct, frozen=True):
    """When a table's last batch was stored: by the monotonic clock, and as seconds since 1970."""

    monotonic_s: float
    unix_s: float


class Metrics:
    """Everything that a writer counts and measures; the writer writes it, whoever likes reads it.

    All of it lives on the writer's event loop; another thread reads it by ``read``.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self.started_s = time.monotonic()
        self.counts: dict[str, Counts] = {}
        #: From the sealing of a batch until it is settled, retries and waits included; seconds, by table.
        self.flush_s: dict[str, Histogram] = {}
        #: One attempt on the server, successful or not.
        self.attempt_s: dict[str, Histogram] = {}
        self.batch_rows: dict[str, Histogram] = {}

        #: By the kind of fault, a short fixed word, never a message.
        self.n_retries: Counter[str] = Counter()
        self.n_timeouts = 0
        self.n_spool_errors = 0
        #: Commits left unknown by a lost connection, which the ledger then told to have happened.
        self.n_already_committed = 0
        #: Batches that went row by row or through a temporary table.
        self.n_careful = 0

        self.n_bytes_buffered = 0
        self.max_bytes = 0
        self.in_flight = 0
        #: The monotonic time since which the server is away; None: it is up.
        self.away_since_s: float | None = None
        self.spool_bytes = 0
        #: None: the spool has no cap, or there is no spool.
        self.max_spool_bytes: int | None = None
        self.spool_records = 0
        #: Tables whose flushing is stopped by their schema, each with the reason.
        self.lanes_stopped: dict[str, str] = {}
        #: The monotonic time at which the oldest row in memory was accepted, by table.
        self.oldest_buffered_s: dict[str, float] = {}
        self.last_stored: dict[str, Stored] = {}
        #: What failed since the table's last success.
        self.last_error: dict[str, str] = {}
        self.pool_state: Callable[[], Mapping[str, int]] = dict

        #: Called with name, table and value at each observation, on the event loop.
        self.observers: list[Callable[[str, str, float], None]] = []
        #: Called before each reading: set here what is dearer to keep than to look up.
        self.refreshers: list[Callable[[], None]] = []

    @property
    def server_is_up(self) -> bool:
        """Whether the last attempt reached the server; True before the first one."""
        return self.away_since_s is None

    @property
    def n_batches(self) -> int:
        """Batches that are settled."""
        return sum(histogram.n for histogram in self.flush_s.copy().values())

    def counts_of(self, table: str) -> Counts:
        """Return the table's counts, made when first asked for."""
        counts = self.counts.get(table)
        if counts is None:
            counts = self.counts[table] = Counts()
            self._loop = _running_loop()
        return counts

    def observe_flush(self, table: str, seconds: float, n_rows: int) -> None:
        """Note a settled batch: how long it took from its sealing, and its size."""
        self._observe(self.flush_s, "flush_s", BOUNDS_S, table, seconds)
        self._observe(self.batch_rows, "batch_rows", BOUNDS_ROWS, table, n_rows)

    def observe_attempt(self, table: str, seconds: float) -> None:
        """Note one attempt on the server, however it ended."""
        self._observe(self.attempt_s, "attempt_s", BOUNDS_S, table, seconds)

    def _observe(
        self, histograms: dict[str, Histogram], name: str, bounds: tuple[float, ...], table: str, value: float
    ) -> None:
        histogram = histograms.get(table)
        if histogram is None:
            histogram = histograms[table] = Histogram(bounds)
        histogram.observe(value)
        for observer in self.observers:
            try:
                observer(name, table, value)
            except Exception as error:  # an exporter's trouble must not become the rows'
                logger.warning("observer", "an observer of the metrics failed: %r", error)

    def note_stored(self, table: str) -> None:
        """Note that a batch went through: the server is up, the table fresh, its last error over."""
        self.last_stored[table] = Stored(time.monotonic(), time.time())
        self.last_error.pop(table, None)
        self.away_since_s = None

    def note_away(self) -> None:
        """Note that the server did not answer; the time of the first time is kept."""
        if self.away_since_s is None:
            self.away_since_s = time.monotonic()

    def note_error(self, table: str, error: BaseException | str) -> None:
        """Keep what the table's last attempt failed with, without secrets."""
        told = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.last_error[table] = without_secrets(told)

    def refresh(self) -> None:
        """Bring up to date what is only looked up for a reading."""
        for refresher in self.refreshers:
            refresher()

    def read(self, look: Callable[[Metrics], T]) -> T:
        """Return what ``look`` sees in one moment, up to date; from any thread.

        It is run on the writer's event loop, so that the counts add up. Where the loop is stalled for a second, it is
        run on the caller's thread and sees the gauges as of the loop's last look.
        """

        def look_on_loop() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    self.refresh()
                    answer.set_result(look(self))
                except Exception as error:
                    answer.set_exception(error)

        loop = self._loop
        if loop is None or not loop.is_running() or loop is _running_loop():
            self.refresh()
            return look(self)
        answer: Future[T] = Future()
        try:
            loop.call_soon_threadsafe(look_on_loop)
            return answer.result(_PATIENCE_S)
        except (TimeoutError, RuntimeError):  # RuntimeError: the loop was closed just now
            answer.cancel()
            return look(self)

    def seconds_since_stored(self, table: str) -> float | None:
        """Return how long ago the table's last batch was stored, by the monotonic clock; None: not yet."""
        stored = self.last_stored.get(table)
        return None if stored is None else time.monotonic() - stored.monotonic_s


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class TableHealth(msgspec.Struct):
    """How a table's rows fare."""

    table: str
    counts: Counts
    seconds_since_stored: float | None
    oldest_buffered_s: float | None
    is_stopped: bool
    last_error: str | None


class Health(msgspec.Struct):
    """How a writer fares; ``msgspec.json.encode`` or ``msgspec.to_builtins`` makes a readiness answer of it.

    ``reasons`` says in plain words why ``is_ok`` is False.
    """

    is_ok: bool
    server_is_up: bool
    away_since_s: float | None
    n_bytes_buffered: int
    max_bytes: int
    spool_records: int
    spool_bytes: int
    max_spool_bytes: int | None
    tables: list[TableHealth]
    reasons: list[str]


def health(metrics: Metrics, stale_after: Mapping[str, float] | None = None) -> Health:
    """Judge the metrics now, from any thread.

    ``stale_after`` gives, by table, the seconds without a stored batch that are too many; a table that has stored
    nothing yet is measured from the writer's start.
    """
    return metrics.read(lambda metrics: _judge(metrics, stale_after or {}))


def _judge(metrics: Metrics, stale_after: Mapping[str, float]) -> Health:
    now = time.monotonic()
    tables = [_table_health(metrics, table, now) for table in sorted({*metrics.counts, *stale_after})]
    reasons = _reasons_of_all(metrics, now)
    for told in tables:
        reasons += _reasons_of_table(metrics, told, stale_after.get(told.table), now)
    return Health(
        is_ok=not reasons,
        server_is_up=metrics.server_is_up,
        away_since_s=None if metrics.away_since_s is None else now - metrics.away_since_s,
        n_bytes_buffered=metrics.n_bytes_buffered,
        max_bytes=metrics.max_bytes,
        spool_records=metrics.spool_records,
        spool_bytes=metrics.spool_bytes,
        max_spool_bytes=metrics.max_spool_bytes,
        tables=tables,
        reasons=reasons,
    )


def _table_health(metrics: Metrics, table: str, now: float) -> TableHealth:
    oldest = metrics.oldest_buffered_s.get(table)
    stopped = metrics.lanes_stopped.get(table)
    return TableHealth(
        table=table,
        counts=msgspec.structs.replace(metrics.counts.get(table, Counts())),
        seconds_since_stored=metrics.seconds_since_stored(table),
        oldest_buffered_s=None if oldest is None else now - oldest,
        is_stopped=stopped is not None,
        last_error=metrics.last_error.get(table),
    )


def _reasons_of_all(metrics: Metrics, now: float) -> list[str]:
    reasons = []
    if metrics.away_since_s is not None:
        reasons.append(f"the server is away since {now - metrics.away_since_s:.0f} s")
    if metrics.max_bytes and metrics.n_bytes_buffered >= _NEARLY_FULL * metrics.max_bytes:
        reasons.append(f"the buffer holds {metrics.n_bytes_buffered:,} of {metrics.max_bytes:,} bytes")
    if metrics.max_spool_bytes and metrics.spool_bytes >= _NEARLY_FULL * metrics.max_spool_bytes:
        reasons.append(f"the spool holds {metrics.spool_bytes:,} of {metrics.max_spool_bytes:,} bytes")
    return reasons


def _reasons_of_table(metrics: Metrics, told: TableHealth, stale_after_s: float | None, now: float) -> list[str]:
    reasons = []
    if told.is_stopped:
        reasons.append(f"{told.table}: flushing is stopped: {without_secrets(metrics.lanes_stopped[told.table])}")
    if not told.counts.adds_up:
        reasons.append(f"{told.table}: the counts do not add up")
    if stale_after_s is not None:
        since_s = told.seconds_since_stored
        if since_s is None and now - metrics.started_s > stale_after_s:
            reasons.append(f"{told.table}: nothing stored in the {now - metrics.started_s:.0f} s since the start")
        elif since_s is not None and since_s > stale_after_s:
            reasons.append(f"{told.table}: nothing stored for {since_s:.0f} s")
    return reasons
