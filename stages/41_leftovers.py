"""41 leftovers: masks addresses in fields that we do not know, so that none slips past 70 deidentify.

Reads   *, meta.{src,dst}_ip
Writes  *  ip-masked, in any field that is not one of an exporter's: the full src or dst address, and a text that is itself an address
Source  nothing
Drops   nothing

Texts of the exporter's own fields (flow_type, sensor_id, instance_id, protocol) name devices and pass as they are.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

from pydantic import Field

from netsage_pipeline.addresses import mask, parse, unmapped
from netsage_pipeline.config import Settings
from netsage_pipeline.fields import EXPORTED
from netsage_pipeline.flow import Flow, FlowProcess, Lookups

_ADDRESS = re.compile(r"[0-9A-Fa-f]*[:.][0-9A-Fa-f:.]+")
_INVALID = "INVALID IP"

_TOP = frozenset(name for name in EXPORTED if "." not in name) | {"stitched_flows", "@timestamp", "@ingest_time"}
_META = frozenset(name.removeprefix("meta.") for name in EXPORTED if name.startswith("meta.")) | {"id", "ip_version"}
_VALUES = frozenset(name.removeprefix("values.") for name in EXPORTED if name.startswith("values."))


class Config(Settings):
    keep: list[str] = Field([], description='Fields that pass as they are, such as "meta.exporter_ip" or "collector"')


def stage(config: Config, _lookups: Lookups) -> FlowProcess:
    top, meta_known, values_known = (
        known | {name.removeprefix(prefix) for name in config.keep if name.startswith(prefix)}
        for prefix, known in (("", _TOP), ("meta.", _META), ("values.", _VALUES))
    )

    def process(flow: Flow) -> Flow:
        meta, values = flow["meta"], flow["values"]
        if flow.keys() <= top and meta.keys() <= meta_known and values.keys() <= values_known:
            return flow
        masked = _masker(meta["src_ip"], meta["dst_ip"])
        for holder, known in ((flow, top), (meta, meta_known), (values, values_known)):
            for name in holder.keys() - known:
                value = masked(holder.pop(name))
                holder[masked(name)] = value
        return flow

    return process


def _masker(*ends: str) -> Callable[[Any], Any]:
    """A function that masks, in any JSON value, the addresses of these ends in any notation, and texts that are addresses."""
    wanted = {unmapped(packed) for packed in map(parse, ends) if packed is not None}
    literal = {end for end in ends if parse(end) is not None or len(end) >= 4} | {_written(packed) for packed in wanted}
    longest_first = sorted(literal, key=len, reverse=True)

    def found(match: re.Match[str]) -> str:
        for text in (match[0], match[0].rstrip(".:")):
            packed = parse(text)
            if packed is not None and unmapped(packed) in wanted:
                return f"{mask(text)}{match[0][len(text) :]}"
        return match[0]

    def masked(value: Any) -> Any:
        if isinstance(value, str):
            whole = mask(value)
            if whole is not None:
                return whole
            for end in longest_first:
                value = value.replace(end, mask(end) or _INVALID)
            return _ADDRESS.sub(found, value)
        if isinstance(value, dict):
            return {masked(name): masked(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [masked(inner) for inner in value]
        return value

    return masked


def _written(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
