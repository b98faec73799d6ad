"""What the tests of stages and lookups share: flows with changes, ends, and tables that are dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from netsage_pipeline.flow import End, Flow

#: 2023-11-14T22:13:20Z, the time of every test.
NOW = 1_700_000_000.0

#: As a change: the field is not there at all.
MISSING: Any = object()


def flow(*, meta: Any = None, values: Any = None, **changes: Any) -> Flow:
    """A flow as an importer sends it, with changes: objects for meta and values are merged, MISSING takes a field out."""
    made = {
        "type": "flow",
        "interval": 600,
        "start": NOW - 100.0,
        "end": NOW - 90.0,
        "meta": _changed(
            {
                "flow_type": "netflow",
                "sensor_id": "sensor",
                "src_ip": "192.0.2.1",
                "src_port": 40000,
                "src_asn": 3356,
                "src_ifindex": 1,
                "dst_ip": "198.51.100.2",
                "dst_port": 443,
                "dst_asn": 174,
                "dst_ifindex": 2,
                "protocol": "tcp",
            },
            meta,
        ),
        "values": _changed(
            {"duration": 10.0, "num_bits": 8000, "num_packets": 10, "bits_per_second": 800.0, "packets_per_second": 1.0}, values
        ),
    }
    return dict(_changed(made, changes))


def _changed(made: dict[str, Any], changes: Any) -> Any:
    if changes is not None and not isinstance(changes, dict):
        return changes
    return {name: value for name, value in (made | (changes or {})).items() if value is not MISSING}


def end_of(side: str = "src", ip: str = "192.0.2.1", asn: int | None = 3356, **more: Any) -> End:
    """One end of a flow as a run of end stages begins with it, and what earlier stages wrote."""
    return {"side": side, "ip": ip, "asn": asn, **more}


#: Which kind of lookup opens a file, by its name or ending.
KINDS = {
    "GeoLite2-City.mmdb": "city",
    "GeoLite2-ASN.mmdb": "asn",
    "scireg.mmdb": "registry",
    "communities.mmdb": "registry",
    ".csv": "caida",
    ".json": "patterns",
    "": "members",
}


def tables(found: Mapping[str, Any]) -> Callable[[str, Path], Any]:
    """The lookup of these tables, by name of file: `tables({"GeoLite2-ASN.mmdb": {...}})`. A dict has the `get` of a table."""

    def lookups(kind: str, path: Path) -> Any:
        assert kind == kind_of(path)
        return found[str(path)]

    return lookups


def nothing(kind: str, path: Path) -> Mapping[Any, Any]:
    """The lookup in which nothing is found."""
    assert kind == kind_of(path)
    return {}


def kind_of(path: Path) -> str:
    return KINDS.get(path.name) or KINDS[path.suffix]
