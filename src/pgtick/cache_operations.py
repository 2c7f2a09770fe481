"""Exchanges and symbols <-> SymbolCache: load, resolve, refresh, statistics.

``cached_…`` functions look in memory only and return None for what they do not know; ``get_cached_…``
coroutines fall through to the database on a miss. Names are compared byte for byte.

Every process follows the changes of others by LISTEN. Behind a transaction pooler there is no LISTEN: what is new
is found on the first miss, what another process changed only by ``refresh_cache()``.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg

from pgtick._fast.symbols import SymbolCache
from pgtick.connection import DatabaseManager, add_start_step, connect, get_db_manager
from pgtick.models import CachedSymbol

__all__ = [
    "announce_change",
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
_RECONNECT_S = 1.0  # doubled with every failure, up to
_RECONNECT_MAX_S = 30.0
_PING_S = 30.0  # a peer that is gone without a word is noticed by this
_GATHER_S = 0.02  # notifications of one burst are served by one query
_EVERYTHING = ""  # the payload that an exchange's change sends
_MAX_ID = 2**31 - 1

_SELECT = """
SELECT s.id, s.exchange_id, e.enum_value AS exchange, s.symbol_base, s.symbol_quote, s.exchange_symbol,
       s.is_active AND e.is_active AS is_active, s.settle, s.expiry, s.contract_size, s.price_tick,
       s.quantity_step, s.min_quantity, s.min_notional
FROM symbols s JOIN exchanges e ON e.id = s.exchange_id
"""
# Of several under one name the cache prefers the last of this order.
_ORDER = " ORDER BY s.is_active AND e.is_active, s.expiry IS NULL, s.id"

_locks: WeakKeyDictionary[DatabaseManager, asyncio.Lock] = WeakKeyDictionary()


def symbol_cache(db: DatabaseManager | None = None) -> SymbolCache:
    """Return the manager's cache itself; hold on to it (and its ``get``) in a hot loop."""
    return (db or get_db_manager()).symbols


def cached_get_symbol_by_id(symbol_id: int) -> CachedSymbol | None:
    """Return the symbol from memory, or None."""
    return get_db_manager().symbols.get(symbol_id)


def cached_get_symbol(exchange: str, base: str, quote: str) -> CachedSymbol | None:
    """Return the symbol of (enum_value, base, quote) from memory, or None.

    Where several share the pair (dated futures): active before inactive, undated before dated, newest first.
    """
    return get_db_manager().symbols.find(exchange, base, quote)


def cached_get_symbol_by_exchange_symbol(exchange: str, exchange_symbol: str) -> CachedSymbol | None:
    """Return the symbol by the venue's own name from memory, or None."""
    return get_db_manager().symbols.find_exchange_symbol(exchange, exchange_symbol)


async def get_cached_symbol_by_id(symbol_id: int) -> CachedSymbol | None:
    """Return the symbol; ask the database when memory does not know it. None when nobody does."""
    db = get_db_manager()
    found = db.symbols.get(symbol_id)
    if found is None and abs(symbol_id) <= _MAX_ID:
        found = await _fetch(db, "WHERE s.id = $1", symbol_id)
    return found


async def get_cached_symbol(exchange: str, base: str, quote: str) -> CachedSymbol | None:
    """As cached_get_symbol, falling through to the database."""
    db = get_db_manager()
    found = db.symbols.find(exchange, base, quote)
    if found is None:
        condition = "WHERE e.enum_value = $1 AND s.symbol_base = $2 AND s.symbol_quote = $3"
        found = await _fetch(db, condition, exchange, base, quote)
    return found


async def get_cached_symbol_by_exchange_symbol(exchange: str, exchange_symbol: str) -> CachedSymbol | None:
    """As cached_get_symbol_by_exchange_symbol, falling through to the database."""
    db = get_db_manager()
    found = db.symbols.find_exchange_symbol(exchange, exchange_symbol)
    if found is None:
        found = await _fetch(db, "WHERE e.enum_value = $1 AND s.exchange_symbol = $2", exchange, exchange_symbol)
    return found


def get_cache_stats() -> dict[str, Any]:
    """Return ``hits``, ``misses``, ``size`` and ``hit_ratio``; every unknown key asked is a miss."""
    return dict(symbol_cache().stats())


async def refresh_cache(db: DatabaseManager | None = None) -> int:
    """Read all symbols and swap them in at once; return how many."""
    manager = db or get_db_manager()
    async with _reading(manager):
        rows = await manager.fetch(_SELECT)
        manager.symbols.load([CachedSymbol(**row) for row in rows])
    return len(rows)


async def refresh_symbol(symbol_id: int) -> None:
    """Bring one symbol's present state from the database into memory."""
    await _fetch(get_db_manager(), "WHERE s.id = $1", symbol_id)


async def announce_change(db: DatabaseManager, *symbol_ids: int) -> None:
    """Tell the other processes' caches of changed symbols, or with none of everything; in the change's transaction.

    The triggers of exchanges and symbols do it for SQL typed by hand, and the server sends it once. On Citus there
    are no such triggers.
    """
    for payload in map(str, symbol_ids) if symbol_ids else (_EVERYTHING,):
        await db.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)


async def _fetch(db: DatabaseManager, condition: str, *args: object) -> CachedSymbol | None:
    """Bring what fulfils the condition into memory; return the one that its name leads to."""
    async with _reading(db):
        symbols = [CachedSymbol(**row) for row in await db.fetch(_SELECT + condition + _ORDER, *args, resets=False)]
        for symbol in symbols:
            db.symbols.put(symbol)
    return symbols[-1] if symbols else None


def _reading(db: DatabaseManager) -> AbstractAsyncContextManager[object]:
    """Enter before a query whose rows go into the cache.

    One after the other, or an older answer could overwrite a newer one. A transaction does not queue: it holds a
    connection that the head of the queue may be waiting for. What it sees may never be committed, so its rollback
    has everything read anew.
    """
    if db.in_transaction:
        db.after_rollback(partial(refresh_cache, db))
        return nullcontext()
    return _locks.setdefault(db, asyncio.Lock())


async def load_cache(db: DatabaseManager) -> None:
    """Load the cache and follow other processes' changes by LISTEN (not behind a transaction pooler)."""
    if db.config.listen and not db.config.pooler:
        listener = _Listener(db)
        db.on_close(listener.close)
        await listener.start()  # before the first load, so that no change falls between the two
    await refresh_cache(db)


class _Listener:
    """Keeps a connection of its own on LISTEN and brings what changed into the cache."""

    def __init__(self, db: DatabaseManager) -> None:
        self._db = db
        self._connection: Any = None
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._listen()
        self._task = asyncio.create_task(self._follow(), name="pgtick: symbols of other processes")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._disconnect()

    async def _listen(self) -> None:
        await self._disconnect()
        self._connection = await connect(self._db.config)
        self._connection.add_termination_listener(self._on_termination)
        await self._connection.add_listener(CHANNEL, self._on_notification)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.remove_termination_listener(self._on_termination)
            try:
                await connection.close(timeout=self._db.config.connect_timeout_s)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # TimeoutError is an OSError
                connection.terminate()

    def _on_notification(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        self._changed.add(payload)
        self._wake.set()

    def _on_termination(self, _connection: object) -> None:
        self._wake.set()

    async def _follow(self) -> None:
        delay_s = _RECONNECT_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PING_S):
                    await self._wake.wait()
                await asyncio.sleep(_GATHER_S)
            self._wake.clear()
            changed, self._changed = self._changed, set()
            try:
                await self._bring(changed)
                delay_s = _RECONNECT_S
            except Exception as error:  # whatever it is: a cache that stands still is worse than a warning
                logger.warning(
                    "the symbol cache cannot be refreshed, next try in %g s: %s", delay_s, error or type(error).__name__
                )
                self._changed.add(_EVERYTHING)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _RECONNECT_MAX_S)
                self._wake.set()

    async def _bring(self, changed: set[str]) -> None:
        if self._connection is None or self._connection.is_closed():
            await self._listen()
            changed.add(_EVERYTHING)
            logger.info("listening for changes of symbols again")
        if not changed:
            await self._connection.execute("SELECT 1")
        elif all(_is_id(payload) for payload in changed):
            # asyncpg knows text[], but asks on every new connection what an int[] is, which takes seconds on Citus.
            await _fetch(self._db, "WHERE s.id = ANY($1::text[]::int[])", list(changed))
        else:
            await refresh_cache(self._db)


def _is_id(payload: str) -> bool:
    """Whether it is a symbol's id; anybody may send anything on the channel."""
    return payload.isascii() and payload.isdigit() and int(payload[:11]) <= _MAX_ID


add_start_step(20, load_cache)
