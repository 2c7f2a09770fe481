"""Hostile names on real servers: one function quotes them all, and no statement is made around it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgtick.connection import DatabaseManager
from pgtick.engines.series import create_series
from pgtick.models import Instant, Row, Sql
from pgtick.operations.generic import get_history, get_latest, get_stats, insert, insert_batch
from pgtick.tables import Table, quote_identifier

ROOT = Path(__file__).parents[1]
NOW = datetime.now(UTC).replace(microsecond=0)
ON_SERVER = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ODD = st.sampled_from("\"'\\%{}$1;-. \n\tAé密😀")
TEXTS = st.text(ODD | st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63)
LIKE_CODE = [
    *("select", "order", 'a"b', '"', '""', '"; DROP TABLE symbols; --', "%s", "%(x)s", "{}", "{table}", "$1"),
    *("\\", "'", "a.b", "a b", "\n", "A", "/*", "--"),
]


def of_bytes(n: int) -> st.SearchStrategy[str]:
    """Return names up to ``n`` bytes, many of them of just so many."""
    edges = [unit * (n // len(unit.encode())) + "x" * (n % len(unit.encode())) for unit in ("x", '"', "é", "密", "😀")]
    return st.one_of(st.sampled_from(LIKE_CODE + edges), TEXTS).filter(lambda name: len(name.encode()) <= n)


# A field of a Struct is a Python identifier; those of a row are taken, and so are the server's own columns.
TAKEN = {"timestamp", "validate", "table_name", "id", "oid", "ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"}
KEYWORDS = ["select", "Order", "from", "user", "ORDER", "ß", "密码", "x" * 63, "é" * 31 + "x", "_", "i", "n", "r"]
FIELDS = st.one_of(
    st.sampled_from(KEYWORDS),
    st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=31),
).filter(lambda name: name.isidentifier() and len(name.encode()) <= 63 and name not in TAKEN)


@pytest.mark.engines("plain")
@ON_SERVER
@given(name=of_bytes(63))
@example(name="x" * 63)
async def test_any_name_means_to_the_server_what_it_says(db: DatabaseManager, name: str) -> None:
    record = await db.fetchrow(f"SELECT 1 AS {quote_identifier(name)}")
    assert record is not None
    assert list(record.keys()) == [name]
    assert await db.fetchval("SELECT parse_ident($1)", quote_identifier(name)) == [name]


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "x" * 64, "é" * 32, "\ud800"])
def test_what_is_no_name_is_refused_before_anything_is_sent(name: str) -> None:
    with pytest.raises(ValueError, match=r"not an identifier|surrogates"):
        quote_identifier(name)
    with pytest.raises(ValueError, match=r"not an identifier|surrogates"):
        Table(name, model("leading", "note"), key=("leading", "timestamp"))


def test_field_that_the_server_would_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="not an identifier"):
        Table("t", model("x" * 64, "note"), key=("timestamp",))


def model(leading: str, note: str) -> type[msgspec.Struct]:
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("timestamp", Annotated[Instant, Sql(type="timestamptz")]),
        (leading, Annotated[int, Sql(type="int4")]),
        (note, Annotated[str | None, Sql(type="text")], None),
    ]
    return msgspec.defstruct("Hostile", fields, bases=(Row,), kw_only=True)


@pytest.mark.engines("plain")
@ON_SERVER
@given(name=of_bytes(53), columns=st.lists(FIELDS, min_size=2, max_size=2, unique=True))  # 63 less the partition's day
@example(name="x" * 53, columns=["x" * 63, "é" * 31 + "x"])
@example(name='Forced "%s" {} $1 \\', columns=["select", "Order"])
async def test_table_and_columns_of_any_name_take_a_batch_and_give_it_back(
    db: DatabaseManager, name: str, columns: list[str]
) -> None:
    leading, note = columns
    table = Table(name, model(leading, note), key=(leading, "timestamp"))
    quoted = [quote_identifier(column) for column in columns]
    declared = f"timestamp timestamptz NOT NULL, {quoted[0]} int NOT NULL, {quoted[1]} text"
    await create_series(
        db, name, f"{declared}, PRIMARY KEY ({quoted[0]}, timestamp)",
        references={}, chunk=timedelta(days=1), retention=timedelta(days=9),
    )  # fmt: skip
    try:
        rows = [table.model(**{"timestamp": NOW - timedelta(seconds=n), leading: 7, note: name}) for n in range(3)]
        assert await insert_batch(table, rows[1:]) == 2
        assert await insert_batch(table, rows) == 1  # the others are duplicates
        await insert(table, rows[0])
        assert await get_latest(table, 7) == rows[0]
        assert await get_history(table, 7, start=NOW - timedelta(minutes=1), end=NOW + timedelta(1)) == rows[::-1]
        stats = await get_stats(table, averages=(leading,))
        assert (stats["total_records"], stats[f"unique_{leading}"], stats[f"avg_{leading}"]) == (3, 1, 7.0)
        assert await db.fetchval("SELECT count(*) FROM symbols") == 0
    finally:
        await db.execute(f"DROP TABLE {quote_identifier(name)}")
        await db.execute("DELETE FROM pgtick_time_series WHERE table_name = $1", name)


def sources() -> Iterator[tuple[str, ast.Module]]:
    for folder in ("src/pgtick", "migrations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def test_nothing_else_quotes_names() -> None:
    found = []
    for path, tree in sources():
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.BinOp) else ""
            doubles = isinstance(node, ast.Call) and re.search(r"""\.replace\('"', '""'\)$""", text)
            joins = isinstance(node, ast.BinOp) and ("'\"' +" in text or "+ '\"'" in text)
            if doubles or joins or (isinstance(node, ast.JoinedStr) and _is_put_in_quotes(node)):
                found.append((path, node.lineno))  # type: ignore[attr-defined]  # all three have one
    assert {path for path, _ in found} == {"src/pgtick/tables.py"}, found


def _is_put_in_quotes(node: ast.JoinedStr) -> bool:
    """Return whether a value stands in double quotes in what looks like SQL."""
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    return '"\0"' in text and SQL.search(text) is not None


SQL = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|TRUNCATE|GRANT|REVOKE|COPY|ANALYZE|LOCK TABLE|REINDEX|"
    r"NOTIFY|LISTEN|REFERENCES)\b"
)
BEFORE_A_NAME = re.compile(
    r"\b(FROM|INTO|TABLE|JOIN|UPDATE|ROLE|DATABASE|SCHEMA|VIEW|INDEX|ON|TO|COLUMN|CONCURRENTLY|TRIGGER|TRUNCATE|ANALYZE|"
    r"EXISTS|SEQUENCE|ROUTINE|EXTENSION|REFERENCES|CONSTRAINT|COPY|PARTITION|AS|LOCK|CALL|FUNCTION|NOTIFY|LISTEN)\s+$"
)
CATALOG = "quoted by the server: regclass, quote_ident or format('%I')"
OWN = "a constant of pgtick's own"
TOLD = "in a message, never sent"
#: {file: {expression: why it stands unquoted in a statement}}; those that only advise are left out as a whole.
ONLY_TELL = ("src/pgtick/doctor/", "src/pgtick/verify/drift.py")
EXCEPTIONS = {
    "src/pgtick/cli/commands.py": {"BOOK_TICKERS.name": OWN},
    "src/pgtick/engines/advice.py": {"record['part']": CATALOG},
    "src/pgtick/engines/candles.py": {
        **dict.fromkeys(("kind.source", "source", "view", "kind.name"), OWN),
        "query": "a whole SELECT, made in the same module",
    },
    "src/pgtick/engines/choice.py": {"extension": TOLD},
    "src/pgtick/engines/plain.py": {"name": CATALOG},
    "src/pgtick/migrator/baseline.py": {
        **dict.fromkeys(("old.name", "had"), CATALOG),
        **dict.fromkeys(("BEFORE", "_REGISTRY"), OWN),
        "plan.rows": "a whole SELECT in brackets, made by baseline_rows",
        "qualified(INGEST_QUARANTINE)": "quoted in qualified()",
    },
    "src/pgtick/migrator/baseline_catalog.py": {
        **dict.fromkeys(("record['name']", "record['key']", "record[0]"), CATALOG),
        "BEFORE": OWN,
    },
    "src/pgtick/migrator/baseline_rows.py": {**dict.fromkeys(("old.name", "target"), CATALOG)},
    "src/pgtick/migrator/repair.py": dict.fromkeys(("index[1]", "index['index']", "step['invalid_index']"), CATALOG),
    "src/pgtick/migrator/steps.py": dict.fromkeys(("left[0]", "record['invalid_index']"), CATALOG),
    "src/pgtick/roles.py": {"_CHUNKS": OWN},
    "src/pgtick/writer/deliver.py": {"INGEST_BATCHES": OWN, "INGEST_QUARANTINE": OWN},
    "src/pgtick/writer/references.py": {"self.target": "quoted by references_of"},
}


def test_every_name_in_a_statement_is_quoted_or_has_its_reason() -> None:
    unquoted: dict[str, set[str]] = {}
    n_quoted = 0
    for path, tree in sources():
        if not path.startswith(ONLY_TELL):
            quoted, others = _names_in_statements(tree)
            n_quoted += quoted
            if others:
                unquoted[path] = others
    assert n_quoted > 30
    assert unquoted == {path: set(reasons) for path, reasons in EXCEPTIONS.items()}


def _names_in_statements(tree: ast.Module) -> tuple[int, set[str]]:
    """Return how many names are quoted where they stand, or where they are assigned, and all other expressions."""
    assigned = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "quote_identifier(" in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    n_quoted, others = 0, set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        if not SQL.search("".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))):
            continue
        for before, part in zip(node.values, node.values[1:], strict=False):
            head = str(before.value) if isinstance(before, ast.Constant) else ""
            if isinstance(part, ast.FormattedValue) and BEFORE_A_NAME.search(head):
                text = ast.unparse(part.value)
                if "quote_identifier(" in text or text in assigned:
                    n_quoted += 1
                else:
                    others.add(text)
    return n_quoted, others
