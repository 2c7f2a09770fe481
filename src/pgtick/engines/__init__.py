"""The engines: what differs between plain PostgreSQL and TimescaleDB, and nothing else."""

from pgtick.engines.base import Engine, SeriesInfo, SeriesSize
from pgtick.engines.choice import get_engine
from pgtick.engines.maintenance import maintain

__all__ = ["Engine", "SeriesInfo", "SeriesSize", "get_engine", "maintain"]
