"""99 output elasticsearch: documents, and what becomes of each answer. With a server: tests/services/test_sink*.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import elastic_transport
import elasticsearch
import orjson
import pytest
from elastic_transport import ApiResponseMeta, HttpHeaders, NodeConfig
from structlog.testing import capture_logs

from netsage_pipeline.documents import document_id
from netsage_pipeline.flow import Stored
from netsage_pipeline.outputs import senders
from tests.conftest import load_stage

output = load_stage("99_output_elasticsearch")

#: What a server answers to the documents of a request; an exception is raised.
Answer = Callable[[list[dict[str, Any]]], Any]


class Answers:
    """Stands in for the client: answers as it is told to, the last way for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.actions: list[dict[str, Any]] = []
        self.requests: list[list[dict[str, Any]]] = []

    def bulk(self, operations: list[bytes], filter_path: str) -> Any:
        assert "status" in filter_path
        lines = [orjson.loads(line) for line in operations]
        self.actions += [line["index"] for line in lines[::2]]
        self.requests.append(lines[1::2])
        return type("Answer", (), {"body": next(self._answers)(lines[1::2])})

    def close(self) -> None:
        pass


def stored(_documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"errors": False, "items": [{"index": {"status": 201}} for _ in _documents]}


def item(status: int, kind: str = "", reason: str = "no") -> Answer:
    """The documents with "bad" in them get this answer."""

    def answer(documents: list[dict[str, Any]]) -> dict[str, Any]:
        bad = {"index": {"status": status, **({"error": {"type": kind, "reason": reason}} if kind else {})}}
        return {"errors": True, "items": [bad if "bad" in each else {"index": {"status": 200}} for each in documents]}

    return answer


def fails(error: Exception) -> Answer:
    def answer(_documents: list[dict[str, Any]]) -> Any:
        raise error

    return answer


def whole(status: int, body: Any) -> elasticsearch.ApiError:
    meta = ApiResponseMeta(status, "1.1", HttpHeaders(), 0.1, NodeConfig("http", "localhost", 9200))
    return elasticsearch.ApiError("x", meta, body)


@pytest.fixture
def sinking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answers], Any]]:
    made: list[Any] = []
    monkeypatch.setattr(senders, "SENDERS", 1)
    monkeypatch.setattr(senders, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(senders, "LAST_PAUSE", 0.02)
    monkeypatch.setattr(output.templates, "install", lambda *_: [])

    def make(answers: Answers, **settings: Any) -> Any:
        monkeypatch.setattr(output, "client", lambda _config: answers)
        made.append(output.sink(output.Config(prefix="flows", **settings), {}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def flow(number: int, **more: Any) -> dict[str, Any]:
    return {"meta": {"id": f"id-{number}"}, "start": "2026-11-01T00:00:00.000Z", "end": "e", "values": {"num_bits": 8}, **more}


def outcome(sink: Any, batches: int) -> list[Stored]:
    """What became of so many batches, in their order."""
    found: list[Stored] = []
    until = time.monotonic() + 20
    while len(found) < batches:
        assert time.monotonic() < until, found
        found += sink.stored(0.1)
    return sorted(found)


def test_a_flow_is_written_under_its_id_into_the_index_of_its_day(sinking: Callable[[Answers], Any]) -> None:
    answers = Answers(stored)
    sink = sinking(answers)
    flows = [flow(1), flow(2, start=1_793_577_600), flow(3, document_id="of somebody else")]
    known_as = [document_id(each) for each in flows]
    sink.write(1, [dict(each) for each in flows])
    assert outcome(sink, 1) == [Stored(1, 3, [])]
    assert answers.actions == [
        {"_index": f"flows-2026.11.{day}", "_id": each} for day, each in zip(("01", "02", "01"), known_as, strict=True)
    ]
    assert answers.requests[0] == [each | {"document_id": known} for each, known in zip(flows, known_as, strict=True)]


@pytest.mark.parametrize(("time", "day"), [("@timestamp", "02"), ("event.created", "03"), ("start", "01")])
def test_the_day_is_that_of_the_field_that_the_settings_name(sinking: Callable[..., Any], time: str, day: str) -> None:
    answers = Answers(stored)
    sink = sinking(answers, time=time)
    times = {"@timestamp": "2026-11-02T00:00:00.000Z", "event": {"created": "2026-11-03T00:00:00.000Z"}}
    sink.write(1, [flow(1, **times)])
    assert outcome(sink, 1) == [Stored(1, 1, [])]
    assert answers.actions[0]["_index"] == f"flows-2026.11.{day}"


@pytest.mark.parametrize("bad", [{}, {"event": None}, {"event": {"created": "soon"}}, {"event": [1]}])
def test_what_has_no_time_there_is_refused(sinking: Callable[..., Any], bad: dict[str, Any]) -> None:
    sink = sinking(Answers(stored), time="event.created")
    sink.write(1, [flow(1, **bad)])
    assert outcome(sink, 1) == [Stored(1, 0, [(flow(1, **bad), "event.created is no time, so there is no day in whose index it belongs")])]


def test_of_a_place_only_its_point_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(stored)
    monkeypatch.setattr(output.templates, "install", lambda *_: [])
    monkeypatch.setattr(output, "client", lambda _config: answers)
    places = {"meta.src_location": "location", "meta.dst_location": "location", "mine": "location", "meta.scireg.at": "location"}
    sink = output.sink(output.Config(), places)
    point = {"lat": 1.0, "lon": -2.0}
    shared = {**point, "data_source": "scireg"}
    meta = {"id": "x", "src_location": shared, "dst_location": point, "scireg": "none", "other": shared}
    sink.write(1, [flow(1, meta=meta, mine=[1.0, -2.0]), flow(2, mine=shared)])
    assert outcome(sink, 1) == [Stored(1, 2, [])]
    sink.close()
    [[first, second]] = answers.requests
    assert first["meta"] == {**meta, "src_location": point}
    assert (first["mine"], second["mine"]) == ([1.0, -2.0], point)
    assert shared == {**point, "data_source": "scireg"}, "other flows may hold the same"


def test_flows_without_an_id_are_told_apart_by_all_they_hold(sinking: Callable[[Answers], Any]) -> None:
    answers = Answers(stored)
    sink = sinking(answers)
    start = {"start": "2026-11-01T00:00:00Z"}
    sink.write(1, [{**start, "a": 1}, {**start, "a": 2}, {**start, "a": 1, "document_id": "x"}, {**start, "meta": {"id": ""}}])
    outcome(sink, 1)
    ids = [action["_id"] for action in answers.actions]
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"start": None}, "start is no time, so there is no day in whose index it belongs"),
        ({"a": 1 << 65}, "integer beyond 64 bits"),
        ({"a": "\ud800"}, "lone surrogate in a text"),
        ({"meta": {"id": 1 << 65}}, "integer beyond 64 bits"),
    ],
)
def test_what_cannot_be_a_document_is_refused_and_its_neighbours_are_written(
    sinking: Callable[[Answers], Any], bad: dict[str, Any], reason: str
) -> None:
    sink = sinking(Answers(stored))
    sink.write(1, [flow(1), flow(2) | bad, flow(3)])
    sink.write(2, [flow(2) | bad])
    sink.write(3, [])
    assert outcome(sink, 3) == [Stored(1, 2, [(flow(2) | bad, reason)]), Stored(2, 0, [(flow(2) | bad, reason)]), Stored(3, 0, [])]


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (429, "es_rejected_execution_exception", "no"),
        (429, "cluster_block_exception", "no"),
        (403, "cluster_block_exception", "no"),
        (403, "security_exception", "no"),
        (404, "index_not_found_exception", "no"),
        (500, "anything", "no"),
        (503, "unavailable_shards_exception", "no"),
        (400, "index_closed_exception", "closed"),
        (400, "validation_exception", "too many shards"),
        (400, "invalid_index_name_exception", "no"),
        (400, "illegal_argument_exception", "pipeline with id [x] does not exist"),
        (400, "illegal_argument_exception", "no write index is defined for alias [x]"),
        (400, "", ""),
    ],
)
def test_what_is_not_the_documents_fault_is_sent_again_and_nothing_else(
    sinking: Callable[[Answers], Any], status: int, kind: str, reason: str
) -> None:
    answers = Answers(item(status, kind, reason), item(status, kind, reason), stored)
    sink = sinking(answers)
    sink.write(1, [flow(1), flow(2, bad=1), flow(3)])
    assert outcome(sink, 1) == [Stored(1, 3, [])]
    assert [len(each) for each in answers.requests] == [3, 1, 1]


def test_a_refusal_gives_the_flow_back_and_one_line_a_reason(sinking: Callable[[Answers], Any]) -> None:
    sink = sinking(Answers(item(400, "document_parsing_exception", "failed to parse field [n] of type [long]")))
    with capture_logs() as said:
        sink.write(1, [flow(1), *(flow(number, bad=1) for number in (2, 3)), flow(4)])
        refused = "n: document_parsing_exception: failed to parse field [n] of type [long]"
        assert outcome(sink, 1) == [Stored(1, 2, [(flow(number, bad=1), refused) for number in (2, 3)])]
    assert [line["event"] for line in said] == [f"2 of 4 refused by flows-2026.11.01: {refused}"]


def test_a_version_conflict_is_a_repetition_that_came_first(sinking: Callable[[Answers], Any]) -> None:
    sink = sinking(Answers(item(409, "version_conflict_engine_exception")))
    sink.write(1, [flow(1, bad=1)])
    assert outcome(sink, 1) == [Stored(1, 1, [])]


def test_what_the_failure_store_took_is_refused(sinking: Callable[[Answers], Any]) -> None:
    sink = sinking(Answers(lambda _: {"items": [{"index": {"status": 201, "failure_store": "used"}}]}))
    sink.write(1, [flow(1)])
    assert outcome(sink, 1) == [Stored(1, 0, [(flow(1), "the failure store took it")])]


@pytest.mark.parametrize(
    "error",
    [
        elastic_transport.ConnectionTimeout("x"),
        elastic_transport.ConnectionError("x"),
        elastic_transport.SerializationError("x"),
        whole(400, "<html>Bad Request</html>"),
        whole(400, {"error": {"type": "media_type_header_exception", "reason": "x"}}),
        whole(401, {}),
        whole(403, {"error": {"type": "cluster_block_exception", "reason": "x"}}),
        whole(429, {}),
        whole(502, "<html>"),
        ValueError("of the client"),
        RuntimeError("of the client"),
    ],
    ids=repr,
)
def test_a_request_that_fails_is_sent_again_as_it_was(sinking: Callable[[Answers], Any], error: Exception) -> None:
    answers = Answers(fails(error), fails(error), stored)
    sink = sinking(answers)
    sink.write(1, [flow(number) for number in range(4)])
    assert outcome(sink, 1) == [Stored(1, 4, [])]
    assert [len(each) for each in answers.requests] == [4, 4, 4]


@pytest.mark.parametrize("answer", [{}, {"items": []}, {"items": [{"index": {"status": 201}}]}, {"items": [{}, 1]}, [], "text", None])
def test_an_answer_that_does_not_speak_of_each_document_says_nothing(sinking: Callable[[Answers], Any], answer: Any) -> None:
    answers = Answers(lambda _: answer, stored)
    sink = sinking(answers)
    sink.write(1, [flow(1), flow(2)])
    assert outcome(sink, 1) == [Stored(1, 2, [])]
    assert len(answers.requests) == 2


def test_of_a_request_that_is_refused_as_a_whole_only_the_document_to_blame_is_refused(sinking: Callable[[Answers], Any]) -> None:
    refusal = whole(400, {"error": {"type": "action_request_validation_exception", "reason": "no"}})

    def answer(documents: list[dict[str, Any]]) -> Any:
        if any("bad" in each for each in documents):
            raise refusal
        return stored(documents)

    sink = sinking(Answers(answer))
    sink.write(1, [flow(number, **({"bad": 1} if number == 5 else {})) for number in range(8)])
    reason = "action_request_validation_exception: no (status 400)"
    assert outcome(sink, 1) == [Stored(1, 7, [(flow(5, bad=1), reason)])]


def test_after_a_request_that_is_too_long_others_are_shorter(sinking: Callable[[Answers], Any]) -> None:
    def answer(documents: list[dict[str, Any]]) -> Any:
        if len(orjson.dumps(documents)) > 20_000:
            raise whole(413, "<html>")
        return stored(documents)

    answers = Answers(answer)
    sink = sinking(answers)
    for batch in range(30):
        sink.write(batch, [flow(100 * batch + number) for number in range(100)])
    assert outcome(sink, 30) == [Stored(batch, 100, []) for batch in range(30)]
    too_long = [len(orjson.dumps(each)) > 20_000 for each in answers.requests]
    assert 0 < sum(too_long) < 30
    assert not any(too_long[-10:])


def test_nothing_is_refused_for_what_prevents_the_template(sinking: Callable[[Answers], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = [
        whole(400, {"error": {"type": "illegal_argument_exception", "reason": "no"}}),
        elasticsearch.AuthorizationException("x", whole(403, {}).meta, {"error": {"type": "cluster_block_exception", "reason": "x"}}),
        RuntimeError("x"),
    ]

    def install(*_given: Any) -> list[str]:
        if errors:
            raise errors.pop(0)
        return []

    answers = Answers(stored)
    sink = sinking(answers)
    monkeypatch.setattr(output.templates, "install", install)
    sink.write(1, [flow(1)])
    assert outcome(sink, 1) == [Stored(1, 1, [])]
    assert not errors
    assert len(answers.requests) == 1


def test_it_leaves_at_once_while_nothing_can_be_stored(sinking: Callable[[Answers], Any]) -> None:
    answers = Answers(fails(elastic_transport.ConnectionError("x")))
    sink = sinking(answers)
    sink.write(1, [flow(1)])
    while not answers.requests:
        time.sleep(0.01)
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 0.9
    assert sink.stored() == []


def test_a_row_of_the_same_trouble_is_one_line(sinking: Callable[[Answers], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "PATIENCE_S", 0)
    answers = Answers(*(item(429, "rejected", f"{number} bytes are taken") for number in range(10)), stored)
    with capture_logs() as said:
        sink = sinking(answers)
        sink.write(1, [flow(1, bad=1)])
        outcome(sink, 1)
        while len(said) < 2:
            time.sleep(0.01)
    assert [line["event"] for line in said] == ["waits for Elasticsearch", "goes on with Elasticsearch"]


@pytest.mark.parametrize("prefix", ["", "-x", "_x", ".x", "Flows", "a b", "a/b", "a*", "é", "x" * 201, "a\nb", "x-"])
def test_a_prefix_that_begins_no_index_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        output.Config(prefix=prefix)
