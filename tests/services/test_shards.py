"""Routers and a worker for each shard: killed at any time nothing is lost or counted twice, and what comes out is what one worker makes."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pika
import pytest

from netsage_pipeline import folders
from netsage_pipeline.worker.ledger import State, recovered
from netsage_pipeline.worker.run import BLAMED, key_of
from tests.command import OF_THE_RUN, stage_file, surroundings
from tests.flows import MISSING, flow
from tests.services.oracle import TIMEOUT_S, Message, Oracle, Stream
from tests.services.rabbitmq import Broker, wait_for
from tests.services.torture import Publisher
from tests.services.worker import POINTS, ROUTER_POINTS, Process, hits

ROUTER = folders.shipped("conf.d") / "router"
SHARDS = 2

#: Points of a worker at which it dies here; all of them: test_kills.py.
WORKER_POINTS = ("decoded", "after the commit", "acknowledged", "partly confirmed")

#: Seconds for a process to come to its point.
PATIENCE_S = 10


class Place:
    """A place at which one process runs after the other."""

    def __init__(self, name: str, directory: Path, environment: dict[str, str], *command: str) -> None:
        self.name = name
        self._directory = directory
        self.environment, self._command = environment, command
        self.processes: list[Process] = []

    @property
    def process(self) -> Process:
        return self.processes[-1]

    def start(self, point: str = "", nth: int = 1) -> Process:
        log = self._directory / f"{self.name}-{len(self.processes) + 1}.log"
        report = self._directory / "hits"
        self.processes.append(Process(self.environment, log, "run", *self._command, point=point, nth=nth, report=report))
        return self.process

    def works(self) -> None:
        wait_for(lambda: self.process.has_worked or not self.process.lasts(0.05), 60)
        assert self.process.code is None, self.process.said

    def stop(self) -> None:
        self.works()
        assert self.process.stop() == 0, self.process.said

    def command(self, *words: str) -> str:
        """Another command with the same settings; what it said."""
        process = Process(self.environment, self._directory / f"{self.name}-{'-'.join(words)}.log", *words)
        assert not process.lasts(120), process.said
        assert process.code == 0, process.said
        return process.said


class Site:
    """Two routers at one queue, and a worker for each shard, with an output of its own, so that it is known who made a document."""

    def __init__(self, broker: Broker, directory: Path, *router: str | Path, **environment: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        tag = f"shards-{time.time_ns() % 10**12}"
        self.broker, self.directory = broker, directory
        self.input, self.output, self.dead = f"{tag}-in", f"{tag}-out", f"{tag}-dead"
        self.exchange = f"{tag}-exchange"
        given = surroundings() | {
            "NETSAGE_RABBITMQ_URL": broker.url,
            "NETSAGE_INPUT_QUEUE": self.input,
            "NETSAGE_DEAD_LETTERS": self.dead,
            "NETSAGE_OUTPUT_EXCHANGE": self.exchange,
            "NETSAGE_SHARDS": str(SHARDS),
            **environment,
        }
        command = [str(word) for word in router or ("--conf", ROUTER)]
        self.routers = [
            Place(f"router-{each}", directory, {**given, "NETSAGE_ROUTER_STATE": str(directory / f"router-{each}")}, *command)
            for each in range(2)
        ]
        self.workers = [
            Place(
                f"worker-{each}",
                directory,
                {
                    **given,
                    "NETSAGE_SHARD": str(each),
                    "NETSAGE_STATE": str(directory / f"worker-{each}"),
                    "NETSAGE_OUTPUT_KEY": self.outputs[each],
                },
            )
            for each in range(SHARDS)
        ]
        broker.declare(self.input)

    @property
    def outputs(self) -> list[str]:
        return [f"{self.output}.{shard}" for shard in range(SHARDS)]

    @property
    def shards(self) -> list[str]:
        return [f"{self.input}.{shard}" for shard in range(SHARDS)]

    @property
    def places(self) -> list[Place]:
        return [*self.routers, *self.workers]

    def start(self) -> None:
        for place in self.places:
            place.start()

    def finish(self) -> None:
        """Lets what runs take all that was published, ends it, and drains the ledgers."""
        self._until_empty(self.routers, [self.input])
        self._until_empty(self.workers, self.shards)
        for worker in self.workers:
            worker.command("ledger", "drain")

    def _until_empty(self, places: list[Place], queues: list[str]) -> None:
        empty_since = time.monotonic()

        def is_empty() -> bool:
            nonlocal empty_since
            for place in places:
                assert place.process.lasts(0.1), place.process.said
            if any(map(self.broker.count, queues)):
                empty_since = time.monotonic()
            return time.monotonic() - empty_since > 2  # They may have begun with what is not in the queue any more.

        for _ in range(10):
            wait_for(is_empty, 120)
            for place in places:
                place.stop()
            if not any(map(self.broker.count, queues)):  # Else one gave back what it had not begun with.
                return
            for place in places:
                place.start()
        raise AssertionError("messages are left")

    def states(self) -> list[State]:
        return [recovered(self.directory / f"worker-{shard}", touch=False)[0] for shard in range(SHARDS)]

    def letters(self) -> Iterator[tuple[bytes, str, str]]:
        """Dead letters, with their ids and what they must say of where they came from."""
        for queue, source in ((self.dead, self.input), *((f"{self.dead}.{shard}", f"{self.input}.{shard}") for shard in range(SHARDS))):
            for properties, body in self._taken(queue):
                yield body, properties.message_id or "", source

    def _taken(self, queue: str) -> list[tuple[pika.BasicProperties, bytes]]:
        self.broker.declare(queue)
        return self.broker.take(queue)

    def end(self) -> None:
        for place in self.places:
            if place.processes and place.process.code is None:
                place.process.kill()
        with self.broker.channel() as channel:
            for shard in range(SHARDS):
                for queue in (self.input, self.dead, self.output):
                    channel.queue_delete(f"{queue}.{shard}")
            for queue in (self.input, self.dead):
                channel.queue_delete(queue)


@pytest.fixture
def site(broker: Broker, tmp_path: Path) -> Iterator[Site]:
    made = Site(broker, tmp_path / "site", NETSAGE_INACTIVITY_TIMEOUT_S=str(TIMEOUT_S))
    yield made
    made.end()


def test_routers_and_workers_killed_at_any_time_count_everything_once(site: Site) -> None:  # noqa: PLR0915
    seed = int(os.environ.get("NETSAGE_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"NETSAGE_TEST_SEED={seed}")
    chance = random.Random(seed)
    plan = [(place, point) for place in site.routers for point in (*ROUTER_POINTS, "", "", "")]
    plan += [(place, point) for place in site.workers for point in (*WORKER_POINTS, "", "")]
    chance.shuffle(plan)
    flows = 24_000
    stream = Stream(seed, time.time() - 1_900, 500)
    oracle = Oracle(stream.ends, stream.addresses, site.directory)
    publisher = Publisher(site.broker.url, site.input, stream, oracle, flows, len(plan), 500)
    site.start()
    publisher.start()
    for place, point in plan:
        place.process.kill()
        process = place.start(point, chance.randint(1, min(POINTS[point], 4)) if point else 1)
        if point:
            process.lasts(PATIENCE_S)
        else:
            process.lasts(chance.uniform(0, 2.5))
        process.kill()
        assert process.code == -9, process.said
        place.start()
        publisher.period += 1
        assert publisher.error is None, publisher.error
    publisher.hurry.set()
    publisher.join(120)
    assert not publisher.is_alive()
    site.finish()

    made_by: list[set[str]] = []
    for queue in site.outputs:
        bodies = site.broker.bodies(queue)
        made_by.append({each["meta"]["id"] for body in bodies for each in orjson.loads(body)})
        for body in bodies:
            oracle.take(body)
    for body, message_id, source in site.letters():
        oracle.take_letter(body, message_id, source)
    assert oracle.judge() == []
    assert all(len(each) > 1_000 for each in made_by)
    assert not made_by[0] & made_by[1]

    totals = sum((state.totals for state in site.states()), Counter[tuple[str, str, str]]())
    repeated = totals.pop(("repeated", "", ""), 0)
    read = sum(len(known.parts) for known in oracle.known.values())
    refused = sum(each.stage == "40_aggregation" for each in oracle.bad.values())
    assert totals["read", "", ""] == read + refused
    assert totals["written", "", ""] == oracle.distinct
    assert not any(state.held or state.outbox for state in site.states())

    killed = Counter(hit.point for hit in hits(site.directory / "hits"))
    spread = oracle.share_of_ids(3, 2)
    print(f"{oracle.flows:,} flows in {oracle.messages:,} messages; {2 * len(plan)} kills, {killed.total()} of them at {dict(killed)}")
    print(f"{repeated} messages repeated, {oracle.sent_twice} sent twice; {oracle.distinct:,} documents, {oracle.seen:,} with repeats")
    assert oracle.flows >= flows
    assert spread > 0.2
    assert oracle.stitched() > 1_000
    assert oracle.letters > 20
    assert killed.keys() >= {"published", "partly confirmed", "confirmed"}
    assert repeated > SHARDS * oracle.sent_twice, "no router was killed between publishing and acknowledging: nothing was tested"


def test_what_comes_out_is_what_one_worker_makes(broker: Broker, tmp_path: Path) -> None:
    stream = Stream(11, time.time() - 1_900, 400)
    messages = [stream.message(0) for _ in range(800)]
    site = Site(broker, tmp_path / "site")
    one = Site(broker, tmp_path / "one")
    alone = Place("alone", one.directory, {**one.workers[0].environment, "NETSAGE_SHARD": ""})
    try:
        _publish(broker, site.input, messages)
        _publish(broker, one.input, messages)
        site.start()
        site.finish()
        alone.start()
        one._until_empty([alone], [one.input])
        alone.command("ledger", "drain")
        split = [each for queue in site.outputs for each in _documents(broker, queue)]
        whole = _documents(broker, one.outputs[0])
        assert len(whole) > 3_000
        assert sorted(split) == sorted(whole)
        assert _refused(site) == _refused(one) != Counter()
        flows = sum(each.flows for each in messages)
        totals = [site.states(), [recovered(one.directory / "worker-0", touch=False)[0]]]
        parts = [sum(state.totals["enriched", "", ""] for state in states) for states in totals]
        assert parts == [len(whole), len(whole)]
        assert all(state.totals["read", "", ""] > flows / 4 for state in totals[0])
    finally:
        if alone.processes and alone.process.code is None:
            alone.process.kill()
        site.end()
        one.end()


def test_a_message_becomes_one_for_each_shard_however_long_it_is_and_comes_again_as_the_same(broker: Broker, tmp_path: Path) -> None:
    now = time.time()
    flows = [flow(start=now - 20, end=now - 10, meta={"src_port": 1 + port % 40, "instance_id": str(port)}) for port in range(600)]
    private = flow(start=now - 20, end=now - 10, meta={"src_ip": "10.1.2.3"})
    given = [orjson.dumps(each) for each in (flows[:500], [], [private], flows[500], flows[501:])]
    site = Site(broker, tmp_path / "site")
    try:
        with broker.channel() as channel:
            for number, body in enumerate([*given, *given]):
                named = pika.BasicProperties(delivery_mode=2, message_id=f"message-{number % len(given)}" if number % len(given) else None)
                channel.basic_publish("", site.input, body, named)
        for router in site.routers:
            router.start()
        site._until_empty(site.routers, [site.input])
        taken = [(shard, *each) for shard, queue in enumerate(site.shards) for each in broker.take(queue)]
        came = [(shard, properties.message_id or "", body) for shard, properties, body in taken]
        ids = {known_as for _, known_as, _ in came}
        keys = [key_of(body, f"message-{number}" if number else "").hex() for number, body in enumerate(given)]
        once = {(shard, known_as): _without_time(body) for shard, known_as, body in came}
        assert all(_without_time(body) == once[shard, known_as] for shard, known_as, body in came)
        single = {known_as for known_as in ids if known_as.startswith(keys[3])}
        assert len(single) == 1
        assert ids == {f"{key}/{shard}" for key in (keys[0], keys[4]) for shard in range(SHARDS)} | single
        for key, wanted in ((keys[0], flows[:500]), (keys[4], flows[501:])):
            numbers = [[int(each["meta"]["instance_id"]) for each in once[shard, f"{key}/{shard}"]] for shard in range(SHARDS)]
            assert all(part == sorted(part) for part in numbers)
            assert sorted(numbers[0] + numbers[1]) == [int(each["meta"]["instance_id"]) for each in wanted]
    finally:
        site.end()


def test_a_dead_letter_of_a_shard_comes_back_to_its_worker(broker: Broker, tmp_path: Path) -> None:
    site = Site(broker, tmp_path / "site")
    now = time.time()
    bad = flow(start=now - 20, end=now - 10, values={"num_packets": MISSING})
    try:
        broker.put(site.input, [orjson.dumps([bad])])
        site.start()
        site._until_empty(site.routers, [site.input])
        site._until_empty(site.workers, site.shards)
        (shard,) = (shard for shard, state in enumerate(site.states()) if state.totals["read", "", ""])
        said = site.workers[shard].command("dead-letters", "replay")
        assert said == f"1 dead letters were put on {site.shards[shard]}\n"
        site.workers[shard].start()
        site._until_empty([site.workers[shard]], site.shards)
        assert site.states()[shard].totals["refused", "40_aggregation", "values.num_packets: missing"] == 2
    finally:
        site.end()


def test_a_flow_that_kills_routers_is_found_and_its_neighbours_come_through(broker: Broker, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.mkdir()
    for file in ROUTER.glob("*.toml"):
        (conf / file.name).write_bytes(file.read_bytes())
    (conf / "12_bad.toml").touch()
    kill = "if flow['meta'].get('src_port') == 37:\n    import os\n    os.kill(os.getpid(), 9)\nreturn flow"
    stages = stage_file(tmp_path / "stages", "12_bad", kill, reads="meta.src_port")
    site = Site(broker, tmp_path / "site", "--conf", conf, "--stages", stages)
    now = time.time()
    ports = range(100)
    flows = [flow(start=now - 20, end=now - 10, meta={"flow_type": "tstat", "src_port": port}) for port in ports]
    broker.put(site.input, [orjson.dumps(flows[:60]), orjson.dumps(flows[60:])])
    deaths = 0
    try:
        site.start()
        until = time.monotonic() + 90
        broker.declare(site.dead)
        while not broker.count(site.dead):
            assert time.monotonic() < until, [router.process.said for router in site.routers]
            for router in site.routers:
                if not router.process.lasts(0.1):
                    deaths += 1
                    router.start()
        assert 4 <= deaths <= 12  # Each of the two blames nobody but what it died of itself.
        site.finish()
        came = [each["meta"]["src_port"] for queue in site.outputs for body in broker.bodies(queue) for each in orjson.loads(body)]
        assert sorted(came) == [port for port in ports if port != 37]
        letters = [orjson.loads(body) for body, _, _ in site.letters()]
        assert [(each["reason"], each["payload"]["meta"]["src_port"], each["source"]) for each in letters] == [(BLAMED, 37, site.input)]
    finally:
        site.end()


def _publish(broker: Broker, queue: str, messages: list[Message]) -> None:
    with broker.channel() as channel:
        channel.confirm_delivery()
        for each in messages:
            channel.basic_publish("", queue, each.body, pika.BasicProperties(delivery_mode=2, message_id=each.message_id or None))


def _documents(broker: Broker, queue: str) -> list[bytes]:
    """The documents in a queue but for the times of the run."""
    return [
        orjson.dumps({name: value for name, value in document.items() if name not in OF_THE_RUN}, option=orjson.OPT_SORT_KEYS)
        for body in broker.bodies(queue)
        for document in orjson.loads(body)
    ]


def _without_time(body: bytes) -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "@ingest_time"} for each in orjson.loads(body)]


def _refused(site: Site) -> Counter[tuple[Any, ...]]:
    """Dead letters by stage and reason; one that was repeated, because a router that was told to stop gave its message back, once."""
    letters = {message_id: orjson.loads(body) for body, message_id, _ in site.letters()}
    return Counter((each["stage"], each["reason"]) for each in letters.values())
