"""MaxMind DB files: address → record (City, ASN, the science registry, communities)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import maxminddb

from netsage_pipeline.addresses import parse, unmapped


class Mmdb:
    """`get(ip)` gives the record of the longest prefix that holds the address, or None. Mapped IPv4 is looked up as IPv4."""

    def __init__(self, reader: maxminddb.Reader) -> None:
        self._get = reader.get
        self._has_ipv6 = reader.metadata().ip_version == 6

    def get(self, ip: str) -> Any:
        packed = parse(ip)
        if packed is None:
            return None
        if len(packed) == 16:
            packed = unmapped(packed)
            if len(packed) == 4:
                return self._get("{}.{}.{}.{}".format(*packed))
            if not self._has_ipv6:
                return None
        return self._get(ip)


def open_table(path: Path) -> Mmdb:
    """ValueError or OSError with a sentence if the file is no MaxMind DB."""
    # The C reader maps the file into memory, and a mapped file that somebody truncates in place kills the process: read a copy.
    with tempfile.NamedTemporaryFile(prefix="netsage-", suffix=".mmdb") as copy, path.open("rb") as file:
        shutil.copyfileobj(file, copy)
        copy.flush()
        try:
            return Mmdb(maxminddb.open_database(copy.name, maxminddb.MODE_MMAP_EXT))
        except maxminddb.InvalidDatabaseError:
            raise ValueError("is no MaxMind DB file, or is truncated: fetch it again") from None
