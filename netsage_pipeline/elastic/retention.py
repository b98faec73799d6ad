"""Which indices are old enough to go. It is decided by name alone: PREFIX-date, and nothing before, between or behind."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

#: Codes that a pattern may hold; each only with all before it.
_CODES = ("%Y", "%m", "%d", "%H")

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


class Decision(NamedTuple):
    """What is to be done with an index, and why."""

    goes: bool
    why: str


def decide(name: str, prefix: str, pattern: str, now: datetime, age: timedelta) -> Decision:
    """Whether an index goes: all of the time that its date names lies more than `age` before `now`.

    prefix   see wrong_with_prefix
    pattern  of the date, see wrong_with_pattern
    """
    rest = name.removeprefix(f"{prefix}-")
    if rest == name:
        return Decision(False, f"does not begin with {prefix}-")
    begin = _date(rest, pattern)
    if begin is None:
        return Decision(False, f"what follows {prefix}- is no date of the form {pattern}")
    if begin > now:
        return Decision(False, "is dated in the future")
    past = now - _end(begin, pattern)
    if past <= timedelta(0):
        return Decision(False, "is not over yet")
    return Decision(past > age, f"ended {_ago(past)} ago")


def _date(text: str, pattern: str) -> datetime | None:
    """The date that a text is; None if it is not exactly what the pattern makes of a date."""
    try:
        date = datetime.strptime(text, pattern).replace(tzinfo=UTC)
    except ValueError:
        return None
    return date if date.strftime(pattern) == text else None


def _end(begin: datetime, pattern: str) -> datetime:
    """When the year, month, day or hour ends that begins there."""
    finest = next(code for code in reversed(_CODES) if code in pattern)
    if finest == "%Y":
        return begin.replace(year=begin.year + 1)
    if finest == "%m":
        return (begin + timedelta(days=31)).replace(day=1)
    return begin + _UNITS["d" if finest == "%d" else "h"]


def _ago(past: timedelta) -> str:
    return f"{past.days} d" if past.days else f"{past.seconds // 3600} h"


def age_of(text: str) -> timedelta | None:
    """30d, 12h or 4w as a time; None if it is none of these."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)
    return int(found[1]) * _UNITS[found[2]] if found else None


def wrong_with_prefix(prefix: str) -> str:
    """What is wrong with a prefix of index names, and what to do; "" if nothing is."""
    if not prefix:
        return "is empty: name the indices' beginning, om-ns-netsage"
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,199}", prefix):
        return "is no beginning of index names: lower-case letters, digits, '.', '_' and '-', a letter or digit first, no wildcards"
    return "ends in '-', which is added: leave it out" if prefix.endswith("-") else ""


def wrong_with_pattern(pattern: str) -> str:
    """What is wrong with a pattern of dates, and what to do; "" if nothing is."""
    codes = re.findall(r"%.?", pattern)
    wanted = "write %Y, then %m, %d and %H as far as the names have them, as %Y.%m.%d"
    if not codes or sorted(codes, key="%Y %m %d %H".find) != list(_CODES[: len(codes)]):
        return f"{pattern!r} names no date: {wanted}"
    if not re.fullmatch(r"[a-z0-9._-]*", re.sub(r"%[YmdH]", "", pattern)):
        return f"{pattern!r} holds what no name of an index holds: {wanted}"
    return ""
