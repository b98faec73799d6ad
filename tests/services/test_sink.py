"""The sink with a real broker and a real Elasticsearch: what is refused, in which index a flow is, the template, and the queue."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pika
import pytest

from netsage_pipeline.deadletters import body_of
from tests.command import conf_with, letters, run_real, written
from tests.flows import flow as raw
from tests.services.elastic import Node
from tests.services.rabbitmq import Broker, wait_for
from tests.services.sink import PREPARED_S, Sinking, front

DAY = "2026.11.01"

Made = Callable[..., Sinking]


@pytest.fixture
def sinking(broker: Broker, elastic: Node, tmp_path: Path) -> Iterator[Made]:
    made: list[Sinking] = []

    def make(**more: Any) -> Sinking:
        made.append(Sinking(broker, elastic, tmp_path / f"sink-{len(made)}", **more))
        return made[-1]

    yield make
    for each in made:
        each.end()


def dead(run: Sinking, number: int) -> list[dict[str, Any]]:
    """So many dead letters; the queue of them is empty afterwards."""
    wait_for(lambda: run.broker.count(run.dead) >= number, 60, lambda: run.worker.lasts(0.1))
    return sorted(run.letters(), key=lambda letter: str(letter["reason"]))


def test_only_the_document_that_the_mapping_refuses_is_a_dead_letter_and_can_be_replayed(sinking: Made, elastic: Node) -> None:
    run = sinking()
    secret = '198.51.100.77 "it\'s" [secret]'
    bad = [run.flow(meta={"id": f"{number:064x}", "src_asn": secret}) for number in range(3)]
    worse = run.flow(meta={"id": "f" * 64}, values={"num_bits": 1 << 63, "num_packets": 1})
    good = [run.flow() for _ in range(6)]
    for each in good:
        run.expect(each)
    run.put([*good[:3], *bad, *good[3:], worse])
    run.begin()
    found = dead(run, 4)
    run.wait_until_stored()

    asn = (
        "meta.src_asn: document_parsing_exception: failed to parse field [meta.src_asn] of type [long]: "
        'illegal_argument_exception: For input string: "…"'
    )
    assert [letter["reason"] for letter in found[:3]] == [asn] * 3
    assert found[3]["reason"].startswith("values.num_bits: document_parsing_exception: failed to parse field [values.num_bits]")
    assert {letter["stage"] for letter in found} == {"99_output"}
    assert {letter["source"] for letter in found} == {run.input}
    assert sorted(body_of(letter["payload"]) for letter in found) == sorted(orjson.dumps(each) for each in (*bad, worse))
    said = [event["event"] for event in run.worker.says("refused by")]
    assert said == [f"3 of 10 refused by {run.prefix}-{DAY}: {asn}", f"1 of 10 refused by {run.prefix}-{DAY}: {found[3]['reason']}"]
    assert "secret" not in run.said
    assert "198.51.100" not in run.said
    assert "secret" not in "".join(letter["reason"] for letter in found)

    run.stop_when_done()
    for letter in found:  # Back to where they were, as they are.
        run.broker.put(run.dead, [orjson.dumps(letter)], pika.BasicProperties(message_id=letter["id"], delivery_mode=2))
    listed = run.command("dead-letters", "list").out.decode()
    assert f"3  99_output: {asn}\n" in listed
    shown = run.command("dead-letters", "show", "--reason", "meta.src_asn").out
    assert len(shown.splitlines()) == 3
    with elastic.client() as client:
        client.indices.put_mapping(
            index=f"{run.prefix}-*", properties={"meta": {"properties": {"src_asn": {"type": "long", "ignore_malformed": True}}}}
        )
    replayed = run.command("dead-letters", "replay", "--reason", "meta.src_asn")
    assert replayed.out.decode() == f"3 dead letters were put on {run.input}\n"
    for each in bad:
        run.expect(each)
    run.begin()
    run.wait_until_stored()
    run.stop_when_done()
    assert run.broker.count(run.dead) == 1


def test_killed_before_a_dead_letter_is_stored_its_message_comes_again(sinking: Made) -> None:
    run = sinking()
    bad = run.flow(meta={"id": "a" * 64, "src_asn": "no number"})
    run.put([bad, run.flow()])
    kill = "lambda *_: __import__('os').kill(__import__('os').getpid(), 9)"
    run.limits = {"rabbitmq.amqp:Publisher.publish": kill}
    run.begin()
    wait_for(lambda: run.worker.code is not None)
    assert run.worker.code == -9
    wait_for(run.comes_again)
    run.limits = {}
    run.begin()
    assert [letter["payload"] for letter in dead(run, 1)] == [bad]
    run.stop_when_done()


def test_a_flow_is_in_the_index_of_the_day_it_started_whatever_its_start_is_written_like(sinking: Made) -> None:
    run = sinking()
    starts: list[tuple[Any, str]] = [
        ("2026-11-01T23:59:59.999Z", "2026.11.01"),
        ("2026-11-02T00:30:00.000+01:00", "2026.11.01"),
        ("2026-11-01T23:30:00-02:00", "2026.11.02"),
        (1_793_577_599.5, "2026.11.01"),
        (1_793_577_600, "2026.11.02"),
        (1_793_577_599_999, "2026.11.01"),
        (1_793_577_600_000, "2026.11.02"),
    ]
    flows = [run.flow(start=at, meta={"sensor_id": str(number)}) for number, (at, _) in enumerate(starts)]
    none: list[Any] = [None, "yesterday", True, [], 1e300]
    wrong = [run.flow(start=start) for start in none]
    del wrong[0]["start"]
    run.put(flows + wrong, *flows)
    run.begin()
    assert {letter["reason"] for letter in dead(run, 5)} == {"start is no time, so there is no day in whose index it belongs"}
    wait_for(lambda: not run.broker.count(run.input) and run.count() == len(starts), 60, lambda: time.sleep(0.2))
    run.stop_when_done()
    found = {each["meta"]["sensor_id"]: each for each in run.documents()}
    assert len(found) == run.count() == len(starts)  # Though they have no id, and came twice.
    assert [found[str(number)]["_index"] for number in range(len(starts))] == [f"{run.prefix}-{day}" for _, day in starts]
    assert all(each["_id"] == each["document_id"] for each in found.values())


def test_started_before_any_worker_it_makes_the_queue_that_workers_publish_to(sinking: Made) -> None:
    run = sinking()
    queue, exchange = f"{run.input}-new", f"{run.exchange}-new"
    run.environment |= {"NETSAGE_OUTPUT_KEY": queue, "NETSAGE_OUTPUT_EXCHANGE": exchange}
    run.begin().works()
    made = run.flow()
    run.expect(made)
    try:
        with run.broker.channel() as channel:
            channel.confirm_delivery()
            wait_for(lambda: run.broker.ctl("list_bindings", "--quiet", "destination_name").count(f"{queue}\n") > 1)
            channel.basic_publish(exchange, queue, json.dumps([made]).encode(), mandatory=True)
        run.wait_until_stored()
        run.stop_when_done()
        assert run.broker.count(queue) == 0
    finally:
        with run.broker.channel() as channel:
            channel.queue_delete(queue)
            channel.exchange_delete(exchange)


def test_the_template_is_there_before_the_first_document_also_of_a_server_that_lost_everything(sinking: Made, elastic: Node) -> None:
    run = sinking()
    run.limits = {PREPARED_S: 0.5}
    run.begin()
    with elastic.client() as client:
        for _ in range(2):
            time.sleep(0.6)
            made = run.flow()
            run.expect(made)
            run.put(made)
            run.wait_until_stored()
            index = f"{run.prefix}-{DAY}"
            properties = client.indices.get_mapping(index=index)[index]["mappings"]["properties"]
            assert properties["meta"]["properties"]["src_asn"] == {"type": "long"}
            client.indices.delete(index=index)
            client.indices.delete_index_template(name=run.prefix)
            run.published.clear()
    run.stop_when_done()
    assert [event["event"] for event in run.worker.says("index template")] == [f"index template {run.prefix}: installed"] * 2


def test_a_template_of_somebody_else_or_one_it_may_not_install_is_said_once_and_flows_are_stored(sinking: Made, elastic: Node) -> None:
    theirs, may_not = sinking(), sinking()
    with elastic.client() as client, front(elastic) as before:
        client.indices.put_index_template(name=theirs.prefix, index_patterns=[f"{theirs.prefix}-*"], priority=900)
        before.forbids = b"PUT /_index_template"
        may_not.environment["NETSAGE_ELASTICSEARCH_URL"] = before.url
        for run, words in ((theirs, "is somebody else's"), (may_not, "this user may not install it")):
            run.limits = {PREPARED_S: 0}
            for _ in range(2):
                run.publish(30)
            run.begin()
            run.wait_until_stored()
            run.publish(30)
            run.wait_until_stored()
            run.stop_when_done()
            [warning] = [event for event in run.worker.events if event["level"] == "warning"]
            assert words in warning["event"]


def test_a_replay_stores_as_many_as_its_summary_says_and_keeps_what_is_refused(sinking: Made, elastic: Node, tmp_path: Path) -> None:
    run = sinking()
    output = f'url = "{elastic.url}"\nprefix = "{run.prefix}"\n'
    conf = conf_with(tmp_path, {"01_input_rabbitmq": None, "99_output_rabbitmq": None, "99_output_elasticsearch": output})
    noon = 1_700_049_600  # 2023-11-15T12:00:00Z
    flows = [
        raw(start=noon + day * 86_400.0, end=noon + day * 86_400.0 + 1, meta={"src_ip": "128.101.1.7", "src_port": 1_024 + number})
        for day in (0, 1)
        for number in range(1_500)
    ]
    dump = written(tmp_path / "dump.ndjson", *flows, b"no json")
    with elastic.client() as client:
        refusing = f"{run.prefix}-2023.11.16"
        client.indices.create(index=refusing, mappings={"properties": {"meta": {"properties": {"src_port": {"type": "boolean"}}}}})
        outcome = run_real("replay", dump, "--conf", conf, "--dead-letters", tmp_path / "dead.ndjson")
        assert outcome.code == 0, outcome.err
        assert outcome.out == b"", "log lines are for standard error"
        summary, kept = outcome.summary, letters(tmp_path / "dead.ndjson")
        assert summary["written"] == run.count() == 1_500
        assert summary["dead letters"] == len(kept) == 1_501
        refused = [letter for letter in kept if letter["stage"] == "99_output"]
        assert len(refused) == 1_500
        assert {letter["reason"].partition(":")[0] for letter in refused} == {"meta.src_port"}
        client.indices.delete(index=refusing)
    again = run_real("replay", tmp_path / "dead.ndjson", "--conf", conf)
    assert again.code == 0, again.err
    assert again.summary["written"] == 1_500
    assert run.count() == 3_000
