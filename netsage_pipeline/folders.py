"""Where things lie: our own stages, lookups and settings, and the operator's tables."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """One of our folders: inside the package (installed from a wheel) or beside it (checkout)."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def tables() -> Path:
    """The directory of the lookup tables: NETSAGE_LOOKUPS, by default /var/lib/netsage."""
    return Path(os.environ.get("NETSAGE_LOOKUPS") or "/var/lib/netsage")


def demo() -> Path:
    """The shipped dump and tables of `netsage-pipeline demo`."""
    inside = _PACKAGE / "demo_data"
    return inside if inside.is_dir() else _PACKAGE.parent / "demo"
