"""nfcapd files: what was sent to a real nfcapd comes out of a real nfdump as rows."""

import random
import signal
import struct
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.reading.nfdump import NfdumpError, Rows, is_empty, is_nfcapd, rows
from tests.services.conftest import Collect
from tests.services.netflow import Sent, ipfix, netflow5, netflow9

ROWS = Rows(sensor_id="sensor")
NAMES = {1: "icmp", 6: "tcp", 17: "udp", 47: "gre", 58: "ipv6-icmp", 132: "sctp", 253: "253"}
#: nfcapd writes blocks of 1 MiB; so many flows fill more than one.
TWO_BLOCKS = 12_000


def row(sent: Sent) -> dict[str, Any]:
    """The row that must come of a flow, times and sums from the integers that were sent."""
    ports = (0, 0) if sent.protocol in (1, 58) else (sent.src_port, sent.dst_port)
    interfaces = {"src_ifindex": sent.in_if, "dst_ifindex": sent.out_if}
    ms = sent.end_ms - sent.start_ms
    bits = (sent.octets + sent.out_octets) * 8
    packets = sent.packets + sent.out_packets
    return {
        "type": "flow",
        "interval": 600,
        "start": sent.start_ms / 1000,
        "end": sent.end_ms / 1000,
        "meta": {
            "flow_type": "netflow",
            "sensor_id": "sensor",
            "src_ip": sent.src_ip,
            "src_port": ports[0],
            "src_asn": sent.src_asn,
            "dst_ip": sent.dst_ip,
            "dst_port": ports[1],
            "dst_asn": sent.dst_asn,
            "protocol": NAMES[sent.protocol],
            **{name: index for name, index in interfaces.items() if index},
        },
        "values": {
            "duration": ms / 1000,
            "num_bits": bits,
            "num_packets": packets,
            "bits_per_second": bits / (ms / 1000) if ms else 0,
            "packets_per_second": packets / (ms / 1000) if ms else 0,
        },
    }


def random_flows(number: int, versions: tuple[int, ...] = (4, 6), numbers: int = 32, seed: int = 20231114) -> list[Sent]:
    """Flows of distinct addresses, ASNs and ifindexes of so many bits, about one in four without interfaces or duration."""
    draw = random.Random(seed)

    def address(version: int) -> str:
        return str(ip_address(draw.getrandbits(32) | 1 << 29 if version == 4 else 0x20010DB8 << 96 | draw.getrandbits(96)))

    def flow() -> Sent:
        version = draw.choice(versions)
        protocol = draw.choice([6, 6, 17, 47, 132, 253, {4: 1, 6: 58}[version]])
        start = 1_700_000_000_000 + draw.randrange(3_600_000)
        return Sent(
            src_ip=address(version),
            dst_ip=address(version),
            src_port=0 if protocol in (1, 58) else draw.randrange(65536),
            dst_port=draw.randrange(65536),
            protocol=protocol,
            packets=draw.randrange(1, 1 << 31),
            octets=draw.randrange(1, 1 << numbers),
            start_ms=start,
            end_ms=start + draw.choice([0, draw.randrange(1, 1000), draw.randrange(1_800_000), draw.randrange(1_800_000)]),
            src_asn=draw.getrandbits(numbers),
            dst_asn=draw.choice([0, draw.getrandbits(numbers)]),
            in_if=draw.choice([0, draw.getrandbits(numbers), 513]),
            out_if=draw.choice([0, draw.getrandbits(numbers), 514]),
        )

    return [flow() for _ in range(number)]


def by_addresses(flows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(flows, key=lambda flow: (flow["meta"]["src_ip"], flow["meta"]["dst_ip"]))


@pytest.fixture
def dumped(collect: Collect, tmp_path: Path) -> Callable[..., Path]:
    """Sends flows as IPFIX to an nfcapd and gives the file."""
    return lambda *flows: collect(tmp_path, ipfix(flows))


@pytest.fixture(scope="module")
def two_blocks(collect: Collect, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of more than one block."""
    flows = [Sent(src_port=number, dst_ip=f"141.211.{number // 250}.2") for number in range(TWO_BLOCKS)]
    return collect(tmp_path_factory.mktemp("two_blocks"), ipfix(flows)).read_bytes()


@pytest.mark.parametrize(
    ("export", "flows"),
    [
        pytest.param(netflow5, random_flows(2_000, versions=(4,), numbers=16), id="NetFlow v5"),
        pytest.param(netflow9, random_flows(2_000), id="NetFlow v9"),
        pytest.param(ipfix, random_flows(2_000), id="IPFIX"),
    ],
)
def test_every_flow_comes_out_as_it_was_sent(
    collect: Collect, tmp_path: Path, export: Callable[[list[Sent]], list[bytes]], flows: list[Sent]
) -> None:
    counts: Counter[str] = Counter()
    got = list(rows(collect(tmp_path, export(flows)), ROWS, counts))
    assert by_addresses(got) == by_addresses([row(sent) for sent in flows])
    assert +counts == {"rows": 2_000}


def test_parts_of_one_five_tuple_are_one_row_with_the_asns_and_interfaces_of_the_first_in_the_file(dumped: Callable[..., Path]) -> None:
    later = Sent(start_ms=1_700_000_005_000, end_ms=1_700_000_009_001, packets=3, octets=300)
    earlier = Sent(start_ms=1_700_000_000_007, end_ms=1_700_000_001_000, packets=4, octets=400, src_asn=1, dst_asn=2, in_if=3, out_if=4)
    whole = replace(later, start_ms=1_700_000_000_007, packets=7, octets=700)
    assert list(rows(dumped(later, earlier), ROWS)) == [row(whole)]


def test_the_minimum_of_bytes_counts_after_aggregation(dumped: Callable[..., Path]) -> None:
    file = dumped(Sent(src_port=1, octets=600), Sent(src_port=1, octets=400), Sent(src_port=2, octets=999), Sent(src_port=3, octets=1000))
    counts: Counter[str] = Counter()
    got = list(rows(file, Rows("sensor", minimum_bytes=1000), counts))
    assert sorted(flow["meta"]["src_port"] for flow in got) == [1, 3]
    assert +counts == {"rows": 2, "below_minimum": 1}


def test_icmp_types_stay_apart_but_their_ports_are_0(dumped: Callable[..., Path]) -> None:
    echo = Sent(protocol=1, src_port=0, dst_port=8 << 8)
    unreachable = replace(echo, dst_port=3 << 8 | 10, octets=1)
    got = list(rows(dumped(echo, unreachable), ROWS))
    assert sorted(got, key=lambda flow: -flow["values"]["num_bits"]) == [row(echo), row(unreachable)]


def test_counters_beyond_32_bits_are_whole(dumped: Callable[..., Path]) -> None:
    much = Sent(octets=12_345_678_901_234_567, packets=9_876_543_210_123)
    assert list(rows(dumped(much), ROWS)) == [row(much)]


def test_a_file_gets_its_sensor_flow_type_and_instance(dumped: Callable[..., Path]) -> None:
    settings = Rows("chic", instance_id="container 7", flow_type="sflow")
    (flow,) = rows(dumped(Sent()), settings)
    assert {key: flow["meta"][key] for key in ("sensor_id", "instance_id", "flow_type")} == {
        "sensor_id": "chic",
        "instance_id": "container 7",
        "flow_type": "sflow",
    }


@pytest.mark.parametrize("ms", [1, 400, 5_000, 86_400_000])
def test_an_end_before_the_start_stays_before_it(dumped: Callable[..., Path], ms: int) -> None:
    wrong = Sent(end_ms=Sent.start_ms - ms)
    (flow,) = rows(dumped(wrong), ROWS)
    assert flow["start"] == wrong.start_ms / 1000
    assert flow["end"] < flow["start"]
    assert flow["end"] == pytest.approx(wrong.end_ms / 1000, abs=3)
    assert flow["values"]["bits_per_second"] == flow["values"]["packets_per_second"] == 0


@pytest.mark.parametrize(
    ("script", "skipped"),
    [
        pytest.param('echo "Remark of 1.7.1"; echo; {nfdump}; echo done', 3, id="texts and empty lines"),
        pytest.param('echo "[1.7, 2]"; {nfdump}; echo 42', 2, id="JSON that is no row"),
        pytest.param('echo "[1.7, 2]"; {nfdump}', 1, id="an array of another length"),
        pytest.param('{nfdump}; printf "[1700000000.1"', 1, id="a line that is cut off"),
    ],
)
def test_lines_that_are_no_row_are_skipped_and_counted(
    dumped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, skipped: int
) -> None:
    file = dumped(Sent(src_port=1), Sent(src_port=2))
    put_first_in_path(monkeypatch, tmp_path, script.format(nfdump='PATH="${PATH#*:}" nfdump "$@"'))
    counts: Counter[str] = Counter()
    assert sorted(flow["meta"]["src_port"] for flow in rows(file, ROWS, counts)) == [1, 2]
    assert +counts == {"rows": 2, "skipped": skipped}


@pytest.mark.parametrize("export", [netflow9, ipfix])
def test_out_counters_are_added_to_in_counters(collect: Collect, tmp_path: Path, export: Callable[[list[Sent]], list[bytes]]) -> None:
    both = Sent(out_packets=7, out_octets=900)
    (flow,) = rows(collect(tmp_path, export([both])), Rows("sensor", minimum_bytes=1900))
    assert flow == row(both)


def test_a_file_that_only_got_templates_has_no_rows(collect: Collect, tmp_path: Path) -> None:
    file = collect(tmp_path, netflow9([]))
    counts: Counter[str] = Counter()
    assert not is_empty(file)
    assert list(rows(file, ROWS, counts)) == []
    assert +counts == {"skipped": 1}  # "No matching flows"


def test_a_file_without_records_is_empty_and_is_not_given_to_nfdump(collect: Collect, tmp_path: Path) -> None:
    file = collect(tmp_path, [])
    counts: Counter[str] = Counter()
    assert is_nfcapd(file)
    assert is_empty(file)
    assert list(rows(file, ROWS, counts)) == []
    assert not +counts


def test_a_file_with_records_is_not_empty(dumped: Callable[..., Path]) -> None:
    file = dumped(Sent())
    assert is_nfcapd(file)
    assert not is_empty(file)


@pytest.mark.parametrize(("size", "empty"), [(276, True), (277, False), (100, False), (20, False)])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little-endian", "big-endian"])
def test_an_nfdump_1_6_file_of_header_size_is_empty(tmp_path: Path, order: str, size: int, empty: bool) -> None:
    file = tmp_path / "nfcapd.202311142215"
    file.write_bytes((struct.pack(f"{order}HHII", 0xA50C, 1, 0, 1) + bytes(300))[:size])
    assert is_empty(file) is empty


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        pytest.param(struct.pack("<HH", 0xA50C, 1), True, id="1.6, little-endian"),
        pytest.param(struct.pack(">HH", 0xA50C, 1), True, id="1.6, big-endian"),
        pytest.param(struct.pack("<HH", 0xA50C, 2), True, id="1.7, little-endian"),
        pytest.param(struct.pack(">HH", 0xA50C, 2), True, id="1.7, big-endian"),
        pytest.param(struct.pack("<HH", 0xA50C, 3), False, id="a layout that nobody knows"),
        pytest.param(struct.pack("<HH", 0xA50D, 1), False, id="another magic"),
        pytest.param(b'{"type": "flow"}', False, id="JSON"),
        pytest.param(b"\x0c\xa5", False, id="two bytes"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_nfcapd_files_are_known_by_their_magic_number(tmp_path: Path, begin: bytes, expected: bool) -> None:
    file = tmp_path / "nfcapd.202311142215"
    file.write_bytes(begin)
    assert is_nfcapd(file) is expected


def test_a_path_with_blanks_and_quotes_reaches_nfdump_as_it_is(dumped: Callable[..., Path], tmp_path: Path) -> None:
    file = dumped(Sent()).rename(tmp_path / "-r it's $(touch here); nfcapd")
    assert list(rows(file, ROWS)) == [row(Sent())]


@pytest.mark.parametrize("size", [3, 30, 50, 1_000_000])
def test_a_truncated_file_is_an_error_of_one_line(two_blocks: bytes, tmp_path: Path, size: int) -> None:
    file = tmp_path / "nfcapd.202311142215"
    file.write_bytes(two_blocks[:size])
    with pytest.raises(NfdumpError) as error:
        list(rows(file, ROWS))
    assert str(error.value).startswith(f"{file}: nfdump could not read all of it (exit code 0): ")
    assert "copy it again" in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_before_a_corrupt_block_come_out_and_then_the_error(two_blocks: bytes, tmp_path: Path) -> None:
    flows_of_first_block, bytes_of_first_block = struct.unpack_from("=II", two_blocks, 40)
    corrupt = bytearray(two_blocks)
    struct.pack_into("=I", corrupt, 40 + 12 + bytes_of_first_block + 4, 0xFFFFFFF0)
    file = tmp_path / "nfcapd.202311142215"
    file.write_bytes(corrupt)
    got: list[int] = []
    with pytest.raises(NfdumpError, match="Corrupt data file"):
        got.extend(flow["meta"]["src_port"] for flow in rows(file, ROWS))
    # The block also holds the exporter and its statistics.
    assert flows_of_first_block - 5 < len(got) < flows_of_first_block
    assert set(got) == set(range(len(got)))


def test_a_file_of_the_other_byte_order_is_refused(dumped: Callable[..., Path]) -> None:
    file = dumped(Sent())
    magic, version = struct.unpack_from("<HH", file.read_bytes())
    file.write_bytes(struct.pack(">HH", magic, version) + file.read_bytes()[4:])
    assert is_nfcapd(file)
    with pytest.raises(NfdumpError, match="bad magic"):
        list(rows(file, ROWS))


def test_a_file_that_a_killed_nfcapd_left_open_is_an_error(collect: Collect, tmp_path: Path) -> None:
    flows = [Sent(src_port=number, dst_ip=f"141.211.{number // 250}.2") for number in range(TWO_BLOCKS)]
    file = collect(tmp_path, ipfix(flows), stop=signal.SIGKILL)
    assert not is_empty(file)
    with pytest.raises(NfdumpError, match="never closed"):
        list(rows(file, ROWS))


def test_rows_that_nobody_reads_any_more_end_nfdump(two_blocks: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    file = tmp_path / "nfcapd.202311142215"
    file.write_bytes(two_blocks)
    some = rows(file, ROWS)
    next(some)
    assert started[-1].poll() is None  # it waits for us to read
    some.close()
    assert started[-1].returncode == -9


def test_without_nfdump_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "nfcapd.202311142215"
    file.write_bytes(struct.pack("<HHI", 0xA50C, 1, 0) + bytes(1000))
    with pytest.raises(NfdumpError, match=r"^nfdump is not installed: apt-get install nfdump \(Debian, Ubuntu\) or dnf .*$"):
        next(rows(file, ROWS))


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("1.5.8", False), ("1.6.23", True), ("NSEL-NEL1.7.1", True), ("1.7.10", True), ("1.70", False), ("2.0", False)],
)
def test_only_nfdump_1_6_and_1_7_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool) -> None:
    put_first_in_path(monkeypatch, tmp_path, f'echo "nfdump: Version: {version}"')
    file = tmp_path / "nfcapd.202311142215"
    file.write_bytes(struct.pack("<HHI", 0xA50C, 1, 0) + bytes(1000))
    if accepted:
        assert list(rows(file, ROWS)) == []
    else:
        with pytest.raises(NfdumpError, match=f"version {version}, but 1.6 or 1.7 is needed"):
            next(rows(file, ROWS))


def put_first_in_path(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """Makes a shell script the nfdump that is found."""
    program = directory / "bin" / "nfdump"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
