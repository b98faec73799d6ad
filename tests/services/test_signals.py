"""SIGTERM and SIGINT whatever a worker is at: it ends within ten seconds with 0, and what it held is stitched with what comes later."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.flow import Changes
from netsage_pipeline.statedir import holder
from netsage_pipeline.worker.ledger import Commit, Ledger, recovered
from tests.command import conf_with
from tests.services.load import Load, Part, Piped, as_single, documents, message_of, steadily, sums
from tests.services.rabbitmq import Broker, Proxy, wait_for

IDS = 50


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    stands_between = Proxy(int(broker.url.rsplit(":", 1)[1].strip("/")))
    yield stands_between
    stands_between.silent = False
    stands_between.close()


@pytest.fixture
def run(broker: Broker, tmp_path: Path) -> Iterator[Piped]:
    made = Piped(broker, tmp_path / "run", NETSAGE_INACTIVITY_TIMEOUT_S="600")
    yield made
    made.end()


class Parts:
    """A part of each of some ids at a time."""

    def __init__(self, run: Piped) -> None:
        self._run = run
        self.parts: list[Part] = []

    def put(self) -> None:
        at = int(time.time() * 1000)
        more = [Part(number, at, at + 1, 1 + len(self.parts) + number, 1) for number in range(IDS)]
        self._run.put(message_of(more))
        self.parts += more

    def taken(self) -> None:
        wait_for(lambda: self._run.state.keys == len(self.parts) // IDS)

    def are_whole(self) -> None:
        """Hands out what is held: all parts of an id are one flow."""
        self._run.drain()
        state = self._run.state
        assert not state.held
        assert not state.outbox
        made = documents(self._run.flows())
        assert sums(made) == sums(as_single(self.parts))
        assert len(made) == IDS
        assert {each.parts for each in made} == {len(self.parts) // IDS}


def test_idle_it_ends_at_once_and_goes_on_stitching_when_it_is_started_again(run: Piped) -> None:
    parts = Parts(run)
    for number in (signal.SIGTERM, signal.SIGINT):
        worker = run.begin().works()
        parts.put()
        parts.taken()
        time.sleep(1.5)
        worker.tell(number, 5)
        [event] = worker.says("stopped")
        assert (event["held"], event["owed"]) == (IDS, 0)
    worker = run.begin().works()
    parts.put()
    parts.taken()
    worker.tell(signal.SIGTERM)
    parts.are_whole()


def test_under_load_it_finishes_the_batch_and_loses_nothing(run: Piped) -> None:
    load = Load(run.broker, [run.input], steadily(20_000, 100, 3_000), surely=False)
    load.start()
    wait_for(lambda: run.broker.count(run.input) > 100)
    for turn, number in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGTERM)):
        worker = run.begin().works()
        wait_for(lambda turn=turn: run.state.keys > 50 * (turn + 1))  # type: ignore[misc]
        worker.tell(number)
        assert worker.says("stopped")
    parts = load.stop()
    left = run.broker.count(run.input)
    assert run.state.keys + left == len(parts) // 100
    run.begin().works()
    wait_for(lambda: run.state.keys == len(parts) // 100, 90)
    run.worker.tell(signal.SIGTERM)
    run.drain()
    assert sums(documents(run.flows())) == sums(as_single(parts))
    assert run.state.totals["read", "", ""] == len(parts)


def test_while_the_broker_is_away_it_ends_in_time(run: Piped, proxy: Proxy) -> None:
    parts = Parts(run)
    run.environment["NETSAGE_RABBITMQ_URL"] = proxy.url
    worker = run.begin().works()
    parts.put()
    parts.taken()
    proxy.silent = True
    proxy.cut()
    wait_for(lambda: bool(worker.says("waits for RabbitMQ")))
    worker.tell(signal.SIGTERM)

    # It was never there.
    worker = run.begin().works()
    time.sleep(1)
    worker.tell(signal.SIGINT)

    # Nobody listens at all.
    run.environment["NETSAGE_RABBITMQ_URL"] = "amqp://127.0.0.1:1/"
    worker = run.begin().works()
    wait_for(lambda: len(worker.says("waits for RabbitMQ")) == 2)
    worker.tell(signal.SIGTERM)

    run.environment["NETSAGE_RABBITMQ_URL"] = run.broker.url
    worker = run.begin().works()
    parts.put()
    parts.taken()
    worker.tell(signal.SIGTERM)
    parts.are_whole()


def test_while_the_output_is_blocked_it_ends_in_time(run: Piped, proxy: Proxy, tmp_path: Path) -> None:
    own = f'url = "{proxy.url}"\nexchange = "${{NETSAGE_OUTPUT_EXCHANGE}}"\nkey = "${{NETSAGE_OUTPUT_KEY}}"\n'
    run.arguments = ["--conf", str(conf_with(tmp_path, {"99_output_rabbitmq": own}))]
    run.environment["NETSAGE_INACTIVITY_TIMEOUT_S"] = "1"
    load = Load(run.broker, [run.input], steadily(2_000, 100, 1 << 30))
    load.start()
    worker = run.begin().works()
    wait_for(lambda: run.state.totals["written", "", ""] > 500)
    proxy.silent = True
    wait_for(lambda: len(run.state.outbox) > 2_000)
    worker.tell(signal.SIGTERM)
    assert len(run.state.outbox) > 1_000
    worker = run.begin().works()
    worker.tell(signal.SIGINT)
    parts = load.stop()
    proxy.silent = False
    worker = run.begin().works()
    run.finished()
    worker.tell(signal.SIGTERM)
    assert sums(documents(run.flows())) == sums(as_single(parts))


def test_while_there_is_an_alarm_it_ends_in_time(run: Piped) -> None:
    parts = Parts(run)
    worker = run.begin().works()
    parts.put()
    parts.taken()
    worker.tell(signal.SIGTERM)
    run.broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        drain = run.begin("ledger", "drain")  # Owes everything now.
        wait_for(lambda: len(run.state.outbox) == IDS)
        wait_for(lambda: bool(drain.says("waits for RabbitMQ")))
        drain._process.send_signal(signal.SIGINT)
        assert not drain.lasts(10), drain.said
        assert drain.code == 130
        worker = run.begin().works()
        wait_for(lambda: bool(worker.says("waits for RabbitMQ")))
        worker.tell(signal.SIGTERM)
        assert len(run.state.outbox) == IDS
    finally:
        run.broker.ctl("set_vm_memory_high_watermark", "0.4")
    parts.are_whole()


def test_while_a_large_ledger_is_read_it_ends_at_once_and_leaves_it_whole(run: Piped) -> None:
    fill(run.ledger, 100_000)
    before = recovered(run.ledger, touch=False)[0]
    for number in (signal.SIGTERM, signal.SIGINT):
        worker = run.begin()
        wait_for(lambda worker=worker: holder(run.ledger) == str(worker.pid))  # type: ignore[misc]
        worker.tell(number)
        assert '"works"' not in worker.whole_log
        assert "Traceback" not in worker.whole_log
    after = recovered(run.ledger, touch=False)[0]
    assert (after.held, after.outbox, after.totals) == (before.held, before.outbox, before.totals)
    worker = run.begin().works()
    assert worker.says("works")[0]["held"] == 100_000
    at = int(time.time() * 1000)
    run.put(message_of([Part(number, at, at + 1, 1, 1) for number in range(100)]))
    wait_for(lambda: run.state.keys == 1)
    worker.tell(signal.SIGTERM)
    state = run.state
    assert len(state.held) == 100_000 + 100  # Those of the ledger have other ids.


def fill(directory: Path, flows: int) -> None:
    """A ledger with so many held flows."""
    ledger, at = Ledger(directory), time.time()
    for first in range(0, flows, 10_000):
        for number in range(first, first + 10_000):
            body: Any = message_of([Part(number, int(at * 1000), int(at * 1000) + 1, 1, 1)])[1:-1]
            flow_id = f"id-{number}"
            ledger.state.held[flow_id] = [body, 1, at, at, 1, 1, int(at * 1000), int(at * 1000), at, at, 600.0, 0]
        opened = {f"id-{number}": ledger.state.held[f"id-{number}"] for number in range(first, first + 10_000)}
        stitching = [at, 0.0, 0, at + 86_400, first, 0, 0, 0]
        ledger.write(ledger.encode(Commit([], Changes(opened, {}, [], stitching), [], [], [], Counter(), at, 0.0)))
    ledger.close()


def test_drain_hands_out_everything_and_show_says_so(run: Piped) -> None:
    parts = Parts(run)
    worker = run.begin().works()
    for _ in range(2):
        parts.put()
        parts.taken()
    shown = run.command("ledger", "show").out.decode()
    assert f"in use by process {worker.pid}" in shown
    assert f"held                  {IDS}  flows" in shown
    assert run.command("ledger", "drain").code == 1  # The worker has it.
    worker.tell(signal.SIGTERM)
    outcome = run.command("ledger", "drain")
    assert (outcome.code, outcome.out) == (0, b"nothing is held and nothing owed any more\n")
    shown = run.command("ledger", "show").out.decode()
    for word in ("held", "owed"):
        assert f"{word}                   0  flows" in shown
    made = documents(run.flows())
    assert {each.parts for each in made} == {2}
    assert sums(made) == sums(as_single(parts.parts))
