"""What the stores of all feed libraries share: the way to the Writer, and ids for trades that have none."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any, Self

from pgtick._fast.encode import content_number
from pgtick.connection import DatabaseManager
from pgtick.writer import Writer

__all__ = ["FeedStore", "made_trade_id"]


class FeedStore:
    """Hands rows to a Writer; ``n_events`` counts by channel what the feed library handed over."""

    def __init__(self, db: DatabaseManager | None = None, **writer_options: Any) -> None:
        self.writer = Writer(db, **writer_options)
        self.n_events: Counter[str] = Counter()

    async def close(self) -> None:
        """Store what waits."""
        await self.writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def made_trade_id(seen: Counter[tuple[Any, ...]], instant: datetime, price: Any, quantity: Any, side: Any) -> str:
    """Return an id made of the trade's content and its occurrence among those ``seen``, which it joins.

    So two like trades in one instant are two, and the same ones, delivered again, are duplicates.
    """
    content = (instant.isoformat(), str(price), str(quantity), str(side))
    seen[content] += 1
    return str(content_number("|".join((*content, str(seen[content]))).encode()))
