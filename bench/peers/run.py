"""The whole comparison, in order, on one server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from peers import costs, latency
from peers.data import make_batches
from peers.ladder import climb, copy_bytes, ways_of_a_batch
from peers.lookups import compare_lookups
from peers.measure import Rounds
from peers.reading import compare_reading, peak_memory
from peers.schema import DEFAULT, clear, make_tables
from peers.server import describe
from peers.writing import compare_writing
from pgtick.connection import DatabaseManager

__all__ = ["Ladder", "Results", "Size", "compare", "compare_ladder"]

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Size:
    """How much is done; the defaults are the full run."""

    n_rows: int = 50_000
    batch_rows: int = 10_000
    n_symbols: int = 500
    rounds: int = 7
    read_rows: int = 500_000
    read_rounds: int = 5
    turns: int = 300
    encode_sizes: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    symbol_counts: tuple[int, ...] = (10, 1_000, 100_000)
    ways: tuple[tuple[int, int], ...] = (
        (100, 5_000),
        (1_000, 30_000),
        (5_000, 50_000),
        (10_000, 100_000),
        (200_000,) * 2,
    )


QUICK = Size(
    n_rows=4_000,
    batch_rows=1_000,
    rounds=2,
    read_rows=5_000,
    read_rounds=2,
    turns=10,
    encode_sizes=(1_000, 10_000),
    symbol_counts=(10, 1_000),
    ways=((100, 1_000), (1_000, 4_000)),
)


@dataclass
class Results:
    """Everything that was measured, and what it depends on."""

    size: Size
    facts: dict[str, str]
    writing: Rounds
    reading: Rounds
    memory: dict[str, float]
    lookups: Rounds
    lookups_by_size: dict[int, Rounds]
    batch: dict[str, latency.Latency]
    held: dict[str, latency.Latency]
    latest: dict[str, latency.Latency]
    planning: tuple[float, int]
    encoding: Rounds
    encode_by_size: dict[tuple[int, int], tuple[float, float]]
    imports: Rounds
    disk: dict[str, float]
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class Ladder:
    """The server's part: the steps, and by rows a batch the ways to send one."""

    size: Size
    facts: dict[str, str]
    steps: Rounds
    ways: dict[int, Rounds]
    sorting: dict[int, tuple[float, float]]


async def compare(db: DatabaseManager, size: Size, progress: Progress) -> Results:
    """Run everything; the database is a new one."""
    batches = make_batches(size.n_rows, size.batch_rows, size.n_symbols)
    await make_tables(db, batches[0])
    progress("encoding")
    encoding = await costs.compare_encoding(batches[0], size.rounds)
    imports = await costs.compare_imports(2 * size.rounds)
    progress("look-ups")
    lookups = await compare_lookups(5_000, size.rounds)
    writing = await compare_writing(db, batches, size.rounds, lambda name: progress(f"writing: {name}"))
    progress("bytes on disk")
    disk = await costs.bytes_a_row(db, batches)
    progress("100-row batches")
    batch, skipped = await latency.batch_latency(db, size.turns)
    progress("how long the loop is held")
    held, _ = await latency.loop_held(db, size.turns)
    progress("the newest row")
    latest, skipped_latest = await latency.latest_latency(db, size.n_symbols, size.turns)
    planning = await latency.planning_ms(db)
    await clear(db, DEFAULT)
    await copy_bytes(db, DEFAULT, make_batches(size.read_rows, 10_000, size.n_symbols))
    await db.execute(f"VACUUM ANALYZE {DEFAULT}")
    reading = await compare_reading(db, size.read_rows, size.read_rounds, lambda name: progress(f"reading: {name}"))
    progress("memory of the readers")
    memory = peak_memory(db, list(reading.samples), size.read_rows)
    progress("how cost grows")
    return Results(
        size=size,
        facts=await describe(db),
        writing=writing,
        reading=reading,
        memory=memory,
        lookups=lookups,
        lookups_by_size=await costs.lookups_by_size(size.symbol_counts, 3),
        batch=batch,
        held=held,
        latest=latest,
        planning=planning,
        encoding=encoding,
        encode_by_size=costs.encode_by_size(size.encode_sizes, size.symbol_counts),
        imports=imports,
        disk=disk,
        skipped=skipped | skipped_latest,
    )


async def compare_ladder(db: DatabaseManager, size: Size, progress: Progress) -> Ladder:
    """Run what shows the server's part; the database is a new one."""
    batches = make_batches(size.n_rows, size.batch_rows, size.n_symbols)
    await make_tables(db, batches[0])
    progress("the steps of the ladder")
    steps = await climb(db, batches, size.rounds)
    ways = {}
    for batch_rows, n_rows in size.ways:
        progress(f"ways of {batch_rows}-row batches")
        ways[batch_rows] = await ways_of_a_batch(db, n_rows, batch_rows, size.n_symbols, size.rounds)
    return Ladder(size, await describe(db), steps, ways, costs.sorting_by_size(ways, size.n_symbols))
