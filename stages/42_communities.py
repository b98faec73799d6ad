"""42 communities: the communities that an address belongs to, and the name of its organization.

Reads   side, ip
Writes  community  text or texts, "None" when not found
        organization  text, when found; 53 then leaves it alone
Source  communities.mmdb: JSON in the English city name, with the keys community and org_name
Drops   nothing
"""

from __future__ import annotations

from pathlib import Path

import orjson
from pydantic import Field

from netsage_pipeline.addresses import is_multicast
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups


class Config(Settings):
    database: Path = Field(Path("communities.mmdb"), description="Communities (mmdb), in NETSAGE_LOOKUPS unless absolute")


def end(config: Config, lookups: Lookups) -> EndProcess:
    communities = lookups("registry", config.database)

    def process(end: End) -> None:
        end["community"] = "None"
        if end["side"] == "dst" and is_multicast(end["ip"]):
            return
        record = communities.get(end["ip"])
        if record is None:
            return
        try:
            found = orjson.loads(record["city"]["names"]["en"])
            community, organization = found.get("community"), found.get("org_name")
        except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
            end.setdefault("notes", []).append("42_communities: record without a JSON object")
            return
        if community:
            end["community"] = community
        if organization:
            end["organization"] = organization

    return process
