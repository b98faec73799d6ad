"""Times of flows: unix seconds as floats, milliseconds, ISO texts, and the newest end that can be believed."""

from __future__ import annotations

import calendar
import datetime
import re
import time
from collections import deque
from functools import lru_cache

#: The last second that ISO 8601 with four digits of year can write (9999-12-31T23:59:59Z).
LAST_SECOND = 253402300799


def milliseconds(seconds: float) -> int:
    """Unix milliseconds, cut as decimal digits: 1699999899.123 gives 123 although the float lies below it."""
    cut = round(seconds * 1000)
    return cut if cut / 1000 <= seconds else cut - 1


_FRACTIONS = [f".{ms:03d}Z" for ms in range(1000)]


@lru_cache(maxsize=100_000)
def _iso_second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).rjust(19, "0")


def iso(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds, cut: 2020-06-09T17:39:53.808Z. For years 0 to 9999."""
    cut = round(seconds * 1000)  # As in milliseconds, without the call: every flow has two times.
    if cut / 1000 > seconds:
        cut -= 1
    return _iso_second(cut // 1000) + _FRACTIONS[cut % 1000]


@lru_cache(maxsize=1_000)
def unix(text: str) -> float:
    """Unix seconds of a text that `iso` wrote."""
    return calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) + float(text[19:-1])


@lru_cache(maxsize=1_000)
def _day(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        raise ValueError
    return datetime.date.fromisoformat(text).strftime("%Y.%m.%d")


def day_of(start: object, name: str = "start") -> str:
    """The day in UTC, YYYY.MM.DD, of an ISO 8601 text, or of unix seconds or milliseconds. ValueError if it is none of them."""
    try:
        if isinstance(start, str):
            if start.endswith("Z"):
                return _day(start[:10])
            at = datetime.datetime.fromisoformat(start)
            return _day(str(at.astimezone(datetime.UTC) if at.tzinfo else at)[:10])
        if isinstance(start, int | float) and not isinstance(start, bool):
            return _day(iso(start if start < 1e11 else start / 1000)[:10])
    except (ValueError, OverflowError, OSError):
        pass
    raise ValueError(f"{name} is no time, so there is no day in whose index it belongs")


class NewestEnd:
    """The newest end of all flows so far, which a single flow with a wrong clock does not move.

    An end more than a day beyond the median of the last 1,000 ends is not believed, and counted. The median is worked out again
    for such ends only, at most once in 100 flows; nothing is believed before 1,000 ends were seen, because the first ones might
    be the wrong ones.
    """

    SEEN = 1_000
    DAY = 86_400.0

    def __init__(self) -> None:
        self.value = float("-inf")  #: unix seconds
        self.gone = 0.0  #: seconds that it went since the first flows
        self.not_believed = 0
        self._last: deque[float] = deque(maxlen=self.SEEN)
        self._bound = float("-inf")
        self._until_median = self.SEEN

    @property
    def state(self) -> list[float]:
        """What a later NewestEnd needs to go on from here. It works the median out again when it has seen 1,000 ends itself."""
        return [self.value, self.gone, self.not_believed, self._bound]

    @state.setter
    def state(self, state: list[float]) -> None:
        self.value, self.gone, not_believed, self._bound = state
        self.not_believed = int(not_believed)

    def see(self, end: float) -> None:
        self._last.append(end)
        self._until_median -= 1
        if end <= self.value:
            return
        if end > self._bound and self._until_median <= 0:
            self._until_median = 100
            ends = sorted(self._last)
            self._bound = ends[len(ends) // 2] + self.DAY
            if self.value == float("-inf"):
                self.value = max(e for e in ends if e <= self._bound)
                self.gone = self.value - ends[len(ends) // 10]  # The very first may be far behind, and wrong.
                self.not_believed += sum(e > self._bound for e in ends)
                return
        if end <= self._bound:
            self.gone += end - self.value
            self.value = end
        elif self._bound > float("-inf"):
            self.not_believed += 1
