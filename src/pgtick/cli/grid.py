"""Rows as a table, on a terminal or in a pipe."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

__all__ = ["print_grid"]

_WIDTH = 150


def print_grid(names: Iterable[str], rows: Iterable[Iterable[object]], *, numbers: Collection[str]) -> None:
    """Print rows under the names of their columns; those called ``numbers`` stand to the right."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe or a log has no width of its own
        console.width = max(console.width, _WIDTH)
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        grid.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(escape(str(cell)) for cell in row))
    console.print(grid)
