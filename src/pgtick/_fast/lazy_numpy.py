"""NumPy, imported at its first use: it takes longer to import than everything else, and rows do not need it."""

from __future__ import annotations

from typing import Any

__all__ = ["numpy"]


class _NumPy:
    def __getattr__(self, name: str) -> Any:
        import numpy

        value = getattr(numpy, name)
        setattr(self, name, value)
        return value


#: Stands for the module.
numpy: Any = _NumPy()
