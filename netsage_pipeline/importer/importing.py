"""The importer: capture files of nfcapd, below one directory for each sensor, as messages of flows.

Directories are looked through now and then, so that it works on NFS. Of a file nothing is sent before nfdump has read it to its end without
a complaint and it is still the file that was looked at. The rows of a file always become the same messages with the same ids: killed
anywhere, the importer sends once more what was not known to be stored, and whoever takes the messages knows them by their ids.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Generator
from functools import partial
from hashlib import blake2b
from itertools import islice
from math import inf
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, NamedTuple

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, IPvAnyAddress, field_validator

from netsage_pipeline import waits
from netsage_pipeline.config import Directory, or_none
from netsage_pipeline.deadletters import Letters
from netsage_pipeline.flow import Delivery
from netsage_pipeline.folders import shown
from netsage_pipeline.importer.imported import Imported, Part
from netsage_pipeline.importer.nffile import Blocks, DamagedFile, blocks_of, copy_part, digests, ends_of
from netsage_pipeline.reading.nfdump import FlowType, NfdumpError, Reading, Rows, is_nfcapd, state_of, usable_version
from netsage_pipeline.reading.read import PASSED_OVER, stamped
from netsage_pipeline.statedir import NoRoom
from netsage_pipeline.waits import Wait

log = structlog.get_logger(__name__)

#: Flows in a message, and messages that are handed over at once.
TOGETHER = 100
BATCH = 20

#: Seconds between two times that it is written down how far a file came.
WRITE_S = 1.0

#: Seconds after which a file that could not be read for a reason that may pass is tried again, unless it changed before.
AGAIN_S = 600

#: Seconds after which an open file is mentioned.
OPEN_S = 3_600

#: Seconds for which it is remembered what was imported when the file is gone; how often it is written down that it is there.
KEEP_S = 30 * 86_400
SEEN_S = 86_400

#: How the names of copies of what a file grew by begin.
COPY = "part-"

#: Seconds that a step waits for nfdump, or when there is nothing to do.
STEP_S = 0.05

#: What one step of the work led to: a message; None: nothing yet; IDLE: nothing, and there is nothing to do.
IDLE = False
Steps = Generator[Delivery | bool | None, None, None]


#: What a file is, whatever its path: device and inode.
File = tuple[int, int]


class Sensor(BaseModel):
    """Where the files of a sensor are, and what its flows get."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    directory: Directory
    flow_type: FlowType = "netflow"
    instance: str = ""
    router: IPvAnyAddress | None = None
    min_bytes: int = Field(10_000_000, ge=0)
    min_file_age_s: float = Field(60, ge=0, allow_inf_nan=False)
    delete_after_days: float = Field(0, ge=0, allow_inf_nan=False)

    @field_validator("name")
    @classmethod
    def _is_named(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("a sensor needs the name that its flows are to have (meta.sensor_id): set NETSAGE_SENSOR")
        return name

    _may_be_empty = field_validator("router", mode="before")(or_none)

    @property
    def rows(self) -> Rows:
        return Rows(self.name, self.instance or None, self.flow_type, self.min_bytes, str(self.router) if self.router else None)


class Watch:
    """A sensor and what is known of the files below its directory."""

    def __init__(self, sensor: Sensor, settled: dict[str, str]) -> None:
        self.sensor = sensor
        self.settled = settled  #: path → signature of files whose content was sent
        self.young: dict[str, tuple[str, float]] = {}  #: path → signature, and since when it is that, monotonic seconds
        self.refused: dict[str, Refused] = {}
        self.busy: set[str] = set()  #: files that are on their way
        self.waiting: deque[tuple[str, str]] = deque()  #: files to be imported, in order, with their signatures
        self.old: list[tuple[str, str, File]] = []  #: imported files that are to be deleted
        self.unsettled: set[File] = set()  #: files that are there and not imported
        self.seen_at = -inf
        self.wrong = ""  #: why one of its directories cannot be read
        digest = blake2b(digest_size=16)
        for value in (sensor.rows, usable_version(), TOGETHER):
            digest.update(repr(value).encode())
        #: What the messages of a part depend on, besides its blocks.
        self.reading = digest.digest()

    def settle(self, path: str, signature: str) -> None:
        """What is at a path was sent."""
        self.settled[path] = signature
        self.young.pop(path, None)

    def is_wrong(self, reason: str) -> None:
        """Says once what keeps the directories from being read, and once that nothing does any more."""
        what = f"the files of sensor {self.sensor.name}"
        if reason and not self.wrong:
            waits.begin(what, reason)
            log.warning(f"waits for {what}", reason=reason)
        elif self.wrong and not reason:
            waits.end(what)
            log.info("goes on", waited_for=what)
        self.wrong = reason

    def forget_all_but(self, paths: Container[str]) -> None:
        known: tuple[dict[str, Any], ...] = (self.settled, self.young, self.refused)
        for of_paths in known:
            for path in [path for path in of_paths if path not in paths]:
                del of_paths[path]


class Refused(NamedTuple):
    """A file that is not imported, or not deleted, as it is."""

    signature: str
    reason: str
    again: float  #: when it is tried again all the same, monotonic seconds


class Job:
    """A part of a file on its way."""

    def __init__(self, watch: Watch, path: str, signature: str, part: Part, within: list[Part], *, whole: bool) -> None:
        self.watch, self.path, self.signature, self.part = watch, path, signature, part
        self.within = within  #: as if the file had ended after one of its earlier blocks
        self.whole = whole  #: whether nothing of the file is behind this part
        self.delivered = self.stored = part.messages
        self.flows = 0  #: of all of it, when it was read
        self.complete = False  #: whether all of it was delivered
        self.ended = False  #: whether nothing more of it will be
        self.on_the_way = True  #: until all that was delivered is stored


class Receipt(NamedTuple):
    """What a message is acknowledged by."""

    job: Job
    number: int  #: of the messages of its part


class _ChangedError(Exception):
    """A file is not any more what was looked at."""


class Importer:
    """Messages of all sensors, file by file in turns. NfdumpError without an nfdump that can be used, StateError."""

    name = "import"

    def __init__(self, sensors: list[Sensor], state: Path, poll_s: float) -> None:
        self._state, self._poll_s = state, poll_s
        self._imported = Imported(state)
        for left in state.glob(f"{COPY}*"):  # By one that was killed.
            left.unlink(missing_ok=True)
        self._watches = [Watch(sensor, self._imported.files(sensor.name)) for sensor in sensors]
        self._letters = Letters(state / "dead-letters.ndjson")
        #: (word, stage, reason), as the ledger's totals; read and dropped once a file was read, written when all of it is stored
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._jobs: deque[Job] = deque()  #: whose messages are on their way, in order
        self._dirty: dict[Job, float | None] = {}  #: of which more is stored than is written down → when all was, unix seconds
        self._wrote_at = -inf
        self._for_room = Wait("room on the disk of the importer's state")
        self._for_nfdump = Wait("nfdump")
        self._idle = False
        self._steps = self._work()

    # As an input.

    @property
    def caught_up(self) -> bool:
        return self._idle and not self._jobs

    @property
    def connected(self) -> bool:
        return not any(watch.wrong for watch in self._watches)

    @property
    def waiting(self) -> int:
        """Files that are to be imported."""
        return sum(len(watch.waiting) for watch in self._watches)

    def receive(self, seconds: float) -> list[Delivery]:
        until = time.monotonic() + seconds
        batch: list[Delivery] = []
        while len(batch) < BATCH:
            if not self._written_down():
                time.sleep(max(0.0, min(until - time.monotonic(), STEP_S)))
                return batch
            step = next(self._steps)
            if isinstance(step, Delivery):
                batch.append(step)
                continue
            self._idle = step is IDLE
            rest = until - time.monotonic()
            if batch or rest <= 0:
                break
            if self._idle:
                time.sleep(min(rest, STEP_S))
        return batch

    def turn(self, seconds: float) -> None:
        self._written_down()
        time.sleep(seconds)

    def acknowledge(self, receipt: Receipt) -> None:
        for job in list(self._jobs):
            is_last = job is receipt.job
            job.stored = receipt.number if is_last else job.delivered
            self._dirty.setdefault(job)
            self._end(job)
            if is_last:
                return

    def pause(self) -> None:
        """There is nothing to be given back."""

    def bury(self, number: int, _message_id: str, letter: bytes) -> None:
        self._letters.bury(number, letter)

    def buried(self) -> list[int]:
        return self._letters.buried()

    def close(self) -> None:
        self._steps.close()
        self._wrote_at = -inf
        self._written_down()
        self._imported.close()

    # What is stored.

    def _end(self, job: Job) -> None:
        """Takes leave of a job if nothing more of it is delivered and all that was is where it is to go."""
        if not (job.ended and job.stored == job.delivered and job.on_the_way):
            return
        job.on_the_way = False
        if job in self._jobs:
            self._jobs.remove(job)
        watch = job.watch
        watch.busy.discard(job.path)
        if job.complete:
            self._dirty[job] = time.time()
            if job.whole:
                watch.settle(job.path, job.signature)
                self.counts["files", "", ""] += 1
            self.counts["written", "", ""] += job.flows
            log.debug("imported", sensor=watch.sensor.name, file=shown(job.path), flows=job.flows)

    def _written_down(self) -> bool:
        """Writes down what is stored: whole parts at once, how far one came now and then. False if there is no room for it."""
        now = time.monotonic()
        if self._dirty and (any(self._dirty.values()) or now - self._wrote_at > WRITE_S):
            try:
                self._imported.sent([(job.part, job.stored, done, job.within) for job, done in self._dirty.items()])
            except NoRoom as error:
                self._for_room.goes_on(str(error))
                return False
            self._for_room.is_over()
            self._dirty.clear()
            self._wrote_at = now
        return True

    def _write(self, write: Callable[[], None]) -> Generator[bool | None, None, None]:
        """Writes something down, as soon as there is room for it."""
        while True:
            try:
                write()
            except NoRoom as error:
                self._for_room.goes_on(str(error))
                yield IDLE
            else:
                self._for_room.is_over()
                return

    # Looking for files.

    def _work(self) -> Steps:
        while True:
            for watch in self._watches:
                yield from self._look_through(watch)
            yield from self._delete_old()
            looked = time.monotonic()
            while time.monotonic() - looked < self._poll_s:
                turns = [watch for watch in self._watches if watch.waiting]
                if not turns:
                    yield IDLE
                for watch in turns:
                    yield from self._until_nfdump_is_there()
                    yield from self._import(watch, *watch.waiting.popleft())

    def _until_nfdump_is_there(self) -> Steps:
        while True:
            try:
                usable_version()
            except NfdumpError as error:
                self._for_nfdump.goes_on(str(error))
                yield IDLE
            else:
                self._for_nfdump.is_over()
                return

    def _look_through(self, watch: Watch) -> Steps:
        """Puts the files that are to be imported in order of their time, and finds those that are to be deleted."""
        sensor, now = watch.sensor, time.monotonic()
        found: dict[str, str] = {}
        wanted: list[tuple[float, str, str]] = []
        watch.old, watch.unsettled = [], set()
        directories, wrong = [str(sensor.directory)], ""
        while directories:
            files, why = _listed(directories.pop(), directories)
            wrong = wrong or why
            yield None
            for path, status in files:
                found[path] = signature = _signature(status)
                file = (status.st_dev, status.st_ino)
                if watch.settled.get(path) == signature:
                    is_old = sensor.delete_after_days and time.time() - status.st_mtime > sensor.delete_after_days * 86_400
                    if is_old and not _is_refused(watch, path, signature, now):
                        watch.old.append((path, signature, file))
                    continue
                watch.unsettled.add(file)
                if path not in watch.busy and _is_due(watch, path, signature, status.st_mtime, now):
                    wanted.append((stamped(Path(path).name) or status.st_mtime, path, signature))
        watch.waiting = deque((path, signature) for _, path, signature in sorted(wanted))
        watch.is_wrong(wrong)
        if found and not wrong:  # Where a server is away, its directory may look empty.
            watch.forget_all_but(found)
            if now - watch.seen_at > SEEN_S:
                yield from self._write(partial(self._imported.seen, sensor.name, found, time.time(), KEEP_S))
                watch.seen_at = now

    # Importing a file.

    def _import(self, watch: Watch, path: str, signature: str) -> Steps:
        try:
            with Path(path).open("rb") as file:
                if _signature(os.fstat(file.fileno())) == signature:
                    yield from self._import_open(watch, path, signature, file)
        except DamagedFile as error:
            self._refuse(watch, path, signature, f"{error}: copy it again or move it away")
        except (_ChangedError, FileNotFoundError):
            log.debug("changed while it was read", sensor=watch.sensor.name, file=shown(path))
        except OSError as error:
            self._refuse(watch, path, signature, f"cannot be read: {error.strerror or error}", again=True)

    def _import_open(self, watch: Watch, path: str, signature: str, file: BinaryIO) -> Steps:
        """Sends the next part of a file that was not sent before."""
        if not is_nfcapd(Path(path)):
            raise DamagedFile("it is no file of nfcapd")
        if state_of(Path(path)) == "open":
            if time.time() - os.fstat(file.fileno()).st_mtime > OPEN_S:
                raise DamagedFile("nfcapd never closed it (was it killed?), so nfdump finds nothing in it")
            return
        sensor = watch.sensor.name
        blocks = blocks_of(file)
        part, within = yield from self._next_part(watch, path, signature, blocks, file)
        whole = part.size == blocks.end - blocks.begin
        if whole:
            yield from self._write(partial(self._imported.found, sensor, path, signature, part.digest, time.time()))
        part = self._imported.part(sensor, part.digest) or part  # While it was read, a copy of it may have been stored.
        if part.done:
            watch.settle(path, signature)
            self.counts["known files", "", ""] += 1
            log.debug("same content as an imported one", sensor=sensor, file=shown(path))
            return
        if any(part.digest == each.digest for job in self._jobs if job.watch is watch for each in (job.part, *job.within)):
            return  # Its copy, or a longer one, is on its way; then it is known.
        if part.reading != watch.reading:
            if part.messages:
                log.warning(
                    "begun anew, because settings or nfdump changed since a part of it was sent: that part is counted twice",
                    sensor=sensor,
                    file=shown(path),
                    messages=part.messages,
                )
            part = part._replace(reading=watch.reading, messages=0)
            yield from self._write(partial(self._imported.begin, part, time.time()))
        job = Job(watch, path, signature, part, within, whole=whole)
        if part.begin == part.size:
            job.complete = job.ended = True
            self._end(job)
        elif part.begin == 0 and whole:
            yield from self._send(job, Path(path), lambda: _signature(Path(path).stat()) == signature)
        else:
            with NamedTemporaryFile(dir=self._state, prefix=COPY) as copy:
                digest = yield from copy_part(file, blocks, blocks.begin + part.begin, blocks.begin + part.size, copy)
                yield from self._send(job, Path(copy.name), lambda: digest == part.digest)

    def _next_part(
        self, watch: Watch, path: str, signature: str, blocks: Blocks, file: BinaryIO
    ) -> Generator[bool | None, None, tuple[Part, list[Part]]]:
        """The part that is to be sent: the rest of one that was begun, else what the file grew by; or the last one, if all is done.

        And the shorter ones within it, which are done when it is: an earlier state of the file may come later than this one.
        """
        sensor, size = watch.sensor.name, blocks.end - blocks.begin
        ends = ends_of(file, blocks, blocks.begin, blocks.end)
        first = (yield from digests(file, blocks.begin, [blocks.first]))[blocks.first]
        before = self._imported.beginnings(sensor, first, size)
        found = yield from digests(file, blocks.begin, {blocks.end, *ends, *(blocks.begin + part.size for part in before)})
        if _signature(os.fstat(file.fileno())) != signature:  # Else blocks of two files would be noted as those of one.
            raise _ChangedError
        known = [part for part in before if found[blocks.begin + part.size] == part.digest]
        longest = max(known, key=lambda part: part.size, default=None)
        if longest is not None and (not longest.done or longest.size == size):
            part = longest
        else:
            if longest is not None and longest.size:
                log.info("file grew after it was imported: what is new in it is sent", sensor=sensor, file=shown(path))
            elif self._imported.was_at(sensor, path):
                log.info("file was replaced by another one, which is imported", sensor=sensor, file=shown(path))
            part = Part(sensor, found[blocks.end], first, longest.size if longest else 0, size, watch.reading, 0, None)
            yield from self._write(partial(self._imported.begin, part, time.time()))
        sizes = [end - blocks.begin for end in ends if part.begin < end - blocks.begin < part.size]
        return part, [part._replace(digest=found[blocks.begin + size], size=size) for size in sizes]

    def _send(self, job: Job, path: Path, is_as_it_was: Callable[[], bool]) -> Steps:
        """The rows of a part as messages, from the first one that is not stored."""
        watch, counts = job.watch, Counter[str]()
        known_as = blake2b(job.part.digest + job.part.begin.to_bytes(8) + watch.reading, digest_size=16, person=b"import").hexdigest()
        try:
            reading = Reading(path, watch.sensor.rows)
        except (NfdumpError, OSError) as error:
            self._refuse(watch, job.path, job.signature, f"nfdump cannot be started: {error}", again=True)
            return
        watch.busy.add(job.path)
        try:
            while not reading.begins(STEP_S):
                yield None
            complaint = reading.complaint
            if complaint:
                raise DamagedFile(f"nfdump cannot read it: {complaint}")
            if not is_as_it_was():
                raise _ChangedError
            flows = reading.flows(counts)
            number = 0
            last = b""
            while batch := list(islice(flows, TOGETHER)):
                if last:
                    yield self._delivery(job, known_as, number, last)
                number += 1
                last = orjson.dumps(batch) if number > job.part.messages else b""
            reading.check()
            job.complete = job.ended = True
            job.flows = counts["rows"]
            self.counts["read", "", ""] += counts["rows"] + counts["below_minimum"]
            self.counts["dropped", "01_input_nfcapd", "fewer bytes than min_bytes"] += counts["below_minimum"]
            self.counts["skipped lines", "", ""] += counts["skipped"]
            if last:
                yield self._delivery(job, known_as, number, last)
        except NfdumpError as error:
            self._refuse(watch, job.path, job.signature, str(error), again=True)
        finally:
            reading.close()
            job.ended = True
            self._end(job)

    def _delivery(self, job: Job, known_as: str, number: int, body: bytes) -> Delivery:
        if not job.delivered > job.part.messages:
            self._jobs.append(job)
        job.delivered = number
        return Delivery(body, f"import/{known_as}/{number}", Receipt(job, number))

    def _refuse(self, watch: Watch, path: str, signature: str, reason: str, *, again: bool = False) -> None:
        """Says once that a file is not imported as it is. It is tried again when it changes, or else later."""
        if _is_news(watch, path, signature, reason, again=again):
            self.counts["refused files", "", ""] += 1
            log.warning("is not imported", sensor=watch.sensor.name, file=shown(path), reason=reason)

    # Deleting.

    def _delete_old(self) -> Steps:
        """Deletes old files that no sensor waits for: several may have one directory, each with what another router sent."""
        for watch in self._watches:
            for path, signature, file in watch.old:
                if not any(file in other.unsettled for other in self._watches):
                    yield from self._delete(watch, path, signature)

    def _delete(self, watch: Watch, path: str, signature: str) -> Steps:
        """Deletes a file if its content is still what was imported."""
        try:
            with Path(path).open("rb") as file:
                blocks = blocks_of(file)
                digest = (yield from digests(file, blocks.begin, [blocks.end]))[blocks.end]
                part = self._imported.part(watch.sensor.name, digest)
                if part is not None and part.done and _signature(Path(path).stat()) == signature == _signature(os.fstat(file.fileno())):
                    Path(path).unlink()
                    self.counts["deleted files", "", ""] += 1
                    log.debug("deleted", sensor=watch.sensor.name, file=shown(path))
        except (OSError, DamagedFile) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if _is_news(watch, path, signature, reason, again=True):
                log.warning("was imported and cannot be deleted", sensor=watch.sensor.name, file=shown(path), reason=reason)


def _signature(status: os.stat_result) -> str:
    """Differs when a file was written, exchanged, or got other rights."""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _listed(directory: str, directories: list[str]) -> tuple[list[tuple[str, os.stat_result]], str]:
    """The files in a directory that nfcapd may have written and writes no more, and why not all of them; adds directories to the others."""
    files: list[tuple[str, os.stat_result]] = []
    why = ""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith(PASSED_OVER):
                    continue
                try:
                    status = entry.stat()
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
                    elif stat.S_ISREG(status.st_mode) and status.st_size:
                        files.append((entry.path, status))
                except FileNotFoundError:
                    pass
                except OSError as error:
                    why = f"{shown(entry.path)}: {error.strerror}"
    except OSError as error:
        why = f"{shown(directory)}: {error.strerror}"
    return files, why


def _is_news(watch: Watch, path: str, signature: str, reason: str, *, again: bool) -> bool:
    """Takes note of what is wrong with a file; whether that was not known before."""
    before = watch.refused.get(path)
    watch.refused[path] = Refused(signature, reason, time.monotonic() + AGAIN_S if again else inf)
    return before is None or before[:2] != (signature, reason)


def _is_refused(watch: Watch, path: str, signature: str, now: float) -> bool:
    refused = watch.refused.get(path)
    return refused is not None and refused.signature == signature and now < refused.again


def _is_due(watch: Watch, path: str, signature: str, modified: float, now: float) -> bool:
    """Whether a file is old enough, by its time or, where its clock is ahead of ours, by what we saw; and not refused as it is."""
    if _is_refused(watch, path, signature, now):
        return False
    since, age = watch.young.get(path, ("", now)), watch.sensor.min_file_age_s
    if since[0] != signature:
        watch.young[path] = since = (signature, now)
    return time.time() - modified >= age or now - since[1] >= age
