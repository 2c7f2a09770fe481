"""What a writer's metrics are called outside: one list, which Prometheus, OpenTelemetry and the page share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import msgspec

from pgtick.writer.metrics import BOUNDS_ROWS, BOUNDS_S, Counts, Histogram, Metrics

__all__ = ["DEFAULT_PORT", "DISTRIBUTIONS", "MEASURES", "Distribution", "HasMetrics", "Measure", "Reading"]

#: Where ``serve_metrics`` serves, and ``pgtick top`` looks, unless told otherwise.
DEFAULT_PORT = 10977

Reading = tuple[tuple[str, ...], float]

_OUTCOMES = {
    "accepted": "n_accepted",
    "recovered": "n_recovered",
    "stored": "n_stored",
    "duplicate": "n_duplicates",
    "quarantined": "n_quarantined",
    "dropped": "n_dropped",
    "refused": "n_refused",
}


class HasMetrics(Protocol):
    """A ``Writer``, as far as it is looked at here."""

    @property
    def metrics(self) -> Metrics:
        """What it counts and measures."""


class Measure(msgspec.Struct, frozen=True):
    """A counter or a gauge: its name without prefix, its unit in UCUM, and how it is read."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    labels: tuple[str, ...]
    what: str
    read: Callable[[Metrics], Iterable[Reading]]


class Distribution(msgspec.Struct, frozen=True):
    """A histogram by table; ``key`` is its name among the metrics' observations."""

    name: str
    key: str
    unit: str
    bounds: tuple[float, ...]
    what: str
    read: Callable[[Metrics], dict[str, Histogram]]


def _outcomes(metrics: Metrics) -> Iterable[Reading]:
    for table, counts in metrics.counts.copy().items():
        for outcome, field in _OUTCOMES.items():
            yield (table, outcome), getattr(counts, field)


def _of_counts(read: Callable[[Counts], int]) -> Callable[[Metrics], Iterable[Reading]]:
    return lambda metrics: [((table,), read(counts)) for table, counts in metrics.counts.copy().items()]


def _one(read: Callable[[Metrics], float | None]) -> Callable[[Metrics], Iterable[Reading]]:
    def one(metrics: Metrics) -> Iterable[Reading]:
        value = read(metrics)
        return [] if value is None else [((), float(value))]

    return one


def _since_stored(metrics: Metrics) -> Iterable[Reading]:
    now = time.monotonic()
    return [((table,), now - stored.monotonic_s) for table, stored in metrics.last_stored.copy().items()]


def _oldest_buffered(metrics: Metrics) -> Iterable[Reading]:
    now = time.monotonic()
    oldest = metrics.oldest_buffered_s.copy()
    return [((table,), now - oldest[table] if table in oldest else 0.0) for table in metrics.counts.copy()]


def _stopped(metrics: Metrics) -> Iterable[Reading]:
    return [((table,), float(table in metrics.lanes_stopped)) for table in metrics.counts.copy()]


def _away_s(metrics: Metrics) -> float:
    since = metrics.away_since_s
    return 0.0 if since is None else time.monotonic() - since


def _retries(metrics: Metrics) -> Iterable[Reading]:
    return [((kind,), n) for kind, n in metrics.n_retries.copy().items()]


def _pool(metrics: Metrics) -> Iterable[Reading]:
    return [((state,), n) for state, n in metrics.pool_state().items()]


_TABLE = ("table",)

MEASURES = (
    Measure("rows", "counter", "{row}", ("table", "outcome"), "Rows by what became of them", _outcomes),
    Measure("rows_buffered", "gauge", "{row}", _TABLE, "Rows in memory now", _of_counts(lambda c: c.n_buffered)),
    Measure("rows_spooled", "gauge", "{row}", _TABLE, "Rows in the spool now", _of_counts(lambda c: c.n_spooled)),
    Measure("seconds_since_stored", "gauge", "s", _TABLE, "Time since the last batch that was stored", _since_stored),
    Measure("oldest_buffered_seconds", "gauge", "s", _TABLE, "Age of the oldest row in memory", _oldest_buffered),
    Measure("table_stopped", "gauge", "1", _TABLE, "1: flushing is stopped by the table's schema", _stopped),
    Measure("retries", "counter", "{attempt}", ("kind",), "Attempts that failed, by the kind of fault", _retries),
    Measure("timeouts", "counter", "{attempt}", (), "Attempts that ended at a deadline", _one(lambda m: m.n_timeouts)),
    Measure(
        "already_committed", "counter", "{batch}", (),
        "Batches that a lost connection left unknown and the ledger found committed",
        _one(lambda m: m.n_already_committed),
    ),
    Measure(
        "careful_batches", "counter", "{batch}", (), "Batches that went through a temporary table",
        _one(lambda m: m.n_careful),
    ),
    Measure("spool_errors", "counter", "{error}", (), "Errors of the spool's disk", _one(lambda m: m.n_spool_errors)),
    Measure("buffer_bytes", "gauge", "By", (), "Bytes in memory now", _one(lambda m: m.n_bytes_buffered)),
    Measure("buffer_max_bytes", "gauge", "By", (), "The cap of the memory", _one(lambda m: m.max_bytes)),
    Measure("batches_in_flight", "gauge", "{batch}", (), "Batches on their way now", _one(lambda m: m.in_flight)),
    Measure("server_up", "gauge", "1", (), "1: the last attempt reached the server", _one(lambda m: m.server_is_up)),
    Measure("server_away_seconds", "gauge", "s", (), "Time since the server is away, 0 when it is up", _one(_away_s)),
    Measure("spool_bytes", "gauge", "By", (), "Bytes in the spool now", _one(lambda m: m.spool_bytes)),
    Measure("spool_max_bytes", "gauge", "By", (), "The cap of the spool, if any", _one(lambda m: m.max_spool_bytes)),
    Measure("spool_records", "gauge", "{batch}", (), "Batches in the spool now", _one(lambda m: m.spool_records)),
    Measure("pool_connections", "gauge", "{connection}", ("state",), "The pool: size, idle, max", _pool),
)  # fmt: skip

DISTRIBUTIONS = (
    Distribution(
        "flush_seconds", "flush_s", "s", BOUNDS_S, "From a batch's sealing until it is settled, retries included",
        lambda metrics: metrics.flush_s,
    ),
    Distribution(
        "attempt_seconds", "attempt_s", "s", BOUNDS_S, "One attempt on the server, however it ended",
        lambda metrics: metrics.attempt_s,
    ),
    Distribution(
        "batch_rows", "batch_rows", "{row}", BOUNDS_ROWS, "Rows of a batch",
        lambda metrics: metrics.batch_rows,
    ),
)  # fmt: skip
