"""Migrations: find, order, lock, check, apply, record; the SQL that they would run."""

from pgtick.migrator.apply import (
    get_available_migrations,
    rollback_migration,
    run_migration,
    run_pending_migrations,
)

__all__ = ["get_available_migrations", "rollback_migration", "run_migration", "run_pending_migrations"]
