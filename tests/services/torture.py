"""Kills workers again and again while flows are published, then compares what came out with what was published.

python -m tests.services.torture --kills 200 --flows 1000000 --seed 7
"""

from __future__ import annotations

import argparse
import bisect
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pika

from netsage_pipeline.worker.ledger import recovered
from tests.command import surroundings
from tests.services import rabbitmq
from tests.services.oracle import TIMEOUT_S, Message, Oracle, Stream, seconds
from tests.services.worker import POINTS, Hit, Process, hits

#: Seconds: for a process to pass its point; without any progress, after which a run has failed; of one kill, about, all in all.
PATIENCE_S, NO_PROGRESS_S, KILL_S = 8, 120, 1.2

#: A process that does not come to its point is killed all the same, and another one tries, so many times.
MOST_TRIES = 12

#: The publisher waits so long, and then publishes at once what is due.
BURST_S = 1.5

#: Kinds of kills from outside: at any time, within the first moments, and within the moments after it was told to stop.
ANY_TIME, AT_START, AT_STOP = "any time", "start", "stop"


class Told(Protocol):
    """What a torture saw."""

    def lines(self) -> Iterator[str]: ...


class Receiver(Protocol):
    """Where documents go, where that is no queue."""

    conf: Path  #: settings of the worker that hands them out there

    def bodies(self) -> Iterable[bytes]:
        """What came, each time that it came."""


class Publisher(threading.Thread):
    """Publishes a stream, one confirmed message after the other, in bursts; some twice, as a sender does that is not sure."""

    def __init__(self, url: str, queue: str, stream: Stream, oracle: Oracle, flows: int, kills: int, flows_per_s: float) -> None:
        super().__init__(daemon=True)
        self._url, self._queue = url, queue
        self._stream, self._oracle = stream, oracle
        self._flows, self._kills = flows, kills
        self._random = random.Random(flows)
        self.flows_per_s = flows_per_s
        self.period = 0
        self.hurry = threading.Event()  # no kills any more: what is missing of the flows, at once
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            connection = pika.BlockingConnection(pika.URLParameters(self._url))
            channel = connection.channel()
            channel.confirm_delivery()
            self._publish(channel)
            connection.close()
        except Exception as error:  # For the thread that waits.
            self.error = error

    def _publish(self, channel: pika.adapters.blocking_connection.BlockingChannel) -> None:
        again: list[Message] = []
        due = time.monotonic()
        while self._oracle.flows < self._flows or not self.hurry.is_set():
            message = self._stream.message(self.period)
            self._send(channel, message)
            self._oracle.published(message)
            if self._random.random() < 0.01:
                again.append(message)
            if again and self._random.random() < 0.01:
                self._send(channel, again.pop())
                self._oracle.sent_twice += 1
            is_ahead = self._oracle.flows * (self._kills + 1) > self._flows * (self.period + 1)
            due += message.flows / self.flows_per_s * (2 if is_ahead and self._kills else 1)
            ahead = due - time.monotonic()
            if ahead > BURST_S:
                self.hurry.wait(ahead)

    def _send(self, channel: pika.adapters.blocking_connection.BlockingChannel, message: Message) -> None:
        channel.basic_publish(
            "",
            self._queue,
            message.body,
            pika.BasicProperties(delivery_mode=2, message_id=message.message_id or None),
            mandatory=True,
        )


@dataclass
class Figures:
    """How a run went."""

    seed: int
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    hits: list[Hit] = field(default_factory=list)
    twice: int = 0  #: kills of a process that had not come to work since the kill before
    flows: int = 0
    messages: int = 0
    ids: int = 0
    documents: int = 0
    of_more_parts: int = 0
    letters: int = 0
    redelivered: int = 0  #: messages whose keys were known when they came again, and others of which a process told before it died
    repeats: int = 0
    worst: int = 0  #: repeats after one kill
    letter_repeats: int = 0
    shares: dict[int, float] = field(default_factory=dict)  #: of ids with three parts or more, in so many periods between kills or more
    missed: set[str] = field(default_factory=set)  #: points at which nobody was killed
    faults: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield f"seed {self.seed}: {self.kills.total()} kills, {self.flows:,} flows in {self.messages:,} messages, {self.seconds:.0f} s"
        yield f"{self.ids:,} ids, {self.documents:,} documents, {self.of_more_parts:,} of more than one part; {self.letters:,} dead letters"
        shares = ", ".join(f"in {periods} for {share:.0%}" for periods, share in self.shares.items())
        yield f"parts of ids with three or more were published in at least so many periods between kills: {shares} of all ids"
        yield f"{self.redelivered:,} messages redelivered; {self.repeats:,} documents repeated, at most {self.worst:,} after one kill"
        yield f"{self.letter_repeats:,} dead letters repeated; {self.twice} kills of a process that had not come to work yet"
        for point, number in sorted(self.kills.items()):
            deepest = max((hit for hit in self.hits if hit.point == point), key=lambda hit: hit.owed, default=None)
            yield f"{number:>6}  {point}" + (f" (up to {deepest.owed:,} owed, with {deepest.held:,} held)" if deepest else "")


class Run:
    """One worker's life, as a sequence of processes."""

    def __init__(
        self,
        broker: rabbitmq.Broker,
        directory: Path,
        seed: int,
        kills: int,
        flows: int,
        points: Collection[str],
        receiver: Receiver | None,
    ) -> None:
        self._broker, self._directory = broker, directory
        self._points, self._receiver = points, receiver
        self._random = random.Random(seed)
        self._kills = kills
        tag = f"{seed}-{time.time_ns() % 10**9}"
        self._input, self._output, self._dead = f"kills-in-{tag}", f"kills-out-{tag}", f"kills-dead-{tag}"
        exchange = f"kills-{tag}"
        self._state, self._report = directory / "state", directory / "hits"
        self._environment = surroundings(
            NETSAGE_RABBITMQ_URL=broker.url,
            NETSAGE_INPUT_QUEUE=self._input,
            NETSAGE_DEAD_LETTERS=self._dead,
            NETSAGE_OUTPUT_EXCHANGE=exchange,
            NETSAGE_OUTPUT_KEY=self._output,
            NETSAGE_STATE=str(self._state),
            NETSAGE_INACTIVITY_TIMEOUT_S=str(TIMEOUT_S),
        )
        for queue in (self._input, self._output, self._dead):
            broker.declare(queue)
        flows_per_s = max(flows / (KILL_S * max(kills, 8)), 200)
        stream = Stream(seed, time.time() - flows / flows_per_s - 1_800, flows_per_s)
        self.oracle = Oracle(stream.ends, stream.addresses, directory)
        self._publisher = Publisher(broker.url, self._input, stream, self.oracle, flows, kills, flows_per_s)
        self._numbers = count(1)
        self._processes: list[Process] = []
        self._running: Process | None = None
        self.figures = Figures(seed)

    def work(self) -> Figures:
        """All of it. AssertionError if it does not come to an end; what is wrong with what came out is in the figures."""
        began = time.monotonic()
        self._publisher.start()
        try:
            if self._kills:
                self._kill_all()
            else:
                self._restart_politely()
            self._publisher.hurry.set()
            self._finish()
        finally:
            self._publisher.hurry.set()
            if self._running is not None and self._running.code is None:
                self._running.kill()
        self._read_all()
        self._judge()
        self.figures.seconds = time.monotonic() - began
        return self.figures

    # Kills.

    def _kill_all(self) -> None:
        plan = self._plan()
        tries = Counter[str]()
        while plan:
            what = plan.pop()
            if what not in POINTS:
                self._kill_from_outside(what)
            elif not self._killed_itself(what, tries[what]):
                tries[what] += 1
                assert tries[what] < MOST_TRIES, f"nobody comes to '{what}':\n{self._processes[-1].said}"
                plan.insert(self._random.randrange(len(plan) + 1), what)

    def _plan(self) -> list[str]:
        """What to do, last first: each point, and the rest as chance has it; starts in pairs, so that two kills follow each other."""
        chance = self._random
        units = [[point] for point in self._points]
        while (missing := self._kills - sum(map(len, units))) > 0:
            dice = chance.random()
            units.append([AT_START] * 2 if dice < 0.25 and missing > 1 else [chance.choice((ANY_TIME, ANY_TIME, AT_STOP, *self._points))])
        chance.shuffle(units)
        return [what for unit in units for what in unit]

    def _killed_itself(self, point: str, tries: int) -> bool:
        nth = self._random.randint(1, POINTS[point]) if not tries else 1
        process = self._start("run", point=point, nth=nth)
        lasts = process.lasts(PATIENCE_S)
        if lasts:
            process.kill()
        else:
            assert process.code == -9, f"a worker that was to be killed at '{point}' ended with {process.code}:\n{process.said}"
        self._counted(process, ANY_TIME if lasts else point)
        return not lasts

    def _kill_from_outside(self, what: str) -> None:
        process = self._start("run")
        within = 0.8 if what == AT_START else 4.0
        assert process.lasts(self._random.uniform(0, within)), f"a worker ended with {process.code}:\n{process.said}"
        if what == AT_STOP:
            process.tell_to_stop()
            process.lasts(self._random.uniform(0, 0.3))
            fine = (None, 0) if process.has_worked else (None, 0, -signal.SIGTERM)
            assert process.code in fine, f"a worker that was told to stop ended with {process.code}:\n{process.said}"
        process.kill()
        self._counted(process, what)

    def _counted(self, process: Process, what: str) -> None:
        self._publisher.period += 1
        self.figures.kills[what] += 1
        self.figures.twice += not process.has_worked
        if self._publisher.error:
            raise self._publisher.error

    def _restart_politely(self) -> None:
        """No fault at all: it is told to stop and started again."""
        for _ in range(3):
            process = self._start("run")
            self._until_at_work(process)
            assert process.lasts(self._random.uniform(2, 4)), f"a worker ended with {process.code}:\n{process.said}"
            assert process.stop() == 0, process.said
            self._publisher.period += 1

    def _until_at_work(self, process: Process) -> None:
        """Before, the signal that tells it to stop just ends it."""
        rabbitmq.wait_for(lambda: process.has_worked or not process.lasts(0.01))

    # The end.

    def _finish(self) -> None:
        """Publishes the rest, lets a worker take it all, and drains the ledger, whose first attempt is killed."""
        process = self._start("run")
        for _ in range(10):
            self._until_taken(process)
            assert process.stop() == 0, process.said
            if not self._broker.count(self._input):  # Else it gave back what it had not begun with.
                break
            process = self._start("run")
        else:
            raise AssertionError(f"messages are left:\n{process.said}")
        if self._kills:
            process = self._start("ledger", "drain", point="published")
            if not process.lasts(PATIENCE_S) and process.code == -9:
                self._counted(process, "published")
            else:
                assert process.code == 0, process.said
        process = self._start("ledger", "drain")
        assert not process.lasts(NO_PROGRESS_S), f"the ledger was not drained:\n{process.said}"
        assert process.code == 0, process.said

    def _until_taken(self, process: Process) -> None:
        """Until all is published and nothing is left in the queue for two seconds."""
        figure, since = (-1, -1), time.monotonic()
        while self._publisher.is_alive() or figure[1] or time.monotonic() - since < 2:
            assert process.lasts(0.2), f"the worker ended with {process.code}:\n{process.said}"
            now = (self.oracle.flows, self._broker.count(self._input))
            if now != figure:
                figure, since = now, time.monotonic()
            assert time.monotonic() - since < NO_PROGRESS_S, f"no progress in {NO_PROGRESS_S} s, {now[1]} messages left:\n{process.said}"
        if self._publisher.error:
            raise self._publisher.error

    def _read_all(self) -> None:
        for body in self._receiver.bodies() if self._receiver else (body for body, _ in self._read(self._output)):
            self.oracle.take(body)
        for body, message_id in self._read(self._dead):
            self.oracle.take_letter(body, message_id, self._input)
        with self._broker.channel() as channel:
            for queue in (self._input, self._output, self._dead):
                channel.queue_delete(queue)

    def _read(self, queue: str) -> Iterator[tuple[bytes, str]]:
        with self._broker.channel() as channel:
            for method, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=2):
                if method is None or properties is None or body is None:
                    return
                yield body, properties.message_id or ""

    def _start(self, *command: str, point: str = "", nth: int = 1) -> Process:
        log = self._directory / f"worker-{next(self._numbers):04}.log"
        if self._receiver:
            command = (*command, "--conf", str(self._receiver.conf))
        self._running = Process(self._environment, log, *command, point=point, nth=nth, report=self._report)
        self._processes.append(self._running)
        return self._running

    def _judge(self) -> None:
        oracle, figures = self.oracle, self.figures
        figures.faults = oracle.judge()
        state, _ = recovered(self._state, touch=False)
        if state.held or state.outbox or state.keys != oracle.messages:
            figures.faults.append(
                f"the ledger holds {len(state.held)}, owes {len(state.outbox)}, knows {state.keys} of {oracle.messages} keys"
            )
        totals = {what: number for what, number in state.totals.items() if what[0] != "noted"}
        known_again = totals.pop(("repeated", "", ""), 0)
        if totals != oracle.totals():
            figures.faults.append(f"the totals {sorted(totals.items())} are not {sorted(oracle.totals().items())}")
        if known_again < oracle.sent_twice:
            figures.faults.append(f"{oracle.sent_twice} messages were sent twice, but {known_again} were known")
        figures.hits = hits(self._report)
        figures.redelivered = known_again - oracle.sent_twice + sum(hit.redelivered for hit in figures.hits)
        figures.missed = {*self._points} - {hit.point for hit in figures.hits}
        figures.flows, figures.messages, figures.ids = oracle.flows, oracle.messages, len(oracle.known)
        figures.documents, figures.of_more_parts, figures.letters = oracle.distinct, oracle.stitched(), oracle.letters
        figures.repeats, figures.letter_repeats = oracle.seen - oracle.distinct, oracle.repeated_letters
        figures.shares = {periods: oracle.share_of_ids(3, periods) for periods in (1, 2, 3)}
        self._judge_windows()

    def _judge_windows(self) -> None:
        """A document is repeated because the process that made it before died: not more of them than it had on their way."""
        starts = [process.started for process in self._processes]
        after: Counter[int] = Counter(bisect.bisect(starts, seconds(made)) - 1 for made in self.oracle.made_before)
        for number, repeats in after.items():
            process = self._processes[number]
            if process.code == 0:
                self.figures.faults.append(f"{repeats} documents of a process that was not killed were repeated: {process.log}")
            if repeats > process.window:
                self.figures.faults.append(f"{repeats} documents were repeated after one kill ({process.point}): {process.log}")
        self.figures.worst = max(after.values(), default=0)


def torture(
    broker: rabbitmq.Broker,
    directory: Path,
    seed: int,
    kills: int,
    flows: int,
    points: Collection[str] = POINTS.keys(),
    receiver: Receiver | None = None,
) -> Figures:
    """A run with so many kills, at least one at each point; 0: none at all.

    receiver  where documents go; None: to a queue
    """
    directory.mkdir(parents=True, exist_ok=True)
    return Run(broker, directory, seed, kills, flows, points, receiver).work()


def faults_of(figures: Figures) -> list[str]:
    """What is wrong with a run, also that nothing was put to the test."""
    wrong = list(figures.faults)
    if figures.missed:
        wrong.append(f"nobody was killed, with flows held and rows owed, at: {', '.join(sorted(figures.missed))}")
    wrong += [
        f"there were no {what}"
        for what, number in (
            ("kills", figures.kills.total()),
            ("redeliveries", figures.redelivered),
            ("repeated documents", figures.repeats),
            ("stitched flows", figures.of_more_parts),
            ("two kills in a row", figures.twice),
            ("dead letters", figures.letters),
        )
        if not number
    ]
    if figures.shares[2] < 0.3:
        wrong.append(f"only {figures.shares[2]:.0%} of the ids had three parts or more with a kill between them")
    return wrong


def as_program(
    parser: argparse.ArgumentParser,
    work: Callable[[rabbitmq.Broker, Path, argparse.Namespace], Told],
    faults_of: Callable[[Any], list[str]],
) -> None:
    """Tortures with a broker of its own, tells what was seen, and ends with 1 if something is wrong."""
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    given = parser.parse_args()
    sys.stdout.write(f"seed {given.seed}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="torture-"))
    data = directory / "rabbitmq"
    data.mkdir()
    broker = rabbitmq.Broker(rabbitmq.free_port(5890), data)
    broker.start()
    try:
        figures = work(broker, directory / "run", given)
    finally:
        broker.kill9()
    for line in figures.lines():
        sys.stdout.write(f"{line}\n")
    wrong = faults_of(figures)
    for fault in wrong[:20]:
        sys.stdout.write(f"WRONG: {fault}\n")
    if wrong:
        sys.exit(f"{len(wrong)} faults; what it worked with and its logs are in {directory}")
    shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--flows", type=int, default=1_000_000)
    as_program(parser, lambda broker, directory, given: torture(broker, directory, given.seed, given.kills, given.flows), faults_of)


if __name__ == "__main__":
    main()
