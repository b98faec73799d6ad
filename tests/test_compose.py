"""docker-compose.yml, Dockerfile and env.example say the same as the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from netsage_pipeline import folders

TOP = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((TOP / "docker-compose.yml").read_text("utf-8"))
TEXT = "\n".join(line for line in (TOP / "docker-compose.yml").read_text("utf-8").splitlines() if not line.lstrip().startswith("#"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKER = SERVICES["worker"]
DOCKERFILE = (TOP / "Dockerfile").read_text("utf-8")
RUNTIME = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]

#: Variables that neither the settings nor docker-compose.yml give a default: the code does, or nobody (the password).
BY_CODE = {"NETSAGE_LOG_LEVEL": "info", "NETSAGE_LOOKUPS": str(folders.tables()), "NETSAGE_RABBITMQ_PASSWORD": ""}

_WITH_DEFAULT = re.compile(r"\$\{(NETSAGE_[A-Z_]+):-([^{}$]*)\}")


def in_env_example() -> dict[str, str]:
    text = (TOP / "env.example").read_text("utf-8")
    return dict(re.findall(r"^#?(NETSAGE_[A-Z_]+)=(.*)$", text, re.MULTILINE))


def in_settings() -> dict[str, str]:
    """Variables of the shipped settings with their defaults."""
    texts = [path.read_text("utf-8") for path in sorted((TOP / "conf.d").rglob("*.toml"))]
    found = [each for text in texts for each in _WITH_DEFAULT.findall(text)]
    assert len(set(found)) == len(dict(found)), "one variable has two defaults"
    return dict(found)


def in_compose() -> dict[str, str]:
    return dict(_WITH_DEFAULT.findall(TEXT))


def targets(service: dict[str, Any]) -> dict[str, str]:
    """Path inside the container → what is mounted there."""
    mounts = [re.sub(r"\$\{[^}]*:-([^}]*)\}", r"\1", volume).split(":") for volume in service["volumes"]]
    return {mount[1]: mount[0] for mount in mounts}


def test_env_example_has_every_variable_with_the_default_of_the_settings_and_no_other() -> None:
    assert in_env_example() == {**BY_CODE, **in_compose(), **in_settings()}


def test_every_variable_of_the_settings_has_a_default_there() -> None:
    for path in sorted((TOP / "conf.d").rglob("*.toml")):
        text = path.read_text("utf-8")
        assert len(re.findall(r"\$\{NETSAGE_", text)) == len(_WITH_DEFAULT.findall(text)), path


def test_every_variable_in_env_example_has_a_meaning() -> None:
    blocks = [block.splitlines() for block in re.split(r"\n\n+", (TOP / "env.example").read_text("utf-8"))]
    for block in blocks:
        if any(re.match(r"#?NETSAGE_[A-Z_]+=", line) for line in block):
            assert re.match(r"# [A-Z]", block[0]), block


def test_every_variable_of_the_settings_reaches_the_worker() -> None:
    assert {*in_settings(), "NETSAGE_LOG_LEVEL", "NETSAGE_LOOKUPS"} <= set(WORKER["environment"])


def test_a_variable_that_is_handed_through_is_in_env_example() -> None:
    assert set(WORKER["environment"]) <= set(in_env_example())


def test_nothing_is_reachable_from_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") and port.count(":") == 2 for port in ports)
    assert all("network_mode" not in service and not service.get("privileged") for service in SERVICES.values())


def test_the_password_of_the_broker_is_required_and_nobody_is_a_guest() -> None:
    broker = SERVICES["rabbitmq"]["environment"]
    assert broker["RABBITMQ_DEFAULT_PASS"].startswith("${NETSAGE_RABBITMQ_PASSWORD:?")
    assert "NETSAGE_RABBITMQ_USER" in broker["RABBITMQ_DEFAULT_USER"]
    assert "guest" not in TEXT


def test_the_broker_keeps_its_data_under_a_name_that_stays() -> None:
    assert SERVICES["rabbitmq"]["hostname"] == "rabbitmq"
    assert "@rabbitmq:5672/" in WORKER["environment"]["NETSAGE_RABBITMQ_URL"]
    assert targets(SERVICES["rabbitmq"])["/var/lib/rabbitmq"] in COMPOSE["volumes"]


def test_the_worker_may_do_nothing_but_its_work() -> None:
    assert WORKER["read_only"] is True
    assert WORKER["cap_drop"] == ["ALL"]
    assert "cap_add" not in WORKER
    assert WORKER["security_opt"] == ["no-new-privileges:true"]
    assert [volume for volume in WORKER["volumes"] if not volume.endswith(":ro")] == ["state:/var/lib/netsage/state"]
    user = re.findall(r"^USER (\d+):(\d+)$", RUNTIME, re.MULTILINE)[-1]
    assert "0" not in user
    assert f"--uid {user[0]}" in RUNTIME
    assert "user" not in WORKER


def test_the_worker_waits_for_a_healthy_broker_and_has_time_to_leave() -> None:
    assert WORKER["depends_on"] == {"rabbitmq": {"condition": "service_healthy"}}
    assert (WORKER["init"], WORKER["stop_grace_period"]) == (True, "30s")


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_watched_bounded_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["mem_limit"]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["driver"] == "json-file"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_each_path_inside_the_worker_is_the_one_that_its_variable_names() -> None:
    environment, mounted = WORKER["environment"], targets(WORKER)
    assert mounted[environment["NETSAGE_STATE"]] in COMPOSE["volumes"]
    assert environment["NETSAGE_LOOKUPS"] in mounted
    assert mounted[WORKER["command"][-1]] == "./conf.d"
    assert len(mounted) == 3
    assert f"{environment['NETSAGE_STATE']}/at-work " in WORKER["healthcheck"]["test"][-1]
    for name in ("NETSAGE_STATE", "NETSAGE_LOOKUPS"):
        assert f"{name}={environment[name]}" in RUNTIME
        assert environment[name] in RUNTIME.partition("ENV ")[0]


def test_every_volume_is_used() -> None:
    used = {source for service in SERVICES.values() for source in targets(service).values()}
    assert set(COMPOSE["volumes"]) <= used


def test_the_image_has_all_that_the_wheel_is_made_of_and_no_compiler() -> None:
    copied = {name for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]}
    assert all((TOP / name).exists() for name in copied)
    wheel = (TOP / "pyproject.toml").read_text("utf-8").partition("[tool.hatch.build.targets.wheel.force-include]")[2].partition("\n[")[0]
    assert copied >= {"netsage_pipeline", "pyproject.toml", *re.findall(r'^"([^"]+)" =', wheel, re.MULTILINE)}
    ignored = (TOP / ".dockerignore").read_text("utf-8").split()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "gcc" not in RUNTIME
    assert 'ENTRYPOINT ["netsage-pipeline"]\nCMD ["run"]' in RUNTIME
