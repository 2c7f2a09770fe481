"""Sql: what a field is in the database; and whether a value obeys, in the words of the encoder (_fast/rules.pyx)."""

from __future__ import annotations

import json
import math
import operator
import re
import struct
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

__all__ = ["EARLIEST", "Sql", "broken_rule"]

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
    check = _CHECKS.get(sql.type)
    return check(value, sql) if check else None


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
    if not math.isfinite(number):
        return _NOT_FINITE
    broken = _check_sign(number, sql)
    return "must fit float4" if broken is None and sql.type == "float4" and not _fits_float4(number) else broken


def _fits_float4(number: float) -> bool:
    try:
        rounded: float = struct.unpack(">f", struct.pack(">f", number))[0]
    except OverflowError:
        return False
    return rounded != 0 or number == 0


def _check_int(value: Any, sql: Sql) -> str | None:
    whole = _to_int(value)
    if whole is None:
        return "must be an int"
    bits = 8 * int(sql.type.removeprefix("int"))
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


def _check_date(value: Any, sql: Sql) -> str | None:
    return "must be a date without a time" if isinstance(value, datetime) or not isinstance(value, date) else None


def _check_uuid(value: Any, sql: Sql) -> str | None:
    try:
        known = isinstance(value, UUID) or (isinstance(value, str) and UUID(value) is not None)
    except ValueError:
        known = False
    return None if known else "must be a UUID or its text"


def _check_bytes(value: Any, sql: Sql) -> str | None:
    try:
        view = memoryview(value)
    except TypeError:
        return "must be bytes or another buffer"
    if not view.c_contiguous:
        return "must be bytes or another buffer"
    return "must be shorter than 1 GB" if view.nbytes >= 1 << 30 else None


def _check_json(value: Any, sql: Sql) -> str | None:
    if isinstance(value, msgspec.Raw):
        return None
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return "must be a JSON value with finite numbers, or msgspec.Raw"
    return "must not contain NUL" if _ESCAPED_NUL.search(text) else _check_text(text, _ANY_TEXT)


_ANY_TEXT = Sql(type="text")
_CHECKS = {
    "numeric": _check_number,
    "float8": _check_double,
    "int4": _check_int,
    "int8": _check_int,
    "text": _check_text,
    "timestamptz": _check_time,
    "bool": _check_bool,
    "int2": _check_int,
    "float4": _check_double,
    "varchar": _check_text,
    "date": _check_date,
    "uuid": _check_uuid,
    "bytea": _check_bytes,
    "jsonb": _check_json,
}
