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
    declared: Mapping[Key, Item],
    live: Mapping[Key, Item],
    asked: Mapping[Key, str | None],
    parts: Iterable[tuple[str, Drift]],
) -> list[Drift]:
    """Return the drifts, in order.

    ``asked``: what the live settings ask of chunks and policies of what is declared to have such, which goes before
    what is declared. ``parts``: (table, drift) of partitions; what differs in the table itself is told of the table
    alone.
    """
    wanted: dict[Key, str | None] = {key: item.text for key, item in declared.items()}
    with_policies = {table for table, kind, _ in declared if kind in ("hypertable", "continuous aggregate")}
    wanted.update({key: text for key, text in asked.items() if key[0] in with_policies})
    drifts = [
        drift
        for key, text in wanted.items()
        if not _is_told_by_another(key, declared, live) and (drift := _difference(key, text, live.get(key)))
    ]
    tables = {item.table for item in declared.values()}
    drifts += [
        Drift(*key, "extra", "", item.text)
        for key, item in live.items()
        if key not in wanted and item.kind in _EXTRA and item.table in tables
    ]
    told = {(drift.table, drift.kind, drift.name) for drift in drifts}
    drifts += [drift for table, drift in parts if (table, drift.kind, drift.name) not in told]
    return sorted(drifts)


def _is_told_by_another(key: Key, declared: Mapping[Key, Item], live: Mapping[Key, Item]) -> bool:
    """Whether what the object belongs to is missing, which is the one thing to say."""
    table, kind, name = key
    owners = [(table, "table", table)]
    if kind in _OF_HYPERTABLES:
        owners += [(table, "setting", settings) for settings in ("pgtick_time_series", "pgtick_candles")]
        owners.append((table, "hypertable", table))
    if kind == "setting":
        owners.append((name, "table", name))
    return any(owner != key and owner in declared and owner not in live for owner in owners)


def _difference(key: Key, wanted: str | None, found: Item | None) -> Drift | None:
    if found is None:
        return None if wanted is None else Drift(*key, "missing", wanted)
    if found.kind == "setting" or found.text == wanted:  # a setting's values are the user's
        return None
    if wanted is None:
        return Drift(*key, "extra", "", found.text)
    return Drift(*key, "changed", wanted, found.text)
