"""A writer's metrics for OpenTelemetry (docs/metrics.md). Needs the extra ``otel``; the exporter is yours."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter

from pgtick.adapters.measures import DISTRIBUTIONS, MEASURES, HasMetrics, Measure
from pgtick.writer.metrics import Metrics

__all__ = ["WriterInstruments", "instrument_writer"]


class WriterInstruments:
    """The instruments of one writer, until ``uninstrument()``."""

    def __init__(self, metrics: Metrics, meter: Meter) -> None:
        self._metrics: Metrics | None = metrics
        for measure in MEASURES:
            create = meter.create_observable_counter if measure.kind == "counter" else meter.create_observable_gauge
            create(f"pgtick.{measure.name}", [self._callback(measure)], measure.unit, measure.what)
        self._histograms = {
            one.key: meter.create_histogram(
                f"pgtick.{one.name}", one.unit, one.what, explicit_bucket_boundaries_advisory=one.bounds
            )
            for one in DISTRIBUTIONS
        }
        metrics.observers.append(self._observe)

    def _callback(self, measure: Measure) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            metrics = self._metrics
            if metrics is None:
                return []
            metrics.refresh()
            return [
                Observation(value, dict(zip(measure.labels, labels, strict=True)))
                for labels, value in measure.read(metrics)
            ]

        return observe

    def _observe(self, name: str, table: str, value: float) -> None:
        if name in self._histograms:
            self._histograms[name].record(value, {"table": table})

    def uninstrument(self) -> None:
        """Stop observing; a second call does nothing. OpenTelemetry keeps the instruments, which stay silent."""
        if self._metrics is not None:
            self._metrics.observers.remove(self._observe)
            self._metrics = None


def instrument_writer(writer: HasMetrics, meter_provider: MeterProvider | None = None) -> WriterInstruments:
    """Make the instruments of a writer with the provider, the global one unless given.

    Counters and gauges are read when the provider's reader collects, on its thread; the histograms are fed as batches
    are settled.
    """
    return WriterInstruments(writer.metrics, get_meter("pgtick", meter_provider=meter_provider))
