"""10 preliminaries: gives every field its type, drops private addresses and impossible times.

Reads   start, end, meta, values, meta.{src,dst}_ip, meta.{src,dst}_port, meta.{src,dst}_asn, meta.{src,dst}_ifindex,
        meta.sensor_id, meta.protocol, meta.flow_type, meta.instance_id, values.duration, values.bits_per_second,
        values.packets_per_second, values.num_bits, values.num_packets
Writes  start, end  number, unix seconds
        meta, values  object, {} where there is none
        meta.{src,dst}_ip  text, 0.0.0.0 where there is none
        meta.{src,dst}_port, meta.{src,dst}_asn, meta.{src,dst}_ifindex  integer
        meta.sensor_id, meta.protocol, meta.flow_type, meta.instance_id  removed when null
        values.duration  number, seconds, 0 where there is none
        values.bits_per_second, values.packets_per_second  number
        values.num_bits, values.num_packets  integer
        @ingest_time  date, when the flow came in
Source  nothing
Drops   private address, in the future, too old, end before start

Refused is what cannot be made a number, or is negative where that cannot be, and an address text of more than 255 characters.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from pydantic import Field, field_validator

from netsage_pipeline.addresses import LONGEST, Prefixes
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import Flow, FlowProcess, Lookups, Now, Refused
from netsage_pipeline.times import LAST_SECOND

_DATE = re.compile(r"\d{4}-\d\d-\d\dT", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_INTEGER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_MISSING = "0.0.0.0"  # noqa: S104 - no address to listen on, but the reference's word for a missing one.
_LONGEST_END = 255  # Stages 41 and 70 look for addresses in a text that should be one, from each of its characters.
_MILLISECONDS_ABOVE = 9_999_999_999
_LONG = 1 << 63
_WHOLE = ("src_port", "dst_port", "src_asn", "dst_asn", "src_ifindex", "dst_ifindex")
_NAMES = ("sensor_id", "protocol", "flow_type", "instance_id")


class Config(Settings):
    private_networks: list[str] = Field(
        ["10.0.0.0/8", "100.64.0.0/10", "192.168.0.0/16", "172.16.0.0/12", "169.254.0.0/16", "fc00::/7", "fe80::/10", "::1/128"],
        description="Prefixes; a flow with an end in one of them is dropped",
    )
    future_s: float = Field(10, ge=0, description="A flow that starts or ends more seconds than this ahead of now is dropped")
    past_s: float = Field(365 * 86_400, ge=0, description="A flow that started or ended more seconds than this ago is dropped")
    short_duration_s: float | None = Field(None, ge=0, description="Up to this duration, duration and both rates become 0; not set: off")

    @field_validator("private_networks")
    @classmethod
    def _prefixes(cls, networks: list[str]) -> list[str]:
        for network in networks:
            Prefixes().add(network)
        return networks


def stage(config: Config, _lookups: Lookups, now: Now) -> FlowProcess:
    private = Prefixes()
    for network in config.private_networks:
        private.add(network)

    @lru_cache(maxsize=200_000)
    def is_private(ip: str) -> bool:
        return private.get(ip) is not None

    def private_end(ip: Any) -> bool:
        return ip.__class__ is str and len(ip) <= LONGEST and is_private(ip)

    def impossible(start: float, end: float) -> str:
        """Why these times cannot be; "" if they can."""
        if now.judges:
            if max(start, end) > now.seconds + config.future_s:
                return "in the future"
            if min(start, end) < now.seconds - config.past_s:
                return "too old"
        if end < start:
            return "end before start"
        if end > LAST_SECOND:
            raise Refused("end: after the year 9999")
        return ""

    def process(flow: Flow) -> Flow | str:  # noqa: PLR0912 - one pass over the fields is what keeps it fast.
        meta = flow.get("meta")
        if meta.__class__ is not dict:
            meta = flow["meta"] = _object(meta, "meta")
        source, destination = meta.get("src_ip"), meta.get("dst_ip")
        if source is None:
            source = meta["src_ip"] = _MISSING
        if destination is None:
            destination = meta["dst_ip"] = _MISSING
        if private_end(source) or private_end(destination):
            return "private address"
        if source.__class__ is not str or destination.__class__ is not str:
            raise Refused(f"meta.{'src' if source.__class__ is not str else 'dst'}_ip: not a text")
        if len(source) > _LONGEST_END or len(destination) > _LONGEST_END:
            raise Refused(f"meta.{'src' if len(source) > _LONGEST_END else 'dst'}_ip: longer than {_LONGEST_END} characters")
        values = flow.get("values")
        if values.__class__ is not dict:
            values = flow["values"] = _object(values, "values")
        flow["@ingest_time"] = now.text

        start, end = flow.get("start"), flow.get("end")
        if start.__class__ is not float or not 0 <= start <= _MILLISECONDS_ABOVE:
            start = flow["start"] = _time(start, "start")
        if end.__class__ is not float or not 0 <= end <= _MILLISECONDS_ABOVE:
            end = flow["end"] = _time(end, "end")
        _type_values(values)
        for name in _WHOLE:
            number = meta.get(name, 0)
            if number.__class__ is not int or number >= _LONG:
                _set_integer(meta, name, "meta")
        for name in _NAMES:
            if meta.get(name, "").__class__ is not str:
                _check_name(meta, name)

        reason = impossible(start, end)
        if reason:
            return reason
        if config.short_duration_s is not None and values["duration"] <= config.short_duration_s:
            values["duration"] = values["bits_per_second"] = values["packets_per_second"] = 0.0
        return flow

    return process


def _type_values(values: dict[str, Any]) -> None:
    number = values.get("duration")
    if number.__class__ is not float:
        values["duration"] = 0.0 if number is None else _float(number, "values.duration")
    for name in ("bits_per_second", "packets_per_second"):
        number = values.get(name)
        if number.__class__ is not float:
            if number is not None:
                values[name] = _float(number, f"values.{name}")
            elif name in values:
                del values[name]
    for name in ("num_bits", "num_packets"):
        number = values.get(name)
        if number.__class__ is not int or not 0 <= number < 1 << 63:
            _set_integer(values, name, "values")
            if number is not None and float(number) < 0:  # Before the fraction was cut: -0.5 is negative.
                raise Refused(f"values.{name}: negative")


def _object(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    raise Refused(f"{name}: not an object")


def _time(value: Any, name: str) -> float:
    if value is None:
        raise Refused(f"{name}: missing")
    if value.__class__ is str and _DATE.match(value):
        raise Refused(f"{name}: a date: a flow that came out of a chain goes through none again; conf.d/sink stores it")
    seconds = _float(value, name)
    if seconds < 0:
        raise Refused(f"{name}: negative")
    return seconds / 1000 if seconds > _MILLISECONDS_ABOVE else seconds


def _set_integer(holder: dict[str, Any], name: str, path: str) -> None:
    value = holder.get(name)
    if value is not None:
        holder[name] = _integer(value, f"{path}.{name}")
    elif name in holder:
        del holder[name]


def _check_name(meta: dict[str, Any], name: str) -> None:
    value = meta[name]
    if value is None:
        del meta[name]
    elif value.__class__ not in (str, int, float):
        raise Refused(f"meta.{name}: neither text nor number")


def _float(value: Any, name: str) -> float:
    """The number in a number or text; Refused if there is none."""
    if value.__class__ is str:
        if not _NUMBER.fullmatch(value):
            raise Refused(f"{name}: not a number")
    elif value.__class__ is int:
        if not -1 << 63 <= value < 1 << 63:
            raise Refused(f"{name}: beyond 64 bits")
    elif value.__class__ is not float:
        raise Refused(f"{name}: not a number")
    number = float(value)
    if not math.isfinite(number):
        raise Refused(f"{name}: not finite")
    return number


def _integer(value: Any, name: str) -> int:
    """The integer in a number or text, fractions cut; Refused if there is none or it is beyond 64 bits."""
    if value.__class__ is int:
        number = value
    elif value.__class__ is str and _INTEGER.fullmatch(value):
        number = int(value) if len(value) < 100 else 1 << 64
    else:
        number = int(_float(value, name))
    if not -1 << 63 <= number < 1 << 63:
        raise Refused(f"{name}: beyond 64 bits")
    return int(number)
