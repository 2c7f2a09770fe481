"""Exchanges and symbols: registered once, found when inactive, never deleted, kept byte for byte."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg
import numpy as np
import pytest
from rows import make_symbol, ticker

import pgtick
from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.errors import ValidationError
from pgtick.operations import book_ticker, exchanges, symbols

CHINESE = "人生K线"


async def test_ensure_symbol_from_many_tasks_registers_once(db: DatabaseManager) -> None:
    exchange_ids = await asyncio.gather(*(exchanges.ensure_exchange("MEXC_SPOT") for _ in range(20)))
    assert len(set(exchange_ids)) == 1
    ids = await asyncio.gather(
        *(symbols.ensure_symbol(exchange_ids[0], "BTC", "USDT", "BTCUSDT", price_tick="0.1") for _ in range(20))
    )
    assert len(set(ids)) == 1
    assert await db.fetchval("SELECT count(*) FROM symbols") == 1


async def test_resolve_symbol_from_many_tasks_registers_once(db: DatabaseManager) -> None:
    found = await asyncio.gather(*(symbols.resolve_symbol("MEXC_SPOT", "BTC", "USDT") for _ in range(20)))
    assert len({symbol.id for symbol in found}) == 1
    assert await db.fetchval("SELECT count(*) FROM symbols") == 1


async def test_names_in_chinese_are_kept_byte_for_byte(db: DatabaseManager) -> None:
    symbol_id = await symbols.ensure_symbol(
        await exchanges.ensure_exchange("MEXC_SPOT"), CHINESE, "USDT", f"{CHINESE}/USDT"
    )
    for found in (
        pgtick.cached_get_symbol("MEXC_SPOT", CHINESE, "USDT"),
        pgtick.cached_get_symbol_by_exchange_symbol("MEXC_SPOT", f"{CHINESE}/USDT"),
        await symbols.resolve_symbol("MEXC_SPOT", CHINESE, "USDT", f"{CHINESE}/USDT"),
    ):
        assert found is not None
        assert (found.id, found.symbol_base, found.exchange_symbol) == (symbol_id, CHINESE, f"{CHINESE}/USDT")
    await book_ticker.insert_book_ticker(ticker(symbol_id, update_type=CHINESE))
    info = await book_ticker.get_book_ticker_with_symbol_info(symbol_id)
    assert info is not None
    assert info["display_name"] == f"MEXC_SPOT:{CHINESE}/USDT"
    assert info["entity"].update_type == CHINESE


async def test_case_of_a_name_makes_another_symbol(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("COINBASE_SPOT")
    assert await symbols.ensure_symbol(exchange_id, "UMA", "ETH", "umaeth") != await symbols.ensure_symbol(
        exchange_id, "UMA", "ETH", "UMAETH"
    )


async def test_inactive_symbol_is_found_and_not_registered_again(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    assert await symbols.deactivate_symbol(symbol_id)
    for _ in range(3):
        assert await make_symbol() == symbol_id
    found = await symbols.resolve_symbol("GATEIO_SPOT", "BTC", "USDT", "BTC_USDT")
    assert (found.id, found.is_active) == (symbol_id, False)
    assert await db.fetchval("SELECT count(*) FROM symbols") == 1
    assert await symbols.list_symbols(active_only=True) == []
    assert await symbols.activate_symbol(symbol_id)
    (listed,) = await symbols.list_symbols(active_only=True)
    assert listed.id == symbol_id


async def test_relisted_name_is_a_new_symbol_and_the_old_one_cannot_be_active_beside_it(db: DatabaseManager) -> None:
    old_id = await make_symbol()
    new_id = await symbols.relist_symbol(old_id)
    assert new_id != old_id
    assert await make_symbol() == new_id
    found = pgtick.cached_get_symbol("GATEIO_SPOT", "BTC", "USDT")
    assert found is not None
    assert found.id == new_id
    async with db.transaction():
        with pytest.raises(ValidationError, match="listed again") as caught:
            await symbols.activate_symbol(old_id)
        assert await db.fetchval("SELECT true"), "the caller's transaction goes on"
    assert (caught.value.table, caught.value.value) == ("symbols", old_id)
    assert isinstance(caught.value.__cause__, asyncpg.UniqueViolationError)
    assert await symbols.deactivate_symbol(new_id)
    assert await symbols.activate_symbol(old_id)


async def test_details_are_updated_and_what_is_not_given_stays(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("OKX_FUTURES")
    expiry = datetime(2027, 1, 1, 8, tzinfo=UTC)
    given: list[dict[str, Any]] = [
        {"price_tick": 0.1, "settle": "BTC", "expiry": expiry, "contract_size": np.int64(100)},
        {"price_tick": np.float64(0.01)},
        {"min_quantity": b"0.001"},
    ]
    ids = {await symbols.ensure_symbol(exchange_id, "BTC", "USD", "BTC-USD-270101", **details) for details in given}
    assert len(ids) == 1
    (listed,) = await symbols.list_symbols(exchange_id)
    assert (listed.price_tick, listed.settle, listed.expiry) == (Decimal("0.01"), "BTC", expiry)
    assert (listed.contract_size, listed.min_quantity) == (100, Decimal("0.001"))
    found = pgtick.cached_get_symbol_by_id(ids.pop())
    assert found is not None
    assert found.price_tick == Decimal("0.01")


async def test_ensure_symbol_refuses_what_breaks_a_rule(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("OKX_FUTURES")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"base": "a\0"}, "symbol_base"),
        ({"base": "\ud800"}, "symbol_base"),
        ({"quote": None}, "symbol_quote"),
        ({"price_tick": 0}, "price_tick"),
        ({"contract_size": float("nan")}, "contract_size"),
        ({"expiry": datetime(2027, 1, 1)}, "expiry"),
        ({"expiry": 1_800_000_000}, "expiry"),
        ({"exchange_id": "1"}, "exchange_id"),
    ]
    for changes, column in refused:
        values = {"exchange_id": exchange_id, "base": "BTC", "quote": "USD", "exchange_symbol": "BTC-USD", **changes}
        with pytest.raises(ValidationError) as caught:
            await symbols.ensure_symbol(**values)
        assert (caught.value.table, caught.value.column) == ("symbols", column)
    assert await symbols.list_symbols() == []


async def test_symbol_of_an_unknown_exchange_is_refused(db: DatabaseManager) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await symbols.ensure_symbol(999_999, "BTC", "USDT")


async def test_rows_of_exchanges_and_symbols_cannot_be_deleted(db: DatabaseManager) -> None:
    await make_symbol()
    for table in ("symbols", "exchanges"):
        with pytest.raises(asyncpg.PostgresError, match="deactivate"):
            await db.execute(f"DELETE FROM {table}")


async def test_ensure_exchange_refuses_a_wrong_form(db: DatabaseManager) -> None:
    wrong: list[Any] = ["GATEIO", "GATEIO_SWAP", "_SPOT", "", None, 5, "A\0_SPOT"]
    for name in wrong:
        with pytest.raises(ValidationError) as caught:
            await exchanges.ensure_exchange(name)
        assert caught.value.table == "exchanges"
    assert await exchanges.list_exchanges() == []


async def test_exchanges_are_listed_and_switched_and_their_symbols_with_them(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("CRYPTO_COM_SPOT")
    symbol = await symbols.resolve_symbol("CRYPTO_COM_SPOT", "BTC", "USDT")

    def is_active() -> bool:
        found = pgtick.cached_get_symbol_by_id(symbol.id)
        assert found is not None
        return found.is_active

    assert await exchanges.deactivate_exchange(exchange_id)
    assert await exchanges.list_exchanges(active_only=True) == []
    assert not is_active()
    assert await exchanges.activate_exchange(exchange_id)
    assert is_active()
    (listed,) = await exchanges.list_exchanges()
    assert (listed.id, listed.exchange_name, listed.market_type) == (exchange_id, "CRYPTO_COM", "SPOT")


async def test_switching_what_is_not_there_returns_false(db: DatabaseManager) -> None:
    for switch in (
        exchanges.activate_exchange,
        exchanges.deactivate_exchange,
        symbols.activate_symbol,
        symbols.deactivate_symbol,
    ):
        assert not await switch(999_999)


async def test_another_process_adds_a_symbol_and_the_cache_follows(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("GATEIO_SPOT")
    other = await open_manager(db.config)
    try:
        with use_manager(other):
            symbol_id = await symbols.ensure_symbol(exchange_id, "SOL", "USDT", "SOL_USDT")
    finally:
        await other.close()
    for _ in range(100):
        if pgtick.cached_get_symbol_by_id(symbol_id) is not None:
            break
        await asyncio.sleep(0.05)
    found = pgtick.cached_get_symbol_by_id(symbol_id)
    assert found is not None
    assert found.exchange == "GATEIO_SPOT"


async def test_a_miss_falls_through_to_the_database(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    await book_ticker.insert_book_ticker(ticker(symbol_id))
    pgtick.symbol_cache().load([])
    assert pgtick.cached_get_symbol_by_id(symbol_id) is None
    info = await book_ticker.get_book_ticker_with_symbol_info(symbol_id)
    assert info is not None
    assert info["display_name"] == "GATEIO_SPOT:BTC/USDT"
    found = await pgtick.get_cached_symbol_by_id(symbol_id)
    assert found is not None
    assert found.symbol_base == "BTC"
    assert await pgtick.get_cached_symbol_by_id(999_999) is None


async def test_relisting_what_is_no_symbol_or_listed_again_already_names_the_rule(db: DatabaseManager) -> None:
    with pytest.raises(ValidationError, match="must be a symbol's id"):
        await symbols.relist_symbol(99_999)
    old = await make_symbol()
    new = await symbols.relist_symbol(old)
    with pytest.raises(ValidationError, match="cannot be listed again"):
        await symbols.relist_symbol(old)
    assert [symbol.id for symbol in await symbols.list_symbols(active_only=True)] == [new]


async def test_symbol_without_a_name_is_refused(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("GATEIO_SPOT")
    with pytest.raises(ValidationError, match=r"symbols\.symbol_base: '' must not be empty"):
        await symbols.ensure_symbol(exchange_id, "", "USDT")
