"""Drift: one difference between the schema as it is declared and as it is, and what to do about it."""

from __future__ import annotations

import msgspec

from pgtick.tables import quote_identifier

__all__ = ["Drift"]

_MAX_SHOWN = 160
_KEPT = 40  # of what both texts begin with
_CONSTRAINTS = ("check", "primary key", "unique key", "foreign key", "exclusion", "constraint")


class Drift(msgspec.Struct, frozen=True, order=True):
    """A difference.

    ``state``: missing (declared, and not there), changed, extra (there, in a declared table, and not declared) or
    unverifiable (``live`` says why). ``declared`` and ``live`` are the server's own text of the object, empty where
    there is none; ``table`` is empty for functions and migrations, and a partition's name for what a partition lacks.
    """

    table: str
    kind: str
    name: str
    state: str
    declared: str = ""
    live: str = ""

    def __str__(self) -> str:
        what = self.kind if self.name in ("", self.table) else f"{self.kind} {self.name}"
        where = f"{self.table}: {what}" if self.table else what
        if self.state == "unverifiable":
            return f"{where} cannot be verified: {self.live}"
        declared, live = _shown(self.declared, self.live)
        if self.state == "missing":
            return f"{where} is missing; declared: {declared}"
        if self.state == "extra":
            return f"{where} is not declared: {live}"
        return f"{where} is not as declared: {live}; declared: {declared}"

    @property
    def advice(self) -> str:
        """What to do: SQL that ends in a semicolon where there is one answer, else words."""
        if self.state == "unverifiable":
            return "compare it by hand" if self.kind == "migration" else "verify as a role that may, then start again"
        if self.state == "extra" and self.kind != "policy":
            return (
                "declare it in a migration of your own folder, or drop it; "
                "if a folder that is not configured here made it, configure that folder"
            )
        special = {
            "table": "restore it from a backup, or make it again with what its migration says",
            "setting": f"INSERT INTO {self.name} the row of {self.table!r} with the values declared",
            "hypertable": "stop ingest and make it one again: create_hypertable(…, migrate_data => true)",
            "chunk interval": f"SELECT set_chunk_time_interval('{self.table}', INTERVAL '{self.declared}');",
            "policy": "pgtick maintain puts it right; if it is paused, alter_job(job_id, scheduled => true)",
            "columnstore": "if it is off, set columnstore_after in pgtick_time_series and run pgtick maintain; "
            f"else ALTER TABLE {self.table} SET (timescaledb.segmentby = …, timescaledb.orderby = …)",
            "partition": f"ALTER TABLE {self.table} ATTACH PARTITION {self.name} …, or drop it",
            "distribution": "distribute it as declared (docs/citus.md)",
        }
        return special.get(self.kind) or self._repair()

    def _repair(self) -> str:
        """Return the statements that put a part of a table, or a function, back as it is declared."""
        if self.kind not in (*_CONSTRAINTS, "column", "index", "trigger", "function"):
            return "set it as declared, in a migration"
        if self.kind == "function":
            return f"{self.declared.strip()};"
        table, name = quote_identifier(self.table), quote_identifier(self.name)
        is_there = self.state == "changed"
        if self.kind == "column":
            if is_there:
                return f"ALTER TABLE {self.table} ALTER COLUMN {self.name} …, until it is {self.declared}"
            return f"ALTER TABLE {table} ADD COLUMN {name} {self.declared};"
        if self.kind == "index":
            return (f"DROP INDEX CONCURRENTLY {name}; " if is_there else "") + f"{self.declared};"
        if self.kind == "trigger":
            if self.live.removesuffix(" DISABLED") == self.declared:
                return f"ALTER TABLE {table} ENABLE TRIGGER {name};"
            return (f"DROP TRIGGER {name} ON {table}; " if is_there else "") + f"{self.declared};"
        if self.live.removesuffix(" NOT VALID") == self.declared and is_there:
            return f"ALTER TABLE {table} VALIDATE CONSTRAINT {name};"
        drop = f"ALTER TABLE {table} DROP CONSTRAINT {name}; " if is_there else ""
        return f"{drop}ALTER TABLE {table} ADD CONSTRAINT {name} {self.declared};"


def _shown(declared: str, live: str) -> tuple[str, str]:
    """Return both in one line, cut so that the first difference is seen."""
    one, other = " ".join(declared.split()), " ".join(live.split())
    same = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, same - _KEPT)
    return _cut(one, start), _cut(other, start)


def _cut(text: str, start: int) -> str:
    if len(text) <= _MAX_SHOWN:
        return text
    end = start + _MAX_SHOWN
    return ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
