"""Stage files: found by name, read as text for what they read and write, loaded by path.

A file's name holds digits (`50_asn.py`), so it is no module name: it is loaded by its path and never imported.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from netsage_pipeline.flow import Lookups, Now, Sink

_NAME = re.compile(r"\d\d_[a-z0-9_]+")
_SECTION = re.compile(r"^(Reads|Writes|Source|Drops)\b *(.*)$")
_BRACES = re.compile(r"\{([^}]*)\}")


class StageFileError(Exception):
    """A stage file cannot be used; the text is one line that says where and why."""


def load(path: Path) -> ModuleType:
    """Executes a Python file as a module named after its folder and stem. Loads each file once."""
    name = f"netsage_pipeline.by_path.{path.parent.resolve()}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            raise StageFileError(f"{path}:{error.lineno}: syntax error: {error.msg}") from None
        if isinstance(error, Exception):
            raise StageFileError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from None
        raise
    return module


class StageFile:
    """One file of stages/: its name, path, and the sections of its docstring."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem

    @cached_property
    def _tree(self) -> ast.Module:
        try:
            return ast.parse(self.path.read_bytes(), str(self.path))
        except SyntaxError as error:
            raise StageFileError(f"{self.path}:{error.lineno}: syntax error: {error.msg}") from None
        except (OSError, ValueError) as error:
            raise StageFileError(f"{self.path}: cannot be read: {error}") from None

    @cached_property
    def docstring(self) -> str:
        return ast.get_docstring(self._tree) or ""

    @cached_property
    def factory(self) -> str:
        """The name of its factory: stage, end, source or sink; "" if it has none, or if the file is no Python: loading it says so."""
        try:
            defined = {node.name for node in self._tree.body if isinstance(node, ast.FunctionDef)}
        except StageFileError:
            return ""
        return next((name for name in ("stage", "end", "source", "sink") if name in defined), "")

    def section(self, wanted: str) -> list[str]:
        """The lines of one section of the docstring, stripped."""
        lines: list[str] = []
        current = ""
        for line in self.docstring.splitlines():
            match = _SECTION.match(line)
            if match:
                current = match[1]
                line = match[2]  # noqa: PLW2901
            elif line.strip() and not line.startswith(" "):
                current = ""
            if current == wanted and line.strip():
                lines.append(line.strip())
        return lines

    @cached_property
    def reads(self) -> list[str]:
        """Names of the fields read; {src,dst} in a name stands for both."""
        return _names(" ".join(self.section("Reads")))

    @cached_property
    def writes(self) -> dict[str, str]:
        """Names of the fields written → type word and meaning."""
        written: dict[str, str] = {}
        for line in self.section("Writes"):
            name, _, meaning = line.partition("  ")
            if name != "nothing":
                written.update(dict.fromkeys(_names(name), meaning.strip()))
        return written

    @cached_property
    def module(self) -> ModuleType:
        return load(self.path)

    @property
    def is_end(self) -> bool:
        """Whether the stage works on one end of a flow (its factory is called `end`)."""
        return self.factory == "end"

    @property
    def is_io(self) -> bool:
        """Whether it is an input or an output of a chain."""
        return self.factory in ("source", "sink")

    def make(self, config: Any, lookups: Lookups, now: Now) -> Any:
        """Calls the factory, with `now` if it takes a third parameter."""
        factory = getattr(self.module, self.factory)
        takes_now = len(inspect.signature(factory).parameters) > 2
        return factory(config, lookups, now) if takes_now else factory(config, lookups)

    def open_sink(self, config: Any, fields: Callable[[], dict[str, str]]) -> Sink:
        """Calls the factory of an output, with the field table (name → type word) if it takes a second parameter."""
        factory = self.module.sink
        opened: Sink = factory(config, fields()) if len(inspect.signature(factory).parameters) > 1 else factory(config)
        return opened


def _names(text: str) -> list[str]:
    names: list[str] = []
    for part in re.split(r",\s*(?![^{]*\})", text):
        name = part.strip()
        if not name or name == "nothing":
            continue
        braces = _BRACES.search(name)
        names += [name.replace(braces[0], choice.strip()) for choice in braces[1].split(",")] if braces else [name]
    return names


def find(directories: list[Path]) -> dict[str, StageFile]:
    """All stage files of the directories by name; the last directory wins where a name is in several."""
    found = {}
    for directory in directories:
        for path in sorted(directory.glob("*.py")):
            if _NAME.fullmatch(path.stem):
                found[path.stem] = StageFile(path)
    return dict(sorted(found.items()))
