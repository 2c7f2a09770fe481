"""``python -m pgtick.migrations``: what it does is in pgtick.migrator.command."""

import sys

from pgtick.migrator.command import main

if __name__ == "__main__":
    sys.exit(main())
