"""Behind a real pgbouncer in transaction mode, where every transaction may get another connection; migrations."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import asyncpg
import msgspec
import pytest
from scratch import find_binary, free_port, hand_over, running

from pgtick import BookTickerSnapshot, cached_get_symbol_by_id, get_cached_symbol_by_id, refresh_cache
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, connect, initialize_database, open_manager
from pgtick.errors import MigrationError
from pgtick.migrator import run_pending_migrations
from pgtick.operations.book_ticker import (
    get_book_ticker_history,
    get_latest_book_ticker_by_symbol,
    insert_book_ticker_batch,
)
from pgtick.operations.symbols import deactivate_symbol, ensure_symbol, resolve_symbol
from pgtick.tables import BOOK_TICKERS
from pgtick.writer.batch import Batch
from pgtick.writer.deliver import deliver
from pgtick.writer.encoders import encoder_of

N_SERVER_CONNECTIONS = 2


@contextmanager
def running_pgbouncer(
    server: DatabaseConfig, mode: str, n_connections: int, uid: int | None = None
) -> Iterator[DatabaseConfig]:
    """A pooler with a few connections to the server, as its clients reach it; it runs as ``uid``."""
    binary = find_binary("pgbouncer")
    if binary is None:
        pytest.skip("no pgbouncer")
    user = server.user
    if server.host.startswith("/"):
        # It will not run as root; the server's own user reaches the socket, and is let in as postgres.
        user, uid = "postgres", (Path(server.host) / f".s.PGSQL.{server.port}").stat().st_uid
    password = f" password='{server.password}'" if server.password else ""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pgtick_pooler") as name:
        folder = Path(name)
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={server.host} port={server.port} user={user}{password}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\ndefault_pool_size = {n_connections}\nmax_client_conn = 100\n",
            "utf-8",
        )
        if uid is None:
            uid = os.geteuid() or 65534  # nobody: it will not run as root
        hand_over(folder, uid)
        with running([binary, folder / "pgbouncer.ini"], uid, port, folder / "log"):
            yield DatabaseConfig(host="127.0.0.1", port=port, database="postgres", user=user, pooler=True)


@pytest.fixture(scope="module")
def pgbouncer(server: DatabaseConfig) -> Iterator[DatabaseConfig]:
    with running_pgbouncer(server, "transaction", N_SERVER_CONNECTIONS) as config:
        yield config


@pytest.fixture
async def pooled(pgbouncer: DatabaseConfig, config: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    """The published manager, through the pooler, of a database that was migrated directly."""
    database = config.database
    db = await initialize_database(msgspec.structs.replace(pgbouncer, database=database, max_connections=8))
    yield db
    await db.close()


def tickers(symbol_id: int, n: int) -> list[BookTickerSnapshot]:
    now = datetime.now(UTC)
    return [
        BookTickerSnapshot(
            timestamp=now, symbol_id=symbol_id, bid_price=f"{i}.25", ask_price=f"{i}.75", sequence_number=i
        )
        for i in range(1, n + 1)
    ]


async def test_whole_way_of_a_batch_goes_through_the_pooler(pooled: DatabaseManager) -> None:
    symbol = await resolve_symbol("GATEIO_SPOT", "BTC", "USDT", "BTC_USDT")
    rows = tickers(symbol.id, 100)
    assert await insert_book_ticker_batch(rows) == 100
    assert await insert_book_ticker_batch(rows) == 0  # duplicates, through a temporary table
    latest = await get_latest_book_ticker_by_symbol(symbol.id)
    assert latest is not None
    assert latest.bid_price == Decimal("100.25")
    at, moment = rows[0].timestamp, timedelta(microseconds=1)
    assert len(await get_book_ticker_history(symbol.id, at, at + moment)) == 100
    assert await get_book_ticker_history(symbol.id, at - moment, at) == []
    assert await pooled.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 100


async def test_large_batch_that_the_server_refuses_is_answered_through_the_pooler(pooled: DatabaseManager) -> None:
    """Bytes of a COPY are still on their way when its error comes; outside a transaction they would go astray."""
    symbol = await resolve_symbol("GATEIO_SPOT", "BTC", "USDT", "BTC_USDT")
    rows = tickers(symbol.id, 20_000)
    encoder = encoder_of(BOOK_TICKERS)
    batch = Batch(BOOK_TICKERS, encoder.encode(rows))
    sent = await deliver(pooled, batch, timeout_s=5.0)
    again = await deliver(pooled, batch, timeout_s=5.0)
    assert (sent.n_stored, again.n_stored, again.was_committed) == (20_000, 20_000, True)
    twins = await deliver(pooled, Batch(BOOK_TICKERS, encoder.encode(rows)), timeout_s=5.0)
    assert (twins.n_stored, twins.n_duplicates) == (0, 20_000)
    stranger = msgspec.structs.replace(rows[0], symbol_id=999)
    late = [msgspec.structs.replace(row, sequence_number=n) for n, row in enumerate(rows, 20_001)]
    mixed = await deliver(pooled, Batch(BOOK_TICKERS, encoder.encode([*late, stranger])), timeout_s=5.0)
    assert (mixed.n_stored, mixed.n_quarantined) == (20_000, 1)
    copied = encoder.encode(rows)
    for _ in range(3):
        with pytest.raises(asyncpg.UniqueViolationError):
            await pooled.copy_binary_to_table(BOOK_TICKERS.name, BOOK_TICKERS.column_names, copied.chunks())
        assert await pooled.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 40_000


async def test_many_tasks_share_few_server_connections_and_get_their_own_answers(pooled: DatabaseManager) -> None:
    async def ask(number: int) -> tuple[int, str]:
        row = await pooled.fetchrow(f"SELECT $1::int AS n{number}, $2::text, pg_backend_pid()", number, str(number))
        assert row is not None
        pids.add(row[2])
        return row[0], row[1]

    pids: set[int] = set()
    answers = await asyncio.gather(*(ask(number) for number in range(200)))
    assert answers == [(number, str(number)) for number in range(200)]
    assert len(pids) <= N_SERVER_CONNECTIONS < pooled.pool_state()["size"]


async def test_transaction_and_savepoint_stay_on_one_server_connection(pooled: DatabaseManager) -> None:
    async def work(number: int) -> set[int]:
        async with pooled.transaction():
            pids = {await pooled.fetchval("SELECT pg_backend_pid() WHERE $1 > 0", number)}
            await pooled.executemany("INSERT INTO items VALUES ($1)", [(10 * number,), (10 * number + 1,)])
            with pytest.raises(asyncpg.UniqueViolationError):
                async with pooled.transaction():
                    await pooled.execute("INSERT INTO items VALUES ($1)", 10 * number)
            pids.add(await pooled.fetchval("SELECT pg_backend_pid()"))
        return pids

    await pooled.execute("CREATE TABLE items (id int PRIMARY KEY)")
    assert [len(pids) for pids in await asyncio.gather(*(work(number) for number in range(1, 9)))] == [1] * 8
    assert await pooled.copy_records_to_table("items", [(1,), (2,)], ["id"]) == 2
    assert await pooled.fetchval("SELECT count(*) FROM items") == 18


async def test_nobody_listens_behind_a_pooler_and_misses_find_what_is_new(pooled: DatabaseManager) -> None:
    listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    assert await pooled.fetchval(listening) == 0
    symbol_id = await ensure_symbol(await _exchange_of_another(pooled), "BTC", "USDT")
    pooled.symbols.load([])  # as in a process that has not registered it
    assert cached_get_symbol_by_id(symbol_id) is None
    found = await get_cached_symbol_by_id(symbol_id)
    assert found is not None
    assert cached_get_symbol_by_id(symbol_id) is found
    await deactivate_symbol(symbol_id)
    await refresh_cache()
    refreshed = cached_get_symbol_by_id(symbol_id)
    assert refreshed is not None
    assert not refreshed.is_active


async def _exchange_of_another(pooled: DatabaseManager) -> int:
    other = await connect(pooled.config)
    try:
        query = "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ($1, $2, 'SPOT') RETURNING id"
        return int(await other.fetchval(query, "KRAKEN_SPOT", "KRAKEN"))
    finally:
        await other.close()


@pytest.mark.parametrize("is_told", [True, False])
async def test_migration_through_a_transaction_pooler_is_refused_with_advice(
    pgbouncer: DatabaseConfig, dsn: str, is_told: bool
) -> None:
    database = DatabaseConfig.from_dsn(dsn).database
    config = msgspec.structs.replace(pgbouncer, database=database, pooler=is_told)
    with pytest.raises(MigrationError, match=r"there is a transaction pooler at 127\.0\.0\.1, port .* want a direct"):
        await initialize_database(config)
    direct = await connect(DatabaseConfig.from_dsn(dsn))
    try:
        assert await direct.fetchval("SELECT to_regclass('pgtick_migrations') IS NULL")
    finally:
        await direct.close()


async def test_migration_through_a_session_pooler_works(server: DatabaseConfig, dsn: str, tmp_path: Path) -> None:
    (tmp_path / "001_a.sql").write_text(
        "-- no-transaction\n-- up\nCREATE TABLE a (n int);\nCREATE INDEX CONCURRENTLY a_n ON a (n);"
    )
    if find_binary("pgbouncer") is None:
        pytest.skip("no pgbouncer")
    with running_pgbouncer(server, "session", 10) as pooler:
        database = DatabaseConfig.from_dsn(dsn).database
        db = await open_manager(
            msgspec.structs.replace(pooler, database=database, migration_folders=(str(tmp_path),), max_connections=2)
        )
        try:
            assert (await run_pending_migrations(db))[-1].endswith("/001_a")
        finally:
            await db.close()
