"""What records of other programs are as flows, by the names that each program has for the same things."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from netsage_pipeline.flow import Flow
from netsage_pipeline.jsonvalues import number, writable
from netsage_pipeline.reading.nfdump import ICMP, PROTOCOLS, Rows

#: Up to this second a time is none: programs write 0, in whatever zone.
_NO_TIME = 86_400

_MILLISECONDS_ABOVE = 9_999_999_999

#: Digits of a count that is exact; 64 bits have no more.
_DIGITS = 20


class Names(NamedTuple):
    """The names of what is in a flow; of several, the first one counts that says something."""

    src_ip: tuple[str, ...]
    dst_ip: tuple[str, ...]
    src_port: tuple[str, ...]
    dst_port: tuple[str, ...]
    src_asn: tuple[str, ...]
    dst_asn: tuple[str, ...]
    src_ifindex: tuple[str, ...]
    dst_ifindex: tuple[str, ...]
    protocol: tuple[str, ...]
    times: tuple[tuple[str, str], ...]  #: start and end, which belong together
    octets: tuple[str, ...]
    packets: tuple[str, ...]
    sensor: tuple[str, ...]
    out_octets: tuple[str, ...] = ()
    out_packets: tuple[str, ...] = ()


def flow_of(fields: Mapping[str, Any], names: Names, rows: Rows) -> Flow:
    """A record as a flow, of the form that nfdump.rows gives. What cannot be read stays as it is, for stage 10 to refuse.

    Without an end the flow ends when it starts. The sensor is that of --sensor, else the record's own, else that of `rows`.
    """

    def first(wanted: tuple[str, ...]) -> Any:
        return next((fields[name] for name in wanted if fields.get(name) not in (None, "")), None)

    def total(one: tuple[str, ...], other: tuple[str, ...], factor: int = 1) -> Any:
        given = [value for value in (first(one), first(other)) if value is not None]
        counts = [_count(value) for value in given]
        known = [count for count in counts if count is not None]
        if len(known) < len(given):
            return given[counts.index(None)]
        return writable(sum(known) * factor) if given else None

    start, end = _times(fields, names.times)
    own = first(names.sensor)
    sensor = rows.sensor_id if rows.overrides or own in (None, 0, "0") else _text(own)
    protocol = _text(first(names.protocol))
    if isinstance(protocol, str):
        protocol = PROTOCOLS.get(protocol.lower(), protocol.lower())
    meta: dict[str, Any] = {"flow_type": rows.flow_type, "sensor_id": sensor}
    for side in ("src", "dst"):
        meta[f"{side}_ip"] = first(getattr(names, f"{side}_ip"))
        meta[f"{side}_port"] = 0 if isinstance(protocol, str) and protocol in ICMP else first(getattr(names, f"{side}_port"))
        meta[f"{side}_asn"] = first(getattr(names, f"{side}_asn"))
        if (ifindex := first(getattr(names, f"{side}_ifindex"))) not in (None, 0, "0"):
            meta[f"{side}_ifindex"] = ifindex
    meta["protocol"] = protocol
    bits, packets = total(names.octets, names.out_octets, 8), total(names.packets, names.out_packets)
    values: dict[str, Any] = {"num_bits": bits, "num_packets": packets}
    if isinstance(start, float) and isinstance(end, float):
        duration = values["duration"] = round(end - start, 6)
        for name, count in (("bits_per_second", bits), ("packets_per_second", packets)):
            values[name] = count / duration if duration > 0 and isinstance(count, int | float) else 0
    return {"type": "flow", "interval": 600, "start": start, "end": end, "meta": meta, "values": values}


def _text(given: Any) -> Any:
    """A number as text; what is no name at all as it is."""
    return given if given is None or isinstance(given, dict | list) else str(given)


def _count(given: Any) -> int | float | None:
    if isinstance(given, str) and given.isdecimal() and len(given) <= _DIGITS:
        return int(given)
    return given if isinstance(given, int) and not isinstance(given, bool) else number(given)


def _times(fields: Mapping[str, Any], names: tuple[tuple[str, str], ...]) -> tuple[Any, Any]:
    """The first of these starts that is a time, and its end, in unix seconds; else what stands there instead, None if nothing does."""
    for name, other in names:
        start = unix(fields.get(name))
        if start:
            end = unix(fields.get(other))
            return start, fields[other] if end is None and fields.get(other) else end or start
    return next((fields[name] for name, _ in names if fields.get(name)), None), None


def unix(given: Any) -> float | None:
    """Unix seconds of a number, of a text that is one, or of an ISO 8601 text; without a zone it is this machine's time.

    0.0 where programs say that there is no time, and None if it is no time at all.
    """
    seconds = number(given)
    if seconds is None and isinstance(given, str):
        try:
            seconds = 0.0 if given.startswith("0000-00-00") else datetime.fromisoformat(given).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    if seconds is None:
        return None
    if seconds <= _NO_TIME:
        return 0.0
    return seconds / 1000 if seconds > _MILLISECONDS_ABOVE else seconds
