"""The ledger: what it gives back after any end of a process, what it says of damage, and what it does when there is no room."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netsage_pipeline.flow import Changes, Finished
from netsage_pipeline.statedir import NoRoom, StateError, holder
from netsage_pipeline.worker import ledger as module
from netsage_pipeline.worker.ledger import Commit, Ledger, State, recovered, salvage, segments, size

SMALL_SEGMENT = 400
SMALL_STEP = 2


def examples(number: int, steps: int = 50) -> settings:
    """The same examples at every run."""
    return settings(
        max_examples=number,
        stateful_step_count=steps,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk tells nothing here, and takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments and steps of checkpoints so small that one is under way nearly always."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", SMALL_SEGMENT)
    monkeypatch.setattr(module, "CHECKPOINT_STEP", SMALL_STEP)


# A worker and what it should find again


def key(number: int) -> bytes:
    return number.to_bytes(16)


def row(text: str) -> Finished:
    return (text.encode(), 2, 1.5, 2.5, 1 << 62, 3, "2023-11-14T22:13:20.000Z", "")


class Book:
    """What a ledger should know, worked out without one."""

    def __init__(self) -> None:
        self.held: dict[str, list[Any]] = {}
        self.stitching: list[Any] = []
        self.outbox: dict[int, Any] = {}
        self.next = 0
        self.keys: set[bytes] = set()
        self.totals: Counter[tuple[str, str, str]] = Counter()
        self.arrival = self.worked = 0.0

    def commit(self, commit: Commit, held: dict[str, list[Any]]) -> None:
        self.held = copy.deepcopy(held)
        if commit.changes is not None:
            self.stitching = list(commit.changes.state)
        for each in (*commit.rows, *commit.letters):
            self.outbox[self.next] = each
            self.next += 1
        for number in commit.done:
            self.outbox.pop(number, None)
        self.keys.update(commit.keys)
        self.totals.update(commit.counts)
        self.arrival, self.worked = commit.arrival, commit.worked

    def as_seen(self) -> dict[str, Any]:
        return {
            "held": self.held,
            "stitching": self.stitching,
            "outbox": list(self.outbox.items()),
            "owed": sum(len(each if isinstance(each, bytes) else each[0]) for each in self.outbox.values()),
            "next": self.next,
            "keys": self.keys,
            "totals": self.totals,
            "clocks": (self.arrival, self.worked),
        }


def seen(state: State) -> dict[str, Any]:
    """What of a state is compared, in a copy."""
    return {
        "held": copy.deepcopy(state.held),
        "stitching": list(state.stitching),
        "outbox": list(state.outbox.items()),
        "owed": state.owed_bytes,
        "next": state.next,
        "keys": set().union(*state.slices.values()),
        "totals": Counter(state.totals),
        "clocks": (state.arrival, state.worked),
    }


class Worker:
    """Changes what is held as stitching does, in the ledger's own dict and lists, and says what it did."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory, self.options = directory, options
        self.ledger = Ledger(directory, **options)
        self.book = Book()
        self.changed: dict[str, bool] = {}
        self.taken = 0
        self.said: Commit | None = None  # and not written yet

    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.directory, **self.options)

    def change(self, what: str, flow_id: str) -> list[Finished]:
        """Gives the flow that was finished by it."""
        held = self.ledger.state.held
        if what == "open":
            finished = [row(flow_id)] if flow_id in held else []
            self.taken += 1
            held[flow_id] = [b'{"id":"%s"}' % flow_id.encode(), 1, 0.5, 0.75, self.taken]
            self.changed[flow_id] = True
            return finished
        if flow_id not in held:
            return []
        self.changed.setdefault(flow_id, False)
        if what == "grow":
            held[flow_id][1] += 1
            held[flow_id][3] += 0.25
            return []
        del held[flow_id]
        return [row(flow_id)]

    def changes(self) -> Changes:
        changes = Changes({}, {}, [], [self.taken, float("-inf"), 2.5])
        for flow_id, opened in self.changed.items():
            held = self.ledger.state.held.get(flow_id)
            if held is None:
                changes.ended.append(flow_id)
            elif opened:
                changes.opened[flow_id] = held
            else:
                changes.grown[flow_id] = held[1:]
        self.changed = {}
        return changes

    def commit(self, *, rows: list[Finished] | None = None, write: bool = True, **given: Any) -> bytes:
        state, number = self.ledger.state, self.book.next
        values: dict[str, Any] = {
            "keys": [key(self.taken + place * 1_000_003) for place in range(given.pop("number_of_keys", 1))],
            "changes": self.changes(),
            "rows": rows or [],
            "letters": [],
            "done": [],
            "counts": Counter({("read", "", ""): 1, ("dropped", "10_preliminaries", f"reason {number % 3}"): 2}),
            "arrival": state.arrival + 0.5,
            "worked": state.worked + 1,
        }
        self.said = Commit(**(values | given))
        encoded = self.ledger.encode(self.said)
        if write:
            self.write(encoded)
        return encoded

    def die(self) -> None:
        """What the kernel does when a process dies."""
        for file in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                if file.readlink().is_relative_to(self.directory):
                    os.close(int(file.name))

    def write(self, encoded: bytes) -> None:
        self.ledger.write(encoded)
        assert self.said
        self.book.commit(self.said, self.ledger.state.held)
        self.said = None

    def work(self, random: Random, commits: int) -> list[dict[str, Any]]:
        """So many commits of all that there is; what should be seen behind each."""
        behind = []
        for _ in range(commits):
            rows: list[Finished] = []
            for _ in range(random.randrange(6)):
                rows += self.change(random.choice(["open", "open", "grow", "end"]), random.choice("abcdefgh"))
            self.taken += 1
            done = random.sample(sorted(self.book.outbox), min(random.randrange(3), len(self.book.outbox)))
            self.commit(rows=rows, letters=[b"letter"] * random.randrange(2), done=done, number_of_keys=random.randrange(4))
            behind.append(copy.deepcopy(self.book.as_seen()))
        return behind


@contextlib.contextmanager
def opened_copy(directory: Path) -> Iterator[Ledger]:
    """What the next process would find if this one died now."""
    with tempfile.TemporaryDirectory() as other:
        copied = shutil.copytree(directory, Path(other) / "copy")
        ledger = Ledger(copied)
        try:
            yield ledger
        finally:
            ledger.close()


def found_in_copy(directory: Path) -> dict[str, Any]:
    with opened_copy(directory) as ledger:
        return seen(ledger.state)


IDS = st.sampled_from("abcdef")


class RoundTrip(RuleBasedStateMachine):
    """Whatever was committed is found again, whenever the process ends."""

    @initialize()
    def start(self) -> None:
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(module, "SEGMENT_BYTES", SMALL_SEGMENT)
        self.patches.setattr(module, "CHECKPOINT_STEP", SMALL_STEP)
        self.root = Path(tempfile.mkdtemp())
        self.worker = Worker(self.root / "state")
        self.rows: list[Finished] = []
        self.segments: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "worker"):
            self.worker.ledger.close()
            self.patches.undo()
            shutil.rmtree(self.root)

    @rule(what=st.sampled_from(["open", "open", "grow", "grow", "end"]), flow_id=IDS)
    def stitch(self, what: str, flow_id: str) -> None:
        self.rows += self.worker.change(what, flow_id)

    @rule(data=st.data(), letters=st.lists(st.binary(max_size=40), max_size=2), number_of_keys=st.integers(0, 50))
    def commit(self, data: st.DataObject, letters: list[bytes], number_of_keys: int) -> None:
        outbox = sorted(self.worker.book.outbox)
        done = data.draw(st.lists(st.sampled_from(outbox), unique=True, max_size=3)) if outbox else []
        self.worker.taken += 1
        self.worker.commit(rows=self.rows, letters=letters, done=done, number_of_keys=number_of_keys)
        self.rows = []

    @rule()
    def commit_of_nothing_but_the_clock(self) -> None:
        if not self.worker.changed and not self.rows:
            self.worker.commit(changes=None, keys=[], counts=Counter())

    @rule()
    def killed_before_it_was_written(self) -> None:
        before = self.worker.book.as_seen()
        encoded = self.worker.commit(rows=self.rows, write=False)
        self.rows = []
        assert found_in_copy(self.worker.directory) == before
        self.worker.write(encoded)

    @rule()
    def killed(self) -> None:
        assert found_in_copy(self.worker.directory) == self.worker.book.as_seen()

    @precondition(lambda self: not self.worker.changed and not self.rows)
    @rule()
    def checkpoint(self) -> None:
        self.worker.ledger.checkpoint()
        assert len(segments(self.worker.directory)) <= 2 + size(self.worker.directory) // SMALL_SEGMENT

    @precondition(lambda self: not self.worker.changed and not self.rows)
    @rule()
    def reopen(self) -> None:
        identity = self.worker.ledger.state.ledger
        self.worker.reopen()
        assert self.worker.ledger.state.ledger == identity
        assert self.worker.ledger.cut_off == 0
        assert seen(self.worker.ledger.state) == self.worker.book.as_seen()

    @invariant()
    def holds_what_was_committed(self) -> None:
        if hasattr(self, "worker") and not self.worker.changed and not self.rows:
            assert seen(self.worker.ledger.state) == self.worker.book.as_seen()


RoundTrip.TestCase.settings = examples(60, 40)
TestRoundTrip = RoundTrip.TestCase


@pytest.mark.usefixtures("small")
def test_what_is_stored_does_not_grow_with_the_number_of_commits(tmp_path: Path) -> None:
    worker, random = Worker(tmp_path), Random(1)
    for _ in range(500):
        rows = worker.change(random.choice(["open", "grow", "end"]), random.choice("abcdefgh"))
        worker.commit(rows=rows, done=list(worker.book.outbox), number_of_keys=0)
    assert size(tmp_path) < 12 * SMALL_SEGMENT
    assert min(segments(tmp_path)) > 100
    worker.ledger.close()


def test_a_process_that_ends_at_once_leaves_no_file_at_each_start(tmp_path: Path) -> None:
    for _ in range(3):
        Ledger(tmp_path).close()
    assert len(segments(tmp_path)) == 1


def test_what_a_killed_process_wrote_is_durable_before_anything_is_built_upon_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(tmp_path)
    monkeypatch.setattr(os, "fdatasync", killing(1, lambda _: None))
    with pytest.raises(Killed):
        worker.work(Random(1), 1)
    worker.ledger.close()
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    ledger = Ledger(tmp_path)
    assert synced[0] == str(tmp_path / "journal-00000001")
    ledger.close()


def test_a_new_segment_and_its_name_are_durable_before_anything_is_written_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    ledger = Ledger(tmp_path)
    assert synced[:2] == [str(tmp_path / "journal-00000001"), str(tmp_path)]
    ledger.close()


# Ends in the middle of something


def test_a_journal_that_is_cut_off_anywhere_gives_the_state_behind_a_commit(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "state")
    ends, states = [worker.ledger._bytes], [copy.deepcopy(worker.book.as_seen())]
    for _ in range(5):
        states += worker.work(Random(len(states)), 1)
        ends.append(worker.ledger._bytes)
    worker.ledger.close()
    [journal] = segments(tmp_path / "state").values()
    content = journal.read_bytes()
    for length in range(len(content) + 1):
        journal.write_bytes(content[:length])
        last = max((place for place, end in enumerate(ends) if end <= length), default=0)
        state, cut_off = recovered(tmp_path / "state", touch=False)
        assert journal.stat().st_size == length
        assert seen(state) == states[last], length
        assert cut_off == (length - ends[last] if length >= ends[0] else length)
        if length % 7 == 0:  # It goes on from there.
            ledger = Ledger(tmp_path / "state")
            assert ledger.cut_off == cut_off
            ledger.write(ledger.encode(Commit([], None, [row("new")], [], [], Counter(), 9.0, 9.0)))
            ledger.close()
            assert recovered(tmp_path / "state", touch=False)[0].outbox[states[last]["next"]] == row("new")


@pytest.mark.parametrize("zeros", [1, 11, 12, 4_096, 100_000])
def test_zeros_that_a_lost_power_left_at_the_end_are_taken_away(tmp_path: Path, zeros: int) -> None:
    worker = Worker(tmp_path)
    worker.work(Random(1), 3)
    worker.ledger.close()
    with worker.ledger._path.open("ab") as file:
        file.write(bytes(zeros))
    worker.ledger = Ledger(tmp_path)
    assert worker.ledger.cut_off == zeros
    worker.work(Random(2), 1)
    worker.reopen()
    assert worker.ledger.cut_off == 0
    assert seen(worker.ledger.state) == worker.book.as_seen()
    worker.ledger.close()


class Killed(Exception):
    """Here the process was killed."""


def killing(number: int, real: Callable[..., Any], behind: bool = False) -> Callable[..., Any]:
    """The function, until the call at which the process dies before or behind it."""
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= number and not behind:
            raise Killed
        result = real(*args, **options)
        if calls >= number:
            raise Killed
        return result

    return call


CALLS: list[tuple[Any, str]] = [(os, "open"), (os, "write"), (os, "fsync"), (os, "fdatasync"), (Path, "unlink"), (os, "ftruncate")]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(("where", "name"), CALLS, ids=[name for _, name in CALLS])
def test_killed_between_any_two_operations_it_finds_the_state_before_or_behind_the_commit(
    tmp_path: Path, where: Any, name: str, behind: bool
) -> None:
    deaths = 0
    for number in range(1, 400):
        worker = Worker(tmp_path / f"{number}")
        states = [copy.deepcopy(worker.book.as_seen())]
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(where, name, killing(number, getattr(where, name), behind))
            try:
                for seed in range(14):
                    if seed == 12:
                        worker.reopen()
                    states += worker.work(Random(seed), 1)
            except Killed:
                deaths += 1
                after = copy.deepcopy(worker.book)
                if worker.said:
                    after.commit(worker.said, worker.ledger.state.held)
                states.append(after.as_seen())
            else:
                break
        for _ in range(3):  # The second start finds what the first one left.
            assert found_in_copy(worker.directory) in states[-2:]
            worker.die()
            worker.ledger = Ledger(worker.directory)
            assert seen(worker.ledger.state) in states[-2:]
        worker.die()
        shutil.rmtree(worker.directory)
    else:
        pytest.fail("never came to the end")
    assert deaths >= (0 if name == "ftruncate" else 3)


@pytest.mark.usefixtures("small")
def test_what_was_thrown_away_does_not_come_back_from_segments_that_were_not_deleted_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(tmp_path)
    worker.change("open", "a")
    worker.commit(letters=[b"letter"], number_of_keys=3)
    worker.work(Random(1), 12)
    number = max(segments(tmp_path))
    for part in (worker.ledger.state.held, worker.ledger.state.outbox, worker.ledger.state.slices):
        part.clear()
    monkeypatch.setattr(Path, "unlink", killing(1, Path.unlink, behind=True))
    with pytest.raises(Killed):
        worker.ledger.checkpoint()
    monkeypatch.undo()
    worker.ledger.close()
    assert min(segments(tmp_path)) <= number
    for touch in (False, True):
        state, _ = recovered(tmp_path, touch=touch)
        assert (state.held, state.outbox, state.slices) == ({}, {}, {})
    worker.ledger = Ledger(tmp_path)
    assert min(segments(tmp_path)) > number
    worker.ledger.close()


# Damage


def with_segments(tmp_path: Path, number: int = 4) -> tuple[Worker, list[Path]]:
    """A ledger of several segments, each of several commits."""
    worker = Worker(tmp_path / "state")
    while worker.ledger._number < number or worker.ledger._bytes < SMALL_SEGMENT // 2:
        worker.work(Random(worker.taken), 1)
    worker.ledger.close()
    return worker, list(segments(worker.directory).values())


@pytest.fixture
def no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", 2_000)

    def only_if_asked(self: Ledger) -> dict[str, Any]:
        return next(self._checkpoint) if self._checkpoint is not None else {}

    monkeypatch.setattr(Ledger, "_next_of_checkpoint", only_if_asked)


SALVAGE = "netsage-pipeline ledger salvage keeps what can be read"


def test_any_flipped_byte_of_a_record_that_is_not_the_last_is_named(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.work(Random(5), 1)
    end = worker.ledger._bytes
    worker.work(Random(6), 1)
    worker.ledger.close()
    path = worker.ledger._path
    content = path.read_bytes()
    first = module._record_at(content, 0)[1]
    for place in range(end):
        damaged = bytearray(content)
        damaged[place] ^= 1 + place % 255
        path.write_bytes(damaged)
        with pytest.raises(StateError) as caught:
            recovered(tmp_path)
        begin = 0 if place < first else first
        assert str(caught.value).startswith(f"{path}: is damaged at byte {begin:,}: ")
        assert str(caught.value).endswith(f": {SALVAGE}; a copy from a backup would keep all")
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == damaged


def test_a_flipped_byte_in_the_body_of_the_last_record_is_named_too(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.work(Random(5), 2)
    worker.ledger.close()
    content = bytearray(worker.ledger._path.read_bytes())
    content[-5] ^= 1
    worker.ledger._path.write_bytes(content)
    with pytest.raises(StateError, match=r"is damaged at byte \d+: a record is not what was written: "):
        Ledger(tmp_path)


def damage_middle(paths: list[Path]) -> str:
    content = bytearray(paths[1].read_bytes())
    content[len(content) // 2] ^= 255
    paths[1].write_bytes(content)
    return f"{paths[1]}: is damaged at byte "


def cut_an_earlier_one(paths: list[Path]) -> str:
    os.truncate(paths[1], paths[1].stat().st_size - 1)
    return f"{paths[1]}: is damaged at byte "


def remove_middle(paths: list[Path]) -> str:
    paths[1].unlink()
    return f"{paths[1]}: is missing: {SALVAGE}; a copy from a backup would keep all"


def remove_first(paths: list[Path]) -> str:
    paths[0].unlink()
    return f"{paths[0]}: is missing: {SALVAGE}; a copy from a backup would keep all"


def empty_earlier(paths: list[Path]) -> str:
    os.truncate(paths[1], 0)
    return f"{paths[1]}: is empty, but there are later ones: {SALVAGE}"


def make_newer(paths: list[Path]) -> str:
    paths[-1].write_bytes(module.packed({"version": module.VERSION + 1}))
    return f"{paths[-1]}: was written by a newer version: install that, or drain the ledger with it first"


def make_unreadable(paths: list[Path]) -> str:
    paths[1].unlink()
    paths[1].mkdir()
    return f"{paths[1]}: cannot be read: Is a directory"


DAMAGES = [damage_middle, cut_an_earlier_one, remove_middle, remove_first, empty_earlier, make_newer, make_unreadable]


@pytest.mark.usefixtures("no_checkpoint")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_refused_in_one_line_and_left_as_it_is(tmp_path: Path, damage: Callable[[list[Path]], str]) -> None:
    worker, paths = with_segments(tmp_path)
    expected = damage(paths)
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    for _ in range(2):  # The lock is free again.
        with pytest.raises(StateError) as caught:
            Ledger(worker.directory)
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in paths if path.is_file()} == before
    assert holder(worker.directory) == ""


def records_of(paths: list[Path]) -> list[tuple[Path, int, int, dict[str, Any]]]:
    """All records of a journal: where they begin and end, and what they say."""
    return [(path, place, end, record) for path in paths for place, record, end in module._records(path.read_bytes()) if record is not None]


def added_up(records: list[dict[str, Any]]) -> dict[str, Any]:
    state = State()
    for record in records:
        state.apply(msgpack.unpackb(msgpack.packb(record)))
    return seen(state)


@pytest.mark.usefixtures("no_checkpoint")
@pytest.mark.parametrize("part", ["magic", "length", "checksum", "body"])
@pytest.mark.parametrize("which", [0, 1, 7, -1])
def test_salvage_keeps_what_lies_before_and_behind_the_damage(tmp_path: Path, which: int, part: str) -> None:
    worker, paths = with_segments(tmp_path)
    records = records_of(paths)
    path, begin, end, _ = records[which]
    content = bytearray(path.read_bytes())
    content[{"magic": begin, "length": begin + 6, "checksum": begin + 8, "body": end - 1}[part]] ^= 0x55
    path.write_bytes(content)
    damaged = {path.name: path.read_bytes() for path in paths}
    state, faults, aside = salvage(worker.directory)
    del records[which]
    expected = added_up([record for *_, record in records])
    assert seen(state) | {"outbox": sorted(state.outbox.items())} == expected | {"outbox": sorted(expected["outbox"])}
    assert faults == [f"{path}: bytes {begin:,} to {end:,}: cannot be read, passed over"]
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == damaged
    assert aside.parent == worker.directory
    assert aside.name.startswith("damaged-20")
    identity = state.ledger
    worker.ledger = Ledger(worker.directory)
    assert worker.ledger.state.ledger == identity
    assert seen(worker.ledger.state) == seen(state)
    worker.book.next = state.next
    worker.commit(rows=[row("new")])
    worker.reopen()
    assert worker.ledger.state.outbox[state.next] == row("new")
    worker.ledger.close()


@pytest.mark.usefixtures("no_checkpoint")
@pytest.mark.parametrize("damage", [remove_middle, empty_earlier, cut_an_earlier_one])
def test_salvage_names_what_is_missing(tmp_path: Path, damage: Callable[[list[Path]], str]) -> None:
    worker, paths = with_segments(tmp_path)
    path = paths[1]
    damage(paths)
    state, faults, _ = salvage(worker.directory)
    assert [fault.partition(": ")[0] for fault in faults] == [str(path)]
    with opened_copy(worker.directory) as ledger:
        assert seen(ledger.state) == seen(state)


@pytest.mark.usefixtures("small")
def test_salvage_of_a_sound_ledger_keeps_everything_however_often(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    worker.work(Random(1), 40)
    worker.ledger.close()
    asides = set()
    for _ in range(3):
        state, faults, aside = salvage(tmp_path)
        asides.add(aside)
        assert faults == []
        assert seen(state) == worker.book.as_seen()
        assert recovered(tmp_path)[0].ledger == state.ledger
        assert found_in_copy(tmp_path) == worker.book.as_seen()
    assert len(asides) == 3


@pytest.mark.usefixtures("no_checkpoint")
def test_salvage_does_not_touch_the_ledger_of_a_newer_version_or_one_in_use(tmp_path: Path) -> None:
    worker, paths = with_segments(tmp_path)
    make_newer(paths)
    before = sorted(path.name for path in worker.directory.iterdir())
    with pytest.raises(StateError, match="was written by a newer version"):
        salvage(worker.directory)
    assert sorted(path.name for path in worker.directory.iterdir()) == before
    ledger = Ledger(tmp_path / "other")
    with pytest.raises(StateError, match="in use by process"):
        salvage(tmp_path / "other")
    ledger.close()


def test_salvage_killed_in_the_middle_can_be_done_again(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    states = worker.work(Random(1), 5)
    worker.ledger.close()
    content = bytearray(worker.ledger._path.read_bytes())
    content[module._record_at(bytes(content), 0)[1] + 20] ^= 1
    worker.ledger._path.write_bytes(content)
    for number in range(1, 30):
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(os, "write", killing(number, os.write))
            try:
                salvage(tmp_path)
            except Killed:
                worker.die()
            else:
                break
    assert number > 2
    with opened_copy(tmp_path) as ledger:
        assert seen(ledger.state)["clocks"] == states[-1]["clocks"]
        assert seen(ledger.state)["keys"] <= worker.book.keys


MAGICS = "NSLG" * 200_000


def test_a_flow_that_contains_the_mark_of_a_record_harms_neither_recovery_nor_salvage(tmp_path: Path) -> None:
    """Not by its time either: looking at each mark must not copy or read the rest of the segment."""
    worker = Worker(tmp_path)
    worker.work(Random(1), 2)
    before = copy.deepcopy(worker.book.as_seen())
    begin = worker.ledger._bytes
    worker.ledger.state.held["NSLG"] = [b'{"NSLG    NSLG":"NSLG0000 NSLG"}', 1, 2.0, 3.0, 4]
    worker.changed["NSLG"] = True
    worker.commit(rows=[row(MAGICS)], letters=[MAGICS.encode()])
    end = worker.ledger._bytes
    worker.ledger.close()
    path = worker.ledger._path
    whole = path.read_bytes()
    assert found_in_copy(tmp_path) == worker.book.as_seen()
    for length in (begin + 60, begin + 900_000, end - 1):
        path.write_bytes(whole[:length])
        state, cut_off = recovered(tmp_path, touch=False)
        assert (seen(state), cut_off) == (before, length - begin)
    path.write_bytes(whole)
    worker.ledger = Ledger(tmp_path)
    worker.commit(rows=[row("behind")])
    worker.ledger.close()
    damaged = bytearray(path.read_bytes())
    damaged[end - 30] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StateError, match=f"is damaged at byte {begin:,}: a record is not what was written"):
        Ledger(tmp_path)
    state, faults, _ = salvage(tmp_path)
    assert faults == [f"{path}: bytes {begin:,} to {end:,}: cannot be read, passed over"]
    assert row("behind") in state.outbox.values()
    assert "NSLG" not in state.held


# One ledger, one worker


def test_a_second_worker_is_refused_and_told_which_process_it_is(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert holder(tmp_path) == str(os.getpid())
    with pytest.raises(StateError) as caught:
        Ledger(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: is in use by process {os.getpid()}: it belongs to one process; give another one a directory of its own (state)"
    )
    ledger.close()
    assert holder(tmp_path) == ""
    Ledger(tmp_path).close()


def test_who_asks_for_the_holder_stands_in_nobodys_way(tmp_path: Path) -> None:
    assert holder(tmp_path / "none") == ""
    Ledger(tmp_path).close()
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(StateError, match="in use by process"):  # For longer than a moment it would.
            Ledger(tmp_path)
    (tmp_path / "lock").write_text("")
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert holder(tmp_path) == "unknown"


def test_a_killed_worker_leaves_no_lock(tmp_path: Path) -> None:
    script = f"import os, netsage_pipeline.worker.ledger as l, pathlib; l.Ledger(pathlib.Path({str(tmp_path)!r})); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert holder(tmp_path) == ""
    Ledger(tmp_path).close()


def test_a_directory_that_cannot_be_used_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "ledger" / "lock").mkdir(parents=True)
    for directory, fault in (
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / "ledger", "Is a directory"),
        (Path("/proc/netsage"), "No such file or directory"),
    ):
        with pytest.raises(StateError) as caught:
            Ledger(directory)
        assert str(caught.value) == f"{directory}: cannot be used for its state: {fault}: name another directory (state)"


def test_nobody_else_can_read_the_ledger(tmp_path: Path) -> None:
    Ledger(tmp_path / "made" / "state").close()
    assert (tmp_path / "made" / "state").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "made" / "state").iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["write", "fdatasync"])
def test_a_disk_that_fails_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    worker = Worker(tmp_path)
    worker.work(Random(1), 1)

    def fail(*_: object) -> NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(StateError) as caught:
        worker.work(Random(2), 1)
    path = tmp_path / "journal-00000001"
    assert str(caught.value) == f"{path}: cannot be written: Input/output error: see to the disk, then start again"
    worker.ledger.close()


def test_what_a_failing_disk_did_not_make_durable_is_not_trusted_by_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel keeps in memory what it could not write, and takes it for written: the next fsync succeeds."""
    worker = Worker(tmp_path)
    worker.work(Random(1), 3)
    before = worker.book.as_seen()

    def fail(_: int) -> NoReturn:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patches:
        patches.setattr(os, "fdatasync", fail)
        with pytest.raises(StateError):
            worker.work(Random(2), 1)
    worker.ledger.close()
    ledger = Ledger(tmp_path)
    assert seen(ledger.state) == before
    assert ledger.cut_off == 0
    ledger.close()


# No room


def without_room(worker: Worker, fill: Callable[[], None], make_room: Callable[[], None]) -> None:
    """Fills the disk, sees that a commit waits and changes nothing, makes room, and sees that it is stored as it was."""
    elsewhere = Path(tempfile.mkdtemp())
    try:
        fill()
        before = worker.book.as_seen()
        content = {path.name: path.read_bytes() for path in segments(worker.directory).values()}
        worker.change("open", "large")
        worker.taken += 1
        encoded = worker.commit(rows=[row("x" * 40_000)], letters=[b"y" * 40_000], done=sorted(worker.book.outbox)[:1], write=False)
        for _ in range(3):
            with pytest.raises(NoRoom, match=str(worker.directory)):
                worker.write(encoded)
            found = {path.name: path.read_bytes() for path in segments(worker.directory).values()}
            assert {name: found.get(name) for name in content} == content
            copied = shutil.copytree(worker.directory, elsewhere / "copy", ignore=shutil.ignore_patterns("fill"), dirs_exist_ok=True)
            assert seen(recovered(copied, touch=False)[0]) == before
        make_room()
        worker.write(encoded)
        assert worker.ledger.state.outbox[before["next"]] == row("x" * 40_000)
        assert found_in_copy(worker.directory) == worker.book.as_seen()
        worker.work(Random(9), 30)
        worker.reopen()
        assert seen(worker.ledger.state) == worker.book.as_seen()
    finally:
        shutil.rmtree(elsewhere)


def limited(directory: Path) -> None:
    """In a process of its own: no file can get longer than 60,000 bytes for a while."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for number, sizes in enumerate([(64_000_000, 2_000), (SMALL_SEGMENT, SMALL_STEP)]):
        module.SEGMENT_BYTES, module.CHECKPOINT_STEP = sizes
        worker = Worker(directory / f"{number}")
        worker.work(Random(3), 10)
        without_room(
            worker,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard)),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)),
        )
        worker.ledger.close()


def test_a_commit_waits_where_no_file_can_get_longer(tmp_path: Path) -> None:
    script = f"from pathlib import Path; from tests import test_ledger; test_ledger.limited(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail("no file system can be mounted, but CI must test with a full one", pytrace=False)
        pytest.skip("no file system can be mounted")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def filled(disk: Path) -> Callable[[], None]:
    def fill() -> None:
        with (disk / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    return fill


@pytest.mark.parametrize("sizes", [(64_000_000, 2_000), (SMALL_SEGMENT, SMALL_STEP)])
def test_a_commit_waits_on_a_full_disk(disk: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]) -> None:
    monkeypatch.setattr(module, "SEGMENT_BYTES", sizes[0])
    monkeypatch.setattr(module, "CHECKPOINT_STEP", sizes[1])
    worker = Worker(disk / "state")
    worker.work(Random(3), 10)
    without_room(worker, filled(disk), (disk / "fill").unlink)
    worker.ledger.close()


@pytest.mark.usefixtures("small")
def test_a_full_disk_hinders_neither_segments_nor_checkpoints_that_come_later(disk: Path) -> None:
    worker = Worker(disk / "state")
    worker.work(Random(3), 10)
    waited = 0
    for number in range(60):
        if number % 4 == 0:
            filled(disk)()
        before = worker.book.as_seen()
        worker.change("open", "abc"[number % 3])
        worker.taken += 1
        encoded = worker.commit(letters=[b"letter" * 400], done=list(worker.book.outbox), write=False)
        try:
            worker.write(encoded)
        except NoRoom:
            waited += 1
            assert found_in_copy(worker.directory) == before
            (disk / "fill").unlink()
            worker.write(encoded)
        assert found_in_copy(worker.directory) == worker.book.as_seen()
    assert waited > 5
    (disk / "fill").unlink(missing_ok=True)
    worker.work(Random(4), 100)
    assert len(segments(worker.directory)) < 30
    worker.ledger.close()


def test_a_worker_can_start_on_a_full_disk_and_what_needs_room_says_so_in_one_line(disk: Path) -> None:
    worker = Worker(disk / "state")
    worker.work(Random(3), 10)
    worker.ledger.close()
    filled(disk)()
    worker.ledger = Ledger(worker.directory)
    assert holder(worker.directory) in {str(os.getpid()), "unknown"}
    assert seen(worker.ledger.state) == worker.book.as_seen()
    with pytest.raises(StateError, match=rf"^{worker.directory}: No space left on device: make room, then try again$"):
        worker.ledger.checkpoint()
    worker.ledger.close()
    with pytest.raises(StateError, match=rf"^{worker.directory}: the damaged ledger cannot be copied: No space left on device: make room"):
        salvage(worker.directory)
    with pytest.raises(StateError, match="No space left on device"):
        Ledger(disk / "another")
    (disk / "fill").unlink()
    worker.ledger = Ledger(worker.directory)
    assert seen(worker.ledger.state) == worker.book.as_seen()
    worker.ledger.checkpoint()
    worker.reopen()
    assert seen(worker.ledger.state) == worker.book.as_seen()
    worker.ledger.close()


def test_nothing_is_thrown_away_while_no_segment_can_be_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint in the segment that says what is to be thrown away would bring it back, and nobody would be told."""
    worker = Worker(tmp_path)
    worker.work(Random(3), 10)
    open_ = os.open

    def no_new_file(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(28, "No space left on device")
        return open_(path, flags, *mode)

    monkeypatch.setattr(os, "open", no_new_file)
    with pytest.raises(StateError, match=f"^{tmp_path}: No space left on device: make room, then try again$"):
        worker.ledger.checkpoint()
    assert not worker.ledger.checkpointing
    worker.ledger.close()


# Keys of messages


def take(ledger: Ledger, numbers: range, worked: float) -> None:
    ledger.write(ledger.encode(Commit([key(number) for number in numbers], None, [], [], [], Counter(), 0.0, worked)))


def known(ledger: Ledger, numbers: range) -> int:
    return sum(ledger.state.knows(key(number)) for number in numbers)


DAY, HOUR = 86_400, 3_600


def test_a_message_is_known_for_24_hours_of_work_however_often_the_worker_starts(tmp_path: Path) -> None:
    """And for not more than an hour longer. The time of the machine has no say."""
    ledger = Ledger(tmp_path)
    hours = 60
    for hour in range(2 * hours):
        worked = hour * HOUR / 2
        take(ledger, range(hour, hour + 1), worked)
        for taken in range(hour + 1):
            age = (hour - taken) * HOUR / 2
            assert known(ledger, range(taken, taken + 1)) or age > DAY
            assert age <= DAY + HOUR or not known(ledger, range(taken, taken + 1))
        if hour % 5 == 0:
            ledger.close()
            before = ledger.state.slices
            ledger = Ledger(tmp_path)
            assert ledger.state.slices == before
        if hour % 7 == 0:
            ledger.checkpoint()
    assert 25 <= len(ledger.state.slices) <= 26
    ledger.close()


def test_the_newest_keys_stay_however_long_nothing_came(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    take(ledger, range(10), 5)
    take(ledger, range(0), 50 * DAY)
    assert known(ledger, range(10)) == 10
    take(ledger, range(10, 11), 50 * DAY)
    assert (known(ledger, range(10)), known(ledger, range(10, 11))) == (0, 1)
    ledger.close()


def test_the_limit_in_bytes_drops_the_oldest_keys_first(tmp_path: Path) -> None:
    limit = 240
    ledger = Ledger(tmp_path, limit * module.KEY_BYTES)
    for number in range(100):
        take(ledger, range(number * 5, number * 5 + 5), number)
        kept = known(ledger, range(number * 5 + 5))
        assert kept == known(ledger, range(number * 5 + 5 - kept, number * 5 + 5))  # The newest.
        assert kept == ledger.state.keys
        assert min(limit * 0.9, number * 5 + 5) <= kept <= limit
        assert ledger.keys_full == kept / limit
        assert list(ledger.state.slices) == sorted(ledger.state.slices)
        assert max(map(len, ledger.state.slices.values())) <= limit // 24 + 5
    before = ledger.state.slices
    ledger.close()
    ledger = Ledger(tmp_path, limit * module.KEY_BYTES)
    assert ledger.state.slices == before
    ledger.close()
    ledger = Ledger(tmp_path, limit * module.KEY_BYTES // 2)
    assert limit * 0.4 <= known(ledger, range(500 - limit // 2, 500)) == ledger.state.keys <= limit // 2
    ledger.close()


@pytest.mark.parametrize("limit", [0, 1, module.KEY_BYTES, 23 * module.KEY_BYTES])
def test_with_a_limit_for_less_than_a_slice_the_keys_of_the_last_commit_are_known(tmp_path: Path, limit: int) -> None:
    ledger = Ledger(tmp_path, limit)
    assert ledger.keys_full == 0
    for number in range(30):
        take(ledger, range(number * 50, number * 50 + 50), 0)
        assert known(ledger, range(number * 50 + 50)) == known(ledger, range(number * 50, number * 50 + 50)) == 50
        assert ledger.keys_full >= 1
        assert len(ledger.state.slices) == 1
    ledger.close()


@pytest.mark.usefixtures("small")
@given(commits=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20_000), st.booleans()), max_size=30))
@examples(40)
def test_keys_that_are_to_be_known_are_known_after_every_start(tmp_path_factory: pytest.TempPathFactory, commits: list[Any]) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    limit, taken, worked = 120, 0, 0
    ledger = Ledger(directory, limit * module.KEY_BYTES)
    since: list[int] = []
    for number, passed, again in commits:
        worked += passed
        since += [worked] * number
        take(ledger, range(taken, taken + number), worked)
        taken += number
        if again:
            ledger.close()
            ledger = Ledger(directory, limit * module.KEY_BYTES)
        # The newest three quarters of the limit fit in whole slices, of up to 34 keys, if they are not too old.
        must = [place for place in range(max(taken - limit + 34, 0), taken) if worked - since[place] <= DAY]
        assert all(ledger.state.knows(key(place)) for place in must)
        assert not ledger.state.knows(key(taken))
        assert ledger.state.keys <= max(limit, len(ledger.state.slices[max(ledger.state.slices)]) if ledger.state.slices else 0)
    ledger.close()
    shutil.rmtree(directory)
