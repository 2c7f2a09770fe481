"""What Citus says of a refused COPY, recorded from Citus 14.0.1 on PostgreSQL 18.6, is sorted as the server's own."""

from __future__ import annotations

import asyncpg
import pytest

from pgtick.engines.citus import CitusEngine
from pgtick.engines.citus_errors import is_english
from pgtick.engines.plain import PlainEngine

# (message, detail, class, constraint, table, column)
RECORDED = [
    (
        'duplicate key value violates unique constraint "trades_p20261125_pkey_102023"',
        'Key (symbol_id, "timestamp", trade_id)=(1, 2026-11-25 01:00:00+00, a) already exists.',
        asyncpg.UniqueViolationError,
        "trades_p20261125_pkey",
        None,
        None,
    ),
    (
        'insert or update on table "trades_p20261125_102025" violates foreign key constraint '
        '"trades_symbol_id_fkey_102013"',
        'Key (symbol_id)=(99) is not present in table "symbols_102009".',
        asyncpg.ForeignKeyViolationError,
        "trades_symbol_id_fkey",
        "trades_p20261125",
        None,
    ),
    (
        'new row for relation "trades_p20261125_102023" violates check constraint "trades_price_check"',
        "Failing row contains (6, 2026-11-25 01:00:00+00, 1, -2, 3, c, -6, 2026-11-25 02:30:24.51245+00).",
        asyncpg.CheckViolationError,
        "trades_price_check",
        "trades_p20261125",
        None,
    ),
    (
        'null value in column "price" of relation "trades_p20261125_102023" violates not-null constraint',
        "Failing row contains (7, 2026-11-25 01:00:00+00, 1, null, 3, c, null, 2026-11-25 02:30:24.548471+00).",
        asyncpg.NotNullViolationError,
        None,
        "trades_p20261125",
        "price",
    ),
    (
        'no partition of relation "trades_102011" found for row',
        'Partition key of the failing row contains ("timestamp") = (2021-11-25 01:00:00+00).',
        asyncpg.CheckViolationError,
        None,
        "trades",
        None,
    ),
    ("value overflows numeric format", None, asyncpg.NumericValueOutOfRangeError, None, None, None),
]


def told(message: str, detail: str | None, sqlstate: str = "XX000") -> asyncpg.PostgresError:
    """Return the error as asyncpg makes it of the server's message."""
    fields = {"S": "ERROR", "C": sqlstate, "M": message} | ({"D": detail} if detail else {})
    error = asyncpg.PostgresError.new(fields)
    assert isinstance(error, asyncpg.PostgresError)
    return error


# As COPY, and INSERT from SELECT, tell it, and as an INSERT by way of another node: with the class and no names.
@pytest.mark.parametrize("has_class", [False, True], ids=["XX000", "class"])
@pytest.mark.parametrize(
    ("message", "detail", "kind", "constraint", "table", "column"),
    RECORDED,
    ids=["unique", "reference", "check", "null", "partition", "overflow"],
)
def test_refusal_of_a_shard_is_sorted_into_the_server_s_class_with_its_names(
    message: str,
    detail: str | None,
    kind: type[asyncpg.PostgresError],
    constraint: str | None,
    table: str | None,
    column: str | None,
    has_class: bool,
) -> None:
    meant = CitusEngine().sorted_error(told(message, detail, str(kind.sqlstate) if has_class else "XX000"))
    assert type(meant) is kind
    assert meant.sqlstate == kind.sqlstate != "XX000"
    assert (meant.constraint_name, meant.table_name, meant.column_name) == (constraint, table, column)
    assert (meant.detail, meant.message) == (detail, message)
    assert str(meant).startswith(message)


@pytest.mark.parametrize(
    "message",
    [
        "could not connect to any active placements",
        "doppelter Schlüsselwert verletzt Unique-Constraint „trades_p20261125_pkey_102023“",
        "value overflows numeric format, or so",
    ],
)
def test_message_that_is_not_known_stays_what_it_is(message: str) -> None:
    error = told(message, None)
    assert CitusEngine().sorted_error(error) is error


def test_error_that_has_its_sqlstate_and_names_stays_what_it_is() -> None:
    message = RECORDED[0][0]
    error = asyncpg.PostgresError.new({"S": "ERROR", "C": "23505", "M": message, "t": "trades_p20261125_102023"})
    assert CitusEngine().sorted_error(error) is error


def test_plain_server_s_internal_error_stays_what_it_is() -> None:
    error = told(*RECORDED[0][:2])
    assert PlainEngine().sorted_error(error) is error


def test_check_named_like_a_shard_keeps_its_name() -> None:
    message = 'new row for relation "t_102011" violates check constraint "under_100000"'
    meant = CitusEngine().sorted_error(told(message, None))
    assert (meant.constraint_name, meant.table_name) == ("under_100000", "t")


@pytest.mark.parametrize(
    ("lc_messages", "expected"),
    [
        *((name, True) for name in ("C", "C.UTF-8", "POSIX", "en_US.UTF-8", "en-GB", "English_United States.1252")),
        *((name, False) for name in ("", "de_DE.UTF-8", "zh_CN", "Chinese_China.936")),
    ],
)
def test_language_whose_messages_cannot_be_sorted_is_known(lc_messages: str, expected: bool) -> None:
    assert is_english(lc_messages) is expected
