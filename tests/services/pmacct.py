"""Real pmacct daemons that write records: nfacctd of what an exporter sends, pmacctd of packets in a file."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

#: Directories of daemons, which a user's PATH may lack.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

FLOWS = "src_host, dst_host, src_port, dst_port, proto, src_as, dst_as, in_iface, out_iface, timestamp_start, timestamp_end, tag, label"


def available() -> bool:
    return all(shutil.which(program, path=_PATH) for program in ("nfacctd", "pmacctd", "pmacct"))


class Packet(NamedTuple):
    """One UDP packet over IPv4."""

    src_ip: str
    dst_ip: str
    src_port: int
    dst_port: int
    at: float
    payload: int

    @property
    def octets(self) -> int:
        """As pmacctd counts them: from the IP header on."""
        return 28 + self.payload

    @property
    def frame(self) -> bytes:
        udp = struct.pack(">HHHH", self.src_port, self.dst_port, 8 + self.payload, 0) + b"x" * self.payload
        addresses = ip_address(self.src_ip).packed + ip_address(self.dst_ip).packed
        return b"\0" * 12 + b"\x08\0" + struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses + udp


def pcap(path: Path, packets: Iterable[Packet]) -> Path:
    """The packets as tcpdump would have written them."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1))
        for each in packets:
            seconds = int(each.at)
            file.write(struct.pack("<IIII", seconds, round((each.at - seconds) * 1_000_000), len(each.frame), len(each.frame)) + each.frame)
    return path


def settings(path: Path, lines: dict[str, object]) -> Path:
    path.write_text("daemonize: false\n" + "".join(f"{key}: {value}\n" for key, value in lines.items()), "utf-8")
    return path


@contextlib.contextmanager
def running(daemon: str, directory: Path, lines: dict[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon in the foreground, in UTC; its log is directory/log. It is interrupted in the end, and then writes what it holds."""
    conf = settings(directory / f"{daemon}.conf", lines)
    program = shutil.which(daemon, path=_PATH)
    assert program is not None
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen([program, "-f", str(conf)], stdout=log, stderr=log, env={**os.environ, "TZ": "UTC"}, cwd=directory) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def collect(directory: Path, datagrams: Iterable[bytes], lines: dict[str, object], plugins: int = 1) -> None:
    """Sends datagrams to an nfacctd with these settings, and lets it write and trigger what they say."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common: dict[str, object] = {
        "nfacctd_ip": "127.0.0.1",
        "nfacctd_port": port,
        "nfacctd_as": "netflow",
        "nfacctd_net": "netflow",
        "nfacctd_time_new": "true",
        "print_refresh_time": 3600,
    }
    with running("nfacctd", directory, common | lines), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        wait(lambda: "waiting for NetFlow" in said(directory))
        for datagram in datagrams:
            exporter.sendto(datagram, ("127.0.0.1", port))
            time.sleep(0.02)
        time.sleep(1.5)
    wait(lambda: said(directory).count("Purging cache - END") >= plugins)


def said(directory: Path) -> str:
    return (directory / "log").read_text("utf-8", "replace")


def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)
