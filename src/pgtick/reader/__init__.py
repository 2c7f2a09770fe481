"""A query's whole result, fast: COPY BINARY decoded by the core into NumPy, Arrow or Structs.

``read_columns`` gives all at once, ``read_chunks`` piece by piece in bounded memory, ``read_structs`` as models.
A query is any that PostgreSQL's COPY takes (SELECT, VALUES, or one with RETURNING), with ``$1`` … for parameters.
Each is read in a transaction of its own, or in that of the context.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from pgtick._fast.decode import CopyDecoder
from pgtick._fast.result import Columns
from pgtick.connection import get_db_manager
from pgtick.errors import PgtickError, QueryError, StatementTimeoutError
from pgtick.reader.layout import Decimal128, Decimals, Fixed, check_model, column_layout
from pgtick.reader.parameters import inline_parameters
from pgtick.reader.stream import CopyStream, Progress

__all__ = ["Columns", "Decimal128", "Decimals", "Fixed", "read_chunks", "read_columns", "read_structs"]

Model = TypeVar("Model", bound=msgspec.Struct)

#: Rows that become Structs at once: they hold the event loop for about a millisecond.
_STRUCT_ROWS = 1000


async def read_columns(
    query: str,
    *args: object,
    decimals: Decimals = "float",
    progress: Progress | None = None,
    timeout_s: float | None = None,
) -> Columns:
    """Return the whole result as Columns: NumPy arrays, masks, and Arrow for who asks.

    ``progress``: called with the rows and bytes so far, for each piece that arrives. ``timeout_s``: for all of
    it; None is the configuration's statement_timeout_s, ``math.inf`` none.

    Raises QueryError before anything is read, StatementTimeoutError, DecodeError, and the server's own errors.
    """
    async with _deadline(timeout_s), _opened(query, args, decimals) as (connection, sql, layout):
        decoder = CopyDecoder(layout)
        await CopyStream(connection, sql, decoder, progress).run()
    return decoder.take()


async def read_structs(
    model: type[Model],
    query: str,
    *args: object,
    decimals: Decimals = "float",
    progress: Progress | None = None,
    timeout_s: float | None = None,
) -> list[Model]:
    """Return the whole result as a list of the model, a column a field of its name.

    Numbers are floats, or Decimals with ``decimals="decimal"``; the rest as in read_columns. Nothing is
    validated: these rows come from the database.
    """
    rows: list[Model] = []

    async def add() -> None:
        rows.extend(decoder.take().structs(model))

    async with _deadline(timeout_s), _opened(query, args, decimals) as (connection, sql, layout):
        check_model(model, layout)
        decoder = CopyDecoder(layout, _STRUCT_ROWS)
        await CopyStream(connection, sql, decoder, progress, add).run()
        await add()
    return rows


async def read_chunks(
    query: str,
    *args: object,
    n_rows: int = 100_000,
    decimals: Decimals = "float",
    progress: Progress | None = None,
    timeout_s: float | None = None,
) -> AsyncGenerator[Columns, None]:
    """Yield the result in chunks of ``n_rows`` rows (the last has fewer), two of them in memory at most.

    While the caller works on a chunk the server waits. Leaving the loop early ends the query; do it under
    ``contextlib.aclosing`` when the connection must be free at once. ``timeout_s``: for each chunk, without
    the caller's own time. The connection is busy all the while, so inside ``db.transaction()`` this is refused.
    """
    if n_rows < 1:
        raise QueryError("n_rows", f"at least 1, not {n_rows}")
    if get_db_manager().in_transaction:
        raise PgtickError("read_chunks keeps its connection busy between chunks: call it outside of transaction()")
    chunks: asyncio.Queue[Columns | Exception | None] = asyncio.Queue(maxsize=1)
    async with _opened(query, args, decimals) as (connection, sql, layout):
        decoder = CopyDecoder(layout, n_rows)

        async def add() -> None:
            await chunks.put(decoder.take())

        async def copy() -> None:
            try:
                await stream.copy()
                await add()
                await chunks.put(None)
            except Exception as error:
                await chunks.put(error)

        stream = CopyStream(connection, sql, decoder, progress, add)
        task = asyncio.create_task(copy())
        try:
            while True:
                async with _deadline(timeout_s):
                    chunk = await chunks.get()
                if isinstance(chunk, Exception):
                    raise chunk
                if chunk is None:
                    break
                if len(chunk):
                    yield chunk
        finally:
            await stream.end(task, lambda: chunks.empty() or chunks.get_nowait())


@asynccontextmanager
async def _opened(
    query: str, args: tuple[object, ...], decimals: Decimals
) -> AsyncIterator[tuple[Any, str, list[tuple[str, int, tuple[Any, ...]]]]]:
    """Yield a connection in a transaction, the query as COPY takes it, and the layout of its columns.

    One transaction, so that a pooler gives all of it the same server.
    """
    if "\0" in query:
        raise QueryError("query", "it holds NUL")
    async with get_db_manager().connection() as connection, connection.transaction():
        statement = await connection.prepare(query, name="")
        layout = column_layout(statement.get_attributes(), decimals)
        sql = await inline_parameters(connection, statement, query, args)
        yield connection, sql, layout


@asynccontextmanager
async def _deadline(timeout_s: float | None) -> AsyncIterator[None]:
    if timeout_s is None:
        timeout_s = get_db_manager().config.statement_timeout_s
    deadline = asyncio.timeout(None if math.isinf(timeout_s) else timeout_s)
    try:
        async with deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():  # another's: no connection came free, say
            raise
        raise StatementTimeoutError(f"no end of the reading in {timeout_s:g} s") from error
