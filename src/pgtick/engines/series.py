"""Create a time-series table on whichever engine the database has, with its references."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pgtick.connection import DatabaseManager
from pgtick.engines.base import add_reference_triggers
from pgtick.engines.choice import get_engine
from pgtick.tables import quote_identifier

__all__ = ["create_series"]


async def create_series(
    db: DatabaseManager,
    table: str,
    columns: str,
    *,
    references: Mapping[str, str],
    chunk: timedelta,
    retention: timedelta,
) -> None:
    """Create the table from the text of its columns; ``references`` is {column: exchanges or symbols}.

    From PostgreSQL 18 on the references are checked once a statement, by a trigger on the distinct ids, before
    that, and on Citus, by ordinary foreign keys.
    """
    engine = await get_engine(db)
    set_based = bool(references) and db.server_version >= 180000 and engine.name != "citus"  # it has no such triggers
    for column, target in references.items():
        if set_based and engine.name == "timescale":
            # TimescaleDB locks what a declared key refers to, enforced or not, before it drops a chunk: one
            # reader of an old chunk would then hold up every insert, which looks into symbols.
            continue
        enforced = " NOT ENFORCED" if set_based else ""
        columns = (
            f"{columns.rstrip()},\n    FOREIGN KEY ({quote_identifier(column)}) "
            f"REFERENCES {quote_identifier(target)} (id){enforced}"
        )
    await engine.create(db, table, columns, chunk=chunk, retention=retention)
    if set_based:
        await add_reference_triggers(db, table, [name for pair in references.items() for name in pair])
