"""Workers that are killed at named points of their loop and at any time: nothing is lost, nothing counted twice."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.services.rabbitmq import Broker
from tests.services.torture import faults_of, torture


def test_killed_anywhere_at_any_time_what_comes_out_is_what_was_published(broker: Broker, tmp_path: Path) -> None:
    seed = int(os.environ.get("NETSAGE_TEST_SEED") or random.SystemRandom().randrange(1 << 30))
    print(f"NETSAGE_TEST_SEED={seed}")
    figures = torture(broker, tmp_path, seed, kills=44, flows=100_000)
    told = "\n".join(figures.lines())
    print(told)
    assert figures.flows >= 100_000
    assert not faults_of(figures), told


def test_without_faults_nothing_is_repeated(broker: Broker, tmp_path: Path) -> None:
    figures = torture(broker, tmp_path, 7, kills=0, flows=20_000)
    assert not figures.faults
    assert (figures.repeats, figures.letter_repeats, figures.redelivered) == (0, 0, 0)
    assert figures.of_more_parts > 1_000
