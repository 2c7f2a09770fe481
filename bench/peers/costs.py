"""What needs no race with the server: encoding beside memcpy, import, bytes on disk, and how cost grows."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter

from peers.data import Batch, make_rows, noon_yesterday
from peers.ladder import copy_bytes
from peers.lookups import BY_ID, BY_NAMES, compare_lookups
from peers.measure import Case, Rounds, Sample, interleave, reason_of, timed
from peers.schema import BARE, DEFAULT, GUIDE, clear
from pgtick._fast.encode import RowEncoder
from pgtick.connection import DatabaseManager
from pgtick.models import BookTickerSnapshot
from pgtick.tables import BOOK_TICKERS

__all__ = [
    "ENCODE",
    "ENCODE_COLUMNS",
    "IMPORT_LIMIT",
    "IMPORT_PGTICK",
    "MEMCPY",
    "MEMCPY_COLD",
    "PGPQ_ENCODE",
    "PIECE_ROWS",
    "bytes_a_row",
    "compare_encoding",
    "compare_imports",
    "encode_by_size",
    "lookups_by_size",
    "sorting_by_size",
]

ENCODE = "pgtick RowEncoder, Structs with float prices"
ENCODE_COLUMNS = "pgtick RowEncoder, NumPy columns of float64"
PGPQ_ENCODE = "pgpq, Arrow decimal128"
MEMCPY = "memcpy of the finished bytes, in the caches"
MEMCPY_COLD = "memcpy of the finished bytes, beyond the caches"
PIECE_ROWS = 10_000
_BEYOND_CACHES = 256_000_000
IMPORT_PGTICK = "import pgtick"
IMPORT_LIMIT = "import asyncpg, msgspec"


def _repeated(work: Callable[[], object], times: int, per: int = 1) -> Case:
    async def run() -> Sample:
        async def repeat() -> None:
            for _ in range(times):
                work()

        sample = await timed(repeat)
        cpu_s = sample.cpu_s / (times * per)
        return Sample(cpu_s, cpu_s)  # what else runs on the machine is not in it

    return run


async def compare_encoding(batch: Batch, rounds: int, times: int = 10) -> Rounds:
    """Measure encoding alone, no socket, for one batch; the rows are in the caches of the machine."""
    finished = b"".join(batch.chunks)
    target = memoryview(bytearray(len(finished)))
    encoder = RowEncoder(BOOK_TICKERS)
    _ = batch.decimals  # made before the clock starts

    copies = _BEYOND_CACHES // len(finished) + 1
    many, far = finished * copies, memoryview(bytearray(len(finished) * copies))

    def copy() -> None:
        target[:] = finished

    def copy_all() -> None:
        far[:] = many

    cases = {
        MEMCPY: _repeated(copy, times * 10),
        MEMCPY_COLD: _repeated(copy_all, 1, per=copies),
        ENCODE: _repeated(lambda: encoder.encode(batch.structs), times),
        "the same, prices as Decimal, tuples": _repeated(lambda: encoder.encode(batch.decimals), times),
    }
    columns = batch.columns
    cases[ENCODE_COLUMNS] = _repeated(lambda: encoder.encode_columns(columns), times)
    skipped = {}
    try:
        import pgpq

        arrow = batch.arrow

        def encode() -> None:
            by_pgpq = pgpq.ArrowToPostgresBinaryEncoder(arrow.schema)
            by_pgpq.write_header()
            by_pgpq.write_batch(arrow)
            by_pgpq.finish()

        cases[PGPQ_ENCODE] = _repeated(encode, times)
    except ImportError as error:
        skipped[PGPQ_ENCODE] = reason_of(error)
    result = await interleave(cases, rounds, len(batch))
    result.skipped |= skipped
    return result


def _seconds_in_fresh_interpreter(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


async def compare_imports(rounds: int) -> Rounds:
    """Measure the imports, the processor time of each in a fresh interpreter, its bytecode compiled before."""

    def case(statement: str) -> Case:
        code = f"import time; start = time.process_time(); {statement}; print(time.process_time() - start)"

        async def run() -> Sample:
            seconds = _seconds_in_fresh_interpreter(code)
            return Sample(seconds, seconds)

        return run

    cases = {statement: case(statement) for statement in (IMPORT_LIMIT, IMPORT_PGTICK)}
    await interleave(cases, 2, 1)
    return await interleave(cases, rounds, 1)


async def bytes_a_row(db: DatabaseManager, batches: list[Batch]) -> dict[str, float]:
    """Return by table what a row takes on disk with all its indexes, after the same rows in order of arrival."""
    # pg_partition_tree() knows partitioned tables only.
    size = (
        "SELECT coalesce(sum(pg_total_relation_size(relid)), pg_total_relation_size($1::regclass)) "
        "FROM pg_partition_tree($1::regclass)"
    )
    sizes = {}
    for table in (DEFAULT, GUIDE, BARE):
        await clear(db, table)
        empty = int(await db.fetchval(size, table))
        await copy_bytes(db, table, batches)
        await db.execute(f"VACUUM ANALYZE {table}")
        sizes[table] = (int(await db.fetchval(size, table)) - empty) / sum(map(len, batches))
    return sizes


def encode_by_size(sizes: tuple[int, ...], n_symbols: tuple[int, ...]) -> dict[tuple[int, int], tuple[float, float]]:
    """Return {(rows, symbols): ns a row} of one encode() of all rows, and in pieces of PIECE_ROWS; the best of five."""
    encoder = RowEncoder(BOOK_TICKERS)

    def best(rows: list[BookTickerSnapshot], piece: int) -> float:
        seconds = []
        for _ in range(5):
            start = time.thread_time()
            n_rows = sum(encoder.encode(rows[i : i + piece]).n_rows for i in range(0, len(rows), piece))
            seconds.append(time.thread_time() - start)
            assert n_rows == len(rows)
        return min(seconds) / len(rows) * 1e9

    result = {}
    for symbols in n_symbols:
        for size in sizes:
            rows = list(make_rows(size, symbols, noon_yesterday()))
            result[size, symbols] = (best(rows, size), best(rows, PIECE_ROWS))
    return result


def sorting_by_size(sizes: Iterable[int], n_symbols: int) -> dict[int, tuple[float, float]]:
    """Return {rows: ns a row} of Python's sort by (symbol, time), and of NumPy's of the ids alone; best of five."""
    import numpy as np

    result = {}
    for size in sizes:
        rows = list(make_rows(size, n_symbols, noon_yesterday()))
        ids = np.array([row.symbol_id for row in rows], np.int32)
        sorts: tuple[Callable[[], object], ...] = (
            partial(sorted, rows, key=attrgetter("symbol_id", "timestamp")),
            partial(np.argsort, ids, kind="stable"),  # the rows arrive in order of time
        )
        times = []
        for sort in sorts:
            seconds = []
            for _ in range(5):
                start = time.thread_time()
                sort()
                seconds.append(time.thread_time() - start)
            times.append(min(seconds) / size * 1e9)
        result[size] = (times[0], times[1])
    return result


async def lookups_by_size(n_symbols: tuple[int, ...], rounds: int) -> dict[int, Rounds]:
    """Return {symbols: the cache's look-ups and dict's} for caches of these sizes."""
    return {
        symbols: await compare_lookups(
            symbols, rounds, (BY_ID, "dict.get(id)", BY_NAMES, "dict[exchange, base, quote]")
        )
        for symbols in n_symbols
    }
