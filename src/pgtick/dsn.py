"""Settings as texts: a DSN's parts, and what the text of a setting means."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from pgtick.errors import ConfigError

__all__ = ["LIBPQ_NAMES", "WHOLE", "convert", "parse_dsn"]

#: The settings that are whole numbers.
WHOLE = ("port", "min_connections", "max_connections")

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

#: What libpq calls them, in a DSN's parameters and in the service file.
LIBPQ_NAMES = {
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


def parse_dsn(dsn: str, name: str = "DSN") -> dict[str, Any]:
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
    values = {field: convert(field, name, unquote(part)) for field, part in parts.items() if part}
    for parameter in filter(None, query.split("&")):
        key, _, text = parameter.partition("=")
        if key not in LIBPQ_NAMES:
            raise ConfigError(name, f"has a parameter that is not one of {', '.join(LIBPQ_NAMES)}")
        field = LIBPQ_NAMES[key]
        values[field] = convert(field, f"{name}, parameter {key}", unquote(text))
    return values


def convert(field: str, name: str, text: str) -> Any:
    """Return the value of the field that ``text``, found under ``name``, gives; no error quotes the text."""
    if not text:
        raise ConfigError(name, "is set and empty; unset it to leave it out")
    if field in WHOLE:
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
