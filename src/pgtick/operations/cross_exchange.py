"""Queries across exchanges: newest prices, spreads now and over time, summaries.

All go by ids and joins. Two exchanges are never joined on equal timestamps, which finds almost nothing:
"now" takes each symbol's newest row, "over time" is an as-of join.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from pgtick.connection import get_db_manager
from pgtick.operations.generic import check_instant, check_limit
from pgtick.tables import BALANCES, BOOK_TICKERS, FUNDING_RATES

__all__ = [
    "get_balance_history_by_exchange",
    "get_cross_exchange_spreads",
    "get_funding_rate_counts",
    "get_latest_prices",
    "get_pair_summary",
    "get_spread_history",
]

# DISTINCT ON and no LATERAL … LIMIT, which Citus refuses.
_NEWEST = """
newest AS (
    SELECT DISTINCT ON (symbol_id) symbol_id, timestamp, bid_price, ask_price, bid_qty, ask_qty
    FROM book_ticker_snapshots
    WHERE timestamp > $1
    ORDER BY symbol_id, timestamp DESC, sequence_number DESC
), priced AS (
    SELECT n.*, s.symbol_base, s.symbol_quote, s.exchange_symbol, s.expiry, s.settle,
           e.id AS exchange_id, e.enum_value AS exchange
    FROM newest n
    JOIN symbols s ON s.id = n.symbol_id
    JOIN exchanges e ON e.id = s.exchange_id
)
"""


def _plain(records: Any, decimals: bool) -> list[dict[str, Any]]:
    return [
        {k: float(v) if isinstance(v, Decimal) and not decimals else v for k, v in record.items()} for record in records
    ]


async def get_latest_prices(
    since: datetime, *, base: str | None = None, quote: str | None = None, decimals: bool = False
) -> list[dict[str, Any]]:
    """Return each symbol's newest book ticker after ``since`` with its names, newest first."""
    check_instant(BOOK_TICKERS.name, "since", since)
    records = await get_db_manager().fetch(
        f"WITH {_NEWEST} SELECT * FROM priced WHERE ($2::text IS NULL OR symbol_base = $2) "
        "AND ($3::text IS NULL OR symbol_quote = $3) ORDER BY timestamp DESC, exchange, exchange_symbol",
        since,
        base,
        quote,
    )
    return _plain(records, decimals)


async def get_cross_exchange_spreads(
    since: datetime, *, limit: int = 10, max_skew: timedelta | None = None, decimals: bool = False
) -> list[dict[str, Any]]:
    """Return the widest spreads: buy at one exchange's ask, sell at another's bid, same base and quote.

    From each symbol's newest book ticker after ``since``; ``spread_bps`` is (bid - ask) / ask in basis points
    and may be negative; ``skew`` is the difference of the two instants, at most ``max_skew``. Dated contracts
    meet only their own expiry.
    """
    check_instant(BOOK_TICKERS.name, "since", since)
    check_limit(BOOK_TICKERS.name, limit)
    records = await get_db_manager().fetch(
        f"""WITH {_NEWEST}
        SELECT b.symbol_base, b.symbol_quote, b.exchange AS buy_exchange, s.exchange AS sell_exchange,
               b.symbol_id AS symbol_id, b.exchange_id AS buy_exchange_id, s.exchange_id AS sell_exchange_id,
               b.ask_price AS buy_price, s.bid_price AS sell_price,
               (s.bid_price - b.ask_price) / b.ask_price * 10000 AS spread_bps,
               least(b.ask_qty, s.bid_qty) AS quantity,
               greatest(b.timestamp, s.timestamp) - least(b.timestamp, s.timestamp) AS skew
        FROM priced b
        JOIN priced s ON s.symbol_base = b.symbol_base AND s.symbol_quote = b.symbol_quote
            AND s.exchange_id <> b.exchange_id AND s.expiry IS NOT DISTINCT FROM b.expiry
        WHERE $3::interval IS NULL OR greatest(b.timestamp, s.timestamp) - least(b.timestamp, s.timestamp) <= $3
        ORDER BY spread_bps DESC, buy_exchange, sell_exchange, b.symbol_id, s.symbol_id LIMIT $2""",
        since,
        limit,
        max_skew,
    )
    return _plain(records, decimals)


async def get_spread_history(
    symbol_id: int,
    other_symbol_id: int,
    start: datetime,
    end: datetime,
    *,
    tolerance: timedelta = timedelta(seconds=5),
    decimals: bool = False,
) -> list[dict[str, Any]]:
    """Return, for each book ticker of ``symbol_id``, the other's newest at or before it (an as-of join).

    Rows for which the other has none within ``tolerance`` are left out. Keys: timestamp, other_timestamp,
    bid_price, ask_price, other_bid_price, other_ask_price, spread_bps (other's bid over this ask).
    """
    check_instant(BOOK_TICKERS.name, "start", start)
    check_instant(BOOK_TICKERS.name, "end", end)
    records = await get_db_manager().fetch(
        """
        WITH merged AS (
            SELECT timestamp, sequence_number, bid_price, ask_price, symbol_id = $2 AS is_other
            FROM book_ticker_snapshots
            WHERE symbol_id IN ($1, $2) AND timestamp >= $3::timestamptz - $5::interval AND timestamp < $4
        ), numbered AS (
            SELECT *, count(*) FILTER (WHERE is_other)
                      OVER (ORDER BY timestamp, is_other DESC, sequence_number) AS run
            FROM merged
        ), others AS (SELECT run, timestamp, bid_price, ask_price FROM numbered WHERE is_other)
        SELECT n.timestamp, o.timestamp AS other_timestamp, n.bid_price, n.ask_price,
               o.bid_price AS other_bid_price, o.ask_price AS other_ask_price,
               (o.bid_price - n.ask_price) / n.ask_price * 10000 AS spread_bps
        FROM numbered n JOIN others o ON o.run = n.run
        WHERE NOT n.is_other AND n.timestamp >= $3 AND o.timestamp >= n.timestamp - $5::interval
        ORDER BY n.timestamp, n.sequence_number
        """,
        symbol_id,
        other_symbol_id,
        start,
        end,
        tolerance,
    )
    return _plain(records, decimals)


async def get_pair_summary(since: datetime, *, decimals: bool = False) -> list[dict[str, Any]]:
    """Return per (base, quote) over all exchanges: snapshot_count, exchange_count, avg_bid_price."""
    check_instant(BOOK_TICKERS.name, "since", since)
    records = await get_db_manager().fetch(
        """
        SELECT s.symbol_base, s.symbol_quote, count(*) AS snapshot_count,
               count(DISTINCT s.exchange_id) AS exchange_count, avg(b.bid_price) AS avg_bid_price
        FROM book_ticker_snapshots b JOIN symbols s ON s.id = b.symbol_id
        WHERE b.timestamp > $1
        GROUP BY s.symbol_base, s.symbol_quote
        ORDER BY snapshot_count DESC, s.symbol_base, s.symbol_quote
        """,
        since,
    )
    return _plain(records, decimals)


async def get_funding_rate_counts(since: datetime) -> list[dict[str, Any]]:
    """Return per exchange: exchange (enum_value) and funding_rate_count."""
    check_instant(FUNDING_RATES.name, "since", since)
    records = await get_db_manager().fetch(
        """
        SELECT e.enum_value AS exchange, count(*) AS funding_rate_count
        FROM funding_rate_snapshots f
        JOIN symbols s ON s.id = f.symbol_id
        JOIN exchanges e ON e.id = s.exchange_id
        WHERE f.timestamp > $1 GROUP BY e.enum_value ORDER BY e.enum_value
        """,
        since,
    )
    return _plain(records, False)


async def get_balance_history_by_exchange(
    exchange: str, asset_name: str, since: datetime, *, decimals: bool = False
) -> list[dict[str, Any]]:
    """Return an exchange's balances of one asset after ``since``, newest first."""
    check_instant(BALANCES.name, "since", since)
    records = await get_db_manager().fetch(
        """
        SELECT b.timestamp, e.enum_value AS exchange, b.asset_name, b.available_balance, b.locked_balance,
               b.total_balance
        FROM balance_snapshots b JOIN exchanges e ON e.id = b.exchange_id
        WHERE e.enum_value = $1 AND b.asset_name = $2 AND b.timestamp > $3
        ORDER BY b.timestamp DESC
        """,
        exchange,
        asset_name,
        since,
    )
    return _plain(records, decimals)
