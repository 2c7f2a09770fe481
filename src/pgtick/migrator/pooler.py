"""Notice a transaction pooler: behind it nothing of a migration can be relied on, least of all its lock."""

from __future__ import annotations

from typing import Any

from pgtick.connection import DatabaseManager, connect
from pgtick.errors import MigrationError

__all__ = ["refuse_transaction_pooler"]

_ROUNDS = 8
_WHO = "SELECT pg_backend_pid()"


async def refuse_transaction_pooler(db: DatabaseManager) -> None:
    """Raise MigrationError where one of the server's sessions is not one of the client's.

    ``db`` prepares nothing by name (``config.pooler``). A pooler that gives every client a session of its own is fine.
    """
    async with db.acquire() as connection:
        if await connection.fetchval(_WHO) == connection.get_server_pid():
            return  # the process that greeted us is the one that answers: nobody is in between
    if await _shares_sessions(db):
        raise MigrationError(
            f"there is a transaction pooler at {db.config.host}, port {db.config.port}: migrations want a direct "
            "connection (its lock and the steps outside a transaction need a session of their own). Run "
            "`python -m pgtick.migrations up --dsn …` against the server itself, or a pool in session mode, before the "
            "service starts; with nothing pending the service itself may go through the pooler"
        )


async def _shares_sessions(db: DatabaseManager) -> bool:
    """Whether two clients meet one server process, or one client meets two."""
    first = second = None
    try:
        first = await connect(db.config)
        second = await connect(db.config)
        deadline_s = db.config.acquire_timeout_s
        seen: tuple[set[Any], set[Any]] = (set(), set())
        try:
            for _ in range(_ROUNDS):
                for client, pids in zip((first, second), seen, strict=True):
                    pids.add(await client.fetchval(_WHO, timeout=deadline_s))
        except TimeoutError:
            raise MigrationError(
                f"the pooler at {db.config.host}, port {db.config.port}, gives no further connection within "
                f"{deadline_s:g} s: migrate over a direct connection"
            ) from None
        return len(seen[0] | seen[1]) < 2 or any(len(pids) > 1 for pids in seen)
    finally:
        for client in (first, second):
            if client is not None:
                client.terminate()
