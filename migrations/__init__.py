"""pgtick's migrations, in the order of their numbers, and the functions that apply them."""

from pgtick.migrator import (
    get_available_migrations,
    rollback_migration,
    run_migration,
    run_pending_migrations,
)

__all__ = ["get_available_migrations", "rollback_migration", "run_migration", "run_pending_migrations"]
