"""41 leftovers: addresses in fields that nobody knows."""

from __future__ import annotations

import ipaddress
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline.fields import EXPORTED
from netsage_pipeline.flow import Flow
from tests.conftest import load_stage
from tests.flows import flow, nothing

leftovers = load_stage("41_leftovers")

SRC, DST = "192.0.2.1", "2001:db8::a:1"
DST_MASKED = "2001:db8:0:0:x:x:x:x"


def run(given: Flow, **settings: Any) -> Flow:
    made: Flow = leftovers.stage(leftovers.Config(**settings), nothing)(given)
    return made


def masked(value: Any, src: str = SRC, dst: str = DST, **settings: Any) -> Any:
    """What becomes of a value in an unknown field."""
    return run(flow(note=value, meta={"src_ip": src, "dst_ip": dst}), **settings)["note"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("from 192.0.2.1 to all", "from 192.0.2.x to all", id="the source address within a text"),
        pytest.param("from 2001:db8::a:1 to all", f"from {DST_MASKED} to all", id="the destination address within a text"),
        pytest.param("192.0.2.1:80 -> [2001:db8::a:1]:443", f"192.0.2.x:80 -> [{DST_MASKED}]:443", id="both, with ports"),
        pytest.param("to 2001:DB8:0::000a:1.", f"to {DST_MASKED}.", id="in another notation, at the end of a sentence"),
        pytest.param("to ::ffff:c000:201.", "to 0:0:0:0:x:x:x:x.", id="the source address mapped into IPv6, in hexadecimal"),
        pytest.param("to 2001:DB8:0:0:0:0:A:1/128", f"to {DST_MASKED}/128", id="in full, as a prefix"),
        pytest.param("::FFFF:192.0.2.1 came", "::FFFF:192.0.2.x came", id="the source address mapped into IPv6"),
        pytest.param("to 2001:db8::0.10.0.1", f"to {DST_MASKED}", id="with its last groups as IPv4"),
        pytest.param("203.0.113.7", "203.0.113.x", id="a text that is itself an address"),
        pytest.param("2001:DB8:7::1", "2001:db8:7:0:x:x:x:x", id="a text that is itself an IPv6 address"),
        pytest.param("2002:cb00:7107:7::1", "2002:x:x:7:x:x:x:x", id="a text that is a 6to4 address"),
        pytest.param("seen by 203.0.113.7", "seen by 203.0.113.7", id="another address within a text stays"),
        pytest.param("seen by 2001:db8::7", "seen by 2001:db8::7", id="another IPv6 address within a text stays"),
        pytest.param("no address", "no address", id="a text without an address stays"),
        pytest.param("192.0.2", "192.0.2", id="a part of an address stays"),
        pytest.param("12:30:45", "12:30:45", id="a time of day stays"),
        pytest.param("", "", id="an empty text stays"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize("value", [1, 1.5, True, None, [], {}])
def test_other_values_stay(value: Any) -> None:
    assert masked(value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param([SRC, ["to " + SRC]], ["192.0.2.x", ["to 192.0.2.x"]], id="in lists"),
        pytest.param({"a": {"b": SRC, "c": 1}}, {"a": {"b": "192.0.2.x", "c": 1}}, id="in objects"),
        pytest.param({SRC: 1, f"by {SRC}": 2}, {"192.0.2.x": 1, "by 192.0.2.x": 2}, id="in names"),
        pytest.param(
            {"192.0.2.1": 1, "192.0.2.2": 2, "192.0.2.x (2)": 3, "192.0.2.x": 4, "192.0.2.3": 5},
            {"192.0.2.x": 1, "192.0.2.x (2)": 2, "192.0.2.x (2) (2)": 3, "192.0.2.x (3)": 4, "192.0.2.x (4)": 5},
            id="in names that are equal then",
        ),
    ],
)
def test_nested_values(value: Any, expected: Any) -> None:
    assert masked(value) == expected


def test_better_every_unknown_field_is_masked_wherever_it_lies() -> None:
    got = run(flow(note=SRC, **{f"of {SRC}": 1}, meta={"exporter_ip": SRC, "x": [SRC]}, values={"y": SRC}, tags=[SRC]))
    assert got == flow(
        note="192.0.2.x",
        **{"of 192.0.2.x": 1},
        meta={"exporter_ip": "192.0.2.x", "x": ["192.0.2.x"]},
        values={"y": "192.0.2.x"},
        tags=["192.0.2.x"],
    )


def test_no_field_is_lost_whose_name_is_that_of_another_one_when_it_is_masked() -> None:
    hops = {"203.0.113.1": "a", "203.0.113.2": "b", "203.0.113.x": "c"}
    kept = {"203.0.113.x": "a", "203.0.113.x (2)": "b", "203.0.113.x (3)": "c"}
    assert run(flow(**hops, meta=hops, values=hops)) == flow(**kept, meta=kept, values=kept)


def test_many_names_that_are_equal_when_they_are_masked_are_soon_told_apart() -> None:
    before = time.monotonic()
    assert len(masked({f"2001:db8::{number:x}": number for number in range(100_000)})) == 100_000
    assert time.monotonic() - before < 15


@pytest.mark.parametrize("name", ["note", "meta.exporter", "values.label", "type", "interval", "meta.ip_version"])
def test_one_unknown_field_is_enough(name: str) -> None:
    top, _, inner = name.partition(".")
    got = run(flow(**{top: {inner: SRC} if inner else SRC}))
    assert got == flow(**{top: {inner: "192.0.2.x"} if inner else "192.0.2.x"})


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in EXPORTED if name not in ("type", "interval", "meta", "values", "meta.src_ip", "meta.dst_ip")),
        *("meta.id", "stitched_flows", "@timestamp", "@ingest_time"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"note": "x"}])
def test_fields_of_the_field_table_and_of_earlier_stages_pass_as_they_are(name: str, more: dict[str, str]) -> None:
    top, _, inner = name.partition(".")
    given = {top: {inner: f"by {SRC}"} if inner else f"by {SRC}"} | more
    assert run(flow(**given)) == flow(**given)


def test_addresses_of_the_flow_itself_are_left_for_70() -> None:
    assert run(flow(note=SRC))["meta"]["src_ip"] == SRC


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        pytest.param("meta.exporter_ip", ["meta"], id="a field of meta"),
        pytest.param("exporter_ip", ["top"], id="a field of the flow"),
        pytest.param("values.exporter_ip", ["values"], id="a field of values"),
    ],
)
def test_a_setting_names_exceptions(name: str, kept: list[str]) -> None:
    got = run(flow(exporter_ip=SRC, meta={"exporter_ip": SRC}, values={"exporter_ip": SRC}), keep=[name])
    found = {"top": got["exporter_ip"], "meta": got["meta"]["exporter_ip"], "values": got["values"]["exporter_ip"]}
    assert found == {place: SRC if place in kept else "192.0.2.x" for place in found}


@pytest.mark.parametrize(
    ("src", "text", "expected"),
    [
        pytest.param("host.example.org", "at host.example.org", "at INVALID IP", id="an end that is no address is masked as 70 does it"),
        pytest.param("fe80::1%eth0", "at fe80::1%eth0", "at INVALID IP", id="an address with a zone"),
        pytest.param("abc", "abcdef", "abcdef", id="but not one so short that it means nothing"),
        pytest.param("", "text", "text", id="an empty one least of all"),
        pytest.param("Unknown", "Unknown", "Unknown", id="nor a word"),
        pytest.param("laptop.local", "at laptop.local", "at INVALID IP", id="a name of a host that holds no digit"),
        pytest.param("laptop7", "at laptop7", "at INVALID IP", id="a word with a digit"),
        pytest.param("::ffff:203.0.113.9", "at 203.0.113.9", "at 203.0.113.x", id="a mapped end, in IPv4"),
        pytest.param("::ffff:203.0.113.9", "at 203.0.113.9:80", "at 203.0.113.x:80", id="a mapped end, in IPv4, with a port"),
        pytest.param("2001:DB8::", "to 2001:db8:0::", "to 2001:db8:0:0:x:x:x:x", id="an end with nothing but zeros behind"),
        pytest.param("203.0.113.45", "at 203.0.113.45", "at 203.0.113.x", id="an end that begins with the other one"),
    ],
)
def test_ends(src: str, text: str, expected: str) -> None:
    assert masked(text, src=src, dst="203.0.113.4") == expected
    assert masked(text, src="203.0.113.4", dst=src) == expected


@pytest.mark.parametrize("text", ["1." * 90 + "1 ", "1:" * 90 + "1 "])
@pytest.mark.parametrize("src", ["1::1:1", "1." * 127])
def test_a_long_text_is_soon_masked(text: str, src: str) -> None:
    before = time.monotonic()
    masked(text * (800_000 // len(text)), src=src)
    assert time.monotonic() - before < 15


def test_many_texts_are_soon_masked_where_ends_hold_many_addresses() -> None:
    before = time.monotonic()
    ends = [".".join(str((number * step) % 256) for number in range(100))[:255] for step in (7, 11)]
    assert masked(["1.2 "] * 200_000, *ends) == ["1.2 "] * 200_000
    assert time.monotonic() - before < 20


@given(st.ip_addresses(), st.sampled_from(["", "from ", "(", "x=", "[", "a,"]), st.sampled_from(["", " to", ")", "]:80", ",b", "/32", "."]))
def test_no_notation_of_an_end_is_left(address: ipaddress.IPv4Address | ipaddress.IPv6Address, before: str, after: str) -> None:
    own = str(address)
    notations = {own, address.exploded, address.exploded.upper()}
    for text in notations:
        got = masked(f"{before}{text}{after}", src=own)
        assert not any(each in got for each in notations if len(each) > 4)
