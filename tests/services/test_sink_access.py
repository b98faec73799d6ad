"""The sink and an Elasticsearch that asks for TLS, a password or shorter requests, or is not there: one clear line each."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificates
from tests.services.elastic import Node
from tests.services.rabbitmq import Broker, free_port
from tests.services.sink import Front, Sinking, front

PASSWORD, KEY = "s3cret-pass-word", "a2V5LWlkOnMzY3JldC1rZXk="


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("certificates"), names="DNS:localhost")


@pytest.fixture
def tls(issued: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued / "server.pem", issued / "server.key")
    return context


@pytest.fixture
def running(broker: Broker, elastic: Node, tmp_path: Path) -> Iterator[Sinking]:
    run = Sinking(broker, elastic, tmp_path / "sink")
    run.publish(20)
    yield run
    run.end()


def tried(run: Sinking, text: str, **settings: Any) -> None:
    """A sink with these settings says so, in one line at once, and keeps what is in the queue."""
    usual = run.environment
    run.environment = usual | {f"NETSAGE_ELASTICSEARCH_{name.upper()}": str(value) for name, value in settings.items()}
    worker = run.begin()
    reason = run.waits_for(text)
    assert "\n" not in reason
    assert len(worker.says("waits for Elasticsearch")) == 1
    worker.tell(signal.SIGTERM)
    run.environment = usual
    assert PASSWORD not in run.said
    assert KEY not in run.said
    assert run.broker.count(run.input) == 1


def test_tls_and_passwords(running: Sinking, elastic: Node, tls: ssl.SSLContext, issued: Path, tmp_path: Path) -> None:
    run, ca, other = running, issued / "ca.pem", issued / "other.pem"
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    with front(elastic, tls, f"netsage:{PASSWORD}") as asks, front(elastic, tls, KEY) as asks_for_key:
        tried(run, "its certificate is not to be trusted: ", url=asks.url, ca_file=other)
        tried(run, "it refuses the user, the password or the API key (401)", url=asks.url, ca_file=ca, user="x", password=PASSWORD)
        tried(run, "it refuses the user, the password or the API key (401)", url=asks_for_key.url, ca_file=ca)
        tried(run, "it does not speak TLS there", url=elastic.url.replace("http:", "https:"), ca_file=ca)
        stored(run, asks, ca_file=ca, user="netsage", password=PASSWORD)
        stored(run, asks_for_key, ca_file=ca, api_key_file=key)
    assert PASSWORD not in run.said
    assert KEY not in run.said


def stored(run: Sinking, before: Front, **settings: Any) -> None:
    run.environment |= {f"NETSAGE_ELASTICSEARCH_{name.upper()}": str(value) for name, value in settings.items()}
    run.environment["NETSAGE_ELASTICSEARCH_URL"] = before.url
    run.publish(20)
    run.begin()
    run.wait_until_stored()
    run.stop_when_done()
    for name in settings:
        del run.environment[f"NETSAGE_ELASTICSEARCH_{name.upper()}"]


def test_a_host_that_is_missing_and_one_of_several_that_is_down(running: Sinking, elastic: Node) -> None:
    down = f"http://localhost:{free_port(5990)}"
    tried(running, "Connection refused", url=down)
    tried(running, "name", url="http://elastic.invalid:9200")
    running.environment["NETSAGE_ELASTICSEARCH_URL"] = f"{down}, {elastic.url}"
    running.begin()
    running.wait_until_stored()
    running.stop_when_done()
    assert not running.worker.says("waits for")


def test_requests_that_are_too_long_for_what_stands_in_front_become_shorter(running: Sinking, elastic: Node) -> None:
    with front(elastic) as before:
        before.limit = 40_000
        running.environment["NETSAGE_ELASTICSEARCH_URL"] = before.url
        longer = running.flow(description="x" * 60_000)
        running.put(longer)
        running.publish(6_000)
        running.begin()
        running.wait_until_stored()
        running.stop_when_done()
        assert before.too_long > 3
        assert before.too_long < 60
        [letter] = running.letters()
        assert letter["reason"] == "it answers with status 413"
        assert letter["payload"] == longer
