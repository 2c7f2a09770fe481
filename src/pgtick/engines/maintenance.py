"""Maintenance: partitions ahead and retention, by the service itself or from cron."""

from __future__ import annotations

import asyncio
import logging
import random

from pgtick.connection import DatabaseManager, add_start_step, connect
from pgtick.engines.choice import get_engine
from pgtick.errors import PgtickError

__all__ = ["maintain"]

logger = logging.getLogger(__name__)

_LOCK = 7_463_816_503  # the migrator's, plus one
_CLOSE_TIMEOUT_S = 5.0
_FIRST_S = 60.0  # a service that is restarted more often than hourly must not fill the disk


async def maintain(db: DatabaseManager, *, dry_run: bool = False) -> dict[str, list[str]] | None:
    """Make partitions ahead and apply the retention; return the names of what was dropped, by table.

    ``dry_run``: only return what the retention would drop. Returns None when another process is at it.
    """
    if db.in_transaction:
        raise PgtickError("maintenance wants short transactions of its own: call it outside of transaction()")
    engine = await get_engine(db)
    if dry_run:
        return await engine.apply_retention(db, dry_run=True)
    # The lock is a transaction's, so that a transaction pooler may be in between, and on a connection of its
    # own, because the work is done in other, short transactions and the pool may have one connection only.
    connection = await connect(db.config)
    try:
        async with connection.transaction():
            if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LOCK):
                return None
            await engine.make_ahead(db)
            return await engine.apply_retention(db)
    finally:
        await connection.close(timeout=_CLOSE_TIMEOUT_S)


async def _keep_up(db: DatabaseManager, interval_s: float) -> None:
    pause_s = min(interval_s, _FIRST_S)
    while True:
        # Jitter, so that many processes started together do not ask together for ever.
        await asyncio.sleep(pause_s * random.uniform(0.9, 1.1))  # noqa: S311  no secret depends on it
        pause_s = interval_s
        try:
            dropped = await maintain(db)
        except Exception as error:  # whatever it was, the next round may do better
            logger.warning("maintenance failed, next try in about %.0f s: %r", interval_s, error)
            continue
        for table, names in (dropped or {}).items():
            if names:
                logger.info("dropped %d of %s, the newest %s", len(names), table, names[-1])


async def _start(db: DatabaseManager) -> None:
    interval_s = db.config.maintenance_interval_s
    if interval_s <= 0:
        return
    task = asyncio.create_task(_keep_up(db, interval_s), name="pgtick maintenance")

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    db.on_close(stop)


add_start_step(30, _start)
