"""10 preliminaries: types, refusals and drops."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsage_pipeline.flow import Flow, Now, Refused
from tests.conftest import load_stage
from tests.flows import MISSING, NOW, flow, nothing

preliminaries = load_stage("10_preliminaries")

YEAR = 365 * 86_400
SIDES = ("src", "dst")
NUMBERS = ("start", "end", "values.duration", "values.bits_per_second", "values.packets_per_second")
INTEGERS = (
    "values.num_bits",
    "values.num_packets",
    *(f"meta.{side}_{name}" for side in SIDES for name in ("port", "asn", "ifindex")),
)


def run(given: Flow, *, judges: bool = True, **settings: Any) -> Any:
    return preliminaries.stage(preliminaries.Config(**settings), nothing, Now(NOW, judges=judges))(given)


def having(field: str, value: Any) -> Flow:
    """A flow with another value in one field, named by its path."""
    top, _, name = field.partition(".")
    return flow(**{top: {name: value} if name else value})


def at(field: str, made: Any) -> Any:
    for name in field.split("."):
        made = made.get(name, MISSING)
    return made


def refusal(given: Flow, **settings: Any) -> str:
    with pytest.raises(Refused) as refused:
        run(given, **settings)
    return str(refused.value)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("absent", [pytest.param(MISSING, id="missing"), pytest.param(None, id="null")])
def test_an_absent_address_becomes_0_0_0_0(side: str, absent: Any) -> None:
    assert run(having(f"meta.{side}_ip", absent))["meta"][f"{side}_ip"] == "0.0.0.0"


@pytest.mark.parametrize("absent", [pytest.param(MISSING, id="missing"), pytest.param(None, id="null")])
def test_an_absent_duration_becomes_zero(absent: Any) -> None:
    duration = run(having("values.duration", absent))["values"]["duration"]
    assert (duration, type(duration)) == (0.0, float)


@pytest.mark.parametrize("absent", [pytest.param(MISSING, id="missing"), pytest.param(None, id="null")])
@pytest.mark.parametrize(
    "field",
    [
        *INTEGERS,
        "values.bits_per_second",
        "values.packets_per_second",
        *(f"meta.{name}" for name in ("sensor_id", "protocol", "flow_type", "instance_id")),
    ],
)
def test_null_is_the_same_as_missing(field: str, absent: Any) -> None:
    assert at(field, run(having(field, absent))) is MISSING


@pytest.mark.parametrize("absent", [pytest.param(MISSING, id="missing"), pytest.param(None, id="null")])
def test_a_flow_without_meta_and_values_gets_empty_ones(absent: Any) -> None:
    made = run({name: value for name, value in (flow() | {"meta": absent, "values": absent}).items() if value is not MISSING})
    assert made["meta"] == {"src_ip": "0.0.0.0", "dst_ip": "0.0.0.0"}
    assert made["values"] == {"duration": 0.0}


@pytest.mark.parametrize(
    ("ip", "dropped"),
    [
        pytest.param("10.0.0.0", True, id="first of 10/8"),
        pytest.param("10.255.255.255", True, id="last of 10/8"),
        pytest.param("9.255.255.255", False, id="before 10/8"),
        pytest.param("11.0.0.0", False, id="behind 10/8"),
        pytest.param("100.64.0.0", True, id="first of 100.64/10"),
        pytest.param("100.127.255.255", True, id="last of 100.64/10"),
        pytest.param("100.63.255.255", False, id="before 100.64/10"),
        pytest.param("100.128.0.0", False, id="behind 100.64/10"),
        pytest.param("192.168.0.0", True, id="first of 192.168/16"),
        pytest.param("192.168.255.255", True, id="last of 192.168/16"),
        pytest.param("192.167.255.255", False, id="before 192.168/16"),
        pytest.param("192.169.0.0", False, id="behind 192.168/16"),
        pytest.param("172.16.0.0", True, id="first of 172.16/12"),
        pytest.param("172.31.255.255", True, id="last of 172.16/12"),
        pytest.param("172.15.255.255", False, id="before 172.16/12"),
        pytest.param("172.32.0.0", False, id="behind 172.16/12"),
        pytest.param("169.254.0.0", True, id="first of 169.254/16"),
        pytest.param("169.254.255.255", True, id="last of 169.254/16"),
        pytest.param("169.253.255.255", False, id="before 169.254/16"),
        pytest.param("169.255.0.0", False, id="behind 169.254/16"),
        pytest.param("fc00::", True, id="first of fc00::/7"),
        pytest.param("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True, id="last of fc00::/7"),
        pytest.param("fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", False, id="before fc00::/7"),
        pytest.param("fe00::", False, id="behind fc00::/7"),
        pytest.param("fe80::", True, id="first of fe80::/10"),
        pytest.param("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", True, id="last of fe80::/10"),
        pytest.param("fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", False, id="before fe80::/10"),
        pytest.param("fec0::", False, id="behind fe80::/10"),
        pytest.param("::1", True, id="IPv6 loopback"),
        pytest.param("::", False, id="before IPv6 loopback"),
        pytest.param("::2", False, id="behind IPv6 loopback"),
        pytest.param("::ffff:10.1.2.3", True, id="better: a mapped address is private when its IPv4 address is"),
        pytest.param("0:0:0:0:0:FFFF:0A01:0203", True, id="a mapped address in hexadecimal"),
        pytest.param("::ffff:128.101.1.1", False, id="a mapped public address"),
        pytest.param("127.0.0.1", False, id="IPv4 loopback is not in the list"),
        pytest.param("0.0.0.0", False, id="0.0.0.0, which stands for a missing address"),
        pytest.param("no address", False, id="a text that is no address passes"),
        pytest.param("", False, id="an empty text passes"),
        pytest.param("10.0.0.1%eth0", False, id="an address with a zone is none"),
    ],
)
@pytest.mark.parametrize("side", SIDES)
def test_a_flow_with_an_end_in_a_private_network_is_dropped(side: str, ip: str, dropped: bool) -> None:
    got = run(having(f"meta.{side}_ip", ip))
    assert got == "private address" if dropped else got["meta"][f"{side}_ip"] == ip


def test_texts_that_are_too_long_for_an_address_are_not_kept() -> None:
    process = preliminaries.stage(preliminaries.Config(), nothing, Now(NOW))
    tracemalloc.start()
    try:
        for number in range(5_000):
            process(having("meta.src_ip", f"{number}{'x' * 200}"))
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


def test_the_list_of_private_networks_is_configurable() -> None:
    assert run(flow(meta={"src_ip": "10.0.0.1"}), private_networks=["192.0.2.0/24"])["meta"]["src_ip"] == "10.0.0.1"
    assert run(flow(), private_networks=["192.0.2.0/24"]) == "private address"


def test_a_private_network_that_is_no_prefix_is_refused_in_the_settings() -> None:
    with pytest.raises(ValueError, match="300"):
        preliminaries.Config(private_networks=["10.0.0.0/8", "300.0.0.0/8"])


def test_ingest_time_is_now() -> None:
    assert run(flow())["@ingest_time"] == "2023-11-14T22:13:20.000Z"


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(1699999950, 1699999950.0, id="integer"),
        pytest.param(1699999950.5, 1699999950.5, id="float"),
        pytest.param("1699999950.5", 1699999950.5, id="text"),
        pytest.param(" 1699999950 ", 1699999950.0, id="text with blanks"),
        pytest.param("1.69999995E+9", 1699999950.0, id="text with an exponent"),
    ],
)
def test_numbers_become_floats(field: str, given: Any, expected: float) -> None:
    values = {"start": given, "end": given} if field in ("start", "end") else {}
    got = at(field, run(having(field, given) | values))
    assert (got, type(got)) == (expected, float)


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(99, 99, id="integer"),
        pytest.param("99", 99, id="text"),
        pytest.param(" 99 ", 99, id="text with blanks"),
        pytest.param(99.9, 99, id="a fraction is cut"),
        pytest.param("99.9", 99, id="a fraction in a text is cut"),
        pytest.param("1e3", 1000, id="text with an exponent"),
        pytest.param(0, 0, id="zero"),
        pytest.param((1 << 63) - 1, (1 << 63) - 1, id="the largest of 64 bits"),
        pytest.param("9223372036854775807", (1 << 63) - 1, id="the largest of 64 bits, exactly, in a text"),
    ],
)
def test_integers_are_made(field: str, given: Any, expected: int) -> None:
    got = at(field, run(having(field, given)))
    assert (got, type(got)) == (expected, int)


@pytest.mark.parametrize("begin", ["", "0.", "1e"])
@pytest.mark.parametrize("repeated", ["1", " ", ".", "-", "1.", " 1", "1e", "٣"])
@pytest.mark.parametrize("end", ["", "x", " x"])
@pytest.mark.parametrize("field", ["start", "values.num_bits"])
def test_a_text_of_a_megabyte_is_soon_read(field: str, begin: str, repeated: str, end: str) -> None:
    given = having(field, begin + repeated * (1_000_000 // len(repeated)) + end)
    before = time.monotonic()
    with contextlib.suppress(Refused):
        run(given, judges=False)
    assert time.monotonic() - before < 5


def test_an_asn_may_be_negative() -> None:
    assert run(having("meta.src_asn", "-1"))["meta"]["src_asn"] == -1
    assert run(having("meta.src_asn", "-9223372036854775808"))["meta"]["src_asn"] == -(1 << 63)


@pytest.mark.parametrize("field", [*NUMBERS, *INTEGERS])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        pytest.param("1,234", "not a number", id="a text with a comma"),
        pytest.param("abc", "not a number", id="a text"),
        pytest.param("", "not a number", id="an empty text"),
        pytest.param(" ", "not a number", id="a blank"),
        pytest.param("1_000", "not a number", id="a text with an underscore"),
        pytest.param("0x10", "not a number", id="a hexadecimal text"),
        pytest.param("12abc", "not a number", id="a text that begins with a number"),
        pytest.param("a12", "not a number", id="a text that ends with a number"),
        pytest.param("١٢", "not a number", id="digits of another script"),
        pytest.param("nan", "not a number", id="NaN in a text"),
        pytest.param("inf", "not a number", id="infinity in a text"),
        pytest.param("1e999", "not finite", id="a text beyond all floats"),
        pytest.param(True, "not a number", id="true"),
        pytest.param(False, "not a number", id="false"),
        pytest.param([1], "not a number", id="a list"),
        pytest.param({"a": 1}, "not a number", id="an object"),
    ],
)
def test_what_is_no_number_is_refused(field: str, given: Any, reason: str) -> None:
    assert refusal(having(field, given)) == f"{field}: {reason}"


@pytest.mark.parametrize("field", INTEGERS)
@pytest.mark.parametrize(
    "given",
    [
        pytest.param(1 << 63, id="integer"),
        pytest.param("-9223372036854775809", id="negative text"),
        pytest.param(float(1 << 70), id="float, as a decoder gives it"),
        pytest.param("9223372036854775808", id="text"),
        pytest.param("1e30", id="text with an exponent"),
        pytest.param("9" * 5000, id="a text of 5,000 digits"),
    ],
)
def test_an_integer_beyond_64_bits_is_refused(field: str, given: Any) -> None:
    assert refusal(having(field, given)) == f"{field}: beyond 64 bits"


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("given", [1 << 63, -(1 << 63) - 1, 10**400])
def test_an_integer_beyond_64_bits_is_refused_where_a_number_is_wanted_too(field: str, given: int) -> None:
    assert refusal(having(field, given)) == f"{field}: beyond 64 bits"


@pytest.mark.parametrize("field", ["start", "end"])
@pytest.mark.parametrize("absent", [pytest.param(MISSING, id="missing"), pytest.param(None, id="null")])
def test_a_flow_without_start_or_end_is_refused(field: str, absent: Any) -> None:
    assert refusal(having(field, absent)) == f"{field}: missing"


@pytest.mark.parametrize("field", ["start", "end", "values.num_bits", "values.num_packets"])
@pytest.mark.parametrize("given", [pytest.param(-1, id="integer"), pytest.param(-1.5, id="float"), pytest.param("-1", id="text")])
def test_a_negative_time_or_sum_is_refused(field: str, given: Any) -> None:
    assert refusal(having(field, given)) == f"{field}: negative"


@pytest.mark.parametrize("field", ["meta.sensor_id", "meta.protocol"])
@pytest.mark.parametrize("given", [True, [], {}, ["tcp"]])
def test_a_name_that_is_neither_text_nor_number_is_refused(field: str, given: Any) -> None:
    assert refusal(having(field, given)) == f"{field}: neither text nor number"


@pytest.mark.parametrize("field", ["meta.sensor_id", "meta.protocol"])
@pytest.mark.parametrize("given", ["", "tcp", 6, 1.5])
def test_a_name_may_be_a_text_or_a_number(field: str, given: Any) -> None:
    assert at(field, run(having(field, given))) == given


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("given", [7, 1.5, True, [], {}, ["192.0.2.1"]])
def test_an_address_that_is_no_text_is_refused(side: str, given: Any) -> None:
    assert refusal(having(f"meta.{side}_ip", given)) == f"meta.{side}_ip: not a text"


@pytest.mark.parametrize("side", SIDES)
def test_a_text_in_place_of_an_address_has_at_most_255_characters(side: str) -> None:
    assert run(having(f"meta.{side}_ip", "é" * 255))["meta"][f"{side}_ip"] == "é" * 255
    assert refusal(having(f"meta.{side}_ip", "1" * 256)) == f"meta.{side}_ip: longer than 255 characters"


@pytest.mark.parametrize("field", ["meta", "values"])
@pytest.mark.parametrize("given", ["text", 1, True, []])
def test_meta_and_values_that_are_no_objects_are_refused(field: str, given: Any) -> None:
    assert refusal(flow(**{field: given})) == f"{field}: not an object"


def test_a_private_flow_is_dropped_before_its_numbers_are_looked_at() -> None:
    assert run(flow(start="abc", meta={"src_ip": "10.0.0.1", "src_port": "abc"}, values={"num_bits": -1})) == "private address"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        pytest.param(9_999_999_999, 9_999_999_999, (9_999_999_999.0, 9_999_999_999.0), id="9,999,999,999 is in seconds"),
        pytest.param(10_000_000_000, 10_000_000_000, (10_000_000.0, 10_000_000.0), id="above it is in ms"),
        pytest.param(1699999899123, 1699999899999, (1699999899.123, 1699999899.999), id="both in ms"),
        pytest.param(1699999899123, 1699999900, (1699999899.123, 1699999900.0), id="start in ms"),
        pytest.param(1699999899, "1699999899123", (1699999899.0, 1699999899.123), id="end in ms, in a text"),
    ],
)
def test_times_in_ms_are_divided(start: Any, end: Any, expected: tuple[float, float]) -> None:
    got = run(flow(start=start, end=end), judges=False)
    assert (got["start"], got["end"]) == expected


@pytest.mark.parametrize(
    ("start", "end", "dropped"),
    [
        pytest.param(NOW + 10, NOW + 10, "", id="10 s ahead is kept"),
        pytest.param(NOW, NOW + 10.001, "in the future", id="an end more than 10 s ahead"),
        pytest.param(NOW + 10.001, NOW, "in the future", id="a start more than 10 s ahead, before end before start"),
        pytest.param(NOW - YEAR, NOW - YEAR, "", id="365 days old is kept"),
        pytest.param(NOW - YEAR - 0.001, NOW, "too old", id="a start more than 365 days old"),
        pytest.param(NOW, NOW - YEAR - 0.001, "too old", id="an end more than 365 days old"),
        pytest.param(NOW - 1, NOW - 1.001, "end before start", id="an end before the start"),
        pytest.param(NOW - 1, NOW - 1, "", id="an end at the start is kept"),
        pytest.param((NOW + 11) * 1000, (NOW + 11) * 1000, "in the future", id="ms are made seconds first"),
        pytest.param(0, 0, "too old", id="1970"),
    ],
)
def test_impossible_times_are_dropped(start: float, end: float, dropped: str) -> None:
    got = run(flow(start=start, end=end))
    assert got == dropped if dropped else got["start"] == start


@pytest.mark.parametrize(
    ("start", "end", "dropped"),
    [
        pytest.param(NOW + 60, NOW + 60, "", id="at the configured limit ahead"),
        pytest.param(NOW, NOW + 60.001, "in the future", id="beyond the configured limit ahead"),
        pytest.param(NOW - 3600, NOW, "", id="at the configured age"),
        pytest.param(NOW - 3600.001, NOW, "too old", id="beyond the configured age"),
    ],
)
def test_both_limits_are_configurable(start: float, end: float, dropped: str) -> None:
    got = run(flow(start=start, end=end), future_s=60, past_s=3600)
    assert got == dropped if dropped else got["start"] == start


@pytest.mark.parametrize("setting", ["future_s", "past_s", "short_duration_s"])
def test_a_limit_may_be_zero_and_not_negative(setting: str) -> None:
    assert getattr(preliminaries.Config(**{setting: 0}), setting) == 0
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        preliminaries.Config(**{setting: -0.001})


@pytest.mark.parametrize("ago", [pytest.param(-4e9, id="far ahead"), pytest.param(1.6e9, id="50 years old")])
def test_without_a_now_flows_are_not_compared_with_it(ago: float) -> None:
    assert run(flow(start=NOW - ago, end=NOW - ago), judges=False)["end"] == NOW - ago


def test_without_a_now_end_before_start_drops_too() -> None:
    assert run(flow(start=5.0, end=4.0), judges=False) == "end before start"


def test_a_time_that_iso_8601_cannot_write_is_refused() -> None:
    assert run(flow(end=253402300799000), judges=False)["end"] == 253402300799.0
    assert refusal(flow(end=253402300800000), judges=False) == "end: after the year 9999"


RATES = ("duration", "bits_per_second", "packets_per_second")


@pytest.mark.parametrize(
    ("settings", "duration", "expected"),
    [
        pytest.param({}, 0.0, (0.0, 800.0, 1.0), id="off by default"),
        pytest.param({"short_duration_s": 0.5}, 0.5, (0.0, 0.0, 0.0), id="at the threshold all three become 0"),
        pytest.param({"short_duration_s": 0.5}, "0.1", (0.0, 0.0, 0.0), id="below it"),
        pytest.param({"short_duration_s": 0.5}, 0.501, (0.501, 800.0, 1.0), id="above it nothing changes"),
        pytest.param({"short_duration_s": 0}, 0.0, (0.0, 0.0, 0.0), id="a threshold of 0 is one"),
        pytest.param({"short_duration_s": 0}, None, (0.0, 0.0, 0.0), id="a missing duration is 0"),
    ],
)
def test_short_durations_become_zero_where_that_is_on(settings: dict[str, Any], duration: Any, expected: tuple[float, ...]) -> None:
    got = run(having("values.duration", duration), **settings)["values"]
    assert tuple(got[name] for name in RATES) == expected


def test_what_the_stage_does_not_know_stays_as_it_is() -> None:
    given = flow(site={"a": [1]}, meta={"extra": "x"}, values={"tcp_rtt_avg": "12"})
    assert run(given) | {"@ingest_time": 0} == given | {"@ingest_time": 0}
    assert (given["site"], given["meta"]["extra"], given["values"]["tcp_rtt_avg"]) == ({"a": [1]}, "x", "12")


#: Any JSON value, and texts that nearly are numbers or addresses. What no strict JSON can hold is refused when it is decoded.
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(min_value=10**300, max_value=10**400),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
        st.sampled_from(["10.0.0.1", "192.0.2.1", "2001:db8::1", "1e999", "9" * 400, "-0", "1.", ".5", "1" * 30]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
FIELDS = (*NUMBERS, *INTEGERS, "meta", "values", "meta.src_ip", "meta.dst_ip", "meta.sensor_id", "meta.protocol", "meta.flow_type")


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), st.booleans())
def test_any_json_value_in_any_field_is_typed_dropped_or_refused(changes: dict[str, Any], judges: bool) -> None:
    given = flow()
    for field, value in changes.items():
        top, _, name = field.partition(".")
        if not name:
            given[top] = value
        elif isinstance(given[top], dict):
            given[top][name] = value
    try:
        got = run(given, judges=judges, short_duration_s=1)
    except Refused:
        return
    if isinstance(got, str):
        assert got in ("private address", "in the future", "too old", "end before start")
        return
    assert 0 <= got["start"] <= got["end"]
    assert all(type(at(field, got)) in (float, object) for field in NUMBERS)
    assert all(type(at(field, got)) in (int, object) for field in INTEGERS)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"meta": {"src_ip": "10.0.0.1"}, "values": "x"}, id="values that are no object"),
        pytest.param({"meta": {"src_ip": "10.0.0.1", "dst_ip": 5}}, id="an address that is no text at the other end"),
        pytest.param({"meta": {"src_ip": 5, "dst_ip": "10.0.0.1"}}, id="an address that is no text at this end"),
        pytest.param({"meta": {"src_ip": "x" * 256, "dst_ip": "10.0.0.1"}}, id="a text that is too long at this end"),
    ],
)
def test_drops_of_private_addresses_come_first(given: dict[str, Any]) -> None:
    assert preliminaries.stage(preliminaries.Config(), nothing, Now(judges=False))(given) == "private address"


@pytest.mark.parametrize("number", [-0.5, "-0.2", "-0.0000001"])
@pytest.mark.parametrize("name", ["num_bits", "num_packets"])
def test_a_negative_fraction_is_negative(name: str, number: float | str) -> None:
    process = preliminaries.stage(preliminaries.Config(), nothing, Now(judges=False))
    with pytest.raises(Refused, match=rf"values\.{name}: negative"):
        process(flow(values={name: number}))
