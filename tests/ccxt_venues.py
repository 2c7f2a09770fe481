"""ccxt exchanges that answer from raw messages in the venues' formats instead of the network."""

from __future__ import annotations

from typing import Any

TIME_MS = 1_700_000_000_123

_BINANCE_SPOT = {
    "symbol": "BTCUSDT",
    "status": "TRADING",
    "baseAsset": "BTC",
    "quoteAsset": "USDT",
    "baseAssetPrecision": 8,
    "quotePrecision": 8,
    "isSpotTradingAllowed": True,
    "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": "0.01000000", "maxPrice": "1000000.0", "tickSize": "0.01000000"},
        {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000", "stepSize": "0.00001000"},
        {"filterType": "NOTIONAL", "minNotional": "5.00000000", "maxNotional": "9000000.00000000"},
    ],
}
_BINANCE_SWAP = {
    "symbol": "BTCUSDT",
    "pair": "BTCUSDT",
    "contractType": "PERPETUAL",
    "deliveryDate": 4_133_404_800_000,
    "status": "TRADING",
    "baseAsset": "BTC",
    "quoteAsset": "USDT",
    "marginAsset": "USDT",
    "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": "556.80", "maxPrice": "4529764", "tickSize": "0.10"},
        {"filterType": "LOT_SIZE", "stepSize": "0.001", "maxQty": "1000", "minQty": "0.001"},
        {"filterType": "MIN_NOTIONAL", "notional": "100"},
    ],
}
_BINANCE_DATED = {
    **_BINANCE_SWAP,
    "symbol": "BTCUSDT_271231",
    "contractType": "CURRENT_QUARTER",
    "deliveryDate": 1_830_240_000_000,
}
_OKX_SWAP = {
    "instType": "SWAP",
    "instId": "BTC-USD-SWAP",
    "uly": "BTC-USD",
    "settleCcy": "BTC",
    "ctVal": "100",
    "ctMult": "1",
    "ctValCcy": "USD",
    "tickSz": "0.1",
    "lotSz": "1",
    "minSz": "1",
    "ctType": "inverse",
    "state": "live",
}
_OKX_OPTION = {
    **_OKX_SWAP,
    "instType": "OPTION",
    "instId": "BTC-USD-271231-100000-C",
    "ctVal": "1",
    "ctValCcy": "BTC",
    "optType": "C",
    "stk": "100000",
    "expTime": "1830240000000",
    "tickSz": "0.0005",
    "ctType": "",
}
_GATE_SPOT = {
    "id": "人生K线_USDT",
    "base": "人生K线",
    "quote": "USDT",
    "fee": "0.2",
    "min_quote_amount": "3",
    "amount_precision": 3,
    "precision": 12,
    "trade_status": "tradable",
}
_GATE_SWAP = {
    "name": "BTC_USDT",
    "type": "direct",
    "quanto_multiplier": "0.0001",
    "order_price_round": "0.1",
    "order_size_min": 1,
    "order_size_max": 1_000_000,
    "order_price_deviate": "0.2",
    "mark_price": "97000",
    "in_delisting": False,
    "leverage_min": "1",
    "leverage_max": "100",
    "maker_fee_rate": "-0.0005",
    "taker_fee_rate": "0.0005",
}
BINANCE_MARKETS = [_BINANCE_SPOT, _BINANCE_SWAP, _BINANCE_DATED]
OKX_MARKETS = [_OKX_SWAP, _OKX_OPTION]


def answer(exchange: Any, **answers: Any) -> Any:
    """Let the exchange's requests return ``answers``: by the endpoint's path, each / as two _."""

    def request(path: str, *_: Any, **__: Any) -> Any:
        return answers[path.replace("/", "__")]

    exchange.request = request
    return exchange


def binance(kind: Any, number: type = float) -> Any:
    """Return a binance of ``kind`` (ccxt or ccxt.pro) with its markets set."""
    exchange = kind.binance({"options": {"crossMarginPairsData": [], "isolatedMarginPairsData": []}})
    exchange.number = number
    exchange.set_markets([exchange.parse_market(raw) for raw in BINANCE_MARKETS])
    return exchange


def okx(kind: Any, number: type = float) -> Any:
    """Return an okx of ``kind`` with its markets set."""
    exchange = kind.okx()
    exchange.number = number
    exchange.set_markets([exchange.parse_market(raw) for raw in OKX_MARKETS])
    return exchange


def gate(kind: Any, number: type = float) -> Any:
    """Return a gate of ``kind`` (gateio in older versions) with its markets set."""
    exchange = getattr(kind, "gate", None) or kind.gateio
    exchange = exchange({"options": {"fetchMarkets": {"types": ["spot"]}}})
    exchange.number = number
    answer(exchange, currency_pairs=[_GATE_SPOT])
    exchange.set_markets([*exchange.fetch_spot_markets(), exchange.parse_contract_market(_GATE_SWAP, "usdt")])
    return exchange
