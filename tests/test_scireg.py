"""lookups build scireg: what stage 60 reads from the mmdb is what the registry's export says; what is wrong costs one line."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import geoip2.database
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline.addresses import Prefixes, parse
from netsage_pipeline.flow import End
from netsage_pipeline.tables import scireg
from netsage_pipeline.tables.tables import Tables
from tests.command import run, run_real
from tests.conftest import load_stage
from tests.flows import end_of

stage_60 = load_stage("60_scireg")

ENTRY = {
    "ip_block_id": "7",
    "addresses_str": "192.0.2.0/24, 2001:db8::/32",
    "addresses": ["192.0.2.0/24", " 2001:db8::/32"],
    "org_name": "Universität Größe",
    "org_abbr": "UG",
    "resource": 'A "quoted" name \\ and a backslash',
    "discipline": "MPS.Physics",
    "role": "Storage",
    "latitude": "44.500000",
    "longitude": "-93.250000",
    "projects": [{"project_name": "One", "project_abbr": "O"}],
}


def built(directory: Path, *entries: Any) -> scireg.Built:
    (directory / "export.json").write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
    return scireg.build(directory / "export.json", directory / "scireg.mmdb")


def ends(directory: Path, *ips: str, layout: str = "1") -> list[End]:
    """What stage 60 makes of these addresses."""
    config = stage_60.Config(layout=layout)
    process = stage_60.end(config, Tables(directory))
    found = [end_of(ip=ip) for ip in ips]
    for end in found:
        process(end)
    return found


def test_an_entry_comes_out_of_the_stage_as_it_stands_in_the_export(tmp_path: Path) -> None:
    assert built(tmp_path, ENTRY) == scireg.Built(2, [])
    for end in ends(tmp_path, "192.0.2.200", "2001:db8::1", "::ffff:192.0.2.1"):
        assert end["scireg"] == {**ENTRY, "project_names": ["One"], "project_abbrs": ["O"]}
    [other] = ends(tmp_path, "192.0.3.1")
    assert "scireg" not in other


def test_the_second_layout_and_the_reference_find_what_they_need(tmp_path: Path) -> None:
    built(tmp_path, ENTRY)
    [end] = ends(tmp_path, "192.0.2.1", layout="2")
    assert end["organization"] == "Universität Größe"
    assert end["location"] == {"lat": 44.5, "lon": -93.25, "data_source": "scireg"}
    with geoip2.database.Reader(tmp_path / "scireg.mmdb") as reader:
        city = reader.city("192.0.2.1")
        assert reader.metadata().database_type == "GeoLite2-City"
    assert (city.location.latitude, city.location.longitude) == (44.5, -93.25)
    assert json.loads(str(city.city.name)) == ENTRY


def test_what_an_export_of_2x_calls_otherwise_is_there_by_both_names(tmp_path: Path) -> None:
    built(tmp_path, {"addresses": ["192.0.2.0/24"], "org_name": "A", "resource_name": "A - DTN", "project_name": "One", "latitude": ""})
    [end] = ends(tmp_path, "192.0.2.1", layout="2")
    assert (end["resource_name"], end["project_names"]) == ("A - DTN", ["One"])
    [first] = ends(tmp_path, "192.0.2.1")
    assert first["scireg"]["resource_name"] == first["scireg"]["resource"] == "A - DTN"


def test_what_cannot_be_used_is_a_line_with_its_place_and_the_rest_is_built(tmp_path: Path) -> None:
    first = {"addresses": ["198.51.100.0/24", "nonsense", 5, None, "192.0.2.0/33", "::/0", "::1/128"], "org_name": "first"}
    later = {"addresses": ["192.0.2.0/24", "198.51.100.7/24", "::ffff:192.0.2.0/120"], "org_name": "later"}
    found = built(tmp_path, first, 5, {"org_name": "no prefix"}, {"addresses": "192.0.2.0/24"}, {"addresses": []}, None, later)
    no_prefix = "is not a prefix such as 192.0.2.0/24 or 2001:db8::/32: left out"
    assert found.errors == [
        *(f".[0].addresses[{index}]: {no_prefix}" for index in (1, 2, 3, 4)),
        *(f".[0].addresses[{index}]: holds addresses in ::/96, where an mmdb keeps IPv4: left out" for index in (5, 6)),
        ".[1]: is not an object: left out",
        *(f".[{index}].addresses: is not a list of prefixes: the entry is left out" for index in (2, 3, 4)),
        ".[5]: is not an object: left out",
        ".[6].addresses[1]: is the prefix of .[0].addresses[0] once more: the last one counts, as in the reference",
        ".[6].addresses[2]: is the prefix of .[6].addresses[0] once more: the last one counts, as in the reference",
    ]
    assert found.prefixes == 2
    assert [end["scireg"]["org_name"] for end in ends(tmp_path, "198.51.100.1", "192.0.2.1")] == ["later", "later"]


@st.composite
def networks(draw: st.DrawFn) -> str:
    """Prefixes that lie within each other often; IPv4, IPv6 and mapped ones, some with host bits."""
    if draw(st.booleans()):
        length = draw(st.integers(1, 32))
        address = draw(st.sampled_from([0x0A000000, 0xC0000200, 0xE0000000])) ^ draw(st.integers(0, 0xFFF))
        text = str(ipaddress.IPv4Address(address))
        return draw(st.sampled_from([f"{text}/{length}", text, f"::ffff:{text}/{96 + length}"]))
    address = draw(st.sampled_from([0x2001 << 112, 0x2001_0DB8 << 96, 0x2002 << 112])) ^ draw(st.integers(0, 0xFFFF)) ^ (1 << 80)
    return f"{ipaddress.IPv6Address(address)}/{draw(st.integers(4, 128))}"


@given(st.lists(st.lists(networks(), min_size=1, max_size=3), min_size=1, max_size=12))
def test_every_address_has_the_entry_of_the_longest_prefix_that_holds_it(
    tmp_path_factory: pytest.TempPathFactory, of: list[list[str]]
) -> None:
    directory = tmp_path_factory.mktemp("built", numbered=True)
    expected = Prefixes()
    usable = set()
    asked = {"192.0.2.1", "10.255.255.255", "2001:db8::1", "ff02::1", "0.0.0.1"}
    for number, prefixes in enumerate(of):
        for prefix in prefixes:
            network = ipaddress.ip_network(prefix, strict=False)
            asked |= {str(network[0]), str(network[-1])}
            if not (network.version == 6 and network.prefixlen < 16 and parse(str(network[0])) == bytes(16)):
                expected.add(prefix, number)
                usable.add(prefix)
    if not usable:
        return
    found = built(directory, *({"addresses": prefixes, "number": number} for number, prefixes in enumerate(of)))
    assert found.prefixes == len(expected)
    for end in ends(directory, *asked):
        assert end.get("scireg", {}).get("number") == (expected.get(end["ip"]) if end["side"] == "src" else None), end["ip"]


@pytest.mark.parametrize(
    ("export", "told"),
    [
        pytest.param(b"{}", ["is not a JSON list of entries"], id="an object"),
        pytest.param(b"[\n{", ["line 2: is not JSON: unexpected end of data"], id="cut off"),
        pytest.param(b"", ["line 1: is not JSON: Input is a zero-length, empty document"], id="empty"),
        pytest.param(b"\xff\xfe", ["line 1: is not JSON: str is not valid UTF-8: surrogates not allowed"], id="no UTF-8"),
        pytest.param(b"[]", ["holds no prefix that can be used"], id="no entry"),
        pytest.param(b"[5]", ["holds no prefix that can be used", ".[0]: is not an object: left out"], id="no object"),
    ],
)
def test_an_export_of_which_nothing_can_be_used_is_told_and_nothing_is_written(tmp_path: Path, export: bytes, told: list[str]) -> None:
    (tmp_path / "export.json").write_bytes(export)
    (tmp_path / "scireg.mmdb").write_bytes(b"old")
    outcome = run("lookups", "build", "scireg", tmp_path / "export.json", lookups=tmp_path)
    assert outcome.err.splitlines() == [f"{tmp_path}/export.json: {line}" for line in told]
    assert (outcome.code, outcome.out) == (1, b"")
    assert (tmp_path / "scireg.mmdb").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "scireg.mmdb"]


def test_the_command_builds_among_the_tables_or_where_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(json.dumps([ENTRY, 5]))
    outcome = run_real("lookups", "build", "scireg", tmp_path / "export.json", lookups=tmp_path)
    assert outcome.err == f"{tmp_path}/export.json: .[1]: is not an object: left out\n"
    assert (outcome.code, outcome.out.decode()) == (0, f"{tmp_path}/scireg.mmdb: 2 prefixes\n")
    to = tmp_path / "communities.mmdb"
    assert run("lookups", "build", "scireg", tmp_path / "export.json", "--to", to, lookups=tmp_path / "no").code == 0
    assert run("check", lookups=tmp_path).code == 0
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("export", "to", "told"),
    [
        ("none.json", "x.mmdb", "none.json: cannot be read or written: No such file or directory"),
        ("export.json", "no/x.mmdb", "no/.x.mmdb.new: cannot be read or written: No such file or directory"),
        ("export.json", "", ": cannot be read or written: Is a directory"),
    ],
)
def test_a_place_that_cannot_be_read_or_written_is_one_line(tmp_path: Path, export: str, to: str, told: str) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "export.json").write_text(json.dumps([ENTRY]))
    outcome = run("lookups", "build", "scireg", tmp_path / "tables" / export, "--to", tmp_path / "tables" / to)
    assert outcome.err.splitlines()[0].endswith(told)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]
