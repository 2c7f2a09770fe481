"""Refused rows: looked at, mended, stored after all or dropped, on real servers and by the roles that may."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import numpy as np
import pytest
from logins import roles_of
from rows import NOW, make_symbol, ticker

from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager, initialize_database
from pgtick.engines.series import create_series
from pgtick.errors import PgtickError
from pgtick.models import EventTime, Id4, Row, Sql
from pgtick.operations.quarantine import (
    MENDED,
    count_quarantine,
    drop_quarantined,
    fix_quarantined,
    get_quarantined,
    list_quarantine,
    replay_quarantine,
)
from pgtick.roles import set_up_roles
from pgtick.tables import BOOK_TICKERS, TRADES, Table
from pgtick.writer import Writer
from pgtick.writer.row_json import from_json, row_values, to_json, types_of

NAME = BOOK_TICKERS.name
BATCH = uuid.UUID(int=7)


async def put(db: DatabaseManager, table: Table, row: object, column: str, reason: str = "must be > 0") -> int:
    """Put a row into quarantine as the writer does; return its id."""
    row_id: int = await db.fetchval(
        'INSERT INTO ingest_quarantine (table_name, batch_id, row_index, column_name, reason, "row") '
        "VALUES ($1, $2, 3, $3, $4, $5) RETURNING id",
        table.name,
        BATCH,
        column,
        reason,
        to_json(types_of(table), row_values(table, row)),
    )
    return row_id


async def bids(db: DatabaseManager) -> list[Decimal]:
    return [record[0] for record in await db.fetch(f"SELECT bid_price FROM {NAME} ORDER BY sequence_number")]


async def waiting(db: DatabaseManager) -> list[tuple[int, str, str]]:
    return [(row.id, row.column_name, row.reason) for row in reversed(await list_quarantine(db, limit=1000))]


async def test_empty_quarantine_has_nothing_to_say(db: DatabaseManager) -> None:
    assert await count_quarantine(db) == []
    assert await list_quarantine(db) == []
    replayed = await replay_quarantine(db)
    assert (replayed.tables, replayed.is_complete) == ({}, True)


async def test_rows_are_counted_by_reason_and_listed_the_newest_first(db: DatabaseManager) -> None:
    ids = [await put(db, BOOK_TICKERS, ticker(1, bid_price=n), "bid_price") for n in range(3)]
    ids.append(await put(db, BOOK_TICKERS, ticker(1, ask_price=None), "ask_price", "must not be NULL"))
    ids.append(await put(db, TRADES, {"symbol_id": 1}, "price", "must not be NULL"))
    counts = await count_quarantine(db)
    assert [(one.table, one.column, one.reason, one.n_rows) for one in counts] == [
        (NAME, "bid_price", "must be > 0", 3),
        (NAME, "ask_price", "must not be NULL", 1),
        (TRADES.name, "price", "must not be NULL", 1),
    ]
    assert [row.id for row in await list_quarantine(db, limit=2)] == ids[:-3:-1]
    assert [row.id for row in await list_quarantine(db, table=TRADES.name)] == ids[-1:]
    row = await get_quarantined(db, ids[0])
    assert (row.table_name, row.batch_id, row.row_index, row.reason) == (NAME, BATCH, 3, "must be > 0")
    assert json.loads(row.row)["bid_price"] == "0"


async def test_mended_row_is_stored_and_leaves_in_one_transaction(db: DatabaseManager) -> None:
    row_id = await put(db, BOOK_TICKERS, ticker(await make_symbol(), bid_price="-1", ask_price="-1"), "bid_price")
    error = await fix_quarantined(db, row_id, {"bid_price": Decimal("50000.1234567890123")})
    assert error is not None
    assert (error.column, error.value, error.rule) == ("ask_price", "-1", "must be > 0")
    assert await waiting(db) == [(row_id, "ask_price", "must be > 0")]
    assert await fix_quarantined(db, row_id, {"ask_price": "50001"}) is None
    assert await waiting(db) == [(row_id, "ask_price", MENDED)]
    replayed = await replay_quarantine(db, ids=[row_id])
    assert replayed.is_complete
    assert (replayed.tables[NAME].n_stored, replayed.tables[NAME].n_refused) == (1, 0)
    assert await bids(db) == [Decimal("50000.1234567890123")]
    assert await db.fetchval(f"SELECT timestamp FROM {NAME}") == NOW
    assert await waiting(db) == []


async def test_row_that_is_refused_again_stays_with_its_new_reason(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    good = await put(db, BOOK_TICKERS, ticker(symbol_id, sequence_number=1), "symbol_id", "unknown then")
    twin = await put(db, BOOK_TICKERS, ticker(symbol_id, sequence_number=1), "symbol_id", "unknown then")
    orphan = await put(db, BOOK_TICKERS, ticker(4711, sequence_number=2), "symbol_id", "unknown then")
    wrong = await put(db, BOOK_TICKERS, ticker(symbol_id, sequence_number=3, bid_price=0), "symbol_id", "unknown then")
    replayed = await replay_quarantine(db)
    count = replayed.tables[NAME]
    assert (count.n_stored, count.n_duplicates, count.n_refused) == (1, 1, 2)
    assert not replayed.is_complete
    assert {one.id for one in replayed.refused} == {orphan, wrong}
    left = {row_id: (column, reason) for row_id, column, reason in await waiting(db)}
    assert good not in left
    assert twin not in left
    assert left[wrong] == ("bid_price", "must be > 0")
    assert left[orphan][0] == "symbol_id"
    assert left[orphan][1] != "unknown then"
    assert await bids(db) == [Decimal("50000.10")]


async def test_dry_run_says_the_same_and_changes_nothing(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    for n in range(3):
        await put(db, BOOK_TICKERS, ticker(symbol_id, sequence_number=n, bid_price=n), "bid_price", "none")
    before = await waiting(db)
    tried = await replay_quarantine(db, dry_run=True)
    assert await waiting(db) == before
    assert await bids(db) == []
    done = await replay_quarantine(db)
    assert (done.tables, done.refused) == (tried.tables, tried.refused)
    assert await bids(db) == [1, 2]


async def test_many_rows_are_replayed_in_several_transactions(
    db: DatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgtick.operations import quarantine

    monkeypatch.setattr(quarantine, "_CHOSEN", quarantine._CHOSEN.replace("LIMIT 5000", "LIMIT 4"))
    symbol_id = await make_symbol()
    for n in range(10):
        await put(db, BOOK_TICKERS, ticker(symbol_id, sequence_number=n, bid_price=n % 5), "bid_price")
    replayed = await replay_quarantine(db)
    assert (replayed.tables[NAME].n_stored, replayed.tables[NAME].n_refused) == (8, 2)
    assert len(await waiting(db)) == 2


async def test_replays_at_once_store_each_row_once(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    for n in range(20):
        await put(db, BOOK_TICKERS, ticker(symbol_id, sequence_number=n), "bid_price")
    done = await asyncio.gather(*(replay_quarantine(db) for _ in range(3)))
    counts = [replayed.tables.get(NAME) for replayed in done]
    assert sum(count.n_stored for count in counts if count) == 20
    assert sum(count.n_duplicates for count in counts if count) == 0


async def test_only_what_was_asked_for_is_replayed(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    first, second = [await put(db, BOOK_TICKERS, ticker(symbol_id, sequence_number=n), "bid_price") for n in range(2)]
    third = await put(
        db,
        TRADES,
        {"timestamp": NOW, "symbol_id": symbol_id, "price": 1, "quantity": 1, "side": "buy", "trade_id": "1"},
        "price",
    )
    await replay_quarantine(db, ids=[second])
    assert [row[0] for row in await waiting(db)] == [first, third]
    await replay_quarantine(db, table=TRADES.name)
    assert [row[0] for row in await waiting(db)] == [first]


async def test_id_that_is_not_there_is_an_error_and_nothing_is_done(db: DatabaseManager) -> None:
    row_id = await put(db, BOOK_TICKERS, ticker(await make_symbol()), "bid_price")
    for attempt in (
        replay_quarantine(db, ids=[row_id, 999]),
        drop_quarantined(db, [row_id, 999]),
        get_quarantined(db, 999),
        fix_quarantined(db, 999, {}),
    ):
        with pytest.raises(PgtickError, match="there is no row 999"):
            await attempt
    assert len(await waiting(db)) == 1


async def test_dropped_rows_are_gone_and_the_others_stay(db: DatabaseManager) -> None:
    ids = [await put(db, BOOK_TICKERS, ticker(1), "bid_price") for _ in range(3)]
    assert await drop_quarantined(db, ids[:2]) == 2
    assert [row[0] for row in await waiting(db)] == ids[2:]


async def test_fix_refuses_what_is_no_column_and_leaves_out_what_is_none(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    values = {name: getattr(ticker(symbol_id), name) for name in BOOK_TICKERS.column_names}
    row_id = await put(db, BOOK_TICKERS, {**values, "bid\0prize": 1}, "bid\\0prize", "must be a column of the table")
    with pytest.raises(PgtickError, match=f"{NAME} has no column bid_prize that is written: timestamp, "):
        await fix_quarantined(db, row_id, {"bid_prize": 1})
    with pytest.raises(PgtickError, match="has no ask_prize; it has timestamp, "):
        await fix_quarantined(db, row_id, {}, without=["ask_prize"])
    error = await fix_quarantined(db, row_id, {})
    assert error is not None
    assert await waiting(db) == [(row_id, "bid\\0prize", "must be a column of the table")]
    assert await fix_quarantined(db, row_id, {}, without=["bid\0prize"]) is None
    assert (await replay_quarantine(db)).is_complete


async def test_row_edited_by_hand_into_no_object_is_refused_and_not_the_others(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    broken = await put(db, BOOK_TICKERS, ticker(symbol_id), "bid_price")
    await db.execute("UPDATE ingest_quarantine SET \"row\" = '[1]'")
    await put(db, BOOK_TICKERS, ticker(symbol_id), "bid_price")
    replayed = await replay_quarantine(db)
    assert replayed.tables[NAME].n_stored == 1
    assert [one.id for one in replayed.refused] == [broken]
    with pytest.raises(PgtickError, match="no JSON object any more"):
        await fix_quarantined(db, broken, {"bid_price": 1})


# --- tables of a user's own ---


class Note(Row, kw_only=True):
    timestamp: EventTime
    symbol_id: Id4
    text: Annotated[str, Sql(type="text")]
    data: Annotated[Any, Sql(type="jsonb")]
    size: Annotated[int, Sql(type="int8", rule="> 0")]


NOTES = Table("notes", Note, key=("symbol_id", "timestamp"))


@pytest.fixture
async def notes(db: DatabaseManager) -> DatabaseManager:
    columns = """
        timestamp timestamptz NOT NULL, symbol_id int NOT NULL, text text NOT NULL, data jsonb NOT NULL,
        size int8 NOT NULL CHECK (size > 0), PRIMARY KEY (symbol_id, timestamp)
    """
    day = timedelta(days=1)
    async with db.transaction():
        await create_series(db, NOTES.name, columns, references={}, chunk=day, retention=7 * day)
    return db


async def test_own_table_s_rows_wait_until_its_table_is_told_of(notes: DatabaseManager) -> None:
    big = (1 << 60) + 1
    row = Note(timestamp=NOW, symbol_id=1, text="é\u2028", data={"n": [1, None, "\\u0000"]}, size=-big)
    row_id = await put(notes, NOTES, row, "size")
    replayed = await replay_quarantine(notes)
    assert (replayed.unknown, replayed.tables, replayed.is_complete) == ({"notes": 1}, {}, False)
    with pytest.raises(PgtickError, match="is of notes, whose Table is not known"):
        await fix_quarantined(notes, row_id, {"size": big})
    assert await fix_quarantined(notes, row_id, {"size": big}, tables=[NOTES]) is None
    replayed = await replay_quarantine(notes, tables=[NOTES])
    assert replayed.is_complete
    stored = await notes.fetchrow("SELECT text, data::text, size FROM notes")
    assert stored is not None
    assert tuple(stored) == ("é\u2028", '{"n": [1, null, "\\\\u0000"]}', big)


async def test_text_with_nul_is_kept_whole_and_mended(notes: DatabaseManager) -> None:
    row_id = await put(notes, NOTES, (NOW, 1, "a\0b\ud800", {}, 1), "text", "must be valid Unicode")
    kept = json.loads((await get_quarantined(notes, row_id)).row)
    assert kept["text"] == "a\0b\ud800"
    assert not (await replay_quarantine(notes, tables=[NOTES])).is_complete
    assert await fix_quarantined(notes, row_id, {"text": "ab", "data": None}, tables=[NOTES]) is not None
    assert await fix_quarantined(notes, row_id, {"data": [1]}, tables=[NOTES]) is None
    assert (await replay_quarantine(notes, tables=[NOTES])).is_complete


# --- as the writer puts them there ---


async def test_rows_of_the_writer_come_out_as_they_went_in(notes: DatabaseManager) -> None:
    """Refused by the encoder and by the server, as Struct, tuple, dict with an integer time, and column."""
    await notes.execute("ALTER TABLE notes ADD CHECK (size <> 13)")
    now_ms = int(NOW.timestamp() * 1000)
    raw = {"n": Decimal("1")}  # no JSON value
    async with Writer(notes, spool=False) as writer:
        await writer.add(NOTES, Note(timestamp=NOW, symbol_id=1, text="a\0", data=["\u00e9"], size=1))
        await writer.add(NOTES, (NOW, 2, "b", raw, 1))
        await writer.add(NOTES, {"timestamp": now_ms, "symbol_id": 3, "text": 5, "data": {}, "size": 1}, time_unit="ms")
        await writer.add(NOTES, (NOW, 4, "d", {"x": [1.5, "\u00e9"]}, 13))
        await writer.add(NOTES, (NOW, 5, "e", {}, 1 << 60))
        await writer.flush()
    assert sorted((row[1], row[2].split(":")[0]) for row in await waiting(notes)) == [
        ("data", "must be a JSON value with finite numbers, or msgspec.Raw"),
        ("size", "was refused by the server"),
        ("text", "must be a str"),
        ("text", "must not contain NUL"),
    ]
    assert (await replay_quarantine(notes, tables=[NOTES])).tables["notes"].n_refused == 4
    mend: dict[str, dict[str, object]] = {
        "1": {"text": "a"},
        "2": {"data": {"n": 1}},
        "3": {"text": "5"},
        "4": {"size": 14},
    }
    for row in await list_quarantine(notes):
        changes = mend[str(json.loads(row.row)["symbol_id"])]
        assert await fix_quarantined(notes, row.id, changes, tables=[NOTES]) is None
    assert (await replay_quarantine(notes, tables=[NOTES])).is_complete
    stored = await notes.fetch("SELECT symbol_id, text, data::text, size, timestamp FROM notes ORDER BY 1")
    assert [tuple(record)[:4] for record in stored] == [
        (1, "a", '["\u00e9"]', 1),
        (2, "b", '{"n": 1}', 1),
        (3, "5", "{}", 1),
        (4, "d", '{"x": [1.5, "\u00e9"]}', 14),
        (5, "e", "{}", 1 << 60),
    ]
    assert {record["timestamp"] for record in stored} == {NOW, NOW.replace(microsecond=now_ms % 1000 * 1000)}


async def test_rows_of_columns_are_kept_whole_as_rows_are(db: DatabaseManager) -> None:
    symbol_id = await make_symbol()
    rows = [ticker(symbol_id, sequence_number=n, bid_qty="0.1", ask_qty=None) for n in range(3)]
    rows[1].bid_price = -1.0
    columns = {name: [getattr(row, name) for row in rows] for name in BOOK_TICKERS.column_names}
    async with Writer(db, spool=False) as writer:
        await writer.add_many(BOOK_TICKERS, rows)
        await writer.add_columns(BOOK_TICKERS, columns)
        await writer.add_columns(BOOK_TICKERS, columns | {"bid_qty": np.array([0.1] * 3, "f4"), "symbol_id": symbol_id})
        await writer.flush()
    found = sorted(await list_quarantine(db), key=lambda row: row.row_index)
    assert [(row.row_index, row.column_name, row.reason) for row in found] == [
        (n, "bid_price", "must be > 0") for n in (1, 4, 7)
    ]
    values = [from_json(types_of(BOOK_TICKERS), row.row) for row in found]
    assert values[0] == values[1] == values[2]
    assert await fix_quarantined(db, found[2].id, {"bid_price": 3}) is None
    assert (await replay_quarantine(db, ids=[found[2].id])).is_complete
    assert await bids(db) == [Decimal("50000.1"), Decimal(3), Decimal("50000.1")]


# --- roles ---


async def test_writer_may_fill_and_look_and_the_owner_may_do_all(config: DatabaseConfig) -> None:
    async with roles_of(config) as roles:
        db = await initialize_database(config)
        row_id = await put(db, BOOK_TICKERS, ticker(await make_symbol(), bid_price=0), "bid_price")
        await set_up_roles(roles.admin, prefix=roles.prefix)
        await db.close()
        async with roles.opened("writer") as writer:
            assert await waiting(writer) == [(row_id, "bid_price", "must be > 0")]
            await put(writer, BOOK_TICKERS, ticker(1), "bid_price")
            for attempt in (
                replay_quarantine(writer),
                drop_quarantined(writer, [row_id]),
                fix_quarantined(writer, row_id, {"bid_price": 1}),
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await attempt
        async with roles.opened("reader") as reader:
            assert len(await waiting(reader)) == 2
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await put(reader, BOOK_TICKERS, ticker(1), "bid_price")
        async with roles.opened("owner") as owner:
            assert await bids(owner) == []
            assert await fix_quarantined(owner, row_id, {"bid_price": "2", "sequence_number": 2}) is None
            assert (await replay_quarantine(owner)).is_complete
            assert await bids(owner) == [Decimal("50000.10"), 2]


def test_page_names_every_command() -> None:
    page = (Path(__file__).parents[1] / "docs" / "quarantine.md").read_text("utf-8")
    for command in ("list", "show", "fix", "replay", "drop"):
        assert f"pgtick quarantine {command}" in page
