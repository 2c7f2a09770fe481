"""The targets P1 to P12: what was asked for, what this run measured, and whether it is met."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from peers import costs, latency, lookups, readers, writers
from peers.run import Results
from peers.schema import DEFAULT, GUIDE
from peers.writing import case_name

__all__ = ["judge"]

Row = tuple[str, str, str, str]

_PGTICK_DEFAULT = case_name("default", writers.PGTICK)


def judge(results: Results) -> list[Row]:
    """Return (number, target, measured, met or not) of each; what cannot be measured says why."""
    rows = []
    for number, target, measure in _TARGETS:
        try:
            measured, met = measure(results)
        except KeyError as error:
            reasons = results.reading.skipped | results.writing.skipped | results.encoding.skipped | results.skipped
            name = str(error.args[0])
            rows.append((number, target, f"{name} is missing ({reasons.get(name, 'not measured')})", "not measured"))
            continue
        rows.append((number, target, measured, "met" if met else "**not met**"))
    return rows


Measure = Callable[[Results], tuple[str, bool]]


def _by_id(results: Results) -> tuple[str, bool]:
    ratio = 1 / results.lookups.speed(lookups.BY_ID, "dict.get(id)")
    ns = results.lookups.seconds(lookups.BY_ID) / lookups.N_LOOKUPS * 1e9
    return f"{ratio:.2f} × dict.get, {ns:.0f} ns", ratio <= 0.7 and ns < 60


def _by_names(results: Results) -> tuple[str, bool]:
    figures = results.lookups
    pairs = ((lookups.BY_NAMES, "dict[exchange, base, quote]"), (lookups.BY_VENUE, "dict[exchange, name]"))
    ratios = [1 / figures.speed(ours, theirs) for ours, theirs in pairs]
    times = [figures.seconds(ours) / lookups.N_LOOKUPS * 1e9 for ours, _ in pairs]
    text = "; ".join(f"{ratio:.2f} ×, {ns:.0f} ns" for ratio, ns in zip(ratios, times, strict=True))
    return text, max(ratios) <= 0.6 and max(times) < 100


def _against_memcpy(results: Results) -> tuple[str, bool]:
    figures = results.encoding
    warm = 1 / figures.speed(costs.ENCODE, costs.MEMCPY)
    cold = 1 / figures.speed(costs.ENCODE, costs.MEMCPY_COLD)
    return f"{warm:.0f} × in the caches, {cold:.0f} × beyond them", warm <= 10


def _client_cpu(peer: str, least: float) -> Measure:
    def measure(results: Results) -> tuple[str, bool]:
        # What the peer adds to the bytes' own way to the socket, beside what encoding costs here.
        limit = results.writing.cpu_us(case_name("bare", writers.LIMIT))
        added = results.writing.cpu_us(case_name("bare", peer)) - limit
        ratio = added / results.encoding.cpu_us(costs.ENCODE)
        return f"{ratio:.1f} × ({added:.2f} µs a row)", ratio >= least

    return measure


def _pgpq_cpu(results: Results) -> tuple[str, bool]:
    ratio = results.encoding.speed(costs.ENCODE, costs.PGPQ_ENCODE)
    return f"{ratio:.2f} × (encoding alone)", ratio >= 2.5


def _of_limit(results: Results) -> tuple[str, bool]:
    ratio = results.writing.speed(_PGTICK_DEFAULT, case_name("default", writers.LIMIT))
    return f"{ratio:.2f} (noise of the limit {results.writing.noise(case_name('default', writers.LIMIT)):.0%})", (
        ratio >= 0.95
    )


def _whole_system(peer: str, least: float) -> Measure:
    def measure(results: Results) -> tuple[str, bool]:
        ratio = results.writing.speed(_PGTICK_DEFAULT, peer)
        return f"{ratio:.2f} ×", ratio >= least

    return measure


def _batch(results: Results) -> tuple[str, bool]:
    ours, limit = results.batch[writers.PGTICK].p50, results.batch[writers.LIMIT].p50
    return f"{ours / limit:.2f} ×, {ours * 1e3:.2f} ms", ours <= 1.15 * limit and ours < 0.005


def _held(results: Results) -> tuple[str, bool]:
    held = results.held[writers.PGTICK].p50
    limit, idle = results.held[writers.LIMIT].p50, results.held[latency.NOTHING].p50
    text = f"{held * 1e6:.0f} µs (finished bytes through asyncpg: {limit * 1e6:.0f}; an idle loop: {idle * 1e6:.0f})"
    return text, held < 50e-6


def _read(ours: str, peer: str, least: float) -> Measure:
    def measure(results: Results) -> tuple[str, bool]:
        ratio = results.reading.speed(ours, peer)
        return f"{ratio:.2f} ×", ratio >= least

    return measure


def _read_memory(results: Results) -> tuple[str, bool]:
    ratio = results.memory[readers.PGTICK_NUMPY]
    return f"{ratio:.2f} ×", ratio <= 1.2


def _latest(results: Results) -> tuple[str, bool]:
    ratio = results.latest[latency.PGTICK_LATEST].p50 / results.latest[latency.PREPARED].p50
    ms, partitions = results.planning
    return f"{ratio:.2f} ×; planned in {ms:.2f} ms over {partitions} partitions", ratio <= 1.1 and ms < 1


def _imports(results: Results) -> tuple[str, bool]:
    ratio = 1 / results.imports.speed(costs.IMPORT_PGTICK, costs.IMPORT_LIMIT)
    return f"{ratio:.2f} ×, {results.imports.seconds(costs.IMPORT_PGTICK) * 1e3:.0f} ms", ratio <= 1.2


def _disk(results: Results) -> tuple[str, bool]:
    ours, guide = results.disk[DEFAULT], results.disk[GUIDE]
    return f"{ours / guide:.2f} ({ours:.0f} B against {guide:.0f} B)", ours <= 0.65 * guide


def _growth(results: Results) -> tuple[str, bool]:
    once = [one for one, _ in results.encode_by_size.values()]
    pieces = [piece for _, piece in results.encode_by_size.values()]
    by_id = [rounds.seconds(lookups.BY_ID) for rounds in results.lookups_by_size.values()]
    growth = max(pieces) / min(pieces)
    return (
        f"most / least a row up to {max(n for n, _ in results.encode_by_size):,} rows: "
        f"{growth:.2f} in batches, {max(once) / min(once):.2f} in one call; "
        f"look-up by id {max(by_id) / min(by_id):.2f}",
        growth <= 1.5,
    )


def _rows() -> Iterator[tuple[str, str, Measure]]:
    guide = [case_name("guide", kind.name) for kind in writers.ASYNCPG]
    yield "P1", "id to symbol: at most 0.7 × dict.get, under 60 ns", _by_id
    yield "P2", "names to symbol (two ways): at most 0.6 × a tuple-keyed dict, under 100 ns", _by_names
    yield "P3", "encode Structs with float prices: at most 10 × memcpy of the bytes", _against_memcpy
    yield "P3", "client CPU: psycopg C takes at least 50 × more", _client_cpu(writers.Psycopg.name, 50)
    yield (
        "P3",
        "client CPU: asyncpg (Decimals) takes at least 100 × more",
        _client_cpu(writers.AsyncpgDecimals.name, 100),
    )
    yield "P3", "client CPU: pgpq takes at least 2.5 × more", _pgpq_cpu
    yield "P4", "10,000-row batches into the default table: at least 0.95 of the limit", _of_limit
    yield "P5", "default schema, pgtick: at least 6 × the guide's with asyncpg floats", _whole_system(guide[1], 6)
    yield "P5", "at least 3.5 × the guide's with asyncpg Decimals", _whole_system(guide[0], 3.5)
    yield "P5", "at least 7 × the guide's with executemany", _whole_system(guide[2], 7)
    yield "P5", "at least 10 × cryptofeed's backend", _whole_system(writers.CryptofeedBackend.name, 10)
    yield "P6", "100-row batch, p50: at most 1.15 × the limit's, under 5 ms", _batch
    yield "P7", "event loop held by a 100-row batch: under 50 µs", _held
    yield "P8", "read to NumPy: at least 0.9 of the drained limit", _read(readers.PGTICK_NUMPY, readers.LIMIT, 0.9)
    yield "P8", "at least 2 × ConnectorX", _read(readers.PGTICK_NUMPY, readers.ConnectorX.name, 2)
    yield "P8", "at least 3 × ADBC", _read(readers.PGTICK_NUMPY, readers.Adbc.name, 3)
    yield "P8", "at least 7 × asyncpg", _read(readers.PGTICK_NUMPY, readers.AsyncpgFetch.name, 7)
    yield "P8", "memory at most 1.2 × the result", _read_memory
    yield "P9", "newest row, p50: at most 1.1 × asyncpg prepared; planned in under 1 ms at full retention", _latest
    yield "P10", "import pgtick: at most 1.2 × import asyncpg, msgspec", _imports
    yield "P11", "bytes on disk a row: at most 0.65 of the guide's, plain", _disk
    yield "P12", "cost a row flat (at most 1.5 ×) as rows and symbols grow", _growth


_TARGETS = tuple(_rows())
