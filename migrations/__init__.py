"""pgtick's migrations, in the order of their numbers, and the functions that apply them."""

from pgtick.migrator import (
    accept_migration,
    find_unfinished,
    get_available_migrations,
    rollback_migration,
    run_migration,
    run_pending_migrations,
    settle_step,
)

__all__ = [
    "accept_migration",
    "find_unfinished",
    "get_available_migrations",
    "rollback_migration",
    "run_migration",
    "run_pending_migrations",
    "settle_step",
]
