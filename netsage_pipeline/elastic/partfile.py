"""A file that is written over several runs.

It is called FILE.part until it is complete; FILE.part.json says what it is a part of, and how far it is whole.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol

import orjson

from netsage_pipeline.config import SettingsError


class Mark(NamedTuple):
    """How far a file is whole: all records up to a value of what they are sorted by, and none behind it."""

    after: Any = None  #: that value; of no meaning if there is no record
    bytes: int = 0
    records: int = 0


class Out(Protocol):
    """Where records go. Used as a context; all methods raise OSError."""

    name: str  #: what is written to
    mark: Mark  #: what was there already

    def __enter__(self) -> Out: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def write(self, line: bytes) -> None:
        """Writes a record."""

    def whole(self, after: Any) -> None:
        """All that was written so far is whole up to this value."""

    def save(self) -> None:
        """Hands on what was written, and makes the last mark the one to go on from."""

    def finish(self) -> None:
        """Nothing more comes, and all is well."""

    @property
    def again(self) -> str:
        """What becomes of another run."""

    @property
    def anew(self) -> str:
        """What makes another run begin anew."""

    @property
    def directory(self) -> Path | None:
        """Where there is room for as much again."""


class PartFile:
    """A file for its owner alone, since records may hold full addresses, that gets its name when it is complete.

    `of` says what it is a part of. SettingsError, when it is opened, if the file is there already, another process writes it, or what is
    there is a part of something else.
    """

    def __init__(self, path: Path, of: dict[str, str], *, overwrite: bool = False) -> None:
        self._path, self._of, self._overwrite = path, of, overwrite
        self._part, self._state = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
        self._new_state = path.with_name(f"{path.name}.part.json.new")
        self.name = str(self._part)
        self.mark = Mark()
        self._written = self._next = Mark()
        self._finished = False
        self._file: BinaryIO

    @property
    def again(self) -> str:
        goes_on = f": it goes on behind the {self.mark.records:,} records that {self._part} holds" if self.mark.records else ""
        return f"run it again{goes_on}"

    @property
    def anew(self) -> str:
        return f"remove {self._part} and run it again"

    @property
    def directory(self) -> Path | None:
        return self._path.parent

    def __enter__(self) -> PartFile:
        self._file = open(self._part, "r+b", opener=_private)
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise
        return self

    def _take_up(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError([f"{self._part}: another dump is writing it: wait for it, or name another file with --out"]) from None
        there = os.fstat(self._file.fileno()).st_size
        if self._path.exists() and not self._overwrite:
            if not there:
                self._part.unlink()
            raise SettingsError([f"{self._path}: is there already: name another file with --out, or replace it with --overwrite"])
        if there:
            self.mark = self._written = self._next = self._left_by_an_earlier_run(there)
            self._file.truncate(self.mark.bytes)
            self._file.seek(self.mark.bytes)
        else:
            self._write_state()

    def _left_by_an_earlier_run(self, there: int) -> Mark:
        try:
            state = orjson.loads(self._state.read_bytes())
            mark = Mark(**state["whole"])
            of = dict(state["of"])
        except (OSError, ValueError, LookupError, TypeError):
            raise SettingsError(
                [f"{self._part}: is not known to be part of a dump ({self._state.name} is missing or damaged): remove it"]
            ) from None
        other = [option for option in {**of, **self._of} if of.get(option) != self._of.get(option)]
        if other:
            raise SettingsError(
                [f"{self._part}: is part of a dump with another {' and '.join(other)}: give the same to go on with it, or remove it"]
            )
        if there < mark.bytes:
            raise SettingsError([f"{self._part}: is shorter than it was: remove it, and the dump begins anew"])
        return mark

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._finished and not self.mark.records:  # There is nothing to go on from.
            self._state.unlink(missing_ok=True)
            self._part.unlink(missing_ok=True)
        if error is None:
            self._file.close()
        else:
            with suppress(OSError):  # A full disk is complained about once more when the buffer is given up.
                self._file.close()

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.write(b"\n")
        _, size, records = self._written
        self._written = Mark(None, size + len(line) + 1, records + 1)

    def whole(self, after: Any) -> None:
        self._next = self._written._replace(after=after)

    def save(self) -> None:
        if self._next.bytes > self.mark.bytes:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.mark = self._next
            self._write_state()

    def finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)
        self._finished = True
        self._state.unlink(missing_ok=True)
        self._new_state.unlink(missing_ok=True)

    def _write_state(self) -> None:
        """Replaces the state at once, so that it is whole whenever the process or the machine ends."""
        with open(self._new_state, "wb", opener=_private) as file:
            file.write(orjson.dumps({"of": self._of, "whole": self.mark._asdict()}))
            file.flush()
            os.fsync(file.fileno())
        self._new_state.replace(self._state)


class Stream:
    """Standard output, or what else is no file of its own: nothing of it can be taken back."""

    again = anew = "run it again"
    directory = None

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.name = str(path) if path else "standard output"
        self.mark = Mark()
        self._file: BinaryIO

    def __enter__(self) -> Stream:
        if self._path:
            self._file = self._path.open("wb")
        elif sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        else:  # With PYTHONUNBUFFERED it is a raw file, whose write may take less than it is given.
            raw = sys.stdout.buffer
            self._file = open(raw.fileno(), "wb", closefd=False) if isinstance(raw, io.RawIOBase) else raw
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._path:
            with suppress(OSError):  # All that counts was flushed.
                self._file.close()

    def write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.write(b"\n")

    def whole(self, after: Any) -> None:
        pass

    def save(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        self._file.flush()


def _private(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_CREAT, 0o600)
