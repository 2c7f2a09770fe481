"""F10: a task is cancelled at each of its awaits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rows import settled

from faults.support import assert_adds_up, assert_stored, managed, record, seeds, ticker_of, tickers_of, until
from pgtick.config import DatabaseConfig
from pgtick.connection import DatabaseManager
from pgtick.tables import BOOK_TICKERS
from pgtick.writer import Writer, store_rows
from pgtick.writer.batch import Batch
from pgtick.writer.deliver import Way, deliver
from pgtick.writer.encoders import encoder_of

N_ROWS = 60
MOST_AWAITS = 25  # a delivery the careful way has about so many
TABLE = BOOK_TICKERS.name


class Cancelled:
    """Await it in place of ``work``: its task is cancelled while it waits at the n-th await."""

    def __init__(self, work: Awaitable[Any], n: int) -> None:
        self.work = work
        self.n = n
        self.was_reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self.work.__await__()
        task = asyncio.current_task()
        assert task is not None
        value: Any = None
        error: BaseException | None = None
        at = 0
        while True:
            try:
                waited_for = steps.send(value) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            if at == self.n:
                self.was_reached = True
                asyncio.get_running_loop().call_soon(task.cancel)
            at += 1
            value, error = None, None
            try:
                value = yield waited_for
            except BaseException as raised:
                error = raised


async def cancel(work: Callable[[], Awaitable[Any]], n: int) -> bool:
    """Run the work in a task that is cancelled at its n-th await; return whether it came so far."""
    cancelled = Cancelled(work(), n)

    async def run() -> None:
        await cancelled

    task = asyncio.create_task(run())
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return cancelled.was_reached


class Round:
    """One seed: numbers of its own, a way, and the await at which it is cancelled."""

    def __init__(self, config: DatabaseConfig, db: DatabaseManager, seed: int, n: int, spool: Path) -> None:
        self.config = config
        self.db = db
        self.seed = seed
        self.chance = random.Random(seed)
        self.numbers = range(n * N_ROWS, (n + 1) * N_ROWS)
        self.spool = spool
        self.at = 0

    async def run(self) -> None:
        way = self.chance.choice(WAYS)
        self.at = self.chance.randrange(MOST_AWAITS)
        await way(self)
        await self.judge(way.__name__)

    async def judge(self, way: str) -> None:
        told = f"seed {self.seed}, {way} cancelled at await {self.at}"
        state = self.db.pool_state
        await until(lambda: state()["idle"] == state()["size"], f"{told}: the pool is full again: {state()}", 10)
        await assert_stored(self.config, self.numbers, seed=self.seed, only=self.numbers)

    async def straight(self, way: Way = Way.STRAIGHT) -> None:
        batch = Batch(BOOK_TICKERS, encoder_of(BOOK_TICKERS).encode(tickers_of(self.numbers)))
        await cancel(lambda: deliver(self.db, batch, way=way), self.at)
        await self._all_or_nothing()
        assert (await deliver(self.db, batch)).n_stored == N_ROWS

    async def sifted(self) -> None:
        await self.straight(Way.SIFTED)

    async def careful(self) -> None:
        await self.straight(Way.CAREFUL)

    async def again(self) -> None:
        """Sent again under its id while the server may still work on the first attempt, or not have begun with it."""
        batch = Batch(BOOK_TICKERS, encoder_of(BOOK_TICKERS).encode(tickers_of(self.numbers)))
        await cancel(lambda: deliver(self.db, batch), self.at)
        assert (await deliver(self.db, batch)).n_stored == N_ROWS
        await settled(self.db)

    async def at_once(self) -> None:
        await cancel(lambda: store_rows(BOOK_TICKERS, tickers_of(self.numbers), db=self.db), self.at)
        if not await self._all_or_nothing():
            assert (await store_rows(BOOK_TICKERS, tickers_of(self.numbers), db=self.db)).n_stored == N_ROWS

    async def _all_or_nothing(self) -> bool:
        """Return whether the batch was stored, after what is still on its way has ended."""
        await settled(self.db)
        query = f"SELECT count(*) FROM {TABLE} WHERE sequence_number >= $1 AND sequence_number < $2"
        n_stored = await self.db.fetchval(query, self.numbers.start, self.numbers.stop)
        assert n_stored in (0, N_ROWS), f"seed {self.seed}: {n_stored} rows of a batch"
        return bool(n_stored)

    async def flush(self) -> None:
        writer = Writer(self.db, max_age_s=60, spool=self.spool)
        await writer.add_many(BOOK_TICKERS, tickers_of(self.numbers))
        await cancel(writer.flush, self.at)
        assert_adds_up(writer, seed=self.seed)
        await writer.close()
        assert_adds_up(writer, seed=self.seed)

    async def add(self) -> None:
        """A cancelled add has accepted its row, or not: the count tells."""
        writer = Writer(self.db, max_rows=20, max_bytes=24_000, max_age_s=0.01, spool=False)
        for number in self.numbers:
            while writer.n_accepted <= number - self.numbers.start:
                await cancel(lambda number=number: writer.add(BOOK_TICKERS, ticker_of(number)), self.at)  # type: ignore[misc]
        await writer.close()
        assert_adds_up(writer, seed=self.seed)
        assert writer.counts[TABLE].n_stored == N_ROWS, f"seed {self.seed}: {writer.counts}"

    async def close(self) -> None:
        """Cancelled while it sends or spools: the next start finds the rest, and the ledger what is in both."""
        first = Writer(self.db, max_rows=20, max_age_s=60, spool=self.spool)
        await first.add_many(BOOK_TICKERS, tickers_of(self.numbers))
        await cancel(first.close, self.at)
        if first.n_waiting:
            await first.close()
        assert_adds_up(first, seed=self.seed)
        async with Writer(self.db, spool=self.spool) as second:
            await until(
                lambda: not any(counts.n_spooled for counts in second.counts.values()),
                f"seed {self.seed}: the spool is empty",
            )
        assert_adds_up(second, seed=self.seed)
        n_stored = first.counts[TABLE].n_stored + (second.counts[TABLE].n_stored if TABLE in second.counts else 0)
        assert n_stored == N_ROWS, f"seed {self.seed}, await {self.at}: {first.counts}, {second.counts}"


WAYS = (Round.straight, Round.sifted, Round.careful, Round.again, Round.at_once, Round.flush, Round.add, Round.close)


async def cancel_often(config: DatabaseConfig, n_rounds: int, spool: Path) -> None:
    async with managed(msgspec.structs.replace(config, max_connections=4)) as db:
        await deliver(db, Batch(BOOK_TICKERS, encoder_of(BOOK_TICKERS).encode([])))  # the engine is known from now on
        for n, seed in enumerate(seeds(n_rounds)):
            await Round(config, db, seed, n, spool / str(n)).run()
            if n % 50 == 0:
                gc.collect()
        assert db.pool_state()["idle"] == db.pool_state()["size"]


async def test_cancelled_at_any_await_leaves_the_pool_full_and_no_half_batch(
    keyless: DatabaseConfig, tmp_path: Path, loop_errors: list[str]
) -> None:
    await cancel_often(keyless, 60, tmp_path)
    assert loop_errors == []


async def test_cancelled_at_each_await_of_a_delivery_in_turn_stores_all_or_nothing(
    keyless: DatabaseConfig, tmp_path: Path
) -> None:
    async with managed(keyless) as db:
        for n, way in enumerate([way for way in Way for _ in range(40)]):
            one = Round(keyless, db, n, n, tmp_path)
            one.at = n % 40
            await one.straight(way)
            await one.judge("deliver")


@pytest.mark.slow
async def test_1000_cancellations_leave_the_pool_full_and_no_half_batch(
    keyless: DatabaseConfig, tmp_path: Path, loop_errors: list[str]
) -> None:
    await cancel_often(keyless, 1000, tmp_path)
    assert loop_errors == []
    record("F10", "1,000 seeds", "pool full, no partial batch, no unretrieved exception; 0 lost, 0 doubled")
