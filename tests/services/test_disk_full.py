"""A disk without room for the ledger: the worker takes no more, acknowledges nothing that is not stored, and goes on by itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.conftest import absent
from tests.services.load import Limited, Load, Part, Piped, as_single, documents, steadily, sums
from tests.services.rabbitmq import Broker, wait_for


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 30 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "none", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        absent("a file system that can be mounted")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@pytest.fixture
def run(broker: Broker, tmp_path: Path, disk: Path) -> Iterator[Piped]:
    made = Piped(broker, tmp_path / "run", NETSAGE_STATE=str(disk / "state"))
    made.ledger = disk / "state"
    yield made
    made.end()


def fill(disk: Path) -> Path:
    """Takes what room there is."""
    with (disk / "fill").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return disk / "fill"


def unacknowledged(run: Piped) -> tuple[int, int]:
    """Messages of the input queue that are at the worker, and that are not."""
    for line in run.broker.ctl("-q", "list_queues", "name", "messages_unacknowledged", "messages_ready").splitlines():
        name, *numbers = line.split()
        if name == run.input:
            return int(numbers[0]), int(numbers[1])
    raise AssertionError("no such queue")


def over(worker: Limited) -> list[dict[str, Any]]:
    """Its lines about what it does not wait for any more."""
    return [event for event in worker.says("goes on") if "waited_for" in event]


def test_on_a_full_disk_it_waits_and_nothing_is_lost_or_counted_twice(run: Piped, disk: Path) -> None:
    worker = run.begin().works()
    load = Load(run.broker, [run.input], steadily(1_000, 50, 2_000))
    load.start()
    wait_for(lambda: run.state.totals["read", "", ""] > 1_000)
    filling = fill(disk)
    wait_for(lambda: bool(worker.says("waits for room")), 20)
    stored, size = run.state.keys, sum(path.stat().st_size for path in run.ledger.glob("journal-*"))
    first = worker.resident
    time.sleep(3)
    assert (run.state.keys, sum(path.stat().st_size for path in run.ledger.glob("journal-*"))) == (stored, size)
    published = len(load.parts) // 50
    kept, ready = unacknowledged(run)
    assert kept + ready >= published - stored > 50, "what is not stored was acknowledged"
    assert worker.resident - first < 50_000_000
    [said] = worker.says("waits for")
    assert (said["level"], "No space left" in said["reason"]) == ("warning", True)
    assert "alive, not ready: waits for room on the disk of the ledger: " in run.command("health").out.decode()

    # Told to stop in that state, and started again in it.
    worker.tell(signal.SIGTERM)
    assert run.state.keys == stored
    worker = run.begin().works()
    wait_for(lambda: bool(worker.says("waits for room")), 20)
    assert run.state.keys == stored

    # Killed in it, too.
    worker.kill()
    worker = run.begin().works()
    wait_for(lambda: bool(worker.says("waits for room")), 20)
    assert run.state.keys == stored

    filling.unlink()
    wait_for(lambda: run.state.keys > stored + 100, 30)
    parts: list[Part] = load.stop()
    run.finished()
    assert [event["event"].partition(" ")[0] for event in worker.events if "room" in str(event)] == ["waits", "goes"]
    worker.tell(signal.SIGTERM)
    assert sums(documents(run.flows())) == sums(as_single(parts))
    totals = run.state.totals
    assert (totals["read", "", ""], run.state.keys) == (len(parts), len(parts) // 50)
    assert not run.letters()


def test_a_disk_that_fills_up_while_the_output_is_waited_for_is_told_too(run: Piped, disk: Path) -> None:
    run.limits = {"worker.run:OUTBOX_ROWS": 100, "worker.run:CLOCK_S": 0.05}  # It has to store something before a page is full.
    run.environment["NETSAGE_INACTIVITY_TIMEOUT_S"] = "1"
    run.environment["NETSAGE_OUTPUT_KEY"] = f"{run.output}-refusing"
    run.broker.declare(f"{run.output}-refusing", **{"x-max-length": 0, "x-overflow": "reject-publish"})
    worker = run.begin().works()
    load = Load(run.broker, [run.input], steadily(500, 50, 1 << 30))
    load.start()
    wait_for(lambda: bool(worker.says("waits for the output")), 40)
    filling = fill(disk)
    wait_for(lambda: bool(worker.says("waits for room")), 20)
    assert not over(worker)
    filling.unlink()
    wait_for(lambda: bool(over(worker)), 20)
    [said] = over(worker)
    assert "room" in said["waited_for"], "the output is still waited for"
    load.stop()
    worker.tell(signal.SIGTERM)
    with run.broker.channel() as channel:
        channel.queue_delete(f"{run.output}-refusing")


def test_a_ledger_is_begun_only_where_there_is_room(run: Piped, disk: Path) -> None:
    fill(disk)
    worker = run.begin()
    assert not worker.lasts(60)
    assert worker.code == 1
    *before, line = worker.whole_log.splitlines()
    assert all("no such table" in each for each in before)
    assert line.startswith(str(run.ledger))
    assert "No space left on device" in line
    assert os.listdir(disk) != []  # noqa: PTH208
