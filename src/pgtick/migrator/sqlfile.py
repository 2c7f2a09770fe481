"""A migration in plain SQL: a head, an up part, a down part; and its statements one by one."""

from __future__ import annotations

import re

import msgspec

from pgtick.errors import MigrationError

__all__ = ["SqlFile", "parse_sql", "split_statements"]

_MARKER = re.compile(r"\s*--\s*(up|down)\s*", re.IGNORECASE)
# "-- word" or "-- word: …"; any other comment in the head is prose.
_HEADER = re.compile(r"\s*--\s*([\w-]+)\s*(?::(.*))?")
_KNOWN = "-- depends: …, -- no-transaction"
# What may hold a semicolon that ends nothing.
_QUOTED = re.compile(
    r"""--[^\n]*|/\*.*?\*/|\be'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(?<![\w$])(\$(?:[a-z_]\w*)?\$).*?\1""",
    re.IGNORECASE | re.DOTALL,
)
_HALF_QUOTED = re.compile(r"""['"]|/\*|\*/|(?<![\w$])\$(?:[a-z_]\w*)?\$""", re.IGNORECASE)


class SqlFile(msgspec.Struct, frozen=True):
    """What the file says; ``down`` is None where there is no such part."""

    up: str
    down: str | None
    dependencies: tuple[str, ...]
    transaction: bool


def parse_sql(label: str, source: str) -> SqlFile:
    """Read the file's text; MigrationError names the file and the line."""
    head: list[str] = []
    parts: dict[str, list[str]] = {}
    lines = head
    for number, line in enumerate(source.splitlines(), 1):
        if marker := _MARKER.fullmatch(line):
            name = marker[1].lower()
            if name in parts or (name == "up" and parts):
                what = "a second" if name in parts else "after -- down, a"
                raise MigrationError(f"{label}, line {number}: {what} marker -- {name}; up comes first, and each once")
            lines = parts[name] = []
        elif parts and re.fullmatch(r"\s*--\s*(depends\s*:.*|no-transaction\s*)", line, re.IGNORECASE):
            raise MigrationError(f"{label}, line {number}: {line.strip()} belongs above the marker -- up")
        else:
            lines.append(line)
    dependencies, transaction = _read_head(label, head)
    if "up" not in parts:
        raise MigrationError(f"{label} has no line -- up above what it does")
    texts = {name: "\n".join(lines).strip() for name, lines in parts.items()}
    if not _QUOTED.sub(_only_text, texts["up"]).strip(" \n\t;"):
        raise MigrationError(f"{label} has nothing under -- up")
    return SqlFile(texts["up"], texts.get("down"), dependencies, transaction)


def _read_head(label: str, lines: list[str]) -> tuple[tuple[str, ...], bool]:
    dependencies: list[str] = []
    transaction = True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not line.lstrip().startswith("--"):
            raise MigrationError(f"{label}, line {number}: there is SQL above the first marker (-- up): {line.strip()}")
        header = _HEADER.fullmatch(line.rstrip())
        if header is None:
            continue
        name, value = header[1].lower(), header[2]
        if name == "depends" and value is not None and value.strip():
            dependencies += [entry.strip() for entry in value.split(",") if entry.strip()]
        elif name == "no-transaction" and value is None:
            transaction = False
        else:
            raise MigrationError(f"{label}, line {number}: {line.strip()} is no header; there are {_KNOWN}")
    return tuple(dependencies), transaction


def _only_text(match: re.Match[str]) -> str:
    return "" if match[0].startswith(("--", "/*")) else "x"


def split_statements(label: str, text: str) -> list[str]:
    """Return the statements one by one, without their semicolons; refuse what was not split for certain."""
    import sqlparse  # here: few starts split anything

    statements = []
    for piece in sqlparse.split(text):
        bare = _QUOTED.sub(_only_text, piece).strip(" \n\t;")
        if not bare:
            continue
        inside = re.sub(r"\bBEGIN\s+ATOMIC\b.*\bEND\b", "", bare, flags=re.IGNORECASE | re.DOTALL)
        if ";" in inside or _HALF_QUOTED.search(inside):
            raise MigrationError(
                f"{label}: where a statement ends is not certain (nested comments, a column named begin?): "
                f"quote or simplify it, or write a Python file with one execute() a statement: {piece[:200]}"
            )
        statements.append(piece.rstrip(" \n\t;") if not _ends_in_comment(piece) else piece)
    return statements


def _ends_in_comment(piece: str) -> bool:
    return "--" in piece.rpartition("\n")[2]
