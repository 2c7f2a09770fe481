"""Settings as texts: a DSN's parts, and what the text of a setting means."""

from __future__ import annotations

import ipaddress
import os
import re
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote

from pgtick.errors import ConfigError

__all__ = [
    "LIBPQ_NAMES",
    "WHOLE",
    "check_host",
    "checked_ports",
    "convert",
    "host_in_dsn",
    "is_local_host",
    "parse_dsn",
]

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

#: That of a host which names none in a list where others do.
DEFAULT_PORT = "5432"

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
    "target_session_attrs": "target_session_attrs",
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
    host, port = _split_places(hostport, name)
    parts = {"user": unquote(user), "password": unquote(password), "host": host, "port": port}
    parts["database"] = unquote(database)
    values = {field: convert(field, name, part) for field, part in parts.items() if part}
    for parameter in filter(None, query.split("&")):
        key, _, text = parameter.partition("=")
        if key not in LIBPQ_NAMES:
            raise ConfigError(name, f"has a parameter that is not one of {', '.join(LIBPQ_NAMES)}")
        field = LIBPQ_NAMES[key]
        values[field] = convert(field, f"{name}, parameter {key}", unquote(text))
    return values


def _split_places(text: str, name: str) -> tuple[str, str]:
    """Return the hosts and the ports of ``host:port,[host]:port,…``, each parted by commas."""
    hosts, ports = [], []
    for place in text.split(","):
        host, port = place, ""
        if place.startswith("["):
            host, _, port = place[1:].partition("]")
            port = port.removeprefix(":")
        elif ":" in place:
            host, _, port = place.rpartition(":")
        if port and not (port.isascii() and port.isdigit()):
            raise ConfigError(name, "the port is not a number; is a ?, % or / in the password not encoded?")
        hosts.append(unquote(host))
        ports.append(port)
    if len(ports) == 1 or not any(ports):
        return ",".join(hosts), ports[0]
    return ",".join(hosts), ",".join(port or DEFAULT_PORT for port in ports)


def convert(field: str, name: str, text: str) -> Any:
    """Return the value of the field that ``text``, found under ``name``, gives; no error quotes the text."""
    if not text:
        raise ConfigError(name, "is set and empty; unset it to leave it out")
    if field == "port" and "," in text:
        return text  # a list, which DatabaseConfig checks beside its hosts
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


def check_host(host: str) -> None:
    """Refuse what is no single host; no error quotes it, since a whole DSN may stand there."""
    if not host:
        raise ConfigError("host", "has an empty name in its list")
    if host.startswith("/"):
        return
    if ":" in host and not _is_address(host):
        raise ConfigError("host", "has a colon and is no IPv6 address: the port is a setting of its own (port)")
    if any(character.isspace() or character in "/@[]" for character in host):
        raise ConfigError("host", "has a space, a slash, an @ or a bracket: give the name or the address alone")


def checked_ports(port: object, n_hosts: int) -> int | str:
    """Return the port, or the ports of the hosts as a list parted by commas where they differ."""
    if isinstance(port, str) and re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5})+", port):
        ports = [int(part) for part in port.split(",")]
    elif isinstance(port, int) and not isinstance(port, bool):
        ports = [port]
    else:
        raise ConfigError("port", "must be a whole number, or whole numbers parted by commas")
    if not all(0 < number < 65536 for number in ports):
        raise ConfigError("port", "must be between 1 and 65535")
    if len(ports) not in (1, n_hosts):
        raise ConfigError("port", f"must be one for all hosts or one for each ({n_hosts} hosts, {len(ports)} ports)")
    return ports[0] if len(set(ports)) == 1 else ",".join(map(str, ports))


def is_local_host(host: str) -> bool:
    """Return whether it is a Unix socket or this machine."""
    if host.startswith("/") or host == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def host_in_dsn(host: str) -> str:
    """Return the host as it stands in a DSN."""
    return f"[{host}]" if ":" in host and not host.startswith("/") else quote(host, safe="")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
