"""SymbolCache against a plain dict: names byte for byte, duplicates, swaps, counters, reference counts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec
import pytest
from cached import NAMES, check_against_oracle, make
from hypothesis import given, settings
from hypothesis import strategies as st

from pgtick._fast.symbols import SymbolCache
from pgtick.models import CachedSymbol

pytestmark = pytest.mark.core

EXPIRY = datetime(2030, 1, 1, tzinfo=UTC)
names = st.sampled_from(NAMES) | st.text(max_size=3)
ids = st.integers(-3, 30) | st.sampled_from([2**24 - 1, 2**24, 2**31, 2**63, -(2**63) - 1, 2**200])
cached_symbols = st.builds(
    CachedSymbol,
    id=ids,
    exchange_id=st.just(1),
    exchange=st.sampled_from(["BINANCE_SPOT", "GATEIO_FUTURES", "交易所"]),
    symbol_base=names,
    symbol_quote=names,
    exchange_symbol=names,
    is_active=st.booleans(),
    expiry=st.sampled_from([None, EXPIRY]),
)


@settings(deadline=None)
@given(st.lists(cached_symbols, max_size=12))
def test_load_any_symbols_agrees_with_dicts(symbols: list[CachedSymbol]) -> None:
    cache = SymbolCache()
    cache.load([make(5, "OLD"), make(2**40, "OLDER")])
    cache.load(iter(symbols))
    check_against_oracle(cache, symbols)


@settings(deadline=None)
@given(st.lists(cached_symbols, max_size=4), st.lists(cached_symbols, max_size=12))
def test_put_any_symbols_agrees_with_dicts(loaded: list[CachedSymbol], added: list[CachedSymbol]) -> None:
    cache = SymbolCache()
    cache.load(loaded)
    for symbol in added:
        cache.put(symbol)
    check_against_oracle(cache, [*loaded, *added])


def test_put_many_new_ids_grows_the_tables() -> None:
    cache = SymbolCache()
    symbols = [make(i * 7, f"B{i}") for i in range(3000)]
    for symbol in symbols:
        cache.put(symbol)
    assert all(cache.get(s.id) is s for s in symbols)
    assert all(cache.find("BINANCE_SPOT", s.symbol_base, "USDT") is s for s in symbols)
    assert all(cache.find_exchange_symbol("BINANCE_SPOT", s.exchange_symbol) is s for s in symbols)


def test_put_renamed_symbol_drops_its_old_names() -> None:
    cache = SymbolCache()
    cache.load([make(1), make(2, "ETH")])
    renamed = make(1, "币安人生")
    cache.put(renamed)
    assert cache.find("BINANCE_SPOT", "BTC", "USDT") is None
    assert cache.find_exchange_symbol("BINANCE_SPOT", "BTCUSDT") is None
    assert cache.find("BINANCE_SPOT", "币安人生", "USDT") is renamed
    assert cache.get(1) is renamed
    assert len(cache) == 2


def test_find_duplicates_prefers_active_then_perpetual_then_newest() -> None:
    cache = SymbolCache()
    ranked = [
        make(9, is_active=False, expiry=EXPIRY),
        make(1, is_active=False),
        make(8, expiry=EXPIRY),
        make(2),
        make(3),
    ]
    for symbol in ranked:
        cache.put(symbol)
        assert cache.find("BINANCE_SPOT", "BTC", "USDT") is symbol
    cache.load(reversed(ranked))
    assert cache.find_exchange_symbol("BINANCE_SPOT", "BTCUSDT") is ranked[-1]
    cache.put(make(3, is_active=False))
    assert cache.find("BINANCE_SPOT", "BTC", "USDT") is ranked[3]


def failing() -> Iterator[CachedSymbol]:
    yield make(3, "NEW")
    raise RuntimeError("the server went away")


@pytest.mark.parametrize(
    ("symbols", "error"),
    [
        (failing(), RuntimeError),
        ([make(3, "NEW"), object()], AttributeError),
        ([make(3, "NEW"), msgspec.structs.replace(make(4), symbol_base=None)], TypeError),
        ([make(3, "NEW"), msgspec.structs.replace(make(4), id="4")], TypeError),
        ([make(3, "NEW"), msgspec.structs.replace(make(4), id=True)], TypeError),
        (None, TypeError),
    ],
)
def test_load_fails_cache_is_as_it_was(symbols: Any, error: type[Exception]) -> None:
    cache = SymbolCache()
    before = [make(1), make(2, "ETH")]
    cache.load(before)
    with pytest.raises(error):
        cache.load(symbols)
    check_against_oracle(cache, before)


def test_put_fails_cache_is_as_it_was() -> None:
    cache = SymbolCache()
    cache.load([make(1)])
    with pytest.raises(TypeError, match="exchange must be a str, not int"):
        cache.put(msgspec.structs.replace(make(2), exchange=5))
    assert cache.symbols() == [make(1)]


def test_counters_every_unknown_key_is_a_miss() -> None:
    cache = SymbolCache()
    assert cache.stats() == {"hits": 0, "misses": 0, "size": 0, "hit_ratio": 0.0}
    cache.load([make(1), make(2**40, "ETH")])
    for number in (1, 2**40, 0, 2, -1, 2**24, 2**100):
        cache.get(number)
    cache.find("BINANCE_SPOT", "BTC", "USDT")
    cache.find("BINANCE_SPOT", "USDT", "BTC")
    cache.find_exchange_symbol("BINANCE_SPOT", "BTCUSDT")
    cache.find_exchange_symbol("BINANCE_SPOT", "btcusdt")
    assert (cache.hits, cache.misses) == (4, 7)
    assert cache.stats() == {"hits": 4, "misses": 7, "size": 2, "hit_ratio": 4 / 11}
    cache.load([])
    assert (cache.hits, cache.misses) == (4, 7)
    cache.reset_stats()
    assert cache.stats() == {"hits": 0, "misses": 0, "size": 0, "hit_ratio": 0.0}


@pytest.mark.parametrize("wrong", ["1", 1.0, None, b"1", True, object()])
def test_lookup_wrong_type_is_a_type_error_and_not_counted(wrong: Any) -> None:
    cache = SymbolCache()
    cache.load([make(1)])
    with pytest.raises(TypeError, match="id must be an int"):
        cache.get(wrong)
    with pytest.raises(TypeError, match="id must be an int"):
        cache[wrong]
    key: Any = 1 if isinstance(wrong, str) else wrong
    with pytest.raises(TypeError):
        cache.find("BINANCE_SPOT", "BTC", key)
    with pytest.raises(TypeError):
        cache.find_exchange_symbol(key, "BTCUSDT")
    assert (cache.hits, cache.misses) == (0, 0)


def test_subscript_unknown_id_is_a_key_error_that_names_it_and_a_miss() -> None:
    cache = SymbolCache()
    symbol = make(1)
    cache.load([symbol])
    assert cache[1] is symbol
    for unknown in (0, 2, -1, 2**24, 2**100):
        with pytest.raises(KeyError, match=f"^{unknown}$"):
            cache[unknown]
    assert (cache.hits, cache.misses) == (1, 5)


def test_generation_relisted_ticker_counts_up_and_the_old_id_is_not_current() -> None:
    cache = SymbolCache()
    cache.load([make(3), make(5, "ETH")])
    assert [cache.generation(3), cache.is_current(3)] == [1, True]
    cache.put(make(3, is_active=False))
    assert cache.is_current(3)  # switched off, and nothing else goes by its name
    cache.put(make(9))  # listed again
    assert [cache.generation(number) for number in (3, 9, 5)] == [1, 2, 1]
    assert [cache.is_current(number) for number in (3, 9, 5)] == [False, True, True]
    cache.put(make(9, is_active=False))
    cache.put(make(12))
    assert [cache.generation(number) for number in (3, 9, 12)] == [1, 2, 3]
    assert [cache.is_current(number) for number in (3, 9, 12)] == [False, False, True]
    cache.put(make(9, "RENAMED"))
    assert [cache.generation(number) for number in (3, 9, 12)] == [1, 1, 2]
    for ask in (cache.generation, cache.is_current):
        with pytest.raises(KeyError, match=r"^4$"):
            ask(4)
        with pytest.raises(TypeError, match="id must be an int, not str"):
            ask("3")  # type: ignore[arg-type]
    assert (cache.hits, cache.misses) == (0, 0)


def test_find_str_subclass_compares_by_its_text() -> None:
    class Venue(StrEnum):
        BINANCE = "BINANCE_SPOT"

    cache = SymbolCache()
    symbol = make(1, exchange=Venue.BINANCE)
    cache.load([symbol])
    assert cache.find(Venue.BINANCE, "BTC", "USDT") is symbol
    assert cache.find("BINANCE_SPOT", "BTC", "USDT") is symbol


def test_load_100k_symbols_finds_each() -> None:
    cache = SymbolCache()
    symbols = [make(i, f"币{i}") for i in range(100_000)]
    cache.load(symbols)
    assert len(cache) == 100_000
    for s in symbols:
        assert cache.get(s.id) is s
        assert cache.find("BINANCE_SPOT", s.symbol_base, "USDT") is s
        assert cache.find_exchange_symbol("BINANCE_SPOT", s.exchange_symbol) is s
    assert cache.misses == 0


def test_reference_counts_stay_and_return() -> None:
    symbols = [make(i, f"B{i}") for i in range(50)] + [make(2**40, "FAR")]
    probes: list[object] = [symbols[7], symbols[-1], symbols[7].symbol_base, symbols[7].exchange_symbol]
    at_first = [sys.getrefcount(p) for p in probes]
    cache = SymbolCache()
    cache.load(symbols)
    loaded = [sys.getrefcount(p) for p in probes]
    for _ in range(200):
        cache.load(symbols)
        cache.put(symbols[7])
        for s in (symbols[7], symbols[-1]):
            cache.get(s.id)
            cache.find("BINANCE_SPOT", s.symbol_base, "USDT")
            cache.find_exchange_symbol(s.exchange, s.exchange_symbol)
        del s
        with pytest.raises(RuntimeError):
            cache.load(failing())
    assert [sys.getrefcount(p) for p in probes] == loaded
    found = cache.get(7)
    del cache
    assert found == symbols[7]
    del found
    assert [sys.getrefcount(p) for p in probes] == at_first


def test_symbol_found_outlives_the_swap() -> None:
    cache = SymbolCache()
    cache.load([make(1)])
    found = cache.get(1)
    cache.load([])
    assert found == make(1)
    assert cache.get(1) is None
