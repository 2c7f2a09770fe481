"""One msgspec.Struct a table: foreign keys only, never an exchange's or a symbol's name.

A field's annotation says everything about its column: the PostgreSQL type, the rule its values obey, and
whether the server makes it. ``tables.Table`` reads it from there, so a fact about a column stands here once.
"""

from __future__ import annotations

import math
import operator
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_type_hints

import msgspec

from pgtick.errors import ValidationError

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

# The server's: a numeric's exponent as text, its decimals, its digits before the point (and their bits).
_MAX_EXPONENT = (1 << 30) - 1
_MAX_SCALE = 16383
_MAX_DIGITS = 131072
_MAX_BITS = 435412

_DECIMAL_TEXT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+))?")
_NOT_FINITE_TEXT = re.compile(r"[+-]?(?:s?nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_NOT_NUMBER = "must be a number: float, Decimal, int, or decimal text"
_NOT_FINITE = "must be finite"
_TOO_LARGE = "must fit numeric"

#: Where a plausible instant begins: the year of the first block.
EARLIEST = datetime(2009, 1, 1, tzinfo=UTC)


class Sql(msgspec.Struct, frozen=True, kw_only=True):
    """What a field is in the database.

    ``rule`` is "> 0", ">= 0", or a tuple of the texts allowed; for timestamptz ``max_ahead`` says how far in
    the future an instant may lie. ``content_key``: where the value is None, the encoder makes it from the
    row's content (see RowEncoder). ``made_by_server``: read, never written.
    """

    type: str
    rule: str | tuple[str, ...] | None = None
    made_by_server: bool = False
    content_key: bool = False
    max_ahead: timedelta = timedelta(days=1)


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
            rule = _broken_rule(value, sql)
            if rule is not None:
                raise ValidationError(self.table_name, name, value, rule)


def _broken_rule(value: Any, sql: Sql) -> str | None:
    if value is None:
        return "must not be NULL"
    check = _CHECKS.get(sql.type)
    return check(value, sql) if check else None


def _check_number(value: Any, sql: Sql) -> str | None:
    if isinstance(value, float):
        return _check_sign(value, sql) if math.isfinite(value) else _NOT_FINITE
    if isinstance(value, str):
        return _check_decimal_text(value, sql)
    if isinstance(value, bytes):
        return _check_decimal_text(value.decode("latin-1"), sql)
    if isinstance(value, Decimal):
        return _check_decimal_text(Decimal.__str__(value), sql) if value.is_finite() else _NOT_FINITE
    whole = _to_int(value)
    if whole is None:
        return _NOT_NUMBER
    if whole.bit_length() > _MAX_BITS:
        return _check_sign(whole, sql) or _TOO_LARGE
    return _check_decimal_text(str(Decimal(whole)), sql)  # str(int) refuses more than 4300 digits


def _check_decimal_text(text: str, sql: Sql) -> str | None:
    match = _DECIMAL_TEXT.fullmatch(text)
    if match is None:
        return _NOT_FINITE if _NOT_FINITE_TEXT.fullmatch(text) else _NOT_NUMBER
    exponent = (match[1] or "").lstrip("+-0")
    if len(exponent) > 10 or int(exponent or 0) > _MAX_EXPONENT:  # before int() and Decimal() meet it
        return _TOO_LARGE
    number = Decimal(text)
    fits = -int(number.as_tuple().exponent) <= _MAX_SCALE and (number == 0 or number.adjusted() < _MAX_DIGITS)
    return _check_sign(number, sql) or (None if fits else _TOO_LARGE)


def _check_sign(number: Decimal | float, sql: Sql) -> str | None:
    holds = number > 0 if sql.rule == "> 0" else number >= 0 if sql.rule == ">= 0" else True
    return None if holds else f"must be {sql.rule}"


def _to_int(value: Any) -> int | None:
    """Return the int that the value is, as NumPy's integers are too; None for a bool and anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _check_double(value: Any, sql: Sql) -> str | None:
    whole = value if isinstance(value, float) else _to_int(value)
    if whole is None:
        return "must be a float"
    try:
        number = float(whole)
    except OverflowError:
        return _NOT_FINITE
    return _check_sign(number, sql) if math.isfinite(number) else _NOT_FINITE


def _check_int(value: Any, sql: Sql) -> str | None:
    whole = _to_int(value)
    if whole is None:
        return "must be an int"
    bits = 32 if sql.type == "int4" else 64
    fits = -(1 << (bits - 1)) <= whole < 1 << (bits - 1)
    return _check_sign(whole, sql) if fits else f"must fit {sql.type}"


def _check_text(value: Any, sql: Sql) -> str | None:
    if not isinstance(value, str):
        return "must be a str"
    try:
        n_bytes = len(value.encode())
    except UnicodeEncodeError:
        return "must be valid Unicode"
    if "\0" in value:
        return "must not contain NUL"
    if isinstance(sql.rule, tuple) and value not in sql.rule:
        return f"must be one of {', '.join(sql.rule)}"
    return "must be shorter than 1 GB" if n_bytes >= 1 << 30 else None


def _check_time(value: Any, sql: Sql) -> str | None:
    if not isinstance(value, datetime):
        return "must be an aware datetime, or an int with its time_unit named"
    if value.utcoffset() is None:
        return "must be aware: a naive datetime would be read in the machine's zone"
    if not EARLIEST <= value <= datetime.now(UTC) + sql.max_ahead:
        return f"must lie between 2009-01-01 and now + {sql.max_ahead.days} d"
    return None


def _check_bool(value: Any, sql: Sql) -> str | None:
    return None if isinstance(value, bool) else "must be a bool"


_CHECKS = {
    "numeric": _check_number,
    "float8": _check_double,
    "int4": _check_int,
    "int8": _check_int,
    "text": _check_text,
    "timestamptz": _check_time,
    "bool": _check_bool,
}


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
