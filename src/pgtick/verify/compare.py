"""Compare what is declared with what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pgtick.verify.catalog import Item, Key
from pgtick.verify.drift import Drift

__all__ = ["compare"]

# What of a declared table is a drift when no migration declares it.
_EXTRA = ("column", "check", "primary key", "unique key", "foreign key", "exclusion", "index", "trigger")
_OF_HYPERTABLES = ("chunk interval", "policy", "columnstore")


def compare(
    declared: Mapping[Key, Item], live: Mapping[Key, Item], asked: Mapping[Key, str], parts: Iterable[tuple[str, Drift]]
) -> list[Drift]:
    """Return the drifts, in order.

    ``asked``: what the live pgtick_time_series asks of chunks and policies, which goes before what is declared.
    ``parts``: (table, drift) of partitions; what differs in the table itself is told of the table alone.
    """
    drifts = [
        drift
        for key, item in declared.items()
        if not _is_told_by_another(key, declared, live) and (drift := _difference(item, live.get(key), asked.get(key)))
    ]
    tables = {item.table for item in declared.values()}
    drifts += [
        Drift(*key, "extra", "", item.text)
        for key, item in live.items()
        if key not in declared and item.kind in _EXTRA and item.table in tables
    ]
    told = {(drift.table, drift.kind, drift.name) for drift in drifts}
    drifts += [drift for table, drift in parts if (table, drift.kind, drift.name) not in told]
    return sorted(drifts)


def _is_told_by_another(key: Key, declared: Mapping[Key, Item], live: Mapping[Key, Item]) -> bool:
    """Whether what the object belongs to is missing, which is the one thing to say."""
    table, kind, _ = key
    owners = [(table, "table", table)]
    if kind in _OF_HYPERTABLES:
        owners += [(table, "setting", "pgtick_time_series"), (table, "hypertable", table)]
    if kind == "setting":
        owners.append(("pgtick_time_series", "table", "pgtick_time_series"))
    return any(owner != key and owner in declared and owner not in live for owner in owners)


def _difference(item: Item, found: Item | None, asked: str | None) -> Drift | None:
    wanted = item.text if asked is None else asked
    if found is None:
        return Drift(*item.key, "missing", wanted)
    if item.kind == "setting" or found.text == wanted:  # a setting's values are the user's
        return None
    return Drift(*item.key, "changed", wanted, found.text)
