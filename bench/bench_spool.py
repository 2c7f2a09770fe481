"""What a batch costs on its way to the spool, by policy: ``python bench/bench_spool.py [FOLDER]``."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

from pgtick.writer.spool import Fsync, Record, Spool

N_BATCHES = 200
POLICIES: tuple[Fsync, ...] = ("batch", "interval", "never")


def measure(folder: Path, fsync: Fsync, n_bytes: int) -> str:
    """Append, open again, settle; return a line."""
    spool = Spool(folder, fsync=fsync)
    spool.open()
    body = os.urandom(n_bytes)
    took = []
    for _ in range(N_BATCHES):
        record = Record(uuid.uuid4(), "trade_snapshots", 0, 1, body, b"f" * 16)
        start = time.perf_counter()
        spool.append(record)
        took.append(time.perf_counter() - start)
    spool.close()
    start = time.perf_counter()
    spool.open()
    opened_s = time.perf_counter() - start
    start = time.perf_counter()
    while (oldest := spool.peek("trade_snapshots")) is not None:
        spool.acknowledge("trade_snapshots", oldest.batch_id)
    replayed_s = time.perf_counter() - start
    spool.close()
    megabytes = N_BATCHES * n_bytes / 1e6
    return (
        f"{fsync:<9} {n_bytes:>9,} bytes: {statistics.median(took) * 1e6:>8,.0f} µs a batch, "
        f"{megabytes / sum(took):>6,.0f} MB/s; opened at {megabytes / opened_s:>6,.0f} MB/s, "
        f"read back at {megabytes / replayed_s:>6,.0f} MB/s"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as root:
        for size in (5_000, 500_000):
            for policy in POLICIES:
                print(measure(Path(root) / policy, policy, size))
