"""Whole arrays through SymbolCache: each item as its single look-up would be, in one state, counted together."""

from __future__ import annotations

import array
import ctypes
from enum import StrEnum
from typing import Any

import numpy as np
import pytest
from cached import NAMES, make
from hypothesis import given
from hypothesis import strategies as st

from pgtick._fast.symbols import SymbolCache

pytestmark = pytest.mark.core

SYMBOLS = [make(i, f"B{i}") for i in range(1, 40)] + [
    make(90 + i, exchange_symbol=name) for i, name in enumerate(NAMES)
]
FAR = [2**24, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31), -(2**63), 2**70]
TYPES = ["b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"]


@pytest.fixture
def cache() -> SymbolCache:
    cache = SymbolCache()
    cache.load(SYMBOLS)
    return cache


@given(st.lists(st.sampled_from([s.exchange_symbol for s in SYMBOLS]) | st.text(max_size=4), max_size=30))
def test_find_ids_any_names_agree_with_the_single_look_up(names: list[str]) -> None:
    cache = SymbolCache()
    cache.load(SYMBOLS)
    found = [cache.find_exchange_symbol("BINANCE_SPOT", name) for name in names]
    ids = cache.find_ids("BINANCE_SPOT", names)
    assert ids.dtype == np.int32
    assert ids.tolist() == [0 if s is None else s.id for s in found]
    assert cache.hits == 2 * sum(s is not None for s in found)
    assert cache.misses == 2 * sum(s is None for s in found)
    assert not cache.find_ids("GATEIO_SPOT", names).any()


class Ticker(StrEnum):
    B7 = "B7USDT"


@pytest.mark.parametrize(
    "names",
    [
        ["B7USDT", "b7usdt", "B39USDT"],
        ("B7USDT", "b7usdt", "B39USDT"),
        (name for name in ("B7USDT", "b7usdt", "B39USDT")),
        np.array(["B7USDT", "b7usdt", "B39USDT"]),
        np.array(["B7USDT", "b7usdt", "B39USDT"]).astype(">U9"),
        np.array(["B7USDT", "b7usdt", "B39USDT"], dtype=object),
        np.array(["B7USDT", "", "b7usdt", "", "B39USDT"])[::2],
        [Ticker.B7, "b7usdt", np.str_("B39USDT")],
    ],
    ids=["list", "tuple", "iterator", "U", "U swapped", "object", "strided", "subclasses"],
)
def test_find_ids_each_container_gives_the_same(cache: SymbolCache, names: Any) -> None:
    ids = cache.find_ids("BINANCE_SPOT", names)
    assert ids.tolist() == [7, 0, 39]
    ids[1] = 5  # it is the caller's own
    assert (cache.hits, cache.misses) == (2, 1)


def test_find_ids_arrow_strings_give_the_same(cache: SymbolCache) -> None:
    arrow = pytest.importorskip("pyarrow")
    assert cache.find_ids("BINANCE_SPOT", arrow.array(["B7USDT", "b7usdt", "B39USDT"])).tolist() == [7, 0, 39]


def test_find_ids_nothing_gives_an_empty_array(cache: SymbolCache) -> None:
    assert cache.find_ids("BINANCE_SPOT", []).shape == (0,)
    assert cache.find_ids("BINANCE_SPOT", np.array([], "U1")).shape == (0,)
    assert cache.get_many([]) == cache.get_many(np.array([], "i4")) == []
    assert (cache.hits, cache.misses) == (0, 0)


def test_find_ids_required_and_unknown_names_the_first(cache: SymbolCache) -> None:
    with pytest.raises(LookupError, match=r"^exchange_symbols\[1\]: 'BINANCE_SPOT' has no symbol 'b7\\ud800'$"):
        cache.find_ids("BINANCE_SPOT", ["B7USDT", "b7\ud800", "other"], require=True)
    assert (cache.hits, cache.misses) == (1, 1)
    assert cache.find_ids("BINANCE_SPOT", ["B7USDT"], require=True).tolist() == [7]


@pytest.mark.parametrize(
    ("exchange", "names", "message"),
    [
        ("BINANCE_SPOT", ["B7USDT", None], r"exchange_symbols\[1\] must be a str, not NoneType"),
        ("BINANCE_SPOT", ["B7USDT", 5], r"exchange_symbols\[1\] must be a str, not int"),
        ("BINANCE_SPOT", np.array([b"B7USDT"]), r"exchange_symbols\[0\] must be a str, not bytes"),
        ("BINANCE_SPOT", np.array([["B7USDT"]]), r"exchange_symbols\[0\] must be a str, not list"),
        ("BINANCE_SPOT", "B7USDT", "exchange_symbols must be an array or a list, not str"),
        ("BINANCE_SPOT", np.array("B7USDT"), "exchange_symbols must be an array or a list, not str"),
        ("BINANCE_SPOT", b"B7USDT", "exchange_symbols must be an array or a list, not bytes"),
        ("BINANCE_SPOT", None, "not iterable"),
        (1, ["B7USDT"], "exchange must be a str, not int"),
    ],
)
def test_find_ids_wrong_type_is_named_and_not_counted(
    cache: SymbolCache, exchange: Any, names: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        cache.find_ids(exchange, names)
    assert (cache.hits, cache.misses) == (0, 0)


@pytest.mark.parametrize("number", [0, 2**31, -(2**31) - 1, 2**80])
def test_find_ids_id_that_the_array_cannot_hold_is_refused(cache: SymbolCache, number: int) -> None:
    cache.put(make(number, "WIDE"))
    with pytest.raises(OverflowError, match=rf"exchange_symbols\[1\]: id {number} of 'WIDEUSDT' is 0 or not int4"):
        cache.find_ids("BINANCE_SPOT", ["B7USDT", "WIDEUSDT"])


def test_find_ids_largest_and_smallest_id_come_back(cache: SymbolCache) -> None:
    cache.put(make(2**31 - 1, "TOP"))
    cache.put(make(-(2**31), "LOW"))
    assert cache.find_ids("BINANCE_SPOT", ["TOPUSDT", "LOWUSDT"]).tolist() == [2**31 - 1, -(2**31)]


@pytest.mark.parametrize("code", TYPES)
def test_get_many_each_integer_type_agrees_with_the_single_look_up(cache: SymbolCache, code: str) -> None:
    limits = np.iinfo(code)
    for number in FAR:
        if -(2**63) <= number < 2**64:
            cache.put(make(number, f"FAR{number}"))
    numbers = [n for n in (*range(-3, 128), *FAR) if limits.min <= n <= limits.max]
    single = [cache.get(n) for n in numbers]
    assert sum(s is not None for s in single) > 30
    cache.reset_stats()
    packed = array.array(code, numbers)
    spread = np.zeros((len(numbers), 3), code)
    spread[:, 1] = numbers
    for given_ids in (packed, memoryview(packed), np.array(numbers, code), spread[:, 1], numbers, tuple(numbers)):
        assert cache.get_many(given_ids) == single
    assert cache.get_many(np.array(numbers, code)[::-1]) == single[::-1]
    assert cache.hits == 7 * sum(s is not None for s in single)
    assert cache.misses == 7 * sum(s is None for s in single)


def test_get_many_unaligned_swapped_or_ctypes_buffer_gives_the_same(cache: SymbolCache) -> None:
    expected = [cache.get(n) for n in (7, 50, 39)]
    unaligned = np.frombuffer(b"\0" + np.array([7, 50, 39], "i8").tobytes(), "i8", offset=1)
    assert not unaligned.flags.aligned
    assert cache.get_many(unaligned) == expected
    assert cache.get_many(np.array([7, 50, 39], ">i8")) == expected
    assert cache.get_many((ctypes.c_int32 * 3)(7, 50, 39)) == expected
    assert cache.get_many(np.array([7, 50, 39], object)) == expected


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([7, "8"], r"ids\[1\] must be an int, not str"),
        ([7, True], r"ids\[1\] must be an int, not bool"),
        (np.array([7.0]), r"ids\[0\] must be an int, not float"),
        (np.array([True]), r"ids\[0\] must be an int, not bool"),
        (np.array([7], "datetime64[s]"), r"ids\[0\] must be an int, not datetime"),
        (np.array([[7]]), r"ids\[0\] must be an int, not list"),
        (b"\x07", "ids must be an array or a list, not bytes"),
        ("7", "ids must be an array or a list, not str"),
        (7, "not iterable"),
    ],
)
def test_get_many_wrong_type_is_named_and_not_counted(cache: SymbolCache, ids: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        cache.get_many(ids)
    assert (cache.hits, cache.misses) == (0, 0)


@pytest.mark.parametrize("ids", [[7, -5, 2**80], np.array([7, -5, 999])], ids=["list", "buffer"])
def test_get_many_required_and_unknown_names_the_first(cache: SymbolCache, ids: Any) -> None:
    with pytest.raises(LookupError, match=r"^ids\[1\]: there is no symbol -5$"):
        cache.get_many(ids, require=True)
    assert (cache.hits, cache.misses) == (1, 1)
    with pytest.raises(LookupError, match=rf"^ids\[0\]: there is no symbol {2**64 - 1}$"):
        cache.get_many(np.array([2**64 - 1], np.uint64), require=True)


def test_tolist_that_changes_the_cache_is_seen_before_the_look_up(cache: SymbolCache) -> None:
    new = make(7, "NEW")

    class Column:
        def tolist(self) -> list[Any]:
            cache.load([new])
            return self.items

        items: list[Any]

    column: Any = Column()
    column.items = ["NEWUSDT", "B7USDT"]
    assert cache.find_ids("BINANCE_SPOT", column).tolist() == [7, 0]
    cache.load(SYMBOLS)
    column.items = [7, 8]
    assert cache.get_many(column) == [new, None]
