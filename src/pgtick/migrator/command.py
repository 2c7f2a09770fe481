"""The migration entrypoint: apply what is pending, take back, look, repair.

Exit codes: 0 done, or nothing to do; 1 refused or failed (the reason is on stderr); 2 not a command of this program;
3 there is something to see to: status and preview with migrations pending, changed or unfinished, repair and verify
with findings, up with a schema that is not the declared one afterwards, baseline with rows that it left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec

from pgtick.config import DatabaseConfig, HftConfig
from pgtick.connection import DatabaseManager, open_manager, use_manager
from pgtick.engines import get_engine
from pgtick.errors import PgtickError
from pgtick.migrator.apply import get_available_migrations, rollback_migration, run_pending_migrations
from pgtick.migrator.baseline import baseline
from pgtick.migrator.render import ENGINES, render_pending, render_sql
from pgtick.migrator.repair import accept_migration, find_unfinished, settle_step
from pgtick.migrator.session import locked, migrating
from pgtick.migrator.skeleton import load_model, write_skeleton
from pgtick.roles import set_up_roles
from pgtick.verify import Drift, verify_schema

__all__ = ["COMMANDS", "TO_SEE_TO", "Answer", "Command", "main"]

TO_SEE_TO = 3
Arguments = argparse.Namespace


class Answer(msgspec.Struct, frozen=True):
    """What a command found: for a program, for a person, and the exit code."""

    value: Any
    text: str
    code: int = 0


class Command(msgspec.Struct, frozen=True):
    """A command: ``run`` gets the open manager, which is in use, and the arguments; None: it is offline."""

    name: str
    help: str
    run: Callable[[DatabaseManager, Arguments], Awaitable[Answer]] | None
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None
    offline: Callable[[Arguments], Awaitable[Answer | None]] | None = None  # an answer that needs no database


async def _up(db: DatabaseManager, arguments: Arguments) -> Answer:
    applied = await run_pending_migrations(db, to=arguments.to)
    drifts: list[Drift] = []
    if applied:  # whoever migrates may do what others may not: make what rows need, store what is declared
        await (await get_engine(db)).make_ahead(db)
        async with migrating(db) as own, locked(own, "verify"):  # what another migrator has half done is no drift
            drifts = await verify_schema(db)
    lines = [*(f"applied {label}" for label in applied), *map(_drift, drifts)]
    return Answer(applied, "\n".join(lines) or "nothing is pending", TO_SEE_TO if drifts else 0)


async def _down(db: DatabaseManager, arguments: Arguments) -> Answer:
    result = await rollback_migration(arguments.id, destructive=arguments.destructive)
    return Answer(result, f"took back {result['migration']}")


async def _status(db: DatabaseManager, arguments: Arguments) -> Answer:
    rows = await get_available_migrations(db)
    to_see_to = any(row["state"] in ("pending", "changed", "unfinished") for row in rows)
    lines = [
        (f"{row['namespace']}/{row['id']}_{row['name']}", row["state"], _moment(row["applied_at"])) for row in rows
    ]
    return Answer(rows, _columns([("migration", "state", "applied"), *lines]), TO_SEE_TO if to_see_to else 0)


async def _preview(db: DatabaseManager, arguments: Arguments) -> Answer:
    script = await render_pending(db)
    return Answer({"sql": script}, script or "-- nothing is pending", TO_SEE_TO if script else 0)


async def _preview_offline(arguments: Arguments) -> Answer | None:
    if arguments.engine is None:
        return None
    script = await render_sql(arguments.engine, arguments.server_version, arguments.folder)
    return Answer({"sql": script}, script)


async def _repair(db: DatabaseManager, arguments: Arguments) -> Answer:
    if arguments.id is not None:
        result = await settle_step(arguments.id, finished=arguments.finished)
        return Answer(result, f"{result['migration']}, step {result['step']}: {result['now']}")
    findings = await find_unfinished(db)
    return Answer(findings, "\n".join(map(_finding, findings)) or "nothing to repair", TO_SEE_TO if findings else 0)


def _finding(finding: dict[str, Any]) -> str:
    if finding["what"] == "step":
        what = f"{finding['migration']}, step {finding['step']} {finding['direction']}: {finding['statement']}"
    else:
        what = f"invalid index {finding['index']} of {finding['table']}"
    return f"{what}\n    {finding['advice']}"


async def _accept(db: DatabaseManager, arguments: Arguments) -> Answer:
    result = await accept_migration(arguments.id)
    return Answer(result, f"{result['migration']} is on record as it is now\n{result['difference']}")


async def _verify(db: DatabaseManager, arguments: Arguments) -> Answer:
    drifts = await verify_schema(db)
    value = [{**msgspec.to_builtins(drift), "what": str(drift), "advice": drift.advice} for drift in drifts]
    text = "\n".join(map(_drift, drifts)) or "the schema is as declared"
    return Answer(value, text, TO_SEE_TO if drifts else 0)


def _drift(drift: Drift) -> str:
    return f"{drift}\n    {drift.advice}"


async def _baseline(db: DatabaseManager, arguments: Arguments) -> Answer:
    report = await baseline(db, dry_run=arguments.dry_run)
    lines = [f"{report.action}{', and rolled back: a dry run' if report.dry_run else ''}"]
    for table in report.tables:
        lines.append(f"{table.table}: {table.n_moved:,} of {table.n_rows:,} rows")
        lines += [f"    {refused.n_rows:,} stay in pgtick_before: {refused.rule}" for refused in table.refused]
        lines += [f"    not taken along: {n:,} values of {name}" for name, n in table.left_behind.items()]
        lines += [f"    {note}" for note in table.notes]
    lines += [*report.advice, *(f"pending, for up: {label}" for label in report.pending)]
    is_whole = not any(table.refused for table in report.tables)
    return Answer(msgspec.to_builtins(report), "\n".join(lines), 0 if is_whole else TO_SEE_TO)


async def _new_offline(arguments: Arguments) -> Answer:
    path = write_skeleton(
        arguments.into,
        arguments.name,
        load_model(arguments.model),
        key=arguments.key,
        chunk=timedelta(minutes=arguments.chunk_minutes),
        retention=timedelta(days=arguments.retention_days),
    )
    return Answer({"file": str(path)}, f"wrote {path}: read it, it is a first draft")


async def _roles(db: DatabaseManager, arguments: Arguments) -> Answer:
    statements = await set_up_roles(db, prefix=arguments.prefix, dry_run=arguments.print)
    return Answer(statements, "\n".join(f"{statement};" for statement in statements) or "the roles are set up")


def _moment(moment: Any) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S%z}"


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(padded)


_ID = '"004" for pgtick\'s own, "folder/001" for yours'


def _options_of_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="ID", help="no further than this one")


def _options_of_down(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help=_ID)
    parser.add_argument("--destructive", action="store_true", help="yes, with the rows that go with it")


def _options_of_preview(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=ENGINES, help="the whole script, for an empty database with this engine")
    parser.add_argument("--server-version", type=int, default=18, help="with --engine: PostgreSQL's major version")


def _options_of_repair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", help=f"the migration whose interrupted step is settled: {_ID}")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--again", action="store_true", help="the step is not done: the next up does it again")
    how.add_argument("--finished", action="store_true", help="the step is done")


def _options_of_accept(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help=_ID)


def _options_of_baseline(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="all of it, and rolled back")


def _options_of_new(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of the migration: a-z, 0-9 and _")
    parser.add_argument("model", help="package.module:Name of a Table or a model")
    parser.add_argument("--into", required=True, metavar="FOLDER", help="your folder of migrations")
    parser.add_argument("--key", action="append", default=[], help="a column of a model's primary key; repeat it")
    parser.add_argument("--chunk-minutes", type=float, default=60, help="TimescaleDB's chunk interval (60)")
    parser.add_argument("--retention-days", type=float, default=7, help="how long rows are kept (7)")


def _options_of_roles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefix", default="pgtick", help="of the roles' names (pgtick)")
    parser.add_argument("--print", action="store_true", help="only show the statements")


#: In the order of the help; another room's command is a line here.
COMMANDS = (
    Command("up", "apply what is pending (the default)", _up, _options_of_up),
    Command("down", "take one migration back", _down, _options_of_down),
    Command("status", "list the migrations and what became of them", _status),
    Command("preview", "show the SQL that up would run", _preview, _options_of_preview, _preview_offline),
    Command("repair", "list what was left unfinished, or settle a step", _repair, _options_of_repair),
    Command("accept", "record an applied file as it is now", _accept, _options_of_accept),
    Command("verify", "compare the live schema with the declared one", _verify),
    Command("baseline", "adopt the tables that are here, with their rows", _baseline, _options_of_baseline),
    Command("new", "write a first draft from a model", None, _options_of_new, _new_offline),
    Command("roles", "set up the roles owner, writer, reader and monitor", _roles, _options_of_roles),
)


def _parser(prog: str, commands: Iterable[Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dsn", help="the database; otherwise as in the environment")
    common.add_argument(
        "--folder",
        action="append",
        default=[],
        help="your migrations, not those of POSTGRES_MIGRATION_FOLDERS; repeat it",
    )
    common.add_argument("--json", action="store_true", help="for a program")
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    for command in commands:
        own = actions.add_parser(command.name, help=command.help, description=command.help, parents=[common])
        command.options(own)
        own.set_defaults(command=command)
    return parser


async def _run(arguments: Arguments) -> Answer:
    command: Command = arguments.command
    if command.offline is not None and (answer := await command.offline(arguments)) is not None:
        return answer
    assert command.run is not None  # noqa: S101  an offline command has answered
    config = DatabaseConfig.from_dsn(arguments.dsn) if arguments.dsn else HftConfig().get_database_config()
    if arguments.folder:
        config = msgspec.structs.replace(config, migration_folders=tuple(arguments.folder))
    db = await open_manager(config)
    try:
        with use_manager(db):
            return await command.run(db, arguments)
    finally:
        await db.close()


def main(argv: list[str] | None = None, *, prog: str = "python -m pgtick.migrations") -> int:
    """Do what the arguments say; return the exit code. ``pgtick migrate`` is this function too."""
    given = sys.argv[1:] if argv is None else argv
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = ["up", *given]
    parser = _parser(prog, COMMANDS)
    arguments = parser.parse_args(given)
    if arguments.action == "repair" and (arguments.id is not None) != (arguments.again or arguments.finished):
        parser.error("repair takes an ID with --again or --finished, or nothing")
    try:
        answer = asyncio.run(_run(arguments))
    except (PgtickError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was not committed is rolled back; of steps, see repair", file=sys.stderr)
        return 1
    output = json.dumps(answer.value, indent=2, default=str) if arguments.json else answer.text
    sys.stdout.write(output.rstrip("\n") + "\n")
    return answer.code
