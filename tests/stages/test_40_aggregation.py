"""40 aggregation: which parts belong together, what becomes of them, and when a flow is finished, by both clocks."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsage_pipeline.flow import Finished, Flow, Now, Refused
from tests.conftest import load_stage
from tests.flows import MISSING, NOW, flow, nothing

aggregation = load_stage("40_aggregation")

CLOCKS = pytest.mark.parametrize("clock", ["arrival", "event"])
DAY = 86_400


def stitching(clock: str = "arrival", **settings: Any) -> tuple[Any, Now]:
    now = Now(NOW, clock=clock)
    return aggregation.stage(aggregation.Config(**settings), nothing, now), now


def part(start: float, end: float | None = None, bits: Any = 100, packets: Any = 10, *, id: str = "a", **changes: Any) -> Flow:
    """A part as stage 20 hands it on, its times counted from NOW."""
    meta = {"id": id} | changes.pop("meta", {})
    values = {"num_bits": bits, "num_packets": packets} | changes.pop("values", {})
    end = start if end is None else end
    given = {"start": NOW + start, "end": NOW + end, "@ingest_time": "2023-11-14T22:13:20.000Z"}
    return flow(meta=meta, values=values, **given | changes)


def flows(stage: Any, finished: list[Finished]) -> list[Flow]:
    return [stage.flow(each) for each in finished]


def stitched(parts: list[Flow], clock: str = "arrival", **settings: Any) -> list[Flow]:
    """What becomes of parts that arrive one after the other at once, and of what is held at the end."""
    stage, _ = stitching(clock, **settings)
    return flows(stage, [done for done in map(stage, parts) if done] + stage.drain())


def parts_of(got: list[Flow]) -> list[int]:
    return [each["stitched_flows"] for each in got]


# Which parts belong together


@CLOCKS
@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        pytest.param([0], [1], id="one part is a flow"),
        pytest.param([0, 300], [2], id="a part within the inactivity timeout is added"),
        pytest.param([0, 0], [2], id="a part with the same start is added"),
        pytest.param([0, 630], [2], id="630.000 s still stitches"),
        pytest.param([0, 630.001], [1, 1], id="630.001 s does not"),
        pytest.param([0, 631, 1261], [1, 2], id="what did not belong opens a new flow, which further parts join"),
        pytest.param([0, 600, 1200, 1800], [4], id="the gap is measured to the part before, not to the first"),
        pytest.param([600, 0], [2], id="a part that starts before the first one is added"),
        pytest.param([600, 0, 630], [3], id="the part before is the one that arrived last, 630 s"),
        pytest.param([600, 0, 630.001], [2, 1], id="the part before is the one that arrived last, 630.001 s"),
    ],
)
def test_gaps_between_starts(clock: str, starts: list[float], expected: list[int]) -> None:
    assert parts_of(stitched([part(start) for start in starts], clock)) == expected


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        pytest.param([0, 630.0009], [2], id="630.0009 s is cut to 630.000"),
        pytest.param([0.0009, 630.001], [1, 1], id="the start of the part before is cut too, so 630.0001 s do not stitch"),
    ],
)
def test_starts_are_cut_to_the_millisecond(starts: list[float], expected: list[int]) -> None:
    assert parts_of(stitched([part(start, 631) for start in starts])) == expected
    assert parts_of(stitched([part(start, 600) for start in starts], "event")) == expected


@CLOCKS
@pytest.mark.parametrize(
    ("last", "expected"),
    [
        pytest.param(DAY, [145], id="a start exactly 86,400 s after the first still stitches"),
        pytest.param(DAY + 0.0009, [145], id="it is cut to the millisecond"),
        pytest.param(DAY + 0.001, [144, 1], id="one ms more does not"),
    ],
)
def test_no_flow_gets_longer_than_the_timeout(clock: str, last: float, expected: list[int]) -> None:
    starts = [*range(0, DAY, 600), last]
    assert parts_of(stitched([part(start) for start in starts], clock)) == expected


@CLOCKS
def test_the_timeout_is_measured_from_the_first_part_that_arrived_not_from_the_earliest(clock: str) -> None:
    assert parts_of(stitched([part(start) for start in (600, 0, 600, 1200, 1600)], clock, timeout_s=1000)) == [5]
    assert parts_of(stitched([part(start) for start in (600, 0, 600, 1200, 1600.001)], clock, timeout_s=1000)) == [4, 1]


@CLOCKS
def test_both_timeouts_are_settings(clock: str) -> None:
    assert parts_of(stitched([part(0), part(10), part(20.001)], clock, inactivity_timeout_s=10)) == [2, 1]
    assert parts_of(stitched([part(0), part(10), part(20), part(20.001)], clock, timeout_s=20)) == [3, 1]


@CLOCKS
@pytest.mark.parametrize(
    ("sensor", "gap", "expected"),
    [
        pytest.param("slow", 3600, [2], id="exactly the timeout of its own"),
        pytest.param("slow", 3600.001, [1, 1], id="beyond the timeout of its own"),
        pytest.param("sensor", 630, [2], id="another sensor has the general timeout"),
        pytest.param("sensor", 630.001, [1, 1], id="another sensor does not have it"),
        pytest.param(7, 3600, [2], id="a sensor whose name is a number"),
        pytest.param(MISSING, 630.001, [1, 1], id="no sensor"),
    ],
)
def test_a_sensor_can_have_an_inactivity_timeout_of_its_own(clock: str, sensor: Any, gap: float, expected: list[int]) -> None:
    parts = [part(start, meta={"sensor_id": sensor}) for start in (0, gap)]
    assert parts_of(stitched(parts, clock, inactivity_timeout_by_sensor_s={"slow": 3600, "7": 3600})) == expected


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("setting", ["inactivity_timeout_s", "timeout_s", "inactivity_timeout_by_sensor_s"])
def test_a_timeout_that_is_none_is_refused(setting: str, timeout: float) -> None:
    with pytest.raises(ValueError, match=r"finite number|greater than 0"):
        aggregation.Config(**{setting: {"slow": timeout} if setting.endswith("by_sensor_s") else timeout})


@pytest.mark.parametrize("lateness", [-1, float("inf")])
def test_lateness_may_be_zero_and_neither_negative_nor_infinite(lateness: float) -> None:
    assert aggregation.Config(lateness_s=0).lateness_s == 0
    with pytest.raises(ValueError, match="lateness_s"):
        aggregation.Config(lateness_s=lateness)


@CLOCKS
def test_ids_are_held_apart(clock: str) -> None:
    got = stitched([part(0, bits=1, id="a"), part(0, bits=2, id="b"), part(1, bits=4, id="a"), part(1, bits=8, id="b")], clock)
    assert {each["meta"]["id"]: each["values"]["num_bits"] for each in got} == {"a": 5, "b": 10}


@CLOCKS
@pytest.mark.parametrize(
    "changes", [{"type": "other"}, {"type": MISSING}, {"meta": {"flow_type": MISSING}}, {"meta": {"flow_type": "sflow"}}]
)
def test_type_and_flow_type_play_no_part(clock: str, changes: dict[str, Any]) -> None:
    assert parts_of(stitched([part(0), part(1, **changes)], clock)) == [2]
    assert parts_of(stitched([part(0, **changes), part(1)], clock)) == [2]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        pytest.param(640, [2], id="an end exactly 630 s after the newest end held"),
        pytest.param(640.001, [1, 1], id="an end more than 630 s after it"),
    ],
)
def test_with_clock_event_the_end_must_be_near_too(end: float, expected: list[int]) -> None:
    assert parts_of(stitched([part(0, 10), part(5, end)], "event")) == expected
    assert parts_of(stitched([part(0, 10), part(5, end)], "arrival")) == [2]


def test_with_clock_event_the_newest_end_held_counts_not_that_of_the_part_before() -> None:
    assert parts_of(stitched([part(0, 600), part(1, 2), part(3, 1230)], "event")) == [3]


# What becomes of them


@CLOCKS
def test_sums_of_parts(clock: str) -> None:
    first = part(0, 10, 1000, 20, values={"duration": 9.5, "bits_per_second": 105.2, "packets_per_second": 2.1, "tcp_rtt": 7})
    second = part(20, 33, 337, 5, meta={"sensor_id": "other", "extra": 1}, values={"tcp_rtt": 8}, type="second", more=1)
    (got,) = stitched([first, second], clock)
    assert got["values"] == {
        "duration": 33.0,
        "num_bits": 1337,
        "num_packets": 25,
        "bits_per_second": 40,
        "packets_per_second": 0,
        "tcp_rtt": 7,
    }
    assert (got["start"], got["end"], got["stitched_flows"]) == (NOW, NOW + 33, 2)
    assert (got["type"], got["meta"]["sensor_id"]) == ("flow", "sensor")
    assert "extra" not in got["meta"]
    assert "more" not in got
    assert [type(got["values"][name]) for name in ("bits_per_second", "packets_per_second")] == [int, int]


@CLOCKS
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_parts_in_any_order_give_the_same_sums(clock: str, order: tuple[int, ...]) -> None:
    parts = [part(0, 50, 1, 1), part(100, 200, 10, 2), part(60, 90, 100, 4)]
    (got,) = stitched([parts[index] for index in order], clock)
    assert (got["start"], got["end"], got["values"]["num_bits"], got["values"]["num_packets"]) == (NOW, NOW + 200, 111, 7)
    assert got["stitched_flows"] == 3


@pytest.mark.parametrize(
    ("seconds", "bits", "packets", "expected"),
    [
        pytest.param(3.0, 100, 10, (3.0, 33, 3), id="rates are cut, not rounded"),
        pytest.param(1.5, 100, 50, (1.5, 66, 33), id="66.7 is cut to 66"),
        pytest.param(0.0, 100, 10, (0.0, 0, 0), id="rates are 0 when the duration is 0"),
        pytest.param(0.00048828125, 1000, 10, (0.0, 2048000, 20480), id="rates come of the unrounded duration"),
        pytest.param(0.1234, 1000, 1000, (0.123, 8103, 8103), id="the duration is rounded to 3 digits"),
        pytest.param(0.1236, 1000, 1000, (0.124, 8090, 8090), id="rounded up too"),
    ],
)
def test_duration_and_rates(seconds: float, bits: int, packets: int, expected: tuple[float, int, int]) -> None:
    (got,) = stitched([part(0, 0, bits, packets), part(0, seconds, 0, 0)])
    values = got["values"]
    assert (values["duration"], values["bits_per_second"], values["packets_per_second"]) == expected


@CLOCKS
def test_a_flow_that_was_never_stitched_keeps_its_values(clock: str) -> None:
    values = {"duration": 3.14159, "bits_per_second": 2.71828, "packets_per_second": 0.5, "tcp_rtt_avg": 1}
    given = part(0, 77.7777, 100, 10, values=values, interval=300)
    (got,) = stitched([given], clock)
    assert got == given | {"stitched_flows": 1, "@timestamp": "2023-11-14T22:13:20.000Z"}


def test_a_missing_rate_stays_missing_where_nothing_was_stitched() -> None:
    (got,) = stitched([part(0, values={"bits_per_second": MISSING})])
    assert "bits_per_second" not in got["values"]


@CLOCKS
@pytest.mark.parametrize("more", [[], [1.0]])
def test_better_other_top_level_fields_of_the_first_part_survive_tags_and_at_fields_do_not(clock: str, more: list[float]) -> None:
    first = part(0, site={"a": [1]}, tags=["x"], stitched_flows=9) | {"@version": "0", "@timestamp": "x"}
    (got,) = stitched([first, *(part(start, site="second", tags=["y"]) | {"@ingest_time": "later"} for start in more)], clock)
    assert got["site"] == {"a": [1]}
    assert "tags" not in got
    assert "@version" not in got
    assert got["@ingest_time"] == "2023-11-14T22:13:20.000Z"
    assert got["@timestamp"] == "2023-11-14T22:13:20.000Z"
    assert got["stitched_flows"] == 1 + len(more)


def test_timestamp_is_when_a_flow_left_stitching() -> None:
    stage, now = stitching()
    stage(part(0))
    now.set(NOW + 700)
    done = stage(part(700))
    now.set(NOW + 900)
    assert stage.flow(done)["@timestamp"] == "2023-11-14T22:25:00.000Z"


@CLOCKS
def test_tstat_is_never_stitched_and_goes_straight_on(clock: str) -> None:
    stage, now = stitching(clock)
    now.set(NOW + 5)
    changes: dict[str, Any] = {"tags": ["kept"], "site": "kept", "@version": "kept", "meta": {"flow_type": "tstat"}}
    for start in (0.0, 1.0):
        given = part(start, start + 1, **changes)
        expected = given | {"stitched_flows": 0, "@timestamp": given["@ingest_time"]}
        assert stage.flow(stage(given)) == expected
    assert stage.drain() == []
    assert stage.counts()["held"] == 0


def test_tstat_may_lack_its_sums() -> None:
    stage, _ = stitching()
    assert stage.flow(stage(part(0, bits=MISSING, meta={"flow_type": "tstat"})))["stitched_flows"] == 0


@CLOCKS
def test_a_flow_is_made_afresh_each_time(clock: str) -> None:
    stage, _ = stitching(clock)
    stage(part(0))
    (done,) = stage.drain()
    first = stage.flow(done)
    first["meta"].clear()
    assert stage.flow(done)["meta"]["id"] == "a"


# What is refused, and leaves what is held as it was


@CLOCKS
@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        pytest.param(part(1, bits=MISSING), "values.num_bits: missing", id="better: without num_bits"),
        pytest.param(part(1, packets=MISSING), "values.num_packets: missing", id="better: without num_packets"),
        pytest.param(part(1, bits=(1 << 63) - 100), "values: the sum of the parts is beyond 64 bits", id="bits beyond 64 bits"),
        pytest.param(part(1, packets=(1 << 63) - 10), "values: the sum of the parts is beyond 64 bits", id="packets beyond 64 bits"),
    ],
)
def test_a_part_that_is_refused_leaves_what_is_held_undamaged(clock: str, bad: Flow, reason: str) -> None:
    stage, _ = stitching(clock)
    stage(part(0, 0, 100, 10))
    before = stage.counts()
    with pytest.raises(Refused) as refused:
        stage(bad)
    assert str(refused.value) == reason
    assert stage.counts() == before
    stage(part(2, 3, 1, 1))
    (got,) = flows(stage, stage.drain())
    assert (got["values"]["num_bits"], got["values"]["num_packets"], got["stitched_flows"]) == (101, 11, 2)
    assert (got["start"], got["end"]) == (NOW, NOW + 3)


def test_a_sum_of_exactly_the_largest_integer_is_kept() -> None:
    (got,) = stitched([part(0, bits=100, packets=10), part(1, bits=(1 << 63) - 101, packets=(1 << 63) - 11)])
    assert (got["values"]["num_bits"], got["values"]["num_packets"]) == ((1 << 63) - 1, (1 << 63) - 1)


@CLOCKS
def test_a_part_that_cannot_be_held_leaves_what_is_held_undamaged(clock: str) -> None:
    stage, _ = stitching(clock)
    stage(part(0))
    before = stage.counts()
    with pytest.raises(TypeError):
        stage(part(5000, bits=1 << 65))
    assert stage.counts() == before
    assert parts_of(flows(stage, stage.drain())) == [1]


# When a flow is finished, clock arrival


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param(630, [2], id="a part that comes exactly 630 s later is added"),
        pytest.param(630.001, [1, 1], id="a part that comes 630.001 s later is not"),
    ],
)
def test_by_arrival_nothing_for_the_inactivity_timeout_finishes_a_flow(seconds: float, expected: list[int]) -> None:
    stage, now = stitching()
    stage(part(0))
    now.arrival = NOW + seconds
    done = stage(part(1))
    assert parts_of(flows(stage, [done] if done else []) + flows(stage, stage.drain())) == expected


def test_by_arrival_the_timeout_since_it_was_first_held_finishes_a_flow() -> None:
    for last, expected in ((DAY, [145]), (DAY + 0.001, [144, 1])):
        stage, now = stitching()
        got = []
        for passed in [*range(0, DAY, 600), last]:
            now.arrival = NOW + passed
            done = stage(part(0))
            got += [done] if done else []
        assert parts_of(flows(stage, got + stage.drain())) == expected


def test_by_arrival_what_is_finished_expires() -> None:
    stage, now = stitching()
    stage(part(0, id="a"))
    now.arrival = NOW + 100
    stage(part(0, id="b"))
    now.arrival = NOW + 630
    assert stage.expired() == []
    now.arrival = NOW + 631
    assert [each["meta"]["id"] for each in flows(stage, stage.expired())] == ["a"]
    assert stage.expired() == []
    now.arrival = NOW + 730
    assert stage.expired() == []
    now.arrival = NOW + 731
    assert [each["meta"]["id"] for each in flows(stage, stage.expired())] == ["b"]
    assert stage.counts()["held"] == 0


def test_by_arrival_a_part_puts_off_the_end_of_its_flow() -> None:
    stage, now = stitching()
    for passed in (0, 600, 1200):
        now.arrival = NOW + passed
        stage(part(passed))
        assert stage.expired() == []
    now.arrival = NOW + 1830
    assert stage.expired() == []
    now.arrival = NOW + 1831
    assert parts_of(flows(stage, stage.expired())) == [3]


def test_by_arrival_a_flow_that_goes_on_for_a_day_expires() -> None:
    stage, now = stitching(timeout_s=1000)
    for passed in (0, 600, 900):
        now.arrival = NOW + passed
        stage(part(passed))
    now.arrival = NOW + 1000
    assert stage.expired() == []
    now.arrival = NOW + 1001
    assert parts_of(flows(stage, stage.expired())) == [3]


def test_by_arrival_a_sensor_has_a_timeout_of_its_own() -> None:
    stage, now = stitching(inactivity_timeout_by_sensor_s={"slow": 3600})
    stage(part(0, meta={"sensor_id": "slow"}))
    now.arrival = NOW + 3600
    assert stage.expired() == []
    now.arrival = NOW + 3601
    assert len(stage.expired()) == 1


def test_by_arrival_the_times_of_flows_and_of_the_batch_do_not_expire_anything() -> None:
    stage, now = stitching()
    stage(part(0, id="a"))
    now.set(NOW + 10_000)
    for number in range(2_000):
        stage(part(9_000, id=str(number)))
    assert stage.expired() == []


def test_a_new_flow_under_the_same_id_does_not_expire_with_the_old_one() -> None:
    stage, now = stitching()
    stage(part(0))
    now.arrival = NOW + 10
    assert stage(part(5000)) is not None
    now.arrival = NOW + 631
    assert stage.expired() == []
    now.arrival = NOW + 641
    assert parts_of(flows(stage, stage.expired())) == [1]


def test_two_flows_of_one_id_held_in_the_same_second_expire_once() -> None:
    stage, now = stitching()
    stage(part(0))
    assert stage(part(5000)) is not None
    now.arrival = NOW + 631
    assert len(stage.expired()) == 1
    assert stage.counts() == {"parts": 2, "flows": 2, "passed": 0, "late": 0, "not believed": 0, "held": 0}


class Watched(dict[str, Any]):
    """The held flows, which tells whether somebody went through all of them."""

    def _scan(self, *_: Any) -> Any:
        raise AssertionError("all held flows were scanned")

    __iter__ = keys = values = items = _scan


def test_expired_never_scans_what_is_held() -> None:
    stage, now = stitching()
    stage._held = Watched()
    for number in range(1_000):
        now.arrival = NOW + number / 10
        stage(part(0, id=str(number)))
    now.arrival = NOW + 631
    assert len(stage.expired()) == 10
    assert stage.counts()["held"] == 990


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40), st.integers(0, 40), st.sampled_from(["part", "expired"])), max_size=60)
)
@settings(deadline=None)
def test_by_arrival_expired_gives_exactly_what_is_finished_by_then(steps: list[tuple[str, int, int, str]]) -> None:
    stage, now = stitching(inactivity_timeout_s=30, timeout_s=100)
    held: dict[str, tuple[int, int, int, int]] = {}  # id → came at, held at, first start, last start
    clock = 0
    for name, start, passed, what in steps:
        clock += passed
        now.arrival = NOW + clock
        if what == "expired":
            over = {each for each, (came, first, _, _) in held.items() if clock > min(came + 30, first + 100)}
            assert {each["meta"]["id"] for each in flows(stage, stage.expired())} == over
            for each in over:
                del held[each]
            continue
        done = stage(part(start, id=name))
        came, first, start_of_first, start_of_last = held.get(name, (clock, clock, start, start))
        belongs = clock <= min(came + 30, first + 100) and start - start_of_last <= 30 and start - start_of_first <= 100
        assert (done is not None) == (not belongs)
        held[name] = (clock, first, start_of_first, start) if belongs else (clock, clock, start, start)
    assert stage.counts()["held"] == len(held)


# When a flow is finished, clock event


def crowd(stage: Any, newest: float, number: int = 1_000) -> list[Flow]:
    """So many flows, each with an id of its own, that their newest end is believed; gives what they finished."""
    for index in range(number):
        stage(part(newest, id=f"{newest}/{index}"))
    return flows(stage, stage.expired())


def test_by_event_a_flow_expires_when_the_newest_end_is_far_past_its_own() -> None:
    stage, now = stitching("event")
    now.arrival = NOW + 1e6
    stage(part(0, 5))
    assert crowd(stage, 5 + 630 + 3600) == []
    stage(part(0, 5 + 630 + 3600 + 1, id="z"))
    assert [each["meta"]["id"] for each in flows(stage, stage.expired())] == ["a"]
    assert stage.newest_end == NOW + 5 + 630 + 3600 + 1
    assert stage.gone == 1


def test_by_event_lateness_is_a_setting() -> None:
    stage, _ = stitching("event", lateness_s=100)
    stage(part(0, 5))
    assert crowd(stage, 5 + 630 + 100) == []
    assert parts_of(crowd(stage, 5 + 630 + 101, 1)) == [1]


def test_by_event_nothing_is_finished_before_a_newest_end_can_be_believed() -> None:
    stage, _ = stitching("event")
    stage(part(0))
    assert crowd(stage, 50_000, 998) == []
    assert parts_of(crowd(stage, 50_001, 1)) == [1]


@pytest.mark.parametrize(
    ("newest", "expected", "late"),
    [
        pytest.param(5 + 630 + 3600, [2], 0, id="as late as can be is still added, and not counted"),
        pytest.param(5 + 630 + 3600.001, [1, 1], 1, id="later opens a new flow and is counted as late"),
    ],
)
def test_by_event_a_part_that_came_late(newest: float, expected: list[int], late: int) -> None:
    stage, _ = stitching("event")
    stage(part(0, 5))
    crowd(stage, newest)
    stage.drain() if False else None
    done = stage(part(1, 2))
    got = [each for each in flows(stage, ([done] if done else []) + stage.drain()) if each["meta"]["id"] == "a"]
    assert parts_of(got) == expected
    assert stage.counts()["late"] == late
    assert sum(each["values"]["num_bits"] for each in got) == 200


@pytest.mark.parametrize(
    ("end", "late"), [pytest.param(100, 0, id="exactly lateness_s behind"), pytest.param(99.999, 1, id="more than lateness_s behind")]
)
def test_by_event_a_part_that_opens_a_flow_behind_the_newest_end_is_counted_as_late(end: float, late: int) -> None:
    stage, _ = stitching("event")
    crowd(stage, 3700)
    stage(part(0, end))
    assert stage.counts()["late"] == late


def test_by_arrival_nothing_is_late() -> None:
    stage, _ = stitching("arrival")
    crowd(stage, 36_000)
    stage(part(0))
    assert stage.counts()["late"] == 0


@CLOCKS
def test_a_newest_end_a_year_ahead_of_all_others_is_not_believed(clock: str) -> None:
    stage, _ = stitching(clock)
    stage(part(0, 5))
    crowd(stage, 100)
    assert stage.newest_end == NOW + 100
    stage(part(0, 365 * DAY, id="y"))
    assert stage.expired() == []
    assert stage.newest_end == NOW + 100
    assert stage.counts()["not believed"] == 1
    assert stage.counts()["held"] == 1_002


def test_a_newest_end_a_day_beyond_the_median_is_believed_one_more_is_not() -> None:
    for end, believed in ((100 + DAY, True), (100.001 + DAY, False)):
        stage, _ = stitching("event")
        crowd(stage, 100)
        stage(part(end, id="y"))
        assert (stage.newest_end == NOW + end) == believed
        assert stage.counts()["not believed"] == (not believed)


def test_the_first_flow_of_all_may_be_the_one_that_is_not_believed() -> None:
    stage, _ = stitching("event")
    stage(part(0, 365 * DAY, id="y"))
    crowd(stage, 100)
    assert stage.newest_end == NOW + 100
    assert stage.counts()["not believed"] == 1


def test_when_most_flows_are_a_year_ahead_they_are_believed() -> None:
    stage, _ = stitching("event")
    crowd(stage, 100)
    crowd(stage, 365 * DAY)
    assert stage.newest_end == NOW + 365 * DAY
    assert {each["meta"]["id"][:4] for each in flows(stage, stage.drain())} == {"3153"}


@CLOCKS
def test_the_newest_end_of_tstat_counts(clock: str) -> None:
    stage, _ = stitching(clock)
    for _ in range(1_000):
        stage(part(0, 70, meta={"flow_type": "tstat"}))
    assert stage.newest_end == NOW + 70


@CLOCKS
def test_the_newest_end_of_parts_that_are_added_counts(clock: str) -> None:
    stage, _ = stitching(clock)
    for _ in range(1_000):
        stage(part(0, 70))
    assert stage.newest_end == NOW + 70
    assert stage.counts()["parts"] == 1_000


@CLOCKS
def test_at_the_end_all_held_flows_are_finished(clock: str) -> None:
    stage, now = stitching(clock)
    for name in "abc":
        stage(part(0, id=name))
    assert sorted(each["meta"]["id"] for each in flows(stage, stage.drain())) == ["a", "b", "c"]
    assert stage.counts() == {"parts": 3, "flows": 3, "passed": 0, "late": 0, "not believed": 0, "held": 0}
    assert stage.drain() == []
    now.arrival = NOW + DAY
    assert stage.expired() == []


def test_after_the_end_flows_are_held_and_expire_as_before() -> None:
    stage, now = stitching()
    stage(part(0))
    stage.drain()
    stage(part(0))
    now.arrival = NOW + 631
    assert parts_of(flows(stage, stage.expired())) == [1]


@given(st.randoms(use_true_random=False), st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_by_event_neither_the_order_of_other_ids_nor_the_times_of_looking_change_anything(order: random.Random, looks: int) -> None:
    parts = {name: [part(start, start + 50, id=name) for start in (0, 300, 600, 1500, 1600, 4000)] for name in "abcdef"}
    expected = sorted((each["meta"]["id"], each["start"], each["end"]) for name in parts for each in stitched(parts[name], "event"))
    stage, _ = stitching("event")
    got = []
    queues = [list(reversed(queue)) for queue in parts.values()]
    while queues:
        queue = order.choice(queues)
        done = stage(queue.pop())
        got += [done] if done else []
        if not queue:
            queues.remove(queue)
        if order.randrange(looks) == 0:
            got += stage.expired()
    assert sorted((each["meta"]["id"], each["start"], each["end"]) for each in flows(stage, got + stage.drain())) == expected
