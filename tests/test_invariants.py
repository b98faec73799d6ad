"""What holds for every input: nothing is lost, nothing is counted twice, no cut or order matters, and no address comes out."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsage_pipeline import folders
from netsage_pipeline.addresses import parse, unmapped
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.deadletters import DECODE, body_of
from netsage_pipeline.flow import Flow, Lookups, Now
from netsage_pipeline.replay import Summary
from netsage_pipeline.tables import Nothing, Tables
from tests.flows import MISSING, NOW, flow

INACTIVITY, LATENESS, DAY = 630, 3_600, 86_400

#: The flows here lie in the hours before NOW.
BEGIN = NOW - 40_000

Body = bytes


def examples(number: int) -> settings:
    """The same examples at every run."""
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@cache
def shipped() -> list[Configured]:
    return configured(folders.shipped("conf.d"), [folders.shipped("stages")])


@cache
def demo_tables() -> Tables:
    return Tables(folders.demo() / "tables")


def chain_of(clock: str = "event", *, stages: list[Configured] | None = None, lookups: Lookups | None = None) -> Chain:
    return Chain(stages or shipped(), lookups or demo_tables(), Now(NOW, clock=clock))


def through(chain: Chain, bodies: list[Body], chance: Random | None = None) -> list[Flow]:
    """What comes out of messages; with `chance`, looks at the clock and enriches now and then in between."""
    finished, flows = [], []
    for number, body in enumerate(bodies):
        finished += chain.take(body, "test", str(number))
        if chance and chance.random() < 0.3:
            finished += chain.tick()
        if chance and chance.random() < 0.3:
            flows += chain.enrich(finished)
            finished = []
    return flows + chain.enrich(finished) + chain.enrich(chain.drain())


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


# Cuts, orders and shards


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


# Nothing is lost


#: In place of a number, an address, a name, or anything else.
ODD: list[Any] = [
    *(MISSING, None, True, False, 0, 1, -1, 12, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, -(2**63), -(2**63) - 1),
    *(0.0, -0.0, 0.5, 99.9, -0.5, 1e-320, 1e18, 9.3e18, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "12", " 12 ", "-3", "99.9", "1,234", "1e3", "abc", "0x10", "٣", "9" * 30, "9" * 5_000, "1e400", "nan", "inf", "\0"),
    *([], {}, [1], {"a": 1}, "10.1.2.3", "::1", "fe80::1%eth0", "\ud800", "a\udfff", "é😀"),
]
TIMES: list[Any] = [NOW, NOW - 700, NOW - 631, NOW + 9, NOW + 11, NOW - 400 * DAY, str(NOW), int(NOW * 1000), 9_999_999_999, 10_000_000_000]
PLACES = [
    *(
        ("start",),
        ("end",),
        ("meta",),
        ("values",),
        ("type",),
        ("interval",),
        ("tags",),
        ("@ingest_time",),
        ("stitched_flows",),
        ("",),
        ("@x",),
    ),
    *(("meta", name) for name in flow()["meta"]),
    *(
        ("meta", name)
        for name in ("id", "scireg", "src", "dst", "src_location", "src_country_name", "tags", "instance_id", "", "src_organization")
    ),
    *(("values", name) for name in flow()["values"]),
]


@st.composite
def any_flow(draw: st.DrawFn, most: int = 3) -> Flow:
    """A flow of one of few conversations, with up to so many odd things in it."""
    bits = draw(st.one_of(st.integers(0, 10**9), st.integers(2**61, 2**63 - 1)))
    meta = {"flow_type": draw(st.sampled_from(("netflow", "sflow", "tstat"))), "src_port": draw(st.integers(1, 3))}
    start = NOW - draw(st.sampled_from((100.0, 300.0, 631.0)))
    made = flow(
        meta=meta,
        values={"num_bits": bits, "num_packets": bits // 1000},
        start=start,
        end=start + draw(st.sampled_from((0.0, 2.4e-7, 90.0))),
    )
    for _ in range(draw(st.integers(0, most))):
        *inside, name = draw(st.sampled_from(PLACES))
        holder = made[inside[0]] if inside else made
        value = draw(st.sampled_from(TIMES if name in ("start", "end") and draw(st.booleans()) else ODD))
        if isinstance(holder, dict):
            holder.pop(name, None)
            if value is not MISSING:
                holder[name] = value
        if not all(isinstance(made.get(each), dict) for each in ("meta", "values")):
            break
    return made


def body(value: Any) -> Body:
    """JSON as a lenient writer makes it: NaN, lone surrogates and large integers among it."""
    return json.dumps(value).encode()


def decoded(given: Body) -> Any:
    try:
        return orjson.loads(given)
    except orjson.JSONDecodeError:
        return json.loads(given)


def amount(given: Any, name: str) -> int:
    """The number of bits or packets of a flow; 0 if there is no telling."""
    value = given.get("values") if isinstance(given, dict) else None
    value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        return int(value) if not isinstance(value, str) or re.fullmatch(r"\s*[+-]?\d{1,4000}\s*", value, re.ASCII) else int(float(value))
    except (ValueError, OverflowError):
        return 0


class Account:
    """Takes messages of one flow each, and sums what went in, came out, was dropped and was refused."""

    def __init__(self, chain: Chain, flows: list[Flow]) -> None:
        self.chain = chain
        self.read: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        finished = []
        for number, each in enumerate(flows):
            given = body(each)
            before = chain.dropped.total()
            finished += chain.take(given, "test", str(number))
            for name in ("num_bits", "num_packets"):
                self.read[name] += amount(decoded(given), name)
                self.dropped[name] += amount(decoded(given), name) if chain.dropped.total() > before else 0
        self.flows = chain.enrich(finished) + chain.enrich(chain.drain())
        letters = [orjson.loads(letter) for letter in chain.dead]
        self.refused = [decoded(body_of(letter["payload"])) for letter in letters]
        self.parts = sum(max(1, each["stitched_flows"]) for each in self.flows)
        behind = [each for letter, each in zip(letters, self.refused, strict=True) if letter["stage"] > "41"]
        behind = [each for each in behind if isinstance(each, dict) and "@timestamp" in each]
        self.parts_refused = len(letters) - len(behind) + sum(max(1, each["stitched_flows"]) for each in behind)

    def check(self) -> None:
        for name in ("num_bits", "num_packets"):
            out = sum(amount(each, name) for each in self.flows)
            refused = sum(amount(each, name) for each in self.refused)
            assert self.read[name] == out + self.dropped[name] + refused, name
        unread = self.chain.refused[DECODE, "not JSON"]
        assert self.chain.read + unread == self.chain.dropped.total() + self.parts_refused + self.parts
        assert self.chain.refused.total() == len(self.refused)


@given(st.lists(any_flow(), min_size=1, max_size=8), st.sampled_from(("event", "arrival")))
@examples(250)
def test_bits_and_packets_come_out_or_are_dropped_or_dead_lettered(flows: list[Flow], clock: str) -> None:
    Account(chain_of(clock), flows).check()


#: An operator's stage: `kind` is its factory, what is `given` to it is refused where `condition` holds.
REFUSING = '''"""mine: refuses.

Reads   nothing
Writes  nothing
Source  nothing
Drops   nothing
"""
from netsage_pipeline.config import Settings

class Config(Settings):
    pass

def {kind}(config, lookups):
    def process(given):
        if {condition}:
            raise ValueError(str(given))
        return given

    return process
'''


@pytest.fixture(scope="session")
def refusing_behind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Chain]:
    """The shipped stages, and an operator's that refuse flows of port 2, and ends of AS2, behind stitching."""
    directory = tmp_path_factory.mktemp("operator")
    conf = directory / "conf.d"
    copy_conf(conf)
    (directory / "47_mine.py").write_text(REFUSING.format(kind="end", condition="given['asn'] == 2"))
    (directory / "92_mine.py").write_text(REFUSING.format(kind="stage", condition="given['meta']['src_port'] == 2"))
    (conf / "47_mine.toml").touch()
    (conf / "92_mine.toml").touch()
    stages = configured(conf, [folders.shipped("stages"), directory])
    return lambda: chain_of(stages=stages)


def copy_conf(to: Path, **added: str) -> None:
    """Our settings in another directory; of some stages with more in them: `copy_conf(to, _41_ip_version="enabled = true")`."""
    to.mkdir(parents=True)
    for file in sorted(folders.shipped("conf.d").glob("*.toml")):
        more = added.get(f"_{file.stem}")
        (to / file.name).write_text(file.read_text() if more is None else more)


@given(flows=st.lists(any_flow(most=1), min_size=1, max_size=8), number=st.integers(1, 3))
@examples(80)
def test_what_is_refused_behind_stitching_is_in_the_sums_too(flows: list[Flow], number: int, refusing_behind: Callable[[], Chain]) -> None:
    for each in flows[::number]:
        if isinstance(each.get("meta"), dict):
            each["meta"]["src_asn"] = 2
    account = Account(refusing_behind(), flows)
    account.check()


def test_the_sums_of_stitched_flows_that_are_refused_are_in_the_dead_letters(refusing_behind: Callable[[], Chain]) -> None:
    two = [flow(meta={"src_port": 2}), flow(meta={"src_port": 2})]
    account = Account(refusing_behind(), two)
    assert account.parts_refused == 2
    assert [each["values"]["num_bits"] for each in account.refused] == [16_000]
    account.check()


@given(flows=st.lists(any_flow(), min_size=1, max_size=8), chance=st.randoms(use_true_random=False))
@examples(80)
def test_any_cut_drops_and_refuses_the_same_flows(flows: list[Flow], chance: Random) -> None:
    one_by_one, cut_up = chain_of(), chain_of()
    first = through(one_by_one, [body(each) for each in flows])
    bodies, rest = [], flows
    while rest:
        size = chance.randint(1, len(rest))
        bodies.append(body(rest[:size]))
        rest = rest[size:]
    second = through(cut_up, bodies, chance)
    assert sorted(map(repr, first)) == sorted(map(repr, second))
    for name in ("read", "dropped", "refused", "notes"):
        assert getattr(one_by_one, name) == getattr(cut_up, name)
    assert _payloads(one_by_one) == _payloads(cut_up)


def _payloads(chain: Chain) -> list[tuple[str, bytes]]:
    letters = [orjson.loads(letter) for letter in chain.dead]
    return sorted((letter["stage"], body_of(letter["payload"])) for letter in letters)


def test_a_run_writes_the_same_bytes_whatever_the_seed_of_hashes(tmp_path: Path) -> None:
    """Fields that nobody knows keep their order, in every process."""
    names = {f"field {i}": i for i in range(20)}
    dump, written = tmp_path / "dump.ndjson", []
    dump.write_bytes(orjson.dumps(flow(meta=names, values=names, tags=["a"], **names)))
    for seed in range(4):
        command = [sys.executable, "-c", "from netsage_pipeline.cli import main; main()", "replay", str(dump), "--now", str(NOW)]
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        written.append(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert written[0]
    assert len(set(written)) == 1


# No message stops the loop


def checked(chain: Chain, given: Body) -> list[Flow]:
    """Takes a message, and sees that each flow in it came out, was dropped or was refused with a reason."""
    flows = chain.enrich(chain.take(given, "test", "1")) + chain.enrich(chain.drain())
    parts = sum(max(1, each["stitched_flows"]) for each in flows)
    unread = chain.refused[DECODE, "not JSON"]
    assert chain.read + unread == chain.dropped.total() + chain.refused.total() + parts
    assert len(chain.dead) == chain.refused.total()
    for letter in map(orjson.loads, chain.dead):
        assert letter["reason"]
    try:
        value = orjson.loads(given)
    except orjson.JSONDecodeError:
        assert chain.read or unread or loosely_decoded(given) == []
    else:
        assert chain.read == (len(value) if isinstance(value, list) else 1)
    return flows


def loosely_decoded(given: Body) -> Any:
    """A message as Python's own decoder reads it; None if it cannot."""
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(alphabet=st.characters(), max_size=5)
    | st.sampled_from(["\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["", "@x", "meta", "values", "start", "end", "type", "base64"]) | st.text(max_size=3), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-32-be")), st.booleans())
@examples(250)
def test_any_json_value_is_taken(value: Any, encoding: str, escaped: bool) -> None:
    checked(chain_of(), json.dumps(value, ensure_ascii=escaped).encode(encoding, "surrogatepass"))


@given(st.lists(json_values | any_flow(), max_size=4))
@examples(150)
def test_any_array_is_taken(values: list[Any]) -> None:
    checked(chain_of(), body(values))


@given(st.binary(max_size=40) | st.tuples(st.binary(max_size=3), st.integers(0, 400), st.binary(max_size=3)).map(lambda t: _damaged(*t)))
@examples(200)
def test_any_bytes_are_taken(given: Body) -> None:
    checked(chain_of(), given)


def _damaged(before: bytes, place: int, inside: bytes) -> Body:
    good = body(flow())
    return before + good[:place] + inside + good[place:]


FLOW = body(flow())


def put(text: bytes) -> Body:
    """A good flow with a member of its own in front, as JSON text."""
    return b"{" + text + b"," + FLOW[1:]


def nested(depth: int, opened: bytes = b"[", closed: bytes = b"]", leaf: bytes = b"1") -> bytes:
    return opened * depth + leaf + closed * depth


OUT, REFUSED = True, False


@pytest.mark.parametrize(
    ("given", "comes_out"),
    [
        pytest.param(put(b'"x":NaN'), REFUSED, id="a NaN"),
        pytest.param(put(b'"x":-Infinity'), REFUSED, id="an infinity"),
        pytest.param(put(b'"x":"\\ud800"'), REFUSED, id="a lone surrogate"),
        pytest.param(put(b'"\\ud800":1'), REFUSED, id="a lone surrogate as a key"),
        pytest.param(put(b'"x":%d' % 2**70), OUT, id="an integer beyond 64 bits in a field that nobody knows"),
        pytest.param(put(b'"x":' + b"9" * 5_000), REFUSED, id="an integer of 5,000 digits"),
        pytest.param(put(b'"x":1e999'), REFUSED, id="a number beyond all floats"),
        pytest.param(put(b'"x":' + nested(200)), OUT, id="arrays in arrays, 200 deep"),
        pytest.param(put(b'"x":' + nested(500)), REFUSED, id="arrays in arrays, 500 deep"),
        pytest.param(put(b'"x":' + nested(1_000)), REFUSED, id="arrays in arrays, 1,000 deep"),
        pytest.param(put(b'"x":' + nested(1_100)), REFUSED, id="arrays in arrays, 1,100 deep"),
        pytest.param(put(b'"x":' + nested(100_000)), REFUSED, id="arrays in arrays, 100,000 deep"),
        pytest.param(put(b'"x":' + nested(500, b'{"a":', b"}")), REFUSED, id="objects in objects, 500 deep"),
        pytest.param(put(b'"x":' + nested(500, leaf=b"NaN")), REFUSED, id="a NaN 500 deep"),
        pytest.param(put(b'"x":' + nested(900, leaf=b"NaN")), REFUSED, id="a NaN 900 deep"),
        pytest.param(put(b'"x":' + nested(500, b'{"a":', b"}", b'"\\ud800"')), REFUSED, id="a lone surrogate 500 deep"),
        pytest.param(nested(500), REFUSED, id="nothing but arrays, 500 deep"),
        pytest.param(nested(100_000), REFUSED, id="nothing but arrays, 100,000 deep"),
        pytest.param(b"[" * 100_000, REFUSED, id="arrays that do not end"),
        pytest.param(b"", REFUSED, id="nothing"),
        pytest.param(b" \n", REFUSED, id="blanks"),
        pytest.param(b"null", REFUSED, id="null"),
        pytest.param(b"{}", REFUSED, id="an empty object"),
        pytest.param(b"[[]]", REFUSED, id="an array in an array"),
        pytest.param(b"[%s]" % FLOW, OUT, id="an array of one flow"),
        pytest.param(b"[[%s]]" % FLOW, REFUSED, id="an array of an array of one flow"),
        pytest.param(b"\xef\xbb\xbf" + FLOW, OUT, id="a byte order mark"),
        pytest.param(FLOW.decode().encode("utf-16"), OUT, id="UTF-16"),
        pytest.param(put(b'"x":"\xff"'), REFUSED, id="bytes that are not UTF-8"),
        pytest.param(put(b'"start":"abc"'), OUT, id="a key twice: the last one counts"),
        pytest.param(put(b'"":{"":[]}'), OUT, id="an empty key"),
        pytest.param(put(b'"@x":1'), OUT, id="a key with @"),
        pytest.param(FLOW[:-1], REFUSED, id="a flow cut off"),
        pytest.param(FLOW + FLOW, REFUSED, id="two flows in one line"),
        pytest.param(b'{"base64":"AAAA"}', REFUSED, id="a flow that looks like the payload of a dead letter"),
        pytest.param(b'{"base64":5}', REFUSED, id="a flow that looks like a broken payload of a dead letter"),
    ],
)
def test_odd_messages(given: Body, comes_out: bool) -> None:
    chain = chain_of()
    flows = checked(chain, given)
    assert (len(flows), chain.refused.total()) == ((1, 0) if comes_out else (0, 1))
    again = chain_of()
    for letter in map(orjson.loads, chain.dead):
        if isinstance(letter["payload"], list):
            return  # An array in an array enters as a message of its own.
        again.enrich(again.enter(letter))
    assert chain.refused.keys() == again.refused.keys()  # As it came: refused again, for the same reason.


def test_an_empty_array_holds_no_flow() -> None:
    chain = chain_of()
    assert checked(chain, b"[]") == []
    assert (chain.read, chain.dead) == (0, [])


@pytest.mark.parametrize("odd", [b"NaN", b'"\\udc00"', nested(500), b"1e999", b"[[]]", nested(300, leaf=b"NaN")])
def test_one_odd_flow_in_an_array_costs_only_itself(odd: bytes) -> None:
    chain = chain_of()
    good = [body(flow(meta={"src_port": port})) for port in (1, 2)]
    flows = checked(chain, b"[" + b",".join([good[0], put(b'"x":' + odd), good[1]]) + b"]")
    out = 3 if odd == b"[[]]" else 2
    assert (chain.read, len(flows), chain.refused.total()) == (3, out, 3 - out)
    assert [orjson.loads(letter)["position"] for letter in chain.dead] == ["1.1"][: 3 - out]


def test_parts_of_next_to_no_duration_do_not_stop_the_loop() -> None:
    """The rate of a stitched flow can be beyond all floats."""
    chain = Chain(shipped(), demo_tables(), Now(NOW, judges=False))
    part = body(flow(start=0.0, end=1e-320))
    for _ in range(2):
        assert chain.take(part, "test", "1") == []
    flows = chain.enrich(chain.drain())
    assert len(flows) + len(chain.dead) == 1


@given(st.lists(any_flow(), min_size=1, max_size=4))
@examples(100)
def test_what_comes_out_can_be_written(flows: list[Flow]) -> None:
    for each in through(chain_of(), [body(each) for each in flows]):
        orjson.dumps(each)
        assert all(abs(each["values"][name]) < 2**63 for name in ("num_bits", "num_packets") if name in each["values"])


def test_a_part_with_which_a_sum_would_be_beyond_64_bits_is_refused_and_the_others_are_kept() -> None:
    account = Account(chain_of(), [flow(values={"num_bits": 2**62}) for _ in range(3)])
    assert [each["values"]["num_bits"] for each in account.flows] == [2**62]
    assert len(account.refused) == 2
    account.check()


# No address comes out


def packed_addresses() -> st.SearchStrategy[bytes]:
    """Addresses that no table and no rule knows: IPv4, IPv6 of several shapes, and such as carry an IPv4 address."""
    hosts = st.binary(min_size=8, max_size=8).filter(lambda host: host[0] > 15 and host[7] > 15 and host[6] > 15)
    public = st.tuples(st.integers(11, 99), st.integers(0, 255), st.integers(0, 255), st.integers(1, 255)).map(bytes)
    return st.one_of(
        public,
        public.map(lambda ip: bytes(10) + b"\xff\xff" + ip),
        st.tuples(st.sampled_from(["2001:db8::", "2607:f8b0:1::", "2a02:d0c0:0:7::"]), hosts).map(
            lambda t: socket.inet_pton(socket.AF_INET6, t[0])[:8] + t[1]
        ),
        st.integers(16, 2**16 - 1).map(lambda host: socket.inet_pton(socket.AF_INET6, f"2001:db8:0:1::{host:x}")),
        st.tuples(public, hosts).map(lambda t: b"\x20\x02" + t[0] + b"\0\x07" + t[1]),
        st.tuples(public, hosts).map(lambda t: b"\x20\x01\0\0" + t[0] + t[1]),
    )


def notations(packed: bytes) -> list[str]:
    """Ways to write an address."""
    if len(packed) == 4:
        return [socket.inet_ntop(socket.AF_INET, packed)]
    address = ipaddress.IPv6Address(packed)
    tail = ".".join(map(str, packed[12:]))
    plain = [f"{packed[i] << 8 | packed[i + 1]:x}" for i in range(0, 16, 2)]
    return [
        address.compressed,
        address.compressed.upper(),
        address.exploded,
        address.exploded.upper(),
        ":".join(plain),
        ":".join(plain).upper(),
        ":".join([*plain[:6], tail]),
        *([f"::ffff:{tail}", f"::FFFF:{tail}", tail] if address.ipv4_mapped else []),
    ]


AT_AN_END = ["{}", "{}", "{}", "[{}]", "{}%eth0", "{}/32", " {}", "{}\n", "host {}", '"{}"', "src:{}", "{};"]
WITHIN = [
    "{}",
    "{}",
    "from {} to all",
    "[{}]:443",
    "{}.",
    "({}),",
    "ip={}",
    "http://[{}]/",
    "{}/64",
    "{}%eth0",
    "src:{}",
    "x{}",
    "{}x",
    "{}-{}",
    "a.{}",
    "{}:443",
]

Copy = tuple[str, str]  # Where it stands, and the text.


def planted(made: Flow, where: str, text: str) -> None:
    """Puts a text into a field that nobody knows."""
    holders = {"meta": made["meta"], "values": made["values"]}
    holder = holders.get(where.split(" ", maxsplit=1)[0], made)
    kind = where.rpartition(" ")[2]
    note = {"text": text, "nested": [{"a": {"b": [text]}}], "key": {text: 1}, "name": 1}[kind]
    holder[text if kind == "name" else f"note {len(holder)}"] = note


WHERE = [f"{holder} {kind}" for holder in ("flow", "meta", "values") for kind in ("text", "nested", "key", "name")]


@lru_cache(maxsize=100_000)
def _addresses_in(run: str) -> frozenset[bytes]:
    """Each address that any part of a text is."""
    found = {parse(run[i:j]) for i in range(len(run)) for j in range(i + 2, min(len(run), i + 45) + 1)}
    return frozenset(unmapped(packed) for packed in found if packed)


def leaks(text: str, packed: bytes) -> list[str]:
    """The runs of a text in which an address stands, in whatever notation."""
    runs = [run for run in re.findall(r"[0-9A-Fa-f:.]{2,}", text) if ":" in run or "." in run]
    return [run for run in runs if unmapped(packed) in _addresses_in(run)]


class Registry:
    """A science registry and communities whose records hold the very address, in several notations."""

    def get(self, ip: str) -> Any:
        packed = parse(ip)
        texts = notations(packed) if packed else [ip]
        record = {
            "org_name": f"Laboratory at {texts[0]}",
            "addresses": texts,
            "addresses_str": ", ".join(texts),
            "resource": f"host [{texts[-1]}]",
            "projects": [{"project_name": f"on {texts[0]}", "project_abbr": texts[0]}],
            "discipline": f"of {texts[0]}",
            texts[0]: "a key",
            "community": [f"of {texts[0]}"],
        }
        return {"city": {"names": {"en": orjson.dumps(record).decode()}}}


def registry(kind: str, path: Path) -> Any:  # noqa: ARG001
    return Registry() if path.name in ("scireg.mmdb", "communities.mmdb") else Nothing()


Seen = Callable[[Flow, Lookups], dict[str, str]]


@pytest.fixture(scope="session")
def seen_behind_70(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What can be seen of a flow in chains in which it comes out, or a stage behind 70 refuses it, an end's or a flow's."""
    chains = {}
    for name, kind in {"comes out": "", "75_mine": "end", "92_mine": "stage"}.items():
        directory = tmp_path_factory.mktemp("operator")
        conf = directory / "conf.d"
        copy_conf(conf, _42_communities="enabled = true", _41_ip_version="enabled = true")
        if kind:
            (directory / f"{name}.py").write_text(REFUSING.format(kind=kind, condition="True"))
            (conf / f"{name}.toml").touch()
        chains[name] = configured(conf, [folders.shipped("stages"), directory])
    return lambda given, lookups: {name: shown(stages, given, lookups) for name, stages in chains.items()}


def shown(stages: list[Configured], given: Flow, lookups: Lookups) -> str:
    """All that can be seen of a flow behind stage 70: output, dead letters, reasons, the summary."""
    chain = chain_of(stages=stages, lookups=lookups)
    flows = through(chain, [body(given), body([given])])
    assert len(flows) + len(chain.dead) == (2 if given["meta"]["flow_type"] == "tstat" else 1)
    assert not {stage for stage, _ in chain.refused if stage < "70"}
    summary = Summary(read=chain.read, dropped=chain.dropped, refused=chain.refused, notes=chain.notes)
    return "\n".join([json.dumps(flows, ensure_ascii=False), *(letter.decode() for letter in chain.dead), *summary.lines()])


def knows_nothing(kind: str, path: Path) -> Any:  # noqa: ARG001
    return Nothing()


@given(
    ends=st.tuples(packed_addresses(), packed_addresses()),
    ways=st.lists(st.integers(0, 100), min_size=2, max_size=2),
    copies=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 100), st.sampled_from(WITHIN), st.sampled_from(WHERE)), max_size=4),
    tstat=st.booleans(),
)
@examples(150)
def test_no_address_comes_out_behind_70(
    ends: tuple[bytes, bytes],
    ways: list[int],
    copies: list[tuple[int, int, str, str]],
    tstat: bool,
    seen_behind_70: Seen,
) -> None:
    """An address in any notation, and copies of it in any other, in fields that nobody knows."""
    given = _with_ends(ends, ["{}", "{}"], ways, copies, tstat=tstat)
    for name, text in seen_behind_70(given, knows_nothing).items():
        assert [leaks(text, packed) for packed in ends] == [[], []], name


@given(
    ends=st.tuples(packed_addresses(), packed_addresses()),
    ways=st.lists(st.integers(0, 100), min_size=2, max_size=2),
    around=st.tuples(st.sampled_from(AT_AN_END), st.sampled_from(AT_AN_END)),
    copies=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 100), st.sampled_from(WITHIN), st.sampled_from(WHERE)), max_size=3),
)
@examples(150)
def test_no_address_comes_out_that_stands_within_a_text_at_an_end(
    ends: tuple[bytes, bytes],
    ways: list[int],
    around: tuple[str, str],
    copies: list[tuple[int, int, str, str]],
    seen_behind_70: Seen,
) -> None:
    """A zone, brackets, a mask or anything else around it makes it no address, but it is one all the same."""
    given = _with_ends(ends, list(around), ways, copies)
    for name, text in seen_behind_70(given, knows_nothing).items():
        assert [leaks(text, packed) for packed in ends] == [[], []], name


@given(ends=st.tuples(packed_addresses(), packed_addresses()), ways=st.lists(st.integers(0, 100), min_size=2, max_size=2))
@examples(60)
def test_no_address_comes_out_that_a_table_says(ends: tuple[bytes, bytes], ways: list[int], seen_behind_70: Seen) -> None:
    given = _with_ends(ends, ["{}", "{}"], ways, [])
    for name, text in seen_behind_70(given, registry).items():
        assert [leaks(text, packed) for packed in ends] == [[], []], name


def _with_ends(
    ends: tuple[bytes, bytes], around: list[str], ways: list[int], copies: list[tuple[int, int, str, str]], *, tstat: bool = False
) -> Flow:
    """A flow between two addresses with copies of them: of which end, in which notation, in which text, where."""
    written = [text.replace("{}", _chosen(packed, way)) for packed, way, text in zip(ends, ways, around, strict=True)]
    made = flow(meta={"src_ip": written[0], "dst_ip": written[1], "flow_type": "tstat" if tstat else "netflow"})
    for end, way, text, where in copies:
        planted(made, where, text.replace("{}", _chosen(ends[end], way)))
    return made


def _chosen(packed: bytes, way: int) -> str:
    ways = notations(packed)
    return ways[way % len(ways)]


@pytest.mark.parametrize(
    "name", ["meta.ip_version", "meta.id", "stitched_flows", "@timestamp", "@ingest_time", "PRIVATE", "tags", "es_doc_id"]
)
@pytest.mark.parametrize("flow_type", ["netflow", "tstat"])
def test_a_field_that_a_stage_writes_does_not_carry_an_address_from_the_input(name: str, flow_type: str) -> None:
    """Also when that stage is switched off, as 41_ip_version is."""
    given = flow(meta={"src_ip": "198.51.100.77", "flow_type": flow_type})
    holder, _, field = name.rpartition(".")
    (given[holder] if holder else given)[field] = "198.51.100.77"
    assert leaks(shown(shipped(), given, demo_tables()), bytes([198, 51, 100, 77])) == []


@pytest.mark.parametrize("name", ["type", "interval"])
def test_a_field_that_95_removes_does_not_carry_an_address_into_a_dead_letter(name: str, seen_behind_70: Seen) -> None:
    given = flow(meta={"src_ip": "198.51.100.77"}, **{name: "of 198.51.100.77"})
    for text in seen_behind_70(given, demo_tables()).values():
        assert leaks(text, bytes([198, 51, 100, 77])) == []


def test_a_leak_would_be_found() -> None:
    packed = socket.inet_pton(socket.AF_INET6, "2001:db8::a:1")
    found = [leaks(f"x{each}y", packed) for each in notations(packed)]
    assert all(found)
    assert leaks("2001:db8:0:0:x:x:x:x 2001:db8::a:2", packed) == []
