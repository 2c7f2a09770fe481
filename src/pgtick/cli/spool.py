"""pgtick spool: what waits on disk, is it whole, send it, drop it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from pgtick.cli.grid import print_grid
from pgtick.cli.quarantine import import_tables
from pgtick.cli.running import run
from pgtick.config import DatabaseConfig, HftConfig
from pgtick.connection import open_manager
from pgtick.embedded import state_folder
from pgtick.errors import SpoolError
from pgtick.tables import Table
from pgtick.writer import Writer
from pgtick.writer.metrics import Counts
from pgtick.writer.spool import Spool
from pgtick.writer.spool_report import SpoolFile, look_into
from pgtick.writer.spooling import spool_folder

__all__ = ["spool"]

_NUMBERS = ("batches", "rows", "bytes")
_LOOK_S = 0.05
_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="The spool; otherwise that of --dsn's database.",
)
_dsn = click.option("--dsn", help="The database; otherwise as in the environment.")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def spool() -> None:
    """Look at the rows that wait on disk, check their files, store them, or drop them."""


def _config(dsn: str | None) -> DatabaseConfig:
    return DatabaseConfig.from_dsn(dsn) if dsn else HftConfig().get_database_config()


def _spools(folder: Path | None, dsn: str | None) -> list[Path]:
    """Return the spool that is named, or all of this user's."""
    if folder is not None:
        return [folder]
    if dsn is not None:
        return [spool_folder(_config(dsn))]
    home = state_folder() / "spool"
    return sorted(path for path in home.iterdir() if path.is_dir()) if home.is_dir() else []


@contextmanager
def _told() -> Iterator[None]:
    """Turn what may be expected to go wrong into a message."""
    try:
        yield
    except (SpoolError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _time(created_us: int | None) -> str:
    return "" if created_us is None else f"{datetime.fromtimestamp(created_us / 1e6, UTC):%Y-%m-%d %H:%M:%S}"


def _echo_json(spools: dict[Path, list[SpoolFile]]) -> None:
    told = {str(path): msgspec.to_builtins(files, enc_hook=str) for path, files in spools.items()}
    click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())


@spool.command()
@_folder
@click.option("--dsn", help="Only the spool of this database.")
@_as_json
def status(folder: Path | None, dsn: str | None, as_json: bool) -> None:
    """Say what waits on disk, by table. Nothing is changed.

    Of a process that runs, rows that are stored already are counted too, until their file is done.
    """
    with _told():
        spools = {path: look_into(path) for path in _spools(folder, dsn)}
    if as_json:
        _echo_json(spools)
        return
    for path, files in spools.items():
        click.echo(path)
        rows = []
        names = sorted({(name, file.is_live) for file in files if not file.is_kept_aside for name in file.tables})
        for name, is_live in names:
            mine = [
                file for file in files if (name in file.tables and file.is_live == is_live and not file.is_kept_aside)
            ]
            oldest = min(file.oldest_us for file in mine if file.oldest_us is not None)
            counts = (sum(file.n_batches for file in mine), sum(file.n_rows for file in mine))
            n_bytes = sum(file.n_bytes for file in mine)
            state = "a process that runs" if is_live else "the next start"
            rows.append((name, *(f"{count:,}" for count in (*counts, n_bytes)), _time(oldest), state))
        if rows:
            print_grid(("table", "batches", "rows", "bytes", "oldest (UTC)", "waits for"), rows, numbers=_NUMBERS)
        n_bad = sum(not file.is_whole for file in files)
        if n_bad:
            click.echo(f"{n_bad} files are damaged: pgtick spool verify")
    if not any(spools.values()):
        click.echo("nothing is spooled")


@spool.command()
@_folder
@click.option("--dsn", help="Only the spool of this database.")
@_as_json
def verify(folder: Path | None, dsn: str | None, as_json: bool) -> None:
    """Check every batch against its checksum, and list what cannot be read. Nothing is changed.

    Exit code: 0 all is whole, 3 something is damaged.
    """
    with _told():
        spools = {path: look_into(path) for path in _spools(folder, dsn)}
    if as_json:
        _echo_json(spools)
    files = [file for found in spools.values() for file in found]
    if not as_json:
        if files:
            print_grid(
                ("file", "batches", "rows", "verdict"),
                [(str(file.path), f"{file.n_batches:,}", f"{file.n_rows:,}", _verdict(file)) for file in files],
                numbers=_NUMBERS,
            )
        n_bad = sum(not file.is_whole for file in files)
        click.echo(f"{len(files) - n_bad} files are whole, {n_bad} damaged")
    sys.exit(0 if all(file.is_whole for file in files) else 3)


def _verdict(file: SpoolFile) -> str:
    said = [file.problem] if file.problem else []
    said += [f"bytes {start:,} to {end:,} damaged" for start, end in file.damages]
    if file.n_unfinished_bytes:
        said.append(f"{file.n_unfinished_bytes:,} bytes at the end not finished")
    if file.is_kept_aside:
        said.append("kept aside; its whole batches are settled")
    return "; ".join(said) or "whole"


@spool.command()
@_folder
@_dsn
@click.option("--import", "modules", multiple=True, metavar="MODULE", help="A module with Tables of your own.")
@click.option("--patience", default=30.0, show_default=True, help="Seconds without a stored batch until it gives up.")
def replay(folder: Path | None, dsn: str | None, modules: tuple[str, ...], patience: float) -> None:
    """Store what dead processes have left; a process that runs stores its own.

    Exit code: 0 all is settled, 1 something is left (it stays in the spool).
    """
    config = _config(dsn)
    counts = run(_replay(config, folder or spool_folder(config), import_tables(modules), patience))
    for name, count in counts.items():
        click.echo(
            f"{name}: {count.n_recovered:,} rows found, {count.n_stored:,} stored, {count.n_duplicates:,} were stored "
            f"before, {count.n_quarantined:,} in quarantine, {count.n_dropped:,} unreadable, {count.n_spooled:,} left"
        )
    if not counts:
        click.echo("nothing is spooled")
    if any(count.n_spooled for count in counts.values()):
        raise click.ClickException("not everything could be stored; it stays in the spool")


async def _replay(config: DatabaseConfig, folder: Path, own: list[Table], patience_s: float) -> dict[str, Counts]:
    """Open a writer on the spool and wait until it is empty, or nothing has gone for too long."""
    db = await open_manager(config)
    try:
        async with Writer(db, spool=folder) as writer:
            for table in own:
                writer.lane(table)
            left, since = -1, time.monotonic()
            while True:
                now_left = sum(count.n_spooled for count in writer.counts.values())
                if now_left != left:
                    left, since = now_left, time.monotonic()
                if not left or time.monotonic() - since > patience_s:
                    break
                await asyncio.sleep(_LOOK_S)
        return {name: count for name, count in sorted(writer.counts.items()) if count.n_recovered}
    finally:
        await db.close()


@spool.command()
@_folder
@click.option("--dsn", help="Only the spool of this database.")
@click.option("--table", "tables", multiple=True, help="Only this table's rows; may be repeated.")
@click.option("--damaged", is_flag=True, help="Only the files that were kept aside.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(folder: Path | None, dsn: str | None, tables: tuple[str, ...], damaged: bool, yes: bool) -> None:
    """Delete what dead processes have left. A process that runs keeps its own."""
    if damaged and tables:
        raise click.UsageError("a file that is kept aside is not of a --table for certain: give one of the two")
    for path in _spools(folder, dsn):
        with _told():
            files = [file for file in look_into(path) if file.is_kept_aside] if damaged else []
            waiting = None if damaged else Spool(path)
        if waiting is None:
            if files and (yes or click.confirm(f"{path}: delete {len(files)} files that were kept aside?")):
                for file in files:
                    file.path.unlink(missing_ok=True)
                click.echo(f"{path}: {len(files)} files deleted")
            continue
        with _told():
            found = [name for name in waiting.open() if not tables or name in tables]
        try:
            for name in found:
                told = f"{waiting.n_rows(name):,} rows of {name}"
                if yes or click.confirm(f"{path}: delete {told}?"):
                    waiting.discard(name)
                    click.echo(f"{path}: {told} deleted")
        finally:
            waiting.close()
