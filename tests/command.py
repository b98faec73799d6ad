"""Running netsage-pipeline in tests: in this process or as the real command, and what an operator gives it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from netsage_pipeline import folders
from netsage_pipeline.cli import main
from tests.conftest import CONFORMANCE

LOOKUPS = CONFORMANCE / "lookups"
COMMAND = Path(sys.executable).with_name("netsage-pipeline")

#: What differs between two runs without --now.
OF_THE_RUN = ("@ingest_time", "@timestamp", "@exit_time", "@processing_time")

_COUNT = re.compile(r"(?P<word>\S.{13}|\s{14}) +(?P<count>[\d,]+)  (?P<what>.*)")


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    out: bytes
    err: str

    @property
    def flows(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def said(self) -> list[str]:
        """What stands in front of the summary, but for the warning about the member lists, which LOOKUPS has none of."""
        return [
            line
            for line in self.err.partition("\nread  ")[0].splitlines()
            if "/members: no such table" not in line and line[:6] != "read  "
        ]

    @property
    def summary(self) -> dict[str, int]:
        """Counts by their word and, where a reason or a remark has a line of its own, by that."""
        found = {}
        for line in self.err.splitlines():
            match = _COUNT.fullmatch(f"{line}  ")
            if match:
                word, what = match["word"].strip(), match["what"].strip()
                found[what if not word or word in ("noted", "skipped") else word] = int(match["count"].replace(",", ""))
        return found


def run(*arguments: str | Path, stdin: bytes = b"", lookups: Path = LOOKUPS, **environment: str) -> Outcome:
    """Runs the command in this process."""
    given = [str(argument) for argument in arguments]
    result = CliRunner().invoke(main, given, input=stdin, env={"NETSAGE_LOOKUPS": str(lookups), **environment})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout_bytes, result.stderr)


def surroundings(lookups: Path = LOOKUPS, **environment: str) -> dict[str, str]:
    """The environment of a command in a process of its own; its output is buffered, as it is by default."""
    chains = ("", "_SINK", "_IMPORT", "_PROBE", "_ROUTER")
    ports = {f"NETSAGE{chain}_METRICS": "127.0.0.1:0" for chain in chains}
    return {**os.environ, "PYTHONUNBUFFERED": "", "NETSAGE_LOOKUPS": str(lookups), **ports, **environment}


def run_real(*arguments: str | Path, stdin: bytes = b"", lookups: Path = LOOKUPS, **environment: str) -> Outcome:
    """Runs the installed command in a process of its own."""
    result = subprocess.run(
        [COMMAND, *arguments],
        input=stdin,
        env=surroundings(lookups, **environment),
        capture_output=True,
        check=False,
    )
    return Outcome(result.returncode, result.stdout, result.stderr.decode())


def written(path: Path, *messages: Any) -> Path:
    """A file of these messages, one a line; bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines(messages))
    return path


def lines(messages: Iterable[Any]) -> bytes:
    return b"".join((message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n" for message in messages)


def letters(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def conf_with(directory: Path, changes: Mapping[str, str | None]) -> Path:
    """A copy of our settings in which files are replaced or, None, left out."""
    copy = directory / "conf.d"
    shutil.copytree(folders.shipped("conf.d"), copy)
    for name, text in changes.items():
        if text is None:
            (copy / f"{name}.toml").unlink()
        else:
            (copy / f"{name}.toml").write_text(text, "utf-8")
    return copy


def tables_with(directory: Path, changes: Mapping[str, bytes | None]) -> Path:
    """A copy of the conformance tables in which files are replaced or, None, left out."""
    copy = directory / "tables"
    shutil.copytree(LOOKUPS, copy)
    (copy / "members").mkdir()
    for name, content in changes.items():
        if content is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(content)
    return copy


def stage_file(directory: Path, name: str, body: str, *, reads: str = "nothing", writes: str = "nothing", kind: str = "stage") -> Path:
    """An operator's stage file; `body` is what its process does with `flow` or `end`."""
    directory.mkdir(parents=True, exist_ok=True)
    argument = "end" if kind == "end" else "flow"
    inner = "\n".join(f"        {line}" for line in body.splitlines())
    (directory / f"{name}.py").write_text(
        f'''"""{name.replace("_", " ", 1)}: an operator's own.

Reads   {reads}
Writes  {writes}
Source  nothing
Drops   nothing
"""

from netsage_pipeline.config import Settings


class Config(Settings):
    label: str = "mine"


def {kind}(config, lookups):
    def process({argument}):
{inner}

    return process
''',
        "utf-8",
    )
    return directory
