"""The lookup tables of a chain: each opened once, by the file in lookups/ that is named after its kind."""

from __future__ import annotations

from pathlib import Path

from netsage_pipeline.flow import Table
from netsage_pipeline.folders import shipped
from netsage_pipeline.stagefile import load


class Nothing:
    """The table that knows nothing: stands in for a missing file, so that its stage writes what it writes for "not found"."""

    def get(self, *_key: object) -> None:
        return None


class Tables:
    """Opens tables below one directory and keeps them; `missing` and `broken` collect what was not to be had."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.missing: list[Path] = []
        self.broken: list[str] = []
        self.opened: dict[tuple[str, Path], Table] = {}

    def __call__(self, kind: str, path: Path) -> Table:
        path = self.directory / path
        key = (kind, path)
        if key not in self.opened:
            self.opened[key] = self._open(kind, path)
        return self.opened[key]

    def _open(self, kind: str, path: Path) -> Table:
        if not path.exists():
            self.missing.append(path)
            return Nothing()
        try:
            table: Table = load(shipped("lookups") / f"{kind}.py").open_table(path)
        except (OSError, ValueError) as error:
            self.broken += [f"{path}: {line}" for line in (str(error) or type(error).__name__).splitlines()]
            return Nothing()
        return table
