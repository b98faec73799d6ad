"""Bad input and bad settings: one line says where, what and what to do; the exit code fits; never a traceback."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from netsage_pipeline import folders
from tests.command import COMMAND, LOOKUPS, conf_with, letters, lines, run, run_real, stage_file, surroundings, tables_with, written
from tests.flows import MISSING, flow

NOW = ("--now", "1700000000")
OURS = folders.shipped("conf.d")
NO_FULL_DISK = pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="/dev/full: absent")


def some_flows(number: int) -> list[Any]:
    return [flow(meta={"src_port": port}) for port in range(number)]


# Files that cannot be read


@pytest.mark.parametrize(
    ("given", "line"),
    [
        pytest.param("{tmp}/none.ndjson", "{tmp}/none.ndjson: no such file or directory", id="no such file"),
        pytest.param("", "'': no such file or directory: is a variable empty?", id="an empty argument is not the current directory"),
        pytest.param("{tmp}/" + "x" * 300, "{tmp}/" + "x" * 300 + ": cannot be read: File name too long", id="too long a name"),
        pytest.param("/proc/self/mem", "/proc/self/mem: cannot be read: Input/output error", id="an error while reading"),
        pytest.param(
            "{tmp}",
            "{tmp}: holds no flows: no nfcapd file and no JSON, .gz or .zst among its 3 files",
            id="a directory without flows",
        ),
    ],
)
def test_what_cannot_be_read_is_named_and_the_exit_code_is_1(tmp_path: Path, given: str, line: str) -> None:
    (tmp_path / "notes.txt").write_text("nothing of interest")
    (tmp_path / "empty.ndjson").touch()
    (tmp_path / ".hidden.ndjson").write_bytes(lines([flow()]))
    outcome = run("replay", given.format(tmp=tmp_path))
    assert outcome.said == [line.format(tmp=tmp_path), "nothing could be read"]
    assert (outcome.code, outcome.out) == (1, b"")


def test_a_name_that_is_not_utf8_is_written_as_one_can(tmp_path: Path) -> None:
    """Of a file with a bad line, and of a directory that is the sensor of a record and the host of a connection."""
    directory = tmp_path / os.fsdecode(b"x\xff")
    record = {"bytes": 1000, "packets": 1, "timestamp_start": 1_700_000_000, "ip_src": "128.101.1.1", "ip_dst": "141.211.2.2"}
    file = written(directory / os.fsdecode(b"y\xfe.ndjson"), record, b'{"bro')
    for given in (file, directory):
        for sensor, options in (("x\\xff", []), ("z\\xff", ["--sensor", os.fsdecode(b"z\xff")])):
            outcome = run_real("replay", given, "--dead-letters", tmp_path / "letters", *options)
            assert [flow["meta"]["sensor_id"] for flow in outcome.flows] == [sensor]
            assert [each["source"] for each in letters(tmp_path / "letters")] == [f"{directory.parent}/x\\xff/y\\xfe.ndjson"]
    file.write_text("Proto Recv-Q Send-Q Local Address  Foreign Address  State\nbad\ntcp 0 0 192.0.2.1:22 192.0.2.2:4000 ESTABLISHED\n")
    outcome = run_real("replay", "--conf", OURS / "probe", "--to", tmp_path / "out", file)
    assert outcome.summary["written"] == outcome.summary["passed over"] == 1
    assert letters(tmp_path / "out")[0]["host"] == "x\\xff"
    (directory / "gone.gz").write_bytes(b"\x1f\x8b\x08")
    assert "Traceback" not in run_real("replay", directory, directory / os.fsdecode(b"gone\xfd")).err


def test_a_file_that_is_missing_does_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    outcome = run_real("replay", tmp_path / "none", written(tmp_path / "a.ndjson", *some_flows(3)))
    assert outcome.said == [f"{tmp_path}/none: no such file or directory"]
    assert (outcome.code, len(outcome.flows)) == (0, 3)


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"])
def test_flows_before_the_end_of_a_truncated_file_come_through(tmp_path: Path, compress: Any) -> None:
    # Numbers drawn at random, so that there is something left after compression: zstd gives out blocks of 128 KiB only.
    flows = [flow(meta={"src_port": number, "comment": os.urandom(30).hex()}) for number in range(3_000)]
    whole = compress(lines(flows))
    dump = tmp_path / "cut"
    dump.write_bytes(whole[: len(whole) // 2])
    outcome = run_real("replay", dump)
    assert outcome.said == [f"{dump}: is truncated or damaged: the end is missing: fetch it again; the flows before were read"]
    assert f"  {outcome.said[0]}\n" in outcome.err.replace(outcome.said[0], "", 1)  # in the summary, too
    came = [each["meta"]["src_port"] for each in outcome.flows]
    assert sorted(came) == list(range(len(came)))
    assert 1_200 < len(came) <= 1_500
    assert outcome.code == 0


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(gzip.compress(b"{}")[:3], "the end is missing", id="three bytes of a gzip file"),
        pytest.param(
            b"\x1f\x8b" + b"x" * 100, "Error -3 while decompressing data: unknown compression method", id="no gzip behind its magic"
        ),
        pytest.param(
            b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "zstd decompressor error: Unsupported frame parameter", id="no zstd behind its magic"
        ),
    ],
)
def test_a_file_that_is_damaged_from_its_beginning_leaves_nothing_to_read(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "dump").write_bytes(content)
    outcome = run("replay", tmp_path)
    assert outcome.said == [f"{tmp_path}/dump: is truncated or damaged: {what}: fetch it again; the flows before were read"]
    assert outcome.code == 1


def test_garbage_behind_a_gzip_member_is_told_and_the_member_is_read(tmp_path: Path) -> None:
    dump = tmp_path / "a.gz"
    dump.write_bytes(gzip.compress(lines(some_flows(3))) + b"garbage")
    outcome = run("replay", dump)
    assert outcome.said == [
        f"{dump}: is truncated or damaged: Error -3 while decompressing data: incorrect header check: "
        "fetch it again; the flows before were read"
    ]
    assert (outcome.code, len(outcome.flows)) == (0, 3)


def test_lines_before_the_end_of_a_truncated_file_whose_first_line_is_broken_come_through(tmp_path: Path) -> None:
    dump = tmp_path / "cut.gz"
    whole = gzip.compress(b'{"broken\n' + lines(some_flows(500)))
    dump.write_bytes(whole[: len(whole) // 2])
    outcome = run("replay", dump)
    assert outcome.said == [f"{dump}: is truncated or damaged: the end is missing: fetch it again; the flows before were read"]
    assert len(outcome.flows) > 100
    assert outcome.summary["decode: not JSON"] == 1


# Messages that are no flows

REFUSED = [
    pytest.param(b"garbage", "not JSON", "garbage", id="not JSON"),
    pytest.param(b"42", "not an object", 42, id="a number"),
    pytest.param(b'"text"', "not an object", "text", id="a text"),
    pytest.param(b"null", "not an object", None, id="null"),
    pytest.param(b"true", "not an object", True, id="a boolean"),
    pytest.param(b"[[]]", "not an object", [], id="an array in an array"),
    pytest.param(b'{"start": NaN}', "NaN or infinity", {"base64": "eyJzdGFydCI6IE5hTn0="}, id="NaN"),
    pytest.param(b"\xff\xfe\x00", "not JSON", None, id="bytes that are no text"),
]


@pytest.mark.parametrize(("message", "reason", "payload"), REFUSED)
def test_what_is_no_flow_is_a_dead_letter_and_the_lines_around_it_come_through(
    tmp_path: Path, message: bytes, reason: str, payload: Any
) -> None:
    dump = written(tmp_path / "a.ndjson", flow(), message, flow(meta={"src_port": 1}))
    outcome = run("replay", dump, "--dead-letters", tmp_path / "refused")
    assert (outcome.code, len(outcome.flows), outcome.said) == (0, 2, [])
    assert outcome.summary[f"decode: {reason}"] == 1
    (letter,) = letters(tmp_path / "refused")
    assert (letter["stage"], letter["reason"], letter["source"]) == ("decode", reason, str(dump))
    assert letter["position"] == ("2.0" if message.startswith(b"[") else "2")
    assert set(letter) == {"id", "stage", "reason", "source", "position", "payload"}
    if payload is not None and reason != "not JSON":
        assert letter["payload"] == payload


@pytest.mark.parametrize(("message", "reason", "payload"), REFUSED)
def test_a_file_of_nothing_else_is_no_error(tmp_path: Path, message: bytes, reason: str, payload: Any) -> None:  # noqa: ARG001
    outcome = run("replay", written(tmp_path / "a.ndjson", message))
    assert (outcome.code, outcome.out) == (0, b"")
    assert outcome.summary[f"decode: {reason}"] == 1
    assert outcome.err.endswith("the refused flows were only counted: --dead-letters FILE keeps them\n")


@pytest.mark.parametrize(("number", "reason"), [(b"NaN", "NaN or infinity"), (b"9" * 5_000, "integer beyond 64 bits")], ids=["NaN", "long"])
def test_an_odd_number_in_a_document_over_many_lines_costs_one_flow(tmp_path: Path, number: bytes, reason: str) -> None:
    document = b'[\n  {\n    "start": %s\n  },\n%s]\n' % (number, lines([flow()]))
    outcome = run("replay", written(tmp_path / "a.json", document))
    assert len(outcome.flows) == 1
    assert outcome.summary[f"decode: {reason}"] == outcome.summary["dead letters"] == 1


WRONG_TYPES: dict[str, tuple[Any, str, str]] = {
    "start": ("yesterday", "10_preliminaries", "start: not a number"),
    "end": (None, "10_preliminaries", "end: missing"),
    "meta": ("text", "10_preliminaries", "meta: not an object"),
    "values": (5, "10_preliminaries", "values: not an object"),
    "meta.src_ip": (5, "10_preliminaries", "meta.src_ip: not a text"),
    "meta.dst_ip": (["192.0.2.1"], "10_preliminaries", "meta.dst_ip: not a text"),
    "meta.src_port": ("http", "10_preliminaries", "meta.src_port: not a number"),
    "meta.dst_port": (True, "10_preliminaries", "meta.dst_port: not a number"),
    "meta.src_asn": ("AS7", "10_preliminaries", "meta.src_asn: not a number"),
    "meta.dst_asn": ({}, "10_preliminaries", "meta.dst_asn: not a number"),
    "meta.src_ifindex": ("eth0", "10_preliminaries", "meta.src_ifindex: not a number"),
    "meta.dst_ifindex": ([], "10_preliminaries", "meta.dst_ifindex: not a number"),
    "meta.sensor_id": ([], "10_preliminaries", "meta.sensor_id: neither text nor number"),
    "meta.instance_id": ({}, "10_preliminaries", "meta.instance_id: neither text nor number"),
    "meta.flow_type": ([], "10_preliminaries", "meta.flow_type: neither text nor number"),
    "meta.protocol": (False, "10_preliminaries", "meta.protocol: neither text nor number"),
    "values.duration": ("long", "10_preliminaries", "values.duration: not a number"),
    "values.num_bits": ("1,234", "10_preliminaries", "values.num_bits: not a number"),
    "values.num_packets": (1 << 63, "10_preliminaries", "values.num_packets: beyond 64 bits"),
    "values.bits_per_second": ("", "10_preliminaries", "values.bits_per_second: not a number"),
    "values.packets_per_second": ([1], "10_preliminaries", "values.packets_per_second: not a number"),
}


def test_wrong_types_in_every_field_are_dead_letters_and_their_neighbours_in_the_array_come_through(tmp_path: Path) -> None:
    array: list[Any] = []
    for path, (value, _, _) in WRONG_TYPES.items():
        holder, _, name = path.rpartition(".")
        array += [flow(**({holder: {name: value}} if holder else {name: value})), flow(meta={"src_port": len(array)})]
    outcome = run("replay", written(tmp_path / "a.ndjson", array), "--dead-letters", tmp_path / "refused")
    assert [(letter["stage"], letter["reason"], letter["position"]) for letter in letters(tmp_path / "refused")] == [
        (stage, reason, f"1.{2 * index}") for index, (_, stage, reason) in enumerate(WRONG_TYPES.values())
    ]
    assert outcome.code == 0
    assert len(outcome.flows) == outcome.summary["dead letters"] == len(WRONG_TYPES)


@pytest.mark.parametrize("name", ["num_bits", "num_packets"])
def test_a_flow_without_counts_is_refused_before_it_is_held(tmp_path: Path, name: str) -> None:
    outcome = run("replay", written(tmp_path / "a", [flow(values={name: MISSING}), flow()]), "--dead-letters", tmp_path / "refused")
    assert [letter["stage"] for letter in letters(tmp_path / "refused")] == ["40_aggregation"]
    assert name in letters(tmp_path / "refused")[0]["reason"]
    assert len(outcome.flows) == 1


BROKEN_LETTERS = [
    pytest.param({"stage": ["a"]}, "decode: not a dead letter", id="a stage that is no text"),
    pytest.param({"payload": {"base64": 5}}, "decode: not a dead letter", id="base64 that is no text"),
    pytest.param({"payload": {"base64": "abc"}}, "decode: not a dead letter", id="base64 that is damaged"),
    pytest.param({"payload": {"base64": "YW!Jj"}}, "decode: not a dead letter", id="base64 with other characters in it"),
    pytest.param({"stage": "66_gone"}, "66_gone: no such stage in this chain", id="a stage that is not in the chain"),
    pytest.param({"payload": 5, "stage": "70_deidentify"}, "decode: not an object", id="a payload that is no flow"),
]


def letter_of(payload: Any, **changes: Any) -> dict[str, Any]:
    return {"id": "x", "stage": "10_preliminaries", "reason": "r", "source": "s", "position": "1", "payload": payload, **changes}


@pytest.mark.parametrize(("changes", "reason"), BROKEN_LETTERS)
def test_a_broken_dead_letter_is_a_dead_letter_and_the_others_are_replayed(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    whole = letter_of(flow())
    outcome = run("replay", written(tmp_path / "a", whole, letter_of(**{"payload": flow(), **changes}), b"garbage"))
    assert (outcome.code, len(outcome.flows)) == (0, 1)
    assert outcome.summary[reason] == outcome.summary["decode: not JSON"] == 1
    assert outcome.summary["dead letters"] == 2


# Stages

RAISES = "if flow['meta']['src_port'] == 1:\n    raise KeyError(flow['meta']['src_ip'])\nreturn flow"


@pytest.mark.parametrize("name", ["12_mine", "65_mine", "92_mine"])
def test_a_stage_that_raises_costs_that_flow_and_its_text_is_not_told(tmp_path: Path, name: str) -> None:
    stages = stage_file(tmp_path / "stages", name, RAISES)
    conf = conf_with(tmp_path, {name: ""})
    dump = written(tmp_path / "a.ndjson", some_flows(3))
    outcome = run("replay", dump, "--conf", conf, "--stages", stages, "--dead-letters", tmp_path / "refused")
    assert outcome.code == 0
    assert sorted(each["meta"]["src_port"] for each in outcome.flows) == [0, 2]
    (letter,) = letters(tmp_path / "refused")
    assert letter["stage"] == name
    assert letter["reason"] == f"raised KeyError ({name}.py:19)"
    assert outcome.summary[f"{name}: raised KeyError ({name}.py:19)"] == outcome.summary["dead letters"] == 1


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        pytest.param("65_mine", "def stage(:\n", "{file}:1: syntax error: invalid syntax", id="a syntax error"),
        pytest.param(
            "65_mine", "import nothing_of_that_name\n", "{file}: cannot be loaded: ModuleNotFoundError: No module named", id="an import"
        ),
        pytest.param("65_mine", "x = 1\n", "{file}: has no Config: give it 'class Config(Settings)'", id="no Config"),
        pytest.param(
            "65_mine",
            "from netsage_pipeline.config import Settings as Config\n",
            "{file}: has no factory: give it 'def stage(config, lookups)' or 'def end(config, lookups)'",
            id="no factory",
        ),
        pytest.param(
            "65_mine",
            "from netsage_pipeline.config import Settings as Config\ndef stage(config, lookups):\n    return 1 / 0\n",
            "{file}: stage() raised ZeroDivisionError: division by zero",
            id="a factory that raises",
        ),
        pytest.param(
            "65_mine",
            '"""65 mine: x.\n\nReads   ip, protocol\nWrites  nothing\n"""\n'
            "from netsage_pipeline.config import Settings as Config\ndef end(config, lookups):\n    return print\n",
            "{file}: reads 'protocol', which an end of a flow does not hold there: it begins with side, ip, asn, earlier end stages add ",
            id="an end stage that reads what it may not",
        ),
        pytest.param("66_else", "", "{conf}/65_mine.toml: no stage 65_mine.py in {ours} or {stages}", id="settings without a stage"),
    ],
)
@pytest.mark.parametrize("command", [["replay", "{dump}"], ["check"]])
def test_a_stage_file_that_cannot_be_used_is_named(tmp_path: Path, command: list[str], name: str, content: str, line: str) -> None:
    dump = written(tmp_path / "a.ndjson", flow())
    stages = tmp_path / "stages"
    stages.mkdir()
    (stages / f"{name}.py").write_text(content)
    conf = conf_with(tmp_path, {"65_mine": ""})
    outcome = run(*(each.format(dump=dump) for each in command), "--conf", conf, "--stages", stages)
    (told,) = outcome.err.splitlines()
    assert told.startswith(line.format(file=stages / f"{name}.py", conf=conf, ours=folders.shipped("stages"), stages=stages))
    assert (outcome.code, outcome.out) == (2, b"")


def test_an_end_stage_that_reads_what_it_may_not_is_told_what_it_may(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "stages", "46_mine", "pass", reads="ip, protocol", kind="end")
    outcome = run("check", "--conf", conf_with(tmp_path, {"46_mine": ""}), "--stages", stages)
    (told,) = outcome.err.splitlines()
    assert "country_name" in told  # what 45 writes
    assert "scireg" not in told  # what only 60 writes
    assert told.endswith("what depends on other fields is a flow stage (def stage)")


# Lookup tables


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        pytest.param("GeoLite2-ASN.mmdb", b"no database", ["is no MaxMind DB file, or is truncated: fetch it again"], id="no mmdb"),
        pytest.param(
            "GeoLite2-City.mmdb",
            (LOOKUPS / "GeoLite2-City.mmdb").read_bytes()[:3000],
            ["is no MaxMind DB file, or is truncated: fetch it again"],
            id="a truncated mmdb",
        ),
        pytest.param("scireg.mmdb", b"", ["is no MaxMind DB file, or is truncated: fetch it again"], id="an empty mmdb"),
        pytest.param(
            "CAIDA-org-lookup.csv",
            b"asn,org\n217,A\nAS7,B\n8\n9,C\n",
            [
                "line 3: not 'asn,organization': the first field must be a whole number",
                "line 4: not 'asn,organization': the first field must be a whole number",
            ],
            id="a csv with bad rows",
        ),
        pytest.param(
            "sensor_types.json", b'{"a": 1,', ["line 1: is not JSON: Expecting property name enclosed in double quotes"], id="no JSON"
        ),
        pytest.param(
            "members/a.toml",
            b'asns = [217]\n[members]\n"444.55.66.0/32" = "A"\n"192.0.2.0/24" = "B"\n',
            ["a.toml: members: '444.55.66.0/32' is not a prefix such as 192.0.2.0/24 or 2001:db8::/32"],
            id="a member list with a malformed prefix",
        ),
    ],
)
@pytest.mark.parametrize("command", [["replay", "{dump}"], ["check"]])
def test_a_broken_table_is_named_before_anything_is_read(
    tmp_path: Path, command: list[str], name: str, content: bytes, told: list[str]
) -> None:
    dump = written(tmp_path / "a.ndjson", flow())
    tables = tables_with(tmp_path, {name: content})
    outcome = run(*(each.format(dump=dump) for each in command), lookups=tables)
    place = tables / name.partition("/")[0]
    assert outcome.err.splitlines() == [f"{place}: {line}" for line in told]
    assert (outcome.code, outcome.out) == (2, b"")


def test_a_missing_table_is_one_warning_and_its_stage_goes_on(tmp_path: Path) -> None:
    tables = tables_with(tmp_path, {"CAIDA-org-lookup.csv": None})
    outcome = run_real("replay", written(tmp_path / "a.ndjson", flow(), flow(meta={"src_port": 1})), lookups=tables)
    warning = (
        f"{tables}/CAIDA-org-lookup.csv: no such table: its stage goes on as if nothing were found in it (tables are in NETSAGE_LOOKUPS)"
    )
    assert outcome.said == [warning]
    assert outcome.err.count("no such table") == 1
    assert outcome.code == 0
    assert {each["meta"]["src_organization"] for each in outcome.flows} == {"Unknown"}


def test_all_tables_may_be_missing_each_is_named_once(tmp_path: Path) -> None:
    outcome = run("replay", written(tmp_path / "a.ndjson", flow()), lookups=tmp_path / "nowhere")
    missing = [line.partition(": ")[0] for line in outcome.err.splitlines() if "no such table" in line]
    names = [
        "GeoLite2-City.mmdb",
        "GeoLite2-ASN.mmdb",
        "CAIDA-org-lookup.csv",
        "members",
        "scireg.mmdb",
        "sensor_groups.json",
        "sensor_types.json",
    ]
    assert missing == [f"{tmp_path}/nowhere/{name}" for name in names]
    assert (outcome.code, len(outcome.flows)) == (0, 1)


def test_a_missing_table_is_no_error_for_check(tmp_path: Path) -> None:
    outcome = run("check", lookups=tmp_path / "nowhere")
    assert outcome.code == 0
    assert outcome.err.count("no such table: its stage would go on") == 7


# Outputs


@pytest.mark.parametrize("option", ["--to", "--dead-letters"])
@pytest.mark.parametrize(
    ("target", "why"),
    [
        pytest.param("{tmp}", "Is a directory", id="a directory"),
        pytest.param("{tmp}/no/such/out", "No such file or directory", id="in no directory"),
        pytest.param("{tmp}/a.ndjson/out", "Not a directory", id="below a file"),
    ],
)
def test_an_output_that_cannot_be_opened_is_named(tmp_path: Path, option: str, target: str, why: str) -> None:
    dump = written(tmp_path / "a.ndjson", flow())
    path = target.format(tmp=tmp_path)
    outcome = run_real("replay", dump, option, path)
    assert outcome.said == [f"{path}: cannot be written: {why}: name another file with {option}"]
    assert (outcome.code, outcome.out) == (1, b"")


@pytest.mark.parametrize("option", ["--to", "--dead-letters"])
def test_a_file_that_is_read_is_not_overwritten(tmp_path: Path, option: str) -> None:
    dump = written(tmp_path / "a.ndjson", flow())
    before = dump.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(dump)
    outcome = run("replay", dump, option, link)
    assert outcome.err.splitlines() == [f"{link}: is read, so it cannot be written: name another file with {option}"]
    assert outcome.code == 2
    assert dump.read_bytes() == before


@NO_FULL_DISK
@pytest.mark.parametrize("number", [3, 3_000], ids=["at the end", "in between"])
def test_a_full_disk_ends_the_replay_with_a_line(tmp_path: Path, number: int) -> None:
    outcome = run_real("replay", written(tmp_path / "a.ndjson", *some_flows(number)), "--to", "/dev/full")
    (told,) = outcome.said
    assert told.startswith("/dev/full: cannot be written: No space left on device: ")
    assert told.endswith(" flows went out before; make room and run it again")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err


@NO_FULL_DISK
@pytest.mark.parametrize("number", [3, 3_000], ids=["at the end", "in between"])
def test_a_full_disk_for_dead_letters_ends_the_replay_with_a_line(tmp_path: Path, number: int) -> None:
    dump = written(tmp_path / "a.ndjson", *[b"garbage"] * number, *some_flows(2_000))
    outcome = run_real("replay", dump, "--to", tmp_path / "out", "--dead-letters", "/dev/full")
    (told,) = outcome.said
    assert told.startswith("/dev/full: cannot be written: No space left on device: ")
    assert outcome.code == 1
    assert "Traceback" not in outcome.err


@NO_FULL_DISK
@pytest.mark.parametrize("command", [["replay", "{dump}"], ["stages"], ["config"], ["check"], ["lookups", "show", "192.0.2.1"]])
def test_a_full_disk_behind_standard_output_ends_every_command_with_a_line(tmp_path: Path, command: list[str]) -> None:
    dump = written(tmp_path / "a.ndjson", flow())
    with Path("/dev/full").open("wb") as full:
        given = [str(COMMAND), *(each.format(dump=dump) for each in command)]
        result = subprocess.run(given, stdout=full, stderr=subprocess.PIPE, env=surroundings(), text=True, check=False)
    told = [line for line in result.stderr.splitlines() if "no such table" not in line]
    assert len(told) == 1, result.stderr
    assert told[0].startswith("standard output: cannot be written: No space left on device: ")
    assert result.returncode == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("tmpfs: cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_what_fits_on_a_small_disk_are_whole_flows_but_for_the_last(tmp_path: Path, small_disk: Path) -> None:
    output = small_disk / "out"
    outcome = run_real("replay", written(tmp_path / "a.ndjson", *some_flows(3_000)), "--to", output)
    (told,) = outcome.said
    assert told.startswith(f"{output}: cannot be written: No space left on device: ")
    assert outcome.code == 1
    assert output.stat().st_size == 64 * 1024


def test_a_reader_that_goes_is_no_traceback(tmp_path: Path) -> None:
    dump = written(tmp_path / "a.ndjson", *some_flows(5_000))
    script = f"{COMMAND} replay {dump} | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], env=surroundings(), capture_output=True, text=True, check=False)
    assert result.stdout.count("\n") == 1
    (told,) = [line for line in result.stderr.splitlines() if "no such table" not in line]
    assert told.startswith("standard output: its reader has gone: ")
    assert result.returncode == 1


@pytest.mark.parametrize("command", ["stages", "config"])
def test_a_reader_of_a_list_may_go(command: str) -> None:
    result = subprocess.run(
        ["bash", "-c", f"{COMMAND} {command} | head -1"], env=surroundings(), capture_output=True, text=True, check=False
    )
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


# Settings on the command line


@pytest.mark.parametrize("now", ["nonsense", "-1", "nan", "inf", "1e10", ""])
def test_a_now_that_is_no_unix_time_is_refused(tmp_path: Path, now: str) -> None:
    outcome = run("replay", written(tmp_path / "a.ndjson", flow()), f"--now={now}")
    assert outcome.err.splitlines() == [f"--now: '{now}' is neither a unix time in seconds nor off"]
    assert (outcome.code, outcome.out) == (2, b"")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(
            ["--clock", "sundial"], "Error: Invalid value for '--clock': 'sundial' is not one of 'event', 'arrival'.", id="a clock"
        ),
        pytest.param(["--min-bytes", "many"], "Error: Invalid value for '--min-bytes': 'many' is not a valid integer.", id="bytes"),
        pytest.param(
            ["--conf", "/no/conf.d"],
            f"/no/conf.d: no such directory of settings; ours are in {OURS}",
            id="no settings",
        ),
        pytest.param(["--stages", "/no/stages"], "/no/stages: no such directory of stages", id="no stages"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, arguments: list[str], line: str) -> None:
    outcome = run("replay", written(tmp_path / "a.ndjson", flow()), *arguments)
    assert outcome.err.splitlines()[-1] == line
    assert (outcome.code, outcome.out) == (2, b"")


# Full addresses

REFUSALS = {
    "70_deidentify": "70_deidentify, which masks src_ip and dst_ip, does not run",
    "41_leftovers": "41_leftovers, which masks addresses in unknown fields, does not run",
}


@pytest.mark.parametrize("off", [None, "enabled = false\n"], ids=["left out", "switched off"])
@pytest.mark.parametrize("command", [["replay", "{dump}"], ["check"]])
def test_a_chain_that_could_let_a_full_address_out_is_refused(tmp_path: Path, command: list[str], off: str | None) -> None:
    dump = written(tmp_path / "a.ndjson", flow())
    conf = conf_with(tmp_path, dict.fromkeys(REFUSALS, off))
    outcome = run(*(each.format(dump=dump) for each in command), "--conf", conf)
    assert outcome.err.splitlines() == [
        f"the output could see full addresses: {why}: enable it, or write allow_full_addresses = true into {conf}/99_output_rabbitmq.toml"
        for why in REFUSALS.values()
    ]
    assert (outcome.code, outcome.out) == (2, b"")


@pytest.mark.parametrize("stage", REFUSALS)
def test_the_settings_of_the_output_may_allow_full_addresses_by_name(tmp_path: Path, stage: str) -> None:
    dump = written(tmp_path / "a.ndjson", flow(meta={"comment": "192.0.2.1"}))
    conf = conf_with(tmp_path, {stage: None, "99_output_file": ""})
    outcome = run("replay", dump, "--conf", conf)
    assert outcome.err.splitlines() == [
        f"the output could see full addresses: {REFUSALS[stage]}: enable it, or write allow_full_addresses = true "
        f"into {conf}/99_output_file.toml"
    ]
    assert outcome.code == 2
    (conf / "99_output_file.toml").write_text("allow_full_addresses = true")
    outcome = run("replay", dump, "--conf", conf)
    assert outcome.code == 0
    assert b"192.0.2.1" in outcome.out


@pytest.mark.parametrize("arguments", [[], NOW])
def test_without_such_permission_no_full_address_comes_out(tmp_path: Path, arguments: list[str]) -> None:
    outcome = run("replay", written(tmp_path / "a.ndjson", flow(meta={"comment": "192.0.2.1"})), *arguments)
    assert outcome.code == 0
    assert len(outcome.flows) == 1
    assert b"192.0.2.1" not in outcome.out


@pytest.mark.parametrize(
    "body", ["flow['me'] = flow\nreturn flow", "flow['a'] = {(1, 2): 3}\nreturn flow"], ids=["itself", "names that are no texts"]
)
def test_what_a_stage_made_that_nobody_can_write_is_a_dead_letter(tmp_path: Path, body: str) -> None:
    own = stage_file(tmp_path / "own", "97_strange", body)
    (tmp_path / "dump").write_bytes(lines([flow()]))
    outcome = run(
        "replay", tmp_path / "dump", "--conf", conf_with(tmp_path, {"97_strange": ""}), "--stages", own, "--dead-letters", tmp_path / "dead"
    )
    assert outcome.code == 0, outcome.err
    assert outcome.flows == []
    assert [letter["stage"] for letter in letters(tmp_path / "dead")] == ["99_output"]
