"""The way of a row from the caller to its table."""

from pgtick.writer.buffer import Writer
from pgtick.writer.columns import store_columns
from pgtick.writer.flush import StoreResult, store_rows
from pgtick.writer.parallel import ParallelResult, copy_parallel

__all__ = ["ParallelResult", "StoreResult", "Writer", "copy_parallel", "store_columns", "store_rows"]
