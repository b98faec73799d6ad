"""88 preferred: the better of two places and names: the science registry's, else MaxMind's and CAIDA's.

Reads   scireg, location, organization
Writes  preferred_location  location
        preferred_org  text
Source  nothing
Drops   nothing
"""

from __future__ import annotations

from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups
from netsage_pipeline.jsonvalues import number


class Config(Settings):
    pass


def end(_config: Config, _lookups: Lookups) -> EndProcess:
    def process(end: End) -> None:
        scireg = end.get("scireg") or {}
        latitude, longitude = number(scireg.get("latitude")), number(scireg.get("longitude"))
        if latitude is not None and longitude is not None:
            end["preferred_location"] = {"lat": latitude, "lon": longitude}
        elif end.get("location"):
            end["preferred_location"] = dict(end["location"])
        organization = scireg.get("org_name") or end.get("organization")
        if organization:
            end["preferred_org"] = organization

    return process
