"""verify_schema, and the comparison at every start."""

from __future__ import annotations

import logging

import asyncpg

from pgtick.connection import DatabaseManager, add_start_step, get_db_manager
from pgtick.errors import PgtickError, SchemaDriftError
from pgtick.verify.catalog import read_asked, read_items, read_parts
from pgtick.verify.compare import compare
from pgtick.verify.declaration import Declaration, Place, get_declaration, read_place
from pgtick.verify.drift import Drift

__all__ = ["verify_schema"]

logger = logging.getLogger(__name__)

_NO_RIGHT = (
    "{} may not create a schema to run the migrations in, and nobody who may has stored what they declare: "
    "let the role that migrates verify or start once, or GRANT CREATE ON DATABASE"
)


async def verify_schema(db: DatabaseManager | None = None) -> list[Drift]:
    """Return where the live schema differs from what the applied migrations declare; [] when it does not.

    The declaration is made anew, and stored, where the role may create a schema in the database (in a transaction
    that is rolled back); other roles take the one that is stored. What cannot be found out is a drift too, in the
    state "unverifiable".
    """
    return await _verify(db or get_db_manager(), anew=True)


async def _verify(db: DatabaseManager, *, anew: bool) -> list[Drift]:
    place = await read_place(db)
    try:
        declared = await get_declaration(db, place, anew=anew)
        if declared is None:
            return [_unverifiable(place, _NO_RIGHT.format(place.role))]
        drifts = [Drift("", "migration", label, "unverifiable", "", reason) for label, reason in declared.unverifiable]
        return sorted(drifts + await _compare_live(db, place, declared))
    except (PgtickError, asyncpg.PostgresError, OSError) as error:  # TimeoutError is an OSError
        return [_unverifiable(place, " ".join(str(error).split()) or type(error).__name__)]


def _unverifiable(place: Place, reason: str) -> Drift:
    return Drift("", "schema", place.schema, "unverifiable", "", reason)


async def _compare_live(db: DatabaseManager, place: Place, declared: Declaration) -> list[Drift]:
    items = {item.key: item for item in declared.items}
    tables = {item.table for item in declared.items if item.table}
    functions = {item.name.partition("(")[0] for item in declared.items if item.kind == "function"}
    live = await read_items(db, place.schema, place.extension_names, tables, functions)
    there = {name for _, kind, name in live if kind == "table"}
    has_policies = "timescaledb" in place.extension_names and place.licence == "timescale"
    asked = await read_asked(db, there, has_policies=has_policies)
    return compare(items, live, asked, await read_parts(db, place.schema, tables))


async def _start(db: DatabaseManager) -> None:
    if db.config.verify == "off":
        return
    drifts = await _verify(db, anew=False)
    # A migration that no empty schema can run is no reason to stop: it is applied, and cannot be edited any more.
    grave = [drift for drift in drifts if drift.kind != "migration"]
    if grave and db.config.verify == "refuse":
        raise SchemaDriftError(grave)
    for drift in drifts:
        logger.warning("schema: %s; what to do: %s", drift, drift.advice)


# After the migrations, and before the cache is loaded: what is missing is named before a query fails of it.
add_start_step(15, _start)
