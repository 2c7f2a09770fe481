"""Where the database is: DatabaseConfig, and HftConfig, which reads it from the environment.

Which wins, first to last: in the environment the DSN in PGTICK_DSN, POSTGRES_* variables, the standard PG*
variables; then the same names in a ``.env`` file, in the same order; then the service file (PGSERVICE); then the
defaults. What a DSN leaves out is taken from what follows it. A config without a password looks for it when it
connects: in PGPASSWORD, then in the password file (``passfile``, PGPASSFILE, ~/.pgpass).

``docs/configuration.md`` lists every variable.
"""

from __future__ import annotations

import configparser
import ipaddress
import logging
import math
import os
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from pgtick.errors import ConfigError

__all__ = ["DatabaseConfig", "HftConfig"]

logger = logging.getLogger(__name__)

_SSL_MODES = ("disable", "require", "verify-ca", "verify-full")
_ENGINES = ("auto", "plain", "timescale", "citus")
_TEXTS = ("host", "database", "user", "password", "passfile", "sslmode", "sslrootcert", "engine", "verify")
_POSITIVE = (
    *("connect_timeout_s", "acquire_timeout_s", "statement_timeout_s", "max_connections"),
    *("migration_wait_s", "migration_lock_timeout_s", "migration_statement_timeout_s"),
)
_NOT_NEGATIVE = ("min_connections", "maintenance_interval_s")
_WHOLE = ("port", "min_connections", "max_connections")


class DatabaseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a connection needs. The password is never part of repr, logs or errors.

    ``host`` starting with ``/`` is the folder of a Unix socket. ``sslmode`` None means: none for local hosts,
    verify-full for every other; ``require`` encrypts and checks nothing, unless ``sslrootcert`` is given, which makes
    it verify-ca as in libpq. Without ``sslrootcert`` (or with "system") the machine's own authorities are trusted.
    ``pooler``: a transaction pooler (pgbouncer) is in between, so no statement cache and no LISTEN.
    ``maintenance_interval_s`` 0 switches the service's own maintenance off.
    ``maintenance_interval_s`` 0 switches the service's own maintenance off. ``migration_wait_s`` is how long a migrator
    waits for another one; the statements of a migration have deadlines of their own.
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
    verify: str = "warn"
    migration_wait_s: float = 60.0
    migration_lock_timeout_s: float = 5.0
    migration_statement_timeout_s: float = 86_400.0

    def __post_init__(self) -> None:
        for name in _TEXTS:
            _check_text(name, getattr(self, name), optional=name in ("password", "passfile", "sslmode", "sslrootcert"))
        for name in ("port", *_POSITIVE, *_NOT_NEGATIVE):
            _check_number(name, getattr(self, name))
        if not 0 < self.port < 65536:
            raise ConfigError("port", "must be between 1 and 65535")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(name, "must be > 0")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ConfigError(name, "must be >= 0")
        if self.min_connections > self.max_connections:
            raise ConfigError("min_connections", f"must be <= max_connections ({self.max_connections})")
        if self.sslmode is not None and self.sslmode not in _SSL_MODES:
            rule = f"must be one of {', '.join(_SSL_MODES)}: allow and prefer go on unencrypted without a word"
            raise ConfigError("sslmode", rule)
        for name, known in (("engine", _ENGINES), ("verify", ("off", "warn", "refuse"))):
            if getattr(self, name) not in known:
                raise ConfigError(name, f"must be one of {', '.join(known)}")

    def __repr__(self) -> str:
        return f"DatabaseConfig({self.to_dsn()})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("dsn", self.to_dsn())]  # msgspec's own shows every field, the password too

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
        """Read ``postgresql://user:password@host:port/database?sslmode=…``; the host may be left out (localhost).

        The user part ends at the last ``@`` before ``?``, so a raw password may hold @, /, : and #; ``?`` and
        ``%`` in it are percent-encoded. Parameters: host, port, user, password, dbname, passfile, sslmode,
        sslrootcert, connect_timeout.
        """
        values = {"host": "localhost", **_parse_dsn(dsn), **overrides}
        for name in ("user", "database"):
            if name not in values:
                raise ConfigError("DSN", f"names no {name}")
        return cls(**values)

    def to_dsn(self, *, with_password: bool = False) -> str:
        """Return the DSN, which libpq's programs understand too; without the password unless it is asked for."""
        secret = f":{quote(self.password, safe='')}" if with_password and self.password else ""
        user, database = quote(self.user, safe=""), quote(self.database, safe="")
        is_socket = self.host.startswith("/")
        host = "" if is_socket else f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        given = {
            "host": self.host if is_socket else None,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "passfile": self.passfile,
        }
        query = "&".join(f"{name}={quote(value, safe='/')}" for name, value in given.items() if value)
        return f"postgresql://{user}{secret}@{host}:{self.port}/{database}{'?' if query else ''}{query}"

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
        password = self.password or os.environ.get("PGPASSWORD") or self._password_from_file()
        if password is not None:
            kwargs["password"] = password
        elif self.passfile is not None:
            kwargs["passfile"] = self.passfile
        return kwargs

    def _password_from_file(self) -> str | None:
        # Not asyncpg's reader: it leaves the backslashes before : and \ in the password.
        path = Path(self.passfile or os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")
        if not path.is_file():
            return None
        if os.name == "posix" and path.stat().st_mode & 0o077:
            return None  # asyncpg warns of it
        hosts = {self.host, "localhost"} if self.host.startswith("/") else {self.host}
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ConfigError("passfile", f"{path} is not UTF-8") from None  # the error holds the file's bytes
        for line in lines:
            fields = [re.sub(r"\\(.)", r"\1", field) for field in re.findall(r"((?:\\.|[^:\\])*)(?::|$)", line)]
            wanted = zip(fields, (hosts, {str(self.port)}, {self.database}, {self.user}), strict=False)
            if len(fields) > 4 and not line.startswith("#") and all(f == "*" or f in known for f, known in wanted):
                return fields[4] or None
        return None

    def _ssl(self) -> ssl.SSLContext | bool:
        mode = self.sslmode or ("disable" if self.is_local else "verify-full")
        if mode == "disable" or self.host.startswith("/"):
            return False
        try:
            context = ssl.create_default_context(cafile=None if self.sslrootcert == "system" else self.sslrootcert)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError("sslrootcert", f"{self.sslrootcert} cannot be read: {error}") from error
        context.check_hostname = mode == "verify-full"
        if mode == "require" and self.sslrootcert is None:
            context.verify_mode = ssl.CERT_NONE
        return context


def _check_text(name: str, value: object, *, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str):
        raise ConfigError(name, "must be a str")
    if not value:
        raise ConfigError(name, "must not be empty" + (" (leave it out instead)" if optional else ""))
    # Not by encode(): its error would carry the text, which may be the password.
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(name, "must be text without NUL that UTF-8 can encode")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int if name in _WHOLE else int | float):
        raise ConfigError(name, "must be a whole number" if name in _WHOLE else "must be a number")
    if not math.isfinite(value):
        raise ConfigError(name, "must be finite")


# What libpq calls it, in a DSN's parameters and in the service file.
_LIBPQ_NAMES = {
    "host": "host",
    "port": "port",
    "user": "user",
    "password": "password",
    "dbname": "database",
    "passfile": "passfile",
    "sslmode": "sslmode",
    "sslrootcert": "sslrootcert",
    "connect_timeout": "connect_timeout_s",
}


def _parse_dsn(dsn: str, name: str = "DSN") -> dict[str, Any]:
    """Return the fields that the DSN gives. No error quotes any part of it: each may be a piece of the password."""
    scheme, separator, rest = dsn.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ConfigError(name, "must begin with postgresql://")
    before, _, query = rest.partition("?")
    if "@" in query:
        raise ConfigError(name, "has an @ after the ?; percent-encode the ? of the password (%3F), or that @ (%40)")
    userinfo, _, place = before.rpartition("@")
    hostport, _, database = place.partition("/")
    user, _, password = userinfo.partition(":")
    if "," in hostport:
        raise ConfigError(name, "names several hosts; name one")
    host, port = hostport, ""
    if hostport.startswith("["):
        host, _, port = hostport[1:].partition("]")
        port = port.removeprefix(":")
    elif ":" in hostport:
        host, _, port = hostport.rpartition(":")
    if port and not (port.isascii() and port.isdigit()):
        raise ConfigError(name, "the port is not a number; is a ?, % or / in the password not encoded?")
    parts = {"user": user, "password": password, "host": host, "port": port, "database": database}
    values = {field: _convert(field, name, unquote(part)) for field, part in parts.items() if part}
    for parameter in filter(None, query.split("&")):
        key, _, text = parameter.partition("=")
        if key not in _LIBPQ_NAMES:
            raise ConfigError(name, f"has a parameter that is not one of {', '.join(_LIBPQ_NAMES)}")
        field = _LIBPQ_NAMES[key]
        values[field] = _convert(field, f"{name}, parameter {key}", unquote(text))
    return values


# field: names in order of precedence. docs/configuration.md says the same, a test compares.
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
    "min_connections": ("POSTGRES_MIN_CONNECTIONS",),
    "max_connections": ("POSTGRES_MAX_CONNECTIONS",),
    "pooler": ("POSTGRES_POOLER",),
    "listen": ("POSTGRES_LISTEN",),
    "engine": ("POSTGRES_ENGINE",),
    "migration_folders": ("POSTGRES_MIGRATION_FOLDERS",),
    "maintenance_interval_s": ("POSTGRES_MAINTENANCE_INTERVAL",),
    "verify": ("POSTGRES_VERIFY",),
    "migration_wait_s": ("POSTGRES_MIGRATION_WAIT",),
    "migration_lock_timeout_s": ("POSTGRES_MIGRATION_LOCK_TIMEOUT",),
    "migration_statement_timeout_s": ("POSTGRES_MIGRATION_STATEMENT_TIMEOUT",),
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
        """Return the configuration; ConfigError names a variable that is missing, empty or malformed."""
        values, origins = self._service()
        for source in (self._from_file, self._environ):
            for field, names in _VARIABLES.items():
                name = next((name for name in names if name in source), None)
                if name is not None:
                    values[field] = _convert(field, name, source[name])
                    origins[field] = name
            if "PGTICK_DSN" in source:
                from_dsn = _parse_dsn(_convert("dsn", "PGTICK_DSN", source["PGTICK_DSN"]), "PGTICK_DSN")
                values.update(from_dsn)
                values.setdefault("host", "localhost")
                origins.update(dict.fromkeys(from_dsn, "PGTICK_DSN"))
        for field in ("host", "database", "user"):
            if field not in values:
                first, *others = _VARIABLES[field]
                raise ConfigError(first, f"is not set (nor {', '.join(others)}, nor in PGTICK_DSN, .env or a service)")
        return _named_by_origin(values, origins)

    def _service(self) -> tuple[dict[str, Any], dict[str, str]]:
        known = {**self._from_file, **self._environ}
        name = known.get("PGSERVICE")
        if not name:
            return {}, {}
        path = Path(known.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf")
        parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="")
        problem = ""
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            # Not from it: its message quotes lines of the file.
            line = getattr(error, "lineno", None) or next((number for number, _ in getattr(error, "errors", ())), None)
            problem = f"{path} cannot be read ({type(error).__name__}{f', line {line}' if line else ''})"
        if not problem and name not in parser:
            problem = f"service {name!r} is not in {path}"
        if problem:
            raise ConfigError("PGSERVICE", problem)
        texts = {key: value for key, value in parser[name].items() if key in _LIBPQ_NAMES}
        origins = {_LIBPQ_NAMES[key]: f"{path}, [{name}] {key}" for key in texts}
        fields = {_LIBPQ_NAMES[key]: value for key, value in texts.items()}
        return {field: _convert(field, origins[field], text) for field, text in fields.items()}, origins


def _named_by_origin(values: dict[str, Any], origins: dict[str, str]) -> DatabaseConfig:
    try:
        return DatabaseConfig(**values)
    except ConfigError as error:
        raise ConfigError(origins.get(error.setting, error.setting), error.rule) from None


def _convert(field: str, name: str, text: str) -> Any:
    if not text:
        raise ConfigError(name, "is set and empty; unset it to leave it out")
    if field in _WHOLE:
        with suppress(ValueError):
            return int(text)
        raise ConfigError(name, "must be a whole number")
    if field.endswith("_s"):
        with suppress(ValueError):
            return float(text)
        raise ConfigError(name, "must be a number of seconds")
    if field in ("pooler", "listen"):
        if text.lower() not in _BOOLEANS:
            raise ConfigError(name, f"must be one of {', '.join(_BOOLEANS)}")
        return _BOOLEANS[text.lower()]
    if field == "migration_folders":
        return tuple(filter(None, text.split(os.pathsep)))
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
    try:
        # A password may hold ${…}, which is not for interpolating.
        found = dotenv_values(path, interpolate=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("env_file", f"{path} cannot be read ({type(error).__name__})") from None
    return {name: value for name, value in found.items() if value is not None}
