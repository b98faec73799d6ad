"""70 deidentify: removes the host part of addresses. Behind this stage no full address exists.

Reads   side, ip
Writes  ip  ip-masked, 192.0.2.x or 2001:db8:0:0:x:x:x:x; "INVALID IP" for a text that is no address
        private  object, the text that is no address, with keep_private
Source  nothing
Drops   nothing
"""

from __future__ import annotations

from pydantic import Field

from netsage_pipeline.addresses import mask
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups


class Config(Settings):
    keep_private: bool = Field(False, description="Keep texts that are no addresses in PRIVATE, as the reference does")


def end(config: Config, _lookups: Lookups) -> EndProcess:
    def process(end: End) -> None:
        masked = mask(end["ip"])
        if masked is None and config.keep_private:
            end.setdefault("private", {})[f"{end['side']}_ip"] = f"invalid ip: {end['ip']}"
        end["ip"] = masked or "INVALID IP"

    return process
