"""The command netsage-pipeline: replay, check, stages, config; an operator's own stages; dead letters that are replayed."""

from __future__ import annotations

import contextlib
import gc
import gzip
import json
import os
import pty
import re
import signal
import socket
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from netsage_pipeline import __version__, cli, folders, progress, replay
from tests.command import (
    COMMAND,
    OF_THE_RUN,
    conf_with,
    letters,
    lines,
    run,
    run_real,
    stage_file,
    surroundings,
    tables_with,
    written,
)
from tests.conftest import CONFORMANCE
from tests.flows import NOW, flow

FIXED = ("--now", "1700000000")
OURS = sorted(path.stem for path in folders.shipped("conf.d").glob("*.toml"))


def ports(flows: list[Any]) -> list[int]:
    return [each["meta"]["src_port"] for each in flows]


def of_port(port: int, **changes: Any) -> Any:
    return flow(meta={"src_port": port}, **changes)


SOME = [of_port(1), of_port(2), of_port(3)]


# Input


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lines(SOME), id="NDJSON"),
        pytest.param(lines([SOME]), id="an array"),
        pytest.param(json.dumps(SOME, indent=2).encode(), id="a document over many lines"),
        pytest.param(gzip.compress(lines(SOME)), id="gzip"),
        pytest.param(zstandard.compress(lines(SOME)), id="zstd"),
        pytest.param(zstandard.compress(lines(SOME[:1])) + zstandard.compress(lines(SOME[1:])), id="zstd of two frames"),
    ],
)
def test_every_kind_of_file_gives_the_same_flows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dump").write_bytes(content)
    expected = run("replay", written(tmp_path / "plain", *SOME), *FIXED).out
    assert expected.count(b"\n") == 3
    assert run("replay", tmp_path / "dump", *FIXED).out == expected
    assert run("replay", "-", *FIXED, stdin=content).out == expected


def test_a_standard_input_that_is_closed_is_an_empty_one() -> None:
    command = ["sh", "-c", f"{COMMAND} replay - --to - <&-"]
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings(), check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "nothing could be read")


def test_standard_input_and_output_of_the_real_command() -> None:
    outcome = run_real("replay", "-", "--to", "-", *FIXED, stdin=gzip.compress(lines(SOME)))
    assert sorted(ports(outcome.flows)) == [1, 2, 3]
    assert outcome.code == 0
    assert outcome.summary["read"] == outcome.summary["written"] == 3


def test_directories_are_read_in_order_of_capture_time_across_them(tmp_path: Path) -> None:
    parts = {"b/202311142200.json": 0, "a/202311142210.json": 600, "b/202311142220.json": 1200, "a/202311142230.json": 1800}
    for name, offset in parts.items():
        written(tmp_path / name, flow(start=NOW + offset, end=NOW + offset + 590, values={"num_bits": 100 + offset}))
    outcome = run("replay", tmp_path / "a", tmp_path / "b", "--clock", "arrival")
    (whole,) = outcome.flows
    assert whole["stitched_flows"] == 4
    assert whole["values"]["num_bits"] == 400 + 600 + 1200 + 1800
    assert whole["values"]["duration"] == 2390.0


def test_the_first_of_the_parts_by_capture_time_gives_the_meta(tmp_path: Path) -> None:
    written(tmp_path / "z" / "202311142200.json", flow(meta={"src_asn": 217}))
    written(tmp_path / "a" / "202311142210.json", flow(meta={"src_asn": 1}))
    (whole,) = run("replay", tmp_path / "a", tmp_path / "z").flows
    assert (whole["stitched_flows"], whole["meta"]["src_asn"]) == (2, 217)


# Output


def test_to_takes_the_place_of_the_output_of_the_settings(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"99_output_file": f'path = "{tmp_path}/of_conf"\nflows_per_message = 100'})
    dump = written(tmp_path / "dump", *SOME)
    outcome = run("replay", dump, "--conf", conf)
    assert (outcome.out, outcome.summary["written"]) == (b"", 3)
    (array,) = json.loads(f"[{(tmp_path / 'of_conf').read_text()}]")
    assert sorted(ports(array)) == [1, 2, 3]
    (tmp_path / "of_conf").unlink()
    run("replay", dump, "--conf", conf, "--to", tmp_path / "out")
    assert (tmp_path / "out").read_bytes().count(b"\n") == 3
    assert run("replay", dump, "--conf", conf, "--to", "-").out.count(b"\n") == 3
    assert not (tmp_path / "of_conf").exists()


def test_an_output_that_is_switched_off_is_not_used(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"99_output_file": f'path = "{tmp_path}/of_conf"\nenabled = false'})
    assert run("replay", written(tmp_path / "dump", *SOME), "--conf", conf).out.count(b"\n") == 3
    assert not (tmp_path / "of_conf").exists()


def test_the_input_of_a_chain_is_not_used(tmp_path: Path) -> None:
    stages = tmp_path / "stages"
    stages.mkdir()
    (stages / "01_input_mine.py").write_text(
        '"""01 input mine: x.\n\nReads   nothing\nWrites  nothing\n"""\n'
        "from netsage_pipeline.config import Settings as Config\n\ndef source(config):\n    raise RuntimeError('was used')\n"
    )
    conf = conf_with(tmp_path, {"01_input_mine": ""})
    outcome = run("replay", written(tmp_path / "dump", *SOME), "--conf", conf, "--stages", stages)
    assert (outcome.code, len(outcome.flows)) == (0, 3)


# The same again


def big_dump(tmp_path: Path) -> Path:
    """The flows of two conformance sets, with some that are refused among them."""
    sets = [CONFORMANCE / f"{name}.in.ndjson" for name in ("02-stages-netflow", "04-interleaved")]
    flows = [line for path in sets for line in path.read_bytes().splitlines()]
    return written(tmp_path / "dump", *flows, b"garbage", flow(start="x"), flow(end=1.0))


def without(flows: list[Any], *fields: str) -> list[Any]:
    return [{name: value for name, value in each.items() if name not in fields} for each in flows]


def test_with_now_two_runs_give_the_same_bytes_and_dead_letters(tmp_path: Path) -> None:
    dump = big_dump(tmp_path)
    runs = []
    for number in range(2):
        output, refused = tmp_path / f"out{number}", tmp_path / f"refused{number}"
        assert run_real("replay", dump, *FIXED, "--to", output, "--dead-letters", refused, PYTHONHASHSEED=str(number)).code == 0
        runs.append((output.read_bytes(), refused.read_bytes()))
        time.sleep(0.01)
    assert runs[0] == runs[1]
    assert runs[0][0].count(b"\n") > 50
    assert runs[0][1].count(b"\n") >= 2


def test_without_now_all_but_the_times_of_the_run_are_the_same(tmp_path: Path) -> None:
    dump = big_dump(tmp_path)
    first = run("replay", dump).flows
    time.sleep(0.01)
    second = run("replay", dump).flows
    assert len(first) > 50
    assert without(first, *OF_THE_RUN) == without(second, *OF_THE_RUN)
    for name in ("@ingest_time", "@exit_time"):
        assert without(first, *(set(OF_THE_RUN) - {name})) != without(second, *(set(OF_THE_RUN) - {name}))


def test_now_is_what_flows_are_compared_with_and_what_is_written(tmp_path: Path) -> None:
    dump = written(tmp_path / "dump", of_port(1), of_port(2, start=NOW + 11, end=NOW + 12), of_port(3, start=1.0, end=NOW))
    outcome = run("replay", dump, "--now", str(NOW))
    (only,) = outcome.flows
    assert only["@ingest_time"] == only["@exit_time"] == "2023-11-14T22:13:20.000Z"
    assert only["@processing_time"] == 0
    assert outcome.summary["10_preliminaries: in the future"] == outcome.summary["10_preliminaries: too old"] == 1
    assert sorted(ports(run("replay", dump).flows)) == sorted(ports(run("replay", dump, "--now", "off").flows)) == [1, 2, 3]


def test_the_clock_may_be_that_of_arrival(tmp_path: Path) -> None:
    # The second part begins in time but ends later than the event clock allows.
    dump = written(tmp_path / "dump", of_port(1), of_port(1, start=NOW, end=NOW + 700))
    assert len(run("replay", dump, "--clock", "event").flows) == 2
    assert len(run("replay", dump, "--clock", "arrival").flows) == 1


# Summary and progress


def test_the_summary_accounts_for_every_flow(tmp_path: Path) -> None:
    dump = written(
        tmp_path / "dump",
        [of_port(1), of_port(1, start=NOW - 50, end=NOW - 40), of_port(2)],
        flow(meta={"src_ip": "10.0.0.1"}),
        flow(meta={"dst_ip": "192.168.0.1"}),
        flow(end=NOW - 200),
        b"garbage",
        flow(start="x"),
        flow(meta={"src_ip": 1}),
        flow(meta={"flow_type": "tstat"}),
    )
    (tmp_path / "cut.gz").write_bytes(gzip.compress(lines([of_port(9)]))[:-1])
    outcome = run("replay", dump, tmp_path / "none", tmp_path / "cut.gz")
    assert outcome.summary == {
        "read": 10,
        "dropped": 3,
        "10_preliminaries: end before start": 1,
        "10_preliminaries: private address": 2,
        "dead letters": 3,
        "decode: not JSON": 1,
        "10_preliminaries: start: not a number": 1,
        "10_preliminaries: meta.src_ip: not a text": 1,
        "stitched": 4,
        "not stitched": 1,
        "60_scireg: not in the registry": 8,
        "written": 4,
    }
    assert re.search(r"^not stitched +1  flows that came whole \(tstat\)$", outcome.err, re.MULTILINE)
    assert re.search(r"^stitched +4  parts → 3 flows$", outcome.err, re.MULTILINE)
    assert re.search(r"^read +10  flows of 2 files in \d+\.\d s, [\d,]+ flows/s$", outcome.err, re.MULTILINE)
    assert re.search(rf"^not read +{tmp_path}/cut.gz: is truncated or damaged: ", outcome.err, re.MULTILINE)
    assert len(outcome.flows) == 4


def test_late_parts_and_impossible_ends_are_told(tmp_path: Path) -> None:
    flows = [of_port(number, start=NOW + 10 * number, end=NOW + 10 * number + 50) for number in range(1_200)]
    far = of_port(7_000, end=NOW + 30 * 86_400)
    outcome = run("replay", written(tmp_path / "dump", *flows, of_port(0, start=NOW, end=NOW + 50), far))
    assert re.search(r"^ +1  parts came later than lateness_s and opened a flow$", outcome.err, re.MULTILINE)
    assert re.search(r"^ +1  ends a day or more ahead of the flows before them$", outcome.err, re.MULTILINE)
    assert len(outcome.flows) == 1_202


def on_a_terminal(*arguments: str | Path) -> str:
    """What the command writes to standard error when that is a terminal."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 150))
    with subprocess.Popen([COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=follower, env=surroundings(TERM="xterm")) as process:
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # Raised when the other side is closed.
            while piece := os.read(leader, 4096):
                shown += piece
    os.close(leader)
    assert process.returncode == 0
    return shown.decode()


def many_flows(path: Path) -> Path:
    return written(path, *(flow(meta={"src_port": number, "flow_type": "tstat"}) for number in range(12_000)))


def test_a_terminal_shows_a_bar_that_goes_away_before_the_summary(tmp_path: Path) -> None:
    shown = on_a_terminal("replay", many_flows(tmp_path / "dump"))
    bar, summary = shown.split("read   ", 1)
    assert re.search(r"\d+%\|.*\|.*B/s.*[\d,]+ flows, \S*dump", bar)
    assert re.search(r"\r +\r$", bar)
    assert "\r" not in summary.replace("\r\n", "\n")


def test_elsewhere_no_control_characters_are_written(tmp_path: Path) -> None:
    outcome = run_real("replay", many_flows(tmp_path / "dump"))
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f]*", outcome.err)
    assert outcome.said == []


def test_elsewhere_a_line_now_and_then_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PROGRESS_S", -1)
    dump = many_flows(tmp_path / "dump")
    said = run("replay", dump).said
    assert len(said) >= 5
    assert all(
        re.fullmatch(rf"\d+% of the bytes, about [\d,]+ s left; [\d,]+ flows read, [\d,]+ a second, now {dump}", line) for line in said
    )
    said = run("replay", "-", stdin=dump.read_bytes()).said
    assert said
    assert all(re.fullmatch(r"[\d,]+ flows read, [\d,]+ a second, now standard input", line) for line in said)


# Dead letters that are replayed


REMOTE = {"dst_ip": "128.101.1.1", "dst_asn": 217}
MARK = "flow['seen'] = flow.get('seen', 0) + 1\nreturn flow"
FAULTS = {
    "12_mine": ("if flow['meta']['src_port'] == 2:\n    raise KeyError(flow['meta']['src_ip'])\nreturn flow", "return flow", "stage"),
    "54_mine": ("if end['ip'] == '192.0.2.2':\n    raise KeyError(end['ip'])", "pass", "end"),
    "65_mine": ("if flow['meta']['src_port'] == 2:\n    raise KeyError(flow['meta']['src_ip'])\nreturn flow", "return flow", "stage"),
    "92_mine": ("if flow['meta']['src_port'] == 2:\n    raise KeyError(flow['meta']['src_ip'])\nreturn flow", "return flow", "stage"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_refused_flow_enters_at_the_stage_that_refused_it_once_that_is_repaired(tmp_path: Path, name: str) -> None:
    broken, repaired, kind = FAULTS[name]
    for directory, body in (("broken", broken), ("repaired", repaired)):
        stage_file(tmp_path / directory, name, body, kind=kind, reads="ip" if kind == "end" else "meta.src_port")
        stage_file(tmp_path / directory, "11_mark", MARK)
    conf = conf_with(tmp_path, {name: "", "11_mark": ""})
    dump = written(tmp_path / "dump", [flow(meta={"src_port": port, "src_ip": f"192.0.2.{port}", **REMOTE}) for port in (1, 2, 3)])

    def replayed(path: Path, stages: str, refused: str) -> list[Any]:
        outcome = run("replay", path, *FIXED, "--conf", conf, "--stages", tmp_path / stages, "--dead-letters", tmp_path / refused)
        assert outcome.code == 0
        return sorted(outcome.flows, key=lambda each: int(each["meta"]["src_port"]))

    whole = replayed(dump, "repaired", "none")
    assert (tmp_path / "none").read_bytes() == b""
    before = replayed(dump, "broken", "refused")
    (letter,) = letters(tmp_path / "refused")
    assert letter["stage"] == name
    assert letter["reason"].startswith("raised KeyError (")
    assert ports(before) == [1, 3]
    if name == "92_mine":
        assert "192.0.2.2" not in (tmp_path / "refused").read_text()
    assert replayed(tmp_path / "refused", "broken", "again") == []
    assert (tmp_path / "again").read_bytes() == (tmp_path / "refused").read_bytes()
    after = replayed(tmp_path / "refused", "repaired", "none")
    assert (tmp_path / "none").read_bytes() == b""
    assert before[:1] + after + before[1:] == whole
    assert [each["seen"] for each in whole] == [1, 1, 1]
    assert all(each["meta"]["dst_organization"] == "University of Minnesota" for each in whole)


def test_what_could_not_be_decoded_is_replayed_as_it_came(tmp_path: Path) -> None:
    dump = written(tmp_path / "dump", b"garb\xffage", b'{"start": NaN}')
    run("replay", dump, "--dead-letters", tmp_path / "refused")
    run("replay", tmp_path / "refused", "--dead-letters", tmp_path / "again")
    first, second = letters(tmp_path / "refused"), letters(tmp_path / "again")
    assert [letter["stage"] for letter in first] == ["decode", "decode"]
    assert second[0] == first[0]


def test_a_dead_letter_of_a_type_that_was_corrected_by_hand_comes_through(tmp_path: Path) -> None:
    run("replay", written(tmp_path / "dump", of_port(1, start="yesterday")), "--dead-letters", tmp_path / "refused")
    text = (tmp_path / "refused").read_text().replace('"yesterday"', str(NOW - 100))
    outcome = run("replay", "-", stdin=text.encode())
    assert (ports(outcome.flows), outcome.summary["dead letters"]) == ([1], 0)


def test_a_flow_that_the_output_cannot_write_is_a_dead_letter_and_not_counted_as_written(tmp_path: Path) -> None:
    body = "if flow['meta']['src_port'] == 2:\n    flow['big'] = 1 << 65\nreturn flow"
    stages = stage_file(tmp_path / "stages", "97_big", body)
    conf = conf_with(tmp_path, {"97_big": ""})
    outcome = run("replay", written(tmp_path / "dump", SOME), "--conf", conf, "--stages", stages, "--dead-letters", tmp_path / "refused")
    assert sorted(ports(outcome.flows)) == [1, 3]
    assert (outcome.summary["written"], outcome.summary["99_output: integer beyond 64 bits"]) == (2, 1)
    (letter,) = letters(tmp_path / "refused")
    assert (letter["stage"], set(letter["payload"])) == ("99_output", {"base64"})


# An operator's own stages


def test_two_files_add_a_flow_stage(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "91_campus", "flow['meta']['campus'] = config.label\nreturn flow", writes="meta.campus  text")
    conf = conf_with(tmp_path, {"91_campus": 'label = "north"'})
    outcome = run_real("replay", written(tmp_path / "dump", *SOME), "--conf", conf, "--stages", stages)
    assert {each["meta"]["campus"] for each in outcome.flows} == {"north"}
    assert run_real("replay", tmp_path / "dump", "--conf", conf, "--stages", stages, "--now", "off").code == 0
    assert all("campus" not in each["meta"] for each in run("replay", tmp_path / "dump").flows)


def test_two_files_add_a_flow_stage_that_drops(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "12_odd", "return flow if flow['meta']['src_port'] % 2 else 'an even port'")
    conf = conf_with(tmp_path, {"12_odd": ""})
    outcome = run("replay", written(tmp_path / "dump", SOME), "--conf", conf, "--stages", stages)
    assert sorted(ports(outcome.flows)) == [1, 3]
    assert outcome.summary["12_odd: an even port"] == outcome.summary["dropped"] == 1


def test_two_files_add_an_end_stage(tmp_path: Path) -> None:
    body = "end['campus'] = f\"{config.label} {end['side']} {end['country_name']}\""
    stages = stage_file(tmp_path / "stages", "65_campus", body, reads="side, country_name", writes="campus  text", kind="end")
    conf = conf_with(tmp_path, {"65_campus": 'label = "north"'})
    outcome = run("replay", written(tmp_path / "dump", flow(meta={"dst_ip": "128.101.1.1"})), "--conf", conf, "--stages", stages)
    (only,) = outcome.flows
    assert only["meta"]["src_campus"] == "north src Unknown"
    assert only["meta"]["dst_campus"] == "north dst United States"


def test_a_stage_of_the_same_name_takes_the_place_of_ours(tmp_path: Path) -> None:
    body = "end['organization'] = 'mine'"
    stages = stage_file(tmp_path / "stages", "53_caida_org", body, writes="organization  text", kind="end")
    dump = written(tmp_path / "dump", flow(meta={"dst_ip": "128.101.1.1", "dst_asn": 217}))
    assert run("replay", dump).flows[0]["meta"]["dst_organization"] == "University of Minnesota"
    assert run("replay", dump, "--stages", stages).flows[0]["meta"]["dst_organization"] == "mine"
    listed = run("stages", "--stages", stages).out.decode()
    assert f"{stages}/53_caida_org.py" in listed
    assert f"{folders.shipped('stages')}/53_caida_org.py" not in listed


def test_files_with_other_names_beside_an_operators_stages_are_no_stages(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "91_campus", "return flow")
    for name in ("notes.py", "conftest.py", "91_Campus-old.py", "9_x.py"):
        (stages / name).write_text("syntax error")
    outcome = run("check", "--stages", stages, "--conf", conf_with(tmp_path, {"91_campus": ""}))
    assert (outcome.code, outcome.said) == (0, [])


# check, stages, config


def test_check_says_how_much_is_well(tmp_path: Path) -> None:
    outcome = run_real("check")
    assert outcome.code == 0
    assert outcome.out.decode() == f"{len(OURS)} settings files, {len(OURS) - 3} stages run, 6 tables opened, 1 missing: no errors\n"
    outcome = run("check", "--conf", conf_with(tmp_path, {"88_preferred": "enabled = false"}), lookups=tmp_path)
    assert outcome.out.decode() == f"{len(OURS)} settings files, {len(OURS) - 4} stages run, 0 tables opened, 7 missing: no errors\n"


@pytest.mark.parametrize(
    ("factory", "beside", "line"),
    [
        (
            "source",
            "02_input_again",
            "the chain has 2: 01_input_rabbitmq, 02_input_again, but it needs one input: enable one of them, such as 01_input_rabbitmq",
        ),
        (
            "sink",
            "99_output_file",
            "the chain has 2: 99_output_file, 99_output_rabbitmq, but it needs one output: enable one of them, such as 99_output_rabbitmq",
        ),
    ],
)
def test_check_says_of_two_inputs_or_outputs_what_run_says(tmp_path: Path, factory: str, beside: str, line: str) -> None:
    (tmp_path / "stages").mkdir()
    again = f'"""02 input again: x."""\nfrom netsage_pipeline.config import Input as Config\n\ndef {factory}(config):\n    pass\n'
    (tmp_path / "stages" / "02_input_again.py").write_text(again)
    conf = conf_with(tmp_path, {beside: "", "50_asn": "databse = 1"})
    arguments = ("--conf", conf, "--stages", tmp_path / "stages")
    assert run("check", *arguments).err.splitlines()[1:] == [line]
    (conf / "50_asn.toml").write_text("")
    checked, started = run("check", *arguments), run_real("run", *arguments, NETSAGE_STATE=str(tmp_path / "state"))
    assert (checked.code, started.code) == (2, 2)
    assert checked.err.splitlines()[-1] == started.err.splitlines()[-1] == line
    (conf / f"{beside}.toml").write_text("enabled = false")
    assert run("check", *arguments).code == 0


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        pytest.param({"01_input_rabbitmq": None}, ["the chain has none, but it needs one input: "], id="no input"),
        pytest.param({"99_output_rabbitmq": "enabled = false"}, ["the chain has none, but it needs one output: "], id="no output"),
        pytest.param(
            {"01_input_rabbitmq": None, "99_output_rabbitmq": None, "99_output_file": ""},
            ["the chain has none, but it needs one input: ", "/conf.d/99_output_file.toml: replaces its file at every start"],
            id="to a file",
        ),
    ],
)
def test_check_says_of_a_chain_for_replays_why_run_refuses_it(tmp_path: Path, changes: dict[str, str | None], lines: list[str]) -> None:
    conf = conf_with(tmp_path, changes)
    outcome = run("check", "--conf", conf)
    assert outcome.code == 0
    assert len(outcome.said) == len(lines)
    assert all(said.startswith("for replays only: ") and words in said for said, words in zip(outcome.said, lines, strict=True))
    started = run_real("run", "--conf", conf, NETSAGE_STATE=str(tmp_path / "state"))
    assert started.code == 2
    assert outcome.said[0].removeprefix("for replays only: ") in started.err.splitlines()
    assert run("replay", written(tmp_path / "dump", *SOME), "--conf", conf, "--to", "-").code == 0


@pytest.mark.parametrize("chain", [".", "import", "probe", "router", "sink"])
def test_every_shipped_chain_can_be_run(chain: str) -> None:
    outcome = run("check", "--conf", folders.shipped("conf.d") / chain, NETSAGE_SENSOR="border-1")
    assert (outcome.code, outcome.said) == (0, [])


def test_flows_of_capture_files_are_not_of_tstat(tmp_path: Path) -> None:
    """The worker would take them for whole."""
    conf = folders.shipped("conf.d") / "import"
    outcome = run("check", "--conf", conf, NETSAGE_SENSOR="border-1", NETSAGE_FLOW_TYPE="tstat")
    why = "sensors.0.flow_type: 'tstat' (from NETSAGE_FLOW_TYPE): Input should be 'netflow' or 'sflow'"
    assert (outcome.code, outcome.err.splitlines()) == (2, [f"{conf}/01_input_nfcapd.toml: {why}"])
    assert run("check", "--conf", conf, NETSAGE_SENSOR="border-1", NETSAGE_FLOW_TYPE="sflow").code == 0
    for command in ("replay", "publish"):
        refused = run(command, written(tmp_path / "dump", *SOME), "--flow-type", "tstat")
        assert refused.code == 2
        assert "'tstat' is not one of 'netflow', 'sflow'" in refused.err


def test_stages_lists_the_chain_in_order_with_what_each_reads_and_writes() -> None:
    outcome = run_real("stages")
    listed = outcome.out.decode().splitlines()
    heads, reads, writes = listed[::3], listed[1::3], listed[2::3]
    assert [head.split()[0] for head in heads] == OURS
    assert [head.split()[0] for head in heads if head.split()[1] == "off"] == ["15_sensor_specific", "41_ip_version", "42_communities"]
    assert {head.split()[2] for head in heads} == {"flow", "end", "input", "output"}
    assert all(Path(head.split()[3]).is_file() for head in heads)
    assert all(line.startswith("    reads   ") for line in reads)
    assert all(line.startswith("    writes  ") for line in writes)
    asn = OURS.index("50_asn")
    assert heads[asn].split()[1:3] == ["on", "end"]
    assert reads[asn] == "    reads   side, ip, asn, organization"
    assert writes[asn] == "    writes  asn, tags"
    assert outcome.code == 0


def test_stages_shows_inputs_and_outputs(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"99_output_file": ""})
    assert re.search(r"^99_output_file +on +output +\S", run("stages", "--conf", conf).out.decode(), re.MULTILINE)


def test_config_shows_every_setting_of_every_stage() -> None:
    shown = run_real("config").out.decode()
    assert re.findall(r"^# .*/(\w+)\.toml$", shown, re.MULTILINE) == OURS
    assert shown.count("\nenabled = ") == len(OURS)
    line = re.compile(r"\w+ = .+  # (from [^;]+; )?(default|default [^;].*|required); \S.*")
    assert all(line.fullmatch(each) for each in shown.splitlines() if each and each[0] != "#")


def test_config_of_one_stage_shows_that_alone() -> None:
    shown = run("config", "50_asn").out.decode().splitlines()
    assert shown[1:] == [
        "enabled = true  # default; Whether the stage runs",
        'database = "GeoLite2-ASN.mmdb"  # default; MaxMind ASN database, in NETSAGE_LOOKUPS unless absolute',
        "",
    ]


def test_config_of_an_unknown_stage_names_the_known_ones() -> None:
    outcome = run("config", "51_asn")
    assert outcome.err == f"51_asn: no such stage in this chain, which has {', '.join(OURS)}\n"
    assert (outcome.code, outcome.out) == (2, b"")


def test_the_version_is_told() -> None:
    assert run("--version").out.decode().strip().endswith(__version__)


@pytest.mark.parametrize(
    "command",
    [
        "",
        "replay",
        "check",
        "stages",
        "config",
        "lookups",
        "lookups update",
        "lookups info",
        "lookups build scireg",
        "lookups convert",
        "lookups show",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    outcome = run(*command.split(), "--help")
    assert outcome.code == 0
    usage, _, rest = outcome.out.decode().partition("\n\n")
    assert usage.startswith(f"Usage: main {command}".rstrip())
    assert re.match(r"  [A-Z][^\n]+[.:]", rest)


def test_the_examples_of_the_help_are_commands_and_options_that_exist() -> None:
    commands = re.findall(r"netsage-pipeline ([^|\n]+)", cli.EPILOG)
    for words in (example.split() for example in commands):
        command: Any = cli.main
        while words and hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert command is not cli.main, words
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_garbage_collector_is_on_again_behind_a_replay(tmp_path: Path) -> None:
    run("replay", written(tmp_path / "dump", *SOME), "--to", "/dev/null")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_the_order_of_fields_does_not_depend_on_the_process(tmp_path: Path) -> None:
    """Sets of texts have another order in every process."""
    flows = written(tmp_path / "flows.ndjson", flow(a=1, b=2, c=3, meta={"x": "1", "y": "2", "z": "3"}))
    outputs = {run_real("replay", flows, "--now", "1700000000", PYTHONHASHSEED=seed).out for seed in "123"}
    assert len(outputs) == 1


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_replay_with_a_line(tmp_path: Path, signal_: signal.Signals) -> None:
    command = ["replay", "-", "--to", str(tmp_path / "out")]
    with subprocess.Popen(
        [str(COMMAND), *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings(), text=True
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        for _ in range(1_000):
            if (tmp_path / "out").exists():
                break
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal_)
        assert "interrupted: the output is not complete" in process.stderr.read()
        assert process.wait(20) == 130


@pytest.mark.parametrize("there_before", [False, True])
def test_dead_letters_are_for_their_owner_only(tmp_path: Path, there_before: bool) -> None:
    if there_before:
        (tmp_path / "refused").write_bytes(b"")
        (tmp_path / "refused").chmod(0o644)
    run("replay", written(tmp_path / "flows.ndjson", flow(start=None)), "--dead-letters", tmp_path / "refused")
    assert (tmp_path / "refused").stat().st_mode & 0o777 == 0o600


def test_a_stage_file_without_settings_is_told(tmp_path: Path) -> None:
    (tmp_path / "65_mine.py").write_text('"""65 mine: nothing."""')
    result = run("check", "--stages", tmp_path)
    assert f"{tmp_path}/65_mine.py: does not run: " in result.err


def test_a_stage_that_forgets_to_return_the_flow_refuses_it(tmp_path: Path) -> None:
    stage_file(tmp_path, "12_mine", "return")
    conf = conf_with(tmp_path, {"12_mine": ""})
    result = run("replay", written(tmp_path / "flows.ndjson", flow()), "--stages", tmp_path, "--conf", conf)
    assert result.summary["12_mine: returned NoneType, which is neither the flow nor a reason to drop it"] == 1


def test_a_factory_that_forgets_to_return_the_function_is_an_error_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "12_mine.py").write_text(
        '"""12 mine: nothing."""\nfrom netsage_pipeline.config import Settings\nclass Config(Settings):\n    pass\n'
        "def stage(config, lookups):\n    pass\n"
    )
    result = run("check", "--stages", tmp_path, "--conf", conf_with(tmp_path, {"12_mine": ""}))
    assert result.code == 2
    assert result.err.endswith("12_mine.py: stage() returned NoneType: return the function that takes a flow\n")


def test_a_settings_file_with_another_ending_is_an_error(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {})
    (conf / "45_geoip.toml").rename(conf / "45_geoip.tml")
    result = run("check", "--conf", conf)
    assert result.code == 2
    assert f"{conf}/45_geoip.tml: is not read: the name of a settings file ends in .toml" in result.err


def test_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    flows = written(tmp_path / "flows.ndjson", flow())
    result = run("replay", flows, tmp_path)
    assert result.summary["read"] == 1
    assert "is given twice: it is read once" in result.err


def test_an_output_stays_when_there_is_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    assert run("replay", tmp_path / "nothing", "--to", tmp_path / "kept").code == 1
    assert (tmp_path / "kept").read_text() == "kept"


def test_flows_and_dead_letters_do_not_go_to_one_file(tmp_path: Path) -> None:
    flows = written(tmp_path / "flows.ndjson", flow())
    result = run("replay", flows, "--to", tmp_path / "x", "--dead-letters", tmp_path / "x")
    assert result.code == 2
    assert "cannot take both" in result.err


def test_check_shows_wrong_settings_and_broken_tables_together(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"45_geoip": "databse = 1"})
    result = run("check", "--conf", conf, lookups=tables_with(tmp_path, {"GeoLite2-ASN.mmdb": b"broken"}))
    assert result.code == 2
    assert f"{conf}/45_geoip.toml: databse: unknown setting, did you mean 'database'?" in result.err
    assert "/GeoLite2-ASN.mmdb: is no MaxMind DB file" in result.err


def test_dead_letters_are_written_while_the_replay_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They must not wait in memory for flows that never come."""
    waiting: list[int] = []
    write = replay.Replay._write_letters

    def watched(self: replay.Replay) -> None:
        waiting.append(len(self._chain.dead))
        write(self)

    monkeypatch.setattr(replay.Replay, "_write_letters", watched)
    refused = written(tmp_path / "flows.ndjson", *[flow(start=None)] * 5_000)
    assert run("replay", refused, "--dead-letters", tmp_path / "dead").code == 0
    assert sum(waiting) == 5_000
    assert max(waiting) <= replay.BATCH


def test_a_long_text_does_not_stop_the_replay(tmp_path: Path) -> None:
    """A megabyte of what an address might begin with, in an unknown field and as an address; generous, but not hours."""
    flows = written(
        tmp_path / "flows.ndjson", flow(note="a" * 1_000_000), flow(meta={"src_ip": "f" * 1_000_000}), flow(note="1.1." * 250_000)
    )
    began = time.monotonic()
    assert run("replay", flows).summary["read"] == 3
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("option", ["--to", "--dead-letters"])
def test_a_file_in_a_directory_that_is_read_is_not_overwritten(tmp_path: Path, option: str) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, flow())
    before = (tmp_path / "b").read_bytes()
    result = run("replay", tmp_path, option, tmp_path / "b")
    assert result.code == 2
    assert f"{tmp_path}/b: is read, so it cannot be written" in result.err
    assert (tmp_path / "b").read_bytes() == before


def test_a_flow_stage_that_reads_addresses_between_41_and_70_is_refused(tmp_path: Path) -> None:
    stage_file(tmp_path / "stages", "65_mine", "flow['meta']['client'] = flow['meta']['src_ip']\nreturn flow", reads="meta.src_ip")
    result = run("check", "--stages", tmp_path / "stages", "--conf", conf_with(tmp_path, {"65_mine": ""}))
    assert result.code == 2
    assert "65_mine reads full addresses between 41_leftovers and 70_deidentify, so what it writes is not masked" in result.err


@pytest.mark.parametrize("text", ["enabled = false", None], ids=["switched off", "left out"])
@pytest.mark.parametrize(
    ("stage", "does"),
    [
        ("10_preliminaries", "makes numbers of what should be numbers"),
        ("20_add_id", "replaces meta.id, whatever the input says in it"),
        ("40_aggregation", "replaces stitched_flows and @timestamp, whatever the input says in them"),
    ],
)
def test_a_chain_without_a_stage_that_41_relies_on_is_refused(tmp_path: Path, stage: str, does: str, text: str | None) -> None:
    flows = written(tmp_path / "flows.ndjson", flow(stitched_flows="192.0.2.1", **{"@timestamp": "192.0.2.1"}, meta={"id": "192.0.2.1"}))
    result = run("replay", flows, "--conf", conf_with(tmp_path, {stage: text}))
    assert (result.code, result.out) == (2, b"")
    [line] = result.err.splitlines()
    assert line.startswith(f"the output could see full addresses: {stage}, which {does}, does not run: enable it, or write allow_full_")


def test_a_stage_behind_41_that_writes_what_41_relies_on_does_not_replace_the_one_before_it(tmp_path: Path) -> None:
    stage_file(tmp_path / "stages", "92_mine", "return flow", writes="meta.id  text")
    result = run("check", "--stages", tmp_path / "stages", "--conf", conf_with(tmp_path, {"20_add_id": None, "92_mine": ""}))
    assert result.code == 2
    assert "20_add_id, which replaces meta.id, whatever the input says in it, does not run: enable it" in result.err


def test_the_arrival_clock_goes_with_the_newest_end(tmp_path: Path) -> None:
    """A second part whose start fits, but which comes three hours later, is a flow of its own; where time stands still it is not."""
    first, second = flow(start=NOW, end=NOW + 1, meta={"src_port": 1}), flow(start=NOW + 100, end=NOW + 101, meta={"src_port": 1})
    others = [flow(start=NOW + at, end=NOW + at + 1, meta={"src_port": 2 + at % 60_000}) for at in range(0, 10_800, 2)]
    dump = written(tmp_path / "dump", [first], others[:2_700], others[2_700:], *[[each] for each in others[-20:]], [second])
    for fixed, flows_of_it in (((), 2), (("--now", str(NOW + 20_000)), 1)):
        result = run("replay", dump, "--clock", "arrival", *fixed)
        assert sum(each["meta"]["src_port"] == 1 for each in result.flows) == flows_of_it


def test_what_a_replay_does_not_use_is_not_judged(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"01_input_rabbitmq": 'url = "${NOT_SET}"', "99_output_mine": ""})
    flows = written(tmp_path / "flows.ndjson", flow())
    assert run("replay", flows, "--conf", conf, "--to", "-").code == 0
    without = run("replay", flows, "--conf", conf)
    assert without.code == 2
    assert "01_input_rabbitmq" not in without.err
    assert "no stage 99_output_mine.py in" in without.err


def test_a_replay_with_settings_that_name_a_queue_writes_to_standard_output(tmp_path: Path) -> None:
    outcome = run("replay", written(tmp_path / "a", flow()), "--conf", conf_with(tmp_path, {}), NETSAGE_RABBITMQ_URL="amqp://127.0.0.1:1/")
    assert (outcome.code, len(outcome.flows)) == (0, 1)
    assert "standard output" not in outcome.err
    beside = conf_with(tmp_path / "beside", {"99_output_file": f'path = "{tmp_path}/out"'})
    assert run("replay", tmp_path / "a", "--conf", beside).out == b""
    assert (tmp_path / "out").read_bytes().count(b"\n") == 1


def test_check_asks_no_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        outcome = run("check", NETSAGE_RABBITMQ_URL=f"amqp://127.0.0.1:{server.getsockname()[1]}/")
        assert outcome.code == 0
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        pytest.param("http://u:geheim@h/", "it does not begin with amqp:// or amqps://", id="scheme"),
        pytest.param("geheim", "it does not begin with amqp:// or amqps://", id="no URL"),
        pytest.param("amqp://h/,amqp://:geheim@/", "URL 2 of 2 names no host", id="no host"),
        pytest.param("amqp://u:geheim@h:0/", "it names no port that can be used", id="port 0"),
        pytest.param("amqp://u:geheim@h:99999/", "it is no URL (", id="port"),
        pytest.param("amqp://u:ge/heim@h/", "it is no URL (", id="slash in the password"),
        pytest.param("amqp://u:12/geheim@h/", "it is no URL (", id="slash behind a number"),
        pytest.param("amqp://u:12?geheim@h/", "it is no URL (", id="question mark behind a number"),
        pytest.param("amqp://u:12,geheim@h/", "URL 2 of 2 does not begin with amqp:// or amqps://", id="comma in the password"),
    ],
)
def test_a_url_that_is_wrong_is_told_without_its_password(tmp_path: Path, url: str, wrong: str) -> None:
    conf = conf_with(tmp_path, {"99_output_rabbitmq": f'url = "{url}"'})
    outcome = run("check", "--conf", conf)
    [line] = [line for line in outcome.err.splitlines() if "no such table" not in line]
    assert line.startswith(f"{conf}/99_output_rabbitmq.toml: url: that value: {wrong}")
    assert line.endswith(": write amqp://user:password@host:5672/vhost")
    assert "geheim" not in outcome.err + outcome.out.decode()
    assert outcome.code == 2


def test_a_url_may_stand_in_a_file_of_its_own_and_is_never_shown(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("amqp://u:geheim@h/\n")
    conf = conf_with(tmp_path, {"01_input_rabbitmq": f'url_file = "{tmp_path}/url"'})
    outcome = run("config", "01_input_rabbitmq", "--conf", conf)
    assert f"url = ********  # from {tmp_path}/url; " in outcome.out.decode()
    assert b"geheim" not in outcome.out


def test_a_key_without_its_certificate_is_refused(tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {"01_input_rabbitmq": 'client_key_file = "/etc/key.pem"'})
    outcome = run("check", "--conf", conf)
    assert "client_key_file: PosixPath('/etc/key.pem')" not in outcome.err
    assert "a key without its certificate: set client_certificate_file too" in outcome.err


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ('ca_file = "none.pem"', "cannot be read: No such file or directory"),
        ('ca_file = "empty.pem"', "is no certificate: give it as PEM"),
        ('client_certificate_file = "none.pem"', "none.pem: cannot be read: No such file or directory"),
        ('client_certificate_file = "empty.pem"', "empty.pem: no certificate and its key: give both as PEM"),
        ('client_certificate_file = "empty.pem"\nclient_key_file = "other.pem"', "empty.pem and other.pem: no certificate and its key: "),
    ],
)
def test_files_for_tls_that_cannot_be_used_are_refused_before_it_starts(
    settings: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.pem").write_text("")
    outcome = run("check", "--conf", conf_with(tmp_path, {"01_input_rabbitmq": settings}))
    assert outcome.code == 2
    assert line in outcome.err


def test_dead_letters_and_flows_may_stand_in_one_file(tmp_path: Path) -> None:
    run("replay", written(tmp_path / "bad", flow(start="abc")), "--dead-letters", tmp_path / "refused")
    (tmp_path / "both").write_bytes(lines([flow()]) + (tmp_path / "refused").read_bytes())
    result = run("replay", tmp_path / "both")
    assert result.summary["read"] == 2
    assert result.summary["10_preliminaries: start: not a number"] == 1
