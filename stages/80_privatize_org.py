"""80 privatize org: replaces what would identify members of networks that must not be identified.

Reads   side, ip, asn, country_name, organization, location, scireg, resource_name, project_names
Writes  ip  text, xx.xx.xx.xx
        asn  integer, -1
        organization  text, the rule's
        location  location, the rule's
        scireg  object, with the rule's names and place, without projects
        resource_name  text, the rule's, where there was one
        project_names  removed
        private  object, what was replaced, with keep_private
Source  its settings
Drops   nothing
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from netsage_pipeline.config import Settings
from netsage_pipeline.flow import End, EndProcess, Lookups


class Rule(BaseModel):
    """Ends whose ASN and country match are replaced; organizations that match the pattern are given the rule's spelling, everywhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asns: frozenset[int]
    country: str
    organization: str
    abbreviation: str
    resource: str
    resource_abbreviation: str
    pattern: str | None = None
    lat: float
    lon: float

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern


class Config(Settings):
    rules: list[Rule] = Field(description="Networks to hide; the shipped settings have AARNet's")
    keep_private: bool = Field(False, description="Copy what was replaced to PRIVATE, as the reference does")


def end(config: Config, _lookups: Lookups) -> EndProcess:
    patterns = [(re.compile(rule.pattern), rule) for rule in config.rules if rule.pattern]

    def process(end: End) -> None:
        for rule in config.rules:
            if end["asn"] in rule.asns and end.get("country_name") == rule.country:
                if config.keep_private:
                    end["private"] = end.get("private", {}) | _private(end)
                _replace(end, rule)
                return
        organization = end.get("organization")
        for pattern, rule in patterns:
            if organization and pattern.search(organization):
                end["organization"] = rule.organization
                return

    return process


def _replace(end: End, rule: Rule) -> None:
    end.update(ip="xx.xx.xx.xx", asn=-1, organization=rule.organization, location={"lat": rule.lat, "lon": rule.lon})
    if "resource_name" in end:
        end["resource_name"] = rule.resource
    end.pop("project_names", None)
    scireg = end.get("scireg")
    if scireg is None:
        return
    for name in ("projects", "project_names", "project_abbrs"):
        scireg.pop(name, None)
    names = {
        "org_name": rule.organization,
        "org_abbr": rule.abbreviation,
        "resource": rule.resource,
        "resource_abbr": rule.resource_abbreviation,
        "latitude": rule.lat,
        "longitude": rule.lon,
    }
    scireg.update({name: value for name, value in names.items() if name in scireg})


def _private(end: End) -> dict[str, object]:
    side, scireg = end["side"], end.get("scireg") or {}
    kept = {
        f"{side}_organization": end.get("organization"),
        f"{side}_asn": end["asn"],
        f"{side}_ip": end["ip"],
        f"scireg_{side}_org_name": scireg.get("org_name"),
        f"scireg_{side}_resource": scireg.get("resource"),
    }
    return {name: value for name, value in kept.items() if value is not None}
