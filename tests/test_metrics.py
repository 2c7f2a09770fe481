"""What a writer tells of itself: counts, histograms, health, quiet log lines."""

from __future__ import annotations

import bisect
import logging
import math
import time
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgtick.writer import metrics as room
from pgtick.writer.metrics import Counts, Histogram, Metrics, health, quantile_of, without_secrets
from pgtick.writer.quiet_log import QuietLogger

TABLE = "trade_snapshots"


def test_counts_with_every_row_accounted_for_add_up() -> None:
    counts = Counts(n_accepted=10, n_recovered=3, n_stored=4, n_duplicates=2, n_quarantined=1)
    assert not counts.adds_up
    counts.n_spooled, counts.n_buffered, counts.n_dropped = 3, 2, 1
    assert counts.adds_up
    assert counts.n_settled == 8


def test_counts_of_refused_rows_are_not_among_the_accepted() -> None:
    assert Counts(n_refused=7).adds_up


@given(st.lists(st.floats(min_value=0, max_value=200)))
def test_histogram_of_any_values_counts_each_at_most_its_bound(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert histogram.n == len(values)
    assert histogram.total == pytest.approx(sum(values))
    ordered = sorted(values)
    assert [count for _, count in histogram.buckets] == [bisect.bisect_right(ordered, b) for b, _ in histogram.buckets]
    assert histogram.buckets[-1] == (math.inf, len(values))


@given(st.lists(st.floats(min_value=0, max_value=59), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_histogram_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    bounds = (0.0, *histogram.bounds)
    high = bisect.bisect_left(bounds, true)
    told = histogram.quantile(q)
    assert told is not None
    assert bounds[max(0, high - 1)] <= told <= bounds[max(1, high)]


def test_quantile_without_observations_is_none() -> None:
    assert Histogram().quantile(0.5) is None
    assert quantile_of((1.0, 2.0), (0, 0, 0), 0.99) is None


def test_quantile_beyond_the_last_bound_is_that_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(500.0)
    assert histogram.quantile(0.5) == 2.0


@pytest.mark.parametrize("bounds", [room.BOUNDS_S, room.BOUNDS_ROWS])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert all(low < high for low, high in pairwise(bounds))


def test_metrics_observed_tell_observers_and_survive_a_failing_one(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    seen: list[tuple[str, str, float]] = []

    def fails(name: str, table: str, value: float) -> None:
        raise RuntimeError("exporter gone")

    metrics.observers += [fails, lambda *event: seen.append(event)]
    metrics.observe_flush(TABLE, 0.25, 100)
    metrics.observe_attempt(TABLE, 0.125)
    assert seen == [("flush_s", TABLE, 0.25), ("batch_rows", TABLE, 100), ("attempt_s", TABLE, 0.125)]
    assert metrics.n_batches == 1
    assert metrics.batch_rows[TABLE].total == 100
    assert "exporter gone" in caplog.text


def test_health_of_a_new_writer_is_ok_and_is_json() -> None:
    told = health(Metrics())
    assert told.is_ok
    assert told.server_is_up
    assert msgspec.json.decode(msgspec.json.encode(told))["reasons"] == []


def test_health_with_the_server_away_says_so_until_a_batch_is_stored() -> None:
    metrics = Metrics()
    metrics.note_away()
    metrics.note_error(TABLE, ConnectionError("no route"))
    metrics.counts_of(TABLE)
    told = health(metrics)
    assert not told.is_ok
    assert not told.server_is_up
    assert told.away_since_s is not None
    assert told.reasons == ["the server is away since 0 s"]
    assert told.tables[0].last_error == "ConnectionError: no route"
    metrics.note_stored(TABLE)
    told = health(metrics)
    assert told.is_ok
    assert told.away_since_s is None
    assert told.tables[0].last_error is None
    assert told.tables[0].seconds_since_stored is not None


def test_away_since_noted_twice_keeps_the_first_time() -> None:
    metrics = Metrics()
    metrics.note_away()
    first = metrics.away_since_s
    metrics.note_away()
    assert metrics.away_since_s == first


@pytest.mark.parametrize("name", ["bytes_buffered", "spool_bytes"])
def test_health_with_a_cap_nearly_reached_gives_the_reason(name: str) -> None:
    metrics = Metrics()
    metrics.max_bytes = metrics.max_spool_bytes = 1000
    attribute = "n_bytes_buffered" if name == "bytes_buffered" else name
    setattr(metrics, attribute, 899)
    assert health(metrics).is_ok
    setattr(metrics, attribute, 900)
    (reason,) = health(metrics).reasons
    assert "900 of 1,000 bytes" in reason


def test_health_of_a_stopped_table_names_it_and_why() -> None:
    metrics = Metrics()
    metrics.counts_of(TABLE)
    metrics.lanes_stopped[TABLE] = 'column "price" does not exist'
    told = health(metrics)
    assert told.tables[0].is_stopped
    assert told.reasons == [f'{TABLE}: flushing is stopped: column "price" does not exist']


def test_health_of_counts_that_do_not_add_up_is_not_ok() -> None:
    metrics = Metrics()
    metrics.counts_of(TABLE).n_accepted = 1
    assert health(metrics).reasons == [f"{TABLE}: the counts do not add up"]


def test_health_of_a_stale_table_is_not_ok() -> None:
    metrics = Metrics()
    assert health(metrics, {TABLE: 5.0}).is_ok
    metrics.started_s -= 6
    assert health(metrics, {TABLE: 5.0}).reasons == [f"{TABLE}: nothing stored in the 6 s since the start"]
    metrics.last_stored[TABLE] = room.Stored(time.monotonic() - 7, time.time() - 7)
    assert health(metrics, {TABLE: 5.0}).reasons == [f"{TABLE}: nothing stored for 7 s"]
    metrics.note_stored(TABLE)
    assert health(metrics, {TABLE: 5.0}).is_ok


def test_health_asks_the_refreshers_first_and_copies_the_counts() -> None:
    metrics = Metrics()

    def refresh() -> None:
        metrics.counts_of(TABLE).n_accepted = metrics.counts_of(TABLE).n_buffered = 5
        metrics.oldest_buffered_s[TABLE] = time.monotonic() - 2

    metrics.refreshers.append(refresh)
    (table,) = health(metrics).tables
    assert table.counts.n_buffered == 5
    assert table.oldest_buffered_s == pytest.approx(2, abs=1)
    metrics.counts_of(TABLE).n_buffered = 0
    assert table.counts.n_buffered == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("connect postgresql://bot:s3cr3t@db:5432/x failed", "connect postgresql://bot:***@db:5432/x failed"),
        ("postgresql://bot:a:b/c@d@db/x", "postgresql://bot:***@db/x"),
        ("host=db password=s3cr3t user=bot", "host=db password=*** user=bot"),
        ("host=db password='s3 cr3t' user=bot", "host=db password=*** user=bot"),
        ("?sslmode=require&sslpassword=s3cr3t&x=1", "?sslmode=require&sslpassword=***&x=1"),
        ("PGPASSWORD: s3cr3t", "PGPASSWORD: ***"),
        ('password authentication failed for user "bot"', 'password authentication failed for user "bot"'),
        ("first line\nDETAIL: a row", "first line"),
        ("x" * 1000, "x" * 299 + "…"),
    ],
)
def test_without_secrets_masks_passwords_only(text: str, told: str) -> None:
    assert without_secrets(text) == told


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> tuple[QuietLogger, Clock]:
    clock = Clock()
    return QuietLogger(logging.getLogger("pgtick.test"), 10.0, clock=clock), clock


def test_quiet_logger_in_an_interval_logs_the_first_and_tells_the_rest(
    quiet: tuple[QuietLogger, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    logger, clock = quiet
    for _ in range(5):
        logger.warning("away", "the server is away: %s", "refused")
    logger.warning("other", "100 %% of another kind")
    clock.now += 10
    logger.warning("away", "the server is away: %s", "refused")
    clock.now += 10
    logger.warning("away", "the server is away: %s", "refused")
    assert [record.getMessage() for record in caplog.records] == [
        "the server is away: refused",
        "100 %% of another kind",
        "the server is away: refused (and 4 more like it)",
        "the server is away: refused",
    ]
    assert {record.filename for record in caplog.records} == {"test_metrics.py"}


def test_quiet_logger_after_forget_logs_at_once(
    quiet: tuple[QuietLogger, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    logger, _ = quiet
    logger.warning("away", "away")
    logger.forget("away")
    logger.forget("never seen")
    logger.warning("away", "away")
    assert len(caplog.records) == 2


def test_quiet_logger_of_ever_new_keys_stays_small_and_keeps_the_used_ones(
    quiet: tuple[QuietLogger, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    logger, _ = quiet
    for number in range(1000):
        logger.warning("used", "used")
        logger.warning(f"key {number}", "once")
    assert len(logger._last) == 200
    assert [record.getMessage() for record in caplog.records].count("used") == 1
