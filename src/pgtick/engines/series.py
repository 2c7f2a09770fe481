"""Create a time-series table on whichever engine the database has, with its references."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from pgtick.connection import DatabaseManager
from pgtick.engines import get_engine
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

    From PostgreSQL 18 on the references are checked once a statement (a declared, not enforced foreign key and
    a trigger on the distinct ids), before that by ordinary foreign keys.
    """
    engine = await get_engine(db)
    set_based = db.server_version >= 180000
    enforced = " NOT ENFORCED" if set_based else ""
    for column, target in references.items():
        columns = f"{columns.rstrip()},\n    FOREIGN KEY ({column}) REFERENCES {target} (id){enforced}"
    await engine.create(db, table, columns, chunk=chunk, retention=retention)
    if not set_based:
        return
    arguments = ", ".join(f"'{column}', '{target}'" for column, target in references.items())
    for event in ("INSERT", "UPDATE"):
        await db.execute(
            f"CREATE TRIGGER check_references_{event.lower()} AFTER {event} ON {quote_identifier(table)} "
            "REFERENCING NEW TABLE AS incoming FOR EACH STATEMENT "
            f"EXECUTE FUNCTION pgtick_check_references({arguments})"
        )
