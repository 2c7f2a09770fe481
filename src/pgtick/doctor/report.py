"""What the doctor found, as data."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from pgtick.engines import SeriesInfo, SeriesSize

__all__ = [
    "Clock",
    "Connections",
    "Finding",
    "Freshness",
    "MigrationState",
    "Report",
    "Role",
    "Series",
    "Server",
    "Severity",
    "Unseen",
]

#: "action": somebody has to do something; "warning": somebody should know.
Severity = Literal["action", "warning"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it should be; ``do`` is a command, a statement or a sentence."""

    severity: Severity
    subject: str
    what: str
    do: str


class Unseen(msgspec.Struct, frozen=True, kw_only=True):
    """Something that could not be looked at; ``needs`` is what it would take."""

    subject: str
    needs: str


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """The server and what it has loaded."""

    version: str
    started_at: datetime
    is_replica: bool
    extensions: dict[str, str]
    timescaledb_licence: str | None
    tls: str | None  # this connection's protocol; None: it is not encrypted


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """The role that looked."""

    name: str
    is_superuser: bool
    owns_tables: bool
    sees_sessions: bool  # of other roles: a member of pg_read_all_stats, which pg_monitor includes


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """The server's clock against this machine's; positive: the server's is ahead."""

    skew_s: float
    uncertainty_s: float


class MigrationState(msgspec.Struct, frozen=True, kw_only=True):
    """A migration and what became of it; ``state`` as in get_available_migrations."""

    label: str
    state: str
    applied_at: datetime | None


class Freshness(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of an exchange's rows in a table; ``age_s`` is the server's now less ``newest``."""

    exchange: str
    is_active: bool
    oldest: datetime
    newest: datetime
    age_s: float


class Series(msgspec.Struct, kw_only=True):
    """A time-series table: how it is kept, how large it is, and how fresh."""

    table: str
    info: SeriesInfo
    size: SeriesSize | None = None
    oldest: datetime | None = None
    newest: datetime | None = None
    exchanges: list[Freshness] = []


class Connections(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions of clients on the whole server against its limit."""

    n_used: int
    n_max: int
    n_reserved: int  # of n_max, for superusers and members of pg_use_reserved_connections
    n_by_application: dict[str, int]


class Report(msgspec.Struct, kw_only=True):
    """The whole examination; what is None or empty could not be looked at, or is not there (``unseen`` says)."""

    database: str
    examined_at: datetime
    engine: str | None = None
    server: Server | None = None
    role: Role | None = None
    clock: Clock | None = None
    migrations: list[MigrationState] = []
    series: list[Series] = []
    database_bytes: int | None = None
    connections: Connections | None = None
    findings: list[Finding] = []
    unseen: list[Unseen] = []

    @property
    def exit_code(self) -> int:
        """3 when a finding needs action, else 0: warnings alone do not fail."""
        return 3 if any(finding.severity == "action" for finding in self.findings) else 0
