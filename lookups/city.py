"""City databases (mmdb): address → record with country or continent, and location."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netsage_pipeline.tables.mmdb import Mmdb, opened


def open_table(path: Path) -> Mmdb:
    """ValueError or OSError with a sentence if the file is no MaxMind DB, or holds something else."""
    return opened(path, "City database", "country and location", _is_place)


def _is_place(record: Any) -> bool:
    return isinstance(record, dict) and "location" in record and ("country" in record or "continent" in record)
