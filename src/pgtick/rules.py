"""What a column is, and the rules that its values obey.

These are the rules in Python, for ``validate()``; the encoder has them in C, for millions of rows.
tests/test_models.py holds the two together, word for word.
"""

from __future__ import annotations

import json
import math
import operator
import re
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

__all__ = ["EARLIEST", "ENCODED_TYPES", "Sql", "broken_rule"]

# The server's: a numeric's exponent as text, its decimals, its digits before the point (and their bits).
_MAX_EXPONENT = (1 << 30) - 1
_MAX_SCALE = 16383
_MAX_DIGITS = 131072
_MAX_BITS = 435412

_DECIMAL_TEXT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?")
_NOT_FINITE_TEXT = re.compile(r"[+-]?(?:s?nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_NOT_NUMBER = "must be a number: float, Decimal, int, or decimal text"
_NOT_FINITE = "must be finite"
_TOO_LARGE = "must fit numeric"
# As json writes a NUL; the backslashes before it are whole pairs.
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


#: Where a plausible instant begins: the year of the first block.
EARLIEST = datetime(2009, 1, 1, tzinfo=UTC)


class Sql(msgspec.Struct, frozen=True, kw_only=True):
    """What a field is in the database.

    ``rule`` is "> 0", ">= 0", or a tuple of the texts allowed; for timestamptz ``max_ahead`` says how far in
    the future an instant may lie. ``content_key``: where the value is None, the encoder makes it from the
    row's content (see RowEncoder). ``made_by_server``: read, never written.
    """

    type: str
    rule: str | tuple[str, ...] | None = None
    made_by_server: bool = False
    content_key: bool = False
    max_ahead: timedelta = timedelta(days=1)


def broken_rule(value: Any, sql: Sql) -> str | None:
    """Return the rule that the value breaks, or None."""
    if value is None:
        return "must not be NULL"
    return _CHECKS[sql.type](value, sql)


def _check_number(value: Any, sql: Sql) -> str | None:
    if isinstance(value, float):
        return _check_sign(value, sql) if math.isfinite(value) else _NOT_FINITE
    if isinstance(value, str):
        return _check_decimal_text(value, sql)
    if isinstance(value, bytes):
        return _check_decimal_text(value.decode("latin-1"), sql)
    if isinstance(value, Decimal):
        return _check_decimal_text(Decimal.__str__(value), sql) if value.is_finite() else _NOT_FINITE
    whole = _to_int(value)
    if whole is None:
        return _NOT_NUMBER
    if whole.bit_length() > _MAX_BITS:
        return _check_sign(whole, sql) or _TOO_LARGE
    return _check_decimal_text(str(Decimal(whole)), sql)  # str(int) refuses more than 4300 digits


def _check_decimal_text(text: str, sql: Sql) -> str | None:
    match = _DECIMAL_TEXT.fullmatch(text)
    if match is None:
        return _NOT_FINITE if _NOT_FINITE_TEXT.fullmatch(text) else _NOT_NUMBER
    exponent = (match[1] or "").lstrip("+-0")
    if len(exponent) > 10 or int(exponent or 0) > _MAX_EXPONENT:  # before int() and Decimal() meet it
        return _TOO_LARGE
    number = Decimal(text)
    fits = -int(number.as_tuple().exponent) <= _MAX_SCALE and (number == 0 or number.adjusted() < _MAX_DIGITS)
    return _check_sign(number, sql) or (None if fits else _TOO_LARGE)


def _check_sign(number: Decimal | float, sql: Sql) -> str | None:
    holds = number > 0 if sql.rule == "> 0" else number >= 0 if sql.rule == ">= 0" else True
    return None if holds else f"must be {sql.rule}"


def _to_int(value: Any) -> int | None:
    """Return the int that the value is, as NumPy's integers are too; None for a bool and anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _check_double(value: Any, sql: Sql) -> str | None:
    whole = value if isinstance(value, float) else _to_int(value)
    if whole is None:
        return "must be a float"
    try:
        number = float(whole)
    except OverflowError:
        return _NOT_FINITE
    return _check_sign(number, sql) if math.isfinite(number) else _NOT_FINITE


def _check_float4(value: Any, sql: Sql) -> str | None:
    rule = _check_double(value, sql)
    if rule is None:
        number = float(value)
        try:
            (nearest,) = struct.unpack("<f", struct.pack("<f", number))
        except OverflowError:
            return "must fit float4"
        if nearest == 0 and number != 0:
            return "must fit float4"
    return rule


def _check_int(value: Any, sql: Sql) -> str | None:
    whole = _to_int(value)
    if whole is None:
        return "must be an int"
    bits = 8 * int(sql.type[3:])
    fits = -(1 << (bits - 1)) <= whole < 1 << (bits - 1)
    return _check_sign(whole, sql) if fits else f"must fit {sql.type}"


def _check_text(value: Any, sql: Sql) -> str | None:
    if not isinstance(value, str):
        return "must be a str"
    try:
        n_bytes = len(value.encode())
    except UnicodeEncodeError:
        return "must be valid Unicode"
    if "\0" in value:
        return "must not contain NUL"
    if isinstance(sql.rule, tuple) and value not in sql.rule:
        return f"must be one of {', '.join(sql.rule)}"
    return "must be shorter than 1 GB" if n_bytes >= 1 << 30 else None


def _check_time(value: Any, sql: Sql) -> str | None:
    if not isinstance(value, datetime):
        return "must be an aware datetime, or an int with its time_unit named"
    if value.utcoffset() is None:
        return "must be aware: a naive datetime would be read in the machine's zone"
    if not EARLIEST <= value <= datetime.now(UTC) + sql.max_ahead:
        return f"must lie between 2009-01-01 and now + {sql.max_ahead.days} d"
    return None


def _check_bool(value: Any, sql: Sql) -> str | None:
    return None if isinstance(value, bool) else "must be a bool"


def _check_date(value: Any, _: Sql) -> str | None:
    is_date = isinstance(value, date) and not isinstance(value, datetime)
    return None if is_date else "must be a date without a time"


def _check_uuid(value: Any, _: Sql) -> str | None:
    try:
        if isinstance(value, UUID) or (isinstance(value, str) and UUID(value)):
            return None
    except ValueError:
        pass
    return "must be a UUID or its text"


def _check_bytea(value: Any, _: Sql) -> str | None:
    try:
        view = memoryview(value)
    except TypeError:
        return "must be bytes or another buffer"
    if not view.c_contiguous:
        return "must be bytes or another buffer"
    return "must be shorter than 1 GB" if view.nbytes >= 1 << 30 else None


def _check_json(value: Any, _: Sql) -> str | None:
    if isinstance(value, msgspec.Raw):
        return None
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return "must be a JSON value with finite numbers, or msgspec.Raw"
    if _ESCAPED_NUL.search(text):
        return "must not contain NUL"
    return _check_text(text, Sql(type="text"))


_CHECKS: dict[str, Callable[[Any, Sql], str | None]] = {
    "bool": _check_bool,
    "bytea": _check_bytea,
    "date": _check_date,
    "float4": _check_float4,
    "float8": _check_double,
    "int2": _check_int,
    "int4": _check_int,
    "int8": _check_int,
    "jsonb": _check_json,
    "numeric": _check_number,
    "text": _check_text,
    "timestamptz": _check_time,
    "uuid": _check_uuid,
    "varchar": _check_text,
}

#: The types of a Table's columns. The encoder (src/_fast/values.pyx) and this module know the same.
ENCODED_TYPES = frozenset(_CHECKS)
