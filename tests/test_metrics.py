"""Metrics of readings that a test makes: names, series, masks; and waits."""

from __future__ import annotations

import os
import re
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from netsage_pipeline import folders, waits
from netsage_pipeline.chain import SAMPLED, Chain
from netsage_pipeline.compose import configured
from netsage_pipeline.config import Input
from netsage_pipeline.flow import Now
from netsage_pipeline.monitoring.health import look
from netsage_pipeline.monitoring.metrics import METRICS, OTHER, SERIES, Bounded, Meter, Reading
from netsage_pipeline.statedir import locked
from netsage_pipeline.tables.tables import Tables
from tests.command import LOOKUPS, conf_with, lines, stage_file
from tests.flows import NOW, flow

#: All that a chain may tell.
FULL = Reading(
    totals=Counter(
        {
            ("read", "", ""): 10,
            ("enriched", "", ""): 6,
            ("written", "", ""): 5,
            ("repeated", "", ""): 2,
            ("dropped", "10_preliminaries", "too old"): 3,
            ("refused", "decode", "not JSON"): 1,
            ("noted", "", "60_scireg: not in the registry"): 4,
            ("files", "", ""): 7,
            ("messages", "", ""): 9,
        }
    ),
    held=1,
    outbox_rows=2,
    outbox_bytes=300,
    keys=4,
    keys_ratio=0.5,
    queue_messages=6,
    newest_end=1.0,
    stitching={"parts": 8, "not believed": 1},
    ends=(12, 5),
    commits=(3, 0.25),
    sampled={"20_add_id": (0.5, 100)},
    tables={"scireg.mmdb": 1.0},
)


@pytest.fixture
def meter(tmp_path: Path) -> Iterator[Meter]:
    made = Meter("127.0.0.1:0", tmp_path)
    waits.begin("a test", "it is one")
    waits.reconnected("input")
    yield made
    waits.end("a test")
    made.close()


def shown(meter: Meter) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(meter)
    text = generate_latest(registry).decode()
    families = list(text_string_to_metric_families(text))
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_every_metric_is_shown_and_none_that_is_not_described(meter: Meter) -> None:
    meter.tell(FULL)
    names = {re.sub(r"(netsage_commit_seconds)_(count|sum)", r"\1", name) for name, *_ in shown(meter)}
    assert names == set(METRICS)


def test_what_is_told_is_what_is_shown_over_http(meter: Meter) -> None:
    meter.tell(FULL)
    with urllib.request.urlopen(f"http://127.0.0.1:{meter.port}/metrics") as answer:
        text = answer.read().decode()
    for line in (
        'netsage_flows_total{direction="in"} 10.0',
        'netsage_flows_total{direction="stitched"} 6.0',
        'netsage_flows_total{direction="out"} 5.0',
        'netsage_dropped_flows_total{reason="too old",stage="10_preliminaries"} 3.0',
        'netsage_dead_letters_total{reason="not JSON",stage="decode"} 1.0',
        'netsage_notes_total{note="60_scireg: not in the registry"} 4.0',
        'netsage_ends_total{result="remembered"} 7.0',
        'netsage_ends_total{result="looked up"} 5.0',
        "netsage_commit_seconds_count 3.0",
        "netsage_commit_seconds_sum 0.25",
        'netsage_waiting{what="a test"} 1.0',
        "netsage_ready 0.0",
        'netsage_files_total{result="imported"} 7.0',
        "# TYPE netsage_flows_total counter",
    ):
        assert line in text.splitlines(), line


def test_a_chain_without_a_ledger_shows_nothing_of_one(meter: Meter) -> None:
    meter.tell(Reading(totals={("read", "", ""): 1}))
    names = {name for name, *_ in shown(meter)}
    assert not names & {"netsage_held_flows", "netsage_keys", "netsage_commit_seconds_count", "netsage_ends_total", "netsage_parts_total"}


def test_nothing_is_counted_before_the_first_reading(meter: Meter) -> None:
    assert {name for name, *_ in shown(meter)} == {"netsage_build_info"}


def test_remembered_ends_never_get_fewer(meter: Meter) -> None:
    found = []
    for ends in ((10, 2), (12, 6), (14, 6), (20, 7)):
        meter.tell(FULL._replace(ends=ends))
        found.append(shown(meter)["netsage_ends_total", "remembered"])
    assert found == [8, 8, 8, 13]


labels = st.tuples(st.text(max_size=300), st.text(max_size=8))


@given(st.lists(st.dictionaries(labels, st.integers(1, 1 << 40), max_size=40), max_size=5), st.integers(0, 400))
def test_series_are_bounded_and_nothing_is_lost_of_their_sum(readings: list[dict[tuple[str, ...], int]], more: int) -> None:
    bounded = Bounded()
    for reading in readings:
        values: dict[tuple[str, ...], int] = reading | {("reason", str(number)): 1 for number in range(more)}
        found = bounded("a metric", values)
        assert len(found) <= SERIES
        assert sum(found.values()) == sum(values.values())
        assert all(len(label.encode()) <= 800 for place in found for label in place)


def test_series_that_came_first_stay_what_they_are() -> None:
    bounded = Bounded()
    first: dict[tuple[str, ...], Any] = {(str(number),): number for number in range(150)}
    bounded("a metric", first)
    found = bounded("a metric", {**{(f"new {number}",): 1 for number in range(1_000)}, **first})
    assert {place: value for place, value in found.items() if place in first} == first
    assert found[OTHER,] == 1_000 - (SERIES - 1 - 150)


def test_labels_hold_no_address() -> None:
    values: dict[tuple[str, ...], int] = {
        ("198.51.100.77", "2001:db8:1:2:3:4:5:6\ud800"): 1,
        ("198.51.100.78", "x"): 2,
        ("198.51.100.79", "x"): 3,
    }
    assert Bounded()("a metric", values) == {("198.51.100.x", "2001:db8:1:2:x:x:x:x\\ud800"): 1, ("198.51.100.x", "x"): 5}


@pytest.mark.parametrize("address", ["127.0.0.1", ":9751", "127.0.0.1:", "127.0.0.1:70000", "localhost:http"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        Input(metrics=address)


@pytest.mark.parametrize("address", ["", "127.0.0.1:0", "[::1]:9751", "worker:9751"])
def test_an_address_that_is_one_is_taken(address: str) -> None:
    assert Input(metrics=address).metrics == address


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_metrics_are_served_at_an_ipv6_address(tmp_path: Path) -> None:
    meter = Meter("[::1]:0", tmp_path)
    try:
        with urllib.request.urlopen(f"http://[::1]:{meter.port}/") as answer:
            assert b"netsage_build_info" in answer.read()
    finally:
        meter.close()


@pytest.mark.parametrize("address", ["no.such.host.invalid:9751", "a..b:9751", "192.0.2.1:9751"])
def test_an_address_that_cannot_be_had_is_said_and_nothing_else(address: str, tmp_path: Path) -> None:
    with capture_logs() as said:
        meter = Meter(address, tmp_path)
        meter.tell(FULL)
        meter.close()
    assert ["metrics are not served" in line["event"] for line in said] == [True]
    assert (tmp_path / "health").exists()


def test_a_wait_is_counted_with_its_seconds_while_it_lasts_and_then() -> None:
    waits.begin("something", "a")
    waits.begin("something", "b")
    assert waits.under_way()["something"] == "b"
    time.sleep(0.02)
    during = waits.so_far()["something"]
    assert (during.times, during.now) == (1, True)
    assert during.seconds >= 0.02
    waits.end("something")
    waits.end("something")
    after = waits.so_far()["something"]
    assert (after.times, after.now) == (1, False)
    assert after.seconds >= during.seconds
    waits.begin("something", "a")
    waits.end("something")
    assert waits.so_far()["something"].times == 2


def test_health_is_that_of_the_process_that_has_the_directory(tmp_path: Path, meter: Meter) -> None:
    lock = locked(tmp_path)
    assert look(tmp_path).starts
    meter.tell(FULL)
    found = look(tmp_path)
    assert (found.alive, found.ready, found.waits) == (True, False, {"a test": "it is one"})
    assert found.in_words() == "alive, not ready: waits for a test: it is one"
    waits.end("a test")
    os.utime(tmp_path / "lock", (0, 0))
    os.utime(tmp_path / "health", (0, 0))
    assert "says nothing for" in look(tmp_path).in_words()
    meter.alive()
    assert (tmp_path / "health").stat().st_mode & 0o777 == 0o600
    assert look(tmp_path).in_words() == f"alive and ready: process {found.pid}"
    meter.tell(FULL._replace(connected=False))
    assert look(tmp_path).in_words() == "alive, not ready: its input is not connected"
    assert look(tmp_path).numbers["in"] == 10
    (tmp_path / "health").write_text("[")
    assert look(tmp_path).starts
    os.close(lock)
    assert not look(tmp_path).alive


def test_a_process_without_room_for_the_file_of_health_is_alive(tmp_path: Path, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    meter.tell(FULL)
    lock = locked(tmp_path)
    for name in ("lock", "health"):
        os.utime(tmp_path / name, (0, 0))

    def fail(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    meter.alive()
    assert look(tmp_path).alive
    os.close(lock)


def test_a_stage_is_timed_by_its_own_work(tmp_path: Path) -> None:
    stage_file(tmp_path / "stages", "12_slow", "__import__('time').sleep(0.01)\nreturn flow")
    stages = configured(conf_with(tmp_path, {"12_slow": ""}), [folders.shipped("stages"), tmp_path / "stages"])
    chain = Chain(stages, Tables(LOOKUPS), Now(NOW))
    chain._until_timed = 1
    chain.take(lines([[flow(), flow()]]), "test", "0")
    seconds = {stage: seconds for stage, (seconds, _) in chain.timed.items()}
    assert max(seconds, key=lambda stage: seconds[stage]) == "12_slow"
    assert seconds["12_slow"] >= 0.02


def chain_with(tmp_path: Path) -> Chain:
    stages = configured(conf_with(tmp_path, {}), [folders.shipped("stages")])
    return Chain(stages, Tables(LOOKUPS), Now(NOW))


def test_one_batch_in_so_many_is_timed_stage_by_stage(tmp_path: Path) -> None:
    chain = chain_with(tmp_path)
    for _ in range(SAMPLED - 1):
        chain.take(lines([[flow(), flow()]]), "test", "0")
    assert chain.timed == {}
    chain.take(lines([[flow(), flow()]]), "test", "0")
    assert {stage: flows for stage, (_, flows) in chain.timed.items()} == {
        "10_preliminaries": 2,
        "20_add_id": 2,
        "40_aggregation": 2,
    }
    held = chain.drain()
    for _ in range(SAMPLED):
        chain.enrich(held)
    assert "41_leftovers" in chain.timed
    assert any(" to " in stage for stage in chain.timed), "the run of end stages"
    assert all(seconds > 0 for seconds, _ in chain.timed.values())


def test_what_finishes_flows_by_the_clock_is_timed_too_and_counts_no_flow_twice(tmp_path: Path) -> None:
    now = Now(NOW, clock="arrival")
    chain = Chain(configured(conf_with(tmp_path, {}), [folders.shipped("stages")]), Tables(LOOKUPS), now)
    chain.take(lines([[flow(meta={"src_port": port}) for port in range(1, 4)]]), "test", "0")
    for _ in range(SAMPLED - 1):
        assert chain.tick() == []
    assert chain.timed == {}
    now.arrival = NOW + 10_000
    assert len(chain.tick()) == 3
    seconds, flows = chain.timed["40_aggregation"]
    assert seconds > 0
    assert flows == 0


def test_a_timed_batch_in_which_a_flow_is_refused_comes_through_as_any_other(tmp_path: Path) -> None:
    chain = chain_with(tmp_path)
    for number in range(SAMPLED):
        chain.take(
            lines([[flow(meta={"src_port": number}), flow(meta={"src_port": "none"}), flow(meta={"src_ip": "10.0.0.1"})]]), "test", "0"
        )
    assert chain.read == 3 * SAMPLED
    assert chain.refused.total() == SAMPLED
    assert chain.dropped.total() == SAMPLED
    assert len(chain.drain()) == SAMPLED
