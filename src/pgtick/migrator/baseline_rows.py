"""How the rows of an old table become rows of pgtick's: one query, made from the catalogs of both.

Every row of the old table comes out of it once: converted, with the rule that it breaks, or NULL, in
``pgtick_broken``. The rules are those of the new table itself, so they cannot drift from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pgtick.errors import MigrationError
from pgtick.models import sql_fields
from pgtick.rules import Sql
from pgtick.tables import quote_identifier

__all__ = ["UNITS", "Check", "Counted", "LiveColumn", "LiveTable", "Plan", "make_plan", "references_of"]

_LIMITS = {"smallint": 1 << 15, "integer": 1 << 31, "bigint": 1 << 63}
_TEXTS = {"text", "character varying", "character"}
_WRITTEN_AS_TEXT = _TEXTS | _LIMITS.keys() | {"numeric", "uuid"}
# 2009 and 2100: in every unit another range of numbers.
_EARLIEST_S, _LATEST_S = 1_230_768_000, 4_102_444_800
_INTERVALS = {
    "seconds": (1, "{} * interval '1 second'"),
    "milliseconds": (10**3, "{} * interval '1 millisecond'"),
    "microseconds": (10**6, "{} * interval '1 microsecond'"),
    "nanoseconds": (10**9, "{} / 1000 * interval '1 microsecond'"),
}
#: {unit of an epoch: (its earliest plausible number, its latest, the number as an interval in SQL)}
UNITS = {unit: (_EARLIEST_S * n, _LATEST_S * n, interval) for unit, (n, interval) in _INTERVALS.items()}
# What stands in where the old row has nothing and the new one needs something. A time or a rate of the venue is
# never made up: such a row is refused.
_SUBSTITUTES = {
    "update_type": "'snapshot'",
    "is_active": "true",
    "executed": "false",
    "detected_at": "{timestamp}",
    "created_at": "{timestamp}",
    "updated_at": "{created_at}",
    "enum_value": "{exchange_name} || '_' || {market_type}",
    "exchange_name": "regexp_replace({enum_value}, '_[^_]*$', '')",
    "market_type": "substring({enum_value} FROM '[^_]*$')",
}


class LiveColumn(msgspec.Struct, frozen=True):
    """A column as the catalog has it; ``is_enum``: its type is one that CREATE TYPE … AS ENUM made."""

    name: str
    type: str
    is_enum: bool
    not_null: bool
    generated: str | None  # the expression
    has_default: bool


class Check(msgspec.Struct, frozen=True):
    """A CHECK: its expression, and how the server writes the whole of it."""

    expression: str
    definition: str


class LiveTable(msgspec.Struct, frozen=True):
    """A table as the catalog has it; ``name`` is quoted and qualified."""

    name: str
    columns: dict[str, LiveColumn]
    checks: tuple[Check, ...]
    uniques: tuple[frozenset[str], ...]  # of whole rows: no partial index, no expression


class Counted(msgspec.Struct, frozen=True):
    """Something to tell of the old table's rows, if the predicate holds for any."""

    predicate: str
    text: str


class Plan(msgspec.Struct, frozen=True):
    """``rows``: a subquery of all old rows, with ``columns``, ``pgtick_row`` and ``pgtick_broken``."""

    columns: tuple[str, ...]
    rows: str
    counted: tuple[Counted, ...]
    left_behind: tuple[str, ...]


class _Value(msgspec.Struct, frozen=True):
    """A converted column: its SQL over the old row ``o``, what is refused before and what is to be told."""

    sql: str
    refused: tuple[tuple[str, str], ...] = ()
    counted: tuple[Counted, ...] = ()


def references_of(columns: Sequence[str]) -> dict[str, str]:
    """Return {column: exchanges or symbols} by the names of the columns."""
    targets = {name: "symbols" if name == "symbol_id" else "exchanges" for name in columns}
    return {name: target for name, target in targets.items() if name == "symbol_id" or name.endswith("exchange_id")}


def make_plan(
    old: LiveTable,
    new: LiveTable,
    model: type[msgspec.Struct],
    key: tuple[str, ...],
    uniques: Sequence[tuple[str, ...]],
    units: Mapping[str, str],
) -> Plan:
    """Return how ``old`` is read; ``key`` is what a made key continues, ``units`` those of old epoch columns."""
    fields = {name: sql for name, (sql, _) in sql_fields(model).items()}
    values: dict[str, _Value] = {}
    for name, column in new.columns.items():
        if name in old.columns and column.generated is None:
            values[name] = _convert(old, old.columns[name], column, fields.get(name), units.get(name))
    values |= _substituted(old, new, values)
    for name, column in new.columns.items():
        if name not in values and column.generated is None and not column.has_default:
            values[name] = _Value(f"NULL::{column.type}")  # where it must not be NULL, the row is refused for it
    for name, sql in fields.items():
        if sql.content_key:
            values[name] = _keyed(old, new.columns[name], values, tuple(part for part in key if part != name))
    if "exchange_symbol" in values and "is_active" in values:
        values["is_active"] = _once_active(values)
    columns = tuple(name for name in new.columns if name in values)
    rows = _with_broken(old, new, values, columns)
    missing = [unique for unique in uniques if not any(_holds(old, new, had, unique) for had in old.uniques)]
    for unique in missing:
        rows = _without_repeated(rows, columns, unique, _order(old, "(pgtick_row)"))
    counted = [item for value in values.values() for item in value.counted]
    counted += _unlike_generated(old, new, values)
    left_behind = tuple(name for name in old.columns if name not in new.columns)
    return Plan(columns, f"({rows}) d", tuple(counted), left_behind)


def _convert(old: LiveTable, had: LiveColumn, new: LiveColumn, field: Sql | None, unit: str | None) -> _Value:
    value = f"o.{quote_identifier(had.name)}"
    if new.type == "timestamp with time zone":
        return _instant(old, had, value, unit)
    if new.type == "text" and (had.type in _WRITTEN_AS_TEXT or had.is_enum):
        return _cased(had.name, value if had.type == "text" else f"{value}::text", field)
    if had.type == new.type:
        return _Value(value)
    if new.type in _LIMITS and (had.type in _LIMITS or had.type == "numeric"):
        return _whole(had, value, new)
    if new.type == "numeric" and had.type in _LIMITS:
        return _Value(f"{value}::numeric")
    if new.type == "numeric" and had.type in ("real", "double precision"):
        return _Value(f"{value}::text::numeric")  # the shortest decimal that is the same float: 0.1 stays 0.1
    if new.type == "double precision" and had.type in ("real", *_LIMITS):
        return _Value(f"{value}::float8")
    if new.type == "double precision" and had.type == "numeric":
        return _rounded(had, value)
    if new.type == "boolean" and had.type in _LIMITS:
        return _Value(f"{value} <> 0")
    raise _cannot(old, had, new.type)


def _cannot(old: LiveTable, had: LiveColumn, wanted: str) -> MigrationError:
    return MigrationError(
        f"{old.name}.{had.name} is {had.type}, and there is no rule that makes it {wanted}: "
        "give the column a type that has one (ALTER TABLE … ALTER COLUMN … TYPE … USING …) and try again"
    )


def _cased(name: str, value: str, field: Sql | None) -> _Value:
    """Write a choice in the case of the rule's own words."""
    if field is None or not isinstance(field.rule, tuple):
        return _Value(value)
    change = "lower" if all(word.islower() for word in field.rule) else "upper"
    return _Value(
        f"{change}({value})", counted=(Counted(f"{value} <> {change}({value})", f"{name} is written in {change} case"),)
    )


def _whole(had: LiveColumn, value: str, new: LiveColumn) -> _Value:
    limit = _LIMITS[new.type]
    if had.type in _LIMITS and _LIMITS[had.type] <= limit:
        return _Value(f"{value}::{new.type}")
    fits = f"{value} BETWEEN {-limit} AND {limit - 1} AND {value}::numeric = trunc({value}::numeric)"
    return _Value(
        f"CASE WHEN {fits} THEN {value}::{new.type} END", ((f"NOT ({fits})", f"{had.name}: must fit {new.type}"),)
    )


def _rounded(had: LiveColumn, value: str) -> _Value:
    fits = f"abs({value}) < 1e308"
    converted = f"CASE WHEN {fits} THEN {value}::float8 END"
    differs = f"({converted})::text::numeric <> {value}"
    return _Value(
        converted,
        ((f"NOT ({fits})", f"{had.name}: must fit double precision"),),
        (Counted(differs, f"{had.name} is double precision now, and is rounded to the nearest one"),),
    )


def _instant(old: LiveTable, had: LiveColumn, value: str, unit: str | None) -> _Value:
    if had.type == "timestamp with time zone":
        return _Value(value)
    if had.type in ("timestamp without time zone", "date"):
        return _Value(
            f"{value}::timestamp AT TIME ZONE 'UTC'",
            counted=(Counted(f"{value} IS NOT NULL", f"{had.name} is {had.type}, taken for UTC"),),
        )
    if had.type not in _LIMITS:
        raise _cannot(old, had, "timestamp with time zone")
    unit = unit or "milliseconds"  # the guide's; there is no plausible value to tell it by
    low, high, interval = UNITS[unit]
    fits = f"({value} = 0 OR {value} BETWEEN {low} AND {high})"
    counted = [
        Counted(f"{value} <> 0", f"{had.name} is an epoch in {unit}"),
        Counted(f"{value} = 0", f"{had.name} is 0, which is 1970-01-01 00:00 UTC"),
    ]
    if unit == "nanoseconds":
        counted.append(Counted(f"{value} % 1000 <> 0", f"{had.name} loses what is finer than a microsecond"))
    return _Value(
        f"CASE WHEN {fits} THEN 'epoch'::timestamptz + {interval.format(f'{value}::bigint')} END",
        ((f"NOT {fits}", f"{had.name}: must be an epoch in {unit} between 2009 and 2100"),),
        tuple(counted),
    )


def _substituted(old: LiveTable, new: LiveTable, values: Mapping[str, _Value]) -> dict[str, _Value]:
    """Return the columns that must not be NULL and are missing, or may be NULL, in the old table."""
    known = {name: value.sql for name, value in values.items()}
    for name in ("enum_value", "exchange_name", "market_type"):
        known.setdefault(name, "NULL")
    known.setdefault("timestamp", "now()")  # exchanges and symbols have none
    known["created_at"] = f"coalesce({known.get('created_at', 'NULL')}, {known['timestamp']})"
    result = {}
    for name, column in new.columns.items():
        had = values.get(name)
        if not column.not_null or (had is not None and old.columns[name].not_null):
            continue
        if name in _SUBSTITUTES:
            raw = had.sql if had else f"NULL::{column.type}"
            made = _SUBSTITUTES[name].format_map(known)
            said = "the time of the adoption" if made == "now()" else re.sub("[{}]", "", _SUBSTITUTES[name])
            note = Counted(f"({raw}) IS NULL", f"{name} is not there: {said} is taken")
            result[name] = _Value(
                f"coalesce({raw}, {made})", had.refused if had else (), (*(had.counted if had else ()), note)
            )
    return result


def _keyed(old: LiveTable, column: LiveColumn, values: Mapping[str, _Value], rest: tuple[str, ...]) -> _Value:
    """Number the rows that lack the venue's own number: -1, -2, … within one instant of one symbol."""
    had = values[column.name]
    if column.name in old.columns and old.columns[column.name].not_null:
        return had
    number = "(-1)::bigint"
    if not any(unique <= set(rest) for unique in old.uniques):
        parts = ", ".join(values[name].sql for name in rest)
        number = f"-(row_number() OVER (PARTITION BY {parts}, ({had.sql}) IS NULL ORDER BY {_order(old, 'o')}))"
    note = Counted(f"({had.sql}) IS NULL", f"{column.name} is not there: the row gets -1, the next of its instant -2")
    return _Value(f"coalesce({had.sql}, ({number})::{column.type})", had.refused, (*had.counted, note))


def _order(old: LiveTable, row: str) -> str:
    whole = f'{row}::text COLLATE "C"'  # rows that are alike in everything may go in any order
    return f"{row}.{quote_identifier('id')}, {whole}" if "id" in old.columns else whole


def _once_active(values: Mapping[str, _Value]) -> _Value:
    """Let only the first of several active symbols of one name be active: the others keep their rows."""
    active = values["is_active"]
    parts = f"{values['exchange_id'].sql}, {values['exchange_symbol'].sql}, {active.sql}"
    order = values["id"].sql if "id" in values else "o::text"
    return _Value(
        f"({active.sql}) AND row_number() OVER (PARTITION BY {parts} ORDER BY {order}) = 1",
        active.refused,
        active.counted,
    )


def _with_broken(old: LiveTable, new: LiveTable, values: Mapping[str, _Value], columns: Sequence[str]) -> str:
    """Return the subquery that converts, and names the first rule that a row breaks."""
    early = [pair for name in columns for pair in values[name].refused]
    first = " ".join(f"WHEN {predicate} THEN {_text(rule)}" for predicate, rule in early)
    nulls = {name: f"NULL::{column.type}" for name, column in new.columns.items()}  # which no check minds
    sources = nulls | {name: value.sql for name, value in values.items()}
    listed = ", ".join(f"{source} AS {quote_identifier(name)}" for name, source in sources.items())
    converted = (
        f"SELECT {listed}, {f'CASE {first} END' if first else 'NULL'} AS pgtick_early, o AS pgtick_row "
        f"FROM {old.name} o"
    )
    late = ["WHEN c.pgtick_early IS NOT NULL THEN c.pgtick_early"]
    for name in columns:
        column, value = new.columns[name], f"c.{quote_identifier(name)}"
        if column.not_null:
            late.append(f"WHEN {value} IS NULL THEN {_text(f'{name}: must not be NULL')}")
        if column.type == "timestamp with time zone":
            late.append(f"WHEN NOT isfinite({value}) THEN {_text(f'{name}: must be finite')}")
    late += [f"WHEN ({check.expression}) IS FALSE THEN {_text(check.definition)}" for check in new.checks]
    for name, target in references_of(columns).items():
        value = f"c.{quote_identifier(name)}"
        missing = f"{value} IS NOT NULL AND NOT EXISTS (SELECT FROM {target} r WHERE r.id = {value})"
        late.append(f"WHEN {missing} THEN {_text(f'{name}: there is no such row in {target}')}")
    return f"SELECT {_listed(columns)}, pgtick_row, CASE {' '.join(late)} END AS pgtick_broken FROM ({converted}) c"


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(quote_identifier(name) for name in columns)


def _without_repeated(rows: str, columns: Sequence[str], unique: tuple[str, ...], order: str) -> str:
    """Refuse what repeats a key that must be unique, all but the first."""
    rule = _text(f"a row with the same ({', '.join(unique)}) comes before it")
    nth = f"row_number() OVER (PARTITION BY {_listed(unique)}, pgtick_broken IS NULL ORDER BY {order})"
    return (
        f"SELECT {_listed(columns)}, pgtick_row, "
        f"CASE WHEN pgtick_broken IS NULL AND pgtick_nth > 1 THEN {rule} ELSE pgtick_broken END AS pgtick_broken "
        f"FROM (SELECT *, {nth} AS pgtick_nth FROM ({rows}) e) f"
    )


def _holds(old: LiveTable, new: LiveTable, had: frozenset[str], unique: tuple[str, ...]) -> bool:
    """Say whether what the old table keeps unique makes this unique too: values that differ stay different."""
    alike = _TEXTS | {"text"}
    return had <= set(unique) and all(
        old.columns[name].type == new.columns[name].type
        or {old.columns[name].type, new.columns[name].type} <= alike
        or {old.columns[name].type, new.columns[name].type} <= _LIMITS.keys()
        for name in had
    )


def _unlike_generated(old: LiveTable, new: LiveTable, values: Mapping[str, _Value]) -> list[Counted]:
    """Count the rows whose old value differs from what the server now makes of the others."""
    told = []
    for name, column in new.columns.items():
        if column.generated is not None and name in old.columns:
            had = _convert(old, old.columns[name], column, None, None).sql
            listed = ", ".join(f"{value.sql} AS {quote_identifier(other)}" for other, value in values.items())
            made = f"(SELECT {column.generated} FROM (SELECT {listed}) g)"
            told.append(Counted(f"{had} IS DISTINCT FROM {made}", f"{name} is made by the server now, and differs"))
    return told


def _text(value: Any) -> str:
    return "'" + str(value).replace("'", "''") + "'"
