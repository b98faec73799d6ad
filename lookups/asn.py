"""ASN databases (mmdb): address → record with autonomous_system_number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netsage_pipeline.tables.mmdb import Mmdb, opened


def open_table(path: Path) -> Mmdb:
    """ValueError or OSError with a sentence if the file is no MaxMind DB, or holds something else."""
    return opened(path, "ASN database", "autonomous_system_number", _has_number)


def _has_number(record: Any) -> bool:
    return isinstance(record, dict) and "autonomous_system_number" in record
