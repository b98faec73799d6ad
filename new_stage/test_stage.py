"""NN something: a flow is given the text of its protocol, or dropped."""

from __future__ import annotations

from pathlib import Path

from netsage_pipeline.flow import Flow
from netsage_pipeline.stagefile import load

STAGE = load(Path(__file__).with_name("NN_something.py"))


def run(protocol: str) -> Flow | str:
    config = STAGE.Config(by_protocol={"tcp": "a text"}, unwanted=["esp"])
    after: Flow | str = STAGE.stage(config, None)({"meta": {"protocol": protocol}})
    return after


def test_a_protocol_that_the_settings_name() -> None:
    assert run("tcp") == {"meta": {"protocol": "tcp", "something": "a text"}}


def test_an_unwanted_protocol() -> None:
    assert run("esp") == "unwanted protocol"


def test_any_other_protocol() -> None:
    assert run("udp") == {"meta": {"protocol": "udp"}}
