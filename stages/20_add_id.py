"""20 add_id: names a flow by its 5-tuple and sensor, so that its parts can be found.

Reads   meta.{src,dst}_ip, meta.{src,dst}_port, meta.protocol, meta.sensor_id
Writes  meta.id  text, HMAC-SHA256 as 64 hex digits
Source  nothing
Drops   nothing

With the reference's public key anyone can find the addresses of an id by trying all of them. A site that publishes ids sets its own key;
ids then differ from those of the reference and of other sites.
"""

from __future__ import annotations

from pydantic import Field, SecretStr

from netsage_pipeline.config import Settings
from netsage_pipeline.digest import keyed_digest
from netsage_pipeline.flow import Flow, FlowProcess, Lookups


class Config(Settings):
    key: SecretStr = Field(
        SecretStr("create flowid"),
        min_length=1,
        description="Key of the HMAC; the default is the reference's, which is public (also key_file)",
    )


def stage(config: Config, _lookups: Lookups) -> FlowProcess:
    digest = keyed_digest(config.key.get_secret_value().encode())

    def process(flow: Flow) -> Flow:
        meta = flow["meta"]
        get = meta.get
        meta["id"] = digest(
            f"|[meta][dst_ip]|{get('dst_ip', '')}|[meta][dst_port]|{get('dst_port', '')}|[meta][protocol]|{get('protocol', '')}"
            f"|[meta][sensor_id]|{get('sensor_id', '')}|[meta][src_ip]|{get('src_ip', '')}|[meta][src_port]|{get('src_port', '')}|"
        )
        return flow

    return process
