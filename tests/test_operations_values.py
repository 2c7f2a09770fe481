"""Values at their limits, through the operations into real servers and back: exact, or refused by name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from rows import MINUTE, NOW, make_symbol, ticker

from pgtick import models
from pgtick.connection import DatabaseManager
from pgtick.errors import BatchError, ValidationError
from pgtick.operations import balance, book_ticker, exchanges, trade
from pgtick.operations.book_ticker import get_latest_book_ticker_by_symbol, insert_book_ticker, insert_book_ticker_batch


@pytest.fixture
async def symbol_id(db: DatabaseManager) -> int:
    return await make_symbol()


async def store(row: models.BookTickerSnapshot, batch: bool) -> None:
    """Store the row by either way: both must treat a value alike."""
    if batch:
        assert await insert_book_ticker_batch([row]) == 1
    else:
        await insert_book_ticker(row)


@pytest.mark.parametrize("batch", [False, True])
async def test_price_of_1e_12_and_quantity_of_1e15_are_exact(symbol_id: int, batch: bool) -> None:
    await store(ticker(symbol_id, bid_price=1e-12, ask_price="0.000000000001", bid_qty=1e15, ask_qty=10**15), batch)
    latest = await get_latest_book_ticker_by_symbol(symbol_id, decimals=True)
    assert latest is not None
    assert [latest.bid_price, latest.ask_price] == [Decimal("1E-12")] * 2
    assert [latest.bid_qty, latest.ask_qty] == [Decimal(10) ** 15] * 2
    as_float = await get_latest_book_ticker_by_symbol(symbol_id)
    assert as_float is not None
    assert (as_float.bid_price, as_float.bid_qty) == (1e-12, 1e15)


@pytest.mark.parametrize("batch", [False, True])
async def test_scale_is_kept_and_floats_are_their_shortest_text(symbol_id: int, batch: bool) -> None:
    await store(ticker(symbol_id, bid_price="50000.10", ask_price=Decimal("50000.200"), bid_qty=0.1), batch)
    latest = await get_latest_book_ticker_by_symbol(symbol_id, decimals=True)
    assert latest is not None
    assert [str(n) for n in (latest.bid_price, latest.ask_price, latest.bid_qty)] == ["50000.10", "50000.200", "0.1"]


@pytest.mark.parametrize("batch", [False, True])
async def test_zero_stays_zero_and_null_stays_none(symbol_id: int, batch: bool) -> None:
    await store(ticker(symbol_id, bid_qty=0, ask_qty=None), batch)
    for decimals in (False, True):
        latest = await get_latest_book_ticker_by_symbol(symbol_id, decimals=decimals)
        assert latest is not None
        assert latest.bid_qty == 0
        assert isinstance(latest.bid_qty, Decimal if decimals else float)
        assert latest.ask_qty is None


REFUSED: list[tuple[str, Any, str]] = [
    ("bid_price", float("nan"), "must be finite"),
    ("bid_price", Decimal("sNaN"), "must be finite"),
    ("ask_qty", float("inf"), "must be finite"),
    ("bid_price", 0, "must be > 0"),
    ("bid_price", -1, "must be > 0"),
    ("bid_qty", "-0.1", "must be >= 0"),
    ("timestamp", datetime(2026, 1, 1), "must be aware"),
    ("timestamp", datetime(2008, 12, 31, tzinfo=UTC), "must lie between"),
    ("timestamp", datetime.now(UTC) + timedelta(days=1, hours=1), "must lie between"),
    ("symbol_id", None, "must not be NULL"),
    ("update_type", "a\0b", "must not contain NUL"),
    ("update_type", "\ud800", "must be valid Unicode"),
]


async def test_value_out_of_its_rule_is_refused_by_name_and_harms_no_other_row(
    db: DatabaseManager, symbol_id: int
) -> None:
    for n, (column, value, rule) in enumerate(REFUSED):
        bad = ticker(symbol_id)
        setattr(bad, column, value)
        with pytest.raises(ValidationError, match=rule) as refused:
            await insert_book_ticker(bad)
        assert (refused.value.table, refused.value.column) == ("book_ticker_snapshots", column)
        good = [ticker(symbol_id, sequence_number=number) for number in (2 * n + 2, 2 * n + 3)]
        with pytest.raises(BatchError) as caught:
            await insert_book_ticker_batch([good[0], bad, good[1]])
        assert caught.value.n_stored == 2
        (error,) = caught.value.errors
        assert (error.table, error.index, error.column) == ("book_ticker_snapshots", 1, column)
        assert error.rule == refused.value.rule
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 2 * len(REFUSED)


async def test_bad_rows_of_every_kind_are_named_and_the_rest_is_stored(db: DatabaseManager, symbol_id: int) -> None:
    rows = [ticker(symbol_id, sequence_number=n) for n in range(10)]
    rows[3].bid_price = float("nan")
    rows[5].timestamp = datetime(2026, 1, 1)
    rows[7].symbol_id = 999_999
    with pytest.raises(BatchError) as caught:
        await insert_book_ticker_batch(rows)
    assert caught.value.n_stored == 7
    assert [(e.index, e.column) for e in caught.value.errors][:2] == [(3, "bid_price"), (5, "timestamp")]
    assert caught.value.errors[2].index == 7
    assert "999999" in str(caught.value.errors[2])
    assert isinstance(caught.value.errors[2].__cause__, asyncpg.ForeignKeyViolationError)
    assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 7


async def test_two_events_with_one_timestamp_are_two_rows_in_a_stable_order(symbol_id: int) -> None:
    numbered = [ticker(symbol_id, sequence_number=n, bid_price=100 + n) for n in (3, 1, 2)]
    assert await insert_book_ticker_batch(numbered) == 3
    found = await book_ticker.get_book_ticker_history(symbol_id, NOW, NOW + MINUTE)
    assert [row.bid_price for row in found] == [101.0, 102.0, 103.0]
    latest = await get_latest_book_ticker_by_symbol(symbol_id)
    assert latest is not None
    assert latest.sequence_number == 3


async def test_events_without_a_venues_number_are_told_apart_by_content(symbol_id: int) -> None:
    rows = [ticker(symbol_id, sequence_number=None), ticker(symbol_id, sequence_number=None, bid_price=49999)]
    assert await insert_book_ticker_batch(rows) == 2
    assert await insert_book_ticker_batch(rows) == 0
    a_trade = models.TradeSnapshot(timestamp=NOW, symbol_id=symbol_id, price="1.50", quantity=2, side="buy")
    assert await trade.insert_trade_batch([a_trade, a_trade]) == 2  # no ids: two like trades are two
    assert await trade.insert_trade_batch([a_trade, a_trade]) == 0
    first = await trade.insert_trade(a_trade)
    assert first in [row.id for row in await trade.get_trade_history(symbol_id, NOW, NOW + MINUTE)]


async def test_balances_of_an_asset_with_a_dot_add_up(db: DatabaseManager) -> None:
    exchange_id = await exchanges.ensure_exchange("GATEIO_FUTURES")
    row = models.BalanceSnapshot(
        timestamp=NOW, exchange_id=exchange_id, asset_name="USDT.E", available_balance="1.1", locked_balance=0,
        frozen_balance="2", borrowing_balance="7",
    )  # fmt: skip
    assert await balance.insert_balance_batch([row]) == 1
    held = await balance.get_latest_balance_by_exchange(exchange_id, "USDT.E", decimals=True)
    assert held is not None
    assert (held.total_balance, held.locked_balance, held.interest_balance) == (Decimal("3.1"), 0, None)
    assert await balance.get_latest_balance_by_exchange(exchange_id, "USDT") is None
