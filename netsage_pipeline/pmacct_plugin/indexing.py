"""A pmacct plugin's records into Elasticsearch, each under an id of its own content.

The id is made of the record as it came, its time, and its number among equal records of the same file: the same file again is written to
the same places, and two equal records of one file stay two. What is refused, and what Elasticsearch did not take in time, is kept as dead
letters, from which it can be given in again.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from elasticsearch import Elasticsearch

from netsage_pipeline import deadletters
from netsage_pipeline.elastic.bulk import Bulk, Document
from netsage_pipeline.jsonvalues import fault
from netsage_pipeline.pmacct_plugin.settings import Plugin
from netsage_pipeline.pmacct_plugin.transformations import Record
from netsage_pipeline.reading import pmacct
from netsage_pipeline.reading.foreign import unix
from netsage_pipeline.times import LAST_SECOND, iso

#: The stage that its dead letters name.
STAGE = "pmacct"

#: Documents that may be on their way, and in a batch.
ON_THE_WAY = 10_000
BATCH = 500

#: Seconds without any document stored after which the rest is put aside: the next trigger, or the next line of cron, comes soon.
GIVE_UP_S = 300.0

_WAIT_S = 0.5

#: As large as a request may be in bytes.
_ALL = 1 << 30


@dataclass
class Summary:
    """What became of the records of a plugin."""

    read: int = 0
    written: int = 0
    put_aside: int = 0  #: that Elasticsearch did not take in time
    refused: Counter[str] = field(default_factory=Counter)  #: by reason
    lines: dict[str, list[str]] = field(default_factory=dict)  #: where the first ones with a reason stand

    def told(self, source: str, letters: Path | None) -> list[str]:
        """The summary as it is printed: one line for each reason. Without letters they could not be kept."""
        kept = f"kept in {letters}" if letters else "not kept"
        again = ": move it away and give it in again with --input" if letters else ""
        lines = [f"{source}: {self.read:,} records read, {self.written:,} written"]
        for reason, count in sorted(self.refused.items()):
            places = ", ".join(self.lines[reason]) + (" …" if count > len(self.lines[reason]) else "")
            lines.append(f"{source}: {count:,} refused: {reason} (line {places}): {kept}")
        if self.put_aside:
            lines.append(f"{source}: {self.put_aside:,} not written: {kept}{again}")
        return lines


class Pending(NamedTuple):
    """A document on its way."""

    record: Record  #: with its time, before transformations
    position: str


class Indexing:
    """One run of a plugin.

    prepare     installs the index template; called before the first request, and again after every failure
    transform   changes a record in place
    letters     where dead letters are appended
    stop        whether it is to leave
    """

    def __init__(
        self,
        plugin: Plugin,
        client: Elasticsearch,
        prepare: Callable[[], object],
        transform: Callable[[Record], None],
        letters: Path,
        stop: Callable[[], bool],
    ) -> None:
        self._plugin, self._transform, self._letters, self._stop = plugin, transform, letters, stop
        self._bulk = Bulk(client, prepare, orjson.loads, most=plugin.flush_size or _ALL, tells=False)
        self._batches = 0
        self._waiting: list[Document] = []
        self._pending: dict[int, dict[str, Pending]] = {0: {}}  # batch → id → what is on its way
        self._dead: list[bytes] = []
        self._kept: set[bytes] | None = None  # the letters that are in the file, by id
        self._source = ""
        self._given_up = False
        self.summary = Summary()

    def take(self, lines: Iterator[tuple[int, bytes]], source: str, modified: float) -> int:
        """Writes the records of a file, or of standard input; gives the line of the last one.

        modified   unix seconds, the time of records that have none
        """
        self._source = source
        if self._stop():  # Having been asked, it takes no signal for an interruption any more.
            self.give_up()
        seen: Counter[int] = Counter()
        line = 0
        for line, fields, wrong, given in pmacct.records(lines):
            letter = deadletters.is_envelope(fields) and fields["stage"] == STAGE
            self.summary.read += 1
            if letter:
                self._again(fields)
            elif wrong:
                self._refuse(wrong, str(line), given)
            else:
                self._enter(self._timed(fields, modified), line, seen)
            if len(self._waiting) >= BATCH:
                self._send()
                self._settle(ON_THE_WAY)
        self._send()
        return line

    def finish(self) -> None:
        """Waits until each record is written, refused or put aside."""
        self._settle(0)

    def close(self) -> None:
        """Leaves. What is not written by then is put aside. OSError if dead letters cannot be written."""
        self._bulk.close()
        self._take_note(0)
        for pending in [each for batch in self._pending.values() for each in batch.values()]:
            self._put_aside(pending)
        self._pending = {0: {}}
        self._append_letters()

    def give_up(self) -> None:
        """Whatever comes from now on is put aside."""
        self._given_up = True

    def _put_aside(self, pending: Pending) -> None:
        self.summary.put_aside += 1
        self._bury("Elasticsearch did not take it", pending.position, pending.record)

    def _timed(self, fields: Record, modified: float) -> Record:
        if "@timestamp" not in fields:
            times = (_seconds(fields.get(name)) for name in pmacct.TIMES)
            fields["@timestamp"] = iso(next((each for each in times if each), modified))
        return fields

    def _again(self, letter: dict[str, Any]) -> None:
        """Takes a dead letter of this command, which somebody may have edited."""
        position = str(letter["position"])
        line, _, ordinal = position.partition(".")
        body = deadletters.body_of(letter["payload"])
        try:
            record = orjson.loads(body)
        except orjson.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            self._write(record, int(line) if line.isdecimal() else 0, int(ordinal) if ordinal.isdecimal() else 0)
        else:
            self._refuse(str(letter["reason"]), position, body)

    def _enter(self, record: Record, line: int, seen: Counter[int]) -> None:
        try:
            content = int.from_bytes(blake2b(orjson.dumps(record), digest_size=8).digest())
        except TypeError:
            self._refuse(fault(record), str(line), record)
            return
        self._write(record, line, seen[content])
        seen[content] += 1

    def _write(self, record: Record, line: int, ordinal: int) -> None:
        position = f"{line}.{ordinal}" if ordinal else str(line)
        known_as = blake2b(orjson.dumps([record, ordinal]), digest_size=16).hexdigest()
        document = dict(record)
        try:
            self._transform(document)
            index = self._index_of(document)
            source = orjson.dumps({**document, "document_id": known_as})
        except ValueError as error:
            self._refuse(str(error), position, record)
            return
        except TypeError:
            self._refuse(fault(document), position, record)
            return
        if self._given_up:
            self._put_aside(Pending(record, position))
            return
        action = orjson.dumps({"index": {"_index": index, "_id": known_as}})
        self._pending[self._batches][known_as] = Pending(record, position)
        self._waiting.append(Document(self._batches, index, action, source))

    def _index_of(self, document: Record) -> str:
        """ValueError if it has no time."""
        seconds = _seconds(document.get("@timestamp"))
        if not seconds:
            raise ValueError("@timestamp: is no time, so there is no index for it")
        return datetime.fromtimestamp(seconds, UTC).strftime(self._plugin.index)

    def _send(self) -> None:
        if self._waiting:
            self._bulk.write(self._batches, self._waiting, [])
            self._batches += 1
            self._pending[self._batches] = {}
            self._waiting = []
            if self._stop():
                self.give_up()
        self._write_letters()

    def _settle(self, most: int) -> None:
        """Takes note of what is stored, and waits until no more than so many documents are on their way, or it gives up."""
        since = time.monotonic()
        self._take_note(0)
        while (before := self._on_the_way) > most and not self._given_up:
            self._take_note(_WAIT_S)
            if self._on_the_way < before:
                since = time.monotonic()
            elif self._stop() or time.monotonic() - since > GIVE_UP_S:
                self.give_up()
        self._write_letters()

    @property
    def _on_the_way(self) -> int:
        return sum(map(len, self._pending.values()))

    def _take_note(self, seconds: float) -> None:
        for batch, written, refusals in self._bulk.stored(seconds):
            self.summary.written += written
            sent = self._pending.pop(batch)
            for document, reason in refusals:
                pending = sent[document["document_id"]]
                self._refuse(reason, pending.position, pending.record)

    def _refuse(self, reason: str, position: str, payload: Any) -> None:
        self.summary.refused[reason] += 1
        places = self.summary.lines.setdefault(reason, [])
        if len(places) < 5:
            places.append(position.partition(".")[0])
        self._bury(reason, position, payload)

    def _bury(self, reason: str, position: str, payload: Any) -> None:
        self._dead.append(deadletters.envelope(STAGE, reason, self._source, position, payload))

    def _write_letters(self) -> None:
        """Where they cannot be written they wait for the next time: one bad record is no reason to read no other one."""
        with contextlib.suppress(OSError):
            self._append_letters()

    def _append_letters(self) -> None:
        """Appends the dead letters that are not there yet."""
        if self._dead:
            if self._kept is None:
                self._kept = _ids_in(self._letters)
            new = {_id_of(letter): letter for letter in self._dead if _id_of(letter) not in self._kept}
            if new:
                self._letters.parent.mkdir(parents=True, exist_ok=True)
                deadletters.append(self._letters, new.values())
            self._dead = []
            self._kept |= new.keys()


def _seconds(given: Any) -> float | None:
    """Unix seconds of a time that has a date; None or 0.0 if it has none."""
    seconds = unix(given)
    return seconds if seconds is None or seconds <= LAST_SECOND else None


def _ids_in(letters: Path) -> set[bytes]:
    """The ids of letters that are whole."""
    if not letters.exists():
        return set()
    with letters.open("rb") as file:
        return {_id_of(line) for line in file if line.endswith(b"\n")}


def _id_of(letter: bytes) -> bytes:
    """The beginning of an envelope, which is its id."""
    return letter[: len(b'{"id":"') + 32]
