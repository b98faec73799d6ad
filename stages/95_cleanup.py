"""95 cleanup: dates as ISO 8601, and what is of no use to anybody behind the pipeline goes.

Reads   start, end, meta.scireg, meta.{src,dst}_port
Writes  start, end  date, ISO 8601 in UTC with milliseconds, cut
        meta.{src,dst}_port  integer, also where a stage made them something else; removed where they are no number
        interval, type, meta.{src,dst}_ifindex  removed
        meta.scireg  object, latitude and longitude as numbers; null where they are none
Source  nothing
Drops   nothing
"""

from __future__ import annotations

from typing import Any

from netsage_pipeline.config import Settings
from netsage_pipeline.flow import Flow, FlowProcess, Lookups
from netsage_pipeline.jsonvalues import number
from netsage_pipeline.times import iso


class Config(Settings):
    pass


def stage(_config: Config, _lookups: Lookups) -> FlowProcess:
    def process(flow: Flow) -> Flow:
        meta = flow["meta"]
        flow["start"] = iso(flow["start"])
        flow["end"] = iso(flow["end"])
        flow.pop("interval", None)
        flow.pop("type", None)
        meta.pop("src_ifindex", None)
        meta.pop("dst_ifindex", None)
        for port in ("src_port", "dst_port"):
            if meta.get(port, 0).__class__ is not int:
                _make_integer(meta, port)
        if "scireg" in meta:
            for end in meta["scireg"].values():
                for name in ("latitude", "longitude"):
                    if name in end:
                        end[name] = number(end[name])
        return flow

    return process


def _make_integer(meta: dict[str, Any], name: str) -> None:
    found = number(meta.pop(name))
    if found is not None:
        meta[name] = int(found)
