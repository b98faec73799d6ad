"""50 asn: which ASNs of exporters are taken from MaxMind instead."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import load_stage
from tests.flows import end_of, nothing, tables

asn = load_stage("50_asn")

KNOWN = {"192.0.2.1": {"autonomous_system_number": 64500, "autonomous_system_organization": "Example"}}
SIDES = pytest.mark.parametrize("side", ["src", "dst"])


@SIDES
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(None, 64500, id="a missing ASN is looked up"),
        pytest.param(0, 64500, id="0 is looked up"),
        pytest.param(1, 1, id="1 is kept"),
        pytest.param(3356, 3356, id="a public ASN is kept"),
        pytest.param(23455, 23455, id="before AS_TRANS"),
        pytest.param(23456, 64500, id="AS_TRANS is looked up"),
        pytest.param(23457, 23457, id="behind AS_TRANS"),
        pytest.param(64511, 64511, id="before the private ones of 16 bits"),
        pytest.param(64512, 64500, id="the first private one of 16 bits is looked up"),
        pytest.param(65534, 64500, id="the last private one of 16 bits is looked up"),
        pytest.param(65535, 65535, id="behind the private ones of 16 bits"),
        pytest.param(4199999999, 4199999999, id="before the private ones of 32 bits"),
        pytest.param(4200000000, 64500, id="the first private one of 32 bits is looked up"),
        pytest.param(4294967294, 64500, id="the last private one of 32 bits is looked up"),
        pytest.param(4294967295, 64500, id="the last of 32 bits is looked up"),
        pytest.param(4294967296, 64500, id="better: beyond 32 bits is looked up"),
        pytest.param(1 << 62, 64500, id="better: far beyond 32 bits is looked up"),
        pytest.param(-1, 64500, id="better: a negative one is looked up"),
        pytest.param(-3356, 64500, id="better: the negative of a public one is looked up"),
    ],
)
def test_asn(side: str, given: int | None, expected: int) -> None:
    end = end_of(side, asn=given)
    asn.end(asn.Config(), tables({"GeoLite2-ASN.mmdb": KNOWN}))(end)
    assert end["asn"] == expected
    assert end.get("tags", []) == ([f"maxmind {side} asn"] if expected != given else [])


@SIDES
@pytest.mark.parametrize("given", [None, 0, 65000])
@pytest.mark.parametrize(
    "known",
    [
        pytest.param({}, id="no record"),
        pytest.param({"192.0.2.1": {"autonomous_system_organization": "Example"}}, id="better: a record without a number"),
    ],
)
def test_not_found(side: str, given: int | None, known: dict[str, Any]) -> None:
    end = end_of(side, asn=given)
    asn.end(asn.Config(), tables({"GeoLite2-ASN.mmdb": known}))(end)
    assert (end["asn"], end["tags"]) == (-1, [f"_geoip_lookup_failure - {side} IP not in ASN db"])


@pytest.mark.parametrize("number", [65000, 4200000000, 4294967295, 0])
def test_better_what_is_found_is_taken_as_it_is(number: int) -> None:
    end = end_of(asn=None)
    asn.end(asn.Config(), tables({"GeoLite2-ASN.mmdb": {"192.0.2.1": {"autonomous_system_number": number}}}))(end)
    assert (end["asn"], end["tags"]) == (number, ["maxmind src asn"])


def test_a_multicast_destination_keeps_minus_one_without_a_tag() -> None:
    end = end_of("dst", "224.0.0.1", -1, organization="Multicast")
    asn.end(asn.Config(), tables({"GeoLite2-ASN.mmdb": {"224.0.0.1": {"autonomous_system_number": 64500}}}))(end)
    assert end == end_of("dst", "224.0.0.1", -1, organization="Multicast")


def test_a_multicast_source_is_looked_up_like_any_other() -> None:
    end = end_of("src", "224.0.0.1", 0)
    asn.end(asn.Config(), nothing)(end)
    assert end["tags"] == ["_geoip_lookup_failure - src IP not in ASN db"]


def test_tags_of_earlier_stages_are_kept() -> None:
    end = end_of(asn=0, tags=["first"])
    asn.end(asn.Config(), nothing)(end)
    assert end["tags"] == ["first", "_geoip_lookup_failure - src IP not in ASN db"]
