"""The importer and what happens to capture files: each row of a file becomes part of exactly one message, whatever is done to the file."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from netsage_pipeline.flow import Delivery
from netsage_pipeline.importer.imported import FILE, Imported
from netsage_pipeline.importer.importing import AGAIN_S, KEEP_S, Importer, Sensor
from netsage_pipeline.reading.nfdump import Reading, Rows
from netsage_pipeline.statedir import StateError
from tests.services.conftest import Collect
from tests.services.netflow import Sent, ipfix
from tests.services.rabbitmq import wait_for
from tests.services.test_nfdump import put_first_in_path

POLL_S = 0.05


class Site:
    """A directory of captures and an importer, which can be killed; what it sent, and what its receiver took of that."""

    def __init__(self, directory: Path, **sensor: Any) -> None:
        self.captures, self.state = directory / "captures", directory / "state"
        self.captures.mkdir(parents=True)
        self.state.mkdir()
        self.sensors = [Sensor(name="sensor", directory=self.captures, **{"min_bytes": 0, "min_file_age_s": 0, **sensor})]
        self.taken: dict[str, bytes] = {}
        self.repeated = 0
        self.importer = self.start()

    def start(self) -> Importer:
        self.last: Delivery | None = None  #: of what this importer delivered
        self.importer = Importer(self.sensors, self.state, POLL_S)
        return self.importer

    def kill(self) -> None:
        """As SIGKILL does: nothing more is written down."""
        self.importer._steps.close()
        self.importer._imported.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def take(self, deliveries: list[Delivery]) -> None:
        """As the worker does: what comes under the same id is the same."""
        for body, known_as, _ in deliveries:
            self.repeated += known_as in self.taken
            assert self.taken.setdefault(known_as, body) == body
        self.last = deliveries[-1] if deliveries else self.last

    def run(self) -> list[int]:
        """Imports until there is nothing to do in a look that began later, and acknowledges all; the ports of the flows that came."""
        before = set(self.taken)
        looks = self.looks()
        wait_for(lambda: self.importer.caught_up and next(looks) > 2, 20, self.turn)
        flows = [flow for known_as, body in self.taken.items() if known_as not in before for flow in orjson.loads(body)]
        return sorted(flow["meta"]["src_port"] for flow in flows)

    def turn(self) -> None:
        self.take(self.importer.receive(0.01))
        if self.last:
            self.importer.acknowledge(self.last.receipt)
            self.last = None

    def looks(self) -> Iterator[int]:
        """How many looks through the directories there were."""
        began = time.monotonic()
        while True:
            yield int((time.monotonic() - began) / (POLL_S * 1.5))

    @property
    def ports(self) -> list[int]:
        """Of all flows that were taken."""
        return sorted(flow["meta"]["src_port"] for body in self.taken.values() for flow in orjson.loads(body))


class Content(bytes):
    """Of a file; too much to be shown."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.kill()


@pytest.fixture(scope="session")
def snapshots(collect: Collect, tmp_path_factory: pytest.TempPathFactory) -> list[list[bytes]]:
    """Two files of nfcapd, each as it was after its first, second and third nfcapd within the interval. 250 flows by each of them."""
    made: list[list[bytes]] = []
    for family in range(2):
        directory = tmp_path_factory.mktemp("family")
        made.append([])
        for number in range(3):
            first = 1 + 1_000 * (3 * family + number)
            file = collect(directory, ipfix([Sent(src_port=port, start_ms=1_700_000_000_000 + port) for port in range(first, first + 250)]))
            made[-1].append(Content(file.read_bytes()))
    return made


def ports_of(family: int, number: int) -> list[int]:
    """The flows of a snapshot."""
    return [port for each in range(number + 1) for port in range(1 + 1_000 * (3 * family + each), 251 + 1_000 * (3 * family + each))]


def events(logs: Any, event: str) -> list[str]:
    return [Path(line["file"]).name for line in logs if line["event"] == event]


def test_a_file_that_grows_gives_only_what_is_new(site: Site, snapshots: list[list[bytes]]) -> None:
    file = site.captures / "nfcapd.202311142210"
    got = []
    with capture_logs() as logs:
        for content in snapshots[0]:
            file.write_bytes(content)
            got.append(site.run())
    whole = ports_of(0, 2)
    assert got == [whole[:250], whole[250:500], whole[500:]]
    assert events(logs, "file grew after it was imported: what is new in it is sent") == [file.name] * 2
    assert not list(site.state.glob("part-*"))


def test_an_earlier_state_of_an_imported_file_is_known(site: Site, snapshots: list[list[bytes]]) -> None:
    for number, content in enumerate(reversed(snapshots[0])):
        (site.captures / f"nfcapd.20231114221{number}").write_bytes(content)
        assert site.run() == (ports_of(0, 2) if number == 0 else [])
    assert site.importer.counts["known files", "", ""] == 2


def test_an_earlier_state_of_a_file_that_is_on_its_way_waits_for_it(site: Site, snapshots: list[list[bytes]]) -> None:
    (site.captures / "nfcapd.202311142210").write_bytes(snapshots[0][1])
    (site.captures / "nfcapd.202311142211").write_bytes(snapshots[0][0])
    began = time.monotonic()
    while time.monotonic() - began < 2:  # Nothing is acknowledged yet, when the second file's turn comes.
        site.take(site.importer.receive(0.05))
    assert site.ports == ports_of(0, 1)
    site.run()
    assert site.ports == ports_of(0, 1)
    assert site.importer.counts["known files", "", ""] == 1


def test_of_a_file_that_went_on_otherwise_only_the_rest_is_sent(
    site: Site, snapshots: list[list[bytes]], collect: Collect, tmp_path: Path
) -> None:
    (site.captures / "nfcapd.202311142210").write_bytes(snapshots[0][1])
    site.run()
    other = tmp_path / "other"
    other.mkdir()
    file = collect(other, ipfix([Sent(src_port=6_666, start_ms=1_700_000_006_000)]))
    file.write_bytes(snapshots[0][0])
    assert collect(other, ipfix([Sent(src_port=7_777, start_ms=1_700_000_007_000)])) == file
    (site.captures / "nfcapd.202311142215").write_bytes(file.read_bytes())
    assert site.run() == [7_777]


def test_a_file_that_grew_under_another_name_gives_only_what_is_new(site: Site, snapshots: list[list[bytes]]) -> None:
    (site.captures / "nfcapd.202311142210").write_bytes(snapshots[0][0])
    site.run()
    (site.captures / "nfcapd.202311142210").unlink()
    (site.captures / "moved").mkdir()
    (site.captures / "moved" / "nfcapd.202311142211").write_bytes(snapshots[0][1])
    assert site.run() == ports_of(0, 1)[250:]


def test_a_file_that_grew_while_its_first_part_was_on_its_way(site: Site, snapshots: list[list[bytes]]) -> None:
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(snapshots[0][0])
    first: list[Delivery] = []
    wait_for(lambda: len(first) >= 2, doing=lambda: first.extend(site.importer.receive(0.05)))
    site.take(first)
    site.importer.acknowledge(first[0].receipt)
    site.importer._wrote_at = 0.0
    site.importer.receive(0.0)
    site.restart()
    file.write_bytes(snapshots[0][2])
    site.run()
    assert site.ports == ports_of(0, 2)
    assert len(site.taken) == 3 + 5


def test_a_truncated_file_is_said_once_and_imported_when_it_is_whole(site: Site, snapshots: list[list[bytes]]) -> None:
    file, other = site.captures / "nfcapd.202311142210", site.captures / "nfcapd.202311142215"
    other.write_bytes(snapshots[1][0])
    with capture_logs() as logs:
        for size in (3, 30, 50, 10_000):
            file.write_bytes(snapshots[0][0][:size])
            site.run()
    assert events(logs, "is not imported") == [file.name] * 4
    assert site.ports == ports_of(1, 0)
    file.write_bytes(snapshots[0][0])
    assert site.run() == ports_of(0, 0)


def test_a_file_that_was_truncated_after_it_was_imported(site: Site, snapshots: list[list[bytes]]) -> None:
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(snapshots[0][1])
    site.run()
    with capture_logs() as logs:
        file.write_bytes(snapshots[0][1][:20_000])
        assert site.run() == []
        assert site.run() == []
    assert events(logs, "is not imported") == [file.name]
    file.write_bytes(snapshots[0][1])
    assert site.run() == []


def test_a_file_that_was_replaced_is_another_file(site: Site, snapshots: list[list[bytes]]) -> None:
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(snapshots[0][0])
    site.run()
    with capture_logs() as logs:
        file.write_bytes(snapshots[1][1])
        assert site.run() == ports_of(1, 1)
        file.write_bytes(snapshots[0][0])
        assert site.run() == []
    assert events(logs, "file was replaced by another one, which is imported") == [file.name]


def corrupt(content: bytes) -> bytes:
    return content[:44] + struct.pack("=I", 0x00FFFFF0) + content[48:]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda _: b"\xd4\xc3\xb2\xa1" + bytes(100), "it is no file of nfcapd", id="a pcap file"),
        pytest.param(lambda _: b"\x1f\x8b\x08\x00" + bytes(100), "it is no file of nfcapd", id="gzip"),
        pytest.param(lambda _: b"x", "it is no file of nfcapd", id="a byte"),
        pytest.param(lambda whole: b"\x0c\xa5\x03\x00" + whole[4:], "it is no file of nfcapd", id="a layout that nobody knows"),
        pytest.param(lambda whole: b"\xa5\x0c\x00\x02" + whole[4:], "it is truncated", id="the other byte order"),
        pytest.param(corrupt, "its first block is truncated", id="a wrong length"),
        pytest.param(lambda whole: whole[:52] + b"\xff" * 400 + whole[452:], "nfdump cannot read it: ", id="a corrupt block"),
    ],
)
def test_what_is_no_sound_file_is_said_once_and_keeps_no_other_back(
    site: Site, snapshots: list[list[bytes]], damage: Callable[[bytes], bytes], reason: str
) -> None:
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(damage(snapshots[0][0]))
    (site.captures / "nfcapd.202311142215").write_bytes(snapshots[1][0])
    with capture_logs() as logs:
        assert site.run() == ports_of(1, 0)
        site.run()
    (line,) = [line for line in logs if line["event"] == "is not imported"]
    assert line["file"] == str(file)
    assert line["reason"].startswith(reason)
    assert line["reason"].endswith(": copy it again or move it away")
    assert "\n" not in line["reason"]
    file.write_bytes(snapshots[0][0])
    assert site.run() == ports_of(0, 0)


def test_a_file_that_is_exchanged_before_nfdump_reads_it_is_not_sent_as_what_it_was(
    site: Site, snapshots: list[list[bytes]], monkeypatch: Any
) -> None:
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(snapshots[0][0])
    begin = Reading.__init__

    def exchanged(reading: Reading, path: Path, rows: Rows) -> None:
        if file.read_bytes() == snapshots[0][0]:
            (site.captures / ".new").write_bytes(snapshots[1][0])
            (site.captures / ".new").replace(file)
        begin(reading, path, rows)

    monkeypatch.setattr(Reading, "__init__", exchanged)
    assert site.run() == ports_of(1, 0)


def test_a_renamed_copied_touched_or_rewritten_file_is_known(site: Site, snapshots: list[list[bytes]]) -> None:
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(snapshots[0][0])
    assert site.run() == ports_of(0, 0)
    with capture_logs() as logs:
        file = file.rename(site.captures / "nfcapd.renamed")
        site.run()
        shutil.copy(file, site.captures / "nfcapd.copied")
        site.run()
        os.utime(file, (1, 1))
        site.run()
        file.write_bytes(snapshots[0][0])
        site.run()
    assert site.ports == ports_of(0, 0)
    assert not site.repeated
    assert [line["log_level"] for line in logs] == ["debug"] * 4


def test_copies_that_come_at_once_are_imported_once(site: Site, snapshots: list[list[bytes]]) -> None:
    for name in ("a", "b", "c"):
        (site.captures / name).write_bytes(snapshots[0][0])
    got: list[Delivery] = []
    until = time.monotonic() + 0.5
    while time.monotonic() < until:  # All of them are looked at while the first is on its way.
        got += site.importer.receive(0.01)
    assert len(got) == 3
    site.take(got)
    site.importer.acknowledge(got[-1].receipt)
    assert site.run() == []
    assert site.ports == ports_of(0, 0)
    assert site.importer.counts["known files", "", ""] == 2


def test_what_was_imported_is_known_to_the_next_process_and_not_read_again(
    site: Site, snapshots: list[list[bytes]], monkeypatch: Any
) -> None:
    (site.captures / "nfcapd.202311142210").write_bytes(snapshots[0][0])
    site.run()
    site.restart()
    with monkeypatch.context() as patch:
        patch.setattr(Importer, "_import", None)
        assert site.run() == []


def test_killed_before_anything_was_acknowledged_the_same_messages_come_again(site: Site, snapshots: list[list[bytes]]) -> None:
    (site.captures / "nfcapd.202311142210").write_bytes(snapshots[0][2])
    got: list[Delivery] = []
    wait_for(lambda: len(got) == 8, doing=lambda: got.extend(site.importer.receive(0.05)))
    site.take(got)
    site.restart()
    assert site.run() == []
    assert site.repeated == 8
    assert site.ports == ports_of(0, 2)


def test_names_of_any_bytes(site: Site, snapshots: list[list[bytes]]) -> None:
    file = Path(os.fsdecode(os.fsencode(site.captures) + b"/-r it's $(x)\xff\n"))
    file.write_bytes(snapshots[0][0])
    assert site.run() == ports_of(0, 0)
    site.restart()
    assert site.run() == []
    with capture_logs() as logs:
        file.write_bytes(b"x")
        site.run()
    assert logs[0]["file"].endswith("/-r it's $(x)\\xff\n")


def test_what_nfcapd_writes_at_the_moment_what_is_hidden_and_what_is_empty_is_passed_over(
    site: Site, snapshots: list[list[bytes]], collect: Collect, tmp_path: Path
) -> None:
    for name in ("nfcapd.current", "nfcapd.current.4711", ".nfcapd.202311142210"):
        (site.captures / name).write_bytes(snapshots[0][0])
    (site.captures / "nothing").touch()
    for directory in (tmp_path / "elsewhere", site.captures / ".snapshot"):
        directory.mkdir()
        (directory / "nfcapd.202311142215").write_bytes(snapshots[0][1])
    (site.captures / "link").symlink_to(tmp_path / "elsewhere")
    shutil.move(collect(tmp_path / "empty", []), site.captures / "nfcapd.202311142220")
    (site.captures / "nfcapd.202311142225").write_bytes(struct.pack("<HHII", 0xA50C, 1, 0, 0) + bytes(264))
    with capture_logs() as logs:
        assert site.run() == []
    assert {line["log_level"] for line in logs} == {"debug"}


def test_an_open_file_is_waited_for_and_said_when_it_is_an_hour_old(site: Site, collect: Collect, tmp_path: Path) -> None:
    flows = [Sent(src_port=number, dst_ip=f"141.211.{number // 250}.2") for number in range(1, 12_001)]
    left = collect(tmp_path / "left", ipfix(flows), stop=signal.SIGKILL)
    file = site.captures / "nfcapd.202311142210"
    shutil.copy(left, file)
    with capture_logs() as logs:
        assert site.run() == []
        assert not logs
        os.utime(file, (time.time() - 3_601,) * 2)
        assert site.run() == []
        assert site.run() == []
    (line,) = logs
    assert line["reason"].startswith("nfcapd never closed it")
    shutil.copy(collect(tmp_path / "closed", ipfix(flows)), file)
    assert site.run() == list(range(1, 12_001))


def test_a_young_file_is_waited_for(tmp_path: Path, snapshots: list[list[bytes]]) -> None:
    site = Site(tmp_path, min_file_age_s=1.5)
    young, old, ahead = (site.captures / name for name in ("young", "old", "ahead"))
    began = time.monotonic()
    for path, content, age in ((young, snapshots[0][0], 0), (old, snapshots[1][0], 2), (ahead, snapshots[1][1], -86_400)):
        path.write_bytes(content)
        os.utime(path, (time.time() - age,) * 2)
    assert site.run() == ports_of(1, 0)
    assert time.monotonic() - began < 1
    wait_for(lambda: len(site.ports) == 750, 10, site.turn)
    assert time.monotonic() - began > 1.5
    site.kill()


def test_only_what_one_exporter_sent(collect: Collect, tmp_path: Path) -> None:
    datagrams = ipfix([Sent(src_port=number, octets=1_000) for number in range(1, 101)])
    file = collect(tmp_path / "collected", datagrams, sources=("127.0.0.1", "127.0.0.2"))
    bits = {}
    for router in ("127.0.0.1", "127.0.0.2", "127.0.0.3", ""):
        site = Site(tmp_path / f"site-{router}", router=router)
        shutil.copy(file, site.captures)
        site.run()
        bits[router] = [flow["values"]["num_bits"] for body in site.taken.values() for flow in orjson.loads(body)]
        site.kill()
    assert bits == {"127.0.0.1": [8_000] * 100, "127.0.0.2": [8_000] * 100, "127.0.0.3": [], "": [16_000] * 100}


def test_the_minimum_of_bytes_counts_after_aggregation_and_what_is_below_is_counted(collect: Collect, tmp_path: Path) -> None:
    site = Site(tmp_path, min_bytes=1_000)
    sent = [Sent(src_port=1, octets=600), Sent(src_port=1, octets=400), Sent(src_port=2, octets=999), Sent(src_port=3, octets=1_000)]
    shutil.move(collect(tmp_path / "collected", ipfix(sent)), site.captures)
    assert site.run() == [1, 3]
    counts = {word: number for (word, _, _), number in site.importer.counts.items() if number}
    assert counts == {"files": 1, "read": 3, "written": 2, "dropped": 1}
    site.kill()


def test_a_file_is_deleted_when_it_is_old_and_still_what_was_imported(tmp_path: Path, snapshots: list[list[bytes]]) -> None:
    site = Site(tmp_path, delete_after_days=3)
    names = ("imported", "fresh", "broken", "changed")
    imported, fresh, broken, changed = (site.captures / name for name in names)
    imported.write_bytes(snapshots[0][0])
    fresh.write_bytes(snapshots[1][0])
    broken.write_bytes(snapshots[0][0][:5_000])
    changed.write_bytes(snapshots[0][0])
    site.run()
    known = changed.stat()
    changed.write_bytes(snapshots[0][0][:-1] + b"?")  # Its appendix; then its blocks, without its signature telling.
    site.run()
    for path in (imported, broken, changed):
        os.utime(path, (time.time() - 4 * 86_400,) * 2)
    changed.write_bytes(snapshots[1][0][:7_000])
    os.utime(changed, (time.time() - 4 * 86_400,) * 2)
    assert known.st_ino == changed.stat().st_ino
    with capture_logs() as logs:
        site.run()
    assert {path.name for path in site.captures.iterdir()} == {"fresh", "broken", "changed"}
    assert events(logs, "deleted") == ["imported"]
    imported.write_bytes(snapshots[0][0])
    assert site.run() == []
    site.kill()


def test_a_file_that_another_sensor_has_not_imported_yet_is_not_deleted(tmp_path: Path, snapshots: list[list[bytes]]) -> None:
    site = Site(tmp_path, delete_after_days=3)
    site.sensors.append(site.sensors[0].model_copy(update={"name": "slow", "min_file_age_s": 6 * 86_400, "directory": tmp_path / "link"}))
    (tmp_path / "link").symlink_to(site.captures)
    site.restart()
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(snapshots[0][0])
    os.utime(file, (time.time() - 4 * 86_400,) * 2)
    assert site.run() == ports_of(0, 0)
    assert site.run() == []
    assert file.exists()
    os.utime(file, (time.time() - 7 * 86_400,) * 2)
    assert site.run() == ports_of(0, 0)
    site.run()
    assert not file.exists()
    site.kill()


def test_a_file_whose_content_is_not_what_its_record_says_is_not_deleted(
    tmp_path: Path, snapshots: list[list[bytes]], monkeypatch: Any
) -> None:
    site = Site(tmp_path, delete_after_days=3)
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(snapshots[0][0])
    os.utime(file, (1, 1))
    monkeypatch.setattr(Imported, "part", lambda *_: None)
    site.run()
    site.run()
    assert file.exists()
    monkeypatch.undo()
    site.run()
    assert not file.exists()
    site.kill()


def test_what_was_not_seen_for_a_month_is_forgotten_and_what_is_there_is_not(site: Site, snapshots: list[list[bytes]]) -> None:
    gone, there = site.captures / "gone", site.captures / "there"
    gone.write_bytes(snapshots[0][0])
    there.write_bytes(snapshots[1][0])
    site.run()
    gone.unlink()
    for age, again in ((KEEP_S - 3_600, []), (2 * KEEP_S, ports_of(0, 0))):
        with site.importer._imported.writing() as database:
            database.execute("UPDATE part SET seen = ?", (time.time() - age,))
            database.execute("UPDATE file SET seen = ?", (time.time() - age,))
        site.restart()
        assert site.run() == []
        site.taken.clear()
        gone.write_bytes(snapshots[0][0])
        assert site.run() == again
        gone.unlink()


def test_a_directory_that_looks_empty_forgets_nothing(site: Site, snapshots: list[list[bytes]]) -> None:
    file = site.captures / "nfcapd.202311142210"
    file.write_bytes(snapshots[0][0])
    site.run()
    away = site.captures.rename(site.captures.with_name("away"))
    with site.importer._imported.writing() as database:
        database.execute("UPDATE part SET seen = 1")
        database.execute("UPDATE file SET seen = 1")
    site.captures.mkdir()
    site.restart()
    assert site.run() == []
    site.captures.rmdir()
    with capture_logs() as logs:
        site.run()
        assert not site.importer.connected
        away.rename(site.captures)
        assert site.run() == []
    assert site.importer.connected
    assert [line["event"] for line in logs] == ["waits for the files of sensor sensor", "goes on"]
    assert logs[0]["reason"] == f"{site.captures}: No such file or directory"


def test_without_room_for_its_state_it_takes_no_more_and_goes_on_later(site: Site, snapshots: list[list[bytes]]) -> None:
    database = site.importer._imported._database
    database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count').fetchone()[0]}")
    with contextlib.suppress(sqlite3.OperationalError):  # It is full.
        while True:
            database.execute("INSERT INTO file VALUES ('x', ?, '', '', 1e12)", (os.urandom(8),))
    (site.captures / "nfcapd.202311142210").write_bytes(snapshots[0][0])
    with capture_logs() as logs:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            site.turn()
        assert not site.taken
        database.execute("PRAGMA max_page_count = 100000")
        assert site.run() == ports_of(0, 0)
    assert [line["event"] for line in logs] == ["waits for room on the disk of the importer's state", "goes on", "imported"]


def test_a_damaged_record_of_what_was_imported_is_a_line(site: Site) -> None:
    site.kill()
    (site.state / FILE).write_bytes(b"what is this" * 1_000)
    with pytest.raises(StateError, match=r"imported.sqlite: cannot be used: file is not a database: move it away"):
        site.start()
    (site.state / FILE).unlink()
    site.start()


def test_a_nfdump_that_is_exchanged_or_dies_is_waited_for(
    site: Site, snapshots: list[list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setenv("PATH", str(tmp_path / "nowhere"))
        (site.captures / "nfcapd.202311142210").write_bytes(snapshots[0][0])
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            site.turn()
    assert [line["event"] for line in logs] == ["waits for nfdump"]
    assert site.run() == ports_of(0, 0)
    with monkeypatch.context() as patch, capture_logs() as logs:
        put_first_in_path(
            patch,
            tmp_path,
            'case "$1" in -V) echo nfdump: Version: 1.7.1;; *) PATH="${PATH#*:}" nfdump "$@" | head -150; kill -9 $$;; esac',
        )
        (site.captures / "nfcapd.202311142215").write_bytes(snapshots[1][0])
        some = site.run()
    assert len(some) == 100
    assert events(logs, "is not imported") == ["nfcapd.202311142215"]
    watch = site.importer._watches[0]
    for path, refused in watch.refused.items():
        assert 0 < refused.again - time.monotonic() <= AGAIN_S
        watch.refused[path] = refused._replace(again=0.0)
    site.run()
    assert site.ports == sorted(ports_of(0, 0) + ports_of(1, 0))


def test_half_imported_under_other_settings_it_is_begun_anew_and_said(site: Site, snapshots: list[list[bytes]]) -> None:
    (site.captures / "nfcapd.202311142210").write_bytes(snapshots[0][2])
    got: list[Delivery] = []
    wait_for(lambda: len(got) == 8, doing=lambda: got.extend(site.importer.receive(0.05)))
    site.importer.acknowledge(got[2].receipt)
    site.importer.close()
    site.sensors = [site.sensors[0].model_copy(update={"instance": "2"})]
    site.start()
    with capture_logs() as logs:
        assert site.run() == ports_of(0, 2)
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert line["event"].startswith("begun anew, because settings or nfdump changed")
    assert line["messages"] == 3


WHAT = st.tuples(
    st.sampled_from(["write", "write", "write", "truncate", "rename", "remove", "look", "some", "kill"]),
    st.integers(0, 1),
    st.integers(0, 2),
    st.integers(0, 2),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WHAT, min_size=3, max_size=12))
@example([("write", 1, 2, 0), ("write", 0, 2, 1), ("some", 0, 0, 0), ("write", 1, 0, 1), ("write", 0, 0, 0), ("look", 0, 0, 0)])
def test_whatever_happens_to_files_each_flow_comes_once(
    snapshots: list[list[bytes]], tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, int]]
) -> None:
    """Snapshots of two growing files come, go, and change places, while the importer is killed with some messages stored and others not."""
    site = Site(tmp_path_factory.mktemp("steps"))
    longest = [-1, -1]
    looked = [-1, -1]
    written = [-1, -1]
    for what, family, number, place in steps:
        path = site.captures / f"nfcapd.20231114221{place}"
        if what == "write":
            # Half sent and then gone, a longer state is not known by a shorter one, which is a known limit.
            state = max(number, written[family] if written[family] != looked[family] else 0)
            written[family] = max(state, written[family])
            path.write_bytes(snapshots[family][state])
        elif what == "truncate" and path.exists():
            path.write_bytes(path.read_bytes()[: 4_000 * number + 39])
        elif what == "rename" and path.exists():
            path.rename(site.captures / f"nfcapd.20231114222{number}")
        elif what == "remove":
            path.unlink(missing_ok=True)
        elif what == "some":
            deliveries = site.importer.receive(0.05)
            site.take(deliveries)
            if deliveries[: number + 1]:
                site.importer.acknowledge(deliveries[: number + 1][-1].receipt)
        elif what == "kill":
            site.restart()
        if what == "look":
            site.run()
            there = [file.read_bytes() for file in site.captures.iterdir()]
            for each in range(2):
                longest[each] = max([longest[each], *(size for size in range(3) if snapshots[each][size] in there)])
            looked = list(longest)
            ports = site.ports
            assert len(ports) == len(set(ports)), "a flow came twice"
            for each in range(2):
                if looked[each] >= 0:
                    assert set(ports_of(each, looked[each])) <= set(ports), "a flow is missing"
    site.kill()
