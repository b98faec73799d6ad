"""Flows published under load or in real time, what must come of them, and workers with other limits than the usual ones."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pika

from netsage_pipeline.documents import document_id
from tests.command import surroundings
from tests.services.rabbitmq import Broker, wait_for
from tests.services.running import Pipeline
from tests.services.worker import ROOT, Process

#: For NETSAGE_INACTIVITY_TIMEOUT_S. Gaps between parts are far from it, because machines that run tests are slow at times.
TIMEOUT_S = 4.0
SHORT_S, LONG_S = (0.4, 2.5), (5.6, 8.0)


class Part(NamedTuple):
    """One flow as it is published; `number` says of which id it is a part."""

    number: int
    start_ms: int
    end_ms: int
    bits: int
    packets: int


class Document(NamedTuple):
    """What must be right of a document."""

    number: int
    start_ms: int
    end_ms: int
    parts: int
    bits: int
    packets: int


def flow_of(part: Part) -> dict[str, Any]:
    return {
        "type": "flow",
        "start": part.start_ms / 1000,
        "end": part.end_ms / 1000,
        "meta": {
            "flow_type": "netflow",
            "sensor_id": "sensor",
            "src_ip": f"128.101.{part.number % 200}.7",
            "src_port": 1_024 + part.number % 60_000,
            "dst_ip": f"134.68.22.{part.number % 250}",
            "dst_port": 1 + part.number // 60_000,
            "protocol": "tcp",
        },
        "values": {"duration": 0.1, "num_bits": part.bits, "num_packets": part.packets, "bits_per_second": 1, "packets_per_second": 1},
    }


def message_of(parts: Iterable[Part]) -> bytes:
    return json.dumps([flow_of(part) for part in parts]).encode()


def stitched(parts: Iterable[Part]) -> set[Document]:
    """What the parts must become, known from the gaps between their starts alone."""
    by_number: dict[int, list[Part]] = defaultdict(list)
    for part in sorted(parts, key=lambda part: part.start_ms):
        by_number[part.number].append(part)
    made: set[Document] = set()
    for number, each in by_number.items():
        together = [each[0]]
        for part in [*each[1:], Part(number, 1 << 60, 0, 0, 0)]:
            if part.start_ms - together[-1].start_ms <= TIMEOUT_S * 1000:
                together.append(part)
                continue
            end = max(one.end_ms for one in together)
            sums = sum(one.bits for one in together), sum(one.packets for one in together)
            made.add(Document(number, together[0].start_ms, end, len(together), *sums))
            together = [part]
    return made


def documents(flows: Iterable[dict[str, Any]]) -> set[Document]:
    """What came out, repetitions of a document once. Each id is that of one number."""
    distinct = {document_id(flow): flow for flow in flows}
    made = [_document(flow) for flow in distinct.values()]
    numbers = {(flow["meta"]["id"], each.number) for flow, each in zip(distinct.values(), made, strict=True)}
    assert len(numbers) == len({known_as for known_as, _ in numbers}) == len({number for _, number in numbers})
    assert len(set(made)) == len(made), "two ids for one document"
    return set(made)


def _document(flow: dict[str, Any]) -> Document:
    meta, values = flow["meta"], flow["values"]
    number = meta["src_port"] - 1_024 + (meta["dst_port"] - 1) * 60_000
    start_ms, end_ms = (round(datetime.fromisoformat(flow[name]).timestamp() * 1000) for name in ("start", "end"))
    return Document(number, start_ms, end_ms, flow["stitched_flows"], values["num_bits"], values["num_packets"])


def sums(made: Iterable[Document]) -> dict[int, tuple[int, int, int]]:
    """Σ stitched_flows, Σ num_bits and Σ num_packets of each number."""
    of: dict[int, tuple[int, int, int]] = defaultdict(lambda: (0, 0, 0))
    for each in made:
        parts, bits, packets = of[each.number]
        of[each.number] = (parts + each.parts, bits + each.bits, packets + each.packets)
    return dict(of)


def as_single(parts: Iterable[Part]) -> Iterator[Document]:
    return (Document(part.number, part.start_ms, part.end_ms, 1, part.bits, part.packets) for part in parts)


#: When a message is due, in seconds after the first one, and what is in it.
Due = tuple[float, list[Part]]


def in_real_time(seed: int, seconds: float, ids: int, quiet: Iterable[tuple[float, float]], begin: float) -> list[Due]:
    """Parts of flows in the order of their ends, a message every 100 ms, none of them in quiet times; gaps are SHORT_S or LONG_S."""
    chance = random.Random(seed)
    parts: list[Part] = []
    for number in range(ids):
        starts: list[float] = []
        at = chance.uniform(-12, seconds)
        while at < seconds and len(starts) < 9:
            if at > 0 and not any(since <= at <= until for since, until in quiet):
                starts.append(at)
            at += chance.uniform(*(SHORT_S if chance.random() < 0.7 else LONG_S))
        if all(not SHORT_S[1] < later - earlier < LONG_S[0] for earlier, later in pairwise(starts)):
            for start in starts:
                start_ms = int((begin + start) * 1000)
                parts.append(
                    Part(number, start_ms, start_ms + chance.randrange(100), chance.randrange(1, 1 << 40), chance.randrange(1, 9_999))
                )
    buckets: dict[int, list[Part]] = defaultdict(list)
    for part in sorted(parts, key=lambda part: part.end_ms):
        buckets[int((part.end_ms / 1000 - begin) * 10) + 1].append(part)
    return [(bucket / 10, each) for bucket, each in sorted(buckets.items())]


def steadily(flows_per_s: int, together: int, ids: int, begin: float | None = None) -> Iterator[Due]:
    """Messages without end, their flows of the present, or of a stream that began in the past."""
    started = time.time() if begin is None else begin
    for message in range(1_000_000):
        due = message * together / flows_per_s
        start_ms = int((started + due) * 1000)
        first = message * together
        yield due, [Part((first + each) % ids, start_ms, start_ms + 1, 1 + first + each, 1 + each) for each in range(together)]


class Load(threading.Thread):
    """Publishes messages when they are due, late ones at once, each again under its id until it is confirmed.

    surely   whether it waits for confirmations, as it must when the broker is to be killed
    """

    def __init__(self, broker: Broker, queues: list[str], messages: Iterable[Due], *, surely: bool = True) -> None:
        super().__init__(daemon=True)
        self._broker, self._messages, self._surely = broker, iter(messages), surely
        self._told = threading.Event()
        self._name = f"load-{uuid.uuid4().hex}"
        self.parts: list[Part] = []
        self.error: Exception | None = None
        with broker.channel() as channel:
            channel.exchange_declare(self._name, "fanout", durable=True, auto_delete=True)
            for queue in queues:
                channel.queue_bind(queue, self._name)

    def run(self) -> None:
        try:
            self._publish()
        except Exception as error:  # For the thread that waits.
            self.error = error

    def _publish(self) -> None:
        began = time.monotonic()
        message = next(self._messages, None)
        number = 0
        while message is not None:
            try:
                with self._broker.channel() as channel:
                    if self._surely:
                        channel.confirm_delivery()
                    while message is not None:
                        if self._told.wait(max(0.0, began + message[0] - time.monotonic())):
                            return
                        properties = pika.BasicProperties(delivery_mode=2, message_id=f"{self._name}/{number}")
                        channel.basic_publish(self._name, "", message_of(message[1]), properties, mandatory=True)
                        self.parts += message[1]
                        number += 1
                        message = next(self._messages, None)
            except pika.exceptions.UnroutableError:
                raise
            except pika.exceptions.AMQPError:
                if self._told.wait(0.2):
                    return

    def ended(self, seconds: float = 60) -> list[Part]:
        """Waits until everything is published; gives all of it."""
        self.join(seconds)
        assert not self.is_alive(), "publishing does not end"
        assert self.error is None, self.error
        return self.parts

    def stop(self) -> list[Part]:
        self._told.set()
        return self.ended()


class Limited(Process):
    """A worker, or another command, in which constants of the package have other values.

    limits  module below netsage_pipeline, colon, constant → Python's text of its value
    """

    def __init__(self, environment: Mapping[str, str], log: Path, *command: str, limits: Mapping[str, float | str]) -> None:
        self.point, self.log, self.window, self.started = "", log, 0, time.time()
        program = ["from netsage_pipeline.cli import main"]
        for name, value in limits.items():
            module, _, constant = name.partition(":")
            program += [f"import netsage_pipeline.{module} as module", f"module.{constant} = {value}"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "\n".join([*program, "main()"]), *command],
                cwd=ROOT,
                env=dict(environment),
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def whole_log(self) -> str:
        return self.log.read_text("utf-8", "replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its log lines, all of which are JSON."""
        return [json.loads(line) for line in self.whole_log.splitlines()]

    def says(self, text: str) -> list[dict[str, Any]]:
        return [event for event in self.events if text in event["event"]]

    def works(self, seconds: float = 60) -> Limited:
        """Waits until it is at work."""
        wait_for(lambda: self.code is not None or '"works"' in self.whole_log, seconds)
        assert self.code is None, self.whole_log
        return self

    def tell(self, number: signal.Signals, within: float = 10) -> None:
        """Sends a signal, upon which it must end in time, with 0."""
        began = time.monotonic()
        self._process.send_signal(number)
        assert not self.lasts(within + 20), f"does not end:\n{self.said}"
        assert self.code == 0, f"ended with {self.code}:\n{self.said}"
        assert time.monotonic() - began < within, f"took {time.monotonic() - began:.1f} s:\n{self.said}"

    @property
    def resident(self) -> int:
        """Its memory, bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text("ascii").splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        return 0


class Piped(Pipeline):
    """A pipeline whose workers may have other limits, and hold flows for TIMEOUT_S."""

    def __init__(self, broker: Broker, directory: Path, *arguments: str | Path, **environment: str) -> None:
        super().__init__(broker, directory, *arguments)
        self.environment |= {"NETSAGE_INACTIVITY_TIMEOUT_S": str(TIMEOUT_S), **environment}
        self.limits: dict[str, float | str] = {}

    def begin(self, *command: str) -> Limited:
        log = self.directory / f"process-{len(self.processes) + 1}.log"
        around = surroundings(self._lookups, **self.environment)
        worker = Limited(around, log, *(command or ("run",)), *self.arguments, limits=self.limits)
        self.processes.append(worker)
        return worker

    @property
    def worker(self) -> Limited:
        worker = self.processes[-1]
        assert isinstance(worker, Limited)
        return worker

    def finished(self, seconds: float = 60) -> None:
        """Waits until all was taken, nothing is held and nothing owed any more."""

        def is_finished() -> bool:
            assert self.worker.code is None, self.worker.said
            state = self.state
            return not self.broker.count(self.input) and not state.held and not state.outbox

        wait_for(is_finished, seconds, lambda: time.sleep(0.2))


def alternating(worker: Limited, link: str) -> int:
    """How often it said that it waits for RabbitMQ and then, once each time, that it goes on; it does not wait now."""
    said = [event["event"] for event in worker.says("RabbitMQ") if event["link"] == link]
    assert said == ["waits for RabbitMQ", "goes on with RabbitMQ"] * (len(said) // 2), said
    return len(said) // 2
