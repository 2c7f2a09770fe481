"""``pgtick top``: a running writer, live, by its Prometheus endpoint."""

from __future__ import annotations

import time

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table as Grid
from rich.text import Text

from pgtick.cli.scraping import AwayError, History, Scrape, TableView, endpoint_url, scrape

__all__ = ["top"]

# All of it within 80 columns: numbers of up to five characters, one space between, the rest for the table's name.
_NUMBERS = {"rows/s": 6, "stored": 6, "dupl": 5, "quar": 5, "spool": 5, "buff": 5, "p50": 5, "p99": 5, "age": 5}
_MIN_NAME_WIDTH = 12


@click.command()
@click.argument("url", required=False)
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0.1, max=3600),
    help="Seconds between looks.",
)
@click.option("--once", is_flag=True, help="One plain snapshot over one interval; so without a terminal, too.")
def top(url: str | None, interval: float, once: bool) -> None:
    """Watch a running writer by its Prometheus endpoint, URL or HOST:PORT, until Ctrl-C.

    The writer's process serves it: pgtick.adapters.prometheus.serve_metrics(writer).
    """
    try:
        import prometheus_client.parser  # noqa: F401
    except ModuleNotFoundError as error:
        raise click.ClickException("top needs one more library: pip install 'pgtick[prometheus]'") from error
    try:
        url = endpoint_url(url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from error
    console = Console()
    try:
        if once or not console.is_terminal:
            _print_once(console, url, interval)
        else:
            _watch(console, url, interval)
    except KeyboardInterrupt:  # the way out of a live view, no failure
        console.print()


def _print_once(console: Console, url: str, interval_s: float) -> None:
    history = History()
    try:
        history.add(scrape(url))
        time.sleep(interval_s)
        history.add(scrape(url))
    except AwayError as error:
        raise click.ClickException(f"{url}: {error}") from error
    console.print(_view(url, history, console.width))


def _watch(console: Console, url: str, interval_s: float) -> None:
    history, away, seen_s = History(), None, time.monotonic()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            started_s = time.monotonic()
            try:
                history.add(scrape(url))
                away, seen_s = None, started_s
            except AwayError as error:
                away = str(error)
            live.update(_view(url, history, console.width, away, started_s - seen_s), refresh=True)
            time.sleep(max(0.0, started_s + interval_s - time.monotonic()))


def _view(url: str, history: History, width: int, away: str | None = None, away_s: float = 0.0) -> RenderableType:
    lines: list[RenderableType] = [_first_line(url, history, away, away_s)]
    if history.newest is not None:
        views = history.tables()
        lines += [Text.from_markup(line) for line in _state(history.newest)]
        if stopped := [view.table for view in views if view.is_stopped]:
            lines.append(Text(f"flushing is stopped by the schema: {', '.join(stopped)}", style="red"))
        lines.append(_grid(views, width, is_live=away is None))
    return Group(*lines)


def _first_line(url: str, history: History, away: str | None, away_s: float) -> Text:
    if away is not None:
        return Text.from_markup(f"[bold]{escape(url)}[/]  [red]away for {_seconds(away_s)}: {escape(away)}[/]")
    restarts = f"  restarts seen: {history.n_restarts}" if history.n_restarts else ""
    return Text.from_markup(f"[bold]{escape(url)}[/]  {time.strftime('%H:%M:%S')}{restarts}")


def _state(taken: Scrape) -> list[str]:
    def value(name: str) -> float:
        return taken.plain.get(f"pgtick_{name}", 0.0)

    server = "[green]up[/]" if value("server_up") else f"[red]away for {_seconds(value('server_away_seconds'))}[/]"
    pool = ""
    if "pool_max" in taken.plain:
        busy = taken.plain.get("pool_size", 0.0) - taken.plain.get("pool_idle", 0.0)
        pool = f"  pool {busy:.0f} busy of {taken.plain['pool_max']:.0f}"
    spool = f"{_number(value('spool_bytes'))}B in {_number(value('spool_records'))} batches"
    if value("spool_max_bytes"):
        spool = _fill(value("spool_bytes"), value("spool_max_bytes"))
    return [
        f"server {server}{pool}  in flight {value('batches_in_flight'):.0f}",
        f"buffer {_fill(value('buffer_bytes'), value('buffer_max_bytes'))}  spool {spool}",
    ]


def _fill(used: float, cap: float) -> str:
    if not cap:
        return f"{_number(used)}B"
    share = used / cap
    style = "red" if share >= 0.9 else "yellow" if share >= 0.5 else "default"
    return f"[{style}]{share:.0%}[/] of {_number(cap)}B"


def _grid(views: list[TableView], width: int, *, is_live: bool) -> Grid:
    name_width = max(_MIN_NAME_WIDTH, width - sum(_NUMBERS.values()) - len(_NUMBERS))
    grid = Grid(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    grid.add_column("table", no_wrap=True, overflow="ellipsis", max_width=name_width)
    for name, number_width in _NUMBERS.items():
        grid.add_column(name, justify="right", no_wrap=True, min_width=number_width)
    for view in views:
        grid.add_row(
            Text(view.table, style="red" if view.is_stopped else ""),
            _number(view.rows_per_s) if is_live else "",
            _number(view.n_stored),
            _number(view.n_duplicates),
            Text(_number(view.n_quarantined), style="yellow" if view.n_quarantined else ""),
            Text(_number(view.n_spooled), style="yellow" if view.n_spooled else ""),
            _number(view.n_buffered),
            _seconds(view.p50_s),
            _seconds(view.p99_s),
            _seconds(view.age_s),
        )
    return grid


def _number(value: float | None) -> str:
    """Return at most five characters: 999, 1.23k, 12.3M."""
    if value is None:
        return ""
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError("not reached")


def _seconds(value: float | None) -> str:
    """Return at most five characters: 120µs, 1.5ms, 12s, 3min, 2h."""
    if value is None:
        return ""
    if value < 0.9995e-3:
        return f"{value * 1e6:.0f}µs"
    for unit, length_s, next_s in (("ms", 1e-3, 0.9995), ("s", 1.0, 99.5), ("min", 60.0, 5970.0), ("h", 3600.0, 359e3)):
        if value < next_s:
            told = value / length_s
            return f"{told:.1f}{unit}" if told < 9.95 and length_s < 60 else f"{told:.0f}{unit}"
    return f"{value / 86400:.0f}d"
