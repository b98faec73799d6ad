"""41 leftovers: masks addresses in fields that we do not know, so that none slips past 70 deidentify.

Reads   *, meta.{src,dst}_ip
Writes  *  ip-masked, in any field that is not one of an exporter's: the full src or dst address, and a text that is itself an address
Source  nothing
Drops   nothing

Texts of the exporter's own fields (flow_type, sensor_id, instance_id, protocol) name devices and pass as they are.
Names of fields that are equal once they are masked are numbered: 192.0.2.x, 192.0.2.x (2).
"""

from __future__ import annotations

from pydantic import Field

from netsage_pipeline.addresses import masker
from netsage_pipeline.config import Settings
from netsage_pipeline.fields import EXPORTED
from netsage_pipeline.flow import Flow, FlowProcess, Lookups

_TOP = frozenset(("start", "end", "meta", "values", "stitched_flows", "@timestamp", "@ingest_time"))
_META = frozenset(name.removeprefix("meta.") for name in EXPORTED if name.startswith("meta.")) | {"id"}
_VALUES = frozenset(name.removeprefix("values.") for name in EXPORTED if name.startswith("values."))


class Config(Settings):
    keep: list[str] = Field([], description='Fields that pass as they are, such as "meta.exporter_ip" or "collector"')


def stage(config: Config, _lookups: Lookups) -> FlowProcess:
    top, meta_known, values_known = (
        known | {name.removeprefix(prefix) for name in config.keep if name.startswith(prefix)}
        for prefix, known in (("", _TOP), ("meta.", _META), ("values.", _VALUES))
    )

    usual_top, usual_meta = top | {"type", "interval"}, meta_known | {"ip_version"}  # Where they are what they should be.

    def process(flow: Flow) -> Flow:
        meta, values = flow["meta"], flow["values"]
        if (
            usual_top.issuperset(flow)
            and usual_meta.issuperset(meta)
            and values_known.issuperset(values)
            and flow.get("type", "flow") == "flow"
            and flow.get("interval", 0).__class__ is int
            and meta.get("ip_version", "4") in ("4", "6")
        ):
            return flow
        masked = masker(meta["src_ip"], meta["dst_ip"])
        for holder, known in ((flow, top), (meta, meta_known), (values, values_known)):
            holder.update(masked({name: holder.pop(name) for name in [name for name in holder if name not in known]}))
        return flow

    return process
