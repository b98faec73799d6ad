"""Sorting more records than memory holds: sorted runs in temporary files, merged when they are taken out."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import orjson

#: Bytes of lines that are held in memory.
LIMIT_BYTES = 64_000_000

#: Runs that are open at a time.
MOST_RUNS = 64

#: What a record takes in memory beside its line, bytes.
_BESIDE = 300


class Record(NamedTuple):
    """A line, and what it is sorted by. Strings sort like Elasticsearch's keywords: by code point."""

    document_id: str
    kept_in: str  #: its index
    line: bytes  #: without a line break in it


class Spill:
    """Records go in in any order and come out sorted. OSError, with the directory as its filename, if there is no room for its runs."""

    def __init__(self, directory: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self._directory, self._limit = directory, limit_bytes
        self._held: list[Record] = []
        self._bytes = 0
        self._runs: list[IO[bytes]] = []

    def add(self, record: Record) -> None:
        self._held.append(record)
        self._bytes += len(record.line) + _BESIDE
        if self._bytes > self._limit:
            if len(self._runs) == MOST_RUNS:
                self._runs = [self._run(_merged(self._runs))]
            self._held.sort()
            self._runs.append(self._run(self._held))
            self._forget()

    def drain(self) -> Iterator[Record]:
        """All of them, sorted; it is empty then."""
        self._held.sort()
        yield from heapq.merge(_merged(self._runs), self._held) if self._runs else self._held
        self.close()

    def close(self) -> None:
        self._forget()
        for run in self._runs:
            with suppress(OSError):  # A full disk is complained about once more when the buffer is given up.
                run.close()
        self._runs = []

    def _forget(self) -> None:
        self._held = []
        self._bytes = 0

    def _run(self, records: Iterable[Record]) -> IO[bytes]:
        try:
            run = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - it has no name, so nothing is left behind.
            try:
                for record in records:
                    run.write(orjson.dumps((record.document_id, record.kept_in)) + b"\n" + record.line + b"\n")
                run.flush()
            except BaseException:
                with suppress(OSError):
                    run.close()
                raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._directory or tempfile.gettempdir())) from None
        return run


def _merged(runs: list[IO[bytes]]) -> Iterator[Record]:
    yield from heapq.merge(*(_read(run) for run in runs))
    for run in runs:
        run.close()


def _read(run: IO[bytes]) -> Iterator[Record]:
    run.seek(0)
    while key := run.readline():
        document_id, kept_in = orjson.loads(key)
        yield Record(document_id, kept_in, run.readline()[:-1])
