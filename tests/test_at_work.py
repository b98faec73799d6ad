"""What is at work outlives the process, and only what kills it is blamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsage_pipeline.worker.at_work import DEATHS, AtWork

NAMES = [f"{number:032x}" for number in range(8)]


def died(path: Path) -> AtWork:
    """The mark as the next process finds it: nobody closed the one before, which says nothing when it is closed."""
    return AtWork(path)


class Death(Exception):
    """The process dies here."""


def life(path: Path, batch: list[str], poison: set[str], dies: Callable[[], bool] = lambda: False) -> tuple[list[str], list[str]]:
    """One process that takes a batch as the worker does. Gives what was worked on, and what was blamed."""
    at_work = AtWork(path)
    try:
        worked, blamed = [], []
        at_work.begin(batch)
        suspicious = not at_work.suspects.isdisjoint(batch)
        for one in batch:
            if dies():
                raise Death
            if suspicious and not at_work.alone(one):
                blamed.append(one)
                continue
            if one in poison:
                raise Death
            if suspicious:
                at_work.survived(one)
            worked.append(one)
        if dies():
            raise Death
        at_work.done(batch)
        return worked, blamed
    finally:
        at_work.close()


def test_what_was_at_work_when_the_process_died_is_suspected(tmp_path: Path) -> None:
    at_work = AtWork(tmp_path / "at-work")
    assert at_work.suspects == set()
    at_work.begin(NAMES[:3])
    assert at_work.suspects == set()
    after = died(tmp_path / "at-work")
    assert after.suspects == set(NAMES[:3])
    after.begin(NAMES[:2])
    after.done(NAMES[:2])
    assert after.suspects == {NAMES[2]}
    after.begin(NAMES[2:])
    after.done(NAMES[2:])
    assert after.suspects == set()
    assert died(tmp_path / "at-work").suspects == set()


def test_a_shorter_batch_behind_a_longer_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    at_work = AtWork(tmp_path / "at-work")
    at_work.begin(f"{number:032x}" for number in range(10_000))
    at_work.begin(NAMES[:1])
    assert died(tmp_path / "at-work").suspects == {NAMES[0]}
    at_work.done(NAMES[:1])
    assert died(tmp_path / "at-work").suspects == set()


def test_what_was_alone_in_three_deaths_is_blamed_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "at-work"
    AtWork(path).begin(NAMES)
    for deaths in range(DEATHS):
        at_work = died(path)
        at_work.begin(NAMES)
        assert at_work.deaths[NAMES[3]] == deaths
        assert at_work.alone(NAMES[2])
        at_work.survived(NAMES[2])
        assert at_work.alone(NAMES[3])
    at_work = died(path)
    at_work.begin(NAMES)
    assert [at_work.alone(one) for one in NAMES] == [one != NAMES[3] for one in NAMES]
    at_work.done(NAMES)
    assert not at_work.deaths
    assert died(path).alone(NAMES[3])


def test_what_survived_once_is_free_of_its_deaths(tmp_path: Path) -> None:
    path = tmp_path / "at-work"
    AtWork(path).begin(NAMES)
    for round_ in range(3 * DEATHS):
        at_work = died(path)
        at_work.begin(NAMES)
        assert at_work.alone(NAMES[0])
        if round_ % DEATHS == DEATHS - 1:
            at_work.survived(NAMES[0])


def test_who_dies_while_nobody_is_alone_blames_nobody(tmp_path: Path) -> None:
    path = tmp_path / "at-work"
    for _ in range(5 * DEATHS):
        at_work = died(path)
        at_work.begin(NAMES)
        assert +at_work.deaths == {}
    assert all(at_work.alone(one) for one in NAMES)


def test_deaths_in_a_batch_that_was_not_suspected_do_not_forget_those_that_were_counted(tmp_path: Path) -> None:
    path = tmp_path / "at-work"
    AtWork(path).begin(["poison"])
    for _ in range(DEATHS):
        at_work = died(path)
        at_work.begin(["poison"])
        assert at_work.alone("poison")
        del at_work
        at_work = died(path)  # Killed at something else, before the poison's turn.
        at_work.begin(["other", "poison"])
    assert not died(path).alone("poison")


@given(
    poison=st.sets(st.sampled_from(NAMES), max_size=3), batch=st.lists(st.sampled_from(NAMES), unique=True, min_size=1), seed=st.integers(0)
)
@settings(max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_poisonous_are_blamed_in_finite_deaths_and_the_innocent_never(
    tmp_path: Path, poison: set[str], batch: list[str], seed: int
) -> None:
    path, random = tmp_path / f"{seed}", Random(seed)
    path.unlink(missing_ok=True)
    deaths = killed = 0

    def dies() -> bool:
        nonlocal killed
        if killed < 10 and random.random() < 0.1:
            killed += 1
            return True
        return False

    while True:
        try:
            worked, blamed = life(path, batch, poison, dies)
            break
        except Death:
            deaths += 1
            assert deaths <= 1 + DEATHS * len(poison & set(batch)) + killed
    assert blamed == [one for one in batch if one in poison] or not poison & set(batch)
    assert set(blamed) == poison & set(batch)
    assert worked == [one for one in batch if one not in poison]
    path.unlink()


def test_two_poisonous_ones_in_a_batch_are_both_blamed(tmp_path: Path) -> None:
    deaths = 0
    while True:
        try:
            worked, blamed = life(tmp_path / "at-work", NAMES, {NAMES[1], NAMES[6]})
            break
        except Death:
            deaths += 1
    assert (blamed, deaths) == ([NAMES[1], NAMES[6]], 1 + 2 * DEATHS)
    assert worked == [one for one in NAMES if one not in blamed]


DAMAGES = [
    b"",
    b"\n",
    b"{",
    b"\xff\xfe" * 100_000,
    b'{"one":',
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'{"one":[],"deaths":[]}\n',
    b'{"one":{},"deaths":{"a":"b","c":null,"d":[]}}\n',
    b'{"one":null,"deaths":7}\n',
    b'{"one":["a"],"deaths":{}}\n',
    b'{"one":7,"deaths":{}}\n',
    bytes(200_000),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("batch", [None, b"", b"7\n", b'{"a":1}\n', b'["a",["b"],{},null,1]\n', b'["a"\n', b"\x00\xff"])
def test_a_damaged_mark_is_no_error(tmp_path: Path, damage: bytes, batch: bytes | None) -> None:
    path = tmp_path / "at-work"
    path.write_bytes(damage if batch is None else damage.ljust(1 << 16)[: 1 << 16] + batch)
    at_work = AtWork(path)
    assert at_work.suspects <= {"a"}
    at_work.begin(["a", "b"])
    assert at_work.alone("a")
    after = died(path)
    assert after.suspects == {"a", "b"}
    assert after.deaths["a"] == 1
    assert after.deaths["b"] == 0


def test_a_mark_that_cannot_be_written_stops_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = AtWork(tmp_path / "at-work")

    def fail(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    at_work.begin(NAMES)
    assert at_work.alone(NAMES[0])
    at_work.survived(NAMES[0])
    at_work.done(NAMES)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "at-work"
    at_work = AtWork(path)
    assert path.stat().st_mode & 0o777 == 0o600
    at_work.close()
