"""Which engine a database has."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pgtick.connection import DatabaseManager
from pgtick.engines.base import Engine
from pgtick.engines.citus import CitusEngine
from pgtick.engines.plain import PlainEngine
from pgtick.engines.timescale import TimescaleEngine
from pgtick.errors import ConfigError

__all__ = ["get_engine"]

# In the order in which tables are looked at.
_ENGINES: dict[str, type[Engine]] = {"timescale": TimescaleEngine, "citus": CitusEngine, "plain": PlainEngine}
_engines: WeakKeyDictionary[DatabaseManager, Engine] = WeakKeyDictionary()


async def get_engine(db: DatabaseManager) -> Engine:
    """Return the manager's engine: that of the tables that are there, else ``config.engine``.

    ``auto`` takes the engine whose extension is installed, else plain PostgreSQL. An extension installed beside
    tables that are partitioned already changes nothing. Raises ConfigError when the configuration wants what
    the database does not have.
    """
    engine = _engines.get(db)
    if engine is None:
        engine = _engines.setdefault(db, await _choose(db))
    return engine


async def _choose(db: DatabaseManager) -> Engine:
    wanted = db.config.engine
    has_timescale = await db.fetchval("SELECT true FROM pg_extension WHERE extname = 'timescaledb'")
    has_citus = await db.fetchval("SELECT true FROM pg_extension WHERE extname = 'citus'")
    found = await _engine_of_tables(db, has_citus)
    if found is not None and wanted not in ("auto", found):
        raise ConfigError("engine", f"is {wanted}, but the tables of this database are made for {found}")
    for name, extension, is_there in (("timescale", "timescaledb", has_timescale), ("citus", "citus", has_citus)):
        if wanted == name and not is_there:
            raise ConfigError("engine", f"is {name}, but the database lacks it: CREATE EXTENSION {extension}")
    if wanted == "auto":
        wanted = found or ("timescale" if has_timescale else "citus" if has_citus else "plain")
    return _ENGINES[wanted]()


async def _engine_of_tables(db: DatabaseManager, has_citus: bool | None) -> str | None:
    """Return the engine of the time-series tables that are there, looked for as hypertables, distributed, partitioned.

    Citus serves partitioned tables beside distributed ones.
    """
    if await db.fetchval("SELECT to_regclass('pgtick_time_series')") is None:
        return None
    distributed = "EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = oid)" if has_citus else "false"
    kinds = await db.fetch(
        f"SELECT DISTINCT CASE WHEN relkind <> 'p' THEN 'timescale' WHEN {distributed} THEN 'citus' ELSE 'plain' END "
        "FROM pg_class JOIN pgtick_time_series ON oid = to_regclass(quote_ident(table_name))"
    )
    found = {record[0] for record in kinds}
    if "timescale" in found and len(found) > 1:
        raise ConfigError(
            "engine", "some tables in pgtick_time_series are hypertables and some are not: make them alike"
        )
    return next((name for name in _ENGINES if name in found), None)
