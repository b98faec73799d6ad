"""60 scireg: what the science registry knows of an address: resource, discipline, projects.

Reads   side, ip
Writes  scireg  object, the record's keys; project_names and project_abbrs beside projects
        organization  text, layout 2 only
        resource_name  text, layout 2 only
        discipline  text, layout 2 only
        project_names  texts, layout 2 only
        location  location, layout 2 only, with data_source
        notes  texts, counted: not found, not JSON
Source  scireg.mmdb: JSON in the English city name
Drops   nothing
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field

from netsage_pipeline.addresses import is_multicast
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups
from netsage_pipeline.jsonvalues import number

_REMOVED = (
    "org_description",
    "org_url",
    "org_country_code",
    "org_latitude",
    "org_longitude",
    "asn",
    "description",
    "discipline_description",
    "role_description",
    "country_code",
)


class Config(Settings):
    database: Path = Field(Path("scireg.mmdb"), description="Science registry (mmdb), in NETSAGE_LOOKUPS unless absolute")
    layout: Literal["1", "2"] = Field("1", description="1: meta.scireg.src and .dst as in 1.x; 2: separate fields as in 2.x")


def end(config: Config, lookups: Lookups) -> EndProcess:
    registry = lookups("registry", config.database)
    write = _write if config.layout == "1" else _write_layout_2

    def process(end: End) -> None:
        if end["side"] == "dst" and is_multicast(end["ip"]):
            return
        record = registry.get(end["ip"])
        if record is None:
            end.setdefault("notes", []).append("60_scireg: not in the registry")
            return
        try:
            found = orjson.loads(record["city"]["names"]["en"])
        except (KeyError, TypeError, orjson.JSONDecodeError):
            found = None
        if isinstance(found, dict):
            write(end, found)
        else:
            end.setdefault("notes", []).append("60_scireg: record without a JSON object")

    return process


def _write(end: End, found: dict[str, Any]) -> None:
    for name in _REMOVED:
        found.pop(name, None)
    projects = found.get("projects")
    if isinstance(projects, list) and projects:
        found["project_names"] = _of_projects(projects, "project_name")
        found["project_abbrs"] = _of_projects(projects, "project_abbr")
    end["scireg"] = found


def _write_layout_2(end: End, found: dict[str, Any]) -> None:
    organization = found.get("org_name")
    if organization:
        end["organization"] = organization
    resource = found.get("resource") or organization
    if resource:
        end["resource_name"] = resource
    if found.get("discipline"):
        end["discipline"] = found["discipline"]
    projects = found.get("projects")
    if isinstance(projects, list) and projects:
        end["project_names"] = _of_projects(projects, "project_name")
    latitude, longitude = number(found.get("latitude")), number(found.get("longitude"))
    if latitude and longitude:
        end["location"] = {"lat": latitude, "lon": longitude, "data_source": "scireg"}


def _of_projects(projects: list[Any], name: str) -> list[Any]:
    return [project.get(name) if isinstance(project, dict) else None for project in projects]
