"""Writing: every writer into every table, in batches, one transaction each; and what it costs this process."""

from __future__ import annotations

from collections.abc import Callable

from peers.data import Batch
from peers.measure import Case, Rounds, Sample, interleave, timed
from peers.schema import BARE, DEFAULT, GUIDE, clear
from peers.writers import WRITERS, CryptofeedBackend, Writer, open_writers
from pgtick.connection import DatabaseManager

__all__ = ["TABLES", "case_name", "compare_writing"]

#: what a table is called in the figures -> its name
TABLES = {"default": DEFAULT, "guide": GUIDE, "bare": BARE}


def case_name(table: str, writer: str) -> str:
    """Return the name of a case: what is written into what."""
    return f"{table} <- {writer}"


def _case(db: DatabaseManager, table: str, writer: Writer, batches: list[Batch]) -> Case:
    prepared: list[object] = []

    async def run() -> Sample:
        if not prepared:
            prepared.extend(writer.prepare(batch) for batch in batches)
        await clear(db, table)

        async def write() -> None:
            for rows in prepared:
                await writer.write(table, rows)

        sample = await timed(write)
        stored, expected = await db.fetchval(f"SELECT count(*) FROM {table}"), sum(map(len, batches))
        if stored != expected:
            raise AssertionError(f"{stored} of {expected} rows are stored")
        return sample

    return run


async def compare_writing(
    db: DatabaseManager, batches: list[Batch], rounds: int, progress: Callable[[str], object]
) -> Rounds:
    """Measure all of them; the tables are there already."""
    writers, skipped = await open_writers(db, (*WRITERS, CryptofeedBackend))
    # Table by table, so that what is compared with the limit runs soon after it.
    cases = {
        case_name(label, writer.name): _case(db, table, writer, batches)
        for label, table in TABLES.items()
        for writer in writers
        if not isinstance(writer, CryptofeedBackend)
    }
    cases |= {w.name: _case(db, w.table, w, batches) for w in writers if isinstance(w, CryptofeedBackend)}
    result = await interleave(cases, rounds, sum(map(len, batches)), progress)
    for writer in writers:
        await writer.close()
    for name, reason in skipped.items():
        labels = [name] if name == CryptofeedBackend.name else [case_name(label, name) for label in TABLES]
        result.skipped |= dict.fromkeys(labels, reason)
    return result
