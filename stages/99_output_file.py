"""99 output file: writes flows to a file or to standard output.

Reads   *
Writes  nothing
Source  nothing
Drops   nothing
"""

from __future__ import annotations

import errno
import io
import sys
from typing import BinaryIO, ClassVar

import orjson
from pydantic import Field

from netsage_pipeline.config import Output
from netsage_pipeline.flow import Flow, Stored
from netsage_pipeline.outputs.batches import encoded


class Config(Output):
    for_workers: ClassVar[bool] = False

    path: str = Field("-", description="File to write, - for standard output; an existing file is replaced")
    flows_per_message: int = Field(1, ge=1, description="1: one flow a line; more: arrays of so many flows, one a line")


class FileSink:
    """Writes each batch with one call; OSError where it cannot."""

    def __init__(self, config: Config) -> None:
        self._to_standard_output = config.path == "-"
        self._file: BinaryIO = _standard_output() if config.path == "-" else open(config.path, "wb")  # noqa: SIM115, PTH123
        self._together = config.flows_per_message
        self._stored: list[Stored] = []

    def write(self, batch: int, flows: list[Flow]) -> None:
        lines, _, refused = encoded(flows, orjson.dumps)
        if self._together > 1:
            lines = [b"[" + b",".join(lines[i : i + self._together]) + b"]" for i in range(0, len(lines), self._together)]
        if lines:
            self._file.write(b"\n".join(lines) + b"\n")
        self._stored.append(Stored(batch, len(flows) - len(refused), refused))

    def stored(self, _seconds: float = 0) -> list[Stored]:
        if not self._file.closed:
            self._file.flush()
        stored, self._stored = self._stored, []
        return stored

    def close(self) -> None:
        if self._to_standard_output:
            self._file.flush()
        else:
            self._file.close()


def _standard_output() -> BinaryIO:
    if sys.stdout is None:
        raise OSError(errno.EBADF, "standard output is closed")
    # With PYTHONUNBUFFERED it is a raw file, whose write may take less than it is given.
    raw = sys.stdout.buffer
    return io.BufferedWriter(io.FileIO(raw.fileno(), "wb", closefd=False)) if isinstance(raw, io.RawIOBase) else raw


def sink(config: Config) -> FileSink:
    return FileSink(config)
