"""Exchanges and symbols <-> SymbolCache: load, resolve, refresh, statistics.

``cached_…`` functions look in memory only and return None for what they do not know; ``get_cached_…``
coroutines fall through to the database on a miss. Names are compared byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg

from pgtick._fast.symbols import SymbolCache
from pgtick.connection import DatabaseManager, add_start_step, get_db_manager
from pgtick.models import CachedSymbol

__all__ = [
    "cached_get_symbol",
    "cached_get_symbol_by_exchange_symbol",
    "cached_get_symbol_by_id",
    "get_cache_stats",
    "get_cached_symbol",
    "get_cached_symbol_by_exchange_symbol",
    "get_cached_symbol_by_id",
    "load_cache",
    "refresh_cache",
    "refresh_symbol",
    "symbol_cache",
]

logger = logging.getLogger(__name__)

CHANNEL = "pgtick_symbols"
_RECONNECT_S = 1.0
_GATHER_S = 0.02  # notifications of one burst are served by one query

_SELECT = """
SELECT s.id, s.exchange_id, e.enum_value AS exchange, s.symbol_base, s.symbol_quote, s.exchange_symbol,
       s.is_active AND e.is_active AS is_active, s.settle, s.expiry, s.contract_size, s.price_tick,
       s.quantity_step, s.min_quantity, s.min_notional
FROM symbols s JOIN exchanges e ON e.id = s.exchange_id
"""

_caches: WeakKeyDictionary[DatabaseManager, SymbolCache] = WeakKeyDictionary()


def symbol_cache(db: DatabaseManager | None = None) -> SymbolCache:
    """Return the manager's cache itself; hold on to it (and its ``get``) in a hot loop."""
    manager = db or get_db_manager()
    cache = _caches.get(manager)
    if cache is None:
        cache = _caches[manager] = SymbolCache()
    return cache


def cached_get_symbol_by_id(symbol_id: int) -> CachedSymbol | None:
    """Return the symbol from memory, or None."""
    return symbol_cache().get(symbol_id)


def cached_get_symbol(exchange: str, base: str, quote: str) -> CachedSymbol | None:
    """Return the symbol of (enum_value, base, quote) from memory, or None.

    Where several share the pair (dated futures): active before inactive, undated before dated, newest first.
    """
    return symbol_cache().find(exchange, base, quote)


def cached_get_symbol_by_exchange_symbol(exchange: str, exchange_symbol: str) -> CachedSymbol | None:
    """Return the symbol by the venue's own name from memory, or None."""
    return symbol_cache().find_exchange_symbol(exchange, exchange_symbol)


async def get_cached_symbol_by_id(symbol_id: int) -> CachedSymbol | None:
    """Return the symbol; ask the database when memory does not know it. None when nobody does."""
    found = symbol_cache().get(symbol_id)
    return found if found is not None else await _fetch_one("WHERE s.id = $1", symbol_id)


async def get_cached_symbol(exchange: str, base: str, quote: str) -> CachedSymbol | None:
    """As cached_get_symbol, falling through to the database."""
    found = symbol_cache().find(exchange, base, quote)
    if found is not None:
        return found
    await _fetch_one("WHERE e.enum_value = $1 AND s.symbol_base = $2 AND s.symbol_quote = $3", exchange, base, quote)
    return symbol_cache().find(exchange, base, quote)


async def get_cached_symbol_by_exchange_symbol(exchange: str, exchange_symbol: str) -> CachedSymbol | None:
    """As cached_get_symbol_by_exchange_symbol, falling through to the database."""
    found = symbol_cache().find_exchange_symbol(exchange, exchange_symbol)
    if found is not None:
        return found
    await _fetch_one("WHERE e.enum_value = $1 AND s.exchange_symbol = $2", exchange, exchange_symbol)
    return symbol_cache().find_exchange_symbol(exchange, exchange_symbol)


async def _fetch_one(condition: str, *args: object) -> CachedSymbol | None:
    rows = await get_db_manager().fetch(_SELECT + condition, *args)
    cache = symbol_cache()
    found = None
    for row in rows:
        found = CachedSymbol(**row)
        cache.put(found)
    return found


def get_cache_stats() -> dict[str, Any]:
    """Return ``hits``, ``misses``, ``size`` and ``hit_ratio``; every unknown key asked is a miss."""
    return dict(symbol_cache().stats())


async def refresh_cache(db: DatabaseManager | None = None) -> int:
    """Read all symbols and swap them in at once; return how many."""
    manager = db or get_db_manager()
    rows = await manager.fetch(_SELECT)
    symbol_cache(manager).load([CachedSymbol(**row) for row in rows])
    return len(rows)


async def refresh_symbol(symbol_id: int) -> None:
    """Bring one symbol's present state from the database into memory."""
    await _fetch_one("WHERE s.id = $1", symbol_id)


async def load_cache(db: DatabaseManager) -> None:
    """Load the cache and follow other processes' changes by LISTEN (not behind a transaction pooler)."""
    if db.config.listen and not db.config.pooler:
        listener = _Listener(db)
        await listener.connect()  # before the first load, so that no change falls between the two
        db.on_close(listener.close)
    await refresh_cache(db)


class _Listener:
    """Keeps a connection of its own on LISTEN and brings what changed into the cache."""

    def __init__(self, db: DatabaseManager) -> None:
        self._db = db
        self._connection: Any = None
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._lost = False
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        self._connection = await asyncpg.connect(**self._db.config.connect_kwargs())
        self._connection.add_termination_listener(self._on_termination)
        await self._connection.add_listener(CHANNEL, self._on_notification)
        if self._task is None:
            self._task = asyncio.create_task(self._follow())

    def _on_notification(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        self._changed.add(payload)
        self._wake.set()

    def _on_termination(self, _connection: object) -> None:
        self._lost = True
        self._wake.set()

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            changed, self._changed = self._changed, set()
            try:
                if self._lost:
                    await self.connect()
                    self._lost = False
                    await refresh_cache(self._db)
                elif "" in changed:
                    await refresh_cache(self._db)
                else:
                    rows = await self._db.fetch(
                        _SELECT + "WHERE s.id = ANY($1::int[])", sorted(int(i) for i in changed)
                    )
                    for row in rows:
                        symbol_cache(self._db).put(CachedSymbol(**row))
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
                logger.warning("the symbol cache cannot be refreshed, trying again: %s", error)
                self._changed |= changed
                await asyncio.sleep(_RECONNECT_S)
                self._wake.set()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None and not self._connection.is_closed():
            self._connection.remove_termination_listener(self._on_termination)
            await self._connection.close(timeout=self._db.config.connect_timeout_s)


add_start_step(20, load_cache)
