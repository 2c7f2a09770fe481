"""TLS against a real server: what each sslmode takes and refuses. Debian's PostgreSQL has TLS, the embedded has not."""

from __future__ import annotations

import asyncio
import os
import pwd
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from no_secrets import SENTINEL
from scratch import find_binary, free_port, hand_over, running

from pgtick.config import DatabaseConfig
from pgtick.connection import connect, initialize_database
from pgtick.errors import NoHostError

trustme = pytest.importorskip("trustme", reason="trustme is not installed")

PASSWORD = f"{SENTINEL} p@/#ss"
HOST = "localhost"  # resolves, and is in the certificate; 127.0.0.1 resolves too, and is not


@pytest.fixture(scope="module")
def authority() -> Any:
    return trustme.CA()


@contextmanager
def tls_server(certificate: Any) -> Iterator[int]:
    """Run a scratch cluster that takes nothing but TLS and a password; yield its port."""
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
        certificate.private_key_pem.write_to_path(data / "server.key")
        for number, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(data / "server.crt", append=number > 0)
        (data / "server.key").chmod(0o600)
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 scram-sha-256\n", "utf-8")
        hand_over(data, uid)
        port = free_port()
        settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "ssl": "on"}
        options = [part for item in settings.items() for part in ("-c", f"{item[0]}={item[1]}")]
        with running([postgres, "-D", data, *options], uid, port, folder / "log"):
            yield port


@pytest.fixture(scope="module")
def port(authority: Any) -> Iterator[int]:
    with tls_server(authority.issue_cert(HOST)) as port:
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


async def test_expired_certificate_is_refused_by_the_modes_that_verify(authority: Any, root: str) -> None:
    expired = authority.issue_cert(HOST, not_after=datetime.now(UTC) - timedelta(minutes=1))
    with tls_server(expired) as port:
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


async def test_whole_start_runs_encrypted(port: int, root: str) -> None:
    db = await initialize_database(
        DatabaseConfig(
            host=HOST, port=port, database="postgres", user="tester", password=PASSWORD,
            sslmode="verify-full", sslrootcert=root,
        )
    )  # fmt: skip
    try:
        clients = "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1"
        row = await db.fetchrow(clients, "tester")
        assert row is not None
        assert row[0]
        assert row[1] >= 2  # the pool's and the listener's
    finally:
        await db.close()
