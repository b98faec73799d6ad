"""The Kafka output with a real broker: what is in the topic, what is refused, and a broker that is killed, hung, or asks for a password."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from netsage_pipeline.documents import document_id
from tests.certificates import certificates
from tests.command import conf_with, run_real, written
from tests.flows import flow as raw
from tests.services.kafka import Message, Node
from tests.services.passing import Passing
from tests.services.rabbitmq import Broker, wait_for
from tests.services.test_outages import Watch

#: For `limits`: how long a request may take, and seconds of waiting after which it says so what it does not say at once.
REQUEST_S = "outputs.kafka:REQUEST_S"
PATIENCE_S = "outputs.kafka:PATIENCE_S"

#: Bytes: by how much a worker may grow while nothing is confirmed.
GROWTH = 120_000_000

Made = Callable[..., Passing]


@pytest.fixture
def topic() -> str:
    return f"flows-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def passing(broker: Broker, kafka: Node, topic: str, tmp_path: Path) -> Iterator[Made]:
    made: list[Passing] = []

    def make(output: str = "", brokers: str = "") -> Passing:
        settings = f'brokers = "{brokers or kafka.brokers}"\ntopic = "{topic}"\n{output}'
        made.append(Passing(broker, tmp_path / f"run-{len(made)}", "kafka", settings, "Kafka"))
        return made[-1]

    yield make
    for each in made:
        each.end()


def documents(messages: list[Message]) -> list[dict[str, Any]]:
    return [document for message in messages for document in message.documents]


def in_order(messages: list[Message]) -> bool:
    """Whether the flows of each id are in one partition, in the order in which they were published."""
    by_id: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for message in messages:
        by_id[message.key] += [(message.partition, document["meta"]["number"]) for document in message.documents]
    assert len(by_id) == 1_000
    return all(len({partition for partition, _ in each}) == 1 and each == sorted(each) for each in by_id.values())


def test_each_flow_is_a_message_with_its_id_as_header_and_those_of_one_meta_id_are_in_order(passing: Made, kafka: Node, topic: str) -> None:
    kafka.topic(topic)
    run = passing()
    run.publish(5_000)
    run.publish_all([run.flow(meta={"number": number}) for number in range(100)])  # Without an id.
    run.begin()
    run.until_done(lambda: kafka.count(topic))
    found = kafka.read(topic)
    assert len(found) == 5_100  # Nothing twice.
    assert len({message.header for message in found}) == 5_100
    for message in found:
        [document] = message.documents
        assert document["document_id"] == message.header
        assert message.key == document["meta"].get("id", "")
    assert in_order([message for message in found if message.key])
    assert {message.partition for message in found if message.key} == {0, 1, 2}
    with_id = [message for message in found if message.key]
    assert all(document_id(run.published[message.header]) == message.header for message in with_id)
    run.published = {each.pop("document_id"): each for each in documents([m for m in found if not m.key])} | {
        m.header: run.published[m.header] for m in with_id
    }
    assert run.compare(documents(found)) == 0


def test_several_flows_a_message_are_an_array_and_each_has_its_id(passing: Made, kafka: Node, topic: str) -> None:
    kafka.topic(topic)
    run = passing("flows_per_message = 100")
    run.publish(2_500)
    run.begin()
    run.until_done(lambda: 100 * kafka.count(topic))
    found = kafka.read(topic)
    assert {(message.key, message.header) for message in found} == {("", "")}
    assert max(len(message.documents) for message in found) <= 100
    assert len(found) < 100
    assert run.compare(documents(found)) == 0


def test_a_replay_publishes_as_many_as_its_summary_says(kafka: Node, topic: str, tmp_path: Path) -> None:
    kafka.topic(topic)
    output = f'brokers = "{kafka.brokers}"\ntopic = "{topic}"'
    conf = conf_with(tmp_path, {"01_input_rabbitmq": None, "99_output_rabbitmq": None, "99_output_kafka": output})
    dump = written(tmp_path / "dump.ndjson", *(raw(meta={"src_port": 1_024 + number}) for number in range(3_000)))
    outcome = run_real("replay", dump, "--conf", conf)
    assert outcome.code == 0, outcome.err
    found = documents(kafka.read(topic))
    assert outcome.summary["written"] == len(found) == 3_000
    plain = [{name: value for name, value in each.items() if name != "document_id"} for each in found]
    assert {document_id(each) for each in plain} == {each["document_id"] for each in found}
    assert all(each["meta"]["src_ip"].endswith(".x") for each in found)


@pytest.mark.parametrize(
    "settings", ["", "max_message_bytes = 4096", "flows_per_message = 20", "flows_per_message = 20\nmax_message_bytes = 4096"]
)
def test_only_a_flow_that_is_longer_than_the_topic_takes_is_a_dead_letter(passing: Made, kafka: Node, topic: str, settings: str) -> None:
    kafka.topic(topic, max_message_bytes="4096")
    run = passing(f'compression = "none"\n{settings}')
    long = []
    for number in range(2_000):
        if number % 400 == 7:
            long.append(run.flow(pad="x" * 5_000))
            run.publish_all([long[-1]], expected=False)
        elif number % 50 == 0:
            run.publish(50)
    run.begin()
    run.until_done(lambda: kafka.count(topic) * 20 if "flows" in settings else kafka.count(topic), dead=len(long))
    letters = run.letters()
    assert {letter["reason"] for letter in letters} == {"longer than the topic takes, or than max_message_bytes (MSG_SIZE_TOO_LARGE)"}
    assert {letter["stage"] for letter in letters} == {"99_output"}
    assert sorted(orjson.dumps(letter["payload"]) for letter in letters) == sorted(orjson.dumps(each) for each in long)
    assert run.compare(documents(kafka.read(topic))) == 0
    warned = run.worker.says("set it to the topic's max.message.bytes")
    assert len(warned) == ("max_message_bytes" not in settings)
    assert not run.worker.says("waits for Kafka")


def test_a_flow_without_an_id_is_a_dead_letter_of_a_topic_that_demands_keys(passing: Made, kafka: Node, topic: str) -> None:
    kafka.topic(topic, cleanup_policy="compact", min_compaction_lag_ms="3600000")
    run = passing()
    bare = run.flow(meta={})
    run.publish(300)
    run.publish_all([bare], expected=False)
    run.begin()
    run.until_done(lambda: kafka.count(topic), dead=1)
    [letter] = run.letters()
    assert letter["reason"] == "not as the topic demands it (INVALID_RECORD)"
    assert letter["payload"] == bare
    assert run.compare(documents(kafka.read(topic))) == 0


def test_a_broker_that_is_killed_or_hangs_gets_every_flow_once(passing: Made, kafka: Node, topic: str) -> None:
    kafka.topic(topic)
    run = passing()
    run.limits = {REQUEST_S: 4, "worker.run:OUTBOX_ROWS": 6_000}
    run.publish(10_000)
    run.begin()

    def under_way() -> None:
        before = kafka.count(topic)
        run.publish(20_000)
        wait_for(lambda: kafka.count(topic) > before + 500)

    under_way()
    watch = Watch(run.worker)
    watch.start()
    kafka.kill9()
    try:
        run.waits_for("there is no connection")
        time.sleep(6)
        assert watch.stop() - watch.first < GROWTH
        assert run.worker.says("waits for the output")
    finally:
        kafka.start()
    run.goes_on()
    under_way()
    kafka.signal(signal.SIGSTOP)
    try:
        run.waits_for("it does not answer")
        time.sleep(6)  # Longer than a request may take.
    finally:
        kafka.signal(signal.SIGCONT)
    run.goes_on(2)
    run.until_done(lambda: kafka.count(topic))
    found = kafka.read(topic)
    assert run.compare(documents(found)) == 0
    assert in_order(found)
    assert run.broker.count(run.dead) == 0
    waited = [event["event"] for event in run.worker.events if event["event"].endswith("with Kafka") or "for Kafka" in event["event"]]
    assert Counter(waited)["goes on with Kafka"] == 2
    assert len(waited) <= 6, waited
    assert str(kafka.port) not in run.said
    assert "127.0.0.1" not in run.said


def test_told_to_stop_while_the_broker_is_away_it_leaves_in_time_and_the_messages_come_again(
    passing: Made, kafka: Node, topic: str
) -> None:
    kafka.topic(topic)
    run = passing()
    run.publish(2_000)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        kafka.signal(number) if number == signal.SIGSTOP else kafka.kill9()
        try:
            run.begin().works()
            time.sleep(1)
            run.worker.tell(signal.SIGTERM, within=10)
        finally:
            kafka.signal(signal.SIGCONT) if number == signal.SIGSTOP else kafka.start()
    run.begin()
    run.until_done(lambda: kafka.count(topic))
    run.compare(documents(kafka.read(topic)))


def test_it_waits_for_a_topic_that_is_not_there_and_says_so_at_once(passing: Made, kafka: Node, topic: str) -> None:
    kafka.kill9()
    kafka.start("auto.create.topics.enable=false")
    try:
        run = passing()
        run.limits = {PATIENCE_S: 1_000}
        run.publish(500)
        run.begin()
        assert run.waits_for("no such topic") == "there is no such topic: create it"
        kafka.topic(topic)
        run.goes_on()
        run.until_done(lambda: kafka.count(topic))
        assert run.compare(documents(kafka.read(topic))) == 0
    finally:
        kafka.kill9()
        kafka.start()


def test_tls_passwords_and_permissions(passing: Made, kafka: Node, topic: str, tmp_path: Path) -> None:
    files = certificates(tmp_path)
    kafka.topic(topic)
    kafka.kill9()
    port, controller = free_ports(2)
    lines = {
        "listeners": f"PLAINTEXT://127.0.0.1:{kafka.port},SASL_SSL://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{kafka.port},SASL_SSL://localhost:{port}",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": "org.apache.kafka.common.security.plain.PlainLoginModule required "
        'user_netsage="s3cret word";',
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": (files / "server.pem").read_text().strip().replace("\n", "\\n"),
        "ssl.keystore.key": (files / "server.key").read_text().strip().replace("\n", "\\n"),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    kafka.start("\n".join(f"{name}={value}" for name, value in lines.items()))
    try:
        brokers = f"localhost:{port}"
        access = 'user = "netsage"\npassword = "{}"\nmechanism = "{}"\ntls = true\nca_file = "{}"'
        for password, ca, reason in (
            ("s3cret wrong", "ca.pem", "it refuses the user or the password, or asks for them: correct the settings"),
            ("s3cret word", "other.pem", "its certificate is not to be trusted, or it does not speak TLS there: see tls and ca_file"),
        ):
            refused = passing(access.format(password, "PLAIN", files / ca), brokers)
            refused.limits = {PATIENCE_S: 1_000}
            refused.publish(100)
            refused.begin()
            assert refused.waits_for(reason[:10]) == reason
            refused.worker.tell(signal.SIGTERM)
            assert "s3cret" not in refused.said
            assert "localhost" not in refused.said
        kafka.password("netsage", "another s3cret")
        run = passing(access.format("another s3cret", "SCRAM-SHA-512", files / "ca.pem"), brokers)
        run.limits = {PATIENCE_S: 1_000}
        run.publish(500)
        run.begin()
        assert run.waits_for("may not write") == "this user may not write to the topic: give it the permission to (Write)"
        time.sleep(5)  # Several producers failed for good.
        kafka.permit("netsage", topic)
        run.goes_on()
        run.until_done(lambda: kafka.count(topic))
        assert run.compare(documents(kafka.read(topic))) == 0
        assert len(run.worker.says("waits for Kafka")) == 1
        assert "s3cret" not in run.said
    finally:
        kafka.kill9()
        kafka.start()


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        taken = [sockets.enter_context(socket.socket()) for _ in range(number)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in taken]
