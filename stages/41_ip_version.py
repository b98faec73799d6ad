"""41 ip version: IPv4 or IPv6, by the source address.

Reads   meta.src_ip
Writes  meta.ip_version  text, 4 or 6; no field for an address that is none
Source  nothing
Drops   nothing
"""

from __future__ import annotations

from netsage_pipeline.addresses import parse
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import Flow, FlowProcess, Lookups


class Config(Settings):
    pass


def stage(_config: Config, _lookups: Lookups) -> FlowProcess:
    def process(flow: Flow) -> Flow:
        meta = flow["meta"]
        packed = parse(meta["src_ip"])
        if packed is not None:
            meta["ip_version"] = "4" if len(packed) == 4 else "6"
        else:
            meta.pop("ip_version", None)
        return flow

    return process
