"""Play recordings of cryptofeed's raw-data collection through its real parsers into the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence

from pgtick.adapters.cryptofeed import CryptofeedStore
from pgtick.errors import ConfigError

__all__ = ["replay_recordings"]


async def replay_recordings(
    feeds: Mapping[str, Sequence[str]],
    *,
    store: CryptofeedStore | None = None,
    on_feed: Callable[[str], object] = lambda feed: None,
) -> CryptofeedStore:
    """Store the recordings, ``{feed id: its files}``, one feed after the other; return the store, flushed."""
    try:
        from cryptofeed.raw_data_collection import _playback
    except ImportError as error:
        raise ConfigError("replay", "needs cryptofeed: pip install 'pgtick[cryptofeed]'") from error
    store = store or CryptofeedStore(recorded=True)
    for feed, files in feeds.items():
        callbacks = store.callbacks()
        subscribed = await asyncio.to_thread(_channels, files)
        wanted = {channel: callbacks[channel] for channel in subscribed if channel in callbacks}
        # playback() is asyncio.run(_playback()), which cannot be called inside a loop.
        await _playback(feed, sorted(files), wanted, "config.yaml")
        on_feed(feed)
    await store.writer.flush()
    return store


def _channels(files: Sequence[str]) -> list[str]:
    for name in files:
        with open(name, encoding="utf-8") as file:
            for line in file:
                if line.startswith("configuration: "):
                    return list(json.loads(line.split(": ", 1)[1]))
    raise ConfigError("replay", f"no line 'configuration: …' in {', '.join(files)}")
