"""The way to a server: the one host, or the first of several that is what is asked for."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from pgtick.config import DatabaseConfig
from pgtick.errors import ConnectTimeoutError, NoHostError

__all__ = ["Connector", "connect", "is_fit"]

_WRONG_KIND = asyncpg.TargetServerAttributeNotMatched
# After any other error the next host would say the same: libpq too stops at a wrong password.
_NEXT = (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, _WRONG_KIND)


class Connector:
    """Opens connections to the first host that serves, the one that served last asked first.

    So a host that hangs costs one connection its share of ``connect_timeout_s``, not every one. A share is what is
    left of it, divided by the hosts that are still to be asked.
    """

    def __init__(self, config: DatabaseConfig) -> None:
        self.config = config
        self._arguments = [one.connect_kwargs() for one in config.each_host()]
        self._served_last = 0

    async def __call__(self, _: None = None, **given: Any) -> Any:
        """Open a connection; ConnectTimeoutError when the deadline passes, NoHostError when no host serves."""
        now = asyncio.get_running_loop().time
        end = now() + self.config.connect_timeout_s
        attrs = self.config.session_attrs
        n_hosts = len(self._arguments)
        rest = [(self._served_last + step) % n_hosts for step in range(n_hosts)]
        problems: dict[int, Exception] = {}
        for wanted, spare in (("standby", 1), ("any", 0)) if attrs == "prefer-standby" else ((attrs, 0),):
            for asked, index in enumerate(rest):
                timeout_s = (end - now()) / (len(rest) - asked + spare)
                arguments = {**self._arguments[index], **given, "target_session_attrs": wanted, "timeout": timeout_s}
                try:
                    connection = await asyncpg.connect(**arguments)
                except _NEXT as error:
                    if n_hosts == 1 and not isinstance(error, (TimeoutError, _WRONG_KIND)):
                        raise
                    problems[index] = error
                    continue
                self._served_last = index
                return connection
            rest = [index for index in rest if isinstance(problems[index], _WRONG_KIND)]
        raise self._error(problems) from list(problems.values())[-1]

    def _error(self, problems: dict[int, Exception]) -> Exception:
        config = self.config
        if all(isinstance(error, TimeoutError) for error in problems.values()):
            place = f"{config.host}, port {config.port}"
            return ConnectTimeoutError(f"no answer from {place}, in {config.connect_timeout_s:g} s")
        told = []
        for index, error in sorted(problems.items()):
            reason = "no answer" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            host, port = config.hosts[index]
            told.append(f"{host}, port {port}: {'it is not' if isinstance(error, _WRONG_KIND) else reason}")
        return NoHostError(f"no host that is {config.session_attrs}: {'; '.join(told)}")


async def connect(config: DatabaseConfig) -> Any:
    """Open a connection outside of any pool, as a Connector does."""
    return await Connector(config)()


def is_fit(connection: Any, attrs: str) -> bool:
    """Return whether the server, by what it has told so far, still takes writes where ``attrs`` asks for that."""
    if attrs != "read-write":
        return True
    try:
        told = connection.get_settings()
    except asyncpg.InterfaceError:  # it is lost, and the pool has it back already
        return True
    return getattr(told, "default_transaction_read_only", "off") == "off"
