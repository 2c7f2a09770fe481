"""Look-ups of the symbol cache, bare and through the public functions.

1,000 a round over varied keys; the budget is 1 µs for each by the median.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from pgtick._fast.symbols import SymbolCache
from pgtick.cache_operations import (
    cached_get_symbol,
    cached_get_symbol_by_exchange_symbol,
    cached_get_symbol_by_id,
    get_cached_symbol_by_id,
)
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager
from pgtick.models import CachedSymbol

N_SYMBOLS = 5_000
N_LOOKUPS = 1_000
BUDGET_S = 1e-6

SYMBOLS = [
    CachedSymbol(
        id=i + 1,
        exchange_id=i % 5,
        exchange=f"EXCHANGE{i % 5}_SPOT",
        symbol_base=f"BASE{i}",
        symbol_quote="USDT",
        exchange_symbol=f"BASE{i}_USDT",
    )
    for i in range(N_SYMBOLS)
]
CACHE = SymbolCache()
CACHE.load(SYMBOLS)
SAMPLE = random.Random(2).sample(SYMBOLS, N_LOOKUPS)

pytestmark = pytest.mark.benchmark(group="cache")


def copied(text: str) -> str:
    """Return an equal str of another identity, as a feed's decoder makes it, its hash not yet computed."""
    return text.encode().decode()


def check_budget(benchmark: Any) -> None:
    if benchmark.stats is not None:  # None with --benchmark-disable
        assert benchmark.stats.stats.median / N_LOOKUPS < BUDGET_S


def test_get(benchmark: Any) -> None:
    ids = [s.id for s in SAMPLE]

    def look_up() -> None:
        get = CACHE.get
        for number in ids:
            get(number)

    assert [CACHE.get(number) for number in ids] == SAMPLE
    benchmark(look_up)
    check_budget(benchmark)


def test_get_unknown(benchmark: Any) -> None:
    ids = [N_SYMBOLS + s.id for s in SAMPLE]

    def look_up() -> None:
        get = CACHE.get
        for number in ids:
            get(number)

    assert {CACHE.get(number) for number in ids} == {None}
    benchmark(look_up)
    check_budget(benchmark)


def test_find(benchmark: Any) -> None:
    keys = [(s.exchange, s.symbol_base, s.symbol_quote) for s in SAMPLE]

    def look_up() -> None:
        find = CACHE.find
        for exchange, base, quote in keys:
            find(exchange, base, quote)

    assert [CACHE.find(*key) for key in keys] == SAMPLE
    benchmark(look_up)
    check_budget(benchmark)


def test_find_fresh_strings(benchmark: Any) -> None:
    def setup() -> tuple[tuple[list[tuple[str, str, str]]], dict[str, Any]]:
        return ([(copied(s.exchange), copied(s.symbol_base), copied(s.symbol_quote)) for s in SAMPLE],), {}

    def look_up(keys: list[tuple[str, str, str]]) -> None:
        find = CACHE.find
        for exchange, base, quote in keys:
            find(exchange, base, quote)

    benchmark.pedantic(look_up, setup=setup, rounds=300, warmup_rounds=10)
    check_budget(benchmark)


def test_find_unknown(benchmark: Any) -> None:
    keys = [(s.exchange, s.symbol_quote, s.symbol_base) for s in SAMPLE]

    def look_up() -> None:
        find = CACHE.find
        for exchange, base, quote in keys:
            find(exchange, base, quote)

    assert {CACHE.find(*key) for key in keys} == {None}
    benchmark(look_up)
    check_budget(benchmark)


def test_find_exchange_symbol(benchmark: Any) -> None:
    keys = [(s.exchange, s.exchange_symbol) for s in SAMPLE]

    def look_up() -> None:
        find = CACHE.find_exchange_symbol
        for exchange, name in keys:
            find(exchange, name)

    assert [CACHE.find_exchange_symbol(*key) for key in keys] == SAMPLE
    benchmark(look_up)
    check_budget(benchmark)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """A published manager with the symbols; a look-up in memory asks no pool."""
    manager = DatabaseManager(DatabaseConfig(host="localhost", database="none", user="none"), None, 0)
    manager.symbols.load(SYMBOLS)
    monkeypatch.setattr("pgtick.connection._published", manager)


@pytest.mark.usefixtures("published")
def test_public_get_symbol_by_id(benchmark: Any) -> None:
    ids = [s.id for s in SAMPLE]

    def look_up() -> None:
        for number in ids:
            cached_get_symbol_by_id(number)

    assert [cached_get_symbol_by_id(number) for number in ids] == SAMPLE
    benchmark(look_up)
    check_budget(benchmark)


@pytest.mark.usefixtures("published")
def test_public_get_symbol(benchmark: Any) -> None:
    keys = [(s.exchange, s.symbol_base, s.symbol_quote) for s in SAMPLE]

    def look_up() -> None:
        for exchange, base, quote in keys:
            cached_get_symbol(exchange, base, quote)

    assert [cached_get_symbol(*key) for key in keys] == SAMPLE
    benchmark(look_up)
    check_budget(benchmark)


@pytest.mark.usefixtures("published")
def test_public_get_symbol_by_exchange_symbol(benchmark: Any) -> None:
    keys = [(s.exchange, s.exchange_symbol) for s in SAMPLE]

    def look_up() -> None:
        for exchange, name in keys:
            cached_get_symbol_by_exchange_symbol(exchange, name)

    assert [cached_get_symbol_by_exchange_symbol(*key) for key in keys] == SAMPLE
    benchmark(look_up)
    check_budget(benchmark)


@pytest.mark.usefixtures("published")
def test_public_awaited_get_symbol_by_id(benchmark: Any) -> None:
    ids = [s.id for s in SAMPLE]

    async def ask() -> list[CachedSymbol | None]:
        return [await get_cached_symbol_by_id(number) for number in ids]

    def look_up() -> list[CachedSymbol | None]:
        # Without a loop: on a hit nothing waits, and the coroutine runs to its end at once.
        with pytest.raises(StopIteration) as done:
            ask().send(None)
        result: list[CachedSymbol | None] = done.value.value
        return result

    assert look_up() == SAMPLE
    benchmark(look_up)
    check_budget(benchmark)


def test_dict_get_for_comparison(benchmark: Any) -> None:
    by_id = {s.id: s for s in SYMBOLS}
    ids = [s.id for s in SAMPLE]

    def look_up() -> None:
        get = by_id.get
        for number in ids:
            get(number)

    benchmark(look_up)


def test_tuple_dict_for_comparison(benchmark: Any) -> None:
    by_pair = {(s.exchange, s.symbol_base, s.symbol_quote): s for s in SYMBOLS}
    keys = [(s.exchange, s.symbol_base, s.symbol_quote) for s in SAMPLE]

    def look_up() -> None:
        get = by_pair.get
        for exchange, base, quote in keys:
            get((exchange, base, quote))

    benchmark(look_up)
