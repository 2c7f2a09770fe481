"""demo, replay, migrate, maintain."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import click
import msgspec
from rich.console import Console
from rich.progress import Progress

from pgtick import migrator
from pgtick.cli import report
from pgtick.cli.market import INSTRUMENTS, SimulatedMarket
from pgtick.config import DatabaseConfig, HftConfig
from pgtick.connection import DatabaseManager, initialize_database, open_manager, use_manager
from pgtick.embedded import start_embedded
from pgtick.engines import get_engine
from pgtick.errors import PgtickError
from pgtick.operations.symbols import resolve_symbol
from pgtick.tables import BOOK_TICKERS, FUNDING_RATES, TRADES
from pgtick.writer import StoreResult, store_rows

__all__ = ["pgtick"]

console = Console()


@click.group()
@click.version_option(package_name="pgtick")
def pgtick() -> None:
    """Store market data of crypto exchanges in PostgreSQL, and read it back."""


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


def _run(coroutine: Any) -> Any:
    try:
        return asyncio.run(coroutine)
    except (PgtickError, asyncpg.PostgresError, OSError, TimeoutError) as error:
        raise click.ClickException(str(error) or type(error).__name__) from error


@pgtick.command()
@click.option("--seconds", default=5.0, show_default=True, help="How long to stream.")
@click.option("--batch", default=1000, show_default=True, help="Rows a batch.")
@click.option("--dsn", help="Another server; the database's name must end in _demo.")
def demo(seconds: float, batch: int, dsn: str | None) -> None:
    """Stream a simulated market into a real PostgreSQL and show what is stored."""
    if dsn is not None and not DatabaseConfig.from_dsn(dsn).database.endswith("_demo"):
        raise click.ClickException("the demo writes made-up rows: the database's name must end in _demo")
    _run(_demo(seconds, batch, dsn))


async def _demo(seconds: float, batch: int, dsn: str | None) -> None:
    async with _database(dsn, "pgtick_demo") as (_, server):
        symbols = [await resolve_symbol(*instrument[:4]) for instrument in INSTRUMENTS]
        market = SimulatedMarket([symbol.id for symbol in symbols])
        totals: dict[str, StoreResult] = defaultdict(StoreResult)
        started = time.perf_counter()
        _add(totals, FUNDING_RATES.name, await store_rows(FUNDING_RATES, market.funding()))
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("streaming", total=seconds)
            while (elapsed := time.perf_counter() - started) < seconds:
                by_table: dict[Any, list[Any]] = {BOOK_TICKERS: [], TRADES: []}
                for row in market.rows(batch):
                    by_table[BOOK_TICKERS if row.table_name == BOOK_TICKERS.name else TRADES].append(row)
                for table, rows in by_table.items():
                    _add(totals, table.name, await store_rows(table, rows))
                stored = sum(total.n_stored for total in totals.values())
                progress.update(task, completed=elapsed, description=f"streaming {stored:,} rows")
        seconds = time.perf_counter() - started
        await report.print_rows(console, totals, seconds)
        console.print(f"a 100-row batch takes {await _batch_latency_ms(market):.2f} ms (median of 50)")
        await report.print_prices(console, report.hours_ago(1))
        await _print_place(server)


def _add(totals: dict[str, StoreResult], name: str, result: StoreResult) -> None:
    total = totals[name]
    total.n_stored += result.n_stored
    total.n_duplicates += result.n_duplicates
    total.errors.extend(result.errors)


async def _batch_latency_ms(market: SimulatedMarket) -> float:
    times = []
    for _ in range(50):
        rows = [row for row in market.rows(150) if row.table_name == BOOK_TICKERS.name][:100]
        started = time.perf_counter()
        await store_rows(BOOK_TICKERS, rows)
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2] * 1000


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
        await report.print_rows(console, store.writer.totals, time.perf_counter() - started)
        console.print(
            f"book updates that left the top as it was: {store.n_unchanged:,}; one-sided books: {store.n_one_sided:,}; "
            f"books of REST without a time: {store.n_untimed:,}"
        )
        oldest = await db.fetchval(f"SELECT min(timestamp) FROM {BOOK_TICKERS.name}")
        await report.print_prices(console, oldest or datetime.now(UTC))
        console.print("rows older than a table's retention go with the next `pgtick maintain`")
        await _print_place(server, "pgtick_replay")


@pgtick.command()
@click.argument("action", type=click.Choice(["up", "down", "status"]), default="up")
@click.argument("migration", required=False)
@click.option("--destructive", is_flag=True, help="Yes, let `down` drop tables with their rows.")
@click.option("--dsn", help="The database; otherwise as in the environment.")
def migrate(action: str, migration: str | None, destructive: bool, dsn: str | None) -> None:
    """Apply pending migrations (up), take one back (down ID --destructive), or list them (status)."""

    async def run() -> Any:
        db = await open_manager(_config(dsn))
        try:
            with use_manager(db):
                if action == "up":
                    return await migrator.run_pending_migrations(db)
                if action == "down":
                    if migration is None:
                        raise click.UsageError("down wants the migration's id")
                    return await migrator.rollback_migration(migration, destructive=destructive)
                return await migrator.get_available_migrations()
        finally:
            await db.close()

    click.echo(json.dumps(_run(run()), indent=2, default=str))


@pgtick.command()
@click.option("--dry-run", is_flag=True, help="Show what would go.")
@click.option("--dsn", help="The database; otherwise as in the environment.")
def maintain(dry_run: bool, dsn: str | None) -> None:
    """Make partitions ahead and drop what is older than its table's retention."""

    async def run() -> Any:
        db = await open_manager(_config(dsn))
        try:
            with use_manager(db):
                engine = await get_engine(db)
                if not dry_run:
                    await engine.make_ahead(db)
                return await engine.apply_retention(db, dry_run=dry_run)
        finally:
            await db.close()

    click.echo(json.dumps(_run(run()), indent=2, default=str))


def _config(dsn: str | None) -> DatabaseConfig:
    return DatabaseConfig.from_dsn(dsn) if dsn else HftConfig().get_database_config()
