"""The three ways of a batch: each takes what the one before it leaves, in one transaction with the ledger."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
from rows import NOW, make_symbol, quarantined, ticker

from pgtick.connection import DatabaseManager
from pgtick.engines.series import create_series
from pgtick.models import EventTime, Id4, Row, Sql
from pgtick.tables import BOOK_TICKERS, Table
from pgtick.writer import Writer, batch, references, store_rows
from pgtick.writer.batch import Batch
from pgtick.writer.deliver import Delivery, Way, deliver
from pgtick.writer.encoders import encoder_of

STRANGER = 999_999
N = 60
DAY = timedelta(days=1)


@pytest.fixture
async def symbol_id(db: DatabaseManager) -> int:
    return await make_symbol()


def tickers(symbol_id: int, *numbers: int, **changes: object) -> list[Any]:
    return [ticker(symbol_id, sequence_number=number, **changes) for number in numbers]


def batch_of(rows: list[Any], table: Table = BOOK_TICKERS) -> Batch:
    return Batch(table, encoder_of(table).encode(rows))


def counts_of(delivery: Delivery) -> tuple[Way, int, int, int]:
    return delivery.way, delivery.n_stored, delivery.n_duplicates, delivery.n_quarantined


@pytest.mark.parametrize("first", Way)
@pytest.mark.parametrize(
    ("rows", "found"),
    [
        pytest.param({}, (0, 0, 0), id="good"),
        pytest.param({3: STRANGER, 4: STRANGER, 59: STRANGER + 1}, (1, 0, 3), id="strangers"),
        pytest.param({3: STRANGER, 5: "again"}, (2, 1, 1), id="strangers and duplicates"),
        pytest.param({3: STRANGER, 7: "checked"}, (2, 0, 2), id="strangers and a check"),
        pytest.param({7: "checked"}, (2, 0, 1), id="a check"),
        pytest.param({5: "again"}, (2, 1, 0), id="duplicates"),
        pytest.param(dict.fromkeys(range(N), STRANGER), (1, 0, N), id="strangers only"),
    ],
)
async def test_each_way_takes_what_the_one_before_it_leaves(
    db: DatabaseManager, symbol_id: int, first: Way, rows: dict[int, Any], found: tuple[int, int, int]
) -> None:
    await db.execute(f"ALTER TABLE {BOOK_TICKERS.name} ADD CONSTRAINT no_seven CHECK (sequence_number <> 7007)")
    await store_rows(BOOK_TICKERS, tickers(symbol_id, 5005))
    numbers = {"again": 5005, "checked": 7007}
    handed = [
        ticker(kind, sequence_number=n)
        if isinstance(kind, int)
        else ticker(symbol_id, sequence_number=numbers[kind])
        if kind
        else ticker(symbol_id, sequence_number=n)
        for n, kind in ((n, rows.get(n)) for n in range(N))
    ]
    sent = batch_of(handed)
    needed, n_duplicates, n_refused = found
    delivery = await deliver(db, sent, way=first)
    assert counts_of(delivery) == (max(first, needed), N - n_duplicates - n_refused, n_duplicates, n_refused)
    refused = [n for n, kind in rows.items() if kind != "again"]
    assert [error.index for error in delivery.errors] == refused
    assert [error.column for error in delivery.errors] == [
        "symbol_id" if isinstance(rows[n], int) else "sequence_number" for n in refused
    ]
    assert all(error.value == rows[error.index] for error in delivery.errors if isinstance(rows[error.index], int))
    assert len(await quarantined(db)) == n_refused
    assert await db.fetchval(f"SELECT count(*) FROM {BOOK_TICKERS.name}") == 1 + N - n_duplicates - n_refused
    again = await deliver(db, sent, way=first)
    assert (again.was_committed, again.n_stored, again.n_duplicates, again.n_quarantined) == (
        True,
        N - n_duplicates - n_refused,
        n_duplicates,
        n_refused,
    )
    assert len(await quarantined(db)) == n_refused


@pytest.mark.parametrize("in_transaction", [False, True], ids=["alone", "in a transaction"])
async def test_strangers_of_a_batch_at_once_are_in_its_answer(
    db: DatabaseManager, symbol_id: int, in_transaction: bool
) -> None:
    rows = tickers(symbol_id, *range(20))
    rows[8].symbol_id = rows[9].symbol_id = STRANGER
    async with db.transaction() if in_transaction else nullcontext():
        result = await store_rows(BOOK_TICKERS, rows)
        assert await db.fetchval("SELECT 1") == 1  # the transaction is not spoilt
    assert (result.n_stored, result.n_duplicates) == (18, 0)
    assert [(error.index, error.column, error.value) for error in result.errors] == [
        (8, "symbol_id", STRANGER),
        (9, "symbol_id", STRANGER),
    ]
    assert "was refused by the server: there is no such row in" in str(result.errors[0])
    assert await db.fetchval("SELECT count(*) FROM ingest_quarantine") == 0


async def test_table_keeps_to_the_way_that_it_needed_and_comes_back(db: DatabaseManager, symbol_id: int) -> None:
    numbers = iter(range(10_000))
    async with Writer(db, max_rows=10, in_flight=1) as writer:

        async def flush(*ids: int) -> Way:
            for id_ in ids:
                await writer.add(BOOK_TICKERS, ticker(id_, sequence_number=next(numbers)))
            await writer.flush()
            return writer._lanes[BOOK_TICKERS].way

        assert await flush(symbol_id) == Way.STRAIGHT
        assert await flush(symbol_id, STRANGER) == Way.SIFTED
        assert writer.metrics.n_careful == 0
        await db.execute(f"ALTER TABLE {BOOK_TICKERS.name} ADD CONSTRAINT no_three CHECK (sequence_number <> 3)")
        assert await flush(symbol_id) == Way.CAREFUL  # number 3
        for _ in range(19):
            assert await flush(symbol_id) == Way.CAREFUL
        assert writer.metrics.n_careful == 20
        assert await flush(symbol_id) == Way.STRAIGHT
        assert await flush(symbol_id) == Way.STRAIGHT
    counts = writer.counts[BOOK_TICKERS.name]
    assert (counts.n_stored, counts.n_quarantined) == (23, 2)


@pytest.mark.engines("plain", "citus")
async def test_partition_that_another_process_dropped_is_made_again_for_a_sifted_batch(
    db: DatabaseManager, symbol_id: int
) -> None:
    late = datetime(2021, 4, 22, 12, tzinfo=UTC)
    await store_rows(BOOK_TICKERS, tickers(symbol_id, 1, timestamp=late))
    await db.execute(f"DROP TABLE {BOOK_TICKERS.name}_p20210422")
    rows = [*tickers(symbol_id, 2, 3, timestamp=late), *tickers(STRANGER, 4, timestamp=late)]
    assert counts_of(await deliver(db, batch_of(rows), way=Way.SIFTED)) == (Way.SIFTED, 2, 0, 1)


async def test_rows_refused_before_by_the_encoder_are_counted_once(db: DatabaseManager, symbol_id: int) -> None:
    rows = tickers(symbol_id, *range(10))
    rows[2].bid_price = float("nan")
    rows[4].symbol_id = STRANGER
    async with Writer(db, max_age_s=60) as writer:
        await writer.add_many(BOOK_TICKERS, rows)
        await writer.flush()
    counts = writer.counts[BOOK_TICKERS.name]
    assert (counts.n_stored, counts.n_quarantined, counts.adds_up) == (8, 2, True)
    found = await db.fetch("SELECT row_index, column_name FROM ingest_quarantine ORDER BY row_index")
    assert [tuple(record) for record in found] == [(2, "bid_price"), (4, "symbol_id")]
    assert tuple(await db.fetchrow("SELECT n_rows, n_quarantined FROM ingest_batches") or ()) == (10, 2)


@pytest.mark.parametrize("n_strangers", [1, 500])
async def test_each_column_that_refers_is_looked_at(db: DatabaseManager, symbol_id: int, n_strangers: int) -> None:
    """A table with two of them, whose ids come in any order."""
    chance = random.Random(n_strangers)
    await create_series(
        db,
        LEGS.name,
        "timestamp timestamptz NOT NULL, number int8 NOT NULL, symbol_id int NOT NULL, other_id int8, "
        "exchange_id smallint, PRIMARY KEY (number, timestamp)",
        references={"symbol_id": "symbols", "other_id": "symbols", "exchange_id": "exchanges"},
        chunk=DAY,
        retention=7 * DAY,
    )
    exchange_id = await db.fetchval("SELECT min(id) FROM exchanges")
    rows = [
        Leg(timestamp=NOW, number=n, symbol_id=symbol_id, other_id=chance.choice([None, symbol_id]), exchange_id=None)
        for n in range(2000)
    ]
    expected = {}
    for n in chance.sample(range(2000), n_strangers):
        column = chance.choice(["symbol_id", "other_id", "exchange_id"])
        value = {"exchange_id": 32_000, "other_id": chance.choice([-1, 1 << 40])}.get(column, 1 << 30)
        setattr(rows[n], column, value)
        expected[n] = (column, value)
    rows[next(n for n in range(2000) if n not in expected)].exchange_id = exchange_id
    delivery = await deliver(db, batch_of(rows, LEGS))
    assert counts_of(delivery) == (Way.SIFTED, 2000 - n_strangers, 0, n_strangers)
    assert {error.index: (error.column, error.value) for error in delivery.errors} == expected


@pytest.mark.parametrize("kind", ["strangers", "a check", "columns"])
async def test_event_loop_has_its_turns_while_rows_are_refused_by_the_thousand(
    db: DatabaseManager, symbol_id: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "a check":
        await db.execute(f"ALTER TABLE {BOOK_TICKERS.name} ADD CONSTRAINT none CHECK (sequence_number < 0)")
    n_rows, turn = 2000, 0
    rows = tickers(STRANGER if kind == "strangers" else symbol_id, *range(n_rows))
    at_once: Counter[tuple[str, int]] = Counter()

    async def count_turns() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def count(*args: Any) -> Any:
            at_once[name, turn] += 1
            return function(*args)

        monkeypatch.setattr(module, name, count)

    counted(batch, "to_json")
    counted(references, "read_back")
    counting = asyncio.create_task(count_turns())
    async with Writer(db, max_rows=n_rows) as writer:
        if kind == "columns":
            columns = {name: [getattr(row, name) for row in rows] for name in BOOK_TICKERS.column_names}
            await writer.add_columns(BOOK_TICKERS, columns | {"bid_price": [-1] * n_rows})
        else:
            await writer.add_many(BOOK_TICKERS, rows)
    counting.cancel()
    assert writer.counts[BOOK_TICKERS.name].n_quarantined == n_rows
    assert at_once.total() == n_rows * (1 if kind == "columns" else 2)
    assert max(at_once.values()) <= 32


class Leg(Row, kw_only=True):
    timestamp: EventTime
    number: Annotated[int, Sql(type="int8")]
    symbol_id: Id4
    other_id: Annotated[int | None, Sql(type="int8")]
    exchange_id: Annotated[int | None, Sql(type="int2")]


LEGS = Table("legs", Leg, key=("number", "timestamp"))
