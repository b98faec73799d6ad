"""docker-compose.yml without Docker: the commands of its services, each a process with the environment that compose would give it."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from netsage_pipeline import folders
from tests.command import COMMAND
from tests.services.elastic import Node
from tests.services.rabbitmq import Broker, free_port, wait_for
from tests.services.worker import Process

TOP = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((TOP / "docker-compose.yml").read_text("utf-8"))

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<operator>:?-)?(?P<default>[^}]*)\}")


class Site:
    """Services on this machine. Paths of a container lie below a directory; what .env would say is `settings`."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self._directory, self._settings = directory, settings
        self.processes: dict[str, Process] = {}

    def path(self, inside: str) -> str:
        """Where a path of a container is."""
        if inside.startswith("/etc/netsage/conf.d"):
            return inside.replace("/etc/netsage/conf.d", str(folders.shipped("conf.d")))
        if inside == "/var/lib/netsage/lookups":
            return str(TOP / "demo" / "tables")
        return f"{self._directory}{inside}" if inside.startswith(("/var/lib/netsage", "/run/secrets")) else inside

    def environment(self, name: str) -> dict[str, str]:
        """What compose gives a service: of a value that is not there it takes the one of .env."""
        found: dict[str, str] = {}
        for variable, value in COMPOSE["services"][name]["environment"].items():
            if value is not None:
                found[variable] = self.path(self._replaced(str(value)))
            elif variable in self._settings:
                found[variable] = self._settings[variable]
        return found

    def _replaced(self, value: str) -> str:
        def replace(match: re.Match[str]) -> str:
            given = self._settings.get(match["name"])
            return (given or match["default"]) if match["operator"] == ":-" else match["default"] if given is None else given

        return _VARIABLE.sub(replace, value)

    def start(self, name: str) -> Process:
        service = COMPOSE["services"][name]
        arguments = [self.path(word) for word in service["command"]]
        self.processes[name] = Process({**base(), **self.environment(name)}, self._directory / f"{name}.log", *arguments)
        return self.processes[name]

    def healthy(self, name: str) -> bool:
        """What its health check says."""
        kind, *words = COMPOSE["services"][name]["healthcheck"]["test"]
        assert (kind, words[0]) == ("CMD", "netsage-pipeline")
        command = [str(COMMAND), *(self.path(word) for word in words[1:])]
        return subprocess.run(command, env={**base(), **self.environment(name)}, check=False, timeout=60).returncode == 0


def base() -> dict[str, str]:
    """The environment of a container, nearly: none of our variables from outside."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NETSAGE_")}


@pytest.fixture
def site(broker: Broker, elastic: Node, tmp_path: Path) -> Iterator[Site]:
    mine = f"site-{uuid.uuid4().hex[:8]}"
    (tmp_path / "run/secrets").mkdir(parents=True)
    (tmp_path / "run/secrets/rabbitmq_url").write_text(broker.url + "\n")
    (tmp_path / "var/lib/netsage/captures").mkdir(parents=True)
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
    assert all(process.code is None for process in site.processes.values())
    assert all(process.stop() == 0 for process in site.processes.values())
    assert not any("Traceback" in process.log.read_text("utf-8") for process in site.processes.values())
