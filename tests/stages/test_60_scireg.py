"""60 scireg: records of the science registry, in both layouts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from netsage_pipeline.flow import End
from netsage_pipeline.jsonvalues import copy
from tests.conftest import load_stage
from tests.flows import end_of, nothing, tables

scireg = load_stage("60_scireg")

SIDES = pytest.mark.parametrize("side", ["src", "dst"])
KEPT = {
    "org_name": "University of Example",
    "org_abbr": "UE",
    "resource": "Data mover",
    "resource_abbr": "DM",
    "discipline": "CS.Astronomy",
    "role": "Storage",
    "latitude": "40.5",
    "longitude": "-86.25",
    "is_science": True,
}
REMOVED = (
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


def record_of(found: Any) -> dict[str, Any]:
    return {"city": {"names": {"en": found if isinstance(found, str) else orjson.dumps(found).decode()}}}


def run(given: End, record: Any = None, **settings: Any) -> End:
    """What the stage adds to an end."""
    lookups = tables({"scireg.mmdb": {given["ip"]: record}}) if record is not None else nothing
    before = copy(given)
    scireg.end(scireg.Config(**settings), lookups)(given)
    return {name: value for name, value in given.items() if name not in before or before[name] != value}


@SIDES
def test_the_keys_of_the_record_are_written(side: str) -> None:
    assert run(end_of(side), record_of(KEPT)) == {"scireg": KEPT}


def test_better_a_record_without_location_counts_too() -> None:
    record = record_of(KEPT)
    assert "location" not in record
    assert run(end_of(), record) == run(end_of(), record | {"location": {"latitude": 1.0, "longitude": 2.0}}) == {"scireg": KEPT}


@pytest.mark.parametrize("name", REMOVED)
def test_keys_are_removed(name: str) -> None:
    assert run(end_of(), record_of(KEPT | {name: "x"})) == {"scireg": KEPT}


@pytest.mark.parametrize(
    ("projects", "expected"),
    [
        pytest.param(
            [{"project_name": "A", "project_abbr": "a"}, {"project_name": "B", "project_abbr": "b", "other": 1}],
            {"project_names": ["A", "B"], "project_abbrs": ["a", "b"]},
            id="one entry per project",
        ),
        pytest.param(
            [{"project_name": "A"}, {"project_abbr": "b"}],
            {"project_names": ["A", None], "project_abbrs": [None, "b"]},
            id="null where one is missing",
        ),
        pytest.param(["A"], {"project_names": [None], "project_abbrs": [None]}, id="a project that is no object has neither"),
        pytest.param([], {}, id="an empty list gives nothing"),
        pytest.param("A", {}, id="a text gives nothing"),
        pytest.param({"project_name": "A"}, {}, id="an object gives nothing"),
        pytest.param(None, {}, id="null gives nothing"),
    ],
)
def test_projects_are_named_beside_projects_which_stay(projects: Any, expected: dict[str, Any]) -> None:
    assert run(end_of(), record_of({"projects": projects})) == {"scireg": {"projects": projects} | expected}


def test_a_record_without_projects_has_no_project_names() -> None:
    assert run(end_of(), record_of({"role": "x"})) == {"scireg": {"role": "x"}}


@SIDES
@pytest.mark.parametrize("layout", ["1", "2"])
@pytest.mark.parametrize(
    ("record", "note"),
    [
        pytest.param(None, "60_scireg: not in the registry", id="not found"),
        pytest.param(record_of("no JSON"), "60_scireg: record without a JSON object", id="a text that is no JSON"),
        pytest.param(record_of("[1]"), "60_scireg: record without a JSON object", id="a list"),
        pytest.param(record_of("null"), "60_scireg: record without a JSON object", id="null"),
        pytest.param({"city": {"names": {"de": "{}"}}}, "60_scireg: record without a JSON object", id="no English name"),
        pytest.param({"city": {"names": {"en": 7}}}, "60_scireg: record without a JSON object", id="a name that is no text"),
        pytest.param({"city": "x"}, "60_scireg: record without a JSON object", id="a city that is no object"),
        pytest.param({}, "60_scireg: record without a JSON object", id="an empty record"),
    ],
)
def test_otherwise_nothing_is_added_but_it_is_counted(side: str, layout: str, record: Any, note: str) -> None:
    assert run(end_of(side), record, layout=layout) == {"notes": [note]}


@pytest.mark.parametrize("layout", ["1", "2"])
@pytest.mark.parametrize("ip", ["224.0.0.1", "ff02::1"])
def test_a_multicast_destination_is_not_looked_up(layout: str, ip: str) -> None:
    assert run(end_of("dst", ip), record_of(KEPT), layout=layout) == {}
    assert run(end_of("src", ip), record_of(KEPT), layout=layout) != {}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param({"org_name": "A"}, {"organization": "A", "resource_name": "A"}, id="org_name is the organization, and the resource"),
        pytest.param({"org_name": "A", "resource": "B"}, {"organization": "A", "resource_name": "B"}, id="resource before org_name"),
        pytest.param({"resource": "B"}, {"resource_name": "B"}, id="without org_name the organization stays"),
        pytest.param({"discipline": "CS.Astronomy"}, {"discipline": "CS.Astronomy"}, id="discipline"),
        pytest.param({"projects": [{"project_name": "A"}, {}]}, {"project_names": ["A", None]}, id="projects"),
        pytest.param({"projects": []}, {}, id="no projects"),
        pytest.param({"projects": "A"}, {}, id="projects that are no list"),
        pytest.param(
            {"latitude": "40.5", "longitude": -86},
            {"location": {"lat": 40.5, "lon": -86.0, "data_source": "scireg"}},
            id="a place takes the place of MaxMind's",
        ),
        pytest.param(
            {"latitude": 40, "longitude": "-86.25"},
            {"location": {"lat": 40.0, "lon": -86.25, "data_source": "scireg"}},
            id="either coordinate may be a text",
        ),
        pytest.param({"latitude": 0, "longitude": 0}, {}, id="a place of 0 is none"),
        pytest.param({"latitude": 40.5}, {}, id="a place without longitude is none"),
        pytest.param({"longitude": 40.5}, {}, id="a place without latitude is none"),
        pytest.param({"latitude": "north", "longitude": "west"}, {}, id="a place without numbers is none"),
        pytest.param({"role": "x", "org_url": "x"}, {}, id="other keys are left out"),
    ],
)
@SIDES
def test_layout_2(side: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
    given = end_of(side, organization="CAIDA's", location={"lat": 1.0, "lon": 2.0})
    assert run(given, record_of(found), layout="2") == expected


def test_layout_1_leaves_organization_and_location_alone() -> None:
    assert run(end_of(organization="CAIDA's", location={"lat": 1.0, "lon": 2.0}), record_of(KEPT)) == {"scireg": KEPT}


def test_notes_of_earlier_stages_are_kept() -> None:
    assert run(end_of(notes=["first"])) == {"notes": ["first", "60_scireg: not in the registry"]}
