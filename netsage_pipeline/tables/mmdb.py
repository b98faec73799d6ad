"""MaxMind DB files, which the kinds of tables in lookups/ share: address → record."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import maxminddb

from netsage_pipeline.addresses import parse, unmapped

#: How many records are looked at to find out what a file holds. A few may lack what others of their kind have.
LOOKED_AT = 1_000


class Mmdb:
    """`get(ip)` gives the record of the longest prefix that holds the address, or None. Mapped IPv4 is looked up as IPv4.

    type    what the file says of itself, such as "GeoLite2-City"; the science registry says the same of itself
    built   when it was built, unix seconds
    """

    def __init__(self, reader: maxminddb.Reader) -> None:
        metadata = reader.metadata()
        self.type, self.built = metadata.database_type, metadata.build_epoch
        self._reader = reader
        self._get = reader.get
        self._has_ipv6 = metadata.ip_version == 6

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

    def __len__(self) -> int:
        """The number of prefixes. Reads every record (4 µs each); ValueError with a sentence if one is damaged."""
        try:
            return sum(1 for _ in self._reader)
        except (maxminddb.InvalidDatabaseError, ValueError):
            raise ValueError("is damaged: fetch it again") from None

    def __bool__(self) -> bool:
        return True  # Or its length would be asked for.

    def holds(self, is_one: Callable[[Any], bool]) -> bool:
        """Whether a record like this is among the first."""
        return any(is_one(record) for _, record in islice(self._reader, LOOKED_AT))


def opened(path: Path, what: str = "", having: str = "", is_one: Callable[[Any], bool] | None = None) -> Mmdb:
    """ValueError or OSError with a sentence if the file is no MaxMind DB.

    what, having, is_one    what it should be, what its records have then, and whether a record does; one of the first must
    """
    # The C reader maps the file into memory, and a mapped file that somebody truncates in place kills the process: read a copy.
    with tempfile.NamedTemporaryFile(prefix="netsage-", suffix=".mmdb") as copy, path.open("rb") as file:
        shutil.copyfileobj(file, copy)
        copy.flush()
        try:
            table = Mmdb(maxminddb.open_database(copy.name, maxminddb.MODE_MMAP_EXT))
            wrong = is_one is not None and not table.holds(is_one)
        except (maxminddb.InvalidDatabaseError, ValueError):
            raise ValueError("is no MaxMind DB file, or is truncated: fetch it again") from None
    if wrong:
        raise ValueError(f"is no {what} (its type is {table.type}; its first records have no {having}): put one there")
    return table
