"""pgtick spool from outside: what waits, is it whole, store it, drop it."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner, Result
from rows import NOW, make_symbol, ticker
from spooled import abandon, files, make_record, opened

from pgtick.cli.commands import pgtick
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(pgtick, ["spool", *arguments])


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A spool of a dead process: three batches of trades, two of books, 5 rows each."""
    with opened(tmp_path / "spool") as spool:
        for table in ("trades", "books", "trades", "books", "trades"):
            spool.append(make_record(table))
    return tmp_path / "spool"


def test_status_says_what_waits_by_table_and_changes_nothing(filled: Path) -> None:
    before = {path: path.read_bytes() for path in files(filled)}
    result = run("status", "--folder", str(filled))
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert [line[:3] for line in lines if line[:1] in (["trades"], ["books"])] == [
        ["books", "2", "10"],
        ["trades", "3", "15"],
    ]
    assert "the next start" in result.output
    assert "2023-11-14 22:13:20" in result.output
    assert {path: path.read_bytes() for path in files(filled)} == before


def test_status_tells_the_rows_of_a_process_that_runs(filled: Path) -> None:
    with opened(filled):
        result = run("status", "--folder", str(filled))
        assert "a process that runs" in result.output
        assert "the next start" not in result.output


def test_status_without_a_folder_lists_every_spool_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGTICK_STATE_DIR", str(tmp_path))
    assert run("status").output == "nothing is spooled\n"
    for name in ("a:5432/x", "b:5432/y"):
        with opened(tmp_path / "spool" / quote(name, safe="")) as spool:
            spool.append(make_record(f"of_{name[0]}"))
    result = run("status")
    assert "of_a" in result.output
    assert "of_b" in result.output
    named = run("status", "--dsn", "postgresql://me:secret@b:5432/y?sslmode=disable")
    assert "of_b" in named.output
    assert "of_a" not in named.output
    assert "secret" not in named.output


def test_status_and_verify_speak_json(filled: Path) -> None:
    for command in ("status", "verify"):
        (found,) = json.loads(run(command, "--folder", str(filled), "--json").output).values()
        assert [(file["tables"], file["n_batches"], file["n_rows"]) for file in found] == [
            (["trades"], 3, 15),
            (["books"], 2, 10),
        ]


def test_verify_lists_what_is_damaged_unfinished_and_kept_aside(filled: Path) -> None:
    result = run("verify", "--folder", str(filled))
    assert (result.exit_code, "2 files are whole, 0 damaged" in result.output) == (0, True)
    harmed, torn = files(filled)
    content = bytearray(harmed.read_bytes())
    content[-1] ^= 1
    harmed.write_bytes(content)
    torn.write_bytes(torn.read_bytes()[:-1])
    aside = harmed.with_name("000000000000-x.pgtick.damaged")
    aside.write_bytes(b"x" * 50)
    result = run("verify", "--folder", str(filled))
    assert result.exit_code == 3
    start = (len(content) - 8) // 3 * 2 + 8
    assert f"bytes {start} to {len(content)} damaged" in result.output
    assert "bytes at the end not finished" in result.output
    assert "kept aside" in result.output
    assert "1 files are whole, 2 damaged" in result.output
    assert harmed.read_bytes() == content


def test_drop_deletes_one_table_s_rows_after_asking(filled: Path) -> None:
    asked = CliRunner().invoke(pgtick, ["spool", "drop", "--folder", str(filled), "--table", "trades"], input="n\n")
    assert "delete 15 rows of trades?" in asked.output
    assert len(files(filled)) == 2
    result = run("drop", "--folder", str(filled), "--table", "trades", "--yes")
    assert result.output == f"{filled}: 15 rows of trades deleted\n"
    with opened(filled) as spool:
        assert spool.tables() == ["books"]
    run("drop", "--folder", str(filled), "--yes")
    assert list(filled.rglob("*")) == []


def test_drop_leaves_the_rows_of_a_process_that_runs(filled: Path) -> None:
    with opened(filled) as spool:
        assert run("drop", "--folder", str(filled), "--yes").exit_code == 0
        assert spool.n_records("trades") == 3
        assert spool.peek("trades") is not None


def test_drop_damaged_deletes_only_what_was_kept_aside(filled: Path) -> None:
    aside = filled / "000" / "000000000000-x.pgtick.damaged"
    aside.write_bytes(b"x")
    assert run("drop", "--folder", str(filled), "--damaged", "--table", "x").exit_code == 2
    assert run("drop", "--folder", str(filled), "--damaged", "--yes").exit_code == 0
    assert not aside.exists()
    assert len(files(filled)) == 2


async def _spool_rows(db: DatabaseManager, folder: Path, n_rows: int) -> None:
    """Leave rows in the spool as a process does that ends while its server is away."""
    symbol_id = await make_symbol()
    writer = Writer(db, spool=folder, max_age_s=1000.0)
    for number in range(n_rows):
        await writer.add(BOOK_TICKERS, ticker(symbol_id, timestamp=NOW + timedelta(seconds=number)))
    writer.keep_at_exit()
    abandon(writer)


async def test_replay_stores_what_a_dead_process_has_left(
    db: DatabaseManager, config: DatabaseConfig, tmp_path: Path
) -> None:
    await _spool_rows(db, tmp_path, 30)
    assert len(files(tmp_path)) == 1
    arguments = ("replay", "--folder", str(tmp_path), "--dsn", config.to_dsn(with_password=True))
    result = await asyncio.to_thread(run, *arguments)
    assert result.exit_code == 0, result.output
    assert f"{BOOK_TICKERS.name}: 30 rows found, 30 stored" in result.output
    assert await db.fetchval(f"SELECT count(*) FROM {BOOK_TICKERS.name}") == 30
    assert files(tmp_path) == []
    again = await asyncio.to_thread(run, *arguments)
    assert again.output == "nothing is spooled\n"


async def test_replay_keeps_what_cannot_be_stored_and_says_so(
    db: DatabaseManager, config: DatabaseConfig, tmp_path: Path
) -> None:
    await _spool_rows(db, tmp_path, 3)
    await db.execute(f"DROP TABLE {BOOK_TICKERS.name} CASCADE")
    arguments = ("--folder", str(tmp_path), "--dsn", config.to_dsn(with_password=True), "--patience", "1")
    result = await asyncio.to_thread(run, "replay", *arguments)
    assert result.exit_code == 1
    assert "3 left" in result.output
    assert "stays in the spool" in result.output
    with opened(tmp_path) as spool:
        assert spool.n_rows(BOOK_TICKERS.name) == 3
