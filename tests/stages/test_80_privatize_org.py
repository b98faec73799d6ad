"""80 privatize org: what is replaced, and when. The shipped rule is that of AARNet."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from netsage_pipeline.flow import End
from netsage_pipeline.folders import shipped
from tests.conftest import load_stage
from tests.flows import end_of, nothing

privatize_org = load_stage("80_privatize_org")

SHIPPED = tomllib.loads((shipped("conf.d") / "80_privatize_org.toml").read_text("utf-8"))
NAME = "Australian Academic and Research Network (AARNet)"
PLACE = {"lat": -25.0, "lon": 135.0}
REPLACED = {"ip": "xx.xx.xx.xx", "asn": -1, "organization": NAME, "location": PLACE}
SIDES = pytest.mark.parametrize("side", ["src", "dst"])

#: The ASNs of the shipped rule, as the specification lists them.
ASNS = """
1851, 4608, 4738, 4822, 6262, 7475, 7476, 7569, 7570, 7571, 7572, 7573, 7574, 7575, 7637, 7645, 9348, 9383, 9517, 10106, 10148, 17807,
20144, 22556, 23654, 23719, 23859, 23935, 24032, 24101, 24313, 24390, 24431, 24433, 24434, 24436, 24437, 24490, 24510, 37978, 38076,
38083, 38280, 38307, 38474, 38568, 38795, 38858, 45128, 45158, 45213, 45797, 45962, 55354, 55363, 55491, 55773, 55813, 56065, 56132,
56210, 56219, 56303, 58422, 58528, 58582, 58584, 58611, 58686, 58698, 58877, 59206, 64090, 131294, 132129, 132158, 132345, 132693,
132728, 132868, 133019, 134096, 134111, 134115, 134197, 134700, 134748, 135350, 135520, 135892, 135893, 136013, 136016, 136135, 136247,
136549, 136621, 136753, 136770, 136912, 136921, 137073, 137188, 137400, 137429, 137529, 137837, 137965, 138017, 138201, 138390, 138447,
138468, 138537
"""
SCIREG = {
    "org_name": "University of Example",
    "org_abbr": "UE",
    "resource": "Data mover",
    "resource_abbr": "DM",
    "latitude": "-33.9",
    "longitude": "151.2",
    "discipline": "CS.Astronomy",
    "projects": [{"project_name": "A", "project_abbr": "a"}],
    "project_names": ["A"],
    "project_abbrs": ["a"],
}
SCIREG_REPLACED = {
    "org_name": NAME,
    "org_abbr": "AARNet.au",
    "resource": "AARNet member",
    "resource_abbr": "AARNet",
    "latitude": -25.0,
    "longitude": 135.0,
    "discipline": "CS.Astronomy",
}


def member(side: str = "src", **more: Any) -> End:
    given: dict[str, Any] = {
        "asn": 7575,
        "country_name": "Australia",
        "organization": "University of Example",
        "location": {"lat": -33.9, "lon": 151.2},
    }
    return end_of(side, "203.0.113.x", **given | more)


def run(given: End, **settings: Any) -> End:
    privatize_org.end(privatize_org.Config(**SHIPPED | settings), nothing)(given)
    return given


def test_the_shipped_rule_has_the_asns_of_the_specification() -> None:
    (rule,) = privatize_org.Config(**SHIPPED).rules
    assert rule.asns == {int(number) for number in ASNS.split(",")}
    assert len(SHIPPED["rules"][0]["asns"]) == len(rule.asns)


@SIDES
def test_an_end_whose_asn_and_country_match_is_replaced(side: str) -> None:
    assert run(member(side)) == member(side) | REPLACED


@SIDES
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"asn": 7576}, id="the ASN does not match"),
        pytest.param({"asn": -1}, id="no ASN"),
        pytest.param({"country_name": "New Zealand"}, id="the country does not match"),
        pytest.param({"country_name": "Unknown"}, id="the country is unknown"),
        pytest.param({"country_name": None}, id="there is no country"),
    ],
)
def test_an_end_of_which_only_one_matches_is_left_alone(side: str, changes: dict[str, Any]) -> None:
    assert run(member(side, scireg=dict(SCIREG), **changes)) == member(side, scireg=SCIREG, **changes)


def test_location_and_organization_are_written_where_there_were_none() -> None:
    given = end_of(asn=7575, country_name="Australia")
    assert run(given) == end_of(country_name="Australia") | REPLACED


def test_scireg_is_replaced_and_projects_are_removed() -> None:
    assert run(member(scireg=dict(SCIREG)))["scireg"] == SCIREG_REPLACED


@pytest.mark.parametrize("name", [name for name in SCIREG if name in SCIREG_REPLACED])
def test_scireg_is_replaced_only_where_present(name: str) -> None:
    assert run(member(scireg={name: SCIREG[name]}))["scireg"] == {name: SCIREG_REPLACED[name]}


@SIDES
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param("Australian Academic and Research Network", NAME, id="the name"),
        pytest.param("AARNET", NAME, id="the abbreviation"),
        pytest.param("aarnet Pty Ltd", NAME, id="in any case, anywhere"),
        pytest.param("x australian academic AND research network x", NAME, id="the name in any case, anywhere"),
        pytest.param("Australian Academic Network", "Australian Academic Network", id="another organization"),
        pytest.param(None, None, id="no organization"),
        pytest.param("", "", id="an empty organization"),
    ],
)
@pytest.mark.parametrize("country", ["Australia", "United States", None])
def test_an_organization_that_matches_the_pattern_is_given_the_rules_spelling(
    side: str, country: str | None, given: str | None, expected: str | None
) -> None:
    end = end_of(side, organization=given, country_name=country, location={"lat": 1.0, "lon": 2.0})
    assert run(end) == end_of(side, organization=expected, country_name=country, location={"lat": 1.0, "lon": 2.0})


@SIDES
@pytest.mark.parametrize(
    ("changes", "settings", "private"),
    [
        pytest.param({"scireg": SCIREG}, {}, None, id="better: off by default"),
        pytest.param(
            {"scireg": SCIREG},
            {"keep_private": True},
            {
                "{side}_organization": "University of Example",
                "{side}_asn": 7575,
                "{side}_ip": "203.0.113.x",
                "scireg_{side}_org_name": "University of Example",
                "scireg_{side}_resource": "Data mover",
            },
            id="what was replaced",
        ),
        pytest.param(
            {"organization": None},
            {"keep_private": True},
            {"{side}_asn": 7575, "{side}_ip": "203.0.113.x"},
            id="what is missing is not copied",
        ),
        pytest.param(
            {"private": {"{side}_ip": "invalid ip: x", "other": 1}, "organization": None},
            {"keep_private": True},
            {"{side}_asn": 7575, "{side}_ip": "203.0.113.x", "other": 1},
            id="what 70 kept is kept, but for what is replaced now",
        ),
        pytest.param({"country_name": "Norway"}, {"keep_private": True}, None, id="nothing where nothing was replaced"),
    ],
)
def test_what_was_replaced_is_copied_to_private_where_that_is_on(
    side: str, changes: dict[str, Any], settings: dict[str, Any], private: dict[str, Any] | None
) -> None:
    def named(kept: dict[str, Any]) -> dict[str, Any]:
        return {name.format(side=side): value for name, value in kept.items()}

    given = {
        name: named(value) if name == "private" else dict(value) if isinstance(value, dict) else value for name, value in changes.items()
    }
    got = run(member(side, **given), **settings)
    assert got.get("private") == (None if private is None else named(private))


def rule(**changes: Any) -> dict[str, Any]:
    made = {
        "asns": [1],
        "country": "A",
        "organization": "Network A",
        "abbreviation": "A",
        "resource": "member",
        "resource_abbreviation": "m",
    }
    return made | {"lat": 1, "lon": 2} | changes


def test_each_end_is_replaced_by_the_first_rule_that_matches_it() -> None:
    rules = [rule(), rule(organization="Network B", country="B", pattern="(?i)network a"), rule(organization="Network C", asns=[1, 3])]
    assert run(end_of(asn=1, country_name="A"), rules=rules)["organization"] == "Network A"
    assert run(end_of(asn=1, country_name="B"), rules=rules)["organization"] == "Network B"
    assert run(end_of(asn=3, country_name="A"), rules=rules)["organization"] == "Network C"
    assert run(end_of(asn=9, organization="NETWORK A"), rules=rules)["organization"] == "Network B"
    assert run(end_of(asn=9, organization="Network C"), rules=rules)["organization"] == "Network C"


def test_a_pattern_that_is_no_regular_expression_is_refused_in_the_settings() -> None:
    with pytest.raises(ValueError, match="is no regular expression"):
        privatize_org.Config(rules=[rule(pattern="(")])


def test_an_unknown_key_of_a_rule_is_refused_in_the_settings() -> None:
    with pytest.raises(ValueError, match="asn_list"):
        privatize_org.Config(rules=[rule(asn_list=[1])])
