"""Whatever is in a flow: its bits and packets come out, are dropped, or are in the dead letters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import configured
from netsage_pipeline.deadletters import DECODE, body_of
from netsage_pipeline.flow import Flow
from tests.flows import NOW, flow
from tests.invariants import REFUSING, any_flow, body, chain_of, copy_conf, decoded, examples, through


def amount(given: Any, name: str) -> int:
    """The number of bits or packets of a flow; 0 if there is no telling."""
    value = given.get("values") if isinstance(given, dict) else None
    value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return 0
    try:
        return int(value) if not isinstance(value, str) or re.fullmatch(r"\s*[+-]?\d{1,4000}\s*", value, re.ASCII) else int(float(value))
    except (ValueError, OverflowError):
        return 0


class Account:
    """Takes messages of one flow each, and sums what went in, came out, was dropped and was refused."""

    def __init__(self, chain: Chain, flows: list[Flow]) -> None:
        self.chain = chain
        self.read: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        finished = []
        for number, each in enumerate(flows):
            given = body(each)
            before = chain.dropped.total()
            finished += chain.take(given, "test", str(number))
            for name in ("num_bits", "num_packets"):
                self.read[name] += amount(decoded(given), name)
                self.dropped[name] += amount(decoded(given), name) if chain.dropped.total() > before else 0
        self.flows = chain.enrich(finished) + chain.enrich(chain.drain())
        letters = [orjson.loads(letter) for letter in chain.dead]
        self.refused = [decoded(body_of(letter["payload"])) for letter in letters]
        self.parts = sum(max(1, each["stitched_flows"]) for each in self.flows)
        behind = [each for letter, each in zip(letters, self.refused, strict=True) if letter["stage"] > "41"]
        behind = [each for each in behind if isinstance(each, dict) and "@timestamp" in each]
        self.parts_refused = len(letters) - len(behind) + sum(max(1, each["stitched_flows"]) for each in behind)

    def check(self) -> None:
        for name in ("num_bits", "num_packets"):
            out = sum(amount(each, name) for each in self.flows)
            refused = sum(amount(each, name) for each in self.refused)
            assert self.read[name] == out + self.dropped[name] + refused, name
        unread = self.chain.refused[DECODE, "not JSON"]
        assert self.chain.read + unread == self.chain.dropped.total() + self.parts_refused + self.parts
        assert self.chain.refused.total() == len(self.refused)


@given(st.lists(any_flow(), min_size=1, max_size=8), st.sampled_from(("event", "arrival")))
@examples(250)
def test_bits_and_packets_come_out_or_are_dropped_or_dead_lettered(flows: list[Flow], clock: str) -> None:
    Account(chain_of(clock), flows).check()


@pytest.fixture(scope="session")
def refusing_behind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Chain]:
    """The shipped stages, and an operator's that refuse flows of port 2, and ends of AS2, behind stitching."""
    directory = tmp_path_factory.mktemp("operator")
    conf = directory / "conf.d"
    copy_conf(conf)
    (directory / "47_mine.py").write_text(REFUSING.format(kind="end", condition="given['asn'] == 2"))
    (directory / "92_mine.py").write_text(REFUSING.format(kind="stage", condition="given['meta']['src_port'] == 2"))
    (conf / "47_mine.toml").touch()
    (conf / "92_mine.toml").touch()
    stages = configured(conf, [folders.shipped("stages"), directory])
    return lambda: chain_of(stages=stages)


@given(flows=st.lists(any_flow(most=1), min_size=1, max_size=8), number=st.integers(1, 3))
@examples(80)
def test_what_is_refused_behind_stitching_is_in_the_sums_too(flows: list[Flow], number: int, refusing_behind: Callable[[], Chain]) -> None:
    for each in flows[::number]:
        if isinstance(each.get("meta"), dict):
            each["meta"]["src_asn"] = 2
    account = Account(refusing_behind(), flows)
    account.check()


def test_the_sums_of_stitched_flows_that_are_refused_are_in_the_dead_letters(refusing_behind: Callable[[], Chain]) -> None:
    two = [flow(meta={"src_port": 2}), flow(meta={"src_port": 2})]
    account = Account(refusing_behind(), two)
    assert account.parts_refused == 2
    assert [each["values"]["num_bits"] for each in account.refused] == [16_000]
    account.check()


@given(flows=st.lists(any_flow(), min_size=1, max_size=8), chance=st.randoms(use_true_random=False))
@examples(80)
def test_any_cut_drops_and_refuses_the_same_flows(flows: list[Flow], chance: Random) -> None:
    one_by_one, cut_up = chain_of(), chain_of()
    first = through(one_by_one, [body(each) for each in flows])
    bodies, rest = [], flows
    while rest:
        size = chance.randint(1, len(rest))
        bodies.append(body(rest[:size]))
        rest = rest[size:]
    second = through(cut_up, bodies, chance)
    assert sorted(map(repr, first)) == sorted(map(repr, second))
    for name in ("read", "dropped", "refused", "notes"):
        assert getattr(one_by_one, name) == getattr(cut_up, name)
    assert _payloads(one_by_one) == _payloads(cut_up)


def _payloads(chain: Chain) -> list[tuple[str, bytes]]:
    letters = [orjson.loads(letter) for letter in chain.dead]
    return sorted((letter["stage"], body_of(letter["payload"])) for letter in letters)


def test_a_run_writes_the_same_bytes_whatever_the_seed_of_hashes(tmp_path: Path) -> None:
    """Fields that nobody knows keep their order, in every process."""
    names = {f"field {i}": i for i in range(20)}
    dump, written = tmp_path / "dump.ndjson", []
    dump.write_bytes(orjson.dumps(flow(meta=names, values=names, tags=["a"], **names)))
    for seed in range(4):
        command = [sys.executable, "-c", "from netsage_pipeline.cli import main; main()", "replay", str(dump), "--now", str(NOW)]
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        written.append(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert written[0]
    assert len(set(written)) == 1


def test_a_part_with_which_a_sum_would_be_beyond_64_bits_is_refused_and_the_others_are_kept() -> None:
    account = Account(chain_of(), [flow(values={"num_bits": 2**62}) for _ in range(3)])
    assert [each["values"]["num_bits"] for each in account.flows] == [2**62]
    assert len(account.refused) == 2
    account.check()
