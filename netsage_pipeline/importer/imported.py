"""What an importer remembers: which blocks of capture files it sent, by their content, and at which path it saw what.

A SQLite database. `part` has a row for blocks that were, or are being, sent: all blocks of a file, or those by which it grew since;
once they were, also for those up to the end of each of them.
`file` has what was last found at a path, so that it need not be read again to know.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from netsage_pipeline.statedir import NoRoom, StateError

FILE = "imported.sqlite"
VERSION = 1

_SCHEMA = f"""
CREATE TABLE part (
    sensor TEXT NOT NULL, digest BLOB NOT NULL, first BLOB NOT NULL, begin INTEGER NOT NULL, size INTEGER NOT NULL,
    reading BLOB NOT NULL, messages INTEGER NOT NULL DEFAULT 0, done REAL, seen REAL NOT NULL, PRIMARY KEY (sensor, digest)
) WITHOUT ROWID;
CREATE INDEX beginnings ON part (sensor, first);
CREATE TABLE file (
    sensor TEXT NOT NULL, path BLOB NOT NULL, signature TEXT NOT NULL, digest BLOB NOT NULL, seen REAL NOT NULL, PRIMARY KEY (sensor, path)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""


class Part(NamedTuple):
    """Blocks that are sent together. Positions count from the first block of the file, bytes."""

    sensor: str
    digest: bytes  #: of all blocks of the file up to the end of these
    first: bytes  #: of the first block of the file
    begin: int
    size: int  #: the end of these
    reading: bytes  #: what else the messages depend on, see Importer
    messages: int  #: that are stored where they were sent to
    done: float | None  #: when all were, unix seconds


class Imported:
    """The database. StateError if it cannot be used, NoRoom where it cannot be written: then it is as before."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        try:
            self._path.touch(0o600)
            self._database = sqlite3.connect(self._path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if not version:
                self._database.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            elif version != VERSION:
                raise StateError(f"{self._path}: was written by another version of this program: use that one")
        except OSError as error:
            raise StateError(f"{self._path}: cannot be used: {error.strerror}: NETSAGE_IMPORT_STATE names another directory") from None
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from None

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction."""
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield self._database
            self._database.execute("COMMIT")
        except BaseException as error:
            if self._database.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                raise NoRoom(f"{self._path}: {error}") from None
            if isinstance(error, sqlite3.Error):
                raise _unusable(self._path, error) from None
            raise

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from None

    # Parts.

    def part(self, sensor: str, digest: bytes) -> Part | None:
        found = self._parts("digest = ?", sensor, digest)
        return found[0] if found else None

    def beginnings(self, sensor: str, first: bytes, size: int) -> list[Part]:
        """The parts of files that began with this block and were no longer."""
        return self._parts("first = ? AND size <= ?", sensor, first, size)

    def _parts(self, where: str, *values: object) -> list[Part]:
        columns = ", ".join(Part._fields)
        return [Part(*row) for row in self._rows(f"SELECT {columns} FROM part WHERE sensor = ? AND {where}", *values)]  # noqa: S608

    def begin(self, part: Part, now: float) -> None:
        """Takes note of a part, or of another reading of one, before any of it is sent."""
        with self.writing() as database:
            database.execute("INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*part, now))

    def sent(self, parts: Iterable[tuple[Part, int, float | None, Iterable[Part]]]) -> None:
        """Takes note of how many messages of parts are stored, and when all were: then that holds for the parts within them, too."""
        with self.writing() as database:
            for part, messages, done, within in parts:
                database.execute(
                    "UPDATE part SET messages = ?, done = ? WHERE sensor = ? AND digest = ?", (messages, done, part.sensor, part.digest)
                )
                if done:
                    rows = [(*shorter._replace(messages=0, done=done), done) for shorter in within]
                    database.executemany(
                        "INSERT INTO part VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
                        "ON CONFLICT (sensor, digest) DO UPDATE SET done = excluded.done WHERE done IS NULL",
                        rows,
                    )

    # Files.

    def files(self, sensor: str) -> dict[str, str]:
        """Paths → signatures of the files whose content was sent completely."""
        query = "SELECT path, signature FROM file JOIN part USING (sensor, digest) WHERE sensor = ? AND done IS NOT NULL"
        return {os.fsdecode(path): signature for path, signature in self._rows(query, sensor)}

    def was_at(self, sensor: str, path: str) -> bool:
        """Whether other blocks than none were found at a path before."""
        query = "SELECT 1 FROM file JOIN part USING (sensor, digest) WHERE sensor = ? AND path = ? AND size > 0"
        return bool(self._rows(query, sensor, os.fsencode(path)))

    def found(self, sensor: str, path: str, signature: str, digest: bytes, now: float) -> None:
        """Takes note of what is at a path."""
        with self.writing() as database:
            database.execute("INSERT OR REPLACE INTO file VALUES (?, ?, ?, ?, ?)", (sensor, os.fsencode(path), signature, digest, now))

    def seen(self, sensor: str, paths: Iterable[str], now: float, keep_s: float) -> None:
        """These files are there; what was not seen for so long is forgotten."""
        with self.writing() as database:
            database.executemany(
                "UPDATE file SET seen = ? WHERE sensor = ? AND path = ?", [(now, sensor, os.fsencode(path)) for path in paths]
            )
            database.execute(
                "UPDATE part SET seen = ? WHERE sensor = ? AND digest IN (SELECT digest FROM file WHERE sensor = ? AND seen = ?)",
                (now, sensor, sensor, now),
            )
            database.execute("DELETE FROM file WHERE sensor = ? AND seen < ?", (sensor, now - keep_s))
            database.execute("DELETE FROM part WHERE sensor = ? AND seen < ?", (sensor, now - keep_s))


def _unusable(path: Path, error: sqlite3.Error) -> StateError:
    return StateError(
        f"{path}: cannot be used: {error}: move it away, if nothing else helps; then files that are still there are imported once more"
    )
