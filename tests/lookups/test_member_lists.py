"""members: lists in order of file name, in each the longest prefix."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline import stagefile
from netsage_pipeline.folders import shipped

members = stagefile.load(shipped("lookups") / "members.py")


def opened(directory: Path, **files: str) -> Any:
    """The table of these files; a_b is a-b.toml."""
    for name, content in files.items():
        (directory / f"{name.replace('_', '-')}.toml").write_text(content, "utf-8")
    return members.open_table(directory)


def list_of(asns: list[int] | None, table: dict[str, str]) -> str:
    head = "" if asns is None else f"asns = {asns}\n"
    return head + "[members]\n" + "".join(f'"{prefix}" = "{name}"\n' for prefix, name in table.items())


@pytest.mark.parametrize(
    ("ip", "asn", "expected"),
    [
        pytest.param("192.0.2.1", 217, "B", id="better: the longest prefix, not the first in the file"),
        pytest.param("192.0.2.200", 217, "A", id="the wider prefix around it"),
        pytest.param("192.0.2.129", 217, "one", id="a prefix of one address"),
        pytest.param("192.0.3.0", 217, None, id="an address in no prefix"),
        pytest.param("192.0.2.1", 11537, "B", id="another of the list's ASNs"),
        pytest.param("192.0.2.1", 3356, "everybody", id="another ASN: the list without ASNs is for all"),
        pytest.param("192.0.2.1", None, "everybody", id="no ASN: the list without ASNs is for all"),
        pytest.param("203.0.113.1", 217, None, id="no other list is tried when nothing in the first matches"),
        pytest.param("203.0.113.1", 3356, "later", id="the list without ASNs, for another ASN"),
        pytest.param("203.0.113.1", 7, "later", id="a list behind the one for all is never reached"),
        pytest.param("2001:db8::1", 217, "six", id="IPv6"),
        pytest.param("2001:DB8:7::1", 217, "seven", id="the longest IPv6 prefix"),
        pytest.param("::ffff:192.0.2.1", 217, "B", id="a mapped address counts as IPv4"),
        pytest.param("no address", 217, None, id="a text that is no address"),
    ],
)
def test_get(tmp_path: Path, ip: str, asn: int | None, expected: str | None) -> None:
    first = {
        "192.0.2.0/24": "A",
        "192.0.2.0/25": "B",
        "192.0.2.129/32": "one",
        "2001:db8::/32": "six",
        "2001:db8:7::/48": "seven",
    }
    table = opened(
        tmp_path,
        c_last=list_of([7], {"203.0.113.0/24": "never"}),
        b_all=list_of([], {"192.0.2.0/24": "everybody", "203.0.113.0/24": "later"}),
        a_first=list_of([217, 11537], first),
    )
    assert table.get(ip, asn) == expected


def test_lists_are_asked_in_order_of_file_name(tmp_path: Path) -> None:
    table = opened(tmp_path, b=list_of([217], {"0.0.0.0/0": "b"}), a=list_of([217], {"0.0.0.0/0": "a"}), c=list_of([1], {"0.0.0.0/0": "c"}))
    assert [table.get("192.0.2.1", asn) for asn in (217, 1, 2)] == ["a", "c", None]


def test_a_list_without_the_key_asns_is_for_all(tmp_path: Path) -> None:
    assert opened(tmp_path, a=list_of(None, {"192.0.2.0/24": "A"})).get("192.0.2.1", 5) == "A"


def test_host_bits_of_a_prefix_may_be_set(tmp_path: Path) -> None:
    assert opened(tmp_path, a=list_of(None, {"192.0.2.7/24": "A"})).get("192.0.2.200", 5) == "A"


def test_a_prefix_without_length_is_one_address(tmp_path: Path) -> None:
    table = opened(tmp_path, a=list_of(None, {"192.0.2.7": "A", "2001:db8::7": "B"}))
    assert [table.get(ip, 5) for ip in ("192.0.2.7", "192.0.2.8", "2001:db8::7", "2001:db8::8")] == ["A", None, "B", None]


def test_an_empty_directory_knows_nobody(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no list")
    assert opened(tmp_path).get("192.0.2.1", 217) is None


def test_the_longest_prefix_is_the_one_that_a_scan_of_all_finds(tmp_path: Path) -> None:
    chance = random.Random(1)
    networks = {ipaddress.ip_network((0xC0000000 | chance.getrandbits(16), chance.randint(16, 32)), strict=False) for _ in range(300)}
    table = opened(tmp_path, a=list_of(None, {str(network): str(network) for network in networks}))
    for _ in range(2_000):
        address = ipaddress.IPv4Address(0xC0000000 | chance.getrandbits(17))
        holding = [network for network in networks if address in network]
        longest = max(holding, key=lambda network: network.prefixlen, default=None)
        assert table.get(str(address), 1) == (None if longest is None else str(longest))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        pytest.param('[members]\n"444.55.66.0/32" = "A"', "a.toml: members: '444.55.66.0/32' is not a prefix such as", id="no prefix"),
        pytest.param('[members]\n"192.0.2.0/24" = 7', "a.toml: members: '192.0.2.0/24': the organization is not a text", id="no text"),
        pytest.param('asns = ["217"]', "a.toml: asns: is not a list of numbers", id="texts as ASNs"),
        pytest.param("asns = [true]", "a.toml: asns: is not a list of numbers", id="booleans as ASNs"),
        pytest.param("asns = 217", "a.toml: asns: is not a list of numbers", id="one ASN"),
        pytest.param('members = ["192.0.2.0/24"]', 'a.toml: members: is not a table of "prefix" = "organization"', id="a list of members"),
        pytest.param("asn = [217]", "a.toml: asn: unknown, known are asns and members", id="an unknown key"),
        pytest.param("asns = [", "a.toml: is not TOML", id="no TOML"),
        pytest.param(b"# \xff", "a.toml: is not TOML", id="another encoding"),
    ],
)
def test_what_is_wrong_is_named_in_all_lists_at_once(tmp_path: Path, content: str | bytes, line: str) -> None:
    (tmp_path / "a.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="toml") as error:
        opened(tmp_path, b="wrong = 1", c=list_of([1], {"192.0.2.0/24": "A"}))
    first, *rest = str(error.value).splitlines()
    assert first.startswith(line)
    assert rest == ["b.toml: wrong: unknown, known are asns and members"]
