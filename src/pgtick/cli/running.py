"""Run a command's coroutine; what it may expect to go wrong becomes a message and exit code 1."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import asyncpg
import click

from pgtick.errors import PgtickError

__all__ = ["run"]


def run(coroutine: Any) -> Any:
    """Return what the coroutine returns; raise ClickException for errors that the user can do something about."""
    try:
        return asyncio.run(coroutine)
    except asyncpg.UndefinedTableError as error:
        raise click.ClickException(f"{error}: is the database migrated? (pgtick migrate)") from error
    except (
        PgtickError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        OSError,
        TimeoutError,
        subprocess.SubprocessError,
    ) as error:
        raise click.ClickException(str(error) or type(error).__name__) from error
