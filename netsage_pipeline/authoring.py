"""A new stage: its file, settings and test, made of those in new_stage/, in which NN is its number and something its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from netsage_pipeline.config import SettingsError
from netsage_pipeline.ends import GIVEN, meta_name
from netsage_pipeline.fields import known
from netsage_pipeline.folders import shipped
from netsage_pipeline.stagefile import find

_NAME = re.compile(r"(\d\d)_([a-z0-9][a-z0-9_]*)")

#: Linters take our package for a stranger's anywhere but in a checkout, and sort its imports so.
_OURS_BESIDE_OTHERS = re.compile(r"(from pydantic import Field\n)\n((?:from netsage_pipeline.+\n)+)")

#: Numbers from the first end stage of ours up to the one that masks addresses.
_ENDS = ("42", "69")


class Place(NamedTuple):
    """Where a new stage is written."""

    stages: Path
    conf: Path
    tests: Path

    @property
    def options(self) -> str:
        """What commands are given to find it."""
        return "" if self.tests != self.stages else f" --stages {self.stages} --conf {self.conf}"


def place_of(stages: Path | None, conf: Path | None) -> Place:
    """Among ours where the current directory is a checkout and neither directory is given, else in an operator's directories."""
    if stages is None and conf is None and Path.cwd() == shipped("stages").parent.resolve():
        return Place(Path("stages"), Path("conf.d"), Path("tests/stages"))
    stages = stages or Path("my-stages")
    return Place(stages, conf or Path("my-conf.d"), stages)


def written(name: str, place: Place, *, is_end: bool) -> Iterator[Path]:
    """Writes the files of a stage; gives the path of each. SettingsError if the name is none for a stage, or something is there already."""
    number, field = _parts(name, is_end=is_end)
    _refuse_known(name, field, place, is_end=is_end)
    kind = "end" if is_end else "stage"
    stage, settings = place.stages / f"{name}.py", place.conf / f"{name}.toml"
    test = place.tests / f"test_{name}.py"
    there = [f"{path}: is there already: choose another name" for path in (stage, settings, test) if path.exists() or path.is_symlink()]
    if there:
        raise SettingsError(there)
    try:
        if not place.conf.is_dir():
            place.conf.mkdir(parents=True)
            for ours in sorted(shipped("conf.d").glob("*.toml")):
                (place.conf / ours.name).write_bytes(ours.read_bytes())
            yield place.conf
        for path, template in ((stage, f"{kind}.py"), (settings, f"{kind}.toml"), (test, f"test_{kind}.py")):
            text = (shipped("new_stage") / template).read_text("utf-8").replace("NN", number).replace("something", field)
            if place.tests == place.stages:
                text = _OURS_BESIDE_OTHERS.sub(r"\2\1", text)
            else:
                text = text.replace(f'Path(__file__).with_name("{name}.py")', f'Path(__file__).parents[2] / "stages" / "{name}.py"')
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            yield path
    except OSError as error:
        raise SettingsError([f"{error.filename}: cannot be written: {error.strerror}"]) from None


def _parts(name: str, *, is_end: bool) -> tuple[str, str]:
    """Number and name. SettingsError if no stage can be called so."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise SettingsError([f"{name!r} is no name of a stage: write two digits, _ and a name of a-z, 0-9 and _, such as 65_campus"])
    number = match[1]
    if number in ("01", "99"):
        raise SettingsError([f"{name}: 01 is for inputs, 99 for outputs: choose a number between them"])
    if is_end and not _ENDS[0] <= number <= _ENDS[1]:
        raise SettingsError([f"{name}: ends are there, with their addresses, from {_ENDS[0]} to {_ENDS[1]}: choose a number between them"])
    return number, match[2]


def _refuse_known(name: str, field: str, place: Place, *, is_end: bool) -> None:
    """SettingsError if there is a stage of that name, or the field that the new stage would write."""
    files = find([shipped("stages"), place.stages])
    if name in files:
        raise SettingsError([f"{files[name].path}: is there already: choose another name"])
    where = meta_name(field) if is_end else f"meta.{field}"
    writes = (where or "").replace("{side}", "src")
    if not writes or (is_end and field in GIVEN) or any(f"{each}.".startswith(f"{writes}.") for each in known(files.values())):
        what = f"the field '{field}' of an end" if is_end else f"the field {where}"
        raise SettingsError([f"{name}: would write {what}, which is there already: choose another name"])
