"""Invent the traffic of the demo: rows as an exporter's capture files hold them, and what must become of each.

The organizations and their prefixes are real, the hosts and the traffic are not. Everything is drawn from one seed.
Each plan_... function plants flows of one kind; it alone decides their fate, so that expected.json needs no pipeline.
"""

import ipaddress
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from expected import Expected
from truth import Facts, Organization

SEED = 20201110
START = 1605009600  # 2020-11-10T12:00:00Z
FILE_S = 300
FILES = 15
STOP = START + FILES * FILE_S
NOW = STOP + 300
HOSTS = 40  # per organization and IP version

Row = dict[str, Any]


@dataclass(frozen=True)
class Sensor:
    """Where flows are measured: between which organizations, who of them (by ASN) exchange bulk data, how its files are written."""

    name: str
    directory: str
    flow_type: str
    flows: int
    near: Callable[[Organization], bool]
    far: Callable[[Organization], bool]
    partners: tuple[tuple[int, int], ...] = ()
    flows_per_line: int = 1
    prefix: str = "nfcapd"


def in_north_america(o: Organization) -> bool:
    return o.country_code in ("US", "CA")


def in_continents(*codes: str) -> Callable[[Organization], bool]:
    return lambda o: o.continent_code in codes


def in_asns(*asns: int) -> Callable[[Organization], bool]:
    return lambda o: o.asn in asns


TRANSPAC = Sensor(
    name="TransPAC Seattle sFlow",
    directory="transpac-seattle-sflow",
    flow_type="sflow",
    flows=15_000,
    near=in_north_america,
    far=in_continents("AS", "OC"),
    partners=((43, 2505), (36391, 2505), (43, 24167), (3152, 1237), (2936, 1237), (6360, 7575), (195, 7472), (16, 6262), (160, 9264)),
)
NEAAR = Sensor(
    name="NEAAR New York sFlow",
    directory="neaar-new-york-sflow",
    flow_type="sflow",
    flows=15_500,
    near=in_north_america,
    far=in_continents("EU", "AF"),
    partners=((3152, 513), (43, 513), (36391, 513), (3671, 1754), (43, 34878), (3152, 2875), (50, 12816), (217, 786), (87, 36982)),
)
AMPATH = Sensor(
    name="AMPATH Miami Netflow",
    directory="ampath-miami-netflow",
    flow_type="netflow",
    flows=8_000,
    near=in_north_america,
    far=in_continents("SA", "EU"),
    partners=((3152, 1251), (43, 1916), (1224, 11340), (194, 1916), (32093, 27817), (160, 3449)),
    flows_per_line=100,
)
FRGP = Sensor(
    name="FRGP Denver Netflow",
    directory="frgp-denver-netflow",
    flow_type="netflow",
    flows=9_500,
    near=in_asns(194, 12145),
    far=lambda o: o.asn not in (194, 12145),
    partners=((194, 73), (194, 59), (194, 1237), (194, 786), (194, 32093), (12145, 217), (194, 2018)),
)
TACC = Sensor(
    name="TACC Austin tstat",
    directory="tacc-austin-tstat",
    flow_type="tstat",
    flows=3_000,
    near=in_asns(32093),
    far=lambda o: o.asn != 32093,
    prefix="tstat",
)
SENSORS = (TRANSPAC, NEAAR, AMPATH, FRGP, TACC)

#: port of the service, protocol, how often, share of bulk data: web, ssh, GridFTP, XRootD, WebDAV, rsync, perfSONAR, dns, ntp.
SERVICES = (
    (443, "tcp", 40, 1.0),
    (80, "tcp", 8, 0.5),
    (22, "tcp", 9, 2.0),
    (2811, "tcp", 4, 0.1),
    (50000, "tcp", 9, 20.0),
    (1094, "tcp", 10, 15.0),
    (8443, "tcp", 4, 5.0),
    (873, "tcp", 3, 5.0),
    (5201, "tcp", 3, 10.0),
    (5001, "udp", 1, 3.0),
    (443, "udp", 6, 1.0),
    (53, "udp", 2, 0.01),
    (123, "udp", 1, 0.01),
)

#: ASNs by which exporters say that they do not know: none, AS_TRANS, private.
UNKNOWN_ASNS = (0, 0, 0, None, 23456, 65001)


@dataclass(frozen=True)
class Host:
    ip: str
    organization: Organization


@dataclass
class Part:
    """One row: times in milliseconds."""

    start: int
    end: int
    num_bytes: int
    num_packets: int


@dataclass
class Captures:
    """The rows of all files, by sensor and number of the file, each with the time at which it was exported."""

    rows: dict[tuple[Sensor, int], list[tuple[int, Row | bytes]]] = field(default_factory=dict)

    def add(self, sensor: Sensor, row: Row | bytes, exported_ms: int) -> None:
        number = min(max((exported_ms // 1000 - START) // FILE_S, 0), FILES - 1)
        self.rows.setdefault((sensor, number), []).append((exported_ms, row))


class Hosts:
    """Addresses by popularity: a few hosts of a few organizations carry most of the traffic."""

    def __init__(self, facts: Facts, rng: random.Random) -> None:
        self.rng = rng
        organizations = [o for o in facts.organizations if o.prefixes]
        labs_first = sorted(organizations, key=lambda o: (o.asn not in {e["asn"] for e in facts.registry["science"]}, rng.random()))
        self.weight = {o.asn: 1 / (rank + 4) for rank, o in enumerate(labs_first)}
        self.hosts = {(o.asn, version): self.invent(o, version, facts) for o in organizations for version in (4, 6)}
        self.popularity = list(accumulate(1 / (rank + 1) for rank in range(HOSTS)))

    def invent(self, organization: Organization, version: int, facts: Facts) -> list[Host]:
        """The single hosts that the science registry names come first; the others are anywhere in the prefixes."""
        prefixes = [p for p in organization.prefixes if p.version == version]
        if not prefixes:
            return []
        entries = [p for p in facts.science.table if p.version == version and any(p.subnet_of(own) for own in prefixes)]  # type: ignore[arg-type]
        found = [str(p[0]) for p in entries if p.prefixlen == p.max_prefixlen]
        while len(found) < HOSTS:
            prefix = self.rng.choice(prefixes)
            if version == 4:
                address = int(prefix[0]) + self.rng.randrange(prefix.num_addresses // 256) * 256 + self.rng.randint(1, 254)
            else:
                subnet = self.rng.randrange(1 << min(16, 64 - prefix.prefixlen))
                address = int(prefix[0]) + (subnet << 64) + self.rng.choice([self.rng.randint(1, 512), self.rng.getrandbits(64)])
            found.append(str(ipaddress.ip_address(address)))
        return [Host(ip, organization) for ip in found]

    def draw(self, organizations: list[Organization], cumulated: list[float], version: int) -> Host:
        while True:
            organization = self.rng.choices(organizations, cum_weights=cumulated)[0]
            hosts = self.hosts[organization.asn, version]
            if hosts:
                return self.rng.choices(hosts, cum_weights=self.popularity)[0]


class Traffic:
    """Plants flows in captures, and enters in expected what must become of them."""

    def __init__(self, facts: Facts, expected: Expected) -> None:
        self.rng = random.Random(SEED)
        self.facts, self.expected, self.captures = facts, expected, Captures()
        self.hosts = Hosts(facts, self.rng)
        self.seen: set[tuple[Any, ...]] = set()
        self.sides = {sensor: (self.side(sensor.near), self.side(sensor.far)) for sensor in SENSORS}

    def side(self, belongs: Callable[[Organization], bool]) -> tuple[list[Organization], list[float]]:
        organizations = [o for o in self.facts.organizations if o.prefixes and belongs(o)]
        return organizations, list(accumulate(self.hosts.weight[o.asn] for o in organizations))

    # What a flow is made of.

    def ends(self, sensor: Sensor, between_partners: bool) -> tuple[Host, Host]:
        version = 6 if sensor is not TACC and self.rng.random() < 0.22 else 4  # TACC announces no IPv6 prefix
        sides = self.sides[sensor]
        if between_partners and sensor.partners and self.rng.random() < 0.8:
            version = 4
            near, far = self.rng.choice(sensor.partners)
            sides = ([self.facts.by_asn[near]], [1.0]), ([self.facts.by_asn[far]], [1.0])
        return self.hosts.draw(*sides[0], version), self.hosts.draw(*sides[1], version)

    def meta(self, sensor: Sensor, between_partners: bool = False) -> tuple[Row, float]:
        """The fields of one conversation that no other has on this sensor, and its share of bulk data."""
        rng = self.rng
        near, far = self.ends(sensor, between_partners)
        src, dst = (near, far) if rng.random() < 0.5 else (far, near)
        port, protocol, _, bulk = rng.choices(SERVICES, weights=[service[2] for service in SERVICES])[0]
        service_port = port + rng.randrange(1000) if port == 50000 else port
        while True:
            ports = [service_port, rng.randint(1024, 65535)]
            if rng.random() < 0.35:
                ports.reverse()
            key = (sensor.name, src.ip, dst.ip, *ports, protocol)
            if key not in self.seen:
                break
        self.seen.add(key)
        interfaces = [513, 527] if src is near else [527, 513]
        meta: Row = {"flow_type": sensor.flow_type, "sensor_id": sensor.name}
        for side, host, end_port, interface in zip(("src", "dst"), (src, dst), ports, interfaces, strict=True):
            asn = self.exported_asn(host.organization)
            known = {} if asn is None else {f"{side}_asn": asn}
            meta |= {f"{side}_ip": host.ip, f"{side}_port": end_port, **known, f"{side}_ifindex": interface}
        return {**meta, "protocol": protocol}, bulk

    def exported_asn(self, organization: Organization) -> int | None:
        if organization.asn in self.facts.registry["left_out"]["asn_table"]:
            return 0
        return organization.asn if self.rng.random() < 0.93 else self.rng.choice(UNKNOWN_ASNS)

    def part(self, start: int, end: int, bulk: float, most_per_ms: int = 125_000) -> Part:
        """Heavy-tailed: most flows are small, few carry nearly everything."""
        wanted = int(3_000 * (1 + bulk) * self.rng.paretovariate(0.95))
        num_bytes = max(64, min(wanted, (end - start) * most_per_ms))
        packet = self.rng.choice((1448, 1448, 1400, 8948)) if num_bytes > 100_000 else self.rng.randint(60, 1200)
        return Part(start, end, num_bytes, max(1, num_bytes // packet))

    def row(self, meta: Row, part: Part, **values: Any) -> Row:
        duration = (part.end - part.start) / 1000
        bits = part.num_bytes * 8
        return {
            "type": "flow",
            "interval": 600,
            "meta": meta,
            "start": part.start / 1000,
            "end": part.end / 1000,
            "values": {
                "duration": duration,
                "num_bits": bits,
                "num_packets": part.num_packets,
                "bits_per_second": int(bits / duration) if duration else 0,
                "packets_per_second": int(part.num_packets / duration) if duration else 0,
                **values,
            },
        }

    def moment(self, margin_s: int = 0) -> int:
        """Any millisecond of the captures, at least so far from their begin."""
        return self.rng.randrange((START + margin_s) * 1000, STOP * 1000)

    def short(self, bulk: float) -> Part:
        end = self.moment(margin_s=60)
        duration = 0 if self.rng.random() < 0.04 else min(int(self.rng.lognormvariate(7.5, 1.8)), 240_000)
        return self.part(end - duration, end, bulk)

    # Flows that come out.

    def plan_short(self, sensor: Sensor) -> None:
        """One part, one flow."""
        meta, bulk = self.meta(sensor)
        self.emit(sensor, meta, [self.short(bulk)])

    def plan_tstat(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        meta["protocol"] = "tcp"
        part, rng = self.short(bulk), self.rng
        rtt, lost = rng.lognormvariate(4, 0.7), int(part.num_packets * rng.expovariate(2000))
        row = self.row(
            meta,
            part,
            tcp_rtt_min=round(rtt, 3),
            tcp_rtt_avg=round(rtt * rng.uniform(1, 1.3), 3),
            tcp_rtt_max=round(rtt * rng.uniform(1.3, 5), 3),
            tcp_mss=rng.choice((1448, 8948)),
            tcp_rexmit_pkts=lost,
            tcp_rexmit_bytes=lost * 1448,
            tcp_cwin_max=rng.randrange(10_000, 50_000_000),
            tcp_win_max=rng.randrange(65_535, 50_000_000),
            tcp_out_seq_pkts=rng.randrange(20),
        )
        self.add(sensor, row, part.end)
        self.expected.passes(row)

    def plan_long(self, sensor: Sensor) -> None:
        """A transfer over several files, one part in each, at times one file without: one flow."""
        meta, bulk = self.meta(sensor, between_partners=True)
        files = self.rng.randint(2, 12)
        first = self.rng.randrange(FILES - files + 1)
        kept = [n for n in range(first, first + files) if n in (first, first + files - 1) or n % 5 != 0]
        self.emit(sensor, meta, self.slices(sensor, kept, bulk))

    def plan_paused(self, sensor: Sensor) -> None:
        """Silent for more than 630 s: two flows."""
        meta, bulk = self.meta(sensor, between_partners=True)
        first = self.rng.randrange(FILES - 7)
        again = first + self.rng.randint(4, 6)
        parts = self.slices(sensor, [first, first + 1], bulk)
        self.emit(sensor, meta, parts, self.slices(sensor, [again, again + 1], bulk))

    def plan_late_end(self, sensor: Sensor) -> None:
        """NetFlow keeps the start, but the end is more than 630 s after the last one: two flows."""
        meta, bulk = self.meta(sensor)
        first = self.rng.randrange(FILES - 4)
        one, two = self.slices(sensor, [first, first + 3], bulk)
        self.emit(sensor, meta, [one], [two])

    def slices(self, sensor: Sensor, files: list[int], bulk: float) -> list[Part]:
        """A part in each of these files. sFlow: each begins where its file does. NetFlow: all have the first one's start."""
        offset = self.rng.randrange(1_000, 15_000)
        parts: list[Part] = []
        for number in files:
            begin = (START + number * FILE_S) * 1000
            start, end = begin + offset, begin + FILE_S * 1000 - self.rng.randrange(1, 9_000)
            part = self.part(start, end, 200 + bulk * 200, most_per_ms=1_250_000)
            if sensor.flow_type == "netflow" and parts:
                part.start = parts[0].start
            parts.append(part)
        return parts

    def emit(self, sensor: Sensor, meta: Row, *flows: list[Part]) -> None:
        """Each list of parts must come out as one flow."""
        for parts in flows:
            rows = [self.row(meta, part) for part in parts]
            for row, part in zip(rows, parts, strict=True):
                self.add(sensor, row, part.end)
            self.expected.stitches(rows)

    def add(self, sensor: Sensor, row: Row, exported_ms: int) -> None:
        self.captures.add(sensor, row, exported_ms)
        self.expected.read += 1

    # Flows with something unusual in them that nevertheless come out.

    def plan_multicast(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        group = "ff1e::4d:50:1234" if ":" in meta["src_ip"] else f"233.{self.rng.randint(1, 9)}.7.{self.rng.randint(1, 254)}"
        self.emit(sensor, {**meta, "dst_ip": group, "dst_port": 5004, "dst_asn": 0, "protocol": "udp"}, [self.short(bulk)])

    def plan_ping(self, sensor: Sensor) -> None:
        meta, _ = self.meta(sensor)
        protocol = "ipv6-icmp" if ":" in meta["src_ip"] else "icmp"
        meta |= {"src_port": 0, "dst_port": 0, "protocol": protocol}
        key = (sensor.name, meta["src_ip"], meta["dst_ip"], protocol)
        if key not in self.seen:  # else the two would be one flow, by chance
            self.seen.add(key)
            self.emit(sensor, meta, [self.short(0)])

    def plan_without_destination(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        del meta["dst_ip"]
        meta["dst_asn"] = 0
        self.emit(sensor, meta, [self.short(bulk)])

    def plan_not_an_address(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        self.emit(sensor, {**meta, "dst_ip": "unresolved", "dst_asn": 0}, [self.short(bulk)])

    def plan_in_milliseconds(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        part = self.short(bulk)
        row = self.row(meta, part)
        self.add(sensor, {**row, "start": part.start, "end": part.end}, part.end)
        self.expected.stitches([row])

    def plan_numbers_as_text(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        part = self.short(bulk)
        row = self.row(meta, part)
        text = {name: str(value) for name, value in row["values"].items()}
        self.add(sensor, {**row, "values": text}, part.end)
        self.expected.stitches([row])

    # Flows that are dropped.

    def plan_private(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        side = self.rng.choice(("src_ip", "dst_ip"))
        private = ("10.1.2.3", "192.168.7.20", "172.20.0.9", "100.64.3.1", "169.254.10.1", "fd00:12::7", "fe80::1:2", "::ffff:10.9.8.7")
        self.drop(sensor, {**meta, side: self.rng.choice(private)}, self.short(bulk), "private address")

    def plan_future(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        self.drop(sensor, meta, self.short(bulk), "in the future", shift_s=self.rng.randint(7_200, 500_000_000))

    def plan_too_old(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        self.drop(sensor, meta, self.short(bulk), "too old", shift_s=-self.rng.randint(366 * 86_400, 10_000 * 86_400))

    def plan_end_before_start(self, sensor: Sensor) -> None:
        meta, bulk = self.meta(sensor)
        part = self.part(self.moment(margin_s=120), STOP * 1000, bulk)
        part.end = part.start - self.rng.randint(1, 60_000)
        self.drop(sensor, meta, part, "end before start")

    def drop(self, sensor: Sensor, meta: Row, part: Part, reason: str, shift_s: int = 0) -> None:
        exported = part.end
        part.start, part.end = part.start + shift_s * 1000, part.end + shift_s * 1000
        self.add(sensor, self.row(meta, part), exported)
        self.expected.dropped[reason] += 1

    # Flows and messages that are refused.

    def plan_broken(self, sensor: Sensor) -> None:
        """One flow of each kind that a stage refuses."""
        for reason, change in BROKEN.items():
            meta, bulk = self.meta(sensor)
            part = self.short(bulk)
            row = self.row(meta, part)
            change(row)
            self.add(sensor, row, part.end)
            self.expected.dead_lettered[reason] += 1

    def plan_no_flow(self, sensor: Sensor) -> None:
        """Lines that are no flow at all, in files with one flow a line."""
        for line in (b'{"type": "flow", "interval": 600, "start": 16050', b"nfdump: no such file", b"\xff\xfe\x00\x01"):
            self.captures.add(sensor, line, self.moment())
            self.expected.dead_lettered["decode: not JSON"] += 1
        for line in (b'"a text"', b"42"):
            self.captures.add(sensor, line, self.moment())
            self.expected.read += 1
            self.expected.dead_lettered["decode: not an object"] += 1

    # All of it.

    def plan(self) -> Captures:
        for sensor in SENSORS:
            stitched = sensor.flow_type != "tstat"
            for kind, times in self.mixture(sensor) if stitched else [(self.plan_tstat, sensor.flows), (self.plan_private, 20)]:
                for _ in range(times):
                    kind(sensor)
            if sensor.flows_per_line == 1 and stitched:
                self.plan_no_flow(sensor)
        return self.captures

    def mixture(self, sensor: Sensor) -> Iterator[tuple[Callable[[Sensor], None], int]]:
        """How many of each kind; most of them are short."""
        long = sensor.flows // 40
        late_end = 12 if sensor.flow_type == "netflow" else 0
        yield self.plan_long, long
        yield self.plan_paused, long // 5
        yield self.plan_late_end, late_end
        yield self.plan_multicast, 60
        yield self.plan_ping, 120
        yield self.plan_without_destination, 2
        yield self.plan_not_an_address, 2
        yield self.plan_in_milliseconds, 5
        yield self.plan_numbers_as_text, 5
        yield self.plan_private, 90
        yield self.plan_future, 8
        yield self.plan_too_old, 8
        yield self.plan_end_before_start, 6
        yield self.plan_broken, 2
        yield self.plan_short, sensor.flows


def put(name: str, value: Any, inside: str | None = None) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        (row[inside] if inside else row)[name] = value

    return change


def take(name: str, inside: str | None = None) -> Callable[[Row], None]:
    def change(row: Row) -> None:
        del (row[inside] if inside else row)[name]

    return change


#: By the reason for which each must be refused.
BROKEN: dict[str, Callable[[Row], None]] = {
    "10_preliminaries: meta: not an object": put("meta", "sflow from Seattle"),
    "10_preliminaries: meta.src_ip: not a text": put("src_ip", 2154823938, inside="meta"),
    "10_preliminaries: start: missing": take("start"),
    "10_preliminaries: start: not a number": put("start", "abc"),
    "10_preliminaries: values.num_bits: not a number": put("num_bits", "1,234", inside="values"),
    "40_aggregation: values.num_bits: missing": take("num_bits", inside="values"),
}
