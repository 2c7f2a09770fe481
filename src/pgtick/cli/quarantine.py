"""pgtick quarantine: list, show, fix, replay, drop the rows that were refused."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import click
import msgspec

from pgtick.cli.grid import print_grid
from pgtick.cli.running import run
from pgtick.config import DatabaseConfig, HftConfig
from pgtick.connection import DatabaseManager, open_manager
from pgtick.errors import short_repr
from pgtick.operations import quarantine as operations
from pgtick.tables import BUILT_IN_TABLES, Table
from pgtick.writer.row_json import types_of, value_of

__all__ = ["import_tables", "quarantine"]

_NUMBERS = ("rows", "id", "index")
_Ids = tuple[int, ...]
_dsn = click.option("--dsn", help="The database; otherwise as in the environment.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_imports = click.option(
    "--import", "modules", multiple=True, metavar="MODULE", help="A module with Tables of your own; may be repeated."
)
_table = click.option("--table", help="Rows of this table only.")


@click.group()
def quarantine() -> None:
    """Look at rows that were refused, mend them, store them after all, or drop them."""


def _run(dsn: str | None, work: Callable[[DatabaseManager], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        db = await open_manager(DatabaseConfig.from_dsn(dsn) if dsn else HftConfig().get_database_config())
        try:
            return await work(db)
        finally:
            await db.close()

    return run(inside())


def import_tables(modules: tuple[str, ...]) -> list[Table]:
    """Import the modules, those of the working directory too, and return the Tables in them."""
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # python -m does so, an installed command does not
    tables: list[Table] = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # whatever the user's module raises
            raise click.ClickException(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
        found = [value for value in vars(module).values() if isinstance(value, Table)]
        if not found:
            raise click.ClickException(f"{name} has no Table")
        tables += found
    return tables


def _echo_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _to_json(row: operations.QuarantinedRow) -> dict[str, object]:
    return {**msgspec.structs.asdict(row), "row": msgspec.Raw(row.row.encode())}


def _time(instant: datetime) -> str:
    return f"{instant:%Y-%m-%d %H:%M:%S}"


@quarantine.command("list")
@_table
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=0), help="How many rows to show.")
@_as_json
@_dsn
def list_(table: str | None, limit: int, as_json: bool, dsn: str | None) -> None:
    """Count the rows by table, column and reason; show the newest."""

    async def look(db: DatabaseManager) -> tuple[Any, Any]:
        counts = await operations.count_quarantine(db, table=table)
        return counts, await operations.list_quarantine(db, table=table, limit=limit)

    counts, rows = _run(dsn, look)
    if as_json:
        _echo_json({"counts": counts, "rows": [_to_json(row) for row in rows]})
        return
    if not counts:
        click.echo("nothing is in quarantine")
        return
    print_grid(
        ("table", "column", "reason", "rows", "newest (UTC)"),
        [(one.table, one.column, one.reason, f"{one.n_rows:,}", _time(one.newest)) for one in counts],
        numbers=_NUMBERS,
    )
    if rows:
        print_grid(
            ("id", "table", "index", "column", "reason", "since (UTC)"),
            [
                (row.id, row.table_name, row.row_index, row.column_name, row.reason, _time(row.quarantined_at))
                for row in rows
            ],
            numbers=_NUMBERS,
        )


@quarantine.command()
@click.argument("row_id", metavar="ID", type=int)
@_as_json
@_dsn
def show(row_id: int, as_json: bool, dsn: str | None) -> None:
    """Show a row with all its values."""
    row: operations.QuarantinedRow = _run(dsn, lambda db: operations.get_quarantined(db, row_id))
    if as_json:
        _echo_json(_to_json(row))
        return
    for name, value in msgspec.structs.asdict(row).items():
        if name != "row":
            click.echo(f"{name:<16} {value}")
    click.echo(msgspec.json.format(row.row.encode(), indent=2).decode())


@quarantine.command()
@click.argument("row_id", metavar="ID", type=int)
@click.argument("changes", metavar="[COLUMN=VALUE]...", nargs=-1)
@click.option("--without", multiple=True, metavar="NAME", help="Leave out a name that is no column.")
@_imports
@_dsn
def fix(
    row_id: int, changes: tuple[str, ...], without: tuple[str, ...], modules: tuple[str, ...], dsn: str | None
) -> None:
    """Change values of a row where it is kept, and say what is still wrong; null is NULL.

    Exit code: 0 it can be replayed, 1 it could not be changed, 3 it still breaks a rule.
    """
    tables = import_tables(modules)

    async def mend(db: DatabaseManager) -> Any:
        name = (await operations.get_quarantined(db, row_id)).table_name
        types = next((types_of(table) for table in (*tables, *BUILT_IN_TABLES) if table.name == name), {})
        values = dict(_change(types, change) for change in changes)
        return await operations.fix_quarantined(db, row_id, values, without=without, tables=tables)

    error = _run(dsn, mend)
    if error is None:
        click.echo(f"row {row_id} breaks no rule any more: pgtick quarantine replay {row_id}")
        return
    click.echo(f"row {row_id} is changed and still refused: {error.column}: {short_repr(error.value)} {error.rule}")
    sys.exit(3)


def _change(types: dict[str, str], change: str) -> tuple[str, object]:
    name, equals, text = change.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"{change!r} is not COLUMN=VALUE")
    return name, None if text == "null" else value_of(types.get(name), text)


@quarantine.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=int)
@_table
@click.option("--dry-run", is_flag=True, help="Do it all, and roll it back.")
@_imports
@_as_json
@_dsn
def replay(
    ids: _Ids, table: str | None, dry_run: bool, modules: tuple[str, ...], as_json: bool, dsn: str | None
) -> None:
    """Store rows after all: those of the ids, of the table, or all.

    Exit code: 0 nothing is left of them, 1 it could not be done, 3 some are still refused, or of unknown tables.
    """
    tables = import_tables(modules)
    done: operations.Replayed = _run(
        dsn,
        lambda db: operations.replay_quarantine(db, ids=ids or None, table=table, tables=tables, dry_run=dry_run),
    )
    if as_json:
        _echo_json(done)
    else:
        _print_replayed(done, dry_run)
    sys.exit(0 if done.is_complete else 3)


def _print_replayed(done: operations.Replayed, dry_run: bool) -> None:
    for name, count in done.tables.items():
        click.echo(
            f"{name}: {count.n_stored:,} stored, {count.n_duplicates:,} duplicates, {count.n_refused:,} still refused"
            f"{' (dry run)' if dry_run else ''}"
        )
    for one in done.refused[:20]:
        click.echo(f"  row {one.id}: {one.column}: {one.reason}")
    if len(done.refused) > 20:
        click.echo("  … and more: pgtick quarantine list")
    for name, n_rows in done.unknown.items():
        click.echo(f"{name}: {n_rows:,} rows are left, its Table is not known: --import its module")
    if not done.tables and not done.unknown:
        click.echo("nothing to replay")


@quarantine.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=int)
@click.option("--yes", is_flag=True, help="They are lost, and that is meant.")
@_dsn
def drop(ids: _Ids, yes: bool, dsn: str | None) -> None:
    """Delete rows for good."""
    if not yes:
        raise click.ClickException("they would be lost for good: say --yes")
    click.echo(f"{_run(dsn, lambda db: operations.drop_quarantined(db, ids))} rows dropped")
