"""42 communities."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from netsage_pipeline.flow import End
from tests.conftest import load_stage
from tests.flows import end_of, nothing, tables

communities = load_stage("42_communities")

SIDES = pytest.mark.parametrize("side", ["src", "dst"])


def run(given: End, found: Any = None, record: Any = None) -> End:
    if found is not None:
        record = {"city": {"names": {"en": orjson.dumps(found).decode()}}}
    lookups = tables({"communities.mmdb": {given["ip"]: record}}) if record is not None else nothing
    communities.end(communities.Config(), lookups)(given)
    return given


@SIDES
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param({"community": "LHC"}, {"community": "LHC"}, id="a text"),
        pytest.param({"community": ["LHC", "SKA"]}, {"community": ["LHC", "SKA"]}, id="a list"),
        pytest.param({"org_name": "A"}, {"community": "None", "organization": "A"}, id="an organization without a community"),
        pytest.param({"community": "LHC", "org_name": "A"}, {"community": "LHC", "organization": "A"}, id="both"),
        pytest.param({"community": "", "org_name": ""}, {"community": "None"}, id="empty texts are nothing"),
        pytest.param({"community": [], "other": "x"}, {"community": "None"}, id="an empty list is nothing"),
        pytest.param(None, {"community": "None"}, id="not found"),
    ],
)
def test_community_and_organization(side: str, found: Any, expected: dict[str, Any]) -> None:
    assert run(end_of(side), found) == end_of(side, **expected)


@SIDES
@pytest.mark.parametrize("record", [{}, {"city": 7}, {"city": {"names": {"en": "no JSON"}}}, {"city": {"names": {"en": "[1]"}}}])
def test_a_record_without_a_json_object_is_not_found_and_counted(side: str, record: Any) -> None:
    note = "42_communities: record without a JSON object"
    assert run(end_of(side), record=record) == end_of(side, community="None", notes=[note])


@pytest.mark.parametrize("ip", ["224.0.0.1", "ff02::1"])
def test_a_multicast_destination_belongs_to_no_community(ip: str) -> None:
    found = {"community": "LHC", "org_name": "A"}
    assert run(end_of("dst", ip), found) == end_of("dst", ip, community="None")
    assert run(end_of("src", ip), found) == end_of("src", ip, community="LHC", organization="A")
