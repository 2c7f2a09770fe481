"""A refused row as JSON and back, for quarantine: exact, and what was refused stays refused.

A value of its column's type has a form that the same value is read back from. Any other value, of which only the repr
is kept, is ``{"repr": "…"}`` and comes back as Unfit, which no column takes; a row must not become another by waiting.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from pgtick.errors import short_repr
from pgtick.rules import Sql, broken_rule
from pgtick.tables import Table

__all__ = ["Unfit", "from_json", "read_back", "row_values", "to_json", "types_of", "value_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}
_MAX_EXACT = 1 << 53  # readers of JSON that know doubles only would change larger ints
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
# Escaped, a character takes up to twelve, and the server takes a gigabyte: a longer value would hold up its batch.
_MAX_CHARS = 1 << 24


class Unfit(msgspec.Struct, frozen=True):
    """A value that is of no type of a column; only its repr is known."""

    text: str

    def __repr__(self) -> str:
        return self.text


def types_of(table: Table) -> dict[str, str]:
    """Return {name: type} of the columns that are written."""
    return {column.name: column.type for column in table.columns}


def to_json(types: Mapping[str, str], values: Mapping[str, object]) -> str:
    """Return the row as ASCII JSON; ``types`` is {column: type}; of a name not among them text is kept, else a repr."""
    return json.dumps({_name(name): _form(types.get(name), value) for name, value in values.items()})


def from_json(types: Mapping[str, str], text: str) -> dict[str, Any]:
    """Return {column: value}; ValueError when the text is no JSON object."""
    forms = json.loads(text, parse_int=_int)
    if not isinstance(forms, dict):
        raise ValueError(f"a row is a JSON object, not {short_repr(text)}")
    return {name: value_of(types.get(name), form) for name, form in forms.items()}


def value_of(type_name: str | None, form: Any) -> Any:
    """Return the value that the form stands for, or Unfit; text will do for any type."""
    if form is None:
        return None
    if isinstance(form, dict):
        return Unfit(str(form.get("repr", form)))
    try:
        return _READERS.get(type_name, _as_it_is)(form)
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return Unfit(short_repr(form))


def row_values(table: Table, row: object, *, time_unit: str | None = None) -> dict[str, object]:
    """Return {column: value} of a row of any kind that the encoder takes; columns made by the server are left out.

    Integer times are made datetimes by ``time_unit``, which the row in quarantine has no longer.
    """
    names = table.column_names
    values: dict[str, object]
    if isinstance(row, tuple):
        values = dict(zip(names, row, strict=False))
        if len(row) != len(names):  # no name of a column, so that it stays refused
            values["*"] = f"{len(row)} fields, not {len(names)}"
            values |= {f"*{n}": value for n, value in enumerate(row[len(names) :], len(names) + 1)}
    elif isinstance(row, dict):
        made_by_server = set(table.read_columns).difference(names)
        values = {name: value for name, value in row.items() if name not in made_by_server}
    else:
        values = {name: _attribute(row, name) for name in names}
    if time_unit is not None:
        for column in table.columns:
            if column.type == "timestamptz" and column.name in values:
                values[column.name] = _instant(values[column.name], time_unit)
    return values


def read_back(table: Table, values: tuple[Any, ...]) -> dict[str, object]:
    """Return {column: value} of what RowEncoder.values gives, where jsonb is its text."""
    return {
        column.name: msgspec.Raw(value.encode()) if column.type == "jsonb" and value is not None else value
        for column, value in zip(table.columns, values, strict=True)
    }


def _name(name: object) -> str:
    return name if isinstance(name, str) else short_repr(name)


def _attribute(row: object, name: str) -> object:
    try:
        return getattr(row, name)
    except Exception as error:  # of the caller's class; an absent value would be stored as NULL
        return Unfit(f"<no value: {type(error).__name__}>")


def _instant(value: object, time_unit: str) -> object:
    multiply, divide = _UNITS[time_unit]
    try:
        return _EPOCH + timedelta(microseconds=_whole(value) * multiply // divide)
    except (TypeError, OverflowError):
        return value


def _form(type_name: str | None, value: Any) -> Any:
    """Return what json.dumps writes of the value."""
    if value is None:
        return None
    try:
        form = _FORMS[type_name or ""](value)
    except Exception:  # any object may be in a refused row, and its methods may raise anything
        return {"repr": short_repr(value)}
    return {"repr": short_repr(value)} if isinstance(form, str) and len(form) > _MAX_CHARS else form


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _of_int(value: Any) -> int | str:
    whole = _whole(value)
    return whole if abs(whole) <= _MAX_EXACT else str(Decimal(whole))  # str(int) refuses more than 4300 digits


def _of_number(value: Any) -> Any:
    if isinstance(value, float):
        return _of_float(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Decimal):
        return Decimal.__str__(value)
    return value.decode("latin-1") if isinstance(value, bytes) else str(Decimal(_whole(value)))


def _of_float(value: Any) -> float | str:
    number = float(value if isinstance(value, float) else _whole(value))
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _of_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _of_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _of_timestamptz(value: datetime) -> str:
    instant = value if value.utcoffset() is None else value.astimezone(UTC)
    return instant.isoformat(timespec="microseconds")


def _of_date(value: date) -> str:
    if isinstance(value, datetime):
        raise TypeError
    return date.isoformat(value)


def _of_uuid(value: Any) -> str:
    return str(value) if isinstance(value, UUID) else _of_text(value)


def _of_bytea(value: Any) -> str:
    view = memoryview(value)
    if not view.c_contiguous or view.nbytes > _MAX_CHARS:
        raise TypeError
    return "\\x" + view.tobytes().hex()


def _of_jsonb(value: Any) -> str:
    """Return the JSON text: of a number in it every digit counts."""
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _int(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise ValueError(text)
    return int(Decimal(text))  # int() refuses more than 4300 digits


def _read_int(form: Any) -> Any:
    return _int(form) if isinstance(form, str) else form


def _read_float(form: Any) -> Any:
    return float(form) if isinstance(form, str) else form


def _read_bool(form: Any) -> Any:
    return {"true": True, "false": False}.get(form, form) if isinstance(form, str) else form


def _read_bytea(form: str) -> bytes:
    if not form.startswith("\\x"):
        raise ValueError(form)
    return bytes.fromhex(form[2:])


def _read_jsonb(form: str) -> Any:
    """Return it raw, so that nothing changes; but one that is to be refused as what the encoder looks into."""
    value = json.loads(form, parse_int=str, parse_float=str)
    return value if broken_rule(value, Sql(type="jsonb")) else msgspec.Raw(form.encode())


def _as_it_is(form: Any) -> Any:
    return form


_FORMS: dict[str, Callable[[Any], Any]] = {
    "": _of_text,  # of a name that is no column
    "bool": _of_bool,
    "bytea": _of_bytea,
    "date": _of_date,
    "float4": _of_float,
    "float8": _of_float,
    "int2": _of_int,
    "int4": _of_int,
    "int8": _of_int,
    "jsonb": _of_jsonb,
    "numeric": _of_number,
    "text": _of_text,
    "timestamptz": _of_timestamptz,
    "uuid": _of_uuid,
    "varchar": _of_text,
}
_READERS: dict[str | None, Callable[[Any], Any]] = {
    "bool": _read_bool,
    "bytea": _read_bytea,
    "date": date.fromisoformat,
    "float4": _read_float,
    "float8": _read_float,
    "int2": _read_int,
    "int4": _read_int,
    "int8": _read_int,
    "jsonb": _read_jsonb,
    "timestamptz": datetime.fromisoformat,
}
