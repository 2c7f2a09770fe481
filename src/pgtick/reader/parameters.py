"""A query's parameters as literals, since COPY takes none: the server itself writes each, by its type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from pgtick.errors import QueryError

__all__ = ["inline_parameters", "query_tokens"]

# What PostgreSQL's scanner (scan.l) takes as one token, as far as a parameter or a semicolon could hide in it.
# Two strings with a line break between them are one, and the second obeys the first one's escapes.
_ESCAPED = r"'(?:[^'\\]|\\.|'')*+'"
_BREAK = r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\n\r\f\v]|--[^\n\r]*+[\n\r])*+"
_ESCAPED_STRING = rf"{_ESCAPED}(?:{_BREAK}{_ESCAPED})*+"
_LETTER = r"A-Za-z_\u0080-\U0010ffff"
_REST = rf"""
    | "(?:[^"]|"")*+"
    | --[^\n\r]*+
    | (?P<comment>/\*)
    | \$(?P<tag>[{_LETTER}][{_LETTER}0-9]*+)?\$.*?\$(?(tag)(?P=tag))\$
    | \$(?P<number>[0-9]+)
    | [{_LETTER}][{_LETTER}0-9$]*+
    | (?P<semicolon>;)
    | .
"""
_PLAIN_STRING = r"'(?:[^']|'')*+'"
_TOKEN = {
    True: re.compile(rf"[eE]{_ESCAPED_STRING} | {_PLAIN_STRING} {_REST}", re.VERBOSE | re.DOTALL),
    False: re.compile(rf"[eE]?{_ESCAPED_STRING} {_REST}", re.VERBOSE | re.DOTALL),
}
_COMMENT_EDGE = re.compile(r"/\*|\*/")

# Texts that are read back exactly, whatever the session's settings are.
_SETTINGS = {"datestyle": "ISO, YMD", "intervalstyle": "postgres", "extra_float_digits": "1", "bytea_output": "hex"}


def query_tokens(query: str, *, standard_strings: bool = True) -> Iterator[str | int]:
    """Yield the query's text in pieces, a parameter as its number; semicolons become spaces.

    The query is one that the server has prepared, so it is one statement, and a semicolon only ends it.
    ``standard_strings``: the session's standard_conforming_strings.
    """
    token = _TOKEN[standard_strings]
    at = 0
    while (match := token.match(query, at)) is not None:  # None at the end: any character matches
        at = match.end()
        if match["comment"]:
            at = _comment_end(query, at)
            yield query[match.start() : at]
        elif match["number"]:
            yield int(match["number"])
        else:
            yield " " if match["semicolon"] else match[0]


def _comment_end(query: str, at: int) -> int:
    depth = 1
    for edge in _COMMENT_EDGE.finditer(query, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(query)


async def inline_parameters(connection: Any, statement: Any, query: str, args: Sequence[object]) -> str:
    """Return the query with each parameter as a literal that the server wrote, and without semicolons.

    Raises QueryError where an argument is missing or too many, holds NUL, or is a datetime without a zone for a
    timestamptz; asyncpg's DataError, naming the parameter, where one does not fit its type.
    """
    parameters = statement.get_parameters()
    if len(parameters) != len(args):
        raise QueryError("parameters", f"the query has {len(parameters)}, {len(args)} were given")
    values = [
        _checked(f"${n}", type_.name, arg) for n, (type_, arg) in enumerate(zip(parameters, args, strict=True), 1)
    ]
    literals = await _literals(connection, [parameter.oid for parameter in parameters], values) if values else []
    standard = connection.get_settings().standard_conforming_strings == "on"
    return "".join(
        literals[token - 1] if isinstance(token, int) else token
        for token in query_tokens(query, standard_strings=standard)
    )


async def _literals(connection: Any, oids: list[int], values: Iterable[object]) -> list[str]:
    types: list[str] = await connection.fetchval(
        "SELECT array_agg(format_type(oid, -1) ORDER BY n) FROM unnest($1::oid[]) WITH ORDINALITY AS given (oid, n)",
        oids,
    )
    given = ", ".join(f"${n}::{name} AS v{n}" for n, name in enumerate(types, 1))
    settings = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _SETTINGS.items())
    # format('%L') goes through the type's own output function. OFFSET 0 keeps the planner from folding it into a
    # constant before the settings are in force; rolling back ends them.
    literals = ", ".join(f"format('(%L::%s)', v{n}, format_type({oid}, -1))" for n, oid in enumerate(oids, 1))
    transaction = connection.transaction()
    await transaction.start()
    try:
        written: list[str] = await connection.fetchval(
            f"SELECT ARRAY[{literals}] FROM (SELECT {given}, {settings} OFFSET 0) AS given", *values
        )
    finally:
        await transaction.rollback()
    return written


def _checked(name: str, type_name: str, value: object) -> object:
    """Return the argument as asyncpg shall encode it; lists likewise, element by element."""
    if isinstance(value, list | tuple):
        return [_checked(name, type_name.removesuffix("[]"), element) for element in value]
    if isinstance(value, str) and "\0" in value:
        raise QueryError(f"parameter {name}", "text with NUL, which PostgreSQL cannot hold")
    if type_name == "timestamptz" and isinstance(value, datetime) and value.tzinfo is None:
        raise QueryError(f"parameter {name}", "a datetime without a zone would be read as the machine's local time")
    if type_name == "numeric" and isinstance(value, float):
        return Decimal(repr(value))  # asyncpg would send 0.1 as 0.1000000000000000055…
    return value
