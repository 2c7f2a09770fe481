"""A writer's metrics outside: what Prometheus scrapes, what OpenTelemetry collects, and what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pgtick.adapters.measures import DISTRIBUTIONS, MEASURES
from pgtick.adapters.otel import instrument_writer
from pgtick.adapters.prometheus import WriterCollector, serve_metrics
from pgtick.writer.metrics import Metrics, Stored

TABLE = "trade_snapshots"
PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text("utf-8")


class Watched:
    """What has metrics, as a Writer has."""

    def __init__(self) -> None:
        self.metrics = Metrics()


@pytest.fixture
def watched() -> Watched:
    """A writer after some work: every measure and every distribution has a reading."""
    watched = Watched()
    metrics = watched.metrics
    counts = metrics.counts_of(TABLE)
    counts.n_accepted, counts.n_recovered, counts.n_stored, counts.n_duplicates = 100, 20, 60, 5
    counts.n_quarantined, counts.n_spooled, counts.n_buffered, counts.n_dropped, counts.n_refused = 3, 30, 20, 2, 1
    assert counts.adds_up
    metrics.observe_flush(TABLE, 0.003, 60)
    metrics.observe_attempt(TABLE, 0.0015)
    metrics.observe_attempt(TABLE, 70.0)
    metrics.n_retries["retry"] = 4
    metrics.n_timeouts, metrics.n_spool_errors, metrics.n_already_committed, metrics.n_careful = 1, 2, 3, 4
    metrics.n_bytes_buffered, metrics.max_bytes, metrics.in_flight = 4096, 65536, 2
    metrics.spool_bytes, metrics.max_spool_bytes, metrics.spool_records = 1000, 9000, 6
    metrics.last_stored[TABLE] = Stored(time.monotonic() - 50, time.time() - 50)
    metrics.away_since_s = time.monotonic() - 40
    metrics.oldest_buffered_s[TABLE] = time.monotonic() - 30
    metrics.lanes_stopped[TABLE] = "column gone"
    metrics.pool_state = lambda: {"size": 4, "idle": 1, "max": 5}
    return watched


def scraped(url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sample.labels[label] for label in sorted(sample.labels, reverse=True))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_serve_metrics_of_a_working_writer_tells_every_measure(watched: Watched) -> None:
    with serve_metrics(watched, port=0) as served:
        told = scraped(served.url)
    for outcome, n in {
        "accepted": 100, "recovered": 20, "stored": 60, "duplicate": 5, "quarantined": 3, "dropped": 2, "refused": 1,
    }.items():  # fmt: skip
        assert told["pgtick_rows_total", (TABLE, outcome)] == n
    expected = {
        ("pgtick_rows_buffered", (TABLE,)): 20,
        ("pgtick_rows_spooled", (TABLE,)): 30,
        ("pgtick_table_stopped", (TABLE,)): 1,
        ("pgtick_retries_total", ("retry",)): 4,
        ("pgtick_timeouts_total", ()): 1,
        ("pgtick_spool_errors_total", ()): 2,
        ("pgtick_already_committed_total", ()): 3,
        ("pgtick_careful_batches_total", ()): 4,
        ("pgtick_buffer_bytes", ()): 4096,
        ("pgtick_buffer_max_bytes", ()): 65536,
        ("pgtick_batches_in_flight", ()): 2,
        ("pgtick_server_up", ()): 0,
        ("pgtick_spool_bytes", ()): 1000,
        ("pgtick_spool_max_bytes", ()): 9000,
        ("pgtick_spool_records", ()): 6,
        ("pgtick_pool_connections", ("idle",)): 1,
        ("pgtick_flush_seconds_count", (TABLE,)): 1,
        ("pgtick_flush_seconds_sum", (TABLE,)): 0.003,
        ("pgtick_flush_seconds_bucket", (TABLE, "0.002")): 0,
        ("pgtick_flush_seconds_bucket", (TABLE, "0.005")): 1,
        ("pgtick_attempt_seconds_bucket", (TABLE, "60.0")): 1,
        ("pgtick_attempt_seconds_bucket", (TABLE, "+Inf")): 2,
        ("pgtick_batch_rows_bucket", (TABLE, "100.0")): 1,
    }
    assert {key: told.get(key) for key in expected} == expected
    assert told["pgtick_seconds_since_stored", (TABLE,)] == pytest.approx(50, abs=9)
    assert told["pgtick_server_away_seconds", ()] == pytest.approx(40, abs=9)
    assert told["pgtick_oldest_buffered_seconds", (TABLE,)] == pytest.approx(30, abs=9)


def test_serve_metrics_again_tells_the_new_values(watched: Watched) -> None:
    watched.metrics.refreshers.append(lambda: setattr(watched.metrics, "in_flight", 7))
    with serve_metrics(watched, port=0) as served:
        assert scraped(served.url)["pgtick_batches_in_flight", ()] == 7
        watched.metrics.counts[TABLE].n_stored += 20
        watched.metrics.counts_of("own_table").n_accepted = 9
        told = scraped(served.url)
    assert told["pgtick_rows_total", (TABLE, "stored")] == 80
    assert told["pgtick_rows_total", ("own_table", "accepted")] == 9


def test_serve_metrics_of_a_new_writer_answers() -> None:
    with serve_metrics(Watched(), port=0) as served:
        told = scraped(served.url)
    assert told["pgtick_server_up", ()] == 1
    assert ("pgtick_spool_max_bytes", ()) not in told


def test_serve_metrics_closed_gives_the_port_back(watched: Watched) -> None:
    before = threading.active_count()
    served = serve_metrics(watched, port=0)
    scraped(served.url)
    served.close()
    served.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(served.url, timeout=10)
    again = serve_metrics(watched, port=served.port)
    again.close()
    assert threading.active_count() <= before


def test_collector_while_tables_are_added_never_fails(watched: Watched) -> None:
    collector = WriterCollector(watched)
    stop = threading.Event()
    failures: list[Exception] = []

    def collect() -> None:
        while not stop.is_set():
            try:
                list(collector.collect())
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    for number in range(3000):
        name = f"table_{number % 1500}"
        watched.metrics.counts_of(name).n_accepted += 1
        watched.metrics.observe_flush(name, 0.001, 1)
        watched.metrics.note_stored(name)
        watched.metrics.n_retries[name] += 1
        if number == 1500:
            for histograms in (watched.metrics.counts, watched.metrics.flush_s, watched.metrics.last_stored):
                histograms.clear()
    stop.set()
    thread.join()
    assert not failures


def test_collector_twice_in_a_registry_is_refused(watched: Watched) -> None:
    registry = CollectorRegistry()
    WriterCollector(watched, registry)
    with pytest.raises(ValueError, match="Duplicated"):
        WriterCollector(watched, registry)


def collected(reader: InMemoryMetricReader) -> dict[str, dict[tuple[Any, ...], Any]]:
    data = reader.get_metrics_data()
    return {
        metric.name: {tuple((point.attributes or {}).values()): point for point in metric.data.data_points}
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_instrument_writer_tells_every_measure_until_uninstrumented(watched: Watched) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instruments = instrument_writer(watched, provider)
    watched.metrics.observe_flush(TABLE, 0.003, 60)
    watched.metrics.observe_attempt(TABLE, 0.003)
    told = collected(reader)
    assert {*told} == {f"pgtick.{one.name}" for one in (*MEASURES, *DISTRIBUTIONS)}
    assert told["pgtick.rows"][TABLE, "stored"].value == 60
    assert told["pgtick.rows_buffered"][TABLE,].value == 20
    assert told["pgtick.pool_connections"]["max",].value == 5
    point = told["pgtick.flush_seconds"][TABLE,]
    assert (point.count, point.sum) == (1, 0.003)
    assert point.explicit_bounds == DISTRIBUTIONS[0].bounds
    instruments.uninstrument()
    instruments.uninstrument()
    watched.metrics.observe_flush(TABLE, 0.003, 60)
    assert watched.metrics.observers == []
    told = collected(reader)
    assert not {name for name, points in told.items() if points} - {f"pgtick.{one.name}" for one in DISTRIBUTIONS}
    assert told["pgtick.flush_seconds"][TABLE,].count == 1
    provider.shutdown()


def test_instrument_writer_again_after_uninstrument_tells_once(watched: Watched) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrument_writer(watched, provider).uninstrument()
    instrument_writer(watched, provider)
    watched.metrics.observe_flush(TABLE, 0.003, 60)
    told = collected(reader)
    assert told["pgtick.rows"][TABLE, "stored"].value == 60
    assert told["pgtick.flush_seconds"][TABLE,].count == 1
    provider.shutdown()


def test_instrument_writer_of_two_writers_tells_them_apart(watched: Watched) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    other = Watched()
    instrument_writer(watched, provider, {"writer": "first"})
    instrument_writer(other, provider, {"writer": "second"}).uninstrument()
    instrument_writer(other, provider, {"writer": "third"})
    up = collected(reader)["pgtick.server_up"]
    assert {labels: point.value for labels, point in up.items()} == {("first",): 0, ("third",): 1}
    provider.shutdown()


def test_page_lists_every_metric_with_its_labels_and_nothing_else() -> None:
    rows = re.findall(r"^\| `(pgtick_\w+)` \| (\w+) \|([^|]*)\| ([^|]+) \|$", PAGE, re.MULTILINE)
    listed = {(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    made: set[tuple[str, str, tuple[str, ...]]] = {
        (f"pgtick_{one.name}" + ("_total" if one.kind == "counter" else ""), one.kind, one.labels) for one in MEASURES
    }
    made |= {(f"pgtick_{one.name}", "histogram", ("table",)) for one in DISTRIBUTIONS}
    assert listed == made
    assert len(rows) == len(made)


def test_expressions_of_the_page_name_metrics_that_there_are() -> None:
    blocks = "\n".join(re.findall(r"^```(?:promql|yaml)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    families = {f"pgtick_{one.name}" + ("_total" if one.kind == "counter" else "") for one in MEASURES}
    families |= {f"pgtick_{one.name}_{part}" for one in DISTRIBUTIONS for part in ("bucket", "sum", "count")}
    named = set(re.findall(r"\bpgtick_\w+", blocks))
    assert named
    assert named <= families


def test_importing_pgtick_imports_no_exporter() -> None:
    program = (
        "import sys, pgtick, pgtick.writer, pgtick.writer.metrics;"
        "print([name for name in ('prometheus_client', 'opentelemetry', 'rich', 'click') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
