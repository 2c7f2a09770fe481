"""The programs of docs/adapters.md run as they stand; only the venue's end of the line is ours."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from pgtick.config import DatabaseConfig

TESTS = Path(__file__).resolve().parent
PROGRAMS = dict(
    zip(
        ("cryptofeed", "ccxt"),
        re.findall(r"```python\n(.*?)```", (TESTS.parent / "docs" / "adapters.md").read_text("utf-8"), re.DOTALL),
        strict=True,
    )
)
# The venue sends two events and the user presses Ctrl-C.
# A background job of a shell inherits an ignored SIGINT, and so would these programs.
VENUES = {
    "cryptofeed": """
import asyncio, json, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from cryptofeed import FeedHandler
from cryptofeed.symbols import Symbols

Symbols.set("BINANCE", {"BTC-USDT": "BTCUSDT"}, {"tick_size": {}, "instrument_type": {}})

def run(self, **_):
    async def send():
        (feed,) = self.feeds
        for n in (1, 2):
            trade = {"e": "aggTrade", "E": 1700000000123, "s": "BTCUSDT", "a": n, "p": "97000.10", "q": "1.50",
                     "f": 1, "l": 1, "T": 1700000000123, "m": True, "M": True}
            await feed.message_handler(json.dumps({"stream": "btcusdt@aggTrade", "data": trade}), None, 1700000000.2)
        os.kill(os.getpid(), signal.SIGINT)
    self.sending = asyncio.get_running_loop().create_task(send())

FeedHandler.run = run
""",
    "ccxt": """
import asyncio, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import ccxt.pro
from ccxt_venues import BINANCE_MARKETS

class Binance(ccxt.pro.binance):
    sent = 0

    async def load_markets(self, *_, **__):
        self.options.update(crossMarginPairsData=[], isolatedMarginPairsData=[])
        self.set_markets([self.parse_market(raw) for raw in BINANCE_MARKETS])

    async def watch_order_book(self, symbol, *_, **__):
        self.sent += 1
        if self.sent > 2:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        raw = {"bids": [["97000.10", str(self.sent)]], "asks": [["97000.20", "1"]]}
        return self.parse_order_book(raw, symbol, 1700000000123)

ccxt.pro.binance = Binance
""",
}
TABLES = {"cryptofeed": "trade_snapshots", "ccxt": "book_ticker_snapshots"}


@pytest.mark.parametrize("library", PROGRAMS)
async def test_program_of_the_docs_stores_what_came_before_ctrl_c(
    config: DatabaseConfig, library: str, tmp_path: Path
) -> None:
    pytest.importorskip(library, reason=f"the extra {library} is not installed")
    environment = {**os.environ, "PGTICK_DSN": config.to_dsn(with_password=True), "PYTHONPATH": str(TESTS)}
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", VENUES[library] + PROGRAMS[library]],
        env=environment,
        cwd=tmp_path,  # cryptofeed writes its log where it runs
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stderr.strip().splitlines()[-1] == "KeyboardInterrupt", ran.stderr
    connection = await asyncpg.connect(**config.connect_kwargs())
    try:
        assert await connection.fetchval(f"SELECT count(*) FROM {TABLES[library]}") == 2
    finally:
        await connection.close()
