"""From ccxt's unified markets to exchanges and symbols."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pgtick.errors import ValidationError
from pgtick.operations.symbols import ensure_symbol, resolve_symbol

__all__ = ["MARKET_TYPES", "exchange_enum", "market_details", "resolve_market", "to_instant"]

MARKET_TYPES = {
    "spot": "SPOT",
    "margin": "SPOT",
    "swap": "FUTURES",
    "future": "FUTURES",
    "delivery": "FUTURES",
    "option": "OPTIONS",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# ccxt splits these venues by market, or names them otherwise than cryptofeed does: a venue is one exchange here.
_VENUES = {
    "binancecoinm": "BINANCE",
    "binanceus": "BINANCE_US",
    "binanceusdm": "BINANCE",
    "gate": "GATEIO",
    "krakenfutures": "KRAKEN",
    "kucoinfutures": "KUCOIN",
}
# ccxt's own constants; SIGNIFICANT_DIGITS, the third, gives no fixed tick.
_DECIMAL_PLACES, _TICK_SIZE = 2, 4


def to_instant(ms: float) -> datetime:
    """Return ms since 1970 as an aware datetime."""
    try:
        return _EPOCH + timedelta(milliseconds=ms)
    except OverflowError:  # µs or ns, taken for ms; so far ahead, the encoder refuses it by name
        return datetime.max.replace(tzinfo=UTC)


def exchange_enum(exchange_id: str, market_type: str) -> str:
    """Return the exchange's enum value for a ccxt exchange's id and a market's type.

    >>> exchange_enum("gate", "swap"), exchange_enum("binance", "spot")
    ('GATEIO_FUTURES', 'BINANCE_SPOT')
    """
    if market_type not in MARKET_TYPES:
        raise ValidationError("exchanges", "market_type", market_type, f"must be one of {', '.join(MARKET_TYPES)}")
    return f"{_VENUES.get(exchange_id, exchange_id.upper())}_{MARKET_TYPES[market_type]}"


def market_details(market: Mapping[str, Any], precision_mode: int) -> dict[str, Any]:
    """Return what a unified market says of its symbol, as ensure_symbol's ``details``; None where it is silent.

    A tick or step is ``precision`` where that counts in ticks (TICK_SIZE) or decimal places, None where it
    counts significant digits.
    """
    precision = market.get("precision") or {}
    limits = market.get("limits") or {}
    return {
        "settle": market.get("settle"),
        "expiry": None if market.get("expiry") is None else to_instant(market["expiry"]),
        "contract_size": _positive(_decimal(market.get("contractSize"))),
        "price_tick": _tick(precision.get("price"), precision_mode),
        "quantity_step": _tick(precision.get("amount"), precision_mode),
        "min_quantity": _decimal((limits.get("amount") or {}).get("min")),
        "min_notional": _decimal((limits.get("cost") or {}).get("min")),
    }


async def resolve_market(exchange: Any, market: Mapping[str, Any]) -> int:
    """Return the id of the market's symbol, registered if it is new, its details brought up to date."""
    names = (market["base"], market["quote"], str(market["id"]))
    enum = exchange_enum(exchange.id, market["type"])
    details = market_details(market, exchange.precisionMode)
    found = await resolve_symbol(enum, *names, **details)
    if any(value is not None and value != getattr(found, name) for name, value in details.items()):
        await ensure_symbol(found.exchange_id, *names, **details)
    return found.id


def _decimal(value: Any) -> Decimal | None:
    return None if value is None else Decimal(str(value))


def _positive(number: Decimal | None) -> Decimal | None:
    # Where it cannot be 0, a 0 is ccxt's way to say nothing.
    return None if number == 0 else number


def _tick(value: Any, precision_mode: int) -> Decimal | None:
    number = _decimal(value)
    if number is None or precision_mode not in (_DECIMAL_PLACES, _TICK_SIZE):
        return None
    return _positive(number) if precision_mode == _TICK_SIZE else Decimal(1).scaleb(-int(number))
