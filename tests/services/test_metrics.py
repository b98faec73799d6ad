"""Metrics and health of real processes: the numbers are those of what was published, and a wait is seen while it lasts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import conf_with, stage_file
from tests.flows import flow as raw
from tests.services.conftest import Collect, absent
from tests.services.elastic import Node
from tests.services.importer import importing
from tests.services.load import Load, Piped, as_single, documents, steadily, sums
from tests.services.metered import becomes, comes_to, hang_on, health_of, labelled, port_of, samples_at, samples_of, text_at
from tests.services.netflow import netflow5
from tests.services.rabbitmq import Broker, Proxy, wait_for
from tests.services.sink import Sinking
from tests.services.test_nfdump import random_flows

#: Flows a message, and messages, of which some batches are timed.
TOGETHER, MESSAGES = 3, 150


def now_flow(number: int, **more: Any) -> dict[str, Any]:
    """A flow of the present with a 5-tuple of its own."""
    at = time.time() - 20
    meta = {"src_ip": f"128.101.{number // 250}.{number % 250 + 1}", "dst_ip": "134.68.22.7", **more.pop("meta", {})}
    return raw(start=at, end=at + 1, meta=meta, **more)


@pytest.fixture
def run(broker: Broker, tmp_path: Path) -> Iterator[Piped]:
    made = Piped(broker, tmp_path / "run", NETSAGE_INACTIVITY_TIMEOUT_S="600")
    yield made
    made.end()


def test_the_numbers_are_those_of_what_was_published_and_go_on_after_a_restart(run: Piped) -> None:
    worker = run.begin().works()
    private = [now_flow(number, meta={"src_ip": "10.0.0.1"}) for number in range(5)]
    without_bits = [now_flow(number, values={"num_bits": None}) for number in range(4)]
    nothing = [b"no JSON", b"not either"]
    tstat = [now_flow(number, meta={"flow_type": "tstat"}) for number in range(7)]
    for number in range(MESSAGES):
        run.put([now_flow(number * TOGETHER + each) for each in range(TOGETHER)])
    run.put(private, without_bits, tstat, *nothing)
    run.put(tstat[:2])
    run.put(tstat[:2])
    good = MESSAGES * TOGETHER
    messages = MESSAGES + 3 + len(nothing) + 1
    taken = good + len(private) + len(without_bits) + len(tstat) + 2

    wanted: dict[tuple[str, ...], float] = {
        ("netsage_flows_total", "in"): taken,
        ("netsage_flows_total", "stitched"): len(tstat) + 2,
        ("netsage_flows_total", "out"): len(tstat) + 2,
        ("netsage_dropped_flows_total", "private address", "10_preliminaries"): len(private),
        ("netsage_dead_letters_total", "values.num_bits: missing", "40_aggregation"): len(without_bits),
        ("netsage_dead_letters_total", "not JSON", "decode"): len(nothing),
        ("netsage_repeated_messages_total",): 1,
        ("netsage_parts_total",): good,
        ("netsage_held_flows",): good,
        ("netsage_outbox_rows",): 0,
        ("netsage_outbox_bytes",): 0,
        ("netsage_keys",): messages,
        ("netsage_queue_messages",): 0,
        ("netsage_ready",): 1,
        ("netsage_waiting", "input broker"): 0,
        ("netsage_waits_total", "output broker"): 1,
    }
    samples = comes_to(worker, wanted)
    assert sum(labelled(samples, "netsage_dropped_flows_total").values()) == len(private)
    assert sum(labelled(samples, "netsage_dead_letters_total").values()) == len(without_bits) + len(nothing)
    assert sum(labelled(samples, "netsage_ends_total").values()) == 2 * (len(tstat) + 2)
    assert labelled(samples, "netsage_notes_total")[("60_scireg: not in the registry",)] > 0
    assert samples["netsage_commit_seconds_count",] > 0
    assert 0 < samples["netsage_commit_seconds_sum",] < 60
    assert 0 < samples["netsage_keys_ratio",] < 0.01
    sampled = labelled(samples, "netsage_sampled_flows_total")
    assert {("10_preliminaries",), ("40_aggregation",)} <= set(sampled)
    assert sampled["40_aggregation",] == TOGETHER
    assert all(0 < seconds < 1 for seconds in labelled(samples, "netsage_sampled_seconds_total").values())
    ages = labelled(samples, "netsage_table_age_seconds")
    assert {name for (name,) in ages} >= {"GeoLite2-City.mmdb", "CAIDA-org-lookup.csv"}
    assert all(age > 0 for age in ages.values())
    assert samples["process_resident_memory_bytes",] > 10_000_000

    worker.tell(signal.SIGTERM)
    again = run.begin().works()
    assert comes_to(again, wanted)["netsage_ends_total", "looked up"] == 0
    run.put(tstat[:3])
    more = {("netsage_flows_total", "in"): taken + 3, ("netsage_flows_total", "out"): len(tstat) + 5, ("netsage_keys",): messages + 1}
    comes_to(again, more)


def test_the_text_is_what_prometheus_takes(run: Piped) -> None:
    if shutil.which("promtool") is None:
        absent("promtool")
    worker = run.begin().works()
    run.put([now_flow(1), now_flow(2, meta={"src_ip": "10.0.0.1"})], b"no JSON")
    comes_to(worker, {("netsage_flows_total", "in"): 2, ("netsage_dead_letters_total", "not JSON", "decode"): 1})
    found = subprocess.run(["promtool", "check", "metrics"], input=text_at(port_of(worker)).encode(), capture_output=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


def test_a_broker_that_is_away_is_seen_while_it_is_and_the_link_comes_back(broker: Broker, run: Piped) -> None:
    proxy = Proxy(int(broker.url.rsplit(":", 1)[1].strip("/")))
    try:
        run.environment["NETSAGE_RABBITMQ_URL"] = proxy.url
        worker = run.begin().works()
        comes_to(worker, {("netsage_ready",): 1})
        assert (health_of(run, "--ready").code, health_of(run).code) == (0, 0)
        broker.stop()
        try:
            comes_to(worker, {("netsage_ready",): 0, ("netsage_waiting", "input broker"): 1, ("netsage_waiting", "output broker"): 1})
            said = becomes(run, "alive, not ready: waits for input broker: ")
            assert "output broker: " in said
            assert (health_of(run).code, health_of(run, "--ready").code) == (0, 3)
        finally:
            broker.start()
        samples = comes_to(worker, {("netsage_ready",): 1, ("netsage_waiting", "input broker"): 0}, 60)
        assert samples["netsage_waits_total", "input broker"] == 2
        assert samples["netsage_waited_seconds_total", "input broker"] > 1
        assert samples["netsage_reconnects_total", "input"] >= 1
        assert becomes(run, "and ready") == f"alive and ready: process {worker.pid}\n"
    finally:
        proxy.close()


def test_scrapers_that_hang_do_not_hold_the_flows_up(run: Piped) -> None:
    run.environment["NETSAGE_INACTIVITY_TIMEOUT_S"] = "1"
    worker = run.begin().works()
    connections = hang_on(worker, 50)
    load = Load(run.broker, [run.input], steadily(1_000, 50, 1 << 30))
    load.start()
    for _ in range(30):
        samples_of(worker)
        time.sleep(0.1)
    parts = load.stop()
    run.finished()
    assert sums(documents(run.flows())) == sums(as_single(parts))
    for connection in connections:
        connection.close()
    time.sleep(0.5)
    assert [event for event in worker.events if event["level"] not in ("info", "debug") and "table" not in event] == []
    worker.tell(signal.SIGTERM)


def test_a_port_that_is_taken_costs_the_metrics_and_nothing_else(run: Piped) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run.environment["NETSAGE_METRICS"] = f"127.0.0.1:{taken.getsockname()[1]}"
        worker = run.begin().works()
        [said] = [event for event in worker.events if event["level"] == "warning" and "table" not in event]
        assert said["event"].startswith("metrics are not served: ")
        assert said["reason"] == os.strerror(98)
        run.put([now_flow(1, meta={"flow_type": "tstat"})])
        wait_for(lambda: run.broker.count(run.output) == 1)
        becomes(run, "alive and ready")


def test_health_of_a_process_that_is_not_there_starts_or_hangs(run: Piped) -> None:
    none = health_of(run)
    assert none.code == 1
    assert none.out.decode().startswith(f"not alive: {run.ledger}: No such file or directory")
    worker = run.begin().works()
    becomes(run, "alive and ready")
    os.kill(worker.pid, signal.SIGSTOP)
    long_ago = time.time() - 61
    for name in ("lock", "health"):
        os.utime(run.ledger / name, (long_ago, long_ago))
    hanging = health_of(run)
    assert hanging.code == 1
    assert hanging.out.decode().startswith(f"not alive: process {worker.pid} says nothing for 6")
    os.kill(worker.pid, signal.SIGCONT)
    becomes(run, "alive and ready")
    assert json.loads((run.ledger / "health").read_text())["pid"] == str(worker.pid)
    worker.tell(signal.SIGTERM)
    stopped = health_of(run)
    assert (stopped.code, stopped.out.decode().partition(":")[0]) == (1, "not alive")

    run.limits = {"worker.run:Worker.run": "lambda *_: __import__('time').sleep(60)"}
    begins = run.begin()
    assert becomes(run, "starts") == f"alive, not ready: process {begins.pid} starts\n"
    assert (health_of(run).code, health_of(run, "--ready").code) == (0, 3)


def test_the_sinks_numbers_are_those_of_what_was_published(broker: Broker, elastic: Node, tmp_path: Path) -> None:
    run = Sinking(broker, elastic, tmp_path / "sink")
    try:
        bad = [run.flow(meta={"id": f"{number:064x}", "src_asn": "no number"}) for number in range(3)]
        run.publish(220)
        run.put(bad)
        worker = run.begin().works()
        run.wait_until_stored()
        samples = comes_to(
            worker,
            {
                ("netsage_flows_total", "in"): 223,
                ("netsage_flows_total", "out"): 220,
                ("netsage_outbox_rows",): 0,
                ("netsage_ready",): 1,
                ("netsage_queue_messages",): 0,
            },
        )
        [((reason, stage), refused)] = labelled(samples, "netsage_dead_letters_total").items()
        assert (stage, refused) == ("99_output", 3)
        assert reason.startswith("meta.src_asn: document_parsing_exception")
        assert ("netsage_held_flows",) not in samples
        assert ("netsage_commit_seconds_count",) not in samples
        elastic.stop()
        try:
            run.publish(10)
            comes_to(worker, {("netsage_ready",): 0, ("netsage_waiting", "Elasticsearch"): 1}, 60)
            assert "waits for Elasticsearch: " in becomes(run, "not ready")
        finally:
            elastic.start()
        comes_to(worker, {("netsage_ready",): 1, ("netsage_flows_total", "out"): 230, ("netsage_waiting", "Elasticsearch"): 0}, 90)
    finally:
        run.end()


def test_addresses_in_reasons_are_masked_and_series_bounded(broker: Broker, tmp_path: Path) -> None:
    stages = stage_file(
        tmp_path / "stages",
        "09_rude",
        "from netsage_pipeline.flow import Refused\nraise Refused(f\"{flow['meta']['src_ip']} {flow['n']}\")",
    )
    run = Piped(broker, tmp_path / "run", "--conf", conf_with(tmp_path, {"09_rude": ""}), "--stages", stages)
    try:
        worker = run.begin().works()
        run.put([now_flow(number, n=number) for number in range(300)])
        wait_for(lambda: sum(labelled(samples_of(worker), "netsage_dead_letters_total").values()) == 300, 30)
        found = labelled(samples_of(worker), "netsage_dead_letters_total")
        assert len(found) == 200
        assert found["other", "other"] == 101
        assert "128.101.0.x 7" in {reason for reason, _ in found}
        assert port_of(worker)
    finally:
        run.end()


def test_the_importers_numbers_are_those_of_its_files(broker: Broker, collect: Collect, tmp_path: Path) -> None:
    with importing(broker, tmp_path) as run:
        file = collect(tmp_path / "collected", netflow5(random_flows(250, versions=(4,), numbers=16)))
        shutil.copy(file, run.captures / "nfcapd.202311142210")
        shutil.copy(file, run.captures / "nfcapd.202311142215")
        (run.captures / "nfcapd.202311142220").write_bytes(b"of another kind")
        run.start()
        wait_for(lambda: bool(run.said("serves metrics")), 30)
        port = run.said("serves metrics")[0]["port"]
        wanted = {
            ("netsage_flows_total", "in"): 250,
            ("netsage_flows_total", "out"): 250,
            ("netsage_files_total", "imported"): 1,
            ("netsage_files_total", "known"): 1,
            ("netsage_files_total", "refused"): 1,
            ("netsage_passed_messages_total",): 3,
            ("netsage_outbox_rows",): 0,
            ("netsage_queue_messages",): 0,
            ("netsage_ready",): 1,
        }
        wait_for(lambda: wanted.items() <= samples_at(port).items(), 60, lambda: time.sleep(0.2))
        assert ("netsage_held_flows",) not in samples_at(port)
