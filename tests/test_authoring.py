"""stages new: what it writes is well at once, wherever it is written; nothing is overwritten; a bad name is a line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from netsage_pipeline import folders
from tests.command import LOOKUPS, run, stage_file
from tests.flows import flow

ROOT = Path(__file__).parent.parent
END, FLOW = "65_campus", "12_kind_of_flow"
OURS = ["--stages", "my-stages", "--conf", "my-conf.d"]
PROGRAM = [sys.executable, "-c", "from netsage_pipeline.cli import main; main()"]


def called(*command: str | Path, cwd: Path, stdin: str = "", **environment: str) -> str:
    """What a program prints that ends well."""
    given = {**os.environ, "NETSAGE_LOOKUPS": str(LOOKUPS), **environment}
    done = subprocess.run(command, cwd=cwd, env=given, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pytest_in(directory: Path, *paths: str, **environment: str) -> str:
    return called(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths, cwd=directory, **environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory far from a checkout, with a stage of each kind."""
    directory = tmp_path_factory.mktemp("site")
    for name, kind in ((END, ["--end"]), (FLOW, [])):
        called(*PROGRAM, "stages", "new", name, *kind, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The package as a wheel has it, its folders inside, and as a checkout has it."""
    wheel, checkout = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("checkout")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    inside = pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    ignored = shutil.ignore_patterns("__pycache__")
    for directory in (wheel, checkout):
        shutil.copytree(ROOT / "netsage_pipeline", directory / "netsage_pipeline", ignore=ignored)
    for name, to in inside.items():
        shutil.copytree(ROOT / name, wheel / to, ignore=ignored)
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", checkout)
    return {"wheel": wheel, "checkout": checkout}


def test_the_next_steps_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("stages", "new", END, "--end", "--stages", "mine", "--conf", "conf")
    assert outcome.out.decode().splitlines() == ["conf", f"mine/{END}.py", f"conf/{END}.toml", f"mine/test_{END}.py"]
    assert outcome.err.splitlines() == [
        f"try it: netsage-pipeline stages try {END} --stages mine --conf conf < flow.json",
        "test it: python -m pytest mine",
    ]
    assert run("stages", "new", FLOW, "--stages", "mine", "--conf", "conf").out.decode().splitlines()[0] == f"mine/{FLOW}.py"


def test_its_own_tests_pass(site: Path) -> None:
    assert "6 passed" in pytest_in(site, "my-stages")


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", "--strict", "my-stages"]])
def test_linters_find_nothing(command: list[str], site: Path) -> None:
    called(sys.executable, "-m", *command, cwd=site)


def test_check_finds_nothing_and_the_stages_run(site: Path) -> None:
    assert "no errors" in called(*PROGRAM, "check", *OURS, cwd=site)
    listed = called(*PROGRAM, "stages", *OURS, cwd=site).splitlines()
    assert f"{END:<22} on   end     my-stages/{END}.py" in listed
    assert f"{FLOW:<22} on   flow    my-stages/{FLOW}.py" in listed


def test_the_fields_that_it_writes_are_known(site: Path) -> None:
    listed = called(*PROGRAM, "fields", "--stages", "my-stages", cwd=site)
    assert [line.split()[:3] for line in listed.splitlines() if END in line] == [["meta.{src,dst}_campus", END, "text,"]]
    assert [line.split()[:3] for line in listed.splitlines() if FLOW in line] == [["meta.kind_of_flow", FLOW, "text,"]]


def test_the_settings_in_comments_are_settings(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site / "my-conf.d", tmp_path / "my-conf.d")
    for name in (END, FLOW):
        path = tmp_path / "my-conf.d" / f"{name}.toml"
        first, *others = path.read_text().splitlines()
        path.write_text("\n".join(line.removeprefix("# ") for line in others))
        assert first.endswith(f"netsage-pipeline config {name}")
    shown = called(*PROGRAM, "config", "--stages", site / "my-stages", "--conf", "my-conf.d", cwd=tmp_path)
    assert shown.count("from settings file; default {}; Prefix → campus") == 1
    assert shown.count("from settings file; default []; Protocols whose flows are dropped") == 1


def test_a_wheel_writes_the_same(copies: Mapping[str, Path], site: Path, tmp_path: Path) -> None:
    wheel = {"PYTHONPATH": str(copies["wheel"])}
    where = [sys.executable, "-c", "import netsage_pipeline; print(netsage_pipeline.__file__)"]
    assert called(*where, cwd=tmp_path, **wheel).startswith(str(copies["wheel"]))
    for name, kind in ((END, ["--end"]), (FLOW, [])):
        called(*PROGRAM, "stages", "new", name, *kind, cwd=tmp_path, **wheel)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert len(written) > 6
    assert written == {path: (site / path).read_bytes() for path in written}
    assert "no errors" in called(*PROGRAM, "check", *OURS, cwd=tmp_path, **wheel)
    assert "6 passed" in pytest_in(tmp_path, "my-stages", **wheel)


def test_in_a_checkout_it_is_written_among_ours(copies: Mapping[str, Path]) -> None:
    checkout = copies["checkout"]
    ours = {"PYTHONPATH": str(checkout)}
    for name, kind in ((END, ["--end"]), (FLOW, [])):
        printed = called(*PROGRAM, "stages", "new", name, *kind, cwd=checkout, **ours)
        assert printed.splitlines() == [f"stages/{name}.py", f"conf.d/{name}.toml", f"tests/stages/test_{name}.py"]
    assert "no errors" in called(*PROGRAM, "check", cwd=checkout, **ours)
    assert called(*PROGRAM, "stages", "try", END, cwd=checkout, stdin=json.dumps(flow()), **ours).startswith(f"{END}\n    nothing\n")
    files = [f"{place}{name}.py" for name in (END, FLOW) for place in ("stages/", "tests/stages/test_")]
    called(sys.executable, "-m", "ruff", "check", *files, cwd=checkout)
    called(sys.executable, "-m", "ruff", "format", "--check", *files, cwd=checkout)
    called(sys.executable, "-m", "mypy", *files, cwd=checkout)
    assert "6 passed" in pytest_in(checkout, "tests/stages", **ours)
    assert not (checkout / "my-stages").exists()


@pytest.mark.parametrize("there", [f"my-stages/{END}.py", f"my-conf.d/{END}.toml", f"my-stages/test_{END}.py"])
def test_nothing_is_overwritten(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(there).parent.mkdir()
    Path(there).write_text("mine")
    outcome = run("stages", "new", END, "--end")
    assert (outcome.code, outcome.err) == (2, f"{there}: is there already: choose another name\n")
    assert [str(path) for path in Path().rglob("*.*") if path.is_file()] == [there]
    assert Path(there).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "kind", "wrong"),
    [
        pytest.param("campus", [], "'campus' is no name of a stage: write two digits, _ and a name", id="no number"),
        pytest.param("65_Campus", [], "'65_Campus' is no name of a stage", id="a capital"),
        pytest.param("65_../x", [], "'65_../x' is no name of a stage", id="a path"),
        pytest.param("65_", [], "'65_' is no name of a stage", id="a number alone"),
        pytest.param("65_x\n", [], "'65_x\\n' is no name of a stage", id="a line break"),
        pytest.param("01_x", [], "01_x: 01 is for inputs, 99 for outputs", id="the number of inputs"),
        pytest.param("99_x", ["--end"], "99_x: 01 is for inputs, 99 for outputs", id="the number of outputs"),
        pytest.param("41_x", ["--end"], "41_x: ends are there, with their addresses, from 42 to 69", id="before the ends"),
        pytest.param("70_x", ["--end"], "70_x: ends are there, with their addresses, from 42 to 69", id="where they are masked"),
        pytest.param("50_asn", ["--end"], f"{folders.shipped('stages')}/50_asn.py: is there already", id="one of ours"),
        pytest.param("65_ip", ["--end"], "65_ip: would write the field 'ip' of an end", id="what an end begins with"),
        pytest.param("65_side", ["--end"], "65_side: would write the field 'side' of an end", id="what no flow has"),
        pytest.param("65_tags", ["--end"], "65_tags: would write the field 'tags' of an end", id="what stages share"),
        pytest.param("65_notes", ["--end"], "65_notes: would write the field 'notes' of an end", id="what is counted"),
        pytest.param("65_organization", ["--end"], "65_organization: would write the field 'organization' of an end", id="ours"),
        pytest.param("12_sensor_id", [], "12_sensor_id: would write the field meta.sensor_id", id="an exporter's field"),
        pytest.param("12_src", [], "12_src: would write the field meta.src, which", id="an object with fields in it"),
    ],
)
def test_a_bad_name_is_a_line(name: str, kind: list[str], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("stages", "new", name, *kind)
    assert outcome.code == 2
    assert outcome.err.startswith(wrong)
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_field_of_another_stage_of_theirs_is_taken(tmp_path: Path) -> None:
    stages = stage_file(tmp_path / "mine", "61_other", "pass", writes="campus  text", kind="end")
    outcome = run("stages", "new", END, "--end", "--stages", stages, "--conf", tmp_path / "conf")
    assert outcome.err == f"{END}: would write the field 'campus' of an end, which is there already: choose another name\n"


def test_a_link_to_nothing_is_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-conf.d").mkdir()
    Path(f"my-conf.d/{END}.toml").symlink_to(tmp_path / "elsewhere")
    outcome = run("stages", "new", END, "--end")
    assert (outcome.code, outcome.err) == (2, f"my-conf.d/{END}.toml: is there already: choose another name\n")
    assert [path.name for path in tmp_path.iterdir()] == ["my-conf.d"]


@pytest.mark.parametrize("option", ["--stages", "--conf"])
def test_what_cannot_be_written_is_a_line(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    outcome = run("stages", "new", END, option, "file")
    assert outcome.code == 2
    assert outcome.err.startswith("file")
    assert "cannot be written" in outcome.err
    assert outcome.err.count("\n") == 1


def test_the_directories_stand_behind_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("stages", "--conf", "x", "new", END)
    assert outcome.code == 2
    assert outcome.err.endswith("Error: write --conf and --stages behind new\n")
    assert list(tmp_path.iterdir()) == []
