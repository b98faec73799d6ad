"""This machine's TCP and UDP connections as `netstat -nte` lists them, with the processes that have them, out of /proc (Linux).

Seen are the connections of the network namespace that it runs in. The environment of a process is never read.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from netsage_pipeline.addresses import parse, unmapped

#: The kernel's numbers, in the words of netstat.
STATES = {
    "01": "ESTABLISHED",
    "02": "SYN_SENT",
    "03": "SYN_RECV",
    "04": "FIN_WAIT1",
    "05": "FIN_WAIT2",
    "06": "TIME_WAIT",
    "07": "CLOSE",
    "08": "CLOSE_WAIT",
    "09": "LAST_ACK",
    "0A": "LISTEN",
    "0B": "CLOSING",
    "0C": "SYN_RECV",
}

#: As netstat's first column has them, and the kernel's files are called.
PROTOCOLS = ("tcp", "tcp6", "udp", "udp6")

#: Characters of a command line: a longer term is not indexed (templates.IGNORE_ABOVE).
COMMAND_LINE = 8_191

#: The kernel keeps so many bytes of a process's name.
_NAME = 15

PROC = Path("/proc")


class Entry(NamedTuple):
    """A line of the kernel's or of netstat's: a connection, or a socket that waits for some, whose foreign port is 0."""

    proto: str
    localip: str
    localport: int
    foreignip: str
    foreignport: int
    state: str
    user: str  #: number, "" if unknown
    inode: int | None  #: 0: no process has it any more, or has it yet


class Seen(NamedTuple):
    """What was seen at one time."""

    records: list[dict[str, Any]]
    hidden: int  #: processes whose sockets may not be seen
    nameless: int  #: connections whose process was not seen, though one has them


def connections(*, command_line: bool = False, proc: Path = PROC) -> Seen:
    """All connections, those in no process's hands (TIME_WAIT) too. OSError if there is nothing to read.

    A record has proto, localip, localport, foreignip, foreignport, state, user, inode, direction, and of its process, where that may be
    seen, process (its name), pid, path of the program, and command with `command_line`. A socket that several processes share is that of
    the lowest pid, which had it first.
    """
    entries = list(dict.fromkeys(entry for name in PROTOCOLS for entry in _table(proc, name)))
    held = {entry.inode for entry in entries if entry.inode and entry.foreignport}
    pids, hidden = _holders(proc, held)
    of_process = {pid: _process(proc, pid, command_line=command_line) for pid in set(pids.values())}
    made = list(records(entries))
    for record in made:
        record.update(of_process.get(pids.get(record["inode"], 0), {}))
    return Seen(made, hidden, len(held - pids.keys()))


def records(entries: Iterable[Entry], *, judges: bool = True) -> Iterator[dict[str, Any]]:
    """The connections among the entries.

    judges   whether those that wait for connections are among them, by whose ports a direction is known: "server" where this machine
             listens on the local port, else "client"
    """
    entries = list(entries)
    listening = {(entry.proto[:3], entry.localport) for entry in entries if not entry.foreignport}
    for entry in entries:
        if entry.foreignport:
            record = {name: value for name, value in entry._asdict().items() if value not in ("", None)}
            if judges:
                record["direction"] = "server" if (entry.proto[:3], entry.localport) in listening else "client"
            yield record


def ip(text: str) -> str | None:
    """An address in its usual notation, an IPv4-mapped one as IPv4; None if it is none. A zone (%eth0) is left out."""
    packed = parse(text.partition("%")[0])
    if packed is None:
        return None
    packed = unmapped(packed)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _table(proc: Path, name: str) -> Iterator[Entry]:
    """The lines of /proc/net/NAME. There is no tcp6 where IPv6 is off."""
    try:
        lines = (proc / "net" / name).read_text("utf-8").splitlines()[1:]
    except FileNotFoundError:
        if name == "tcp":
            raise
        return
    for line in lines:
        _, local, foreign, state, _, _, _, user, _, inode, *_ = line.split()
        localip, _, localport = local.partition(":")
        foreignip, _, foreignport = foreign.partition(":")
        yield Entry(
            name, _ip(localip), int(localport, 16), _ip(foreignip), int(foreignport, 16), STATES.get(state, state), user, int(inode)
        )


@lru_cache(maxsize=10_000)
def _ip(words: str) -> str:
    """The kernel writes an address as numbers of 32 bits, in the machine's order of bytes."""
    packed = b"".join(struct.pack("=I", int(words[i : i + 8], 16)) for i in range(0, len(words), 8))
    packed = unmapped(packed)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _holders(proc: Path, wanted: set[int]) -> tuple[dict[int, int], int]:
    """Inode → pid, and the number of processes that may not be looked into. A process may end meanwhile."""
    pids: dict[int, int] = {}
    hidden = 0
    for pid in sorted(int(name) for name in os.listdir(proc) if name.isdigit()):  # noqa: PTH208
        directory = f"{proc}/{pid}/fd"
        try:
            for name in os.listdir(directory):  # noqa: PTH208
                try:
                    target = os.readlink(f"{directory}/{name}")  # noqa: PTH115
                except FileNotFoundError:
                    continue
                if target.startswith("socket:[") and (inode := int(target[8:-1])) in wanted:
                    pids.setdefault(inode, pid)
        except PermissionError:
            hidden += os.path.exists(f"{proc}/{pid}")  # The kernel says so too of one that has just ended.  # noqa: PTH110
        except OSError:
            continue
    return pids, hidden


def _process(proc: Path, pid: int, *, command_line: bool) -> dict[str, Any]:
    """What may be seen of a process; nothing if it has ended."""
    directory = proc / str(pid)
    try:
        name = (directory / "comm").read_bytes().removesuffix(b"\n").decode("utf-8", "replace")
    except OSError:
        return {}
    found: dict[str, Any] = {"process": name, "pid": pid}
    try:
        path = os.fsencode((directory / "exe").readlink()).decode("utf-8", "replace").removesuffix(" (deleted)")
    except OSError:
        path = ""
    if path:
        found["path"] = path
        program = path.rpartition("/")[2]
        if len(name.encode()) >= _NAME and program.startswith(name):
            found["process"] = program
    if command_line:
        try:
            words = (directory / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
        except OSError:
            words = b""
        found["command"] = words.decode("utf-8", "replace")[:COMMAND_LINE]
    return found
