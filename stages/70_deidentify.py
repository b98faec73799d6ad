"""70 deidentify: removes the host part of addresses. Behind this stage no full address exists.

Reads   side, ip, *
Writes  ip  ip-masked, 192.0.2.x or 2001:db8:0:0:x:x:x:x; "INVALID IP" for a text that is no address
        *  ip-masked, addresses in what the tables say of the end: the science registry lists those of a resource
        private  object, the text that is no address, with keep_private
Source  nothing
Drops   nothing
"""

from __future__ import annotations

from pydantic import Field

from netsage_pipeline.addresses import INVALID, mask, mask_every, masker, may_hold_addresses
from netsage_pipeline.config import Settings
from netsage_pipeline.ends import GIVEN
from netsage_pipeline.flow import End, EndProcess, Lookups


class Config(Settings):
    keep_private: bool = Field(False, description="Keep texts that are no addresses in PRIVATE, as the reference does")


def end(config: Config, _lookups: Lookups) -> EndProcess:
    def process(end: End) -> None:
        ip = end["ip"]
        masked = mask(ip)
        # A text that is no address may stand anywhere.
        holding = [name for name, value in end.items() if name not in GIVEN and (masked is None or may_hold_addresses(value))]
        if holding:
            hide = masker(ip)
            end.update({name: mask_every(hide(end[name])) for name in holding})
        if masked is None and config.keep_private:
            end.setdefault("private", {})[f"{end['side']}_ip"] = f"invalid ip: {ip}"
        end["ip"] = masked or INVALID

    return process
