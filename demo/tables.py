"""Write the demo's lookup tables, in the formats that operators have: see the table in README.md."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdb_writer import MmdbF64, MmdbU32, MMDBWriter
from netaddr import IPSet  # type: ignore[import-untyped,unused-ignore]
from truth import Facts, Network, Organization

BUILD_EPOCH = 1604966400  # 2020-11-10T00:00:00Z, instead of the time of writing

SENSOR_GROUPS = {"AMPATH": "AMPATH", "FRGP": "FRGP", "NEAAR": "NEAAR", "TACC|tacc": "TACC", "^TransPAC": "TransPAC"}
SENSOR_TYPES = {
    "(?i)tstat$": "Data Archive",
    "^NEAAR|^TransPAC": "Circuit",
    "^AMPATH": "Exchange Point",
    "^FRGP.*Netflow$": "Regional Network",
}


class Table(MMDBWriter):
    """An mmdb whose bytes do not depend on when it was written."""

    def __init__(self, database_type: str, description: str) -> None:
        super().__init__(ip_version=6, ipv4_compatible=True, database_type=database_type, languages=["en"], description=description)

    def _build_meta(self) -> dict[str, Any]:
        return {**super()._build_meta(), "build_epoch": BUILD_EPOCH}


def write_mmdb(path: Path, database_type: str, records: Mapping[Network, dict[str, Any]]) -> None:
    table = Table(database_type, "Made by the NetSage Pipeline demo; facts and licences: demo/SOURCES.md")
    # A prefix inside another one must come after it: the writer lets the later one win.
    for network in sorted(records, key=lambda network: (network.version, network.prefixlen, int(network[0]))):
        table.insert_network(IPSet([str(network)]), records[network])
    table.to_db_file(str(path))


def city(organization: Organization) -> dict[str, Any]:
    return {
        "city": {"names": {"en": organization.city}},
        "continent": {"code": organization.continent_code, "names": {"en": organization.continent}},
        "country": {"iso_code": organization.country_code, "names": {"en": organization.country}},
        "location": location(organization),
    }


def location(organization: Organization) -> dict[str, MmdbF64]:
    """Doubles, always: the reference refuses a location with integers in it."""
    return {"latitude": MmdbF64(organization.lat), "longitude": MmdbF64(organization.lon)}


def asn(organization: Organization) -> dict[str, Any]:
    return {"autonomous_system_number": MmdbU32(organization.asn), "autonomous_system_organization": organization.name}


def in_city_name(value: Mapping[str, Any], organization: Organization) -> dict[str, Any]:
    """A JSON text in the place of the city's name: how the registry and the communities travel in an mmdb."""
    return {"city": {"names": {"en": json.dumps(value, ensure_ascii=False)}}, "location": location(organization)}


def registry(facts: Facts) -> dict[Network, dict[str, Any]]:
    found: dict[Network, dict[str, Any]] = {}
    for number, entry in enumerate(facts.registry["science"], start=1):
        organization, prefixes = facts.by_asn[entry["asn"]], facts.prefixes(entry)
        record = in_city_name(science(entry, number, organization, prefixes), organization)
        found.update(dict.fromkeys(prefixes, record))
    return found


def science(entry: Mapping[str, Any], number: int, organization: Organization, prefixes: list[Network]) -> dict[str, Any]:
    # What the registry says of an end is published as it stands, so no single host's address is in it.
    addresses = [str(prefix) for prefix in prefixes if prefix.prefixlen < prefix.max_prefixlen]
    latitude, longitude = f"{organization.lat:.6f}", f"{organization.lon:.6f}"
    return {
        "ip_block_id": str(number),
        "org_name": entry["org_name"],
        "country_code": organization.country_code,
        "projects": [
            {"project_name": name, "project_abbr": abbr, "project_description": "", "project_url": "", "project_email": ""}
            for abbr, name in entry.get("projects", {}).items()
        ],
        "asn": str(organization.asn),
        "discipline": entry["discipline"],
        "org_longitude": longitude,
        "latitude": latitude,
        "org_latitude": latitude,
        "org_abbr": entry["org_abbr"],
        "longitude": longitude,
        "discipline_description": "",
        "org_url": entry["org_url"],
        "addresses_str": ", ".join(addresses),
        "org_description": "",
        "description": None,
        "resource": entry["resource"],
        "resource_abbr": entry["org_abbr"],
        "addresses": addresses,
        "role_description": "",
        "org_country_code": organization.country_code,
        "role": "Perfsonar" if "perfSONAR" in entry["resource"] else "Multi-purpose",
    }


def communities(facts: Facts) -> dict[Network, dict[str, Any]]:
    """A text where there is one community, else a list; the organization is the one that stage 53 would find."""
    named: dict[int, list[str]] = {}
    for entry in facts.registry["community"]:
        for number in entry["asns"]:
            named.setdefault(number, []).append(entry["name"])
    found: dict[Network, dict[str, Any]] = {}
    for number, names in named.items():
        organization = facts.by_asn[number]
        value = {"community": names[0] if len(names) == 1 else names, "org_name": organization.name}
        found.update({prefix: in_city_name(value, organization) for prefix in organization.prefixes})
    return found


def write(facts: Facts, directory: Path) -> None:
    (directory / "members").mkdir(parents=True, exist_ok=True)
    cities = {prefix: city(o) for prefix, o in facts.places.table.items()}
    write_mmdb(directory / "GeoLite2-City.mmdb", "GeoLite2-City", cities)
    asns = {prefix: asn(facts.by_asn[number]) for prefix, number in facts.origins.table.items()}
    write_mmdb(directory / "GeoLite2-ASN.mmdb", "GeoLite2-ASN", asns)
    write_mmdb(directory / "scireg.mmdb", "GeoLite2-City", registry(facts))
    write_mmdb(directory / "communities.mmdb", "GeoLite2-City", communities(facts))

    with (directory / "CAIDA-org-lookup.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(sorted(facts.names.items()))
    for name, patterns in (("sensor_groups", SENSOR_GROUPS), ("sensor_types", SENSOR_TYPES)):
        (directory / f"{name}.json").write_text(json.dumps(patterns, indent=1) + "\n", encoding="utf-8")
    for entry in facts.registry["members"]:
        lines = [f"asns = {entry['asns']}", "", "[members]"]
        lines += [f'"{prefix}" = {json.dumps(name, ensure_ascii=False)}' for prefix, name in entry["members"].items()]
        (directory / "members" / f"{entry['list']}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
