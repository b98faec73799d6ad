"""Publishing dumps to the input queue, 100 flows a message, under ids that make publishing the same dump twice harmless."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import orjson

from netsage_pipeline.deadletters import LETTER
from netsage_pipeline.progress import Progress
from netsage_pipeline.rabbitmq.amqp import Publisher
from netsage_pipeline.reading.nfdump import Rows
from netsage_pipeline.reading.read import Dump, DumpError, Message, messages

#: Flows in a message.
TOGETHER = 100

#: Messages that may be on their way.
ON_THE_WAY = 200

#: Seconds by which the rate may be made up for.
BEHIND_S = 0.5

#: Seconds between two looks at what was confirmed while there is nothing else to do.
WAIT_S = 0.1


class Parcel(NamedTuple):
    """A message to be published."""

    body: bytes
    message_id: str
    flows: int


@dataclass
class Summary:
    """What was published."""

    files: int = 0
    flows: int = 0
    messages: int = 0
    seconds: float = 0.0
    not_read: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """The summary as it is printed."""
        rate = f", {self.flows / self.seconds:,.0f} flows/s" if self.seconds else ""
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        lines = [f"published      {self.flows:>12,}  flows of {files} in {self.messages:,} messages in {self.seconds:.1f} s{rate}"]
        if self.rows["below_minimum"]:
            lines.append(f"left out       {self.rows['below_minimum']:>12,}  rows of nfdump below the minimum of bytes")
        if self.rows["skipped"]:
            lines.append(f"skipped        {self.rows['skipped']:>12,}  lines of nfdump that are no rows")
        return lines + [f"not read       {'':>12}  {each}" for each in self.not_read]


def parcels(read: Iterable[Message]) -> Iterator[Parcel]:
    """The flows of a file in messages of 100. What is no flow travels alone, so that its refusal costs no neighbour.

    The id of a message is a digest of the file's content up to its end: it is the same when the file is published again, under whatever
    name, and differs between equal flows at two places of a file.
    """
    digest = blake2b(digest_size=16, person=b"publish")

    def parcel(body: bytes, flows: int) -> Parcel:
        digest.update(len(body).to_bytes(8))
        digest.update(body)
        return Parcel(body, f"publish/{digest.hexdigest()}", flows)

    waiting: list[bytes] = []
    for message in read:
        flows = _flows(message.body)
        if flows is None:
            if waiting:
                yield parcel(b"[" + b",".join(waiting) + b"]", len(waiting))
                waiting = []
            yield parcel(message.body, 1)
            continue
        waiting += flows
        while len(waiting) >= TOGETHER:
            yield parcel(b"[" + b",".join(waiting[:TOGETHER]) + b"]", TOGETHER)
            waiting = waiting[TOGETHER:]
    if waiting:
        yield parcel(b"[" + b",".join(waiting) + b"]", len(waiting))


def _flows(body: bytes) -> list[bytes] | None:
    """The flows of a line, each as JSON; None if it is to travel as it is: no JSON, a dead letter, an array that is too deep."""
    if LETTER in body:
        return None
    try:
        decoded = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(decoded, list):
        return [body.strip()] if isinstance(decoded, dict) else None
    if not all(isinstance(each, dict) for each in decoded):
        return None
    try:
        return [orjson.dumps(each) for each in decoded]
    except TypeError:
        return None


def publish(
    dumps: list[Dump],
    rows: Callable[[Dump], Rows | None],
    link: Publisher,
    queue: str,
    rate: float | None,
    tell: Callable[[str], None],
) -> Summary:
    """Publishes all files, at most `rate` flows a second, and waits until all is confirmed. May be interrupted at any time."""
    summary = Summary()
    began = due = time.monotonic()
    on_the_way = 0
    with Progress(dumps) as progress:
        for dump in dumps:
            try:
                for number, each in enumerate(parcels(messages(dump, rows(dump), summary.rows, progress.advance))):
                    summary.files += not number
                    link.publish(None, "", queue, each.body, each.message_id)
                    on_the_way += 1
                    summary.messages += 1
                    summary.flows += each.flows
                    progress.show(summary.flows, dump)
                    due = max(due, time.monotonic() - BEHIND_S) + (each.flows / rate if rate else 0)
                    while on_the_way >= ON_THE_WAY or time.monotonic() < due:
                        link.turn(WAIT_S if on_the_way >= ON_THE_WAY else min(WAIT_S, max(0.0, due - time.monotonic())))
                        on_the_way -= len(link.confirmed())
            except DumpError as error:
                if str(error) not in summary.not_read:  # Without nfdump every file fails alike.
                    summary.not_read.append(str(error))
                    tell(str(error))
        while on_the_way:
            link.turn(WAIT_S)
            on_the_way -= len(link.confirmed())
    summary.seconds = time.monotonic() - began
    return summary
