"""The dashboards are what their source writes, ask for fields that there are, and fit together with what provisions them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from netsage_pipeline import folders
from netsage_pipeline.fields import known
from netsage_pipeline.monitoring.metrics import METRICS
from netsage_pipeline.stagefile import find

GRAFANA = Path(__file__).parent.parent / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_bytes()) for path in sorted(GRAFANA.glob("dashboards/*"))}
SOURCES = yaml.safe_load((GRAFANA / "provisioning/datasources/netsage.yml").read_text("utf-8"))["datasources"]
FIELDS = known(find([folders.shipped("stages")]).values())


def panels(kind: str = "") -> list[Any]:
    """Each dashboard with each of its panels, of one kind of datasource or of all."""
    return [
        pytest.param(each, panel, id=f"{name}: {panel['title']}")
        for name, each in DASHBOARDS.items()
        for panel in each["panels"]
        if kind in panel["datasource"]["type"]
    ]


#: Labels that Prometheus adds.
SCRAPED = {"job", "instance", "chain"}

#: Aggregation → types that it fits.
FITTING = {
    "terms": {"text", "texts", "ip-masked", "integer"},
    "date_histogram": {"date"},
    "geohash_grid": {"location"},
    "sum": {"integer", "number"},
    "max": {"integer", "number"},
}


def variables(each: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in each["templating"]["list"]}


def test_the_dashboards_and_their_page_are_what_the_source_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "generate.py", tmp_path], check=True)
    written = {path.name: path.read_text() for path in (tmp_path / "grafana/dashboards").iterdir()}
    assert {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()} == written, "run: make docs"
    page = GRAFANA.parent / "docs/dashboards.md"
    assert page.read_text() == (tmp_path / "docs/dashboards.md").read_text(), "run: make docs"


def test_every_dashboard_has_a_uid_and_every_panel_a_number_of_its_own() -> None:
    assert len({each["uid"] for each in DASHBOARDS.values()}) == len({each["title"] for each in DASHBOARDS.values()}) == len(DASHBOARDS)
    for each in DASHBOARDS.values():
        assert len({panel["id"] for panel in each["panels"]}) == len({panel["title"] for panel in each["panels"]}) == len(each["panels"])


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_lie_beside_one_another_without_gaps(name: str) -> None:
    places = [panel["gridPos"] for panel in DASHBOARDS[name]["panels"]]
    cells = Counter((x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
    assert set(cells.values()) == {1}
    assert set(cells) == {(x, y) for x in range(24) for y in range(max(at["y"] + at["h"] for at in places))}


@pytest.mark.parametrize(("board", "panel"), panels())
def test_a_panel_says_what_it_shows_in_which_unit_and_asks_the_datasource_that_is_chosen(
    board: dict[str, Any], panel: dict[str, Any]
) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"].get("unit") or panel["fieldConfig"]["overrides"]
    assert panel["targets"]
    for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
        variable = variables(board)[source["uid"].strip("${}")]
        assert (variable["type"], variable["query"]) == ("datasource", source["type"])


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_datasource_is_at_first_the_one_that_is_provisioned(name: str) -> None:
    chosen = [variable for variable in variables(DASHBOARDS[name]).values() if variable["type"] == "datasource"]
    assert chosen
    for variable in chosen:
        source = next(source for source in SOURCES if source["uid"] == variable["current"]["value"])
        assert (source["name"], source["type"]) == (variable["current"]["text"], variable["query"])


def test_every_variable_is_asked_for_and_every_one_asked_for_is_there() -> None:
    for each in DASHBOARDS.values():
        asked = set(re.findall(r"\$\{?(?!__)([a-z]+)", json.dumps(each["panels"]) + json.dumps(each["templating"])))
        assert asked == set(variables(each))


@pytest.mark.parametrize(("_board", "panel"), panels("elasticsearch"))
def test_a_panel_of_flows_asks_for_fields_that_there_are(_board: dict[str, Any], panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        for each in (*target["metrics"], *target["bucketAggs"]):
            if each["type"] != "count":
                assert FIELDS[each["field"]] in FITTING[each["type"]]
        assert {FIELDS[field] for field in re.findall(r"([a-z_.]+):", target["query"])} == {"text"}
        assert target["timeField"] == SOURCES[0]["jsonData"]["timeField"]
        assert FIELDS[target["timeField"]] == "date"
        numbers = [each["id"] for each in (*target["metrics"], *target["bucketAggs"])]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("_board", "panel"), panels("elasticsearch"))
def test_what_is_sent_is_of_the_source_and_what_is_received_of_the_destination(_board: dict[str, Any], panel: dict[str, Any]) -> None:
    fields = [group["field"] for target in panel["targets"] for group in target["bucketAggs"]]
    sides = ["src" if "src" in field else "dst" for field in fields if "src" in field or "dst" in field]
    renamed = [name for each in panel.get("transformations", []) for name in each["options"].get("renameByName", {}).values()]
    if re.search("sent|Sent", panel["title"]):
        assert set(sides) == {"src"}
    elif re.search("received|Received", panel["title"]):
        assert set(sides) == {"dst"}
    elif sides:
        assert (sides, renamed[:2]) == (["src", "dst"], ["From", "To"])


@pytest.mark.parametrize(("_board", "panel"), panels("prometheus"))
def test_a_panel_of_metrics_asks_for_metrics_and_labels_that_there_are(_board: dict[str, Any], panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        asked = set(re.findall(r"\b(?:netsage|process|up)[a-z_]*", re.sub(r'"[^"]*"', "", target["expr"])))
        described = [METRICS.get(re.sub("_seconds_(sum|count)$", "_seconds", name)) for name in asked if name.startswith("netsage_")]
        labels = {*SCRAPED, *(label for metric in described if metric for label in metric.labels)}
        assert asked
        assert None not in described
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels
        for named in re.findall(r"by \(([^)]*)\)", target["expr"]):
            assert set(named.split(", ")) <= labels
            assert set(named.split(", ")) == set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))


def test_every_chain_is_scraped_where_it_serves_its_metrics() -> None:
    [job] = yaml.safe_load((GRAFANA / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    ports = {}
    for conf in ("conf.d", "conf.d/sink", "conf.d/import"):
        text = "".join(path.read_text("utf-8") for path in (GRAFANA.parent / conf).glob("01_*.toml"))
        ports[conf] = re.findall(r'^metrics = "\$\{NETSAGE_[A-Z_]*METRICS:-127\.0\.0\.1:(\d+)\}"$', text, re.MULTILINE)
    scraped = {each["labels"]["chain"]: target.split(":") for each in job["static_configs"] for target in each["targets"]}
    assert job["job_name"] == "netsage"
    assert {name: [port] for name, (_, port) in scraped.items()} == {
        "worker": ports["conf.d"],
        "sink": ports["conf.d/sink"],
        "importer": ports["conf.d/import"],
    }
    assert all(host == name for name, (host, _) in scraped.items())


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_variable_lists_values_of_a_field_that_there_is(name: str) -> None:
    for variable in variables(DASHBOARDS[name]).values():
        if variable["type"] == "query":
            assert FIELDS[json.loads(variable["query"])["field"]] == "text"


def test_what_is_provisioned_is_named_once() -> None:
    assert len({source["uid"] for source in SOURCES}) == len({source["name"] for source in SOURCES}) == len(SOURCES)
    assert {source["type"] for source in SOURCES} == {"elasticsearch", "prometheus"}
    assert [source["access"] for source in SOURCES] == ["proxy"] * len(SOURCES)


def test_no_secret_is_in_what_is_provisioned() -> None:
    secrets = [secret for source in SOURCES for secret in source.get("secureJsonData", {}).values()]
    assert secrets
    assert all(re.fullmatch(r"\$__file\{/run/secrets/\w+\}", secret) for secret in secrets)


def test_compose_gives_grafana_and_prometheus_what_their_files_name() -> None:
    services = yaml.safe_load((GRAFANA.parent / "docker-compose.yml").read_text("utf-8"))["services"]
    grafana = services["grafana"]
    text = (GRAFANA / "provisioning/datasources/netsage.yml").read_text("utf-8")
    assert set(re.findall(r"\$\{(NETSAGE_\w+)\}", text)) <= set(grafana["environment"])
    assert set(re.findall(r"\$__file\{/run/secrets/(\w+)\}", text)) <= set(grafana["secrets"])
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/netsage.yml").read_text("utf-8"))["providers"]
    mounted = dict(reversed(volume.split(":")[:2]) for volume in grafana["volumes"])
    assert mounted[provider["options"]["path"]] == "./grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./grafana/provisioning"
    settings = next(word.partition("=")[2] for word in services["prometheus"]["command"] if word.startswith("--config.file="))
    assert f"./grafana/prometheus.yml:{settings}:ro" in services["prometheus"]["volumes"]
    [job] = yaml.safe_load((GRAFANA / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert {each["labels"]["chain"] for each in job["static_configs"]} <= set(services)
