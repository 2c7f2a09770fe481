"""The connection, the lock and the transaction of a migration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.errors import MigrationError
from pgtick.migrator.files import Migration
from pgtick.migrator.ledger import Ledger, read_ledger
from pgtick.migrator.pooler import refuse_transaction_pooler

__all__ = ["holds_lock", "locked", "migrating", "migration_config", "milliseconds", "rest", "told", "turn"]

_LOCK = 7_463_816_502  # "pgtick" on a telephone's keys, roughly: any constant of our own does
_LOCK_POLL_S = 0.05
_CLIENT_MARGIN_S = 10.0  # the server's deadline comes first: its answer is certain, a cancellation is not

# Read committed, since the ledger is read after the wait for the lock, and since an idle transaction then keeps no
# snapshot: CREATE INDEX CONCURRENTLY of another connection waits for every snapshot, and would wait for this one.
# The keepalive is for the hours in which one of two connections has nothing to say.
_SETTINGS = """
SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL tcp_keepalives_idle = 60; SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = {statement_ms}
"""
_OF_LOCK = """
locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32) + objid::bigint = $1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_HOLDER = f"""
SELECT format('pid %s, application %s, since %s', pid, quote_literal(coalesce(application_name, '?')), xact_start)
FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE {_OF_LOCK}
"""


def milliseconds(seconds: float) -> int:
    """Return a deadline as the server's settings have it, where 0 would mean none."""
    return min(max(1, round(seconds * 1000)), 2**31 - 1)


def migration_config(config: DatabaseConfig) -> DatabaseConfig:
    """Return the configuration of a migrator's own connections."""
    return msgspec.structs.replace(
        config,
        statement_timeout_s=config.migration_statement_timeout_s + _CLIENT_MARGIN_S,
        min_connections=1,
        max_connections=1,
        pooler=True,  # nothing prepared by name, so that a pooler can be looked for through a pooler
    )


@asynccontextmanager
async def migrating(db: DatabaseManager) -> AsyncIterator[DatabaseManager]:
    """Open a manager for migrations, with one connection and their deadlines, and have it in use."""
    own = await open_manager(migration_config(db.config))
    try:
        await refuse_transaction_pooler(own)
        with use_manager(own):
            yield own
    finally:
        await own.close()


@asynccontextmanager
async def locked(db: DatabaseManager, name: str) -> AsyncIterator[None]:
    """Open the transaction that holds the lock, as soon as nobody else has it; ``name`` is what others see."""
    config = db.config
    settings = _SETTINGS.format(
        lock_ms=milliseconds(config.migration_lock_timeout_s),
        statement_ms=milliseconds(config.migration_statement_timeout_s),
    )
    if db.server_version >= 170_000:
        settings += "; SET LOCAL transaction_timeout = 0"
    deadline = asyncio.get_running_loop().time() + config.migration_wait_s
    while True:
        # Each attempt is a transaction of its own: a concurrent index waits for the end of those whose snapshot it
        # has seen, and the attempt's statement has one for a moment.
        async with db.transaction():
            await db.execute(settings)
            await db.execute("SELECT set_config('application_name', $1, true)", f"pgtick: {name}")
            if await db.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
                yield
                return
            if asyncio.get_running_loop().time() > deadline:
                holder = await db.fetchval(_HOLDER, _LOCK)
                raise MigrationError(
                    f"another session has been migrating for {config.migration_wait_s:g} s: "
                    f"{holder or 'it has just finished'}"
                )
        await asyncio.sleep(_LOCK_POLL_S)


async def holds_lock(db: DatabaseManager) -> bool:
    """Whether the transaction of the context still is and has the lock."""
    query = f"SELECT EXISTS (SELECT FROM pg_locks WHERE {_OF_LOCK} AND pid = pg_backend_pid())"
    try:
        held = bool(await db.fetchval(query, _LOCK))
        await rest(db)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return False
    return held


async def rest(db: DatabaseManager) -> None:
    """Leave the transaction of the context idle without a snapshot.

    asyncpg's query leaves its portal, which keeps the query's snapshot, until the next one; a simple query does not.
    """
    await db.execute("SELECT 1")


@asynccontextmanager
async def turn(db: DatabaseManager, migration: Migration) -> AsyncIterator[Ledger]:
    """Open the transaction, wait for the lock, yield the ledger; an error names the migration."""
    refusal: MigrationError | None = None
    try:
        async with locked(db, migration.label):
            try:
                yield await read_ledger(db)
            except MigrationError as error:
                refusal = error
                raise
    except MigrationError:
        raise
    except asyncpg.LockNotAvailableError as error:
        raise MigrationError(
            f"{migration.label} gave way to a session that holds a lock on what it changes ({error}): "
            "nothing of it is applied; try again when that session is done"
        ) from error
    except Exception as error:
        if refusal is not None:  # the transaction of a connection that is gone cannot even be rolled back
            raise refusal from error
        raise MigrationError(f"{migration.label} failed: {told(error)}") from error


def told(error: BaseException) -> str:
    """Return the error as a part of a message."""
    if isinstance(error, asyncpg.PostgresError):  # without the hint, which may recommend CASCADE
        parts = (error.args[0] if error.args else None, getattr(error, "detail", None))
        return "; ".join(str(part) for part in parts if part)
    return f"{type(error).__name__}: {error}"
