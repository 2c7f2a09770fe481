"""COPY behind other statements: one round trip, one transaction, an answer whatever the server refuses."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, connect, open_manager
from pgtick.copying import copy_in

COPY = "COPY copied (id) FROM STDIN (FORMAT binary)"
HEAD, END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


def stream(*numbers: int) -> bytes:
    return HEAD + b"".join(struct.pack(">hii", 1, 4, number) for number in numbers) + END


@pytest.fixture
async def config(dsn: str) -> DatabaseConfig:
    return DatabaseConfig.from_dsn(dsn)


@pytest.fixture
async def manager(config: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    manager = await open_manager(config)
    try:
        await manager.execute("CREATE TABLE copied (id int PRIMARY KEY); CREATE TABLE told (id int PRIMARY KEY)")
        yield manager
    finally:
        await manager.close()


async def stored(db: DatabaseManager, table: str) -> list[int]:
    return [n for (n,) in await db.fetch(f"SELECT id FROM {table} ORDER BY id")]


async def test_statements_before_the_copy_are_carried_out_and_the_copy_s_tag_is_returned(
    manager: DatabaseManager,
) -> None:
    statements = f"SET LOCAL application_name = 'copying'; SELECT 1, 'two'; INSERT INTO told VALUES (7); ; {COPY}"
    async with manager.acquire() as connection:
        assert await copy_in(connection, statements, [stream(1, 2, 3)], 10) == "COPY 3"
        assert await connection.fetchval("SHOW application_name") != "copying"
    assert (await stored(manager, "told"), await stored(manager, "copied")) == ([7], [1, 2, 3])


@pytest.mark.parametrize("n_pieces", [1, 2, 3, 7])
async def test_a_stream_in_pieces_is_the_same_stream(manager: DatabaseManager, n_pieces: int) -> None:
    whole = stream(*range(100))
    size = -(-len(whole) // n_pieces)
    async with manager.acquire() as connection:
        pieces = (whole[at : at + size] for at in range(0, len(whole), size))
        assert await copy_in(connection, COPY, pieces, None) == "COPY 100"
    assert await manager.copy_binary_to_table("told", ["id"], iter([whole])) == 100
    assert await stored(manager, "copied") == await stored(manager, "told") == list(range(100))


@pytest.mark.parametrize(
    ("statements", "chunks", "error"),
    [
        pytest.param(f"INSERT INTO told VALUES (0); {COPY}", [stream(1)], asyncpg.UniqueViolationError, id="before"),
        pytest.param(f"INSERT INTO told VALUES (1); {COPY}", [stream(1, 1)], asyncpg.UniqueViolationError, id="copy"),
        pytest.param(f"INSERT INTO told VALUES (1); {COPY}", [], asyncpg.BadCopyFileFormatError, id="no bytes"),
        pytest.param(f"INSERT INTO told VALUES (1); {COPY}; SELECT 1 / 0", [stream(1)], asyncpg.DivisionByZeroError),
        pytest.param("nonsense; " + COPY, [stream(1), stream(2)], asyncpg.PostgresSyntaxError, id="syntax"),
    ],
)
async def test_what_the_server_refuses_anywhere_takes_all_of_it_back(
    manager: DatabaseManager, statements: str, chunks: list[bytes], error: type[Exception]
) -> None:
    await manager.execute("INSERT INTO told VALUES (0)")
    async with manager.acquire() as connection:
        with pytest.raises(error):
            await copy_in(connection, statements, chunks, 10)
        assert not connection.is_in_transaction()
        assert await connection.fetchval("SELECT 1") == 1  # it is used on
    assert (await stored(manager, "told"), await stored(manager, "copied")) == ([0], [])


async def test_inside_a_transaction_its_end_decides(manager: DatabaseManager) -> None:
    async with manager.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await copy_in(connection, COPY, [stream(1)], 10)
        assert connection.is_in_transaction()
        await transaction.rollback()
    assert await stored(manager, "copied") == []


async def test_deadline_ends_it(manager: DatabaseManager) -> None:
    async with manager.acquire() as connection:
        with pytest.raises(TimeoutError):
            await copy_in(connection, f"SELECT pg_sleep(20); {COPY}", [stream(1)], 0.1)
    assert await stored(manager, "copied") == []


async def test_lost_connection_is_an_error_of_the_driver(manager: DatabaseManager, config: DatabaseConfig) -> None:
    async with manager.acquire() as connection:
        pass
    await _assert_refused(connection)  # the pool has it back
    bare = await connect(config)
    assert await copy_in(bare, COPY, [stream(1)], 10) == "COPY 1"
    await bare.close()
    await _assert_refused(bare)
    assert await stored(manager, "copied") == [1]


async def _assert_refused(connection: Any) -> None:
    with pytest.raises(asyncpg.InterfaceError):
        await copy_in(connection, COPY, [stream(2)], 10)
