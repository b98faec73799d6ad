"""Progress of long work over files: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from netsage_pipeline.reading.read import Dump

#: Seconds between two lines about the progress where there is no terminal.
PROGRESS_S = 30


class Progress:
    """A bar on a terminal (bytes of the files), a line now and then elsewhere. Both go to standard error."""

    def __init__(self, dumps: list[Dump]) -> None:
        self._total = sum(dump.bytes for dump in dumps)
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=self._total or None, unit="B", unit_scale=True, disable=not self._terminal, leave=False)
        self._taken = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, flows: int, dump: Dump) -> None:
        if self._terminal:
            self._bar.set_postfix_str(f"{flows:,} flows, {dump.name[-40:]}", refresh=False)
        elif time.monotonic() - self._said > PROGRESS_S:
            self._said = time.monotonic()
            passed = self._said - self._began
            rate = f"{flows:,} flows read, {flows / passed:,.0f} a second"
            left = ""
            if self._total and self._taken:  # Standard input has no size.
                seconds = passed * (self._total - self._taken) / self._taken
                left = f"{self._taken / self._total:.0%} of the bytes, about {seconds:,.0f} s left; "
            sys.stderr.write(f"{left}{rate}, now {dump.name}\n")

    def advance(self, taken: int) -> None:
        self._taken += taken
        self._bar.update(taken)
