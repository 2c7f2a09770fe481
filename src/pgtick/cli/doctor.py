"""pgtick doctor: examine, print on one screen, and say it with the exit code."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import click
import msgspec
from rich import box
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table as Grid

from pgtick.cli.running import run
from pgtick.config import DatabaseConfig, HftConfig
from pgtick.connection import open_manager
from pgtick.doctor import Report, examine
from pgtick.doctor.report import Series

__all__ = ["doctor"]

_STYLES = {"action": "bold red", "warning": "yellow"}
_WIDTH = 150
_N_MARKED = 3  # exchanges named in a table's line, the stalest first


def _stale_after(text: str) -> tuple[str, timedelta]:
    table, _, seconds = text.partition("=")
    try:
        return table, timedelta(seconds=float(seconds))
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not TABLE=SECONDS") from None


@click.command()
@click.option("--dsn", help="The database; otherwise as in the environment.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@click.option(
    "--stale-after",
    multiple=True,
    type=_stale_after,
    metavar="TABLE=SECONDS",
    help="When an exchange's newest row in that table is too old.",
)
def doctor(dsn: str | None, as_json: bool, stale_after: tuple[tuple[str, timedelta], ...]) -> None:
    """Look at server, schema, tables and sessions, change nothing, and say what to do.

    Exit code: 0 healthy (warnings may have been printed), 1 it could not look, 3 a finding needs action.
    """
    report: Report = run(_examine(dsn, dict(stale_after)))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        console = Console()
        if not console.is_terminal:  # a pipe or a log has no width of its own
            console.width = max(console.width, _WIDTH)
        print_report(console, report)
    sys.exit(report.exit_code)


async def _examine(dsn: str | None, stale_after: dict[str, timedelta]) -> Report:
    config = DatabaseConfig.from_dsn(dsn) if dsn else HftConfig().get_database_config()
    # One connection: where they run out, the doctor must not take several.
    db = await open_manager(msgspec.structs.replace(config, min_connections=1, max_connections=1))
    try:
        return await examine(db, stale_after=stale_after)
    finally:
        await db.close()


def print_report(console: Console, report: Report) -> None:
    """Print the report for people: what is, what could not be seen, and the findings last, where the eye is."""
    _print_head(console, report)
    if report.series:
        grid = _grid(
            "table", "rows (about)", "size", "parts", "retention", "oldest (UTC)", "newest", "stalest exchanges"
        )
        for series in report.series:
            grid.add_row(*_cells(series))
        console.print(grid)
    for unseen in report.unseen:
        console.print(f"[dim]not seen:[/] {escape(unseen.subject)}: {escape(unseen.needs)}", soft_wrap=True)
    for finding in report.findings:
        console.print(
            f"[{_STYLES[finding.severity]}]{finding.severity}[/] [bold]{escape(finding.subject)}[/]: "
            f"{escape(finding.what)}\n    → {escape(finding.do)}",
            soft_wrap=True,
            highlight=False,
        )
    n_actions = sum(finding.severity == "action" for finding in report.findings)
    n_warnings = len(report.findings) - n_actions
    verdict = f"{n_actions} to act on, {n_warnings} to know of" if report.findings else "nothing to do"
    console.print(f"[bold]{verdict}[/], {len(report.unseen)} not seen", highlight=False)


def _print_head(console: Console, report: Report) -> None:
    lines = []
    if report.server is not None:
        extensions = ", ".join(f"{name} {version}" for name, version in report.server.extensions.items())
        licence = f", licence {report.server.timescaledb_licence}" if report.server.timescaledb_licence else ""
        kind = ", a replica" if report.server.is_replica else ""
        lines += [
            ("server", f"PostgreSQL {report.server.version}{kind}, up since {_time(report.server.started_at)} UTC"),
            ("engine", f"{report.engine or 'not seen'} ({extensions}{licence})"),
            ("encryption", report.server.tls or "none"),
        ]
    if report.role is not None:
        kind = "superuser" if report.role.is_superuser else "owner of tables" if report.role.owns_tables else "plain"
        lines.append(("role", f"{report.role.name} ({kind})"))
    if report.clock is not None:
        skew, unsure = report.clock.skew_s, report.clock.uncertainty_s
        told = f"{skew * 1000:+.1f} ms" if abs(skew) > unsure else "as this machine's"
        lines.append(("clock", f"{told}, known to ± {unsure * 1000:.1f} ms"))
    if report.migrations:
        n_applied = sum(migration.state == "applied" for migration in report.migrations)
        lines.append(("migrations", f"{n_applied} of {len(report.migrations)} applied"))
    if report.connections is not None:
        used = report.connections
        who = ", ".join(f"{count} {name}" for name, count in used.n_by_application.items())
        lines.append(("connections", f"{used.n_used} of {used.n_max}, {used.n_reserved} reserved ({who})"))
    if report.database_bytes is not None:
        lines.append(("size", _size(report.database_bytes)))
    console.print(f"[bold]{escape(report.database)}[/] at {_time(report.examined_at)} UTC", highlight=False)
    for name, text in lines:
        console.print(f"  {name:<12} {escape(text)}", soft_wrap=True, highlight=False)


def _grid(*columns: str) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: JustifyMethod = "right" if column in ("rows (about)", "size", "parts") else "left"
        grid.add_column(column, justify=justify, no_wrap=column == "table")
    return grid


def _cells(series: Series) -> tuple[str, ...]:
    size = series.size
    oldest_first = sorted(series.exchanges, key=lambda freshness: freshness.newest)
    newest_age_s = min((freshness.age_s for freshness in series.exchanges), default=None)
    return (
        series.table,
        f"{size.n_rows:,}" if size else "?",
        _size(size.n_bytes) if size else "?",
        str(series.info.n_parts),
        _span(series.info.retention.total_seconds()),
        _time(series.oldest) if series.oldest else "",
        f"{_span(newest_age_s)} ago" if newest_age_s is not None else "no rows",
        ", ".join(f"{freshness.exchange} {_span(freshness.age_s)}" for freshness in oldest_first[:_N_MARKED]),
    )


def _time(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.1f} s"


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TB"
