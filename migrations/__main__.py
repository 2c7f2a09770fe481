"""The migration entrypoint: apply what is pending (up), take one back (down), list them (status), or print their SQL.

Exit codes: 0 done, 1 refused or failed (the reason is on stderr), 2 not a command of this program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

import asyncpg
import msgspec

from pgtick.config import DatabaseConfig, HftConfig
from pgtick.connection import open_manager, use_manager
from pgtick.errors import PgtickError
from pgtick.migrator import get_available_migrations, rollback_migration, run_pending_migrations
from pgtick.migrator.render import render_sql


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", default="up", choices=["up", "down", "status", "sql"])
    parser.add_argument("id", nargs="?", help='the migration that down takes back: "004", or "folder/001"')
    parser.add_argument("--destructive", action="store_true", help="yes, let down drop tables with their rows")
    parser.add_argument("--dsn", help="the database; otherwise as in the environment")
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        help="your migrations, not those of POSTGRES_MIGRATION_FOLDERS; repeat it",
    )
    parser.add_argument("--engine", default="timescale", choices=["timescale", "plain"], help="for sql")
    parser.add_argument("--server-version", type=int, default=18, help="PostgreSQL's major version, for sql")
    return parser


async def _run(arguments: argparse.Namespace) -> str:
    if arguments.action == "sql":
        return str(await render_sql(arguments.engine, arguments.server_version, arguments.folder))
    config = DatabaseConfig.from_dsn(arguments.dsn) if arguments.dsn else HftConfig().get_database_config()
    if arguments.folder:
        config = msgspec.structs.replace(config, migration_folders=tuple(arguments.folder))
    db = await open_manager(config)
    try:
        with use_manager(db):
            result: Any
            if arguments.action == "up":
                result = await run_pending_migrations()
            elif arguments.action == "down":
                result = await rollback_migration(arguments.id, destructive=arguments.destructive)
            else:
                result = await get_available_migrations()
    finally:
        await db.close()
    return json.dumps(result, indent=2, default=str) + "\n"


def main(argv: list[str] | None = None, *, prog: str = "python -m pgtick.migrations") -> int:
    """Do what the arguments say; return the exit code. ``pgtick migrate`` is this function too."""
    parser = _parser(prog)
    arguments = parser.parse_args(argv)
    if (arguments.action == "down") != (arguments.id is not None):
        parser.error("down, and only down, wants a migration's id")
    try:
        output = asyncio.run(_run(arguments))
    except (PgtickError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what was not committed is rolled back", file=sys.stderr)
        return 1
    sys.stdout.write(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
