"""One scrape of a writer's Prometheus endpoint, and what two of them tell together."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

import msgspec

from pgtick.adapters.measures import DEFAULT_PORT
from pgtick.writer.metrics import quantile_of

__all__ = ["AwayError", "History", "Scrape", "TableView", "endpoint_url", "parse", "scrape"]

_TIMEOUT_S = 3.0
_MAX_BYTES = 16 << 20
#: Rates and percentiles are those between the newest scrape and the oldest of so many.
_N_KEPT = 6

_SECONDS = "pgtick_flush_seconds"

# A metrics endpoint lies in one's own network: no proxy of the environment comes in between.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class AwayError(Exception):
    """The endpoint did not answer, or not with a writer's metrics."""


class Scrape(msgspec.Struct):
    """The figures of one moment: by name, those without labels; by name and table, those with."""

    at_s: float
    plain: dict[str, float]
    by_table: dict[str, dict[str, float]]
    #: By table: upper bound to the number of batches that took at most that long.
    flushes: dict[str, dict[float, float]]

    def counters(self) -> Iterable[tuple[tuple[str, str], float]]:
        """Yield what only grows while a process lives."""
        for name, values in self.by_table.items():
            if name not in ("buffered", "spooled", "age", "stopped"):
                for table, value in values.items():
                    yield (name, table), value


class TableView(msgspec.Struct):
    """A line of the view; None: not known (yet)."""

    table: str
    rows_per_s: float | None
    n_stored: float
    n_duplicates: float
    n_quarantined: float
    n_spooled: float
    n_buffered: float
    p50_s: float | None
    p99_s: float | None
    age_s: float | None
    is_stopped: bool


def endpoint_url(text: str | None) -> str:
    """Return the URL meant by HOST:PORT, a URL with or without a path, or nothing; raise ValueError for another."""
    if not text:
        return f"http://127.0.0.1:{DEFAULT_PORT}/metrics"
    parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{text}: an http URL or HOST:PORT is wanted")
    _ = parts.port  # raises for what is no port
    return parts._replace(path=parts.path if parts.path not in ("", "/") else "/metrics").geturl()


def scrape(url: str) -> Scrape:
    """Fetch and parse the endpoint; raise AwayError with the reason in plain words."""
    try:
        with _opener.open(url, timeout=_TIMEOUT_S) as answer:
            text = answer.read(_MAX_BYTES).decode()
    except urllib.error.HTTPError as error:
        error.close()
        raise AwayError(f"it answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        reason = getattr(error, "reason", error)
        raise AwayError(str(getattr(reason, "strerror", None) or reason) or type(error).__name__) from error
    return parse(text)


def parse(text: str) -> Scrape:
    """Parse the exposition format; raise AwayError where no writer speaks."""
    from prometheus_client.parser import text_string_to_metric_families

    found = Scrape(time.monotonic(), {}, defaultdict(dict), defaultdict(dict))
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                _take(found, sample.name, sample.labels, sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise AwayError("it does not speak Prometheus' text format") from error
    if "pgtick_server_up" not in found.plain:
        raise AwayError("it has no metrics of a pgtick writer")
    return found


_GAUGES = {
    "pgtick_rows_buffered": "buffered",
    "pgtick_rows_spooled": "spooled",
    "pgtick_seconds_since_stored": "age",
    "pgtick_table_stopped": "stopped",
}


def _take(found: Scrape, name: str, labels: Mapping[str, str], value: float) -> None:
    table = labels.get("table", "")
    if name == "pgtick_rows_total":
        found.by_table[labels["outcome"]][table] = value
    elif name in _GAUGES:
        found.by_table[_GAUGES[name]][table] = value
    elif name == f"{_SECONDS}_bucket":
        found.flushes[table][float(labels["le"])] = value
    elif name == "pgtick_pool_connections":
        found.plain[f"pool_{labels['state']}"] = value
    elif not labels:
        found.plain[name] = value


class History:
    """The last scrapes of one process: a counter that went back is another process, and counts anew."""

    def __init__(self) -> None:
        self._scrapes: deque[Scrape] = deque(maxlen=_N_KEPT)
        self.n_restarts = 0

    @property
    def newest(self) -> Scrape | None:
        """The last scrape."""
        return self._scrapes[-1] if self._scrapes else None

    def add(self, taken: Scrape) -> None:
        """Take a scrape in."""
        if self._scrapes and _went_back(self._scrapes[-1], taken):
            self._scrapes.clear()
            self.n_restarts += 1
        self._scrapes.append(taken)

    def tables(self) -> list[TableView]:
        """Return a line for every table that has had a row, in the order of their names."""
        if not self._scrapes:
            return []
        old, new = self._scrapes[0], self._scrapes[-1]
        tables = {table for values in new.by_table.values() for table in values}
        return [self._view(table, old, new) for table in sorted(tables)]

    def _view(self, table: str, old: Scrape, new: Scrape) -> TableView:
        def value(name: str, taken: Scrape = new) -> float:
            return taken.by_table.get(name, {}).get(table, 0.0)

        rate = None
        if new.at_s > old.at_s:
            rate = (value("stored") - value("stored", old)) / (new.at_s - old.at_s)
        flushes = new.flushes.get(table, {})
        if old is not new:
            before = old.flushes.get(table, {})
            flushes = {bound: n - before.get(bound, 0.0) for bound, n in flushes.items()}
        return TableView(
            table=table,
            rows_per_s=rate,
            n_stored=value("stored"),
            n_duplicates=value("duplicate"),
            n_quarantined=value("quarantined"),
            n_spooled=value("spooled"),
            n_buffered=value("buffered"),
            p50_s=_quantile(flushes, 0.5),
            p99_s=_quantile(flushes, 0.99),
            age_s=new.by_table.get("age", {}).get(table),
            is_stopped=value("stopped") > 0,
        )


def _went_back(old: Scrape, new: Scrape) -> bool:
    now = dict(new.counters())
    return any(now.get(key, 0.0) < value for key, value in old.counters())


def _quantile(flushes: Mapping[float, float], q: float) -> float | None:
    bounds = sorted(flushes)
    if not bounds or bounds[-1] != math.inf:
        return None
    return quantile_of(bounds[:-1], [flushes[bound] for bound in bounds], q)
