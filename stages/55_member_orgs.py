"""55 member orgs: members of a network that have no autonomous system of their own, by prefix.

Reads   ip, asn, organization
Writes  organization  text, where a member list has the address
Source  member lists (TOML), the first list that has the ASN, in it the longest matching prefix
Drops   nothing
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from netsage_pipeline.config import Directory, Settings
from netsage_pipeline.flow import End, EndProcess, Lookups


class Config(Settings):
    lists: Directory = Field(Path("members"), description="Directory of member lists, in NETSAGE_LOOKUPS unless absolute")


def end(config: Config, lookups: Lookups) -> EndProcess:
    members = lookups("members", config.lists)

    def process(end: End) -> None:
        if end.get("organization") == "Multicast":
            return
        member = members.get(end["ip"], end["asn"])
        if member is not None:
            end["organization"] = member

    return process
