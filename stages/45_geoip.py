"""45 geoip: country, continent and place of an address; a multicast destination is called Multicast in all of them.

Reads   side, ip
Writes  continent  text, "Unknown" when not found
        country_name  text, "Unknown" when not found
        location  location, when both coordinates are known
        organization  text, "Multicast" for a multicast destination
        asn  integer, -1 for a multicast destination
        tags  texts, when the address is not found
Source  GeoLite2-City (mmdb), longest matching prefix
Drops   nothing
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from netsage_pipeline.addresses import is_multicast
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups


class Config(Settings):
    database: Path = Field(Path("GeoLite2-City.mmdb"), description="MaxMind City database, in NETSAGE_LOOKUPS unless absolute")


def end(config: Config, lookups: Lookups) -> EndProcess:
    cities = lookups("city", config.database)

    def process(end: End) -> None:
        if end["side"] == "dst" and is_multicast(end["ip"]):
            end.update(continent="Multicast", country_name="Multicast", organization="Multicast", asn=-1)
            return
        record = cities.get(end["ip"])
        end["continent"] = _name(record, "continent")
        end["country_name"] = _name(record, "country")
        if not record:
            end.setdefault("tags", []).append(f"_geoip_lookup_failure - {end['side']} IP not in CITY db")
            return
        location = record.get("location") or {}
        latitude, longitude = location.get("latitude"), location.get("longitude")
        if latitude is not None and longitude is not None:
            end["location"] = {"lat": float(latitude), "lon": float(longitude)}

    return process


def _name(record: dict[str, Any] | None, what: str) -> str:
    return str(((record or {}).get(what) or {}).get("names", {}).get("en") or "Unknown")
