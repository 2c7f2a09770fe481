"""What a refused COPY on Citus means: its shards tell everything as XX000, so the message has to say it."""

from __future__ import annotations

import re

import asyncpg

__all__ = ["sorted_error"]

# COPY on Citus tells every refusal of a shard as XX000. These are PostgreSQL's own messages, in English.
_FORMS: tuple[tuple[type[asyncpg.PostgresError], re.Pattern[str]], ...] = tuple(
    (kind, re.compile(form, re.DOTALL))
    for kind, form in (
        (asyncpg.UniqueViolationError, r'duplicate key value violates unique constraint "(?P<constraint_name>.+)"'),
        (
            asyncpg.ForeignKeyViolationError,
            r'insert or update on table "(?P<table_name>.+)" violates foreign key constraint "(?P<constraint_name>.+)"',
        ),
        (
            asyncpg.CheckViolationError,
            r'new row for relation "(?P<table_name>.+)" violates check constraint "(?P<constraint_name>.+)"',
        ),
        (
            asyncpg.NotNullViolationError,
            r'null value in column "(?P<column_name>.+)" of relation "(?P<table_name>.+)" violates not-null constraint',
        ),
        (
            asyncpg.ExclusionViolationError,
            r'conflicting key value violates exclusion constraint "(?P<constraint_name>.+)"',
        ),
        # PostgreSQL's own class for it, told from a check by its lack of a constraint's name.
        (asyncpg.CheckViolationError, r'no partition of relation "(?P<table_name>.+)" found for row'),
        (asyncpg.CheckViolationError, r'new row for relation "(?P<table_name>.+)" violates partition constraint'),
        (
            asyncpg.NumericValueOutOfRangeError,
            r"value overflows numeric format|numeric field overflow|.* out of range(?: for type .+)?",
        ),
        (asyncpg.DivisionByZeroError, r"division by zero"),
        (asyncpg.InvalidTextRepresentationError, r"invalid input syntax for type .+"),
        (asyncpg.StringDataRightTruncationError, r"value too long for type .+"),
    )
)
_SHARD = re.compile(r"_\d{6,}$")  # shards are numbered from 102008 on


def sorted_error(error: asyncpg.PostgresError) -> asyncpg.PostgresError:
    """Return the error as the class that plain PostgreSQL raises, with its names; others as they are."""
    if error.sqlstate != asyncpg.InternalServerError.sqlstate:
        return error
    message = str(error)
    for kind, form in _FORMS:
        if match := form.fullmatch(message.partition("\nDETAIL:")[0]):
            found = kind(message)
            found.detail, found.severity, found.context = error.detail, error.severity, error.context
            for name, value in match.groupdict().items():
                # The shard's own name for it; a check and a column are called alike everywhere.
                shared = name == "column_name" or (name == "constraint_name" and kind is asyncpg.CheckViolationError)
                setattr(found, name, value if shared else _SHARD.sub("", value))
            return found
    return error
