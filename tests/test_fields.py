"""The field table: what stages write, of which type, and what is wrong with the Writes lines of an operator's stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netsage_pipeline import folders
from netsage_pipeline.config import SettingsError
from netsage_pipeline.fields import TYPES, known, type_of
from netsage_pipeline.stagefile import find
from tests.command import run, stage_file

SHIPPED = folders.shipped("stages")


def of(directory: Path) -> dict[str, str]:
    return known(find([SHIPPED, directory]).values())


@pytest.mark.parametrize(
    ("meaning", "word"),
    [
        ("text", "text"),
        ("text, of the first pattern", "text"),
        ("integer number of parts", "integer"),
        ("text or integer, which", "text"),
        ("text or texts", "text"),
        ("integer or number", "number"),
        ("boolean or text", "text"),
        ("removed when null", "removed"),
        ("ip-masked, 192.0.2.x", "ip-masked"),
        ("", ""),
        ("what it is", ""),
        ("Text", ""),
        ("texts-and-more", ""),
        ("text or what", ""),
        ("location or text", ""),
        ("text or removed", ""),
    ],
)
def test_a_meaning_begins_with_type_words(meaning: str, word: str) -> None:
    assert type_of(meaning) == word


@pytest.mark.parametrize(
    ("name", "word"),
    [
        pytest.param("start", "date", id="the last stage that writes it says what it is"),
        pytest.param("meta.src_ip", "text", id="masked, or a text of a rule"),
        pytest.param("meta.dst_organization", "text", id="of an end stage, at either end"),
        pytest.param("meta.sensor_id", "text", id="removed when null: it keeps its type"),
        pytest.param("meta.src_ifindex", "integer", id="removed: another chain may keep it"),
        pytest.param("meta.instance_id", "text", id="an exporter's field that no stage writes"),
        pytest.param("meta.src.community", "text", id="what lies elsewhere in meta"),
        pytest.param("meta.scireg.dst.discipline", "text", id="of the science registry's record"),
        pytest.param("meta.scireg.src.projects.project_name", "text", id="of the projects of a record"),
        pytest.param("values.tcp_rtt_avg", "number", id="of tstat"),
        pytest.param("document_id", "text", id="beside the flow"),
        pytest.param("meta", "object", id="an object"),
        pytest.param("tags", "texts", id="texts"),
        pytest.param("PRIVATE.dst_asn", "integer", id="what was hidden"),
    ],
)
def test_a_field_that_stages_write_is_known(name: str, word: str) -> None:
    assert known(find([SHIPPED]).values())[name] == word


def test_names_that_stand_for_any_and_notes_are_no_fields() -> None:
    assert [name for name in known(find([SHIPPED]).values()) if "*" in name or "{" in name or "notes" in name] == []


@pytest.mark.parametrize("word", [word for word in TYPES if word != "removed"])
def test_a_field_of_an_operators_stage_is_known(tmp_path: Path, word: str) -> None:
    stage_file(tmp_path, "91_mine", "return flow", writes=f"meta.mine, deep.{{a,b}}  {word}, what it is")
    stage_file(tmp_path, "54_mine", "pass", writes=f"rank  {word}", kind="end")
    fields = of(tmp_path)
    assert {fields[name] for name in ("meta.mine", "deep.a", "deep.b", "meta.src_rank", "meta.dst_rank")} == {word}


def test_an_operators_stage_that_takes_the_place_of_ours_says_what_it_writes(tmp_path: Path) -> None:
    stage_file(tmp_path, "41_ip_version", "return flow", writes="meta.ip_version  integer, 4 or 6")
    assert of(tmp_path)["meta.ip_version"] == "integer"


def test_all_that_is_wrong_with_writes_lines_is_said_at_once(tmp_path: Path) -> None:
    stage_file(tmp_path, "91_a", "return flow", writes="meta.a  ipv4, an address\n        meta.b one blank\n        meta.c  integer")
    stage_file(tmp_path, "92_b", "return flow", writes="meta.src_location.source  text, where it is from")
    (tmp_path / "93_c.py").write_text("def stage(:")
    with pytest.raises(SettingsError) as caught:
        of(tmp_path)
    words = "text, texts, ip, ip-masked, integer, number, boolean, date, location, object, removed"
    assert caught.value.errors == [
        f"{tmp_path}/91_a.py: Writes meta.a: begins with no type word: write two blanks and one of {words}",
        f"{tmp_path}/91_a.py: Writes meta.b one blank: begins with no type word: write two blanks and one of {words}",
        f"{tmp_path}/93_c.py:1: syntax error: invalid syntax",
        f"{tmp_path}/92_b.py: Writes meta.src_location.source: lies in meta.src_location, which is written as location: "
        "give one another name",
    ]


def test_the_command_shows_a_line_for_each_field_with_its_stage_and_meaning(tmp_path: Path) -> None:
    stage_file(tmp_path, "54_mine", "pass", writes="rank  integer, how often", kind="end")
    outcome = run("fields", "--stages", tmp_path)
    rows = [line.split(maxsplit=2) for line in outcome.out.decode().splitlines()]
    assert ["meta.{src,dst}_rank", "54_mine", "integer, how often"] in rows
    assert ["stitched_flows", "40_aggregation", "integer, number of parts; 0 for tstat, whose flows are whole"] in rows
    assert (outcome.code, outcome.err) == (0, "")


def test_the_command_prints_the_template_that_the_output_installs(tmp_path: Path) -> None:
    stage_file(tmp_path, "91_mine", "return flow", writes="meta.mine  location")
    outcome = run("fields", "--template", "--prefix", "om-ns-ilight", "--stages", tmp_path)
    template = json.loads(outcome.out)
    assert template["index_patterns"] == ["om-ns-ilight-*"]
    assert template["template"]["mappings"]["properties"]["meta"]["properties"]["mine"]["type"] == "geo_point"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--template", "--prefix", "om*"), "--prefix: is no beginning"),
        (("--stages", "nowhere"), "nowhere: no such directory of stages"),
    ],
)
def test_the_command_refuses_what_it_cannot_use(arguments: tuple[str, ...], line: str) -> None:
    outcome = run("fields", *arguments)
    assert (outcome.code, outcome.out) == (2, b"")
    assert outcome.err.startswith(line)
    assert outcome.err.count("\n") == 1
