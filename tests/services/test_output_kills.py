"""Workers that are killed while Kafka or an HTTP server takes their flows: what came out is what was published, repeats are known by id."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from netsage_pipeline.documents import document_id
from tests.command import conf_with
from tests.services.kafka import Node
from tests.services.rabbitmq import Broker
from tests.services.receiver import Answer, Receiver, receiving
from tests.services.torture import torture
from tests.services.worker import OUTPUT_POINTS

KILLS = int(os.environ.get("NETSAGE_TEST_OUTPUT_KILLS") or 10)


class Topic:
    """A topic of its own."""

    def __init__(self, node: Node, directory: Path) -> None:
        self._node, self._name = node, f"kills-{uuid.uuid4().hex[:12]}"
        node.topic(self._name)
        self.conf = _conf(directory, "kafka", f'brokers = "{node.brokers}"\ntopic = "{self._name}"')

    def bodies(self) -> Iterable[bytes]:
        for message in self._node.read(self._name):
            [document] = message.documents
            assert (message.key, message.header) == (document["meta"]["id"], document["document_id"])
            yield _without_id(document)


class Url:
    """An HTTP server, some of whose answers say that it failed, or never come, though it took what was posted."""

    def __init__(self, server: Receiver, directory: Path) -> None:
        self._server = server
        self.conf = _conf(directory, "http", f'url = "{server.url}"\nformat = "ndjson"')

    def bodies(self) -> Iterable[bytes]:
        return map(_without_id, self._server.documents)


def _conf(directory: Path, name: str, output: str) -> Path:
    return conf_with(directory / "settings", {"99_output_rabbitmq": None, f"99_output_{name}": output})


def _without_id(document: dict[str, Any]) -> bytes:
    """As the chain made it, when the id is that of its content."""
    plain = dict(document)
    assert plain.pop("document_id") == document_id(plain)
    return orjson.dumps(plain)


def killed(broker: Broker, directory: Path, receiver: Topic | Url) -> None:
    seed = int(os.environ.get("NETSAGE_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"NETSAGE_TEST_SEED={seed}")
    figures = torture(broker, directory, seed, KILLS, 2_000 * KILLS, OUTPUT_POINTS, receiver)
    told = "\n".join(figures.lines())
    print(told)
    assert not figures.faults, f"{figures.faults}\n{told}"
    assert not figures.missed, f"nobody was killed at {figures.missed}\n{told}"
    assert figures.kills.total() >= KILLS
    assert figures.repeats, f"nothing was repeated, so nothing was put to the test\n{told}"
    assert figures.of_more_parts, told


def test_killed_anywhere_what_kafka_gets_is_what_was_published(broker: Broker, kafka: Node, tmp_path: Path) -> None:
    killed(broker, tmp_path, Topic(kafka, tmp_path))


def test_killed_anywhere_what_an_http_server_gets_is_what_was_published(broker: Broker, tmp_path: Path) -> None:
    with receiving() as server:
        server.delay_s = 0.02
        killed(broker, tmp_path, Url(server, tmp_path))


def test_a_server_that_fails_at_random_gets_what_was_published(broker: Broker, tmp_path: Path) -> None:
    chance = random.Random(1)
    with receiving() as server:
        server.answers = lambda _: Answer(503 if chance.random() < 0.5 else 200)
        figures = torture(broker, tmp_path, 7, kills=0, flows=10_000, receiver=Url(server, tmp_path))
        assert not figures.faults
        assert figures.repeats == 0
        assert any(request.status == 503 for request in server.requests)
