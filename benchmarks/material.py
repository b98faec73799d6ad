"""Tables and flows for the benchmarks: made with a fixed seed, the same at every run.

The City records hold names in eight languages, as MaxMind's do; addresses are drawn by popularity (Zipf); a flow of the importer is about
480 bytes, its enriched form about 1.4 kB.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdb_writer
import netaddr
import orjson

LANGUAGES = ("de", "en", "es", "fr", "ja", "pt-BR", "ru", "zh-CN")
COUNTRIES = ("United States", "Germany", "Japan", "Brazil", "Australia", "France", "Puerto Rico", "Netherlands", "Canada", "Kenya")
CONTINENTS = ("North America", "Europe", "Asia", "South America", "Oceania", "Europe", "North America", "Europe", "North America", "Africa")
NETWORKS = 4_000
SENSORS = ("sea.pacificwave.net", "los-angeles.cenic.net", "NEAAR-Amsterdam", "sox", "TransPAC-netflow")
START = 1_700_000_000


def networks(rng: random.Random) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Prefixes of 4,000 networks, a fifth of them IPv6."""
    v4 = [ipaddress.IPv4Network((0x80000000 + (i << 14), 18)) for i in range(NETWORKS * 4 // 5)]
    v6 = [ipaddress.IPv6Network(((0x20010468 << 96) + (i << 80), 48)) for i in range(NETWORKS // 5)]
    both: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = [*v4, *v6]
    rng.shuffle(both)
    return both


def write_tables(directory: Path) -> None:
    """All lookup tables, in the real formats."""
    rng = random.Random(1)
    city, asn, scireg = (
        mmdb_writer.MMDBWriter(6, kind, ipv4_compatible=True, languages=list(LANGUAGES))
        for kind in ("GeoLite2-City", "GeoLite2-ASN", "GeoLite2-City")
    )
    organizations = []
    for number, network in enumerate(networks(rng)):
        prefix = netaddr.IPSet([str(network)])
        country = number % len(COUNTRIES)
        names = {language: f"{COUNTRIES[country]} {language}" for language in LANGUAGES} | {"en": COUNTRIES[country]}
        place = {
            "city": {"geoname_id": number, "names": {language: f"City {number} {language}" for language in LANGUAGES}},
            "continent": {"code": "XX", "geoname_id": country, "names": dict.fromkeys(LANGUAGES, CONTINENTS[country])},
            "country": {"geoname_id": country, "iso_code": "XX", "names": names},
            "location": {
                "accuracy_radius": 20,
                "latitude": 40.0 + number / 97,
                "longitude": -100.0 + number / 89,
                "time_zone": "America/Chicago",
            },
            "postal": {"code": "55455"},
            "registered_country": {"geoname_id": country, "iso_code": "XX", "names": names},
            "subdivisions": [{"geoname_id": 5, "iso_code": "MN", "names": dict.fromkeys(LANGUAGES, "Minnesota")}],
        }
        city.insert_network(prefix, place)
        asn.insert_network(prefix, {"autonomous_system_number": 1000 + number, "autonomous_system_organization": f"Network {number}"})
        organizations.append(f'{1000 + number},"University of Place {number}"\n')
        if number % 40 == 0:
            record = {
                "org_name": f"Laboratory {number}",
                "org_abbr": f"LAB{number}",
                "discipline": "Physics.High Energy",
                "resource": f"LAB{number} - Storage",
                "latitude": "44.5",
                "longitude": "-93.25",
                "projects": [{"project_name": "Very Long Baseline", "project_abbr": "VLB"}],
            }
            scireg.insert_network(prefix, {"city": {"names": {"en": json.dumps(record)}}})
    city.to_db_file(str(directory / "GeoLite2-City.mmdb"))
    asn.to_db_file(str(directory / "GeoLite2-ASN.mmdb"))
    scireg.to_db_file(str(directory / "scireg.mmdb"))
    (directory / "CAIDA-org-lookup.csv").write_text("".join(organizations))
    (directory / "sensor_groups.json").write_text('{"(?i)cenic": "CENIC", "pacificwave": "PacWave", "NEAAR": "NEAAR", "sox": "SOX"}')
    (directory / "sensor_types.json").write_text('{"cenic|sox": "Regional Network", "^NEAAR|^TransPAC": "Circuit"}')
    (directory / "members").mkdir(exist_ok=True)
    lists = "\n".join(f'"{network}" = "Member {number}"' for number, network in enumerate(networks(random.Random(1))[:200]))
    (directory / "members" / "campus.toml").write_text(f"asns = [{', '.join(str(1000 + n) for n in range(400))}]\n[members]\n{lists}\n")


class Hosts:
    """Addresses with their ASN, drawn by popularity."""

    def __init__(self, rng: random.Random, count: int) -> None:
        prefixes = networks(random.Random(1))
        self.hosts: list[tuple[str, int]] = []
        for _ in range(count):
            number = int(rng.paretovariate(0.5)) % NETWORKS
            network = prefixes[number]
            address = str(network[rng.randrange(min(network.num_addresses, 1 << 62))])
            self.hosts.append((address, 1000 + number if rng.random() < 0.8 else 0))
        self._weights = list(itertools.accumulate(1 / (rank + 10) for rank in range(count)))
        self._rng = rng

    def draw(self, count: int) -> list[tuple[str, int]]:
        return self._rng.choices(self.hosts, cum_weights=self._weights, k=count)


def flows(hosts: Hosts, rng: random.Random, count: int, start: float) -> Iterator[dict[str, Any]]:
    """Rows as the importer sends them, in order of capture file; of the stitched flows four in five have one part."""
    waiting: list[list[dict[str, Any]]] = [[] for _ in range(8)]
    made = 0
    file = 0
    while made < count:
        rows = waiting[file % 8]
        waiting[file % 8] = []
        while len(rows) < 20_000:
            for (src, src_asn), (dst, dst_asn) in zip(hosts.draw(1_000), hosts.draw(1_000), strict=True):
                row = _row(rng, src, src_asn, dst, dst_asn, start + file * 300)
                rows.append(row)
                if rng.random() < 0.2:
                    for later in range(1, rng.choice((2, 2, 2, 3, 5))):
                        seconds = later * 300
                        part = {**row, "start": row["start"] + seconds, "end": row["end"] + seconds}
                        waiting[(file + later) % 8].append({**part, "meta": dict(row["meta"]), "values": dict(row["values"])})
        yield from rows[: count - made]
        made += len(rows)
        file += 1


def _row(rng: random.Random, src: str, src_asn: int, dst: str, dst_asn: int, time: float) -> dict[str, Any]:
    begin = round(time + rng.random() * 200, 3)
    duration = round(rng.random() * 90, 3)
    octets = int(rng.paretovariate(1.1) * 10_000_000)
    packets = octets // 1_200
    return {
        "type": "flow",
        "interval": 600,
        "meta": {
            "flow_type": "netflow",
            "sensor_id": rng.choice(SENSORS),
            "src_ip": src,
            "src_port": rng.choice((443, 22, 1094, 2811, rng.randrange(1024, 65536))),
            "src_asn": src_asn,
            "src_ifindex": 513,
            "dst_ip": dst,
            "dst_port": rng.randrange(1024, 65536),
            "dst_asn": dst_asn,
            "dst_ifindex": 514,
            "protocol": "tcp",
        },
        "start": begin,
        "end": round(begin + duration, 3),
        "values": {
            "duration": duration,
            "num_bits": octets * 8,
            "num_packets": packets,
            "bits_per_second": octets * 8 / duration if duration else 0,
            "packets_per_second": packets / duration if duration else 0,
        },
    }


def messages(rows: Iterator[dict[str, Any]]) -> list[bytes]:
    """Messages of 100 flows."""
    return [orjson.dumps(batch) for batch in iter(lambda: list(itertools.islice(rows, 100)), [])]
