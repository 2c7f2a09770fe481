"""Old databases unlike the guide's: other types, other keys, and what hangs on the old tables."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from old_database import make_schema

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.errors import MigrationError
from pgtick.migrator.baseline import baseline

#: Not by name: a package may offer the function under the name of its module.

LOOKUPS = """
CREATE TABLE exchanges (id smallserial PRIMARY KEY, enum_value varchar(20));
CREATE TABLE symbols (id bigserial PRIMARY KEY, exchange_id smallint, symbol_base char(5), symbol_quote text,
    exchange_symbol text, is_active smallint, expiry date, strike numeric, remark text);
INSERT INTO exchanges (enum_value) VALUES ('X_Y_SPOT'), ('X_Y_FUTURES');
INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol, is_active, expiry, strike) VALUES
    (1, 'BTC', 'USDT', 'BTC', 1, NULL, NULL), (1, 'XBT', 'USDT', 'BTC', NULL, NULL, 5),
    (2, 'BTC', 'USDT', 'BTC', 0, '2026-12-25', 7);
"""
SERIES = """
CREATE TYPE side_kind AS ENUM ('BUY', 'SELL');
CREATE TABLE trade_snapshots (timestamp timestamp, symbol_id bigint, price real, quantity double precision,
    side side_kind, trade_id bigint);
INSERT INTO trade_snapshots VALUES
    ('2026-11-20 00:00', 1, 0.1, 0.1, 'BUY', NULL), ('2026-11-20 00:00', 1, 0.2, 0, 'SELL', NULL),
    ('2026-11-20 00:00', 2, 0.3, 1, 'SELL', NULL), ('2026-11-20 00:00', 2, 0.4, 1, 'SELL', 77),
    ('2026-11-20 00:00', 2, 0.4, 1, 'SELL', 77), ('2026-11-20 23:59:59.999999', 1099511627776, 1, 1, 'BUY', 78);
CREATE TABLE book_ticker_snapshots (id bigint, timestamp timestamptz, symbol_id int, bid_price numeric,
    ask_price numeric, sequence_number numeric(20));
INSERT INTO book_ticker_snapshots VALUES
    (9, '2026-11-20Z', 1, 1, 1, NULL), (7, '2026-11-20Z', 1, 2, 2, NULL), (8, '2026-11-20Z', 1, 3, 3, 5),
    (10, '2026-11-20Z', 1, 4, 4, 18446744073709551615);
CREATE TABLE funding_rate_snapshots (timestamp bigint, symbol_id int, funding_rate real, funding_time int,
    next_funding_time bigint, PRIMARY KEY (symbol_id, timestamp));
INSERT INTO funding_rate_snapshots VALUES
    (1795132800000001, 3, 0.0001, 1795132801, 1795132802123456789), (1795132800000002, 3, 0, 1795132801, 12345),
    (1795132800000003, 3, 0, NULL, NULL);
"""


@pytest.fixture
async def old(dsn: str) -> AsyncIterator[DatabaseManager]:
    """A manager of an empty database, which no migration has seen."""
    manager = await open_manager(DatabaseConfig.from_dsn(dsn))
    yield manager
    await manager.close()


async def test_tables_of_other_types_and_keys_are_adopted(old: DatabaseManager) -> None:
    await old.execute(LOOKUPS + SERIES)
    report = await baseline(old)
    told = {item.table: item for item in report.tables}
    assert [tuple(r) for r in await old.fetch("SELECT id, enum_value, exchange_name, market_type FROM exchanges")] == [
        (1, "X_Y_SPOT", "X_Y", "SPOT"),
        (2, "X_Y_FUTURES", "X_Y", "FUTURES"),
    ]
    symbols = await old.fetch("SELECT id, symbol_base, is_active, expiry FROM symbols ORDER BY id")
    assert [tuple(record) for record in symbols] == [
        (1, "BTC", True, None),
        (2, "XBT", False, None),
        (3, "BTC", False, datetime(2026, 12, 25, tzinfo=UTC)),
    ]
    assert told["symbols"].left_behind == {"strike": 2}
    assert any("has the same exchange_symbol (1 rows)" in note for note in told["symbols"].notes)
    assert any("expiry is date, taken for UTC (1 rows)" in note for note in told["symbols"].notes)
    assert await old.fetchval("SELECT nextval(pg_get_serial_sequence('symbols', 'id'))") == 4

    instant = datetime(2026, 11, 20, tzinfo=UTC)
    trades = await old.fetch(
        "SELECT timestamp, symbol_id, price, quantity, side, trade_id FROM trade_snapshots ORDER BY price"
    )
    assert [tuple(record) for record in trades] == [
        (instant, 1, Decimal("0.1"), Decimal("0.1"), "buy", "-1"),
        (instant, 1, Decimal("0.2"), Decimal(0), "sell", "-2"),
        (instant, 2, Decimal("0.3"), Decimal(1), "sell", "-1"),
        (instant, 2, Decimal("0.4"), Decimal(1), "sell", "77"),
    ]
    assert {refused.rule: refused.n_rows for refused in told["trade_snapshots"].refused} == {
        "symbol_id: must fit integer": 1,
        "a row with the same (symbol_id, timestamp, trade_id) comes before it": 1,
    }
    tickers = await old.fetch("SELECT id, bid_price, sequence_number FROM book_ticker_snapshots ORDER BY id")
    assert [tuple(record) for record in tickers] == [(7, 2, -1), (8, 3, 5), (9, 1, -2)]
    assert [r.rule for r in told["book_ticker_snapshots"].refused] == ["sequence_number: must fit bigint"]

    rates = await old.fetch(
        "SELECT timestamp, funding_rate, funding_time, next_funding_time FROM funding_rate_snapshots"
    )
    seconds = datetime.fromtimestamp(1795132800, UTC)
    assert [tuple(record) for record in rates] == [
        (
            seconds.replace(microsecond=1),
            Decimal("0.0001"),
            seconds.replace(second=1),
            seconds.replace(second=2, microsecond=123456),
        )
    ]
    assert {refused.rule for refused in told["funding_rate_snapshots"].refused} == {
        "next_funding_time: must be an epoch in nanoseconds between 2009 and 2100",
        "funding_time: must not be NULL",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "INSERT INTO funding_rate_snapshots VALUES (1795132800, 3, 0, 1795132801, NULL)",
            r"timestamp mixes units \(1 rows in seconds, 3 rows in microseconds\)",
        ),
        (
            "ALTER TABLE trade_snapshots ALTER COLUMN price TYPE text",
            "price is text, and there is no rule that makes it",
        ),
        ("DROP TABLE trade_snapshots; CREATE VIEW trade_snapshots AS SELECT 1", "trade_snapshots is a view"),
        ("CREATE SCHEMA pgtick_before CREATE TABLE mine (id int)", "the schema pgtick_before holds"),
    ],
)
async def test_what_there_is_no_way_from_is_refused_as_a_whole(old: DatabaseManager, change: str, said: str) -> None:
    await old.execute(LOOKUPS + SERIES + change)
    with pytest.raises(MigrationError, match=said):
        await baseline(old)
    assert await old.fetchval("SELECT count(*) FROM exchanges") == 2
    assert await old.fetchval("SELECT to_regclass('pgtick_migrations') IS NULL")


async def test_what_hangs_on_the_old_tables_is_not_in_the_way_and_is_told(old: DatabaseManager) -> None:
    await make_schema(old)
    role = await old.fetchval("SELECT 'pgtick_test_' || pg_backend_pid()")
    await old.execute(
        f"CREATE ROLE {role}; GRANT SELECT, INSERT ON trade_snapshots TO {role};"
        "CREATE TABLE new_entity (symbol_id int CONSTRAINT entity_symbol REFERENCES symbols (id));"
        "CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER my_trigger BEFORE INSERT ON symbols FOR EACH ROW EXECUTE FUNCTION mine();"
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'A', 'B', 'AB')"
    )
    try:
        report = await baseline(old)
        advice = "\n".join(report.advice)
        assert "the view latest_book_tickers goes on reading pgtick_before.book_ticker_snapshots" in advice
        key = (
            "ALTER TABLE new_entity DROP CONSTRAINT entity_symbol; "
            "ALTER TABLE new_entity ADD FOREIGN KEY (symbol_id) REFERENCES symbols(id);"
        )
        assert key in advice
        await old.execute(key + "INSERT INTO new_entity VALUES (1)")
        assert "the trigger my_trigger stays at pgtick_before.symbols" in advice
        grant = f"GRANT INSERT, SELECT ON trade_snapshots TO {role};"
        assert grant in advice
        await old.execute(grant)
        assert await old.fetchval("SELECT get_symbol_id('MEXC_SPOT', 'A', 'B')") == 1  # by name: the new table
        assert "DROP SCHEMA pgtick_before CASCADE;" in advice
        if await old.fetchval("SELECT true FROM pg_extension WHERE extname = 'timescaledb'"):
            schemas = await old.fetch(
                "SELECT DISTINCT hypertable_schema::text FROM timescaledb_information.jobs "
                "WHERE proc_name = 'policy_retention'"
            )
            assert [record[0] for record in schemas] == ["public"]  # nothing drops what is kept
        await old.execute("DROP SCHEMA pgtick_before CASCADE")
    finally:
        await old.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_partitions_of_an_old_table_move_along(old: DatabaseManager) -> None:
    await old.execute(
        LOOKUPS + "CREATE TABLE trade_snapshots (id bigserial, timestamp timestamptz, symbol_id int, price numeric, "
        "quantity numeric, side text, trade_id text) PARTITION BY RANGE (timestamp);"
        "CREATE TABLE trade_snapshots_p20261120 PARTITION OF trade_snapshots "
        "FOR VALUES FROM ('2026-11-20Z') TO ('2026-11-21Z');"
        "INSERT INTO trade_snapshots VALUES (5, '2026-11-20Z', 1, 1, 1, 'buy', 'a');"
        "SELECT setval('trade_snapshots_id_seq', 100)"
    )
    report = await baseline(old)
    assert [item.n_moved for item in report.tables if item.table == "trade_snapshots"] == [1]
    assert await old.fetchval("SELECT count(*) FROM pgtick_before.trade_snapshots_p20261120") == 1
    assert await old.fetchval("SELECT id FROM trade_snapshots") == 5
    assert await old.fetchval("SELECT nextval(pg_get_serial_sequence('trade_snapshots', 'id'))") == 101


async def test_adoption_gives_way_to_a_session_that_uses_a_table(
    old: DatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await old.execute(LOOKUPS)
    hasty = msgspec.structs.replace(old.config, migration_lock_timeout_s=0.1)
    monkeypatch.setattr(old, "config", hasty)
    async with old.acquire() as reader, reader.transaction():
        await reader.fetch("SELECT * FROM symbols")
        with pytest.raises(MigrationError, match=r"a session uses the tables .*nothing is changed; stop what reads"):
            await baseline(old)
    assert (await baseline(old)).action == "adopted"
