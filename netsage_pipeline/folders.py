"""Where things lie: our own stages, lookups and settings, and the operator's tables; and how a path is written."""

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


def shown(path: str) -> str:
    """A path as text that can be written: any bytes may be a name, those that are not UTF-8 become \\xff."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
