"""The ledger: what a worker took, holds and owes, so that a crash of anything loses nothing and counts nothing twice.

A directory with an append-only journal, in segments `journal-00000001`, ... A record is one commit:

    b"NSLG", length and CRC-32 of what follows (4 bytes each, big endian), a msgpack map

    ledger, version, since   first record of a segment: identity of the ledger, format, the oldest segment that is needed
    keys, slice              keys of messages that were taken, 16 bytes each, and the slice of time they belong to
    opened, grown, ended     what changed in stitching (flow.Changes), stitching: its other state
    rows, letters            what is owed since: finished flows and dead letters, numbered from `next` on in this order
    done                     numbers of what was confirmed since
    totals                   [word, stage, reason, number], since the ledger began
    arrival, worked          the arrival clock, unix seconds; how long the queue was listened to, seconds
    held, slices, outbox, complete
                             a checkpoint, spread over many commits: everything once more, then the number of the segment it began in;
                             older segments are not needed from there on, and are deleted

Applying the records in order gives the state. A record that is cut off at the very end was never acknowledged to anybody and is
taken away; any other fault is damage, and refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgpack

from netsage_pipeline.flow import Changes, Finished
from netsage_pipeline.statedir import NoRoom, StateError, locked

VERSION = 1

#: A journal's segment is closed when it is longer, bytes.
SEGMENT_BYTES = 64_000_000

#: What is written anew by one commit while a checkpoint is under way: flows that are held, and keys.
CHECKPOINT_STEP = 2_000

#: Seconds for which keys of messages are known, of listening to the queue, and how many make a slice.
KEYS_S = 86_400
SLICE_S = 3_600

#: Memory for a key, measured by benchmarks/memory.py: 64 bytes, and 27 to 53 for its place in a set of more than 50,000.
KEY_BYTES = 120

_MAGIC = b"NSLG"
_HEAD = len(_MAGIC) + 8
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: What is owed: a finished flow, to be enriched and written, or the envelope of a dead letter.
Row = Finished | bytes

#: A commit as it is stored, before it is encoded.
Record = dict[str, Any]

T = TypeVar("T")


class State:
    """What the records of a journal add up to."""

    def __init__(self) -> None:
        self.ledger = ""  #: identity, 32 hex digits
        self.since = 0  #: the oldest segment that is needed
        self.held: dict[str, list[Any]] = {}
        self.stitching: list[Any] = []
        self.outbox: dict[int, Row] = {}
        self.owed_bytes = 0  #: of the JSON in the outbox
        self.next = 0  #: number of the next row of the outbox
        self.slices: dict[int, set[bytes]] = {}  #: start of a slice of time (seconds of `worked`) → keys
        self.totals: Counter[tuple[str, str, str]] = Counter()
        self.arrival = 0.0
        self.worked = 0.0

    def apply(self, record: Record) -> None:
        """Takes a record in that was read from the journal."""
        self.ledger, self.since = record.get("ledger", self.ledger), record.get("since", self.since)
        held = self.held
        held.update(_shared(record.get("opened", {})))
        for flow_id, numbers in record.get("grown", {}).items():
            if flow_id in held:  # Else it was opened in a segment that is gone, and what the checkpoint says of it follows.
                held[flow_id][1:] = numbers
        for flow_id in record.get("ended", ()):
            held.pop(flow_id, None)
        held.update(_shared(record.get("held", {})))
        if "totals" in record:
            self.totals = Counter({(word, stage, reason): number for word, stage, reason, number in record["totals"]})
        for start, keys in record.get("slices", ()):
            self.slices.setdefault(start, set()).update(_split(keys))
        for number, row in record.get("outbox", ()):
            self._owe(number, row)
        self.apply_own(record)

    def apply_own(self, record: Record) -> None:
        """Takes in what only the ledger keeps; what stitching holds changed already when the record is the worker's own."""
        self.stitching = record.get("stitching", self.stitching)
        if keys := record.get("keys"):
            self.slices.setdefault(record["slice"], set()).update(_split(keys))
        self.next = record.get("next", self.next)
        for row in (*record.get("rows", ()), *record.get("letters", ())):
            self._owe(self.next, row)
            self.next += 1
        for number in record.get("done", ()):
            if (paid := self.outbox.pop(number, None)) is not None:
                self.owed_bytes -= _row_bytes(paid)
        self.arrival, self.worked = record.get("arrival", self.arrival), record.get("worked", self.worked)
        self.since = record.get("complete", self.since)

    def _owe(self, number: int, row: Any) -> None:
        if number not in self.outbox:
            self.outbox[number] = row if isinstance(row, bytes) else tuple(row)
            self.owed_bytes += _row_bytes(row)

    def knows(self, key: bytes) -> bool:
        """Whether a message with this key was taken."""
        return any(key in keys for keys in self.slices.values())

    @property
    def keys(self) -> int:
        """How many keys are known."""
        return sum(map(len, self.slices.values()))


def _split(keys: bytes) -> Iterator[bytes]:
    return (keys[place : place + 16] for place in range(0, len(keys), 16))


def _shared(held: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Equal numbers become one object, as most were when the flows were held: a million of them take 100 MB less."""
    floats: dict[float, float] = {}
    integers: dict[int, int] = {}  # Apart, because 1 == 1.0.
    for each in held.values():
        for place, value in enumerate(each):
            if value.__class__ is float:
                each[place] = floats.setdefault(value, value)
            elif value.__class__ is int:
                each[place] = integers.setdefault(value, value)
    return held


def _row_bytes(row: Any) -> int:
    return len(row if isinstance(row, bytes) else row[0])


class Commit(NamedTuple):
    """What a worker did since the last commit."""

    keys: list[bytes]  #: of the messages taken, 16 bytes each
    changes: Changes | None  #: of stitching; None if the chain has none
    rows: list[Finished]
    letters: list[bytes]
    done: list[int]  #: numbers of rows that are confirmed
    counts: Counter[tuple[str, str, str]]  #: what is to be added to the totals
    arrival: float
    worked: float


class Ledger:
    """The ledger of one worker, which holds its lock. StateError if it is in use, damaged or cannot be read."""

    durable = True  #: whether what is written may be acknowledged at once

    def __init__(self, directory: Path, keys_limit_bytes: int = 200_000_000, *, salvaged: State | None = None) -> None:
        self.directory = directory
        self._keys_limit = max(keys_limit_bytes // KEY_BYTES, 1)
        self._keys_of_slice = max(self._keys_limit * SLICE_S // KEYS_S, 1)
        self._lock = locked(directory)
        try:
            self._open(salvaged)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, salvaged: State | None) -> None:
        self.state, self.cut_off = (salvaged, 0) if salvaged else recovered(self.directory)
        self._forget_keys()
        self._checkpoint: Iterator[Record] | None = None
        self._written = size(self.directory)  # since the last checkpoint began, bytes
        self._last_checkpoint = 0  # bytes
        found = segments(self.directory)
        self._number = max(found, default=0)
        self._file = -1
        if salvaged or not found:
            try:
                self._begin_segment()
            except NoRoom as error:
                raise StateError(f"{error}: make room, then start again") from None
        else:  # Needs no room, and a process that dies at every start leaves no file each time.
            self._path = found[self._number]
            try:
                self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            except OSError as error:
                raise StateError(f"{self._path}: cannot be written: {error.strerror}: see to the disk, then start again") from None
            self._bytes = os.fstat(self._file).st_size
        if not salvaged:
            self._delete_before(self.state.since)  # A crash may have left them.

    def letter_id(self, number: int, _letter: bytes) -> str:
        """The message id of a dead letter, the same after a crash: the broker may have it already."""
        return f"{self.state.ledger}-{number}"

    def encode(self, commit: Commit) -> bytes:
        """The record of a commit, with a part of the checkpoint if one is under way. To be given to `write` until it has room."""
        state, changes = self.state, commit.changes
        state.totals.update(commit.counts)
        record: Record = {
            "arrival": commit.arrival,
            "worked": commit.worked,
            "next": state.next,
            "stitching": state.stitching if changes is None else changes.state,
            "totals": [[*what, number] for what, number in state.totals.items()],
        }
        if commit.keys:
            record["keys"], record["slice"] = b"".join(commit.keys), self._slice(commit.worked)
        for name in ("rows", "letters", "done"):
            if values := getattr(commit, name):
                record[name] = values
        if changes is not None:
            for name in ("opened", "grown", "ended"):
                if values := getattr(changes, name):
                    record[name] = values
        record |= self._next_of_checkpoint()
        self._record = record
        return packed(record)

    def write(self, encoded: bytes) -> None:
        """Stores what `encode` gave, durably. NoRoom if it cannot: then nothing is changed."""
        try:
            _write_all(self._file, encoded)
            os.fdatasync(self._file)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                with contextlib.suppress(OSError):  # The next start would find in memory, and trust, what did not reach the disk.
                    os.ftruncate(self._file, self._bytes)
                raise StateError(f"{self._path}: cannot be written: {error.strerror}: see to the disk, then start again") from None
            os.ftruncate(self._file, self._bytes)
            raise NoRoom(f"{self.directory}: {error.strerror}") from None
        self._bytes += len(encoded)
        self._written += len(encoded)
        self.state.apply_own(self._record)
        self._forget_keys()
        if "complete" in self._record:
            self._checkpoint = None
            self._delete_before(self.state.since)
        if self._bytes > SEGMENT_BYTES:
            with contextlib.suppress(NoRoom):  # The old one takes more.
                self._begin_segment()

    @property
    def checkpointing(self) -> bool:
        """Whether a checkpoint is under way, so that commits that say nothing make it go on."""
        return self._checkpoint is not None

    def checkpoint(self) -> None:
        """Writes everything once more, at once. StateError, also if there is no room."""
        nothing = Commit([], None, [], [], [], Counter(), self.state.arrival, self.state.worked)
        try:
            self._begin_segment()  # What was there before must not come back from the segment in which the checkpoint begins.
            self._checkpoint = self._steps_of_checkpoint()
            while self._checkpoint is not None:
                self.write(self.encode(nothing))
        except NoRoom as error:
            raise StateError(f"{error}: make room, then try again") from None

    def close(self) -> None:
        """Gives the ledger free."""
        os.close(self._file)
        os.close(self._lock)

    def _slice(self, worked: float) -> int:
        newest = max(self.state.slices, default=None)
        if newest is not None and worked - newest < SLICE_S and len(self.state.slices[newest]) < self._keys_of_slice:
            return newest
        return int(worked) if newest is None else max(int(worked), newest + 1)

    def _forget_keys(self) -> None:
        slices = self.state.slices
        for start in sorted(slices)[:-1]:
            if self.state.worked - start < KEYS_S + SLICE_S and self.state.keys <= self._keys_limit:
                return
            del slices[start]

    @property
    def keys_full(self) -> float:
        """How full the memory for keys is, 0 to 1."""
        return self.state.keys / self._keys_limit

    def _next_of_checkpoint(self) -> Record:
        if self._checkpoint is None and self._written > max(2 * SEGMENT_BYTES, 2 * self._last_checkpoint):
            self._checkpoint = self._steps_of_checkpoint()
        return next(self._checkpoint) if self._checkpoint is not None else {}

    def _steps_of_checkpoint(self) -> Iterator[Record]:
        state = self.state
        with contextlib.suppress(NoRoom):
            self._begin_segment()
        first, self._written = self._number, 0
        written = 0
        for ids in _chunks(list(state.held), CHECKPOINT_STEP):
            held = {flow_id: each for flow_id in ids if (each := state.held.get(flow_id)) is not None}
            written += sum(len(each[0]) + 150 for each in held.values())
            yield {"held": held}
        for start, keys in list(state.slices.items()):
            for some in _chunks(keys.copy(), CHECKPOINT_STEP * 10):
                written += 16 * len(some)
                yield {"slices": [[start, b"".join(some)]]}
        self._last_checkpoint = written + state.owed_bytes
        yield {"outbox": list(state.outbox.items()), "complete": first}

    def _begin_segment(self) -> None:
        """Starts a file; all of the journal up to here stays valid if this fails. NoRoom."""
        number = self._number + 1
        path = _segment(self.directory, number)
        head = packed({"ledger": self.state.ledger, "version": VERSION, "since": self.state.since or number})
        try:
            file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND, 0o600)
            try:
                _write_all(file, head)
                os.fsync(file)
                _sync_directory(self.directory)
            except OSError:
                os.close(file)
                path.unlink()
                raise
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise NoRoom(f"{self.directory}: {error.strerror}") from None
            raise StateError(f"{path}: cannot be written: {error.strerror}: see to the directory, then start again") from None
        if self._file >= 0:
            os.close(self._file)
        self._file, self._path, self._number, self._bytes = file, path, number, len(head)
        self.state.since = self.state.since or number

    def _delete_before(self, number: int) -> None:
        """Oldest first, so that what a crash leaves has no gap."""
        try:
            for each, path in segments(self.directory).items():
                if each < number:
                    path.unlink()
            _sync_directory(self.directory)
        except OSError as error:
            raise StateError(f"{self.directory}: {error.strerror}: see to the directory, then start again") from None


def packed(record: Record) -> bytes:
    """A record as it stands in a segment."""
    body = msgpack.packb(record)
    return b"%s%s%s%s" % (_MAGIC, len(body).to_bytes(4), zlib.crc32(body).to_bytes(4), body)


def recovered(directory: Path, *, touch: bool = True) -> tuple[State, int]:
    """The state of a ledger, and how many bytes at its end were cut off (and are taken away, if it may be touched). StateError."""
    found = segments(directory)
    state, cut_off, end = _replayed(found)
    if min(found, default=0) < state.since:  # It died before it had deleted what the last checkpoint made needless, or undid.
        found = {number: path for number, path in found.items() if number >= state.since}
        state, cut_off, end = _replayed(found)
    _check_gaps(directory, found, state)
    if found and touch:
        _settle(found[max(found)], end)
    state.ledger = state.ledger or uuid.uuid4().hex
    state.outbox = dict(sorted(state.outbox.items()))  # A checkpoint gives older rows behind newer ones.
    return state, cut_off


def _replayed(found: dict[int, Path]) -> tuple[State, int, int]:
    """What the records of some segments add up to, how many bytes at the end are no record, and where the last record ends."""
    state = State()
    cut_off = end = 0
    for number, path in found.items():
        content = _read(path)
        end = 0
        for place, record, behind in _records(content):
            if record is None:
                what = _fault(content, place, last=number == max(found))
                if what:
                    raise StateError(
                        f"{path}: is damaged at byte {place:,}: {what}: "
                        "netsage-pipeline ledger salvage keeps what can be read; a copy from a backup would keep all"
                    )
                cut_off = len(content) - place
                break
            _check_version(path, record)
            state.apply(record)
            end = behind
        if not end and number != max(found):
            raise StateError(f"{path}: is empty, but there are later ones: netsage-pipeline ledger salvage keeps what can be read")
    return state, cut_off, end


def _settle(path: Path, end: int) -> None:
    """Cuts the last segment off there, and makes durable what was read of it: a process that was killed may not have come to that."""
    try:
        if not end:
            path.unlink()  # It was begun, but nothing was written.
            _sync_directory(path.parent)
            return
        file = os.open(path, os.O_RDWR)
        try:
            os.ftruncate(file, end)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {error.strerror}: see to the disk, then start again") from None


def _check_version(path: Path, record: Record) -> None:
    if record.get("version", VERSION) > VERSION:
        raise StateError(f"{path}: was written by a newer version: install that, or drain the ledger with it first")


def _check_gaps(directory: Path, found: dict[int, Path], state: State) -> None:
    if missing := _missing(found, state):
        raise StateError(
            f"{_segment(directory, missing[0])}: is missing: netsage-pipeline ledger salvage keeps what can be read; "
            "a copy from a backup would keep all"
        )


def _missing(found: dict[int, Path], state: State) -> list[int]:
    newest = max(found, default=0)
    return sorted(set(range(state.since or min(found, default=0), newest)) - found.keys())


def _fault(content: bytes, place: int, *, last: bool) -> str:
    """What is wrong there; "" if it is only the end of a journal that was cut off while it was written."""
    if not last:
        return "a record is not whole, and there are later ones"
    rest = content[place:]
    cut = len(rest) < _HEAD or (rest[:4] == _MAGIC and len(rest) < _HEAD + int.from_bytes(rest[4:8]))
    if cut or not any(rest[-4096:]):  # A file system that lost power leaves zeros.
        return "" if _sound_behind(content, place) < 0 else "a record is not whole, and there are later ones"
    return "a record is not what was written" if rest[:4] == _MAGIC else "there is no record"


def salvage(directory: Path) -> tuple[State, list[str], Path]:
    """Makes a sound ledger of what can be read of a damaged one. Gives its state, a line for each fault, and where the damaged one is."""
    os.close(locked(directory))
    state = State()
    faults = []
    found = segments(directory)
    for path in found.values():
        content = _read(path)
        if not content:
            faults.append(f"{path}: is empty")
        for place, record, end in _records(content, skip=True):
            if record is None:
                faults.append(f"{path}: bytes {place:,} to {end:,}: cannot be read, passed over")
            else:
                _check_version(path, record)
                state.apply(record)
    faults += [f"{_segment(directory, number)}: is missing" for number in _missing(found, state)]
    state.ledger = state.ledger or uuid.uuid4().hex
    state.outbox = dict(sorted(state.outbox.items()))
    try:
        aside = Path(tempfile.mkdtemp(prefix=time.strftime("damaged-%Y%m%dT%H%M%S-", time.gmtime()), dir=directory))
        for path in found.values():
            shutil.copy2(path, aside / path.name)
    except OSError as error:
        raise StateError(f"{directory}: the damaged ledger cannot be copied: {error.strerror}: make room, then try again") from None
    ledger = Ledger(directory, salvaged=state)
    ledger.checkpoint()
    ledger.close()
    return state, faults, aside


def _records(content: bytes, *, skip: bool = False) -> Iterator[tuple[int, Record | None, int]]:
    """The records of a segment, where they begin and end; None for what is not sound, which is passed over or ends it."""
    place = 0
    while place < len(content):
        record, end = _record_at(content, place)
        if record is None:
            sound = _sound_behind(content, place) if skip else -1
            end = sound if sound >= 0 else len(content)
        yield place, record, end
        place = end


def _sound_behind(content: bytes, place: int) -> int:
    """Where the next sound record behind a place begins; -1 if there is none."""
    while (place := content.find(_MAGIC, place + 1)) >= 0:
        if _record_at(content, place)[0] is not None:
            break
    return place


def _record_at(content: bytes, place: int) -> tuple[Record | None, int]:
    head = content[place : place + _HEAD]
    if len(head) < _HEAD or head[:4] != _MAGIC:
        return None, 0
    end = place + _HEAD + int.from_bytes(head[4:8])
    body = memoryview(content)[place + _HEAD : end]
    if end > len(content) or zlib.crc32(body) != int.from_bytes(head[8:12]):
        return None, 0
    record: Record = msgpack.unpackb(body, strict_map_key=False)
    return record, end


def segments(directory: Path) -> dict[int, Path]:
    """The files of a journal by number, in order."""
    return {int(path.name.removeprefix("journal-")): path for path in sorted(directory.glob("journal-" + "[0-9]" * 8))}


def _segment(directory: Path, number: int) -> Path:
    return directory / f"journal-{number:08}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # A worker deletes what it does not need any more.
        return 0


def size(directory: Path) -> int:
    """Bytes of a ledger's journal."""
    return sum(_size(path) for path in segments(directory).values())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from None


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while chunk := list(islice(rest, size)):
        yield chunk
