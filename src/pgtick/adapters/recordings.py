"""Play recordings of cryptofeed's raw-data collection through its real parsers into the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import asyncpg

from pgtick.adapters.cryptofeed import CryptofeedStore
from pgtick.errors import ConfigError, PgtickError

__all__ = ["replay_recordings"]


async def replay_recordings(
    feeds: Mapping[str, Sequence[str]],
    *,
    store: CryptofeedStore | None = None,
    on_feed: Callable[[str], object] = lambda feed: None,
) -> CryptofeedStore:
    """Store the recordings, ``{feed id: its files}``, one feed after the other; return the store, flushed.

    Raises ConfigError for files without a configuration line, PgtickError for those that cryptofeed's parsers
    refuse. While it runs, cryptofeed's HTTP connections read from the recordings: no live feed beside it.
    """
    try:
        from cryptofeed.raw_data_collection import _playback
    except ImportError as error:
        raise ConfigError("replay", "needs cryptofeed: pip install 'pgtick[cryptofeed]'") from error
    store = store or CryptofeedStore(recorded=True)
    for feed, files in feeds.items():
        callbacks = store.callbacks()
        subscribed = await asyncio.to_thread(_channels, files)
        wanted = {channel: callbacks[channel] for channel in subscribed if channel in callbacks}
        try:
            with _own_instruments(feed):
                # playback() is asyncio.run(_playback()), which cannot be called inside a loop.
                await _playback(feed, sorted(files), wanted, "config.yaml")
        except (PgtickError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            raise
        except Exception as error:  # a parser of cryptofeed's may raise anything
            raise PgtickError(f"{feed}: the recording cannot be played: {type(error).__name__}: {error}") from error
        on_feed(feed)
    await store.writer.flush()
    return store


@contextmanager
def _own_instruments(feed: str) -> Iterator[None]:
    """Let the feed take its instruments from the recording; put back what cryptofeed knew and patched."""
    from cryptofeed.connection import HTTPAsyncConn, HTTPSync
    from cryptofeed.symbols import Symbols

    known = Symbols.data.pop(feed, None)
    reads = HTTPAsyncConn.read, HTTPSync.read
    try:
        yield
    finally:
        # After an error playback leaves its own in place.
        HTTPAsyncConn.read, HTTPSync.read = reads
        Symbols.data.pop(feed, None)
        if known is not None:
            Symbols.data[feed] = known


def _channels(files: Sequence[str]) -> list[str]:
    for name in files:
        with open(name, encoding="utf-8") as file:
            for line in file:
                if line.startswith("configuration: "):
                    return list(json.loads(line.split(": ", 1)[1]))
    raise ConfigError("replay", f"no line 'configuration: …' in {', '.join(files)}")
