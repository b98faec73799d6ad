"""Ids of documents."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from netsage_pipeline.documents import document_id, written
from tests.conftest import load_stage

rabbitmq, elasticsearch = load_stage("99_output_rabbitmq"), load_stage("99_output_elasticsearch")

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
    assert document_id(FLOW) == "b8a93503cfb09812e9aab8aff4244b4a"


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
def test_a_record_without_an_id_is_known_by_all_that_it_holds(flow: dict[str, Any]) -> None:
    assert document_id(flow) == document_id({**flow, "document_id": "x"})
    assert document_id(flow) != document_id({**flow, "x": 1})
    assert re.fullmatch("[0-9a-f]{32}", document_id(flow))


class Recorder:
    """Stands in for what an output hands its messages or documents to."""

    def __init__(self) -> None:
        self.published: list[tuple[Any, ...]] = []
        self.written: list[Any] = []

    def publish(self, *message: Any) -> None:
        self.published.append(message)

    def write(self, _batch: int, documents: list[Any], refused: list[Any]) -> None:
        assert not refused
        self.written += documents


@pytest.mark.parametrize("more", [{}, {"document_id": "old"}, {"meta": {"id": "x"}}, {"meta": {"id": "x"}, "document_id": "old"}])
def test_a_record_has_the_same_id_in_all_outputs(more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"start": "2023-11-14T22:13:20.000Z", "a": 1, "place": {"lat": 1, "lon": 2, "data_source": "scireg"}, **more}
    known_as = written(record).known_as
    recorder = Recorder()
    monkeypatch.setattr(rabbitmq, "Publisher", lambda *_given: recorder)
    rabbitmq.sink(rabbitmq.Config(flows_per_message=1)).write(1, [copy.deepcopy(record)])
    assert [message[4] for message in recorder.published] == [known_as]
    monkeypatch.setattr(elasticsearch, "Bulk", lambda *_given: recorder)
    elasticsearch.sink(elasticsearch.Config(), {"place": "location"}).write(1, [copy.deepcopy(record)])
    [document] = recorder.written
    assert orjson.loads(document.action)["index"]["_id"] == known_as == document_id(record)
    assert orjson.loads(document.source) == {**record, "place": {"lat": 1, "lon": 2}, "document_id": known_as}
