"""SymbolCache under threads, finalizers that come back, forced collisions, failing allocations; and its memory."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import sysconfig
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cached import check_against_oracle, make
from wire import untraced

from pgtick._fast import symbol_tables
from pgtick._fast.symbols import SymbolCache
from pgtick.models import CachedSymbol

pytestmark = pytest.mark.core

ROOT = Path(__file__).parents[1]


class Loose:
    """A symbol of another class, with hooks."""

    exchange = "BINANCE_SPOT"
    symbol_quote = "USDT"
    is_active = True
    expiry = None

    def __init__(self, number: int, base: str = "BTC", on_end: Callable[[], None] | None = None) -> None:
        self.id = number
        self.symbol_base = base
        self.exchange_symbol = base + "USDT"
        self.on_end = on_end

    def __del__(self) -> None:
        if self.on_end is not None:
            self.on_end()


@pytest.fixture
def eager_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def run_all(workers: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@untraced
@pytest.mark.usefixtures("eager_switches")
def test_threads_look_up_while_others_swap_see_one_state_and_count_exactly() -> None:
    cache = SymbolCache()
    states = [[make(i, f"B{i}", exchange_id=state) for i in range(1, 200)] for state in (1, 2)]
    cache.load(states[0])
    numbers = np.arange(1, 200)
    names = [s.exchange_symbol for s in states[0]]
    done = threading.Event()
    asked: list[int] = []

    def look_up() -> None:
        n = 0
        while not done.is_set():
            for number in range(1, 200, 7):
                by_id, by_pair = cache.get(number), cache.find("BINANCE_SPOT", f"B{number}", "USDT")
                by_name = cache.find_exchange_symbol("BINANCE_SPOT", f"B{number}USDT")
                assert [s and s.id for s in (by_id, by_pair, by_name, cache[number])] == [number] * 4
                assert cache.is_current(number)
                n += 4
            many = cache.get_many(numbers)
            assert len({s and s.exchange_id for s in many}) == 1
            assert cache.find_ids("BINANCE_SPOT", names).tolist() == numbers.tolist()
            n += 2 * len(numbers)
        asked.append(n)

    def swap() -> None:
        for i in range(3000):
            cache.load(states[i % 2])
            cache.put(make(1000 + i, f"NEW{i}"))  # in place
            cache.put(make(1000 + i, f"RENAMED{i}"))  # another copy of the tables
        done.set()

    run_all([look_up, look_up, look_up, swap])
    assert min(asked) > 0
    assert (cache.hits, cache.misses) == (sum(asked), 0)


@pytest.mark.parametrize("kind", [SymbolCache, symbol_tables.Row, symbol_tables.Tables])
def test_collector_does_not_track_what_borrows_pointers(kind: type) -> None:
    assert not kind.__flags__ & 1 << 14  # Py_TPFLAGS_HAVE_GC


@untraced
@pytest.mark.usefixtures("eager_switches")
def test_threads_put_at_once_none_is_lost() -> None:
    cache = SymbolCache()
    n_threads, n = 4, 150
    start = threading.Barrier(n_threads)

    def put(first: int) -> None:
        start.wait()
        for i in range(first, first + n):
            cache.put(Loose(i, f"B{i}"))  # type: ignore[arg-type]
            cache.put(make(i, f"R{i}"))  # copies the tables that others write to

    run_all([partial(put, t * n) for t in range(n_threads)])
    assert sorted(s.id for s in cache.symbols()) == list(range(n_threads * n))
    assert all(cache.find("BINANCE_SPOT", f"R{i}", "USDT") is cache.get(i) for i in range(n_threads * n))


def test_free_threading_is_not_declared(tmp_path: Path) -> None:
    """So a free-threaded interpreter turns the GIL back on; on one, look at it."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert sys._is_gil_enabled()  # type: ignore[attr-defined]
    pytest.importorskip("Cython")
    assert "freethreading" not in (ROOT / "setup.py").read_text("utf-8")
    c_file = tmp_path / "symbols.c"
    source = str(ROOT / "src" / "_fast" / "symbols.pyx")
    command = [sys.executable, "-m", "cython", "-3", "-I", str(ROOT / "src"), source, "-o", str(c_file)]
    subprocess.run(command, check=True, capture_output=True)
    text = c_file.read_text("utf-8")
    assert "{Py_mod_gil, __Pyx_FREETHREADING_COMPATIBLE}" in text
    declared = [line for line in text.splitlines() if line.startswith("#define __Pyx_FREETHREADING_COMPATIBLE")]
    assert declared[-1].endswith("Py_MOD_GIL_USED")


def test_finalizer_that_changes_the_cache_finds_it_whole() -> None:
    cache = SymbolCache()
    seen: list[int] = []

    def come_back() -> None:
        seen.append(cache.size)
        assert cache.get(2) is not None
        cache.put(make(100 + len(seen), f"AGAIN{len(seen)}"))
        if len(seen) == 1:
            cache.load([make(2, "ETH"), *cache.symbols()])

    cache.load([Loose(1, on_end=come_back), Loose(3, "XRP", come_back), make(2, "ETH")])  # type: ignore[list-item]
    cache.put(make(1))  # ends the first
    assert seen == [3]
    cache.load([make(1), make(2, "ETH")])  # ends the second
    assert len(seen) == 2
    assert cache.symbols() == [make(1), make(2, "ETH"), make(102, "AGAIN2")]
    check_against_oracle(cache, cache.symbols())


def test_attribute_that_changes_the_cache_is_read_before_anything_is_stored() -> None:
    cache = SymbolCache()

    class Late(Loose):
        @property
        def is_active(self) -> bool:  # type: ignore[override]
            cache.put(make(7, "ETH"))
            cache.load([make(8, "XRP")])
            cache.put(make(9, "LTC"))
            return True

    late: Any = Late(1)
    cache.put(late)
    assert [s.id for s in cache.symbols()] == [8, 9, 1]
    assert cache.find("BINANCE_SPOT", "BTC", "USDT") is late
    both: list[Any] = [late, make(2)]
    cache.load(iter(both))
    assert [s.id for s in cache.symbols()] == [1, 2]


def test_subclasses_of_str_and_int_are_taken_by_their_value_and_never_called() -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("called")

    hooks: dict[str, Any] = dict.fromkeys(
        ("__hash__", "__eq__", "__str__", "__lt__", "__gt__", "__len__", "__repr__"), refuse
    )
    hooks["__class__"] = property(refuse)
    text: Any = type("Text", (str,), hooks)
    number: Any = type("Number", (int,), {**hooks, "__index__": refuse, "__int__": refuse})
    cache = SymbolCache()
    symbol = make(number(5), text("BTC"), text("USDT"), exchange=text("X"), exchange_symbol=text("BTCUSDT"))
    cache.load([symbol])
    cache.put(symbol)
    assert cache.get(5) is symbol
    assert cache.get(number(5)) is symbol
    assert cache[number(5)] is symbol
    assert cache.get_many([number(5)])[0] is symbol
    assert cache.find(text("X"), text("BTC"), text("USDT")) is symbol
    assert cache.find_exchange_symbol(text("X"), text("BTCUSDT")) is symbol
    assert cache.find_ids(text("X"), [text("BTCUSDT")]).tolist() == [5]
    assert cache.find("X", "BTC", "USDT") is symbol
    assert cache.generation(number(5)) == 1


def with_hash(text: str, value: int) -> str:
    """Return an equal str that carries the given hash: where CPython keeps it, behind count, type and length."""
    fresh = (text + "\0").removesuffix("\0")
    assert hash(fresh) == ctypes.c_ssize_t.from_address(id(fresh) + 24).value
    ctypes.c_ssize_t.from_address(id(fresh) + 24).value = value
    assert hash(fresh) == value
    return fresh


@pytest.mark.skipif(sys.maxsize < 2**32, reason="the offset is that of 64 bits")
def test_names_of_one_hash_are_told_apart_by_their_text() -> None:
    cache = SymbolCache()
    texts = [f"{letter}{i}" for i in range(60) for letter in "aé币\U0001f680"] + ["a", "aa", "é0 "]
    symbols = [
        make(i, with_hash(text, 5), with_hash("Q", 6), exchange_symbol=with_hash(text, 5))
        for i, text in enumerate(texts, 1)
    ]
    cache.load(symbols[:100])
    for symbol in symbols[100:]:
        cache.put(symbol)
    for text, symbol in zip(texts, symbols, strict=True):
        assert cache.find("BINANCE_SPOT", with_hash(text, 5), with_hash("Q", 6)) is symbol
        assert cache.find_exchange_symbol("BINANCE_SPOT", with_hash(text, 5)) is symbol
        assert cache.find_exchange_symbol("BINANCE_SPOT", with_hash(text + "!", 5)) is None
    assert cache.find_ids("BINANCE_SPOT", [with_hash(text, 5) for text in texts]).tolist() == [s.id for s in symbols]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.load([make(i, f"N{i}") for i in range(50)]),
        lambda cache: cache.put(make(2)),  # renames: a copy of the tables
        lambda cache: cache.put(make(500, "NEW")),  # in place; the array by id grows
        lambda cache: cache.put(make(2**40, "NEW")),
        lambda cache: cache.find_ids("BINANCE_SPOT", ["BTCUSDT", "?"]),
        lambda cache: cache.get_many(np.array([1, 2, 77])),
        lambda cache: cache.get_many([1, 2, 2**70]),
    ],
    ids=["load", "put known", "put new", "put far", "find_ids", "get_many buffer", "get_many list"],
)
@untraced
def test_allocation_fails_at_each_place_in_turn_the_cache_is_as_it_was(change: Callable[[SymbolCache], Any]) -> None:
    testcapi = pytest.importorskip("_testcapi")
    before = [make(1), make(2, "ETH"), make(3, is_active=False), make(2**35, "FAR")]
    change(SymbolCache())  # whatever is made once in a process
    n_failed = n_passed = n = 0
    while n_passed < 20:  # the interpreter takes some failures in stride: look past them
        cache = SymbolCache()
        cache.load(before)
        failed = False
        testcapi.set_nomemory(n, n + 1)
        try:
            change(cache)
        except MemoryError:
            failed = True
        testcapi.remove_mem_hooks()
        if failed:
            check_against_oracle(cache, before)
        n_failed, n_passed = n_failed + failed, 0 if failed else n_passed + 1
        n += 1
    assert n_failed > 0


def exercise(cache: SymbolCache, symbols: list[CachedSymbol], numbers: Any, names: list[str]) -> None:
    cache.load(symbols)
    cache.put(symbols[7])
    cache.put(make(1000, "NEW"))
    for symbol in symbols[::10]:
        assert cache[symbol.id] is cache.get(symbol.id) is symbol
        cache.find(symbol.exchange, symbol.symbol_base, symbol.symbol_quote)
        cache.find_exchange_symbol(symbol.exchange, symbol.exchange_symbol)
        cache.generation(symbol.id)
        cache.is_current(symbol.id)
    cache.get_many(numbers)
    cache.get_many(names_to_ids := cache.find_ids("BINANCE_SPOT", names).tolist())
    assert len(names_to_ids) == len(names)
    failing: list[tuple[type[Exception], Callable[[], Any]]] = [
        (KeyError, lambda: cache[-1]),
        (KeyError, lambda: cache.generation(-1)),
        (TypeError, lambda: cache.get("1")),  # type: ignore[arg-type]
        (TypeError, lambda: cache.find("X", 1, "Y")),  # type: ignore[arg-type]
        (TypeError, lambda: cache.find_ids("BINANCE_SPOT", ["BTCUSDT", 5])),  # type: ignore[list-item]
        (LookupError, lambda: cache.find_ids("BINANCE_SPOT", ["?"], require=True)),
        (LookupError, lambda: cache.get_many(np.array([1, -1]), require=True)),
        (LookupError, lambda: cache.get_many([1, -1], require=True)),
        (TypeError, lambda: cache.get_many([1, "2"])),  # type: ignore[list-item]
        (AttributeError, lambda: cache.load([*symbols, object()])),  # type: ignore[list-item]
        (AttributeError, lambda: cache.put(object())),  # type: ignore[arg-type]
    ]
    for error, ask in failing:
        with pytest.raises(error):
            ask()


@untraced
def test_nothing_leaks_over_many_rounds() -> None:
    cache = SymbolCache()
    symbols = [make(i, f"B{i}") for i in range(50)] + [make(2**40, "FAR")]
    numbers, names = np.arange(60), [s.exchange_symbol for s in symbols[1:50]] + ["?"]
    probes: list[object] = [None, 5, 2**40, symbols[7], symbols[-1], symbols[0].exchange, names[6], numbers, cache]
    held, traced = [], []
    tracemalloc.start()
    for _ in range(3):
        for _ in range(100):
            exercise(cache, symbols, numbers, names)
        gc.collect()
        held.append([sys.getrefcount(probe) for probe in probes])
        traced.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert all(abs(a - b) < 50 for a, b in zip(held[1], held[2], strict=True)), held  # one a round would be 100
    assert traced[2] - traced[1] < 10_000, traced  # one float a round would be 2,400


@pytest.mark.parametrize("n", [100, 1000, 8192, 43_691])
def test_memory_a_symbol_is_at_most_what_the_docstring_says(n: int) -> None:
    symbols = [make(i, f"B{i}") for i in range(1, n + 1)]
    cache = SymbolCache()
    tracemalloc.start()
    cache.load(symbols)
    n_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 100 < n_bytes / n < 280
