"""NN something: what the settings say of a flow's protocol.

Reads   meta.protocol
Writes  meta.something  text, missing where the settings do not name the protocol
Source  its settings
Drops   flows of unwanted protocols
"""

from __future__ import annotations

from pydantic import Field

from netsage_pipeline.config import Settings
from netsage_pipeline.flow import Flow, FlowProcess, Lookups


class Config(Settings):
    by_protocol: dict[str, str] = Field({}, description="Protocol → something")
    unwanted: list[str] = Field([], description="Protocols whose flows are dropped")


def stage(config: Config, _lookups: Lookups) -> FlowProcess:
    def process(flow: Flow) -> Flow | str:
        meta = flow["meta"]
        protocol = meta.get("protocol")
        if protocol in config.unwanted:
            return "unwanted protocol"
        if protocol in config.by_protocol:
            meta["something"] = config.by_protocol[protocol]
        return flow

    return process
