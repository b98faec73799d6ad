"""A broker that is away, cut off or short of room, an output that is blocked, and a worker that is: nothing is lost and nothing split."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netsage_pipeline.worker import ledger
from netsage_pipeline.worker.ledger import segments
from tests.command import conf_with, stage_file
from tests.services.load import (
    TIMEOUT_S,
    Limited,
    Load,
    Part,
    Piped,
    alternating,
    as_single,
    documents,
    in_real_time,
    message_of,
    steadily,
    stitched,
    sums,
)
from tests.services.rabbitmq import Broker, Proxy, wait_for

#: Seconds into the stream: the outage, three timeouts long, quiet times before and behind it, and the end.
OUTAGE = (7.0, 7.0 + 3 * TIMEOUT_S)
QUIET = ((4.0, 5.5), (20.5, 22.0))
END = 25.0

#: Ids, of which this many make more than 1,000 parts before the outage, so that the newest end is believed, or far fewer.
MANY, FEW = 2_300, 350

#: Bytes: what a worker takes at most in these tests, and by how much it may grow while it waits.
RESIDENT, GROWTH = 400_000_000, 120_000_000

Made = Callable[..., Piped]


@pytest.fixture
def piped(broker: Broker, tmp_path: Path) -> Iterator[Made]:
    made: list[Piped] = []

    def make(name: str = "run", *arguments: str | Path, **environment: str) -> Piped:
        made.append(Piped(broker, tmp_path / name, *arguments, **environment))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    stands_between = Proxy(int(broker.url.rsplit(":", 1)[1].strip("/")))
    yield stands_between
    stands_between.silent = False
    stands_between.close()


class Watch(threading.Thread):
    """Looks at a worker's memory now and then."""

    def __init__(self, worker: Limited) -> None:
        super().__init__(daemon=True)
        self._worker = worker
        self._told = threading.Event()
        self.first = self.most = worker.resident

    def run(self) -> None:
        while not self._told.wait(0.1):
            try:
                self.most = max(self.most, self._worker.resident)
            except OSError:  # It has ended.
                return

    def stop(self) -> int:
        self._told.set()
        self.join(10)
        return self.most


def waits(worker: Limited) -> list[str]:
    """What it said of waiting, but for the broker."""
    return [event["event"].partition(":")[0] for event in worker.events if "waited_for" in event or "waits for the" in event["event"]]


def sleep_until(began: float, seconds: float) -> None:
    time.sleep(max(0.0, began + seconds - time.monotonic()))


def test_stopped_killed_blocked_or_cut_off_it_makes_the_same_flows_as_one_that_never_was(
    broker: Broker, proxy: Proxy, piped: Made, tmp_path: Path
) -> None:
    output = Proxy(broker.port)
    own = conf_with(
        tmp_path,
        {
            "99_output_rabbitmq": f'url = "{output.url}"\nexchange = "${{NETSAGE_OUTPUT_EXCHANGE}}"\nkey = "${{NETSAGE_OUTPUT_KEY}}"\n',
        },
    )
    never, stopped, killed = piped("never"), piped("stopped"), piped("killed")
    blocked = piped("blocked", "--conf", own)
    blocked.limits = {
        "worker.run:OUTBOX_ROWS": 100,
        "worker.run:ON_THE_WAY": 50,
        "worker.run:BATCH": 10,
        "worker.run:PAUSE_S": 4,
        "worker.run:CLOCK_S": 1,
    }
    cut_off = piped("cut off", NETSAGE_RABBITMQ_URL=proxy.url)
    every = [never, stopped, killed, blocked, cut_off]
    for each in every:
        each.begin()
    for each in every:
        each.worker.works()
    load = Load(broker, [each.input for each in every], in_real_time(11, END, MANY, QUIET, time.time()))
    load.start()
    began = time.monotonic()
    sleep_until(began, OUTAGE[0])
    assert len(load.parts) > 1_000, f"{len(load.parts)} parts: the newest end is not believed yet, or publishing is too slow"
    stopped.worker.tell(signal.SIGTERM)
    killed.worker.kill()
    output.silent = proxy.silent = True
    proxy.cut()
    held = {each.directory.name: len(each.state.held) for each in (stopped, killed)}
    assert min(held.values()) > 100, held
    clocks = {each.directory.name: each.state.arrival for each in every}
    sleep_until(began, OUTAGE[1] - 1)
    assert all(broker.count(each.input) > 20 for each in every[1:])
    assert not broker.count(never.input)
    for each in (stopped, killed, cut_off):
        assert each.state.arrival - clocks[each.directory.name] < 1.5, f"{each.directory.name}: the clock did not stand still"
    sleep_until(began, OUTAGE[1])
    stopped.begin()
    killed.begin()
    output.silent = proxy.silent = False
    parts = load.ended()
    while any(each.state.held or each.state.outbox or broker.count(each.input) for each in every):
        assert time.monotonic() - began < 90, [(each.directory.name, len(each.state.held), len(each.state.outbox)) for each in every]
        assert all(each.worker.code is None for each in every)
        for each in every:
            assert each.state.arrival <= time.time()
        time.sleep(0.3)
    right = stitched(parts)
    assert sum(each.parts > 1 for each in right) > 500
    for each in every:
        each.worker.tell(signal.SIGTERM)
        made = documents(each.flows())
        assert not right ^ made, f"{each.directory.name}: {len(right - made)} are missing, {len(made - right)} too many: " + str(
            sorted(right ^ made)[:6]
        )
    output.close()
    assert [len(each.processes) for each in every] == [1, 2, 2, 1, 1]
    assert (alternating(cut_off.worker, "input"), alternating(cut_off.worker, "output")) == (1, 1)
    assert waits(blocked.worker) == ["waits for the output", "goes on"], blocked.worker.whole_log
    assert not never.worker.says("waits for")


def test_a_broker_that_is_killed_and_away_for_longer_than_the_timeout_splits_no_flow(broker: Broker, piped: Made) -> None:
    run = piped()
    watch = Watch(run.begin().works())
    watch.start()
    load = Load(broker, [run.input], in_real_time(12, 21, FEW, ((2.5, 4.0),), time.time()))
    load.start()
    began = time.monotonic()
    sleep_until(began, 5)
    assert len(load.parts) < 1_000  # The newest end is not believed yet, but will be by what was published late.
    broker.kill9()
    sleep_until(began, 5 + 2.5 * TIMEOUT_S)
    broker.start()
    right = stitched(load.ended())
    run.finished()
    made = documents(run.flows())
    assert not right ^ made, f"{len(right - made)} are missing, {len(made - right)} too many: {sorted(right ^ made)[:6]}"
    assert (alternating(run.worker, "input"), alternating(run.worker, "output")) == (1, 1)
    assert watch.stop() < RESIDENT


def test_cut_off_restarted_and_in_alarm_under_load_it_goes_on_by_itself_and_the_sums_are_equal(broker: Broker, piped: Made) -> None:
    run = piped("run", NETSAGE_INACTIVITY_TIMEOUT_S="1.5")
    run.limits = {"worker.run:OUTBOX_ROWS": 300, "worker.run:CLOCK_S": 1}
    worker = run.begin().works()
    load = Load(broker, [run.input], steadily(3_000, 200, 4_000))
    load.start()
    wait_for(lambda: run.state.totals["read", "", ""] > 2_000)
    watch = Watch(worker)
    watch.start()

    def goes_on() -> None:
        before = run.state.totals["read", "", ""]
        wait_for(lambda: run.state.totals["read", "", ""] > before + 2_000)

    broker.ctl("close_all_connections", "a test")
    goes_on()
    broker.stop()
    broker.start()
    goes_on()
    for alarm, usual in (
        (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.4")),
        (("set_disk_free_limit", "999GB"), ("set_disk_free_limit", "50MB")),
    ):
        broker.ctl(*alarm)
        try:
            time.sleep(5)  # What is held is finished now, and owed.
            assert len(run.state.outbox) > 300
        finally:
            broker.ctl(*usual)
        goes_on()
    parts = load.stop()
    run.finished()
    assert sums(documents(run.flows())) == sums(as_single(parts))
    # Two faults may come so close that one line is said of both.
    assert 1 <= alternating(worker, "input") <= 2
    assert 3 <= alternating(worker, "output") <= 4
    assert waits(worker) == ["waits for the output", "goes on"] * 2, worker.whole_log
    assert watch.stop() - watch.first < GROWTH
    assert watch.most < RESIDENT


def test_a_backlog_is_drained_at_full_speed_in_bounded_memory(broker: Broker, piped: Made) -> None:
    run = piped()
    messages = steadily(2_000, 100, 8_000, time.time() - 60)
    load = Load(broker, [run.input], [(0.0, next(messages)[1]) for _ in range(600)], surely=False)
    load.start()
    parts = load.ended()
    wait_for(lambda: broker.count(run.input) == 600)
    watch = Watch(run.begin().works())
    watch.start()
    began = time.monotonic()
    wait_for(lambda: run.state.totals["read", "", ""] == 60_000, 120, lambda: time.sleep(0.2))
    assert time.monotonic() - began < 30, "2,000 flows a second are not full speed"
    run.stop()
    assert watch.stop() < RESIDENT
    run.drain()
    assert sums(documents(run.flows())) == sums(as_single(parts))


def test_what_all_finishes_at_once_is_owed_some_thousands_of_flows_at_a_time(broker: Broker, piped: Made) -> None:
    run = piped("run", NETSAGE_INACTIVITY_TIMEOUT_S="15")
    run.limits = {"worker.run:OUTBOX_ROWS": 2_000}
    flows = 30_000
    messages = steadily(flows, 100, 1 << 30)
    load = Load(broker, [run.input], [next(messages) for _ in range(flows // 100)], surely=False)
    worker = run.begin().works()
    load.start()
    run.until(lambda state: state.totals["read", "", ""] == flows)
    worker.kill()
    assert len(run.state.held) == flows
    time.sleep(16)  # With the machine, say, so that nobody sent anything: the first flows that come make the clock leap.
    more = Load(broker, [run.input], [(0.0, next(steadily(1, 100, 1 << 30, time.time()))[1])] * 20, surely=False)
    more.start()
    more.ended()
    run.begin().works()
    run.until(lambda state: len(state.held) <= 100 and not state.outbox)
    owed: set[int] = set()
    most = 0
    for path in segments(run.ledger).values():
        for _, record, _ in ledger._records(path.read_bytes()):
            assert record is not None
            owed |= set(range(record.get("next", 0), record.get("next", 0) + len(record.get("rows", ()))))
            owed -= set(record.get("done", ()))
            most = max(most, len(owed))
    assert 5_000 <= most <= 2_000 + 5_000
    run.stop()
    assert {each.number for each in documents(run.flows())} == set(range(flows))


def test_a_worker_that_was_frozen_for_longer_than_the_timeout_splits_no_flow(piped: Made) -> None:
    run = piped("run", NETSAGE_INACTIVITY_TIMEOUT_S="8")
    worker = run.begin().works()
    now = int(time.time() * 1000)
    ids = range(800)
    run.put(message_of(Part(number, now, now + number, 5, 1) for number in ids))
    run.until(lambda state: len(state.held) == len(ids))
    time.sleep(2)  # It has caught up, and knows no better until it goes on.
    os.kill(worker.pid, signal.SIGSTOP)
    run.put(*(message_of([Part(number, now + 1, now + 1 + number, 5, 1)]) for number in ids))
    time.sleep(10)
    os.kill(worker.pid, signal.SIGCONT)
    run.until(lambda state: state.keys == 1 + len(ids))
    run.stop()
    run.drain()
    assert [each.parts for each in documents(run.flows())] == [2] * len(ids)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_machine_whose_clock_is_set_back_and_right_again_holds_no_flow_for_longer(piped: Made, restarted: bool) -> None:
    run = piped()
    wrong = run.directory / "wrong"
    run.limits = {
        "worker.run:time": "__import__('types').SimpleNamespace("
        "monotonic=module.time.monotonic, perf_counter=module.time.perf_counter, "
        f"time=lambda time=module.time, path=__import__('pathlib').Path({str(wrong)!r}): time.time() - 86_400 * 365 * path.exists())"
    }
    worker = run.begin().works()
    now = int(time.time() * 1000)
    run.put(message_of(Part(number, now - 2_000 + number, now - 1_000 + number, 5, 1) for number in range(50)))
    run.until(lambda state: len(state.held) == 50)
    wrong.touch()
    if restarted:
        worker.kill()
        run.begin().works()
    time.sleep(1)
    wrong.unlink()
    run.finished(3 * TIMEOUT_S)
    run.put(message_of([Part(51, now, now, 5, 1)]))
    run.until(lambda state: len(state.held) == 1)
    wrong.touch()
    run.finished(3 * TIMEOUT_S)
    run.stop()
    assert len(documents(run.flows())) == 51


def test_a_queue_that_is_never_empty_lets_flows_finish(broker: Broker, piped: Made, tmp_path: Path) -> None:
    slow = stage_file(tmp_path / "own", "05_slow", "import time\ntime.sleep(0.004)\nreturn flow")
    conf = conf_with(tmp_path, {"05_slow": ""})
    run = piped("run", "--conf", conf, "--stages", slow)
    run.limits = {"rabbitmq.amqp:BATCH_MESSAGES": 2, "rabbitmq.amqp:PREFETCH": 4}
    load = Load(broker, [run.input], steadily(400, 10, 1 << 30))
    load.start()
    wait_for(lambda: broker.count(run.input) > 20)
    run.begin().works()
    began, ages = time.monotonic(), []
    while time.monotonic() - began < 14:
        assert broker.count(run.input) > 0
        state = run.state
        assert state.arrival <= time.time()
        ages.append(state.arrival)
        time.sleep(0.2)
    assert ages[-1] - ages[0] > 5
    finished = {each.number for each in documents(run.flows())}
    load.stop()
    assert len(finished) > 500
