"""The day of a flow, whatever its start is written like."""

from __future__ import annotations

from typing import Any

import pytest

from netsage_pipeline.times import day_of


@pytest.mark.parametrize(
    ("start", "day"),
    [
        ("2026-11-01T23:59:59.999Z", "2026.11.01"),
        ("2026-11-01T23:59:59.999+00:00", "2026.11.01"),
        ("2026-11-02T00:30:00+01:00", "2026.11.01"),
        ("2026-11-01T23:30:00.5-02:00", "2026.11.02"),
        ("2026-11-01T12:00:00", "2026.11.01"),
        ("2026-11-01", "2026.11.01"),
        (1_793_577_599.999, "2026.11.01"),
        (1_793_577_600, "2026.11.02"),
        (1_793_577_599_999, "2026.11.01"),
        (1_793_577_600_000.0, "2026.11.02"),
        (0, "1970.01.01"),
    ],
)
def test_the_day_is_that_in_utc(start: Any, day: str) -> None:
    assert day_of(start) == day


@pytest.mark.parametrize(
    "start",
    [
        None,
        "",
        "yesterday",
        "2026-11-31T00:00:00Z",
        "2026-11-01/../x",
        "２０２６-11-01T00:00:00Z",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+01:00",
        True,
        float("nan"),
        float("inf"),
        1e300,
        -1e300,
        1 << 70,
        [],
        {"a": 1},
    ],
)
def test_what_is_no_time_has_no_day(start: Any) -> None:
    with pytest.raises(ValueError, match=r"^start is no time, so there is no day in whose index it belongs$"):
        day_of(start)
