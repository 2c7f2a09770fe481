"""The engines: what differs between plain PostgreSQL and TimescaleDB, and nothing else."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pgtick.connection import DatabaseManager
from pgtick.engines.plain import PlainEngine
from pgtick.engines.timescale import TimescaleEngine

__all__ = ["Engine", "get_engine"]

Engine = PlainEngine | TimescaleEngine

_engines: WeakKeyDictionary[DatabaseManager, Engine] = WeakKeyDictionary()


async def get_engine(db: DatabaseManager) -> Engine:
    """Return the manager's engine: TimescaleDB where the extension is installed, else plain PostgreSQL."""
    engine = _engines.get(db)
    if engine is None:
        wanted = db.config.engine
        installed = await db.fetchval("SELECT true FROM pg_extension WHERE extname = 'timescaledb'")
        engine = TimescaleEngine() if wanted == "timescale" or (wanted == "auto" and installed) else PlainEngine()
        _engines[db] = engine
    return engine
