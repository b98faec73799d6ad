"""15 sensor specific: its four rules, each for all sensors and for some."""

from __future__ import annotations

from typing import Any

import pytest

from netsage_pipeline.flow import Flow, Refused
from tests.conftest import load_stage
from tests.flows import MISSING, flow, nothing

sensor_specific = load_stage("15_sensor_specific")

MODES = pytest.mark.parametrize("mode", ["include", "exclude"])


def run(given: Flow, **settings: Any) -> Any:
    return sensor_specific.stage(sensor_specific.Config(**settings), nothing)(given)


def test_without_settings_nothing_changes() -> None:
    assert run(flow()) == flow()


@MODES
@pytest.mark.parametrize(
    ("meta", "matches"),
    [
        pytest.param({"src_ifindex": 10}, True, id="src matches the list for all"),
        pytest.param({"dst_ifindex": 10}, True, id="dst matches the list for all"),
        pytest.param({}, False, id="neither does"),
        pytest.param({"src_ifindex": MISSING, "dst_ifindex": MISSING}, False, id="no ifindexes"),
        pytest.param({"src_ifindex": 20}, False, id="an ifindex of another sensor"),
        pytest.param({"src_ifindex": 20, "sensor_id": "a"}, True, id="src matches the list of its sensor"),
        pytest.param({"dst_ifindex": 20, "sensor_id": "a"}, True, id="dst matches the list of its sensor"),
        pytest.param({"src_ifindex": 10, "sensor_id": "a"}, True, id="the list for all counts for a sensor with a list too"),
        pytest.param({"src_ifindex": 30, "sensor_id": 7}, True, id="a sensor whose name is a number"),
    ],
)
def test_ifindex_filter(mode: str, meta: dict[str, Any], matches: bool) -> None:
    got = run(flow(meta=meta), ifindex_filter={"mode": mode, "all": [10, 11], "by_sensor": {"a": [20], "7": [30]}})
    assert got == (flow(meta=meta) if matches == (mode == "include") else "ifindex filter")


@MODES
@pytest.mark.parametrize(
    ("sensor", "touched"),
    [
        pytest.param("a", True, id="a sensor with a list"),
        pytest.param("b", False, id="a sensor with an empty list"),
        pytest.param("sensor", False, id="a sensor without a list"),
        pytest.param(MISSING, False, id="no sensor"),
    ],
)
def test_a_filter_by_ifindex_without_a_list_for_a_sensor_does_not_touch_it(mode: str, sensor: Any, touched: bool) -> None:
    for ifindex in (20, 21):
        meta = {"sensor_id": sensor, "src_ifindex": ifindex}
        got = run(flow(meta=meta), ifindex_filter={"mode": mode, "by_sensor": {"a": [20], "b": []}})
        drops = touched and (ifindex == 20) == (mode == "exclude")
        assert got == ("ifindex filter" if drops else flow(meta=meta))


@MODES
@pytest.mark.parametrize(
    ("meta", "matches"),
    [
        pytest.param({"src_ip": "203.0.113.9"}, True, id="src matches the list for all"),
        pytest.param({"dst_ip": "203.0.113.9"}, True, id="dst matches the list for all"),
        pytest.param({"src_ip": "2001:db8::9"}, True, id="IPv6"),
        pytest.param({"src_ip": "::ffff:203.0.113.9"}, True, id="a mapped address"),
        pytest.param({}, False, id="neither does"),
        pytest.param({"src_ip": "no address", "dst_ip": ""}, False, id="texts that are no addresses"),
        pytest.param({"src_ip": "128.101.1.1"}, False, id="a prefix of another sensor"),
        pytest.param({"src_ip": "128.101.1.1", "sensor_id": "a"}, True, id="src matches the list of its sensor"),
        pytest.param({"dst_ip": "128.101.1.1", "sensor_id": "a"}, True, id="dst matches the list of its sensor"),
        pytest.param({"src_ip": "203.0.113.9", "sensor_id": "a"}, True, id="the list for all counts for a sensor with a list too"),
    ],
)
def test_subnet_filter(mode: str, meta: dict[str, Any], matches: bool) -> None:
    settings = {"mode": mode, "all": ["203.0.113.0/24", "2001:db8::/32"], "by_sensor": {"a": ["128.101.0.0/16"]}}
    got = run(flow(meta=meta), subnet_filter=settings)
    assert got == (flow(meta=meta) if matches == (mode == "include") else "subnet filter")


@MODES
@pytest.mark.parametrize(
    ("sensor", "touched"),
    [
        pytest.param("a", True, id="a sensor with a list"),
        pytest.param("b", False, id="a sensor with an empty list"),
        pytest.param("sensor", False, id="a sensor without a list"),
        pytest.param(MISSING, False, id="no sensor"),
    ],
)
def test_a_filter_by_subnet_without_a_list_for_a_sensor_does_not_touch_it(mode: str, sensor: Any, touched: bool) -> None:
    for ip in ("128.101.1.1", "128.102.1.1"):
        meta = {"sensor_id": sensor, "src_ip": ip}
        got = run(flow(meta=meta), subnet_filter={"mode": mode, "by_sensor": {"a": ["128.101.0.0/16"], "b": []}})
        drops = touched and (ip == "128.101.1.1") == (mode == "exclude")
        assert got == ("subnet filter" if drops else flow(meta=meta))


def test_filters_include_unless_set() -> None:
    assert run(flow(), ifindex_filter={"all": [99]}) == "ifindex filter"
    assert run(flow(), subnet_filter={"all": ["203.0.113.0/24"]}) == "subnet filter"


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        pytest.param({"sensor_id": "a", "src_ifindex": 10}, "a-ten", id="src goes through the interface"),
        pytest.param({"sensor_id": "a", "dst_ifindex": 10}, "a-ten", id="dst goes through the interface"),
        pytest.param({"sensor_id": "a", "src_ifindex": 11, "dst_ifindex": 10}, "a-eleven", id="src before dst"),
        pytest.param({"sensor_id": "a"}, "a", id="another interface"),
        pytest.param({"sensor_id": "b", "src_ifindex": 10}, "b", id="another sensor"),
        pytest.param({"sensor_id": "a", "src_ifindex": MISSING, "dst_ifindex": MISSING}, "a", id="no interfaces"),
        pytest.param({"sensor_id": 7, "src_ifindex": 10}, "seven", id="a sensor whose name is a number"),
    ],
)
def test_rename(meta: dict[str, Any], expected: str) -> None:
    rules = [
        {"sensor": "a", "ifindex": 10, "name": "a-ten"},
        {"sensor": "a", "ifindex": 11, "name": "a-eleven"},
        {"sensor": "7", "ifindex": 10, "name": "seven"},
    ]
    assert run(flow(meta=meta), rename=rules) == flow(meta=meta | {"sensor_id": expected})


@pytest.mark.parametrize(
    ("factor", "values", "expected"),
    [
        pytest.param(
            100,
            {},
            {"num_bits": 800_000, "num_packets": 1_000, "bits_per_second": 80_000, "packets_per_second": 100},
            id="bits, packets and both rates",
        ),
        pytest.param(
            1.5,
            {"num_bits": 3, "num_packets": 1, "bits_per_second": 2.5, "packets_per_second": 0.5},
            {"num_bits": 4, "num_packets": 1, "bits_per_second": 3, "packets_per_second": 0},
            id="cut to integers",
        ),
        pytest.param(
            100,
            {"bits_per_second": MISSING, "num_packets": MISSING},
            {"num_bits": 800_000, "packets_per_second": 100},
            id="what is missing stays missing",
        ),
    ],
)
def test_sampling(factor: float, values: dict[str, Any], expected: dict[str, int]) -> None:
    got = run(flow(values=values), sampling=[{"sensor": "sensor", "factor": factor}])["values"]
    assert got == {"duration": 10.0} | expected
    assert all(type(got[name]) is int for name in expected)


def test_sampling_of_another_sensor_changes_nothing() -> None:
    assert run(flow(), sampling=[{"sensor": "a", "factor": 100}]) == flow()
    assert run(flow(meta={"sensor_id": MISSING}), sampling=[{"sensor": "a", "factor": 100}]) == flow(meta={"sensor_id": MISSING})


@pytest.mark.parametrize(
    "values", [pytest.param({"num_bits": 1 << 62}, id="bits"), pytest.param({"bits_per_second": 1e308}, id="an infinite rate")]
)
def test_what_sampling_makes_too_large_is_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(Refused, match=f"values.{name}: beyond 64 bits"):
        run(flow(values=values), sampling=[{"sensor": "sensor", "factor": 2}])


def test_what_sampling_makes_nearly_too_large_is_kept() -> None:
    got = run(flow(values={"num_bits": 1 << 61}), sampling=[{"sensor": "sensor", "factor": 2}])
    assert got["values"]["num_bits"] == 1 << 62


@pytest.mark.parametrize("factor", [0, -1, float("inf"), float("nan")])
def test_a_factor_that_is_none_is_refused_in_the_settings(factor: float) -> None:
    with pytest.raises(ValueError, match="factor"):
        sensor_specific.Config(sampling=[{"sensor": "a", "factor": factor}])


@pytest.mark.parametrize("lists", [{"all": ["300.0.0.0/8"]}, {"by_sensor": {"a": ["x"]}}])
def test_a_prefix_that_is_none_is_refused_in_the_settings(lists: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        sensor_specific.Config(subnet_filter=lists)


def test_rules_behind_rename_see_the_new_name_those_before_it_the_old_one() -> None:
    rename = [{"sensor": "sensor", "ifindex": 1, "name": "new"}]
    assert run(flow(), rename=rename, sampling=[{"sensor": "new", "factor": 2}])["values"]["num_bits"] == 16_000
    assert run(flow(), rename=rename, sampling=[{"sensor": "sensor", "factor": 2}])["values"]["num_bits"] == 8_000
    assert run(flow(), rename=rename, subnet_filter={"by_sensor": {"new": ["203.0.113.0/24"]}}) == "subnet filter"
    assert run(flow(), rename=rename, ifindex_filter={"by_sensor": {"sensor": [99]}}) == "ifindex filter"
    assert run(flow(), rename=rename, ifindex_filter={"by_sensor": {"new": [99]}})["meta"]["sensor_id"] == "new"
