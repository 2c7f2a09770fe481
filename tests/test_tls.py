"""TLS against a real server: what each sslmode takes and refuses. Debian's PostgreSQL has TLS, the embedded has not."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from no_secrets import SENTINEL, messages_of
from rows import make_symbol, ticker
from scratch import find_binary, free_port, hand_over, running, wait_until_ready

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, connect, get_db_manager, initialize_database
from pgtick.errors import NoHostError, NotInitializedError, UnavailableError
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

trustme = pytest.importorskip("trustme", reason="trustme is not installed")

PASSWORD = f"{SENTINEL} p@/#ss"
HOST = "localhost"  # resolves, and is in the certificate; 127.0.0.1 resolves too, and is not


@pytest.fixture(scope="module")
def authority() -> Any:
    return trustme.CA()


@contextmanager
def tls_server(certificate: Any) -> Iterator[tuple[int, Path]]:
    """Run a scratch cluster that takes nothing but TLS and a password; yield its port and its folder."""
    initdb, postgres = find_binary("initdb"), find_binary("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no initdb and postgres of the machine's own (Debian: postgresql)")
    uid = os.geteuid()
    if uid == 0:
        uid = pwd.getpwnam("postgres").pw_uid
    with tempfile.TemporaryDirectory(prefix="pgtick_tls") as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD, "utf-8")
        hand_over(folder, uid)
        data = folder / "data"
        subprocess.run(
            [initdb, "-D", data, "-U", "tester", "-A", "scram-sha-256", "--pwfile", folder / "password", "-N"],
            check=True,
            capture_output=True,
            cwd=folder,
            user=uid if os.geteuid() == 0 else None,
        )
        present(certificate, data)
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n", "utf-8")
        hand_over(data, uid)
        port = free_port()
        settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "ssl": "on"}
        options = [part for item in settings.items() for part in ("-c", f"{item[0]}={item[1]}")]
        with running([postgres, "-D", data, *options], uid, port, folder / "log"):
            wait_until_ready(data)
            yield port, data


def present(certificate: Any, data: Path) -> None:
    """Make it the certificate of the server, from its next start or reload on."""
    certificate.private_key_pem.write_to_path(data / "server.key")
    (data / "server.key").chmod(0o600)
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(data / "server.crt", append=number > 0)


@pytest.fixture(scope="module")
def port(authority: Any) -> Iterator[int]:
    with tls_server(authority.issue_cert(HOST)) as (port, _):
        yield port


@pytest.fixture(scope="module")
def root(authority: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("authority") / "root.crt"
    authority.cert_pem.write_to_path(path)
    return str(path)


async def is_encrypted(port: int | str, sslmode: str | None, root: str | None = None, host: str = HOST) -> bool:
    connection = await connect(
        DatabaseConfig(
            host=host, port=port, database="postgres", user="tester", password=PASSWORD,
            sslmode=sslmode, sslrootcert=root, connect_timeout_s=10,
        )
    )  # fmt: skip
    try:
        return bool(await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
    finally:
        await connection.close()


@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
async def test_right_certificate_is_taken_by_every_mode(port: int, root: str, sslmode: str) -> None:
    assert await is_encrypted(port, sslmode, root)


async def test_disable_goes_without_tls_and_is_refused_by_a_server_that_wants_it(port: int) -> None:
    for sslmode in ("disable", None):  # None: a local host
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="no encryption"):
            await is_encrypted(port, sslmode)


async def test_wrong_host_name_is_refused_by_verify_full_only(port: int, root: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"127\.0\.0\.1"):
        await is_encrypted(port, "verify-full", root, host="127.0.0.1")
    assert await is_encrypted(port, "verify-ca", root, host="127.0.0.1")


async def test_name_that_is_checked_is_that_of_the_host_connected_to(port: int, root: str) -> None:
    assert await is_encrypted(port, "verify-full", root, host=f"127.0.0.1,{HOST}")
    with pytest.raises(NoHostError, match=r"ConnectionRefusedError.*127\.0\.0\.1, port \d+: SSLCertVerificationError"):
        await is_encrypted(f"{free_port()},{port}", "verify-full", root, host=f"{HOST},127.0.0.1")


@pytest.mark.parametrize("sslmode", ["verify-ca", "verify-full"])
@pytest.mark.parametrize("known", [None, "system", "other"])
async def test_unknown_authority_is_refused(port: int, tmp_path: Path, sslmode: str, known: str | None) -> None:
    if known == "other":
        known = str(tmp_path / "other.crt")
        trustme.CA().cert_pem.write_to_path(known)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self-signed"):
        await is_encrypted(port, sslmode, known)


async def test_require_checks_nothing_unless_an_authority_is_named(port: int, tmp_path: Path) -> None:
    assert await is_encrypted(port, "require", host="127.0.0.1")
    other = tmp_path / "other.crt"
    trustme.CA().cert_pem.write_to_path(other)
    with pytest.raises(ssl.SSLCertVerificationError):
        await is_encrypted(port, "require", str(other))


def expired(authority: Any) -> Any:
    return authority.issue_cert(HOST, not_after=datetime.now(UTC) - timedelta(minutes=1))


async def test_expired_certificate_is_refused_by_the_modes_that_verify(authority: Any, root: str) -> None:
    with tls_server(expired(authority)) as (port, _):
        for sslmode in ("verify-ca", "verify-full"):
            with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
                await is_encrypted(port, sslmode, root)
        assert await is_encrypted(port, "require")


@pytest.mark.parametrize("sslmode", ["require", "verify-full"])
async def test_server_without_tls_is_refused_and_no_password_sent(sslmode: str) -> None:
    heard, over = bytearray(), asyncio.Event()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readexactly(8))
        writer.write(b"N")  # what a server built without TLS says
        heard.extend(await reader.read())
        writer.close()
        await writer.wait_closed()
        over.set()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as listening:
        with pytest.raises(ConnectionError, match="SSL"):
            await is_encrypted(listening.sockets[0].getsockname()[1], sslmode)
        await over.wait()
    assert heard == b"\0\0\0\x08\x04\xd2\x16\x2f"  # SSLRequest and nothing else


# --- the whole way: initialize_database and Writer, on the defaults as far as a server of this machine can ---


def writing(port: int, root: str | None, host: str = HOST) -> DatabaseConfig:
    """Return what a remote server would get by default, verify-full; only local hosts have to ask for it."""
    return DatabaseConfig(
        host=host, port=port, database="postgres", user="tester", password=PASSWORD, sslmode="verify-full",
        sslrootcert=root, maintenance_interval_s=0, connect_timeout_s=5,
    )  # fmt: skip


async def test_right_certificate_lets_a_writer_store_its_batch_over_tls_alone(port: int, root: str) -> None:
    async with opened(writing(port, root)) as db:
        symbol_id = await make_symbol()
        async with Writer(db, max_age_s=60, spool=False) as writer:
            await writer.add_many(BOOK_TICKERS, [ticker(symbol_id, sequence_number=n) for n in range(100)])
            await writer.flush()
            assert (writer.counts[BOOK_TICKERS.name].n_stored, writer.n_waiting) == (100, 0)
        clients = "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1"
        record = await db.fetchrow(clients, "tester")
        assert record is not None
        assert record[0]
        assert record[1] >= 2  # the pool's and the listener's


@asynccontextmanager
async def opened(config: DatabaseConfig) -> AsyncIterator[DatabaseManager]:
    db = await initialize_database(config)
    try:
        yield db
    finally:
        await db.close()


class Overheard:
    """A relay to a server of this machine, which keeps what the clients send."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.sent: list[bytearray] = []
        self._ended: list[asyncio.Event] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self._relay, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]
            for ended in self._ended:
                await ended.wait()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard, ended = bytearray(), asyncio.Event()
        self._ended.append(ended)
        self.sent.append(heard)
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray | None) -> None:
            with suppress(OSError):
                while data := await source.read(65536):
                    if kept is not None:
                        kept.extend(data)
                    sink.write(data)
                    await sink.drain()
            sink.close()
            with suppress(OSError):
                await sink.wait_closed()

        await asyncio.gather(pump(reader, there_writer, heard), pump(there_reader, writer, None))
        ended.set()


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("expired", "certificate has expired"),
        ("wrong name", "Hostname mismatch"),
        ("unknown authority", "unable to get local issuer|self-signed"),
    ],
)
async def test_start_on_a_certificate_that_is_not_right_is_refused_and_sends_nothing_in_the_clear(
    authority: Any, port: int, root: str, tmp_path: Path, trouble: str, told: str
) -> None:
    with ExitStack() as servers:
        if trouble == "expired":
            port, _ = servers.enter_context(tls_server(expired(authority)))
        elif trouble == "wrong name":
            port, _ = servers.enter_context(tls_server(authority.issue_cert("db.example.com")))
        else:
            root = str(tmp_path / "other.crt")
            trustme.CA().cert_pem.write_to_path(root)
        relay = Overheard(port)
        async with relay.listening() as relayed:
            with pytest.raises(ssl.SSLCertVerificationError, match=told):
                await initialize_database(writing(relayed, root))
            with pytest.raises(NotInitializedError):
                get_db_manager()
    assert relay.sent
    for sent in relay.sent:
        assert sent[:8] == b"\0\0\0\x08\x04\xd2\x16\x2f"  # SSLRequest, then records of TLS and nothing else
        assert records_of_tls(sent[8:])
        assert b"tester" not in sent
        assert PASSWORD.encode() not in sent


def records_of_tls(data: bytes | bytearray) -> bool:
    """Return whether the bytes are whole records of TLS."""
    at = 0
    while at < len(data):
        if data[at] not in (20, 21, 22, 23) or data[at + 1] != 3:
            return False
        at += 5 + int.from_bytes(data[at + 3 : at + 5])
    return at == len(data)


async def test_rows_are_kept_while_the_certificate_is_expired_and_stored_when_it_is_right_again(
    authority: Any, root: str, tmp_path: Path
) -> None:
    right = authority.issue_cert(HOST)
    with tls_server(right) as (port, data):
        async with opened(writing(port, root)) as db:
            symbol_id = await make_symbol()
            writer = Writer(db, max_age_s=60, retry_s=0.5, spool=False)
            await swap(db, expired(authority), data)
            await writer.add_many(BOOK_TICKERS, [ticker(symbol_id, sequence_number=n) for n in range(50)])
            with pytest.raises(UnavailableError) as caught:
                await writer.flush()
            assert "certificate has expired" in messages_of(caught.value)
            assert writer.n_waiting == 50
            present(right, data)
            os.kill(int((data / "postmaster.pid").read_text("utf-8").split("\n")[0]), signal.SIGHUP)
            await until(db.config, is_taken=True)
            await writer.flush()
            assert (writer.counts[BOOK_TICKERS.name].n_stored, writer.n_waiting) == (50, 0)
            await writer.close()
            assert await db.fetchval("SELECT count(*) FROM book_ticker_snapshots") == 50


async def swap(db: DatabaseManager, certificate: Any, data: Path) -> None:
    """Give the server another certificate and cut all connections."""
    present(certificate, data)
    await db.execute("SELECT pg_reload_conf()")
    await until(db.config, is_taken=False)
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1 AND pid <> pg_backend_pid()"
    await db.execute(others, "tester")
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        await db.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def until(config: DatabaseConfig, *, is_taken: bool) -> None:
    """Wait until the server has read its certificate again, which makes new connections fail or not."""
    async with asyncio.timeout(20):
        while True:
            try:
                await (await connect(config)).close()
                taken = True
            except ssl.SSLCertVerificationError:
                taken = False
            if taken is is_taken:
                return
            await asyncio.sleep(0.05)
