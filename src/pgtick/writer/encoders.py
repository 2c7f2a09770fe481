"""The encoder of each table, made once."""

from __future__ import annotations

from pgtick._fast.encode import RowEncoder
from pgtick.tables import Table

__all__ = ["encoder_of"]

_encoders: dict[Table, RowEncoder] = {}


def encoder_of(table: Table) -> RowEncoder:
    """Return the table's encoder, made once."""
    encoder = _encoders.get(table)
    if encoder is None:
        encoder = _encoders[table] = RowEncoder(table)
    return encoder
