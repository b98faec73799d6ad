"""95 cleanup: dates, numbers, and what goes."""

from __future__ import annotations

from typing import Any

import pytest

from netsage_pipeline.flow import Flow
from tests.conftest import load_stage
from tests.flows import MISSING, flow, nothing

cleanup = load_stage("95_cleanup")

#: jsonvalues.number takes true for 1.


def run(given: Flow) -> Flow:
    made: Flow = cleanup.stage(cleanup.Config(), nothing)(given)
    return made


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param(1591724393.808, "2020-06-09T17:39:53.808Z", id="milliseconds"),
        pytest.param(1591724393.0, "2020-06-09T17:39:53.000Z", id="whole seconds"),
        pytest.param(1591724393.8089, "2020-06-09T17:39:53.808Z", id="cut, not rounded"),
        pytest.param(1591724393.9999, "2020-06-09T17:39:53.999Z", id="cut, not carried"),
        pytest.param(1699999899.123, "2023-11-14T22:11:39.123Z", id="what the digits say, though the float lies below"),
        pytest.param(0.0, "1970-01-01T00:00:00.000Z", id="1970"),
        pytest.param(951827696.5, "2000-02-29T12:34:56.500Z", id="a leap day"),
        pytest.param(253402300799.999, "9999-12-31T23:59:59.999Z", id="the last date"),
    ],
)
def test_dates(name: str, seconds: float, expected: str) -> None:
    assert run(flow(**{name: seconds}))[name] == expected


@pytest.mark.parametrize("name", ["interval", "type", "meta.src_ifindex", "meta.dst_ifindex"])
def test_what_is_removed(name: str) -> None:
    got = run(flow())
    top, _, inner = name.partition(".")
    assert top == "meta" or top not in got
    assert inner not in got["meta"]


def test_everything_else_stays() -> None:
    got = run(flow(site="x", meta={"src_ifname": "x"}))
    expected = flow(site="x", meta={"src_ifname": "x", "src_ifindex": MISSING, "dst_ifindex": MISSING}, interval=MISSING, type=MISSING)
    assert got == expected | {"start": got["start"], "end": got["end"]}


def test_fields_to_remove_may_be_missing() -> None:
    given = flow(meta={"src_ifindex": MISSING, "dst_ifindex": MISSING}, interval=MISSING, type=MISSING)
    assert run(dict(given)).keys() == given.keys()


@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize("name", ["latitude", "longitude"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param("40.5", 40.5, id="a text"),
        pytest.param(40, 40.0, id="an integer"),
        pytest.param(40.5, 40.5, id="a float"),
        pytest.param("north", None, id="what is no number becomes null"),
        pytest.param(None, None, id="null stays"),
        pytest.param(True, None, id="a boolean is no number"),
        pytest.param("inf", None, id="infinity is no number"),
    ],
)
def test_coordinates_of_scireg_become_floats(side: str, name: str, given: Any, expected: float | None) -> None:
    got = run(flow(meta={"scireg": {side: {name: given, "role": "x"}}}))["meta"]["scireg"]
    assert got == {side: {name: expected, "role": "x"}}
    assert type(got[side][name]) is type(expected)


def test_a_record_of_scireg_without_coordinates_gets_none() -> None:
    given = {"src": {"role": "x"}, "dst": {"latitude": "1"}}
    assert run(flow(meta={"scireg": given}))["meta"]["scireg"] == {"src": {"role": "x"}, "dst": {"latitude": 1.0}}
