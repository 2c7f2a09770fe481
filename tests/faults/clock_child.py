"""A process whose wall clock and zone are changed while it writes (``python clock_child.py DSN RATE_FILE``)."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from faults.support import managed, ticker_of, until
from pgtick.config import DatabaseConfig
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer

#: Winter and summer of the north and the south, and a zone with half an hour.
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata")
STEPS = ("+0", "+3600", "-3600", "+0", "+1800")
#: An hour around each change of Berlin's clocks in 2025 and 2026, in steps of ten minutes.
CHANGES = (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2025, 10, 26, 1, tzinfo=UTC))
AROUND = [change + timedelta(minutes=n) for change in CHANGES for n in range(-60, 61, 10)]
MAX_AGE_S = 0.2


async def run(config: DatabaseConfig, clock: Path | None) -> None:
    n = 0
    async with managed(config) as db, Writer(db, spool=False, max_age_s=MAX_AGE_S) as writer:
        counts = writer.metrics.counts_of(BOOK_TICKERS.name)
        for zone, step in zip(ZONES, STEPS, strict=True):
            os.environ["TZ"] = zone
            time.tzset()
            for instant in AROUND:
                row = ticker_of(n)
                row.timestamp = instant
                await writer.add(BOOK_TICKERS, row)
                n += 1
            if clock is not None:
                clock.write_text(step)
            before_s = time.monotonic()
            await until(lambda n=n: counts.n_stored == n, "flushed by age", 10)  # type: ignore[misc]
            print(f"{zone} {step}: {time.time():.0f} {time.monotonic() - before_s:.2f}", flush=True)
    assert counts.n_accepted == counts.n_stored == n, counts


if __name__ == "__main__":
    asyncio.run(run(DatabaseConfig.from_dsn(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
