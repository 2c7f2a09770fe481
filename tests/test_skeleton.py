"""A migration's first draft from a model makes the table that the built-in one has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import pytest

from pgtick import models
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database
from pgtick.engines import get_engine
from pgtick.errors import MigrationError
from pgtick.migrator import rollback_migration
from pgtick.migrator.skeleton import load_model, write_skeleton
from pgtick.models import Instant, Price, Row, Sql
from pgtick.operations.generic import get_history, get_latest, insert_batch
from pgtick.operations.symbols import resolve_symbol
from pgtick.tables import BUILT_IN_TABLES, Table, quote_identifier

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NAME = 'Forced "orders" \\'
TOTAL = "available_balance + locked_balance + coalesce(frozen_balance, 0)"

# Columns by place, constraints, indexes and triggers: their names hold the table's, so they are left out.
_SHAPE = """
SELECT format('%s %s %s %s %s %s %s', attnum, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,
    attgenerated, pg_get_expr(adbin, adrelid))
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::regclass AND contype <> 'n'
UNION ALL
SELECT format('%s %s %s', tgtype, tgfoid::regproc, encode(tgargs, 'escape')) FROM pg_trigger
WHERE tgrelid = $1::regclass AND NOT tgisinternal AND tgname <> 'touch_late_rows' -- those of candles
ORDER BY 1
"""


class ForcedOrder(Row, kw_only=True):
    """A position closed by its venue: a column of every type."""

    table_name: ClassVar[str] = NAME

    id: Annotated[int | None, Sql(type="int8", made_by_server=True)] = None
    timestamp: Annotated[Instant, Sql(type="timestamptz")]
    symbol_id: Annotated[int, Sql(type="int4", rule="> 0")]
    sell_exchange_id: Annotated[int | None, Sql(type="int4")] = None
    side: Annotated[str, Sql(type="text", rule=("buy", 'it\'s \\ """sold"""'))]
    price: Annotated[Price, Sql(type="numeric", rule="> 0")]
    score: Annotated[float | None, Sql(type="float4", rule=">= 0")] = None
    level: Annotated[int, Sql(type="int2")] = 1
    order: Annotated[str | None, Sql(type="text", content_key=True)] = None
    note: Annotated[dict[str, int] | None, Sql(type="jsonb")] = None
    is_final: Annotated[bool, Sql(type="bool")] = False


FORCED_ORDERS = Table(NAME, ForcedOrder, key=("symbol_id", "timestamp", "order"))


async def start(config: DatabaseConfig, folder: Path) -> DatabaseManager:
    return await initialize_database(msgspec.structs.replace(config, migration_folders=(str(folder),)))


async def test_drafts_of_the_built_in_models_make_the_built_in_tables(config: DatabaseConfig, tmp_path: Path) -> None:
    folder = tmp_path / "drafts"
    for n, table in enumerate(BUILT_IN_TABLES, 1):
        copy = Table(f"copy_{table.name}", table.model, key=table.key)
        path = write_skeleton(folder, f"copy_{n}", copy, chunk=HOUR, retention=7 * DAY)
        assert path.name == f"{n:03d}_copy_{n}.py"
        text = path.read_text("utf-8")
        if table.name == "balance_snapshots":  # what the server makes, no annotation tells
            assert text.count("(…)") == 1
            path.write_text(text.replace("(…)", f"({TOTAL})"), "utf-8")
        else:
            assert "…" not in text
    db = await start(config, folder)
    try:
        for table in BUILT_IN_TABLES:
            shape = [record[0] for record in await db.fetch(_SHAPE, table.name)]
            assert [record[0] for record in await db.fetch(_SHAPE, f"copy_{table.name}")] == shape
            assert len(shape) >= 10
        for n in range(len(BUILT_IN_TABLES), 0, -1):
            await rollback_migration(f"drafts/{n:03d}", destructive=True)
        assert (
            await db.fetchval("SELECT count(*) FROM pg_class WHERE relname LIKE 'copy%' AND relkind IN ('r', 'p')") == 0
        )
        assert await db.fetchval("SELECT count(*) FROM pgtick_time_series") == len(BUILT_IN_TABLES) + 1
    finally:
        await db.close()


async def test_rows_of_an_own_entity_walk_the_road_from_its_draft_on(config: DatabaseConfig, tmp_path: Path) -> None:
    write_skeleton(tmp_path, "orders", ForcedOrder, key=FORCED_ORDERS.key, chunk=HOUR, retention=36 * HOUR)
    db = await start(config, tmp_path)
    try:
        kept = await db.fetchrow("SELECT * FROM pgtick_time_series WHERE table_name = $1", NAME)
        assert kept is not None
        assert (kept["chunk_interval"], kept["retention"]) == (HOUR, 36 * HOUR)
        symbol = await resolve_symbol("GATEIO_FUTURES", "BTC", "USDT", "BTC_USDT")
        now = datetime.now(UTC)
        await (await get_engine(db)).ensure_days(db, NAME, [int(now.timestamp() // 86400)])
        sold = ForcedOrder(
            timestamp=now, symbol_id=symbol.id, side='it\'s \\ """sold"""', price=Decimal("1e-12"), note={"n": 1}
        )
        assert [await insert_batch(FORCED_ORDERS, [sold]) for _ in range(2)] == [1, 0]
        latest = await get_latest(FORCED_ORDERS, symbol.id, decimals=True)
        assert latest is not None
        assert (latest.side, latest.price, latest.level, latest.is_final) == (sold.side, sold.price, 1, False)
        assert latest.id is not None
        assert len(await get_history(FORCED_ORDERS, symbol.id, start=now - HOUR, end=now + HOUR)) == 1
        refused = [("symbol_id", "0"), ("side", "'hold'"), ("price", "'NaN'"), ("score", "'Infinity'")]
        for column, value in refused:
            values = {"timestamp": "now()", "symbol_id": "1", "side": "'buy'", "price": "1", '"order"': "'1'"}
            values |= {column: value, "level": "1", "is_final": "false"}
            with pytest.raises(Exception, match=r"violates check constraint|there is no row 0"):
                await db.execute(
                    f"INSERT INTO {quote_identifier(NAME)} ({', '.join(values)}) VALUES ({', '.join(values.values())})"
                )
    finally:
        await db.close()


async def test_draft_with_an_unfilled_column_is_refused_by_the_server(config: DatabaseConfig, tmp_path: Path) -> None:
    table = Table("mine", models.BalanceSnapshot, key=("exchange_id", "asset_name", "timestamp"))
    write_skeleton(tmp_path, "mine", table, chunk=HOUR, retention=DAY)
    with pytest.raises(MigrationError, match=r"001_mine failed: .*…"):
        await start(config, tmp_path)


async def test_second_draft_gets_the_next_number_and_depends_on_what_it_refers_to(tmp_path: Path) -> None:
    write_skeleton(tmp_path, "a", BUILT_IN_TABLES[0], chunk=timedelta(minutes=90), retention=timedelta(seconds=90))
    path = write_skeleton(tmp_path, "b", BUILT_IN_TABLES[4], chunk=DAY, retention=timedelta(microseconds=1))
    assert path == tmp_path / "002_b.py"
    assert "chunk=timedelta(minutes=90)" in (tmp_path / "001_a.py").read_text("utf-8")
    text = path.read_text("utf-8")
    assert '"dependencies": ["exchanges", "symbols"]' in text
    assert "retention=timedelta(microseconds=1)" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Not-a-name"}, "made of a-z, 0-9 and _"),
        ({"table_or_model": models.TradeSnapshot}, "name the primary key of TradeSnapshot"),
        ({"table_or_model": models.Symbol, "key": ("id",)}, "Symbol makes no table"),
        ({"table_or_model": models.TradeSnapshot, "key": ("symbol_id", "price")}, "it is part of the key"),
        ({"key": ("symbol_id",)}, "the key of trade_snapshots is symbol_id, timestamp, trade_id"),
        ({"chunk": timedelta(0)}, "chunk must be longer than nothing"),
    ],
)
def test_draft_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"name": "x", "table_or_model": BUILT_IN_TABLES[1], "chunk": DAY, "retention": DAY}
    with pytest.raises(MigrationError, match=said):
        write_skeleton(tmp_path, **{**arguments, **changes})
    assert list(tmp_path.iterdir()) == []


def test_model_is_found_by_module_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model("pgtick.models:TradeSnapshot") is models.TradeSnapshot
    assert load_model("pgtick.tables:TRADES") is BUILT_IN_TABLES[1]
    (tmp_path / "my_rows_of_mine.py").write_text("from pgtick.models import TradeSnapshot as Mine\n")
    monkeypatch.chdir(tmp_path)
    assert load_model("my_rows_of_mine:Mine") is models.TradeSnapshot


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("pgtick.models", "must be package.module:Name"),
        ("pgtick.models:", "must be package.module:Name"),
        ("pgtick.no_such:Name", "pgtick.no_such cannot be imported: ModuleNotFoundError"),
        ("pgtick.tables:NO_SUCH", "has no NO_SUCH; it has ARBITRAGE_OPPORTUNITIES, BALANCES, BOOK_TICKERS"),
        ("pgtick.models:sql_fields", "has sql_fields, which is neither a Table nor a model"),
    ],
)
def test_model_that_is_not_there_is_told_of(path: str, said: str) -> None:
    with pytest.raises(MigrationError, match=said):
        load_model(path)
