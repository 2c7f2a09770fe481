"""What a refusal on Citus means: a COPY's shards tell everything as XX000, so the message has to say it.

Of an INSERT another node tells the class, and no names.
"""

from __future__ import annotations

import re
from typing import Any

import asyncpg

__all__ = ["is_english", "sorted_error"]

# PostgreSQL's own messages, in English.
_FORMS: tuple[tuple[type[asyncpg.PostgresError], str], ...] = (
    (asyncpg.UniqueViolationError, r'duplicate key value violates unique constraint "(?P<constraint>.+)"'),
    (
        asyncpg.ForeignKeyViolationError,
        r'insert or update on table "(?P<table>.+)" violates foreign key constraint "(?P<constraint>.+)"',
    ),
    (
        asyncpg.CheckViolationError,
        r'new row for relation "(?P<table>.+)" violates check constraint "(?P<constraint>.+)"',
    ),
    (
        asyncpg.NotNullViolationError,
        r'null value in column "(?P<column>.+)" of relation "(?P<table>.+)" violates not-null constraint',
    ),
    # PostgreSQL's own class for it, told from a check by its lack of a constraint's name.
    (asyncpg.CheckViolationError, r'no partition of relation "(?P<table>.+)" found for row'),
    # Of what a shard computes: a generated column.
    (asyncpg.NumericValueOutOfRangeError, r"value overflows numeric format|\w+ out of range"),
)
_SHARD = re.compile(r"_\d{6,}$")  # shards are numbered from 102008 on


def is_english(lc_messages: str) -> bool:
    """Whether messages of this setting can be sorted: the empty one is the environment's, which is not known."""
    return re.match(r"(C|POSIX|en|english)([._@-]|$)", lc_messages, re.IGNORECASE) is not None


def sorted_error(error: asyncpg.PostgresError) -> asyncpg.PostgresError:
    """Return the error as the class that plain PostgreSQL raises, with its names; others as they are."""
    has_names = error.table_name or error.constraint_name or error.column_name
    is_nameless = isinstance(error, asyncpg.IntegrityConstraintViolationError) and not has_names
    if error.sqlstate != asyncpg.InternalServerError.sqlstate and not is_nameless:
        return error
    message = error.message or ""
    for kind, form in _FORMS:
        if match := re.fullmatch(form, message, re.DOTALL):
            return _made(kind, error, match)
    return error


def _made(kind: type[asyncpg.PostgresError], error: asyncpg.PostgresError, match: re.Match[str]) -> Any:
    fields = {"S": error.severity, "C": kind.sqlstate, "M": error.message, "D": error.detail, "W": error.context}
    for field, group in (("t", "table"), ("c", "column"), ("n", "constraint")):
        value = match.groupdict().get(group)
        # A table, an index and a key have the shard's number behind their name; a check and a column have not.
        if value and group != "column" and not (group == "constraint" and kind is asyncpg.CheckViolationError):
            value = _SHARD.sub("", value)
        fields[field] = value
    return asyncpg.PostgresError.new({field: value for field, value in fields.items() if value})
