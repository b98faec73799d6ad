"""Whether the process of a chain is alive and ready, told by a file in its directory, so that no port is needed to ask.

The loop writes the file `health` about every second: one line of JSON. Nothing is synced: it is about a process, not about a machine.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from netsage_pipeline.statedir import holder

#: Seconds of silence after which a process hangs. A turn of a loop takes less than one.
SILENCE_S = 60

_NAME = "health"


class Health(NamedTuple):
    """What is known of the process of a chain."""

    pid: str  #: "" if no process has the directory
    age_s: float  #: since it last said something
    starts: bool  #: whether it has not come to its loop yet
    waits: dict[str, str]  #: what it waits for → why
    ready: bool  #: whether messages can come and it waits for nothing
    numbers: dict[str, Any]  #: what it, or the last process before it, last said of its numbers; see metrics.Meter

    @property
    def alive(self) -> bool:
        return bool(self.pid) and self.age_s < SILENCE_S

    def in_words(self) -> str:
        """One line for an operator."""
        if not self.pid:
            return "not alive: no process has its directory: start it, netsage-pipeline run"
        if not self.alive:
            return f"not alive: process {self.pid} says nothing for {self.age_s:.0f} s: restart it"
        if self.starts:
            return f"alive, not ready: process {self.pid} starts"
        if self.waits:
            return f"alive, not ready: waits for {'; '.join(f'{what}: {why}' for what, why in sorted(self.waits.items()))}"
        return f"alive and ready: process {self.pid}" if self.ready else "alive, not ready: its input is not connected"


class HealthFile:
    """The file, as its process writes it."""

    def __init__(self, directory: Path) -> None:
        self._file = -1
        with contextlib.suppress(OSError):  # Nobody can ask then, but it works.
            self._file = os.open(directory / _NAME, os.O_CREAT | os.O_RDWR, 0o600)

    def write(self, values: dict[str, Any]) -> None:
        line = orjson.dumps({"pid": str(os.getpid()), **values}) + b"\n"
        with contextlib.suppress(OSError):  # No room for a longer line: the process is alive all the same.
            os.utime(self._file)
            os.pwrite(self._file, line, 0)
            os.ftruncate(self._file, len(line))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)


def look(directory: Path) -> Health:
    """The health of the process whose chain has this directory. OSError if the directory cannot be looked into."""
    directory.stat()
    pid = holder(directory)
    changed = [path.stat().st_mtime for name in ("lock", _NAME) if (path := directory / name).exists()]
    said = _said(directory / _NAME)
    own = said.get("pid") == pid
    return Health(
        pid,
        max(0.0, time.time() - max(changed, default=0.0)),
        not own,
        said.get("waits", {}) if own else {},
        bool(own and said.get("ready")),
        said.get("numbers", {}),
    )


def _said(path: Path) -> dict[str, Any]:
    """What is in the file; a line may just be being written over a longer one."""
    for _ in range(5):
        try:
            said = orjson.loads(path.read_bytes().partition(b"\n")[0])
        except FileNotFoundError:
            return {}
        except orjson.JSONDecodeError:
            time.sleep(0.05)
        else:
            return said if isinstance(said, dict) else {}
    return {}
