"""The ``pgtick`` command: thin, no logic of its own. Needs the extra ``cli``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; say which extra is missing where click or rich are not there."""
    try:
        from pgtick.cli.commands import pgtick
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("click", "rich"):
            sys.exit("pgtick's command needs two libraries: pip install 'pgtick[cli,embedded]'")
        raise
    except KeyboardInterrupt:
        sys.exit("Aborted!")
    pgtick()
