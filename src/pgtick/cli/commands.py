"""demo, server, replay, migrate, maintain; doctor and quarantine are in modules of their own."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from pgtick import engines
from pgtick.cli import report
from pgtick.cli.doctor import doctor
from pgtick.cli.market import INSTRUMENTS, SimulatedMarket
from pgtick.cli.quarantine import quarantine
from pgtick.cli.running import run as _run
from pgtick.cli.spool import spool
from pgtick.cli.top import top
from pgtick.config import DatabaseConfig, HftConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager
from pgtick.embedded import start_embedded
from pgtick.errors import PgtickError
from pgtick.migrator.command import main as migrations_main
from pgtick.operations.symbols import resolve_symbol
from pgtick.tables import BOOK_TICKERS, BUILT_IN_TABLES, FUNDING_RATES
from pgtick.writer import Writer

__all__ = ["pgtick"]

console = Console()

_TABLES = {table.name: table for table in BUILT_IN_TABLES}
_N_MEASURED = 200


@click.group()
@click.version_option(package_name="pgtick")
def pgtick() -> None:
    """Store market data of crypto exchanges in PostgreSQL, and read it back."""


pgtick.add_command(doctor)
pgtick.add_command(quarantine)
pgtick.add_command(spool)
pgtick.add_command(top)


@asynccontextmanager
async def _database(dsn: str | None, name: str) -> AsyncIterator[tuple[DatabaseManager, Any]]:
    """Open the database of the DSN, or one of that name on the embedded server."""
    server = None
    try:
        if dsn is None:
            console.print("starting the embedded PostgreSQL …")
            server = await asyncio.to_thread(start_embedded)
            await server.create_database(name)
            config = server.config(name)
        else:
            config = DatabaseConfig.from_dsn(dsn)
        # Replayed rows are older than the retention: nothing here may drop them.
        config = msgspec.structs.replace(config, maintenance_interval_s=0.0)
        db = await initialize_database(config)
        try:
            yield db, server
        finally:
            await db.close()
    finally:
        if server is not None:
            await asyncio.to_thread(server.stop)


@pgtick.command()
@click.option(
    "--seconds", default=5.0, show_default=True, type=click.FloatRange(min=0, max=86_400), help="How long to stream."
)
@click.option("--batch", default=1000, show_default=True, type=click.IntRange(min=1), help="Rows a batch.")
@click.option("--dsn", help="Another server; the database's name must end in _demo.")
def demo(seconds: float, batch: int, dsn: str | None) -> None:
    """Stream a simulated market into a real PostgreSQL and show what is stored."""
    _run(_demo(seconds, batch, dsn))


async def _demo(seconds: float, batch: int, dsn: str | None) -> None:
    if dsn is not None and not DatabaseConfig.from_dsn(dsn).database.endswith("_demo"):
        raise PgtickError("the demo writes made-up rows: the database's name must end in _demo")
    async with _database(dsn, "pgtick_demo") as (_, server):
        symbols = [await resolve_symbol(*instrument[:4]) for instrument in INSTRUMENTS]
        market = SimulatedMarket([symbol.id for symbol in symbols])
        started = time.perf_counter()
        async with Writer(max_rows=batch) as writer:
            for rate in market.funding():
                await writer.add(FUNDING_RATES, rate)
            await _stream(writer, market, seconds)
            latencies_ms = [await _batch_latency_ms(writer, market) for _ in range(_N_MEASURED)]
        report.print_rows(console, writer.counts, time.perf_counter() - started)
        percentiles = statistics.quantiles(latencies_ms, n=100)
        console.print(
            f"a 100-row batch is stored in {percentiles[49]:.2f} ms (p50), {percentiles[98]:.2f} ms (p99), "
            f"{_N_MEASURED} batches measured"
        )
        await report.print_prices(console, report.hours_ago(1))
        await _print_place(server)


async def _stream(writer: Writer, market: SimulatedMarket, seconds: float) -> None:
    started = time.perf_counter()
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("streaming", total=seconds)
        while (elapsed := time.perf_counter() - started) < seconds:
            for row in market.rows(100):
                await writer.add(_TABLES[row.table_name], row)
            n_stored = sum(total.n_stored for total in writer.counts.values())
            progress.update(task, completed=elapsed, description=f"streaming, {n_stored:,} rows stored")


async def _batch_latency_ms(writer: Writer, market: SimulatedMarket) -> float:
    tickers = (row for row in market.rows(1000) if row.table_name == BOOK_TICKERS.name)
    rows = list(itertools.islice(tickers, 100))
    await writer.flush()
    started = time.perf_counter()
    for row in rows:
        await writer.add(BOOK_TICKERS, row)
    await writer.flush()
    return (time.perf_counter() - started) * 1000


async def _print_place(server: Any, database: str = "pgtick_demo") -> None:
    if server is None:
        await report.print_system(console, None, None)
    else:
        await report.print_system(console, str(server.data_dir), server.psql_command(database))


@pgtick.command()
@click.option("--database", default="pgtick", show_default=True, help="Made and migrated when it is not there.")
def server(database: str) -> None:
    """Run the embedded PostgreSQL until Ctrl-C, for a look with psql or a service on a laptop."""

    async def run() -> None:
        async with _database(None, database) as (db, embedded):
            console.print(f"DSN: {db.config.to_dsn()}", soft_wrap=True)
            console.print(f"psql: {embedded.psql_command(database)}", soft_wrap=True)
            console.print("it runs until Ctrl-C")
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await stop.wait()

    _run(run())


@pgtick.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dsn", help="Another server than the embedded one.")
def replay(files: tuple[Path, ...], dsn: str | None) -> None:
    """Store recordings of cryptofeed's raw-data collection: NAME.0, NAME.http.N.0, NAME.ws.N.0."""
    feeds: dict[str, list[str]] = defaultdict(list)
    for path in files:
        feeds[path.name.split(".", 1)[0]].append(str(path.resolve()))
    for feed, names in feeds.items():
        if not any(Path(name).name == f"{feed}.0" for name in names):
            raise click.ClickException(f"{feed}: the instruments are missing, add {feed}.0")
    _run(_replay(dict(feeds), dsn))


async def _replay(feeds: dict[str, list[str]], dsn: str | None) -> None:
    from pgtick.adapters.recordings import replay_recordings

    async with _database(dsn, "pgtick_replay") as (db, server):
        started = time.perf_counter()
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("replaying", total=len(feeds))
            store = await replay_recordings(
                feeds, on_feed=lambda feed: progress.update(task, advance=1, description=feed)
            )
        report.print_rows(console, store.writer.counts, time.perf_counter() - started)
        console.print(
            f"book updates that left the top as it was: {store.n_unchanged:,}; one-sided books: {store.n_one_sided:,}; "
            f"books of REST without a time: {store.n_untimed:,}"
        )
        oldest = await db.fetchval(f"SELECT min(timestamp) FROM {BOOK_TICKERS.name}")
        await report.print_prices(console, oldest or datetime.now(UTC))
        console.print("rows older than a table's retention go with the next `pgtick maintain`")
        await _print_place(server, "pgtick_replay")


@pgtick.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def migrate(arguments: tuple[str, ...]) -> None:
    """Apply pending migrations (up), take one back (down), look (status, preview), repair."""
    sys.exit(migrations_main(list(arguments), prog="pgtick migrate"))


@pgtick.command()
@click.option("--dry-run", is_flag=True, help="Show what would go.")
@click.option("--dsn", help="The database; otherwise as in the environment.")
def maintain(dry_run: bool, dsn: str | None) -> None:
    """Make partitions ahead and drop what is older than its table's retention."""
    dropped = _run(_maintain(dry_run, dsn))
    if dropped is None:
        click.echo("nothing done: another process is at it", err=True)
    else:
        click.echo(json.dumps(dropped, indent=2))


async def _maintain(dry_run: bool, dsn: str | None) -> dict[str, list[str]] | None:
    db = await open_manager(DatabaseConfig.from_dsn(dsn) if dsn else HftConfig().get_database_config())
    try:
        return await engines.maintain(db, dry_run=dry_run)
    finally:
        await db.close()
