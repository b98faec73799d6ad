"""Copies of files that are replaced while they are read: what was in one writing never stands beside what was in another."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from netsage_pipeline.pmacct_plugin import snapshot
from netsage_pipeline.pmacct_plugin.snapshot import snapshots


def read(path: Path) -> list[tuple[bytes, bool]]:
    found = []
    for each in snapshots(path):
        with each.file:
            found.append((each.file.read(), each.rewritten))
    return found


def test_a_file_that_stays_is_copied_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    os.utime(tmp_path / "file", (1_700_000_000, 1_700_000_000))
    (taken,) = snapshots(tmp_path / "file")
    with taken.file:
        assert taken.file.read() == b"x" * 3_000_000
    assert (taken.modified, taken.rewritten) == (1_700_000_000, False)


def test_a_named_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            for _ in range(3):
                pipe.write(b"line\n")
                time.sleep(0.2)

    writer = threading.Thread(target=write)
    writer.start()
    assert read(tmp_path / "pipe") == [(b"line\n" * 3, False)]
    writer.join()


@pytest.mark.parametrize("chunk", [100, 1_000])
def test_a_file_that_is_written_anew_over_and_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Whatever moment is hit: each copy is of one writing, up to somewhere, and the last one is whole as it stood there."""
    monkeypatch.setattr(snapshot, "_CHUNK", chunk)
    path = tmp_path / "file"
    lines = 5_000

    def write(generation: int) -> None:
        with path.open("wb") as file:
            for line in range(lines):
                file.write(b"%06d %04d\n" % (generation, line))
                if line % 100 == 0:
                    file.flush()

    write(0)
    stop = threading.Event()

    def go_on() -> None:
        generation = 0
        while not stop.is_set():
            generation += 1
            write(generation)
            time.sleep(0.005)

    writer = threading.Thread(target=go_on)
    writer.start()
    reads = rewritten = 0
    until = time.monotonic() + 60
    try:
        while reads < 40 or (not rewritten and time.monotonic() < until):  # A read can be too quick to be hit.
            reads += 1
            for content, again in read(path):
                rewritten += again
                whole = content.split(b"\n")[:-1]
                assert len({line[:6] for line in whole}) <= 1
                assert [int(line[7:]) for line in whole] == list(range(len(whole)))
    finally:
        stop.set()
        writer.join()
    assert rewritten


def test_a_file_that_only_grows_is_not_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first\n" * 100)
    monkeypatch.setattr(snapshot, "_CHUNK", 64)
    grown: list[int] = []
    stat = os.fstat

    def growing(number: int) -> os.stat_result:
        if len(grown) < 20:
            grown.append(1)
            with path.open("ab") as file:
                file.write(b"later\n")
        return stat(number)

    monkeypatch.setattr(os, "fstat", growing)
    assert read(path) == [(b"first\n" * 100 + b"later\n" * 20, False)]


def test_a_file_that_is_replaced_by_another_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"old\n" * 100)
    other.write_bytes(b"new\n")
    monkeypatch.setattr(snapshot, "_CHUNK", 64)
    stat = os.fstat

    def replacing(number: int) -> os.stat_result:
        if other.exists():
            other.replace(path)
        return stat(number)

    monkeypatch.setattr(os, "fstat", replacing)
    assert read(path) == [(b"old\n" * 100, False)]
