"""No cut of the input into messages or shards, and no order of parts, changes what is stitched of them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from random import Random
from typing import Any, NamedTuple

import orjson
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline.chain import Chain
from netsage_pipeline.flow import Flow
from tests.flows import NOW, flow
from tests.invariants import Body, chain_of, examples, through

INACTIVITY, LATENESS, DAY = 630, 3_600, 86_400

#: The flows here lie in the hours before NOW.
BEGIN = NOW - 40_000


def written(flows: list[Flow]) -> list[bytes]:
    return sorted(map(orjson.dumps, flows))


def cut(flows: list[Flow], chance: Random) -> list[Body]:
    """The same flows in messages of any size, some of one flow without an array."""
    bodies = []
    rest = flows
    while rest:
        size = chance.choice((1, 1, 2, 3, 10, len(rest)))
        bodies.append(orjson.dumps(rest[:size] if size > 1 or chance.random() < 0.5 else rest[0]))
        rest = rest[size:]
    return bodies


class Part(NamedTuple):
    """A part of a flow: times in milliseconds after BEGIN."""

    conversation: int
    start: int
    end: int
    num_bits: int = 800
    num_packets: int = 1

    def flow(self) -> Flow:
        return flow(
            meta={"src_ip": f"128.101.2.{self.conversation % 4 + 1}", "src_port": 40_000 + self.conversation},
            values={"num_bits": self.num_bits, "num_packets": self.num_packets},
            start=(BEGIN * 1000 + self.start) / 1000,
            end=(BEGIN * 1000 + self.end) / 1000,
        )


@st.composite
def conversations(draw: st.DrawFn, disorder: int = 1_000_000) -> list[list[Part]]:
    """For each conversation its parts in the order of arrival, of which none ends so much before one that came earlier."""
    made = []
    for conversation in range(draw(st.integers(1, 5))):
        newest = 1000 * draw(st.integers(0, 8_000))
        parts = []
        for _ in range(draw(st.integers(1, 7))):
            newest += draw(st.sampled_from((0, 300_000, 300_000, 629_999, 630_000, 630_001, 700_000, 3_000_000, 4_500_000)))
            end = newest - draw(st.sampled_from((0, 0, 0, 500, disorder)))
            start = end - draw(st.sampled_from((0, 250, 299_000, 630_000, 5_000_000)))
            parts.append(Part(conversation, max(0, start), max(0, end), draw(st.integers(0, 10**9)), draw(st.integers(0, 10**6))))
        made.append(parts)
    return made


def merged(lists: list[list[Part]], chance: Random, lateness: int = LATENESS) -> list[Part]:
    """Any order of the parts in which those of one conversation keep theirs and none comes later than `lateness`."""
    rest = [list(parts) for parts in lists]
    order: list[Part] = []
    while any(rest):
        oldest = min(part.end for parts in rest for part in parts)
        possible = [parts for parts in rest if parts and parts[0].end <= oldest + 1000 * lateness]
        order.append(chance.choice(possible).pop(0))
    return order


def believing(chain: Chain) -> Chain:
    """Shows stitching a thousand flows, none of which it holds: from then on the newest end is believed."""
    assert chain.stitching
    for _ in range(1_000):
        chain.stitching({"meta": {"flow_type": "tstat"}, "values": {}, "end": BEGIN - 1, "@ingest_time": ""})
    return chain


def stitched(chain: Chain, bodies: list[Body], chance: Random | None = None) -> list[bytes]:
    return written(through(believing(chain), bodies, chance))


def messages_of(parts: list[Part]) -> list[Body]:
    return [orjson.dumps(part.flow()) for part in parts]


@given(conversations(), st.randoms(use_true_random=False))
@examples(100)
def test_any_cut_gives_the_same_flows_by_the_event_clock(lists: list[list[Part]], chance: Random) -> None:
    """Also with late parts."""
    parts = merged(lists, chance, lateness=20_000)
    whole, cut_up = chain_of(), chain_of()
    assert stitched(whole, messages_of(parts)) == stitched(cut_up, cut([part.flow() for part in parts], chance), chance)
    assert whole.stitching
    assert cut_up.stitching
    assert whole.stitching.counts() == cut_up.stitching.counts()


@given(conversations(), st.randoms(use_true_random=False))
@examples(60)
def test_any_cut_gives_the_same_flows_by_the_arrival_clock(lists: list[list[Part]], chance: Random) -> None:
    """Between deliveries the clock goes on; a delivery is cut in any way."""
    parts = merged(lists, chance, lateness=20_000)
    deliveries = [(chance.choice((0, 1, 600, 630, 700, 90_000)), parts[i : i + 4]) for i in range(0, len(parts), 4)]

    def run(cutting: Random | None) -> list[bytes]:
        chain = chain_of("arrival")
        flows = []
        for passed, delivery in deliveries:
            chain.now.arrival += passed
            bodies = messages_of(delivery) if cutting is None else cut([part.flow() for part in delivery], cutting)
            for body in bodies:
                flows += chain.enrich(chain.take(body, "test", "0"))
                if cutting and cutting.random() < 0.5:
                    flows += chain.enrich(chain.tick())
        return written(flows + chain.enrich(chain.drain()))

    assert run(None) == run(chance)


@given(conversations(), st.randoms(use_true_random=False))
@examples(120)
def test_any_interleaving_without_late_parts_gives_the_same_flows(lists: list[list[Part]], chance: Random) -> None:
    alone = chain_of()
    apart = written([done for parts in lists for done in through(alone, messages_of(parts))])  # The newest end is not believed here.
    together = chain_of()
    assert stitched(together, messages_of(merged(lists, chance)), chance) == apart
    assert together.stitching
    assert together.stitching.counts()["late"] == 0


@given(conversations(), st.randoms(use_true_random=False), st.integers(2, 5))
@examples(60)
def test_any_cut_into_shards_gives_the_same_flows(lists: list[list[Part]], chance: Random, number: int) -> None:
    parts = merged(lists, chance)
    shards = [chain_of() for _ in range(number)]
    of_shards: list[list[Part]] = [[] for _ in shards]
    for part in parts:
        of_shards[int(_id_of(part.flow()), 16) % number].append(part)
    sharded = [done for chain, own in zip(shards, of_shards, strict=True) for done in stitched(chain, messages_of(own), chance)]
    assert sorted(sharded) == stitched(chain_of(), messages_of(parts))


@cache
def _id_of_conversation(ip: str, port: int) -> str:
    """meta.id, as the chain makes it."""
    (out,) = through(chain_of(), [orjson.dumps(flow(meta={"src_ip": ip, "src_port": port}))])
    return str(out["meta"]["id"])


def _id_of(given: Flow) -> str:
    return _id_of_conversation(given["meta"]["src_ip"], given["meta"]["src_port"])


class Held(NamedTuple):
    """A flow as the rules of the event clock make it, written down plainly: the parts, of one conversation, in order of arrival."""

    parts: list[Part]

    def takes(self, part: Part, newest: int) -> bool:
        last, first = self.parts[-1], self.parts[0]
        return (
            part.start - last.start <= INACTIVITY * 1000
            and part.start - first.start <= DAY * 1000
            and part.end <= self.end + INACTIVITY * 1000
            and not self.is_written_out(newest)
        )

    def is_written_out(self, newest: int) -> bool:
        return newest > self.end + (INACTIVITY + LATENESS) * 1000

    @property
    def end(self) -> int:
        return max(part.end for part in self.parts)

    def seen(self) -> tuple[Any, ...]:
        parts = self.parts
        return len(parts), min(part.start for part in parts), self.end, sum(p.num_bits for p in parts), sum(p.num_packets for p in parts)


@given(conversations(), st.randoms(use_true_random=False))
@examples(120)
def test_parts_are_stitched_by_the_rules_of_the_event_clock_and_late_ones_are_counted(lists: list[list[Part]], chance: Random) -> None:
    order = merged(lists, chance, lateness=20_000)
    newest, late = -1, 0
    held: dict[int, Held] = {}
    expected: list[Held] = []
    for part in order:
        open_one = held.get(part.conversation)
        if open_one and open_one.takes(part, newest):
            open_one.parts.append(part)
        else:
            late += part.end + LATENESS * 1000 < newest
            held[part.conversation] = Held([part])
            expected.append(held[part.conversation])
        newest = max(newest, part.end)

    chain = believing(chain_of())
    assert chain.stitching
    finished = [done for n, body in enumerate(messages_of(order)) for done in chain.take(body, "test", str(n))] + chain.drain()
    got = [(each[1], round((each[2] - BEGIN) * 1000), round((each[3] - BEGIN) * 1000), each[4], each[5]) for each in finished]
    assert Counter(got) == Counter(each.seen() for each in expected)
    assert chain.stitching.counts()["late"] == late


def test_a_late_part_opens_a_flow_of_its_own_and_is_counted() -> None:
    chain = chain_of()
    parts = [Part(1, 0, 100_000, 10, 1), Part(2, 10_000_000, 10_000_000, 20, 2), Part(1, 100_000, 200_000, 30, 3)]
    flows = [orjson.loads(each) for each in stitched(chain, messages_of(parts))]
    assert sorted(each["values"]["num_bits"] for each in flows) == [10, 20, 30]
    assert chain.stitching
    assert chain.stitching.counts() | {"parts": 3, "flows": 3, "late": 1, "held": 0} == chain.stitching.counts()
