"""What all tests share: stages loaded by name, tables, and an environment without the operator's variables."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

from netsage_pipeline import folders, stagefile

CONFORMANCE = Path(__file__).parent / "conformance"


def load_stage(name: str) -> ModuleType:
    """The module of one of our stage files."""
    return stagefile.find([folders.shipped("stages")])[name].module


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("NETSAGE_") and not name.startswith("NETSAGE_TEST_"):
            monkeypatch.delenv(name)
