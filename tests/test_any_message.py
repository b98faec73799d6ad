"""No message stops the loop: what is in it comes out or is refused with a reason."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline.chain import Chain
from netsage_pipeline.deadletters import DECODE, body_of
from netsage_pipeline.flow import Flow, Now
from tests.flows import NOW, flow
from tests.invariants import Body, any_flow, body, chain_of, demo_tables, examples, shipped, through


def checked(chain: Chain, given: Body) -> list[Flow]:
    """Takes a message, and sees that each flow in it came out, was dropped or was refused with a reason."""
    flows = chain.enrich(chain.take(given, "test", "1")) + chain.enrich(chain.drain())
    parts = sum(max(1, each["stitched_flows"]) for each in flows)
    unread = chain.refused[DECODE, "not JSON"]
    assert chain.read + unread == chain.dropped.total() + chain.refused.total() + parts
    assert len(chain.dead) == chain.refused.total()
    for letter in map(orjson.loads, chain.dead):
        assert letter["reason"]
    try:
        value = orjson.loads(given)
    except orjson.JSONDecodeError:
        assert chain.read or unread or loosely_decoded(given) == []
    else:
        assert chain.read == (len(value) if isinstance(value, list) else 1)
    return flows


def loosely_decoded(given: Body) -> Any:
    """A message as Python's own decoder reads it; None if it cannot."""
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return None


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(alphabet=st.characters(), max_size=5)
    | st.sampled_from(["\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["", "@x", "meta", "values", "start", "end", "type", "base64"]) | st.text(max_size=3), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@given(json_values, st.sampled_from(("utf-8", "utf-8-sig", "utf-16", "utf-32-be")), st.booleans())
@examples(250)
def test_any_json_value_is_taken(value: Any, encoding: str, escaped: bool) -> None:
    checked(chain_of(), json.dumps(value, ensure_ascii=escaped).encode(encoding, "surrogatepass"))


@given(st.lists(json_values | any_flow(), max_size=4))
@examples(150)
def test_any_array_is_taken(values: list[Any]) -> None:
    checked(chain_of(), body(values))


@given(st.binary(max_size=40) | st.tuples(st.binary(max_size=3), st.integers(0, 400), st.binary(max_size=3)).map(lambda t: _damaged(*t)))
@examples(200)
def test_any_bytes_are_taken(given: Body) -> None:
    checked(chain_of(), given)


def _damaged(before: bytes, place: int, inside: bytes) -> Body:
    good = body(flow())
    return before + good[:place] + inside + good[place:]


FLOW = body(flow())


def put(text: bytes) -> Body:
    """A good flow with a member of its own in front, as JSON text."""
    return b"{" + text + b"," + FLOW[1:]


def nested(depth: int, opened: bytes = b"[", closed: bytes = b"]", leaf: bytes = b"1") -> bytes:
    return opened * depth + leaf + closed * depth


OUT, REFUSED = True, False


@pytest.mark.parametrize(
    ("given", "comes_out"),
    [
        pytest.param(put(b'"x":NaN'), REFUSED, id="a NaN"),
        pytest.param(put(b'"x":-Infinity'), REFUSED, id="an infinity"),
        pytest.param(put(b'"x":"\\ud800"'), REFUSED, id="a lone surrogate"),
        pytest.param(put(b'"\\ud800":1'), REFUSED, id="a lone surrogate as a key"),
        pytest.param(put(b'"x":%d' % 2**70), OUT, id="an integer beyond 64 bits in a field that nobody knows"),
        pytest.param(put(b'"x":' + b"9" * 5_000), REFUSED, id="an integer of 5,000 digits"),
        pytest.param(put(b'"x":1e999'), REFUSED, id="a number beyond all floats"),
        pytest.param(put(b'"x":' + nested(200)), OUT, id="arrays in arrays, 200 deep"),
        pytest.param(put(b'"x":' + nested(500)), REFUSED, id="arrays in arrays, 500 deep"),
        pytest.param(put(b'"x":' + nested(1_000)), REFUSED, id="arrays in arrays, 1,000 deep"),
        pytest.param(put(b'"x":' + nested(1_100)), REFUSED, id="arrays in arrays, 1,100 deep"),
        pytest.param(put(b'"x":' + nested(100_000)), REFUSED, id="arrays in arrays, 100,000 deep"),
        pytest.param(put(b'"x":' + nested(500, b'{"a":', b"}")), REFUSED, id="objects in objects, 500 deep"),
        pytest.param(put(b'"x":' + nested(500, leaf=b"NaN")), REFUSED, id="a NaN 500 deep"),
        pytest.param(put(b'"x":' + nested(900, leaf=b"NaN")), REFUSED, id="a NaN 900 deep"),
        pytest.param(put(b'"x":' + nested(500, b'{"a":', b"}", b'"\\ud800"')), REFUSED, id="a lone surrogate 500 deep"),
        pytest.param(nested(500), REFUSED, id="nothing but arrays, 500 deep"),
        pytest.param(nested(100_000), REFUSED, id="nothing but arrays, 100,000 deep"),
        pytest.param(b"[" * 100_000, REFUSED, id="arrays that do not end"),
        pytest.param(b"", REFUSED, id="nothing"),
        pytest.param(b" \n", REFUSED, id="blanks"),
        pytest.param(b"null", REFUSED, id="null"),
        pytest.param(b"{}", REFUSED, id="an empty object"),
        pytest.param(b"[[]]", REFUSED, id="an array in an array"),
        pytest.param(b"[%s]" % FLOW, OUT, id="an array of one flow"),
        pytest.param(b"[[%s]]" % FLOW, REFUSED, id="an array of an array of one flow"),
        pytest.param(b"\xef\xbb\xbf" + FLOW, OUT, id="a byte order mark"),
        pytest.param(FLOW.decode().encode("utf-16"), OUT, id="UTF-16"),
        pytest.param(put(b'"x":"\xff"'), REFUSED, id="bytes that are not UTF-8"),
        pytest.param(put(b'"start":"abc"'), OUT, id="a key twice: the last one counts"),
        pytest.param(put(b'"":{"":[]}'), OUT, id="an empty key"),
        pytest.param(put(b'"@x":1'), OUT, id="a key with @"),
        pytest.param(FLOW[:-1], REFUSED, id="a flow cut off"),
        pytest.param(FLOW + FLOW, REFUSED, id="two flows in one line"),
        pytest.param(b'{"base64":"AAAA"}', REFUSED, id="a flow that looks like the payload of a dead letter"),
        pytest.param(b'{"base64":5}', REFUSED, id="a flow that looks like a broken payload of a dead letter"),
    ],
)
def test_odd_messages(given: Body, comes_out: bool) -> None:
    chain = chain_of()
    flows = checked(chain, given)
    assert (len(flows), chain.refused.total()) == ((1, 0) if comes_out else (0, 1))
    again = chain_of()
    for letter in map(orjson.loads, chain.dead):
        if isinstance(letter["payload"], list):
            return  # An array in an array enters as a message of its own.
        again.enrich(again.enter(letter))
    assert chain.refused.keys() == again.refused.keys()  # As it came: refused again, for the same reason.


def test_an_empty_array_holds_no_flow() -> None:
    chain = chain_of()
    assert checked(chain, b"[]") == []
    assert (chain.read, chain.dead) == (0, [])


LONG = b"-" + b"9" * 5_000  # Python makes no integer of more than 4,300 digits.


@pytest.mark.parametrize("odd", [b"NaN", b'"\\udc00"', nested(500), b"1e999", b"[[]]", nested(300, leaf=b"NaN"), LONG, LONG[1:]])
def test_one_odd_flow_in_an_array_costs_only_itself(odd: bytes) -> None:
    chain = chain_of()
    good = [body(flow(meta={"src_port": port})) for port in (1, 2)]
    flows = checked(chain, b"[" + b",".join([good[0], put(b'"x":' + odd), good[1]]) + b"]")
    out = 3 if odd == b"[[]]" else 2
    assert (chain.read, len(flows), chain.refused.total()) == (3, out, 3 - out)
    assert [orjson.loads(letter)["position"] for letter in chain.dead] == ["1.1"][: 3 - out]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (b"NaN", "NaN or infinity"),
        (b"1e999", "NaN or infinity"),
        (b'"\\udc00"', "lone surrogate in a text"),
        (b"9" * 400, "integer beyond 64 bits"),
        (LONG, "integer beyond 64 bits"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_an_odd_flow_is_kept_as_it_came(odd: bytes, reason: str, encoding: str) -> None:
    text = b'{ "y":1e400, "y":\t%s}' % odd
    alone, among = chain_of(), chain_of()
    checked(alone, text.decode().encode(encoding))
    message = (b"\n[ %s ,%s\t,[],1] " % (body(flow()), text)).decode().encode(encoding)
    assert len(checked(among, message)) == 1
    for chain, position in ((alone, "1"), (among, "1.1")):
        letter = orjson.loads(chain.dead[0])
        assert (letter["stage"], letter["reason"], letter["position"]) == (DECODE, reason, position)
        assert body_of(letter["payload"]) == text
    one_by_one = chain_of()
    for number, value in enumerate(one_by_one.values_of(message) or []):
        one_by_one.take_one(value, "test", f"1.{number}")
    assert (one_by_one.read, one_by_one.dead) == (4, among.dead)


def test_parts_of_next_to_no_duration_do_not_stop_the_loop() -> None:
    """The rate of a stitched flow can be beyond all floats."""
    chain = Chain(shipped(), demo_tables(), Now(NOW, judges=False))
    part = body(flow(start=0.0, end=1e-320))
    for _ in range(2):
        assert chain.take(part, "test", "1") == []
    flows = chain.enrich(chain.drain())
    assert len(flows) + len(chain.dead) == 1


@given(st.lists(any_flow(), min_size=1, max_size=4))
@examples(100)
def test_what_comes_out_can_be_written(flows: list[Flow]) -> None:
    for each in through(chain_of(), [body(each) for each in flows]):
        orjson.dumps(each)
        assert all(abs(each["values"][name]) < 2**63 for name in ("num_bits", "num_packets") if name in each["values"])
