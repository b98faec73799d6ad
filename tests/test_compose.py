"""docker-compose.yml, docker-compose.shards.yml, Dockerfile and env.example say the same as the settings."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from netsage_pipeline import folders

TOP = Path(__file__).parent.parent
FILES = ("docker-compose.yml", "docker-compose.shards.yml")
COMPOSE, SHARDS = (yaml.safe_load((TOP / name).read_text("utf-8")) for name in FILES)
TEXT = "\n".join(line for name in FILES for line in (TOP / name).read_text("utf-8").splitlines() if not line.lstrip().startswith("#"))
ROUTER = SHARDS["services"]["router"]
SERVICES: dict[str, dict[str, Any]] = {**COMPOSE["services"], "router": ROUTER}
VOLUMES = {**COMPOSE["volumes"], **SHARDS["volumes"]}

#: Service of ours with a chain → its directory, the variable with the directory of its state, and those of what else it mounts.
CHAINS = {
    "worker": ("conf.d", "NETSAGE_STATE", ["NETSAGE_LOOKUPS"]),
    "sink": ("conf.d/sink", "NETSAGE_SINK_STATE", []),
    "importer": ("conf.d/import", "NETSAGE_IMPORT_STATE", ["NETSAGE_NFCAPD_DIR"]),
    "router": ("conf.d/router", "NETSAGE_ROUTER_STATE", []),
}

#: All of ours.
OURS = [*CHAINS, "tables", "generator", "netflow-collector", "sflow-collector", "doctor"]

#: Services of which a health check would know no more than whether they run.
UNWATCHED = {"tables", "generator"}

DOCKERFILE = (TOP / "Dockerfile").read_text("utf-8")
RUNTIME = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]

#: Variables that neither the settings nor docker-compose.yml give a default: the code does.
BY_CODE = {"NETSAGE_LOG_LEVEL": "info", "NETSAGE_LOOKUPS": str(folders.tables())}

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


@pytest.mark.parametrize("name", [*CHAINS, "tables"])
def test_every_variable_of_its_settings_reaches_a_service_and_no_other(name: str) -> None:
    chain, _, others = CHAINS.get(name, ("conf.d/lookups", "", ["NETSAGE_LOOKUPS"]))
    assert {*in_settings(chain), "NETSAGE_LOG_LEVEL", *others} == set(SERVICES[name]["environment"])


def test_a_variable_that_is_handed_through_is_in_env_example() -> None:
    assert all(set(SERVICES[name].get("environment", {})) <= set(in_env_example()) for name in OURS)


def test_the_file_is_one_of_compose() -> None:
    """The schema is that of the Compose Specification (Apache-2.0), from compose-go 2.16.2."""
    for each in (COMPOSE, SHARDS):
        jsonschema.validate(each, json.loads((TOP / "tests/data/compose-spec.json").read_text("utf-8")))


def test_nothing_is_reachable_from_other_machines() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.replace("${NETSAGE_COLLECTOR_ADDRESS:-127.0.0.1}", "127.0.0.1").startswith("127.0.0.1:") for port in ports)
    assert all("network_mode" not in service and not service.get("privileged") for service in SERVICES.values())
    assert "docker.sock" not in TEXT


def test_passwords_are_in_files_that_make_secrets_makes_and_nobody_is_a_guest(tmp_path: Path) -> None:
    files = {name: Path(secret["file"]) for name, secret in COMPOSE["secrets"].items()}
    assert all(file == Path("secrets") / name for name, file in files.items())
    shutil.copy(TOP / "Makefile", tmp_path)
    for _ in range(2):  # The second time changes nothing.
        subprocess.run(["make", "-s", "secrets"], cwd=tmp_path, check=True, timeout=60)
    made = {path.name: path.read_text("utf-8") for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == set(files)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    password = re.fullmatch(r"default_user = netsage\ndefault_pass = ([0-9a-f]{48})\n", made["rabbitmq_user"])
    assert password is not None
    assert made["rabbitmq_url"] == f"amqp://netsage:{password[1]}@rabbitmq:5672/\n"
    assert re.fullmatch("[0-9a-f]{48}", made["elasticsearch_password"])
    assert len(set(made.values())) == len(made)
    used = {
        secret if isinstance(secret, str) else secret["source"] for service in SERVICES.values() for secret in service.get("secrets", [])
    }
    assert used == set(files)
    assert "guest" not in TEXT
    assert not re.search(r"(PASSWORD|_PASS|KEY)\b(?!_)[^\n]*:-", TEXT), "a password with a default"


def test_the_broker_keeps_its_data_under_a_name_that_stays() -> None:
    assert SERVICES["rabbitmq"]["hostname"] == "rabbitmq"
    assert targets(SERVICES["rabbitmq"])["/var/lib/rabbitmq"] in COMPOSE["volumes"]


def test_elasticsearch_has_a_password_and_keeps_its_data() -> None:
    service = SERVICES["elasticsearch"]
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
    user = re.findall(r"^USER (\d+):(\d+)$", RUNTIME, re.MULTILINE)[-1]
    assert "0" not in user
    assert f"--uid {user[0]}" in RUNTIME
    assert "user" not in service


def test_a_service_of_ours_waits_for_healthy_servers_and_has_time_to_leave() -> None:
    healthy = {"condition": "service_healthy"}
    assert all(SERVICES[name]["depends_on"] == {"rabbitmq": healthy} for name in ("worker", "importer", "generator", "router"))
    assert SERVICES["sink"]["depends_on"] == {"rabbitmq": healthy, "elasticsearch": {**healthy, "required": False}}
    assert all((SERVICES[name]["init"], SERVICES[name]["stop_grace_period"]) == (True, "30s") for name in OURS)


def test_the_doctor_sees_all_that_the_chains_see_and_changes_nothing() -> None:
    doctor = SERVICES["doctor"]
    for name in CHAINS.keys() - {"router"}:
        assert SERVICES[name]["environment"].items() <= doctor["environment"].items()
        assert set(SERVICES[name]["secrets"]) <= set(doctor["secrets"])
        assert targets(SERVICES[name]).items() <= targets(doctor).items()
    assert all(volume.endswith(":ro") for volume in doctor["volumes"])
    assert doctor["restart"] == "no"


def test_profiles_are_those_that_the_file_and_env_example_name() -> None:
    services = COMPOSE["services"]
    profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
    head = (TOP / "docker-compose.yml").read_text("utf-8").partition("\nname:")[0]
    assert set(re.findall(r"^#     (\w+)   +\S", head, re.MULTILINE)) == profiles
    [line] = re.findall(r"^COMPOSE_PROFILES=(.*)$", (TOP / "env.example").read_text("utf-8"), re.MULTILINE)
    assert set(line.split(",")) <= profiles
    up = re.findall(r"--profile (\w+)", (TOP / "Makefile").read_text("utf-8"))
    assert set(up) <= profiles
    assert [name for name, service in services.items() if not service.get("profiles")] == [
        "rabbitmq",
        "importer",
        "worker",
        "sink",
        "tables",
    ]


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"doctor"}))
def test_each_service_is_watched_bounded_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert ("healthcheck" in service) == (name not in UNWATCHED)
    assert "--version" not in service.get("healthcheck", {}).get("test", []), "it says nothing of the process"
    assert service["mem_limit"]
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["driver"] == "json-file"
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}


def test_make_up_waits_for_no_health_check_that_comes_late() -> None:
    """The first one comes when an interval is over, and `up --wait` waits for it."""
    [up] = re.findall(r"^SITE := (.*)$", (TOP / "Makefile").read_text("utf-8"), re.MULTILINE)
    profiles = set(re.findall(r"--profile (\w+)", up))
    started = [service for service in SERVICES.values() if not service.get("profiles") or profiles & {*service["profiles"]}]
    assert {service["healthcheck"]["interval"] for service in started if "healthcheck" in service} == {"15s", "30s"}


@pytest.mark.parametrize("name", CHAINS)
def test_each_path_inside_a_service_is_the_one_that_its_variable_names(name: str) -> None:
    chain, state, others = CHAINS[name]
    environment, mounted = SERVICES[name]["environment"], targets(SERVICES[name])
    assert mounted[environment[state]] in VOLUMES
    assert set(mounted) >= {environment[state], *(environment[other] for other in others), "/etc/netsage/conf.d"}
    assert mounted["/etc/netsage/conf.d"] == "./conf.d"
    assert SERVICES[name]["command"] == ["run", "--conf", f"/etc/netsage/{chain}"]
    assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "netsage-pipeline", "health", "--conf", f"/etc/netsage/{chain}"]
    for variable in (state, *others):
        assert f"{variable}={environment[variable]}" in RUNTIME
        assert environment[variable] in RUNTIME.partition("ENV ")[0]


def test_a_chain_serves_its_metrics_where_prometheus_asks_for_them() -> None:
    served = {}
    for name in CHAINS:
        [address] = [str(value) for variable, value in SERVICES[name]["environment"].items() if variable.endswith("METRICS")]
        served[name] = f"{name}:{address.rpartition(':')[2].rstrip('}')}"
    routers = served.pop("router")
    asked, asked_with_shards = (
        yaml.safe_load((TOP / "grafana" / name).read_text("utf-8")) for name in ("prometheus.yml", "prometheus.shards.yml")
    )
    assert targets_by_chain(asked) == {name: [target] for name, target in served.items()}
    workers = [served["worker"].replace("worker", name) for name in shards()]
    assert targets_by_chain(asked_with_shards) == {**targets_by_chain(asked), "router": [routers], "worker": workers}
    assert {**asked, "scrape_configs": None} == {**asked_with_shards, "scrape_configs": None}
    assert targets(SHARDS["services"]["prometheus"])["/etc/prometheus/prometheus.yml"] == "./grafana/prometheus.shards.yml"


def targets_by_chain(settings: dict[str, Any]) -> dict[str, list[str]]:
    [job] = settings["scrape_configs"]
    assert job["job_name"] == "netsage"
    return {each["labels"]["chain"]: each["targets"] for each in job["static_configs"]}


def shards() -> dict[str, str]:
    """The workers of docker-compose.shards.yml with the numbers of their shards."""
    return {name: service["environment"]["NETSAGE_SHARD"] for name, service in SHARDS["services"].items() if name.startswith("worker")}


def test_each_shard_has_one_worker_with_a_state_of_its_own_and_none_is_left_without_a_shard() -> None:
    number = ROUTER["environment"]["NETSAGE_SHARDS"]
    assert shards() == {"worker" if shard == 0 else f"worker-{shard}": str(shard) for shard in range(int(number))}
    for name, shard in shards().items():
        if name != "worker":
            service = dict(SHARDS["services"][name])
            assert service.pop("extends") == {"file": "docker-compose.yml", "service": "worker"}
            assert service == {"environment": {"NETSAGE_SHARD": shard}, "volumes": [f"shard-{shard}:/var/lib/netsage/state"]}
    doctor = SHARDS["services"]["doctor"]
    assert doctor["command"] == ["doctor", "--conf", "/etc/netsage/conf.d/router", *COMPOSE["services"]["doctor"]["command"][1:]]
    seen = {**COMPOSE["services"]["doctor"]["environment"], **doctor["environment"]}
    assert {**ROUTER["environment"], "NETSAGE_SHARD": "0"}.items() <= seen.items()
    assert doctor["volumes"] == ["router:/var/lib/netsage/router:ro"]


def test_every_volume_is_used() -> None:
    services = [*SERVICES.values(), *SHARDS["services"].values()]
    assert set(VOLUMES) <= {source for service in services if "volumes" in service for source in targets(service).values()}


def test_the_image_has_all_that_the_wheel_is_made_of_and_no_compiler() -> None:
    copied = {name for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]}
    assert all((TOP / name).exists() for name in copied)
    wheel = (TOP / "pyproject.toml").read_text("utf-8").partition("[tool.hatch.build.targets.wheel.force-include]")[2].partition("\n[")[0]
    assert copied >= {"netsage_pipeline", "pyproject.toml", *re.findall(r'^"([^"]+)" =', wheel, re.MULTILINE)}
    ignored = (TOP / ".dockerignore").read_text("utf-8").split()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "gcc" not in RUNTIME
    assert 'ENTRYPOINT ["netsage-pipeline"]\nCMD ["run"]' in RUNTIME
