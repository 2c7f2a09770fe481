"""Who is connected, who waits, and who keeps vacuum from its work."""

from __future__ import annotations

from datetime import timedelta

from pgtick.doctor import queries
from pgtick.doctor.examination import Examination
from pgtick.doctor.report import Connections

__all__ = ["look_at_connections", "look_at_transactions", "look_at_waits"]

_FULL, _NEARLY_FULL = 0.95, 0.80


async def look_at_connections(examination: Examination) -> None:
    """Count the sessions against the server's limit."""
    async with examination.looking("connections"):
        records = await examination.db.fetch(queries.CONNECTIONS)
        connections = examination.report.connections = Connections(
            n_used=sum(record["n_sessions"] for record in records),
            n_max=records[0]["n_max"],
            n_reserved=records[0]["n_reserved"],
            n_by_application={record["application"] or "(unnamed)": record["n_sessions"] for record in records},
        )
        n_usable = connections.n_max - connections.n_reserved
        if connections.n_used >= _NEARLY_FULL * n_usable:
            most = ", ".join(f"{count} of {name}" for name, count in list(connections.n_by_application.items())[:3])
            examination.find(
                "action" if connections.n_used >= _FULL * n_usable else "warning",
                "connections",
                f"{connections.n_used} of {n_usable} are in use ({most})",
                "lower max_connections in the services' configurations (POSTGRES_MAX_CONNECTIONS), put a pooler in "
                "between, or raise max_connections in postgresql.conf (restart)",
            )


async def look_at_transactions(examination: Examination) -> None:
    """Look for transactions that sleep, and for whatever keeps old row versions from being removed."""
    async with examination.looking("transactions"):
        idle = await examination.db.fetch(queries.IDLE_IN_TRANSACTION)
        for record in idle:
            examination.find(
                "action",
                f"session {record['pid']}",
                f"idle in a transaction for {_spoken(record['idle_for'])} (role {record['role']}, application "
                f"{record['application'] or '?'}): its locks and its snapshot stay",
                f"mend the client, or SELECT pg_terminate_backend({record['pid']})",
            )
        for record in await examination.db.fetch(queries.VACUUM_HELD_BACK):
            since = "" if record["open_for"] is None else f" for {_spoken(record['open_for'])}"
            examination.find("action", "vacuum", f"held back by {record['holder']}{since}", record["do"])


async def look_at_waits(examination: Examination) -> None:
    """Look for sessions that wait for a lock."""
    async with examination.looking("locks"):
        for record in await examination.db.fetch(queries.WAITING_LOCKS):
            blockers = record["blocked_by"] or "nobody any more"
            examination.find(
                "action",
                f"session {record['pid']}",
                f"waits {_spoken(record['waits_for'])} for {record['mode']} on {record['target']}, blocked by "
                f"{blockers}; whoever wants the same table queues behind it",
                f"SELECT * FROM pg_stat_activity WHERE pid IN ({record['pid']}, {blockers})"
                if record["blocked_by"]
                else "look again",
            )


def _spoken(span: timedelta) -> str:
    return str(timedelta(seconds=round(span.total_seconds())))
