"""netsage-pipeline ledger show, drain, purge, salvage and run: what is refused, what is said, and what they leave. No broker is needed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from netsage_pipeline.flow import Changes, Finished
from netsage_pipeline.worker import ledger as ledger_file
from netsage_pipeline.worker.ledger import Commit, Ledger, State, recovered, segments
from tests.command import COMMAND, LOOKUPS, Outcome, conf_with, run, stage_file, surroundings
from tests.flows import flow

#: Nobody listens there.
NOWHERE = "amqp://somebody:nobody-knows-it@127.0.0.1:1/"

PASSWORD = "nobody-knows-it"


def held(number: int) -> list[Any]:
    """A flow as stitching holds it."""
    at = time.time()
    first = orjson.dumps({**flow(start=at - 9, end=at - 8, meta={"id": f"id-{number}"}), "@ingest_time": "2026-01-01T00:00:00.000Z"})
    return [first, 2, at - 9, at - 8, 1_000 + number, 10, int(at * 1000) - 9_000, int(at * 1000) - 9_000, at, at, 630.0, 0]


def row(number: int) -> Finished:
    first, parts, start, end, bits, packets, *_ = held(number)
    return (first, parts, start, end, bits, packets, "2026-01-01T00:00:00.000Z", "")


def fill(directory: Path, flows: int = 3, owed: int = 2, commits: int = 4, letters: int = 0) -> State:
    """A ledger with so many flows held and owed and 10 keys a commit."""
    ledger = Ledger(directory)
    stitching: list[Any] = [time.time(), 0.0, 0, time.time() + 86_400, flows, owed, 0, 0]
    for commit in range(commits):
        first = commit == 0
        ledger.write(
            ledger.encode(
                Commit(
                    [bytes([commit, each]) * 8 for each in range(10)],
                    Changes({f"id-{number}": held(number) for number in range(flows)} if first else {}, {}, [], stitching),
                    [row(1_000 + number) for number in range(owed)] if first else [],
                    [b'{"a":"letter"}'] * letters if first else [],
                    [],
                    Counter({("read", "", ""): 5}),
                    time.time(),
                    1.0 * commit,
                )
            )
        )
        if first:
            ledger.state.held.update({f"id-{number}": held(number) for number in range(flows)})
    ledger.close()
    return recovered(directory, touch=False)[0]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A ledger's directory."""
    fill(tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def to_file(tmp_path: Path) -> Path:
    """A chain that writes to flows.ndjson beside it."""
    return conf_with(tmp_path, {"99_output_rabbitmq": None, "99_output_file": f'path = "{tmp_path / "flows.ndjson"}"\n'})


def command(*words: str | Path, state: Path, stdin: bytes = b"", **environment: str) -> Outcome:
    """Ends by itself."""
    around = surroundings(LOOKUPS, **{"NETSAGE_RABBITMQ_URL": NOWHERE, "NETSAGE_STATE": str(state), **environment})
    done = subprocess.run([COMMAND, *words], input=stdin, env=around, capture_output=True, check=False, timeout=60)
    return Outcome(done.returncode, done.stdout, done.stderr.decode())


class Started:
    """A command that goes on until it is told to stop."""

    def __init__(self, *words: str | Path, state: Path, log: Path) -> None:
        self._log = log
        around = surroundings(NETSAGE_RABBITMQ_URL=NOWHERE, NETSAGE_STATE=str(state))
        with log.open("wb") as output:
            self.process = subprocess.Popen([COMMAND, *words], env=around, stdout=output, stderr=output)

    @property
    def said(self) -> str:
        return self._log.read_text()

    def until(self, text: str) -> Started:
        until = time.monotonic() + 60
        while text not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < until, self.said
            time.sleep(0.02)
        return self

    def tell(self, number: signal.Signals) -> int:
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert time.monotonic() - began < 10, self.said
        return code


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    all_of_them: list[Started] = []

    def start(*words: str | Path, state: Path) -> Started:
        all_of_them.append(Started(*words, state=state, log=tmp_path / f"{len(all_of_them)}.log"))
        return all_of_them[-1]

    yield start
    for each in all_of_them:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait(60)


def line_of(outcome: Outcome, code: int) -> str:
    """The one line that was said."""
    assert outcome.code == code, outcome
    assert not outcome.out
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    return lines[0]


def seen(state: State) -> tuple[Any, ...]:
    return state.held, state.outbox, state.slices, state.totals, state.next


def damage(directory: Path) -> None:
    """Of the second of four commits."""
    [path] = segments(directory).values()
    content = bytearray(path.read_bytes())
    at = [place for place in range(len(content)) if content.startswith(b"NSLG", place)][2]
    content[at + 40] ^= 1
    path.write_bytes(content)


# show


def test_show_tells_what_is_held_and_owed_and_the_totals(tmp_path: Path) -> None:
    fill(tmp_path / "state", 1_234, 2, 4, 3)
    outcome = command("ledger", "show", state=tmp_path / "state")
    assert outcome.code == 0
    assert not outcome.err
    lines = outcome.out.decode().splitlines()
    assert lines[0].startswith(f"{tmp_path / 'state'}, ")
    assert lines[0].endswith(" in 1 files, not in use")
    assert lines[1].startswith("held               1,234  flows, 0.")
    assert ", the oldest for " in lines[1]
    assert lines[2].startswith("owed                   2  flows, 0.0 MB, the oldest for ")
    assert lines[3] == "                       3  dead letters, 0.0 MB"
    assert lines[4].startswith("keys                  40  of messages, 0.0 MB of memory, the oldest taken 3 s of work ago")
    assert lines[5:] == ["since the ledger began", "read                  20"]


def test_show_changes_nothing(state: Path) -> None:
    with segments(state)[1].open("ab") as file:
        file.write(b"NSLG\0\0\1\0....")
    before = {path: path.read_bytes() for path in state.iterdir()}
    outcome = command("ledger", "show", state=state)
    assert outcome.code == 0
    assert "cut off               12  bytes at the end" in outcome.out.decode()
    assert {path: path.read_bytes() for path in state.iterdir()} == before


def test_show_looks_once_more_where_a_worker_deletes_what_it_is_about_to_read(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(state)
    read, looks = ledger_file._read, []

    def read_late(path: Path) -> bytes:
        looks.append(path)
        if len(looks) == 1:
            ledger.checkpoint()
        return read(path)

    monkeypatch.setattr(ledger_file, "_read", read_late)
    outcome = run("ledger", "show", NETSAGE_RABBITMQ_URL=NOWHERE, NETSAGE_STATE=str(state))
    ledger.close()
    assert outcome.code == 0, outcome.err
    assert not looks[0].exists()
    assert b"held                   3  flows" in outcome.out
    assert f"in use by process {os.getpid()}".encode() in outcome.out


def test_while_a_worker_runs_show_shows_and_everything_else_is_refused(state: Path, started: Callable[..., Started]) -> None:
    worker = started("run", state=state).until('"works"')
    outcome = command("ledger", "show", state=state)
    assert outcome.code == 0, outcome.err
    assert f"in use by process {worker.process.pid}" in outcome.out.decode().splitlines()[0]
    assert "held                   3  flows" in outcome.out.decode()
    before = seen(recovered(state, touch=False)[0])
    for words in (("run",), ("ledger", "drain"), ("ledger", "purge", "--held", "--yes"), ("ledger", "salvage")):
        refused = command(*words, state=state)
        [line] = [line for line in refused.err.splitlines() if "no such table" not in line]
        assert refused.code == 1
        assert line == (
            f"{state}: is in use by process {worker.process.pid}: "
            "it belongs to one process; give another one a directory of its own (state)"
        )
        assert not refused.out
    assert worker.process.poll() is None
    assert not list(state.glob("damaged-*"))
    assert worker.tell(signal.SIGTERM) == 0
    assert seen(recovered(state, touch=False)[0]) == before


# drain


def test_drain_hands_out_everything_and_nothing_is_held_or_owed_any_more(state: Path, to_file: Path, tmp_path: Path) -> None:
    outcome = command("ledger", "drain", "--conf", to_file, state=state)
    assert (outcome.code, outcome.out) == (0, b"nothing is held and nothing owed any more\n")
    flows = [json.loads(line) for line in (tmp_path / "flows.ndjson").read_bytes().splitlines()]
    assert sorted(each["meta"]["id"] for each in flows) == ["id-0", "id-1", "id-1000", "id-1001", "id-2"]
    assert {each["stitched_flows"] for each in flows} == {2}
    shown = command("ledger", "show", state=state).out.decode()
    assert "held                   0  flows" in shown
    assert "owed                   0  flows" in shown
    assert "keys                  40  of messages" in shown
    assert "written                5" in shown


def test_drain_of_an_empty_ledger_is_done_at_once(tmp_path: Path, to_file: Path) -> None:
    fill(tmp_path / "empty", 0, 0)
    assert command("ledger", "drain", "--conf", to_file, state=tmp_path / "empty").code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_drain_with_the_broker_away_waits_until_it_is_interrupted(
    state: Path, started: Callable[..., Started], number: signal.Signals
) -> None:
    drain = started("ledger", "drain", state=state).until("waits for RabbitMQ")
    time.sleep(1)
    before = sum(path.stat().st_size for path in segments(state).values())
    time.sleep(1.5)
    assert sum(path.stat().st_size for path in segments(state).values()) == before, "the ledger grows while nothing happens"
    assert drain.tell(number) == 130
    assert drain.said.splitlines()[-1] == "interrupted: 0 flows are held and 5 rows owed: run it again"
    assert PASSWORD not in drain.said
    found = recovered(state, touch=False)[0]
    assert (len(found.held), len(found.outbox), found.keys) == (0, 5, 40)


def test_drain_that_is_interrupted_before_it_began_does_not_look_like_done(tmp_path: Path, started: Callable[..., Started]) -> None:
    state = tmp_path / "state"
    before = fill(state, 30_000)
    drain = started("ledger", "drain", state=state)
    until = time.monotonic() + 60
    while not is_locked(state):
        assert time.monotonic() < until
        time.sleep(0.005)
    assert drain.tell(signal.SIGINT) == 130, drain.said
    assert "nothing owed" not in drain.said
    after = recovered(state, touch=False)[0]
    assert after.held.keys() | {row[0] for row in after.outbox.values()} >= before.held.keys() or seen(after) == seen(before)


def is_locked(directory: Path) -> bool:
    with (directory / "lock").open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


# purge


@pytest.mark.parametrize(
    ("options", "gone", "said"),
    [
        (("--held",), {"held"}, "3 held flows"),
        (("--outbox",), {"outbox"}, "2 rows that are owed"),
        (("--keys",), {"slices"}, "40 keys"),
        (("--held", "--outbox", "--keys"), {"held", "outbox", "slices"}, "3 held flows, 2 rows that are owed, 40 keys"),
    ],
)
def test_purge_throws_away_what_is_named_and_nothing_else(state: Path, options: tuple[str, ...], gone: set[str], said: str) -> None:
    before = recovered(state, touch=False)[0]
    outcome = command("ledger", "purge", *options, "--yes", state=state)
    assert (outcome.code, outcome.out.decode(), outcome.err) == (0, f"thrown away: {said}\n", "")
    after = recovered(state)[0]
    for part in ("held", "outbox", "slices"):
        assert getattr(after, part) == ({} if part in gone else getattr(before, part)), part
    assert (after.totals, after.next, after.ledger, after.arrival) == (before.totals, before.next, before.ledger, before.arrival)


def test_purge_asks_and_does_nothing_without_a_yes(state: Path) -> None:
    for answer in (b"n\n", b"\n", b""):
        outcome = command("ledger", "purge", "--held", state=state, stdin=answer)
        assert outcome.code == 1
        assert f"{state}: throw away 3 held flows? [y/N]" in outcome.err
        assert not outcome.out
    assert len(recovered(state)[0].held) == 3
    outcome = command("ledger", "purge", "--held", state=state, stdin=b"y\n")
    assert (outcome.code, outcome.out) == (0, b"thrown away: 3 held flows\n")
    assert not recovered(state)[0].held


def test_purge_wants_to_know_what(state: Path) -> None:
    outcome = command("ledger", "purge", "--yes", state=state)
    assert outcome.code == 2
    assert "--held, --outbox, --keys" in outcome.err


# salvage, and what is damaged


def test_a_damaged_ledger_is_refused_and_after_salvage_the_worker_starts(state: Path, started: Callable[..., Started]) -> None:
    damage(state)
    for words in (("run",), ("ledger", "show"), ("ledger", "drain"), ("ledger", "purge", "--keys", "--yes")):
        outcome = command(*words, state=state)
        [line] = [line for line in outcome.err.splitlines() if "no such table" not in line]
        assert outcome.code == 1
        assert f"{state}/journal-00000001: is damaged at byte " in line
        assert "netsage-pipeline ledger salvage" in line
    outcome = command("ledger", "salvage", state=state)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.decode().splitlines()
    assert lines[0].startswith(f"{state}/journal-00000001: bytes ")
    assert lines[0].endswith(": cannot be read, passed over")
    assert lines[1].startswith("held                   3  flows")
    [aside] = state.glob("damaged-*")
    assert str(aside) in lines[-1]
    assert (aside / "journal-00000001").exists()
    worker = started("run", state=state).until('"works"')
    assert worker.tell(signal.SIGTERM) == 0
    found = recovered(state)[0]
    assert (len(found.held), len(found.outbox), found.keys) == (3, 2, 30)


def test_salvage_of_a_sound_ledger_says_so(state: Path) -> None:
    outcome = command("ledger", "salvage", state=state)
    assert outcome.code == 0
    assert outcome.out.decode().splitlines()[0] == "nothing was damaged"


# directories and settings


@pytest.mark.parametrize("words", [("show",), ("drain",), ("purge", "--held", "--yes"), ("salvage",)], ids=lambda words: words[0])
def test_where_no_ledger_is_a_line_says_so_and_none_is_made(tmp_path: Path, words: tuple[str, ...]) -> None:
    line = line_of(command("ledger", *words, state=tmp_path / "state"), 1)
    assert line.startswith(f"{tmp_path / 'state'}: there is no ledger")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("words", [("run",), ("ledger", "drain")], ids=lambda words: words[-1])
def test_a_state_that_is_a_file_or_cannot_be_written_is_named_in_a_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    for state in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nobody/state")):
        outcome = command(*words, state=state)
        [line] = [line for line in outcome.err.splitlines() if "no such table" not in line]
        assert outcome.code == 1
        assert line.startswith(f"{state}: {'cannot be used for its state: ' if words == ('run',) else 'there is no ledger: '}")
        assert ("name another directory (state)" if words == ("run",) else "NETSAGE_STATE") in line


def test_whoever_may_not_write_the_ledger_is_told_so() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    # It becomes somebody else when it comes to the ledger, because Python itself may lie where only root can read.
    program = """
import os
from netsage_pipeline.worker import ledger
from netsage_pipeline.cli import main
locked = ledger.locked
ledger.locked = lambda directory: (os.setgroups([]), os.setgid(65534), os.setuid(65534), locked(directory))[-1]
main()
"""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        fill(directory / "state")
        (directory / "state").chmod(0o755)
        around = surroundings(NETSAGE_RABBITMQ_URL=NOWHERE, NETSAGE_STATE=str(directory / "state"))
        done = subprocess.run([sys.executable, "-c", program, "run"], env=around, capture_output=True, text=True, check=False, timeout=60)
        [line] = [line for line in done.stderr.splitlines() if "no such table" not in line]
        assert done.returncode == 1, done.stderr
        assert line == f"{directory / 'state'}: cannot be used for its state: Permission denied: name another directory (state)"


@pytest.mark.parametrize("words", [("run",), ("ledger", "drain")], ids=lambda words: words[-1])
def test_a_mark_of_what_is_at_work_that_cannot_be_written_is_named_in_a_line(state: Path, words: tuple[str, ...]) -> None:
    (state / "at-work").mkdir()
    outcome = command(*words, state=state, NETSAGE_LOG_LEVEL="warning")
    [line] = [line for line in outcome.err.splitlines() if "no such table" not in line]
    assert outcome.code == 1
    assert line.startswith(f"{state / 'at-work'}: cannot be written: Is a directory")


@pytest.mark.parametrize("words", [("run",), ("ledger", "drain")], ids=lambda words: words[-1])
def test_a_chain_that_holds_no_flows_is_refused_where_the_ledger_does(state: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    without = conf_with(tmp_path, {"40_aggregation": None, "99_output_rabbitmq": "allow_full_addresses = true"})
    outcome = command(*words, "--conf", without, state=state)
    [line] = [line for line in outcome.err.splitlines() if "no such table" not in line]
    assert outcome.code == 2
    assert line == (
        f"{state}: is the ledger of a chain that holds flows, but no stage of this chain does: enable 40_aggregation, "
        "or give it a directory of its own (state)"
    )
    assert len(recovered(state)[0].held) == 3
    command("ledger", "purge", "--held", "--yes", state=state)
    assert command(*words, "--conf", without, state=state).code == 2, "what is owed was stitched, too"


@pytest.mark.parametrize("words", [("run",), ("ledger", "drain"), ("ledger", "show")], ids=lambda words: words[-1])
def test_a_chain_with_no_input_or_with_two_is_refused(state: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    conf = conf_with(tmp_path, {"01_input_rabbitmq": None})
    line = line_of(command(*words, "--conf", conf, state=state), 2)
    assert line == "the chain has none, but it needs one input: enable one of them, such as 01_input_rabbitmq"
    if words[-1] == "show":
        return
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(Path("stages/01_input_rabbitmq.py").resolve(), own / "02_input_again.py")
    shutil.copy(Path("conf.d/01_input_rabbitmq.toml").resolve(), conf / "01_input_rabbitmq.toml")
    (conf / "02_input_again.toml").write_text("")
    line = line_of(command(*words, "--conf", conf, "--stages", own, state=state), 2)
    assert (
        line == "the chain has 2: 01_input_rabbitmq, 02_input_again, but it needs one input: enable one of them, such as 01_input_rabbitmq"
    )


@pytest.mark.parametrize("words", [("show",), ("drain",), ("purge", "--keys", "--yes"), ("salvage",)], ids=lambda words: words[0])
def test_a_chain_with_stages_of_an_operators_own_has_a_ledger_too(
    state: Path, to_file: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    own = stage_file(tmp_path / "own", "65_mine", "return flow")
    (to_file / "65_mine.toml").write_text("")
    assert command("ledger", *words, "--conf", to_file, "--stages", own, state=state).code == 0
    assert command("ledger", *words, "--conf", to_file, state=state).code == 2


def test_a_chain_without_an_output_is_refused(state: Path, tmp_path: Path) -> None:
    line = line_of(command("run", "--conf", conf_with(tmp_path, {"99_output_rabbitmq": None}), state=state), 2)
    assert line == "the chain has none, but it needs one output: enable one of them, such as 99_output_rabbitmq"


def test_a_worker_does_not_write_to_a_file_that_the_next_one_would_replace(state: Path, to_file: Path) -> None:
    line = line_of(command("run", "--conf", to_file, state=state), 2)
    settings = to_file / "99_output_file.toml"
    assert line == f"{settings}: replaces its file at every start, so a worker would lose what it wrote: use replay"


@pytest.mark.parametrize("url", ["http://u:nobody-knows-it@h/", "amqp://u:nobody-knows-it/@h/", "amqp://u:nobody-knows-it@:5672/"])
@pytest.mark.parametrize("words", [("run",), ("ledger", "drain"), ("ledger", "show")], ids=lambda words: words[-1])
def test_a_wrong_url_is_told_without_its_password(state: Path, words: tuple[str, ...], url: str) -> None:
    outcome = command(*words, state=state, NETSAGE_RABBITMQ_URL=url)
    assert outcome.code == 2
    assert not outcome.out
    lines = outcome.err.splitlines()
    assert len(lines) == 2  # One for each file that names it.
    assert all(": url: " in line for line in lines)
    assert PASSWORD not in outcome.err


def test_a_wrong_log_level_is_told(state: Path) -> None:
    line = line_of(command("run", state=state, NETSAGE_LOG_LEVEL="loud"), 2)
    assert line == "NETSAGE_LOG_LEVEL: 'loud' is none of debug, info, warning, error, critical"


# Log lines


@pytest.mark.parametrize("level", ["debug", "INFO", "warning"])
def test_log_lines_are_json_where_no_terminal_is_and_hold_no_password(state: Path, tmp_path: Path, level: str) -> None:
    log = tmp_path / "log"
    around = surroundings(NETSAGE_RABBITMQ_URL=NOWHERE, NETSAGE_STATE=str(state), NETSAGE_LOG_LEVEL=level)
    with log.open("wb") as output:
        worker = subprocess.Popen([COMMAND, "run"], env=around, stdout=output, stderr=output)
    try:
        until = time.monotonic() + 60
        while "waits for RabbitMQ" not in log.read_text():
            assert worker.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        worker.terminate()
        assert worker.wait(30) == 0
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait(30)
    assert PASSWORD not in log.read_text()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "event"} <= event.keys() for event in events)
    assert ("stopped" in {event["event"] for event in events}) is (level != "warning")
    levels = {event["level"] for event in events}
    assert levels <= {"debug": {"debug", "info", "warning", "error"}, "INFO": {"info", "warning", "error"}}.get(level, {"warning", "error"})
