"""40 aggregation in a worker: killed anywhere and gone on with what the ledger kept, it finishes the same flows."""

from __future__ import annotations

import copy
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsage_pipeline.flow import Changes, Finished, Flow, Now
from netsage_pipeline.times import NewestEnd
from netsage_pipeline.worker.ledger import State
from tests.conftest import load_stage
from tests.flows import NOW, flow, nothing

aggregation = load_stage("40_aggregation")

CLOCKS = pytest.mark.parametrize("clock", ["arrival", "event"])
SETTINGS = {"inactivity_timeout_s": 60, "timeout_s": 300, "lateness_s": 30, "inactivity_timeout_by_sensor_s": {"slow": 120}}


def part(flow_id: str, start: float, length: float = 5.0, flow_type: str = "netflow") -> Flow:
    meta = {"id": flow_id, "flow_type": flow_type, "sensor_id": "slow" if flow_id < "c" else "sensor"}
    times = {"start": NOW + start, "end": NOW + start + length, "@ingest_time": "x"}
    return flow(meta=meta, values={"num_bits": 100, "num_packets": 7}, **times)


class Life:
    """A stitching object that may die, and the ledger's state, which is the only thing that outlives it."""

    def __init__(self, clock: str, at_once: int = 5_000) -> None:
        self.at_once = at_once
        self.now = Now(NOW, clock=clock)
        self.config = aggregation.Config(**SETTINGS)
        self.stored = State()
        self.begin()

    def begin(self) -> None:
        """As the worker does at every start: what the ledger kept is then the stage's own."""
        kept = State()
        kept.apply(stored_and_read({"held": self.stored.held, "stitching": self.stored.stitching}))
        self.stage = aggregation.stage(self.config, nothing, self.now)
        self.stage.restore(kept.held, kept.stitching)

    def commit(self) -> Changes:
        changes: Changes = self.stage.changes()
        record = {"opened": changes.opened, "grown": changes.grown, "ended": changes.ended, "stitching": changes.state}
        self.stored.apply(stored_and_read(record))
        return changes

    def take(self, *parts: Flow) -> list[Finished]:
        return [done for each in parts if (done := self.stage(each))]

    def at(self, seconds: float) -> None:
        self.now.arrival = NOW + seconds
        self.now.set(NOW + seconds)

    def expired(self) -> list[Finished]:
        found: list[Finished] = []
        aggregation.AT_ONCE = self.at_once  # type: ignore[attr-defined]
        while some := self.stage.expired():
            assert len(some) <= self.at_once
            found += some
        return sorted(found)


def stored_and_read(record: dict[str, Any]) -> Any:
    return msgpack.unpackb(msgpack.packb(record), strict_map_key=False)


@pytest.fixture
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest end is believed from the first flow on."""
    monkeypatch.setattr(NewestEnd, "SEEN", 1)


#: Parts, of seven ids in two sensors, whose starts and ends lie around all timeouts; the time that passes; and the death of the process.
TAKE = st.tuples(st.sampled_from("abcdefg"), st.integers(-100, 40), st.sampled_from([0, 1, 5, 70, 130]))
STEPS = st.lists(st.one_of(TAKE, TAKE, TAKE, st.integers(0, 130), st.just("commit"), st.just("die"), st.just("die before")), max_size=60)


@pytest.mark.usefixtures("believing")
@CLOCKS
@pytest.mark.parametrize("at_once", [2, 5_000])
@given(steps=STEPS)
@settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_killed_anywhere_and_restored_it_finishes_the_same_flows(
    monkeypatch: pytest.MonkeyPatch, clock: str, at_once: int, steps: list[Any]
) -> None:
    monkeypatch.setattr(aggregation, "AT_ONCE", at_once)  # Undone at the end; each sets its own.
    whole, killed = Life(clock), Life(clock, at_once)
    time = 0
    since: list[tuple[int, Flow | None, list[Finished]]] = []  # What happened since the last commit, and what it finished.
    for step in steps:
        if step in ("commit", "die"):
            killed.commit()
            since = []
            if step == "die":
                killed.begin()
                assert killed.stage.counts() == whole.stage.counts()
                assert killed.stage.gone == whole.stage.gone
            continue
        if step == "die before":  # What was not committed comes again.
            killed.begin()
            for then, again, finished in since:
                killed.at(then)
                assert (killed.take(copy.deepcopy(again)) if again else killed.expired()) == finished
            continue
        new: Flow | None = None
        if isinstance(step, int):
            time += step
            whole.at(time)
            killed.at(time)
            finished = whole.expired()
            assert killed.expired() == finished
        else:
            flow_id, start, length = step
            new = part(flow_id, time + start, length, flow_type="tstat" if flow_id == "g" else "netflow")
            finished = whole.take(copy.deepcopy(new))
            assert killed.take(copy.deepcopy(new)) == finished
        since.append((time, new, finished))
    killed.commit()
    assert killed.stage.counts() == whole.stage.counts()
    rest: list[Finished] = []
    while True:
        killed.begin()
        some = killed.stage.drain(2)
        killed.commit()
        if not some:
            break
        assert len(some) <= 2
        rest += some
    assert sorted(rest) == sorted(whole.stage.drain())
    assert killed.stage.counts() == whole.stage.counts()
    assert killed.stored.held == {}
    assert killed.expired() == []


@CLOCKS
def test_changes_say_what_was_opened_grew_and_ended_since_the_last_call_once(clock: str) -> None:
    life = Life(clock)
    life.take(part("a", 0), part("b", 0), part("a", 10))
    changes = life.stage.changes()
    assert (list(changes.opened), changes.grown, changes.ended) == (["a", "b"], {}, [])
    assert changes.opened["a"][1] == 2
    assert life.stage.changes()[:3] == ({}, {}, [])
    life.take(part("a", 20))
    changes = life.stage.changes()
    assert (changes.opened, list(changes.grown), changes.ended) == ({}, ["a"], [])
    assert changes.grown["a"][0] == 3
    life.take(part("a", 30), part("c", 0), part("a", 5_000))
    changes = life.stage.changes()
    assert (list(changes.opened), changes.grown, changes.ended) == (["c", "a"], {}, []) or set(changes.opened) == {"a", "c"}
    assert changes.opened["a"][1] == 1
    life.stage.drain(1)
    life.take(part("d", 0))
    life.stage.drain(9)
    changes = life.stage.changes()
    assert (changes.opened, changes.grown) == ({}, {})
    assert set(changes.ended) == {"a", "b", "c", "d"}


def test_without_a_ledger_nothing_is_noted() -> None:
    stage = aggregation.stage(aggregation.Config(), nothing, Now(NOW))
    for number in range(100):
        stage(part(f"{number}", 0))
    assert stage._changed is None
    assert stage.changes()[:3] == ({}, {}, [])


@CLOCKS
@pytest.mark.parametrize("killed", [False, True])
def test_many_flows_that_end_at_once_are_given_out_in_portions_and_each_once(
    clock: str, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "AT_ONCE", 3)
    monkeypatch.setattr(NewestEnd, "SEEN", 1)
    life = Life(clock)
    life.take(*(part(f"{number:02}", 0) for number in range(10)))
    life.at(1_000)
    if clock == "event":
        life.take(part("last", 1_000))
    portions, ids = [], []
    while some := life.stage.expired():
        portions.append(len(some))
        ids += [life.stage.flow(each)["meta"]["id"] for each in some]
        life.commit()
        if killed:
            life.begin()
    assert portions == [3, 3, 3, 1]
    assert sorted(ids) == [f"{number:02}" for number in range(10)]
    assert list(life.stored.held) == (["last"] if clock == "event" else [])


def test_a_flow_is_restored_with_the_timeout_that_it_was_held_with() -> None:
    life = Life("arrival")
    life.take(part("a", 0), part("z", 0))  # a: 120 s, z: 60 s
    life.commit()
    life.config = aggregation.Config()
    life.begin()
    life.at(61)
    assert [life.stage.flow(each)["meta"]["id"] for each in life.expired()] == ["z"]
    life.at(121)
    assert [life.stage.flow(each)["meta"]["id"] for each in life.expired()] == ["a"]


def test_what_was_believed_of_the_newest_end_is_believed_after_a_restart() -> None:
    """A wrong clock moves it as little as before, although the thousand ends that tell it are gone."""
    life = Life("event")
    life.take(*(part(f"{number}", number / 10) for number in range(NewestEnd.SEEN + 100)))
    newest, gone = life.stage.newest_end, life.stage.gone
    assert newest > NOW
    life.commit()
    life.begin()
    assert (life.stage.newest_end, life.stage.gone) == (newest, gone)
    life.take(part("wrong", 10 * 86_400))
    assert life.stage.newest_end == newest
    assert life.stage.counts()["not believed"] == 1
    life.take(part("right", 500))
    assert life.stage.newest_end == NOW + 505
    assert life.stage.gone == pytest.approx(gone + NOW + 505 - newest)


def test_what_is_restored_is_shared_with_the_ledger() -> None:
    """Its checkpoints write down what is held now, not what was held at the start."""
    held: dict[str, list[Any]] = {}
    life = Life("arrival")
    life.stage.restore(held, [])
    life.take(part("a", 0), part("b", 0), part("a", 10))
    assert {flow_id: each[1] for flow_id, each in held.items()} == {"a": 2, "b": 1}
    life.stage.drain()
    assert held == {}
