"""The lookup tables of a chain: each opened once, by the file in lookups/ that is named after its kind, and opened anew when it changes.

A kind is what a table holds, so a table of the wrong content is refused as a broken one is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netsage_pipeline.flow import Table
from netsage_pipeline.folders import shipped
from netsage_pipeline.stagefile import load

#: Kind and path of a table.
Key = tuple[str, Path]

#: What a file was like, or each file of a directory ("." is itself): name, inode, bytes, and last changes of content and inode in
#: nanoseconds. A text says why it cannot be looked at.
State = tuple[tuple[str, int, int, int, int], ...] | str


class Nothing:
    """The table that knows nothing: stands in for a missing file, so that its stage writes what it writes for "not found"."""

    def get(self, *_key: object) -> None:
        return None


class Tables:
    """Opens tables below one directory and keeps them; `missing` and `broken` collect what was not to be had.

    refused   a line for each table that the last look (`changed`) found changed and could not use
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.missing: list[Path] = []
        self.broken: list[str] = []
        self.refused: list[str] = []
        self.opened: dict[Key, Table] = {}
        self._states: dict[Key, State] = {}  # As they were dealt with.
        self._unsettled: dict[Key, State] = {}  # As the last look found them, where that is something else.

    def __call__(self, kind: str, path: Path) -> Table:
        path = self.directory / path
        key = (kind, path)
        if key not in self.opened:
            self._states[key] = _state(path)  # Before it is read: what changes meanwhile is seen by the next look.
            self.opened[key] = self._open(kind, path)
        return self.opened[key]

    def _open(self, kind: str, path: Path) -> Table:
        if not path.exists():
            self.missing.append(path)
            return Nothing()
        try:
            return read(kind, path)
        except (OSError, ValueError) as error:
            self.broken += [f"{path}: {line}" for line in _lines(error)]
            return Nothing()

    def changed(self) -> Tables | None:
        """A look at all files: other tables to be used from now on, if some could be opened anew; the rest is shared with these.

        A change counts when two looks in a row found the same: a file may still be being written. A new file that is broken or empty, and
        one that is gone, is in `refused` once, and the table that was read before stays. Look at the other tables next, also if a stage
        could not use them: the next change offers them again.
        """
        self.refused = []
        anew = {key: table for key in self.opened if (table := self._opened_anew(*key)) is not None}
        if not anew:
            return None
        tables = Tables(self.directory)
        tables.opened = {**self.opened, **anew}
        tables.missing = [path for path in self.missing if not any(path == of for _, of in anew)]
        tables.refused = self.refused
        tables._states, tables._unsettled = self._states, self._unsettled
        return tables

    def _opened_anew(self, kind: str, path: Path) -> Table | None:
        key = kind, path
        state, before = _state(path), self._states[key]
        if state == before:
            self._unsettled.pop(key, None)
            return None
        if self._unsettled.get(key) != state:
            self._unsettled[key] = state
            return None
        wrong = _unusable(state, before)
        table: Table | None = None
        if not wrong:
            try:
                table = read(kind, path)
            except Exception as error:
                first, *more = _lines(error)
                wrong = first + (f" (and {len(more)} more)" if more else "")
            if _state(path) != state:  # It changed while it was read.
                return None
        del self._unsettled[key]
        self._states[key] = state
        if wrong:
            without = isinstance(self.opened[key], Nothing)
            self.refused.append(f"{path}: {wrong}: {'its stage goes on without it' if without else 'the table read before stays in use'}")
        return table


def read(kind: str, path: Path) -> Table:
    """Opens a table. ValueError with a line for each thing that is wrong, OSError."""
    table: Table = load(shipped("lookups") / f"{kind}.py").open_table(path)
    return table


def _lines(error: Exception) -> list[str]:
    return str(error).splitlines() or [type(error).__name__]


def _unusable(state: State, before: State) -> str:
    """What nobody who opens it would find wrong."""
    if isinstance(state, str):
        return f"cannot be looked at ({state})"
    if _is_directory(state) is not _is_directory(before) and not isinstance(before, str):
        return "was a file and is a directory" if _is_directory(state) else "was a directory and is a file"
    return "is empty" if not _is_directory(state) and state[0][2] == 0 else ""


def _is_directory(state: State) -> bool:
    return state[0][0] == "."


def _state(path: Path) -> State:
    try:
        if path.is_dir():
            return (".", path.stat().st_ino, 0, 0, 0), *sorted(_of(each.name, each) for each in path.iterdir())
        return (_of("", path, follow=True),)
    except OSError as error:
        return error.strerror or type(error).__name__


def _of(name: str, path: Path, *, follow: bool = False) -> tuple[str, int, int, int, int]:
    """A file; in a directory also a link to nothing, such as editors leave there."""
    found: Any = path.stat() if follow or path.exists() else path.lstat()
    return name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
