"""Exchanges and symbols in memory: what falls through, what other processes change, what is counted."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest

from pgtick import cache_operations
from pgtick.cache_operations import (
    cached_get_symbol,
    cached_get_symbol_by_exchange_symbol,
    cached_get_symbol_by_id,
    get_cache_stats,
    get_cached_symbol,
    get_cached_symbol_by_exchange_symbol,
    get_cached_symbol_by_id,
    refresh_cache,
    refresh_symbol,
    symbol_cache,
)
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, connect, initialize_database, open_manager, use_manager
from pgtick.errors import NotInitializedError

LISTENERS = (
    "FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'LISTEN%' AND pid <> pg_backend_pid()"
)


class Other:
    """Another process, as far as the server knows; on Citus, which has no trigger for it, it says what it changed."""

    def __init__(self, connection: Any, announces: bool) -> None:
        self.connection = connection
        self.announces = announces

    async def change(self, query: str, *args: object) -> int:
        async with self.connection.transaction():
            changed = await self.connection.fetchval(query, *args)
            if self.announces:
                await self.connection.execute("SELECT pg_notify('pgtick_symbols', '')")
        return int(changed or 0)

    async def exchange(self, name: str = "KRAKEN") -> int:
        return await self.change(
            "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ($1 || '_SPOT', $1, 'SPOT') "
            "RETURNING id",
            name,
        )

    async def symbol(self, exchange_id: int, base: str, **columns: object) -> int:
        given = {"exchange_symbol": f"{base}USDT", **columns}
        places = ", ".join(f"${n}" for n in range(3, 3 + len(given)))
        return await self.change(
            f"INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, {', '.join(given)}) "
            f"VALUES ($1, $2, 'USDT', {places}) RETURNING id",
            exchange_id,
            base,
            *given.values(),
        )

    async def execute(self, query: str, *args: object) -> None:
        await self.connection.execute(query, *args)


@pytest.fixture
async def other(config: DatabaseConfig, server_kind: str) -> AsyncIterator[Other]:
    connection = await connect(config)
    yield Other(connection, announces=server_kind == "citus")
    await connection.close()


@pytest.fixture
async def deaf(config: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    """A published manager that does not listen."""
    manager = await initialize_database(msgspec.structs.replace(config, listen=False))
    yield manager
    await manager.close()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until it, or what it awaits, is true."""
    for _ in range(1000):
        found = condition()
        if await found if inspect.isawaitable(found) else found:
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come")


def in_memory(db: DatabaseManager, symbol_id: int) -> Any:
    return next((symbol for symbol in db.symbols if symbol.id == symbol_id), None)


async def test_start_loads_everything_that_is_there(config: DatabaseConfig, other: Other) -> None:
    ids = [await other.symbol(await other.exchange(), "BTC")]
    ids.append(await other.symbol(await other.exchange("币安"), "比特币", expiry=datetime(2030, 1, 1, tzinfo=UTC)))
    db = await initialize_database(config)
    try:
        assert sorted(symbol.id for symbol in db.symbols) == ids
        found = cached_get_symbol("币安_SPOT", "比特币", "USDT")
        assert found is not None
        assert (found.id, found.exchange, found.expiry) == (ids[1], "币安_SPOT", datetime(2030, 1, 1, tzinfo=UTC))
        assert cached_get_symbol_by_exchange_symbol("币安_SPOT", "比特币USDT") is found
        assert cached_get_symbol_by_id(ids[1]) is found
        assert symbol_cache() is symbol_cache(db) is db.symbols
    finally:
        await db.close()


async def test_lookup_without_a_database_says_what_to_do() -> None:
    with pytest.raises(NotInitializedError, match="initialize_database"):
        cached_get_symbol_by_id(1)


async def test_lookups_follow_the_manager_in_use(deaf: DatabaseManager, config: DatabaseConfig, other: Other) -> None:
    symbol_id = await other.symbol(await other.exchange(), "BTC")
    second = await open_manager(config)
    with use_manager(second):
        assert await get_cached_symbol_by_id(symbol_id) is cached_get_symbol_by_id(symbol_id) is not None
    assert cached_get_symbol_by_id(symbol_id) is None
    await second.close()


async def test_cached_functions_know_memory_only_and_the_coroutines_fall_through(
    deaf: DatabaseManager, other: Other
) -> None:
    exchange_id = await other.exchange()
    one, two, three = [await other.symbol(exchange_id, base) for base in ("A", "B", "C")]
    assert cached_get_symbol_by_id(one) is None
    assert cached_get_symbol("KRAKEN_SPOT", "B", "USDT") is None
    assert cached_get_symbol_by_exchange_symbol("KRAKEN_SPOT", "CUSDT") is None
    found = await get_cached_symbol_by_id(one)
    assert found is not None
    assert found is cached_get_symbol_by_id(one)
    assert found is await get_cached_symbol_by_id(one)
    by_pair = await get_cached_symbol("KRAKEN_SPOT", "B", "USDT")
    assert by_pair is cached_get_symbol("KRAKEN_SPOT", "B", "USDT") is cached_get_symbol_by_id(two) is not None
    by_name = await get_cached_symbol_by_exchange_symbol("KRAKEN_SPOT", "CUSDT")
    assert by_name is cached_get_symbol_by_id(three) is not None


async def test_every_question_counts_once_as_hit_or_miss(deaf: DatabaseManager, other: Other) -> None:
    symbol_id = await other.symbol(await other.exchange(), "BTC")
    deaf.symbols.reset_stats()
    assert await get_cached_symbol("KRAKEN_SPOT", "BTC", "USDT") is not None  # a miss, though found in the database
    assert await get_cached_symbol("KRAKEN_SPOT", "ETH", "USDT") is None
    assert await get_cached_symbol_by_exchange_symbol("KRAKEN_SPOT", "?") is None
    assert await get_cached_symbol_by_id(symbol_id + 1) is None
    assert await get_cached_symbol_by_id(symbol_id + 1) is None  # unknown ids are asked and counted every time
    assert cached_get_symbol_by_id(-1) is None
    assert await get_cached_symbol_by_id(symbol_id) is not None
    assert get_cache_stats() == {"hits": 1, "misses": 6, "size": 1, "hit_ratio": 1 / 7}


@pytest.mark.parametrize("symbol_id", [0, -1, 2**31 - 1, 2**31, -(2**31), 2**63, -(2**80)])
async def test_id_that_cannot_be_one_is_unknown_and_no_error(deaf: DatabaseManager, symbol_id: int) -> None:
    assert await get_cached_symbol_by_id(symbol_id) is None


async def test_several_under_one_name_are_found_as_the_cache_prefers_them(deaf: DatabaseManager, other: Other) -> None:
    exchange_id, expiry = await other.exchange(), datetime(2030, 1, 1, tzinfo=UTC)
    old = await other.symbol(exchange_id, "BTC", is_active=False)
    wanted = await other.symbol(exchange_id, "BTC", exchange_symbol="PERP")
    dated = await other.symbol(exchange_id, "BTC", exchange_symbol="DATED", expiry=expiry)
    gone = await other.symbol(exchange_id, "BTC", is_active=False)
    by_pair = await get_cached_symbol("KRAKEN_SPOT", "BTC", "USDT")
    assert by_pair is not None
    assert by_pair.id == wanted
    assert cached_get_symbol("KRAKEN_SPOT", "BTC", "USDT") is by_pair
    assert {symbol.id for symbol in deaf.symbols} == {old, wanted, dated, gone}
    newest = await get_cached_symbol_by_exchange_symbol("KRAKEN_SPOT", "BTCUSDT")
    assert newest is not None
    assert newest.id == gone


async def test_symbol_of_another_process_shows_up_changes_and_goes_inactive(db: DatabaseManager, other: Other) -> None:
    exchange_id = await other.exchange()
    symbol_id = await other.symbol(exchange_id, "BTC")
    await until(lambda: in_memory(db, symbol_id))
    assert cached_get_symbol("KRAKEN_SPOT", "BTC", "USDT") is cached_get_symbol_by_id(symbol_id)
    await other.change("UPDATE symbols SET exchange_symbol = 'XBT' WHERE id = $1", symbol_id)
    await until(lambda: in_memory(db, symbol_id).exchange_symbol == "XBT")
    assert cached_get_symbol_by_exchange_symbol("KRAKEN_SPOT", "BTCUSDT") is None
    await other.change("UPDATE symbols SET is_active = false WHERE id = $1", symbol_id)
    await until(lambda: not in_memory(db, symbol_id).is_active)


async def test_exchange_renamed_or_switched_off_refreshes_all_its_symbols(db: DatabaseManager, other: Other) -> None:
    exchange_id = await other.exchange()
    ids = [await other.symbol(exchange_id, base) for base in ("BTC", "ETH")]
    await until(lambda: db.symbols.size == 2)
    rename = "UPDATE exchanges SET enum_value = 'PAYWARD_SPOT', exchange_name = 'PAYWARD' WHERE id = $1"
    await other.change(rename, exchange_id)
    await until(lambda: all(in_memory(db, number).exchange == "PAYWARD_SPOT" for number in ids))
    assert cached_get_symbol("KRAKEN_SPOT", "BTC", "USDT") is None
    assert cached_get_symbol("PAYWARD_SPOT", "BTC", "USDT") is not None
    await other.change("UPDATE exchanges SET is_active = false WHERE id = $1", exchange_id)
    await until(lambda: not any(in_memory(db, number).is_active for number in ids))


async def test_burst_of_notifications_is_brought_whole(db: DatabaseManager, other: Other) -> None:
    exchange_id = await other.exchange()
    await other.change(
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) "
        "SELECT $1, 'B' || n, 'USDT', 'B' || n || '_USDT' FROM generate_series(1, 500) n",
        exchange_id,
    )
    await until(lambda: db.symbols.size == 500)


async def test_listener_whose_connection_is_killed_comes_back_and_reads_what_it_missed(
    db: DatabaseManager, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_operations, "_RECONNECT_S", 0.05)
    exchange_id = await other.exchange()
    known = await other.symbol(exchange_id, "BTC")
    await until(lambda: in_memory(db, known))
    # In one transaction: nobody listens when the change is notified.
    async with other.connection.transaction():
        assert await other.connection.fetchval(f"SELECT count(pg_terminate_backend(pid)) {LISTENERS}") == 1
        missed = await other.symbol(exchange_id, "ETH")
        await other.change("UPDATE symbols SET is_active = false WHERE id = $1", known)
    await until(lambda: in_memory(db, missed) and not in_memory(db, known).is_active)
    later = await other.symbol(exchange_id, "SOL")
    await until(lambda: in_memory(db, later))
    assert await other.connection.fetchval(f"SELECT count(*) {LISTENERS}") == 1


async def test_listener_tries_again_until_a_refresh_succeeds(
    db: DatabaseManager, other: Other, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exchange_id = await other.exchange()
    monkeypatch.setattr(cache_operations, "_RECONNECT_MAX_S", 0.1)
    await other.execute("ALTER TABLE symbols RENAME TO away")
    await other.execute("SELECT pg_notify('pgtick_symbols', '1')")
    await until(lambda: "cannot be refreshed" in caplog.text)
    await other.connection.fetchval(f"SELECT count(pg_terminate_backend(pid)) {LISTENERS}")
    await other.execute("ALTER TABLE away RENAME TO symbols")
    symbol_id = await other.symbol(exchange_id, "BTC")
    await until(lambda: in_memory(db, symbol_id))


@pytest.mark.parametrize("payload", ["garbage", "99999999999", "-1", "١", "1; DROP TABLE symbols", "9" * 5000])
async def test_foreign_notification_does_not_stop_the_listener(db: DatabaseManager, other: Other, payload: str) -> None:
    exchange_id = await other.exchange()
    await other.execute("SELECT pg_notify('pgtick_symbols', $1)", payload)
    symbol_id = await other.symbol(exchange_id, "BTC")
    await until(lambda: in_memory(db, symbol_id))


async def test_listener_notices_a_silent_end_by_asking(
    config: DatabaseConfig, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_operations, "_PING_S", 0.05)
    db = await initialize_database(config)
    await until(lambda: other.connection.fetchval(f"SELECT true {LISTENERS.replace('LISTEN%', 'SELECT 1')}"))
    await db.close()


async def test_close_ends_the_listener_and_its_connection(config: DatabaseConfig, other: Other) -> None:
    before = asyncio.all_tasks()
    db = await initialize_database(config)
    assert await other.connection.fetchval(f"SELECT count(*) {LISTENERS}") == 1
    await db.close()
    assert asyncio.all_tasks() == before
    await until(lambda: other.connection.fetchval(f"SELECT count(*) = 0 {LISTENERS}"))


@pytest.mark.parametrize("setting", [{"listen": False}, {"pooler": True}])
async def test_nobody_listens_when_switched_off_or_behind_a_pooler(
    config: DatabaseConfig, other: Other, setting: dict[str, bool]
) -> None:
    db = await initialize_database(msgspec.structs.replace(config, **setting))
    assert await other.connection.fetchval(f"SELECT count(*) {LISTENERS}") == 0
    await db.close()


async def test_refresh_swaps_everything_at_once_and_keeps_it_after_an_error(
    deaf: DatabaseManager, other: Other
) -> None:
    exchange_id = await other.exchange()
    symbol_id = await other.symbol(exchange_id, "A0")
    assert await refresh_cache() == 1
    seen: set[tuple[str, ...]] = set()

    async def watch() -> None:
        while True:
            seen.add(tuple(sorted(symbol.symbol_base for symbol in deaf.symbols)))
            assert cached_get_symbol_by_id(symbol_id) is not None
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await other.change("UPDATE symbols SET symbol_base = 'B0'")
    await other.symbol(exchange_id, "B1")
    assert await refresh_cache() == 2
    watching.cancel()
    await asyncio.wait([watching])
    assert watching.cancelled()
    assert seen <= {("A0",), ("B0", "B1")}
    await other.execute("ALTER TABLE symbols RENAME TO away")
    with pytest.raises(asyncpg.UndefinedTableError):
        await refresh_cache()
    assert [symbol.symbol_base for symbol in sorted(deaf.symbols, key=lambda s: s.id)] == ["B0", "B1"]


@pytest.mark.parametrize("refresh", [refresh_cache, None])
async def test_older_answer_never_overwrites_a_newer_one(
    deaf: DatabaseManager, other: Other, monkeypatch: pytest.MonkeyPatch, refresh: Callable[[], Any] | None
) -> None:
    symbol_id = await other.symbol(await other.exchange(), "OLD")
    answered, go_on, fetch = asyncio.Event(), asyncio.Event(), deaf.fetch

    async def fetch_and_dawdle(query: str, *args: object, resets: bool = True) -> list[asyncpg.Record]:
        rows = await fetch(query, *args, resets=resets)
        if not answered.is_set():
            answered.set()
            await go_on.wait()
        return rows

    monkeypatch.setattr(deaf, "fetch", fetch_and_dawdle)
    older = asyncio.create_task(refresh() if refresh else refresh_symbol(symbol_id))
    await answered.wait()
    await other.change("UPDATE symbols SET symbol_base = 'NEW'")
    newer = asyncio.create_task(refresh_symbol(symbol_id))
    await asyncio.wait([newer], timeout=0.1)
    go_on.set()
    await asyncio.gather(older, newer)
    assert in_memory(deaf, symbol_id).symbol_base == "NEW"


async def test_reading_inside_a_transaction_does_not_wait_for_readers_that_wait_for_its_connection(
    config: DatabaseConfig, other: Other
) -> None:
    symbol_id = await other.symbol(await other.exchange(), "BTC")
    db = await initialize_database(
        msgspec.structs.replace(config, listen=False, max_connections=1, acquire_timeout_s=5.0)
    )
    async with asyncio.timeout(4):
        async with db.transaction():
            outside = asyncio.get_running_loop().create_task(refresh_cache(db), context=contextvars.Context())
            await asyncio.sleep(0.05)  # it has the turn now and waits for the only connection
            await refresh_symbol(symbol_id)
        assert await outside == 1
    await db.close()
