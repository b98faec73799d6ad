"""53 caida org: the organization of an ASN."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import load_stage
from tests.flows import end_of, tables

caida_org = load_stage("53_caida_org")

LISTED = {217: "University of Minnesota", 1: " Blanks ", 2: "0", 3: "", -1: "Nobody", 4: "Unknown Ltd", 0: "Zero"}


@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({"asn": 217}, "University of Minnesota", id="a listed ASN"),
        pytest.param({"asn": 1}, " Blanks ", id="names are taken as they stand, blanks included"),
        pytest.param({"asn": -1}, "Unknown", id="-1 is unknown, even if it is listed"),
        pytest.param({"asn": 5}, "Unknown", id="an ASN that is not listed"),
        pytest.param({"asn": 2}, "Unknown", id="an ASN listed as 0"),
        pytest.param({"asn": 3}, "Unknown", id="an ASN without a name"),
        pytest.param({"asn": None}, "Unknown", id="no ASN"),
        pytest.param({"asn": 217, "organization": ""}, "University of Minnesota", id="an empty organization is none"),
        pytest.param({"asn": -1, "organization": "Multicast"}, "Multicast", id="a multicast destination keeps Multicast"),
        pytest.param({"asn": 217, "organization": "Community Member"}, "Community Member", id="an organization of 42 is left alone"),
    ],
)
def test_organization(side: str, given: dict[str, Any], expected: str) -> None:
    end = end_of(side, **given)
    caida_org.end(caida_org.Config(), tables({"CAIDA-org-lookup.csv": LISTED}))(end)
    assert end == end_of(side, **given | {"organization": expected})


def test_better_a_destination_without_asn_does_not_touch_the_organization_of_the_source() -> None:
    process = caida_org.end(caida_org.Config(), tables({"CAIDA-org-lookup.csv": LISTED}))
    source, destination = end_of("src", asn=217), end_of("dst", asn=-1)
    process(source)
    process(destination)
    assert (source["organization"], destination["organization"]) == ("University of Minnesota", "Unknown")
