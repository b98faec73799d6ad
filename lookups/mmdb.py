"""MaxMind DB files, whatever they hold: address → record."""

from __future__ import annotations

from pathlib import Path

from netsage_pipeline.tables.mmdb import Mmdb, opened


def open_table(path: Path) -> Mmdb:
    """ValueError or OSError with a sentence if the file is no MaxMind DB."""
    return opened(path)
