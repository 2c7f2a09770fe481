"""Every exception of pgtick.

    PgtickError
    ├── ConfigError           a setting is missing or malformed; named, never shown when secret
    ├── NotInitializedError   get_db_manager() before initialize_database()
    ├── ConnectTimeoutError   the server did not answer before the deadline (also a TimeoutError)
    ├── NoHostError           no host of the configuration serves, or is what is asked for (also a ConnectionError)
    ├── AcquireTimeoutError   no connection came free before the deadline (also a TimeoutError)
    ├── StatementTimeoutError a statement ran past the deadline and was cancelled (also a TimeoutError)
    ├── MigrationError        a migration cannot be found, ordered, loaded or applied
    ├── SchemaDriftError      the live schema is not the declared one, and the setting verify is refuse
    ├── ValidationError       a field of a model breaks a rule (also a ValueError)
    │   └── RowError          ... in a row of a batch: table, index, column, value, rule
    ├── BatchError            some rows of a batch were refused; the rest is stored
    ├── UnavailableError      the server is away, or cannot take rows now; they are kept
    ├── SchemaChangedError    a table is no longer what its rows were encoded for; they are kept
    ├── BufferFullError       the writer's cap in bytes is reached; the row was not accepted
    ├── WriterClosedError     rows for a writer that was closed; they were not accepted
    ├── SpoolError            the spool cannot be written or read
    │   └── SpoolFullError    ... because its cap, or the disk's, is reached
    ├── ParallelError         a part of a parallel copy failed; says what each part has stored
    ├── QueryError            a query cannot be read as it was asked for; nothing was sent (also a ValueError)
    └── DecodeError           bytes of a COPY that no server sends, or a value that the form asked for cannot hold

The server's own errors (asyncpg.PostgresError) pass through unless a fact is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "AcquireTimeoutError",
    "BatchError",
    "BufferFullError",
    "ConfigError",
    "ConnectTimeoutError",
    "DecodeError",
    "MigrationError",
    "NoHostError",
    "NotInitializedError",
    "ParallelError",
    "PgtickError",
    "QueryError",
    "RowError",
    "SchemaChangedError",
    "SchemaDriftError",
    "SpoolError",
    "SpoolFullError",
    "StatementTimeoutError",
    "UnavailableError",
    "ValidationError",
    "WriterClosedError",
    "short_repr",
]

_REPR_LIMIT = 80


def short_repr(value: object) -> str:
    """Return the value's repr, cut to 80 characters; a repr that fails names the type instead."""
    try:
        text = repr(value)
    except Exception as error:  # a user's __repr__ may raise anything
        return f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return text if len(text) <= _REPR_LIMIT else text[: _REPR_LIMIT - 1] + "…"


class PgtickError(Exception):
    """Base of all errors that pgtick raises itself."""


class ConfigError(PgtickError):
    """A setting is missing or malformed.

    The message names the setting and the rule; the value is never part of it, since it may be a secret.
    """

    def __init__(self, setting: str, rule: str) -> None:
        super().__init__(setting, rule)
        self.setting = setting
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.setting}: {self.rule}"


class NotInitializedError(PgtickError):
    """The database manager was asked for before initialize_database() had finished."""


class ConnectTimeoutError(PgtickError, TimeoutError):
    """The server did not answer before the deadline."""


class NoHostError(PgtickError, ConnectionError):
    """No host of the configuration took a connection and is what ``target_session_attrs`` asks for."""


class AcquireTimeoutError(PgtickError, TimeoutError):
    """No connection came free before the deadline: of the pool, or of the transaction that tasks share."""


class StatementTimeoutError(PgtickError, TimeoutError):
    """A statement ran past the deadline and was cancelled."""


class MigrationError(PgtickError):
    """A migration cannot be found, ordered, loaded or applied."""


class SchemaDriftError(PgtickError):
    """The live schema is not the declared one; ``drifts`` are the differences (pgtick.verify.Drift)."""

    def __init__(self, drifts: Sequence[Any]) -> None:
        super().__init__(drifts)
        self.drifts = tuple(drifts)

    def __str__(self) -> str:
        return (
            f"the schema differs from the declared one in {len(self.drifts)} places, and the setting verify is refuse: "
            + "; ".join(map(str, self.drifts))
        )


class ValidationError(PgtickError, ValueError):
    """A value breaks the rule of its field."""

    def __init__(self, table: str, column: str, value: object, rule: str) -> None:
        super().__init__(table, column, value, rule)
        self.table = table
        self.column = column
        self.value = value
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.table}.{self.column}: {short_repr(self.value)} {self.rule}"


class RowError(ValidationError):
    """A row of a batch was refused; ``index`` is its place in what the caller handed over."""

    def __init__(self, table: str, index: int, column: str, value: object, rule: str) -> None:
        super().__init__(table, column, value, rule)
        self.args = (table, index, column, value, rule)
        self.index = index

    def __str__(self) -> str:
        return f"{self.table}, row {self.index}, column {self.column}: {short_repr(self.value)} {self.rule}"


class BatchError(PgtickError):
    """Some rows of a batch were refused. All others are stored (or were there already)."""

    def __init__(self, table: str, n_stored: int, n_duplicates: int, errors: Sequence[RowError]) -> None:
        super().__init__(table, n_stored, n_duplicates, errors)
        self.table = table
        self.n_stored = n_stored
        self.n_duplicates = n_duplicates
        self.errors: tuple[RowError, ...] = tuple(errors)

    def __str__(self) -> str:
        first = self.errors[0] if self.errors else "?"
        return (
            f"{len(self.errors)} of {len(self.errors) + self.n_stored + self.n_duplicates} rows of "
            f"{self.table} were refused, the others are stored; the first: {first}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.table, self.n_stored, self.n_duplicates, self.errors)


class UnavailableError(PgtickError):
    """The server is away, or cannot take rows now; they are kept. ``__cause__`` is its last error."""


class SchemaChangedError(PgtickError):
    """A table is no longer what its rows were encoded for: its flushing stops, and is tried again; rows are kept."""

    def __init__(self, table: str, reason: str) -> None:
        super().__init__(table, reason)
        self.table = table
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.table}: {self.reason}"


class BufferFullError(PgtickError):
    """The writer's cap in bytes is reached; the row was not accepted."""


class WriterClosedError(PgtickError):
    """Rows for a writer that was closed; they were not accepted."""


class SpoolError(PgtickError):
    """The spool cannot be written or read."""


class SpoolFullError(SpoolError):
    """The spool's cap, or the disk's, is reached; nothing of the batch is in it."""


class ParallelError(PgtickError):
    """A part of a parallel copy failed, and the copy stopped; ``result`` says what each part has stored.

    The failure itself is ``__cause__``. The same copy again is harmless: what is stored counts as duplicates.
    """

    def __init__(self, table: str, result: Any) -> None:
        super().__init__(table, result)
        self.table = table
        self.result = result

    def __str__(self) -> str:
        return (
            f"the copy into {self.table} stopped: {self.result.n_stored} rows are stored, "
            f"{self.result.n_duplicates} were there already, {len(self.result.errors)} were refused"
        )


class QueryError(PgtickError, ValueError):
    """A query cannot be read as it was asked for; ``subject`` is the column, parameter or option at fault."""

    def __init__(self, subject: str, rule: str) -> None:
        super().__init__(subject, rule)
        self.subject = subject
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.subject}: {self.rule}"


class DecodeError(PgtickError):
    """Bytes that no server sends, or a value that the form asked for cannot hold.

    ``offset``: the byte of the stream; ``row``: the row's place in the result, from 0; None where not known.
    """

    def __init__(
        self, reason: str, *, offset: int | None = None, row: int | None = None, column: str | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset
        self.row = row
        self.column = column

    def __str__(self) -> str:
        place = (
            (f"byte {self.offset}", self.offset),
            (f"row {self.row}", self.row),
            (f"column {self.column}", self.column),
        )
        where = ", ".join(text for text, known in place if known is not None)
        return f"{where}: {self.reason}" if where else self.reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _decode_error, (self.reason, self.offset, self.row, self.column)


def _decode_error(reason: str, offset: int | None, row: int | None, column: str | None) -> DecodeError:
    return DecodeError(reason, offset=offset, row=row, column=column)
