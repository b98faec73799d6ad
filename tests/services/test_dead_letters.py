"""netsage-pipeline dead-letters with a real broker and a real worker."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from netsage_pipeline.deadletters import envelope
from tests.command import COMMAND, conf_with, stage_file
from tests.flows import flow
from tests.services.rabbitmq import Broker
from tests.services.running import Pipeline, pipeline

#: Refuses what has the label of its settings.
REFUSES = "if flow['meta'].get('label') == config.label:\n    raise ValueError(flow['meta']['src_ip'])\nreturn flow"


@pytest.fixture
def running(broker: Broker, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline in which 12_first refuses flows with label "a", and 92_second those with label "b"."""
    conf = conf_with(tmp_path, {"12_first": 'label = "a"', "92_second": 'label = "b"'})
    stages = stage_file(tmp_path / "stages", "12_first", REFUSES, reads="meta.label")
    stage_file(stages, "92_second", REFUSES, reads="meta.label")
    with pipeline(broker, tmp_path / "pipeline", "--conf", conf, "--stages", stages) as made:
        yield made


def part(port: int, label: str = "") -> dict[str, Any]:
    """A flow that is not held, known by its port."""
    now = time.time()
    return flow(start=now - 20, end=now - 10, meta={"flow_type": "tstat", "src_port": port, "src_ip": "128.101.1.77", "label": label})


def ports(flows: list[dict[str, Any]]) -> list[int]:
    return sorted(each["meta"]["src_port"] for each in flows)


def work(running: Pipeline, messages: int) -> None:
    """Starts a worker until so many messages were taken, all told."""
    running.start()
    running.idle(messages)
    running.stop()


def mend(running: Pipeline, stage: str) -> None:
    (running.directory.parent / "conf.d" / f"{stage}.toml").write_text('label = "nothing"')


def refused(running: Pipeline) -> None:
    """Two dead letters of each of the two stages, and two of what is no JSON."""
    running.put([part(1), part(2, "a"), part(3, "b"), part(4, "a"), part(5, "b")], b"no json", b"{")
    work(running, 3)
    assert ports(running.flows()) == [1]
    assert running.broker.count(running.dead) == 6


def replayed(running: Pipeline, *options: str) -> int:
    outcome = running.command("dead-letters", "replay", *options)
    assert outcome.code == 0, outcome.err
    number, _, rest = outcome.out.decode().partition(" ")
    assert rest == f"dead letters were put on {running.input}\n"
    return int(number)


def listed(running: Pipeline, *options: str) -> list[str]:
    outcome = running.command("dead-letters", "list", *options)
    assert outcome.code == 0, outcome.err
    return [" ".join(line.split()) for line in outcome.out.decode().splitlines()]


def test_dead_letters_are_counted_by_stage_and_reason(running: Pipeline) -> None:
    assert listed(running) == ["0 dead letters"]
    refused(running)
    first, second = "12_first: raised ValueError (12_first.py:19)", "92_second: raised ValueError (92_second.py:19)"
    assert listed(running) == [f"2 {first}", f"2 {second}", "2 decode: not JSON", "6 dead letters"]
    assert listed(running, "--stage", "12_first") == [f"2 {first}", "2 dead letters"]
    assert listed(running, "--reason", "ValueError") == [f"2 {first}", f"2 {second}", "4 dead letters"]
    assert listed(running, "--stage", "12_first", "--reason", "JSON") == ["0 dead letters"]
    assert running.broker.count(running.dead) == 6


def test_dead_letters_are_shown_and_stay_as_they_are(running: Pipeline) -> None:
    refused(running)
    shown = running.command("dead-letters", "show").flows
    assert [each["stage"] for each in shown] == ["12_first", "12_first", "decode", "decode", "92_second", "92_second"]
    assert running.command("dead-letters", "show", "--id", shown[3]["id"]).flows == [shown[3]]
    assert running.command("dead-letters", "show", "--stage", "92_second").flows == shown[4:]
    some = running.command("dead-letters", "show", "--most", "2")
    assert (some.flows, some.err) == (shown[:2], "there are more: --most shows more than 2\n")
    assert running.command("dead-letters", "show", "--most", "6").err == ""
    taken = running.broker.take(running.dead)
    assert [json.loads(body) for _, body in taken] == shown
    assert {properties.delivery_mode for properties, _ in taken} == {2}
    assert len({properties.message_id for properties, _ in taken}) == 6


def test_letters_are_put_back_however_long_their_ids_are_and_known_by_the_same_one_each_time(running: Pipeline) -> None:
    letter = envelope("12_first", "reason", "file", "1", part(1))
    ids = []
    given: list[Any] = ["x" * 255, "x" * 255, b"\xfc" * 255]
    for known_as in given:
        running.broker.declare(running.dead)
        running.broker.put(running.dead, [letter], pika.BasicProperties(delivery_mode=2, message_id=known_as))
        assert replayed(running) == 1
        [(properties, body)] = running.broker.take(running.input)
        assert body == letter
        ids.append(properties.message_id)
    assert ids[0] == ids[1] != ids[2]


def test_exactly_the_matching_ones_are_put_back_and_come_out_right_when_the_cause_is_mended(running: Pipeline) -> None:
    refused(running)
    mend(running, "92_second")
    assert replayed(running, "--stage", "92_second") == 2
    assert listed(running)[1:] == ["2 decode: not JSON", "4 dead letters"]
    again = running.broker.take(running.input)
    assert {properties.delivery_mode for properties, _ in again} == {2}
    running.put(*(body for _, body in again))
    work(running, 5)
    late = running.flows()
    assert ports(late) == [3, 5]
    # As if nothing had ever been refused.
    running.put([part(6)])
    work(running, 6)
    (usual,) = running.flows()
    assert all(each.keys() == usual.keys() and each["meta"].keys() == usual["meta"].keys() for each in late)
    assert {each["meta"]["src_ip"] for each in [usual, *late]} == {"128.101.1.x"}
    (letter,) = running.command("dead-letters", "show", "--most", "1").flows
    mend(running, "12_first")
    assert replayed(running, "--id", letter["id"]) == 1
    work(running, 7)
    assert ports(running.flows()) == [2]
    assert replayed(running, "--reason", "ValueError") == 1
    work(running, 8)
    assert ports(running.flows()) == [4]
    assert listed(running) == ["2 decode: not JSON", "2 dead letters"]


def test_what_is_refused_again_is_in_the_queue_again_each_time_under_another_message_id(running: Pipeline) -> None:
    refused(running)
    known: set[Any] = set()
    for turn in range(1, 4):
        letters = running.broker.take(running.dead)
        known |= {properties.message_id for properties, _ in letters}
        assert len(known) == 6 * turn
        for properties, body in letters:
            running.broker.put(running.dead, [body], properties)
        assert replayed(running) == 6
        assert running.broker.count(running.dead) == 0
        work(running, 3 + 6 * turn)
        assert len(listed(running)) == 4
        assert running.broker.count(running.dead) == 6
    assert running.state.totals["repeated", "", ""] == 0
    assert running.flows() == []


def test_a_letter_that_is_put_back_twice_is_counted_once(running: Pipeline) -> None:
    refused(running)
    mend(running, "92_second")
    mend(running, "12_first")
    letters = running.broker.take(running.dead)
    for _ in range(2):  # As one that is killed between the two leaves it: published, and not taken out.
        for properties, body in letters:
            running.broker.put(running.dead, [body], properties)
        assert replayed(running) == 6
    work(running, 15)
    assert ports(running.flows()) == [2, 3, 4, 5]
    assert running.state.totals["repeated", "", ""] == 6
    assert listed(running) == ["2 decode: not JSON", "2 dead letters"]


def test_what_somebody_else_put_there_is_listed_and_left_there(running: Pipeline) -> None:
    deep = b'{"id":"","stage":"x","reason":"","source":"","position":"","payload":' + b"[" * 300 + b"]" * 300 + b"}"
    strange = [b"what is this", b"[]", b'{"id": 1}', deep]
    running.broker.put(running.dead, strange)
    running.put(b"no json")
    work(running, 1)
    assert listed(running) == ["4 (unknown): not a dead letter of ours", "1 decode: not JSON", "5 dead letters"]
    assert replayed(running) == 1
    assert running.broker.bodies(running.dead) == strange


def test_without_broker_or_queue_one_line_says_so(broker: Broker, running: Pipeline) -> None:
    with broker.channel() as channel:
        channel.queue_delete(running.dead)
    line = f"{running.dead}: no such queue: no dead letter was written yet, or the settings name another one (dead_letters)\n"
    for word in ("list", "show", "replay"):
        outcome = running.command("dead-letters", word)
        assert (outcome.code, outcome.out, outcome.err) == (1, b"", line)
    other = pika.BlockingConnection(pika.URLParameters(broker.url))
    try:
        other.channel().queue_declare(running.dead, exclusive=True)
        outcome = running.command("dead-letters", "list")
    finally:
        other.close()
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert "RESOURCE_LOCKED" in outcome.err
    running.environment["NETSAGE_RABBITMQ_URL"] = "amqp://secret:secret@127.0.0.1:1/"
    for word in ("list", "show", "replay"):
        outcome = running.command("dead-letters", word)
        assert (outcome.code, outcome.err) == (1, "RabbitMQ at 127.0.0.1:1: Connection refused\n")


def test_while_the_broker_takes_nothing_what_is_put_back_waits_and_then_leaves_the_queue(broker: Broker, running: Pipeline) -> None:
    refused(running)
    environment = {**running.surroundings, "NETSAGE_RABBITMQ_URL": f"{broker.url}?heartbeat=2"}
    broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        command: list[str | Path] = [COMMAND, "dead-letters", "replay", *running.arguments[:2]]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(12)  # Silent for so long, the broker would close a connection.
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.decode()) == (0, f"6 dead letters were put on {running.input}\n"), err
    assert (broker.count(running.dead), broker.count(running.input)) == (0, 6)


def test_a_broker_that_cannot_be_talked_to_is_one_line_and_the_next_one_is_asked(broker: Broker, running: Pipeline) -> None:
    port = pika.URLParameters(broker.url).port
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for server, scheme, reason in [
            ("rabbit.invalid:5672", "amqp", "(not known|resolution)"),
            (f"127.0.0.1:{port}", "amqps", "it does not speak TLS there"),
            (f"127.0.0.1:{silent.getsockname()[1]}", "amqp", "it does not answer"),
        ]:
            first = f"{scheme}://secret:secret@{server}/"
            running.environment["NETSAGE_RABBITMQ_URL"] = first
            outcome = running.command("dead-letters", "list")
            assert outcome.code == 1
            assert re.fullmatch(rf"RabbitMQ at {server}: .*{reason}.*\n", outcome.err)
            running.environment["NETSAGE_RABBITMQ_URL"] = f"{first},{broker.url}"
            outcome = running.command("dead-letters", "list")
            assert (outcome.code, outcome.err) == (0, "")


def test_what_is_put_back_is_no_more_than_is_in_the_queue_while_a_worker_refuses_it_again(running: Pipeline) -> None:
    running.put([part(port, "b") for port in range(700)])
    running.start()
    running.idle(1)
    assert replayed(running) == 700
    running.idle(701)
    assert running.broker.count(running.dead) == 700
    assert running.state.totals["refused", "92_second", "raised ValueError (92_second.py:19)"] == 1_400
