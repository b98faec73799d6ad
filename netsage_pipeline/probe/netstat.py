"""Saved output of `netstat -nte` and `ss -tunp` → the records that the probe makes of a machine's connections.

Columns are known by their place, so other options of theirs (-a, -p, -u, -W of netstat; -a, -e without Netid of ss) do no harm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from netsage_pipeline.probe.connections import PROTOCOLS, Entry, ip, records

_HEADER = re.compile(rb"Active Internet connections|Proto +Recv-Q +Send-Q|(?:Netid +)?State +Recv-Q +Send-Q")

#: Where netstat writes no user and inode (without -e) there is nothing, or the program.
#: No number of the kernel's has more than 19 digits.
_NETSTAT = re.compile(
    r"(?P<proto>(?:tcp|udp)6?) +\d+ +\d+ +(?P<local>\S+) +(?P<foreign>\S+)(?: +(?P<state>[A-Z][A-Z_0-9]+))?"
    r"(?: +(?P<user>\S+) +(?P<inode>\d{1,19}))?(?: +(?:-|(?P<pid>\d{1,19})/(?P<process>.*)))?"
)
_SS = re.compile(r"(?:(?P<proto>tcp|udp) +)?(?P<state>[A-Z][A-Z0-9-]+) +\d+ +\d+ +(?P<local>\S+) +(?P<foreign>\S+)(?: +(?P<more>.*))?")

#: Characters to which netstat cuts address and port together, the colon aside, unless it is called with -W.
_CUT = 22

#: Words of ss that are not those of netstat with another dash.
_STATES = {"ESTAB": "ESTABLISHED", "UNCONN": "CLOSE", "FIN_WAIT_1": "FIN_WAIT1", "FIN_WAIT_2": "FIN_WAIT2"}


class Unreadable(ValueError):
    """A line is none of theirs, or does not say all; the text says why, and holds nothing of the line."""


def is_saved(first: bytes) -> bool:
    """Whether a first line is a heading of netstat or ss."""
    return _HEADER.match(first) is not None


def saved(lines: list[tuple[int, bytes]], tell: Callable[[int, str], object]) -> Iterator[list[dict[str, Any]]]:
    """The records of each list of connections in a file, with those fields that it names. Tells the number of a line and why it is none."""
    one: list[tuple[Entry, dict[str, Any]]] = []
    wide = any(len(field) > _CUT + 1 for _, line in lines if line[:3] in (b"tcp", b"udp") for field in line.split()[3:5])
    for number, line in lines:
        text = line.decode("utf-8", "replace").rstrip()
        if _HEADER.match(line):
            yield from _made(one)
            one = []
        elif line[:1] in (b" ", b"\t"):  # ss puts what it has no room for on a line of its own.
            if one:
                one[-1][1].update(_of_ss(text))
        elif text and not text.startswith(("Active UNIX", "Proto RefCnt", "unix ", "raw")):
            try:
                one.append(_read(text, wide=wide))
            except Unreadable as error:
                tell(number, str(error))
    yield from _made(one)


def _made(one: list[tuple[Entry, dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """One list, if there is one. Directions are known where it has a socket that waits for connections (netstat -a, ss -a)."""
    entries = [entry for entry, _ in one]
    more = [fields for entry, fields in one if entry.foreignport]
    judges = any(not entry.foreignport for entry in entries)
    made = [record | fields for record, fields in zip(records(entries, judges=judges), more, strict=True)]
    if made:
        yield made


def _read(text: str, *, wide: bool) -> tuple[Entry, dict[str, Any]]:
    """An entry, and what is said of its user, inode and process."""
    found = _NETSTAT.fullmatch(text)
    if found and (found["state"] or found["foreign"].endswith("*")):
        proto, more = found["proto"], {}
        if proto in PROTOCOLS[::2] and ":" in found["local"].rpartition(":")[0]:  # net-tools 1.60 writes tcp of IPv6 too.
            proto += "6"
        state = found["state"] or "CLOSE"
        if proto in PROTOCOLS[1::2] and not wide and any(len(found[side]) > _CUT for side in ("local", "foreign")):
            raise Unreadable("the address may be cut off: save it with netstat -W")
        if found["pid"]:
            more = {"process": found["process"], "pid": int(found["pid"])}
        user, inode = found["user"] or "", int(found["inode"]) if found["inode"] else None
    else:
        found = _SS.fullmatch(text)
        if not found or found["state"] in PROTOCOLS:
            raise Unreadable("is no line of netstat -nte or ss -tunp")
        word = found["state"].replace("-", "_")
        proto, state, more = found["proto"] or "tcp", _STATES.get(word, word), _of_ss(found["more"] or "")
        proto += "6" if ":" in found["local"].rpartition(":")[0] else ""
        user, inode = "", None
    local, foreign = _end(found["local"]), _end(found["foreign"])
    return Entry(proto, *local, *foreign, state, user, inode), more


def _of_ss(text: str) -> dict[str, Any]:
    """What ss says behind the addresses: the process of the lowest pid, and with -e user and inode. Of root it writes no uid."""
    more: dict[str, Any] = {}
    if "users:(" in text:
        users = re.findall(r'\("([^"]*)",(?:pid=)?(\d{1,19})\b', text)
        pid, process = min((int(pid), process) for process, pid in users) if users else (0, "")
        if pid:
            more |= {"process": process, "pid": pid}
    inode = re.search(r"\bino:(\d{1,19})\b", text)
    if inode:
        user = re.search(r"\buid:(\d+)", text)
        more |= {"user": user[1] if user else "0", "inode": int(inode[1])}
    return more


def _end(text: str) -> tuple[str, int]:
    """Address and port; port 0 where it is *, and any address with it. ss writes a zone behind the brackets: [fe80::1]%eth0:546."""
    address, _, port = text.rpartition(":")
    address = address.partition("%")[0]
    if port == "*":
        return "", 0
    found = ip(address.removeprefix("[").removesuffix("]"))
    if found is None and address == "*":
        found = "::"
    if found is None or not re.fullmatch(r"\d{1,5}", port):
        raise Unreadable("address or port is no number: save it with -n")
    return found, int(port)
