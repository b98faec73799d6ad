"""The compose files without Docker: the commands of their services, each a process with the environment that compose would give it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from netsage_pipeline import folders
from tests.command import COMMAND
from tests.flows import flow
from tests.services import netflow
from tests.services.conftest import absent
from tests.services.elastic import Node
from tests.services.rabbitmq import Broker, free_port, wait_for
from tests.services.worker import Process

TOP = Path(__file__).parents[2]
COMPOSE, SHARDS = (yaml.safe_load((TOP / name).read_text("utf-8")) for name in ("docker-compose.yml", "docker-compose.shards.yml"))

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<operator>:?-)?(?P<default>[^}]*)\}")


def with_shards() -> dict[str, Any]:
    """The services when COMPOSE_FILE names both files, as compose merges them."""
    services = dict(COMPOSE["services"])
    for name, service in SHARDS["services"].items():
        of = COMPOSE["services"].get(service.get("extends", {}).get("service", name), {})
        services[name] = {**of, **service, "environment": {**of.get("environment", {}), **service.get("environment", {})}}
    return services


class Site:
    """Services on this machine. Paths of a container lie below a directory; what .env would say is `settings`."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self._directory, self.settings = directory, settings
        self.services: dict[str, Any] = COMPOSE["services"]
        self.processes: dict[str, Process] = {}

    def path(self, inside: str) -> str:
        """Where a path of a container is."""
        if inside.startswith("/etc/netsage/conf.d"):
            return inside.replace("/etc/netsage/conf.d", str(folders.shipped("conf.d")))
        return f"{self._directory}{inside}" if inside.startswith(("/var/lib/netsage", "/run/secrets")) else inside

    def environment(self, name: str) -> dict[str, str]:
        """What compose gives a service: of a value that is not there it takes the one of .env."""
        found: dict[str, str] = {}
        for variable, value in self.services[name]["environment"].items():
            if value is not None:
                found[variable] = self.path(self._replaced(str(value)))
            elif variable in self.settings:
                found[variable] = self.settings[variable]
        if name == "worker-1":  # The volume at this path is its own.
            found["NETSAGE_STATE"] += "-of-shard-1"
        return found

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """docker compose run --rm NAME WORDS"""
        command = [str(COMMAND), *(self.path(word) for word in words)]
        environment = {**base(), **self.environment(name)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    def _replaced(self, value: str) -> str:
        def replace(match: re.Match[str]) -> str:
            given = self.settings.get(match["name"])
            return (given or match["default"]) if match["operator"] == ":-" else match["default"] if given is None else given

        return _VARIABLE.sub(replace, value)

    def start(self, name: str) -> Process:
        arguments = [self.path(word) for word in self.services[name]["command"]]
        self.processes[name] = Process({**base(), **self.environment(name)}, self._directory / f"{name}.log", *arguments)
        return self.processes[name]

    @contextlib.contextmanager
    def collecting(self, name: str) -> Iterator[int]:
        """A collector, and the port on which it listens, on loopback."""
        service = COMPOSE["services"][name]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [*service["entrypoint"], *(self.path(word) for word in service["command"]), "-b", "127.0.0.1"]
        words[words.index("-p") + 1] = str(port)
        Path(words[words.index("-w") + 1]).mkdir(parents=True, exist_ok=True)
        collector = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=base())
        try:
            wait_for(lambda: f":{port:04X} " in Path("/proc/net/udp").read_text(), 20)
            yield port
        finally:
            collector.terminate()  # It closes its file and gives it its name.
            collector.wait(30)

    def healthy(self, name: str) -> bool:
        """What its health check says."""
        kind, program, *words = self.services[name]["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "netsage-pipeline")
        return self.run(name, *words).returncode == 0


def base() -> dict[str, str]:
    """The environment of a container, nearly: none of our variables from outside."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NETSAGE_")}


@pytest.fixture
def site(broker: Broker, elastic: Node, tmp_path: Path) -> Iterator[Site]:
    mine = f"site-{uuid.uuid4().hex[:8]}"
    (tmp_path / "run/secrets").mkdir(parents=True)
    (tmp_path / "run/secrets/rabbitmq_url").write_text(broker.url + "\n")
    (tmp_path / "run/secrets/maxmind_license_key").touch()
    (tmp_path / "var/lib/netsage/captures").mkdir(parents=True)
    shutil.copytree(TOP / "demo" / "tables", tmp_path / "var/lib/netsage/lookups")
    made = Site(
        tmp_path,
        {
            "NETSAGE_INPUT_QUEUE": f"{mine}-in",
            "NETSAGE_OUTPUT_KEY": f"{mine}-out",
            "NETSAGE_DEAD_LETTERS": f"{mine}-dead",
            "NETSAGE_SINK_DEAD_LETTERS": f"{mine}-sink-dead",
            "NETSAGE_OUTPUT_EXCHANGE": mine,
            "NETSAGE_INDEX_PREFIX": mine,
            "NETSAGE_SENSOR": "site",
            "NETSAGE_INACTIVITY_TIMEOUT_S": "20",
            "NETSAGE_ELASTICSEARCH_URL": elastic.url,  # The server of the tests has no passwords.
            "NETSAGE_ELASTICSEARCH_USER": "",
            "NETSAGE_ELASTICSEARCH_PASSWORD_FILE": "",
            **{
                f"NETSAGE_{each}METRICS": f"127.0.0.1:{free_port(5650 + 10 * number)}"
                for number, each in enumerate(("", "SINK_", "IMPORT_"))
            },
        },
    )
    try:
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
        with elastic.client() as client:
            for index in client.indices.get(index=f"{mine}-*"):
                client.indices.delete(index=index)


def test_what_an_exporter_sends_to_the_collector_arrives_in_elasticsearch(site: Site, elastic: Node) -> None:
    for program in ("nfdump", "nfcapd"):
        if shutil.which(program) is None:
            absent(program)
    site.settings |= {"NETSAGE_MIN_BYTES": "0", "NETSAGE_MIN_FILE_AGE_S": "1"}
    ended = int(time.time() * 1000) - 60_000
    sent = [
        netflow.Sent(src_port=1_024 + number, octets=1_000 + number, start_ms=ended - 5_000, end_ms=ended - number) for number in range(90)
    ]
    with site.collecting("netflow-collector") as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as exporter:
        for datagram in netflow.ipfix(sent):
            exporter.sendto(datagram, ("127.0.0.1", port))
            time.sleep(0.05)
        time.sleep(1)
    for name in ("importer", "worker", "sink"):
        site.start(name)
    prefix = site.environment("sink")["NETSAGE_INDEX_PREFIX"]
    with elastic.client() as client:

        def bits() -> float:
            client.indices.refresh(index=f"{prefix}-*")
            answer = client.search(index=f"{prefix}-*", size=0, aggs={"bits": {"sum": {"field": "values.num_bits"}}})
            return float(answer.get("aggregations", {"bits": {"value": 0}})["bits"]["value"])

        wait_for(
            lambda: bits() == 8 * sum(each.octets for each in sent), 150, lambda: [each.lasts(0.5) for each in site.processes.values()]
        )
        [bucket] = client.search(index=f"{prefix}-*", size=0, aggs={"of": {"terms": {"field": "meta.sensor_id"}}})["aggregations"]["of"][
            "buckets"
        ]
        assert (bucket["key"], bucket["doc_count"]) == ("site", len(sent))
    assert all(process.stop() == 0 for process in site.processes.values())


def test_the_updater_of_tables_says_what_has_no_address_and_goes_on(site: Site) -> None:
    updater = site.start("tables")
    wait_for(lambda: "NETSAGE_MAXMIND_ACCOUNT" in updater.said, 30)
    assert updater.lasts(0.5)
    assert updater.stop() == 0


def test_flows_of_the_demo_arrive_in_elasticsearch(site: Site, elastic: Node) -> None:
    """The services of `make up`, in the order in which compose starts them, as depends_on has it."""
    order = ["importer", "worker", "sink", "generator"]
    assert all(set(COMPOSE["services"][name]["depends_on"]) <= {"rabbitmq", "elasticsearch"} for name in order)
    for name in order:
        site.start(name)
    prefix = site.environment("sink")["NETSAGE_INDEX_PREFIX"]
    with elastic.client() as client:

        def documents() -> int:
            client.indices.refresh(index=f"{prefix}-*")
            return int(client.count(index=f"{prefix}-*")["count"])

        wait_for(lambda: documents() > 20_000, 240, lambda: [process.lasts(0.5) for process in site.processes.values()])
        answer = client.search(
            index=f"{prefix}-*",
            size=0,
            aggs={"sensors": {"terms": {"field": "meta.sensor_id"}}, "bits": {"sum": {"field": "values.num_bits"}}},
        )
        assert len(answer["aggregations"]["sensors"]["buckets"]) == 5
        assert answer["aggregations"]["bits"]["value"] > 0
    assert all(site.healthy(name) for name in ("importer", "worker", "sink"))
    doctor = site.run("doctor", *COMPOSE["services"]["doctor"]["command"])
    assert doctor.returncode == 0, doctor.stdout
    assert all(process.code is None for process in site.processes.values())
    assert all(process.stop() == 0 for process in site.processes.values())
    assert not any("Traceback" in process.log.read_text("utf-8") for process in site.processes.values())


def test_an_operator_comes_from_one_worker_to_two_and_back(site: Site, broker: Broker) -> None:  # noqa: PLR0915
    """The steps of docs/operators.md. Flows that come before a step, while nothing takes them, or behind it come out whole and once."""
    queue, output = site.settings["NETSAGE_INPUT_QUEUE"], site.settings["NETSAGE_OUTPUT_KEY"]
    conf = ["--conf", "/etc/netsage/conf.d"]
    sent: list[int] = []

    def put(number: int) -> None:
        ports = range(1_024 + len(sent), 1_024 + len(sent) + number)
        sent.extend(ports)
        at = time.time() - 60
        for end in (at + 5, at + 10):
            for first in ports[::10]:
                flows = [flow(start=end - 5, end=end, meta={"src_port": port}) for port in range(first, min(first + 10, ports.stop))]
                broker.put(queue, [orjson.dumps(flows)])

    def empty(*queues: str) -> bool:
        """Also of what a worker was given and has not acknowledged."""
        messages = dict(line.split() for line in broker.ctl("-q", "list_queues", "name", "messages").splitlines())
        return all(messages[each] == "0" for each in queues)

    def start(*names: str) -> None:
        for name in names:
            site.start(name)
        wait_for(lambda: all(site.processes[name].has_worked for name in names), 60)

    def drain(*names: str) -> None:
        for name in names:
            done = site.run(name, "ledger", "drain", *conf)
            assert done.returncode == 0, done.stderr

    def stop(*names: str) -> None:
        assert all(site.processes[name].stop() == 0 for name in names)

    broker.declare(queue)  # As an importer would: a worker that has just started may not have come to it.
    start("worker")
    put(50)
    wait_for(lambda: empty(queue), 30)
    stop("worker")
    put(50)
    drain("worker")

    site.services = with_shards()
    start("router", "worker", "worker-1")
    put(50)
    shards = [f"{queue}.0", f"{queue}.1"]
    wait_for(lambda: empty(queue), 30)
    assert all(site.healthy(name) for name in ("router", "worker", "worker-1"))
    doctor = site.run("doctor", *site.services["doctor"]["command"])
    hops = [line.split()[:3] for line in doctor.stdout.splitlines()]
    assert ["queue", "fine", f"{queue}:"] in hops
    assert [hop for hop in hops if hop[2].rstrip(":") in shards] == [["queue", "fine", f"{each}:"] for each in shards]
    assert {("router", "fine"), ("worker", "fine"), ("ledger", "fine")} <= {(hop[0], hop[1]) for hop in hops}
    stop("router")
    assert orjson.loads(site.processes["router"].said.splitlines()[-1]).items() >= {"event": "stopped", "owed": 0}.items()
    put(50)
    wait_for(lambda: empty(*shards), 30)
    stop("worker", "worker-1")
    drain("worker", "worker-1")

    site.services = COMPOSE["services"]
    start("worker")
    wait_for(lambda: empty(queue), 30)
    stop("worker")
    drain("worker")
    documents = [document for body in broker.bodies(output) for document in orjson.loads(body)]
    assert sorted(document["meta"]["src_port"] for document in documents) == sent
    assert {document["values"]["num_bits"] for document in documents} == {16_000}
    with broker.channel() as channel:
        for each in (queue, output, *shards):
            channel.queue_delete(each)
