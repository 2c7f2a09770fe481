"""The doctor: one look at server, schema, tables and sessions, and what to do about what it finds."""

from pgtick.doctor.examining import examine
from pgtick.doctor.report import Finding, Report, Unseen
from pgtick.doctor.series import STALE_AFTER

__all__ = ["STALE_AFTER", "Finding", "Report", "Unseen", "examine"]
