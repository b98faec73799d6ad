"""The shapes that everything here passes around: flows, their ends, what a stage is, and the time of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from netsage_pipeline.times import iso

#: One flow: a JSON object as in docs/fields.md. Plain, because unknown fields pass through and stages loop over ("src", "dst").
Flow = dict[str, Any]

#: One end of a flow: side ("src" or "dst"), ip, asn, and what the end stages wrote so far, without src_ and dst_ in the names.
End = dict[str, Any]

#: What a flow stage's factory returns: takes a flow and returns it, or the reason why it is dropped.
FlowProcess = Callable[[Flow], Flow | str]

#: What an end stage's factory returns: enriches one end in place.
EndProcess = Callable[[End], None]

SIDES = ("src", "dst")


class Refused(Exception):
    """Raised by a stage: this flow goes to the dead letters. The text is the reason, in words that hold no value of the flow."""


#: A flow that an output cannot write, and why.
Refusal = tuple[Flow, str]


class Sink(Protocol):
    """What the factory `sink` of an output returns. It may work on several batches at once."""

    def write(self, batch: int, flows: list[Flow]) -> None:
        """Takes a batch in, to be stored now or later. OSError if nothing can be written any more."""

    def stored(self, seconds: float = 0) -> list[Stored]:
        """The batches that are stored by now, each once; waits for at most so many seconds until there is one."""

    def close(self) -> None:
        """Writes what is buffered and leaves; what is not stored by then is not. `stored` tells the last ones behind it."""


@runtime_checkable
class Splits(Protocol):
    """An output that makes several messages of the flows of one. `stored` and `close` are those of a Sink."""

    def split(self, batch: int, flows: list[Flow], message: str) -> None:
        """Takes a batch in: all flows that came of one message.

        message   its key; whatever dies, the same one comes again with it, and its receivers know repeats by what is made of it
        """

    def stored(self, seconds: float = 0) -> list[Stored]: ...

    def close(self) -> None: ...


class Stored(NamedTuple):
    """A batch that is stored: it will be there after any crash of anybody."""

    batch: int
    flows: int  #: that were written
    refusals: list[Refusal]  #: the flows in it that can never be written


class Delivery(NamedTuple):
    """A message as an input got it."""

    body: bytes
    message_id: str  #: "" if its sender gave none
    receipt: Any  #: what its input acknowledges it by


class Source(Protocol):
    """What the factory `source` of an input returns. It comes back by itself when it is cut off."""

    @property
    def name(self) -> str:
        """What dead letters say of where their message came from: the queue."""

    @property
    def caught_up(self) -> bool:
        """Whether nothing was delivered for a second and there is nothing left to be delivered."""

    @property
    def connected(self) -> bool:
        """Whether messages can come."""

    @property
    def waiting(self) -> int | None:
        """How many messages nobody was given yet, as it was last known; for metrics."""

    def receive(self, seconds: float) -> list[Delivery]:
        """The next batch of messages, in order; empty when none came for so long."""

    def turn(self, seconds: float) -> None:
        """Works on its connections for at most so long without taking messages."""

    def acknowledge(self, receipt: Any) -> None:
        """All that was received up to the message with this receipt is durable. One from before a cut is of no use any more."""

    def pause(self) -> None:
        """Gives back what is not acknowledged and takes nothing until the next `receive`."""

    def bury(self, number: int, message_id: str, letter: bytes) -> None:
        """Takes a dead letter in, to be stored where dead letters of this input are kept."""

    def buried(self) -> list[int]:
        """The numbers of the dead letters that are stored by now, each once."""

    def close(self) -> None:
        """Leaves; what is not acknowledged is given back."""


class Stitching(Protocol):
    """What the factory of the one stage that holds flows returns."""

    @property
    def gone(self) -> float:
        """How far the newest end of all flows that can be believed went so far, seconds."""

    def __call__(self, flow: Flow) -> Finished | None:
        """Takes a part in; gives the flow that it finished, if any."""

    def expired(self) -> list[Finished]:
        """Flows that are finished by now; there may be more when it is some thousands."""

    def drain(self, most: int | None = None) -> list[Finished]:
        """The flows that are held, or so many of them, whatever the time."""

    def changes(self) -> Changes:
        """What changed since the last call, for the ledger."""

    def restore(self, held: dict[str, list[Any]], state: list[Any]) -> None:
        """Goes on with what a ledger kept. `held` is then this object's own; from now on `changes` has something to say."""

    def flow(self, finished: Finished) -> Flow:
        """The flow as it goes on to the next stage, afresh at every call."""

    def counts(self) -> dict[str, int]:
        """What the summary says of it: parts, flows, passed (tstat), late parts, ends not believed, flows held now."""


class Table(Protocol):
    """A lookup table: `get(key)` returns what is known of the key, or None."""

    def get(self, *key: Any) -> Any: ...


class Lookups(Protocol):
    """Gives a stage its table: `lookups("asn", Path("GeoLite2-ASN.mmdb"))`; opened once, shared by path."""

    def __call__(self, kind: str, path: Path) -> Table: ...


#: A flow that left stitching, or that entered a chain without it, in the compact form in which it is kept until the stages behind are run:
#: the flow as it was first held (JSON), the number of parts (0: never stitched), start, end, num_bits and num_packets of all parts
#: together, @timestamp, and the stage at which it enters ("": the first one behind stitching).
Finished = tuple[bytes, int, float, float, int, int, str, str]


#: Where in a held flow stands at which value of the arrival clock it was first held.
HELD_AT = 8


class Changes(NamedTuple):
    """What the ledger writes down of stitching. A held flow is a list, which begins with its JSON; what else is in it, stitching knows."""

    opened: dict[str, list[Any]]  #: id → the flow as it is held
    grown: dict[str, list[Any]]  #: id → the same without its JSON, which was written down when it was opened
    ended: list[str]  #: ids that are held no more
    state: list[Any]  #: all else


class Now:
    """The time of the batch at work. The loop sets it, stages that need the time read it.

    seconds   unix seconds, for @ingest_time, @timestamp and @exit_time
    text      the same as ISO 8601
    judges    whether flows are compared with it (not in a replay of an archive)
    clock     what stitching goes by: "event" or "arrival"
    arrival   unix seconds, the value of the arrival clock
    """

    def __init__(self, seconds: float = 0.0, *, judges: bool = True, clock: str = "event") -> None:
        self.judges = judges
        self.clock = clock
        self.arrival = seconds
        self.set(seconds)

    def set(self, seconds: float) -> None:
        self.seconds = seconds
        self.text = iso(seconds)
