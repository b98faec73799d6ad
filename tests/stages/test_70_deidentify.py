"""70 deidentify: nothing of the host part is left."""

from __future__ import annotations

import ipaddress
import socket
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import load_stage
from tests.flows import end_of, nothing

deidentify = load_stage("70_deidentify")

INVALID = "INVALID IP"


def masked(ip: str) -> str:
    end = end_of(ip=ip)
    deidentify.end(deidentify.Config(), nothing)(end)
    assert end == end_of(ip=end["ip"])
    return str(end["ip"])


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        pytest.param("192.0.2.1", "192.0.2.x", id="the last octet of IPv4"),
        pytest.param("0.0.0.0", "0.0.0.x", id="a missing address"),
        pytest.param("255.255.255.255", "255.255.255.x", id="the last IPv4 address"),
        pytest.param("2001:db8::1", "2001:db8:0:0:x:x:x:x", id="eight groups, the last four masked"),
        pytest.param("2001:0DB8:00A0:000b:1:2:3:4", "2001:db8:a0:b:x:x:x:x", id="lower case, no leading zeros"),
        pytest.param("::1:2", "0:0:0:0:x:x:x:x", id="better: ::1:2 is parsed, not split"),
        pytest.param("::", "0:0:0:0:x:x:x:x", id="the unspecified address"),
        pytest.param("1::", "1:0:0:0:x:x:x:x", id="zeros at the end"),
        pytest.param("1:2:3::", "1:2:3:0:x:x:x:x", id="five zeros at the end"),
        pytest.param("::ffff:128.101.1.1", "0:0:0:0:x:x:x:x", id="better: a mapped address"),
        pytest.param("::ffff:8065:0101", "0:0:0:0:x:x:x:x", id="better: a mapped address in hexadecimal"),
        pytest.param("2001:db8::128.101.1.1", "2001:db8:0:0:x:x:x:x", id="an IPv4 address in the last two groups"),
        pytest.param("2002:8065:101:7::1", "2002:x:x:7:x:x:x:x", id="better: 6to4 carries an IPv4 address"),
        pytest.param("2002::", "2002:x:x:0:x:x:x:x", id="better: 6to4 of 0.0.0.0"),
        pytest.param("2003:8065:101:7::1", "2003:8065:101:7:x:x:x:x", id="behind 6to4"),
        pytest.param("2001:0:8065:101:7:8:9:a", "2001:0:x:x:x:x:x:x", id="better: Teredo carries two"),
        pytest.param("2001:0000:8065:101::", "2001:0:x:x:x:x:x:x", id="better: Teredo with leading zeros"),
        pytest.param("2001:1:8065:101::", "2001:1:8065:101:x:x:x:x", id="behind Teredo"),
        pytest.param("2000:0:8065:101::", "2000:0:8065:101:x:x:x:x", id="before Teredo"),
        pytest.param("2001:0:128.101.1.1::", INVALID, id="an IPv4 address in the middle"),
        pytest.param("fe80::1%eth0", INVALID, id="a zone makes it invalid"),
        pytest.param("192.0.2.1%eth0", INVALID, id="a zone of IPv4"),
        pytest.param("192.0.2.x", INVALID, id="a masked address"),
        pytest.param("2001:db8:0:0:x:x:x:x", INVALID, id="a masked IPv6 address"),
        pytest.param("192.0.2", INVALID, id="three octets"),
        pytest.param("192.0.2.256", INVALID, id="an octet too large"),
        pytest.param("192.0.2.01", INVALID, id="a leading zero, which some read as octal"),
        pytest.param("192.0.2.1/24", INVALID, id="a prefix"),
        pytest.param("192.0.2.1:80", INVALID, id="a port"),
        pytest.param("[2001:db8::1]", INVALID, id="brackets"),
        pytest.param(" 192.0.2.1", INVALID, id="a blank"),
        pytest.param("192.0.2.1\x00", INVALID, id="a zero byte"),
        pytest.param("\ud800", INVALID, id="a lone surrogate"),
        pytest.param("1:2:3:4:5:6:7", INVALID, id="seven groups"),
        pytest.param("1:2:3:4:5:6:7:8:9", INVALID, id="nine groups"),
        pytest.param("1::2::3", INVALID, id="two gaps"),
        pytest.param("host.example.org", INVALID, id="a name"),
        pytest.param("3221225985", INVALID, id="a number"),
        pytest.param("", INVALID, id="an empty text"),
    ],
)
def test_masking(ip: str, expected: str) -> None:
    assert masked(ip) == expected


@pytest.mark.parametrize(
    ("ip", "settings", "private"),
    [
        pytest.param("no address", {}, None, id="off by default"),
        pytest.param("no address", {"keep_private": True}, "invalid ip: no address", id="the text that is no address"),
        pytest.param("192.0.2.1", {"keep_private": True}, None, id="never an address"),
        pytest.param("2001:db8::1", {"keep_private": True}, None, id="never an IPv6 address"),
    ],
)
@pytest.mark.parametrize("side", ["src", "dst"])
def test_better_an_invalid_address_is_kept_only_where_that_is_on(side: str, ip: str, settings: dict[str, Any], private: str | None) -> None:
    end = end_of(side, ip)
    deidentify.end(deidentify.Config(**settings), nothing)(end)
    assert end.get("private") == (None if private is None else {f"{side}_ip": private})
    assert end["ip"] != ip


@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1", "no address"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("203.0.113.7", "203.0.113.x", id="a text that is an address"),
        pytest.param("at 203.0.113.7, port 80", "at 203.0.113.x, port 80", id="an address within a text"),
        pytest.param("203.0.113.0/24 2001:DB8:9::/48.", "203.0.113.0/24 2001:DB8:9::/48.", id="prefixes within a text"),
        pytest.param("see 2001:DB8:9::7.", "see 2001:db8:9:0:x:x:x:x.", id="an IPv6 address at the end of a sentence"),
        pytest.param(["203.0.113.7", {"a": ["203.0.113.8"]}], ["203.0.113.x", {"a": ["203.0.113.x"]}], id="nested"),
        pytest.param({"203.0.113.7": 5}, {"203.0.113.x": 5}, id="a name with nothing else that could hold one"),
        pytest.param({"203.0.113.7": 1, "203.0.113.8": 2}, {"203.0.113.x": 1, "203.0.113.x (2)": 2}, id="names that are equal then"),
        pytest.param({"203.0.113.7": "a.b"}, {"203.0.113.x": "a.b"}, id="a name beside a text with a dot"),
        pytest.param("www.example.org 1.2.3 12:30:45", "www.example.org 1.2.3 12:30:45", id="names, versions and times of day stay"),
        pytest.param("v1.2.3.4 a1.2.3.4b 1.2.3.4.5", "v1.2.3.x a1.2.3.xb 1.2.3.x.5", id="IPv4 within a word"),
        pytest.param("Foo::Bar, a :: b", "Foo::Bar, a :: b", id="words that IPv6 could stand in stay"),
        pytest.param("203.0.113.7/32", "203.0.113.x/32", id="a prefix of one address"),
        pytest.param("http://203.0.113.7:80/", "http://203.0.113.x:80/", id="an address with a port"),
        pytest.param({"lat": 1.5, "lon": None, "is": True}, {"lat": 1.5, "lon": None, "is": True}, id="other values stay"),
    ],
)
@pytest.mark.parametrize("field", ["scireg", "organization"])
def test_addresses_in_what_tables_say_of_the_end_are_masked(field: str, value: Any, expected: Any, ip: str) -> None:
    end = end_of(ip=ip, **{field: value})
    deidentify.end(deidentify.Config(), nothing)(end)
    assert end[field] == expected


@pytest.mark.parametrize(
    ("ip", "text", "expected"),
    [
        pytest.param("203.0.113.7", "host203.0.113.7x", "host203.0.113.xx", id="within a word"),
        pytest.param("2001:DB8::7", "x2001:db8::7x", "x2001:db8:0:0:x:x:x:xx", id="within a word, in another notation"),
        pytest.param("fe80::1%eth0", "at fe80::1%eth0", "at INVALID IP", id="with a zone"),
    ],
)
def test_the_address_of_the_end_itself_is_masked_wherever_it_stands(ip: str, text: str, expected: str) -> None:
    end = end_of(ip=ip, scireg={"resource": text})
    deidentify.end(deidentify.Config(), nothing)(end)
    assert end["scireg"] == {"resource": expected}


@pytest.mark.parametrize("ip", ["Unknown", "States", "none", ""])
def test_words_in_place_of_an_address_are_left_in_what_tables_say(ip: str) -> None:
    said: dict[str, Any] = {"country_name": "United States", "continent": "Unknown", "organization": "none"}
    end = end_of(ip=ip, **said)
    deidentify.end(deidentify.Config(), nothing)(end)
    assert end == end_of(ip=INVALID, **said)


@pytest.mark.parametrize("text", ["1.", "1:"])
def test_a_long_text_in_place_of_an_address_is_soon_masked(text: str) -> None:
    before = time.monotonic()
    for _ in range(3_000):
        end = end_of(ip=(text * 255)[:255], organization="University of 1.1.1.1")
        deidentify.end(deidentify.Config(), nothing)(end)
    assert time.monotonic() - before < 15


def test_what_is_private_already_is_kept() -> None:
    end = end_of(ip="x", private={"other": 1})
    deidentify.end(deidentify.Config(keep_private=True), nothing)(end)
    assert end["private"] == {"other": 1, "src_ip": "invalid ip: x"}


V6 = st.one_of(
    st.ip_addresses(v=6),
    st.integers(0, 2**32 - 1).map(lambda low: ipaddress.IPv6Address(0xFFFF << 32 | low)),
    st.integers(0, 2**112 - 1).map(lambda low: ipaddress.IPv6Address(0x2002 << 112 | low)),
    st.integers(0, 2**96 - 1).map(lambda low: ipaddress.IPv6Address(0x20010000 << 96 | low)),
)


def notations(address: ipaddress.IPv6Address) -> list[str]:
    packed = address.packed
    groups = address.exploded.split(":")
    dotted = ":".join(groups[:6]) + ".".join(map(str, packed[12:])).join((":", ""))
    return [
        str(address),
        address.exploded,
        address.exploded.upper(),
        ":".join(f"{int(group, 16):x}" for group in groups),
        socket.inet_ntop(socket.AF_INET6, packed),
        dotted,
    ]


@given(V6, st.integers(0, 2**64 - 1))
def test_no_notation_of_an_ipv6_address_and_nothing_of_its_host_part_makes_a_difference(address: ipaddress.IPv6Address, host: int) -> None:
    expected = masked(str(address))
    assert {masked(text) for text in notations(address)} == {expected}
    assert masked(str(ipaddress.IPv6Address(int(address) >> 64 << 64 | host))) == expected
    groups = expected.split(":")
    assert groups[4:] == ["x"] * 4
    own = [f"{int(group, 16):x}" for group in address.exploded.split(":")]
    assert all(group in ("x", same) for group, same in zip(groups, own, strict=True))


@given(st.ip_addresses(v=4), st.integers(0, 255))
def test_nothing_of_the_last_octet_of_an_ipv4_address_makes_a_difference(address: ipaddress.IPv4Address, host: int) -> None:
    network = str(address).rpartition(".")[0]
    assert masked(str(address)) == masked(f"{network}.{host}") == f"{network}.x"


@given(st.ip_addresses(v=4), st.integers(0, 2**80 - 1), st.sampled_from(["6to4", "Teredo"]))
def test_an_ipv4_address_within_an_ipv6_address_makes_no_difference(address: ipaddress.IPv4Address, rest: int, kind: str) -> None:
    def carrying(v4: int) -> str:
        number = 0x2002 << 112 | v4 << 80 | rest if kind == "6to4" else 0x20010000 << 96 | v4 << 64 | rest >> 16
        return masked(str(ipaddress.IPv6Address(number)))

    assert carrying(int(address)) == carrying(0)


@given(st.text() | st.from_regex(r"[0-9a-f:.%/\[\] x]{0,45}", fullmatch=True))
def test_what_comes_out_is_masked_or_invalid_whatever_goes_in(text: str) -> None:
    got = masked(text)
    assert got == INVALID or got.endswith((".x", ":x:x:x:x"))
