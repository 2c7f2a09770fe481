"""Reading: every reader, the same query; and in a process of its own what memory it takes at most."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.measure import Case, Rounds, Sample, interleave, reason_of, timed
from peers.readers import READERS, Reader
from peers.schema import DEFAULT
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, open_manager

__all__ = ["QUERY", "compare_reading", "measure_memory", "peak_memory"]

QUERY = f"SELECT timestamp, symbol_id, bid_price, ask_price, bid_qty, ask_qty FROM {DEFAULT}"
_ROW_BYTES = 8 + 4 + 4 * 8  # of the result as NumPy columns


def _case(reader: Reader, query: str) -> Case:
    async def run() -> Sample:
        kept: list[Any] = []  # what was read is let go after the clock has stopped

        async def read() -> None:
            kept.append(await reader.read(query))

        return await timed(read)

    return run


async def compare_reading(db: DatabaseManager, n_rows: int, rounds: int, progress: Callable[[str], object]) -> Rounds:
    """Measure all of them on the default table, which holds the rows already."""
    cases, opened, skipped = {}, [], {}
    for kind in READERS:
        reader = kind()
        try:
            await reader.open(db)
            await reader.read(QUERY + " LIMIT 10")
        except Exception as error:  # a peer's own, of any kind: it is named in the table
            skipped[kind.name] = reason_of(error)
            continue
        opened.append(reader)
        cases[reader.name] = _case(reader, QUERY)
    result = await interleave(cases, rounds, n_rows, progress)
    result.skipped |= skipped
    for reader in opened:
        await reader.close()
    return result


def peak_memory(db: DatabaseManager, names: list[str], n_rows: int) -> dict[str, float]:
    """Return by reader the growth of resident memory at its highest, as a multiple of the NumPy columns' bytes.

    Each reads once in a process of its own. Linux only: elsewhere it is empty.
    """
    if sys.platform != "linux":
        return {}
    peaks = {}
    for name in names:
        dsn = db.config.to_dsn(with_password=True)
        command = [sys.executable, str(Path(__file__).parent), "memory", name]
        answer = subprocess.run(command, input=dsn, capture_output=True, text=True, check=True).stdout
        peaks[name] = json.loads(answer) / (n_rows * _ROW_BYTES)
    return peaks


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _begin_highest_mark_anew() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


async def measure_memory(name: str, dsn: str) -> int:
    """Return by how many bytes this process grows at most while the reader reads."""
    reader = next(kind for kind in READERS if kind.name == name)()
    db = await open_manager(DatabaseConfig.from_dsn(dsn))
    try:
        await reader.open(db)
        await reader.read(QUERY + " LIMIT 10")
        gc.collect()
        _begin_highest_mark_anew()
        before = _kilobytes("VmRSS")
        kept = await reader.read(QUERY)
        peak = _kilobytes("VmHWM")
        del kept
        await reader.close()
    finally:
        await db.close()
    return (peak - before) * 1024
