"""What every entity can do, on real servers: the same six operations, the same answers."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import msgspec
import pytest
from rows import ENTITIES, MINUTE, NOW, Entity, make_symbol

from pgtick.connection import DatabaseManager
from pgtick.errors import BatchError, ValidationError
from pgtick.operations import exchanges
from pgtick.operations.generic import LATEST_WINDOWS
from pgtick.tables import BUILT_IN_TABLES

pytestmark = pytest.mark.parametrize("entity", ENTITIES, ids=lambda entity: entity.name)
UNKNOWN = 999_999


@pytest.fixture
async def leading_id(db: DatabaseManager, entity: Entity) -> int:
    """The id that the entity's look-ups go by: a symbol's, or for balances the exchange's."""
    symbol_id = await make_symbol()
    return await exchanges.ensure_exchange("GATEIO_SPOT") if entity.name == "balance" else symbol_id


def written(entity: Entity, row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in entity.table.column_names}


def as_read(entity: Entity, row: Any, kind: type) -> dict[str, Any]:
    """Return what the row's written columns are when read back, numbers as ``kind``."""
    numbers = {column.name for column in entity.table.columns if column.type == "numeric"}
    return {
        name: kind(str(value)) if name in numbers and value is not None else value
        for name, value in written(entity, row).items()
    }


def test_every_built_in_table_has_its_operations(entity: Entity) -> None:
    assert {known.table for known in ENTITIES} == set(BUILT_IN_TABLES)
    for operation in ("insert", "insert_batch", "get_latest", "get_history", "get_info", "get_stats"):
        assert callable(getattr(entity, operation))


async def test_insert_returns_the_id_and_the_same_one_again(
    db: DatabaseManager, entity: Entity, leading_id: int
) -> None:
    row = entity.row(leading_id, 0)
    first = await entity.insert(row)
    assert await entity.insert(row) == first
    stored = await entity.get_latest(*entity.ids(leading_id))
    assert (first, getattr(stored, "id", None)) == ((stored.id,) * 2 if entity.table.has_id else (None, None))
    assert await db.fetchval(f"SELECT count(*) FROM {entity.table.name}") == 1


@pytest.mark.parametrize("decimals", [False, True])
async def test_latest_is_the_newest_row_exactly(entity: Entity, leading_id: int, decimals: bool) -> None:
    assert await entity.get_latest(*entity.ids(leading_id)) is None
    await entity.insert_batch([entity.row(leading_id, n) for n in (2, 0, 1)])
    latest = await entity.get_latest(*entity.ids(leading_id), decimals=decimals)
    assert written(entity, latest) == as_read(entity, entity.row(leading_id, 0), Decimal if decimals else float)
    assert latest.created_at.utcoffset() is not None


async def test_batch_returns_the_servers_count(db: DatabaseManager, entity: Entity, leading_id: int) -> None:
    rows = [entity.row(leading_id, n) for n in range(100)]
    assert await entity.insert_batch([]) == 0
    assert await entity.insert_batch(rows) == 100
    assert await entity.insert_batch(rows) == 0
    assert await entity.insert_batch([*rows, entity.row(leading_id, 100)]) == 1
    assert await db.fetchval(f"SELECT count(*) FROM {entity.table.name}") == 101


async def test_unknown_id_is_refused_and_harms_no_other_row(
    db: DatabaseManager, entity: Entity, leading_id: int
) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await entity.insert(entity.row(UNKNOWN, 0))
    with pytest.raises(BatchError) as caught:
        await entity.insert_batch([entity.row(UNKNOWN if n == 3 else leading_id, n) for n in range(7)])
    assert caught.value.n_stored == 6
    (error,) = caught.value.errors
    assert error.index == 3
    assert str(UNKNOWN) in str(error)
    assert await entity.get_latest(*entity.ids(UNKNOWN)) is None


async def test_history_is_half_open_ordered_and_limited(entity: Entity, leading_id: int) -> None:
    rows = [entity.row(leading_id, n) for n in range(5)]
    await entity.insert_batch(rows)

    async def times(start: datetime, end: datetime, **options: object) -> list[int]:
        found = await entity.get_history(*entity.ids(leading_id), start, end, **options)
        return [round((NOW - row.timestamp) / MINUTE) for row in found]

    assert await times(NOW - 3 * MINUTE, NOW) == [3, 2, 1]
    microsecond = timedelta(microseconds=1)
    assert await times(NOW - 3 * MINUTE + microsecond, NOW + microsecond) == [2, 1, 0]
    assert await times(NOW, NOW) == []
    assert await times(NOW, NOW - MINUTE) == []
    assert await times(NOW - 9 * MINUTE, NOW, limit=2) == [4, 3]
    assert await times(NOW - 9 * MINUTE, NOW, limit=0) == []


async def test_history_refuses_naive_instants_and_wrong_limits(entity: Entity, leading_id: int) -> None:
    naive: Any = datetime(2026, 1, 1)
    cases: list[tuple[Any, Any, Any, str]] = [
        (naive, NOW, None, "start"),
        (NOW, naive, None, "end"),
        (date(2026, 1, 1), NOW, None, "start"),
        (NOW, NOW, -1, "limit"),
        (NOW, NOW, True, "limit"),
        (NOW, NOW, "5", "limit"),
    ]
    for start, end, limit, named in cases:
        with pytest.raises(ValidationError) as caught:
            await entity.get_history(*entity.ids(leading_id), start, end, limit=limit)
        assert (caught.value.table, caught.value.column) == (entity.table.name, named)


async def test_info_names_the_newest_row(entity: Entity, leading_id: int) -> None:
    assert await entity.get_info(*entity.ids(leading_id)) is None
    await entity.insert_batch([entity.row(leading_id, n) for n in range(2)])
    info = await entity.get_info(*entity.ids(leading_id))
    assert info["entity"] == await entity.get_latest(*entity.ids(leading_id))
    if entity.name == "balance":
        assert (info["exchange"], info["display_name"]) == ("GATEIO_SPOT", "GATEIO_SPOT:USDT.E")
    else:
        assert (info["symbol"].id, info["display_name"]) == (leading_id, "GATEIO_SPOT:BTC/USDT")


async def test_stats_count_bound_and_average(entity: Entity, leading_id: int) -> None:
    unique = "unique_exchanges" if entity.name == "balance" else "unique_symbols"
    empty = await entity.get_stats()
    assert (empty["total_records"], empty[unique], empty["earliest_record"], empty["latest_record"]) == (
        0,
        0,
        None,
        None,
    )
    rows = [entity.row(leading_id, n) for n in range(4)]
    await entity.insert_batch(rows)
    stats = await entity.get_stats()
    assert (stats["total_records"], stats[unique], stats["earliest_record"], stats["latest_record"]) == (
        4,
        1,
        NOW - 3 * MINUTE,
        NOW,
    )
    if entity.average:
        assert empty[f"avg_{entity.average}"] is None
        assert stats[f"avg_{entity.average}"] == float(getattr(rows[0], entity.average))
    assert (await entity.get_stats(NOW - MINUTE))["total_records"] == 2
    with pytest.raises(ValidationError, match="since"):
        await entity.get_stats(datetime(2026, 1, 1))


async def test_latest_older_than_every_window_is_found_by_quick_plans(
    db: DatabaseManager, entity: Entity, leading_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = datetime(2021, 4, 22, 12, tzinfo=UTC)  # as recordings are
    assert old < NOW - LATEST_WINDOWS[-1]
    days = [msgspec.structs.replace(entity.row(leading_id, 0), timestamp=old - timedelta(days=n)) for n in range(14)]
    assert await entity.insert_batch(days) == 14
    asked: list[tuple[str, tuple[object, ...]]] = []
    fetchrow = db.fetchrow

    async def spy(query: str, *args: object, resets: bool = True) -> Any:
        asked.append((query, args))
        return await fetchrow(query, *args, resets=resets)

    monkeypatch.setattr(db, "fetchrow", spy)
    latest = await entity.get_latest(*entity.ids(leading_id))
    assert latest.timestamp == old
    assert len(asked) == len(LATEST_WINDOWS) + 1
    for query, args in asked:
        # The quickest of some: a busy machine makes a plan slow, nothing makes it quick.
        planned = [
            msgspec.json.decode(await db.fetchval(f"EXPLAIN (SUMMARY, FORMAT JSON) {query}", *args))[0]["Planning Time"]
            for _ in range(5)
        ]
        assert min(planned) < 5, query


async def test_everything_works_in_a_transaction_that_is_rolled_back(
    db: DatabaseManager, entity: Entity, leading_id: int
) -> None:
    class ChangedMyMindError(Exception):
        pass

    with pytest.raises(ChangedMyMindError):  # noqa: PT012  the error comes after the rows
        async with db.transaction():
            await entity.insert(entity.row(leading_id, 0))
            assert await entity.insert_batch([entity.row(leading_id, n) for n in range(5)]) == 4
            with pytest.raises(BatchError):
                await entity.insert_batch([entity.row(UNKNOWN, 5), entity.row(leading_id, 6)])
            assert (await entity.get_stats())["total_records"] == 6
            raise ChangedMyMindError
    assert (await entity.get_stats())["total_records"] == 0
