"""The schema as a script for psql, made by running the real migrations against a manager that writes down.

Nothing is connected to. A migration that asks the database anything but which engine it has cannot be rendered,
and says so.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, use_manager
from pgtick.errors import MigrationError, short_repr
from pgtick.migrator.apply import LEDGER
from pgtick.migrator.files import discover

__all__ = ["render_sql"]

# A parameter, or what may hold a dollar sign and is none.
_PARAMETER = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|\$(\d+)""")
_HEAD = """\
-- Made by: python -m pgtick.migrations sql --engine {engine} --server-version {server_version}
-- Not to be edited: change the migrations and make it again. For psql and an empty database.
\\set ON_ERROR_STOP on
BEGIN;
SET LOCAL standard_conforming_strings = on;
"""
_PLAIN_NOTE = "-- The daily partitions are made by pgtick, at its start and by `pgtick maintain`.\n"


class _Recorder(DatabaseManager):
    """A manager that keeps the statements; it is its own connection."""

    def __init__(self, engine: str, server_version: int) -> None:
        config = DatabaseConfig(host="localhost", database="none", user="none", engine=engine)
        super().__init__(config, None, server_version * 10_000)
        self.statements: list[str] = []
        has_timescale = engine == "timescale"
        # What get_engine() and the engines ask. The image of compose.yaml has the community licence.
        self._answers: dict[str, object] = {
            "SELECT to_regclass('pgtick_time_series')": None,
            "SELECT true FROM pg_extension WHERE extname = 'timescaledb'": has_timescale or None,
            "SELECT true FROM pg_extension WHERE extname = 'citus'": engine == "citus" or None,
            "SELECT current_setting('timescaledb.license') = 'timescale'": has_timescale,
        }

    async def execute(self, query: str, *args: object) -> str:
        text = inspect.cleandoc(_bind(query, args) if args else query)
        comment_last = "--" in text.rpartition("\n")[2]
        self.statements.append(text if text.endswith(";") else text + ("\n;" if comment_last else ";"))
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
        yield  # the script is one transaction


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

    ``engine`` is timescale or plain, ``server_version`` PostgreSQL's major version. Raises MigrationError where
    a migration does what a script cannot hold.
    """
    recorder = _Recorder(engine, server_version)
    parts = [_HEAD.format(engine=engine, server_version=server_version)]
    if engine == "plain":
        parts.append(_PLAIN_NOTE)
    else:
        await recorder.execute(f"CREATE EXTENSION IF NOT EXISTS {'citus' if engine == 'citus' else 'timescaledb'}")
    await recorder.execute(LEDGER)
    parts += _taken(recorder)
    for migration in discover(folders):
        loaded = await migration.load()
        try:
            with use_manager(recorder):
                await loaded.up(recorder)
        except Exception as error:
            raise MigrationError(f"{migration.label} cannot be written as a script: {error}") from error
        parts += [f"-- {migration.label}\n", *_taken(recorder)]
    return "\n".join([*parts, "COMMIT;\n"])


def _taken(recorder: _Recorder) -> list[str]:
    statements = [statement + "\n" for statement in recorder.statements]
    recorder.statements.clear()
    return statements
