"""What a worker is at work on, in a file that outlives it, so that what kills the process three times is found and blamed.

A batch is written down before it is worked on. If the process dies meanwhile, the next one takes what was in that batch one by one and
writes each down too. What was alone at work in three deaths is blamed: it becomes a dead letter. A process that is killed for another
reason blames nobody: the same flow would have to be at work three times.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import orjson

#: So many deaths while one flow was alone at work are its fault.
DEATHS = 3

#: Where the batch stands in the file, behind what is alone at work.
_BATCH = 1 << 16


class AtWork:
    """The file. Nothing is synced: it is for the death of a process, not of a machine."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        alone = self._read(0)
        batch = self._read(_BATCH)
        #: what was in the batch during which the last process died
        self.suspects = {one for one in batch if isinstance(one, str)} if isinstance(batch, list) else set()
        self.deaths = Counter[str]()  #: what was alone at work → how many died
        if self.suspects and isinstance(alone, dict):
            deaths, one = alone.get("deaths"), alone.get("one")
            if isinstance(deaths, dict):
                self.deaths.update({name: number for name, number in deaths.items() if isinstance(number, int)})
            if isinstance(one, str) and one:
                self.deaths[one] += 1
        self._nobody_alone()

    def _read(self, place: int) -> object:
        line = os.pread(self._file, 1 << 24, place).partition(b"\n")[0]
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            return None

    def _write(self, place: int, value: object) -> None:
        with contextlib.suppress(OSError):  # No room: better no mark than no work. The ledger waits for room.
            os.pwrite(self._file, orjson.dumps(value) + b"\n", place)

    def begin(self, batch: Iterable[str]) -> None:
        """From now on this is at work."""
        self._write(_BATCH, list(batch))

    def alone(self, one: str) -> bool:
        """From now on only this is at work. False if it is to be blamed: then it is not to be worked on."""
        if self.deaths[one] >= DEATHS:
            return False
        self._write(0, {"one": one, "deaths": +self.deaths})
        return True

    def survived(self, one: str) -> None:
        """It was alone at work, and nobody died."""
        del self.deaths[one]
        self._nobody_alone()

    def done(self, batch: Iterable[str]) -> None:
        """Nothing is at work any more, and what came of it is stored."""
        self._write(_BATCH, [])
        if self.suspects:
            self.suspects.difference_update(batch)
            if not self.suspects:
                self.deaths.clear()

    def _nobody_alone(self) -> None:
        self._write(0, {"one": "", "deaths": +self.deaths})

    def close(self) -> None:
        os.close(self._file)
