"""What the tests of SymbolCache share: a symbol made short, and the cache held against plain dicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pgtick._fast.symbols import SymbolCache
from pgtick.models import CachedSymbol

NAMES = ["", "BTC", "btc", "USDT", "币安人生", "Ω", "é", "e\u0301", "\U0001f680", "B\0TC", "\ud800"]


def make(id: int, base: str = "BTC", quote: str = "USDT", **fields: Any) -> CachedSymbol:  # noqa: A002 - field
    values = {"exchange_id": 1, "exchange": "BINANCE_SPOT", "exchange_symbol": base + quote, **fields}
    return CachedSymbol(id=id, symbol_base=base, symbol_quote=quote, **values)


def copied(text: str) -> str:
    """Return an equal str of another identity (where the interpreter has one)."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")


def check_against_oracle(cache: SymbolCache, symbols: Iterable[CachedSymbol]) -> None:
    by_id = {s.id: s for s in symbols}
    pairs: dict[tuple[str, str, str], CachedSymbol] = {}
    venues: dict[tuple[str, str], CachedSymbol] = {}
    for s in sorted(by_id.values(), key=lambda s: (s.is_active, s.expiry is None, s.id)):
        pairs[s.exchange, s.symbol_base, s.symbol_quote] = s
        venues[s.exchange, s.exchange_symbol] = s
    assert len(cache) == cache.size == len(by_id)
    assert cache.symbols() == list(cache) == list(by_id.values())
    for number in {*by_id, -4, 31, 2**24 + 1, 2**64}:
        assert cache.get(number) is by_id.get(number)
        assert (number in cache) == (number in by_id)
    for s in by_id.values():
        assert cache[s.id] is s
        older = [o for o in by_id.values() if (o.exchange, o.exchange_symbol) == (s.exchange, s.exchange_symbol)]
        assert cache.generation(s.id) == sum(o.id <= s.id for o in older)
        assert cache.is_current(s.id) == (venues[s.exchange, s.exchange_symbol] is s)
    asked = {*NAMES, *(s.symbol_base for s in by_id.values()), *(s.symbol_quote for s in by_id.values())}
    for exchange in ("BINANCE_SPOT", "GATEIO_FUTURES", "交易所", "NONE"):
        for a in asked:
            for b in asked:
                assert cache.find(copied(exchange), copied(a), copied(b)) is pairs.get((exchange, a, b))
        for a in asked | {s.exchange_symbol for s in by_id.values()}:
            assert cache.find_exchange_symbol(copied(exchange), copied(a)) is venues.get((exchange, a))
