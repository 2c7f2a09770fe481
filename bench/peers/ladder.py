"""Where the server's time goes: finished bytes into tables that ask ever more of it, and two ways to ask less."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from peers.data import COLUMNS, Batch, make_batches
from peers.measure import Case, Rounds, Sample, interleave, timed
from peers.schema import BARE, DEFAULT, STEPS, clear, partition_of
from pgtick.connection import DatabaseManager

__all__ = ["COMPARED_WITH", "LIMIT", "PARENT", "PARTITION", "climb", "copy_bytes", "ways_of_a_batch"]

PARSED = "received, parsed and thrown away: COPY … WHERE false"
LIMIT = "+ WAL: the bare table"
PARENT = "+ partitioned by day: pgtick's default table"
PARTITION = "the same straight into the day's partition"
SORTED = "the same, each batch sorted by (symbol, time)"
_REFERENCES = "+ references, checked once a statement"

#: what a step is compared with, where it is not the one above it; None: with nothing
COMPARED_WITH: dict[str, str | None] = {
    "instead of that: an enforced foreign key": "+ checks",
    "the guide's table": None,
    PARENT: _REFERENCES,
    PARTITION: PARENT,
    SORTED: PARENT,
}


async def copy_bytes(db: DatabaseManager, table: str, batches: Iterable[Batch]) -> None:
    """Send finished bytes, a COPY and a transaction a batch: what no client can be faster than."""
    async with db.acquire() as connection:
        await _send(connection, table, batches)


async def _send(connection: Any, table: str, batches: Iterable[Batch], where: str | None = None) -> None:
    for batch in batches:
        await connection.copy_to_table(
            table, source=_chunks(batch.chunks), columns=list(COLUMNS), format="binary", where=where
        )


def _cpu_of(pid: int) -> float | None:
    """Return the processor seconds of a process of this machine; None where Linux does not say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0]) / 1e9
    except OSError:
        return None


async def _chunks(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def _case(
    db: DatabaseManager, table: str, batches: list[Batch], emptied: str | None = None, where: str | None = None
) -> Case:
    async def run() -> Sample:
        await clear(db, emptied or table)
        async with db.acquire() as connection:
            # Over TCP the process may be one of another machine.
            pid = connection.get_server_pid() if db.config.host.startswith("/") else -1
            before = _cpu_of(pid)
            sample = await timed(lambda: _send(connection, table, batches, where))
            after = _cpu_of(pid)
        if before is not None and after is not None:
            sample = sample._replace(server_cpu_s=after - before)
        stored = await db.fetchval(f"SELECT count(*) FROM {table}")
        assert stored == (0 if where == "false" else sum(map(len, batches))), f"{table} holds {stored} rows"
        return sample

    return run


async def climb(db: DatabaseManager, batches: list[Batch], rounds: int) -> Rounds:
    """Measure every step of the ladder; the tables are there already."""
    cases = {PARSED: _case(db, BARE, batches, where="false")}
    cases |= {step: _case(db, table, batches) for step, (table, _) in STEPS.items()}
    cases[PARENT] = _case(db, DEFAULT, batches)
    partition = await partition_of(db, batches[0])
    if partition is not None:
        cases[PARTITION] = _case(db, partition, batches)
    by_symbol = [batch.sorted() for batch in batches]
    cases[SORTED] = _case(db, DEFAULT, by_symbol)
    for batch in (*batches, *by_symbol):
        _ = batch.chunks  # made before the clock starts
    return await interleave(cases, rounds, sum(map(len, batches)))


async def ways_of_a_batch(db: DatabaseManager, n_rows: int, batch_rows: int, n_symbols: int, rounds: int) -> Rounds:
    """Measure parent against partition, in order of arrival and sorted, for batches of one size."""
    batches = make_batches(n_rows, batch_rows, n_symbols)
    by_symbol = [batch.sorted() for batch in batches]
    for batch in (*batches, *by_symbol):
        _ = batch.chunks
    partition = await partition_of(db, batches[0])
    cases = {
        "parent": _case(db, DEFAULT, batches),
        "parent, sorted": _case(db, DEFAULT, by_symbol),
    }
    if partition is not None:
        cases["partition"] = _case(db, partition, batches, DEFAULT)
        cases["partition, sorted"] = _case(db, partition, by_symbol, DEFAULT)
    return await interleave(cases, rounds, n_rows)
