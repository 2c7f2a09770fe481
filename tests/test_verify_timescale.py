"""verify on TimescaleDB of either licence, at PGTICK_TEST_TIMESCALE_DSN: hypertables, chunk intervals, policies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgtick.connection import DatabaseManager
from pgtick.engines import maintain
from pgtick.verify import Drift, declaration, verify_schema
from pgtick.verify.catalog import read_items

pytestmark = pytest.mark.engines("timescale")

T = "trade_snapshots"
F = "funding_rate_snapshots"  # no candles are made of it


@pytest.fixture
async def db(db: DatabaseManager) -> DatabaseManager:
    """The manager, with exchange 1, symbol 1 and a trade."""
    await db.execute(
        "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
        "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'C', 'BC')"
    )
    await db.execute(_TRADE, "first")
    return db


_TRADE = (
    "INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id) "
    "VALUES (now(), 1, 1, 1, 'buy', $1)"
)
_LEFT = """
SELECT (SELECT array_agg(nspname::text ORDER BY 1) FROM pg_namespace) AS schemas,
    (SELECT count(*) FROM pg_class) AS n_relations,
    (SELECT array_agg(job_id ORDER BY 1) FROM timescaledb_information.jobs) AS jobs,
    (SELECT count(*) FROM _timescaledb_catalog.hypertable) AS n_hypertables
"""
_LOCKS = """
SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def told(drifts: list[Drift]) -> list[tuple[str, str, str, str]]:
    return [(drift.table, drift.kind, drift.name, drift.state) for drift in drifts]


@pytest.fixture
async def community(db: DatabaseManager) -> None:
    if await db.fetchval("SHOW timescaledb.license") != "timescale":
        pytest.skip("the server given has the licence apache: no policies")


async def test_fresh_database_has_no_drift_and_nothing_is_left_behind(db: DatabaseManager) -> None:
    before = await db.fetchrow(_LEFT)
    for _ in range(2):
        assert await verify_schema(db) == []
    assert await db.fetchrow(_LEFT) == before
    async with asyncio.timeout(5):  # the cache's listener has some for a moment, too
        while await db.fetchval(_LOCKS):  # noqa: ASYNC110  it is the server's state that is waited for
            await asyncio.sleep(0.05)


CHANGED_BY_THE_USER = {
    "retention": f"UPDATE pgtick_time_series SET retention = '120:00:00' WHERE table_name = '{T}'",
    "retention too short to refresh": f"UPDATE pgtick_time_series SET retention = '1 min' WHERE table_name = '{T}'",
    "columnstore later": f"UPDATE pgtick_time_series SET columnstore_after = '36:00:00' WHERE table_name = '{T}'",
    "columnstore never": f"UPDATE pgtick_time_series SET columnstore_after = NULL WHERE table_name = '{T}'",
    "candles kept longer": "UPDATE pgtick_candles SET retention = '500:00:00' WHERE candle_view = 'trade_candles_1s'",
    "candles kept for ever": "UPDATE pgtick_candles SET retention = NULL WHERE candle_view = 'trade_candles_1m'",
    "candles not for ever": "UPDATE pgtick_candles SET retention = '9 years' WHERE candle_view = 'trade_candles_1h'",
}


@pytest.mark.parametrize("name", CHANGED_BY_THE_USER)
async def test_changed_settings_are_the_user_s(db: DatabaseManager, name: str) -> None:
    await db.execute(CHANGED_BY_THE_USER[name])
    await maintain(db)
    assert await verify_schema(db) == []


async def test_lengthened_reach_of_a_refresh_is_no_drift_while_it_grows(db: DatabaseManager, community: None) -> None:
    await db.execute(CHANGED_BY_THE_USER["retention too short to refresh"])
    await maintain(db)
    await db.execute(f"UPDATE pgtick_time_series SET retention = '7 days' WHERE table_name = '{T}'")
    await maintain(db)
    reach = "SELECT max(config ->> 'start_offset')::interval < '2 hours' FROM timescaledb_information.jobs " + (
        "WHERE hypertable_name LIKE 'trade_candles_1s' AND proc_name LIKE '%refresh%'"
    )
    assert await db.fetchval(reach)
    assert await verify_schema(db) == []


PLANTED = {
    "chunk interval changed": (f"SELECT set_chunk_time_interval('{T}', interval '1 day')", (T, "chunk interval", T)),
    "chunk interval not followed": (
        f"UPDATE pgtick_time_series SET chunk_interval = '45 min' WHERE table_name = '{T}'",
        (T, "chunk interval", T),
    ),
    "column default changed": (
        f"ALTER TABLE {T} ALTER created_at SET DEFAULT '-infinity'",
        (T, "column", "created_at"),
    ),
    "primary key of others": (
        f"ALTER TABLE {T} DROP CONSTRAINT {T}_pkey, ADD PRIMARY KEY (timestamp, symbol_id, trade_id)",
        (T, "primary key", f"{T}_pkey"),
    ),
}
OF_POLICIES = {
    "retention removed": (f"SELECT remove_retention_policy('{T}')", (T, "policy", "retention", "missing")),
    "retention of another span": (
        f"SELECT remove_retention_policy('{T}'); SELECT add_retention_policy('{T}', drop_after => interval '30 days', "
        "schedule_interval => interval '30 min')",
        (T, "policy", "retention", "changed"),
    ),
    "retention paused": (
        "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs "
        f"WHERE hypertable_name = '{T}' AND proc_name = 'policy_retention'",
        (T, "policy", "retention", "changed"),
    ),
    "retention not followed": (
        f"UPDATE pgtick_time_series SET retention = '5 days' WHERE table_name = '{T}'",
        (T, "policy", "retention", "changed"),
    ),
    "columnstore policy removed": (
        f"CALL remove_columnstore_policy('{T}')",
        (T, "policy", "compression", "missing"),
    ),
    "columnstore of another span": (
        f"CALL remove_columnstore_policy('{T}'); CALL add_columnstore_policy('{T}', after => interval '7 hours', "
        "schedule_interval => interval '30 min')",
        (T, "policy", "compression", "changed"),
    ),
    "columnstore not wanted": (
        f"UPDATE pgtick_time_series SET columnstore_after = NULL WHERE table_name = '{T}'",
        (T, "policy", "compression", "extra"),
    ),
    "columnstore off": (
        f"UPDATE pgtick_time_series SET columnstore_after = NULL WHERE table_name = '{T}';"
        f"CALL remove_columnstore_policy('{T}'); ALTER TABLE {T} SET (timescaledb.enable_columnstore = false)",
        (T, "columnstore", T, "missing"),
    ),
    "columnstore of another order": (
        f"ALTER TABLE {T} SET (timescaledb.enable_columnstore, timescaledb.segmentby = 'symbol_id', "
        "timescaledb.orderby = 'timestamp DESC')",
        (T, "columnstore", T, "changed"),
    ),
    "candle view dropped": (
        "DROP MATERIALIZED VIEW trade_candles_1h",
        ("trade_candles_1h", "table", "trade_candles_1h", "missing"),
    ),
    "candle view not in real time": (
        "ALTER MATERIALIZED VIEW trade_candles_1s SET (timescaledb.materialized_only = true)",
        ("trade_candles_1s", "definition", "trade_candles_1s", "changed"),
    ),
    "refresh policy removed": (
        "SELECT remove_continuous_aggregate_policy('trade_candles_1m')",
        ("trade_candles_1m", "policy", "refresh_continuous_aggregate", "missing"),
    ),
    "refresh policy that reaches too far": (
        "SELECT remove_continuous_aggregate_policy('trade_candles_1m'); "
        "SELECT add_continuous_aggregate_policy('trade_candles_1m', start_offset => interval '90 days', "
        "end_offset => interval '1 min', schedule_interval => interval '1 min')",
        ("trade_candles_1m", "policy", "refresh_continuous_aggregate", "changed"),
    ),
    "retention of candles removed": (
        "SELECT remove_retention_policy('trade_candles_1s')",
        ("trade_candles_1s", "policy", "retention", "missing"),
    ),
    "retention of candles not asked for": (
        "SELECT add_retention_policy('trade_candles_1h', drop_after => interval '1 year')",
        ("trade_candles_1h", "policy", "retention", "extra"),
    ),
    "row of pgtick_candles deleted": (
        "DELETE FROM pgtick_candles WHERE candle_view = 'trade_candles_1h'",
        ("trade_candles_1h", "setting", "pgtick_candles", "missing"),
    ),
    "row of pgtick_time_series deleted": (
        f"DELETE FROM pgtick_time_series WHERE table_name = '{T}'",
        (T, "setting", "pgtick_time_series", "missing"),
    ),
    "plain table instead of a hypertable": (
        f"CREATE TABLE t (LIKE {F} INCLUDING ALL); DROP TABLE {F}; ALTER TABLE t RENAME TO {F};"
        f"ALTER INDEX t_pkey RENAME TO {F}_pkey",
        (F, "hypertable", F, "missing"),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
async def test_planted_drift_is_found(db: DatabaseManager, name: str) -> None:
    sql, expected = PLANTED[name]
    await db.execute(sql)
    drifts = [drift for drift in await verify_schema(db) if drift.kind != "policy"]
    assert told(drifts) == [(*expected, "changed")]


@pytest.mark.parametrize("name", OF_POLICIES)
async def test_planted_drift_is_found_alone(db: DatabaseManager, community: None, name: str) -> None:
    sql, expected = OF_POLICIES[name]
    await db.execute(sql)
    drifts = await verify_schema(db)
    own = [drift for drift in drifts if drift.kind != "trigger"]  # LIKE copies none
    assert told(own) == [expected]
    assert (drifts == own) is (name != "plain table instead of a hypertable" or db.server_version < 180000)


async def test_trigger_disabled_is_found(db: DatabaseManager) -> None:
    await db.execute("ALTER TABLE symbols DISABLE TRIGGER keep_rows")
    assert told(await verify_schema(db)) == [("symbols", "trigger", "keep_rows", "changed")]


@pytest.mark.parametrize(
    "name", [name for name, (_, found) in OF_POLICIES.items() if found[1] == "policy" and name != "retention paused"]
)
async def test_maintenance_puts_policies_right(db: DatabaseManager, community: None, name: str) -> None:
    await db.execute(OF_POLICIES[name][0])
    (drift,) = await verify_schema(db)
    assert "pgtick maintain" in drift.advice
    await maintain(db)
    assert await verify_schema(db) == []


async def test_verify_holds_up_nobody(db: DatabaseManager, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def wait_inside(*args: Any) -> Any:
        entered.set()
        await go_on.wait()
        return await read_items(*args)

    monkeypatch.setattr(declaration, "read_items", wait_inside)
    verifying = asyncio.create_task(verify_schema(db))
    async with asyncio.timeout(20):
        await entered.wait()
    async with db.transaction():  # rows, also of a new chunk, and retention: while the scratch schema is open
        await db.execute("SET LOCAL lock_timeout = '200ms'")
        await db.execute(_TRADE, "second")
        await db.execute(_TRADE.replace("now()", "now() - interval '10 days'"), "old")
    await db.fetch(f"SELECT drop_chunks('{T}', older_than => interval '9 days')")
    go_on.set()
    assert await verifying == []
