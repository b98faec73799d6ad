"""Saved output of netstat and ss, as several versions of them write it."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline.probe.connections import connections
from netsage_pipeline.probe.netstat import is_saved, saved
from netsage_pipeline.reading.nfdump import Rows
from netsage_pipeline.reading.read import Dump, DumpError, find, messages

#: net-tools 2.10, netstat -nte
NETSTAT = """\
Active Internet connections (w/o servers)
Proto Recv-Q Send-Q Local Address           Foreign Address         State       User       Inode     
tcp        0      0 192.0.2.10:22           198.51.100.7:51234      ESTABLISHED 0          40321     
tcp        0     52 192.0.2.10:443          198.51.100.8:6000       TIME_WAIT   0          0         
tcp6       0      0 ::1:34342               ::1:38183               ESTABLISHED 1000       1088835   
tcp6       0      0 192.0.2.10:8080         198.51.100.9:4242       CLOSE_WAIT  33         1088836   
"""  # noqa: W291

#: net-tools 2.10, netstat -ntuaepW
NETSTAT_ALL = """\
Active Internet connections (servers and established)
Proto Recv-Q Send-Q Local Address           Foreign Address         State       User       Inode      PID/Program name    
tcp        0      0 0.0.0.0:22              0.0.0.0:*               LISTEN      0          30001      812/sshd: /usr/sbin 
tcp        0      0 192.0.2.10:22           198.51.100.7:51234      ESTABLISHED 0          40321      9001/sshd: ann [pri 
tcp6       0      0 2001:db8:85a3:1234:5678:8a2e:370:7334:38183 2001:db8:85a3:1234:5678:8a2e:370:7335:443 ESTABLISHED 0 1 -
udp        0      0 192.0.2.10:68           192.0.2.1:67            ESTABLISHED 0          40400      700/dhclient        
udp        0      0 0.0.0.0:53              0.0.0.0:*                           101        40401      -                   
Active UNIX domain sockets (servers and established)
Proto RefCnt Flags       Type       State         I-Node   PID/Program name     Path
unix  2      [ ACC ]     STREAM     LISTENING     30500    1/init               /run/systemd/private
"""  # noqa: W291

#: iproute2 6.1.0, ss -tunp
SS = """\
Netid State     Recv-Q Send-Q                           Local Address:Port                             Peer Address:Port Process                            
udp   ESTAB     0      0                                    192.0.2.10:57174                                192.0.2.1:53    users:(("systemd-resolve",pid=613,fd=12))
tcp   ESTAB     0      0                                    192.0.2.10:22                              198.51.100.7:51234 users:(("sshd",pid=9010,fd=4),("sshd",pid=9001,fd=4))
tcp   TIME-WAIT 0      0      [2001:db8:85a3:1234:5678:8a2e:370:7334]:38183 [2001:db8:85a3:1234:5678:8a2e:370:7335]:443                                      
tcp   FIN-WAIT-2 0     0                            [::ffff:192.0.2.10]:8080                  [::ffff:198.51.100.9]:4242                                     
udp   ESTAB     0      0                               [fe80::1]%eth0:546                                    [fe80::2]:547   
"""  # noqa: E501, W291

#: iproute2 3.10, ss -tnp: no Netid, no brackets, pid and fd without names
SS_OLD = """\
State      Recv-Q Send-Q        Local Address:Port          Peer Address:Port 
ESTAB      0      0                192.0.2.10:22            198.51.100.7:51234  users:(("sshd",9001,3))
ESTAB      0      0         ::ffff:192.0.2.10:8080   ::ffff:198.51.100.9:4242   users:(("java",1234,80))
CLOSE-WAIT 1      0           2001:db8::1:4711          2001:db8::2:443    
"""  # noqa: W291

#: iproute2 6.1.0, ss -tuanpe; of root it writes no uid
SS_EXTENDED = """\
Netid State  Recv-Q Send-Q Local Address:Port   Peer Address:Port Process
udp   UNCONN 0      0             *%eth0:546               *:*     users:(("dhcpcd",pid=700,fd=5)) ino:1088001 sk:5fc v6only:1 <->
tcp   LISTEN 0      128                *:8080              *:*     users:(("java",pid=1234,fd=3)) uid:1000 ino:1088832 sk:5fd v6only:0 <->
tcp   ESTAB  0      0      [::ffff:192.0.2.10]:8080 [::ffff:198.51.100.9]:4242 users:(("java",pid=1234,fd=5)) uid:1000 ino:1088834 sk:5e <->
tcp   ESTAB  0      0         192.0.2.10:51234  198.51.100.7:22    ino:99 sk:5f <->
\t cubic wscale:7,7 rto:204 rtt:0.01/0.005
"""


def read(text: str) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The records of a text, and why lines are none."""
    told: dict[int, str] = {}
    numbered = list(enumerate(text.encode().split(b"\n"), 1))
    return [record for each in saved(numbered, lambda number, why: told.update({number: why})) for record in each], told


def short(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record.get(name) for name in ("proto", "localip", "localport", "foreignip", "foreignport", "state"))


def test_netstat() -> None:
    records, told = read(NETSTAT)
    assert told == {}
    assert [short(each) for each in records] == [
        ("tcp", "192.0.2.10", 22, "198.51.100.7", 51234, "ESTABLISHED"),
        ("tcp", "192.0.2.10", 443, "198.51.100.8", 6000, "TIME_WAIT"),
        ("tcp6", "::1", 34342, "::1", 38183, "ESTABLISHED"),
        ("tcp6", "192.0.2.10", 8080, "198.51.100.9", 4242, "CLOSE_WAIT"),
    ]
    assert [(each["user"], each["inode"]) for each in records] == [("0", 40321), ("0", 0), ("1000", 1088835), ("33", 1088836)]
    assert all("direction" not in each for each in records)  # Nothing says where it listens.


def test_netstat_with_servers_and_programs() -> None:
    records, told = read(NETSTAT_ALL)
    assert told == {}
    assert [(*short(each), each["direction"], each.get("process"), each.get("pid")) for each in records] == [
        ("tcp", "192.0.2.10", 22, "198.51.100.7", 51234, "ESTABLISHED", "server", "sshd: ann [pri", 9001),
        (
            *("tcp6", "2001:db8:85a3:1234:5678:8a2e:370:7334", 38183, "2001:db8:85a3:1234:5678:8a2e:370:7335", 443, "ESTABLISHED"),
            *("client", None, None),
        ),
        ("udp", "192.0.2.10", 68, "192.0.2.1", 67, "ESTABLISHED", "client", "dhclient", 700),
    ]


def test_ss() -> None:
    records, told = read(SS)
    assert told == {}
    assert [(*short(each), each.get("process"), each.get("pid")) for each in records] == [
        ("udp", "192.0.2.10", 57174, "192.0.2.1", 53, "ESTABLISHED", "systemd-resolve", 613),
        ("tcp", "192.0.2.10", 22, "198.51.100.7", 51234, "ESTABLISHED", "sshd", 9001),
        (
            *("tcp6", "2001:db8:85a3:1234:5678:8a2e:370:7334", 38183, "2001:db8:85a3:1234:5678:8a2e:370:7335", 443, "TIME_WAIT"),
            *(None, None),
        ),
        ("tcp6", "192.0.2.10", 8080, "198.51.100.9", 4242, "FIN_WAIT2", None, None),
        ("udp6", "fe80::1", 546, "fe80::2", 547, "ESTABLISHED", None, None),
    ]


def test_ss_of_old() -> None:
    records, told = read(SS_OLD)
    assert told == {}
    assert [(*short(each), each.get("process"), each.get("pid")) for each in records] == [
        ("tcp", "192.0.2.10", 22, "198.51.100.7", 51234, "ESTABLISHED", "sshd", 9001),
        ("tcp6", "192.0.2.10", 8080, "198.51.100.9", 4242, "ESTABLISHED", "java", 1234),
        ("tcp6", "2001:db8::1", 4711, "2001:db8::2", 443, "CLOSE_WAIT", None, None),
    ]


def test_ss_may_write_a_process_on_a_line_of_its_own() -> None:
    records, told = read(
        "Netid State Recv-Q Send-Q Local Address:Port Peer Address:Port\n"
        "tcp   ESTAB 0      0         192.0.2.10:22  198.51.100.7:51234\n"
        '              users:(("sshd",pid=9001,fd=4))\n'
    )
    assert ([each["pid"] for each in records], told) == ([9001], {})


def test_ss_with_users_and_inodes() -> None:
    records, told = read(SS_EXTENDED)
    assert told == {}
    assert [(each["localport"], each["user"], each["inode"], each["direction"]) for each in records] == [
        (8080, "1000", 1088834, "server"),
        (51234, "0", 99, "client"),
    ]


def test_lists_one_after_the_other_are_lists_of_their_own() -> None:
    """Where it listens is known of one, and not of the other."""
    numbered = list(enumerate((NETSTAT_ALL + NETSTAT).encode().split(b"\n"), 1))
    assert [len(each) for each in saved(numbered, print)] == [3, 4]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("tcp6       0      0 2001:db8:85a3:123:38183 ::1:33708               ESTABLISHED 0          1", "cut off"),
        ("tcp        0      0 192.0.2.10:ssh          198.51.100.7:51234      ESTABLISHED 0          1", "-n"),
        ("tcp        0      0 gateway:22              198.51.100.7:51234      ESTABLISHED 0          1", "-n"),
        ("tcp        0      0 192.0.2.10:22           198.51.100.7:5", "no line"),
        ("2026-11-20 12:00:00 nothing to see", "no line"),
        ("tcp   ESTAB     0 ", "no line"),
    ],
)
def test_a_line_that_cannot_be_read_costs_itself(line: str, why: str) -> None:
    lines = NETSTAT.splitlines()
    records, told = read("\n".join([*lines[:3], line, *lines[3:]]))
    assert (len(records), list(told)) == (4, [4])
    assert why in told[4]


def test_netstat_of_old_writes_tcp_of_ipv6_too() -> None:
    header = NETSTAT.splitlines()[:2]
    line = "tcp 0 0 {} ::1:33708 ESTABLISHED 0 1"
    records, told = read("\n".join([*header, line.format("2001:db8:85a3::8a2e:22"), line.format("2001:db8:85a3::8a:38183")]))
    assert ([short(each)[:3] for each in records], list(told)) == ([("tcp6", "2001:db8:85a3::8a2e", 22)], [4])
    assert "cut off" in told[4]


def test_an_address_that_just_fits_passes_where_netstat_does_not_cut() -> None:
    line = "tcp6 0 0 2001:db8:85a3::34:38183 ::1:33708 ESTABLISHED 0 1"
    assert len(read("\n".join([*NETSTAT.splitlines()[:2], line]))[1]) == 1
    long = "tcp6 0 0 2001:db8:85a3:1234:5678:8a2e:370:7334:38183 ::1:33708 ESTABLISHED 0 1"
    assert read("\n".join([*NETSTAT.splitlines()[:2], line, long]))[1] == {}


@given(st.text(), st.integers(0, 5))
def test_whatever_a_line_holds_the_others_are_read(text: str, place: int) -> None:
    lines = NETSTAT.splitlines()
    lines.insert(2 + min(place, 4), "x" + text.replace("\n", " "))
    records, _ = read("\n".join(lines))
    assert len(records) == 4


@pytest.mark.parametrize("text", [NETSTAT, NETSTAT_ALL, SS, SS_OLD, SS_EXTENDED, NETSTAT.partition("\n")[2]])
def test_their_output_is_known_by_its_first_line(text: str) -> None:
    assert is_saved(text.partition("\n")[0].encode())


@pytest.mark.parametrize("text", ['{"start": 1}', "[", "State of the art", "Proto", ""])
def test_nothing_else_is_taken_for_it(text: str) -> None:
    assert not is_saved(text.encode())


def test_a_file_that_was_cut_off_gives_what_stands_before(tmp_path: Path) -> None:
    whole = gzip.compress(NETSTAT.encode() + os.urandom(5000).hex().encode())
    path = tmp_path / "netstat.gz"
    path.write_bytes(whole[:-2_000])
    [dump] = find([str(path)], print)
    counts = Counter[str]()
    records = []
    found = messages(dump, Rows(sensor_id="web-1"), counts)
    records += orjson.loads(next(found).body)
    with pytest.raises(DumpError, match="truncated"):
        next(found)
    assert (len(records), counts["unreadable"]) == (4, 0)
    assert {(each["host"], each["@timestamp"][:2]) for each in records} == {("web-1", "20")}


def test_the_time_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "netstat.txt"
    path.write_text(NETSTAT)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    [dump] = find([str(tmp_path)], print)
    [message] = messages(dump, None, Counter())
    assert {each["@timestamp"] for each in orjson.loads(message.body)} == {"2023-11-14T22:13:20.000Z"}


@pytest.mark.parametrize("command", [["netstat", "-ntueW"], ["netstat", "-ntuaepW"], ["ss", "-tunpe"], ["ss", "-tuanpe"]], ids=" ".join)
def test_what_is_installed_here_says_the_same_as_the_probe(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]}: absent")
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as server,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_connection(server.getsockname()[:2]) as six,
        socket.create_connection(other.getsockname()) as four,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_INET6) as on_a_device,
    ):
        datagrams.connect(("127.0.0.1", 9))
        on_a_device.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        on_a_device.connect(server.getsockname()[:2])
        text = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}).stdout
        ours = {each["localport"]: each for each in connections().records}
        ports = [each.getsockname()[1] for each in (six, four, datagrams, on_a_device)]
    theirs = {each["localport"]: each for each in read(text)[0]}
    for port in ports:
        named = theirs[port].keys() & {"proto", "localip", "foreignip", "foreignport", "state", "user", "inode", "pid", "direction"}
        assert {name: theirs[port][name] for name in named} == {name: ours[port][name] for name in named}
        assert {"user", "inode"} <= named


@pytest.mark.parametrize("digits", ["9" * 23, "9" * 5_000])
def test_numbers_that_are_none_of_the_kernels_are_not_taken(tmp_path: Path, digits: str) -> None:
    counts: Counter[str] = Counter()
    (tmp_path / "netstat").write_text(NETSTAT.replace("40321", digits))
    (tmp_path / "ss").write_text(SS.replace("pid=613", f"pid={digits}").replace("pid=9001", f"pid={digits}"))
    found = [orjson.loads(each.body) for name in ("netstat", "ss") for each in messages(Dump(tmp_path / name, 0, 0), None, counts)]
    assert [len(records) for records in found] == [3, 5]
    assert counts == {"unreadable": 1}
    assert [record.get("pid") for record in found[1]] == [None, 9010, None, None, None]
