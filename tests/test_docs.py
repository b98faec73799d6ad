"""The pages in docs/ are what the code says, and the README names only commands that there are."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from netsage_pipeline import folders
from netsage_pipeline.cli import main
from netsage_pipeline.stagefile import find
from tests.command import run

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs")
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py", directory], check=True)
    return directory


@pytest.mark.parametrize("page", ["stages.md", "fields.md", "settings.md", "metrics.md", "commands.md"])
def test_a_generated_page_is_not_stale(page: str, written: Path) -> None:
    assert (ROOT / "docs" / page).read_text() == (written / page).read_text(), "run: make docs"


@pytest.mark.parametrize("name", find([folders.shipped("stages")]))
def test_every_setting_of_a_stage_has_a_meaning(name: str) -> None:
    fields = find([folders.shipped("stages")])[name].module.Config.model_fields
    assert [setting for setting, field in fields.items() if not field.description] == []


@pytest.mark.parametrize("path", sorted(folders.shipped("conf.d").rglob("*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_setting_of_a_shipped_file_is_on_the_page_of_settings(path: Path, written: Path) -> None:
    rows = [line.split(" | ") for line in (written / "settings.md").read_text().splitlines() if line.startswith("| ")]
    there = {row[1].strip("`") for row in rows if row[0].removeprefix("| ").split()[0] == path.stem} | {"enabled"}
    given = tomllib.loads(path.read_text())
    assert {name for name in given if name not in there and name.removesuffix("_file") not in there} == set()


def test_every_command_and_option_is_on_the_page_of_commands(written: Path) -> None:
    sections = re.split(r"^## ", (written / "commands.md").read_text(), flags=re.MULTILINE)[1:]
    page = {section.partition("\n")[0]: section for section in sections}
    waiting: list[tuple[str, click.Command]] = [("netsage-pipeline", main)]
    names = []
    for path, command in waiting:
        names.append(path)
        waiting += [(f"{path} {name}", below) for name, below in getattr(command, "commands", {}).items()]
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help is not None, (path, option.name)
                row = next(line for line in page[path].splitlines() if line.startswith(f"| `{option.opts[0]}"))
                if isinstance(option.default, str | int) and option.default != "" and not option.is_flag:
                    assert f"| `{option.default}` |" in row or "the default" in row, (path, option.name)
    assert sorted(page) == sorted(names)
    assert "| `--clock [event\\|arrival]` | `event` | What stitching goes by |" in page["netsage-pipeline replay"]
    assert "| `--prefix TEXT` | required |" in page["netsage-pipeline retain"]


def test_the_files_and_folders_that_the_design_names_are_there() -> None:
    design = (ROOT / "docs" / "design.md").read_text()
    named = re.findall(r"`([a-z_0-9/]+(?:\.py|/))`", design)
    assert [name for name in named if not any((ROOT / top / name).exists() for top in (".", "netsage_pipeline"))] == []
    folders_there = {f"{path.parent.name}/" for path in (ROOT / "netsage_pipeline").glob("*/__init__.py")}
    assert folders_there <= set(named)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_only_commands_targets_and_files_that_there_are(page: Path) -> None:
    text = page.read_text()
    assert set(re.findall(r"netsage-pipeline ([a-z-]+)", text)) <= set(main.commands)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^    make ([a-z-]+)", text, re.MULTILINE)) <= targets
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_opens_with_demo_and_test_and_leads_to_every_page() -> None:
    readme = PAGES[0].read_text()
    assert re.findall(r"^    make ([a-z-]+)", readme, re.MULTILINE)[:2] == ["demo", "test"]
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


def test_the_chain_for_capture_files_into_an_index_keeps_its_guard_against_full_addresses(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "elasticsearch.md").read_text()
    commands = re.findall(r"^    (.*my-conf\.d.*)", page, re.MULTILINE)
    script = "\n".join(each for each in commands if "replay" not in each).replace("my-conf.d", str(tmp_path / "conf"))
    subprocess.run(["sh", "-ec", script], cwd=ROOT, check=True)
    assert run("check", "--conf", tmp_path / "conf").code == 0
    (tmp_path / "conf" / "70_deidentify.toml").unlink()
    assert "the output could see full addresses: 70_deidentify" in run("check", "--conf", tmp_path / "conf").err
