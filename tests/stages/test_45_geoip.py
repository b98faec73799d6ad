"""45 geoip: country, continent and place."""

from __future__ import annotations

from typing import Any

import pytest

from netsage_pipeline.flow import End
from tests.conftest import load_stage
from tests.flows import end_of, nothing, tables

geoip = load_stage("45_geoip")

PLACE = {"latitude": 40.5, "longitude": -86.25}
CITY = {"continent": {"names": {"en": "Europe"}}, "country": {"names": {"en": "Norway", "de": "Norwegen"}}, "location": PLACE}
NAMES = {"continent": "Europe", "country_name": "Norway"}


def run(given: End, record: Any = None) -> End:
    lookups = tables({"GeoLite2-City.mmdb": {given["ip"]: record}}) if record is not None else nothing
    geoip.end(geoip.Config(), lookups)(given)
    return {name: value for name, value in given.items() if name not in ("side", "ip")}


@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param(CITY, NAMES | {"location": {"lat": 40.5, "lon": -86.25}}, id="a known address"),
        pytest.param(
            {"continent": CITY["continent"], "location": PLACE},
            {"continent": "Europe", "country_name": "Unknown", "location": {"lat": 40.5, "lon": -86.25}},
            id="a record without country",
        ),
        pytest.param(
            {"country": CITY["country"], "location": PLACE},
            {"continent": "Unknown", "country_name": "Norway", "location": {"lat": 40.5, "lon": -86.25}},
            id="a record without continent",
        ),
        pytest.param(CITY | {"country": {"iso_code": "NO"}}, {"country_name": "Unknown"}, id="a country without names"),
        pytest.param(CITY | {"country": {"names": {"de": "Norwegen"}}}, {"country_name": "Unknown"}, id="a country without English name"),
        pytest.param({**CITY, "location": {}}, NAMES, id="better: a record without coordinates still gives its names"),
        pytest.param({name: CITY[name] for name in ("continent", "country")}, NAMES, id="better: a record without location does too"),
        pytest.param(CITY | {"location": {"latitude": 40.5}}, NAMES, id="better: a record with only a latitude does too"),
        pytest.param(CITY | {"location": {"longitude": 1.5}}, NAMES, id="better: a record with only a longitude does too"),
        pytest.param(
            CITY | {"location": {"latitude": 40, "longitude": -86}},
            NAMES | {"location": {"lat": 40.0, "lon": -86.0}},
            id="better: integers are coordinates",
        ),
        pytest.param(
            CITY | {"location": {"latitude": 0, "longitude": 0.0}}, NAMES | {"location": {"lat": 0.0, "lon": 0.0}}, id="0 is a coordinate"
        ),
    ],
)
def test_a_record(side: str, record: Any, expected: dict[str, Any]) -> None:
    got = run(end_of(side), record)
    assert {name: got[name] for name in expected} == expected
    assert ("location" in got) == ("location" in expected or record.get("location") == PLACE)
    assert all(type(number) is float for number in got.get("location", {}).values())
    assert "tags" not in got
    assert got["asn"] == 3356


@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize("record", [pytest.param(None, id="no record"), pytest.param({}, id="an empty record")])
def test_an_address_that_is_not_found(side: str, record: Any) -> None:
    assert run(end_of(side), record) == {
        "asn": 3356,
        "continent": "Unknown",
        "country_name": "Unknown",
        "tags": [f"_geoip_lookup_failure - {side} IP not in CITY db"],
    }


def test_tags_of_earlier_stages_are_kept() -> None:
    assert run(end_of(tags=["first"]))["tags"] == ["first", "_geoip_lookup_failure - src IP not in CITY db"]


@pytest.mark.parametrize(
    ("ip", "multicast"),
    [
        pytest.param("224.0.0.0", True, id="first of 224.0.0.0/4"),
        pytest.param("239.255.255.255", True, id="last of 224.0.0.0/4"),
        pytest.param("223.255.255.255", False, id="before 224.0.0.0/4"),
        pytest.param("240.0.0.0", False, id="behind 224.0.0.0/4"),
        pytest.param("ff00::", True, id="first of ff00::/8"),
        pytest.param("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True, id="last of ff00::/8"),
        pytest.param("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", False, id="before ff00::/8"),
        pytest.param("::ffff:224.0.0.1", True, id="a mapped IPv4 address"),
        pytest.param("not an address", False, id="a text that is no address"),
    ],
)
def test_a_multicast_destination_is_called_multicast(ip: str, multicast: bool) -> None:
    got = run(end_of("dst", ip), CITY)
    if multicast:
        assert got == {"continent": "Multicast", "country_name": "Multicast", "organization": "Multicast", "asn": -1}
    else:
        assert got == {"asn": 3356, "location": {"lat": 40.5, "lon": -86.25}} | NAMES


@pytest.mark.parametrize("ip", ["224.0.0.1", "ff02::1"])
def test_a_multicast_source_is_looked_up_like_any_other(ip: str) -> None:
    assert run(end_of("src", ip), CITY)["country_name"] == "Norway"
    assert run(end_of("src", ip))["tags"] == ["_geoip_lookup_failure - src IP not in CITY db"]
