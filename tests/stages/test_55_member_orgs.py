"""55 member orgs: organizations of prefixes; the order of lists is tested with the lookup."""

from __future__ import annotations

import pytest

from tests.conftest import load_stage
from tests.flows import end_of, tables

member_orgs = load_stage("55_member_orgs")


class Lists:
    """One list for AS 217 and one prefix."""

    def get(self, ip: str, asn: int | None) -> str | None:
        return "Member A" if (ip, asn) == ("192.0.2.1", 217) else None


@pytest.mark.parametrize("side", ["src", "dst"])
@pytest.mark.parametrize(
    ("ip", "asn", "organization", "expected"),
    [
        pytest.param("192.0.2.1", 217, "University of Minnesota", "Member A", id="a member takes the place of the ASN's organization"),
        pytest.param("192.0.2.1", 217, "Unknown", "Member A", id="a member of an unknown organization"),
        pytest.param("192.0.2.2", 217, "University of Minnesota", "University of Minnesota", id="an address that is in no list"),
        pytest.param("192.0.2.1", 3356, "Level 3", "Level 3", id="an ASN to which no list applies"),
        pytest.param("192.0.2.1", 217, "Multicast", "Multicast", id="a multicast destination keeps Multicast"),
    ],
)
def test_organization(side: str, ip: str, asn: int, organization: str, expected: str) -> None:
    end = end_of(side, ip, asn, organization=organization)
    member_orgs.end(member_orgs.Config(), tables({"members": Lists()}))(end)
    assert end == end_of(side, ip, asn, organization=expected)


def test_an_end_without_an_organization_is_given_one() -> None:
    end = end_of(asn=217)
    member_orgs.end(member_orgs.Config(), tables({"members": Lists()}))(end)
    assert end["organization"] == "Member A"
