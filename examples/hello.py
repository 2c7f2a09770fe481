"""Store a book ticker and read it back: the README's program."""

import asyncio
from datetime import UTC, datetime

from pgtick import BookTickerSnapshot, cached_get_symbol, initialize_database
from pgtick.embedded import start_embedded
from pgtick.operations.book_ticker import get_latest_book_ticker_by_symbol, insert_book_ticker_batch
from pgtick.operations.symbols import resolve_symbol


async def main() -> None:
    with start_embedded() as server:  # or: initialize_database() with POSTGRES_* set
        await server.create_database("hello")
        db = await initialize_database(server.config("hello"))  # applies pending migrations
        btc = await resolve_symbol("GATEIO_SPOT", "BTC", "USDT", "BTC_USDT")  # registers it when it is new
        row = BookTickerSnapshot(
            timestamp=datetime.now(UTC), symbol_id=btc.id, bid_price="97000.10", ask_price="97000.20"
        )
        print(await insert_book_ticker_batch([row]), "stored")
        print(cached_get_symbol("GATEIO_SPOT", "BTC", "USDT"))  # memory only, tens of nanoseconds
        print(await get_latest_book_ticker_by_symbol(btc.id))
        await db.close()


asyncio.run(main())
