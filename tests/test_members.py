"""lookups convert: the reference's member lists, Ruby files read as text; lookups show."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from netsage_pipeline.tables.members import Converted, convert
from tests.command import run, run_real, tables_with


def converted(tmp_path: Path, text: str) -> list[Converted]:
    """The lists in a file of that text; the path is taken out of the complaints."""
    file = tmp_path / "a-members-list.rb"
    file.write_text(text, "utf-8")
    return [each._replace(errors=[error.removeprefix(str(file)) for error in each.errors]) for each in convert(file)]


def content(each: Converted) -> tuple[list[int], dict[str, str]]:
    values = tomllib.loads(each.text)
    return values["asns"], values["members"]


NASTY = r"""
# The lists of two networks; don't run this: @members['never'] = {
@asn_list['one'] = [ 1234, 'AS217', "89" ]   # three ASNs, ] in a comment
@members["one"] = {   # { here
     "192.0.2.0/24"     => "A # 1, not a comment",  # "203.0.113.0/24" => "in a comment",
     '198.51.100.0/25'  => 'B {with} braces }',
     "198.51.100.128/25"=>"C => D",
     "444.55.66.0/32"   => "E",
#    "203.0.113.0/24"   => "F",
     "2001:DB8:7::/48"  => "G \"quoted\", it's",
     "192.0.2.7"        => 'H isn\'t', "192.0.2.9/24" => "I",
     "192.0.2.0/24"     => "J",
     "203.0.113.0/24"      "K",
     203.0.113.0/25     => "L",
     "" => "M",
     "203.0.113.64/26"  => "Naïve Universität – ✓",
}
@asn_list['two'] = []
@members['two'] = { "10.0.0.0/8" => "all of it" }
"""


def test_a_nasty_file_is_read_as_ruby_reads_it(tmp_path: Path) -> None:
    one, two = converted(tmp_path, NASTY)
    assert content(one) == (
        [1234, 217, 89],
        {
            "192.0.2.0/24": "A # 1, not a comment",
            "198.51.100.0/25": "B {with} braces }",
            "198.51.100.128/25": "C => D",
            "2001:DB8:7::/48": 'G "quoted", it\'s',
            "192.0.2.7": "H isn't",
            "192.0.2.9/24": "I",
            "203.0.113.64/26": "Naïve Universität – ✓",
        },
    )
    assert content(two) == ([], {"10.0.0.0/8": "all of it"})
    assert (one.members, two.members) == (7, 1)


def test_what_is_left_out_of_it_is_told_with_its_line(tmp_path: Path) -> None:
    one, two = converted(tmp_path, NASTY)
    assert sorted(one.errors, key=lambda line: int(line.split(":")[1])) == [
        ":8: '444.55.66.0/32' is not a prefix such as 192.0.2.0/24: left out",
        ":12: '192.0.2.0/24' stands there twice: the first counts, as in the reference",
        """:13: '"203.0.113.0/24"      "K",' is not "prefix" => "organization": left out""",
        """:14: '203.0.113.0/25     => "L",' is not "prefix" => "organization": left out""",
        ":15: '' is not a prefix such as 192.0.2.0/24: left out",
    ]
    assert two.errors == []


@pytest.mark.parametrize(
    ("asns", "expected", "errors"),
    [
        pytest.param("@asn_list['a'] = [1, 2]", [1, 2], [], id="numbers"),
        pytest.param("@asn_list [ 'a' ]=[\n1,\n2,\n]", [1, 2], [], id="over several lines"),
        pytest.param(
            "@asn_list['a'] = [1, x2]", [1], [":1: 'x2' is not an autonomous system number: left out"], id="one of them is no number"
        ),
        pytest.param(
            "\n@asn_list['a'] = [x]",
            [],
            [
                ":2: 'x' is not an autonomous system number: left out",
                ": no number is left in @asn_list['a']: the list applies to every ASN",
            ],
            id="none is a number",
        ),
        pytest.param("", [], [": no @asn_list['a'] = [...]: the list applies to every ASN"], id="none of that name"),
        pytest.param("@asn_list['b'] = [1]", [], [": no @asn_list['a'] = [...]: the list applies to every ASN"], id="another's"),
    ],
)
def test_the_asns_of_a_list(tmp_path: Path, asns: str, expected: list[int], errors: list[str]) -> None:
    (only,) = converted(tmp_path, f"{asns}\n@members['a'] = {{ '192.0.2.0/24' => 'A' }}")
    assert content(only) == (expected, {"192.0.2.0/24": "A"})
    assert only.errors == errors


def test_a_text_that_is_never_closed_costs_its_line_only(tmp_path: Path) -> None:
    text = "@asn_list['a'] = [1]\n@members['a'] = {\n'192.0.2.0/24' => 'A,\n'198.51.100.0/24' => 'B'\n}"
    (only,) = converted(tmp_path, text)
    assert content(only)[1] == {"198.51.100.0/24": "B"}
    assert only.errors == [""":3: ''192.0.2.0/24' => 'A,' is not "prefix" => "organization": left out"""]


@pytest.mark.parametrize("name", ['A "B" \\ C', "tab\there", "\x7f", "\x01"])
def test_any_organization_comes_back_from_the_file_that_is_written(tmp_path: Path, name: str) -> None:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    (only,) = converted(tmp_path, f"@asn_list['a'] = [1]\n@members['a'] = {{ \"192.0.2.0/24\" => \"{escaped}\" }}")
    assert content(only)[1] == {"192.0.2.0/24": name}


def test_nothing_of_the_file_is_executed(tmp_path: Path) -> None:
    (only,) = converted(tmp_path, f"system('touch {tmp_path}/ran')\n@asn_list['a'] = [1]\n@members['a'] = {{}}\n`touch {tmp_path}/ran`")
    assert content(only) == ([1], {})
    assert not (tmp_path / "ran").exists()


def test_a_file_without_a_list_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.rb").write_text("puts 1\n")
    outcome = run("lookups", "convert", tmp_path / "x.rb", lookups=tmp_path)
    assert outcome.err.splitlines() == [f"{tmp_path}/x.rb: holds no member list: none of its lines begins with @members['name'] = {{"]
    assert outcome.code == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("none.rb", "cannot be read or written: No such file or directory"),
        ("directory", "cannot be read or written: Is a directory"),
        ("latin.rb", "is not UTF-8 (byte 2): save it as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_converted_is_named_and_the_others_are_converted(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "tables").mkdir()
    (tmp_path / "latin.rb").write_bytes(b"# \xe9")
    (tmp_path / "good.rb").write_text("@asn_list['a'] = [1]\n@members['a'] = { '192.0.2.0/24' => 'A' }")
    outcome = run("lookups", "convert", tmp_path / name, tmp_path / "good.rb", lookups=tmp_path / "tables")
    assert outcome.err.splitlines() == [f"{tmp_path}/{name}: {line}"]
    assert outcome.out.decode() == f"{tmp_path}/tables/members/good.toml: 1 members of a\n"
    assert outcome.code == 0
    assert run("lookups", "convert", tmp_path / name, lookups=tmp_path / "tables").code == 1


def test_lists_of_one_file_keep_their_order_and_the_chain_reads_what_was_written(tmp_path: Path) -> None:
    tables = tables_with(tmp_path, {})
    source = tmp_path / "nets-members-list.rb"
    source.write_text(
        "@asn_list['z/first'] = [217]\n@members['z/first'] = { '128.101.1.0/24' => 'first' }\n"
        "@asn_list['a second'] = [217]\n@members['a second'] = { '128.101.0.0/16' => 'second', '444.55.66.0/32' => 'bad' }\n"
    )
    outcome = run_real("lookups", "convert", source, lookups=tables)
    assert outcome.err.splitlines() == [f"{source}:4: '444.55.66.0/32' is not a prefix such as 192.0.2.0/24: left out"]
    assert sorted(path.name for path in (tables / "members").iterdir()) == ["nets-01-z_first.toml", "nets-02-a_second.toml"]
    assert run("check", lookups=tables).code == 0
    assert said(run("lookups", "show", "128.101.1.1", lookups=tables).out)["members/"] == "AS217: first"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    source = tmp_path / "a.rb"
    source.write_text("@asn_list['a'] = [1]\n@members['a'] = { '192.0.2.0/24' => 'A' }")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "members").touch()
    outcome = run("lookups", "convert", source, lookups=tmp_path / "tables")
    assert outcome.err.splitlines() == [f"{tmp_path}/tables/members: cannot be read or written: File exists"]
    assert outcome.code == 1


# lookups show


def said(out: bytes) -> dict[str, str]:
    """Table → what it says."""
    return {line[:22].strip(): line[23:] for line in out.decode().splitlines()}


def test_show_tells_what_each_table_says_of_an_address(tmp_path: Path) -> None:
    member = b'asns = [217]\n[members]\n"128.101.0.0/16" = "Member"\n'
    outcome = run_real("lookups", "show", "128.101.1.1", lookups=tables_with(tmp_path, {"members/a.toml": member}))
    told = said(outcome.out)
    assert outcome.code == 0
    assert list(told) == ["GeoLite2-City.mmdb", "GeoLite2-ASN.mmdb", "scireg.mmdb", "communities.mmdb", "CAIDA-org-lookup.csv", "members/"]
    assert '"country":"United States"' in told["GeoLite2-City.mmdb"]
    assert '"autonomous_system_number":217' in told["GeoLite2-ASN.mmdb"]
    assert '"network":"128.101.1.0/24"' in told["scireg.mmdb"]
    assert told["communities.mmdb"].startswith("no such table in ")
    assert told["CAIDA-org-lookup.csv"] == "AS217: University of Minnesota"
    assert told["members/"] == "AS217: Member"


@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8:ffff::1"])
def test_show_says_of_an_unknown_address_that_it_is_not_found(tmp_path: Path, ip: str) -> None:
    told = said(run("lookups", "show", ip, lookups=tables_with(tmp_path, {})).out)
    assert told.pop("communities.mmdb").startswith("no such table in ")
    assert {*told.values()} == {"not found"}


@pytest.mark.parametrize("ip", ["nonsense", "192.0.2.0/24", "", "fe80::1%eth0", "192.0.2.256"])
def test_show_refuses_what_is_no_address(ip: str) -> None:
    outcome = run("lookups", "show", ip)
    assert (outcome.code, outcome.out, outcome.err) == (2, b"", f"'{ip}' is not an IP address\n")


def test_show_goes_on_behind_broken_tables(tmp_path: Path) -> None:
    tables = tables_with(tmp_path, {"GeoLite2-City.mmdb": b"x", "CAIDA-org-lookup.csv": b"1,A\nx,B\n", "members/a.toml": b"asns = 5"})
    outcome = run("lookups", "show", "128.101.1.1", lookups=tables)
    told = said(outcome.out)
    assert told["GeoLite2-City.mmdb"].startswith("cannot be read: ")
    assert '"autonomous_system_number":217' in told["GeoLite2-ASN.mmdb"]
    assert told["CAIDA-org-lookup.csv"].endswith(
        "CAIDA-org-lookup.csv: line 2: not 'asn,organization': the first field must be a whole number"
    )
    assert told["members/"].endswith("members: a.toml: asns: is not a list of numbers")
    assert outcome.code == 0


def test_show_says_no_such_table_of_each_that_is_missing(tmp_path: Path) -> None:
    assert set(said(run("lookups", "show", "128.101.1.1", lookups=tmp_path).out).values()) == {f"no such table in {tmp_path}"}


def test_show_reads_a_database_of_a_type_of_its_own(tmp_path: Path) -> None:
    writer: Any = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Our Registry")
    writer.insert_network(IPSet(["192.0.2.0/24"]), {"city": {"names": {"en": "{}"}}})
    tables = tables_with(tmp_path, {})
    writer.to_db_file(str(tables / "scireg.mmdb"))
    told = said(run("lookups", "show", "192.0.2.1", lookups=tables).out)["scireg.mmdb"]
    assert told == '{"record":{"city":{"names":{"en":"{}"}}}}'
    assert said(run("lookups", "show", "198.51.100.1", lookups=tables).out)["scireg.mmdb"] == "not found"
