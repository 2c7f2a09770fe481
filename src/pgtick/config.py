"""Where the database is: DatabaseConfig, and HftConfig, which reads it from the environment.

Which wins, first to last: a DSN in PGTICK_DSN, POSTGRES_* variables, the standard PG* variables, the same names
in a ``.env`` file, the service file (PGSERVICE), defaults. A password that is nowhere is looked for in .pgpass.
"""

from __future__ import annotations

import configparser
import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from pgtick.errors import ConfigError

__all__ = ["DatabaseConfig", "HftConfig"]

logger = logging.getLogger(__name__)

_SSL_MODES = ("disable", "require", "verify-ca", "verify-full")
_ENGINES = ("auto", "plain", "timescale", "citus")


class DatabaseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a connection needs. The password is never part of repr, logs or errors.

    ``host`` starting with ``/`` is the folder of a Unix socket. ``sslmode`` None means: none for local hosts,
    verify-full for every other. ``pooler``: a transaction pooler (pgbouncer) is in between, so no statement
    cache and no LISTEN. ``maintenance_interval_s`` 0 switches the service's own maintenance off.
    """

    host: str
    database: str
    user: str
    port: int = 5432
    password: str | None = None
    passfile: str | None = None
    sslmode: str | None = None
    sslrootcert: str | None = None
    connect_timeout_s: float = 10.0
    acquire_timeout_s: float = 10.0
    statement_timeout_s: float = 30.0
    min_connections: int = 1
    max_connections: int = 5
    pooler: bool = False
    listen: bool = True
    engine: str = "auto"
    migration_folders: tuple[str, ...] = ()
    maintenance_interval_s: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("host", "database", "user"):
            if not getattr(self, name):
                raise ConfigError(name, "must not be empty")
        if not 0 < self.port < 65536:
            raise ConfigError("port", "must be between 1 and 65535")
        if self.sslmode is not None and self.sslmode not in _SSL_MODES:
            raise ConfigError("sslmode", f"must be one of {', '.join(_SSL_MODES)}: others check nothing")
        if self.engine not in _ENGINES:
            raise ConfigError("engine", f"must be one of {', '.join(_ENGINES)}")
        for name in ("connect_timeout_s", "acquire_timeout_s", "statement_timeout_s", "max_connections"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, "must be > 0")

    def __repr__(self) -> str:
        return f"DatabaseConfig({self.to_dsn()})"

    @property
    def is_local(self) -> bool:
        """Whether the host is a Unix socket or this machine."""
        if self.host.startswith("/") or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @classmethod
    def from_dsn(cls, dsn: str, **overrides: Any) -> DatabaseConfig:
        """Read ``postgresql://user:password@host:port/database?sslmode=…``.

        The user part ends at the last ``@`` before ``?``, so a raw password may hold @, / and #; ``?`` and
        ``%`` in it are percent-encoded.
        """
        return cls(**{**_parse_dsn(dsn), **overrides})

    def to_dsn(self, *, with_password: bool = False) -> str:
        """Return the DSN; without the password unless it is asked for."""
        secret = f":{quote(self.password, safe='')}" if with_password and self.password else ""
        user, database = quote(self.user, safe=""), quote(self.database, safe="")
        if self.host.startswith("/"):
            return f"postgresql://{user}{secret}@:{self.port}/{database}?host={quote(self.host, safe='/')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        mode = f"?sslmode={self.sslmode}" if self.sslmode else ""
        return f"postgresql://{user}{secret}@{host}:{self.port}/{database}{mode}"

    def connect_kwargs(self) -> dict[str, Any]:
        """Return the arguments of asyncpg.connect."""
        kwargs: dict[str, Any] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "database": self.database,
            "ssl": self._ssl(),
            "timeout": self.connect_timeout_s,
            "command_timeout": self.statement_timeout_s,
            "statement_cache_size": 0 if self.pooler else 100,
        }
        if self.password is not None:
            kwargs["password"] = self.password
        elif self.passfile is not None:
            kwargs["passfile"] = self.passfile
        return kwargs

    def _ssl(self) -> ssl.SSLContext | bool:
        mode = self.sslmode or ("disable" if self.is_local else "verify-full")
        if mode == "disable" or self.host.startswith("/"):
            return False
        context = ssl.create_default_context(cafile=self.sslrootcert)
        context.check_hostname = mode == "verify-full"
        if mode == "require":
            context.verify_mode = ssl.CERT_NONE
        return context


def _parse_dsn(dsn: str) -> dict[str, Any]:
    scheme, separator, rest = dsn.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ConfigError("DSN", "must begin with postgresql://")
    before, _, query = rest.partition("?")
    userinfo, _, place = before.rpartition("@")
    hostport, _, database = place.partition("/")
    values: dict[str, Any] = {}
    user, colon, password = userinfo.partition(":")
    values["user"] = unquote(user)
    if colon and password:
        values["password"] = unquote(password)
    if "," in hostport:
        raise ConfigError("DSN", "names several hosts; name one")
    host, port = hostport, ""
    if hostport.startswith("["):
        host, _, port = hostport[1:].partition("]")
        port = port.removeprefix(":")
    elif ":" in hostport:
        host, _, port = hostport.rpartition(":")
    if port:
        if not port.isdigit():
            raise ConfigError("DSN", "the port is not a number; is a ? or % in the password not encoded?")
        values["port"] = int(port)
    values["host"] = unquote(host)
    values["database"] = unquote(database)
    for name, value in parse_qsl(query):
        if name in ("host", "user", "password", "sslmode", "sslrootcert", "passfile"):
            values[name] = value
        elif name == "port" and value.isdigit():
            values["port"] = int(value)
        elif name == "dbname":
            values["database"] = value
        else:
            raise ConfigError("DSN", f"parameter {name} is not known")
    values["host"] = values["host"] or "localhost"
    return values


# field, names in order of precedence
_VARIABLES = {
    "host": ("POSTGRES_HOST", "PGHOST"),
    "port": ("POSTGRES_PORT", "PGPORT"),
    "database": ("POSTGRES_DB", "PGDATABASE"),
    "user": ("POSTGRES_USER", "PGUSER"),
    "password": ("POSTGRES_PASSWORD", "PGPASSWORD"),
    "passfile": ("POSTGRES_PASSFILE", "PGPASSFILE"),
    "sslmode": ("POSTGRES_SSLMODE", "PGSSLMODE"),
    "sslrootcert": ("POSTGRES_SSLROOTCERT", "PGSSLROOTCERT"),
    "connect_timeout_s": ("POSTGRES_CONNECT_TIMEOUT", "PGCONNECT_TIMEOUT"),
    "acquire_timeout_s": ("POSTGRES_ACQUIRE_TIMEOUT",),
    "statement_timeout_s": ("POSTGRES_STATEMENT_TIMEOUT",),
    "max_connections": ("POSTGRES_MAX_CONNECTIONS",),
    "pooler": ("POSTGRES_POOLER",),
    "engine": ("POSTGRES_ENGINE",),
}
_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


class HftConfig:
    """The environment's configuration; ``env_file`` names another file than ./.env."""

    def __init__(self, env_file: str | Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._from_file = _read_env_file(env_file)

    def get_database_config(self) -> DatabaseConfig:
        """Return the configuration; ConfigError names a variable that is missing or malformed."""
        values: dict[str, Any] = self._service()
        for source in (self._from_file, self._environ):
            for field, names in _VARIABLES.items():
                for name in reversed(names):
                    if name in source:
                        values[field] = _convert(field, name, source[name])
            if source.get("PGTICK_DSN"):
                values.update(_parse_dsn(source["PGTICK_DSN"]))
        for field in ("host", "database", "user"):
            if field not in values:
                raise ConfigError(_VARIABLES[field][0], "is not set (nor " + ", ".join(_VARIABLES[field][1:]) + ")")
        return DatabaseConfig(**values)

    def _service(self) -> dict[str, Any]:
        name = self._environ.get("PGSERVICE") or self._from_file.get("PGSERVICE")
        if not name:
            return {}
        path = Path(self._environ.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf")
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(path)
        if name not in parser:
            raise ConfigError("PGSERVICE", f"service {name!r} is not in {path}")
        known = {"dbname": "database", **{field: field for field in _VARIABLES}}
        return {
            known[key]: _convert(known[key], f"{path}: {key}", value)
            for key, value in parser[name].items()
            if key in known
        }


def _convert(field: str, name: str, text: str) -> Any:
    if not text and field != "password":
        raise ConfigError(name, "is set and empty")
    try:
        if field in ("port", "max_connections"):
            return int(text)
        if field.endswith("_s"):
            return float(text)
        if field == "pooler":
            return _BOOLEANS[text.lower()]
    except (ValueError, KeyError):
        kind = "true or false" if field == "pooler" else "a number"
        raise ConfigError(name, f"must be {kind}") from None
    return text


def _read_env_file(env_file: str | Path | None) -> dict[str, str]:
    path = Path(env_file) if env_file is not None else Path(".env")
    if not path.is_file():
        if env_file is not None:
            raise ConfigError("env_file", f"{path} does not exist")
        return {}
    try:
        from dotenv import dotenv_values
    except ModuleNotFoundError:
        if env_file is not None:
            raise ConfigError("env_file", "needs python-dotenv: pip install 'pgtick[cli]'") from None
        logger.warning("./.env is not read: python-dotenv is missing (pip install 'pgtick[cli]')")
        return {}
    return {name: value for name, value in dotenv_values(path).items() if value is not None}
