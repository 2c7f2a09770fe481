"""The encoder's promise, held against the server: its bytes are those of numeric_send('...'::numeric)."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import asyncpg

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick.connection import DatabaseManager
from pgtick.models import EventTime, Row, Sql
from pgtick.tables import Table

WHEN = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


class Sent(Row, kw_only=True):
    """A number, and the text that the server is to read it from."""

    timestamp: EventTime
    text: Annotated[str, Sql(type="text")]
    number: Annotated[Any, Sql(type="numeric")]


SENT = Table("sent", Sent, key=("timestamp",))


async def stream(batch: EncodedBatch) -> AsyncIterator[bytes]:
    for chunk in batch.chunks():
        yield chunk


def random_text(rng: random.Random) -> str:
    def digits(most: int) -> str:
        return "".join(rng.choices(rng.choice(["0123456789", "00009"]), k=rng.randint(0, most)))

    most = rng.choice([3, 6, 12, 25, 60])
    text = digits(most)
    if rng.random() < 0.7:
        text += "." + digits(most)
    if not text.strip("."):
        text = "0" + text
    if rng.random() < 0.4:
        text += rng.choice("eE") + rng.choice(["", "-", "+"]) + str(rng.randint(0, rng.choice([3, 30, 400])))
    return rng.choice(["", "-", "+"]) + text


def random_float(rng: random.Random) -> float:
    kind = rng.randrange(4)
    if kind == 0:
        return round(rng.uniform(-1, 1) * 10.0 ** rng.randint(-8, 14), rng.randint(0, 14))
    if kind == 1:
        return rng.uniform(-1, 1) * 10.0 ** rng.randint(-30, 30)
    if kind == 2:
        return 2.0 ** rng.randint(-300, 1000) * rng.choice([1, 1 + 2**-52, 1 - 2**-53])
    (value,) = struct.unpack(">d", struct.pack(">Q", rng.getrandbits(63) % (0x7FF << 52)))
    return float(value)


def float_text(value: float) -> str:
    text = repr(value)
    return text[:-2] if text.endswith(".0") else text


def random_pair(rng: random.Random) -> tuple[str, object]:
    kind = rng.randrange(5)
    if kind == 0:
        text = random_text(rng)
        return text, text
    if kind == 1:
        text = random_text(rng)
        return text, text.encode()
    if kind == 2:
        number = Decimal(random_text(rng))
        return str(number), number
    if kind == 3:
        whole = rng.choice([-1, 1]) * rng.getrandbits(rng.choice([8, 31, 62, 63, 64, 65, 100, 400]))
        return str(whole), whole
    value = random_float(rng)
    return float_text(value), value


async def test_numbers_are_what_the_server_makes_of_their_text(db: DatabaseManager) -> None:
    rng = random.Random(20_250_301)
    pairs = [random_pair(rng) for _ in range(50_000)]
    pairs += [(repr(value), value) for value in (44.123456, 5000000000.000001, 1e-12, 5e-324, 1.7976931348623157e308)]
    batch = RowEncoder(SENT).encode((WHEN, text, value) for text, value in pairs)
    assert batch.errors == []
    async with db.acquire() as connection:
        await connection.execute("CREATE TEMP TABLE sent (timestamp timestamptz, text text, number numeric)")
        await connection.copy_to_table("sent", source=stream(batch), columns=SENT.column_names, format="binary")
        assert await connection.fetchval("SELECT count(*) FROM sent") == len(pairs)
        wrong = await connection.fetch(
            "SELECT text, number FROM sent WHERE numeric_send(number) <> numeric_send(text::numeric) LIMIT 5"
        )
        assert wrong == []
        assert await connection.fetchval("SELECT bool_and(timestamp = $1) FROM sent", WHEN)
        await connection.execute("DROP TABLE sent")


BOUNDARIES = [
    "0.00", "-0", ".5", "5.", "1e131071", "9e131071", "9" * 131072, "1e-16383", "0e-16383", "123.45e131069",
    "1" + "0" * 131071 + "." + "0" * 16382 + "1", "0e1000000000", "0.00001e131076",
    "1e131072", "1e-16384", "0e-16384", "0." + "0" * 16384, "1234.5e131070", "1e1073741823", "0e1073741824",
    "0e-1073741823", "1e1000000000000000000000", "1e", ".", "", "1.2.3", "1e5.0",
]  # fmt: skip


async def test_the_bounds_are_the_server_s(db: DatabaseManager) -> None:
    for text in BOUNDARIES:
        batch = RowEncoder(SENT).encode([(WHEN, "", text)])
        try:
            expected = await db.fetchval("SELECT numeric_send($1::text::numeric)", text)
        except (asyncpg.NumericValueOutOfRangeError, asyncpg.InvalidTextRepresentationError):
            assert [error.column for error in batch.errors] == ["number"], text[:30]
        else:
            assert b"".join(batch.chunks()).endswith(expected + b"\xff\xff"), text[:30]
