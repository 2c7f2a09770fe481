"""Parameters that become literals: a server reads them exactly as it would have read them bound."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from asyncpg import DataError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgtick.connection import DatabaseManager
from pgtick.errors import QueryError
from pgtick.reader import read_columns
from pgtick.reader.parameters import query_tokens

SERVER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

HOSTILE = [
    "",
    "'",
    "''",
    "\\",
    "\\'",
    "'; DROP TABLE trade_snapshots; --",
    "\\'; DROP TABLE trade_snapshots; --",
    "') TO STDOUT; DROP TABLE trade_snapshots; --",
    "'::text) TO PROGRAM 'true' --",
    "$1",
    "$$",
    "$tag$ $1 $tag$",
    "/* $1",
    "*/",
    "-- $1\n",
    "\n\r\t\b\f\v",
    "人生K线/USDT",
    "\u2019\uff07\u02bc",  # quotes of other scripts
    "\U0001f600\u202e\ufeff",
    "E'\\x27'",
    "NULL",
    "{1,2}",
    "%s %L %1$s",
    "\x01\x7f",
]
TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.one_of(st.sampled_from("'\\$\"-/*;E \n1"), st.characters(blacklist_categories=["Cs"]))),
).map(lambda text: text.replace("\0", ""))


def refilled(query: str, **options: bool) -> str:
    return "".join(f"<{token}>" if isinstance(token, int) else token for token in query_tokens(query, **options))


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("SELECT $1, $22", "SELECT <1>, <22>"),
        ("SELECT '$1', '''$1', 'a''$1'", "SELECT '$1', '''$1', 'a''$1'"),
        (r"SELECT E'\'$1', e'\\', $1", r"SELECT E'\'$1', e'\\', <1>"),
        (r"SELECT '\', $1, '$1'", r"SELECT '\', <1>, '$1'"),
        ("SELECT E'a'\n  '\\'$1', $1", "SELECT E'a'\n  '\\'$1', <1>"),
        ("SELECT E'a' -- $1 '\n  '\\'$1', $1", "SELECT E'a' -- $1 '\n  '\\'$1', <1>"),
        ('SELECT $1 AS "a""$1"', 'SELECT <1> AS "a""$1"'),
        ("SELECT U&\"$1\", U&'$1', b'1', N'$1'", "SELECT U&\"$1\", U&'$1', b'1', N'$1'"),
        ("SELECT 1 -- $1 '\n, $1", "SELECT 1 -- $1 '\n, <1>"),
        ("SELECT 1--$1", "SELECT 1--$1"),
        ("SELECT /* $1 /* ' */ $1 */ $1", "SELECT /* $1 /* ' */ $1 */ <1>"),
        ("SELECT $$ $1 ' $$, $1", "SELECT $$ $1 ' $$, <1>"),
        ("SELECT $a$ $1 $b$ $$ $a$, $1", "SELECT $a$ $1 $b$ $$ $a$, <1>"),
        ('SELECT a$1, é$1, "x"$1', 'SELECT a$1, é$1, "x"<1>'),
        ("SELECT a$b$1, $1$b$1 $2$b$1", "SELECT a$b$1, <1>$b$1 $2$b$1"),
        ("SELECT name'$1', $1", "SELECT name'$1', <1>"),
        ("SELECT 1+$1-$2", "SELECT 1+<1>-<2>"),
        ("SELECT ';', $1; ;", "SELECT ';', <1>   "),
    ],
)
def test_parameter_is_found_only_where_it_is_one(query: str, wanted: str) -> None:
    assert refilled(query) == wanted


def test_parameter_is_found_where_strings_have_escapes() -> None:
    assert refilled(r"SELECT '\'$1', $1", standard_strings=False) == r"SELECT '\'$1', <1>"


FRAGMENTS = st.sampled_from(
    [
        "$1::text",
        "'$1'",
        "'''$1'",
        r"'\'",
        r"E'\'$1'",
        r"E'\\'",
        "E'a'\n'\\'$1'",
        "'a' -- '\n '$1'",
        "$$ $1 ' $$",
        "$q$ $1 $$ $q$",
        "/* $1 /* ' */ ' */ 'c'",
        '(SELECT x."a$1" FROM (SELECT \'v\' AS "a$1") AS x)',
        "(SELECT b$1 FROM (SELECT 'w' AS b$1) AS x)",
        "$1||'$1'",
        "-- $1 '\n 'd'",
        r"U&'\0024\0031'",
        "N'$1'",
    ]
)


@SERVER
@given(fragments=st.lists(FRAGMENTS, min_size=1, max_size=8), value=TEXTS, standard=st.booleans())
async def test_any_query_reads_as_with_bound_parameters(
    db: DatabaseManager, fragments: list[str], value: str, standard: bool
) -> None:
    if not standard:
        fragments = [fragment for fragment in fragments if "U&" not in fragment and fragment != r"'\'"]
    query = "SELECT " + ", ".join(f"{part} AS c{n}" for n, part in enumerate(["$1::text", *fragments]))
    async with db.transaction():
        await db.execute(f"SET LOCAL standard_conforming_strings = {'on' if standard else 'off'}")
        await db.execute("SET LOCAL escape_string_warning = off")
        wanted = await db.fetchrow(query, value)
        got = await read_columns(query, value)
    assert wanted is not None
    assert [got.objects(name)[0] for name in got.names] == list(wanted.values())


@SERVER
@given(value=TEXTS)
async def test_hostile_text_comes_back_as_it_was(db: DatabaseManager, value: str) -> None:
    got = await read_columns(
        "SELECT $1::text AS a, $2::varchar AS b, $3::bpchar AS c, $4::text[] = ARRAY[$1] AS d, $1 AS e",
        value,
        value,
        value,
        [value],
    )
    assert [got.objects(name) for name in "abcde"] == [[value], [value], [value], [True], [value]]
    assert await db.fetchval("SELECT to_regclass('trade_snapshots') IS NOT NULL")


@SERVER
@given(
    number=st.decimals(allow_nan=False, allow_infinity=False, places=12),
    double=st.floats(allow_nan=False),
    single=st.floats(width=32, allow_nan=False),
    integer=st.integers(-(2**63), 2**63 - 1),
    flag=st.booleans(),
    data=st.binary(),
    uuid=st.uuids(),
    instant=st.datetimes(
        datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.just(timezone(timedelta(hours=5, minutes=45)))
    ),
    # asyncpg sends the first and the last as infinities.
    wall=st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),
    day=st.dates(date(1, 1, 2), date(9999, 12, 30)),
)
@example(
    number=Decimal("1e-30"),
    double=5e-324,
    single=2.0**-149,
    integer=-1,
    flag=True,
    data=b"\\'\0",
    uuid=UUID(int=0),
    instant=datetime(1900, 1, 1, tzinfo=UTC),
    wall=datetime(1, 1, 1, 0, 0, 1),
    day=date(1, 1, 2),
)
async def test_value_of_each_type_comes_back_exactly_under_any_settings(db: DatabaseManager, **values: Any) -> None:
    types = {
        "number": "numeric",
        "double": "float8",
        "single": "float4",
        "integer": "int8",
        "flag": "bool",
        "data": "bytea",
        "uuid": "uuid",
        "instant": "timestamptz",
        "wall": "timestamp",
        "day": "date",
    }
    query = "SELECT " + ", ".join(f"${n}::{type_} AS {name}" for n, (name, type_) in enumerate(types.items(), 1))
    async with db.transaction():
        await db.execute("SET LOCAL DateStyle = 'German, MDY'; SET LOCAL TimeZone = 'Asia/Kolkata'")
        await db.execute("SET LOCAL extra_float_digits = -5; SET LOCAL bytea_output = 'escape'")
        got = await read_columns(query, *(values[name] for name in types), decimals="decimal")
        assert await db.fetchval("SHOW DateStyle") == "German, MDY"
    assert {name: got.objects(name)[0] for name in types} == values


async def test_float_for_a_numeric_is_its_own_text(db: DatabaseManager) -> None:
    got = await read_columns("SELECT $1::numeric AS a, ($2::numeric[])[2] AS b", 0.1, [1, 1e-7], decimals="decimal")
    assert (got["a"][0], got["b"][0]) == (Decimal("0.1"), Decimal("1e-7"))


async def test_arrays_nulls_and_other_types_are_taken(db: DatabaseManager) -> None:
    got = await read_columns(
        "SELECT i FROM generate_series(1, $1) AS i WHERE i = ANY ($2::int[]) OR i = ANY ($3) "
        "OR $4::interval > interval '1 day' AND i = 9 OR i::text = $5 ORDER BY i LIMIT $6",
        10,
        [2, 3, None],
        [],
        timedelta(days=2),
        None,
        3,
    )
    assert got["i"].tolist() == [2, 3, 9]
    got = await read_columns(
        "SELECT $1::numeric IS NULL AS a, $2::jsonb ->> 'k' AS b, $3::name AS c", None, '{"k": "v\'"}', "n"
    )
    assert [got.objects(name) for name in "abc"] == [[True], ["v'"], ["n"]]


async def test_own_types_of_any_schema_and_name_are_taken(db: DatabaseManager) -> None:
    await db.execute("CREATE SCHEMA \"a b\"; CREATE TYPE \"a b\".\"M$1'ood\" AS ENUM ('it''s $1', 'ok')")
    got = await read_columns("""SELECT $1::"a b"."M$1'ood"::text AS mood, $1 = 'ok' AS fine""", "it's $1")
    assert (got["mood"][0], got["fine"][0]) == ("it's $1", False)


@pytest.mark.parametrize(
    ("query", "args", "message"),
    [
        ("SELECT $1::text AS a", (), "parameters: the query has 1, 0 were given"),
        ("SELECT 1 AS a", (1,), "parameters: the query has 0, 1 were given"),
        ("SELECT $1::text AS a", ("a\0b",), r"parameter \$1: text with NUL"),
        ("SELECT $1::text[] IS NULL AS a", (["a", ["\0"]],), r"parameter \$1: text with NUL"),
        ("SELECT 1 AS a\0", (), "query: it holds NUL"),
        ("SELECT $1::int4 AS i, $2::timestamptz AS a", (1, datetime(2025, 1, 1)), r"parameter \$2: a datetime without"),
    ],
)
async def test_argument_that_cannot_be_bound_is_named(
    db: DatabaseManager, query: str, args: tuple[object, ...], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        await read_columns(query, *args)
    assert db.pool_state()["size"] == db.pool_state()["idle"]


async def test_argument_of_another_type_is_named_by_asyncpg(db: DatabaseManager) -> None:
    with pytest.raises(DataError, match=r"query argument \$1"):
        await read_columns("SELECT $1::int4 AS a", "1; DROP TABLE trade_snapshots")
