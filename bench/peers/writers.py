"""Everyone who writes, behind one interface; a library is imported when its writer is opened."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import asyncpg

from peers.data import COLUMNS, Batch
from peers.ladder import copy_bytes
from peers.measure import reason_of
from peers.schema import DEFAULT
from pgtick._fast.encode import RowEncoder
from pgtick.connection import DatabaseManager
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import store_rows

__all__ = ["ASYNCPG", "LIMIT", "PGTICK", "WRITERS", "CryptofeedBackend", "Writer", "open_writers"]

LIMIT = "limit: finished bytes through asyncpg"
PGTICK = "pgtick, Structs with float prices"
_COLUMN_LIST = ", ".join(COLUMNS)


class Writer:
    """One way to bring a batch into a table, committed when ``write`` returns."""

    name: ClassVar[str]

    async def open(self, db: DatabaseManager) -> None:
        """Connect to the manager's database; raise what a missing library raises."""
        self.db = db

    def prepare(self, batch: Batch) -> Any:
        """Return the rows as a service of this kind would have them in hand; not timed."""
        return batch

    async def write(self, table: str, rows: Any) -> None:
        """Store them."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of the connection."""


class Limit(Writer):
    name = LIMIT

    def prepare(self, batch: Batch) -> Any:
        _ = batch.chunks
        return batch

    async def write(self, table: str, rows: Any) -> None:
        await copy_bytes(self.db, table, [rows])


class Pgtick(Writer):
    """The default table by store_rows(), the others by the same encoder and the manager's COPY."""

    name = PGTICK
    encoder = RowEncoder(BOOK_TICKERS)

    def prepare(self, batch: Batch) -> Any:
        return batch.structs

    async def write(self, table: str, rows: Any) -> None:
        if table == DEFAULT:
            result = await store_rows(BOOK_TICKERS, rows, db=self.db)
            assert result.n_stored == len(rows), result
            return
        encoded = self.encoder.encode(rows)
        await self.db.copy_binary_to_table(table, COLUMNS, encoded.chunks())


class PgtickColumns(Pgtick):
    """The same from NumPy columns."""

    name = "pgtick, NumPy columns of float64"

    def prepare(self, batch: Batch) -> Any:
        return batch.columns

    async def write(self, table: str, rows: Any) -> None:
        encoded = self.encoder.encode_columns(rows)
        await self.db.copy_binary_to_table(table, COLUMNS, encoded.chunks())


class _Asyncpg(Writer):
    async def open(self, db: DatabaseManager) -> None:
        self.connection = await asyncpg.connect(**db.config.connect_kwargs())

    async def close(self) -> None:
        await self.connection.close()


class AsyncpgDecimals(_Asyncpg):
    name = "asyncpg copy_records_to_table, Decimals"

    def prepare(self, batch: Batch) -> Any:
        return batch.decimals

    async def write(self, table: str, rows: Any) -> None:
        await self.connection.copy_records_to_table(table, records=rows, columns=list(COLUMNS))


class AsyncpgFloats(AsyncpgDecimals):
    name = "asyncpg copy_records_to_table, floats"

    def prepare(self, batch: Batch) -> Any:
        return batch.floats


class AsyncpgExecutemany(_Asyncpg):
    name = "asyncpg executemany, Decimals"

    def prepare(self, batch: Batch) -> Any:
        return batch.decimals

    async def write(self, table: str, rows: Any) -> None:
        values = ", ".join(f"${i + 1}" for i in range(len(COLUMNS)))
        await self.connection.executemany(f"INSERT INTO {table} ({_COLUMN_LIST}) VALUES ({values})", rows)


class Psycopg(Writer):
    name = "psycopg 3 C copy.write_row, Decimals"

    async def open(self, db: DatabaseManager) -> None:
        import psycopg

        if psycopg.pq.__impl__ == "python":
            raise NotImplementedError("psycopg without its C half: pip install 'psycopg[binary]'")
        self.connection = psycopg.connect(db.config.to_dsn(with_password=True), autocommit=True)

    def prepare(self, batch: Batch) -> Any:
        return batch.decimals

    async def write(self, table: str, rows: Any) -> None:
        statement = f"COPY {table} ({_COLUMN_LIST}) FROM STDIN (FORMAT binary)"
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(["timestamptz", "int4", *["numeric"] * 4, "int8", "text"])
            for row in rows:
                copy.write_row(row)

    async def close(self) -> None:
        self.connection.close()


class Pgpq(Psycopg):
    name = "pgpq from Arrow, sent by psycopg"

    async def open(self, db: DatabaseManager) -> None:
        import pgpq

        self.encoder = pgpq.ArrowToPostgresBinaryEncoder
        await super().open(db)

    def prepare(self, batch: Batch) -> Any:
        return batch.arrow

    async def write(self, table: str, rows: Any) -> None:
        statement = f"COPY {table} ({_COLUMN_LIST}) FROM STDIN (FORMAT binary)"
        encoder = self.encoder(rows.schema)
        with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(encoder.write_header())
            copy.write(encoder.write_batch(rows))
            copy.write(encoder.finish())


class Pgcopy(Writer):
    name = "pgcopy, Decimals"

    async def open(self, db: DatabaseManager) -> None:
        import pgcopy
        import psycopg2

        self.manager = pgcopy.CopyManager
        self.connection = psycopg2.connect(db.config.to_dsn(with_password=True))
        self.managers: dict[str, Any] = {}

    def prepare(self, batch: Batch) -> Any:
        # It takes text as bytes.
        return [(*row[:-1], row[-1].encode()) for row in batch.decimals]

    async def write(self, table: str, rows: Any) -> None:
        from io import BytesIO

        manager = self.managers.get(table)
        if manager is None:
            manager = self.managers[table] = self.manager(self.connection, table, COLUMNS)
        manager.copy(rows, BytesIO)
        self.connection.commit()

    async def close(self) -> None:
        self.connection.close()


class Adbc(Writer):
    name = "ADBC adbc_ingest from Arrow"

    async def open(self, db: DatabaseManager) -> None:
        from adbc_driver_postgresql import dbapi

        self.connection = dbapi.connect(db.config.to_dsn(with_password=True))

    def prepare(self, batch: Batch) -> Any:
        return batch.arrow

    async def write(self, table: str, rows: Any) -> None:
        with self.connection.cursor() as cursor:
            cursor.adbc_ingest(table, rows, mode="append")
        self.connection.commit()

    async def close(self) -> None:
        self.connection.close()


class CryptofeedBackend(Writer):
    """cryptofeed's TickerPostgres with the table of its examples (bid and ask only), called as FeedHandler calls it."""

    name = "cryptofeed TickerPostgres into its own table"
    table = "ticker"

    async def open(self, db: DatabaseManager) -> None:
        from cryptofeed.backends.postgres import TickerPostgres
        from cryptofeed.types import Ticker

        self.ticker = Ticker
        await db.execute(
            "CREATE TABLE ticker (id serial PRIMARY KEY, timestamp TIMESTAMP, receipt_timestamp TIMESTAMP, "
            "exchange VARCHAR(32), symbol VARCHAR(32), bid NUMERIC(64, 32), ask NUMERIC(64, 32))"
        )
        config = db.config
        self.backend = TickerPostgres(
            host=config.host, user=config.user, pw=config.password, db=config.database, port=config.port
        )
        self.backend.start(asyncio.get_running_loop())

    def prepare(self, batch: Batch) -> Any:
        return [
            self.ticker("BENCH", f"COIN{row[1]}-USDT", row[2], row[3], row[0].timestamp()) for row in batch.decimals
        ]

    async def write(self, table: str, rows: Any) -> None:
        for row in rows:
            await self.backend(row, row.timestamp)
        drained = asyncio.ensure_future(self.backend.queue.join())
        await asyncio.wait({drained, self.backend.worker}, return_when=asyncio.FIRST_COMPLETED)
        if not drained.done():  # its writer died of an error, and would let us wait forever
            drained.cancel()
            await self.backend.worker

    async def close(self) -> None:
        if self.backend.worker.done():
            return
        await self.backend.stop()
        await self.backend.worker
        await self.backend.conn.close()


WRITERS: tuple[type[Writer], ...] = (
    Limit,
    Pgtick,
    PgtickColumns,
    Pgpq,
    Adbc,
    Psycopg,
    AsyncpgDecimals,
    AsyncpgFloats,
    AsyncpgExecutemany,
    Pgcopy,
)


ASYNCPG = (AsyncpgDecimals, AsyncpgFloats, AsyncpgExecutemany)


async def open_writers(
    db: DatabaseManager, kinds: tuple[type[Writer], ...] = WRITERS
) -> tuple[list[Writer], dict[str, str]]:
    """Return those that could be opened, and by name why the others could not."""
    opened, skipped = [], {}
    for kind in kinds:
        writer = kind()
        try:
            await writer.open(db)
        except Exception as error:  # a peer's own, of any kind: it is named in the table
            skipped[kind.name] = reason_of(error)
        else:
            opened.append(writer)
    return opened, skipped
