"""An existing database is adopted: every row arrives, or stays and is told of; nothing is half done."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any

import msgspec
import pytest
from old_database import TABLES, adopted, make_database, make_schema, rows_of

from pgtick.cache_operations import cached_get_symbol_by_id
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager
from pgtick.errors import MigrationError
from pgtick.migrator import get_available_migrations, run_pending_migrations
from pgtick.migrator.baseline import BaselineReport, TableReport, baseline
from pgtick.models import BookTickerSnapshot
from pgtick.operations.generic import get_history, get_latest, insert_batch
from pgtick.tables import BOOK_TICKERS, TRADES
from pgtick.verify import verify_schema

#: Not by name: a package may offer the function under the name of its module.
baseline_module = importlib.import_module("pgtick.migrator.baseline")

_RELATIONS = """
SELECT format('%s.%s %s', n.nspname, relname, relkind) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace
WHERE nspname IN ('public', 'pgtick_before') ORDER BY 1
"""


@pytest.fixture
async def old(dsn: str) -> AsyncIterator[DatabaseManager]:
    """A manager of an empty database, which no migration has seen."""
    manager = await open_manager(DatabaseConfig.from_dsn(dsn))
    yield manager
    await manager.close()


async def state_of(db: DatabaseManager) -> dict[str, Any]:
    """Return all relations, and all rows of the old tables."""
    relations = [record[0] for record in await db.fetch(_RELATIONS)]
    return {"relations": relations, **{table: await rows_of(db, table) for table in TABLES}}


def of_table(report: BaselineReport, table: str) -> TableReport:
    return next(item for item in report.tables if item.table == table)


async def test_guide_s_database_is_adopted_with_every_row_intact(old: DatabaseManager) -> None:
    await make_database(old)
    before = {table: await rows_of(old, table) for table in TABLES}
    report = await baseline(old)
    assert report.action == "adopted"
    assert [item.table for item in report.tables] == list(TABLES)
    for table in TABLES:
        after = await rows_of(old, table)
        wanted = [adopted(table, row) for row in before[table]]
        assert len(after) == len(wanted) > 2
        if table in ("exchanges", "symbols"):  # they have no time of their own that could stand in
            now = max(row["created_at"] for row in after)
            wanted = [{**row, "created_at": row["created_at"] or now} for row in wanted]
        assert [{name: row[name] for name in wanted[0]} for row in after] == wanted, table
        told = of_table(report, table)
        assert (told.n_rows, told.n_moved, told.refused, told.left_behind) == (len(wanted), len(wanted), (), {})
        assert await rows_of(old, f"pgtick_before.{table}") == before[table]  # kept
    with localcontext(prec=100):
        for row in await old.fetch("SELECT * FROM balance_snapshots"):
            parts = [row[name] or 0 for name in ("available_balance", "locked_balance", "frozen_balance")]
            assert row["total_balance"] == sum(parts)


async def test_pgtick_works_on_an_adopted_database(old: DatabaseManager) -> None:
    await make_database(old)
    last_id = await old.fetchval("SELECT max(id) FROM book_ticker_snapshots")
    report = await baseline(old)
    assert await run_pending_migrations(old) == list(report.pending)
    assert await run_pending_migrations(old) == []
    assert {row["state"] for row in await get_available_migrations(old)} == {"applied"}
    db = await initialize_database(old.config)
    try:
        symbol = cached_get_symbol_by_id(3)
        assert symbol is not None
        assert (symbol.exchange, symbol.exchange_symbol) == ("GATEIO_FUTURES", "BTC_USDT")
        had = await get_latest(BOOK_TICKERS, 3)
        assert had is not None
        now = datetime.now(UTC)
        ticker = BookTickerSnapshot(timestamp=now, symbol_id=3, bid_price="1e-12", ask_price=2, sequence_number=1)
        assert await insert_batch(BOOK_TICKERS, [ticker, had]) == 1  # the old row is known by its key
        latest = await get_latest(BOOK_TICKERS, 3, decimals=True)
        assert latest is not None
        assert (latest.bid_price, latest.id > last_id) == (Decimal("1e-12"), True)
        history = await get_history(TRADES, 3, start=now.replace(year=2020), end=now)
        assert len(history) == 750
        new_id = await db.fetchval(
            "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) "
            "VALUES (1, 'ETH', 'USDT', 'ETHUSDT') RETURNING id"
        )
        assert new_id == 5
    finally:
        await db.close()


async def test_rows_past_the_retention_are_adopted_and_told_of(old: DatabaseManager) -> None:
    await make_database(old)
    report = await baseline(old)
    told = of_table(report, "book_ticker_snapshots")
    assert told.n_past_retention == await old.fetchval(
        "SELECT count(*) FROM book_ticker_snapshots WHERE timestamp < now() - interval '3 days'"
    )
    assert told.n_past_retention > 1000
    assert any(f"{told.n_past_retention} rows of book_ticker_snapshots are past" in line for line in report.advice)


async def test_what_stands_in_for_a_missing_value_is_told(old: DatabaseManager) -> None:
    await make_database(old)
    report = await baseline(old)
    told = {table: "\n".join(of_table(report, table).notes) for table in TABLES}
    assert (
        "sequence_number is not there: the row gets -1, the next of its instant -2 (1000 rows)"
        in told[BOOK_TICKERS.name]
    )
    assert "update_type is not there: 'snapshot' is taken (428 rows)" in told[BOOK_TICKERS.name]
    assert "created_at is not there: timestamp is taken (272 rows)" in told[BOOK_TICKERS.name]
    assert "funding_time is an epoch in milliseconds (240 rows)" in told["funding_rate_snapshots"]
    assert "next_funding_time is 0, which is 1970-01-01 00:00 UTC (80 rows)" in told["funding_rate_snapshots"]
    assert "total_balance is made by the server now, and differs" in told["balance_snapshots"]
    assert "mid_price is double precision now, and is rounded" in told["order_flow_metrics"]
    assert "created_at is not there: the time of the adoption is taken (1 rows)" in told["symbols"]


async def test_report_can_be_written_as_json(old: DatabaseManager) -> None:
    await make_database(old)
    report = await baseline(old, dry_run=True)
    assert msgspec.json.decode(msgspec.json.encode(report), type=BaselineReport) == report


async def test_rows_that_break_a_rule_stay_and_do_not_stop_the_others(old: DatabaseManager) -> None:
    has_timescale = await make_database(old)
    await old.execute(
        "ALTER TABLE book_ticker_snapshots DROP CONSTRAINT chk_positive_prices,"
        "    DROP CONSTRAINT book_ticker_snapshots_symbol_id_fkey, DROP CONSTRAINT book_ticker_snapshots_pkey;"
        "ALTER TABLE exchanges DROP CONSTRAINT chk_enum_format;"
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('kraken', 'KRAKEN', 'SPOT');"
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (4, 'A', 'B', 'AB');"
        "INSERT INTO balance_snapshots (timestamp, exchange_id, asset_name, available_balance) "
        "    VALUES (now(), 1, 'X', 'NaN'), (now(), 1, 'Y', 'Infinity'), (now(), 4, 'Z', 1);"
    )
    bad = [("1", "NaN"), ("2", "-0.5"), ("3", "0"), ("4711", "1"), ("5", "1"), ("5", "2")]
    for symbol_id, price in bad:
        await old.execute(
            "INSERT INTO book_ticker_snapshots (timestamp, symbol_id, bid_price, bid_qty, ask_price, ask_qty) "
            f"VALUES (now(), {symbol_id}, '{price}', 1, 1, 1)"
        )
    if not has_timescale:  # which lets no such time in
        await old.execute(
            "ALTER TABLE book_ticker_snapshots ALTER COLUMN timestamp DROP NOT NULL;"
            "INSERT INTO book_ticker_snapshots (timestamp, symbol_id, bid_price, bid_qty, ask_price, ask_qty) "
            "VALUES (NULL, 1, 1, 1, 1, 1), ('infinity', 1, 1, 1, 1, 1)"
        )
    report = await baseline(old)
    told = of_table(report, "book_ticker_snapshots")
    assert told.n_moved == 3000 == await old.fetchval("SELECT count(*) FROM book_ticker_snapshots")
    n_kept = {refused.rule.partition(": ")[2] or refused.rule: refused.n_rows for refused in told.refused}
    wanted = {
        "CHECK (((bid_price > (0)::numeric) AND (bid_price < 'Infinity'::numeric)))": 3,
        "there is no such row in symbols": 3,
    }
    assert n_kept == (wanted if has_timescale else {**wanted, "must not be NULL": 1, "must be finite": 1})
    assert told.n_rows == 3000 + sum(n_kept.values())
    unknown = next(refused for refused in told.refused if "no such row" in refused.rule)
    assert sorted(msgspec.json.decode(text)["symbol_id"] for text in unknown.examples) == [5, 5, 4711]
    assert [(r.rule[:10], r.n_rows) for r in of_table(report, "exchanges").refused] == [("chk_enum_f", 1)]
    assert [r.rule for r in of_table(report, "symbols").refused] == ["exchange_id: there is no such row in exchanges"]
    assert sum(r.n_rows for r in of_table(report, "balance_snapshots").refused) == 3
    assert await old.fetchval("SELECT count(*) FROM pgtick_before.book_ticker_snapshots") == told.n_rows


async def test_dry_run_tells_the_same_and_changes_nothing(old: DatabaseManager) -> None:
    await make_database(old)
    before = await state_of(old)
    would = await baseline(old, dry_run=True)
    assert await state_of(old) == before
    report = await baseline(old)
    assert would == msgspec.structs.replace(report, dry_run=True)


@pytest.mark.parametrize("way", ["raises", "is cancelled", "loses its connection"])
async def test_adoption_that_ends_half_way_leaves_the_database_as_it_was(
    old: DatabaseManager, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    await make_database(old)
    before = await state_of(old)
    move_rows = baseline_module._move_rows
    task: asyncio.Task[BaselineReport]

    async def fail_at_balances(db: DatabaseManager, engine: Any, target: Any) -> TableReport:
        if target.table == "balance_snapshots":
            assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 3000
            if way == "raises":
                raise RuntimeError("planted")
            if way == "is cancelled":
                task.cancel()
                await asyncio.sleep(10)
            async with old.acquire() as other:
                pid = await db.fetchval("SELECT pg_backend_pid()")
                await other.execute("SELECT pg_terminate_backend($1)", pid)
        report: TableReport = await move_rows(db, engine, target)
        return report

    monkeypatch.setattr(baseline_module, "_move_rows", fail_at_balances)
    task = asyncio.create_task(baseline(old))
    with pytest.raises(asyncio.CancelledError if way == "is cancelled" else MigrationError):
        await task
    assert await state_of(old) == before
    monkeypatch.setattr(baseline_module, "_move_rows", move_rows)
    assert (await baseline(old)).action == "adopted"


async def test_second_adoption_is_refused_because_there_is_nothing_to_do(old: DatabaseManager) -> None:
    await make_schema(old)
    done = await asyncio.gather(baseline(old), baseline(old), return_exceptions=True)
    report = next(item for item in done if isinstance(item, BaselineReport))
    refused = next(item for item in done if isinstance(item, MigrationError))
    assert report.action == "adopted"
    assert "there is nothing to adopt: this database has a ledger" in str(refused)
    before = await state_of(old)
    with pytest.raises(MigrationError, match="nothing to adopt"):
        await baseline(old)
    assert await state_of(old) == before


async def test_empty_database_has_nothing_to_adopt(old: DatabaseManager) -> None:
    report = await baseline(old)
    assert report.action == "nothing"
    assert await old.fetchval("SELECT to_regclass('pgtick_migrations') IS NULL")
    assert await run_pending_migrations(old) == list(report.pending)


async def test_pgtick_s_own_tables_without_a_ledger_are_recorded_and_left_alone(config: DatabaseConfig) -> None:
    db = await initialize_database(config)
    try:
        await db.execute(
            "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT')"
        )
        ledger = [tuple(r) for r in await db.fetch("SELECT namespace, id, name, checksum FROM pgtick_migrations")]
        oid = await db.fetchval("SELECT 'trade_snapshots'::regclass::oid")
        await db.execute("DROP TABLE pgtick_migrations")
        report = await baseline(db)
        assert report.action == "recorded"
        again = [tuple(r) for r in await db.fetch("SELECT namespace, id, name, checksum FROM pgtick_migrations")]
        assert again == ledger
        assert await db.fetchval("SELECT 'trade_snapshots'::regclass::oid") == oid
        assert await db.fetchval("SELECT count(*) FROM exchanges") == 1
        assert await db.fetchval("SELECT to_regnamespace('pgtick_before') IS NULL")
    finally:
        await db.close()


@pytest.mark.parametrize(
    "drift",
    [
        "ALTER TABLE trade_snapshots DROP CONSTRAINT trade_snapshots_price_check",
        "ALTER TABLE symbols ALTER COLUMN settle TYPE varchar(10)",
        "DROP TRIGGER keep_rows ON exchanges",
        "DROP INDEX uq_symbols_active",
        "DELETE FROM pgtick_time_series WHERE table_name = 'trade_snapshots'",
    ],
)
async def test_pgtick_s_own_tables_that_have_drifted_are_made_again(config: DatabaseConfig, drift: str) -> None:
    db = await initialize_database(config)
    try:
        await db.execute(
            "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
            "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'C', 'BC');"
            "INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id) "
            "VALUES (now(), 1, 0.5, 0, 'buy', '7');"
            'INSERT INTO ingest_quarantine (table_name, batch_id, row_index, column_name, reason, "row") '
            "VALUES ('trade_snapshots', gen_random_uuid(), 0, 'price', 'must be > 0', '{}')"
        )
        before = await rows_of(db, "trade_snapshots")
        async with db.transaction():
            for statement in ("SET LOCAL citus.enable_unsafe_triggers = on", drift, "DROP TABLE pgtick_migrations"):
                await db.execute(statement)
        report = await baseline(db)
        assert report.action == "adopted"
        assert await rows_of(db, "trade_snapshots") == before
        assert of_table(report, "trade_snapshots").n_moved == 1
        assert '1 rows that a writer had refused stay in pgtick_before."ingest_quarantine"' in report.advice
    finally:
        await db.close()


@pytest.mark.engines("timescale")
async def test_old_candles_are_kept_beside_the_new_aggregates(db: DatabaseManager) -> None:
    if not await db.fetchval("SELECT count(*) FROM pgtick_candles"):
        pytest.skip("the server given has the licence apache: no aggregates")
    await db.execute(
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'C', 'BC');"
        "INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id) "
        "VALUES (now() - interval '2 days', 1, 0.5, 0, 'buy', '7')"
    )
    await db.execute("CALL refresh_continuous_aggregate('trade_candles_1s', NULL, NULL)")
    await db.execute("DELETE FROM trade_snapshots; DROP INDEX uq_symbols_active; DROP TABLE pgtick_migrations")
    report = await baseline(db)
    assert report.action == "adopted"
    assert any("older candles are in pgtick_before.trade_candles_1s" in line for line in report.advice)
    assert await db.fetchval("SELECT count(*) FROM pgtick_before.trade_candles_1s") == 1
    assert await db.fetchval("SELECT count(*) FROM trade_candles_1s") == 0
    assert not await db.fetchval(
        "SELECT count(*) FROM timescaledb_information.jobs WHERE hypertable_schema = 'pgtick_before' "
        "AND proc_name IN ('policy_retention', 'policy_refresh_continuous_aggregate')"
    )
    await db.execute("DROP SCHEMA pgtick_before CASCADE")
    assert await verify_schema(db) == []
