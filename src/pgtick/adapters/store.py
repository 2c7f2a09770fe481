"""What the stores of all feed libraries share: the way to the Writer, and ids for trades that have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any, Self

import msgspec

from pgtick._fast.encode import content_number
from pgtick.connection import DatabaseManager
from pgtick.tables import Table
from pgtick.writer import Writer

__all__ = ["FeedStore", "made_trade_id"]


class FeedStore:
    """Hands rows to a Writer; ``n_events`` counts by channel what the feed library handed over."""

    def __init__(
        self,
        db: DatabaseManager | None = None,
        *,
        on_row: Callable[[str, object], None] | None = None,
        **writer_options: Any,
    ) -> None:
        self.writer = Writer(db, **writer_options)
        self.n_events: Counter[str] = Counter()
        self._on_row = on_row

    async def close(self) -> None:
        """Store what waits."""
        await self.writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _add(self, table: Table, row: msgspec.Struct) -> None:
        if self._on_row is not None:
            self._on_row(table.name, row)
        await self.writer.add(table, row)


def made_trade_id(seen: Counter[tuple[Any, ...]], instant: datetime, price: Any, quantity: Any, side: Any) -> str:
    """Return an id made of the trade's content and its occurrence among those ``seen``, which it joins.

    So two like trades in one instant are two, and the same ones, delivered again, are duplicates.
    """
    content = (instant.isoformat(), str(price), str(quantity), str(side))
    seen[content] += 1
    return str(content_number("|".join((*content, str(seen[content]))).encode()))
