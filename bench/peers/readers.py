"""Everyone who reads, behind one interface; a library is imported when its reader is opened."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar
from urllib.parse import quote

import asyncpg

from pgtick.connection import DatabaseManager, use_manager

__all__ = ["LIMIT", "PGTICK_NUMPY", "READERS", "Adbc", "AsyncpgFetch", "ConnectorX", "Reader"]

LIMIT = "limit: COPY out drained, nothing decoded"
PGTICK_NUMPY = "pgtick to NumPy columns"


class Reader:
    """One way to bring the rows of a query into this process."""

    name: ClassVar[str]

    async def open(self, db: DatabaseManager) -> None:
        """Connect to the manager's database; raise what a missing library raises."""
        self.db = db

    async def read(self, query: str) -> Any:
        """Return the rows in the form that this kind is used for."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of the connection."""


class _Asyncpg(Reader):
    async def open(self, db: DatabaseManager) -> None:
        self.connection = await asyncpg.connect(**db.config.connect_kwargs())

    async def close(self) -> None:
        await self.connection.close()


class Limit(_Asyncpg):
    name = LIMIT

    async def read(self, query: str) -> Any:
        n_bytes = 0

        async def drain(data: bytes) -> None:
            nonlocal n_bytes
            n_bytes += len(data)

        await self.connection.copy_from_query(query, output=drain, format="binary")
        return n_bytes


class PgtickColumns(Reader):
    """The reader's module is looked for when it is opened, so that versions without it can be compared too."""

    name = PGTICK_NUMPY

    async def open(self, db: DatabaseManager) -> None:
        self.db = db
        self.read_columns = importlib.import_module("pgtick.reader").read_columns

    async def read(self, query: str) -> Any:
        with use_manager(self.db):
            return await self.read_columns(query)


class PgtickArrow(PgtickColumns):
    name = "pgtick to Arrow"

    async def read(self, query: str) -> Any:
        import pyarrow

        return pyarrow.table(await super().read(query))


class ConnectorX(Reader):
    name = "ConnectorX to Arrow"

    async def open(self, db: DatabaseManager) -> None:
        import connectorx
        import pyarrow  # noqa: F401  it says so only when it has read everything

        self.connectorx = connectorx
        config = db.config
        secret = "" if config.password is None else ":" + quote(config.password, safe="")
        # Of a socket's folder it understands the escaped form alone.
        self.url = (
            f"postgresql://{quote(config.user, safe='')}{secret}@{quote(config.host, safe='')}:{config.port}"
            f"/{quote(config.database, safe='')}"
        )

    async def read(self, query: str) -> Any:
        return self.connectorx.read_sql(self.url, query, return_type="arrow", protocol="binary")


class Adbc(Reader):
    name = "ADBC to Arrow (NUMERIC as text)"

    async def open(self, db: DatabaseManager) -> None:
        from adbc_driver_postgresql import dbapi

        self.connection = dbapi.connect(db.config.to_dsn(with_password=True))

    async def read(self, query: str) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetch_arrow_table()

    async def close(self) -> None:
        self.connection.close()


class Psycopg(Reader):
    name = "psycopg 3 C fetchall, binary"

    async def open(self, db: DatabaseManager) -> None:
        import psycopg

        self.connection = psycopg.connect(db.config.to_dsn(with_password=True), autocommit=True)

    async def read(self, query: str) -> Any:
        with self.connection.cursor(binary=True) as cursor:
            return cursor.execute(query).fetchall()

    async def close(self) -> None:
        self.connection.close()


class AsyncpgFetch(_Asyncpg):
    name = "asyncpg fetch"

    async def read(self, query: str) -> Any:
        return await self.connection.fetch(query)


class AsyncpgNumpy(AsyncpgFetch):
    name = "asyncpg fetch, then to NumPy columns"

    async def read(self, query: str) -> Any:
        import numpy as np

        columns = list(zip(*await self.connection.fetch(query), strict=True))
        times = np.array([moment.replace(tzinfo=None) for moment in columns[0]], "datetime64[us]")
        return [times, np.array(columns[1], np.int32), *(np.array(column, np.float64) for column in columns[2:])]


READERS: tuple[type[Reader], ...] = (
    Limit,
    PgtickColumns,
    PgtickArrow,
    ConnectorX,
    Adbc,
    Psycopg,
    AsyncpgFetch,
    AsyncpgNumpy,
)
