"""Every query of the dashboards on a real Elasticsearch that the sink filled, and every expression on a real Prometheus.

A query is turned into the search that Grafana makes of it, after the documentation of its query model, and the answer is compared with
what Python counts in the same flows.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from elasticsearch import Elasticsearch

from netsage_pipeline import folders
from netsage_pipeline.demo import now
from tests.command import run_real
from tests.services.conftest import absent
from tests.services.elastic import Node
from tests.services.rabbitmq import Broker, wait_for
from tests.services.running import pipeline
from tests.services.worker import ROOT, Process
from tests.test_dashboards import DASHBOARDS, GRAFANA, SOURCES, panels, variables

DEMO = folders.shipped("demo")
PREFIX = "dashboards"
TIME = SOURCES[0]["jsonData"]["timeField"]

#: The time that is shown, which not all of the demo's flows are in, and the interval that Grafana might choose for it. Milliseconds.
SHOWN = (1_605_010_000_000, 1_605_013_500_000)
INTERVAL = 600_000

#: What may be chosen: All of everything, and names with characters that mean something to Lucene.
ALL: dict[str, list[str]] = {}
SOME = {
    "organization": ["Texas Advanced Computing Center (TACC)", "Deutsches Elektronen-Synchrotron (DESY)"],
    "country": ["United States"],
}

Flow = dict[str, Any]


@pytest.fixture(scope="module")
def flows(tmp_path_factory: pytest.TempPathFactory) -> list[Flow]:
    """The demo's flows, enriched, and one of which nearly nothing is known."""
    path = tmp_path_factory.mktemp("dashboards") / "enriched.ndjson"
    outcome = run_real("replay", DEMO / "captures", "--now", str(now(DEMO)), "--to", path, lookups=DEMO / "tables")
    assert outcome.code == 0, outcome.err
    bare = {"start": "2020-11-10T12:30:00.000Z", "end": "2020-11-10T12:30:01.000Z", "meta": {"id": "0" * 64}, "values": {"num_bits": 8}}
    return [*(json.loads(line) for line in path.read_bytes().splitlines()), bare]


@pytest.fixture(scope="module")
def client(elastic: Node, flows: list[Flow], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Elasticsearch]:
    """An Elasticsearch in which the sink has stored them."""
    path = tmp_path_factory.mktemp("dashboards")
    (path / "99_output_elasticsearch.toml").write_text(f'url = "{elastic.url}"\nprefix = "{PREFIX}"\nallow_full_addresses = true\n')
    given = b"".join(json.dumps(flow).encode() + b"\n" for flow in flows)
    outcome = run_real("replay", "-", "--conf", path, stdin=given)
    assert outcome.code == 0, outcome.err
    with elastic.client() as client:
        client.indices.refresh(index=f"{PREFIX}-*")
        assert client.count(index=f"{PREFIX}-*")["count"] == len(flows)
        yield client
    delete(elastic, PREFIX)


def delete(elastic: Node, prefix: str) -> None:
    with elastic.client() as client:
        for index in client.indices.get(index=f"{prefix}-*"):
            client.indices.delete(index=index)
        client.options(ignore_status=404).indices.delete_index_template(name=prefix)


# What Grafana asks.


def search_of(target: dict[str, Any], query: str) -> dict[str, Any]:
    """The search that Grafana's backend makes of a panel's query."""
    metrics = {each["id"]: each for each in target["metrics"]}
    inner: dict[str, Any] = {name: {each["type"]: {"field": each["field"]}} for name, each in metrics.items() if each["type"] != "count"}
    sums = inner
    for group in reversed(target["bucketAggs"]):
        settings = group["settings"]
        made: dict[str, Any] = {"field": group["field"]}
        aggregations = inner
        if group["type"] == "terms":
            made |= {"size": int(settings["size"]), "min_doc_count": int(settings["min_doc_count"])}
            ordering = settings["orderBy"]
            made["order"] = {"_count" if metrics[ordering]["type"] == "count" else ordering: settings["order"]}
            aggregations = inner | ({ordering: sums[ordering]} if ordering in sums else {})
        elif group["type"] == "date_histogram":
            interval = settings["interval"].replace("auto", f"{INTERVAL}ms")
            made |= {"fixed_interval": interval, "min_doc_count": int(settings["min_doc_count"]), "format": "epoch_millis"}
            made["extended_bounds"] = {"min": SHOWN[0], "max": SHOWN[1]}
        elif group["type"] == "geohash_grid":
            made["precision"] = int(settings["precision"])
        inner = {group["id"]: {group["type"]: made, "aggs": aggregations}}
    return {"size": 0, "query": {"bool": {"filter": [range_of(), lucene(query)]}}, "aggs": inner}


def range_of() -> dict[str, Any]:
    return {"range": {TIME: {"gte": SHOWN[0], "lte": SHOWN[1], "format": "epoch_millis"}}}


def lucene(query: str) -> dict[str, Any]:
    return {"query_string": {"analyze_wildcard": True, "query": query}}


def filled_in(query: str, board: dict[str, Any], chosen: dict[str, list[str]]) -> str:
    """A query with its variables replaced, in Grafana's format for Lucene."""

    def value(match: re.Match[str]) -> str:
        variable = variables(board)[match[1]]
        if match[1] not in chosen:
            return str(variable["allValue"])
        escaped = [re.sub(r'([!*+\-=<>\s&|()\[\]{}^~?:\\/"])', r"\\\1", each) for each in chosen[match[1]]]
        return "(" + " OR ".join(f'"{each}"' for each in escaped) + ")"

    return re.sub(r"\$(\w+)", value, query)


def rows_of(answer: dict[str, Any], target: dict[str, Any]) -> list[tuple[Any, ...]]:
    """A row for each innermost bucket: the keys of its groups, then its metrics."""

    def rows(node: dict[str, Any], groups: list[dict[str, Any]], keys: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if groups:
            for bucket in node[groups[0]["id"]]["buckets"]:
                yield from rows(bucket, groups[1:], (*keys, bucket["key"]))
        else:
            yield keys + tuple(node["doc_count"] if each["type"] == "count" else node[each["id"]]["value"] for each in target["metrics"])

    return list(rows(answer["aggregations"], target["bucketAggs"], ()))


# What Python counts.


def values(flow: Flow, field: str) -> list[Any]:
    """All that is in a field of a flow, whose name may be that of a field in an object in a list."""
    found: list[Any] = [flow]
    for name in field.split("."):
        found = [each[name] for each in found if isinstance(each, dict) and each.get(name) is not None]
        found = [inner for each in found for inner in (each if isinstance(each, list) else [each])]
    return [each for each in found if each is not None]


def start_of(flow: Flow) -> int:
    return round(datetime.fromisoformat(flow["start"]).timestamp() * 1_000)


def geohash(place: dict[str, float], length: int) -> str:
    """Bits of longitude and latitude in turn, five a character."""
    ranges = {"lon": [-180.0, 180.0], "lat": [-90.0, 90.0]}
    bits = 0
    for number in range(5 * length):
        name = "lat" if number % 2 else "lon"
        low, high = ranges[name]
        middle = (low + high) / 2
        upper = place[name] >= middle
        ranges[name] = [middle, high] if upper else [low, middle]
        bits = bits * 2 + upper
    return "".join("0123456789bcdefghjkmnpqrstuvwxyz"[bits >> 5 * (length - 1 - at) & 31] for at in range(length))


def of_ends(flow: Flow, field: str, names: list[str]) -> bool:
    return any(set(values(flow, f"meta.{side}_{field}")) & set(names) for side in ("src", "dst"))


def chosen_of(flows: Iterable[Flow], chosen: dict[str, list[str]]) -> list[Flow]:
    """The flows that are shown."""
    return [
        flow
        for flow in flows
        if SHOWN[0] <= start_of(flow) <= SHOWN[1]
        and ("sensor" not in chosen or set(values(flow, "meta.sensor_id")) & set(chosen["sensor"]))
        and ("organization" not in chosen or of_ends(flow, "organization", chosen["organization"]))
        and ("country" not in chosen or of_ends(flow, "country_name", chosen["country"]))
    ]


COUNTED: dict[str, Callable[[list[Flow], str], float | None]] = {
    "count": lambda flows, _: len(flows),
    "sum": lambda flows, field: sum(number for flow in flows for number in values(flow, field)),
    "max": lambda flows, field: max((number for flow in flows for number in values(flow, field)), default=None),
}


def counted(flows: list[Flow], metric: dict[str, Any]) -> float | None:
    return COUNTED[metric["type"]](flows, metric.get("field", ""))


def expected(flows: list[Flow], target: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The rows that a panel must get of these flows."""

    def rows(flows: list[Flow], groups: list[dict[str, Any]], keys: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if not groups:
            yield keys + tuple(counted(flows, metric) for metric in target["metrics"])
            return
        for key, members in grouped(flows, groups[0]):
            yield from rows(members, groups[1:], (*keys, key))

    def grouped(flows: list[Flow], group: dict[str, Any]) -> list[tuple[Any, list[Flow]]]:
        found: dict[Any, list[Flow]] = defaultdict(list)
        if group["type"] == "date_histogram":
            for at in range(SHOWN[0] // INTERVAL, SHOWN[1] // INTERVAL + 1):
                found[at * INTERVAL] = []
        for flow in flows:
            for key in {key_of(value, group) for value in values(flow, group["field"])}:
                found[key].append(flow)
        if group["type"] != "terms":
            return sorted(found.items())
        ordering = next(metric for metric in target["metrics"] if metric["id"] == group["settings"]["orderBy"])
        return sorted(found.items(), key=lambda each: (-(counted(each[1], ordering) or 0), each[0]))[: int(group["settings"]["size"])]

    return list(rows(flows, target["bucketAggs"], ()))


def key_of(value: Any, group: dict[str, Any]) -> Any:
    if group["type"] == "date_histogram":
        return round(datetime.fromisoformat(value).timestamp() * 1_000) // INTERVAL * INTERVAL
    return geohash(value, int(group["settings"]["precision"])) if group["type"] == "geohash_grid" else value


# They are equal.


@pytest.mark.parametrize("chosen", [ALL, SOME], ids=["all", "chosen"])
@pytest.mark.parametrize(("board", "panel"), panels("elasticsearch"))
def test_a_panel_shows_what_is_in_the_flows(
    board: dict[str, Any], panel: dict[str, Any], chosen: dict[str, list[str]], client: Elasticsearch, flows: list[Flow]
) -> None:
    shown = chosen_of(flows, chosen)
    assert 0 < len(shown) < len(flows)
    for target in panel["targets"]:
        answer = client.search(index=f"{PREFIX}-*", body=search_of(target, filled_in(target["query"], board, chosen)))
        found, counts = rows_of(answer.body, target), expected(shown, target)
        assert any(row[-1] for row in found)
        assert sorted(found, key=str) == sorted(counts, key=str)


def test_the_numbers_are_what_the_titles_promise(client: Elasticsearch, flows: list[Flow]) -> None:
    """Counted without what the panels say of themselves."""
    counts: dict[str, Counter[tuple[Any, ...]]] = defaultdict(Counter)
    for flow in chosen_of(flows, ALL):
        meta, bits = flow["meta"], flow["values"]["num_bits"]
        for side, did in (("src", "sent"), ("dst", "received")):
            registered = meta.get("scireg", {}).get(side) or {}
            counts[f"{did}, by organization".capitalize()][meta.get(f"{side}_organization"),] += bits
            counts[f"{did}, by country".capitalize()][meta.get(f"{side}_country_name"),] += bits
            counts[f"{did}, by discipline".capitalize()][registered.get("discipline"),] += bits
            counts[f"Autonomous systems that {did}"][meta.get(f"{side}_asn"), meta.get(f"{side}_organization")] += bits
            for project in set(registered.get("project_names", [])):
                counts[f"Projects that {did}"][project,] += bits
        for title, name in (("Organizations", "organization"), ("Countries", "country_name"), ("Addresses", "ip")):
            counts[title][meta.get(f"src_{name}"), meta.get(f"dst_{name}")] += bits
        for title, number in (("Traffic", bits), ("Packets", flow["values"].get("num_packets", 0)), ("Flows", 1)):
            counts[title][()] += number
        counts["Seen, by sensor"][meta.get("sensor_id"),] += bits
        counts["Flows, by sensor"][meta.get("sensor_id"),] += 1
    for parameters in panels("elasticsearch"):
        board, panel = parameters.values
        if panel["type"] != "geomap":
            [target] = panel["targets"]
            answer = client.search(index=f"{PREFIX}-*", body=search_of(target, filled_in(target["query"], board, ALL))).body
            groups = [group["type"] for group in target["bucketAggs"]]
            found: Counter[tuple[Any, ...]] = Counter()
            for row in rows_of(answer, target):
                found[tuple(key for key, kind in zip(row, groups, strict=False) if kind == "terms")] += row[len(groups)]
            known = Counter({key: number for key, number in counts[panel["title"]].items() if None not in key})
            assert found.most_common(3) == known.most_common(3)


@pytest.mark.parametrize("name", [name for name, each in DASHBOARDS.items() if "flows" in variables(each)])
def test_a_variable_lists_what_is_in_the_flows(name: str, client: Elasticsearch, flows: list[Flow]) -> None:
    shown = chosen_of(flows, ALL)
    for variable in variables(DASHBOARDS[name]).values():
        if variable["type"] == "query":
            asked = json.loads(variable["query"])
            assert (asked["find"], asked["orderBy"]) == ("terms", "doc_count")
            aggregation = {"terms": {"field": asked["field"], "size": 500, "order": {"_count": "desc"}}}
            body = {"size": 0, "query": {"bool": {"filter": [range_of()]}}, "aggs": {"1": aggregation}}
            answer = client.search(index=f"{PREFIX}-*", body=body)
            listed = {bucket["key"] for bucket in answer["aggregations"]["1"]["buckets"]}
            assert listed == {value for flow in shown for value in values(flow, asked["field"])} != set()
            assert {*SOME.get(variable["name"], [])} <= listed


# Prometheus.


class Prometheus:
    """A server of one's own that scrapes these targets as grafana/prometheus.yml says, but every second."""

    def __init__(self, directory: Path, targets: dict[str, str]) -> None:
        settings = yaml.safe_load((GRAFANA / "prometheus.yml").read_text("utf-8"))
        settings["global"]["scrape_interval"] = "1s"
        [job] = settings["scrape_configs"]
        job["static_configs"] = [{**each, "targets": [targets[each["labels"]["chain"]]]} for each in job["static_configs"]]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(settings))
        self.url = f"127.0.0.1:{some_port()}"
        options = {"config.file": directory / "prometheus.yml", "storage.tsdb.path": directory / "data", "web.listen-address": self.url}
        with (directory / "prometheus.log").open("wb") as log:
            command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def result(self, expression: str) -> list[dict[str, Any]]:
        """Its series at this moment: metric and value."""
        query = urllib.parse.urlencode({"query": expression})
        with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"http://{self.url}/api/v1/query?{query}") as answer:
            return [each for each in json.load(answer)["data"]["result"] if each["value"][1] != "NaN"]
        return []

    def has(self, expression: str, series: int = 1) -> bool:
        return len(self.result(expression)) >= series

    def end(self) -> None:
        self._process.kill()
        self._process.wait(30)


def some_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def prometheus(broker: Broker, elastic: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It sees the importer, the worker and the sink at work on the demo's flows of now, and their connections lost once."""
    if shutil.which("prometheus") is None:
        absent("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    targets = {chain: f"127.0.0.1:{some_port()}" for chain in ("worker", "sink", "importer")}
    settings = {
        "NETSAGE_METRICS": targets["worker"],
        "NETSAGE_SINK_METRICS": targets["sink"],
        "NETSAGE_IMPORT_METRICS": targets["importer"],
        "NETSAGE_INACTIVITY_TIMEOUT_S": "5",
        "NETSAGE_SINK_STATE": str(directory / "sink"),
        "NETSAGE_IMPORT_STATE": str(directory / "import"),
        "NETSAGE_SENSOR": "border-1",
        "NETSAGE_NFCAPD_DIR": str(directory),
        "NETSAGE_ELASTICSEARCH_URL": elastic.url,
        "NETSAGE_INDEX_PREFIX": "live",
    }
    chains = {"worker": "conf.d", "sink": "conf.d/sink", "importer": "conf.d/import"}
    with pipeline(broker, directory / "pipeline", lookups=DEMO / "tables", **settings) as run:
        run.environment["NETSAGE_SINK_DEAD_LETTERS"] = run.dead
        for chain, conf in chains.items():
            run.processes.append(Process(run.surroundings, directory / f"{chain}.log", "run", "--conf", str(ROOT / conf)))
        run.processes.append(Process(run.surroundings, directory / "demo.log", "demo", "--live"))
        made = Prometheus(directory, targets)
        try:
            wait_for(partial(made.has, "up == 1", len(targets)), 60)
            wait_for(partial(made.has, "netsage_flows_total{chain='sink', direction='out'} > 50000"), 90)
            broker.ctl("close_all_connections", "as the operator wants it")
            wait_for(partial(made.has, "netsage_reconnects_total > 0", 2), 60)
            yield made
        finally:
            made.end()
            delete(elastic, "live")


@pytest.mark.parametrize(("_board", "panel"), panels("prometheus"))
def test_an_expression_gives_series_with_their_names(_board: dict[str, Any], panel: dict[str, Any], prometheus: Prometheus) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "60s")
        wait_for(partial(prometheus.has, expression), 30)
        for series in prometheus.result(expression):
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= set(series["metric"])
            assert float(series["value"][1]) >= 0
