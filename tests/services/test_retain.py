"""retain on a real server: what must not go is still there afterwards, and a dry run changes nothing."""

from __future__ import annotations

import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from elasticsearch import BadRequestError, Elasticsearch

from netsage_pipeline.commands import retain
from netsage_pipeline.elastic import cluster as settings
from netsage_pipeline.elastic.retention import Decision
from tests.command import COMMAND, Outcome, run, surroundings
from tests.services.elastic import Node
from tests.services.rabbitmq import free_port

OLD = "2020.01.01"
TODAY = f"{datetime.now(UTC):%Y.%m.%d}"
TOMORROW = f"{datetime.now(UTC) + timedelta(days=1, hours=1):%Y.%m.%d}"


@pytest.fixture
def prefix(client: Elasticsearch) -> Iterator[str]:
    """The prefix of a feed that is there for one test."""
    prefix = f"feed-{uuid.uuid4().hex[:8]}"
    yield prefix
    for index in client.indices.get(index=f"*{prefix}*", expand_wildcards="all"):
        client.indices.put_settings(index=index, settings={"index.blocks.read_only": None, "index.blocks.metadata": None})
        client.indices.delete(index=index)


def there(client: Elasticsearch, prefix: str) -> set[str]:
    """All indices, open, closed and hidden, in whose name the prefix is."""
    return set(client.indices.get(index=f"*{prefix}*", expand_wildcards="all"))


def retained(elastic: Node, prefix: str, *more: str) -> Outcome:
    return run("retain", "--prefix", prefix, "--older-than", "30d", *more, NETSAGE_ELASTICSEARCH_URL=elastic.url)


def said(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """Index → what became of it, and why."""
    found = {}
    for line in outcome.out.decode().splitlines()[:-1]:
        word, name, why = line.replace("would go", "would-go").split(maxsplit=2)
        found[name] = word, why
    return found


def fill(client: Elasticsearch, prefix: str) -> tuple[set[str], set[str]]:
    """Makes indices; those that must go, and those that must not."""
    go = {f"{prefix}-{OLD}", f"{prefix}-2021.12.31", f"{prefix}-2022.02.28"}
    stay = {
        f"{prefix}-{TODAY}",
        f"{prefix}-{TOMORROW}",
        f"{prefix}-{OLD}-backup",
        f"{prefix}-other-{OLD}",
        f"{prefix}{OLD}",
        f"{prefix}-2020.13.01",
        f"{prefix}-2020.1.1",
        f"{prefix}x-{OLD}",
        f"x-{prefix}-{OLD}",
        prefix,
    }
    for index in go | stay:
        client.indices.create(index=index, settings={"number_of_replicas": 0})
    client.index(index=f"{prefix}-{OLD}", document={"a": 1}, refresh=True)
    client.indices.close(index=f"{prefix}-2021.12.31")
    return go, stay


def test_what_must_go_goes_and_all_else_stays(elastic: Node, client: Elasticsearch, prefix: str) -> None:
    go, stay = fill(client, prefix)
    dry = retained(elastic, prefix, "--dry-run")
    assert there(client, prefix) == go | stay, "a dry run changes nothing"
    assert client.cat.indices(index=f"{prefix}-2021.12.31", h="status", expand_wildcards="all").body.strip() == "close"
    assert {name for name, (word, _) in said(dry).items() if word == "would-go"} == go
    assert dry.out.decode().splitlines()[-1].startswith("3 would go (1 documents, 0.00 GB), ")

    outcome = retained(elastic, prefix)
    assert (outcome.code, outcome.err) == (0, "")
    assert there(client, prefix) == stay
    assert {name for name, (word, _) in said(outcome).items() if word == "deleted"} == go
    words = said(outcome)
    assert words.keys() == go | (stay - {f"x-{prefix}-{OLD}"})
    assert words[f"{prefix}-{TODAY}"] == ("stays", "is not over yet")
    assert words[f"{prefix}-{TOMORROW}"] == ("stays", "is dated in the future")
    assert words[f"{prefix}-{OLD}-backup"] == ("stays", f"what follows {prefix}- is no date of the form %Y.%m.%d")
    assert words[f"{prefix}{OLD}"] == ("stays", f"does not begin with {prefix}-")
    assert outcome.out.decode().splitlines()[-1] == "3 deleted (1 documents, 0.00 GB), 9 stay"

    assert [name for name, (word, _) in said(retained(elastic, prefix)).items() if word == "deleted"] == []


def test_an_alias_a_data_stream_and_hidden_indices_stay(elastic: Node, client: Elasticsearch, prefix: str) -> None:
    client.indices.create(index=f"{prefix}-kept", settings={"number_of_replicas": 0}, aliases={f"{prefix}-{OLD}": {}})
    client.indices.create(index=f"{prefix}-2020.01.02", settings={"number_of_replicas": 0, "hidden": True})
    client.indices.put_index_template(name=f"{prefix}-stream", index_patterns=[f"{prefix}-2020.01.03"], data_stream={}, priority=500)
    client.indices.create_data_stream(name=f"{prefix}-2020.01.03")
    before = there(client, prefix)
    try:
        outcome = retained(elastic, prefix)
        assert outcome.code == 0, outcome.err
        assert there(client, prefix) == before
        assert "deleted " not in outcome.out.decode().rpartition("0 deleted")[0]
        # What would be asked of the server, if it were decided otherwise:
        assert "alias" in retain.delete(client, f"{prefix}-{OLD}")
        assert there(client, prefix) == before
    finally:
        client.indices.delete_data_stream(name=f"{prefix}-2020.01.03")
        client.indices.delete_index_template(name=f"{prefix}-stream")


def test_one_that_cannot_be_deleted_does_not_keep_the_others(elastic: Node, client: Elasticsearch, prefix: str) -> None:
    go, stay = fill(client, prefix)
    client.indices.put_settings(index=f"{prefix}-{OLD}", settings={"index.blocks.read_only": True})
    outcome = retained(elastic, prefix)
    assert outcome.code == 1
    assert outcome.err.startswith(f"{prefix}-{OLD}: could not be deleted: ")
    assert outcome.err.count("\n") == 1
    assert there(client, prefix) == stay | {f"{prefix}-{OLD}"}
    assert said(outcome)[f"{prefix}-{OLD}"][0] == "failed"
    assert outcome.out.decode().splitlines()[-1] == f"{len(go) - 1} deleted (0 documents, 0.00 GB), 9 stay, 1 failed"


def test_one_that_is_gone_meanwhile_is_fine(elastic: Node, client: Elasticsearch, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client.indices.create(index=f"{prefix}-{OLD}", settings={"number_of_replicas": 0})

    def decide_late(name: str, *_: object) -> Decision:
        client.indices.delete(index=name)
        return Decision(True, "ended long ago")

    monkeypatch.setattr(retain, "decide", decide_late)
    assert retained(elastic, prefix).code == 0


def test_a_name_that_is_a_pattern_is_never_resolved(client: Elasticsearch, prefix: str) -> None:
    fill(client, prefix)
    before = there(client, prefix)
    for name in (f"{prefix}-*", f"{prefix}-2020*", "*", "_all"):
        retain.delete(client, name)
        assert there(client, prefix) == before


def test_other_forms_of_a_date(elastic: Node, client: Elasticsearch, prefix: str) -> None:
    for rest in ("2020.01", OLD, "2020-01-01"):
        client.indices.create(index=f"{prefix}-{rest}", settings={"number_of_replicas": 0})
    assert retained(elastic, prefix, "--pattern", "%Y.%m").code == 0
    assert there(client, prefix) == {f"{prefix}-{OLD}", f"{prefix}-2020-01-01"}
    assert retained(elastic, prefix, "--pattern", "%Y-%m-%d").code == 0
    assert there(client, prefix) == {f"{prefix}-{OLD}"}


def test_all_that_is_wrong_with_the_options_is_said_at_once_and_nothing_asked(elastic: Node) -> None:
    outcome = run("retain", "--prefix", "om-*", "--older-than", "30", "--pattern", "%d", NETSAGE_ELASTICSEARCH_URL=elastic.url)
    assert (outcome.code, outcome.out) == (2, b"")
    assert [line.split(":")[0] for line in outcome.err.splitlines()] == ["--prefix", "--older-than", "--pattern"]
    assert run("retain", "--prefix", "", "--older-than", "30d").code == 2


def test_a_server_that_is_not_there_is_said_in_a_line() -> None:
    outcome = run("retain", "--prefix", "om", "--older-than", "30d", NETSAGE_ELASTICSEARCH_URL="http://127.0.0.1:1")
    assert (outcome.code, outcome.out) == (1, b"")
    assert outcome.err == "Elasticsearch: Connection refused: it ended there: run it again when that is mended\n"


def test_one_of_several_nodes_that_is_down_does_not_matter(elastic: Node, prefix: str) -> None:
    urls = f"http://127.0.0.1:{free_port(6300)},{elastic.url}"
    for _ in range(8):  # It is by chance which node is asked first.
        outcome = run("retain", "--prefix", prefix, "--older-than", "30d", NETSAGE_ELASTICSEARCH_URL=urls)
        assert (outcome.code, outcome.err) == (0, "")


def test_a_signal_ends_it_with_a_line(prefix: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [str(COMMAND), "retain", "--prefix", prefix, "--older-than", "30d"]
        environment = surroundings(NETSAGE_ELASTICSEARCH_URL=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            connection, _ = silent.accept()
            connection.recv(1)
            process.send_signal(signal.SIGTERM)
            assert process.communicate() == (b"", b"interrupted: what was said to be deleted is; run it again for the rest\n")
        connection.close()
    assert process.returncode == 130


def test_our_client_may_not_delete_by_pattern(elastic: Node, prefix: str) -> None:
    """The server's own guard, on which nothing here relies."""
    with settings.client(settings.Cluster(url=elastic.url)) as ours, pytest.raises(BadRequestError):
        ours.indices.delete(index=f"{prefix}*")
