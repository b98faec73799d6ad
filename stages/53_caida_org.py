"""53 caida org: the organization that an autonomous system belongs to.

Reads   asn, organization
Writes  organization  text, "Unknown" when not listed
Source  CAIDA's list of organizations (CSV asn,organization)
Drops   nothing
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups


class Config(Settings):
    organizations: Path = Field(Path("CAIDA-org-lookup.csv"), description="CSV asn,organization, in NETSAGE_LOOKUPS unless absolute")


def end(config: Config, lookups: Lookups) -> EndProcess:
    organizations = lookups("caida", config.organizations)

    def process(end: End) -> None:
        if end.get("organization"):
            return  # Multicast, or from 42.
        found = organizations.get(end["asn"])
        end["organization"] = found if found and found != "0" and end["asn"] != -1 else "Unknown"

    return process
