"""The way of a row from the caller to its table."""

from pgtick.writer.buffer import Writer
from pgtick.writer.columns import store_columns
from pgtick.writer.flush import StoreResult, store_rows
from pgtick.writer.lane import TableSettings
from pgtick.writer.parallel import ParallelResult, copy_parallel
from pgtick.writer.spool import Spool

__all__ = [
    "ParallelResult",
    "Spool",
    "StoreResult",
    "TableSettings",
    "Writer",
    "copy_parallel",
    "store_columns",
    "store_rows",
]
