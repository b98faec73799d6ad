"""90 additional fields: sensor group and type, scope, tests of networks, the document id of 2.x."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from netsage_pipeline.flow import Flow
from tests.conftest import load_stage
from tests.flows import MISSING, flow, tables

additional_fields = load_stage("90_additional_fields")

TESTING = "CS.Network Testing and Monitoring"
ID = "7dbd53d02ea03bd1013015eec0b9b41a0e25bcff70fce534fcb6dfc417d1a8c8"
SIDES = pytest.mark.parametrize("side", ["src", "dst"])


def run(given: Flow, **settings: Any) -> Flow:
    lookups = tables(
        {
            "sensor_groups.json": {"sensor": "Group", "7": "Seven", "half": "Half"},
            "sensor_types.json": {"sensor": "Circuit", "7": "Archive"},
        }
    )
    made: Flow = additional_fields.stage(additional_fields.Config(**settings), lookups)(given)
    return made


@pytest.mark.parametrize("name", ["sensor_group", "sensor_type"])
@pytest.mark.parametrize("given", [pytest.param(MISSING, id="new"), pytest.param("x", id="whatever the input says")])
@pytest.mark.parametrize(
    ("sensor", "found"),
    [
        pytest.param("sensor", {"sensor_group": "Group", "sensor_type": "Circuit"}, id="a sensor that is known"),
        pytest.param("other", {}, id="no field for a sensor that is not known"),
        pytest.param(7, {"sensor_group": "Seven", "sensor_type": "Archive"}, id="a sensor whose name is a number"),
        pytest.param("half", {"sensor_group": "Half"}, id="a sensor of which only the group is known"),
        pytest.param(MISSING, {}, id="no field without a sensor"),
    ],
)
def test_group_and_type_of_the_sensor(name: str, given: Any, sensor: Any, found: dict[str, str]) -> None:
    got = run(flow(meta={"sensor_id": sensor, name: given}))["meta"]
    assert got.get(name) == found.get(name)
    assert (name in got) == (name in found)


@pytest.mark.parametrize("given", [pytest.param(MISSING, id="new"), pytest.param("x", id="whatever the input says")])
@pytest.mark.parametrize(
    ("countries", "expected"),
    [
        pytest.param(("United States", "United States"), "Domestic", id="both ends in the United States"),
        pytest.param(("Puerto Rico", "Guam"), "Domestic", id="both ends in the territories"),
        pytest.param(("Guam", "United States"), "Domestic", id="one end in each"),
        pytest.param(("United States", "Norway"), "Mixed", id="src inside"),
        pytest.param(("Norway", "Guam"), "Mixed", id="dst inside"),
        pytest.param(("Norway", "Norway"), "International", id="none inside"),
        pytest.param(("Norway", "Brazil"), "International", id="none inside, two countries"),
        *(
            pytest.param(pair, None, id=f"{pair[0]} and {pair[1]}: no field")
            for absent in ("Unknown", "Multicast", None)
            for pair in ((absent, "United States"), ("Norway", absent), (absent, absent))
        ),
    ],
)
def test_country_scope(countries: tuple[Any, Any], expected: str | None, given: Any) -> None:
    names = {f"{side}_country_name": name or MISSING for side, name in zip(("src", "dst"), countries, strict=True)}
    got = run(flow(meta=names | {"country_scope": given}))["meta"]
    assert got.get("country_scope") == expected
    assert ("country_scope" in got) == (expected is not None)


def test_domestic_countries_are_a_setting() -> None:
    countries = {"src_country_name": "Norway", "dst_country_name": "Norway"}
    assert run(flow(meta=countries), domestic=["Norway"])["meta"]["country_scope"] == "Domestic"


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        pytest.param({}, "no", id="nothing says so"),
        *(pytest.param({f"{side}_port": port}, "yes", id=f"{side} port {port}") for side in ("src", "dst") for port in (5001, 5101, 5201)),
        pytest.param({"src_port": 5202, "dst_port": 5000}, "no", id="neighbouring ports"),
        pytest.param({"src_port": MISSING, "dst_port": MISSING}, "no", id="no ports"),
        pytest.param({"scireg": {"src": {"discipline": TESTING}}}, "yes", id="discipline of src"),
        pytest.param({"scireg": {"dst": {"discipline": TESTING}}}, "yes", id="discipline of dst"),
        pytest.param({"scireg": {"src": {"discipline": "CS.Astronomy"}, "dst": {"discipline": TESTING}}}, "yes", id="of one of both"),
        pytest.param({"scireg": {"src": {"discipline": "CS.Astronomy"}, "dst": {}}}, "no", id="another discipline"),
        pytest.param({"src_discipline": TESTING}, "yes", id="discipline of src in layout 2"),
        pytest.param({"dst_discipline": TESTING}, "yes", id="discipline of dst in layout 2"),
        pytest.param({"is_network_testing": "yes"}, "no", id="the input has no say"),
    ],
)
def test_is_network_testing(meta: dict[str, Any], expected: str) -> None:
    assert run(flow(meta=meta))["meta"]["is_network_testing"] == expected


def test_testing_ports_are_a_setting() -> None:
    assert run(flow(meta={"dst_port": 7}), testing_ports=[7])["meta"]["is_network_testing"] == "yes"
    assert run(flow(meta={"dst_port": 5201}), testing_ports=[7])["meta"]["is_network_testing"] == "no"


def test_the_vector_of_es_doc_id() -> None:
    got = run(flow(start=1699999899.123, meta={"id": ID}))["es_doc_id"]
    assert got == "8cbfd89165f11b3008557d7c0cbec8c2ab8983d67c8a8252dcd64cd0348673b5"


@pytest.mark.parametrize(
    ("start", "text"),
    [
        pytest.param(1700000000.0, "1700000000.0", id="whole seconds end in .0"),
        pytest.param(1699999899.1, "1699999899.1", id="no more digits than needed"),
        pytest.param(1699999899.1234567, "1699999899.1234567", id="as many digits as needed"),
        pytest.param(0.0, "0.0", id="zero"),
    ],
)
@pytest.mark.parametrize(("flow_id", "written"), [pytest.param(ID, ID, id="with an id"), pytest.param(MISSING, "", id="without an id")])
def test_es_doc_id_is_an_hmac_of_id_and_start(start: float, text: str, flow_id: Any, written: str) -> None:
    message = f"|[flow_fingerprint]|{written}|[start]|{text}|"
    expected = hmac.new(b"create docid", message.encode(), hashlib.sha256).hexdigest()
    assert run(flow(start=start, meta={"id": flow_id}, es_doc_id="x"))["es_doc_id"] == expected
