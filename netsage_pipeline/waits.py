"""What this process waits for, and how often its links came back: said by whoever waits, read by metrics and health.

There is one of it for the process, as there is one log: what waits lies deep in inputs and outputs, and says it to the log as well.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import NamedTuple

import structlog

log = structlog.get_logger(__name__)

#: Seconds of waiting after which a loop says so.
PATIENCE_S = 2


class _Begun(NamedTuple):
    """A wait that is under way."""

    since: float  #: monotonic seconds
    reason: str  #: in words for an operator


class Waited(NamedTuple):
    """What something was waited for so far, waits that are under way among it."""

    times: int
    seconds: float
    now: bool  #: whether it is waited for


_lock = threading.Lock()
_now: dict[str, _Begun] = {}
_times: Counter[str] = Counter()
_seconds: Counter[str] = Counter()
_reconnects: Counter[str] = Counter()


def begin(what: str, reason: str) -> None:
    """From now on this is waited for, or for another reason than before."""
    with _lock:
        before = _now.get(what)
        if before is None:
            _times[what] += 1
        _now[what] = _Begun(before.since if before else time.monotonic(), reason)


def end(what: str) -> None:
    """It is there, if it was waited for."""
    with _lock:
        wait = _now.pop(what, None)
        if wait is not None:
            _seconds[what] += time.monotonic() - wait.since  # type: ignore[assignment]


def reconnected(link: str) -> None:
    """A link has a connection again, or another one."""
    with _lock:
        _reconnects[link] += 1


def under_way() -> dict[str, str]:
    """What is waited for → why."""
    with _lock:
        return {what: wait.reason for what, wait in _now.items()}


def so_far() -> dict[str, Waited]:
    """What was ever waited for."""
    now = time.monotonic()
    with _lock:
        found = {}
        for what, times in _times.items():
            wait = _now.get(what)
            found[what] = Waited(times, _seconds[what] + (now - wait.since if wait else 0.0), wait is not None)
        return found


def reconnects() -> dict[str, int]:
    """Link → how often it got another connection after its first one."""
    with _lock:
        return dict(_reconnects)


class Wait:
    """Something that a loop waits for now and then: says so once, when that takes longer than a moment, and once when it is over."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None
        self._said_so = False

    def goes_on(self, reason: str) -> None:
        if self._since is None:
            self._since = time.monotonic()
        if not self._said_so and time.monotonic() - self._since > PATIENCE_S:
            self._said_so = True
            begin(self._what, reason)
            log.warning(f"waits for {self._what}", reason=reason)

    def is_over(self) -> None:
        if self._said_so and self._since is not None:
            end(self._what)
            log.info("goes on", waited_for=self._what, after_s=round(time.monotonic() - self._since, 1))
        self._since, self._said_so = None, False
