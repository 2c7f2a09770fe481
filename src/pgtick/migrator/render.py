"""The migrations as a script for psql, made by running the real ones against a manager that writes down.

For an empty database nothing is connected to: a migration that asks the database anything but which engine it has
cannot be rendered, and says so. For the database at hand its own answers are taken, and nothing of it is changed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, use_manager
from pgtick.errors import MigrationError, short_repr
from pgtick.migrator.apply import known
from pgtick.migrator.files import LoadedMigration, discover
from pgtick.migrator.ledger import LEDGER, make_ledger, read_steps, record
from pgtick.migrator.order import load_all

__all__ = ["ENGINES", "render_pending", "render_sql"]

# A parameter, or what may hold a dollar sign and is none.
_PARAMETER = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\d+)""")
_HEAD = """\
-- Made by: python -m pgtick.migrations preview --engine {engine} --server-version {server_version}
-- Not to be edited: change the migrations and make it again. For psql and an empty database.
"""
_HEAD_OF_PENDING = """\
-- Made by: python -m pgtick.migrations preview
-- What `up` would do to the database {database}, which is PostgreSQL {server_version}; for psql.
"""
_SETTINGS = """\
\\set ON_ERROR_STOP on
SET standard_conforming_strings = on;
"""


class _Profile(msgspec.Struct, frozen=True):
    """What an empty database with this engine answers, and what its script begins with."""

    answers: dict[str, object]
    note: str = ""
    prologue: tuple[str, ...] = ()


_NO_TABLES: dict[str, object] = {"SELECT to_regclass('pgtick_time_series')": None}
_EXTENSION = "SELECT true FROM pg_extension WHERE extname = 'timescaledb'"
_LICENCE = "SELECT current_setting('timescaledb.license') = 'timescale'"
_PROFILES = {
    "plain": _Profile(
        answers={**_NO_TABLES, _EXTENSION: None},
        note="-- The daily partitions are made by pgtick, at its start and by `pgtick maintain`.\n",
    ),
    "timescale": _Profile(  # with the community licence, as the image of compose.yaml
        answers={**_NO_TABLES, _EXTENSION: True, _LICENCE: True},
        prologue=("CREATE EXTENSION IF NOT EXISTS timescaledb",),
    ),
}
#: What a script for an empty database can be made for.
ENGINES = tuple(_PROFILES)


class _Recorder(DatabaseManager):
    """A manager that keeps the statements; it is its own connection."""

    def __init__(self, config: DatabaseConfig, server_version_num: int, answers: Mapping[str, object]) -> None:
        super().__init__(config, None, server_version_num)
        self._statements: list[str] = []
        self._answers = answers

    def take(self) -> list[str]:
        """Return the statements since the last call."""
        statements, self._statements = self._statements, []
        return statements

    async def execute(self, query: str, *args: object) -> str:
        text = inspect.cleandoc(_bind(query, args) if args else query)
        comment_last = "--" in text.rpartition("\n")[2]
        self._statements.append(text if text.endswith(";") else text + ("\n;" if comment_last else ";"))
        return ""

    async def executemany(self, query: str, rows: Iterable[Sequence[object]]) -> None:
        for row in rows:
            await self.execute(query, *row)

    async def fetchval(self, query: str, *args: object, resets: bool = True) -> Any:
        if args or query not in self._answers:
            raise MigrationError(f"it needs a database to answer: {query}")
        return self._answers[query]

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        raise MigrationError("it does more than execute()")
        yield

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield  # that of the script


class _AskingRecorder(_Recorder):
    """A recorder that lets the database answer, in a transaction that can only read."""

    def __init__(self, source: DatabaseManager) -> None:
        super().__init__(source.config, source.server_version, {})
        self._source = source

    async def fetch(self, query: str, *args: object, resets: bool = True) -> list[asyncpg.Record]:
        async with self._source.transaction():  # a savepoint: a question that fails ends nothing
            return await self._source.fetch(query, *args)

    async def fetchrow(self, query: str, *args: object, resets: bool = True) -> asyncpg.Record | None:
        return next(iter(await self.fetch(query, *args)), None)

    async def fetchval(self, query: str, *args: object, resets: bool = True) -> Any:
        row = await self.fetchrow(query, *args)
        return None if row is None else row[0]

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        async with self._source.transaction():
            await self._source.execute("SET TRANSACTION READ ONLY")
            yield


class _Section(msgspec.Struct, frozen=True):
    """A migration's part of the script."""

    title: str
    statements: list[str]
    ledger: list[str]
    transaction: bool = True


def _bind(query: str, args: Sequence[object]) -> str:
    if "$$" in query or "--" in query or "/*" in query:
        raise MigrationError(f"it has bound values beside a comment or a dollar quote: {query}")
    return _PARAMETER.sub(lambda match: _literal(args[int(match[1]) - 1]) if match[1] else match[0], query)


def _literal(value: object) -> str:
    """Return the value as an untyped literal, which gets its type as a parameter does: from its place."""
    if value is None:
        return "NULL"
    if isinstance(value, timedelta):
        text = str(value).removesuffix(", 0:00:00")
    elif isinstance(value, str | bool | int | float | Decimal | datetime | date):
        text = str(value)
    else:
        raise MigrationError(f"it binds a {type(value).__name__}: {short_repr(value)}")
    return "'" + text.replace("'", "''") + "'"


async def render_sql(engine: str = "timescale", server_version: int = 18, folders: Sequence[str] = ()) -> str:
    """Return a script that does to an empty database what the migrations do, ledger included.

    ``engine`` is one of ENGINES, ``server_version`` PostgreSQL's major version. What can be is one transaction. Raises
    MigrationError where a migration does what a script cannot hold.
    """
    profile = _PROFILES[engine]
    config = DatabaseConfig(host="localhost", database="none", user="none", engine=engine)
    recorder = _Recorder(config, server_version * 10_000, profile.answers)
    for statement in (*profile.prologue, LEDGER):
        await recorder.execute(statement)
    sections = [
        _Section("", recorder.take(), []),
        *[await _section(recorder, one) for one in await load_all(discover(folders))],
    ]
    head = _HEAD.format(engine=engine, server_version=server_version)
    return "\n".join([head + _SETTINGS + profile.note, *_joined(sections, together=True)])


async def render_pending(db: DatabaseManager) -> str:
    """Return a script of what run_pending_migrations() would do to this database now; "" when nothing is pending."""
    migrations, ledger = await known(db)
    pending = [loaded for loaded in migrations if loaded.migration.key not in ledger]
    if not pending:
        return ""
    done = {(row["namespace"], row["id"], row["step"]) for row in await read_steps(db) if row["finished_at"]}
    recorder = _AskingRecorder(db)
    sections = []
    async with recorder.asking():
        await make_ledger(recorder)
        sections.append(_Section("", recorder.take(), []))
        for loaded in pending:
            section = await _section(recorder, loaded)
            left = [
                text
                for step, text in enumerate(section.statements, 1)
                if loaded.transaction or (*loaded.migration.key, step) not in done
            ]
            sections.append(msgspec.structs.replace(section, statements=left))
    head = _HEAD_OF_PENDING.format(database=db.config.database, server_version=db.server_version // 10_000)
    return "\n".join([head + _SETTINGS, *_joined([one for one in sections if one.statements or one.ledger])])


async def _section(recorder: _Recorder, loaded: LoadedMigration) -> _Section:
    label = loaded.migration.label
    try:
        with use_manager(recorder):
            await loaded.up()
        statements = recorder.take()
        await record(recorder, loaded.migration, None)
    except Exception as error:
        raise MigrationError(f"{label} cannot be written as a script: {error}") from error
    return _Section(f"-- {label}\n", statements, recorder.take(), loaded.transaction)


def _joined(sections: Iterable[_Section], *, together: bool = False) -> list[str]:
    """Return the script's parts, each section in a transaction of its own, or all that can be in one ``together``."""
    parts: list[str] = []
    is_open = False
    for section in sections:
        if is_open and not (together and section.transaction):
            parts.append("COMMIT;\n")
            is_open = False
        if section.transaction and not is_open:
            parts.append("BEGIN;\n")
            is_open = True
        parts += [section.title] * bool(section.title)
        parts += [statement + "\n" for statement in section.statements]
        # Without a transaction around it, the ledger's row is a statement as the others.
        parts += [statement + "\n" for statement in section.ledger]
    return [*parts, "COMMIT;\n"] if is_open else parts
