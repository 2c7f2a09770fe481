"""SymbolCache beside a dict, from 10 to 100,000 symbols, and whole arrays beside single calls.

The hard budget is 1 µs by the median of pytest-benchmark. What a look-up takes beside a dict goes into extra_info
(``--benchmark-json``, or ``-s`` to see it): medians of rounds that take turns, gross as the loop takes it and net of
an empty loop over the same keys. A ratio is not gated: it is told, since machines are noisy.
"""

from __future__ import annotations

import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from pgtick._fast.symbols import SymbolCache
from pgtick.models import CachedSymbol

N_LOOKUPS = 1_000
N_ITEMS = 10_000
N_ROUNDS = 101
BUDGET_S = 1e-6
SIZES = [10, 1_000, 100_000]

pytestmark = pytest.mark.benchmark(group="symbols")


class Data:
    """A cache of n symbols on five exchanges, dicts of the same, and keys drawn at random."""

    def __init__(self, n: int) -> None:
        self.symbols = [
            CachedSymbol(
                id=i + 1,
                exchange_id=i % 5,
                exchange=f"EXCHANGE{i % 5}_SPOT",
                symbol_base=f"BASE{i}",
                symbol_quote="USDT",
                exchange_symbol=f"BASE{i}_USDT",
            )
            for i in range(n)
        ]
        self.cache = SymbolCache()
        tracemalloc.start()
        self.cache.load(self.symbols)
        self.bytes_a_symbol = tracemalloc.get_traced_memory()[0] / n
        tracemalloc.stop()
        self.by_id = {s.id: s for s in self.symbols}
        self.by_pair = {(s.exchange, s.symbol_base, s.symbol_quote): s for s in self.symbols}
        self.by_name = {(s.exchange, s.exchange_symbol): s for s in self.symbols}
        sample = random.Random(2).choices(self.symbols, k=N_LOOKUPS)
        self.ids = [s.id for s in sample]
        self.pairs = [(s.exchange, s.symbol_base, s.symbol_quote) for s in sample]
        self.names = [(s.exchange, s.exchange_symbol) for s in sample]


@lru_cache
def data(n: int) -> Data:
    return Data(n)


Loop = Callable[[], object]


def by_get(d: Data) -> tuple[Loop, Loop, Loop]:
    def empty() -> None:
        for _ in d.ids:
            pass

    def ours() -> None:
        get = d.cache.get
        for number in d.ids:
            get(number)

    def theirs() -> None:
        get = d.by_id.get
        for number in d.ids:
            get(number)

    return empty, ours, theirs


def by_subscript(d: Data) -> tuple[Loop, Loop, Loop]:
    def ours() -> None:
        cache = d.cache
        for number in d.ids:
            cache[number]

    def theirs() -> None:
        by_id = d.by_id
        for number in d.ids:
            by_id[number]

    return by_get(d)[0], ours, theirs


def by_pair(d: Data) -> tuple[Loop, Loop, Loop]:
    def empty() -> None:
        for _exchange, _base, _quote in d.pairs:
            pass

    def ours() -> None:
        find = d.cache.find
        for exchange, base, quote in d.pairs:
            find(exchange, base, quote)

    def theirs() -> None:
        get = d.by_pair.get
        for exchange, base, quote in d.pairs:
            get((exchange, base, quote))

    return empty, ours, theirs


def by_name(d: Data) -> tuple[Loop, Loop, Loop]:
    def empty() -> None:
        for _exchange, _name in d.names:
            pass

    def ours() -> None:
        find = d.cache.find_exchange_symbol
        for exchange, name in d.names:
            find(exchange, name)

    def theirs() -> None:
        get = d.by_name.get
        for exchange, name in d.names:
            get((exchange, name))

    return empty, ours, theirs


def in_turns(loops: tuple[Loop, ...], n: int) -> list[float]:
    """Return the median ns of one of a loop's n look-ups, for each loop."""
    taken: list[list[float]] = [[] for _ in loops]
    for _ in range(N_ROUNDS):
        for times, loop in zip(taken, loops, strict=True):
            start = time.perf_counter_ns()
            loop()
            times.append((time.perf_counter_ns() - start) / n)
    return [statistics.median(times) for times in taken]


def check(benchmark: Any, n: int, **told: float) -> None:
    benchmark.extra_info.update({name: round(value, 2) for name, value in told.items()})
    print(benchmark.name, benchmark.extra_info)
    if benchmark.stats is not None:  # None with --benchmark-disable
        assert benchmark.stats.stats.median / n < BUDGET_S


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("way", [by_get, by_subscript, by_pair, by_name])
def test_look_up(benchmark: Any, way: Callable[[Data], tuple[Loop, Loop, Loop]], n: int) -> None:
    d = data(n)
    loops = way(d)
    benchmark.pedantic(loops[1], rounds=N_ROUNDS, warmup_rounds=5)
    empty, ours, theirs = in_turns(loops, N_LOOKUPS)
    check(
        benchmark,
        N_LOOKUPS,
        gross_ns=ours,
        gross_ratio_to_dict=ours / theirs,
        net_ns=ours - empty,
        net_ratio_to_dict=(ours - empty) / (theirs - empty),
        bytes_a_symbol=d.bytes_a_symbol,
    )


@pytest.mark.parametrize("container", ["list", "fresh list", "U array", "object array"])
@pytest.mark.parametrize("n", SIZES)
def test_find_ids(benchmark: Any, n: int, container: str) -> None:
    d = data(n)
    exchange = d.symbols[0].exchange
    names = [s.exchange_symbol for s in random.Random(3).choices(d.symbols[::5], k=N_ITEMS)]
    find, find_ids = d.cache.find_exchange_symbol, d.cache.find_ids
    given: Any = {"U array": np.array(names), "object array": np.array(names, object)}.get(container, names)

    def whole(given: Any = given) -> object:
        return find_ids(exchange, given)

    def single() -> object:
        return [found.id if (found := find(exchange, name)) is not None else 0 for name in given]

    assert whole().tolist() == single()  # type: ignore[attr-defined]
    if container == "fresh list":  # as a decoder makes them: their hashes not yet made

        def setup() -> tuple[tuple[list[str]], dict[str, Any]]:
            return ([name.encode().decode() for name in names],), {}

        benchmark.pedantic(whole, setup=setup, rounds=N_ROUNDS)
        check(benchmark, N_ITEMS)
        return
    benchmark.pedantic(whole, rounds=N_ROUNDS, warmup_rounds=2)
    ours, theirs = in_turns((whole, single), N_ITEMS)
    check(benchmark, N_ITEMS, ns_an_item=ours, times_faster_than_single_calls=theirs / ours)


@pytest.mark.parametrize("container", ["list", "int32 array", "int64 array"])
@pytest.mark.parametrize("n", SIZES)
def test_get_many(benchmark: Any, n: int, container: str) -> None:
    d = data(n)
    ids = [s.id for s in random.Random(3).choices(d.symbols, k=N_ITEMS)]
    given: Any = ids if container == "list" else np.array(ids, container.split()[0])
    get, get_many = d.cache.get, d.cache.get_many

    def whole() -> object:
        return get_many(given)

    def single() -> object:
        return [get(number) for number in ids]

    assert whole() == single()
    benchmark.pedantic(whole, rounds=N_ROUNDS, warmup_rounds=2)
    ours, theirs = in_turns((whole, single), N_ITEMS)
    check(benchmark, N_ITEMS, ns_an_item=ours, times_faster_than_single_calls=theirs / ours)


@pytest.mark.parametrize("n", SIZES)
def test_load(benchmark: Any, n: int) -> None:
    d = data(n)
    cache = SymbolCache()
    benchmark.pedantic(cache.load, args=(d.symbols,), rounds=5, warmup_rounds=1)
    check(benchmark, n)
