"""The way of a row from the caller to its table."""

from pgtick.writer.buffer import Writer
from pgtick.writer.flush import StoreResult, store_rows

__all__ = ["StoreResult", "Writer", "store_rows"]
