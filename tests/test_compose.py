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

#: Service of ours → its chain, the variable with its directory, and what else it mounts.
OURS = {"worker": ("conf.d", "NETSAGE_STATE", ["NETSAGE_LOOKUPS"]), "sink": ("conf.d/sink", "NETSAGE_SINK_STATE", [])}
DOCKERFILE = (TOP / "Dockerfile").read_text("utf-8")
RUNTIME = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]

#: Variables that neither the settings nor docker-compose.yml give a default: the code does, or nobody (the password).
BY_CODE = {"NETSAGE_LOG_LEVEL": "info", "NETSAGE_LOOKUPS": str(folders.tables()), "NETSAGE_RABBITMQ_PASSWORD": ""}

_WITH_DEFAULT = re.compile(r"\$\{(NETSAGE_[A-Z_]+):-([^{}$]*)\}")


def in_env_example() -> dict[str, str]:
    text = (TOP / "env.example").read_text("utf-8")
    return dict(re.findall(r"^#?(NETSAGE_[A-Z_]+)=(.*)$", text, re.MULTILINE))


def in_settings(chain: str = "") -> dict[str, str]:
    """Variables of the shipped settings with their defaults; of one chain, or of all."""
    paths = (TOP / chain).glob("*.toml") if chain else (TOP / "conf.d").rglob("*.toml")
    texts = [path.read_text("utf-8") for path in sorted(paths)]
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


@pytest.mark.parametrize("name", OURS)
def test_every_variable_of_its_settings_reaches_a_service_and_no_other(name: str) -> None:
    chain, _, others = OURS[name]
    assert {*in_settings(chain), "NETSAGE_LOG_LEVEL", *others} == set(SERVICES[name]["environment"])


def test_a_variable_that_is_handed_through_is_in_env_example() -> None:
    assert all(set(SERVICES[name]["environment"]) <= set(in_env_example()) for name in OURS)


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


def test_elasticsearch_has_a_password_that_is_required_and_keeps_its_data() -> None:
    service = SERVICES["elasticsearch"]
    assert service["environment"]["ELASTIC_PASSWORD"].startswith("${NETSAGE_ELASTICSEARCH_PASSWORD:?")
    assert "xpack.security.enabled" not in service["environment"]
    assert targets(service)["/usr/share/elasticsearch/data"] in COMPOSE["volumes"]
    assert "://elasticsearch:9200" in SERVICES["sink"]["environment"]["NETSAGE_ELASTICSEARCH_URL"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_may_do_nothing_but_its_work(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert len([volume for volume in service["volumes"] if not volume.endswith(":ro")]) == 1
    user = re.findall(r"^USER (\d+):(\d+)$", RUNTIME, re.MULTILINE)[-1]
    assert "0" not in user
    assert f"--uid {user[0]}" in RUNTIME
    assert "user" not in service


def test_a_service_of_ours_waits_for_healthy_servers_and_has_time_to_leave() -> None:
    healthy = {"condition": "service_healthy"}
    assert WORKER["depends_on"] == {"rabbitmq": healthy}
    assert SERVICES["sink"]["depends_on"] == {"rabbitmq": healthy, "elasticsearch": healthy}
    assert all((SERVICES[name]["init"], SERVICES[name]["stop_grace_period"]) == (True, "30s") for name in OURS)


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_watched_bounded_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"]
    assert service["mem_limit"]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["driver"] == "json-file"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize("name", OURS)
def test_each_path_inside_a_service_is_the_one_that_its_variable_names(name: str) -> None:
    chain, state, others = OURS[name]
    environment, mounted = SERVICES[name]["environment"], targets(SERVICES[name])
    assert mounted[environment[state]] in COMPOSE["volumes"]
    assert set(mounted) == {environment[state], *(environment[other] for other in others), "/etc/netsage/conf.d"}
    assert mounted["/etc/netsage/conf.d"] == "./conf.d"
    assert SERVICES[name]["command"][-1] == f"/etc/netsage/{chain}"
    assert f"{environment[state]}/at-work " in SERVICES[name]["healthcheck"]["test"][-1]
    for variable in (state, *others):
        assert f"{variable}={environment[variable]}" in RUNTIME
        assert environment[variable] in RUNTIME.partition("ENV ")[0]


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
