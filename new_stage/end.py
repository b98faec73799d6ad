"""NN something: what the settings say of the prefix that an address lies in.

Reads   ip
Writes  something  text, missing where no prefix holds the address
Source  its settings
Drops   nothing
"""

from __future__ import annotations

from pydantic import Field

from netsage_pipeline.addresses import Prefixes
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups


class Config(Settings):
    by_prefix: dict[str, str] = Field({}, description="Prefix → something")


def end(config: Config, _lookups: Lookups) -> EndProcess:
    prefixes = Prefixes()
    for prefix, value in config.by_prefix.items():
        prefixes.add(prefix, value)

    def process(end: End) -> None:
        value = prefixes.get(end["ip"])
        if value is not None:
            end["something"] = value

    return process
