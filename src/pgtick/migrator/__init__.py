"""Migrations: find, order, lock, check, apply, record, repair; the SQL that they would run."""

from pgtick.migrator.apply import (
    get_available_migrations,
    rollback_migration,
    run_migration,
    run_pending_migrations,
)
from pgtick.migrator.repair import accept_migration, find_unfinished, settle_step

__all__ = [
    "accept_migration",
    "find_unfinished",
    "get_available_migrations",
    "rollback_migration",
    "run_migration",
    "run_pending_migrations",
    "settle_step",
]
