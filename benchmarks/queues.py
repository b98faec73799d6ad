"""Queue to queue: the worker with its ledger and confirms, beside a relay that only decodes, encodes, acknowledges and publishes.

    python benchmarks/queues.py [--flows 600000] [--held 10000,100000,1000000] [--url amqp://...]

Without --url it starts a RabbitMQ node of its own, where rabbitmq-server is installed.

All take the same messages from a real RabbitMQ and publish messages of as many flows, persistent and confirmed, each in a process of its
own, one after the other, with empty queues before. The relay decodes what came, and encodes and publishes the enriched flows that the
worker made of it, so that both take in and put out the same; the plain relay publishes what came as it is. The router takes the same
messages and splits them between two queues, as in front of two workers. Of each, the first half is not counted: the worker's memory of
ends is cold then. The worker goes on with a ledger whose clock stands where the flows begin, as after an outage: so flows end while it
works, and what ends later stays held.

Then the worker again with more and more flows held, none of which ends: what a flow costs, the longest turn of the loop while a checkpoint
of all of them is written, memory, and the time to start after a kill.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pika
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import material
from netsage_pipeline import folders
from netsage_pipeline.commands.run import working
from netsage_pipeline.flow import Changes
from netsage_pipeline.rabbitmq.amqp import Consumer, Publisher
from netsage_pipeline.rabbitmq.brokers import Broker, servers
from netsage_pipeline.worker import ledger as ledgers
from netsage_pipeline.worker import run as worker
from netsage_pipeline.worker.ledger import Commit, Ledger
from netsage_pipeline.worker.run import Worker
from tests.services import rabbitmq

IN, OUT, EXCHANGE = "netsage_deidentifier_raw", "netsage_archive_input", "netsage.direct"
LIMIT = 0.33

#: With fewer flows, none of the quarter that is sent one a message ends while the worker takes them.
FEWEST = 300_000

#: The part of the flows that is not counted.
COLD = 1 / 2


class Timer:
    """Seconds and CPU seconds from the first half of the flows on."""

    def __init__(self, count: int) -> None:
        self._from, self._count = int(count * COLD), count
        self._began = self._cpu = 0.0
        self._taken = 0

    def see(self, taken: int) -> None:
        if not self._began and taken >= self._from:
            self._began, self._cpu, self._taken = time.perf_counter(), time.process_time(), taken

    def result(self) -> dict[str, float]:
        """Microseconds a flow."""
        each = 1e6 / (self._count - self._taken)
        return {"real": (time.perf_counter() - self._began) * each, "cpu": (time.process_time() - self._cpu) * each}


def publisher(url: str, exchange: str, queue: str) -> Publisher:
    return Publisher(servers(Broker(url=SecretStr(url))), "benchmark", exchange, queue, queue)


def fill(url: str, messages: list[bytes], into: str = IN) -> None:
    """Empties both queues and puts the messages into one."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for queue in (IN, OUT, f"{IN}.0", f"{IN}.1"):
            channel.queue_declare(queue, durable=True)
            channel.queue_purge(queue)
    link = publisher(url, "", into)
    for number, message in enumerate(messages):
        link.publish(number, "", into, message, str(number))
    while link.unconfirmed:
        link.turn(0.1)
    link.close()


def everything(url: str, queue: str) -> list[bytes]:
    """The bodies of all messages in a queue."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        count = channel.queue_declare(queue, passive=True).method.message_count
        return [body for _ in range(count) if (body := channel.basic_get(queue, auto_ack=True)[2]) is not None]


def relay(url: str, count: int, together: int, enriched: list[Any]) -> dict[str, float]:
    """A relay of so many flows; publishes the enriched ones, spread evenly, or what came if there are none."""
    taking = Consumer(servers(Broker(url=SecretStr(url))), "benchmark", IN, "amq.direct", IN)
    giving = publisher(url, EXCHANGE, OUT)
    while not (taking.connected and giving.connected):
        taking.turn(0.01)
        giving.turn(0.01)
    without_garbage_collection()
    timer = Timer(count)
    taken = published = 0
    while taken < count or giving.unconfirmed:
        deliveries = taking.receive(0.01)
        for body, _, _ in deliveries:
            flows = orjson.loads(body)
            taken += together
            ready = enriched[published : taken * len(enriched) // count] if enriched else [flows]
            for each in ready:
                giving.publish(0, EXCHANGE, OUT, orjson.dumps(each), str(published))
                published += 1
        if deliveries:
            taking.acknowledge(deliveries[-1].receipt)
        while giving.unconfirmed > worker.ON_THE_WAY // together:
            giving.turn(0.01)
        giving.turn(0)
        timer.see(taken)
    result = timer.result()
    taking.close()
    giving.close()
    return result


def without_garbage_collection() -> None:
    gc.collect()
    gc.freeze()
    gc.disable()


def work(count: int, conf: Path, held: int) -> dict[str, float]:
    """A worker or router, until it has taken so many flows and everything that it owes is confirmed."""
    spent = {"ledger": 0.0}

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments)
            finally:
                spent["ledger"] += time.thread_time() - began

        return timing

    if held:
        ledgers.SEGMENT_BYTES = 1_000_000  # So that a checkpoint is under way all the time.
    began = time.perf_counter()
    with working(conf, None) as work:
        assert isinstance(work, Worker)
        started = time.perf_counter() - began
        ledger: Any = work._ledger
        ledger.encode, ledger.write = timed(ledger.encode), timed(ledger.write)
        read = work.state.totals["read", "", ""]
        timer = Timer(count)
        longest, last = 0.0, time.perf_counter()

        def stop() -> bool:
            nonlocal longest, last
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
            taken = work.state.totals["read", "", ""] - read
            timer.see(taken)
            return taken >= count and not work.state.outbox

        work.run(stop)
        result = timer.result()
        return {
            **result,
            "ledger": spent["ledger"] / count * 1e6,
            "start": started,
            "longest": longest,
            "held": len(work.state.held),
            "memory": highest_memory(),
        }


def settings(together: int) -> Path:
    """The shipped settings, with so many flows in a message."""
    directory = Path(os.environ["NETSAGE_STATE"]).parent / f"conf-{together}"
    shutil.copytree(folders.shipped("conf.d"), directory, dirs_exist_ok=True)
    with (directory / "99_output_rabbitmq.toml").open("a") as file:
        file.write(f"flows_per_message = {together}\n")
    return directory


def highest_memory() -> float:
    """The most that this program took, GB. What getrusage says may be that of the process it was started from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e6


def prepare(directory: Path, start: float, held: int) -> None:
    """A ledger as a worker leaves it that is killed with so many flows held, none of which will end during the benchmark."""
    rng = random.Random(3)
    ledger = Ledger(directory)
    row = next(material.flows(material.Hosts(rng, 1_000), rng, 1, start))
    later = start + 86_400
    for _ in range(0, max(held, 1), 2_000):
        opened: dict[str, list[Any]] = {}
        for _ in range(min(2_000, held)):
            known_as = rng.randbytes(32).hex()
            row["meta"]["id"] = known_as
            first = bytes(memoryview(orjson.dumps({**row, "@ingest_time": "2026-11-20T00:00:00.000Z"})))
            opened[known_as] = [first, 1, start, start, 10**6, 10**3, int(start * 1000), int(start * 1000), later, later, 630.0, 0]
        ledger.state.held.update(opened)
        ledger.write(ledger.encode(Commit([], Changes(opened, {}, [], []), [], [], [], Counter(), start, 0.0)))
    ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=600_000, help=f"{FEWEST} or more; default: %(default)s")
    parser.add_argument("--held", default="10000,100000,1000000")
    parser.add_argument("--url", default=os.environ.get("NETSAGE_TEST_RABBITMQ_URL"))
    options = parser.parse_args()
    if options.flows < FEWEST:
        parser.error(f"--flows: {options.flows} are too few to end while the worker takes them: give {FEWEST} or more")
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        if options.url:
            compare(options, data)
            return
        if not rabbitmq.available():
            print("rabbitmq-server is not installed, or --url is missing: the worker is not measured")
            return
        (data / "rabbitmq").mkdir()
        node = rabbitmq.Broker(rabbitmq.free_port(5790), data / "rabbitmq")
        node.start()
        try:
            options.url = node.url
            compare(options, data)
        finally:
            node.kill9()


def compare(options: argparse.Namespace, data: Path) -> None:
    """Measures all, and prints it."""
    material.write_tables(data)
    rng = random.Random(2)
    start = time.time() - 2 * 86_400
    messages = material.messages(material.flows(material.Hosts(rng, 60_000), rng, options.flows, start))

    def part(name: str, count: int, together: int = 100, held: int = 0) -> dict[str, float]:
        count = count // 100 * 100
        sent = messages[: count // 100]
        if together == 1:
            sent = [orjson.dumps(flow) for message in sent for flow in orjson.loads(message)]
        fill(options.url, sent)
        state = data / f"{name}-{together}-{held}"
        environment = {**os.environ, "NETSAGE_RABBITMQ_URL": options.url, "NETSAGE_STATE": str(state), "NETSAGE_LOOKUPS": str(data)}
        environment |= {"NETSAGE_ROUTER_STATE": str(state), "NETSAGE_ROUTER_METRICS": "127.0.0.1:0"}
        numbers = [str(number) for number in (count, together, held)]
        command = [sys.executable, __file__, "--part", name, *numbers, options.url, str(data / "enriched")]
        if name == "worker":
            prepare(state, start, held)
        done = subprocess.run(command, env={**environment, "NETSAGE_LOG_LEVEL": "error"}, check=True, stdout=subprocess.PIPE)
        if name == "worker" and not held:
            (data / "enriched").write_bytes(b"\n".join(everything(options.url, OUT)))
        result: dict[str, float] = json.loads(done.stdout)
        return result

    def line(name: str, result: dict[str, float]) -> None:
        print(f"{name:<28} {1e6 / result['real']:>10,.0f} flows/s, {result['real']:5.1f} µs a flow, {result['cpu']:5.1f} µs of them CPU")

    size = sum(map(len, messages)) / options.flows
    for together, flows in ((100, options.flows), (1, options.flows // 4)):
        print(f"{flows:,} flows of {size:.0f} bytes, {together} a message")
        ours, theirs, plain = (part(name, flows, together) for name in ("worker", "relay", "plain"))
        line("worker", ours)
        line("relay, same flows out", theirs)
        line("plain relay", plain)
        same, other = theirs["real"] / ours["real"], plain["real"] / ours["real"]
        print(f"the worker's share of the relay: {same:.2f} (limit {LIMIT}), of the plain one: {other:.2f}")
        print(f"the ledger: {ours['ledger']:.1f} µs CPU a flow, {ours['ledger'] / ours['cpu']:.0%} of the worker's")
        line("router", part("router", flows, together))
    for held in map(int, options.held.split(",")) if options.held else ():
        result = part("worker", options.flows // 3, held=held)
        line(f"worker, {held:,} held", result)
        print(
            f"{'':<28} started in {result['start']:.1f} s, longest turn {result['longest'] * 1e3:.0f} ms with a checkpoint under way, "
            f"ledger {result['ledger']:.1f} µs a flow, memory {result['memory']:.2f} GB"
        )


def one_part(name: str, count: int, together: int, held: int, url: str, file: Path) -> None:
    if name in ("worker", "router"):
        result = work(count, settings(together) if name == "worker" else folders.shipped("conf.d") / "router", held)
    else:
        enriched = [orjson.loads(each) for each in file.read_bytes().split(b"\n")] if name == "relay" else []
        result = relay(url, count, together, enriched)
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part, count, together, held, url, file = sys.argv[2:]
        one_part(part, int(count), int(together), int(held), url, Path(file))
    else:
        main()
