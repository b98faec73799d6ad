"""stages try: one flow through the real chain, and what each stage made of it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.flow import Flow, Now
from netsage_pipeline.tables.tables import Tables
from netsage_pipeline.trial import Tried, tried
from tests.command import LOOKUPS, conf_with, lines, run, run_real, stage_file, tables_with
from tests.flows import MISSING, NOW, flow
from tests.invariants import demo_tables
from tests.test_reads_writes import SETTINGS, conformance_flows, varied_flow


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> list[Configured]:
    """All stages switched on, with all that they can do."""
    conf = tmp_path_factory.mktemp("conf.d")
    for file in folders.shipped("conf.d").glob("*.toml"):
        (conf / file.name).write_text(SETTINGS.get(file.stem, "") + file.read_text().replace("enabled = false\n", ""))
    return configured(conf, [folders.shipped("stages")])


def through(stages: list[Configured], given: Flow) -> tuple[Flow | None, list[tuple[str, str]], list[tuple[str, str]], list[str]]:
    """What the chain makes of a flow: the flow, why it was dropped, why refused, and what was noted."""
    chain = Chain(stages, demo_tables(), Now(NOW, judges=False))
    flows = chain.enrich(chain.let_in(orjson.dumps(given), "", "") + chain.drain())
    return next(iter(flows), None), list(chain.dropped), list(chain.refused), sorted(chain.notes.elements())


def put_together(before: Flow, stages: list[Tried]) -> dict[str, Any]:
    """The fields of a flow with all that the stages changed in it."""
    fields = dotted(before)
    for each in stages:
        assert not each.added.keys() & fields.keys()
        assert {name: fields[name] for name in each.changed} == {name: old for name, (old, _) in each.changed.items()}
        assert {name: fields.pop(name) for name in each.removed} == each.removed
        fields |= each.added | {name: new for name, (_, new) in each.changed.items()}
    return fields


def dotted(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or (path and not value):
        return {path: value}
    fields: dict[str, Any] = {}
    for name, inner in value.items():
        fields |= dotted(inner, f"{path}.{name}" if path else name)
    return fields


def is_as_the_chain_has_it(stages: list[Configured], given: Flow) -> None:
    made = list(tried(stages, given, "", demo_tables(), Now(NOW, judges=False)))
    after, dropped, refused, noted = through(stages, given)
    last = made[-1]
    assert last.flow == after
    assert [(each.stage, each.dropped) for each in made if each.dropped] == dropped
    assert [(each.stage, each.refused) for each in made if each.refused] == refused
    assert sorted(note for each in made for note in each.noted) == noted
    assert all(each.flow is not None for each in made[:-1])
    running = [stage.name for stage in stages if stage.config.enabled and not stage.file.is_io]
    assert [each.stage for each in made] == running[: len(made)]
    if after is not None:
        assert len(made) == len(running)
        assert put_together(given, made) == dotted(after)


def test_it_is_as_the_chain_has_it_for_flows_of_the_reference(everything: list[Configured]) -> None:
    """All changes together are what the chain makes of a flow."""
    for body in conformance_flows()[::7]:
        value = orjson.loads(body)
        is_as_the_chain_has_it(everything, value[0] if isinstance(value, list) else value)


@given(st.randoms(use_true_random=False))
@settings(max_examples=60, derandomize=True, deadline=None, database=None)
def test_it_is_as_the_chain_has_it_for_any_flow(everything: list[Configured], chance: Random) -> None:
    is_as_the_chain_has_it(everything, varied_flow(chance))


def stages_of(outcome: Any) -> dict[str, dict[str, Any]]:
    """Stage → what --json says of it."""
    return {each["stage"]: each for each in outcome.flows if "stage" in each}


def test_it_says_what_was_added_changed_and_removed() -> None:
    outcome = run_real("stages", "try", stdin=lines([flow(start=int(NOW) - 100)]))
    assert outcome.code == 0
    said = outcome.out.decode()
    assert said.startswith("10_preliminaries\n    + @ingest_time  ")
    assert f"\n    ~ start  {int(NOW) - 100} → {NOW - 100}\n" in said
    assert '\n70_deidentify\n    ~ meta.src_ip  "192.0.2.1" → "192.0.2.x"\n    ~ meta.dst_ip  "198.51.100.2" → "198.51.100.x"\n80_' in said
    assert '\n    - type  "flow"\n    - interval  600\n    - meta.src_ifindex  1\n' in said
    assert "\n41_leftovers\n    nothing\n" in said
    assert "\n60_scireg\n    noted    60_scireg: not in the registry\n" in said
    assert json.loads(said.partition("\nthe flow\n")[2])["meta"]["src_ip"] == "192.0.2.x"


def test_json_is_one_object_a_stage_and_one_with_the_flow() -> None:
    outcome = run("stages", "try", "--json", stdin=lines([flow(start=int(NOW) - 100)]))
    *stages, last = outcome.flows
    assert [each["stage"] for each in stages][:3] == ["10_preliminaries", "20_add_id", "40_aggregation"]
    assert stages_of(outcome)["10_preliminaries"]["changed"] == {"start": [int(NOW) - 100, NOW - 100]}
    assert stages_of(outcome)["41_leftovers"] == {"stage": "41_leftovers"}
    assert stages_of(outcome)["95_cleanup"]["removed"].keys() == {"interval", "type", "meta.src_ifindex", "meta.dst_ifindex"}
    assert last.keys() == {"flow"}
    assert last["flow"]["meta"]["src_ip"] == "192.0.2.x"


def test_a_held_flow_is_drained_at_once() -> None:
    made = stages_of(run("stages", "try", "--json", stdin=lines([flow()])))["40_aggregation"]["added"]
    assert made["stitched_flows"] == 1


def test_a_dropped_flow_ends_there() -> None:
    outcome = run("stages", "try", stdin=lines([flow(meta={"src_ip": "10.1.1.1"})]))
    assert (outcome.code, outcome.out.decode()) == (0, "10_preliminaries\n    dropped  private address\n")
    outcome = run("stages", "try", "--json", stdin=lines([flow(meta={"src_ip": "10.1.1.1"})]))
    assert outcome.flows == [{"stage": "10_preliminaries", "dropped": "private address"}, {"flow": None}]


def test_a_refused_flow_ends_there(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "65_odd", "raise ValueError(end['ip'])", kind="end")
    conf = conf_with(tmp_path, {"65_odd": ""})
    outcome = run("stages", "try", "--stages", stages, "--conf", conf, stdin=lines([flow()]))
    assert outcome.out.decode().endswith("\n65_odd\n    refused  raised ValueError (65_odd.py:18)\n")
    assert outcome.code == 0


def test_an_end_stage_sees_what_end_stages_before_it_noted_and_tagged(tmp_path: Path) -> None:
    """They are one run, as in the chain."""
    body = "end['seen'] = sorted(end.get('tags', []))"
    stages = stage_file(tmp_path / "stages", "65_seen", body, reads="tags", writes="seen  texts", kind="end")
    conf = conf_with(tmp_path, {"65_seen": ""})
    made = stages_of(run("stages", "try", "--json", "--stages", stages, "--conf", conf, stdin=lines([flow(meta={"src_asn": 0})])))
    assert any("ASN" in tag or "asn" in tag for tag in made["65_seen"]["added"]["meta.src_seen"])


def test_what_the_input_says_in_a_field_that_an_end_stage_writes_is_shown_as_discarded(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "65_campus", "pass", writes="campus  text", kind="end")
    conf = conf_with(tmp_path, {"65_campus": ""})
    outcome = run("stages", "try", "--json", "--stages", stages, "--conf", conf, stdin=lines([flow(meta={"src_campus": "x"})]))
    assert stages_of(outcome)["65_campus"] == {"stage": "65_campus", "removed": {"meta.src_campus": "x"}}


@pytest.mark.parametrize("name", ["53_caida_org", "20_add_id", "40_aggregation", "95_cleanup"])
def test_one_stage_is_tried_with_the_flow_as_it_stands_before_it(name: str) -> None:
    every = stages_of(run("stages", "try", "--json", stdin=lines([flow()])))
    chain = configured(folders.shipped("conf.d"), [folders.shipped("stages")])
    made = tried(chain, flow(), "", Tables(LOOKUPS), Now(NOW, judges=False))
    before = next(before.flow for before, of in pairwise(made) if of.stage == name)
    outcome = run("stages", "try", name, "--json", stdin=lines([before]))
    alone, last = outcome.flows
    assert _but_for_times(alone) == _but_for_times(every[name])
    assert last["flow"] != before


def _but_for_times(stage: dict[str, Any]) -> dict[str, Any]:
    return {**stage, "added": {name: value for name, value in stage.get("added", {}).items() if name[0] != "@"}}


def test_one_stage_needs_no_more_of_a_flow_than_it_reads(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "12_label", "flow['label'] = config.label\nreturn flow", writes="label  text")
    conf = conf_with(tmp_path, {"12_label": "label = 'of 12'"})
    outcome = run("stages", "try", "12_label", "--stages", stages, "--conf", conf, stdin=b"{}")
    assert outcome.out.decode() == '12_label\n    + label  "of 12"\nthe flow\n{\n  "label": "of 12"\n}\n'


def test_a_dead_letter_enters_at_the_stage_that_refused_it(tmp_path: Path) -> None:
    refused = tmp_path / "refused"
    stages = stage_file(tmp_path / "stages", "65_odd", "raise ValueError", kind="end")
    conf = conf_with(tmp_path, {"65_odd": ""})
    (tmp_path / "dump").write_bytes(lines([flow()]))
    run("replay", tmp_path / "dump", "--stages", stages, "--conf", conf, "--to", tmp_path / "out", "--dead-letters", refused)
    mended = stage_file(tmp_path / "mended", "65_odd", "end['campus'] = config.label", writes="campus  text", kind="end")
    outcome = run("stages", "try", "--json", "--stages", mended, "--conf", conf, stdin=refused.read_bytes())
    assert [*stages_of(outcome)][:2] == ["65_odd", "70_deidentify"]
    assert outcome.flows[-1]["flow"]["meta"]["src_campus"] == "mine"
    alone = run("stages", "try", "70_deidentify", "--json", "--stages", mended, "--conf", conf, stdin=refused.read_bytes())
    assert [*stages_of(alone)] == ["70_deidentify"]


def test_a_dead_letter_of_an_output_goes_through_the_whole_chain() -> None:
    letter = {"id": "0", "stage": "99_output", "reason": "x", "source": "", "position": "", "payload": flow()}
    assert next(iter(stages_of(run("stages", "try", "--json", stdin=lines([letter]))))) == "10_preliminaries"


@pytest.mark.parametrize(
    "stdin",
    [
        pytest.param(lines([[flow(a=1), flow(a=2)]]), id="an array"),
        pytest.param(lines([flow(a=1), flow(a=2)]), id="lines"),
        pytest.param(b"\n\n" + lines([flow(a=1)]), id="empty lines before it"),
        pytest.param(json.dumps(flow(a=1), indent=4).encode(), id="over many lines"),
        pytest.param(gzip.compress(lines([flow(a=1)])), id="gzip"),
    ],
)
def test_the_first_flow_of_standard_input_is_tried(stdin: bytes) -> None:
    assert run("stages", "try", "--json", stdin=stdin).flows[-1]["flow"]["a"] == 1


@pytest.mark.parametrize(
    ("stdin", "wrong"),
    [
        pytest.param(b"", "is empty: give it a flow as JSON", id="nothing"),
        pytest.param(b" \n\n", "is empty: give it a flow as JSON", id="empty lines"),
        pytest.param(b"{", "is not JSON: ", id="cut off"),
        pytest.param(b"flow", "is not JSON: ", id="a word"),
        pytest.param(b"\xff\xfe", "is not JSON: ", id="bytes"),
        pytest.param(b'{"a": NaN}', "is not JSON: ", id="a number that is none"),
        pytest.param(b"[]", "its first value is not a flow", id="an empty array"),
        pytest.param(b"[[{}]]", "its first value is not a flow", id="an array within an array"),
        pytest.param(b'"192.0.2.1"', "its first value is not a flow", id="a text"),
        pytest.param(b"null", "its first value is not a flow", id="null"),
        pytest.param(b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}", "no flow: nested too deeply", id="nested deeply"),
        pytest.param(b'{"a": ' + b'{"a": ' * 900 + b"1" + b"}" * 901, "no flow: nested too deeply", id="objects nested deeply"),
        pytest.param(gzip.compress(b"x" * 1000)[:20], "is truncated or damaged", id="a damaged gzip"),
    ],
)
@pytest.mark.parametrize("name", ["", "50_asn"])
def test_what_is_no_flow_is_a_line(name: str, stdin: bytes, wrong: str) -> None:
    outcome = run("stages", "try", *name.split(), stdin=stdin)
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err.startswith(f"standard input: {wrong}")
    assert outcome.err.count("\n") == 1
    assert "192.0.2.1" not in outcome.err


@pytest.mark.parametrize(
    ("name", "given_", "wrong"),
    [
        pytest.param("51_asn", flow(), "51_asn: no such stage in this chain, which has 01_input_rabbitmq, 10_", id="no such stage"),
        pytest.param("42_communities", flow(), "42_communities: is switched off: write enabled = true into ", id="switched off"),
        pytest.param("99_output_rabbitmq", flow(), "99_output_rabbitmq: is an input or output", id="an output"),
        pytest.param(
            "50_asn", flow(meta={"dst_ip": MISSING}), "50_asn: sees the ends of a flow: give it one with meta.src_ip", id="one end"
        ),
        pytest.param("50_asn", flow(meta=None) | {"meta": 1}, "50_asn: sees the ends of a flow", id="no end"),
    ],
)
def test_a_stage_that_cannot_be_tried_is_a_line(name: str, given_: Flow, wrong: str) -> None:
    outcome = run("stages", "try", name, stdin=lines([given_]))
    assert (outcome.code, outcome.out) == (2, b"")
    assert outcome.err.startswith(wrong)
    assert outcome.err.count("\n") == 1


def test_wrong_settings_and_broken_tables_are_lines(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"20_add_id": "keyy = 1", "40_aggregation": "timeout_s = 'x'"})
    outcome = run("stages", "try", "--conf", conf, stdin=lines([flow()]))
    assert (outcome.code, outcome.err.count("\n"), outcome.out) == (2, 2, b"")
    outcome = run("stages", "try", stdin=lines([flow()]), lookups=tables_with(tmp_path, {"GeoLite2-ASN.mmdb": b"x"}))
    assert (outcome.code, outcome.err.count("\n"), outcome.out) == (2, 1, b"")
    assert "GeoLite2-ASN.mmdb" in outcome.err


def test_a_missing_table_is_said() -> None:
    assert "members: no such table: its stage goes on" in run("stages", "try", stdin=lines([flow()])).err


@pytest.mark.parametrize(
    ("value", "fault", "shown"),
    [
        pytest.param("{1, 2}", "not JSON", '"{1, 2}"', id="a set"),
        pytest.param("float('nan')", "NaN or infinity", "NaN", id="a number that is none"),
        pytest.param("chr(0xDC00)", "lone surrogate in a text", r'"\udc00"', id="a lone surrogate"),
        pytest.param("{(1, 2): 3}", "not JSON", "3", id="an object whose name is no text"),
    ],
)
def test_what_a_stage_wrote_that_is_no_json_is_shown_and_said(value: str, fault: str, shown: str, tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "97_odd", f"flow['odd'] = {value}\nreturn flow")
    conf = conf_with(tmp_path, {"97_odd": ""})
    for as_json in ([], ["--json"]):
        outcome = run_real("stages", "try", *as_json, "--stages", stages, "--conf", conf, stdin=lines([flow()]))
        assert outcome.code == 0
        assert outcome.err.splitlines()[-1] == f"an output would refuse this flow: {fault}"
        assert shown in outcome.out.decode()
        assert not as_json or outcome.flows[-1].keys() == {"flow"}


def test_tables_are_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    make: Callable[..., Any] = Tables._open

    def counted(self: Tables, kind: str, path: Path) -> Any:
        opened.append(path)
        return make(self, kind, path)

    monkeypatch.setattr(Tables, "_open", counted)
    run("stages", "try", stdin=lines([flow()]))
    assert opened
    assert len(opened) == len(set(opened))
