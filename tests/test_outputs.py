"""The outputs to Kafka and to an HTTP server without either: their settings, and flows as they are written for them."""

from __future__ import annotations

import importlib.util
import signal
import socketserver
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from netsage_pipeline.config import described, read, settings_of
from netsage_pipeline.documents import document_id, written
from netsage_pipeline.outputs import posts
from netsage_pipeline.outputs.batches import Batches, encoded
from netsage_pipeline.outputs.kafka import KafkaSink
from tests.certificates import certificates
from tests.command import conf_with, run
from tests.conftest import load_stage

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def settings(tmp_path: Path, name: str, text: str) -> tuple[Any, list[str]]:
    """The Config and the lines that say what is wrong."""
    path = tmp_path / f"99_output_{name}.toml"
    path.write_text(text)
    config, errors = settings_of(load_stage(f"99_output_{name}").Config, read(path))
    return config, [error.removeprefix(f"{path}: ") for error in errors]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("kafka", 'brokers = "http://kafka"', "brokers: 'http://kafka': is no list of brokers: write kafka1:9092,kafka2:9092"),
        ("kafka", 'brokers = "kafka:99999"', "brokers: 'kafka:99999': is no list of brokers: write kafka1:9092,kafka2:9092"),
        ("kafka", 'topic = "a b"', "topic: 'a b': is no name of a topic: letters, digits, . _ and - only, at most 249"),
        ("kafka", 'user = "me"', "password: that value: user and password belong together: set both, or none"),
        ("kafka", 'password = "s3cret"', "password: that value: user and password belong together: set both, or none"),
        ("kafka", 'compression = "rar"', "compression: 'rar': Input should be 'none', 'gzip', 'snappy', 'lz4' or 'zstd'"),
        ("http", "", "url: is missing: https://host/path that flows are posted to; http:// too"),
        (
            "http",
            'url = "ftp://s3cret/"',
            "url: that value: it does not begin with http:// or https://: write https://host/path "
            "(a user or a password is given as a header)",
        ),
        (
            "http",
            'url = "https://me:s3cret@host/"',
            "url: that value: it holds a user or a password: write https://host/path (a user or a password is given as a header)",
        ),
        (
            "http",
            'url = "https://host/s3cret word"',
            "url: that value: it holds a blank or another character that is to be written as %20: write https://host/path "
            "(a user or a password is given as a header)",
        ),
        ("http", 'url = "https://host/"\ntoken = "s3cret\\n"', "token: that value: holds what no header can: write the token alone"),
        ("http", 'url = "https://host/"\nheaders = { "a b" = "s3cret" }', "headers: that value: one has a name that no header can have"),
        ("http", 'url = "https://host/"\nheaders = { Host = "s3cret" }', "headers: that value: Host is ours: leave it out"),
        (
            "http",
            'url = "https://host/"\ntoken = "s3cret"\nheaders = { authorization = "s3cret" }',
            "headers: that value: authorization and a token: set one of them",
        ),
        ("http", 'url = "https://host/"\nheaders = { X = 3 }', 'headers.X: that value is not a text: put it into "quotes"'),
        (
            "http",
            'url = "https://host/"\nheaders = { X = "s3cret\\n" }',
            "headers: that value: X holds what no header can: printable ASCII characters only",
        ),
    ],
)
def test_what_is_wrong_with_a_setting_is_a_line_without_secrets(tmp_path: Path, name: str, text: str, line: str) -> None:
    _, errors = settings(tmp_path, name, text)
    assert errors == [line]
    assert "s3cret" not in line


def test_an_authority_without_tls_is_a_mistake(tmp_path: Path) -> None:
    file = certificates(tmp_path) / "ca.pem"
    _, errors = settings(tmp_path, "kafka", f'ca_file = "{file}"')
    assert errors == [f"ca_file: '{file}': is for TLS: set tls = true, or leave it out"]
    assert settings(tmp_path, "kafka", f'ca_file = "{file}"\ntls = true')[1] == []


def test_secrets_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    text = f'url = "https://host/s3cret"\ntoken_file = "{tmp_path / "token"}"\nheaders = {{ X = "s3cret" }}'
    config, errors = settings(tmp_path, "http", text)
    assert not errors
    assert config.token.get_secret_value() == "s3cret"
    assert "s3cret" not in "\n".join(described(config, read(tmp_path / "99_output_http.toml")))
    (tmp_path / "password").write_text("s3cret\n")
    config, errors = settings(tmp_path, "kafka", f'user = "me"\npassword_file = "{tmp_path / "password"}"')
    assert not errors
    assert config.password.get_secret_value() == "s3cret"


def test_without_its_library_the_output_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "confluent_kafka" else found(name, *more))
    conf = conf_with(tmp_path, {"99_output_rabbitmq": None, "99_output_kafka": 'brokers = "kafka:9092"'})
    outcome = run("check", "--conf", conf)
    assert outcome.code == 2
    line = "brokers: 'kafka:9092': Kafka needs a library that is not installed: pip install 'netsage-pipeline[kafka]'"
    assert outcome.err.splitlines() == [f"{conf}/99_output_kafka.toml: {line}"]


@given(st.dictionaries(st.text(), values, max_size=4), st.dictionaries(st.text(), values, max_size=2), st.text())
def test_a_written_flow_holds_its_id_which_one_that_it_held_does_not_change(flow: dict[str, Any], meta: dict[str, Any], other: str) -> None:
    flow = {**flow, "meta": meta}
    flow.pop("document_id", None)
    made = written(flow)
    assert orjson.loads(made.body) == {**flow, "document_id": made.known_as}
    assert made.flow == flow
    assert written({**flow, "document_id": other}) == made
    if meta.get("id"):
        assert made.known_as == document_id(flow)


def test_records_without_an_id_are_known_by_all_that_they_hold() -> None:
    ids = {written(flow).known_as for flow in ({}, {"a": 1}, {"a": 2}, {"a": 1, "meta": {}}, {"meta": {"id": ""}})}
    assert len(ids) == 5


def test_what_json_cannot_write_is_refused_with_a_reason() -> None:
    flows: list[dict[str, Any]] = [{"a": 1}, {"a": 1 << 64}, {"meta": {"id": "\ud800"}}]
    made, able, refused = encoded(flows, written)
    assert [each.flow for each in made] == able == [{"a": 1}]
    assert refused == [(flows[1], "integer beyond 64 bits"), (flows[2], "lone surrogate in a text")]


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=40))
def test_a_batch_is_stored_once_when_the_last_of_its_flows_is_settled(settled: list[tuple[int, bool]]) -> None:
    batches = Batches()
    left = {batch: sum(of == batch for of, _ in settled) for batch in range(5)}
    for batch, flows in left.items():
        batches.open(batch, flows, [({}, "before")])
    seen = {each.batch: each for each in batches.stored()}
    assert set(seen) == {batch for batch, flows in left.items() if not flows}
    for batch, is_stored in settled:
        if is_stored:
            batches.write_down(batch, 1)
        else:
            batches.refuse(batch, ({}, "refused"))
        left[batch] -= 1
        stored = batches.stored()
        assert [each.batch for each in stored] == ([] if left[batch] else [batch])
        seen.update((each.batch, each) for each in stored)
    assert {batch: each.flows for batch, each in seen.items()} == {
        batch: sum(of == batch and is_stored for of, is_stored in settled) for batch in range(5)
    }
    assert all(len(each.refusals) == 1 + sum(of == batch and not is_stored for of, is_stored in settled) for batch, each in seen.items())


@pytest.mark.parametrize(("said", "seconds"), [("7", 7), (" 120 ", 120), ("", 0), ("soon", 0), ("-3", 0), ("9" * 40, 0), ("1.5", 0)])
def test_retry_after_is_read(said: str, seconds: float) -> None:
    assert posts._seconds_of(said) == seconds


def test_retry_after_may_be_a_date() -> None:
    assert 25 < posts._seconds_of(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert posts._seconds_of(formatdate(time.time() - 30, usegmt=True)) == 0


def test_kafka_is_interrupted_like_everything_else() -> None:
    """Signals that come at any time while the client tells that no broker is there."""
    there = {"bootstrap.servers": "127.0.0.1:9", "reconnect.backoff.ms": 5, "reconnect.backoff.max.ms": 5}
    sink = KafkaSink(there, "netsage", 1)
    sink.write(0, [{"meta": {"id": "a"}}])
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for number in range(30):
            signal.setitimer(signal.ITIMER_REAL, 0.02 + number / 1_000)
            with pytest.raises(KeyboardInterrupt):
                sink.stored(10)
    finally:
        signal.signal(signal.SIGALRM, before)
        sink.close()


@pytest.mark.parametrize(
    ("settings", "answer", "reason"),
    [
        ({}, b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers there is no Kafka: correct brokers"),
        ({"security.protocol": "SSL"}, b"", "there is no connection: see that a broker runs, and brokers and tls"),
    ],
)
def test_where_no_kafka_answers_it_says_what_to_look_at(settings: dict[str, Any], answer: bytes, reason: str) -> None:
    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(100)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Other) as server, capture_logs() as said:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        sink = KafkaSink({"bootstrap.servers": f"127.0.0.1:{server.server_address[1]}", **settings}, "netsage", 1)
        sink.write(0, [{"meta": {"id": "a"}}])
        sink.stored(4)
        sink.close()
        server.shutdown()
    assert [line.get("reason") for line in said] == [reason]
