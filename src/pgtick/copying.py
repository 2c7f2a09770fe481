"""How bytes of COPY go out through asyncpg.

They go out behind the statement, without waiting for its answer. When the server refuses it, what comes after is left
over, and PostgreSQL passes over it. A transaction pooler does not: outside a transaction block it has given the
session away with the error, and the client's next statement may wait for ever. Through one, COPY only in a block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

__all__ = ["copy_in", "copy_source"]


def copy_source(chunks: Iterable[bytes]) -> AsyncIterator[bytes] | memoryview:
    """Return the chunks as asyncpg takes them; a single one as it is, without a timer and a task for each chunk."""
    given = iter(chunks)
    first, second = next(given, b""), next(given, None)
    if second is None:
        return memoryview(first)  # bytes themselves would be taken for a path
    return _yielded(first, second, given)


async def _yielded(first: bytes, second: bytes, rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    yield second
    for chunk in rest:
        yield chunk


async def copy_in(connection: Any, statements: str, chunks: Iterable[bytes], timeout_s: float | None) -> str:
    """Send statements, of which one is a COPY FROM STDIN, and its bytes, all in one round trip; return the last tag.

    Without a timeout the connection's own holds. Outside of a transaction block the statements are one transaction:
    https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT

    asyncpg's public copy_to_table makes its statement itself and takes no other beside it. What it is made of takes
    any, and passes over the answers that come before the COPY's.
    """
    if connection.is_closed():  # of a connection that the pool has taken back it is an error itself
        raise asyncpg.InterfaceError("the connection is closed")
    bare = connection._con if isinstance(connection, PoolConnectionProxy) else connection
    return str(await bare._copy_in(statements, copy_source(chunks), timeout_s))
