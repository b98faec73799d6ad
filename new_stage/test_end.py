"""NN something: an end in a prefix is given its text."""

from __future__ import annotations

from pathlib import Path

from netsage_pipeline.flow import End
from netsage_pipeline.stagefile import load

STAGE = load(Path(__file__).with_name("NN_something.py"))


def run(ip: str) -> End:
    end = {"side": "src", "ip": ip, "asn": 64500}
    prefixes = {"192.0.2.0/24": "a text", "192.0.2.128/25": "another"}
    STAGE.end(STAGE.Config(by_prefix=prefixes), None)(end)
    return end


def test_an_address_in_a_prefix() -> None:
    assert run("192.0.2.1")["something"] == "a text"


def test_the_longest_prefix_counts() -> None:
    assert run("192.0.2.200")["something"] == "another"


def test_any_other_address() -> None:
    assert "something" not in run("198.51.100.1")
