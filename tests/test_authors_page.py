"""What docs/authoring.md says, done as it says: every command, in order, in a fresh directory."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import orjson
import pytest

from tests.command import COMMAND, LOOKUPS, written
from tests.flows import flow

PAGE = (Path(__file__).parent.parent / "docs" / "authoring.md").read_text()


def commands() -> list[str]:
    """The commands of the page but for those of a checkout."""
    return [
        line for line in re.findall(r"^    (\S.*)$", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL), re.MULTILINE) if "make " not in line
    ]


def said(line: str) -> str:
    """The settings, and what is said to come out, stand between backticks."""
    found: list[str] = re.findall(r"`([^`\n]+)`", PAGE)
    return next(each for each in found if each.startswith(line))


class Done:
    """A directory in which all commands of the page were run, and what they printed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.printed: dict[str, str] = {}
        written(directory / "flows.ndjson", flow(meta={"src_ip": "128.101.1.1"}), flow())
        for command in commands():
            environment = {**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}", "NETSAGE_LOOKUPS": str(LOOKUPS)}
            done = subprocess.run(["bash", "-ec", command], cwd=directory, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            self.printed[command] = done.stdout
            if " stages new " in command:
                settings = directory / "my-conf.d" / "65_campus.toml"
                settings.write_text(settings.read_text() + said("by_prefix = ") + "\n")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return Done(tmp_path_factory.mktemp("author"))


def test_every_command_of_the_page_is_run(done: Done) -> None:
    words = {" ".join(command.partition("netsage-pipeline ")[2].split()[:2]) for command in done.printed if "netsage-pipeline " in command}
    assert words == {"stages new", "stages try", "check --stages", "replay flows.ndjson"}
    assert len(done.printed) == 7


def test_the_stage_that_is_shown_is_the_one_that_is_written(done: Done) -> None:
    shown = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(shown) == 1
    assert shown[0] in (done.directory / "my-stages" / "65_campus.py").read_text()


def test_trying_it_says_what_the_page_says(done: Done) -> None:
    tried = next(printed for command, printed in done.printed.items() if "stages try 65_campus" in command)
    assert tried.splitlines()[:3] == ["65_campus", f"    {said('+ meta')}", "the flow"]
    through = next(printed for command, printed in done.printed.items() if "stages try --stages" in command)
    assert f"65_campus\n    {said('+ meta')}\n70_deidentify\n" in through


def test_its_test_passes(done: Done) -> None:
    assert "3 passed" in next(printed for command, printed in done.printed.items() if "pytest" in command)


def test_a_replay_writes_what_the_page_says(done: Done) -> None:
    metas = [orjson.loads(line)["meta"] for line in (done.directory / "enriched.ndjson").read_bytes().splitlines()]
    assert [meta.get("src_campus") for meta in metas] == ["Minneapolis", None]
    assert not any("dst_campus" in meta for meta in metas)
