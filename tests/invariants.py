"""What the tests share of what holds for every input: chains, flows with anything in them, and what comes out of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.flow import Flow, Lookups, Now
from netsage_pipeline.tables.tables import Tables
from tests.flows import MISSING, NOW, flow

Body = bytes


def examples(number: int) -> settings:
    """The same examples at every run."""
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@cache
def shipped() -> list[Configured]:
    return configured(folders.shipped("conf.d"), [folders.shipped("stages")])


@cache
def demo_tables() -> Tables:
    return Tables(folders.demo() / "tables")


def chain_of(clock: str = "event", *, stages: list[Configured] | None = None, lookups: Lookups | None = None) -> Chain:
    return Chain(stages or shipped(), lookups or demo_tables(), Now(NOW, clock=clock))


def through(chain: Chain, bodies: list[Body], chance: Random | None = None) -> list[Flow]:
    """What comes out of messages; with `chance`, looks at the clock and enriches now and then in between."""
    finished, flows = [], []
    for number, body in enumerate(bodies):
        finished += chain.take(body, "test", str(number))
        if chance and chance.random() < 0.3:
            finished += chain.tick()
        if chance and chance.random() < 0.3:
            flows += chain.enrich(finished)
            finished = []
    return flows + chain.enrich(finished) + chain.enrich(chain.drain())


#: In place of a number, an address, a name, or anything else.
ODD: list[Any] = [
    *(MISSING, None, True, False, 0, 1, -1, 12, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, -(2**63), -(2**63) - 1),
    *(0.0, -0.0, 0.5, 99.9, -0.5, 1e-320, 1e18, 9.3e18, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "12", " 12 ", "-3", "99.9", "1,234", "1e3", "abc", "0x10", "٣", "9" * 30, "9" * 5_000, "1e400", "nan", "inf", "\0"),
    *([], {}, [1], {"a": 1}, "10.1.2.3", "::1", "fe80::1%eth0", "\ud800", "a\udfff", "é😀"),
]
TIMES: list[Any] = [
    NOW,
    NOW - 700,
    NOW - 631,
    NOW + 9,
    NOW + 11,
    NOW - 400 * 86_400,
    str(NOW),
    int(NOW * 1000),
    9_999_999_999,
    10_000_000_000,
]
PLACES = [
    *(
        ("start",),
        ("end",),
        ("meta",),
        ("values",),
        ("type",),
        ("interval",),
        ("tags",),
        ("@ingest_time",),
        ("stitched_flows",),
        ("",),
        ("@x",),
    ),
    *(("meta", name) for name in flow()["meta"]),
    *(
        ("meta", name)
        for name in ("id", "scireg", "src", "dst", "src_location", "src_country_name", "tags", "instance_id", "", "src_organization")
    ),
    *(("values", name) for name in flow()["values"]),
]


@st.composite
def any_flow(draw: st.DrawFn, most: int = 3) -> Flow:
    """A flow of one of few conversations, with up to so many odd things in it."""
    bits = draw(st.one_of(st.integers(0, 10**9), st.integers(2**61, 2**63 - 1)))
    meta = {"flow_type": draw(st.sampled_from(("netflow", "sflow", "tstat"))), "src_port": draw(st.integers(1, 3))}
    start = NOW - draw(st.sampled_from((100.0, 300.0, 631.0)))
    made = flow(
        meta=meta,
        values={"num_bits": bits, "num_packets": bits // 1000},
        start=start,
        end=start + draw(st.sampled_from((0.0, 2.4e-7, 90.0))),
    )
    for _ in range(draw(st.integers(0, most))):
        *inside, name = draw(st.sampled_from(PLACES))
        holder = made[inside[0]] if inside else made
        value = draw(st.sampled_from(TIMES if name in ("start", "end") and draw(st.booleans()) else ODD))
        if isinstance(holder, dict):
            holder.pop(name, None)
            if value is not MISSING:
                holder[name] = value
        if not all(isinstance(made.get(each), dict) for each in ("meta", "values")):
            break
    return made


def body(value: Any) -> Body:
    """JSON as a lenient writer makes it: NaN, lone surrogates and large integers among it."""
    return json.dumps(value).encode()


def decoded(given: Body) -> Any:
    try:
        return orjson.loads(given)
    except orjson.JSONDecodeError:
        return json.loads(given)


#: An operator's stage: `kind` is its factory, what is `given` to it is refused where `condition` holds.
REFUSING = '''"""mine: refuses.

Reads   nothing
Writes  nothing
Source  nothing
Drops   nothing
"""
from netsage_pipeline.config import Settings

class Config(Settings):
    pass

def {kind}(config, lookups):
    def process(given):
        if {condition}:
            raise ValueError(str(given))
        return given

    return process
'''


def copy_conf(to: Path, **added: str) -> None:
    """Our settings in another directory; of some stages with more in them: `copy_conf(to, _41_ip_version="enabled = true")`."""
    to.mkdir(parents=True)
    for file in sorted(folders.shipped("conf.d").glob("*.toml")):
        more = added.get(f"_{file.stem}")
        (to / file.name).write_text(file.read_text() if more is None else more)
