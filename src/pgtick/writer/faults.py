"""What an error of a delivery means: try again, look at the rows, wait for the schema, or a mistake of the caller's."""

from __future__ import annotations

import enum

import asyncpg

__all__ = ["DATA_ERRORS", "Fault", "fault_of"]

#: What only the server can know of a row's data: SQLSTATE classes 22, 23, and 54000 (a text too long for its index).
DATA_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
)

# Connection, no such role or database (yet, or while they are made anew), full, busy or cancelled, stopping or
# starting, broken disk; 25006: what was the primary is a standby now.
_RETRIED_CLASSES = ("08", "28", "40", "53", "55", "57", "58")
_RETRIED_STATES = ("25006", "3D000", "25P03", "XX001", "XX002")


class Fault(enum.Enum):
    """What is to be done about an error."""

    RETRY = "retry"
    DATA = "data"
    SCHEMA = "schema"
    PROGRAMMER = "programmer"


def fault_of(error: Exception) -> Fault:
    """Return what the error means. On Citus it is first to be sorted by ``Engine.sorted_error``."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        if isinstance(error, DATA_ERRORS):
            return Fault.DATA
        if state[:2] in _RETRIED_CLASSES or state in _RETRIED_STATES:
            return Fault.RETRY
        # 42: no such table or column, another type, no right to it; 0A: a plan of before; 3F: no schema.
        if state[:2] in ("42", "0A", "3F"):
            return Fault.SCHEMA
        return Fault.PROGRAMMER
    # A dead connection shows itself in asyncpg as any of these; TimeoutError is our deadline, too.
    if isinstance(error, OSError | TimeoutError | EOFError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return Fault.RETRY
    return Fault.PROGRAMMER
