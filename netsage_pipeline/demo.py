"""The demo: the shipped dump through all stages, and three tables of what was in it; or its flows for ever, as if they were of now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TypeVar

import orjson

from netsage_pipeline.compose import Configured
from netsage_pipeline.flow import Flow, Sink, Stored
from netsage_pipeline.reading.read import Dump

#: Seconds of traffic in a capture file.
CAPTURE_S = 300


def now(directory: Path) -> float:
    """The time that the demo's flows are compared with: a few minutes after the last capture, so that the demo works in any year."""
    return float(orjson.loads((directory / "expected.json").read_bytes())["now"])


def all_on(stages: list[Configured]) -> list[Configured]:
    """The stages, those that ship switched off switched on."""
    return [stage._replace(config=stage.config.model_copy(update={"enabled": True})) for stage in stages]


def rounds(dumps: list[Dump], begin: float) -> Iterator[tuple[float, float, Dump]]:
    """The files over and over: when one is complete, by how many seconds its flows are moved, and which one.

    The first round is complete at `begin`, in unix seconds.
    """
    first = min(dump.captured for dump in dumps)
    length = max(dump.captured for dump in dumps) + CAPTURE_S - first
    for number in count():
        by = begin - first + (number - 1) * length
        for dump in dumps:
            yield dump.captured + CAPTURE_S + by, by, dump


def moved(body: bytes, seconds: float) -> bytes:
    """A message with the times of its flows moved. What is no flow stays, to become a dead letter."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
    for flow in value if isinstance(value, list) else [value]:
        for name in ("start", "end"):
            if isinstance(flow, dict) and isinstance(flow.get(name), int | float):
                flow[name] = round(flow[name] + seconds, 3)
    return orjson.dumps(value)


T = TypeVar("T", str, tuple[str, str])


class Tally:
    """Counts the flows on their way into another sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.pairs: Counter[tuple[str, str]] = Counter()  #: source and destination organization → bits
        self.disciplines: Counter[str] = Counter()  #: science discipline of an end → bits
        self.scopes: Counter[str] = Counter()  #: country scope → bits
        self.flows: Counter[str] = Counter()  #: discipline or scope → flows

    def write(self, batch: int, flows: list[Flow]) -> None:
        for flow in flows:
            meta, bits = flow["meta"], flow["values"].get("num_bits", 0)
            self.pairs[meta["src_preferred_org"], meta["dst_preferred_org"]] += bits
            for discipline in {end["discipline"] for end in meta.get("scireg", {}).values() if end.get("discipline")}:
                self.disciplines[discipline] += bits
                self.flows[discipline] += 1
            scope = meta.get("country_scope", "(none)")
            self.scopes[scope] += bits
            self.flows[scope] += 1
        self._sink.write(batch, flows)

    def stored(self, seconds: float = 0) -> list[Stored]:
        return self._sink.stored(seconds)

    def close(self) -> None:
        self._sink.close()

    def lines(self) -> Iterator[str]:
        """The three tables."""
        yield "Organizations that exchanged most"
        for (source, destination), bits in top(self.pairs, 10):
            yield f"  {_gigabytes(bits)}  {source} → {destination}"
        for title, counter in (("Science disciplines", self.disciplines), ("Within and between countries", self.scopes)):
            yield ""
            yield title
            for name, bits in top(counter, 10):
                yield f"  {_gigabytes(bits)}  {self.flows[name]:>7,} flows  {name}"


def top(counter: Counter[T], count: int) -> list[tuple[T, int]]:
    """The largest, by name where equal."""
    return sorted(counter.items(), key=lambda each: (-each[1], each[0]))[:count]


def _gigabytes(bits: int) -> str:
    return f"{bits / 8e9:>8,.2f} GB"
