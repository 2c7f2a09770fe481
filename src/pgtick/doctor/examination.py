"""An examination under way: what it looks through, and where it writes down what it finds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg

from pgtick.connection import DatabaseManager
from pgtick.doctor.report import Finding, Report, Severity, Unseen
from pgtick.errors import StatementTimeoutError

__all__ = ["Examination"]

# Looking changes nothing, and neither waits behind a migration nor keeps a busy server busy.
_SETTINGS = "SET TRANSACTION READ ONLY; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '10s'"


class Examination:
    """A database and the report on it, which the looks fill in."""

    def __init__(self, db: DatabaseManager, report: Report, stale_after: Mapping[str, timedelta]) -> None:
        self.db = db
        self.report = report
        self.stale_after = stale_after

    @asynccontextmanager
    async def looking(self, subject: str) -> AsyncIterator[None]:
        """Look in a read-only transaction of its own; what may not be seen, or not now, is written down as such."""
        try:
            async with self.db.transaction():
                await self.db.execute(_SETTINGS)
                yield
        except asyncpg.InsufficientPrivilegeError as error:
            self.cannot_see(subject, f"{error}: grant it, or look as a member of pgtick_monitor or pg_monitor")
        except (
            asyncpg.ConnectionFailureError
        ) as error:  # Citus's word for another node; of this one it is another error
            do = "see that the node runs, and that this role may log in from the coordinator (pg_hba.conf)"
            self.find("action", subject, str(error), do)
        except asyncpg.LockNotAvailableError:
            self.cannot_see(subject, "a session holds an exclusive lock on it: look again, and at the waiting locks")
        except (asyncpg.QueryCanceledError, StatementTimeoutError):
            self.cannot_see(subject, "more than 10 s: the server is busy, or the table's key does not serve the look")

    def find(self, severity: Severity, subject: str, what: str, do: str) -> None:
        """Write down a finding."""
        self.report.findings.append(Finding(severity=severity, subject=subject, what=what, do=do))

    def cannot_see(self, subject: str, needs: str) -> None:
        """Write down what could not be looked at."""
        self.report.unseen.append(Unseen(subject=subject, needs=needs))
