"""Which indices go: a table of names that must and must not, and what holds for any name."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsage_pipeline import folders
from netsage_pipeline.commands import retain
from netsage_pipeline.compose import configured
from netsage_pipeline.elastic.retention import age_of, decide, wrong_with_pattern, wrong_with_prefix

PREFIX = "om-ns-netsage"
DAILY = "%Y.%m.%d"
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MONTH = timedelta(days=30)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        pytest.param("om-ns-netsage-2026.10.21", DAILY, id="its last second is more than 30 days past"),
        pytest.param("om-ns-netsage-2024.02.29", DAILY, id="a leap day"),
        pytest.param("om-ns-netsage-1970.01.01", DAILY, id="what a flow of time 0 makes"),
        pytest.param("om-ns-netsage-2026.09", "%Y.%m", id="a month"),
        pytest.param("om-ns-netsage-2025.12", "%Y.%m", id="a month at the end of a year"),
        pytest.param("om-ns-netsage-2025", "%Y", id="a year"),
        pytest.param("om-ns-netsage-2026.10.22.10", "%Y.%m.%d.%H", id="an hour"),
        pytest.param("om-ns-netsage-20261021", "%Y%m%d", id="a date without dots"),
        pytest.param("om-ns-netsage-2026-10-21", "%Y-%m-%d", id="a date with dashes"),
    ],
)
def test_an_index_goes(name: str, pattern: str) -> None:
    goes, why = decide(name, PREFIX, pattern, NOW, MONTH)
    assert goes
    assert why.startswith("ended ")


OTHER = "does not begin with om-ns-netsage-"
NO_DATE = "what follows om-ns-netsage- is no date of the form %Y.%m.%d"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("om-ns-netsage-2026.10.22", "ended 29 d ago"),
        ("om-ns-netsage-2026.11.20", "ended 12 h ago"),
        ("om-ns-netsage-2026.11.21", "is not over yet"),
        ("om-ns-netsage-2026.11.22", "is dated in the future"),
        ("om-ns-netsage-9999.12.31", "is dated in the future"),
        ("om-ns-netsage", OTHER),
        ("om-ns-netsage-", NO_DATE),
        ("om-ns-netsage2026.01.01", OTHER),
        ("xom-ns-netsage-2026.01.01", OTHER),
        ("om-ns-netsagx-2026.01.01", OTHER),
        (".ds-om-ns-netsage-2026.01.01-000001", OTHER),
        ("om-ns-netsage-other-2026.01.01", NO_DATE),
        ("om-ns-netsage-om-ns-netsage-2026.01.01", NO_DATE),
        ("om-ns-netsage-2026.01.01-backup", NO_DATE),
        ("om-ns-netsage-2026.01.01-000001", NO_DATE),
        ("om-ns-netsage-2026.01.01.01", NO_DATE),
        ("om-ns-netsage-x2026.01.01", NO_DATE),
        ("om-ns-netsage-2026.1.1", NO_DATE),
        ("om-ns-netsage-2026.01", NO_DATE),
        ("om-ns-netsage-26.01.01", NO_DATE),
        ("om-ns-netsage-2026.13.01", NO_DATE),
        ("om-ns-netsage-2026.02.30", NO_DATE),
        ("om-ns-netsage-2025.02.29", NO_DATE),
        ("om-ns-netsage-2026.00.00", NO_DATE),
        ("om-ns-netsage-0000.01.01", NO_DATE),
        ("om-ns-netsage-999.01.01", NO_DATE),
        ("om-ns-netsage-2026-01-01", NO_DATE),
        ("om-ns-netsage-2026x01x01", NO_DATE),
        ("om-ns-netsage--2026.01.01", NO_DATE),
        ("om-ns-netsage-+2026.01.01", NO_DATE),
        ("om-ns-netsage- 2026.01.01", NO_DATE),
        ("om-ns-netsage-2026.01.01 ", NO_DATE),
        ("om-ns-netsage-2026.01.01\n", NO_DATE),
        ("om-ns-netsage-２０２６.01.01", NO_DATE),
        ("om-ns-netsage-٢٠٢٦.٠١.٠١", NO_DATE),
        ("_all", OTHER),
        ("*", OTHER),
        ("om-ns-netsage-*", NO_DATE),
        ("", OTHER),
    ],
)
def test_an_index_stays(name: str, why: str) -> None:
    assert decide(name, PREFIX, DAILY, NOW, MONTH) == (False, why)


@pytest.mark.parametrize(
    ("name", "pattern", "at", "goes"),
    [
        pytest.param("om-ns-netsage-2026.11.01", DAILY, datetime(2026, 12, 2, tzinfo=UTC), False, id="exactly 30 days past"),
        pytest.param("om-ns-netsage-2026.11.01", DAILY, datetime(2026, 12, 2, 0, 0, 0, 1, tzinfo=UTC), True, id="30 days and a moment"),
        pytest.param("om-ns-netsage-2026.10", "%Y.%m", datetime(2026, 12, 1, tzinfo=UTC), False, id="a month, counted from its end"),
        pytest.param("om-ns-netsage-2026.10", "%Y.%m", datetime(2026, 12, 1, 1, tzinfo=UTC), True, id="a month and an hour"),
        pytest.param("om-ns-netsage-2025", "%Y", datetime(2026, 1, 31, tzinfo=UTC), False, id="a year, counted from its end"),
        pytest.param("om-ns-netsage-2025", "%Y", datetime(2026, 2, 1, tzinfo=UTC), True, id="a year and a month"),
    ],
)
def test_the_whole_of_its_time_must_be_past(name: str, pattern: str, at: datetime, goes: bool) -> None:
    assert decide(name, PREFIX, pattern, at, MONTH).goes is goes


ALPHABET = "om-ns-netsage2026.01-_*٢０ \n"
PATTERNS = st.sampled_from([DAILY, "%Y.%m", "%Y", "%Y%m%d", "%Y.%m.%d-%H"])
TIMES = st.datetimes(datetime(1000, 1, 1), datetime(9998, 1, 1), timezones=st.just(UTC))


@given(st.text(ALPHABET) | st.text(ALPHABET).map(lambda rest: f"{PREFIX}-{rest}"), PATTERNS, TIMES)
@example("om-ns-netsage-2026.01.01", DAILY, NOW)
def test_what_goes_is_the_prefix_and_a_date_and_nothing_else(name: str, pattern: str, now: datetime) -> None:
    if decide(name, PREFIX, pattern, now, MONTH).goes:
        date = datetime.strptime(name[len(PREFIX) + 1 :], pattern).replace(tzinfo=UTC)
        assert name == f"{PREFIX}-{date:{pattern}}"
        assert name.isascii()
        assert now - date > MONTH


@given(TIMES, TIMES, PATTERNS, st.timedeltas(timedelta(hours=1), timedelta(days=9999)))
def test_an_index_goes_once_all_of_it_is_older_and_then_for_good(of: datetime, now: datetime, pattern: str, age: timedelta) -> None:
    name = f"{PREFIX}-{of:{pattern}}"
    goes = decide(name, PREFIX, pattern, now, age).goes
    assert not (goes and now - of <= age), "a flow of that time is younger"
    assert goes or now - of <= age + timedelta(days=366)
    if goes:
        assert decide(name, PREFIX, pattern, now + timedelta(days=1), age).goes
        assert not decide(name, PREFIX, pattern, now, now - of).goes


@given(st.text(ALPHABET, min_size=1), st.text(ALPHABET), TIMES)
def test_an_index_of_another_feed_never_goes(more: str, before: str, now: datetime) -> None:
    for name in (f"{PREFIX}{more}-2000.01.01", f"{before}{more}{PREFIX}-2000.01.01", f"{PREFIX}-2000.01.01{more}"):
        assert not decide(name, PREFIX, DAILY, now, MONTH).goes


@pytest.mark.parametrize(
    "prefix",
    [
        *("", "*", "om-*", "om?", "_all", "-om", "+om", "_om", ".om", ".", "..", "Om", "om ns", "om,ns", "om/ns", "om\\ns", "om:9", "om#"),
        *("<om-{now}>", '"om"', "om|ns", "om-", "om\n", "ömü", "x" * 201),
    ],
)
def test_a_prefix_is_refused(prefix: str) -> None:
    assert wrong_with_prefix(prefix)
    assert "\n" not in wrong_with_prefix(prefix)


@pytest.mark.parametrize("prefix", ["om-ns-netsage", "a", "9", "om.ns_x-1"])
def test_a_prefix_is_taken(prefix: str) -> None:
    assert wrong_with_prefix(prefix) == ""


@pytest.mark.parametrize(
    "pattern",
    ["", "x", "%", "%Y%", "%m.%d", "%Y.%d", "%Y.%Y", "%Y.%m.%d.%M", "%y.%m.%d", "%Y.%b", "%Y %m", "%Y*", "%%Y", "%Y.%m.%d%%", "%Y.%M"],
)
def test_a_pattern_is_refused(pattern: str) -> None:
    assert wrong_with_pattern(pattern)


@pytest.mark.parametrize("pattern", [DAILY, "%Y.%m", "%Y", "%Y%m%d", "%d.%m.%Y", "%Y.%m.%d-%H", "day-%Y-%m-%d"])
def test_a_pattern_is_taken(pattern: str) -> None:
    assert wrong_with_pattern(pattern) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30d", timedelta(days=30)), ("4w", timedelta(days=28)), ("12h", timedelta(hours=12)), ("99999w", timedelta(weeks=99999))]
    + [(wrong, None) for wrong in ("", "30", "d", "0d", "-1d", "030d", "3.5d", "30 d", "30D", "30m", "30d\n", "٣d", "100000d")],
)
def test_an_age_is_a_number_and_a_unit(text: str, expected: timedelta | None) -> None:
    assert age_of(text) == expected


def test_the_policy_for_servers_with_ilm_deletes_what_is_old_and_disturbs_no_settings() -> None:
    directory = folders.shipped("conf.d") / "sink"
    phases = json.loads((directory / "ilm-policy.json").read_text("utf-8"))["policy"]["phases"]
    assert set(phases) == {"hot", "delete"}
    assert phases["delete"]["actions"] == {"delete": {}}
    assert age_of(phases["delete"]["min_age"])
    assert configured(directory, [folders.shipped("stages")])


def test_a_signal_leaves_no_lock_of_the_client_taken() -> None:
    """Else Python, which closes the client's connections at its end, would wait for it until the second Ctrl-C."""
    lock = threading.Lock()

    def interrupted(**_: Any) -> list[dict[str, str]]:
        lock.acquire()  # As the client does for its connections, in Python code, with nothing that releases it here.
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        lock.release()
        return [{"index": f"{PREFIX}-2020.01.01", "docs.count": "0", "store.size": "0"}]

    listing: Any = SimpleNamespace(cat=SimpleNamespace(indices=interrupted))
    with pytest.raises(KeyboardInterrupt):
        retain.listed(listing, PREFIX)
    assert lock.acquire(timeout=5)
    lock.release()
    deleting: Any = SimpleNamespace(indices=SimpleNamespace(delete=interrupted))
    with pytest.raises(KeyboardInterrupt):
        retain.delete(deleting, f"{PREFIX}-2020.01.01")
    assert lock.acquire(timeout=5)
