"""Records of pmacct and of Logstash's netflow module as flows: read by replay like any other file."""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsage_pipeline.rabbitmq.publish import parcels
from netsage_pipeline.reading import netflow_module, pmacct
from netsage_pipeline.reading.foreign import flow_of, unix
from netsage_pipeline.reading.nfdump import Rows
from netsage_pipeline.reading.read import Dump, messages
from tests.command import run, written

RECORD = {
    "event_type": "purge",
    "label": "border-1",
    "tag": 7,
    "as_src": 217,
    "as_dst": 36375,
    "iface_in": 11,
    "iface_out": 0,
    "ip_src": "128.101.1.1",
    "ip_dst": "141.211.2.2",
    "port_src": 50000,
    "port_dst": 443,
    "ip_proto": "tcp",
    "timestamp_start": "2023-11-14 22:13:20.123000",
    "timestamp_end": "2023-11-14 22:13:23.456000",
    "packets": 10,
    "bytes": 1000,
}

CSV = b"""LABEL,TAG,SRC_AS,DST_AS,IN_IFACE,OUT_IFACE,SRC_IP,DST_IP,SRC_PORT,DST_PORT,PROTOCOL,TIMESTAMP_START,TIMESTAMP_END,PACKETS,BYTES
border-1,7,217,36375,11,0,128.101.1.1,141.211.2.2,50000,443,tcp,2023-11-14 22:13:20.123000,2023-11-14 22:13:23.456000,10,1000
"""

#: As the codec's own tests have it, with addresses that are not private.
NETFLOW = {
    "version": 5,
    "ipv4_src_addr": "128.101.1.1",
    "ipv4_dst_addr": "141.211.2.2",
    "input_snmp": 11,
    "output_snmp": 0,
    "in_pkts": 10,
    "in_bytes": 1000,
    "first_switched": "2023-11-14T22:13:20.123Z",
    "last_switched": "2023-11-14T22:13:23.456Z",
    "l4_src_port": 50000,
    "l4_dst_port": 443,
    "protocol": 6,
    "src_as": 217,
    "dst_as": 36375,
}

#: As the module renames what the codec gave, when the exporter told ports of UDP by numbers of their own.
MODULE = {
    "version": "Netflow v9",
    "src_addr": "128.101.1.1",
    "dst_addr": "141.211.2.2",
    "src_port": 50000,
    "udp_dst_port": 443,
    "input_snmp": 11,
    "packets": 10,
    "bytes": 1000,
    "first_switched": "2023-11-14T22:13:20.123Z",
    "last_switched": "2023-11-14T22:13:23.456Z",
    "protocol": 6,
    "protocol_name": "TCP",
    "src_port_name": "TCP/50000",
    "src_as": 217,
    "dst_as": 36375,
    "direction": "ingress",
    "flow_locality": "public",
}

IPFIX = {
    "version": 10,
    "sourceIPv4Address": "128.101.1.1",
    "destinationIPv4Address": "141.211.2.2",
    "ingressInterface": 11,
    "packetDeltaCount": 10,
    "octetDeltaCount": 1000,
    "flowStartMilliseconds": 1_700_000_000_123,
    "flowEndMilliseconds": "2023-11-14T22:13:23.456Z",
    "sourceTransportPort": 50000,
    "destinationTransportPort": 443,
    "protocolIdentifier": 6,
    "bgpSourceAsNumber": 217,
    "bgpDestinationAsNumber": 36375,
}

#: What tells of a connection's end on a firewall: milliseconds, and both directions.
FIREWALL = {
    "version": 9,
    "fw_event": 2,
    "ipv4_src_addr": "128.101.1.1",
    "ipv4_dst_addr": "141.211.2.2",
    "input_snmp": 11,
    "flow_start_msec": 1_700_000_000_123,
    "event_time_msec": 1_700_000_003_456,
    "fwd_flow_delta_bytes": 600,
    "rev_flow_delta_bytes": 400,
    "initiatorPackets": 7,
    "responderPackets": 3,
    "l4_src_port": 50000,
    "l4_dst_port": 443,
    "protocol": 6,
    "src_as": 217,
    "dst_as": 36375,
}


@pytest.fixture(params=["UTC", "America/New_York"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def flow(sensor: str, **meta: Any) -> dict[str, Any]:
    return {
        "type": "flow",
        "interval": 600,
        "start": 1_700_000_000.123,
        "end": 1_700_000_003.456,
        "meta": {
            "flow_type": "netflow",
            "sensor_id": sensor,
            "src_ip": "128.101.1.1",
            "src_port": 50000,
            "src_asn": 217,
            "src_ifindex": 11,
            "dst_ip": "141.211.2.2",
            "dst_port": 443,
            "dst_asn": 36375,
            "protocol": "tcp",
        }
        | meta,
        "values": {
            "num_bits": 8000,
            "num_packets": 10,
            "duration": 3.333,
            "bits_per_second": 8000 / 3.333,
            "packets_per_second": 10 / 3.333,
        },
    }


@pytest.mark.usefixtures("utc")
def test_a_record_of_pmacct_is_a_flow() -> None:
    assert flow_of(RECORD, pmacct.NAMES, Rows("file")) == flow("border-1")


@pytest.mark.usefixtures("utc")
def test_a_line_of_csv_is_the_same_flow() -> None:
    (record,) = pmacct.records(enumerate(CSV.splitlines(True), 1))
    assert flow_of(record.fields, pmacct.NAMES, Rows("file")) == flow("border-1")


@pytest.mark.parametrize(("src", "dst"), [("net_src", "net_dst"), ("src_net", "dst_net")])
def test_a_record_that_names_networks_is_a_flow_between_them(src: str, dst: str) -> None:
    """src_net and dst_net in aggregate, JSON and CSV."""
    record = {name: value for name, value in RECORD.items() if not name.startswith("ip_")} | {src: "128.101.1.0", dst: "141.211.2.0"}
    meta = flow_of(record, pmacct.NAMES, Rows("file"))["meta"]
    assert (meta["src_ip"], meta["dst_ip"]) == ("128.101.1.0", "141.211.2.0")


@pytest.mark.parametrize("fields", [NETFLOW, MODULE, IPFIX, FIREWALL])
@pytest.mark.parametrize("flat", [False, True])
def test_a_document_of_the_netflow_module_is_the_same_flow(fields: dict[str, Any], flat: bool) -> None:
    document = {f"netflow.{name}": value for name, value in fields.items()} if flat else {"netflow": fields}
    found = netflow_module.fields_of({**document, "@timestamp": "2023-11-14T22:14:00Z", "host": "192.0.2.7"})
    assert found is not None
    assert flow_of(found, netflow_module.NAMES, Rows("file")) == flow("192.0.2.7")


def test_both_directions_of_netflow_are_added_up() -> None:
    found = netflow_module.fields_of({"netflow": {**NETFLOW, "out_bytes": "24", "out_pkts": 2}})
    assert found is not None
    values = flow_of(found, netflow_module.NAMES, Rows("file"))["values"]
    assert (values["num_bits"], values["num_packets"]) == (8192, 12)


@pytest.mark.parametrize(
    ("changes", "rows", "sensor"),
    [
        ({}, Rows("named", overrides=True), "named"),
        ({}, Rows("directory"), "border-1"),
        ({"label": ""}, Rows("directory"), "7"),
        ({"label": "", "tag": 0}, Rows("directory"), "directory"),
    ],
)
def test_the_sensor_is_that_of_the_option_else_label_else_tag_else_directory(changes: dict[str, Any], rows: Rows, sensor: str) -> None:
    assert flow_of(RECORD | changes, pmacct.NAMES, rows)["meta"]["sensor_id"] == sensor


@pytest.mark.parametrize(
    ("host", "sensor"),
    [("r1", "r1"), ({"name": "r2", "ip": ["192.0.2.1"]}, "r2"), ({"ip": ["192.0.2.1"]}, "192.0.2.1"), (None, "directory")],
)
def test_the_sensor_of_a_document_is_its_host(host: Any, sensor: str) -> None:
    fields = netflow_module.fields_of({"netflow": NETFLOW, "host": host})
    assert fields is not None
    assert flow_of(fields, netflow_module.NAMES, Rows("directory"))["meta"]["sensor_id"] == sensor


def test_times_of_all_forms_of_pmacct(zone: str) -> None:
    """As pmacct 1.7.7 wrote them under this TZ: plain, timestamps_rfc3339, timestamps_since_epoch, timestamps_secs."""
    plain, rfc3339 = {
        "UTC": ("2023-11-14 22:13:20.123000", "2023-11-14T22:13:20.123000Z"),
        "America/New_York": ("2023-11-14 17:13:20.123000", "2023-11-14T17:13:20.123000-05:00"),
    }[zone]
    assert [unix(text) for text in (plain, rfc3339, "1700000000.123000", 1_700_000_000_123)] == [1_700_000_000.123] * 4
    assert unix(plain[:19]) == 1_700_000_000.0
    assert [unix(text) for text in ("0000-00-00 00:00:00.000000", "0", 0, "1970-01-01 00:00:00")] == [0.0] * 4
    assert [unix(text) for text in ("2023-13-14 22:13:20", "", None, "soon", [1])] == [None] * 5


@given(st.floats(100_000, 4_000_000_000).map(lambda seconds: round(seconds, 6)))
def test_unix_seconds_as_text_come_back(seconds: float) -> None:
    assert unix(f"{seconds:.6f}") == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "start", "end"),
    [
        ({"timestamp_end": "0000-00-00 00:00:00.000000"}, 1_700_000_000.123, 1_700_000_000.123),
        ({"timestamp_start": None, "stamp_inserted": "1700000000", "stamp_updated": "1700000060"}, 1_700_000_000.0, 1_700_000_060.0),
        ({"stamp_inserted": "1700000000", "stamp_updated": "1700000060"}, 1_700_000_000.123, 1_700_000_003.456),
        ({"timestamp_start": "soon"}, "soon", None),
        ({"timestamp_end": "soon"}, 1_700_000_000.123, "soon"),
    ],
)
@pytest.mark.usefixtures("utc")
def test_start_and_end_are_of_one_pair(changes: dict[str, Any], start: Any, end: Any) -> None:
    made = flow_of(RECORD | changes, pmacct.NAMES, Rows("file"))
    assert (made["start"], made["end"]) == (start, end)


@pytest.mark.parametrize(
    ("protocol", "name", "port"),
    [("ipv6-icmp", "ipv6-icmp", 0), (1, "icmp", 0), ("17", "udp", 443), ("TCP", "tcp", 443), (250, "250", 443)],
)
def test_protocols_have_names_and_icmp_no_ports(protocol: Any, name: str, port: int) -> None:
    meta = flow_of(RECORD | {"ip_proto": protocol}, pmacct.NAMES, Rows("file"))["meta"]
    assert (meta["protocol"], meta["dst_port"]) == (name, port)


#: JSON of values that numbers do not fit into, or that are none.
EXTREMES = [
    *map(str, (0, -1, 1 << 60, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 63) - 1, 10**22, 10**400, "9" * 5_000)),
    *("1e19", "1.7e308", "1e400", "-0.0", "5e-324", "NaN", "null", "true", "{}", '"\\ud800"', '"\\u0000"', '"1e308"', '"inf"'),
    *(f'"{digits}"' for digits in (1 << 64, "9" * 23, "9" * 400, "9" * 5_000, "٣" * 5_000)),
    *("[" * depth + "]" * depth for depth in (1, 254, 260, 1_000, 1_030)),
]


def of_line(line: str, path: Path) -> list[Any]:
    """What publish makes of a file with this line and a good record before and behind it: flows, None where it is no JSON."""
    path.write_text(f"{json.dumps(RECORD)}\n{line}\n{json.dumps(RECORD)}\n")
    found: list[Any] = []
    for parcel in parcels(messages(Dump(path, 0, 0), Rows("x"), Counter())):
        try:
            flows = orjson.loads(parcel.body)
        except orjson.JSONDecodeError:
            flows = [None]
        found += flows if isinstance(flows, list) else [flows]
    return found


@given(st.sampled_from([RECORD, NETFLOW, MODULE, IPFIX, FIREWALL]), st.data())
@settings(deadline=None)
def test_no_record_keeps_its_neighbours_back(tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any], data: st.DataObject) -> None:
    changes = data.draw(st.dictionaries(st.sampled_from([*record, "host"]), st.sampled_from(EXTREMES), min_size=1, max_size=4))
    fields = {name: json.dumps(value) for name, value in record.items()} | changes
    line = ",".join(f'"{name}":{value}' for name, value in fields.items())
    line = f"{{{line}}}" if record is RECORD else f'{{"netflow":{{{line}}},"host":{changes.get("host", "null")}}}'
    flows = of_line(line, tmp_path_factory.getbasetemp() / "extremes")
    assert len(flows) == 3
    assert flows[0] == flows[-1] == of_line("", tmp_path_factory.getbasetemp() / "extremes")[0]


# Files.


def seen(outcome: Any) -> list[tuple[Any, ...]]:
    return [
        (flow["meta"]["sensor_id"], flow["start"], flow["end"], flow["values"]["num_bits"], flow["meta"]["src_asn"])
        for flow in outcome.flows
    ]


SEEN = ("border-1", "2023-11-14T22:13:20.123Z", "2023-11-14T22:13:23.456Z", 8000, 217)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORD).encode() + b"\n",
        json.dumps([RECORD], indent=1).encode(),
        b'{"event_type": "purge_init", "writer_id": "j/1"}\n'
        + json.dumps(RECORD).encode()
        + b'\n{"event_type": "purge_close", "writer_id": "j/1", "total_entries": 1}\n',
        CSV,
        CSV.replace(b",", b";"),
        CSV.replace(b",", b"\t"),
        CSV.replace(b",PACKETS", b",dscp,PACKETS").replace(b",10,1000", b",46,10,1000"),
        b"--START (19286)--\n" + CSV + b"--END (19286)--\n",
        gzip.compress(CSV),
        json.dumps({"_index": "netflow", "_id": "1", "_source": RECORD}).encode(),
        json.dumps({"_index": "netflow", "_source": {"netflow": NETFLOW, "host": "border-1"}}).encode() + b"\n",
        json.dumps({"netflow": NETFLOW, "host": {"name": "border-1"}}).encode() + b"\n",
    ],
)
@pytest.mark.usefixtures("utc")
def test_replay_reads_them_in_a_directory_and_from_standard_input(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "somewhere").mkdir()
    (tmp_path / "somewhere" / "file").write_bytes(content)
    for outcome in (run("replay", tmp_path), run("replay", "-", stdin=content)):
        assert (outcome.code, outcome.said) == (0, [])
        assert seen(outcome) == [SEEN]
        assert outcome.summary["read"] == outcome.summary["written"] == 1
    assert [flow["meta"]["sensor_id"] for flow in run("replay", tmp_path, "--sensor", "mine").flows] == ["mine"]


def test_publish_takes_them_as_flows_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CSV + CSV.splitlines(True)[1])
    (parcel,) = parcels(messages(Dump(tmp_path / "file", 0, 0), Rows("border-2", overrides=True), Counter()))
    flows = json.loads(parcel.body)
    assert parcel.flows == 2
    assert [(each["meta"]["sensor_id"], each["values"]["num_bits"]) for each in flows] == [("border-2", 8000)] * 2


@pytest.mark.parametrize("value", EXTREMES)
def test_whatever_a_counter_is_it_costs_its_record_alone(tmp_path: Path, value: str) -> None:
    good = json.dumps(RECORD)
    (tmp_path / "a.json").write_text(f"{good}\n{good.replace('1000}', f'{value}}}').replace('443', '444')}\n{good}\n")
    line = CSV.decode().splitlines()[1]
    (tmp_path / "a.csv").write_text(f"{CSV.decode()}{line.replace('443', '445').removesuffix('1000')}{value.strip(chr(34))}\n{line}\n")
    outcome = run("replay", tmp_path, "--dead-letters", tmp_path / "letters")
    assert [flow["stitched_flows"] for flow in outcome.flows if flow["meta"]["dst_port"] == 443] == [4]
    assert outcome.summary["read"] >= 4
    assert outcome.summary["read"] + outcome.summary.get("decode: not JSON", 0) == 6


@pytest.mark.parametrize("value", [(1 << 63) - 1, 1 << 61, 10**22])
def test_a_counter_beyond_64_bits_is_refused_by_name(tmp_path: Path, value: int) -> None:
    (tmp_path / "a.json").write_text(json.dumps(RECORD | {"bytes": value}) + "\n" + json.dumps(RECORD | {"bytes": str(value)}) + "\n")
    (tmp_path / "a.csv").write_bytes(CSV.replace(b",1000\n", b",%d\n" % value))
    assert run("replay", tmp_path).summary["10_preliminaries: values.num_bits: beyond 64 bits"] == 3


@pytest.mark.usefixtures("utc")
def test_torn_lines_and_bad_records_cost_only_themselves(tmp_path: Path) -> None:
    good = json.dumps(RECORD).encode() + b"\n"
    (tmp_path / "torn.json").write_bytes(good + good[:-30] + b"\n" + json.dumps(RECORD | {"bytes": "many"}).encode() + b"\n" + good[:40])
    (tmp_path / "torn.csv").write_bytes(CSV + CSV.splitlines()[1][:-40] + b"\n" + CSV.splitlines()[1][:-1])
    outcome = run("replay", tmp_path, "--dead-letters", tmp_path / "letters")
    assert [flow["values"]["num_bits"] for flow in outcome.flows] == [16_000]
    assert outcome.flows[0]["stitched_flows"] == 2
    found = [json.loads(line) for line in (tmp_path / "letters").read_text().splitlines()]
    assert sorted((Path(each["source"]).name, each["position"], each["reason"]) for each in found) == [
        ("torn.csv", "3", "not JSON"),
        ("torn.csv", "4", "not JSON"),
        ("torn.json", "2", "not JSON"),
        ("torn.json", "3", "values.num_bits: not a number"),
        ("torn.json", "4", "not JSON"),
    ]


def test_a_record_without_times_is_refused_by_name(tmp_path: Path) -> None:
    without = {name: value for name, value in RECORD.items() if not name.startswith("timestamp")}
    outcome = run("replay", written(tmp_path / "file", without))
    assert outcome.summary["10_preliminaries: start: missing"] == 1


def test_flows_and_other_files_stay_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "notes.csv").write_text("name,bytes\na,b\n")
    plain = {
        "start": 1_700_000_000,
        "end": 1_700_000_001,
        "bytes": 3,
        "meta": {"sensor_id": "x"},
        "values": {"num_bits": 8, "num_packets": 1},
    }
    outcome = run("replay", written(tmp_path / "flows" / "file", plain), tmp_path)
    assert [(flow["meta"]["sensor_id"], flow["values"]["num_bits"]) for flow in outcome.flows] == [("x", 8)]
    assert "1 of its 2 files hold no flows" in outcome.err


def test_a_line_that_is_no_record_says_why() -> None:
    table = b"SRC_IP,PACKETS,BYTES\n128.101.1.1,1\nSRC_IP,PACKETS,BYTES\n128.101.1.1,1,\xff\n128.101.1.1,1,2\n128.101.1.1,1,2"
    found = [(each.line, each.wrong, each.fields) for each in pmacct.records(enumerate(table.splitlines(True), 1))]
    assert found == [
        (2, "has 2 values, but the first line names 3", {}),
        (4, "not UTF-8", {}),
        (5, "", {"src_ip": "128.101.1.1", "packets": 1, "bytes": 2}),
        (6, "has no end of line: cut off?", {}),
    ]


@pytest.mark.parametrize(
    ("line", "separator"),
    [
        (b"SRC_IP,DST_IP,PACKETS,BYTES", b","),
        (b"TAG;dscp;tcp_rtt", b";"),
        (b"SRC_IP\tDST_IP\tNAT_EVENT\tTIMESTAMP_ARRIVAL", b"\t"),
        (b"SRC_NET|SH_COUNTRY|FLOWS", b"|"),
    ],
)
def test_a_line_of_names_begins_csv(line: bytes, separator: bytes) -> None:
    values = separator.join([b"1"] * len(line.split(separator)))
    content = [b"it comes at last\n", *(each + b"\n" for each in (line, line, values))]
    found = [(each.line, each.wrong) for each in pmacct.records(enumerate(content, 1))]
    assert found == [(1, "neither JSON nor CSV"), (4, "")]


@pytest.mark.parametrize(
    "line",
    [
        b"no packets yet",
        b"cannot connect: bytes",
        b"name,size",
        b"SRC_IP,,BYTES",
        b"SRC_IP,BYTES,",
        b"SRC_IP,BYTES,bytes",
        b"BYTES",
        b"10,BYTES",
        b"SRC_IP DST_IP,BYTES",
        b"src_ip,bytes",
    ],
)
def test_what_is_no_line_of_names_costs_only_itself(line: bytes) -> None:
    """A program in front of the pipe may say something on standard output first."""
    found = [(each.line, each.wrong) for each in pmacct.records(enumerate([line + b"\n", *CSV.splitlines(True)], 1))]
    assert found == [(1, "neither JSON nor CSV"), (3, "")]
    record = json.dumps(RECORD).encode()
    found = [(each.line, each.wrong) for each in pmacct.records(enumerate([line, record, b"SRC_IP,BYTES\n", record], 1))]
    assert found == [(1, "neither JSON nor CSV"), (2, ""), (3, "neither JSON nor CSV"), (4, "")]


@given(st.lists(st.binary(max_size=40)), st.booleans())
def test_whatever_a_file_holds_each_line_is_told_by_its_number(lines: list[bytes], table: bool) -> None:
    given = [line.replace(b"\n", b"") + b"\n" for line in lines]
    head = [b"SRC_IP,BYTES\n"] if table else []
    for record in pmacct.records(enumerate([*head, *given], 1)):
        assert record.given == [*head, *given][record.line - 1]
        assert bool(record.wrong) != bool(record.fields) or record.fields == {}
