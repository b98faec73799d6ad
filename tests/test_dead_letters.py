"""Dead letters: what stands in an envelope, and that what enters again comes out as if nothing had been refused."""

from __future__ import annotations

import base64
import json
import resource
import signal
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.deadletters import DECODE, append, body_of, envelope, is_envelope
from netsage_pipeline.flow import Flow, Now
from netsage_pipeline.tables.tables import Tables
from tests.conftest import CONFORMANCE
from tests.flows import MISSING, NOW, flow

#: An operator's stage that refuses what its setting says: of an end stage src, dst or both ends, of a flow stage all flows.
MINE = '''"""mine: refuses.

Reads   {reads}
Writes  {writes}
Source  nothing
Drops   nothing
"""

from netsage_pipeline.config import Settings


class Config(Settings):
    fail: str = ""


def {kind}(config, lookups):
    def process(given):
        if "side" in given:
            given["mark"] = "here"  # Of an end that it refuses, or whose other end it refuses, nothing is kept.
        if config.fail == "all" or config.fail == given.get("side"):
            raise ValueError(str(given))
        return given

    return process
'''

FLOW_STAGES = ["05_mine", "12_mine", "25_mine", "43_mine", "92_mine", "97_mine"]
END_STAGES = ["44_mine", "47_mine", "52_mine", "57_mine", "65_mine", "75_mine", "82_mine", "89_mine"]

#: Ours that are off, and those that can say more, with all they can say.
SETTINGS = {
    "41_ip_version": "enabled = true\n",
    "42_communities": "enabled = true\n",
    "70_deidentify": "keep_private = true\n",
    "80_privatize_org": "keep_private = true\n",
}


@cache
def lookups() -> Tables:
    return Tables(folders.demo() / "tables")


@cache
def given_flows() -> list[bytes]:
    """The flows of two conformance sets, some with ends that are no addresses."""
    lines = [
        line for name in ("01-stages-tstat", "02-stages-netflow") for line in (CONFORMANCE / f"{name}.in.ndjson").read_bytes().splitlines()
    ]
    odd = [
        flow(meta={"dst_ip": "nowhere", "src_asn": 7575, "src_ip": "203.0.113.9"}),
        flow(meta={"dst_ip": "224.0.0.1"}),
        flow(tags=["a"], note="b"),
    ]
    return lines + [orjson.dumps(each) for each in odd]


Maker = Callable[..., Chain]


@pytest.fixture(scope="session")
def chain_with(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Chains with an operator's stage that fails or not, whole or up to that stage; `between`: with a flow stage of theirs at 72 too."""

    def make(name: str, kind: str, fail: str, *, until: bool = False, between: bool = False) -> Chain:
        directory = tmp_path_factory.mktemp("operator")
        conf = directory / "conf.d"
        conf.mkdir()
        for file in folders.shipped("conf.d").glob("*.toml"):
            if not until or file.stem < name:
                shipped = file.read_text().replace("enabled = false\n", "")
                (conf / file.name).write_text(SETTINGS.get(file.stem, "") + shipped)
        reads, writes = ("side, ip", "mark  text") if kind == "end" else ("meta", "nothing")
        (directory / f"{name}.py").write_text(MINE.format(kind=kind, reads=reads, writes=writes))
        if not until:
            (conf / f"{name}.toml").write_text(f'fail = "{fail}"\n')
        if between and not (until and name < "72"):
            (directory / "72_between.py").write_text(MINE.format(kind="stage", reads="meta", writes="nothing"))
            (conf / "72_between.toml").touch()
        return Chain(_configured(conf, directory), lookups(), Now(NOW))

    return make


def _configured(conf: Path, directory: Path) -> list[Configured]:
    return configured(conf, [folders.shipped("stages"), directory])


def through(chain: Chain, bodies: list[bytes]) -> list[Flow]:
    flows = [done for number, each in enumerate(bodies) for done in chain.enrich(chain.take(each, "test", str(number)))]
    return flows + chain.enrich(chain.drain())


def letters_of(chain: Chain) -> list[dict[str, Any]]:
    letters, chain.dead = chain.dead, []
    return [orjson.loads(letter) for letter in letters]


def entered(chain: Chain, letters: list[dict[str, Any]]) -> list[Flow]:
    flows = [done for letter in letters for done in chain.enrich(chain.enter(letter))]
    return flows + chain.enrich(chain.drain())


def as_texts(flows: list[Any]) -> Counter[str]:
    """The flows in any order. Of tags too the order says nothing: those of stages behind come after all of those in front."""
    for each in flows:
        if isinstance(each.get("tags"), list):
            each["tags"].sort()
    return Counter(json.dumps(each, sort_keys=True) for each in flows)


CASES = [pytest.param(name, "stage", "all", id=f"{name}, a flow stage") for name in FLOW_STAGES] + [
    pytest.param(name, "end", fail, id=f"{name}, an end stage that refuses {fail}") for name in END_STAGES for fail in ("src", "dst", "all")
]


@pytest.mark.parametrize(
    "between", [pytest.param(False, id="alone"), pytest.param(True, id="behind or before a flow stage between end stages")]
)
@pytest.mark.parametrize(("name", "kind", "fail"), CASES)
def test_what_enters_again_comes_out_as_if_it_had_not_been_refused(
    name: str, kind: str, fail: str, between: bool, chain_with: Maker
) -> None:
    refusing = chain_with(name, kind, fail, between=between)
    assert through(refusing, given_flows()) == []
    letters = letters_of(refusing)
    whole, second = chain_with(name, kind, "", between=between), chain_with(name, kind, "", between=between)
    expected = through(whole, given_flows())
    assert len(expected) > 200
    refused_by_it = [letter for letter in letters if letter["stage"] == name]
    assert as_texts(entered(second, refused_by_it)) == as_texts(expected)


@pytest.mark.parametrize(("name", "kind", "fail"), [case for case in CASES if case.values[2] in ("all", "dst")])
def test_what_was_noted_before_a_refusal_is_counted_once(name: str, kind: str, fail: str, chain_with: Maker) -> None:
    refusing, whole, second = chain_with(name, kind, fail), chain_with(name, kind, ""), chain_with(name, kind, "")
    through(refusing, given_flows())
    through(whole, given_flows())
    entered(second, [letter for letter in letters_of(refusing) if letter["stage"] == name])
    assert whole.notes.total() > 0
    assert refusing.notes + second.notes == whole.notes


@pytest.mark.parametrize(("name", "kind", "fail"), CASES)
def test_the_payload_is_the_flow_as_it_stood_before(name: str, kind: str, fail: str, chain_with: Maker) -> None:
    """It is what comes out of a chain that ends there, whichever end raised."""
    refusing = chain_with(name, kind, fail)
    through(refusing, given_flows())
    if name < "10":
        expected = [orjson.loads(each) for each in given_flows()]
    else:
        expected = through(chain_with(name, kind, "", until=True), given_flows())
    payloads = [letter["payload"] for letter in letters_of(refusing) if letter["stage"] == name]
    assert as_texts(payloads) == as_texts(expected)


def test_an_envelope_has_six_fields(chain_with: Maker) -> None:
    chain = chain_with("92_mine", "stage", "all")
    chain.take(orjson.dumps([flow(), flow(start=MISSING), 7]), "file.json", "12")
    chain.take(b"\xff", "file.json", "13")
    chain.enrich(chain.drain())
    letters = letters_of(chain)
    assert [list(letter) for letter in letters] == [["id", "stage", "reason", "source", "position", "payload"]] * 4
    shown = {letter["stage"]: (letter["reason"], letter["source"], letter["position"], letter["payload"]) for letter in letters[:3]}
    assert shown["10_preliminaries"] == ("start: missing", "file.json", "12.1", flow(start=MISSING))
    assert shown[DECODE] == ("not JSON", "file.json", "13", {"base64": "/w=="})
    assert [letter["payload"] for letter in letters if letter["reason"] == "not an object"] == [7]
    behind = letters[-1]
    assert (behind["stage"], behind["source"], behind["position"]) == ("92_mine", "40_aggregation", behind["payload"]["meta"]["id"])
    for letter in letters:
        assert is_envelope(letter)
        assert len(letter["id"]) == 32
        assert int(letter["id"], 16)


def test_a_reason_names_the_kind_of_an_exception_and_its_place_and_not_what_it_says(chain_with: Maker) -> None:
    for name, kind in (("92_mine", "stage"), ("75_mine", "end")):
        chain = chain_with(name, kind, "all")
        through(chain, [orjson.dumps(flow())])
        assert [letter["reason"] for letter in letters_of(chain)] == [f"raised ValueError ({name}.py:21)"]


def test_the_same_refusal_has_the_same_id() -> None:
    refusal: dict[str, Any] = {"stage": "10", "reason": "start: missing", "source": "file.json", "position": "1", "payload": {"a": 1}}
    same = envelope(**refusal)
    assert envelope(**refusal) == same
    others = [envelope(**refusal | {name: "other"}) for name in refusal]
    assert len({orjson.loads(each)["id"] for each in [same, *others]}) == 6


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({"a": [1, "é", None, 1.5, True]}, id="JSON"),
        pytest.param(["a"], id="an array"),
        pytest.param("a text", id="a text"),
        pytest.param(None, id="null"),
        pytest.param({"a": float("nan")}, id="a NaN"),
        pytest.param([{"a": float("-inf")}], id="an infinity"),
        pytest.param({"a": "\ud800"}, id="a lone surrogate"),
        pytest.param({"\ud800": 1}, id="a lone surrogate as a key"),
        pytest.param({"a": 2**70}, id="an integer beyond 64 bits"),
        pytest.param({"base64": "AAAA"}, id="a flow that looks like bytes"),
        pytest.param({"base64": 1}, id="a flow that looks like bytes and holds none"),
    ],
)
def test_a_payload_comes_back_as_it_was(payload: Any) -> None:
    letter = orjson.loads(envelope("10_preliminaries", "reason", "source", "1", payload))
    assert is_envelope(letter)
    assert repr(json.loads(body_of(letter["payload"]))) == repr(payload)


def test_a_payload_that_is_nested_too_deeply_for_json_comes_back_as_it_was() -> None:
    deep: Any = 1
    for _ in range(1_010):
        deep = [deep]
    assert body_of(orjson.loads(envelope("a", "b", "c", "1", deep))["payload"]) == b"[" * 1_010 + b"1" + b"]" * 1_010


@pytest.mark.parametrize("payload", [b"", b"\xff\x00", b"[" * 1_000, b"abc"])
def test_bytes_come_back_as_they_were(payload: bytes) -> None:
    letter = orjson.loads(envelope(DECODE, "not JSON", "source", "1", payload))
    assert letter["payload"] == {"base64": base64.b64encode(payload).decode()}
    assert body_of(letter["payload"]) == payload


@pytest.mark.parametrize(
    ("stage", "missing"),
    [("10_preliminaries", {"start": MISSING}), ("40_aggregation", {"values": {"num_bits": MISSING}})],
)
def test_a_payload_can_be_corrected(stage: str, missing: Any, chain_with: Maker) -> None:
    chain = chain_with("92_mine", "stage", "")
    assert through(chain, [orjson.dumps(flow(**missing))]) == []
    (letter,) = letters_of(chain)
    assert letter["stage"] == stage
    if stage == "10_preliminaries":
        letter["payload"]["start"] = flow()["start"]
    else:
        letter["payload"]["values"]["num_bits"] = flow()["values"]["num_bits"]
    assert as_texts(entered(chain, [letter])) == as_texts(through(chain_with("92_mine", "stage", ""), [orjson.dumps(flow())]))


def test_what_is_refused_again_is_the_same_dead_letter(chain_with: Maker) -> None:
    chain = chain_with("92_mine", "stage", "all")
    through(chain, [*given_flows(), orjson.dumps(flow(start=MISSING)), b"\xff", b'{"start":NaN}', b'"text"'])
    letters = letters_of(chain)
    assert {letter["stage"] for letter in letters} >= {DECODE, "10_preliminaries", "92_mine"}
    assert entered(chain, letters) == []
    again = letters_of(chain)
    assert sorted(letter["id"] for letter in again) == sorted(letter["id"] for letter in letters)


def test_a_dead_letter_of_a_stage_that_this_chain_lacks_is_refused_as_it_came(chain_with: Maker) -> None:
    chain = chain_with("92_mine", "stage", "")
    payloads: list[Any] = [flow(), {"base64": "/w=="}]
    for payload in payloads:
        letter = orjson.loads(envelope("33_theirs", "reason", "file", "1", b"\xff" if "base64" in payload else payload))
        assert entered(chain, [letter]) == []
        (again,) = letters_of(chain)
        assert (again["stage"], again["reason"], again["payload"]) == ("33_theirs", "no such stage in this chain", letter["payload"])
        assert (again["source"], again["position"]) == ("file", "1")


@pytest.mark.parametrize(
    "payload", [1, None, "text", [], [1], [flow()], {}, {"meta": 1}, {"meta": {}}, {"meta": {"src_ip": 1, "dst_ip": []}}]
)
def test_a_payload_of_any_shape_is_refused_by_any_stage_and_stops_nothing(payload: Any, chain_with: Maker) -> None:
    """Dead letters are files, and files are edited."""
    chain = chain_with("92_mine", "stage", "")
    for stage in chain.steps.entries:
        letter = orjson.loads(envelope(stage, "reason", "file", "1", payload))
        flows = entered(chain, [letter])
        assert len(flows) + len(letters_of(chain)) + chain.dropped.total() >= (payload != []), stage


@pytest.mark.parametrize("text", [b"not JSON", b"NaN", b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_flow_are_refused_by_any_stage_and_stop_nothing(text: bytes, chain_with: Maker) -> None:
    chain = chain_with("92_mine", "stage", "")
    for stage in chain.steps.entries:
        assert entered(chain, [orjson.loads(envelope(stage, "reason", "file", "1", text))]) == []
        assert len(letters_of(chain)) == 1, stage


def test_letters_are_added_each_on_a_line_of_its_own_in_a_file_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "letters"
    append(file, [b"a"])
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"a\ncut o")
    append(file, [b"b", b"c"])
    assert file.read_bytes() == b"a\ncut o\nb\nc\n"


def test_of_letters_for_which_there_is_no_room_none_is_added(tmp_path: Path) -> None:
    file = tmp_path / "letters"
    append(file, [b"a"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signals = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(OSError, match="File too large") as failed:
            append(file, [b"b" * 60, b"c" * 60])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signals)
    assert failed.value.filename == str(file)
    assert file.read_bytes() == b"a\n"
