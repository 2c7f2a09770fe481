"""Which columns a query has, and the form in which each is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from pgtick._fast.result import READABLE_TYPES
from pgtick.errors import QueryError
from pgtick.tables import quote_identifier

__all__ = ["Decimal128", "Decimals", "Fixed", "check_model", "column_layout"]


class Fixed(msgspec.Struct, frozen=True):
    """Read numeric as int64: value × 10^scale, exactly, or DecodeError."""

    scale: int


class Decimal128(msgspec.Struct, frozen=True):
    """Read numeric as Arrow's decimal128(precision, scale), exactly, or DecodeError; Decimals for Python."""

    scale: int
    precision: int = 38


#: How a numeric is read: "float" (the nearest double), "decimal" (Decimal objects, the scale kept), or exact and fixed.
Form = Literal["float", "decimal"] | Fixed | Decimal128
#: One form for all numeric columns, or {column: form} with "float" for the others.
Decimals = Form | Mapping[str, Form]


def column_layout(attributes: Sequence[Any], decimals: Decimals) -> list[tuple[str, int, tuple[Any, ...]]]:
    """Return (name, type OID, form) of each column; QueryError for what cannot be read.

    ``attributes``: those of the prepared statement (asyncpg's).
    """
    if not attributes:
        raise QueryError("query", "it returns no columns")
    numeric = {attribute.name for attribute in attributes if attribute.type.name == "numeric"}
    if isinstance(decimals, Mapping):
        for name in decimals:
            if name not in numeric:
                raise QueryError("decimals", f"the query has no numeric column {name!r}")
    columns: list[tuple[str, int, tuple[Any, ...]]] = []
    seen: set[str] = set()
    for attribute in attributes:
        name, type_ = attribute.name, attribute.type
        if type_.oid not in READABLE_TYPES:
            rule = f"type {type_.name} cannot be read: cast it, for instance {quote_identifier(name)}::text"
            raise QueryError(f"column {name!r}", rule)
        if name in seen:
            raise QueryError(f"column {name!r}", "two columns have this name: give one another by AS")
        seen.add(name)
        form = decimals.get(name, "float") if isinstance(decimals, Mapping) else decimals
        columns.append((name, type_.oid, _wire_form(form)))
    return columns


def _wire_form(form: Form) -> tuple[Any, ...]:
    if isinstance(form, Fixed) and -38 <= form.scale <= 38:
        return ("fixed", form.scale)
    if isinstance(form, Decimal128) and 1 <= form.precision <= 38 and -38 <= form.scale <= 38:
        return ("decimal128", form.precision, form.scale)
    if form in ("float", "decimal"):
        return (form,)
    rule = f'"float", "decimal", Fixed or Decimal128 with a precision of 1 to 38 and a scale of -38 to 38, not {form!r}'
    raise QueryError("decimals", rule)


def check_model(model: type[msgspec.Struct], columns: Sequence[tuple[str, int, tuple[Any, ...]]]) -> None:
    """Check that rows of these columns make the model: no column too many, no required field missing."""
    fields = {field.name: field.required for field in msgspec.structs.fields(model)}
    names = {column[0] for column in columns}
    for name in names - fields.keys():
        raise QueryError(f"column {name!r}", f"{model.__name__} has no such field")
    for name, required in fields.items():
        if required and name not in names:
            raise QueryError(f"column {name!r}", f"{model.__name__} needs it, and the query does not return it")
