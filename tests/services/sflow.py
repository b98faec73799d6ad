"""What an sFlow agent sends: datagrams of version 5 with samples of packets. Source: sflow.org, sFlow Version 5."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

#: Samples in a datagram.
SAMPLES = 8


@dataclass(frozen=True)
class Sampled:
    """A packet of which an agent sent the first bytes; one in `rate` was sampled."""

    src_ip: str
    dst_ip: str
    src_port: int
    dst_port: int
    protocol: int  #: 6 or 17
    octets: int  #: of the IP packet
    in_if: int = 11
    out_if: int = 12
    rate: int = 1


def datagrams(packets: Sequence[Sampled]) -> Iterator[bytes]:
    for number, begin in enumerate(range(0, len(packets), SAMPLES)):
        some = packets[begin : begin + SAMPLES]
        header = struct.pack(">II4sIIII", 5, 1, bytes([127, 0, 0, 1]), 0, number, 1_000 * number, len(some))
        yield header + b"".join(_sample(packet, begin + offset) for offset, packet in enumerate(some))


def _sample(packet: Sampled, number: int) -> bytes:
    """A flow sample with one record: a raw packet header."""
    frame = _frame(packet)
    padded = frame + bytes(-len(frame) % 4)
    raw = struct.pack(">IIII", 1, 14 + packet.octets + 4, 4, len(frame)) + padded
    record = struct.pack(">II", 1, len(raw)) + raw
    sample = struct.pack(">IIIIIIII", number, 1, packet.rate, packet.rate * (number + 1), 0, packet.in_if, packet.out_if, 1) + record
    return struct.pack(">II", 1, len(sample)) + sample


def _frame(packet: Sampled) -> bytes:
    """Ethernet, IP and the beginning of TCP or UDP."""
    source, destination = ip_address(packet.src_ip), ip_address(packet.dst_ip)
    if packet.protocol == 6:
        transport = struct.pack(">HHIIBBHHH", packet.src_port, packet.dst_port, 1, 1, 5 << 4, 0x18, 65_535, 0, 0)
    else:
        transport = struct.pack(">HHHH", packet.src_port, packet.dst_port, packet.octets - 20, 0)
    if source.version == 4:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, packet.octets, 1, 0, 64, packet.protocol, 0)
    else:
        ip = struct.pack(">IHBB", 6 << 28, packet.octets - 40, packet.protocol, 64)
    ethernet = bytes(12) + struct.pack(">H", 0x0800 if source.version == 4 else 0x86DD)
    return ethernet + ip + source.packed + destination.packed + transport
