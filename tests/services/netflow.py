"""What an exporter sends: NetFlow v5, NetFlow v9 and IPFIX datagrams, and an nfcapd that makes a file of them.

Sources: Cisco's NetFlow Export Datagram Format (v5), RFC 3954 (v9), RFC 7011 and IANA's IPFIX registry.
"""

import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

#: Unix seconds in every datagram's header; flows of v5 and v9 may lie up to 24 days before it, their times are relative to it.
EXPORT_S = 1_700_086_400
UPTIME_MS = 86_400_000 * 24
BOOT_MS = EXPORT_S * 1000 - UPTIME_MS

#: When the first flow begins: 2023-11-14T22:13:20.123Z, unix milliseconds.
BEGIN_MS = 1_700_000_000_123

#: Flows in one datagram: the most that v5 allows, and few enough to stay below a loopback's 65,507 bytes in all.
FLOWS = 30


@dataclass(frozen=True)
class Sent:
    """One flow as the exporter saw it; times in unix milliseconds, protocol by number."""

    src_ip: str = "128.101.1.1"
    dst_ip: str = "141.211.2.2"
    src_port: int = 50000
    dst_port: int = 443
    protocol: int = 6
    packets: int = 10
    octets: int = 1000
    start_ms: int = BEGIN_MS
    end_ms: int = 1_700_000_003_456
    src_asn: int = 217
    dst_asn: int = 36375
    in_if: int = 11
    out_if: int = 12
    out_packets: int = 0
    out_octets: int = 0

    @property
    def version(self) -> int:
        return ip_address(self.src_ip).version

    @property
    def addresses(self) -> bytes:
        return ip_address(self.src_ip).packed + ip_address(self.dst_ip).packed


def flows_of(number: int) -> list[Sent]:
    """Flows of different ports, counts and times, every third one IPv6."""
    return [
        Sent(
            src_ip="2001:468:1::7" if each % 3 == 0 else "128.101.1.1",
            dst_ip="2001:468:2::9" if each % 3 == 0 else "141.211.2.2",
            src_port=1_000 + each,
            protocol=(6, 17)[each % 2],
            packets=7 * each + 1,
            octets=1_001 * each + 40,
            start_ms=BEGIN_MS + 997 * each,
            end_ms=BEGIN_MS + 997 * each + 13 * each + 1,
        )
        for each in range(number)
    ]


#: Information elements (number, bytes) that v9 and IPFIX share, in the order of _common.
COMMON = [(7, 2), (11, 2), (4, 1), (2, 8), (1, 8), (10, 4), (14, 4), (16, 4), (17, 4), (24, 8), (23, 8)]
ADDRESSES = {4: [(8, 4), (12, 4)], 6: [(27, 16), (28, 16)]}
TEMPLATE_ID = {4: 256, 6: 257}


def netflow5(flows: Sequence[Sent]) -> list[bytes]:
    """IPv4 only, 16 bits for ASNs and ifindexes, no out counters."""

    def record(flow: Sent) -> bytes:
        interfaces_and_counters = struct.pack(">4xHHII", flow.in_if, flow.out_if, flow.packets, flow.octets)
        times = struct.pack(">II", flow.start_ms - BOOT_MS, flow.end_ms - BOOT_MS)
        rest = struct.pack(">HHxBBxHH4x", flow.src_port, flow.dst_port, 0, flow.protocol, flow.src_asn, flow.dst_asn)
        return flow.addresses + interfaces_and_counters + times + rest

    def datagram(number: int, some: Sequence[Sent]) -> bytes:
        header = struct.pack(">HHIIIIHH", 5, len(some), UPTIME_MS, EXPORT_S, 0, number * FLOWS, 0, 0)
        return header + b"".join(map(record, some))

    return _datagrams(flows, datagram)


def netflow9(flows: Sequence[Sent]) -> list[bytes]:
    """FIRST_SWITCHED and LAST_SWITCHED count milliseconds since the exporter started. No flows: the templates alone."""

    def times(flow: Sent) -> bytes:
        return struct.pack(">II", flow.start_ms - BOOT_MS, flow.end_ms - BOOT_MS)

    def datagram(number: int, some: Sequence[Sent]) -> bytes:
        header = struct.pack(">HHIIII", 9, len(some) + len(TEMPLATE_ID), UPTIME_MS, EXPORT_S, number, 1)
        return header + _sets(0, [(22, 4), (21, 4)], some, times)

    return _datagrams(flows, datagram)


def ipfix(flows: Sequence[Sent]) -> list[bytes]:
    """flowStartMilliseconds and flowEndMilliseconds count from 1970. No flows: the templates alone."""

    def times(flow: Sent) -> bytes:
        return struct.pack(">QQ", flow.start_ms, flow.end_ms)

    def datagram(number: int, some: Sequence[Sent]) -> bytes:
        sets = _sets(2, [(152, 8), (153, 8)], some, times)
        return struct.pack(">HHIII", 10, 16 + len(sets), EXPORT_S, number * FLOWS, 1) + sets

    return _datagrams(flows, datagram)


def collect(
    directory: Path,
    datagrams: Iterable[bytes],
    stop: signal.Signals = signal.SIGTERM,
    *,
    program: str = "nfcapd",
    sources: Sequence[str] = ("127.0.0.1",),
) -> Path:
    """The file that a real nfcapd, or sfcapd, writes when it is sent these, and then stopped. Linux: uses /proc/net/udp.

    sources   addresses of exporters, each of which sends all of it
    """
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        exporter.bind(("127.0.0.1", 0))
        port = exporter.getsockname()[1]
    command = [program, "-w", str(directory), "-b", "127.0.0.1", "-p", str(port), "-t", "86400", "-B", "1000000"]
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as nfcapd,
    ):
        try:
            _wait(lambda: _unread(port) is not None, nfcapd)
            sent = list(datagrams)
            for source in sources:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
                    exporter.bind((source, 0))
                    for datagram in sent:
                        exporter.sendto(datagram, ("127.0.0.1", port))
                        _wait(lambda: (_unread(port) or 0) < 100_000, nfcapd)
            _wait(lambda: _unread(port) == 0, nfcapd)
        finally:
            # At SIGTERM nfcapd finishes the datagram at hand and closes its file.
            nfcapd.send_signal(stop)
            nfcapd.wait(20)
    (file,) = directory.glob("nfcapd.*")
    return file


def _common(flow: Sent) -> bytes:
    ports_and_counters = struct.pack(">HHBQQ", flow.src_port, flow.dst_port, flow.protocol, flow.packets, flow.octets)
    ways = struct.pack(">IIII", flow.in_if, flow.out_if, flow.src_asn, flow.dst_asn)
    return ports_and_counters + ways + struct.pack(">QQ", flow.out_packets, flow.out_octets)


def _sets(template_set: int, time_elements: list[tuple[int, int]], flows: Sequence[Sent], times: Callable[[Sent], bytes]) -> bytes:
    """The templates of both IP versions, then the records of each."""
    templates = b""
    for version, template in TEMPLATE_ID.items():
        elements = ADDRESSES[version] + COMMON + time_elements
        templates += struct.pack(">HH", template, len(elements)) + b"".join(struct.pack(">HH", *element) for element in elements)
    sets = struct.pack(">HH", template_set, 4 + len(templates)) + templates
    for version, template in TEMPLATE_ID.items():
        records = b"".join(flow.addresses + _common(flow) + times(flow) for flow in flows if flow.version == version)
        if records:
            sets += struct.pack(">HH", template, 4 + len(records)) + records
    return sets


def _datagrams(flows: Sequence[Sent], datagram: Callable[[int, Sequence[Sent]], bytes]) -> list[bytes]:
    return [datagram(number, flows[begin : begin + FLOWS]) for number, begin in enumerate(range(0, max(len(flows), 1), FLOWS))]


def _unread(port: int) -> int | None:
    """Bytes that wait in the socket's queue; None if nobody listens."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        columns = line.split()
        if columns[1].endswith(f":{port:04X}"):
            return int(columns[4].split(":")[1], 16)
    return None


def _wait(condition: Callable[[], bool], nfcapd: "subprocess.Popen[bytes]", seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert nfcapd.poll() is None, "nfcapd ended by itself"
        assert time.monotonic() < deadline, "nfcapd does not read what it is sent"
        time.sleep(0.005)
