"""The figures as Markdown pages and one plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tabulate import tabulate

from peers import costs, latency, readers, writers
from peers.ladder import COMPARED_WITH
from peers.ladder import LIMIT as LADDER_LIMIT
from peers.lookups import N_LOOKUPS
from peers.measure import Rounds
from peers.run import Ladder, Results, Size
from peers.targets import judge
from peers.writing import TABLES, case_name

__all__ = ["write_comparison", "write_ladder"]

_PLOT = "peers.svg"
_NOISY = 0.3


def _table(headers: list[str], rows: list[list[Any]] | list[tuple[str, ...]]) -> str:
    right = ["left"] + ["right"] * (len(headers) - 1)
    return str(tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=right)) + "\n"


def _skipped(reasons: dict[str, str]) -> str:
    return "".join(f"- Skipped: {name}: {reason}\n" for name, reason in reasons.items())


def _head(facts: dict[str, str], size: Size, command: str) -> str:
    return (
        f"Made by `{command}` on {facts['machine']}, PostgreSQL {facts['PostgreSQL']} with fsync {facts['fsync']}, "
        f"over a {facts['connection']}; versions and settings stand at the end.\n\n"
        f"{size.n_rows:,} book tickers of {size.n_symbols} symbols (eight columns, four NUMERIC), {size.batch_rows:,} "
        f"a batch, each batch one committed transaction; medians of {size.rounds} interleaved rounds, each ratio the "
        "median of the rounds' own. Read the ratios: absolute figures belong to the machine.\n"
    )


def _facts(facts: dict[str, str]) -> str:
    return "## Versions and settings\n\n" + ", ".join(f"{name} {value}" for name, value in facts.items()) + ".\n"


def _writing(rounds: Rounds) -> str:
    parts = []
    titles = {
        "default": "pgtick's default table (`book_ticker_snapshots`)",
        "guide": "The guide's table (key, second index, NUMERIC(20,8), checks, enforced foreign key)",
        "bare": "A bare table (eight columns)",
    }
    names = [kind.name for kind in writers.WRITERS]
    for label in TABLES:
        limit = case_name(label, writers.LIMIT)
        rows = []
        for name in names:
            case = case_name(label, name)
            if case in rounds.samples:
                rate, share = rounds.rows_per_s(case) / 1e3, rounds.speed(case, limit)
                rows.append([name, f"{rate:.1f}", f"{share:.2f}", f"{rounds.cpu_us(case):.2f}"])
            else:
                rows.append([name, "skipped", "", ""])
        parts.append(
            f"### {titles[label]}\n\n"
            + _table(["writer", "krows/s", "of the limit", "client CPU, µs a row"], rows)
            + f"\nNoise: the limit's own rounds spread over {rounds.noise(limit):.0%} of their median.\n"
        )
    return "\n".join(parts)


def _systems(rounds: Rounds) -> str:
    ours = case_name("default", writers.PGTICK)
    cases = [ours, *(case_name("guide", kind.name) for kind in writers.ASYNCPG), writers.CryptofeedBackend.name]
    rows = [
        [case, f"{rounds.rows_per_s(case) / 1e3:.1f}", f"{rounds.speed(ours, case):.1f} ×"]
        for case in cases
        if case in rounds.samples
    ]
    return _table(["table <- writer", "krows/s", "pgtick is faster"], rows)


def _reading(rounds: Rounds, memory: dict[str, float]) -> str:
    rows = []
    for kind in readers.READERS:
        name = kind.name
        if name not in rounds.samples:
            rows.append([name, "skipped", "", "", ""])
            continue
        peak = f"{memory[name]:.1f} ×" if name in memory else "not measured"
        rate, share = rounds.rows_per_s(name) / 1e3, rounds.speed(name, readers.LIMIT)
        rows.append([name, f"{rate:.0f}", f"{share:.2f}", f"{rounds.cpu_us(name):.2f}", peak])
    return (
        _table(["reader", "krows/s", "of the limit", "client CPU, µs a row", "memory at its highest"], rows)
        + f"\nMemory: growth of the process, as a multiple of the result as NumPy columns (44 B a row). Noise of the "
        f"limit: {rounds.noise(readers.LIMIT):.0%}.\n"
    )


def _latencies(figures: dict[str, latency.Latency], limit: str | None) -> str:
    rows = []
    for name, figure in figures.items():
        share = "" if limit is None else f"{figure.p50 / figures[limit].p50:.2f}"
        rows.append([name, f"{figure.p50 * 1e6:.0f}", f"{figure.p99 * 1e6:.0f}", share])
    if limit is None:
        return _table(["", "p50, µs", "p99, µs"], [row[:3] for row in rows])
    return _table(["", "p50, µs", "p99, µs", "p50 of the limit's"], rows)


def _lookups(rounds: Rounds, by_size: dict[int, Rounds]) -> str:
    rows = [[name, f"{rounds.seconds(name) / N_LOOKUPS * 1e9:.1f}"] for name in rounds.samples]
    first = next(iter(by_size.values()))
    grown = [
        [name, *(f"{each.seconds(name) / N_LOOKUPS * 1e9:.1f}" for each in by_size.values())] for name in first.samples
    ]
    return (
        _table(["5,000 symbols, random keys", "ns (with the loop around it)"], rows)
        + "\n"
        + _table(["ns, by number of symbols", *(f"{n:,}" for n in by_size)], grown)
    )


def _encoding(results: Results) -> str:
    rounds = results.encoding
    rows = [
        [name, f"{rounds.seconds(name) / rounds.n_rows * 1e9:.1f}", f"{1 / rounds.speed(name, costs.MEMCPY):.1f} ×"]
        for name in rounds.samples
    ]
    growth = [
        [f"{n_rows:,}", f"{n_symbols:,}", f"{once:.0f}", f"{pieces:.0f}"]
        for (n_rows, n_symbols), (once, pieces) in results.encode_by_size.items()
    ]
    return (
        _table(["one batch, no socket", "ns a row, processor time", "of memcpy"], rows)
        + _skipped(rounds.skipped)
        + "\n"
        + _table(["rows", "symbols", "ns a row, one call", f"in batches of {costs.PIECE_ROWS:,}"], growth)
    )


def _rest(results: Results) -> str:
    imports = [[name, f"{results.imports.seconds(name) * 1e3:.0f} ms"] for name in results.imports.samples]
    disk = [[f"`{table}`", f"{size:.0f}"] for table, size in results.disk.items()]
    return (
        _table(["import", "median, processor time"], imports)
        + "\n"
        + _table(["table", "bytes a row, indexes included"], disk)
    )


def write_comparison(results: Results, folder: Path, command: str) -> None:
    """Write README.md, targets.md and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    head = _head(results.facts, results.size, command)
    skipped = results.writing.skipped | results.reading.skipped | results.skipped
    parts = [
        "# pgtick and its peers\n\n" + head,
        f"![rows a second, writing and reading]({_PLOT})\n",
        "Targets and verdicts: [targets.md](targets.md). Where the server's time goes: [ladder.md](ladder.md).\n",
        "## Writing\n\nThe limit sends bytes that were encoded before the clock started: no client is faster.\n",
        _writing(results.writing),
        "### Whole systems\n\n" + _systems(results.writing),
        f"## Reading {results.size.read_rows:,} rows\n\n" + _reading(results.reading, results.memory),
        "## A batch of 100 rows into the default table\n\n" + _latencies(results.batch, writers.LIMIT),
        "## How long it holds the event loop at a stretch (processor time)\n\n" + _latencies(results.held, None),
        "## The newest row of a symbol\n\n" + _latencies(results.latest, latency.PREPARED),
        "## Look-ups\n\n" + _lookups(results.lookups, results.lookups_by_size),
        "## Encoding alone\n\n" + _encoding(results),
        "## Import, disk\n\n" + _rest(results),
    ]
    if skipped:
        parts.append("## Skipped\n\n" + _skipped(skipped))
    parts.append(_facts(results.facts))
    (folder / "README.md").write_text("\n".join(parts), "utf-8")
    noise = results.writing.noise(case_name("default", writers.LIMIT))
    if noise > _NOISY:
        head += (
            f"\nThe machine was busy: rounds of the same work differ by {noise:.0%}. Verdicts on times beside the "
            "server (P4, P5, P6, P8, P9) are uncertain; the others are processor time.\n"
        )
    targets = tabulate(judge(results), ["", "target", "measured", ""], tablefmt="github", disable_numparse=True)
    (folder / "targets.md").write_text(f"# Targets\n\n{head}\n{targets}\n\n{_facts(results.facts)}", "utf-8")
    _plot(results, folder / _PLOT)


def write_ladder(ladder: Ladder, folder: Path, command: str) -> None:
    """Write ladder.md."""
    folder.mkdir(parents=True, exist_ok=True)
    rounds, above = ladder.steps, None
    rows = []
    for name in rounds.samples:
        us = rounds.seconds(name) / rounds.n_rows * 1e6
        before = COMPARED_WITH.get(name, above)
        added = "" if before is None else f"{us - rounds.seconds(before) / rounds.n_rows * 1e6:+.2f}"
        above = name
        share = rounds.speed(name, LADDER_LIMIT)
        rate = f"{rounds.rows_per_s(name) / 1e3:.0f}"
        rows.append([name, rate, f"{us:.2f}", added, f"{share:.2f}", *_server_cpu(rounds, name, before)])
    text = (
        "# The ladder: what the server does for a row\n\n"
        + _head(ladder.facts, ladder.size, command)
        + "\nFinished bytes by COPY, so that the client costs next to nothing.\n\n"
        + _table(["into", "krows/s", "µs a row", "step", "of the bare table", "server CPU, µs a row", "step"], rows)
        + _skipped(rounds.skipped)
        + f"\nNoise: the bare table's rounds spread over {rounds.noise(LADDER_LIMIT):.0%} of their median.\n"
        + "\n## Two ways to ask less of it\n\nSpeed against the same rows in order of arrival into the partitioned "
        "parent; sorted is by (symbol, time) within the batch, the sorting itself not timed.\n\n"
        + _ways(ladder)
        + "\n"
        + _facts(ladder.facts)
    )
    (folder / "ladder.md").write_text(text, "utf-8")


def _server_cpu(rounds: Rounds, name: str, before: str | None = None) -> list[str]:
    if name not in rounds.samples:
        return ["skipped", ""]
    cpu = rounds.server_cpu_us(name)
    base = None if before is None else rounds.server_cpu_us(before)
    return ["" if cpu is None else f"{cpu:.2f}", "" if cpu is None or base is None else f"{cpu - base:+.2f}"]


def _ways(ladder: Ladder) -> str:
    names = ("parent, sorted", "partition", "partition, sorted")
    speeds = [
        [f"{n:,}", f"{each.rows_per_s('parent') / 1e3:.0f}"]
        + [f"{each.speed(way, 'parent'):.2f}" if way in each.samples else "skipped" for way in names]
        + [f"{each.noise('parent'):.0%}"]
        for n, each in ladder.ways.items()
    ]
    processor = [
        [f"{n:,}", *(_server_cpu(each, way)[0] for way in ("parent", *names))] for n, each in ladder.ways.items()
    ]
    return (
        _table(["rows a batch", "parent, krows/s", *names, "noise"], speeds)
        + "\nThe server's processor time, µs a row, which a busy machine disturbs less:\n\n"
        + _table(["rows a batch", "parent", *names], processor)
        + "\nWhat the client pays for the sorting, µs a row:\n\n"
        + _table(
            ["rows a batch", "`sorted` by (symbol, time)", "stable `numpy.argsort` of the ids"],
            [[f"{n:,}", *(f"{ns / 1e3:.2f}" for ns in times)] for n, times in ladder.sorting.items()],
        )
    )


def _plot(results: Results, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "pgtick"  # the same figures make the same file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(16, 4.6), width_ratios=[1, 1, 1, 1])
    panels = [
        (f"writing, {label} table", results.writing, {case_name(label, k.name): k.name for k in writers.WRITERS})
        for label in TABLES
    ]
    panels[0][2][writers.CryptofeedBackend.name] = writers.CryptofeedBackend.name
    panels.append(
        (f"reading {results.size.read_rows:,} rows", results.reading, {k.name: k.name for k in readers.READERS})
    )
    for axis, (title, rounds, names) in zip(axes, panels, strict=True):
        shown = {short: rounds.rows_per_s(case) / 1e3 for case, short in names.items() if case in rounds.samples}
        colours = [
            "#888888" if name.startswith("limit") else "#1b7837" if name.startswith("pgtick") else "#92b6d5"
            for name in shown
        ]
        bars = axis.barh(range(len(shown)), list(shown.values()), color=colours)
        axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=7)
        axis.set_yticks(range(len(shown)), [name.split(":")[0] for name in shown], fontsize=7)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("krows/s", fontsize=8)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
