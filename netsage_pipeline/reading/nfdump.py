"""Flows from nfcapd files, read by the real nfdump (1.6 or 1.7).

A row is one 5-tuple of one file (`nfdump -a`), its in and out counters added up. nfdump is asked for JSON arrays, which
orjson reads by the hundred: half the time of splitting lines and converting fields.

What nfdump 1.7.1 does that one has to know:
- with `-a` counters are summed and times span all parts, but ASNs and interfaces are those of the part that stands first
  in the file; ICMP type and code stay apart (they are its "destination port"), though both rows then get port 0;
- rows come in no order of time; nothing comes out before the file is read to its end;
- exit code 0 although a file was truncated or corrupt: only standard error tells;
- a file that nfcapd never closed (it was killed) reads like an empty one;
- `%ter` drops a digit of the milliseconds, so end = start + `%td`; an end before the start makes `%td` wrap around 2^64 ms;
- `-N` makes protocols numbers; without `-6` IPv6 addresses are shortened;
- a filter is applied to what stands in the file, before `-a`: with one for a router, the parts that other routers saw are not added up.
"""

import functools
import os
import re
import select
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import orjson

from netsage_pipeline.jsonvalues import writable

#: One row as a JSON array: seconds, addresses, ports, protocol, packets and bytes (in, out), ifindexes, ASNs.
ROW = '[%tsr,%td,"%sa","%da",%sp,%dp,"%pr",%ipkt,%opkt,%ibyt,%obyt,%in,%out,%sas,%das]'
COLUMNS = ROW.count("%")

#: Bytes of nfdump's output that are decoded at once, about 400 rows: what a pipe holds. With more, nfdump waits while we decode.
BLOCK_BYTES = 65_536

#: What nfdump counts modulo, in seconds; a duration beyond the half of it is a negative one.
WRAP_S = 2**64 / 1000

#: Protocol numbers and their names, from /etc/protocols of Debian 12: the reference asks getprotobynumber.
PROTOCOLS = dict(
    re.findall(
        r"(\d+) (\S+)",
        """
        0 ip 1 icmp 2 igmp 3 ggp 4 ipencap 5 st 6 tcp 8 egp 9 igp 12 pup 17 udp 20 hmp 22 xns-idp 27 rdp 29 iso-tp4
        33 dccp 36 xtp 37 ddp 38 idpr-cmtp 41 ipv6 43 ipv6-route 44 ipv6-frag 45 idrp 46 rsvp 47 gre 50 esp 51 ah 57 skip
        58 ipv6-icmp 59 ipv6-nonxt 60 ipv6-opts 73 rspf 81 vmtp 88 eigrp 89 ospf 93 ax.25 94 ipip 97 etherip 98 encap
        103 pim 108 ipcomp 112 vrrp 115 l2tp 124 isis 132 sctp 133 fc 135 mobility-header 136 udplite 137 mpls-in-ip
        138 manet 139 hip 140 shim6 141 wesp 142 rohc 143 ethernet
        """,
    )
)
#: nfdump prints type and code as their port: "8.0".
ICMP = frozenset({"icmp", "ipv6-icmp"})


class NfdumpError(Exception):
    """nfdump is missing, too old or too new, or could not read a file; one line: which, what it said, what to do."""


#: What the flows of capture files, and of other programs' records, can be. tstat's come as flows; stage 40 takes them for whole.
FlowType = Literal["netflow", "sflow"]


@dataclass(frozen=True)
class Rows:
    """What every row of a file gets, and which rows are wanted."""

    sensor_id: str
    instance_id: str | int | None = None
    flow_type: FlowType = "netflow"
    #: Rows with fewer bytes (in + out, after aggregation) are left out.
    minimum_bytes: int = 0
    #: Address of an exporter: what others sent is left out, before aggregation.
    router: str | None = None
    #: Whether it is the sensor also of records that name one themselves, which nfdump's do not.
    overrides: bool = False


def is_nfcapd(path: Path) -> bool:
    """True if the file begins like one of nfcapd's: magic 0xA50C, layout version 1 or 2, in either byte order."""
    with path.open("rb") as file:
        return file.read(4) in (b"\x0c\xa5\x01\x00", b"\x0c\xa5\x02\x00", b"\xa5\x0c\x00\x01", b"\xa5\x0c\x00\x02")


def is_empty(path: Path) -> bool:
    """True if the file holds no records: a header only, or a header and the closing statistics."""
    return state_of(path) == "empty"


def rows(path: Path, settings: Rows, counts: Counter[str] | None = None) -> Generator[dict[str, Any], None, None]:
    """The flows of one nfcapd file, in nfdump's order; of its output at most one block is in memory. Closing it ends nfdump.

    Times in unix seconds (float, exact to the millisecond), duration in seconds, rates per second. A flow whose end lies
    before its start keeps that, to about 2 s, for stage 10 to drop; bits and packets beyond 64 bits are texts, for it to refuse.

    counts, if given, is added to: `rows` given, `below_minimum` bytes, `skipped` lines of nfdump that are no row.
    Raises OSError if the file cannot be opened, and NfdumpError after the rows that could be read; these stay valid.
    """
    counts = Counter() if counts is None else counts
    usable_version()
    state = state_of(path)
    if state == "empty":
        return
    if state == "open":
        raise NfdumpError(f"{path}: never closed by nfcapd (was it killed?), so nfdump finds nothing in it: move it away")
    reading = Reading(path, settings)
    try:
        yield from reading.flows(counts)
        reading.check()
    finally:
        reading.close()


class Reading:
    """An nfdump at work on a file that nfcapd closed. NfdumpError if there is none that can be used."""

    def __init__(self, path: Path, settings: Rows) -> None:
        self._path, self._settings = path, settings
        command = [_program(), "-r", str(path), "-a", "-6", "-N", "-q", "-o", f"fmt:{ROW}"]
        if settings.router is not None:
            command.append(f"router ip {settings.router}")
        environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}  # no local time, no decimal comma
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._complaints, env=environment
        )

    def begins(self, seconds: float) -> bool:
        """Whether it has read the file to its end, so that rows come or nothing more; waits at most so long. To be asked before `flows`."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    @property
    def complaint(self) -> str:
        """The first line of what it has to say of the file until now, "" if nothing: then the file is whole, once it `begins`."""
        return os.pread(self._complaints.fileno(), 1000, 0).decode(errors="replace").strip().partition("\n")[0]

    def flows(self, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        """What `rows` gives."""
        assert self._process.stdout is not None
        for block in _blocks(self._process.stdout):
            yield from _flows(block, self._settings, counts)

    def check(self) -> None:
        """NfdumpError if it could not read all of the file. To be called behind the last of the flows."""
        code = self._process.wait()
        said = self.complaint
        if code or said:
            raise NfdumpError(
                f"{self._path}: nfdump could not read all of it (exit code {code}): {said or 'no reason given'}: "
                "if it is truncated or corrupt, copy it again or move it away; rows that came before are good"
            )

    def close(self) -> None:
        """Ends it, if nobody wanted the rest."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._complaints.close()


def _flows(block: bytes, settings: Rows, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of whole lines of nfdump's output as flows."""
    flow_type, sensor, instance, minimum = settings.flow_type, settings.sensor_id, settings.instance_id, settings.minimum_bytes
    arrays = _arrays(block, counts)
    below = 0
    for start, td, src, dst, sp, dp, pr, ipkt, opkt, ibyt, obyt, in_if, out_if, src_as, dst_as in arrays:
        octets = ibyt + obyt
        if octets < minimum:
            below += 1
            continue
        protocol = PROTOCOLS.get(pr, pr)
        src_port, dst_port = (sp, dp) if protocol not in ICMP else (0, 0)
        duration = td if td < WRAP_S / 2 else min(td - WRAP_S, -0.001)
        meta = {
            "flow_type": flow_type,
            "sensor_id": sensor,
            "src_ip": src,
            "src_port": src_port,
            "src_asn": src_as,
            "dst_ip": dst,
            "dst_port": dst_port,
            "dst_asn": dst_as,
            "protocol": protocol,
        }
        if instance is not None:
            meta["instance_id"] = instance
        if in_if:
            meta["src_ifindex"] = in_if
        if out_if:
            meta["dst_ifindex"] = out_if
        bits = octets * 8
        packets = ipkt + opkt
        yield {
            "type": "flow",
            "interval": 600,
            "start": start,
            # The float nearest to the millisecond; round(…, 3) says the same in three times the time.
            "end": int((start + duration) * 1000 + 0.5) / 1000,
            "meta": meta,
            "values": {
                "duration": duration,
                "num_bits": writable(bits),
                "num_packets": writable(packets),
                "bits_per_second": bits / duration if duration > 0 else 0,
                "packets_per_second": packets / duration if duration > 0 else 0,
            },
        }
    counts["below_minimum"] += below
    counts["rows"] += len(arrays) - below


def _arrays(block: bytes, counts: Counter[str]) -> list[list[Any]]:
    """Lines of JSON arrays, decoded at once; line by line only where something else is among them."""
    text = block.translate(None, b" ")  # nfdump pads numbers and addresses to columns; a fifth of the time that replace takes
    try:
        arrays: list[list[Any]] = orjson.loads(b"[%b]" % text.replace(b"\n", b","))
        if set(map(len, arrays)) == {COLUMNS}:
            return arrays
    except (orjson.JSONDecodeError, TypeError):
        pass
    arrays = []
    for line in text.split(b"\n"):
        try:
            array = orjson.loads(line)
            if len(array) == COLUMNS:
                arrays.append(array)
        except (orjson.JSONDecodeError, TypeError):
            pass
    counts["skipped"] += text.count(b"\n") + 1 - len(arrays)
    return arrays


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, many at once, without the last newline."""
    rest = b""
    while chunk := stream.read(BLOCK_BYTES):
        lines, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            yield lines
    if rest:
        yield rest


def state_of(path: Path) -> Literal["empty", "open", "closed"]:
    """Whether a file holds records, and whether nfcapd closed it. Source: nfdump's nffile.h and nffileV2.h.

    Layout 1: records stand behind 276 bytes of header and statistics. Layout 2: between a header of 40 bytes and an
    appendix, whose offset (at 24) and the number of blocks before it (at 36) are 0 until the file is closed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(40)
    if len(header) < 40:
        return "closed"  # truncated: nfdump will say so
    order = "<" if header.startswith(b"\x0c\xa5") else ">"
    if struct.unpack_from(f"{order}H", header, 2) == (1,):
        return "empty" if size == 276 else "closed"
    appendix, blocks = struct.unpack_from(f"{order}Q4xI", header, 24)
    if (appendix or size) == len(header):
        return "empty"
    return "closed" if blocks else "open"


def usable_version() -> str:
    """The version of the nfdump that is found; NfdumpError if none is, or if it cannot be used."""
    return _version(_program())


def _program() -> str:
    """The path of an nfdump that can be used; else NfdumpError."""
    program = shutil.which("nfdump")
    if program is None:
        raise NfdumpError("nfdump is not installed: apt-get install nfdump (Debian, Ubuntu) or dnf install nfdump (Fedora), then try again")
    version = _version(program)
    if not re.match(r"1\.[67]\b", version):
        raise NfdumpError(f"{program}: version {version or 'unknown'}, but 1.6 or 1.7 is needed: put one of those first in PATH")
    return program


@functools.cache
def _version(program: str) -> str:
    """Such as 1.7.1; empty if the program does not tell."""
    told = subprocess.run([program, "-V"], check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout  # noqa: S603
    found = re.search(r"\d+(\.\d+)+", told)
    return found[0] if found else ""
