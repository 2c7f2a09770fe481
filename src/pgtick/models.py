"""One msgspec.Struct a table: foreign keys only, never an exchange's or a symbol's name.

A field's annotation says everything about its column: the PostgreSQL type, the rule its values obey, and
whether the server makes it. ``tables.Table`` reads it from there, so a fact about a column stands here once.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import msgspec

from pgtick.errors import ValidationError
from pgtick.rules import Sql, broken_rule

__all__ = [
    "ArbitrageOpportunity",
    "BalanceSnapshot",
    "BookTickerSnapshot",
    "CachedSymbol",
    "Exchange",
    "FundingRateSnapshot",
    "OrderFlowMetrics",
    "Row",
    "Sql",
    "Symbol",
    "TradeSnapshot",
    "sql_fields",
]

if TYPE_CHECKING:
    # A price may be given as float, Decimal, str, bytes or int, and is read back as float or Decimal.
    # A union of these would refuse `ask - bid`, so type checkers see Any.
    Price = Any
    Instant = Any
else:
    # What msgspec decodes: JSON numbers become floats, JSON strings exact Decimals.
    Price = float | Decimal
    Instant = datetime | int

Id4 = Annotated[int, Sql(type="int4")]
Id8 = Annotated[int, Sql(type="int8")]
ServerId4 = Annotated[int | None, Sql(type="int4", made_by_server=True)]
ServerId8 = Annotated[int | None, Sql(type="int8", made_by_server=True)]
ServerTime = Annotated[datetime | None, Sql(type="timestamptz", made_by_server=True)]
EventTime = Annotated[Instant, Sql(type="timestamptz")]
Text = Annotated[str, Sql(type="text")]
Flag = Annotated[bool, Sql(type="bool")]
Number = Annotated[Price, Sql(type="numeric")]
Positive = Annotated[Price, Sql(type="numeric", rule="> 0")]
NonNegative = Annotated[Price, Sql(type="numeric", rule=">= 0")]
OptionalPositive = Annotated[Price | None, Sql(type="numeric", rule="> 0")]
OptionalNonNegative = Annotated[Price | None, Sql(type="numeric", rule=">= 0")]
Double = Annotated[float, Sql(type="float8")]
OptionalDouble = Annotated[float | None, Sql(type="float8")]


def sql_fields(model: type[msgspec.Struct]) -> dict[str, tuple[Sql, bool]]:
    """Return {field: (its Sql, whether None is allowed)} in the order of declaration."""
    hints = get_type_hints(model, include_extras=True)
    fields = {}
    for name in model.__struct_fields__:
        hint = hints[name]
        sql = next((m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Sql)), None)
        if sql is None:
            raise TypeError(f"{model.__name__}.{name}: the annotation has no Sql(...)")
        inner = getattr(hint, "__origin__", hint)
        optional = type(None) in getattr(inner, "__args__", ())
        fields[name] = (sql, optional)
    return fields


class Row(msgspec.Struct, kw_only=True):
    """Base of all models: ``validate`` from the rules in the annotations."""

    table_name: ClassVar[str]

    def validate(self) -> None:
        """Check every field that is written, by the rules of the encoder.

        Raises ValidationError, which names table, field, value and rule; the first broken rule wins. A time
        that is an int is refused: its unit is named only where rows are encoded.
        """
        for name, (sql, optional) in sql_fields(type(self)).items():
            value = getattr(self, name)
            if sql.made_by_server or (value is None and (optional or sql.content_key)):
                continue
            rule = broken_rule(value, sql)
            if rule is not None:
                raise ValidationError(self.table_name, name, value, rule)


class Exchange(Row, kw_only=True):
    """A venue's market: ``enum_value`` is ``{exchange_name}_{market_type}``."""

    table_name: ClassVar[str] = "exchanges"

    id: ServerId4 = None
    enum_value: Text
    exchange_name: Text
    market_type: Annotated[str, Sql(type="text", rule=("SPOT", "FUTURES", "OPTIONS"))]
    is_active: Flag = True
    created_at: ServerTime = None
    updated_at: ServerTime = None


class Symbol(Row, kw_only=True):
    """An instrument as one exchange lists it; ``exchange_symbol`` is the venue's own, byte for byte."""

    table_name: ClassVar[str] = "symbols"

    id: ServerId4 = None
    exchange_id: Id4
    symbol_base: Text
    symbol_quote: Text
    exchange_symbol: Text
    settle: Annotated[str | None, Sql(type="text")] = None
    expiry: Annotated[Instant | None, Sql(type="timestamptz", max_ahead=timedelta(days=36500))] = None
    contract_size: OptionalPositive = None
    price_tick: OptionalPositive = None
    quantity_step: OptionalPositive = None
    min_quantity: OptionalNonNegative = None
    min_notional: OptionalNonNegative = None
    is_active: Flag = True
    listed_at: Annotated[Instant | None, Sql(type="timestamptz", max_ahead=timedelta(days=3650))] = None
    delisted_at: Annotated[Instant | None, Sql(type="timestamptz", max_ahead=timedelta(days=3650))] = None
    created_at: ServerTime = None
    updated_at: ServerTime = None


class BookTickerSnapshot(Row, kw_only=True, gc=False):
    """Best bid and ask; quantities in base units (contracts on derivatives), None where the feed has none."""

    table_name: ClassVar[str] = "book_ticker_snapshots"

    id: ServerId8 = None
    timestamp: EventTime
    symbol_id: Id4
    bid_price: Positive
    ask_price: Positive
    bid_qty: OptionalNonNegative = None
    ask_qty: OptionalNonNegative = None
    sequence_number: Annotated[int | None, Sql(type="int8", content_key=True)] = None
    update_type: Text = "ticker"
    created_at: ServerTime = None


class TradeSnapshot(Row, kw_only=True, gc=False):
    """One public trade; ``side`` is the taker's."""

    table_name: ClassVar[str] = "trade_snapshots"

    id: ServerId8 = None
    timestamp: EventTime
    symbol_id: Id4
    price: Positive
    quantity: NonNegative
    side: Annotated[str, Sql(type="text", rule=("buy", "sell"))]
    trade_id: Annotated[str | None, Sql(type="text", content_key=True)] = None
    quote_quantity: OptionalNonNegative = None
    is_buyer: Annotated[bool | None, Sql(type="bool")] = None
    is_maker: Annotated[bool | None, Sql(type="bool")] = None
    created_at: ServerTime = None


class FundingRateSnapshot(Row, kw_only=True, gc=False):
    """A perpetual's funding rate per funding interval, as a fraction (0.0001 is 1 bp)."""

    table_name: ClassVar[str] = "funding_rate_snapshots"

    id: ServerId8 = None
    timestamp: EventTime
    symbol_id: Id4
    funding_rate: Number
    funding_time: Annotated[Instant, Sql(type="timestamptz", max_ahead=timedelta(days=31))]
    next_funding_time: Annotated[Instant | None, Sql(type="timestamptz", max_ahead=timedelta(days=31))] = None
    created_at: ServerTime = None


class BalanceSnapshot(Row, kw_only=True, gc=False):
    """An account's balance of one asset on one exchange."""

    table_name: ClassVar[str] = "balance_snapshots"

    id: ServerId8 = None
    timestamp: EventTime
    exchange_id: Id4
    asset_name: Text
    available_balance: NonNegative
    locked_balance: NonNegative
    frozen_balance: OptionalNonNegative = None
    borrowing_balance: OptionalNonNegative = None
    interest_balance: OptionalNonNegative = None
    total_balance: Annotated[Price | None, Sql(type="numeric", made_by_server=True)] = None
    created_at: ServerTime = None


class ArbitrageOpportunity(Row, kw_only=True, gc=False):
    """A spread between two exchanges; ``symbol_id`` is the symbol on the buying one."""

    table_name: ClassVar[str] = "arbitrage_opportunities"

    id: ServerId8 = None
    timestamp: EventTime
    symbol_id: Id4
    buy_exchange_id: Id4
    sell_exchange_id: Id4
    buy_price: Positive
    sell_price: Positive
    spread_bps: Number
    max_volume_quote: OptionalNonNegative = None
    buy_liquidity: OptionalNonNegative = None
    sell_liquidity: OptionalNonNegative = None
    detected_at: EventTime
    duration_ms: Annotated[int | None, Sql(type="int4", rule=">= 0")] = None
    executed: Flag = False
    created_at: ServerTime = None


class OrderFlowMetrics(Row, kw_only=True, gc=False):
    """Computed order-flow figures; doubles, since they are computed and not quoted."""

    table_name: ClassVar[str] = "order_flow_metrics"

    timestamp: EventTime
    symbol_id: Id4
    ofi_score: Double
    ofi_normalized: OptionalDouble = None
    microprice: Double
    mid_price: Double
    spread_bps: Double
    bid_volume_quote: OptionalDouble = None
    ask_volume_quote: OptionalDouble = None
    volume_imbalance: Double
    created_at: ServerTime = None


class CachedSymbol(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A symbol as the cache holds it: with its exchange resolved, which the stored model never has."""

    id: int
    exchange_id: int
    exchange: str
    symbol_base: str
    symbol_quote: str
    exchange_symbol: str
    is_active: bool = True
    settle: str | None = None
    expiry: datetime | None = None
    contract_size: Decimal | None = None
    price_tick: Decimal | None = None
    quantity_step: Decimal | None = None
    min_quantity: Decimal | None = None
    min_notional: Decimal | None = None
