"""The command netsage-pipeline: replay, check, stages, config; an operator's own stages; dead letters that are replayed."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from netsage_pipeline import __version__, cli, folders, replay
from netsage_pipeline.read import Dump
from tests.command import (
    COMMAND,
    LOOKUPS,
    OF_THE_RUN,
    conf_with,
    letters,
    lines,
    run,
    run_real,
    stage_file,
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
    flows = [line for name in ("02-stages-netflow", "04-interleaved") for line in (CONFORMANCE / f"{name}.in.ndjson").read_bytes().splitlines()]
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
    outcome = run("replay", dump, tmp_path / "none", written(tmp_path / "cut.gz", b"")._replace_with(b"\x1f\x8b\x08"))
    assert outcome.summary | {"read": 0} == {
        "read": 0,
        "dropped": 3,
        "10_preliminaries: end before start": 1,
        "10_preliminaries: private address": 2,
        "dead letters": 3,
        "decode: not JSON": 1,
        "10_preliminaries: start: not a number": 1,
        "10_preliminaries: meta.src_ip: not a text": 1,
        "stitched": 3,
        "60_scireg: not in the registry": 6,
        "written": 3,
    }
