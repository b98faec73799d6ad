"""The probe: real sockets of real processes, found with what is to be known of them; what is taken is kept until it is stored."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from netsage_pipeline import folders, waits
from netsage_pipeline.probe import source as taking
from netsage_pipeline.probe.connections import Seen, connections, ip
from netsage_pipeline.probe.source import changes
from netsage_pipeline.stagefile import load
from tests.command import COMMAND, run, run_real, surroundings, written

probe: Any = load(folders.shipped("stages") / "01_input_connections.py")

#: Opens what its arguments say, says so, and waits until its standard input is closed.
HOLDER = """
import socket, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
held.connect((host, port))
print(held.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def client(kind: str, host: str, port: int, program: str = sys.executable, **environment: str) -> Iterator[tuple[int, int]]:
    """A process of its own with a connection: its pid and its local port."""
    process = subprocess.Popen(
        [program, "-c", HOLDER, kind, host, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def found(local: int, foreign: int, **given: Any) -> dict[str, Any]:
    """The record of the connection between these ports."""
    [record] = [each for each in connections(**given).records if (each["localport"], each["foreignport"]) == (local, foreign)]
    return record


@pytest.mark.parametrize(
    ("address", "host", "proto"),
    [("127.0.0.1", "127.0.0.1", "tcp"), ("::1", "::1", "tcp6"), ("::ffff:127.0.0.1", "127.0.0.1", "tcp6")],
    ids=["IPv4", "IPv6", "IPv4-mapped"],
)
def test_both_ends_of_a_tcp_connection_are_found_with_their_processes(address: str, host: str, proto: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        server.bind((address, 0))
        server.listen()
        port = server.getsockname()[1]
        with client("tcp", address, port) as (pid, local):
            held, _ = server.accept()
            with held:
                ours, theirs = found(port, local), found(local, port)
                inode = os.fstat(held.fileno()).st_ino
    assert ours == {
        "proto": proto,
        "localip": host,
        "localport": port,
        "foreignip": host,
        "foreignport": local,
        "state": "ESTABLISHED",
        "user": str(os.geteuid()),
        "inode": inode,
        "direction": "server",
        "process": Path("/proc/self/comm").read_text().strip(),
        "pid": os.getpid(),
        "path": os.path.realpath(sys.executable),
    }
    assert (theirs["direction"], theirs["pid"], theirs["proto"], theirs["foreignip"]) == ("client", pid, proto, host)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_udp_connections_are_found(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((address, 0))
        port = bound.getsockname()[1]
        with client("udp", address, port) as (pid, local):
            theirs = found(local, port)
            waiting = [each for each in connections().records if each["localport"] == port]
            bound.connect((address, local))
            ours = found(port, local)
    assert (theirs["proto"], theirs["state"], theirs["direction"]) == ("udp6" if ":" in address else "udp", "ESTABLISHED", "client")
    assert (theirs["pid"], theirs["localip"], ours["pid"]) == (pid, address, os.getpid())
    assert waiting == []  # A socket that waits for anybody is no connection.


def test_a_server_on_a_connected_udp_socket_beside_its_listening_one_is_one() -> None:
    with contextlib.ExitStack() as open_ones:
        first, second, other = (open_ones.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3))
        for each in (first, second):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        second.connect(other.getsockname())
        assert found(first.getsockname()[1], other.getsockname()[1])["direction"] == "server"


def test_listening_sockets_are_no_connections(server: socket.socket) -> None:
    assert [each for each in connections().records if each["localport"] == server.getsockname()[1]] == []


def test_a_connection_that_nobody_has_any_more_has_no_process(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with client("tcp", "127.0.0.1", port) as (_, local):
        held, _ = server.accept()
        held.close()
    time.sleep(0.2)
    record = found(port, local)
    assert (record["state"], record["inode"], record.get("process"), record.get("pid")) == ("TIME_WAIT", 0, None, None)


def test_a_socket_that_processes_share_is_that_of_the_first(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with client("tcp", "127.0.0.1", port) as (_, local):
        held, _ = server.accept()
        with held, subprocess.Popen(["sleep", "60"], pass_fds=[held.fileno()]) as child:
            record = found(port, local)
            child.kill()
    assert record["pid"] == os.getpid() < child.pid


def test_a_long_name_is_not_cut(server: socket.socket, tmp_path: Path) -> None:
    """The kernel keeps 15 bytes of it."""
    program = tmp_path / "a-program-with-a-long-name"
    shutil.copy("/bin/bash", program)
    port = server.getsockname()[1]
    script = f"exec 3<>/dev/tcp/127.0.0.1/{port}; read -r line"
    with subprocess.Popen([program, "-c", script], stdin=subprocess.PIPE) as process:
        held, (_, local) = server.accept()
        with held:
            record = found(local, port)
        process.communicate(b"\n")
    assert (record["process"], record["path"], record["pid"]) == (program.name, str(program), process.pid)


def test_the_command_line_is_given_on_request_and_the_environment_never(server: socket.socket) -> None:
    port = server.getsockname()[1]
    with client("tcp", "127.0.0.1", port, NETSAGE_TEST_SECRET="hunter2") as (pid, local):
        silent, asked = found(local, port), found(local, port, command_line=True)
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert "command" not in silent
    assert asked["command"].startswith(f"{sys.executable} -c")
    assert asked["command"].endswith(f" tcp 127.0.0.1 {port}")
    assert b"hunter2" in environment
    assert "hunter2" not in json.dumps(asked)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::FFFF:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("*", None),
        ("localhost", None),
    ],
)
def test_addresses_are_written_in_one_way(text: str, plain: str | None) -> None:
    assert ip(text) == plain


# Changes.


def connection(port: int, state: str = "ESTABLISHED", inode: int = 1, **more: Any) -> dict[str, Any]:
    ends = {"proto": "tcp", "localip": "192.0.2.1", "localport": port, "foreignip": "192.0.2.9", "foreignport": 443}
    return {**ends, "state": state, "user": "7" if inode else "0", "inode": inode, "direction": "client", **more}


def events(*snapshots: list[dict[str, Any]]) -> list[list[tuple[str, int, str]]]:
    known, told = None, []
    for snapshot in snapshots:
        known, made = changes(known, snapshot)
        told.append([(each["event"], each["localport"], each["state"]) for each in made])
    return told


def test_a_connection_is_told_when_it_is_opened_and_when_it_is_closed() -> None:
    first, second = connection(1), connection(2, inode=2)
    assert events([first], [first, second], [first, second], [second], []) == [
        [("found", 1, "ESTABLISHED")],
        [("opened", 2, "ESTABLISHED")],
        [],
        [("closed", 1, "ESTABLISHED")],
        [("closed", 2, "ESTABLISHED")],
    ]


def test_another_connection_between_the_same_ends_closes_the_first() -> None:
    assert events([connection(1)], [connection(1, inode=2)])[1] == [("closed", 1, "ESTABLISHED"), ("opened", 1, "ESTABLISHED")]
    gone = connection(1, "TIME_WAIT", 0)
    assert events([connection(1)], [gone], [connection(1, inode=0)])[1:] == [[], [("closed", 1, "TIME_WAIT"), ("opened", 1, "ESTABLISHED")]]


def test_udp_connections_between_the_same_ends_are_told_once_each() -> None:
    first, second = ({**connection(1, inode=inode), "proto": "udp"} for inode in (1, 2))
    assert events([first, second], [second, first], [second])[1:] == [[], [("closed", 1, "ESTABLISHED")]]


def test_one_that_is_not_accepted_yet_is_the_same_when_it_is() -> None:
    assert events([], [connection(1, inode=0)], [connection(1, inode=5)])[1:] == [[("opened", 1, "ESTABLISHED")], []]


def test_a_closed_connection_is_told_with_the_process_that_had_it() -> None:
    known, _ = changes(None, [connection(1, process="ssh", pid=9)])
    known, _ = changes(known, [connection(1, "TIME_WAIT", 0, direction="server")])
    _, [closed] = changes(known, [])
    assert closed == connection(1, "TIME_WAIT", 1, process="ssh", pid=9, event="closed")


@given(
    st.lists(st.dictionaries(st.integers(1, 5), st.tuples(st.sampled_from(["ESTABLISHED", "TIME_WAIT"]), st.integers(0, 2))), max_size=6)
)
@settings(deadline=None)
def test_what_was_opened_and_not_closed_is_there(snapshots: list[dict[int, tuple[str, int]]]) -> None:
    known = None
    there: set[int] = set()
    for snapshot in snapshots:
        known, made = changes(known, [connection(port, state, inode) for port, (state, inode) in snapshot.items()])
        for each in made:
            if each["event"] == "closed":
                there.remove(each["localport"])
            else:
                assert each["localport"] not in there
                there.add(each["localport"])
        assert there == snapshot.keys()


# The source.


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def source_of(state: Path, **given: Any) -> Any:
    return probe.source(probe.Config(state=state, **{"interval_s": 0.2, **given}))


def received(source: Any, seconds: float = 5) -> list[Any]:
    """The deliveries of one snapshot."""
    until = time.monotonic() + seconds
    deliveries: list[Any] = []
    while time.monotonic() < until and (not deliveries or not source.caught_up):
        deliveries += source.receive(0.05)
    return deliveries


def records_of(deliveries: list[Any]) -> list[dict[str, Any]]:
    return [record for each in deliveries for record in json.loads(each.body)]


def test_a_snapshot_is_kept_until_it_is_acknowledged(state: Path, server: socket.socket) -> None:
    with client("tcp", "127.0.0.1", server.getsockname()[1]) as (_, local):
        first = source_of(state)
        taken = received(first)
        again = received(source_of(state, interval_s=99))[: len(taken)]  # Whoever was killed has not acknowledged it.
    assert [each.body for each in again] == [each.body for each in taken]
    assert [each["host"] for each in records_of(taken) if each["localport"] == local] == [socket.gethostname()]
    assert len(list((state / "taken").iterdir())) == 1
    first.acknowledge(taken[-1].receipt)
    assert list((state / "taken").iterdir()) == []


def test_what_is_kept_is_for_the_owner_alone(state: Path, server: socket.socket) -> None:
    with client("tcp", "127.0.0.1", server.getsockname()[1]):
        received(source_of(state))
    modes = {path.stat().st_mode & 0o777 for path in (state / "taken").iterdir()}
    assert (modes, (state / "taken").stat().st_mode & 0o777) == ({0o600}, 0o700)


def test_with_changes_a_connection_comes_when_it_is_opened_and_when_it_is_closed(state: Path, server: socket.socket) -> None:
    source = source_of(state, records="changes")
    port = server.getsockname()[1]
    told: list[tuple[str, int]] = []

    def listen(seconds: float = 1) -> None:
        told.extend((each["event"], each["foreignport"]) for each in records_of(received(source, seconds)) if each["localport"] == port)

    with client("tcp", "127.0.0.1", port) as (_, first):
        first_held, _ = server.accept()
        listen()
        with first_held, client("tcp", "127.0.0.1", port) as (_, second):
            second_held, _ = server.accept()
            time.sleep(0.3)
            listen()
            time.sleep(0.3)
            listen()
            with second_held:
                second_held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # It is gone at once.
            time.sleep(0.3)
            listen()
    assert told == [("found", first), ("opened", second), ("closed", second)]


def test_a_file_of_somebody_else_among_the_snapshots_is_left_alone(state: Path, server: socket.socket) -> None:
    written(state / "taken" / "copy-of-000000000007.ndjson", b"[]")
    with client("tcp", "127.0.0.1", server.getsockname()[1]) as (_, local):
        taken = received(source_of(state))
    assert local in [each["localport"] for each in records_of(taken)]
    assert (state / "taken" / "copy-of-000000000007.ndjson").exists()


def test_nothing_of_a_snapshot_is_forgotten_before_all_of_it_is_stored(
    state: Path, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "TOGETHER", 1)
    with contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(client("tcp", "127.0.0.1", server.getsockname()[1]))
        source = source_of(state, interval_s=99)
        taken = received(source)
    assert len(taken) >= 3
    source.acknowledge(taken[-2].receipt)
    assert len(list((state / "taken").iterdir())) == 1
    source.acknowledge(taken[-1].receipt)
    assert list((state / "taken").iterdir()) == []


def test_snapshots_come_at_their_times(state: Path, server: socket.socket) -> None:
    with client("tcp", "127.0.0.1", server.getsockname()[1]):
        source = source_of(state, interval_s=0.3)
        began = time.monotonic()
        for _ in range(4):
            assert received(source)
    assert 0.9 <= time.monotonic() - began < 3


def test_none_is_taken_while_the_output_takes_no_more_and_their_number_is_said(state: Path, server: socket.socket) -> None:
    with capture_logs() as said, client("tcp", "127.0.0.1", server.getsockname()[1]):
        source = source_of(state, interval_s=0.2)
        source.acknowledge(received(source)[-1].receipt)
        for _ in range(10):
            source.turn(0.1)
        source.pause()
        assert list((state / "taken").iterdir()) == []
        received(source)
    [line] = [line for line in said if "left out" in line["event"]]
    assert line["reason"] == "the output takes no more"
    assert 4 <= line["snapshots"] <= 10


def test_those_that_are_left_out_in_the_end_are_said_too(state: Path) -> None:
    with capture_logs() as said:
        source = source_of(state, interval_s=0.1)
        received(source, 0.3)
        source.turn(0.5)
        source.close()
    assert sum(line.get("snapshots", 0) for line in said) >= 4


def test_a_time_that_goes_by_while_it_leaves_is_not_left_out(state: Path, server: socket.socket) -> None:
    with capture_logs() as said, client("tcp", "127.0.0.1", server.getsockname()[1]):
        source = source_of(state, interval_s=0.1)
        received(source)
        time.sleep(0.4)
        source.close()
    assert said == []


def test_a_snapshot_that_cannot_be_kept_was_not_taken(state: Path, server: socket.socket) -> None:
    source = source_of(state, records="changes")
    with capture_logs() as said, client("tcp", "127.0.0.1", server.getsockname()[1]) as (_, local):
        shutil.rmtree(state / "taken")
        assert received(source, 1) == []
        (state / "taken").mkdir()
        deliveries = received(source)
    assert {"event": "found", "localport": local}.items() <= next(e for e in records_of(deliveries) if e["localport"] == local).items()
    assert len([line for line in said if "cannot be kept" in line["event"]]) == 1
    assert [line["reason"] for line in said if line["event"] == "snapshots were left out"] == ["they could not be kept"]


def test_dead_letters_are_kept_for_the_owner_alone(state: Path) -> None:
    source = source_of(state)
    source.bury(7, "id", b'{"a":1}')
    source.bury(8, "id", b'{"a":2}')
    assert source.buried() == [7, 8]
    assert source.buried() == []
    file = state / "dead-letters.ndjson"
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b'{"a":1}\n{"a":2}\n', 0o600)


def test_dead_letters_wait_until_they_can_be_kept(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "PATIENCE_S", -1)
    source = source_of(state)
    (state / "dead-letters.ndjson").mkdir()
    source.bury(7, "id", b"{}")
    with capture_logs() as said:
        assert source.buried() == source.buried() == []
        (state / "dead-letters.ndjson").rmdir()
        assert source.buried() == [7]
    assert [line["event"] for line in said] == ["waits for room on the disk for dead letters", "goes on"]
    assert said[0]["reason"] == f"{state}/dead-letters.ndjson: Is a directory"


#: Becomes nobody, takes two snapshots with a connection of its own, and tells what it saw of ports that it is given.
AS_NOBODY = """
import ctypes, json, os, socket, sys, time
from pathlib import Path
from netsage_pipeline import folders
from netsage_pipeline.stagefile import load
probe = load(folders.shipped("stages") / "01_input_connections.py")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1)  # Whoever was root may not look at itself.
server = socket.create_server(("127.0.0.1", 0))
held = socket.socket()
held.connect(server.getsockname())
source = probe.source(probe.Config(state=Path(sys.argv[1]), interval_s=0.2))
records = []
until = time.monotonic() + 1
while time.monotonic() < until:
    records += [record for each in source.receive(0.1) for record in json.loads(each.body)]
mine = [each for each in records if each["localport"] == held.getsockname()[1]][0]
theirs = [each for each in records if each["localport"] == int(sys.argv[2])][0]
print(json.dumps([mine, theirs, os.getpid()]))
"""


def test_whoever_is_not_root_sees_what_it_may_and_says_once_what_not(server: socket.socket) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory() as name, client("tcp", "127.0.0.1", server.getsockname()[1]) as (_, local):
        Path(name).chmod(0o777)
        command = [sys.executable, "-c", AS_NOBODY, name, str(local)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    mine, theirs, pid = json.loads(done.stdout.splitlines()[-1])
    assert (mine["pid"], mine["user"], mine["direction"]) == (pid, "65534", "client")
    assert {"process", "path"} <= mine.keys()
    assert (theirs["user"], theirs["state"], theirs["foreignport"]) == ("0", "ESTABLISHED", server.getsockname()[1])
    assert {"process", "pid", "path"}.isdisjoint(theirs)
    [line] = [line for line in (done.stdout + done.stderr).splitlines() if "may not see" in line]
    assert "CAP_SYS_PTRACE" in line


def test_with_the_capabilities_it_does_not_ask_for_them(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has connections of its own, and a process may have ended since its connection was listed."""
    monkeypatch.setattr(taking, "connections", lambda **_: Seen([], 0, 3))
    monkeypatch.setattr(taking, "_in_a_container", lambda: False)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with capture_logs() as said:
        source_of(state).receive(0.1)
    assert said == []


def test_a_process_that_ends_while_it_is_looked_into_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text("heading\n 0: 0100007F:0016 0100007F:1234 01 0:0 00:0 0 0 0 77 1\n")
    files = tmp_path / "9" / "fd"
    files.mkdir(parents=True)
    (files / "3").symlink_to("socket:[77]")

    def ends(path: str) -> str:
        shutil.rmtree(tmp_path / "9")
        raise PermissionError(path)

    monkeypatch.setattr(os, "readlink", ends)
    seen = connections(proc=tmp_path)
    assert (len(seen.records), seen.hidden, seen.nameless) == (1, 0, 1)


def test_in_a_container_it_says_that_it_sees_no_processes_outside(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "connections", lambda **_: Seen([], 0, 3))
    monkeypatch.setattr(taking, "MACHINE", "pid:[1]")
    with capture_logs() as said:
        source_of(state).receive(0.1)
    assert [(line["event"].partition(":")[0], line["connections"]) for line in said] == [
        ("does not see the processes outside its container", 3)
    ]


# The command.


def conf_of(directory: Path, **changes: str) -> Path:
    conf = directory / "conf"
    shutil.copytree(folders.shipped("conf.d") / "probe", conf)
    file = conf / "01_input_connections.toml"
    text = file.read_text()
    for name, value in changes.items():
        text = "\n".join(f"{name} = {value}" if line.startswith(f"{name} =") else line for line in text.splitlines())
    file.write_text(text + "\n")
    return conf


def test_the_shipped_settings_are_right() -> None:
    outcome = run("check", "--conf", folders.shipped("conf.d") / "probe")
    assert (outcome.code, "no errors" in outcome.err + outcome.out.decode()) == (0, True)


def test_wrong_settings_are_lines(tmp_path: Path) -> None:
    conf = conf_of(tmp_path, interval_s='"often"', records='"everything"')
    outcome = run_real("run", "--conf", conf)
    assert outcome.code == 2
    assert [line.split(": ")[1] for line in outcome.err.splitlines()] == ["interval_s", "records"]


def test_a_directory_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "taken").touch()
    outcome = run_real("run", "--conf", folders.shipped("conf.d") / "probe", NETSAGE_PROBE_STATE=str(tmp_path / "state"))
    [line] = [line for line in outcome.err.splitlines() if "no such table" not in line]
    assert outcome.code == 2
    assert line.startswith(f"{tmp_path / 'state' / 'taken'}: cannot be written: File exists")


def test_its_fields_have_a_table_of_their_own() -> None:
    outcome = run("fields", "--template", "--prefix", "connections", "--conf", folders.shipped("conf.d") / "probe")
    properties = json.loads(outcome.out)["template"]["mappings"]["properties"]
    types = {name: mapping["type"] for name, mapping in properties.items()}
    assert (types["localip"], types["foreignport"], types["process"], types["@timestamp"]) == ("ip", "long", "keyword", "date")
    assert "meta" not in types
    flows = json.loads(run("fields", "--template").out)["template"]["mappings"]["properties"]
    assert "localip" not in flows
    listed = run("fields", "--conf", folders.shipped("conf.d") / "probe").out.decode()
    assert "localip" in listed
    assert "meta.src_ip" not in listed
    assert "of all that the record holds; the document's _id" in listed
    assert "stitched_flows" not in listed
    assert "localip" not in run("fields").out.decode()


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_there(directory: Path, files: int) -> bool:
    return len(list(directory.glob("*.ndjson"))) >= files


def test_what_was_taken_while_the_output_is_away_outlives_a_kill(tmp_path: Path) -> None:
    environment = surroundings(NETSAGE_PROBE_STATE=str(tmp_path / "state"), NETSAGE_ELASTICSEARCH_URL="http://127.0.0.1:9")
    taken = tmp_path / "state" / "taken"
    command = [str(COMMAND), "run", "--conf", str(conf_of(tmp_path, interval_s="0.2"))]
    with socket.create_server(("127.0.0.1", 0)) as server, client("tcp", "127.0.0.1", server.getsockname()[1]):
        for least in (3, 6):
            with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
                until(partial(is_there, taken, least))
                process.kill()
    numbers = [int(path.stem) for path in sorted(taken.glob("*.ndjson"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_snapshot_that_cannot_be_taken_is_left_out_and_the_next_ones_come(
    state: Path, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(**_: Any) -> Seen:
        raise OSError(errno.EMFILE, "Too many open files")

    with contextlib.closing(source_of(state)) as source, capture_logs() as logs, client("tcp", "127.0.0.1", server.getsockname()[1]):
        with monkeypatch.context() as patch:
            patch.setattr(taking, "connections", refuses)
            until = time.monotonic() + 0.5
            while time.monotonic() < until:
                assert source.receive(0.05) == []
        assert received(source)
    assert [line["reason"] for line in logs] == ["Too many open files", "they could not be taken"]


def test_the_stage_of_the_page_masks_both_addresses(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "connections.md").read_text()
    [stage] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if '"""70 mask' in block]
    written(tmp_path / "my-stages" / "70_mask.py", stage.encode())
    conf = conf_of(tmp_path)
    (conf / "70_mask.toml").touch()
    options = ("--conf", conf, "--stages", tmp_path / "my-stages")
    file = written(
        tmp_path / "web-1" / "ss.txt",
        b"State Recv-Q Send-Q Local Address:Port Peer Address:Port",
        b"ESTAB 0 0 192.0.2.10:22 [2001:db8::7]:51234",
    )
    outcome = run("replay", file, *options, "--to", "-")
    assert [(each["localip"], each["foreignip"]) for each in outcome.flows] == [("192.0.2.x", "2001:db8:0:0:x:x:x:x")]
    properties = json.loads(run("fields", "--template", *options).out)["template"]["mappings"]["properties"]
    assert (properties["localip"]["type"], properties["foreignip"]["type"]) == ("keyword", "keyword")


def test_saved_output_is_replayed_with_the_time_and_place_that_the_file_says(tmp_path: Path) -> None:
    text = b"""Active Internet connections (w/o servers)
Proto Recv-Q Send-Q Local Address           Foreign Address         State       User       Inode
tcp        0      0 192.0.2.10:22           198.51.100.7:51234      ESTABLISHED 0          40321
what is this
"""
    file = written(tmp_path / "web-1" / "2026" / "netstat-202611201200.txt", text)
    outcome = run("replay", file.parent, "--conf", folders.shipped("conf.d") / "probe", "--to", "-")
    assert outcome.flows == [
        {
            "@timestamp": "2026-11-20T12:00:00.000Z",
            "host": "web-1",
            "proto": "tcp",
            "localip": "192.0.2.10",
            "localport": 22,
            "foreignip": "198.51.100.7",
            "foreignport": 51234,
            "state": "ESTABLISHED",
            "user": "0",
            "inode": 40321,
        }
    ]
    assert outcome.summary["passed over"] == 1
    assert "no line of netstat" in outcome.err
