"""systemd/: what the units say is what the commands and the settings take."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from netsage_pipeline.cli import main
from tests.test_compose import SERVICES, in_env_example

UNITS = sorted((Path(__file__).parent.parent / "systemd").glob("*.service"))

#: Unit → the service of docker-compose.yml that is the same.
SAME = {f"netsage-{name}": name for name in ("worker", "sink", "importer", "tables", "router")} | {"netsage-worker@": "worker"}

#: What a unit for one shard of several is given besides.
OF_A_SHARD = ["NETSAGE_SHARD=%i", "NETSAGE_STATE=/var/lib/netsage/shard-%i", "NETSAGE_METRICS=127.0.0.1:976%i"]

#: In a container it would see the container's connections.
PROBE = "netsage-probe"


def of(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text("utf-8"), re.MULTILINE)


def test_there_is_a_unit_for_each_service_of_ours() -> None:
    assert {unit.stem for unit in UNITS} == {*SAME, PROBE}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_runs_what_its_container_runs(unit: Path) -> None:
    wanted, needed = ["run", "--conf", "/etc/netsage/conf.d/probe"], ["elasticsearch_password"]
    if unit.stem != PROBE:
        service = SERVICES[SAME[unit.stem]]
        wanted, needed = service["command"], service["secrets"]
    [command] = of(unit, "ExecStart")
    of_a_shard = ["/usr/bin/env", *OF_A_SHARD] if unit.stem.endswith("@") else []
    assert command.split() == [*of_a_shard, "/opt/netsage/bin/netsage-pipeline", *wanted]
    assert CliRunner().invoke(main, [*wanted, "--help"]).exit_code == 0
    secrets = {each.partition(":")[0]: each.partition(":")[2] for each in of(unit, "LoadCredential")}
    assert set(secrets) == set(needed)
    assert all(path == f"/etc/netsage/secrets/{name}" for name, path in secrets.items())
    for assignment in of(unit, "Environment"):
        variable, _, path = assignment.partition("=")
        assert variable in in_env_example()
        assert path.removeprefix("%d/") in secrets


def test_routers_and_a_worker_without_a_shard_never_run_together_and_shards_share_no_state() -> None:
    units = {unit.stem: unit for unit in UNITS}
    assert of(units["netsage-router"], "Conflicts") == ["netsage-worker.service"]
    assert of(units["netsage-worker@"], "StateDirectory") == ["netsage/shard-%i"]
    assert {each.partition("=")[0] for each in OF_A_SHARD} <= in_env_example().keys()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_every_line(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze: absent")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=60)
    assert [line for line in done.stderr.splitlines() if "netsage-pipeline is not executable" not in line and unit.stem in line] == []
