"""The encoder's promise, held against the server: its bytes are those that the server makes of the value's text."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from pgtick._fast.batch import EncodedBatch
from pgtick._fast.encode import RowEncoder
from pgtick.connection import DatabaseManager
from pgtick.models import EventTime, Row, Sql
from pgtick.rules import ENCODED_TYPES
from pgtick.tables import Table

WHEN = datetime(2025, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
BATCH = 50_000


def table_of(type_: str) -> Table:
    """Return a table of a value, and of the text that the server is to read it from."""
    annotations = {
        "timestamp": EventTime,
        "text": Annotated[str, Sql(type="text")],
        "value": Annotated[Any, Sql(type=type_)],
    }
    model = type("Sent", (Row,), {"__annotations__": annotations, "__module__": __name__}, kw_only=True)
    return Table("sent", model, key=("timestamp",))


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


def numeric(rng: random.Random) -> tuple[str, object]:
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
    value = rng.choice(ADVERSARIAL) if rng.random() < 0.01 else random_float(rng)
    return repr(value).removesuffix(".0"), value


#: arrow-adbc's issues 3485 and 4507, and the ends of the range.
ADVERSARIAL = (44.123456, 5000000000.000001, 1e-12, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 2.5e-23, 1e22, 1e23)


def float4(rng: random.Random) -> tuple[str, object]:
    if rng.random() < 0.3:  # halfway between two
        value = struct.unpack(">f", struct.pack(">I", rng.randrange(0x01000000, 0x7E000000)))[0] * (1 + 2.0**-24)
    else:
        value = random_float(rng)
    if not 1e-37 < abs(value) < 3e38:
        value = 0.0
    return repr(value), value


def whole(bits: int) -> Callable[[random.Random], tuple[str, object]]:
    def draw(rng: random.Random) -> tuple[str, object]:
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        value = rng.choice([low, high, 0, -1]) if rng.random() < 0.1 else rng.randint(low, high)
        return str(value), value

    return draw


def instant(rng: random.Random) -> tuple[str, object]:
    value = datetime(2009, 1, 1, tzinfo=UTC) + timedelta(microseconds=rng.randrange(16 * 365 * 86_400_000_000))
    return value.isoformat(), value


def words(rng: random.Random) -> tuple[str, object]:
    text = "".join(rng.choices("aZ 人生K线'\"\\\t\n\U0001f600", k=rng.randrange(12)))
    return text, text


def day(rng: random.Random) -> tuple[str, object]:
    value = date.fromordinal(rng.choice([1, 3652059, 730120, rng.randint(1, 3652059)]))
    return value.isoformat(), value


def uuid(rng: random.Random) -> tuple[str, object]:
    value = UUID(int=rng.getrandbits(128))
    return str(value), rng.choice([value, str(value)])


def data(rng: random.Random) -> tuple[str, object]:
    value = rng.randbytes(rng.choice([0, 1, 5, 300]))
    return "\\x" + value.hex(), value


def document(rng: random.Random) -> tuple[str, object]:
    value = {words(rng)[0]: rng.choice([rng.uniform(-1e9, 1e9), rng.getrandbits(80), None, [words(rng)[0], True]])}
    return json.dumps(value, ensure_ascii=rng.random() < 0.5), value


def flag(rng: random.Random) -> tuple[str, object]:
    value = rng.random() < 0.5
    return str(value), value


def double(rng: random.Random) -> tuple[str, object]:
    value = random_float(rng)
    return repr(value), value


DRAW: dict[str, Callable[[random.Random], tuple[str, object]]] = {
    "bool": flag,
    "bytea": data,
    "date": day,
    "float4": float4,
    "float8": double,
    "int2": whole(16),
    "int4": whole(32),
    "int8": whole(64),
    "jsonb": document,
    "numeric": numeric,
    "text": words,
    "timestamptz": instant,
    "uuid": uuid,
    "varchar": words,
}
#: Functions that are not called after their type.
SEND = {name: f"{name}_send" for name in ("date", "jsonb", "numeric", "timestamptz", "uuid")}


@pytest.mark.parametrize("n", [200_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
async def test_bytes_are_what_the_server_makes_of_the_text(db: DatabaseManager, n: int) -> None:
    assert DRAW.keys() == ENCODED_TYPES
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    # Half of it are numbers, the rest is shared out.
    share = {type_: n // 2 if type_ == "numeric" else n // (2 * (len(DRAW) - 1)) + 1 for type_ in DRAW}
    async with db.acquire() as connection:
        for type_, draw in DRAW.items():
            send, table = SEND.get(type_, f"{type_}send"), table_of(type_)
            encoder = RowEncoder(table)
            await connection.execute(f"CREATE TEMP TABLE sent (timestamp timestamptz, text text, value {type_})")
            left = share[type_]
            while left > 0:
                pairs = [draw(rng) for _ in range(min(left, BATCH))]
                left -= len(pairs)
                batch = encoder.encode((WHEN, text, value) for text, value in pairs)
                assert batch.errors == [], seed
                await connection.copy_to_table(
                    "sent", source=stream(batch), columns=table.column_names, format="binary"
                )
                count, wrong = await connection.fetchrow(
                    f"SELECT count(*), array_agg(text) FILTER (WHERE {send}(value) <> {send}(text::{type_}) "
                    f"OR timestamp <> $1) FROM sent",
                    WHEN,
                )
                assert count == len(pairs)
                assert wrong is None, f"{type_}, seed {seed}: {wrong[:5]}"
                await connection.execute("TRUNCATE sent")
            await connection.execute("DROP TABLE sent")


NUMBERS = table_of("numeric")
BOUNDARIES = [
    "0.00", "-0", ".5", "5.", "1e131071", "9e131071", "9" * 131072, "1e-16383", "0e-16383", "123.45e131069",
    "1" + "0" * 131071 + "." + "0" * 16382 + "1", "0e1000000000", "0.00001e131076",
    "1e131072", "1e-16384", "0e-16384", "0." + "0" * 16384, "1234.5e131070", "1e1073741823", "0e1073741824",
    "0e-1073741823", "1e1000000000000000000000", "1e", ".", "", "1.2.3", "1e5.0",
]  # fmt: skip


async def test_the_bounds_are_the_server_s(db: DatabaseManager) -> None:
    for text in BOUNDARIES:
        batch = RowEncoder(NUMBERS).encode([(WHEN, "", text)])
        try:
            expected = await db.fetchval("SELECT numeric_send($1::text::numeric)", text)
        except (asyncpg.NumericValueOutOfRangeError, asyncpg.InvalidTextRepresentationError):
            assert [error.column for error in batch.errors] == ["value"], text[:30]
        else:
            assert b"".join(batch.chunks()).endswith(expected + b"\xff\xff"), text[:30]


async def test_raw_json_that_is_none_is_the_server_s_error(db: DatabaseManager) -> None:
    table = table_of("jsonb")
    batch = RowEncoder(table).encode([(WHEN, "", msgspec.Raw(b"{"))])
    async with db.acquire() as connection:
        await connection.execute("CREATE TEMP TABLE sent (timestamp timestamptz, text text, value jsonb)")
        with pytest.raises(asyncpg.InvalidTextRepresentationError):
            await connection.copy_to_table("sent", source=stream(batch), columns=table.column_names, format="binary")
        await connection.execute("DROP TABLE sent")
