"""Look-ups of a symbol: the cache beside what Python offers, by id and by name."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterable

from peers.measure import Case, Rounds, Sample, interleave
from pgtick._fast.symbols import SymbolCache
from pgtick.models import CachedSymbol

__all__ = ["BY_ID", "BY_NAMES", "BY_VENUE", "N_LOOKUPS", "compare_lookups", "make_symbols"]

N_LOOKUPS = 1000
REPEATS = 20
BY_ID = "pgtick SymbolCache.get(id)"
BY_NAMES = "pgtick SymbolCache.find(exchange, base, quote)"
BY_VENUE = "pgtick SymbolCache.find_exchange_symbol(exchange, name)"


def make_symbols(n: int) -> list[CachedSymbol]:
    """Return symbols 1 … n of five exchanges."""
    return [
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


def _one(look_up: Callable[[int], object], ids: list[int]) -> Callable[[], None]:
    def loop() -> None:
        for number in ids:
            look_up(number)

    return loop


def _pair(look_up: Callable[[str, str], object], keys: list[tuple[str, str]]) -> Callable[[], None]:
    def loop() -> None:
        for exchange, name in keys:
            look_up(exchange, name)

    return loop


def _three(look_up: Callable[[str, str, str], object], keys: list[tuple[str, str, str]]) -> Callable[[], None]:
    def loop() -> None:
        for exchange, base, quote in keys:
            look_up(exchange, base, quote)

    return loop


def _loops(symbols: list[CachedSymbol]) -> dict[str, Callable[[], None]]:
    cache = SymbolCache()
    cache.load(symbols)
    sample = random.Random(2).sample(symbols, min(N_LOOKUPS, len(symbols)))
    sample = (sample * (N_LOOKUPS // len(sample) + 1))[:N_LOOKUPS]
    ids = [s.id for s in sample]
    names = [(s.exchange, s.symbol_base, s.symbol_quote) for s in sample]
    venue = [(s.exchange, s.exchange_symbol) for s in sample]
    by_id = {s.id: s for s in symbols}
    by_names = {(s.exchange, s.symbol_base, s.symbol_quote): s for s in symbols}
    by_venue = {(s.exchange, s.exchange_symbol): s for s in symbols}
    nested: dict[str, dict[str, dict[str, CachedSymbol]]] = {}
    for s in symbols:
        nested.setdefault(s.exchange, {}).setdefault(s.symbol_base, {})[s.symbol_quote] = s
    cached_id = functools.lru_cache(maxsize=None)(by_id.__getitem__)
    cached_names = functools.lru_cache(maxsize=None)(lambda *key: by_names[key])

    # Written out, as a service writes them: a call around a dict would cost more than the dict.
    def subscript() -> None:
        for number in ids:
            by_id[number]

    def tuple_key() -> None:
        for exchange, base, quote in names:
            by_names[exchange, base, quote]

    def tuple_venue() -> None:
        for exchange, name in venue:
            by_venue[exchange, name]

    def nested_dicts() -> None:
        for exchange, base, quote in names:
            nested[exchange][base][quote]

    return {
        "dict[id]": subscript,
        "dict.get(id)": _one(by_id.get, ids),
        "lru_cache by id": _one(cached_id, ids),
        BY_ID: _one(cache.get, ids),
        "dict[exchange, base, quote]": tuple_key,
        "nested dicts": nested_dicts,
        "lru_cache by (exchange, base, quote)": _three(cached_names, names),
        BY_NAMES: _three(cache.find, names),
        "dict[exchange, name]": tuple_venue,
        BY_VENUE: _pair(cache.find_exchange_symbol, venue),
    }


def _case(loop: Callable[[], None]) -> Case:
    async def run() -> Sample:
        seconds = []
        for _ in range(REPEATS):
            start = time.thread_time()
            loop()
            seconds.append(time.thread_time() - start)
        return Sample(min(seconds), min(seconds))  # what disturbs so short a loop only ever slows it

    return run


async def compare_lookups(n_symbols: int, rounds: int, only: Iterable[str] = ()) -> Rounds:
    """Measure a thousand look-ups of random keys; the loop around them is in the figures of all alike."""
    loops = _loops(make_symbols(n_symbols))
    chosen = set(only) or set(loops)
    return await interleave({name: _case(loop) for name, loop in loops.items() if name in chosen}, rounds, N_LOOKUPS)
