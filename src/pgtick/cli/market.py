"""A simulated market for the demo: mid prices walk, each exchange quotes around them with its own spread."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime

from pgtick.models import BookTickerSnapshot, FundingRateSnapshot, TradeSnapshot

__all__ = ["INSTRUMENTS", "SimulatedMarket"]

#: (exchange, base, quote, the venue's own name, price, tick)
INSTRUMENTS = tuple(
    (exchange, base, "USDT", own.format(base), price, tick)
    for exchange, own in (("MEXC_SPOT", "{}USDT"), ("GATEIO_SPOT", "{}_USDT"), ("GATEIO_FUTURES", "{}_USDT"))
    for base, price, tick in (
        ("BTC", 97_000.0, 0.1),
        ("ETH", 3_400.0, 0.01),
        ("SOL", 180.0, 0.01),
        ("PEPE", 0.0000123, 0.0000000001),
    )
)


class SimulatedMarket:
    """Makes batches of rows for the given symbol ids, in the order of INSTRUMENTS."""

    def __init__(self, symbol_ids: list[int], seed: int = 7) -> None:
        self._random = random.Random(seed)  # noqa: S311  a market, not a secret
        self._ids = symbol_ids
        self._mids = {(base, quote): price for _, base, quote, _, price, _ in INSTRUMENTS}
        self._sequence = 0

    def rows(self, n: int) -> Iterator[BookTickerSnapshot | TradeSnapshot]:
        """Yield n book tickers and trades of now, about one trade in five."""
        rng = self._random
        for _ in range(n):
            place = rng.randrange(len(self._ids))
            _, base, quote, _, _, tick = INSTRUMENTS[place]
            mid = self._mids[base, quote] * (1 + rng.gauss(0, 0.00003))
            self._mids[base, quote] = mid
            offset = mid * (place % 3 - 1) * 0.00012
            half = mid * rng.uniform(0.00002, 0.0001)
            digits = len(f"{tick:.10f}".rstrip("0").split(".")[1])
            bid, ask = round(mid + offset - half, digits), round(mid + offset + half, digits)
            self._sequence += 1
            now = datetime.now(UTC)
            if rng.random() < 0.2:
                side = rng.choice(("buy", "sell"))
                yield TradeSnapshot(
                    timestamp=now,
                    symbol_id=self._ids[place],
                    price=ask if side == "buy" else bid,
                    quantity=round(rng.expovariate(1.0), 4),
                    side=side,
                    trade_id=str(self._sequence),
                )
            else:
                yield BookTickerSnapshot(
                    timestamp=now,
                    symbol_id=self._ids[place],
                    bid_price=bid,
                    ask_price=ask,
                    bid_qty=round(rng.expovariate(0.5), 4),
                    ask_qty=round(rng.expovariate(0.5), 4),
                    sequence_number=self._sequence,
                    update_type="simulated",
                )

    def funding(self) -> list[FundingRateSnapshot]:
        """Return one funding rate of now for each perpetual."""
        now = datetime.now(UTC)
        return [
            FundingRateSnapshot(
                timestamp=now,
                symbol_id=symbol_id,
                funding_rate=round(self._random.gauss(0.0001, 0.0001), 6),
                funding_time=now,
            )
            for symbol_id, (exchange, *_) in zip(self._ids, INSTRUMENTS, strict=True)
            if exchange.endswith("_FUTURES")
        ]
