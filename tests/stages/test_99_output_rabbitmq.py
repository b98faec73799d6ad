"""99 output rabbitmq: messages, their ids, and what cannot be written. With a broker: tests/services/test_rabbitmq_stages.py."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from netsage_pipeline.documents import document_id
from tests.conftest import load_stage

output = load_stage("99_output_rabbitmq")


class Recorder:
    """Stands in for the link: takes messages and confirms those that it is told to."""

    def __init__(self, *_given: Any) -> None:
        self.messages: list[tuple[Any, str, str, bytes, str]] = []
        self.to_confirm: list[Any] = []

    def publish(self, *message: Any) -> None:
        self.messages.append(message)

    def turn(self, seconds: float = 0) -> None:
        pass

    def confirmed(self) -> list[Any]:
        confirmed, self.to_confirm = self.to_confirm, []
        return confirmed


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(output, "Publisher", lambda *_given: made)
    return made


def flow(number: int, **more: Any) -> dict[str, Any]:
    return {"meta": {"id": f"id-{number}"}, "start": "s", "end": "e", "stitched_flows": 1, "values": {"num_bits": 8}, **more}


def test_one_flow_a_message_is_an_object_under_the_id_of_its_document(recorder: Recorder) -> None:
    sink = output.sink(output.Config(flows_per_message=1))
    sink.write(7, [flow(1), flow(2)])
    assert recorder.messages == [
        (7, "netsage.direct", "netsage_archive_input", orjson.dumps(flow(number)), document_id(flow(number))) for number in (1, 2)
    ]


def test_more_flows_a_message_are_arrays_of_so_many(recorder: Recorder) -> None:
    sink = output.sink(output.Config(flows_per_message=3, exchange="x", key="k"))
    sink.write(1, [flow(number) for number in range(7)])
    sink.write(2, [flow(7)])
    assert [orjson.loads(message[3]) for message in recorder.messages] == [
        [flow(0), flow(1), flow(2)],
        [flow(3), flow(4), flow(5)],
        [flow(6)],
        [flow(7)],
    ]
    assert {message[1:3] for message in recorder.messages} == {("x", "k")}


def test_the_id_of_an_array_depends_on_the_documents_in_it_alone(recorder: Recorder) -> None:
    sink = output.sink(output.Config())
    for number, flows in enumerate(
        ([flow(1), flow(2)], [flow(1, **{"@exit_time": 5}), flow(2)], [flow(2), flow(1)], [flow(1)]),
    ):
        sink.write(number, flows)
    first, same, other_order, fewer = (message[4] for message in recorder.messages)
    assert first == same
    assert len({first, other_order, fewer}) == 3
    assert all(len(each) == 32 for each in (first, other_order, fewer))


def test_flows_without_an_id_are_told_apart_by_all_they_hold(recorder: Recorder) -> None:
    sink = output.sink(output.Config(flows_per_message=1))
    sink.write(1, [{"a": 1}, {"a": 2}, {"a": 1}, {"meta": None, "a": 1}, {"meta": {"id": ""}}])
    ids = [message[4] for message in recorder.messages]
    assert ids[0] == ids[2]
    assert len(set(ids)) == 4


def test_a_batch_is_stored_when_all_of_it_is_confirmed_and_an_empty_one_at_once(recorder: Recorder) -> None:
    sink = output.sink(output.Config(flows_per_message=1))
    sink.write(1, [flow(1), flow(2)])
    sink.write(2, [flow(3)])
    sink.write(3, [])
    assert sink.stored() == [(3, 0, [])]
    recorder.to_confirm = [1, 2]
    assert sink.stored() == [(2, 1, [])]
    assert sink.stored() == []
    recorder.to_confirm = [1]
    assert sink.stored() == [(1, 2, [])]
    assert sink.stored() == []


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param({"a": 1 << 65}, "integer beyond 64 bits", id="an integer"),
        pytest.param({"a": "\ud800"}, "lone surrogate in a text", id="a lone surrogate"),
        pytest.param({"a": {1, 2}}, "not JSON", id="a value that is no JSON"),
        pytest.param({"meta": {"id": 1 << 65}}, "integer beyond 64 bits", id="an id"),
    ],
)
def test_what_cannot_be_written_is_refused_and_its_neighbours_go_out(recorder: Recorder, bad: dict[str, Any], reason: str) -> None:
    sink = output.sink(output.Config())
    sink.write(1, [flow(1), bad, flow(2)])
    sink.write(2, [bad])
    assert sink.stored() == [(2, 0, [(bad, reason)])]
    assert [orjson.loads(message[3]) for message in recorder.messages] == [[flow(1), flow(2)]]
    recorder.to_confirm = [1]
    assert sink.stored() == [(1, 2, [(bad, reason)])]


@pytest.mark.usefixtures("recorder")
def test_stored_waits_no_longer_than_it_was_told_to() -> None:
    sink = output.sink(output.Config())
    sink.write(1, [flow(1)])
    assert sink.stored(0.05) == []


@pytest.mark.parametrize(
    ("given", "queue", "shards"),
    [
        pytest.param({}, "k", [""], id="as the key"),
        pytest.param({"queue": "q"}, "q", [""], id="named"),
        pytest.param({"queue": ""}, "", [""], id="none"),
        pytest.param({"shards": 2}, "k", [".0", ".1"], id="one for each shard"),
    ],
)
def test_the_queues_that_are_made(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], queue: str, shards: list[str]) -> None:
    link: list[Any] = []
    monkeypatch.setattr(output, "Publisher", lambda *arguments: link.extend(arguments))
    output.sink(output.Config(key="k", exchange="x", **given))
    assert link[1:] == ["output", "x", queue, "k", shards]


def test_a_message_holds_at_least_one_flow() -> None:
    with pytest.raises(ValidationError):
        output.Config(flows_per_message=0)
