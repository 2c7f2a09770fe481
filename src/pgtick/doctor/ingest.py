"""What the writers have left behind: rows in quarantine."""

from __future__ import annotations

from pgtick.doctor.examination import Examination
from pgtick.tables import INGEST_QUARANTINE

__all__ = ["look_at_quarantine"]

# Of two columns, which is all that a monitor may see of the rows.
_QUARANTINE = """
SELECT table_name AS "table", count(table_name) AS n_rows, max(quarantined_at) AS newest
FROM ingest_quarantine GROUP BY table_name ORDER BY table_name
"""


async def look_at_quarantine(examination: Examination) -> None:
    """Count the rows that were refused, by table."""
    async with examination.looking(f"rows of {INGEST_QUARANTINE}"):
        if await examination.db.fetchval("SELECT to_regclass($1)", INGEST_QUARANTINE) is None:
            return  # the migrations say why
        for record in await examination.db.fetch(_QUARANTINE):
            examination.find(
                "warning",
                record["table"],
                f"{record['n_rows']} refused rows are in quarantine, the newest of "
                f"{record['newest']:%Y-%m-%d %H:%M:%S} UTC",
                f"pgtick quarantine list --table {record['table']}; mend, replay or drop them (docs/quarantine.md)",
            )
