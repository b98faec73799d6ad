"""This machine's connections as the input of a chain."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

import orjson
import structlog

from netsage_pipeline.config import SettingsError
from netsage_pipeline.deadletters import Letters
from netsage_pipeline.flow import Delivery
from netsage_pipeline.probe.connections import PROC, Seen, connections
from netsage_pipeline.times import iso

log = structlog.get_logger(__name__)

#: Records in a message, and messages that are delivered at once.
TOGETHER = 200
AT_ONCE = 10

#: States of a connection that was ended on this side. Its socket is no process's any more.
ENDED = frozenset(("FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "LAST_ACK", "CLOSING"))

#: A connection while it is there: proto, both addresses and ports; of UDP the inode too, because there several may have the same ends.
Ends = tuple[Any, ...]

#: The process namespace of the machine, as the kernel calls it.
MACHINE = "pid:[4026531836]"


class ConnectionsSource:
    """Snapshots, each kept in a file until all that came of it is stored, so that what was taken is not lost with the process.

    only_changes   each connection once when it is opened and once when it is closed, instead of all of them each time
    """

    def __init__(self, state: Path, interval_s: float, *, only_changes: bool, command_line: bool) -> None:
        self._interval_s, self._only_changes, self._command_line = interval_s, only_changes, command_line
        self._directory = state / "taken"
        self._letters = Letters(state / "dead-letters.ndjson")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            for torn in self._directory.glob("*.part"):
                torn.unlink()
        except OSError as error:
            raise SettingsError([f"{self._directory}: cannot be written: {error.strerror}: name another directory (state)"]) from None
        if not (PROC / "net" / "tcp").exists():
            raise SettingsError([f"{PROC}/net/tcp: is not there: the probe needs Linux with /proc"])
        self._host = socket.gethostname()
        self._kept = deque(sorted(self._directory.glob(f"{'[0-9]' * 12}.ndjson")))  # and not delivered yet
        self._number = int(self._kept[-1].stem) if self._kept else 0
        self._waiting: deque[bytes] = deque()  # messages of the file that is being delivered
        self._delivered = 0
        self._files: deque[tuple[int, Path]] = deque()  # number of the last message of a file → the file
        self._known: dict[Ends, dict[str, Any]] | None = None
        self._due = time.monotonic()
        self._left_out = 0
        self._why = ""
        self._said: set[str] = set()

    @property
    def name(self) -> str:
        return "connections"

    @property
    def caught_up(self) -> bool:
        return not self._kept and not self._waiting

    @property
    def connected(self) -> bool:
        return True

    @property
    def waiting(self) -> int:
        """Snapshots that nobody was given yet."""
        return len(self._kept)

    def receive(self, seconds: float) -> list[Delivery]:
        if self.caught_up:
            time.sleep(min(max(self._due - time.monotonic(), 0), seconds))
            if time.monotonic() >= self._due:
                self._take()
        deliveries: list[Delivery] = []
        while len(deliveries) < AT_ONCE and (self._waiting or self._kept):
            if not self._waiting:
                self._open(self._kept.popleft())
                continue
            self._delivered += 1
            deliveries.append(Delivery(self._waiting.popleft(), "", self._delivered))
        return deliveries

    def _open(self, path: Path) -> None:
        try:
            self._waiting.extend(path.read_bytes().splitlines())
        except OSError as error:
            log.warning("a snapshot cannot be read and is left where it is", file=path.name, reason=error.strerror)
        else:
            self._files.append((self._delivered + len(self._waiting), path))

    def turn(self, seconds: float) -> None:
        """The output takes no more: no snapshot is taken."""
        self._why = "the output takes no more"
        time.sleep(seconds)

    def pause(self) -> None:
        """What was delivered is in files, and needs not be given back."""

    def acknowledge(self, receipt: int) -> None:
        while self._files and self._files[0][0] <= receipt:
            self._files.popleft()[1].unlink(missing_ok=True)

    # Snapshots.

    def _take(self) -> None:
        """Takes a snapshot and keeps it. One that cannot be kept was not taken."""
        self._pass(time.monotonic())
        try:
            seen = connections(command_line=self._command_line)
        except OSError as error:
            self._left_out += 1
            self._why = "they could not be taken"
            self._warn("snapshots cannot be taken and are left out until they can", reason=error.strerror)
            return
        self._say_what_is_hidden(seen)
        at = {"@timestamp": iso(time.time()), "host": self._host}
        known = self._known
        if self._only_changes:
            known, made = changes(self._known, seen.records)
        else:
            made = seen.records
        try:
            self._keep([at | record for record in made])
        except OSError as error:
            self._left_out += 1
            self._why = "they could not be kept"
            self._warn("snapshots cannot be kept and are left out until they can", directory=str(self._directory), reason=error.strerror)
            return
        self._known = known
        self._say_what_was_left_out()

    def _pass(self, now: float) -> None:
        """Goes on to the time that is due next, and counts those that went by without a snapshot."""
        late = int((now - self._due) // self._interval_s)
        self._due += (late + 1) * self._interval_s
        self._left_out += late

    def _keep(self, records: list[dict[str, Any]]) -> None:
        if not records:
            return
        self._number += 1
        path = self._directory / f"{self._number:012d}.ndjson"
        part = path.with_suffix(".part")
        lines = [orjson.dumps(records[i : i + TOGETHER]) + b"\n" for i in range(0, len(records), TOGETHER)]
        try:
            with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            part.rename(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        self._kept.append(path)

    def _say_what_is_hidden(self, seen: Seen) -> None:
        """A connection without a process alone is no sign: the kernel has some itself, and a process may have ended meanwhile."""
        if seen.nameless and (seen.hidden or not (PROC / "1").exists()):  # Mounted with hidepid=2 it does not even list them.
            self._warn(
                "may not see the processes of all connections: "
                "for those of other users it needs the capabilities CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, which root has",
                connections=seen.nameless,
                processes=seen.hidden,
            )
        elif seen.nameless and _in_a_container():
            self._warn("does not see the processes outside its container: run it among the host's (--pid=host)", connections=seen.nameless)

    def _warn(self, line: str, **values: Any) -> None:
        """Says so once."""
        if line not in self._said:
            self._said.add(line)
            log.warning(line, **values)

    def _say_what_was_left_out(self) -> None:
        if self._left_out:
            why = self._why or "taking one takes longer than interval_s"
            log.warning("snapshots were left out", snapshots=self._left_out, reason=why)
        self._left_out, self._why = 0, ""

    # Dead letters.

    def bury(self, number: int, _message_id: str, letter: bytes) -> None:
        self._letters.bury(number, letter)

    def buried(self) -> list[int]:
        return self._letters.buried()

    def close(self) -> None:
        if self._why and time.monotonic() > self._due + self._interval_s:  # Else it was only about to leave.
            self._pass(time.monotonic())
        self._say_what_was_left_out()


def changes(
    known: dict[Ends, dict[str, Any]] | None, records: list[dict[str, Any]]
) -> tuple[dict[Ends, dict[str, Any]], list[dict[str, Any]]]:
    """What is there now, and a record of each connection that was opened or closed since `known`; without it all were found.

    A connection keeps the process that it was last seen with, and its direction.
    """
    there: dict[Ends, dict[str, Any]] = {}
    made: list[dict[str, Any]] = []
    for record in records:
        ends: Ends = tuple(record[name] for name in ("proto", "localip", "localport", "foreignip", "foreignport"))
        if record["proto"].startswith("udp"):
            ends += (record["inode"],)
        before = (known or {}).get(ends)
        if before is not None and _is_the_same(before, record):
            there[ends] = before | record | {"direction": before["direction"]}
            if before["inode"] and not record["inode"]:
                there[ends] |= {"inode": before["inode"], "user": before["user"]}
            continue
        if before is not None:
            made.append(before | {"event": "closed"})
        there[ends] = record
        made.append(record | {"event": "found" if known is None else "opened"})
    made += [before | {"event": "closed"} for ends, before in (known or {}).items() if ends not in there]
    return there, made


def _is_the_same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether it is the same connection, and not another one between the same ends."""
    if before["inode"] and now["inode"]:
        return bool(before["inode"] == now["inode"])
    return before["state"] not in ENDED or now["state"] in ENDED


def _in_a_container() -> bool:
    """Whether it sees other processes than those of the machine."""
    with contextlib.suppress(OSError):
        return str((PROC / "self" / "ns" / "pid").readlink()) != MACHINE
    return False
