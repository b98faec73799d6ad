"""The science registry's mmdb, made of its JSON export.

[{"addresses": ["192.0.2.0/24", "2001:db8::/32"], "org_name": "…", "resource": "…", "discipline": "…", "latitude": "…", "longitude": "…",
  "projects": [{"project_name": "…", "project_abbr": "…"}]}]

Each entry becomes, as it stands, a JSON text in the place of the name of a city, which is where stage 60 and the reference look for it. The
exports of 2.x call two things otherwise: resource_name is copied to resource, project_name to projects. Communities are the same, with the
key community.
"""

from __future__ import annotations

import ipaddress
import logging
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from netsage_pipeline.addresses import network_of
from netsage_pipeline.jsonvalues import number

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Where an mmdb keeps IPv4.
_IPV4 = ipaddress.IPv6Network("::/96")


class Built(NamedTuple):
    """What became of an export."""

    prefixes: int  #: that the mmdb holds
    errors: list[str]  #: what was left out, a line each; places are those of jq, such as .[3].addresses[0]


def build(export: Path, to: Path) -> Built:
    """Writes the mmdb. ValueError with a sentence if nothing of the export can be used; OSError."""
    try:
        entries = orjson.loads(export.read_bytes())
    except orjson.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: is not JSON: {error.msg}") from None
    if not isinstance(entries, list):
        raise ValueError("is not a JSON list of entries")
    errors: list[str] = []
    found: dict[Network, tuple[str, dict[str, Any]]] = {}
    for index, entry in enumerate(entries):
        place = f".[{index}]"
        if not isinstance(entry, dict):
            errors.append(f"{place}: is not an object: left out")
            continue
        record = _record(entry)
        for network, where in _networks(entry.get("addresses"), f"{place}.addresses", errors):
            if network in found:
                errors.append(f"{where}: is the prefix of {found[network][0]} once more: the last one counts, as in the reference")
            found[network] = where, record
    if not found:
        raise ValueError("holds no prefix that can be used" + "".join(f"\n{line}" for line in errors))
    _write(to, {network: record for network, (_, record) in found.items()})
    return Built(len(found), errors)


def _networks(addresses: Any, place: str, errors: list[str]) -> list[tuple[Network, str]]:
    """The prefixes of an entry, each with its place."""
    if not isinstance(addresses, list) or not addresses:
        errors.append(f"{place}: is not a list of prefixes: the entry is left out")
        return []
    found: list[tuple[Network, str]] = []
    for index, text in enumerate(addresses):
        where = f"{place}[{index}]"
        try:
            network = network_of(str(text).strip())
        except ValueError:
            errors.append(f"{where}: is not a prefix such as 192.0.2.0/24 or 2001:db8::/32: left out")
            continue
        if isinstance(network, ipaddress.IPv6Network) and network.overlaps(_IPV4):
            errors.append(f"{where}: holds addresses in ::/96, where an mmdb keeps IPv4: left out")
        else:
            found.append((network, where))
    return found


def _record(entry: dict[str, Any]) -> dict[str, Any]:
    latitude, longitude = number(entry.get("latitude")), number(entry.get("longitude"))
    entry = dict(entry)
    if entry.get("resource_name"):
        entry.setdefault("resource", entry["resource_name"])
    if entry.get("project_name"):
        entry.setdefault("projects", [{"project_name": entry["project_name"]}])
    record: dict[str, Any] = {"city": {"names": {"en": orjson.dumps(entry).decode()}}}
    if latitude is not None and longitude is not None:
        record["location"] = {"latitude": latitude, "longitude": longitude}
    return record


def _write(to: Path, records: dict[Network, dict[str, Any]]) -> None:
    logging.getLogger("mmdb_writer").setLevel(logging.WARNING)  # Of each prefix within another one it tells all there is.
    # To the reference only a database of this type holds cities.
    table = MMDBWriter(6, "GeoLite2-City", languages=["en"], description="Science registry", ipv4_compatible=True)
    # A prefix inside another one must come after it: the writer lets the later one win.
    for network in sorted(records, key=lambda network: network.prefixlen):
        table.insert_network(IPSet([str(network)]), records[network])
    table.to_db_file(str(to))
