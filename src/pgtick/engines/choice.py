"""Which engine a database has."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pgtick.connection import DatabaseManager
from pgtick.engines.base import Engine
from pgtick.engines.plain import PlainEngine
from pgtick.engines.timescale import TimescaleEngine
from pgtick.errors import ConfigError

__all__ = ["get_engine"]

_engines: WeakKeyDictionary[DatabaseManager, Engine] = WeakKeyDictionary()


async def get_engine(db: DatabaseManager) -> Engine:
    """Return the manager's engine: that of the tables that are there, else ``config.engine``.

    ``auto`` takes TimescaleDB where the extension is installed, else plain PostgreSQL. An extension installed
    beside tables that are partitioned already changes nothing. Raises ConfigError when the configuration
    wants what the database does not have.
    """
    engine = _engines.get(db)
    if engine is None:
        engine = _engines.setdefault(db, await _choose(db))
    return engine


async def _choose(db: DatabaseManager) -> Engine:
    wanted = db.config.engine
    if wanted == "citus":
        raise ConfigError("engine", "citus is not supported yet")
    found = await _engine_of_tables(db)
    if found is not None and wanted not in ("auto", found):
        raise ConfigError("engine", f"is {wanted}, but the tables of this database are made for {found}")
    has_extension = await db.fetchval("SELECT true FROM pg_extension WHERE extname = 'timescaledb'")
    if wanted == "timescale" and not has_extension:
        raise ConfigError("engine", "is timescale, but the database lacks it: CREATE EXTENSION timescaledb")
    if wanted == "auto":
        wanted = found or ("timescale" if has_extension else "plain")
    return TimescaleEngine() if wanted == "timescale" else PlainEngine()


async def _engine_of_tables(db: DatabaseManager) -> str | None:
    if await db.fetchval("SELECT to_regclass('pgtick_time_series')") is None:
        return None
    kind = await db.fetchval(
        "SELECT relkind::text FROM pg_class "
        "JOIN pgtick_time_series ON oid = to_regclass(quote_ident(table_name)) ORDER BY table_name LIMIT 1"
    )
    return None if kind is None else "plain" if kind == "p" else "timescale"
