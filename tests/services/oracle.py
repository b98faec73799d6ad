"""What must come out of a worker, whatever happens to it: known from what was published, worked out without any of its code.

A stream makes messages; what is in one is written down when the broker confirmed it. Flows are parts of ids that live for a while, so that
whatever is killed is killed between parts of many of them; each part has a number of bits of its own, so that every document can be traced
to the parts it was made of.
"""

from __future__ import annotations

import heapq
import hmac
import itertools
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from netsage_pipeline.deadletters import body_of
from netsage_pipeline.documents import document_id
from tests.command import OF_THE_RUN, run_real, written

#: For NETSAGE_INACTIVITY_TIMEOUT_S; most gaps between two parts are shorter, some longer.
TIMEOUT_S = 4

#: A repeated document is the same but for these.
_OF_A_REPETITION = ("@exit_time", "@processing_time")

#: Of a document these do not follow from the two ends.
_OF_A_FLOW = ("id", "src_port", "dst_port", "is_network_testing")

_NETWORKS = (
    "1.130.7",
    "12.81.9",
    "50.130.4",
    "60.70.5",
    "65.130.8",
    "67.160.3",
    "103.0.17",
    "128.101.1",
    "128.101.2",
    "128.101.5",
    "134.68.22",
    "139.130.1",
    "139.130.2",
    "150.1.6",
    "168.123.7",
    "196.0.8",
    "200.0.9",
    "9.9.9",
    "2001:218:7",
    "2001:388:1",
    "2001:468:1",
    "2607:f8b0:5",
)
_PRIVATIZED = ("103.0.17.", "139.130.1.", "139.130.2.", "2001:388:1:")  # AARNet's.
_SENSORS = ("TransPAC-x", "NEAAR netflow", "i-Light netflow", "border", "SoX")
_MORE_PARTS = (0, 0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7)
_TESTING = (5001, 5101, 5201)

#: Country of some of the networks, known from the tables by eye: the expected documents are not only what a replay says.
_COUNTRIES = {"128.101.2": "United States", "139.130.1": "Australia", "150.1.6": "Japan", "168.123.7": "Guam", "2001:388:1": "Australia"}


class End(NamedTuple):
    """Who speaks with whom, as a sensor sees it: all that enrichment goes by."""

    src_ip: str
    dst_ip: str
    sensor: str
    protocol: str
    flow_type: str

    def meta(self, src_port: int, dst_port: int) -> dict[str, Any]:
        return {
            "flow_type": self.flow_type,
            "sensor_id": self.sensor,
            "src_ip": self.src_ip,
            "src_port": src_port,
            "dst_ip": self.dst_ip,
            "dst_port": dst_port,
            "protocol": self.protocol,
            "src_asn": 0,
            "dst_asn": 0,
            "src_ifindex": 11,
            "dst_ifindex": 12,
        }


@dataclass(slots=True)
class Known:
    """An id and what was published of it."""

    id: str
    end: End
    src_port: int
    dst_port: int
    parts: list[Part] = field(default_factory=list)

    @property
    def stitched(self) -> bool:
        return self.end.flow_type != "tstat"


class Part(NamedTuple):
    """One flow that is to be counted."""

    start_ms: int
    end_ms: int
    bits: int
    packets: int
    period: int  #: how many kills there had been when it was published


class Bad(NamedTuple):
    """Something that must become a dead letter. Its mark stands in it."""

    mark: str
    stage: str
    reason: str


@dataclass(slots=True)
class Message:
    body: bytes
    message_id: str
    parts: list[tuple[Known, Part]]
    drops: list[str]
    bad: list[Bad]
    flows: int  #: as a worker counts them: what is no JSON is none


def id_of(meta: dict[str, Any]) -> str:
    """As specified for 20_add_id."""
    names = ("dst_ip", "dst_port", "protocol", "sensor_id", "src_ip", "src_port")
    text = "".join(f"|[meta][{name}]|{meta[name]}" for name in names) + "|"
    return hmac.new(b"create flowid", text.encode(), "sha256").hexdigest()


def masked(ip: str) -> str:
    """As specified for 70_deidentify and 80_privatize_org."""
    if ip.startswith(_PRIVATIZED):
        return "xx.xx.xx.xx"
    if ":" not in ip:
        return ip.rpartition(".")[0] + ".x"
    return ":".join([f"{int(group, 16):x}" for group in ip_address(ip).exploded.split(":")[:4]] + ["x"] * 4)


class Stream:
    """Messages without end, flows in the order of their starts. The same seed makes the same, but for the times.

    flows_per_s   of the time in the flows
    """

    def __init__(self, seed: int, begin: float, flows_per_s: float) -> None:
        self._random = random.Random(seed)
        self._seed = seed
        self._ms = begin * 1000
        self._step_ms = 1000 / flows_per_s
        self.ends = self._ends()
        self._stitched = [end for end in self.ends if end.flow_type != "tstat"]
        self._tstat = [end for end in self.ends if end.flow_type == "tstat"]
        self._due: list[tuple[float, int, Known, int]] = []  # when the next part comes, a number, whose, how many more after it
        self._alive: list[Known] = []
        self._parts = self._ids = self._messages = self._bad = 0
        self.addresses = sorted({ip for end in self.ends for ip in (end.src_ip, end.dst_ip)})

    def _ends(self) -> list[End]:
        chance = self._random
        addresses = [
            f"{network}::{chance.randrange(1, 1 << 16):x}:9" if ":" in network else f"{network}.{chance.randrange(100, 250)}"
            for network in _NETWORKS
            for _ in range(3)
        ]
        flow_types = ["netflow"] * 6 + ["sflow"] * 3 + ["tstat"]
        ends = {
            End(chance.choice(addresses), chance.choice(addresses), chance.choice(_SENSORS), chance.choice(("tcp", "udp")), flow_type)
            for flow_type in flow_types
            for _ in range(30)
        }
        return sorted(ends)

    def message(self, period: int) -> Message:
        """The next one."""
        chance = self._random
        self._messages += 1
        message = Message(b"", f"{self._seed}/{self._messages}" if chance.random() < 0.7 else "", [], [], [], 0)
        if chance.random() < 0.003:
            message.body = b'{"start": 17, "%s": ' % self._spoil(message, "decode", "not JSON").encode()
            return message
        values = [self._flow(message, period) for _ in range(chance.randrange(1, 50))]
        message.flows = len(values)
        single = len(values) == 1 and values[0][:1] == b"{"
        message.body = values[0] if single else b"[%s]" % b",".join(values)
        return message

    def _flow(self, message: Message, period: int) -> bytes:
        """The JSON of the next flow, or of something bad in its place."""
        chance = self._random
        self._ms += self._step_ms
        dice = chance.random()
        if dice < 0.003:
            return self._bad_one(message)
        if dice < 0.023:
            return self._dropped_one(message)
        if dice < 0.043:
            return self._part(message, self._opened(chance.choice(self._tstat)), period)
        if self._due and self._due[0][0] <= self._ms:
            _, number, known, more = heapq.heappop(self._due)
        else:
            known = self._opened(chance.choice(self._stitched))
            number, more = self._ids, chance.choice(_MORE_PARTS)
            self._alive.append(known)
            if len(self._alive) > 1_000:
                del self._alive[:500]
        if more:
            gap = chance.uniform(0.2, 2.5) if chance.random() < 0.7 else chance.uniform(2.5, 6)
            heapq.heappush(self._due, (self._ms + gap * 1000, number, known, more - 1))
        return self._part(message, known, period)

    def _opened(self, end: End) -> Known:
        self._ids += 1
        src_port, dst_port = 1_024 + self._ids % 60_000, 443 + self._ids // 60_000
        return Known(id_of(end.meta(src_port, dst_port)), end, src_port, dst_port)

    def _part(self, message: Message, known: Known, period: int) -> bytes:
        part = Part(*self._times(), *self._counts(), period)
        message.parts.append((known, part))
        return orjson.dumps(_flow_of(known, *part[:4]))

    def _times(self) -> tuple[int, int]:
        start = int(self._ms)
        return start, start + self._random.randrange(1, 2_500)

    def _counts(self) -> tuple[int, int]:
        """Bits that no other part has, and packets."""
        self._parts += 1
        return 1 + self._parts * 0x9E3779B97F4A7C15 % (1 << 44), self._random.randrange(1, 10_000)

    def _any(self) -> Known:
        """An id of which other parts are under way: counting what must not be counted spoils its sums."""
        return self._random.choice(self._alive) if self._alive else self._opened(self._stitched[0])

    def _dropped_one(self, message: Message) -> bytes:
        reason = self._random.choice(("private address", "in the future", "too old", "end before start"))
        start, end = self._times()
        if reason == "in the future":
            start, end = start + 86_400_000, end + 86_400_000
        elif reason == "too old":
            start -= 400 * 86_400_000
        elif reason == "end before start":
            start, end = end, start
        flow = _flow_of(self._any(), start, end, *self._counts())
        if reason == "private address":
            flow["meta"][self._random.choice(("src_ip", "dst_ip"))] = self._random.choice(
                ("10.1.2.3", "192.168.4.5", "fe80::1", "fc00:1::2")
            )
        message.drops.append(reason)
        return orjson.dumps(flow)

    def _bad_one(self, message: Message) -> bytes:
        stage, reason = self._random.choice(
            (
                ("10_preliminaries", "start: missing"),
                ("10_preliminaries", "values.num_bits: not a number"),
                ("10_preliminaries", "values.num_packets: negative"),
                ("40_aggregation", "values.num_packets: missing"),
                ("decode", "NaN or infinity"),
                ("decode", "not an object"),
            )
        )
        mark = self._spoil(message, stage, reason)
        flow = _flow_of(self._any(), *self._times(), *self._counts())
        flow["meta"]["instance_id"] = mark
        if reason == "start: missing":
            del flow["start"]
        elif reason.endswith("not a number"):
            flow["values"]["num_bits"] = "many"
        elif reason.endswith("negative"):
            flow["values"]["num_packets"] = -1
        elif reason.endswith("packets: missing"):
            del flow["values"]["num_packets"]
        elif reason == "not an object":
            return orjson.dumps(mark)
        else:
            flow["values"]["duration"] = "NaN"
            return orjson.dumps(flow).replace(b'"NaN"', b"NaN")
        return orjson.dumps(flow)

    def _spoil(self, message: Message, stage: str, reason: str) -> str:
        self._bad += 1
        message.bad.append(Bad(f"bad-{self._bad}-", stage, reason))
        return message.bad[-1].mark


def _flow_of(known: Known, start_ms: int, end_ms: int, bits: int, packets: int) -> dict[str, Any]:
    return {
        "type": "flow",
        "interval": 600,
        "start": start_ms / 1000,
        "end": end_ms / 1000,
        "meta": known.end.meta(known.src_port, known.dst_port),
        "values": {
            "duration": (end_ms - start_ms) / 1000,
            "num_bits": bits,
            "num_packets": packets,
            "bits_per_second": bits / 4.0,
            "packets_per_second": packets / 4.0,
        },
    }


class Document(NamedTuple):
    """What is kept of a document that was seen."""

    parts: int
    start_ms: int
    end_ms: int
    bits: int
    packets: int


class Oracle:
    """What was published, and what came out."""

    def __init__(self, ends: list[End], addresses: list[str], directory: Path) -> None:
        self.known: dict[str, Known] = {}
        self.bad: dict[str, Bad] = {}
        self.drops = Counter[str]()
        self.messages = self.flows = self.sent_twice = 0
        self.faults: list[str] = []
        self._documents: dict[str, list[Document]] = {}
        self._seen: dict[str, tuple[bytes, str]] = {}  # document id → what it holds, when it was made last
        self.seen = 0
        #: Of each repetition, when the document had been made before.
        self.made_before: list[str] = []
        self._letters: dict[str, bytes] = {}
        self._marks: set[str] = set()
        self.repeated_letters = 0
        self._addresses = [address.encode() for address in addresses]
        self._enriched = _enriched(ends, directory)

    def published(self, message: Message) -> None:
        """The broker confirmed it."""
        self.messages += 1
        self.flows += message.flows
        for known, part in message.parts:
            self.known.setdefault(known.id, known).parts.append(part)
        self.drops.update(message.drops)
        self.bad.update((each.mark, each) for each in message.bad)

    # The output.

    def take(self, body: bytes) -> None:
        """A message of the output."""
        shown = [address.decode() for address in self._addresses if address in body]
        self._expect(not shown, f"full addresses in the output: {shown[:3]}")
        documents = orjson.loads(body)
        for document in documents if isinstance(documents, list) else [documents]:
            self._take(document)

    def _take(self, document: dict[str, Any]) -> None:
        self.seen += 1
        known_as = document_id(document)
        holds = blake2b(orjson.dumps({name: value for name, value in document.items() if name not in _OF_A_REPETITION})).digest()
        before, self._seen[known_as] = self._seen.get(known_as), (holds, document["@exit_time"])
        if before:
            self.made_before.append(before[1])
            self._expect(before[0] == holds, f"a repeated document differs: {document}")
            return
        known = self.known.get(document["meta"]["id"])
        self._expect(known is not None, f"a document of an id that was not published: {document}")
        if known is None:
            return
        values = document["values"]
        times = _ms(document["start"]), _ms(document["end"])
        of = Document(document["stitched_flows"], *times, values["num_bits"], values["num_packets"])
        self._documents.setdefault(known.id, []).append(of)
        wrong = [name for name, is_right in self._checks(document, known, of) if not is_right]
        self._expect(not wrong, f"{', '.join(wrong)}: {document}")

    def _checks(self, document: dict[str, Any], known: Known, of: Document) -> Iterator[tuple[str, bool]]:
        meta, values = document["meta"], document["values"]
        enriched = self._enriched[known.end]
        yield "fields", document.keys() == enriched.keys()
        yield "end before start", of.start_ms <= of.end_ms
        yield "ports", (meta["src_port"], meta["dst_port"]) == (known.src_port, known.dst_port)
        yield "addresses", (meta["src_ip"], meta["dst_ip"]) == (masked(known.end.src_ip), masked(known.end.dst_ip))
        yield "meta", _of_the_ends(meta) == _of_the_ends(enriched["meta"]) and document["tags"] == enriched["tags"]
        testing = {known.src_port, known.dst_port}.isdisjoint(_TESTING)
        yield "is_network_testing", meta["is_network_testing"] == (enriched["meta"]["is_network_testing"] if testing else "yes")
        for side, ip in (("src", known.end.src_ip), ("dst", known.end.dst_ip)):
            country = next((name for network, name in _COUNTRIES.items() if ip.startswith((f"{network}.", f"{network}:"))), None)
            yield f"{side}_country_name", country is None or meta[f"{side}_country_name"] == country
        text = f"|[flow_fingerprint]|{known.id}|[start]|{of.start_ms / 1000!r}|"
        yield "es_doc_id", document["es_doc_id"] == hmac.new(b"create docid", text.encode(), "sha256").hexdigest()
        times = [document[name] for name in ("@ingest_time", "@timestamp", "@exit_time")]
        yield "times of the run", times == sorted(times)
        duration = of.end_ms / 1000 - of.start_ms / 1000
        seconds, bits, packets = values["duration"], values["bits_per_second"], values["packets_per_second"]
        if of.parts < 2:
            yield "rates", (seconds, bits, packets) == ((of.end_ms - of.start_ms) / 1000, of.bits / 4.0, of.packets / 4.0)
        else:
            yield "rates", (seconds, bits, packets) == (round(duration, 3), int(of.bits / duration), int(of.packets / duration))

    # The dead letters.

    def take_letter(self, body: bytes, message_id: str, queue: str) -> None:
        """A message of the queue of dead letters."""
        if message_id in self._letters:
            self.repeated_letters += 1
            self._expect(self._letters[message_id] == body, f"a repeated dead letter differs: {body!r}")
            return
        self._letters[message_id] = body
        letter = orjson.loads(body)
        found = re.search(rb"bad-\d+-", body_of(letter["payload"]))
        mark = found[0].decode() if found else ""
        planted = self.bad.get(mark)
        self._expect(planted is not None, f"a dead letter that was not planted: {body!r}")
        self._expect(mark not in self._marks, f"a second dead letter of {mark}: {body!r}")
        self._marks.add(mark)
        if planted is not None:
            right = (letter["stage"], letter["reason"], letter["source"]) == (planted.stage, planted.reason, queue)
            self._expect(right, f"a dead letter says something else than {planted}: {body!r}")

    # The verdict.

    @property
    def distinct(self) -> int:
        return len(self._seen)

    @property
    def letters(self) -> int:
        return len(self._letters)

    def judge(self) -> list[str]:
        """All that is wrong, when everything was drained."""
        missing = self.bad.keys() - self._marks
        self._expect(
            not missing, f"{len(missing)} planted ones are not among the dead letters: {[self.bad[mark] for mark in sorted(missing)[:5]]}"
        )
        for known in self.known.values():
            documents = self._documents.get(known.id, [])
            came = (sum(each.parts for each in documents), sum(each.bits for each in documents), sum(each.packets for each in documents))
            parts = known.parts
            right = (len(parts) * known.stitched, sum(part.bits for part in parts), sum(part.packets for part in parts))
            if came != right:
                self._expect(False, f"sums {came} are not {right}: {known} became {documents}")
            elif not _is_partition(documents, parts, known.stitched):
                self._expect(False, f"start and end are not those of the parts: {known} became {documents}")
        return self.faults

    def totals(self) -> dict[tuple[str, str, str], int]:
        """What the ledger must have counted, repeats apart, when all messages were counted once."""
        refused = Counter((each.stage, each.reason) for each in self.bad.values())
        return {
            ("read", "", ""): self.flows,
            ("enriched", "", ""): self.distinct,
            ("written", "", ""): self.distinct,
            **{("dropped", "10_preliminaries", reason): number for reason, number in self.drops.items()},
            **{("refused", stage, reason): number for (stage, reason), number in refused.items()},
        }

    def share_of_ids(self, parts: int, periods: int) -> float:
        """Of the ids that are stitched, those with at least so many parts that were published in so many periods between kills."""
        ids = [known for known in self.known.values() if known.stitched]
        enough = [known for known in ids if len(known.parts) >= parts and len({part.period for part in known.parts}) >= periods]
        return len(enough) / len(ids)

    def stitched(self) -> int:
        """Documents of more than one part."""
        return sum(each.parts > 1 for documents in self._documents.values() for each in documents)

    def _expect(self, right: bool, fault: str) -> None:
        if not right:
            self.faults.append(fault[:3_000])


def _is_partition(documents: list[Document], parts: list[Part], stitched: bool) -> bool:
    """Whether each part is in one document, whose times are those of its parts."""
    left = list(parts)
    for document in documents:
        for some in itertools.combinations(left, document.parts if stitched else 1):
            if sum(part.bits for part in some) == document.bits:
                break
        else:
            return False
        times = (min(part.start_ms for part in some), max(part.end_ms for part in some))
        if (*times, sum(part.packets for part in some)) != (document.start_ms, document.end_ms, document.packets):
            return False
        left = [part for part in left if part not in some]
    return not left


def _enriched(ends: list[End], directory: Path) -> dict[End, dict[str, Any]]:
    """A document of each of them, from one flow alone."""
    ports = {end: 40_000 + number for number, end in enumerate(ends)}
    flows = [_flow_of(Known("", end, port, 443), 1_700_000_000_000, 1_700_000_001_000, 8, 1) for end, port in ports.items()]
    outcome = run_real("replay", written(directory / "ends.ndjson", *flows))
    assert outcome.code == 0, outcome.err
    found = {flow["meta"]["src_port"]: flow for flow in outcome.flows}
    return {end: found[port] for end, port in ports.items()}


def _of_the_ends(meta: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if name not in _OF_A_FLOW}


def seconds(text: str) -> float:
    """Unix seconds of an ISO text."""
    return datetime.fromisoformat(text).timestamp()


def _ms(text: str) -> int:
    return round(seconds(text) * 1000)


assert set(_OF_A_REPETITION) < set(OF_THE_RUN)
