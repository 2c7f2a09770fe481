"""Columns to their table: NumPy arrays, or Arrow from whoever has it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from pgtick.connection import DatabaseManager
from pgtick.tables import Table
from pgtick.writer.encoders import encoder_of
from pgtick.writer.flush import StoreResult, store_batch

__all__ = ["store_columns"]


async def store_columns(
    table: Table,
    columns: object,
    *,
    time_unit: str | None = None,
    scales: Mapping[str, int] | None = None,
    masks: Mapping[str, object] | None = None,
    db: DatabaseManager | None = None,
) -> StoreResult:
    """Encode and store columns as one batch, as store_rows stores rows: the same keys, refusals and duplicates.

    ``columns``, ``scales`` and ``masks`` are those of RowEncoder.encode_columns (docs/columns.md). They are
    encoded in a thread of their own, without the GIL, and must not change until this returns. A refused row's
    ``index`` is its place in the columns; the value of one that the server refused is as it would be read back.
    """
    batch = await asyncio.to_thread(
        encoder_of(table).encode_columns, columns, time_unit=time_unit, scales=scales, masks=masks
    )
    return await store_batch(table, batch, db=db)
