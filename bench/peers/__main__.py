"""The command: ``python bench/peers`` from the checkout, with the extra ``peers`` installed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

# As a folder that is run, this is no package yet: the folder above makes it one.
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).parents[1])

import click
from rich.console import Console

from peers.reading import measure_memory
from peers.report import write_comparison, write_ladder
from peers.run import QUICK, Progress, Size, compare, compare_ladder
from peers.server import open_database, server_config
from pgtick.connection import DatabaseManager

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"


def _run(dsn: str | None, size: Size, work: Callable[[DatabaseManager, Size, Progress], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        with server_config(dsn) as server, Console(stderr=True).status("starting") as status:
            async with open_database(server, size.n_symbols) as db:
                return await work(db, size, status.update)

    return asyncio.run(main())


def _command(name: str, quick: bool) -> str:
    return f".venv/bin/python bench/peers{name}{' --quick' if quick else ''}"


@click.group(invoke_without_command=True)
@click.option("--quick", is_flag=True, help="A smoke test of about a minute: few rows, figures without worth.")
@click.option("--dsn", help="A server of your own; a database is made there and dropped. Default: an embedded one.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=OUT, help="Where the pages go.")
@click.pass_context
def cli(context: click.Context, quick: bool, dsn: str | None, out: Path) -> None:
    """Compare pgtick with its peers on one server and write Markdown tables and a plot."""
    context.obj = (QUICK if quick else Size(), dsn, out)
    if context.invoked_subcommand is None:
        results = _run(dsn, context.obj[0], compare)
        write_comparison(results, out, _command("", quick))
        click.echo((out / "targets.md").read_text("utf-8"))


@cli.command()
@click.pass_obj
def ladder(settings: tuple[Size, str | None, Path]) -> None:
    """Show what the server does for a row, step by step, and what makes it do less."""
    size, dsn, out = settings
    write_ladder(_run(dsn, size, compare_ladder), out, _command(" ladder", size is QUICK))
    click.echo((out / "ladder.md").read_text("utf-8"))


@cli.command(hidden=True)
@click.argument("reader")
def memory(reader: str) -> None:
    """Print by how many bytes this process grows while READER reads; the DSN comes on standard input."""
    click.echo(json.dumps(asyncio.run(measure_memory(reader, sys.stdin.read()))))


if __name__ == "__main__":
    cli(prog_name="python bench/peers")
