"""Interleaved rounds: every case once a round, medians over the rounds, ratios within a round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

__all__ = ["Case", "Rounds", "Sample", "interleave", "reason_of", "timed"]


class Sample(NamedTuple):
    """``cpu_s``: processor time of this process, all its threads; ``server_cpu_s``: of the server's, where known."""

    seconds: float
    cpu_s: float
    server_cpu_s: float | None = None


Case = Callable[[], Awaitable[Sample]]


class Rounds:
    """The samples by case, and why a case has none."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.samples: dict[str, list[Sample]] = {}
        self.skipped: dict[str, str] = {}

    def seconds(self, name: str) -> float:
        """Return the median of the rounds."""
        return statistics.median(sample.seconds for sample in self.samples[name])

    def rows_per_s(self, name: str) -> float:
        """Return the median rate."""
        return self.n_rows / self.seconds(name)

    def cpu_us(self, name: str) -> float:
        """Return the median of this process's microseconds a row."""
        return statistics.median(sample.cpu_s for sample in self.samples[name]) / self.n_rows * 1e6

    def server_cpu_us(self, name: str) -> float | None:
        """Return the median of the server process's microseconds a row, None where it cannot be known."""
        known = [sample.server_cpu_s for sample in self.samples[name] if sample.server_cpu_s is not None]
        return statistics.median(known) / self.n_rows * 1e6 if known else None

    def speed(self, name: str, other: str) -> float:
        """Return how much faster than ``other`` it is: the median of the rounds' ratios."""
        pairs = zip(self.samples[name], self.samples[other], strict=True)
        return statistics.median(b.seconds / a.seconds for a, b in pairs)

    def noise(self, name: str) -> float:
        """Return the spread (slowest - fastest) of its rounds, as a share of their median."""
        seconds = [sample.seconds for sample in self.samples[name]]
        return (max(seconds) - min(seconds)) / statistics.median(seconds)


def reason_of(error: Exception) -> str:
    """Return in one line why a peer is not in the table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


async def timed(work: Callable[[], Awaitable[object]]) -> Sample:
    """Await the work once and time it, the collector of garbage at rest."""
    gc.collect()
    gc.disable()
    try:
        cpu, start = time.process_time(), time.perf_counter()
        await work()
        return Sample(time.perf_counter() - start, time.process_time() - cpu)
    finally:
        gc.enable()


async def interleave(
    cases: Mapping[str, Case], rounds: int, n_rows: int, progress: Callable[[str], object] = lambda name: None
) -> Rounds:
    """Run every case in every round, each round beginning with another one.

    A case that fails is out, with its reason; the rest goes on.
    """
    result = Rounds(n_rows)
    names = list(cases)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name in result.skipped:
                continue
            progress(name)
            try:
                sample = await cases[name]()
            except Exception as error:  # a peer's own, of any kind; it is reported in the table
                result.skipped[name] = reason_of(error)
                result.samples.pop(name, None)
                continue
            result.samples.setdefault(name, []).append(sample)
    return result
