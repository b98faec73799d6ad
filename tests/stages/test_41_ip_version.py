"""41 ip version."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from netsage_pipeline.folders import shipped
from tests.conftest import load_stage
from tests.flows import MISSING, flow, nothing

ip_version = load_stage("41_ip_version")


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        pytest.param("192.0.2.1", "4", id="IPv4"),
        pytest.param("2001:db8::1", "6", id="IPv6"),
        pytest.param("::ffff:192.0.2.1", "6", id="a mapped address is IPv6"),
        pytest.param("no address", MISSING, id="no field for an address that is none"),
        pytest.param("", MISSING, id="no field for an empty text"),
    ],
)
@pytest.mark.parametrize("given", [pytest.param(MISSING, id="new"), pytest.param("9", id="replaces what the input says")])
def test_ip_version_is_that_of_the_source(ip: str, expected: Any, given: Any) -> None:
    got = ip_version.stage(ip_version.Config(), nothing)(flow(meta={"src_ip": ip, "dst_ip": "2001:db8::2", "ip_version": given}))
    assert got == flow(meta={"src_ip": ip, "dst_ip": "2001:db8::2", "ip_version": expected})


@pytest.mark.parametrize("name", ["15_sensor_specific", "41_ip_version", "42_communities"])
def test_some_stages_are_switched_off_as_shipped(name: str) -> None:
    assert tomllib.loads((shipped("conf.d") / f"{name}.toml").read_text("utf-8"))["enabled"] is False
