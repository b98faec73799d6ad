"""What a table has to say of itself, and whether all of it can be read.

Found out in a process of its own: the C reader of mmdb files survives one that is truncated, but not every one that is damaged.

    python -m netsage_pipeline.tables.content KIND FILE
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from netsage_pipeline.tables.tables import read
from netsage_pipeline.times import LAST_SECOND, iso


class Content(NamedTuple):
    """A table that can be read to its end."""

    type: str  #: of an mmdb what it says, else its kind
    built: float  #: unix seconds: when an mmdb was built, else the last change of a file
    entries: int
    bytes: int

    @property
    def day(self) -> str:
        """When it was built, YYYY-MM-DD in UTC."""
        return iso(min(self.built, LAST_SECOND))[:10]


def content(kind: str, path: Path) -> Content:
    """Reads all of a table. ValueError with a line for each thing that is wrong, or that it cannot be read.

    Takes 0.3 s, and 4 µs for each prefix of an mmdb.
    """
    reader = [sys.executable, "-P", "-m", "netsage_pipeline.tables.content", kind, str(path)]
    done = subprocess.run(reader, capture_output=True, check=False)  # noqa: S603
    if done.returncode == 0:
        return Content(**orjson.loads(done.stdout))
    if done.returncode == WRONG:
        raise ValueError(done.stdout.decode())
    raise ValueError("is damaged: fetch it again")


#: Exit status when standard output says what is wrong.
WRONG = 3


def _read(kind: str, path: Path) -> Content:
    table: Any = read(kind, path)
    files = [each.stat() for each in (path, *(path.iterdir() if path.is_dir() else ()))]
    built = max(file.st_mtime for file in files)
    size = sum(file.st_size for file in files[path.is_dir() :])
    return Content(getattr(table, "type", kind), getattr(table, "built", built), len(table), size)


def _main(kind: str, path: Path) -> None:
    try:
        sys.stdout.buffer.write(orjson.dumps(_read(kind, path)._asdict()))
    except (ValueError, OSError) as error:
        what = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error) or type(error).__name__
        sys.stdout.buffer.write(what.encode())
        sys.exit(WRONG)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
