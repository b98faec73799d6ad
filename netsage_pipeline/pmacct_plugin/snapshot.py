"""A file as it is at one moment, though another program may replace what is in it meanwhile, as pmacct's print plugin does."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

_CHUNK = 1 << 20


class Snapshot(NamedTuple):
    """A copy of what was in the file, which has no name and vanishes when it is closed."""

    file: BinaryIO
    modified: float  #: when the file was written, unix seconds
    rewritten: bool  #: whether it was replaced before it was read to its end: the copy ends there, perhaps within a line


def snapshots(path: Path) -> list[Snapshot]:
    """What was in the file, in order: one copy, but for each time that it was rewritten meanwhile another one. OSError."""
    taken = [_taken(path)]
    while taken[-1].rewritten:
        taken.append(_taken(path))
    return taken


def _taken(path: Path) -> Snapshot:
    with path.open("rb", buffering=0) as file:
        state = os.fstat(file.fileno())
        copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - It is handed on.
        last, begin = b"", 0
        while True:
            chunk = file.read(_CHUNK) or b""
            # It may have grown meanwhile. If what was read just now and before is still there, it is of the same writing.
            now = os.fstat(file.fileno())
            if _differs(state, now) and os.pread(file.fileno(), 2 * _CHUNK, begin)[: len(last + chunk)] != last + chunk:
                copy.seek(0)
                return Snapshot(copy, state.st_mtime, True)
            state = now
            if not chunk:
                copy.seek(0)
                return Snapshot(copy, state.st_mtime, False)
            copy.write(chunk)
            last, begin = chunk, begin + len(last)


def _differs(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether a file was written meanwhile. What is read of a pipe is never written anew."""
    return stat.S_ISREG(one.st_mode) and (one.st_mtime_ns, one.st_size) != (other.st_mtime_ns, other.st_size)
