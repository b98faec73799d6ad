"""The README's example of a stage, its settings and its test, copied out of the README and used as it says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from netsage_pipeline import folders
from tests.command import run, written
from tests.flows import flow

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with my-stages/, my-conf.d/ and the test, as the README has them."""
    stage, settings, test = (
        next(block for block in re.findall(r"```(?:python|toml)\n(.*?)```", README.read_text(), re.DOTALL) if sign in block)
        for sign in ('"""65 campus', "campuses = {", "import load")
    )
    (tmp_path / "my-stages").mkdir()
    (tmp_path / "my-stages" / "65_campus.py").write_text(stage)
    shutil.copytree(folders.shipped("conf.d"), tmp_path / "my-conf.d")
    (tmp_path / "my-conf.d" / "65_campus.toml").write_text(settings)
    (tmp_path / "test_65_campus.py").write_text(test)
    return tmp_path


def test_the_example_writes_what_the_readme_says(site: Path) -> None:
    flows = written(site / "flows.ndjson", flow(meta={"src_ip": "128.101.1.1"}))
    result = run("replay", flows, "--stages", site / "my-stages", "--conf", site / "my-conf.d")
    meta = orjson.loads(result.out)["meta"]
    assert meta["src_campus"] == "Minneapolis"
    assert "dst_campus" not in meta


def test_the_example_test_passes(site: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout
