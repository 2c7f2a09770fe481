"""The live schema against the declared one: what the applied migrations make, and what is there."""

from pgtick.verify.check import verify_schema
from pgtick.verify.drift import Drift

__all__ = ["Drift", "verify_schema"]
