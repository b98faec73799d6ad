"""Real programs and services: their tests are skipped where one is absent, and fail there under CI=true."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.services import netflow

#: The function netflow.collect.
Collect = Callable[..., Path]


def absent(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: absent, but CI must test with it", pytrace=False)
    pytest.skip(f"{what}: absent")


@pytest.fixture(scope="session")
def collect() -> Collect:
    """Sends datagrams to a real nfcapd and gives the file that it wrote, for a real nfdump."""
    for program in ("nfdump", "nfcapd"):
        if shutil.which(program) is None:
            absent(program)
    return netflow.collect
