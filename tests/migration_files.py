"""What tests of migrations share: files of migrations, and the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pgtick.migrator.files import discover

BUILT_IN = [migration.label for migration in discover()]

MIGRATION = """
from pgtick.connection import get_db_manager

async def migrate_up():
    {up}

async def migrate_down():
    {down}

async def get_migration_info():
    return {info!r}
"""


def write(folder: Path, file: str, up: str = "SELECT 1", down: str = "SELECT 1", **info: Any) -> None:
    """Write a migration; ``up`` and ``down`` are SQL, or Python after ``py:``."""
    number, _, name = file.removesuffix(".py").partition("_")

    def body(text: str) -> str:
        return text[3:] if text.startswith("py:") else f"await get_db_manager().execute({text!r})"

    folder.mkdir(exist_ok=True)
    said = {"id": number, "name": name, "dependencies": [], **info}
    (folder / file).write_text(MIGRATION.format(up=body(up), down=body(down), info=said))


def write_sql(folder: Path, file: str, text: str) -> None:
    """Write a migration in SQL."""
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(text)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgtick.migrations", *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith(("PG", "POSTGRES"))}
        | environment,
        cwd="/",
        capture_output=True,
        text=True,
    )
