"""The commands of the rooms beside the migrator: verify, baseline, new, roles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import asyncpg
import pytest
from migration_files import command
from old_database import make_schema

from pgtick.config import DatabaseConfig
from pgtick.connection import open_manager


async def execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(**DatabaseConfig.from_dsn(dsn).connect_kwargs())
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_verify_exits_3_with_drifts_and_up_tells_of_them(dsn: str) -> None:
    up = command("up", "--dsn", dsn)
    assert (up.returncode, "is not" in up.stdout) == (0, False), up.stdout + up.stderr
    clean = command("verify", "--dsn", dsn)
    assert (clean.returncode, clean.stdout) == (0, "the schema is as declared\n"), clean.stderr
    await execute(dsn, "ALTER TABLE symbols ALTER COLUMN is_active DROP DEFAULT")
    found = command("verify", "--dsn", dsn, "--json")
    assert found.returncode == 3
    (drift,) = json.loads(found.stdout)
    assert (drift["table"], drift["kind"], drift["name"], drift["state"]) == (
        "symbols",
        "column",
        "is_active",
        "changed",
    )
    assert drift["what"].startswith("symbols: column is_active is not as declared")
    assert drift["advice"]
    told = command("verify", "--dsn", dsn)
    assert (told.returncode, told.stdout.splitlines()[0]) == (3, drift["what"])


async def test_up_with_something_to_apply_tells_of_drifts(dsn: str, tmp_path: Path) -> None:
    assert command("up", "--dsn", dsn).returncode == 0
    await execute(dsn, "DROP INDEX ix_symbols_pair")
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "001_a.sql").write_text("-- up\nCREATE TABLE a ();\n", "utf-8")
    up = command("up", "--dsn", dsn, "--folder", str(folder))
    assert up.returncode == 3
    assert up.stdout.splitlines()[0] == "applied mine/001_a"
    assert "symbols: index ix_symbols_pair is missing" in up.stdout


@pytest.mark.engines("plain", "timescale")
async def test_baseline_adopts_and_says_what_it_left_behind(dsn: str) -> None:
    db = await open_manager(DatabaseConfig.from_dsn(dsn))
    try:
        await make_schema(db)
        await db.execute(
            "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT')"
        )
        await db.execute(
            "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'U', 'BU')"
        )
        await db.execute(
            "INSERT INTO trade_snapshots (timestamp, symbol_id, price, quantity, side, trade_id) "
            "VALUES (now(), 1, 2.5, 1, 'buy', 'x'), (now() - interval '1 second', 1, 'NaN', 1, 'buy', 'y')"
        )
    finally:
        await db.close()
    dry = command("baseline", "--dry-run", "--dsn", dsn)
    assert dry.returncode == 3, dry.stderr
    assert dry.stdout.startswith("adopted, and rolled back: a dry run\n")
    done = command("baseline", "--json", "--dsn", dsn)
    assert done.returncode == 3, done.stderr
    report = json.loads(done.stdout)
    (trades,) = (table for table in report["tables"] if table["table"] == "trade_snapshots")
    assert (trades["n_rows"], trades["n_moved"]) == (2, 1)
    again = command("baseline", "--dsn", dsn)
    assert again.returncode == 1
    assert "there is nothing to adopt" in again.stderr
    assert command("up", "--dsn", dsn).returncode == 0


def test_new_writes_a_draft_that_up_applies(dsn: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    arguments = ("new", "ticks", "pgtick.models:OrderFlowMetrics", "--into", str(folder))
    refused = command(*arguments, "--key", "nothing")
    assert refused.returncode == 1
    assert "nothing" in refused.stderr
    done = command(*arguments, "--key", "symbol_id", "--key", "timestamp", "--retention-days", "2", "--json")
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["file"])
    assert path == folder / "001_ticks.py"
    assert "timedelta(days=2)" in path.read_text("utf-8")


@pytest.mark.engines("plain", "timescale")  # Citus 14.0.1 crashes on the REASSIGN OWNED that cleans up here
async def test_roles_are_printed_made_and_then_nothing_is_left_to_do(dsn: str) -> None:
    prefix = f"pgtick_test_{os.getpid()}_{abs(hash(dsn)) % 10**6}"
    assert command("up", "--dsn", dsn).returncode == 0
    try:
        printed = command("roles", "--prefix", prefix, "--print", "--dsn", dsn)
        assert printed.returncode == 0, printed.stderr
        assert f'"{prefix}_writer"' in printed.stdout
        made = command("roles", "--prefix", prefix, "--json", "--dsn", dsn)
        assert made.returncode == 0, made.stderr
        assert [f"{statement};" for statement in json.loads(made.stdout)] == printed.stdout.splitlines()
        again = command("roles", "--prefix", prefix, "--dsn", dsn)
        assert (again.returncode, again.stdout) == (0, "the roles are set up\n")
    finally:
        for kind in ("writer", "reader", "monitor", "owner"):
            role = f'"{prefix}_{kind}"'
            await execute(
                dsn, f"REASSIGN OWNED BY {role} TO CURRENT_USER", f"DROP OWNED BY {role}", f"DROP ROLE {role}"
            )
