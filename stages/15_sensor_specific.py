"""15 sensor specific: filters by interface or subnet, renames sensors, corrects sampling. Each rule applies to the sensors it names.

Reads   meta.sensor_id, meta.{src,dst}_ifindex, meta.{src,dst}_ip, values.num_bits, values.num_packets, values.bits_per_second,
        values.packets_per_second
Writes  meta.sensor_id  text
        values.num_bits, values.num_packets, values.bits_per_second, values.packets_per_second  integer, times the sampling factor, cut
Source  its settings
Drops   ifindex filter, subnet filter

The rules are applied in the order filter by interface, rename, sampling, filter by subnet; the later ones see the new name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from netsage_pipeline.addresses import Prefixes
from netsage_pipeline.config import Settings
from netsage_pipeline.flow import Flow, FlowProcess, Lookups, Refused

_SAMPLED = ("num_bits", "num_packets", "bits_per_second", "packets_per_second")
_LONG = 1 << 63


def _prefix(text: str) -> str:
    Prefixes().add(text)
    return text


Prefix = Annotated[str, AfterValidator(_prefix)]


class Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IfindexFilter(Rule):
    mode: Literal["include", "exclude"] = "include"
    all: list[int] = []
    by_sensor: dict[str, list[int]] = {}


class SubnetFilter(Rule):
    mode: Literal["include", "exclude"] = "include"
    all: list[Prefix] = []
    by_sensor: dict[str, list[Prefix]] = {}


class Rename(Rule):
    sensor: str
    ifindex: int
    name: str


class Sampling(Rule):
    sensor: str
    factor: float = Field(gt=0, allow_inf_nan=False)


class Config(Settings):
    ifindex_filter: IfindexFilter = Field(
        IfindexFilter(),
        description="mode include keeps, exclude drops flows whose src or dst ifindex is listed, in `all` or in `by_sensor`",
    )
    rename: list[Rename] = Field([], description="sensor, ifindex, name: flows of a sensor through an interface get another sensor name")
    sampling: list[Sampling] = Field([], description="sensor, factor: bits, packets and rates of a sensor times the factor")
    subnet_filter: SubnetFilter = Field(
        SubnetFilter(),
        description="mode include keeps, exclude drops flows with an end in a listed prefix, in `all` or in `by_sensor` for their sensor",
    )


def stage(config: Config, _lookups: Lookups) -> FlowProcess:
    ifindexes = config.ifindex_filter
    names = {(rule.sensor, rule.ifindex): rule.name for rule in config.rename}
    # A whole factor as an integer, because a float has not all digits of a large count.
    factors = {rule.sensor: int(rule.factor) if rule.factor.is_integer() else rule.factor for rule in config.sampling}
    subnets = config.subnet_filter
    subnets_of = {sensor: _prefixes([*subnets.all, *own]) for sensor, own in subnets.by_sensor.items() if own}
    subnets_of_all = _prefixes(subnets.all) if subnets.all else None

    def process(flow: Flow) -> Flow | str:
        meta, values = flow["meta"], flow["values"]
        sensor = str(meta.get("sensor_id", ""))
        source, destination = meta.get("src_ifindex"), meta.get("dst_ifindex")
        listed = [*ifindexes.all, *ifindexes.by_sensor.get(sensor, [])]
        if listed and (source in listed or destination in listed) != (ifindexes.mode == "include"):
            return "ifindex filter"
        name = names.get((sensor, source)) or names.get((sensor, destination))
        if name is not None:
            sensor = meta["sensor_id"] = name
        factor = factors.get(sensor)
        if factor is not None:
            for field in _SAMPLED:
                if values.get(field) is not None:
                    number = values[field] * factor
                    if number >= _LONG:
                        raise Refused(f"values.{field}: beyond 64 bits")
                    values[field] = int(number)
        prefixes = subnets_of.get(sensor, subnets_of_all)
        if prefixes is not None:
            inside = prefixes.get(meta["src_ip"]) or prefixes.get(meta["dst_ip"])
            if bool(inside) != (subnets.mode == "include"):
                return "subnet filter"
        return flow

    return process


def _prefixes(networks: list[str]) -> Prefixes:
    prefixes = Prefixes()
    for network in networks:
        prefixes.add(network)
    return prefixes
