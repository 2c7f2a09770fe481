"""The manager: start, methods, transactions that tasks share, deadlines, cancellation, close."""

from __future__ import annotations

import asyncio
import logging
import socket
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from no_secrets import SENTINEL

import pgtick.connection as connection_module
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, connect, get_db_manager, initialize_database, open_manager, use_manager
from pgtick.errors import (
    AcquireTimeoutError,
    ConnectTimeoutError,
    NotInitializedError,
    PgtickError,
    StatementTimeoutError,
)
from pgtick.operations.symbols import resolve_symbol

SECRET = f"{SENTINEL}@/#?%: '\"\\päß密码"


class Stop(Exception):  # noqa: N818 - it is no error
    """What a test ends a transaction with."""


@asynccontextmanager
async def rolled_back(db: DatabaseManager) -> AsyncIterator[None]:
    with suppress(Stop):
        async with db.transaction():
            yield
            raise Stop


@asynccontextmanager
async def opened(config: DatabaseConfig, **settings: Any) -> AsyncIterator[DatabaseManager]:
    manager = await open_manager(msgspec.structs.replace(config, **settings))
    try:
        await manager.execute("CREATE TABLE IF NOT EXISTS items (id int PRIMARY KEY, name text)")
        yield manager
    finally:
        await manager.close()


@pytest.fixture
async def pool(dsn: str) -> AsyncIterator[DatabaseManager]:
    """An unpublished manager of an empty database with a table ``items`` and two connections."""
    async with opened(DatabaseConfig.from_dsn(dsn), max_connections=2, acquire_timeout_s=2) as manager:
        yield manager


@pytest.fixture
def black_hole() -> Iterator[DatabaseConfig]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield DatabaseConfig(
            host="127.0.0.1", port=listening.getsockname()[1], database="d", user="u", password=SECRET,
            connect_timeout_s=0.2,
        )  # fmt: skip


async def names(db: DatabaseManager) -> list[str]:
    return [row["name"] for row in await db.fetch("SELECT name FROM items ORDER BY id")]


async def all_free(db: DatabaseManager) -> bool:
    """Whether every connection of the pool can be had and works, at once."""

    async def one(barrier: asyncio.Barrier) -> int:
        async with db.acquire() as connection:
            await barrier.wait()
            return int(await connection.fetchval("SELECT 1"))

    barrier = asyncio.Barrier(db.config.max_connections)
    async with asyncio.timeout(10):
        return sum(await asyncio.gather(*(one(barrier) for _ in range(barrier.parties)))) == barrier.parties


async def test_methods_do_what_they_say(pool: DatabaseManager) -> None:
    assert await pool.execute("INSERT INTO items VALUES ($1, $2)", 1, "one") == "INSERT 0 1"
    assert await pool.execute("SELECT 1; DELETE FROM items WHERE id = 9") == "DELETE 0"
    await pool.executemany("INSERT INTO items VALUES ($1, $2)", ((n, f"many {n}") for n in (2, 3)))
    assert await pool.copy_records_to_table("items", iter([(4, "copy"), (5, None)]), ["id", "name"]) == 2
    binary = await _binary_copy(pool)
    await pool.execute("DELETE FROM items WHERE id > 1")
    assert await pool.copy_binary_to_table("items", ["id", "name"], [binary[:30], binary[30:]]) == 2
    assert await names(pool) == ["one", "many 2", "many 3"]
    row = await pool.fetchrow("SELECT * FROM items WHERE id = $1", 2)
    assert row is not None
    assert tuple(row) == (2, "many 2")
    assert await pool.fetchrow("SELECT * FROM items WHERE id = 9") is None
    assert await pool.fetchval("SELECT count(*) FROM items") == 3
    assert await pool.fetchval("SELECT id FROM items WHERE id = 9") is None
    async with pool.acquire() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert pool.pool_state() == {"size": 1, "idle": 1, "max": 2}


async def _binary_copy(pool: DatabaseManager) -> bytes:
    chunks: list[bytes] = []

    async def take(chunk: bytes) -> None:
        chunks.append(chunk)

    async with pool.acquire() as connection:
        query = "SELECT id, name FROM items WHERE id IN (2, 3)"
        await connection.copy_from_query(query, output=take, format="binary")
    return b"".join(chunks)


async def test_executemany_that_fails_in_the_middle_stores_nothing(pool: DatabaseManager) -> None:
    with pytest.raises(asyncpg.UniqueViolationError):
        await pool.executemany("INSERT INTO items VALUES ($1, $2)", [(1, "a"), (2, "b"), (1, "c")])
    assert await names(pool) == []


@pytest.mark.parametrize("row", [(1,), (1, "a", "surplus")])
async def test_copy_of_a_record_with_another_width_is_refused_by_its_place(
    pool: DatabaseManager, row: tuple[object, ...]
) -> None:
    with pytest.raises(ValueError, match=rf"items, row 1: {len(row)} values for 2 columns"):
        await pool.copy_records_to_table("items", [(1, "a"), row], ["id", "name"])
    assert await names(pool) == []


async def test_transaction_commits_or_rolls_back_as_a_whole(pool: DatabaseManager) -> None:
    async with pool.transaction():
        assert pool.in_transaction
        await pool.execute("INSERT INTO items VALUES (1, 'kept')")
        async with pool.acquire() as outside:
            assert await outside.fetchval("SELECT count(*) FROM items") == 0
    assert not pool.in_transaction
    async with rolled_back(pool):
        await pool.execute("INSERT INTO items VALUES (2, 'gone')")
    assert await names(pool) == ["kept"]
    assert await all_free(pool)


async def test_nested_transaction_is_a_savepoint_at_every_depth(pool: DatabaseManager) -> None:
    async with pool.transaction():
        await pool.execute("INSERT INTO items VALUES (1, 'outer')")
        async with rolled_back(pool):
            await pool.execute("INSERT INTO items VALUES (2, 'gone')")
            async with pool.transaction():
                await pool.execute("INSERT INTO items VALUES (3, 'gone too')")
            with pytest.raises(asyncpg.UniqueViolationError):
                await pool.execute("INSERT INTO items VALUES (1, 'twice')")
        async with pool.transaction():
            await pool.execute("INSERT INTO items VALUES (4, 'inner')")
    assert await names(pool) == ["outer", "inner"]


async def test_tasks_that_share_a_transaction_take_turns(pool: DatabaseManager) -> None:
    async with pool.transaction():
        first = await pool.fetchval("SELECT pg_current_xact_id()::text")
        ids = await asyncio.gather(*(pool.fetchval("SELECT pg_current_xact_id()::text") for _ in range(20)))
    assert set(ids) == {first}


async def test_savepoints_of_tasks_do_not_take_each_other_s_rows_along(pool: DatabaseManager) -> None:
    async def work(number: int) -> None:
        async with pool.transaction():
            await pool.execute("INSERT INTO items VALUES ($1, $2)", number, str(number))
            await asyncio.sleep(0.01 * (number % 3))
            if number % 2:
                raise RuntimeError("odd")

    async with pool.transaction():
        results = await asyncio.gather(*(work(number) for number in range(8)), return_exceptions=True)
    assert [isinstance(result, RuntimeError) for result in results] == [False, True] * 4
    assert await names(pool) == ["0", "2", "4", "6"]


async def test_transaction_s_end_waits_for_statements_that_tasks_have_asked_for(pool: DatabaseManager) -> None:
    async with pool.transaction():
        tasks = [
            asyncio.create_task(pool.execute("INSERT INTO items SELECT $1, pg_sleep(0.05)::text", number))
            for number in range(3)
        ]
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    assert len(await names(pool)) == 3


async def test_task_that_outlives_its_transaction_uses_the_pool(pool: DatabaseManager) -> None:
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        assert not pool.in_transaction
        await pool.execute("INSERT INTO items VALUES (1, 'later')")

    async with rolled_back(pool):
        task = asyncio.create_task(later())
        await pool.execute("INSERT INTO items VALUES (2, 'gone')")
    over.set()
    await task
    assert await names(pool) == ["later"]


async def test_nested_transaction_that_waits_for_a_task_of_the_outer_one_ends_at_the_deadline(dsn: str) -> None:
    async with opened(DatabaseConfig.from_dsn(dsn), acquire_timeout_s=0.2) as pool, pool.transaction():
        start = asyncio.Event()

        async def outer() -> None:
            await start.wait()
            await pool.execute("SELECT 1")

        task = asyncio.create_task(outer())
        async with pool.transaction():
            start.set()
            with pytest.raises(AcquireTimeoutError, match="no turn in the transaction within"):
                await task
        assert await pool.fetchval("SELECT 1") == 1


async def test_after_rollback_is_called_once_free_and_not_after_a_commit(dsn: str) -> None:
    async with opened(DatabaseConfig.from_dsn(dsn), max_connections=1) as pool:
        seen: list[str] = []

        async def undo() -> None:
            seen.append(await pool.fetchval("SELECT 'undone'"))

        async with pool.transaction():
            pool.after_rollback(undo)
        assert seen == []
        async with pool.transaction():
            async with rolled_back(pool):
                pool.after_rollback(undo)
                pool.after_rollback(undo)  # asked for twice, called once
            assert seen == ["undone"]
        async with rolled_back(pool), pool.transaction():
            pool.after_rollback(undo)
        assert seen == ["undone"] * 2
        async with rolled_back(pool):
            async with pool.transaction():
                pool.after_rollback(undo)
            assert await pool.fetchval("SELECT 1") == 1
        assert seen == ["undone"] * 3


async def test_after_rollback_that_fails_leaves_the_error_and_says_so(
    pool: DatabaseManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def undo() -> None:
        raise ValueError("no")

    async with rolled_back(pool):
        pool.after_rollback(undo)
    assert "after a rollback" in caplog.text
    assert await all_free(pool)


async def _copy_slowly(db: DatabaseManager) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"PGCOPY\n\xff\r\n\0" + bytes(8)
        raise asyncio.CancelledError

    await db.copy_binary_to_table("items", ["id", "name"], chunks())


async def _transact_slowly(db: DatabaseManager) -> None:
    async with db.transaction():
        await db.execute("INSERT INTO items VALUES (1, 'half')")
        async with db.transaction():
            await db.execute("INSERT INTO items VALUES (2, 'half')")
            await db.execute("SELECT pg_sleep(20)")


async def _hold(db: DatabaseManager) -> None:
    async with db.acquire() as connection:
        await connection.execute("SELECT pg_sleep(20)")


SLOW = {
    "execute": lambda db: db.execute("SELECT pg_sleep(20)"),
    "executemany": lambda db: db.executemany("INSERT INTO items SELECT $1, pg_sleep(20)::text", [(1,), (2,)]),
    "fetch": lambda db: db.fetch("SELECT pg_sleep(20)"),
    "fetchrow": lambda db: db.fetchrow("SELECT pg_sleep($1)", 20.0),
    "fetchval": lambda db: db.fetchval("SELECT pg_sleep($1)", 20.0),
    "transaction": _transact_slowly,
    "acquire": _hold,
}


@pytest.mark.parametrize("delay_s", [0, 0.002, 0.05])
@pytest.mark.parametrize("name", SLOW)
async def test_cancelled_call_leaves_the_pool_full_and_no_half_row(
    pool: DatabaseManager, name: str, delay_s: float
) -> None:
    for _ in range(3):
        task = asyncio.ensure_future(SLOW[name](pool))
        await asyncio.sleep(delay_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await all_free(pool)
    assert await names(pool) == []
    assert not pool.in_transaction


async def test_copy_that_is_cut_off_leaves_the_pool_full_and_no_row(pool: DatabaseManager) -> None:
    with pytest.raises(asyncio.CancelledError):
        await _copy_slowly(pool)
    assert await all_free(pool)
    assert await names(pool) == []


async def test_cancelled_while_waiting_for_a_connection_takes_none(dsn: str) -> None:
    async with opened(DatabaseConfig.from_dsn(dsn), max_connections=1) as pool:
        async with pool.acquire():
            waiting = asyncio.create_task(pool.fetchval("SELECT 1"))
            await asyncio.sleep(0.02)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert await all_free(pool)


async def test_statement_past_its_deadline_is_cancelled_on_the_server(dsn: str) -> None:
    async with opened(DatabaseConfig.from_dsn(dsn), statement_timeout_s=0.3, max_connections=1) as pool:
        for name in ("execute", "fetch", "executemany"):
            with pytest.raises(StatementTimeoutError, match=r"in 0\.3 s") as caught:
                await SLOW[name](pool)
            assert isinstance(caught.value, TimeoutError)
        with pytest.raises(StatementTimeoutError):
            await _transact_slowly(pool)
        assert await all_free(pool)
        active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' AND state = 'active'"
        assert await pool.fetchval(active + " AND pid <> pg_backend_pid() AND datname = current_database()") == 0
        assert await names(pool) == []


async def test_connection_that_does_not_come_free_is_an_error_at_the_deadline(dsn: str) -> None:
    async with opened(DatabaseConfig.from_dsn(dsn), acquire_timeout_s=0.2, max_connections=1) as pool:
        async with pool.acquire():
            with pytest.raises(AcquireTimeoutError, match=r"within 0\.2 s \(pool of 1\)"):
                await pool.fetchval("SELECT 1")
            with pytest.raises(AcquireTimeoutError):
                async with pool.transaction():
                    pytest.fail("must not come here")
        assert await all_free(pool)


@pytest.mark.parametrize("start", [connect, open_manager, initialize_database])
async def test_server_that_does_not_answer_is_named_at_the_deadline(black_hole: DatabaseConfig, start: Any) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(ConnectTimeoutError, match=rf"127\.0\.0\.1, port {black_hole.port}, in 0\.2 s") as caught:
            await start(black_hole)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


async def test_pool_whose_new_connection_is_not_answered_says_so(dsn: str) -> None:
    async with opened(DatabaseConfig.from_dsn(dsn), max_connections=2, connect_timeout_s=0.3) as pool:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = {"host": "127.0.0.1", "port": listening.getsockname()[1]}
            pool._pool.set_connect_args(**{**pool.config.connect_kwargs(), **address})
            async with pool.acquire():
                with pytest.raises(ConnectTimeoutError):
                    await pool.fetchval("SELECT 1")


async def test_closed_manager_gives_nothing_and_closes_once(
    pool: DatabaseManager, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[str] = []

    async def closer(name: str) -> None:
        closed.append(name)
        if name == "second":
            raise ValueError("no")

    for name in ("first", "second", "third"):
        pool.on_close(lambda name=name: closer(name))  # type: ignore[misc]
    await pool.close()
    await pool.close()
    assert closed == ["third", "second", "first"]
    assert "while closing" in caplog.text
    with pytest.raises(asyncpg.InterfaceError, match="closed"):
        await pool.fetchval("SELECT 1")


async def test_close_cuts_what_is_still_in_use_at_the_deadline(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    manager = await open_manager(msgspec.structs.replace(DatabaseConfig.from_dsn(dsn), acquire_timeout_s=0.2))
    slow = asyncio.create_task(manager.execute("SELECT pg_sleep(20)"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await manager.close()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
            await slow
    assert "still in use" in caplog.text


async def test_initialize_database_publishes_last_and_refuses_a_second(config: DatabaseConfig) -> None:
    with pytest.raises(NotInitializedError, match="initialize_database"):
        get_db_manager()
    db = await initialize_database(config)
    try:
        assert get_db_manager() is db
        with pytest.raises(PgtickError, match="open already"):
            await initialize_database(config)
        assert get_db_manager() is db
        assert await db.fetchval("SELECT count(*) FROM symbols") == 0
    finally:
        await db.close()
    with pytest.raises(NotInitializedError):
        get_db_manager()


async def test_initialize_database_logs_where_it_connected_without_the_password(
    config: DatabaseConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGTICK_DSN", msgspec.structs.replace(config, password=SECRET).to_dsn(with_password=True))
    db = await initialize_database()
    await db.close()
    assert f"connected to DatabaseConfig({config.to_dsn()})" in caplog.text
    assert "s3cr3t" not in caplog.text
    assert "s3cr3t" not in repr(db)


async def test_failed_start_publishes_nothing_leaves_nothing_and_can_be_repeated(
    config: DatabaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[DatabaseManager] = []

    async def step(manager: DatabaseManager) -> None:
        assert connection_module._published is None
        assert get_db_manager() is manager
        seen.append(manager)
        if len(seen) == 1:
            raise RuntimeError("first start")

    steps = [*connection_module._start_steps, (99, step)]
    monkeypatch.setattr(connection_module, "_start_steps", steps)
    before = asyncio.all_tasks()
    with pytest.raises(RuntimeError, match="first start"):
        await initialize_database(config)
    with pytest.raises(NotInitializedError):
        get_db_manager()
    assert asyncio.all_tasks() == before
    db = await initialize_database(config)
    assert get_db_manager() is db is seen[1]
    await db.close()


async def test_start_that_the_server_refuses_can_be_repeated(config: DatabaseConfig) -> None:
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await initialize_database(msgspec.structs.replace(config, database="pgtick_test_none"))
    db = await initialize_database(config)
    await db.close()


async def test_concurrent_starts_publish_one(config: DatabaseConfig) -> None:
    results = await asyncio.gather(*(initialize_database(config) for _ in range(3)), return_exceptions=True)
    managers = [result for result in results if isinstance(result, DatabaseManager)]
    assert len(managers) == 1
    assert all(isinstance(result, PgtickError) for result in results if result not in managers)
    assert get_db_manager() is managers[0]
    await managers[0].close()


async def test_use_manager_holds_in_its_context_only(config: DatabaseConfig, dsn: str) -> None:
    db = await initialize_database(config)
    async with opened(DatabaseConfig.from_dsn(dsn)) as other:

        async def used() -> DatabaseManager:
            with use_manager(other):
                await asyncio.sleep(0)
                return get_db_manager()

        assert await used() is other
        assert get_db_manager() is db
    await db.close()


@pytest.fixture
async def scram(embedded_config: DatabaseConfig) -> AsyncIterator[DatabaseConfig]:
    """A role of the embedded server that must give its password."""
    role, admin = "pgtick_test_scram", await connect(embedded_config)
    hba = Path(await admin.fetchval("SHOW hba_file"))
    before = hba.read_text("utf-8")
    quoted = await admin.fetchval("SELECT quote_literal($1)", SECRET)
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD {quoted}")
    hba.write_text(f"local all {role} scram-sha-256\n{before}", "utf-8")
    await admin.execute("SELECT pg_reload_conf()")
    await asyncio.sleep(0.2)
    yield msgspec.structs.replace(embedded_config, user=role)
    hba.write_text(before, "utf-8")
    await admin.execute(f"DROP ROLE {role}; SELECT pg_reload_conf()")
    await admin.close()


async def test_password_of_every_character_is_accepted_by_the_server(scram: DatabaseConfig) -> None:
    given = msgspec.structs.replace(scram, password=SECRET)
    for config in (given, DatabaseConfig.from_dsn(given.to_dsn(with_password=True))):
        connection = await connect(config)
        assert await connection.fetchval("SELECT current_user") == scram.user
        await connection.close()


async def test_password_is_found_in_the_password_file(
    scram: DatabaseConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passfile = tmp_path / "pass file"
    escaped = SECRET.replace("\\", "\\\\").replace(":", "\\:")
    passfile.write_text(f"# *:*:*:*:x\n\nother:*:*:*:x\n*:*:*:{scram.user}:{escaped}\n*:*:*:*:y\n", "utf-8")
    passfile.chmod(0o600)
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connect(scram)
    named = msgspec.structs.replace(scram, passfile=str(passfile))
    for config in (named, DatabaseConfig.from_dsn(named.to_dsn())):
        connection = await connect(config)
        await connection.close()
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    connection = await connect(scram)
    await connection.close()
    passfile.chmod(0o644)
    with pytest.warns(UserWarning, match="group or world access"), pytest.raises(asyncpg.InvalidPasswordError):
        await connect(scram)


async def test_wrong_password_is_refused_and_shown_nowhere(
    scram: DatabaseConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = msgspec.structs.replace(scram, password="wr" + f"0ng {SENTINEL}")  # a traceback shows this line
    with pytest.raises(asyncpg.InvalidPasswordError, match="pgtick_test_scram") as caught:
        await initialize_database(wrong)
    assert "wr0ng" not in "".join(traceback.format_exception(caught.value))
    assert "wr0ng" not in caplog.text


async def test_symbol_registered_in_a_rolled_back_transaction_is_not_in_memory(db: DatabaseManager) -> None:
    async with rolled_back(db):
        symbol = await resolve_symbol("KRAKEN_SPOT", "BTC", "USD")
        assert db.symbols.get(symbol.id) is not None
    assert db.symbols.get(symbol.id) is None
    again = await resolve_symbol("KRAKEN_SPOT", "BTC", "USD")
    assert await db.fetchval("SELECT count(*) FROM symbols WHERE id = $1", again.id) == 1


async def test_session_is_reset_unless_the_statement_says_it_changed_nothing(config: DatabaseConfig) -> None:
    db = await open_manager(msgspec.structs.replace(config, max_connections=1))
    try:
        change, show = "SELECT set_config('application_name', $1, false)", "SHOW application_name"
        assert await db.fetchval(change, "changed") == "changed"
        assert await db.fetchval(show) == "pgtick"
        await db.fetchval(change, "kept", resets=False)
        assert await db.fetchval(show) == "kept"
        assert await db.fetchval(show) == "pgtick"
        with pytest.raises(asyncpg.DivisionByZeroError):
            await db.fetchrow("SELECT 1 / 0", resets=False)
        assert await db.fetchval("SELECT 1") == 1
        assert db.pool_state()["idle"] == 1
    finally:
        await db.close()


async def test_release_that_fails_takes_the_place_of_no_result_and_no_cancellation(
    pool: DatabaseManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncpg.Pool.release

    async def fail(self: Any, connection: Any) -> None:
        await release(self, connection)
        raise TimeoutError

    monkeypatch.setattr(asyncpg.Pool, "release", fail)
    assert await pool.fetchval("SELECT 1") == 1
    task = asyncio.ensure_future(pool.fetchval("SELECT pg_sleep(20)"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert "given up" in caplog.text
