"""The migration entrypoint: ``python -m pgtick.migrations [up|down ID --destructive|status]``."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

from pgtick import migrator
from pgtick.config import HftConfig
from pgtick.connection import open_manager, use_manager


async def _run(arguments: argparse.Namespace) -> Any:
    db = await open_manager(HftConfig().get_database_config())
    try:
        with use_manager(db):
            if arguments.action == "up":
                return await migrator.run_pending_migrations(db)
            if arguments.action == "down":
                return await migrator.rollback_migration(arguments.id, destructive=arguments.destructive)
            return await migrator.get_available_migrations(db)
    finally:
        await db.close()


def main() -> None:
    """Apply, take back or list."""
    parser = argparse.ArgumentParser(prog="python -m pgtick.migrations", description=__doc__)
    parser.add_argument("action", nargs="?", default="up", choices=["up", "down", "status"])
    parser.add_argument("id", nargs="?", help="the migration that `down` takes back")
    parser.add_argument("--destructive", action="store_true", help="yes, drop tables with their rows")
    arguments = parser.parse_args()
    if arguments.action == "down" and arguments.id is None:
        parser.error("down wants a migration's id")
    print(json.dumps(asyncio.run(_run(arguments)), indent=2, default=str))


if __name__ == "__main__":
    main()
