"""Importers that are killed at named points of their way and at any time: no flow is lost, none comes twice."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.services.rabbitmq import Broker
from tests.services.torture_import import faults_of, torture


@pytest.mark.usefixtures("collect")
def test_killed_anywhere_what_is_on_the_queue_is_what_is_in_the_files(broker: Broker, tmp_path: Path) -> None:
    seed = int(os.environ.get("NETSAGE_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"NETSAGE_TEST_SEED={seed}")
    figures = torture(broker, tmp_path, seed, kills=18)
    told = "\n".join(figures.lines())
    print(told)
    assert not faults_of(figures), told
