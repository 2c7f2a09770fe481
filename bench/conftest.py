"""What benches of the writer share: a clone of its own on an embedded server that syncs to disk as in production."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgtick.config import DatabaseConfig
from pgtick.embedded import start_embedded


@pytest.fixture(scope="module")
def embedded_clone() -> Iterator[DatabaseConfig]:
    with tempfile.TemporaryDirectory(prefix="pgtick", ignore_cleanup_errors=True) as folder:
        server = start_embedded(Path(folder) / "data")
        try:
            asyncio.run(server.create_database("pgtick_bench"))
            yield server.config("pgtick_bench")
        finally:
            server.stop()
