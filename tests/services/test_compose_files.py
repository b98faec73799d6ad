"""What compose itself makes of docker-compose.yml and docker-compose.shards.yml; it needs no daemon for that."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.services.conftest import absent

TOP = Path(__file__).parent.parent.parent

Services = dict[str, dict[str, Any]]


def services(directory: Path, *files: str) -> Services:
    """All services of these files, with the variables of an empty environment in their places."""
    program = shutil.which("docker-compose") or absent("docker-compose")
    (directory / ".env").touch()
    where = [
        "--project-directory",
        str(TOP),
        "--env-file",
        str(directory / ".env"),
        *(word for name in files for word in ("-f", str(TOP / name))),
    ]
    command = [program, *where, "--profile", "*", "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env={"HOME": str(directory)})
    assert not done.stderr
    found: Services = yaml.safe_load(done.stdout)["services"]
    return found


@pytest.fixture
def one(tmp_path: Path) -> Services:
    return services(tmp_path, "docker-compose.yml")


@pytest.fixture
def two(tmp_path: Path) -> Services:
    return services(tmp_path, "docker-compose.yml", "docker-compose.shards.yml")


def test_all_services_of_a_site_are_understood(one: Services) -> None:
    assert {"rabbitmq", "importer", "worker", "sink"} <= one.keys()
    assert one["worker"]["environment"]["NETSAGE_STATE"] == "/var/lib/netsage/state"
    assert one["worker"]["security_opt"] == ["no-new-privileges:true"], "what all have is merged in"


def test_with_shards_there_is_a_router_more_and_a_worker(one: Services, two: Services) -> None:
    assert two.keys() - one.keys() == {"router", "worker-1"}
    changed = {"worker", "prometheus", "doctor"}
    assert {name: two[name] for name in one.keys() - changed} == {name: one[name] for name in one.keys() - changed}


def test_workers_of_shards_differ_in_their_number_and_their_state_alone(two: Services) -> None:
    first, second = two["worker"], two["worker-1"]
    assert (first["environment"].pop("NETSAGE_SHARD"), second["environment"].pop("NETSAGE_SHARD")) == ("0", "1")
    assert (first["volumes"][0].pop("source"), second["volumes"][0].pop("source")) == ("state", "shard-1")
    assert first == second


def test_with_shards_prometheus_and_doctor_see_the_router(two: Services) -> None:
    assert [each["source"] for each in two["prometheus"]["volumes"]] == ["prometheus", str(TOP / "grafana/prometheus.shards.yml")]
    assert "router" in {each["source"] for each in two["doctor"]["volumes"]}
