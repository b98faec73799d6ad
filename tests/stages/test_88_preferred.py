"""88 preferred: the science registry before MaxMind and CAIDA."""

from __future__ import annotations

from typing import Any

import pytest

from netsage_pipeline.flow import End
from tests.conftest import load_stage
from tests.flows import end_of, nothing

preferred = load_stage("88_preferred")

PLACE = {"lat": 1.5, "lon": 2.5}
REGISTERED = {"latitude": "40.5", "longitude": "-86.25"}
SIDES = pytest.mark.parametrize("side", ["src", "dst"])

#: jsonvalues.number takes true for 1.


def run(given: End) -> End:
    before = set(given)
    preferred.end(preferred.Config(), nothing)(given)
    return {name: value for name, value in given.items() if name not in before}


@SIDES
@pytest.mark.parametrize(
    ("scireg", "location", "expected"),
    [
        pytest.param(REGISTERED, PLACE, {"lat": 40.5, "lon": -86.25}, id="scireg's, as floats"),
        pytest.param(REGISTERED, None, {"lat": 40.5, "lon": -86.25}, id="scireg's, where there is no other"),
        pytest.param({"latitude": 40, "longitude": -86}, PLACE, {"lat": 40.0, "lon": -86.0}, id="scireg's integers"),
        pytest.param({"latitude": 0, "longitude": 0}, PLACE, {"lat": 0.0, "lon": 0.0}, id="scireg's zeros"),
        pytest.param({"latitude": "40.5"}, PLACE, PLACE, id="scireg has no longitude"),
        pytest.param({"longitude": "40.5"}, PLACE, PLACE, id="scireg has no latitude"),
        pytest.param(REGISTERED | {"latitude": None}, PLACE, PLACE, id="scireg's latitude is null"),
        pytest.param(REGISTERED | {"longitude": None}, PLACE, PLACE, id="scireg's longitude is null"),
        pytest.param(REGISTERED | {"latitude": "north"}, PLACE, PLACE, id="scireg's latitude is no number"),
        pytest.param(REGISTERED | {"longitude": ""}, PLACE, PLACE, id="scireg's longitude is no number"),
        pytest.param(REGISTERED | {"longitude": True}, PLACE, PLACE, id="a boolean is no number"),
        pytest.param(REGISTERED | {"longitude": [1]}, PLACE, PLACE, id="a list is no number"),
        pytest.param(REGISTERED | {"latitude": "nan"}, PLACE, PLACE, id="NaN is no number"),
        pytest.param({"latitude": None}, None, None, id="neither: no field"),
        pytest.param(None, PLACE, PLACE, id="no scireg"),
        pytest.param(None, None, None, id="nothing at all"),
    ],
)
def test_preferred_location(side: str, scireg: Any, location: Any, expected: Any) -> None:
    given = {name: value for name, value in (("scireg", scireg), ("location", location)) if value is not None}
    got = run(end_of(side, **given))
    assert got == ({} if expected is None else {"preferred_location": expected})
    assert all(type(number) is float for number in got.get("preferred_location", {}).values())


def test_the_preferred_location_is_a_copy() -> None:
    end = end_of(location=dict(PLACE))
    run(end)
    end["preferred_location"]["lat"] = 0
    assert end["location"] == PLACE


@SIDES
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({"scireg": {"org_name": "A"}, "organization": "B"}, "A", id="scireg's org_name"),
        pytest.param({"scireg": {"org_name": "A"}}, "A", id="scireg's, where there is no other"),
        pytest.param({"scireg": {"org_name": ""}, "organization": "B"}, "B", id="scireg's is empty"),
        pytest.param({"scireg": {"org_name": None}, "organization": "B"}, "B", id="scireg's is null"),
        pytest.param({"scireg": {}, "organization": "B"}, "B", id="scireg has none"),
        pytest.param({"organization": "B"}, "B", id="no scireg"),
        pytest.param({}, None, id="neither: no field"),
    ],
)
def test_preferred_org(side: str, given: dict[str, Any], expected: str | None) -> None:
    assert run(end_of(side, **given)) == ({} if expected is None else {"preferred_org": expected})
