"""replay of nfcapd files: what was sent to a real nfcapd comes out enriched, sums, ASNs and times to the millisecond."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.times import iso
from tests.command import conf_with, letters, run, run_real, stage_file
from tests.services.conftest import Collect
from tests.services.netflow import BEGIN_MS, Sent, flows_of, ipfix, netflow9

JSON_FLOW = b'{"start": 1700000000, "end": 1700000001, "values": {"num_bits": 8, "num_packets": 1}}'

Dumped = Callable[..., Path]


@pytest.fixture
def dumped(collect: Collect, tmp_path: Path) -> Dumped:
    """Sends flows to an nfcapd and gives its file the name of a capture time."""
    made = []

    def dump(name: str, flows: Sequence[Sent], export: Callable[[Sequence[Sent]], list[bytes]] = ipfix) -> Path:
        made.append(name)
        file = collect(tmp_path / f"collected{len(made)}", export(flows))
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(file, target))

    return dump


def with_ways(number: int) -> list[Sent]:
    """Flows of different ASNs, some of which have counts of both directions."""
    return [
        replace(flow, src_asn=(217, 3356)[each % 2], dst_asn=11_537 + each, out_packets=each % 4, out_octets=each % 4 * 100)
        for each, flow in enumerate(flows_of(number))
    ]


def of_flow(flow: Any) -> tuple[Any, ...]:
    meta, values = flow["meta"], flow["values"]
    of_meta = tuple(meta[name] for name in ("src_port", "protocol", "src_asn", "dst_asn"))
    return (*of_meta, flow["start"], flow["end"], values["num_bits"], values["num_packets"], values["duration"])


def of_sent(sent: Sent) -> tuple[Any, ...]:
    times = (iso(sent.start_ms / 1000), iso(sent.end_ms / 1000))
    bits, packets = (sent.octets + sent.out_octets) * 8, sent.packets + sent.out_packets
    protocol = {6: "tcp", 17: "udp"}[sent.protocol]
    return (sent.src_port, protocol, sent.src_asn, sent.dst_asn, *times, bits, packets, (sent.end_ms - sent.start_ms) / 1000)


@pytest.mark.parametrize("export", [netflow9, ipfix])
def test_every_flow_comes_out_of_the_chain_as_it_was_sent(dumped: Dumped, export: Any) -> None:
    sent = with_ways(250)
    outcome = run_real("replay", dumped("chic/nfcapd.202311142210", sent, export))
    assert outcome.code == 0
    assert sorted(map(of_flow, outcome.flows)) == sorted(map(of_sent, sent))
    assert sum(flow["values"]["num_bits"] for flow in outcome.flows) == sum((each.octets + each.out_octets) * 8 for each in sent)
    assert {flow["meta"]["src_ip"] for flow in outcome.flows} == {"128.101.1.x", "2001:468:1:0:x:x:x:x"}
    assert {(flow["meta"]["sensor_id"], flow["meta"]["flow_type"]) for flow in outcome.flows} == {("chic", "netflow")}
    assert outcome.summary["read"] == outcome.summary["written"] == 250


def test_a_counter_beyond_64_bits_costs_its_flow_alone(dumped: Dumped, tmp_path: Path) -> None:
    beyond = [Sent(src_port=2, octets=1 << 61), Sent(src_port=3, packets=(1 << 64) - 1, out_packets=1)]
    file = dumped("a/nfcapd.202311142210", [Sent(src_port=1), *beyond, Sent(src_port=4)], netflow9)
    outcome = run_real("replay", file, "--dead-letters", tmp_path / "letters")
    assert sorted(flow["meta"]["src_port"] for flow in outcome.flows) == [1, 4]
    refused = {each["payload"]["meta"]["src_port"]: (each["reason"], each["payload"]["values"]) for each in letters(tmp_path / "letters")}
    assert {port: reason for port, (reason, _) in refused.items()} == {
        2: "values.num_bits: beyond 64 bits",
        3: "values.num_packets: beyond 64 bits",
    }
    assert (refused[2][1]["num_bits"], refused[3][1]["num_packets"]) == (str(1 << 64), str(1 << 64))


def test_the_ifindexes_reach_the_stages(dumped: Dumped, tmp_path: Path) -> None:
    body = "meta = flow['meta']\nmeta['ways'] = [meta['src_ifindex'], meta['dst_ifindex']]\nreturn flow"
    stages = stage_file(tmp_path / "stages", "91_ways", body, reads="meta.{src,dst}_ifindex", writes="meta.ways  integers")
    outcome = run(
        "replay", dumped("a/nfcapd.202311142210", with_ways(3)), "--stages", stages, "--conf", conf_with(tmp_path, {"91_ways": ""})
    )
    assert [flow["meta"]["ways"] for flow in outcome.flows] == [[Sent.in_if, Sent.out_if]] * 3


def test_parts_of_long_flows_are_stitched_in_order_of_capture_time_across_directories(dumped: Dumped, tmp_path: Path) -> None:
    def part(number: int, **changes: Any) -> Sent:
        began = BEGIN_MS + 600_000 * number
        return replace(Sent(start_ms=began, end_ms=began + 599_000, octets=1_000 + number, packets=10 + number), **changes)

    # Only in this order every part begins at most 630 s behind the one before it.
    dumped("dumps/b/2023/11/nfcapd.202311142200", [part(0, src_asn=1)])
    dumped("dumps/a/nfcapd.202311142210", [part(1)])
    dumped("dumps/b/2023/11/nfcapd.202311142220", [part(2)])
    dumped("dumps/a/nfcapd.202311142230", [part(3)])
    outcome = run("replay", tmp_path / "dumps", "--sensor", "one")
    (flow,) = outcome.flows
    assert flow["stitched_flows"] == 4
    assert (flow["start"], flow["end"]) == (iso(BEGIN_MS / 1000), iso((BEGIN_MS + 2_399_000) / 1000))
    assert (flow["values"]["num_bits"], flow["values"]["num_packets"]) == ((4_000 + 6) * 8, 46)
    assert flow["values"]["duration"] == 2399.0
    assert flow["meta"]["src_asn"] == 1
    assert "parts → 1 flows" in outcome.err


def test_without_a_name_given_a_sensor_is_called_like_its_directory(dumped: Dumped, tmp_path: Path) -> None:
    for directory in ("chic", "newy"):
        dumped(f"dumps/{directory}/nfcapd.202311142210", [Sent()])
    assert {flow["meta"]["sensor_id"] for flow in run("replay", tmp_path / "dumps").flows} == {"chic", "newy"}
    (flow,) = run("replay", tmp_path / "dumps", "--sensor", "one", "--flow-type", "sflow").flows
    assert (flow["meta"]["sensor_id"], flow["meta"]["flow_type"], flow["stitched_flows"]) == ("one", "sflow", 2)


def test_rows_below_the_minimum_of_bytes_are_left_out_after_aggregation_and_counted(dumped: Dumped) -> None:
    file = dumped("a/nfcapd.202311142210", [Sent(src_port=1, octets=600), Sent(src_port=1, octets=400), Sent(src_port=2, octets=999)])
    outcome = run("replay", file, "--min-bytes", "1000")
    assert [(flow["meta"]["src_port"], flow["values"]["num_bits"]) for flow in outcome.flows] == [(1, 8_000)]
    assert outcome.summary["left out"] == outcome.summary["read"] == 1
    assert len(run("replay", file).flows) == 2


def test_a_file_of_which_all_rows_are_left_out_was_read_all_the_same(dumped: Dumped) -> None:
    outcome = run("replay", dumped("a/nfcapd.202311142210", [Sent()]), "--min-bytes", "1001")
    assert (outcome.code, outcome.out, outcome.summary["left out"]) == (0, b"", 1)
    assert "nothing could be read" not in outcome.err


def test_files_in_the_making_and_files_without_records_are_passed_over(dumped: Dumped, tmp_path: Path) -> None:
    whole = dumped("a/nfcapd.202311142210", [Sent()])
    shutil.copy(whole, tmp_path / "a" / "nfcapd.current.4711")
    shutil.copy(dumped("empty", [], lambda _: []), tmp_path / "a" / "nfcapd.202311142215")
    outcome = run("replay", tmp_path / "a")
    assert (outcome.code, outcome.said, outcome.flows[0]["stitched_flows"]) == (0, [], 1)
    whole.unlink()
    outcome = run("replay", tmp_path / "a")
    line = f"{tmp_path}/a: holds no flows: no nfcapd file and no JSON, .gz or .zst among its 2 files"
    assert outcome.said == [line, "nothing could be read"]
    assert outcome.code == 1


def test_nfcapd_files_and_json_are_read_together(dumped: Dumped, tmp_path: Path) -> None:
    dumped("a/nfcapd.202311142210", with_ways(3))
    outcome = run("replay", tmp_path / "a", "--to", tmp_path / "a" / "json")
    assert outcome.summary["written"] == 3
    raw = run_real(
        "replay", tmp_path / "a", "-", stdin=b'{"start": 1700000000, "end": 1700000001, "values": {"num_bits": 8, "num_packets": 1}}'
    )
    assert raw.summary["read"] == 3 + 1 + 3


def test_a_truncated_file_is_told_and_the_others_are_read(dumped: Dumped, tmp_path: Path) -> None:
    whole = dumped("a/nfcapd.202311142210", with_ways(3))
    cut = tmp_path / "a" / "nfcapd.202311142205"
    cut.write_bytes(whole.read_bytes()[:100])
    outcome = run_real("replay", tmp_path / "a")
    (told,) = outcome.said
    assert told.startswith(f"{cut}: nfdump could not read all of it (exit code ")
    assert told.endswith("copy it again or move it away; rows that came before are good")
    assert (outcome.code, len(outcome.flows)) == (0, 3)


def test_without_nfdump_one_line_says_how_to_get_it_and_json_is_read_all_the_same(tmp_path: Path) -> None:
    nfcapd = tmp_path / "a" / "nfcapd.202311142210"
    nfcapd.parent.mkdir()
    nfcapd.write_bytes(struct.pack("<HHI", 0xA50C, 1, 0) + bytes(1_000))
    alone = run_real("replay", nfcapd, PATH=str(tmp_path))
    line = "nfdump is not installed: apt-get install nfdump (Debian, Ubuntu) or dnf install nfdump (Fedora), then try again"
    assert alone.said == [line]
    assert alone.code == 1
    both = run_real("replay", nfcapd, "-", PATH=str(tmp_path), stdin=JSON_FLOW)
    assert (both.said, both.code, len(both.flows)) == ([line], 0, 1)
