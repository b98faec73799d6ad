"""Ids of documents."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from netsage_pipeline.documents import document_id

FLOW: dict[str, Any] = {
    "start": "2023-11-14T22:13:20.000Z",
    "end": "2023-11-14T22:14:20.000Z",
    "stitched_flows": 2,
    "meta": {"id": "7dbd53", "src_ip": "192.0.2.x"},
    "values": {"num_bits": 800, "num_packets": 10, "bits_per_second": 13},
}


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    flow = copy.deepcopy(FLOW)
    change(flow)
    return flow


def test_an_id_is_the_same_everywhere_and_for_ever() -> None:
    assert document_id(FLOW) == document_id(FLOW, "message/3") == "b8a93503cfb09812e9aab8aff4244b4a"


@pytest.mark.parametrize(
    "change",
    [
        lambda flow: flow["meta"].update(id="7dbd54"),
        lambda flow: flow.update(start="2023-11-14T22:13:20.001Z"),
        lambda flow: flow.update(end="2023-11-14T22:14:20.001Z"),
        lambda flow: flow.update(stitched_flows=3),
        lambda flow: flow["values"].update(num_bits=801),
        lambda flow: flow["values"].update(num_packets=11),
        lambda flow: flow["values"].update(num_bits=10, num_packets=800),
        lambda flow: flow["meta"].update(id='7dbd53","2023-11-14T22:13:20.000Z'),
        lambda flow: flow.pop("values"),
        lambda flow: flow.update(values=None),
        lambda flow: flow.update(values=[800, 10]),
    ],
)
def test_another_flow_has_another_id(change: Callable[[dict[str, Any]], object]) -> None:
    found = document_id(changed(change))
    assert found != document_id(FLOW)
    assert re.fullmatch("[0-9a-f]{32}", found)


@pytest.mark.parametrize(
    "change",
    [
        lambda flow: flow["meta"].update(src_organization="Somewhere"),
        lambda flow: flow["values"].update(bits_per_second=14),
        lambda flow: flow.update({"@exit_time": "now"}),
    ],
)
def test_what_else_is_in_a_flow_makes_no_difference(change: Callable[[dict[str, Any]], object]) -> None:
    assert document_id(changed(change)) == document_id(FLOW)


@pytest.mark.parametrize("flow", [{}, {"meta": None}, {"meta": "id"}, {"meta": {}}, {"meta": {"id": ""}}, {"meta": {"id": None}}])
def test_a_record_without_an_id_is_known_by_what_it_is_told_to(flow: dict[str, Any]) -> None:
    assert document_id(flow, "key/0") == document_id({**flow, "start": "x"}, "key/0")
    assert document_id(flow, "key/0") != document_id(flow, "key/1")
    assert re.fullmatch("[0-9a-f]{32}", document_id(flow))
