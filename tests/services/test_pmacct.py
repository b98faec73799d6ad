"""pmacct: what real daemons wrote, in Elasticsearch and as flows, with the sums of what was sent."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from netsage_pipeline.pmacct_plugin import indexing
from netsage_pipeline.pmacct_plugin import templates as plugin_templates
from tests.command import COMMAND, run, run_real, surroundings, written
from tests.services import pmacct
from tests.services.conftest import absent
from tests.services.elastic import Node
from tests.services.netflow import Sent, flows_of, ipfix
from tests.services.pmacct import FLOWS, Packet, collect, pcap, running, said, wait


@pytest.fixture(autouse=True)
def _daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    if not pmacct.available():
        absent("pmacct")
    monkeypatch.setenv("TZ", "UTC")


class Indices:
    """Indices of a test's own, and the directory of its plugins' settings."""

    def __init__(self, node: Node, conf: Path) -> None:
        self.prefix = f"pmacct-test-{uuid.uuid4().hex[:12]}"
        self.url, self.conf = node.url, conf
        self.client: Elasticsearch = node.client()

    def plugin(self, name: str, **settings: Any) -> Path:
        """Settings as TOML."""
        values = {"url": self.url, "index": f"{self.prefix}-%Y.%m.%d", **settings}
        path = self.conf / f"{name}.toml"
        path.write_text("".join(f"{key} = {json.dumps(value, default=str)}\n" for key, value in values.items()), "utf-8")
        return path

    def run(self, name: str, *arguments: str | Path, stdin: bytes = b"") -> Any:
        return run("pmacct", name, "--conf", self.conf, *arguments, stdin=stdin)

    def documents(self) -> list[dict[str, Any]]:
        self.client.indices.refresh(index=f"{self.prefix}*")
        hits = self.client.search(index=f"{self.prefix}*", size=10_000)["hits"]["hits"]
        return [{"_index": hit["_index"], "_id": hit["_id"], "_version": hit.get("_version"), **hit["_source"]} for hit in hits]

    def sums(self) -> tuple[int, int, int]:
        """Documents, packets and bytes, as Elasticsearch adds them up."""
        self.client.indices.refresh(index=f"{self.prefix}*")
        answer = self.client.search(
            index=f"{self.prefix}*",
            size=0,
            track_total_hits=True,
            aggregations={name: {"sum": {"field": name}} for name in ("packets", "bytes")},
        )
        found = answer["aggregations"]
        return answer["hits"]["total"]["value"], round(found["packets"]["value"]), round(found["bytes"]["value"])


@pytest.fixture
def indices(elastic: Node, tmp_path: Path) -> Iterator[Indices]:
    (tmp_path / "conf").mkdir()
    made = Indices(elastic, tmp_path / "conf")
    yield made
    for index in made.client.indices.get(index=f"{made.prefix}*", expand_wildcards="all", filter_path="*.aliases").body:
        made.client.indices.delete(index=index)
    made.client.options(ignore_status=404).indices.delete_index_template(name=f"pmacct-{made.prefix}*")
    made.client.close()


def sent(number: int) -> list[Sent]:
    """Flows on two days, so many that they are stitched with none."""
    later = (43_200_000 * (each % 2) for each in range(number))
    return [replace(flow, start_ms=flow.start_ms + ms, end_ms=flow.end_ms + ms) for flow, ms in zip(flows_of(number), later, strict=True)]


def totals(flows: list[Sent]) -> tuple[int, int, int]:
    return len(flows), sum(each.packets for each in flows), sum(each.octets for each in flows)


def of_flows(outcome: Any) -> tuple[int, int, int]:
    values = [flow["values"] for flow in outcome.flows]
    return len(values), sum(each["num_packets"] for each in values), sum(each["num_bits"] for each in values) // 8


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_print_plugin_triggers_what_writes_its_records(indices: Indices, tmp_path: Path, form: str) -> None:
    """nfacctd's print plugin, as an operator sets it up: output file, trigger script, settings of the plugin."""
    flows, output, trigger = sent(100), tmp_path / f"my_print.{form}", tmp_path / "trigger"
    indices.plugin("my_print", input_file=output)
    trigger.write_text(
        f"#!/bin/sh\n{COMMAND} pmacct my_print --conf {indices.conf} >>{tmp_path}/told 2>&1\necho exit $? >>{tmp_path}/told\n"
    )
    trigger.chmod(0o755)
    tags = tmp_path / "tags"
    tags.write_text("set_tag=7 ip=0.0.0.0/0\n")
    lines = {
        "plugins": "print[my_print]",
        "aggregate[my_print]": FLOWS,
        "print_output[my_print]": form,
        "print_output_file[my_print]": output,
        "print_trigger_exec[my_print]": trigger,
        "print_markers": "true",
        "pre_tag_map": tags,
    }
    collect(tmp_path, ipfix(flows), lines)
    wait(lambda: (tmp_path / "told").exists() and "exit" in (tmp_path / "told").read_text(), 60)
    assert (tmp_path / "told").read_text().splitlines() == [
        f"index template pmacct-{indices.prefix}: installed",
        f"{output}: 100 records read, 100 written",
        "exit 0",
    ]
    assert indices.sums() == totals(flows)
    documents = indices.documents()
    days = [f"{indices.prefix}-2023.11.14", f"{indices.prefix}-2023.11.15"]
    assert [sum(each["_index"] == day for each in documents) for day in days] == [50, 50]
    names = ("src_ip", "src_port", "bytes") if form == "csv" else ("ip_src", "port_src", "bytes")
    assert sorted(tuple(each[name] for name in names) for each in documents) == sorted(
        (each.src_ip, each.src_port, each.octets) for each in flows
    )

    again = indices.run("my_print")
    assert (again.code, again.err) == (0, f"{output}: 100 records read, 100 written\n")
    assert sorted(each["_id"] for each in indices.documents()) == sorted(each["_id"] for each in documents)
    assert indices.sums() == totals(flows)

    replayed = run_real("replay", output)
    assert replayed.code == 0
    assert of_flows(replayed) == totals(flows)
    assert {flow["meta"]["sensor_id"] for flow in replayed.flows} == {"7"}
    assert {flow["meta"]["src_ip"] for flow in replayed.flows} == {"128.101.1.x", "2001:468:1:0:x:x:x:x"}
    assert {flow["meta"]["src_organization"] for flow in replayed.flows} != {None}
    starts = {flow["meta"]["src_port"]: flow["start"] for flow in replayed.flows}
    assert (starts[1000], starts[1003]) == ("2023-11-14T22:13:20.123Z", "2023-11-15T10:13:23.114Z")


@pytest.mark.parametrize("changes", [{}, {"timestamps_rfc3339": "true"}, {"timestamps_since_epoch": "true"}])
def test_times_are_the_exporters_in_every_form(tmp_path: Path, changes: dict[str, str]) -> None:
    flows = sent(4)
    output = tmp_path / "out.json"
    lines = {"plugins": "print[p]", "aggregate[p]": FLOWS, "print_output[p]": "json", "print_output_file[p]": output, **changes}
    collect(tmp_path, ipfix(flows), lines)
    found = run_real("replay", output, "--sensor", "border-1").flows
    starts = {flow["meta"]["src_port"]: (flow["start"][-13:], round(flow["values"]["duration"], 3)) for flow in found}
    assert starts == {
        1000: ("22:13:20.123Z", 0.001),
        1001: ("10:13:21.120Z", 0.014),
        1002: ("22:13:22.117Z", 0.027),
        1003: ("10:13:23.114Z", 0.04),
    }


PACKETS = [Packet(f"128.101.1.{1 + each % 3}", "141.211.2.2", 1_000 + each % 3, 53, 1_700_000_000 + each, 10 + each) for each in range(60)]


def test_packets_of_a_file_come_out_of_pmacctd(indices: Indices, tmp_path: Path) -> None:
    """pcap_savefile, print plugins JSON and CSV side by side: the same in both."""
    lines: dict[str, object] = {
        "pcap_savefile": pcap(tmp_path / "packets.pcap", PACKETS),
        "plugins": "print[j], print[c]",
        "aggregate": "src_host, dst_host, src_port, dst_port, proto, timestamp_start",
        "print_output[j]": "json",
        "print_output[c]": "csv",
        "print_output_file[j]": tmp_path / "out.json",
        "print_output_file[c]": tmp_path / "out.csv",
        "print_refresh_time": 3600,
    }
    with running("pmacctd", tmp_path, lines) as daemon:
        daemon.wait(60)
    wait(lambda: said(tmp_path).count("Purging cache - END") == 2)
    octets = sum(each.octets for each in PACKETS)
    for form in ("json", "csv"):
        indices.plugin(form, input_file=tmp_path / f"out.{form}", index=f"{indices.prefix}-{form}")
        assert indices.run(form).code == 0
        replayed = run_real("replay", tmp_path / f"out.{form}", "--sensor", "packets")
        assert of_flows(replayed) == (3, 60, octets)
        assert {flow["stitched_flows"] for flow in replayed.flows} == {20}
    assert indices.sums() == (120, 120, 2 * octets)


def test_a_memory_plugin_is_read_by_its_client_from_cron(indices: Indices, tmp_path: Path) -> None:
    lines: dict[str, object] = {
        "pcap_savefile": pcap(tmp_path / "packets.pcap", PACKETS),
        "pcap_savefile_wait": "true",
        "plugins": "memory[my_mem]",
        "aggregate": "src_host, dst_host, src_port, dst_port, proto",
        "imt_path[my_mem]": tmp_path / "my_mem.pipe",
    }
    letters = tmp_path / "letters"
    indices.plugin("my_mem", dead_letters=letters)
    client = shutil.which("pmacct")
    ask = f"{client} -l -p {tmp_path}/my_mem.pipe -s -O json"
    with running("pmacctd", tmp_path, lines):
        wait(lambda: "finished reading PCAP" in said(tmp_path))  # Whoever asks it before hangs it.
        wait(lambda: b'"packets": 20' in subprocess.run(ask.split(), capture_output=True, check=False).stdout)
        for form in ("json", "csv"):
            ended = subprocess.run(
                ["sh", "-c", f"{ask.replace('json', form)} | {COMMAND} pmacct my_mem --conf {indices.conf}"],
                capture_output=True,
                text=True,
                env=surroundings(),
                check=False,
            )
            assert ended.returncode == 0, ended.stderr
            assert "standard input: 3 records read, 3 written" in ended.stderr
    octets = sum(each.octets for each in PACKETS)
    assert indices.sums() == (6, 120, 2 * octets)
    assert not letters.exists()


def test_settings_of_pmacct_to_elasticsearch_serve_as_they_are(indices: Indices, tmp_path: Path) -> None:
    """Its own examples of transformations, its own template, a trailing comma."""
    theirs = """{
        "ES_URL": "%s", "ES_IndexName": "%s-%%Y-%%m-%%d", "ES_Type": "ingress_traffic", "InputFile": "%s",
        "Transformations": [
            { "Conditions": [ { "peer_ip_src": "10.0.0.1" }, { "iface_in": 1 } ],
              "Actions": [ { "Type": "AddField", "Name": "peer_name", "Value": "MyUpstream1" } ] },
            { "Conditions": [ { "as_src": "", "__op__": "!=" } ],
              "Actions": [ { "Type": "AddFieldLookup", "Name": "as_src_name",
                             "LookupFieldName": "as_src", "LookupTableFile": "AS_map.json" } ] },
        ],
    }"""
    source = written(
        tmp_path / "in.json",
        {"peer_ip_src": "10.0.0.1", "iface_in": 1, "packets": 2, "bytes": 100, "as_src": 36040},
        {"peer_ip_src": "10.0.0.1", "iface_in": 2, "packets": 3, "bytes": 200, "as_src": 32934},
    )
    (indices.conf / "my_print.conf").write_text(theirs % (indices.url, indices.prefix, source), "utf-8")
    (indices.conf / "AS_map.json").write_text('{"36040": "$as_src - YouTube", "*": "$as_src",}', "utf-8")
    old = '{"mappings": {"_default_": {"_all": {"enabled": false}, "dynamic_templates": [{"string_template": {"match": "*", '
    old += '"match_mapping_type": "string", "mapping": {"type": "string", "index": "not_analyzed"}}}], '
    old += '"properties": {"bytes": {"type": "long"}}}}}'
    (indices.conf / "new-index-template.json").write_text(old, "utf-8")
    os.utime(source, (1_700_000_000, 1_700_000_000))
    outcome = indices.run("my_print")
    assert (outcome.code, outcome.err.splitlines()[1:]) == (0, [f"{source}: 2 records read, 2 written"])
    found = sorted((each["bytes"], each.get("peer_name"), each["as_src_name"], each["_index"]) for each in indices.documents())
    index = f"{indices.prefix}-2023-11-14"  # Without times of their own they are of the time of the file.
    assert found == [(100, "MyUpstream1", "36040 - YouTube", index), (200, None, "32934", index)]
    mapping = indices.client.indices.get_mapping(index=index)[index]["mappings"]
    assert mapping["properties"]["as_src_name"] == {"type": "keyword"}


RECORD = {"ip_src": "128.101.1.1", "timestamp_start": "2023-11-14 22:13:20.123000", "packets": 1, "bytes": 10}


def test_equal_records_of_one_file_are_two_and_of_the_same_file_again_none(indices: Indices, tmp_path: Path) -> None:
    indices.plugin("p", input_file=written(tmp_path / "in", RECORD, RECORD, RECORD | {"bytes": 5}, RECORD))
    for _ in range(2):
        assert indices.run("p").code == 0
        assert indices.sums() == (4, 4, 35)
    written(tmp_path / "in", RECORD, RECORD | {"bytes": 6})
    assert indices.run("p").code == 0
    assert indices.sums() == (5, 5, 41)


def test_what_is_refused_is_kept_with_its_reason_and_can_be_given_in_again(indices: Indices, tmp_path: Path) -> None:
    good = json.dumps(RECORD).encode()
    bad = [RECORD | {"bytes": "many", "packets": number} for number in range(7)]
    source = written(tmp_path / "in", good, b"not json", *bad, b"[1]", RECORD | {"timestamp_start": "2023-11-15 00:00:00", "bytes": 7})
    with source.open("ab") as file:
        file.write(good[:30])
    indices.plugin("p", input_file=source)
    outcome = indices.run("p")
    letters = tmp_path / "in.dead-letters.ndjson"
    assert outcome.code == 0
    assert outcome.err.splitlines()[1:] == [
        f"{source}: 12 records read, 2 written",
        f"{source}: 7 refused: bytes: document_parsing_exception: failed to parse field [bytes] of type [long]: "
        f'illegal_argument_exception: For input string: "…" (line 3, 4, 5, 6, 7 …): kept in {letters}',
        f"{source}: 1 refused: neither JSON nor CSV (line 2): kept in {letters}",
        f"{source}: 1 refused: not JSON: cut off? (line 12): kept in {letters}",
        f"{source}: 1 refused: not an object (line 10): kept in {letters}",
    ]
    assert stat.S_IMODE(letters.stat().st_mode) == 0o600
    content = letters.read_bytes()
    assert len(content.splitlines()) == 10
    indices.run("p")
    assert letters.read_bytes() == content

    # The cause is mended: the settings make a number of it.
    settings = indices.conf / "p.toml"
    mended = '\n[[transformations]]\nconditions = [{ bytes = "many" }]\nactions = [{ type = "AddField", name = "bytes", value = 1000 }]\n'
    settings.write_text(settings.read_text() + mended)
    kept = letters.rename(tmp_path / "kept")
    again = indices.run("p", "--input", kept)
    assert again.err.splitlines()[0] == f"{kept}: 10 records read, 7 written"
    assert indices.sums() == (9, 2 + sum(range(7)), 7_017)
    assert len(letters.read_bytes().splitlines()) == 3


def test_a_time_that_no_calendar_has_costs_no_other_record(indices: Indices, tmp_path: Path) -> None:
    indices.plugin("p", index=f"{indices.prefix}-x", dead_letters=tmp_path / "letters")
    records = [{"bytes": 1, "timestamp_start": 1e30}, {"bytes": 2, "@timestamp": 10**18}, {"bytes": 4}]
    outcome = indices.run("p", stdin=b"\n".join(json.dumps(record).encode() for record in records))
    assert outcome.code == 0
    assert "standard input: 1 refused: @timestamp: is no time, so there is no index for it (line 2)" in outcome.err
    assert indices.sums()[::2] == (2, 5)


def test_where_dead_letters_cannot_be_kept_the_rest_goes_on(indices: Indices, tmp_path: Path) -> None:
    letters = written(tmp_path / "no directory") / "letters"
    indices.plugin("p", dead_letters=letters, index=f"{indices.prefix}-x")
    bad = json.dumps(RECORD | {"bytes": "many"}).encode()
    outcome = indices.run("p", stdin=b"\n".join([b"[1]", bad, *[json.dumps(RECORD).encode()] * 600]))
    assert outcome.code == 1
    unwritable, counts, *reasons = outcome.err.splitlines()[1:]
    assert unwritable.startswith(f"{letters.parent}: cannot be written, and some refused records would have to be kept in it: ")
    assert counts == "standard input: 602 records read, 600 written"
    assert [line[-18:] for line in reasons] == ["(line 2): not kept", "(line 1): not kept"]
    assert indices.sums()[0] == 600


def test_a_dead_letter_that_was_cut_off_is_written_anew(indices: Indices, tmp_path: Path) -> None:
    """What a full disk leaves behind, and the same file again once there is room."""
    source = written(tmp_path / "in", b"[1]", b"[2]", RECORD)
    letters = tmp_path / "in.dead-letters.ndjson"
    indices.plugin("p", input_file=source)
    assert indices.run("p").code == 0
    first, second = letters.read_bytes().splitlines()
    letters.write_bytes(first + b"\n" + second[:-20])
    assert indices.run("p").code == 0
    assert letters.read_bytes().splitlines() == [first, second[:-20], second]


def test_a_dead_letter_that_was_edited_costs_no_other_record(indices: Indices, tmp_path: Path) -> None:
    indices.plugin("p", index=f"{indices.prefix}-x", dead_letters=tmp_path / "letters")
    letter = {"id": "", "stage": "pmacct", "source": "", "reason": None, "position": 5, "payload": RECORD | {"@timestamp": 1_700_000_000}}
    records = [letter, letter | {"payload": 1}, RECORD | {"bytes": 4}]
    outcome = indices.run("p", stdin=b"\n".join(json.dumps(record).encode() for record in records))
    assert (outcome.code, outcome.err.splitlines()[1]) == (0, "standard input: 3 records read, 2 written")
    assert indices.sums()[::2] == (2, 14)


def test_a_template_that_the_server_refuses_is_one_clear_line(indices: Indices, tmp_path: Path) -> None:
    (indices.conf / "template.json").write_text('{"mappings": {"properties": {"bytes": {"type": "lang"}}}}')
    source = written(tmp_path / "in", RECORD)
    indices.plugin("p", input_file=source, template="template.json")
    outcome = indices.run("p")
    letters = tmp_path / "in.dead-letters.ndjson"
    template, *lines = outcome.err.splitlines()
    assert outcome.code == 1
    assert template.startswith(f"index template pmacct-{indices.prefix} (template.json): Elasticsearch does not take it: ")
    assert "The mapper type […] does not exist" in template
    assert lines == [
        f"{source}: 1 records read, 0 written",
        f"{source}: 1 not written: kept in {letters}: move it away and give it in again with --input",
    ]
    (indices.conf / "template.json").unlink()
    indices.plugin("p", input_file=source)
    assert indices.run("p", "--input", letters.rename(tmp_path / "kept")).code == 0
    assert indices.sums() == (1, 1, 10)


def mapped(indices: Indices, index: str) -> Any:
    return indices.client.indices.get_mapping(index=index)[index]["mappings"]["properties"]["ip_src"]


def test_a_template_serves_whoever_shares_its_name_however_their_indices_are_dated(indices: Indices) -> None:
    given = json.dumps(RECORD).encode()
    for number, dated in enumerate(["%Y-%m-%d", "%Y.%m", "%Y-%m-%d", "%Y.%m"]):
        indices.plugin("p", index=f"{indices.prefix}-{dated}")
        outcome = indices.run("p", stdin=given)
        assert ("installed" in outcome.err) == (number < 2)
    assert {mapped(indices, f"{indices.prefix}-{date}")["type"] for date in ("2023-11-14", "2023.11")} == {"keyword"}


def test_plugins_that_share_indices_but_no_template_are_told(indices: Indices) -> None:
    for kind in ("keyword", "ip"):
        (indices.conf / f"{kind}.json").write_text(json.dumps({"mappings": {"properties": {"ip_src": {"type": kind}}}}))
    given = json.dumps(RECORD).encode()

    def said(name: str, template: str) -> str:
        indices.plugin(name, template=f"{template}.json", index=f"{indices.prefix}-%Y.%m.%d")
        return str(indices.run(name, stdin=given).err).partition("standard input")[0]

    installed = f"index template pmacct-{indices.prefix}: installed"
    assert said("one", "keyword") == said("two", "ip") == f"{installed}\n"
    again = "for the same indices: name one template in the settings of all\n"
    assert said("one", "keyword") == f"{installed} in place of that of two, {again}"
    assert said("two", "ip") == f"{installed} in place of that of one, {again}"
    assert said("one", "ip") == ""
    (indices.conf / "ip.json").write_text('{"settings": {"number_of_replicas": 0}}')
    assert said("one", "ip") == f"{installed}\n"
    assert said("two", "ip") == ""


def test_a_changed_template_is_for_the_next_index_but_not_over_somebody_elses(indices: Indices) -> None:
    template = indices.conf / "template.json"
    for number, ip in enumerate(["text", "ip", "ip"]):
        template.write_text(json.dumps({"mappings": {"properties": {"ip_src": {"type": ip}}}}))
        indices.plugin("p", template="template.json", index=f"{indices.prefix}-%Y.%m.%d")
        record = RECORD | {"timestamp_start": f"2023-11-{10 + number} 00:00:00"}
        assert ("installed" in indices.run("p", stdin=json.dumps(record).encode()).err) == (number < 2)
        assert mapped(indices, f"{indices.prefix}-2023.11.{10 + number}")["type"] == ip

    theirs = {"index_patterns": [f"{indices.prefix}-*"], "template": {"mappings": {"properties": {"ip_src": {"type": "keyword"}}}}}
    indices.client.indices.put_index_template(name=f"pmacct-{indices.prefix}", body=theirs)
    assert "installed" not in indices.run("p", stdin=json.dumps(RECORD).encode()).err
    assert mapped(indices, f"{indices.prefix}-2023.11.14")["type"] == "keyword"


def test_a_server_that_takes_nothing_is_given_up_and_what_it_missed_is_kept(
    indices: Indices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP 400 where an index is to be created: here because it would be too many shards, for which the server says why."""
    monkeypatch.setattr(indexing, "GIVE_UP_S", 12.0)
    (indices.conf / "template.json").write_text('{"settings": {"number_of_shards": 1024, "number_of_replicas": 0}}')
    source = written(tmp_path / "in", RECORD, RECORD)
    indices.plugin("p", input_file=source, template="template.json")
    outcome = indices.run("p")
    letters = tmp_path / "in.dead-letters.ndjson"
    assert outcome.code == 1
    waits = [line for line in outcome.err.splitlines() if "waits for Elasticsearch" in line]
    assert len(waits) == 1
    assert "this action would add [1024] shards" in waits[0]
    assert outcome.err.splitlines()[-1] == f"{source}: 2 not written: kept in {letters}: move it away and give it in again with --input"

    indices.client.indices.delete_index_template(name=f"pmacct-{indices.prefix}")
    indices.plugin("p", input_file=source)
    for path in (letters.rename(tmp_path / "kept"), source):
        assert indices.run("p", "--input", path).code == 0
        assert indices.sums() == (2, 2, 20)


def test_who_is_told_to_stop_puts_aside_what_is_not_written(indices: Indices, tmp_path: Path) -> None:
    """SIGTERM while the server refuses to create the index: no record is lost, and it does not take long."""
    source = written(tmp_path / "in", *[RECORD | {"packets": number} for number in range(5_000)])
    indices.plugin("p", input_file=source, template="template.json")
    (indices.conf / "template.json").write_text('{"settings": {"number_of_shards": 1024, "number_of_replicas": 0}}')
    with (tmp_path / "told").open("wb") as told:
        process = subprocess.Popen([COMMAND, "pmacct", "p", "--conf", indices.conf], stderr=told, env=surroundings())
    try:
        wait(lambda: "waits for Elasticsearch" in (tmp_path / "told").read_text(), 60)
        process.terminate()
        assert process.wait(10) == 1
    finally:
        process.kill()
        process.wait()
    letters = tmp_path / "in.dead-letters.ndjson"
    assert f"{source}: 5,000 not written: kept in {letters}" in (tmp_path / "told").read_text()
    assert len(letters.read_bytes().splitlines()) == 5_000


def test_who_is_told_to_stop_before_the_server_answered_keeps_what_it_is_given(indices: Indices, tmp_path: Path) -> None:
    """What comes out of a memory plugin is nowhere else."""
    letters = tmp_path / "letters"
    indices.plugin("p", url="http://127.0.0.1:9", dead_letters=letters)
    command: list[str | Path] = [COMMAND, "pmacct", "p", "--conf", indices.conf]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings()) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(5)
        process.terminate()
        _, told = process.communicate(json.dumps(RECORD), 20)
    assert process.returncode == 1
    assert told.splitlines()[:2] == ["Elasticsearch: Connection refused: nothing is written", "standard input: 1 records read, 0 written"]
    assert len(letters.read_bytes().splitlines()) == 1


def test_who_is_told_to_stop_twice_says_what_it_keeps(indices: Indices, tmp_path: Path) -> None:
    """It waits for more of standard input, which does not come."""
    letters = tmp_path / "letters"
    indices.plugin("p", dead_letters=letters)
    command: list[str | Path] = [COMMAND, "pmacct", "p", "--conf", indices.conf]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings()) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(RECORD).encode() + b"\n")
        process.stdin.flush()
        assert b"installed" in process.stderr.readline()
        for _ in range(2):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)
            process.terminate()
        assert process.wait(20) == 130
        told = process.stderr.read().decode().splitlines()
    assert told == [
        "standard input: 1 records read, 0 written",
        f"standard input: 1 not written: kept in {letters}: move it away and give it in again with --input",
    ]


def test_a_server_that_is_not_there_is_one_clear_line(indices: Indices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_templates, "PATIENCE_S", 0.0)
    source = written(tmp_path / "in", RECORD)
    indices.plugin("p", input_file=source, url="http://127.0.0.1:9")
    outcome = indices.run("p")
    assert outcome.code == 1
    assert outcome.err.splitlines()[0] == "Elasticsearch: Connection refused: nothing is written"
    assert len((tmp_path / "in.dead-letters.ndjson").read_bytes().splitlines()) == 1


def test_a_file_that_is_rewritten_while_it_is_read_is_told_and_read_again(
    indices: Indices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The print plugin writes its next file when 200 bytes of this one were read."""
    source = written(tmp_path / "in", *[RECORD | {"packets": number} for number in range(100)])
    monkeypatch.setattr("netsage_pipeline.pmacct_plugin.snapshot._CHUNK", 200)
    looks = []
    status = os.fstat

    def rewriting(number: int) -> os.stat_result:
        looks.append(number)
        if len(looks) == 3:
            written(source, *[RECORD | {"packets": 1_000 + number} for number in range(3)])
        return status(number)

    monkeypatch.setattr(os, "fstat", rewriting)
    indices.plugin("p", input_file=source)
    outcome = indices.run("p")
    assert outcome.code == 1
    told = outcome.err.splitlines()
    assert f"{source}: was rewritten while it was read, behind line 2: the rest is lost, what stands there now follows" in told
    assert f"{source}: 5 records read, 4 written" in told
    assert indices.sums()[:2] == (4, 0 + 3_003)


def test_what_the_netflow_module_wrote_is_dumped_and_replayed(indices: Indices, tmp_path: Path) -> None:
    """Documents as Logstash's codec makes them, nested and flat, out of Elasticsearch."""
    octets = 0
    for number in range(40):
        fields = {
            "version": 9,
            "ipv4_src_addr": "128.101.1.1",
            "ipv4_dst_addr": "141.211.2.2",
            "l4_src_port": 1_000 + number,
            "l4_dst_port": 443,
            "protocol": 6,
            "in_pkts": 2,
            "in_bytes": 100 + number,
            "first_switched": f"2023-11-14T22:13:{number:02}.123Z",
            "last_switched": f"2023-11-14T22:14:{number:02}.456Z",
            "src_as": 217,
        }
        octets += 100 + number
        flat = {f"netflow.{name}": value for name, value in fields.items()}
        document = {
            "@timestamp": f"2023-11-14T22:15:{number:02}.000Z",
            "host": "192.0.2.7",
            **({"netflow": fields} if number % 2 else flat),
        }
        indices.client.index(index=f"{indices.prefix}-module", document=document)
    indices.client.indices.refresh(index=f"{indices.prefix}-module")
    dumped = run(
        *("dump", "--from", "2023-11-14", "--to", "2023-11-15", "--index", f"{indices.prefix}-module", "--id-field", ""),
        *("--out", tmp_path / "dumped.ndjson"),
        NETSAGE_ELASTICSEARCH_URL=indices.url,
    )
    assert dumped.code == 0, dumped.err
    replayed = run_real("replay", tmp_path / "dumped.ndjson", "--sensor", "module")
    assert of_flows(replayed) == (40, 80, octets)
    assert {(flow["meta"]["sensor_id"], flow["meta"]["protocol"]) for flow in replayed.flows} == {("module", "tcp")}
    first = min(replayed.flows, key=lambda flow: flow["start"])
    assert (first["start"], first["values"]["duration"]) == ("2023-11-14T22:13:00.123Z", 60.333)
