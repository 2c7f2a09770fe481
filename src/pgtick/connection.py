"""The pool, the transaction, and the one published manager.

Inside ``async with db.transaction()`` every call on that manager made from the same context uses the
transaction's connection, so operations compose into one transaction without being handed a connection. Tasks
started inside are part of it: they take turns, and the end waits for those that have asked for one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import asyncpg

from pgtick._fast.symbols import SymbolCache
from pgtick.config import DatabaseConfig, HftConfig
from pgtick.copying import copy_source
from pgtick.errors import (
    AcquireTimeoutError,
    ConnectTimeoutError,
    NotInitializedError,
    PgtickError,
    StatementTimeoutError,
)
from pgtick.hosts import Connector, connect, is_fit

__all__ = [
    "DatabaseManager",
    "add_start_step",
    "connect",
    "get_db_manager",
    "initialize_database",
    "open_manager",
    "use_manager",
]

logger = logging.getLogger(__name__)

StartStep = Callable[["DatabaseManager"], Awaitable[object]]

# What a new manager goes through before it is published. The rooms above this one (engines, migrator,
# cache_operations) add theirs when they are imported, so that no arrow of the house points upwards.
_start_steps: list[tuple[int, StartStep]] = []
_published: DatabaseManager | None = None
_in_use: ContextVar[DatabaseManager | None] = ContextVar("pgtick_manager", default=None)


class _Transaction:
    """A connection inside a transaction or savepoint; the lock lets concurrent tasks of one context take turns."""

    __slots__ = ("active", "after_rollback", "connection", "lock")

    def __init__(self, connection: Any, after_rollback: list[Callable[[], Awaitable[object]]]) -> None:
        self.connection = connection
        self.lock = asyncio.Lock()
        self.active = True
        self.after_rollback = after_rollback


class DatabaseManager:
    """A pool of connections to one database.

    Safe for any number of tasks of one event loop. Every wait has a deadline: connect, acquire, statement.
    ``symbols`` is the symbol cache of this database, filled by ``cache_operations``.
    """

    def __init__(
        self, config: DatabaseConfig, pool: Any, server_version: int, unchanged: set[int] | None = None
    ) -> None:
        self.config = config
        self.server_version = server_version
        self.symbols = SymbolCache()
        self._pool = pool
        self._transaction: ContextVar[_Transaction | None] = ContextVar("pgtick_transaction", default=None)
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._closed = False
        self._unchanged = set() if unchanged is None else unchanged

    def __repr__(self) -> str:
        return f"DatabaseManager({self.config!r})"

    def _current(self) -> _Transaction | None:
        transaction = self._transaction.get()
        return transaction if transaction is not None and transaction.active else None

    @property
    def in_transaction(self) -> bool:
        """Whether this context is inside ``transaction()``."""
        return self._current() is not None

    @asynccontextmanager
    async def connection(self, *, resets: bool = True) -> AsyncIterator[Any]:
        """Yield the connection for one statement: the transaction's when it is this task's turn, or the pool's."""
        transaction = self._current()
        if transaction is None:
            async with self.acquire() as connection:
                if not resets:
                    self._unchanged.add(connection.get_server_pid())
                with self._statement_deadline():
                    yield connection
            return
        async with self._turn(transaction):
            if transaction.active:
                with self._statement_deadline():
                    yield transaction.connection
                return
        # The transaction ended before the turn came: what is asked after its end is outside of it.
        async with self.connection() as connection:
            yield connection

    @contextmanager
    def _statement_deadline(self) -> Iterator[None]:
        try:
            yield
        except StatementTimeoutError:  # of a reader, which has deadlines of its own
            raise
        except TimeoutError as error:  # asyncpg's is bare, and it has cancelled the statement
            raise StatementTimeoutError(f"no end of the statement in {self.config.statement_timeout_s:g} s") from error

    @asynccontextmanager
    async def _turn(self, transaction: _Transaction) -> AsyncIterator[None]:
        # A deadline here too: a nested transaction that awaits a task of the outer one would wait for itself.
        deadline_s = self.config.acquire_timeout_s
        try:
            async with asyncio.timeout(deadline_s):
                await transaction.lock.acquire()
        except TimeoutError as error:
            raise AcquireTimeoutError(f"no turn in the transaction within {deadline_s:g} s") from error
        try:
            yield
        finally:
            transaction.lock.release()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """Yield a connection of the pool (asyncpg's), outside of any transaction of this context.

        Raises AcquireTimeoutError when none comes free before ``config.acquire_timeout_s``, ConnectTimeoutError
        when a new one is not answered before ``config.connect_timeout_s``.
        """
        deadline_s = self.config.acquire_timeout_s
        try:
            connection = await self._pool.acquire(timeout=deadline_s)
        except TimeoutError as error:
            if isinstance(error, ConnectTimeoutError):
                raise
            raise AcquireTimeoutError(
                f"no connection came free within {deadline_s:g} s (pool of {self.config.max_connections})"
            ) from error
        try:
            yield connection
        finally:
            try:
                if not is_fit(connection, self.config.session_attrs):
                    connection.terminate()  # its server became read-only: the next connection goes to the other
                await self._pool.release(connection)
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                # The pool has given the connection up; that must not take the place of a result or a cancellation.
                logger.warning("a connection could not be reset and was given up: %r", error)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Run what is inside in one transaction; nested, in a savepoint.

        An error rolls back. Calls of other tasks started inside share the connection and take turns; while a
        nested transaction runs, those of the outer one wait, so that its rollback takes nothing of theirs along.
        """
        outer = self._current()
        undo: list[Callable[[], Awaitable[object]]] = []
        async with self._undoing(undo):
            if outer is None:
                async with (
                    self.acquire() as connection,
                    connection.transaction(),
                    self._entered(_Transaction(connection, undo)),
                ):
                    yield
                return
            async with self._turn(outer):
                if not outer.active:
                    raise PgtickError("the transaction that this one is nested in has ended")
                async with outer.connection.transaction(), self._entered(_Transaction(outer.connection, undo)):
                    yield
        outer.after_rollback += undo  # the savepoint is released, its changes can still be rolled back

    @asynccontextmanager
    async def _entered(self, transaction: _Transaction) -> AsyncIterator[None]:
        """Make the transaction the context's; its end comes after the turns that were asked for."""
        token = self._transaction.set(transaction)
        try:
            yield
        finally:
            self._transaction.reset(token)
            try:
                async with self._turn(transaction):
                    transaction.active = False
            finally:
                transaction.active = False

    @asynccontextmanager
    async def _undoing(self, callbacks: list[Callable[[], Awaitable[object]]]) -> AsyncIterator[None]:
        # Outermost, so that the callbacks find the connection, or the outer transaction's turn, free again.
        try:
            yield
        except BaseException:
            for callback in callbacks:
                try:
                    await callback()
                except Exception as error:  # the error that rolled back is the one to tell
                    logger.warning("after a rollback, %r failed: %s", callback, error)
            raise

    def after_rollback(self, callback: Callable[[], Awaitable[object]]) -> None:
        """Have ``callback`` awaited if the transaction or savepoint of this context is rolled back."""
        transaction = self._current()
        if transaction is not None and callback not in transaction.after_rollback:
            transaction.after_rollback.append(callback)

    async def execute(self, query: str, *args: object) -> str:
        """Run a statement, or several when there are no arguments; return the last command tag."""
        async with self.connection() as connection:
            return str(await connection.execute(query, *args))

    async def executemany(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        """Run a statement once for each row of arguments, all or none."""
        async with self.connection() as connection:
            await connection.executemany(query, rows)

    async def fetch(self, query: str, *args: object, resets: bool = True) -> list[asyncpg.Record]:
        """Return all rows.

        ``resets=False``, here and below: the statement cannot have changed the session (no set_config, no lock of
        the session), so that the round trip that resets it for the next one is left out.
        """
        async with self.connection(resets=resets) as connection:
            return list(await connection.fetch(query, *args))

    async def fetchrow(self, query: str, *args: object, resets: bool = True) -> asyncpg.Record | None:
        """Return the first row, or None."""
        async with self.connection(resets=resets) as connection:
            return await connection.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: object, resets: bool = True) -> Any:
        """Return the first column of the first row, or None."""
        async with self.connection(resets=resets) as connection:
            return await connection.fetchval(query, *args)

    async def copy_records_to_table(
        self, table: str, records: Iterable[Sequence[object]], columns: Sequence[str]
    ) -> int:
        """Copy records through asyncpg's own encoder; return the server's count.

        asyncpg drops surplus values in silence, so each record's width is checked here (ValueError).
        """
        rows = list(records)
        for index, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(f"{table}, row {index}: {len(row)} values for {len(columns)} columns")
        async with self.connection() as connection, self._held(connection):
            tag = await connection.copy_records_to_table(table, records=rows, columns=list(columns))
        return _count(tag)

    async def copy_binary_to_table(self, table: str, columns: Sequence[str], chunks: Iterable[bytes]) -> int:
        """Send a finished COPY BINARY stream; return the server's count."""
        async with self.connection(resets=False) as connection, self._held(connection):
            tag = await connection.copy_to_table(
                table, source=copy_source(chunks), columns=list(columns), format="binary"
            )
        return _count(tag)

    def _held(self, connection: Any) -> Any:
        """Hold a pooler's session for a COPY: see ``copying``."""
        return connection.transaction() if self.config.pooler else nullcontext()

    def pool_state(self) -> dict[str, int]:
        """Return the pool's ``size``, ``idle`` and ``max`` connections."""
        return {
            "size": self._pool.get_size(),
            "idle": self._pool.get_idle_size(),
            "max": self._pool.get_max_size(),
        }

    async def expire_connections(self) -> None:
        """Have every connection made anew before it is used again: behind a fail-over."""
        await self._pool.expire_connections()

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        """Have ``closer`` awaited before the pool closes (listeners, background tasks)."""
        self._closers.append(closer)

    async def close(self) -> None:
        """Stop background tasks and close the pool; a second call does nothing."""
        global _published
        if self._closed:
            return
        self._closed = True
        if _published is self:
            _published = None
        try:
            for closer in reversed(self._closers):
                try:
                    await closer()
                except Exception as error:  # a closer that fails keeps neither the others nor the pool open
                    logger.warning("while closing, %r failed: %s", closer, error or type(error).__name__)
            async with asyncio.timeout(self.config.acquire_timeout_s):
                await self._pool.close()
        except TimeoutError:
            logger.warning("connections still in use after %g s are cut", self.config.acquire_timeout_s)
        finally:
            self._pool.terminate()  # whatever is left, also when closing is cancelled


def _count(tag: str) -> int:
    return int(tag.rsplit(" ", 1)[1])


def add_start_step(order: int, step: StartStep) -> None:
    """Have ``step`` awaited with every new manager before it is published, lowest ``order`` first."""
    _start_steps.append((order, step))
    _start_steps.sort(key=lambda item: item[0])


def get_db_manager() -> DatabaseManager:
    """Return the manager in use: that of ``use_manager`` in this context, else the published one."""
    manager = _in_use.get() or _published
    if manager is None:
        raise NotInitializedError("await initialize_database(config) first")
    return manager


@contextmanager
def use_manager(manager: DatabaseManager) -> Iterator[DatabaseManager]:
    """Make ``manager`` what get_db_manager() returns in this context (migrations, several databases)."""
    token = _in_use.set(manager)
    try:
        yield manager
    finally:
        _in_use.reset(token)


async def open_manager(config: DatabaseConfig) -> DatabaseManager:
    """Open a pool without any start step and without publishing it."""
    unchanged: set[int] = set()  # connections, by the server's pid, on their way back without a reset

    async def reset(connection: Any) -> None:
        try:
            unchanged.remove(connection.get_server_pid())
        except KeyError:
            await connection.execute(connection.get_reset_query())

    pool = asyncpg.create_pool(
        min_size=config.min_connections, max_size=config.max_connections, reset=reset, connect=Connector(config)
    )
    manager = DatabaseManager(config, pool, 0, unchanged)
    try:
        await pool
        manager.server_version = int(await manager.fetchval("SHOW server_version_num"))
    except BaseException:
        pool.terminate()
        raise
    return manager


async def initialize_database(config: DatabaseConfig | None = None) -> DatabaseManager:
    """Open the pool, apply pending migrations, load the symbol cache, then publish the manager.

    Without a config, the environment's is taken (HftConfig). A start that fails leaves nothing behind and
    can be repeated; calling it while a manager is published is an error, so that no pool is lost.
    """
    global _published
    if _published is not None:
        raise PgtickError("a database is open already: close() it first")
    manager = await open_manager(config if config is not None else HftConfig().get_database_config())
    try:
        with use_manager(manager):
            for _, step in _start_steps:
                await step(manager)
    except BaseException:
        await manager.close()
        raise
    if _published is not None:
        await manager.close()
        raise PgtickError("a database was opened meanwhile: close() it first")
    _published = manager
    logger.info("connected to %r", manager.config)
    return manager
