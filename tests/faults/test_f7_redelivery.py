"""F7: every batch is delivered three times, shuffled, by four writers at once."""

from __future__ import annotations

import asyncio
import random

import pytest

from faults.support import assert_adds_up, assert_stored, managed, record, seeds, tickers_of
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer
from pgtick.writer.batch import Batch
from pgtick.writer.deliver import Delivery, deliver
from pgtick.writer.encoders import encoder_of
from pgtick.writer.faults import Fault, fault_of

N_WRITERS = 4
TIMES = 3
ROWS_A_BATCH = 500


def shuffled(n_batches: int, seed: int) -> list[list[int]]:
    """Return for each writer the numbers of the batches that it delivers: each three times, by whichever writer."""
    chance = random.Random(seed)
    deliveries = [n for n in range(n_batches) for _ in range(TIMES)]
    chance.shuffle(deliveries)
    return [deliveries[n::N_WRITERS] for n in range(N_WRITERS)]


def numbers_of(batch: int) -> range:
    return range(batch * ROWS_A_BATCH, (batch + 1) * ROWS_A_BATCH)


async def until_done(db: DatabaseManager, batch: Batch) -> Delivery:
    """Deliver the batch; where another delivery of it ended this one's connection, do it again, as a Writer does."""
    while True:
        try:
            return await deliver(db, batch)
        except Exception as error:
            if fault_of(error) is not Fault.RETRY:
                raise


async def redeliver_batches(config: DatabaseConfig, n_batches: int, seed: int) -> None:
    """The ledger tells the deliveries of one batch apart, even in a table without a key."""
    encoder = encoder_of(BOOK_TICKERS)
    batches = [Batch(BOOK_TICKERS, encoder.encode(tickers_of(numbers_of(n)))) for n in range(n_batches)]

    async def send(db: DatabaseManager, numbers: list[int]) -> list[Delivery]:
        return [await until_done(db, batches[n]) for n in numbers]

    async with managed(config) as one, managed(config) as two, managed(config) as three, managed(config) as four:
        managers = (one, two, three, four)
        sent = await asyncio.gather(*(send(*pair) for pair in zip(managers, shuffled(n_batches, seed), strict=True)))
    deliveries = [delivery for some in sent for delivery in some]
    first = [delivery for delivery in deliveries if not delivery.was_committed]
    assert len(deliveries) == TIMES * n_batches, f"seed {seed}"
    assert len(first) == n_batches, f"seed {seed}"
    assert all((d.n_stored, d.n_duplicates) == (ROWS_A_BATCH, 0) for d in deliveries), f"seed {seed}"
    await assert_stored(config, range(n_batches * ROWS_A_BATCH), seed=seed)


async def redeliver_rows(config: DatabaseConfig, n_batches: int, seed: int) -> None:
    """The key tells rows apart that are handed over again, in other batches."""

    async def send(writer: Writer, numbers: list[int]) -> None:
        for n in numbers:
            await writer.add_many(BOOK_TICKERS, tickers_of(numbers_of(n)))
        await writer.close()

    async with managed(config) as db:
        writers = [Writer(db, max_rows=700, spool=False) for _ in range(N_WRITERS)]
        await asyncio.gather(*(send(*pair) for pair in zip(writers, shuffled(n_batches, seed), strict=True)))
    assert_adds_up(*writers, seed=seed)
    counts = [writer.counts[BOOK_TICKERS.name] for writer in writers]
    n_unique = n_batches * ROWS_A_BATCH
    assert sum(one.n_stored for one in counts) == n_unique, f"seed {seed}: {counts}"
    assert sum(one.n_stored + one.n_duplicates for one in counts) == TIMES * n_unique, f"seed {seed}: {counts}"
    await assert_stored(config, range(n_unique), seed=seed)


async def test_batches_delivered_three_times_are_stored_once(keyless: DatabaseConfig) -> None:
    (seed,) = seeds(1)
    await redeliver_batches(keyless, 8, seed)


async def test_rows_delivered_three_times_are_stored_once_and_counted(keyed: DatabaseConfig) -> None:
    (seed,) = seeds(1)
    await redeliver_rows(keyed, 8, seed)


@pytest.mark.slow
async def test_200_batches_delivered_three_times_by_four_writers_are_stored_once(
    keyless: DatabaseConfig, keyed: DatabaseConfig
) -> None:
    (seed,) = seeds(1)
    await redeliver_batches(keyless, 200, seed)
    await redeliver_rows(keyed, 200, seed)
    record("F7", "200 batches x 3, 4 writers, by ledger and by key", "rows = unique keys; stored + duplicate = sent")
