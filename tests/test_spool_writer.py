"""The writer and what it finds in its spool later than at its start."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from rows import NOW, make_symbol, ticker
from spooled import abandon, opened

from pgtick.connection import DatabaseManager
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer


async def _filled(db: DatabaseManager, folder: Path, n_rows: int) -> Writer:
    writer = Writer(db, spool=folder, max_age_s=1000.0)
    symbol_id = await make_symbol()
    for number in range(n_rows):
        await writer.add(BOOK_TICKERS, ticker(symbol_id, timestamp=NOW + timedelta(seconds=number)))
    return writer


async def test_rows_of_a_process_that_died_after_the_start_are_counted_when_the_spool_is_opened(
    db: DatabaseManager, tmp_path: Path
) -> None:
    living = await _filled(db, tmp_path / "spool", 2)  # there was no spool at its start
    dead = await _filled(db, tmp_path / "spool", 3)
    dead.keep_at_exit()
    abandon(dead)
    living.keep_at_exit()
    abandon(living)
    counts = living.counts[BOOK_TICKERS.name]
    assert (counts.n_accepted, counts.n_recovered, counts.n_spooled, counts.n_buffered) == (2, 3, 5, 0)
    with opened(tmp_path / "spool") as spool:
        assert spool.n_rows(BOOK_TICKERS.name) == 5
