"""A writer's metrics for OpenTelemetry (docs/metrics.md). Needs the extra ``otel``; the exporter is yours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter, get_meter_provider

from pgtick.adapters.measures import DISTRIBUTIONS, MEASURES, HasMetrics, Measure

__all__ = ["WriterInstruments", "instrument_writer"]


class _Instruments:
    """The instruments of a provider, made once: it keeps the first callback of a name and drops any later one."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = get_meter("pgtick", meter_provider=provider)
        self.observed: list[WriterInstruments] = []
        for measure in MEASURES:
            create = meter.create_observable_counter if measure.kind == "counter" else meter.create_observable_gauge
            create(f"pgtick.{measure.name}", [self._callback(measure)], measure.unit, measure.what)
        self.histograms = {
            one.key: meter.create_histogram(
                f"pgtick.{one.name}", one.unit, one.what, explicit_bucket_boundaries_advisory=one.bounds
            )
            for one in DISTRIBUTIONS
        }

    def _callback(self, measure: Measure) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [told for one in self.observed.copy() for told in one.read(measure)]

        return observe


_by_provider: WeakKeyDictionary[MeterProvider, _Instruments] = WeakKeyDictionary()


class WriterInstruments:
    """One writer's part in the instruments of a provider, until ``uninstrument()``."""

    def __init__(self, writer: HasMetrics, instruments: _Instruments, attributes: Mapping[str, str]) -> None:
        self._metrics = writer.metrics
        self._instruments = instruments
        self._attributes = dict(attributes)
        instruments.observed.append(self)
        self._metrics.observers.append(self._observe)

    def read(self, measure: Measure) -> list[Observation]:
        """Return the measure's readings now, with their labels as attributes."""
        return [
            Observation(value, {**self._attributes, **dict(zip(measure.labels, labels, strict=True))})
            for labels, value in self._metrics.read(lambda metrics: [*measure.read(metrics)])
        ]

    def _observe(self, name: str, table: str, value: float) -> None:
        self._instruments.histograms[name].record(value, {**self._attributes, "table": table})

    def uninstrument(self) -> None:
        """Stop observing; a second call does nothing. OpenTelemetry keeps the instruments, which stay silent."""
        if self in self._instruments.observed:
            self._instruments.observed.remove(self)
            self._metrics.observers.remove(self._observe)


def instrument_writer(
    writer: HasMetrics, meter_provider: MeterProvider | None = None, attributes: Mapping[str, str] | None = None
) -> WriterInstruments:
    """Tell a writer's metrics to the provider, the global one unless given.

    Counters and gauges are read when the provider's reader collects, on its thread; the histograms are fed as batches
    are settled. Of several writers each needs ``attributes`` that tell it apart.
    """
    provider = meter_provider or get_meter_provider()
    instruments = _by_provider.get(provider)
    if instruments is None:
        instruments = _by_provider[provider] = _Instruments(provider)
    return WriterInstruments(writer, instruments, attributes or {})
