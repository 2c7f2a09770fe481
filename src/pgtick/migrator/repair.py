"""What an interrupted or a changed migration left behind, what to do for it, and doing so."""

from __future__ import annotations

import re
from typing import Any

from pgtick.connection import DatabaseManager, get_db_manager
from pgtick.errors import MigrationError
from pgtick.migrator.apply import _opens_what_is_not_open
from pgtick.migrator.files import discover
from pgtick.migrator.ledger import difference, is_changed, make_ledger, read_ledger, read_steps
from pgtick.migrator.order import find
from pgtick.migrator.session import migrating, turn
from pgtick.migrator.steps import INVALID_INDEXES, STEP_NAME

__all__ = ["accept_migration", "find_unfinished", "settle_step"]

# The migrator's own session, which may outlive its process: the server learns of that when it wants to answer.
_RUNNING = """
SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()
    AND application_name = left($1, 63) ORDER BY query_start LIMIT 1
"""
_NEW_INDEX = re.compile(r"CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?(\S+)\s+ON\b", re.I)
_INTERRUPTED = "interrupted"
_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"


@_opens_what_is_not_open
async def find_unfinished(db: DatabaseManager | None = None) -> list[dict[str, Any]]:
    """Return every step that is not finished and every invalid index, each with what to do ("advice")."""
    db = db or get_db_manager()
    labels = {file.key: file.label for file in discover(db.config.migration_folders)}
    invalid = [dict(record) for record in await db.fetch(INVALID_INDEXES)]
    findings: list[dict[str, Any]] = []
    for step in await read_steps(db):
        if step["finished_at"] is None:
            key = (step["namespace"], step["id"])
            label = labels.get(key, "/".join(key))
            told = {name: step[name] for name in ("direction", "step", "statement", "started_at", "error")}
            advice = await _advice(db, step, label)
            findings.append({"what": "step", "migration": label, **told, "advice": advice})
    for index in invalid:
        advice = (
            f"process {index['pid']} is building it: wait for it"
            if index["pid"]
            else f"DROP INDEX CONCURRENTLY {index['index']}, then make it again"
        )
        findings.append({"what": "invalid index", "index": index["index"], "table": index["table"], "advice": advice})
    return findings


async def _advice(db: DatabaseManager, step: Any, label: str) -> str:
    name, direction = f"{step['namespace']}/{step['id']}", step["direction"]
    go_on = "up" if direction == "up" else f"down {name} --destructive"
    if step["error"] == _INTERRUPTED:
        return f"it is to be done again: {go_on}"
    if step["error"] is not None:
        first = ""
        if step["invalid_index"] and await db.fetchval(_VALID, step["invalid_index"]) is False:
            first = f"DROP INDEX CONCURRENTLY {step['invalid_index']}, then "
        return f"the server refused it ({step['error']}): see to that, {first}{go_on}"
    if pid := await db.fetchval(_RUNNING, STEP_NAME.format(label)):
        return f"process {pid} of the server is at it still: wait for it (or SELECT pg_terminate_backend({pid}))"
    again, finished = f"repair {name} --again, then {go_on}", f"repair {name} --finished, then {go_on}"
    index = _NEW_INDEX.match(step["statement"])
    if index is None:
        return f"look whether it is done; if so: {finished}; if not: {again}"
    valid = await db.fetchval(_VALID, index[1])
    if valid is None:
        return f"the index {index[1]} is not there: {again}"
    return f"the index is there and valid: {finished}" if valid else f"DROP INDEX CONCURRENTLY {index[1]}, {again}"


@_opens_what_is_not_open
async def settle_step(migration_id: str, *, finished: bool) -> dict[str, Any]:
    """Say of a migration's interrupted step that it is done (``finished``), or that it is to be done again."""
    db = get_db_manager()
    migration = find(discover(db.config.migration_folders), migration_id)
    async with migrating(db) as own, turn(own, migration):
        if pid := await own.fetchval(_RUNNING, STEP_NAME.format(migration.label)):
            raise MigrationError(f"{migration.label}: process {pid} of the server is at the step still: wait for it")
        steps = [
            step
            for step in await read_steps(own)
            if (step["namespace"], step["id"]) == migration.key and step["finished_at"] is None
        ]
        if not steps:
            raise MigrationError(f"{migration.label} has no step that is not finished")
        step = steps[-1]
        change = "finished_at = clock_timestamp(), error = NULL" if finished else f"error = '{_INTERRUPTED}'"
        await own.execute(
            f"UPDATE pgtick_migration_steps SET {change} WHERE (namespace, id, direction, step) = ($1, $2, $3, $4)",
            *migration.key,
            step["direction"],
            step["step"],
        )
    return {"migration": migration.label, "step": step["step"], "now": "finished" if finished else "to be done again"}


@_opens_what_is_not_open
async def accept_migration(migration_id: str) -> dict[str, Any]:
    """Record an applied migration's file as it is now; return ``migration`` and the ``difference`` ("" for none)."""
    db = get_db_manager()
    migration = find(discover(db.config.migration_folders), migration_id)
    async with migrating(db) as own, turn(own, migration):
        await make_ledger(own)
        row: Any = (await read_ledger(own)).get(migration.key)
        if row is None:
            raise MigrationError(f"{migration.label} is not applied: there is nothing to accept")
        await own.execute(
            "UPDATE pgtick_migrations SET name = $3, checksum = $4, content = $5 WHERE namespace = $1 AND id = $2",
            *migration.key,
            migration.name,
            migration.checksum,
            migration.content,
        )
    return {
        "migration": migration.label,
        "difference": difference(migration, row) if is_changed(migration, row) else "",
    }
