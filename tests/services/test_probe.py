"""The probe with a real Elasticsearch: connections of this very test are found there, and nothing that was taken is lost on the way."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from elasticsearch import Elasticsearch

from netsage_pipeline import folders
from tests.command import run, run_real, surroundings
from tests.services.elastic import Node
from tests.services.load import Limited
from tests.services.rabbitmq import free_port, wait_for
from tests.services.sink import front

CONF = folders.shipped("conf.d") / "probe"


@pytest.fixture
def prefix(client: Elasticsearch) -> Iterator[str]:
    """A prefix for one test."""
    prefix = f"probe-{uuid.uuid4().hex[:10]}"
    yield prefix
    for index in client.indices.get(index=f"{prefix}-*"):
        client.indices.delete(index=index)
    client.options(ignore_status=404).indices.delete_index_template(name=prefix)


Start = Callable[..., Limited]


@pytest.fixture
def start(elastic: Node, prefix: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a probe, one after the other with the same state."""
    made: list[Limited] = []

    def begin(url: str = "", limits: dict[str, float | str] | None = None, **changes: str) -> Limited:
        conf = tmp_path / "conf"
        shutil.copytree(CONF, conf, dirs_exist_ok=True)
        changes = {"interval_s": "0.5", **changes}
        kept = [line for line in (CONF / "01_input_connections.toml").read_text().splitlines() if line.partition(" =")[0] not in changes]
        added = [f"{name} = {value}" for name, value in changes.items()]
        (conf / "01_input_connections.toml").write_text("\n".join(kept + added) + "\n")
        around = surroundings(
            NETSAGE_PROBE_STATE=str(tmp_path / "state"),
            NETSAGE_PROBE_PREFIX=prefix,
            NETSAGE_ELASTICSEARCH_URL=url or elastic.url,
        )
        made.append(Limited(around, tmp_path / f"probe-{len(made)}.log", "run", "--conf", str(conf), limits=limits or {}))
        return made[-1]

    yield begin
    for each in made:
        if each.code is None:
            each.kill()


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """The ports of a connection of this process with itself: where it listens, and the other end."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
        server.accept()[0],
    ):
        yield server.getsockname()[1], ours.getsockname()[1]


def stored(client: Elasticsearch, prefix: str, **wanted: Any) -> list[dict[str, Any]]:
    """The documents that have these values, as a page would search for them."""
    client.indices.refresh(index=f"{prefix}-*")
    query = {"bool": {"filter": [{"term": {name: value}} for name, value in wanted.items()]}}
    hits = client.search(index=f"{prefix}-*", query=query, size=1_000)["hits"]["hits"]
    return [{**hit["_source"], "_index": hit["_index"], "_id": hit["_id"]} for hit in hits]


def test_a_connection_is_found_by_its_fields(start: Start, client: Elasticsearch, prefix: str, pair: tuple[int, int]) -> None:
    listening, other = pair
    probe = start()
    wait_for(lambda: len(stored(client, prefix, localport=listening)) >= 3, 60, lambda: probe.lasts(0.2))
    assert probe.stop() == 0
    found = stored(client, prefix, localport=listening, foreignport=other, pid=os.getpid(), direction="server", localip="127.0.0.0/8")
    assert len(found) >= 3
    for each in found:
        assert each["_index"] == f"{prefix}-{each['@timestamp'][:10].replace('-', '.')}"
        assert each["_id"] == each["document_id"]
        assert (each["host"], each["user"], each["state"]) == (socket.gethostname(), str(os.geteuid()), "ESTABLISHED")
    assert len({each["@timestamp"] for each in found}) == len(found)
    mapping = client.indices.get_mapping(index=found[0]["_index"])[found[0]["_index"]]["mappings"]["properties"]
    assert {"localip": "ip", "foreignip": "ip", "localport": "long", "process": "keyword", "@timestamp": "date"}.items() <= {
        name: each.get("type") for name, each in mapping.items()
    }.items()
    assert "meta" not in mapping


def has_taken(directory: Path, least: int) -> bool:
    return len(list(directory.glob("*.ndjson"))) >= least


def test_all_that_was_taken_while_the_server_was_away_is_there_after_a_kill(
    start: Start, client: Elasticsearch, prefix: str, pair: tuple[int, int], tmp_path: Path
) -> None:
    taken = tmp_path / "state" / "taken"
    for least in (4, 8):
        probe = start(f"http://127.0.0.1:{free_port(21_000)}")
        wait_for(partial(has_taken, taken, least), 60, partial(probe.lasts, 0.1))
        probe.kill()
    lines = [line for path in sorted(taken.glob("*.ndjson")) for line in path.read_bytes().splitlines()]
    expected = Counter(each["@timestamp"] for line in lines for each in orjson.loads(line))
    assert len(expected) >= 8
    probe = start(interval_s="999")
    wait_for(lambda: not list(taken.glob("*.ndjson")), 60, lambda: probe.lasts(0.2))
    assert probe.stop() == 0
    client.indices.refresh(index=f"{prefix}-*")
    times = {"times": {"terms": {"field": "@timestamp", "size": 1_000}}}
    buckets = client.search(index=f"{prefix}-*", size=0, aggregations=times)["aggregations"]["times"]["buckets"]
    there = {bucket["key_as_string"]: bucket["doc_count"] for bucket in buckets}
    assert {time: there.get(time) for time in expected} == expected
    assert len(there) == len(expected) + 1  # The one that the last probe began with.
    assert len(stored(client, prefix, localport=pair[0])) == len(there)


def test_none_is_taken_while_too_much_is_owed_and_what_was_left_out_is_said(
    start: Start, elastic: Node, client: Elasticsearch, prefix: str, pair: tuple[int, int]
) -> None:
    with front(elastic) as gate:
        probe = start(gate.url, {"worker.run:OUTBOX_ROWS": 0})
        wait_for(lambda: bool(stored(client, prefix, localport=pair[0])), 60, lambda: probe.lasts(0.2))
        gate.silent = True
        wait_for(lambda: bool(probe.says("waits for the output")), 60)
        assert probe.lasts(3)
        gate.silent = False
        wait_for(lambda: bool([each for each in probe.says("snapshots were left out") if each["snapshots"] >= 4]), 60)
        assert probe.stop() == 0
    assert {each["reason"] for each in probe.says("snapshots were left out")} == {"the output takes no more"}


def test_changes_are_stored_once(start: Start, client: Elasticsearch, prefix: str, pair: tuple[int, int]) -> None:
    probe = start(records='"changes"')
    wait_for(lambda: bool(stored(client, prefix, localport=pair[0], event="found")), 60, lambda: probe.lasts(0.2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(server.getsockname()), server.accept()[0]:
            wait_for(lambda: bool(stored(client, prefix, localport=port, event="opened")), 60, lambda: probe.lasts(0.2))
            assert probe.lasts(1.5)
    assert len(stored(client, prefix, localport=pair[0])) == 1
    assert len(stored(client, prefix, localport=port)) == 1
    assert probe.stop() == 0


def test_what_the_mapping_refuses_is_kept_with_the_reason(
    start: Start, elastic: Node, client: Elasticsearch, prefix: str, pair: tuple[int, int], tmp_path: Path
) -> None:
    client.indices.put_index_template(
        name=f"{prefix}-strict",
        index_patterns=[f"{prefix}-*"],
        priority=900,
        template={"mappings": {"properties": {"process": {"type": "long"}}}},
    )
    letters = tmp_path / "state" / "dead-letters.ndjson"
    try:
        probe = start(interval_s="999")
        wait_for(lambda: letters.exists() and not list((tmp_path / "state" / "taken").iterdir()), 60, lambda: probe.lasts(0.1))
        assert probe.stop() == 0
    finally:
        client.indices.delete_index_template(name=f"{prefix}-strict")
    found = [orjson.loads(line) for line in letters.read_bytes().splitlines()]
    mine = [each for each in found if each["payload"].get("localport") == pair[0]]
    assert len(mine) == 1
    assert mine[0]["reason"].startswith("process: document_parsing_exception")
    assert letters.stat().st_mode & 0o777 == 0o600
    for index in client.indices.get(index=f"{prefix}-*"):
        client.indices.delete(index=index)
    again = run_real("replay", letters, "--conf", CONF, NETSAGE_ELASTICSEARCH_URL=elastic.url, NETSAGE_PROBE_PREFIX=prefix)
    assert again.code == 0, again.err
    assert len(stored(client, prefix, localport=pair[0])) == 1


def test_saved_output_is_stored_once_however_often_it_is_replayed(
    elastic: Node, client: Elasticsearch, prefix: str, tmp_path: Path
) -> None:
    file = tmp_path / "web-1" / "ss-202611201200.txt"
    file.parent.mkdir()
    file.write_text(
        "Netid State Recv-Q Send-Q Local Address:Port Peer Address:Port Process\n"
        'tcp   ESTAB 0 0 192.0.2.10:22 198.51.100.7:51234 users:(("sshd",pid=9001,fd=4))\n'
        "tcp   ESTAB 0 0 [2001:db8::1]:443 [2001:db8::2]:4711\n"
    )
    for _ in range(2):
        outcome = run_real(
            *("replay", tmp_path / "web-1", "--conf", CONF), NETSAGE_ELASTICSEARCH_URL=elastic.url, NETSAGE_PROBE_PREFIX=prefix
        )
        assert outcome.code == 0, outcome.err
    [four] = stored(client, prefix, foreignip="198.51.100.7", host="web-1")
    assert (four["_index"], four["process"]) == (f"{prefix}-2026.11.20", "sshd")
    assert len(stored(client, prefix)) == 2
    assert len(stored(client, prefix, localip="2001:db8::/32")) == 1


def test_retain_deletes_old_indices_of_the_probe(start: Start, elastic: Node, client: Elasticsearch, prefix: str) -> None:
    probe = start()
    wait_for(lambda: bool(client.indices.get(index=f"{prefix}-*")), 60, lambda: probe.lasts(0.2))
    assert probe.stop() == 0
    today = set(client.indices.get(index=f"{prefix}-*"))
    client.indices.create(index=f"{prefix}-2020.01.01")
    outcome = run("retain", "--prefix", prefix, "--older-than", "30d", "--conf", CONF, NETSAGE_ELASTICSEARCH_URL=elastic.url)
    assert outcome.code == 0, outcome.err
    assert f"deleted   {prefix}-2020.01.01" in outcome.out.decode()
    assert set(client.indices.get(index=f"{prefix}-*")) == today
