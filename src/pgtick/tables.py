"""Table and Column: what the encoder, the writer and the queries know of a model's table."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from pgtick import models
from pgtick.models import sql_fields
from pgtick.rules import ENCODED_TYPES

__all__ = [
    "ARBITRAGE_OPPORTUNITIES",
    "BALANCES",
    "BOOK_TICKERS",
    "BUILT_IN_TABLES",
    "FUNDING_RATES",
    "INGEST_BATCHES",
    "INGEST_QUARANTINE",
    "ORDER_FLOW_METRICS",
    "TRADES",
    "Column",
    "Table",
    "quote_identifier",
    "quote_literal",
]

#: The time series in which the writer notes its batches, and the table of rows that were refused: not market data.
INGEST_BATCHES, INGEST_QUARANTINE = "ingest_batches", "ingest_quarantine"


_MAX_NAME_BYTES = 63  # what every server is built with unless NAMEDATALEN is changed


def quote_identifier(name: str) -> str:
    """Return the name as a quoted SQL identifier.

    Raises ValueError for what is none, a name of more than 63 bytes too: the server would cut it in silence.
    """
    if not name or "\0" in name or len(name.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"not an identifier (1 to {_MAX_NAME_BYTES} bytes without NUL): {name!r}")
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    """Return the text as an SQL literal, whatever standard_conforming_strings is."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


class Column(msgspec.Struct, frozen=True):
    """A column that is written, in wire order."""

    name: str
    type: str
    nullable: bool = False
    rule: str | tuple[str, ...] | None = None
    content_key: bool = False
    max_ahead: timedelta = timedelta(days=1)


class Table:
    """A time-series table made from a model.

    ``key``: the columns of the primary key; its first column is the one that look-ups go by.
    ``columns``: the columns that are written, in wire order; ``read_columns``: every field of the model.
    """

    def __init__(
        self,
        name: str,
        model: type[msgspec.Struct],
        *,
        key: tuple[str, ...],
        time_column: str = "timestamp",
    ) -> None:
        fields = sql_fields(model)
        self.name = name
        self.model = model
        self.key = key
        self.time_column = time_column
        self.read_columns = tuple(fields)
        self.columns = tuple(
            Column(
                name=field,
                type=sql.type,
                nullable=optional and not sql.content_key,
                rule=sql.rule,
                content_key=sql.content_key,
                max_ahead=sql.max_ahead,
            )
            for field, (sql, optional) in fields.items()
            if not sql.made_by_server
        )
        for column in self.columns:
            if column.type not in ENCODED_TYPES:
                known = ", ".join(sorted(ENCODED_TYPES))
                raise ValueError(f"{name}.{column.name}: type {column.type} is not one of {known}")
            if column.content_key and column.type not in ("int8", "text"):
                raise ValueError(f"{name}.{column.name}: a content key is int8 or text, not {column.type}")
        for identifier in (name, *self.read_columns):
            quote_identifier(identifier)
        names = [column.name for column in self.columns]
        for needed in (*key, time_column):
            if needed not in names:
                raise ValueError(f"{name}: {needed} is not a column that is written")

    def __repr__(self) -> str:
        return f"Table({self.name!r}, {self.model.__name__})"

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the written columns, in wire order."""
        return tuple(column.name for column in self.columns)

    @property
    def has_id(self) -> bool:
        """Whether the server numbers the rows in a column ``id``."""
        return "id" in self.read_columns


BOOK_TICKERS = Table(
    "book_ticker_snapshots", models.BookTickerSnapshot, key=("symbol_id", "timestamp", "sequence_number")
)
TRADES = Table("trade_snapshots", models.TradeSnapshot, key=("symbol_id", "timestamp", "trade_id"))
FUNDING_RATES = Table("funding_rate_snapshots", models.FundingRateSnapshot, key=("symbol_id", "timestamp"))
BALANCES = Table("balance_snapshots", models.BalanceSnapshot, key=("exchange_id", "asset_name", "timestamp"))
ARBITRAGE_OPPORTUNITIES = Table(
    "arbitrage_opportunities",
    models.ArbitrageOpportunity,
    key=("symbol_id", "timestamp", "buy_exchange_id", "sell_exchange_id"),
)
ORDER_FLOW_METRICS = Table("order_flow_metrics", models.OrderFlowMetrics, key=("symbol_id", "timestamp"))

BUILT_IN_TABLES = (
    BOOK_TICKERS,
    TRADES,
    FUNDING_RATES,
    BALANCES,
    ARBITRAGE_OPPORTUNITIES,
    ORDER_FLOW_METRICS,
)
