"""90 additional fields: group and type of the sensor, scope, whether it was a test of the network, and 2.x's document id.

Reads   start, meta.id, meta.sensor_id, meta.{src,dst}_country_name, meta.{src,dst}_port, meta.scireg, meta.{src,dst}_discipline
Writes  meta.sensor_group  text, of the first pattern that matches the sensor
        meta.sensor_type  text, of the first pattern that matches the sensor
        meta.country_scope  text, Domestic, Mixed or International; not when a country is missing, Unknown or Multicast
        meta.is_network_testing  text, yes or no
        es_doc_id  text, HMAC-SHA256 of meta.id and start as 64 hex digits
Source  sensor_groups.json, sensor_types.json
Drops   nothing
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from netsage_pipeline.config import Settings
from netsage_pipeline.digest import keyed_digest
from netsage_pipeline.flow import Flow, FlowProcess, Lookups

_TESTING = "CS.Network Testing and Monitoring"


class Config(Settings):
    groups: Path = Field(Path("sensor_groups.json"), description="Pattern → group (JSON object), in NETSAGE_LOOKUPS unless absolute")
    types: Path = Field(Path("sensor_types.json"), description="Pattern → type (JSON object), in NETSAGE_LOOKUPS unless absolute")
    domestic: list[str] = Field(["United States", "Puerto Rico", "Guam"], description="Countries between which a flow is domestic")
    testing_ports: list[int] = Field([5001, 5101, 5201], description="Ports of programs that test networks")


def stage(config: Config, lookups: Lookups) -> FlowProcess:
    groups, types = lookups("patterns", config.groups), lookups("patterns", config.types)
    domestic, no_country = frozenset(config.domestic), frozenset((None, "Unknown", "Multicast"))
    ports = frozenset(config.testing_ports)
    digest = keyed_digest(b"create docid")

    @lru_cache(maxsize=10_000)
    def of_sensor(sensor: str | float | None) -> dict[str, str]:
        found = {"sensor_group": groups.get(str(sensor)), "sensor_type": types.get(str(sensor))} if sensor is not None else {}
        return {name: value for name, value in found.items() if value is not None}

    def process(flow: Flow) -> Flow:
        meta = flow["meta"]
        get = meta.get
        named = of_sensor(get("sensor_id"))
        meta.update(named)
        if len(named) < 2:
            for name in {"sensor_group", "sensor_type"} - named.keys():
                meta.pop(name, None)
        source, destination = get("src_country_name"), get("dst_country_name")
        if source in no_country or destination in no_country:
            meta.pop("country_scope", None)
        else:
            inside = (source in domestic) + (destination in domestic)
            meta["country_scope"] = ("International", "Mixed", "Domestic")[inside]
        testing = get("src_port") in ports or get("dst_port") in ports or _is_testing(meta)
        meta["is_network_testing"] = "yes" if testing else "no"
        flow["es_doc_id"] = digest(f"|[flow_fingerprint]|{get('id', '')}|[start]|{flow['start']!r}|")
        return flow

    return process


def _is_testing(meta: dict[str, Any]) -> bool:
    if "src_discipline" in meta or "dst_discipline" in meta:
        return _TESTING in (meta.get("src_discipline"), meta.get("dst_discipline"))
    return "scireg" in meta and any(end.get("discipline") == _TESTING for end in meta["scireg"].values())
