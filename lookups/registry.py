"""The science registry, and communities (mmdb): address → record with a JSON object as English name of its city.

These files say of themselves that they are GeoLite2-City, so their records tell what they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from netsage_pipeline.tables.mmdb import Mmdb, opened


def open_table(path: Path) -> Mmdb:
    """ValueError or OSError with a sentence if the file is no MaxMind DB, or holds something else."""
    return opened(path, "science registry", "JSON object as name of the city", _is_entry)


def _is_entry(record: Any) -> bool:
    try:
        return isinstance(orjson.loads(record["city"]["names"]["en"]), dict)
    except (KeyError, TypeError, orjson.JSONDecodeError):
        return False
