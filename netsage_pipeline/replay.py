"""Replaying dumps through a chain, with no broker and no database: read, stitch, enrich, write, count."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

from netsage_pipeline.chain import Chain
from netsage_pipeline.flow import Finished, Flow, Now, Sink, Stored
from netsage_pipeline.progress import Progress
from netsage_pipeline.reading.nfdump import Rows
from netsage_pipeline.reading.read import Dump, DumpError, messages

#: Flows that are enriched and written at once, and that the output may have without having stored them.
BATCH = 1_000
ON_THE_WAY = 5_000

#: Seconds that it waits at a time for an output that has so many.
WAIT_S = 0.5


class OutputError(Exception):
    """Nothing can be written any more; one line: where, what, what to do."""


@dataclass
class Summary:
    """What a replay did."""

    read: int = 0
    files: int = 0
    not_read: list[str] = field(default_factory=list)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    stitching: dict[str, int] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    written: int = 0
    hit_rate: float = 0.0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """The summary as it is printed."""
        rate = f"{self.read / self.seconds:,.0f} flows/s" if self.seconds else ""
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        lines = [f"read           {self.read:>12,}  flows of {files} in {self.seconds:.1f} s, {rate}"]
        lines += [f"not read       {'':>12}  {each}" for each in self.not_read]
        if self.rows["below_minimum"]:
            lines.append(f"left out       {self.rows['below_minimum']:>12,}  rows of nfdump below the minimum of bytes")
        if self.rows["skipped"]:
            lines.append(f"skipped        {self.rows['skipped']:>12,}  lines of nfdump that are no rows")
        if self.rows["unreadable"]:
            lines.append(f"passed over    {self.rows['unreadable']:>12,}  lines of netstat or ss")
        lines += _by_reason("dropped", self.dropped) + _by_reason("dead letters", self.refused)
        if self.stitching:
            parts, flows = self.stitching["parts"], self.stitching["flows"]
            lines.append(f"stitched       {parts:>12,}  parts → {flows:,} flows")
            if self.stitching["passed"]:
                lines.append(f"not stitched   {self.stitching['passed']:>12,}  flows that came whole (tstat)")
            if self.stitching["late"]:
                lines.append(f"               {self.stitching['late']:>12,}  parts came later than lateness_s and opened a flow")
            if self.stitching["not believed"]:
                lines.append(f"               {self.stitching['not believed']:>12,}  ends a day or more ahead of the flows before them")
        lines += [f"noted          {count:>12,}  {note}" for note, count in sorted(self.notes.items())]
        lines.append(f"remembered     {self.hit_rate:>12.1%}  of the ends, which were not looked up again")
        lines.append(f"written        {self.written:>12,}  flows")
        return lines


def _by_reason(word: str, counter: Counter[tuple[str, str]]) -> list[str]:
    lines = [f"{word:<14} {counter.total():>12,}"]
    return lines + [f"               {count:>12,}  {stage}: {reason}" for (stage, reason), count in sorted(counter.items())]


class Replay:
    """One run over a list of files. Sink and dead letters are written batch by batch."""

    def __init__(self, chain: Chain, now: Now, sink: Sink, output: str, dead_letters: BinaryIO | None, *, fixed_now: bool) -> None:
        self._chain = chain
        self._now = now
        self._sink = sink
        self._output = output
        self._dead_letters = dead_letters
        self._fixed_now = fixed_now
        self._batches = 0
        self._on_the_way = 0  # flows that the output has and has not stored
        now.arrival = 0.0  # It counts from the first flows, so that it is never ahead of this machine's time.
        self.summary = Summary()

    def run(self, dumps: list[Dump], rows: Callable[[Dump], Rows | None], tell: Callable[[str], None]) -> Summary:
        """Reads all files, finishes what is held, and gives the summary. Raises OutputError."""
        began = time.monotonic()
        finished: list[Finished] = []
        with Progress(dumps) as progress:
            for dump in dumps:
                try:
                    for number, message in enumerate(messages(dump, rows(dump), self.summary.rows, progress.advance)):
                        if number % 10 == 0:
                            self._look_at_the_clock()
                        if number == 0:
                            self.summary.files += 1
                        finished += self._chain.let_in(*message) + self._chain.tick()
                        if max(len(finished), len(self._chain.dead)) >= BATCH:
                            self._write(finished)
                            finished.clear()
                            progress.show(self._chain.read, dump)
                except DumpError as error:
                    if str(error) not in self.summary.not_read:  # Without nfdump every file fails alike.
                        self.summary.not_read.append(str(error))
                        tell(str(error))
        self._look_at_the_clock()
        self._write(finished)
        left = iter(self._chain.drain())
        while batch := list(islice(left, BATCH)):
            self._write(batch)
        self._finish()
        self._close()
        self._count(time.monotonic() - began)
        return self.summary

    def _look_at_the_clock(self) -> None:
        """Moves the time of the batch, and the arrival clock by as much as the newest end went. With a fixed time neither moves."""
        if self._fixed_now:
            return
        self._now.set(time.time())
        if self._chain.stitching is not None:
            self._now.arrival = self._chain.stitching.gone

    def _write(self, finished: list[Finished]) -> None:
        flows: list[Flow] = self._chain.enrich(finished)
        try:
            self._batches += 1
            self._on_the_way += len(flows)
            self._sink.write(self._batches, flows)
            self._count_stored(ON_THE_WAY)
        except OSError as error:
            raise OutputError(self._full(self._output, error)) from None
        self._write_letters()

    def _count_stored(self, most: int) -> None:
        """Takes note of what the output stored, and waits until it has no more than so many flows to store."""
        self._take_note(self._sink.stored())
        while self._on_the_way > most:
            self._take_note(self._sink.stored(WAIT_S))

    def _take_note(self, stored: list[Stored]) -> None:
        for _, written, refusals in stored:
            self._on_the_way -= written + len(refusals)
            self.summary.written += written
            for flow, reason in refusals:
                self._chain.refuse("99_output", reason, flow)

    def _finish(self) -> None:
        try:
            self._count_stored(0)
        except OSError as error:
            raise OutputError(self._full(self._output, error)) from None
        self._write_letters()

    def _write_letters(self) -> None:
        letters, self._chain.dead = self._chain.dead, []
        if self._dead_letters is not None and letters:
            try:
                self._dead_letters.write(b"\n".join(letters) + b"\n")
            except OSError as error:
                raise OutputError(self._full(self._dead_letters.name, error)) from None

    def _close(self) -> None:
        closing = [(self._output, self._sink.close)]
        if self._dead_letters is not None:
            closing.append((self._dead_letters.name, self._dead_letters.close))
        for name, close in closing:
            try:
                close()
            except OSError as error:
                raise OutputError(self._full(name, error)) from None

    def _full(self, name: str, error: OSError) -> str:
        before = f"up to {self.summary.written:,} flows went out before"
        if isinstance(error, BrokenPipeError):
            return f"{name}: its reader has gone: {before}"
        return f"{name}: cannot be written: {error.strerror}: {before}; make room and run it again"

    def _count(self, seconds: float) -> None:
        chain, summary = self._chain, self.summary
        summary.seconds = seconds
        summary.read, summary.dropped, summary.refused, summary.notes = chain.read, chain.dropped, chain.refused, chain.notes
        summary.stitching = chain.stitching.counts() if chain.stitching is not None else {}
        summary.hit_rate = chain.hit_rate()
