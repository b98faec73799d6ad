"""The relay: what is stored is acknowledged in order, whatever the order in which it is stored; and the importer's file of dead letters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline.deadletters import Letters
from netsage_pipeline.flow import Delivery, Flow, Stored
from netsage_pipeline.importer.importing import Sensor
from netsage_pipeline.monitoring.metrics import Meter
from netsage_pipeline.worker.relay import ON_THE_WAY, PassesOn, Relay
from tests.conftest import load_stage

stage = load_stage("01_input_nfcapd")


class Messages:
    """An input of numbered messages that remembers what was acknowledged."""

    name = "messages"
    caught_up = False
    connected = True
    waiting = None

    def __init__(self, batches: list[int]) -> None:
        self.batches = list(batches)
        self.given = 0
        self.acknowledged: list[int] = []

    def receive(self, seconds: float) -> list[Delivery]:
        assert seconds >= 0
        count = self.batches.pop(0) if self.batches else 0
        first, self.given = self.given, self.given + count
        return [Delivery(b"[]", str(number), number) for number in range(first, first + count)]

    def turn(self, seconds: float) -> None: ...

    def acknowledge(self, receipt: int) -> None:
        self.acknowledged.append(receipt)

    def pause(self) -> None: ...

    def bury(self, number: int, message_id: str, letter: bytes) -> None: ...

    def buried(self) -> list[int]:
        return []

    def close(self) -> None: ...


class Storing:
    """An output that stores batches in an order that is drawn for it."""

    def __init__(self, choices: list[int]) -> None:
        self.open: dict[int, list[Delivery]] = {}
        self.stored_ids: list[int] = []
        self.most = 0
        self._choices = list(choices)

    def write(self, batch: int, flows: list[Flow]) -> None: ...

    def pass_on(self, batch: int, deliveries: list[Delivery]) -> None:
        self.open[batch] = deliveries
        self.most = max(self.most, sum(map(len, self.open.values())))

    def stored(self, seconds: float = 0) -> list[Stored]:
        assert seconds >= 0
        if not self.open:
            return []
        choice = self._choices.pop(0) if self._choices else 1
        if not choice:
            return []
        batch = list(self.open)[choice % len(self.open)]
        deliveries = self.open.pop(batch)
        self.stored_ids += [int(each.message_id) for each in deliveries]
        return [Stored(batch, len(deliveries), [])]

    def close(self) -> None: ...


@given(st.lists(st.integers(1, 30), max_size=80), st.lists(st.integers(0, 9), max_size=200))
def test_nothing_is_acknowledged_before_it_and_all_before_it_are_stored(batches: list[int], choices: list[int]) -> None:
    source, sink = Messages(batches), Storing(choices)
    relay = Relay(source, sink, Meter("", Path("/nowhere")))
    for _ in range(1_000):
        relay._turn()
        if source.acknowledged:
            assert set(range(source.acknowledged[-1] + 1)) <= set(sink.stored_ids)
        if not source.batches and not sink.open:
            break
    assert source.acknowledged == sorted(set(source.acknowledged))
    assert source.acknowledged[-1:] == ([sum(batches) - 1] if batches else [])
    assert sink.most < ON_THE_WAY + 30


def test_only_an_output_that_can_pass_messages_on_is_one_for_a_relay() -> None:
    assert isinstance(Storing([]), PassesOn)
    assert not isinstance(load_stage("99_output_file").FileSink, PassesOn)


def test_dead_letters_are_lines_of_a_file_for_its_owner_behind_what_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "dead-letters.ndjson"
    path.write_bytes(b'{"id": "cut of')
    path.chmod(0o600)
    letters = Letters(path)
    assert letters.buried() == []
    letters.bury(7, b"{}")
    letters.bury(8, b"[]")
    assert letters.buried() == [7, 8]
    assert letters.buried() == []
    assert path.read_bytes() == b'{"id": "cut of\n{}\n[]\n'
    fresh = Letters(tmp_path / "fresh.ndjson")
    fresh.bury(1, b"{}")
    assert fresh.buried() == [1]
    assert (tmp_path / "fresh.ndjson").stat().st_mode & 0o777 == 0o600


def test_dead_letters_wait_for_room(tmp_path: Path) -> None:
    letters = Letters(tmp_path / "away" / "dead-letters.ndjson")
    letters.bury(7, b"{}")
    assert letters.buried() == []
    (tmp_path / "away").mkdir()
    assert letters.buried() == [7]


@pytest.mark.parametrize(
    ("sensors", "said"),
    [
        pytest.param([], "at least 1", id="none"),
        pytest.param([{"name": " ", "directory": "/x"}], "set NETSAGE_SENSOR", id="no name"),
        pytest.param(
            [{"name": "a", "directory": "/x"}, {"name": "a", "directory": "/y"}], "several sensors are called a", id="one name twice"
        ),
        pytest.param([{"name": "a"}], "directory", id="no directory"),
        pytest.param([{"name": "a", "directory": ""}], "names no directory", id="an empty directory"),
        pytest.param([{"name": "a", "directory": "/x", "router": "any or ip 192.0.2.1"}], "router", id="a filter as a router"),
        *(
            pytest.param([{"name": "a", "directory": "/x", "flow_type": given}], "Input should be 'netflow' or 'sflow'", id=f"type {given}")
            for given in ("tstat", "NetFlow", "")
        ),
        pytest.param([{"name": "a", "directory": "/x", "min_bytes": -1}], "min_bytes", id="fewer than no bytes"),
        pytest.param([{"name": "a", "directory": "/x", "delete_after_days": float("nan")}], "delete_after_days", id="no number of days"),
        pytest.param([{"name": "a", "directory": "/x", "minbytes": 1}], "minbytes", id="an unknown setting"),
    ],
)
def test_wrong_sensors_are_refused(sensors: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stage.Config(sensors=sensors)


def test_a_sensor_without_router_and_instance_has_none() -> None:
    rows = Sensor(name="a", directory=Path("/x"), router="", instance="").rows
    assert (rows.router, rows.instance_id, rows.minimum_bytes, rows.flow_type) == (None, None, 10_000_000, "netflow")
    assert os.fspath(Sensor(name="a", directory=Path("/x")).directory) == "/x"


@pytest.mark.parametrize("state", ["", " "])
def test_the_importer_keeps_nothing_where_it_was_started(state: str) -> None:
    with pytest.raises(ValueError, match=r"state\n.*names no directory"):
        stage.Config(state=state, sensors=[{"name": "a", "directory": "/x"}])
