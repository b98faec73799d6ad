"""What the demo's tables say, read straight from networks.toml and registry.toml.

make.py computes expected.json with this and never with the pipeline: the two must agree, and neither knows the other.
"""

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Value = TypeVar("Value")

HERE = Path(__file__).parent
DOMESTIC = {"United States", "Puerto Rico", "Guam"}


@dataclass(frozen=True)
class Organization:
    """One [[network]] of networks.toml."""

    asn: int
    name: str
    registered: str
    kind: str
    country: str
    country_code: str
    continent: str
    continent_code: str
    city: str
    lat: float
    lon: float
    source: str
    prefixes: tuple[Network, ...]


@dataclass(frozen=True)
class End:
    """What is known of one end of a flow when it leaves the chain."""

    country: str | None
    organization: str
    discipline: str | None


class Prefixes(Generic[Value]):
    """A table by prefix, in which the longest one that holds an address is found."""

    def __init__(self, table: Mapping[Network, Value]) -> None:
        self.table = table
        self.lengths = {v: sorted({n.prefixlen for n in table if n.version == v}, reverse=True) for v in (4, 6)}

    def get(self, address: Address) -> Value | None:
        for length in self.lengths[address.version]:
            network = ipaddress.ip_network((address, length), strict=False)
            if network in self.table:
                return self.table[network]
        return None


@dataclass
class Facts:
    organizations: list[Organization]
    registry: dict[str, Any]

    def __post_init__(self) -> None:
        left_out = self.registry["left_out"]
        prefixes = [(prefix, o) for o in self.organizations for prefix in o.prefixes]
        self.by_asn = {o.asn: o for o in self.organizations}
        self.names = {o.asn: o.name for o in self.organizations if o.asn not in left_out["caida"]}
        self.origins = Prefixes({prefix: o.asn for prefix, o in prefixes if o.asn not in left_out["asn_table"]})
        self.places = Prefixes({prefix: o for prefix, o in prefixes if str(prefix) not in left_out["city"]})
        self.science = Prefixes({prefix: entry for entry in self.registry["science"] for prefix in self.prefixes(entry)})
        self.members = [
            (entry["asns"], Prefixes({ipaddress.ip_network(prefix): str(name) for prefix, name in entry["members"].items()}))
            for entry in sorted(self.registry["members"], key=lambda entry: str(entry["list"]))
        ]
        self.end = cache(self._end)

    def prefixes(self, entry: dict[str, Any]) -> list[Network]:
        """Of an entry of the science registry."""
        return [ipaddress.ip_network(p) for p in entry["prefixes"]] if "prefixes" in entry else list(self.by_asn[entry["asn"]].prefixes)

    def _end(self, ip: str, exported_asn: int | None, is_destination: bool) -> End:
        """The end with this address, for which the exporter sent this ASN."""
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return End(None, "Unknown", None)
        if is_destination and address.is_multicast:
            return End(None, "Multicast", None)
        place = self.places.get(address)
        country = place.country if place else None
        asn = exported_asn if is_public(exported_asn) else self.origins.get(address)
        organization = self.member(asn, address) or (self.names.get(asn) if asn else None) or "Unknown"
        entry = self.science.get(address)
        if entry:
            organization = entry["org_name"]
        rule = self.registry["privatized"]
        if asn in rule["asns"] and country == rule["country"]:
            organization = rule["organization"]
        return End(country, organization, entry["discipline"] if entry else None)

    def member(self, asn: int | None, address: Address) -> str | None:
        for asns, members in self.members:
            if not asns or asn in asns:
                return members.get(address)
        return None


def is_public(asn: int | None) -> bool:
    return asn is not None and 0 < asn < 4200000000 and asn != 23456 and not 64512 <= asn <= 65534


def scope(src: End, dst: End) -> str:
    if src.country is None or dst.country is None:
        return "(none)"
    return ("International", "Mixed", "Domestic")[(src.country in DOMESTIC) + (dst.country in DOMESTIC)]


def load() -> Facts:
    networks = tomllib.loads((HERE / "networks.toml").read_text(encoding="utf-8"))["network"]
    registry = tomllib.loads((HERE / "registry.toml").read_text(encoding="utf-8"))
    organizations = [Organization(**{**n, "prefixes": tuple(ipaddress.ip_network(p) for p in n["prefixes"])}) for n in networks]
    return Facts(organizations, registry)
