"""Where the database is: DatabaseConfig, and HftConfig, which reads it from the environment.

Which wins, first to last: in the environment the DSN in PGTICK_DSN, POSTGRES_* variables, the standard PG*
variables; then the same names in a ``.env`` file, in the same order; then the service file (PGSERVICE); then the
defaults. What a DSN leaves out is taken from what follows it. A config without a password looks for it when it
connects: in PGPASSWORD, then in the password file (``passfile``, PGPASSFILE, ~/.pgpass).

``docs/configuration.md`` lists every variable.
"""

from __future__ import annotations

import configparser
import logging
import math
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from pgtick.dsn import (
    LIBPQ_NAMES,
    WHOLE,
    check_host,
    checked_ports,
    convert,
    host_in_dsn,
    is_local_host,
    parse_dsn,
)
from pgtick.errors import ConfigError

__all__ = ["DatabaseConfig", "HftConfig"]

logger = logging.getLogger(__name__)

_SSL_MODES = ("disable", "require", "verify-ca", "verify-full")
_SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_ENGINES = ("auto", "plain", "timescale", "citus")
_VERIFY = ("off", "warn", "refuse")
_TEXTS = ("host", "database", "user", "engine", "verify")
_OPTIONAL_TEXTS = ("password", "passfile", "sslmode", "sslrootcert", "target_session_attrs")
_POSITIVE = (
    "connect_timeout_s",
    "acquire_timeout_s",
    "statement_timeout_s",
    "max_connections",
    "migration_wait_s",
    "migration_lock_timeout_s",
    "migration_statement_timeout_s",
)
_NOT_NEGATIVE = ("min_connections", "maintenance_interval_s")


class DatabaseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a connection needs. The password is never part of repr, logs or errors.

    ``host`` starting with ``/`` is the folder of a Unix socket. Several hosts are parted by commas, and so are their
    ports unless one serves for all; which of them will do is said by ``target_session_attrs``, None meaning
    read-write for several and any for one. ``sslmode`` None means: none where all hosts are local, else verify-full;
    ``require`` encrypts and checks nothing, unless ``sslrootcert`` is given, which makes it verify-ca as in libpq.
    Without ``sslrootcert`` (or with "system") the machine's own authorities are trusted.
    ``pooler``: a transaction pooler (pgbouncer) is in between, so no statement cache and no LISTEN.
    ``maintenance_interval_s`` 0 switches the service's own maintenance off. ``migration_wait_s`` is how long a migrator
    waits for another one; the statements of a migration have deadlines of their own. ``verify``: what a start does
    about a schema that is not the declared one: off, warn or refuse.
    """

    host: str
    database: str
    user: str
    port: int | str = 5432
    password: str | None = None
    passfile: str | None = None
    sslmode: str | None = None
    sslrootcert: str | None = None
    target_session_attrs: str | None = None
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
    migration_wait_s: float = 60.0
    migration_lock_timeout_s: float = 5.0
    migration_statement_timeout_s: float = 86_400.0
    verify: str = "warn"

    def __post_init__(self) -> None:
        for name in (*_TEXTS, *_OPTIONAL_TEXTS):
            _check_text(name, getattr(self, name), optional=name in _OPTIONAL_TEXTS)
        hosts = self.host.split(",")
        for host in hosts:
            check_host(host)
        # In one form, so that equal configs are equal.
        msgspec.structs.force_setattr(self, "port", checked_ports(self.port, len(hosts)))
        for name in (*_POSITIVE, *_NOT_NEGATIVE):
            _check_number(name, getattr(self, name))
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
        if self.target_session_attrs is not None and self.target_session_attrs not in _SESSION_ATTRS:
            raise ConfigError("target_session_attrs", f"must be one of {', '.join(_SESSION_ATTRS)}")
        if self.engine not in _ENGINES:
            raise ConfigError("engine", f"must be one of {', '.join(_ENGINES)}")
        if self.verify not in _VERIFY:
            raise ConfigError("verify", f"must be one of {', '.join(_VERIFY)}")

    def __repr__(self) -> str:
        return f"DatabaseConfig({self.to_dsn()})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("dsn", self.to_dsn())]  # msgspec's own shows every field, the password too

    @property
    def hosts(self) -> tuple[tuple[str, int], ...]:
        """Every host with its port."""
        names = self.host.split(",")
        ports = str(self.port).split(",")
        return tuple(zip(names, map(int, ports if len(ports) > 1 else ports * len(names)), strict=True))

    @property
    def is_local(self) -> bool:
        """Whether every host is a Unix socket or this machine."""
        return all(is_local_host(host) for host, _ in self.hosts)

    @property
    def session_attrs(self) -> str:
        """What a server must be to be connected to, with its default."""
        return self.target_session_attrs or ("read-write" if len(self.hosts) > 1 else "any")

    def each_host(self) -> tuple[DatabaseConfig, ...]:
        """Return one config a host, which connects to it as this one would."""
        return tuple(
            msgspec.structs.replace(
                self, host=host, port=port, sslmode=self._sslmode, target_session_attrs=self.session_attrs
            )
            for host, port in self.hosts
        )

    @classmethod
    def from_dsn(cls, dsn: str, **overrides: Any) -> DatabaseConfig:
        """Read ``postgresql://user:password@host:port,host:port/database?sslmode=…``; without a host, localhost.

        The user part ends at the last ``@`` before ``?``, so a raw password may hold @, /, : and #; ``?`` and
        ``%`` in it are percent-encoded. Parameters: host, port, user, password, dbname, passfile, sslmode,
        sslrootcert, connect_timeout, target_session_attrs.
        """
        values = {"host": "localhost", **parse_dsn(dsn), **overrides}
        for name in ("user", "database"):
            if name not in values:
                raise ConfigError("DSN", f"names no {name}")
        return cls(**values)

    def to_dsn(self, *, with_password: bool = False) -> str:
        """Return the DSN, which libpq's programs understand too; without the password unless it is asked for."""
        secret = f":{quote(self.password, safe='')}" if with_password and self.password else ""
        user, database = quote(self.user, safe=""), quote(self.database, safe="")
        is_socket = self.host.startswith("/") and "," not in self.host
        place = f":{self.port}" if is_socket else ",".join(f"{host_in_dsn(host)}:{port}" for host, port in self.hosts)
        given = {
            "host": self.host if is_socket else None,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "passfile": self.passfile,
            "target_session_attrs": self.target_session_attrs,
        }
        query = "&".join(f"{name}={quote(value, safe='/')}" for name, value in given.items() if value)
        return f"postgresql://{user}{secret}@{place}/{database}{'?' if query else ''}{query}"

    def connect_kwargs(self) -> dict[str, Any]:
        """Return the arguments of asyncpg.connect."""
        hosts, ports = zip(*self.hosts, strict=True)
        kwargs: dict[str, Any] = {
            "host": list(hosts),
            "port": list(ports),
            "target_session_attrs": self.session_attrs,  # always, or asyncpg reads PGTARGETSESSIONATTRS
            "user": self.user,
            "database": self.database,
            "ssl": self._ssl(),
            "timeout": self.connect_timeout_s,
            "command_timeout": self.statement_timeout_s,
            "statement_cache_size": 0 if self.pooler else 100,
            "server_settings": {"application_name": os.environ.get("PGAPPNAME") or "pgtick"},
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
        hosts = {host for host, _ in self.hosts} | {"localhost" for host, _ in self.hosts if host.startswith("/")}
        ports = {str(port) for _, port in self.hosts}
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ConfigError("passfile", f"{path} is not UTF-8") from None  # the error holds the file's bytes
        for line in lines:
            fields = [re.sub(r"\\(.)", r"\1", field) for field in re.findall(r"((?:\\.|[^:\\])*)(?::|$)", line)]
            wanted = zip(fields, (hosts, ports, {self.database}, {self.user}), strict=False)
            if len(fields) > 4 and not line.startswith("#") and all(f == "*" or f in known for f, known in wanted):
                return fields[4] or None
        return None

    @property
    def _sslmode(self) -> str:
        return self.sslmode or ("disable" if self.is_local else "verify-full")

    def _ssl(self) -> ssl.SSLContext | bool:
        mode = self._sslmode
        if mode == "disable" or all(host.startswith("/") for host, _ in self.hosts):
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
    if isinstance(value, bool) or not isinstance(value, int if name in WHOLE else int | float):
        raise ConfigError(name, "must be a whole number" if name in WHOLE else "must be a number")
    if not math.isfinite(value):
        raise ConfigError(name, "must be finite")


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
    "target_session_attrs": ("POSTGRES_TARGET_SESSION_ATTRS", "PGTARGETSESSIONATTRS"),
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
    "migration_wait_s": ("POSTGRES_MIGRATION_WAIT",),
    "migration_lock_timeout_s": ("POSTGRES_MIGRATION_LOCK_TIMEOUT",),
    "migration_statement_timeout_s": ("POSTGRES_MIGRATION_STATEMENT_TIMEOUT",),
    "verify": ("POSTGRES_VERIFY",),
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
                    values[field] = convert(field, name, source[name])
                    origins[field] = name
            if "PGTICK_DSN" in source:
                from_dsn = parse_dsn(convert("dsn", "PGTICK_DSN", source["PGTICK_DSN"]), "PGTICK_DSN")
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
        texts = {key: value for key, value in parser[name].items() if key in LIBPQ_NAMES}
        origins = {LIBPQ_NAMES[key]: f"{path}, [{name}] {key}" for key in texts}
        fields = {LIBPQ_NAMES[key]: value for key, value in texts.items()}
        return {field: convert(field, origins[field], text) for field, text in fields.items()}, origins


def _named_by_origin(values: dict[str, Any], origins: dict[str, str]) -> DatabaseConfig:
    try:
        return DatabaseConfig(**values)
    except ConfigError as error:
        raise ConfigError(origins.get(error.setting, error.setting), error.rule) from None


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
