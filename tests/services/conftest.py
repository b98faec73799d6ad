"""Real programs and services: their tests are skipped where one is absent, and fail there under CI=true."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from elasticsearch import Elasticsearch

from tests.services import elastic as real
from tests.services import kafka as kafka_nodes
from tests.services import netflow, rabbitmq

#: The function netflow.collect.
Collect = Callable[..., Path]


def absent(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: absent, but CI must test with it", pytrace=False)
    pytest.skip(f"{what}: absent")


@pytest.fixture(scope="session")
def collect() -> Collect:
    """Sends datagrams to a real nfcapd and gives the file that it wrote, for a real nfdump."""
    for program in ("nfdump", "nfcapd"):
        if shutil.which(program) is None:
            absent(program)
    return netflow.collect


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[rabbitmq.Broker]:
    """A RabbitMQ node of this worker's own; whoever stops it starts it again."""
    if not rabbitmq.available():
        absent("rabbitmq-server")
    url = os.environ.get("NETSAGE_TEST_RABBITMQ_URL", "")
    number = int(worker_id.removeprefix("gw")) + 1 if worker_id != "master" else 0
    node = rabbitmq.Broker(rabbitmq.free_port(5820 + 10 * number), tmp_path_factory.mktemp("rabbitmq"), url)
    if not url:
        node.start()
    yield node
    if not url:
        node.end()


@pytest.fixture(scope="session")
def elastic(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[real.Node]:
    """An Elasticsearch node of this worker's own; whoever stops it starts it again."""
    url = os.environ.get("NETSAGE_TEST_ELASTICSEARCH_URL", "")
    if not url and not real.available():
        absent("elasticsearch")
    number = int(worker_id.removeprefix("gw")) + 1 if worker_id != "master" else 0
    node = real.Node(rabbitmq.free_port(5920 + 10 * number), tmp_path_factory.mktemp("elasticsearch") / "data", url)
    if not url:
        node.start()
    yield node
    if not url:
        node.kill9()


@pytest.fixture
def client(elastic: real.Node) -> Iterator[Elasticsearch]:
    with elastic.client() as client:
        yield client


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[kafka_nodes.Node]:
    """A Kafka node of this worker's own; whoever stops it starts it again."""
    if not kafka_nodes.available():
        absent("kafka")
    number = int(worker_id.removeprefix("gw")) + 1 if worker_id != "master" else 0
    node = kafka_nodes.Node(rabbitmq.free_port(9820 + 10 * number), tmp_path_factory.mktemp("kafka") / "data")
    node.start()
    yield node
    node.kill9()
