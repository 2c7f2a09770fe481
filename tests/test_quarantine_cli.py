"""pgtick quarantine from outside: what it prints, its exit codes, and what it leaves in the database."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner, Result

from pgtick.cli.commands import pgtick
from pgtick.config import DatabaseConfig
from pgtick.tables import TRADES
from pgtick.writer.row_json import row_values, to_json, types_of

SYMBOLS = (
    "INSERT INTO exchanges (enum_value, exchange_name, market_type) VALUES ('A_SPOT', 'A', 'SPOT');"
    "INSERT INTO symbols (exchange_id, symbol_base, symbol_quote, exchange_symbol) VALUES (1, 'B', 'C', 'BC')"
)
PUT = (
    'INSERT INTO ingest_quarantine (table_name, batch_id, row_index, column_name, reason, "row") '
    "VALUES ($1, gen_random_uuid(), 0, 'price', 'must be > 0', $2)"
)


def fetchval(config: DatabaseConfig, query: str, *args: object) -> Any:
    async def fetch() -> Any:
        connection = await asyncpg.connect(**config.connect_kwargs())
        try:
            return await (connection.fetchval(query, *args) if args else connection.execute(query))
        finally:
            await connection.close()

    return asyncio.run(fetch())


def count(config: DatabaseConfig, table: str) -> int:
    return int(fetchval(config, f"SELECT count(*) FROM {table} WHERE $1", True))


class Quarantine:
    """The command on one database; each ``put`` makes the next id."""

    def __init__(self, config: DatabaseConfig) -> None:
        self.config = config
        fetchval(config, SYMBOLS)

    def __call__(self, command: str, *arguments: str) -> Result:
        dsn = self.config.to_dsn(with_password=True)
        return CliRunner().invoke(pgtick, ["quarantine", command, *arguments, "--dsn", dsn])

    def put(self, table: str = TRADES.name, **changes: object) -> None:
        now = fetchval(self.config, "SELECT now() WHERE $1", True)
        row = {"timestamp": now, "symbol_id": 1, "price": 0, "quantity": 1, "side": "buy", "trade_id": "7", **changes}
        fetchval(self.config, PUT, table, to_json(types_of(TRADES), row_values(TRADES, row)))


@pytest.fixture
def quarantine(config: DatabaseConfig) -> Quarantine:
    return Quarantine(config)


def test_empty_quarantine_says_so(quarantine: Quarantine) -> None:
    assert quarantine("list").output == "nothing is in quarantine\n"
    replayed = quarantine("replay")
    assert (replayed.exit_code, replayed.output) == (0, "nothing to replay\n")


def test_list_and_show_print_what_was_refused_and_why(quarantine: Quarantine) -> None:
    for n in range(3):
        quarantine.put(trade_id=f"[b]\0{n}")
    listed = quarantine("list", "--limit", "1")
    assert listed.exit_code == 0
    head, counted, newest = (line for line in listed.output.splitlines() if "trade" in line or "newest" in line)
    assert head.split()[:4] == ["table", "column", "reason", "rows"]
    assert counted.split()[:6] == ["trade_snapshots", "price", "must", "be", ">", "0"]
    assert counted.split()[6] == "3"
    assert newest.split()[:4] == ["3", "trade_snapshots", "0", "price"]
    told = json.loads(quarantine("list", "--json").output)
    assert [row["id"] for row in told["rows"]] == [3, 2, 1]
    assert told["rows"][0]["row"]["trade_id"] == "[b]\0" + "2"
    assert told["counts"][0]["n_rows"] == 3
    assert json.loads(quarantine("list", "--json", "--table", "symbols").output) == {"counts": [], "rows": []}
    shown = quarantine("show", "1")
    assert "must be > 0" in shown.output
    assert '"trade_id": "[b]\\u00000"' in shown.output
    assert json.loads(quarantine("show", "1", "--json").output)["row"]["price"] == "0"


def test_row_is_mended_step_by_step_and_replayed(quarantine: Quarantine) -> None:
    quarantine.put(side="BUY")
    still = quarantine("fix", "1", "price=0.10")
    assert still.exit_code == 3
    assert still.output == "row 1 is changed and still refused: side: 'BUY' must be one of buy, sell\n"
    refused = quarantine("replay", "1")
    assert refused.exit_code == 3
    assert "trade_snapshots: 0 stored, 0 duplicates, 1 still refused\n  row 1: side: must be one of" in refused.output
    mended = quarantine("fix", "1", "side=buy", "trade_id=a=b")
    assert (mended.exit_code, mended.output) == (
        0,
        "row 1 breaks no rule any more: pgtick quarantine replay 1\n",
    )
    tried = quarantine("replay", "--dry-run")
    assert (tried.exit_code, tried.output) == (
        0,
        "trade_snapshots: 1 stored, 0 duplicates, 0 still refused (dry run)\n",
    )
    assert count(quarantine.config, "trade_snapshots") == 0
    done = quarantine("replay", "--json")
    assert done.exit_code == 0
    assert json.loads(done.output)["tables"]["trade_snapshots"]["n_stored"] == 1
    assert fetchval(quarantine.config, "SELECT price || trade_id FROM trade_snapshots WHERE $1", True) == "0.10a=b"
    assert count(quarantine.config, "ingest_quarantine") == 0


def test_null_and_wrong_values_are_told_by_their_rule(quarantine: Quarantine) -> None:
    quarantine.put()
    for change, said in {
        "price=null": "price: None must not be NULL",
        "price=cheap": "price: 'cheap' must be a number: float, Decimal, int, or decimal text",
        "symbol_id=1.5": "symbol_id: '1.5' must be an int",
    }.items():
        result = quarantine("fix", "1", "price=1", "symbol_id=1", change)
        assert (result.exit_code, result.output) == (3, f"row 1 is changed and still refused: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("fix", "1", "price"), 2, "'price' is not COLUMN=VALUE"),
        (("fix", "1", "prize=1"), 1, "trade_snapshots has no column prize that is written: timestamp"),
        (("fix", "9", "price=1"), 1, "there is no row 9"),
        (("show", "9"), 1, "there is no row 9"),
        (("replay", "1", "9"), 1, "there is no row 9"),
        (("drop", "9", "--yes"), 1, "there is no row 9"),
        (("drop", "1"), 1, "they would be lost for good: say --yes"),
        (("show", str(1 << 70)), 1, "value out of int64 range"),
        (("replay", "--import", "no.such.module"), 1, "no.such.module cannot be imported: ModuleNotFoundError"),
        (("replay", "--import", "json"), 1, "json has no Table"),
    ],
)
def test_what_cannot_be_done_is_a_message_and_an_exit_code(
    quarantine: Quarantine, arguments: tuple[str, ...], code: int, said: str
) -> None:
    quarantine.put()
    result = quarantine(*arguments)
    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output
    assert count(quarantine.config, "ingest_quarantine") == 1


def test_dropped_rows_are_gone(quarantine: Quarantine) -> None:
    quarantine.put()
    quarantine.put()
    assert quarantine("drop", "2", "--yes").output == "1 rows dropped\n"
    assert fetchval(quarantine.config, "SELECT id FROM ingest_quarantine WHERE $1", True) == 1


def test_own_table_is_imported_from_the_working_directory(
    quarantine: Quarantine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tables_of_a_test.py").write_text(
        "from pgtick.models import TradeSnapshot\nfrom pgtick.tables import Table\n"
        "MINE = Table('my_trades', TradeSnapshot, key=('symbol_id', 'timestamp', 'trade_id'))\n"
    )
    monkeypatch.chdir(tmp_path)
    quarantine.put(table="my_trades")
    left = quarantine("replay")
    assert left.exit_code == 3
    assert left.output == "my_trades: 1 rows are left, its Table is not known: --import its module\n"
    assert "is of my_trades, whose Table is not known" in quarantine("fix", "1", "price=1").output
    mended = quarantine("fix", "1", "price=1", "--import", "tables_of_a_test")
    assert mended.exit_code == 0, mended.output
