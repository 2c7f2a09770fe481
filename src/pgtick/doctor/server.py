"""The server itself: versions, TLS, role, clock, TimescaleDB's jobs."""

from __future__ import annotations

from datetime import UTC, datetime
from time import perf_counter, time

from pgtick.doctor import queries
from pgtick.doctor.examination import Examination
from pgtick.doctor.report import Clock, Role, Server

__all__ = ["look_at_clock", "look_at_jobs", "look_at_role", "look_at_server"]

_OLDEST = {"plain": 150000, "timescaledb": 160000, "citus": 160000}
_TOO_NEW = 190000  # the first version that nobody has tried
_N_PROBES = 5
_MAX_SKEW_S = 1.0


async def look_at_server(examination: Examination) -> None:
    """Look at the versions of server and extensions, and at this connection's encryption."""
    db = examination.db
    async with examination.looking("server"):
        (record,) = await db.fetch(queries.SERVER)
        extensions = {row["name"]: row for row in await db.fetch(queries.EXTENSIONS)}
        has_timescaledb = "timescaledb" in extensions
        server = examination.report.server = Server(
            version=record["version"],
            started_at=record["started_at"],
            is_replica=record["is_replica"],
            extensions={name: row["version"] for name, row in extensions.items()},
            timescaledb_licence=await db.fetchval("SHOW timescaledb.license") if has_timescaledb else None,
            tls=await db.fetchval(queries.TLS),
        )
        examination.report.database = record["database"]
        examination.report.examined_at = record["now"]
        _judge_version(examination, server, record["version_number"])
        for name in ("timescaledb", "citus"):
            if name in extensions:
                _judge_extension(examination, name, extensions[name]["version"], extensions[name]["available"])
        if not db.config.is_local and server.tls is None:
            examination.find(
                "action",
                "TLS",
                "this connection is not encrypted, and the host is not this machine",
                "sslmode=verify-full in the DSN (POSTGRES_SSLMODE), and hostssl in the server's pg_hba.conf",
            )


def _judge_version(examination: Examination, server: Server, number: int) -> None:
    for name, oldest in _OLDEST.items():
        if number < oldest and (name == "plain" or name in server.extensions):
            on = "" if name == "plain" else f" with {name}"
            examination.find(
                "action",
                "server",
                f"PostgreSQL {server.version} is older than pgtick supports{on}",
                f"upgrade to PostgreSQL {oldest // 10000} to {_TOO_NEW // 10000 - 1}",
            )
    if number >= _TOO_NEW:
        examination.find(
            "warning",
            "server",
            f"PostgreSQL {server.version} is newer than this pgtick was tried with",
            "upgrade pgtick, or run its tests against that server",
        )


def _judge_extension(examination: Examination, name: str, version: str, available: str | None) -> None:
    if available is not None and available != version:
        examination.find(
            "warning",
            name,
            f"the database has {name} {version}, the server's files are of {available}",
            f"ALTER EXTENSION {name} UPDATE, as the first statement of a session of its own (psql -X)",
        )


async def look_at_role(examination: Examination) -> None:
    """Look at the rights of the role that looks, which a service's role should not have."""
    async with examination.looking("role"):
        (record,) = await examination.db.fetch(queries.ROLE)
        role = examination.report.role = Role(**record)
        if role.is_superuser:
            what = f"{role.name} is a superuser, which a service must not be"
        elif role.owns_tables:
            what = f"{role.name} owns tables: a service that runs as their owner can drop them"
        else:
            what = ""
        if what:
            do = "let services connect as members of pgtick_writer or pgtick_reader, the doctor as of pgtick_monitor"
            examination.find("warning", "role", what, do)
        if not role.sees_sessions:
            examination.cannot_see("sessions of other roles", f"GRANT pg_monitor TO {role.name}")


async def look_at_clock(examination: Examination) -> None:
    """Compare the server's clock with this machine's, as exactly as the way there and back allows."""
    async with examination.looking("clock"):
        probes = []
        for _ in range(_N_PROBES):
            started, started_s = time(), perf_counter()
            server_time: datetime = await examination.db.fetchval("SELECT clock_timestamp()")
            round_trip_s = perf_counter() - started_s
            middle = datetime.fromtimestamp(started + round_trip_s / 2, UTC)
            probe = Clock(skew_s=(server_time - middle).total_seconds(), uncertainty_s=round_trip_s / 2)
            probes.append(probe)
        clock = examination.report.clock = min(probes, key=lambda probe: probe.uncertainty_s)
        if abs(clock.skew_s) - clock.uncertainty_s > _MAX_SKEW_S:
            examination.find(
                "action",
                "clock",
                f"the server's clock is {abs(clock.skew_s):.1f} s {'ahead of' if clock.skew_s > 0 else 'behind'} "
                "this machine's",
                "synchronise both (chronyc tracking, timedatectl): retention and freshness go by the server's, "
                "rows by the feeds'",
            )


async def look_at_jobs(examination: Examination) -> None:
    """Look at the last runs of TimescaleDB's jobs (policies)."""
    server = examination.report.server
    if server is None or "timescaledb" not in server.extensions:
        return
    async with examination.looking("TimescaleDB's jobs"):
        for record in await examination.db.fetch(queries.FAILED_JOBS):
            examination.find(
                "action",
                f"job {record['job_id']}",
                f"{record['job']} of {record['table'] or 'no table'} failed when it last ran, "
                f"{record['n_failures']} times in all",
                f"SELECT * FROM timescaledb_information.job_errors WHERE job_id = {record['job_id']}; "
                f"CALL run_job({record['job_id']}) runs it here and now",
            )
