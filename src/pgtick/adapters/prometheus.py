"""A writer's metrics for Prometheus (docs/metrics.md). Needs the extra ``prometheus``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from threading import Thread
from types import TracebackType
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pgtick.adapters.measures import DEFAULT_PORT, DISTRIBUTIONS, MEASURES, HasMetrics, Reading
from pgtick.writer.metrics import Metrics

__all__ = ["MetricsServer", "WriterCollector", "serve_metrics"]


class WriterCollector(Collector):
    """Read a writer's metrics whenever it is asked; register one a registry, since the names bear no writer.

    It keeps nothing of its own and may be asked on any thread: ``Metrics.read``.
    """

    def __init__(self, writer: HasMetrics, registry: CollectorRegistry | None = None) -> None:
        self._writer = writer
        if registry is not None:
            registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples: what a registry checks for names that it has already."""
        return [*(_family(measure.name, measure.kind, measure.what, measure.labels) for measure in MEASURES)] + [
            HistogramMetricFamily(f"pgtick_{one.name}", one.what, labels=("table",)) for one in DISTRIBUTIONS
        ]

    def collect(self) -> Iterator[Metric]:
        """Yield every family with its samples, all of one moment."""
        # On the writer's event loop only what must be of one moment is read: the families take much longer to make.
        measured, distributed = self._writer.metrics.read(_reading)
        for measure, readings in zip(MEASURES, measured, strict=True):
            family = _family(measure.name, measure.kind, measure.what, measure.labels)
            for labels, value in readings:
                family.add_metric(labels, value)
            yield family
        for one, histograms in zip(DISTRIBUTIONS, distributed, strict=True):
            distribution = HistogramMetricFamily(f"pgtick_{one.name}", one.what, labels=("table",))
            for table, buckets, total in histograms:
                named = [("+Inf" if bound == math.inf else str(bound), float(n)) for bound, n in buckets]
                distribution.add_metric((table,), named, total)
            yield distribution


_Buckets = list[tuple[float, int]]


def _reading(metrics: Metrics) -> tuple[list[list[Reading]], list[list[tuple[str, _Buckets, float]]]]:
    measured = [list(measure.read(metrics)) for measure in MEASURES]
    distributed = [
        [(table, histogram.buckets, histogram.total) for table, histogram in one.read(metrics).copy().items()]
        for one in DISTRIBUTIONS
    ]
    return measured, distributed


def _family(name: str, kind: str, what: str, labels: tuple[str, ...]) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    return family(f"pgtick_{name}", what, labels=labels)


class MetricsServer:
    """An HTTP endpoint in a thread of its own; ``close()`` or a ``with`` ends it."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread
        self.port: int = server.server_port
        host = str(server.server_address[0])
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop serving and give the port back; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def serve_metrics(writer: HasMetrics, port: int = DEFAULT_PORT, host: str = "127.0.0.1") -> MetricsServer:
    """Serve a writer's metrics for Prometheus and ``pgtick top``, at this machine's own address unless told otherwise.

    Port 0 takes a free one: ``port`` and ``url`` of what is returned tell. There is no encryption and no password:
    whoever reaches the port may read the names of tables and their counts, and nothing else.
    """
    registry = CollectorRegistry(auto_describe=False)
    WriterCollector(writer, registry)
    return MetricsServer(*start_http_server(port, host, registry))
