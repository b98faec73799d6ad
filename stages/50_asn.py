"""50 asn: where the exporter sent no usable ASN, take the one MaxMind has for the address.

Reads   side, ip, asn, organization
Writes  asn  integer, autonomous system number; -1 if unknown
        tags  texts, whether it was found
Source  GeoLite2-ASN (mmdb), longest matching prefix
Drops   nothing
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups


class Config(Settings):
    database: Path = Field(Path("GeoLite2-ASN.mmdb"), description="MaxMind ASN database, in NETSAGE_LOOKUPS unless absolute")


def end(config: Config, lookups: Lookups) -> EndProcess:
    asns = lookups("asn", config.database)

    def process(end: End) -> None:
        if end.get("organization") == "Multicast" or is_public(end["asn"]):
            return
        record = asns.get(end["ip"]) or {}
        end["asn"] = record.get("autonomous_system_number", -1)
        found = f"maxmind {end['side']} asn" if end["asn"] != -1 else f"_geoip_lookup_failure - {end['side']} IP not in ASN db"
        end.setdefault("tags", []).append(found)

    return process


def is_public(asn: int | None) -> bool:
    """False if missing, reserved (0, 23456, 2^32-1), private (RFC 6996) or outside of 32 bits."""
    return asn is not None and 0 < asn < 4200000000 and asn != 23456 and not 64512 <= asn <= 65534
