"""Fresh lookup tables: fetched, unpacked, opened and counted beside the tables in use, and only then put in their place.

All that is not finished lies in the directory .update among the tables, on the same file system: what is renamed from there is there whole
or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import orjson

from netsage_pipeline.config import SettingsError
from netsage_pipeline.tables import as_org2info, members, scireg
from netsage_pipeline.tables.content import Content, content
from netsage_pipeline.tables.fetch import Answer, Before, NotFetched, fetch, host_of
from netsage_pipeline.tables.sources import Source

#: Of the entries of the table in use, a new one must have this share.
SHARE = 0.5

#: Bytes of a file with a checksum.
CHECKSUM_BYTES = 1_000


class Refused(Exception):
    """What was fetched cannot be used; the text is why, and what to do."""


class Update:
    """Fetches into one directory of tables. What the servers said is remembered there, so that what is unchanged is not fetched again."""

    def __init__(self, directory: Path, limit: int, *, force: bool) -> None:
        self._directory, self._limit, self._force = directory, limit, force
        self._work = directory / ".update"
        self._memory: dict[str, Any] = {}
        self._left_out: list[str] = []

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the directory for one run. SettingsError if another one has it, or if it cannot be written."""
        try:
            self._work.mkdir(parents=True, exist_ok=True)
            held = os.open(self._work, os.O_RDONLY)
        except OSError as error:
            raise SettingsError([f"{self._work}: cannot be written: {error.strerror}: tables are in NETSAGE_LOOKUPS"]) from None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._memory = self._remembered()
            self._clear()
            yield
            self._clear()
        except BlockingIOError:
            raise SettingsError([f"{self._directory}: another update is at work there: wait for it"]) from None
        finally:
            os.close(held)

    def update(self, source: Source) -> str:
        """Brings one table up to date, and says what was done. NotFetched, Refused, OSError: the table in use stays."""
        target = self._directory / source.table
        known = self._known(source, target)
        self._clear()
        fetched = self._work / "fetched"
        answer = fetch(source.url, fetched, self._limit, user=source.user, password=source.password, before=known)
        if answer is None or (known and answer.sha256 == self._memory[source.name].get("sha256")):
            return "unchanged"
        checked = self._check(source, answer)
        try:
            new = self._take(source, self._table(source, fetched), target)
        except UnicodeDecodeError as error:
            raise Refused(f"is not UTF-8 (byte {error.start}): have it saved as UTF-8") from None
        except ValueError as error:
            first, *more = str(error).splitlines() or [type(error).__name__]
            raise Refused(first + (f" (and {len(more)} more)" if more else "")) from None
        except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError):
            raise Refused("is truncated or damaged: the next run fetches it again") from None
        self._remember(source, answer, target)
        of = f"built {new.day}, " if target.suffix == ".mmdb" else ""
        return f"fetched from {host_of(source.url)}: {of}{new.entries:,} entries{', its checksum is right' if checked else ''}"

    def left_out(self) -> list[str]:
        """What was left out of a table that was taken nevertheless, a line each, since this was asked last."""
        lines, self._left_out = self._left_out, []
        return lines

    def _check(self, source: Source, answer: Answer) -> bool:
        """Whether there is a checksum. Refused if it is another one."""
        if not source.checksum_url:
            return False
        file = self._work / "checksum"
        try:
            fetch(source.checksum_url, file, CHECKSUM_BYTES, user=source.user, password=source.password)
        except NotFetched as error:
            if source.user:
                raise NotFetched(f"its checksum: {error}") from None
            return False
        found = re.match(rb"[0-9a-fA-F]{64}\b", file.read_bytes())
        if found is None and source.user:
            raise Refused("its checksum is no sha256: correct the address")
        if found and found[0].decode().lower() != answer.sha256:
            raise Refused("its checksum is not the one that is published: the next run tries it again")
        return found is not None

    def _table(self, source: Source, fetched: Path) -> Path:
        """The table that was fetched: unpacked, and made of what else it can be made of."""
        if _begins(fetched, b"\x1f\x8b"):
            fetched = self._unpacked(source, fetched)
        made = self._work / source.table.name
        if source.kind == "registry" and _begins(fetched, b"[", b"{"):
            self._left_out += [f"{source.name}: {line}" for line in scireg.build(fetched, made).errors]
            return made
        if source.kind == "caida" and _begins(fetched, b"#"):
            self._left_out += [f"{source.name}: {line}" for line in as_org2info.convert(fetched, made)]
            return made
        name = Path(urlsplit(source.url).path).name
        if name.endswith(".rb"):
            fetched = fetched.rename(self._work / name)  # The name stands in what is made of it.
            lists = members.convert(fetched)
            if len(lists) > 1:
                raise ValueError(f"holds {len(lists)} lists: put each into a file of its own")
            [only] = lists
            lines = [line.removeprefix(str(fetched)) for line in only.errors]
            if not only.name:
                raise ValueError(lines[0].removeprefix(": "))
            self._left_out += [f"{source.name}{line}" for line in lines]
            made.write_text(only.text, "utf-8")
            return made
        return fetched

    def _unpacked(self, source: Source, packed: Path) -> Path:
        """The file in a .gz, or the one of its kind in a .tar.gz."""
        whole = self._work / "unpacked"
        with gzip.open(packed) as unzipped:
            self._copy(unzipped, whole)
        if not tarfile.is_tarfile(whole):
            return whole
        wanted = {source.table.suffix, *({".json"} if source.kind == "registry" else ())}
        one = self._work / "of the archive"
        with tarfile.open(whole) as archive:
            found = [member for member in archive if member.isfile() and Path(member.name).suffix in wanted]
            if len(found) != 1:
                raise ValueError(f"is an archive with {len(found)} files that end in {' or '.join(sorted(wanted))}: one is wanted")
            file = archive.extractfile(found[0])
            assert file is not None
            self._copy(file, one)
        return one

    def _copy(self, source: IO[bytes] | gzip.GzipFile, to: Path) -> None:
        left = self._limit
        with to.open("wb") as file:
            while chunk := source.read(1 << 16):
                left -= len(chunk)
                if left < 0:
                    raise ValueError(
                        f"is longer than {self._limit:,} bytes when it is unpacked: is it the right file? else raise limit_bytes"
                    )
                file.write(chunk)

    def _take(self, source: Source, made: Path, target: Path) -> Content:
        """Opens and counts the new table, compares it with the one in use, and puts it in its place."""
        new = content(source.kind, made)
        if not new.entries:
            raise ValueError("holds no entries")
        if not self._force and target.exists():
            with contextlib.suppress(ValueError):  # What is broken is no reason against a new one.
                before = content(source.kind, target).entries
                if new.entries < SHARE * before:
                    raise Refused(f"has {new.entries:,} entries, and the table in use {before:,}: look at it; --force takes it")
        with made.open("rb+") as file:
            os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        made.replace(target)
        return new

    def _known(self, source: Source, target: Path) -> Before | None:
        """What was said of the table in use, if it came from the same address and nobody touched it since."""
        of: Any = self._memory.get(source.name)
        try:
            if of["url"] == _digest(source.url) and of["file"] == _identity(target):
                return Before(str(of["etag"]), str(of["modified"]))
        except (LookupError, TypeError, OSError):
            pass
        return None

    def _remembered(self) -> dict[str, Any]:
        try:
            found = orjson.loads((self._work / "memory.json").read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, source: Source, answer: Answer, target: Path) -> None:
        self._memory[source.name] = {
            "url": _digest(source.url),
            "etag": answer.said.etag,
            "modified": answer.said.modified,
            "sha256": answer.sha256,
            "file": _identity(target),
        }
        new = self._work / "memory.json.new"
        with contextlib.suppress(OSError):  # The table is in its place; it will be fetched once more.
            new.write_bytes(orjson.dumps(self._memory))
            new.replace(self._work / "memory.json")

    def _clear(self) -> None:
        """Takes away what a table, or a killed run, left behind."""
        for path in self._work.iterdir():
            if path.name != "memory.json":
                path.unlink()


def _begins(path: Path, *beginnings: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(1_000).lstrip(b" \t\r\n\xef\xbb\xbf").startswith(beginnings)


def _identity(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _digest(url: str) -> str:
    """Addresses may hold secrets."""
    return blake2b(url.encode(), digest_size=16).hexdigest()
