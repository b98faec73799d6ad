"""The index template on a real server: what it makes of flows that a chain put out, and when it is installed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch, helpers

from netsage_pipeline import folders
from netsage_pipeline.elastic import templates
from netsage_pipeline.elastic.templates import TemplateError, install, template
from netsage_pipeline.fields import STORED, TSTAT, TYPES, known
from netsage_pipeline.stagefile import find
from tests.command import conf_with, lines, run, stage_file, tables_with
from tests.conftest import CONFORMANCE
from tests.flows import flow
from tests.test_templates import EXPECTED, leaves

SHIPPED = known(find([folders.shipped("stages")]).values())
DAY = "2023.11.14"


@pytest.fixture
def prefix(client: Elasticsearch) -> Iterator[str]:
    """The prefix of a feed that is there for one test."""
    prefix = f"feed-{uuid.uuid4().hex[:8]}"
    yield prefix
    for index in client.indices.get(index=f"{prefix}*"):
        client.indices.delete(index=index)
    client.options(ignore_status=404).indices.delete_index_template(name=f"{prefix}*")
    client.options(ignore_status=404).cluster.delete_component_template(name=f"{prefix}*")


def enriched(tmp_path: Path, settings: dict[str, str], stages: dict[str, str] | None = None) -> list[Any]:
    """What a chain with all stages on makes of the conformance flows and of some in which every field of an exporter is."""
    own = tmp_path / "stages"
    own.mkdir(parents=True)
    for name, text in (stages or {}).items():
        stage_file(own, name, text, writes=f"meta.mine_{name}  text")
    conf = conf_with(tmp_path, dict.fromkeys(stages or {}, ""))
    for file in conf.glob("*.toml"):
        file.write_text(settings.get(file.stem, "") + file.read_text().replace("enabled = false\n", ""))
    given = b"".join(path.read_bytes() for path in sorted(CONFORMANCE.glob("*.in.ndjson")))
    given += lines(
        [
            flow(meta={"flow_type": "tstat", "instance_id": "a"}, values=dict.fromkeys(TSTAT_NAMES, 1.5)),
            flow(meta={"src_ip": "nowhere", "src_asn": 7575, "instance_id": 7}),
            flow(meta={"src_ip": "139.130.1.5", "src_asn": 7575, "dst_ip": "150.203.1.1", "dst_asn": 7575}),
        ]
    )
    (tmp_path / "dump").write_bytes(given)
    outcome = run("replay", tmp_path / "dump", "--conf", conf, "--stages", own, "--now", "1700000000", lookups=tables_with(tmp_path, {}))
    assert outcome.code == 0, outcome.err
    assert len(outcome.flows) > 300
    return outcome.flows


TSTAT_NAMES = [name.removeprefix("values.") for name in TSTAT]
PRIVATE_TOO = {"70_deidentify": "keep_private = true\n", "80_privatize_org": "keep_private = true\n"}


def index(client: Elasticsearch, name: str, documents: list[Any]) -> None:
    """Indexes all; an error if one is refused."""
    helpers.bulk(client, ({"_index": name, "_id": str(number), **each} for number, each in enumerate(documents)), refresh=True)


def mapping_of(client: Elasticsearch, name: str) -> dict[str, str]:
    answer = client.indices.get_mapping(index=name)
    return dict(leaves(answer[name]["mappings"].get("properties", {})))


def aggregated(client: Elasticsearch, name: str, mapping: dict[str, str]) -> set[str]:
    """The fields that an aggregation fit for their type finds values in."""
    of_type: dict[str, Any] = {
        "keyword": lambda field: {"terms": {"field": field}},
        "ip": lambda field: {"terms": {"field": field}},
        "long": lambda field: {"stats": {"field": field}},
        "double": lambda field: {"stats": {"field": field}},
        "boolean": lambda field: {"terms": {"field": field}},
        "date": lambda field: {"date_histogram": {"field": field, "calendar_interval": "day"}},
        "geo_point": lambda field: {"geohash_grid": {"field": field, "precision": 2}},
    }
    answer = client.search(index=name, size=0, aggs={field: of_type[kind](field) for field, kind in mapping.items()})
    return {field for field, found in answer["aggregations"].items() if found.get("buckets") or found.get("count")}


def fields_in(document: Any, mapping: dict[str, str], path: str = "") -> Iterator[str]:
    """The fields of a document that hold a value; a location is one field."""
    if isinstance(document, dict) and mapping.get(path) != "geo_point":
        for name, value in document.items():
            yield from fields_in(value, mapping, f"{path}.{name}" if path else name)
    elif isinstance(document, list):
        for value in document:
            yield from fields_in(value, mapping, path)
    elif document is not None:
        yield path


@pytest.mark.parametrize("layout", ["1", "2"])
def test_every_field_of_flows_of_a_real_chain_is_mapped_and_can_be_aggregated(
    client: Elasticsearch, prefix: str, tmp_path: Path, layout: str
) -> None:
    flows = enriched(tmp_path, PRIVATE_TOO | {"60_scireg": f'layout = "{layout}"\n'})
    install(client, prefix, SHIPPED)
    index(client, f"{prefix}-{DAY}", [each | {"document_id": str(number)} for number, each in enumerate(flows)])

    mapping = mapping_of(client, f"{prefix}-{DAY}")
    assert mapping == dict(leaves(template(prefix, SHIPPED)["template"]["mappings"]["properties"]))
    assert EXPECTED.items() <= mapping.items()

    held = {name for each in flows for name in fields_in(each, mapping)} | STORED.keys()
    assert held - mapping.keys() == {"meta.case"}, "which is of the conformance flows alone"
    found = aggregated(client, f"{prefix}-{DAY}", mapping)
    assert found == held & mapping.keys()
    assert {"meta.src_location", "meta.dst_preferred_location", "values.tcp_rtt_avg", "PRIVATE.src_asn", "tags"} <= found
    assert ("meta.scireg.src.discipline" if layout == "1" else "meta.src_discipline") in found

    box = {"meta.src_location": {"top_left": {"lat": 50, "lon": -130}, "bottom_right": {"lat": 20, "lon": -60}}}
    inside = client.search(index=f"{prefix}-{DAY}", query={"geo_bounding_box": box}, size=0)["hits"]["total"]["value"]
    assert 0 < inside < len(flows)
    masked = client.search(index=f"{prefix}-{DAY}", query={"prefix": {"meta.src_ip": "128.101."}}, size=0)["hits"]["total"]["value"]
    assert 0 < masked < len(flows)


def test_what_is_not_in_the_template_and_what_is_too_long_is_stored_but_not_indexed(client: Elasticsearch, prefix: str) -> None:
    install(client, prefix, SHIPPED)
    document = {"meta": {"src_organization": "x" * 40_000, "new": 1, "scireg": {"src": {"new": "x"}}}, "new": {"a": "x"}}
    index(client, f"{prefix}-{DAY}", [document])
    (hit,) = client.search(index=f"{prefix}-{DAY}")["hits"]["hits"]
    assert hit["_source"] == document
    assert hit["_ignored"] == ["meta.src_organization"]
    assert mapping_of(client, f"{prefix}-{DAY}").keys().isdisjoint({"meta.new", "new.a", "meta.scireg.src.new"})


def test_a_location_that_cannot_be_indexed_does_not_keep_a_flow_out(client: Elasticsearch, prefix: str) -> None:
    install(client, prefix, SHIPPED)
    meta = {
        "src_location": {"lat": "x", "lon": 1.0},
        "dst_location": {"lat": 95.0, "lon": 1.0},
        "src_preferred_location": {"lat": 1.0, "lon": 2.0, "data_source": "scireg"},
    }
    index(client, f"{prefix}-{DAY}", [{"meta": meta}])
    (hit,) = client.search(index=f"{prefix}-{DAY}")["hits"]["hits"]
    assert hit["_source"] == {"meta": meta}
    assert set(hit["_ignored"]) == {"meta.src_location", "meta.src_preferred_location"}


VALUES: dict[str, Any] = {
    "text": "a",
    "texts": ["a", None, "b"],
    "ip": "192.0.2.1",
    "ip-masked": "192.0.2.x",
    "integer": 2**62,
    "number": 1.5,
    "boolean": True,
    "date": "2023-11-14T22:13:20.000Z",
    "location": {"lat": 1.0, "lon": 2.0},
    "object": {"inside": 1},
    "text or integer": 7,
}


def test_a_field_of_an_operators_stage_is_mapped_and_can_be_aggregated(client: Elasticsearch, prefix: str, tmp_path: Path) -> None:
    assert {*TYPES} - {"removed"} <= VALUES.keys()
    names = {word: f"meta.mine_{number}" for number, word in enumerate(VALUES)}
    writes = "\n        ".join(f"{name}  {word}, what it is" for word, name in names.items())
    stage_file(tmp_path, "91_mine", "return flow", writes=writes)
    stage_file(tmp_path, "54_mine", "pass", writes="rank  integer", kind="end")
    install(client, prefix, known(find([folders.shipped("stages"), tmp_path]).values()))
    document = {"meta": {name.removeprefix("meta."): VALUES[word] for word, name in names.items()} | {"src_rank": 1, "dst_rank": 2}}
    index(client, f"{prefix}-{DAY}", [document])
    mapping = mapping_of(client, f"{prefix}-{DAY}")
    kinds = ["keyword", "keyword", "ip", "keyword", "long", "double", "boolean", "date", "geo_point", None, "keyword"]
    assert [mapping.get(name) for name in names.values()] == kinds
    expected = {name for word, name in names.items() if word != "object"} | {"meta.src_rank", "meta.dst_rank"}
    assert aggregated(client, f"{prefix}-{DAY}", mapping) == expected


# When it is installed


SOME = {"meta.a": "text", "start": "date"}
MORE = SOME | {"meta.b": "integer"}


def installed(client: Elasticsearch, prefix: str) -> Any:
    return client.indices.get_index_template(name=prefix)["index_templates"][0]["index_template"]


def names_of(client: Elasticsearch, prefix: str) -> set[str]:
    return {name for name, _ in leaves(installed(client, prefix)["template"]["mappings"]["properties"])}


def test_a_missing_template_is_installed_and_then_left_as_it_is(client: Elasticsearch, prefix: str) -> None:
    assert install(client, prefix, SHIPPED) == [f"index template {prefix}: installed"]
    assert install(client, prefix, SHIPPED) == []
    assert installed(client, prefix)["_meta"]["managed_by"] == "netsage-pipeline"


def test_an_older_one_is_replaced_but_for_fields_of_another_worker(
    client: Elasticsearch, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(client, prefix, MORE)
    monkeypatch.setattr(templates, "VERSION", 3)
    changed = {"meta.a": "integer", "start.at": "date"}
    assert install(client, prefix, changed) == [f"index template {prefix}: version 1 replaced by 3"]
    assert installed(client, prefix)["version"] == 3
    now = dict(leaves(installed(client, prefix)["template"]["mappings"]["properties"]))
    assert now == {"meta.a": "long", "meta.b": "long", "start.at": "date"}
    assert install(client, prefix, changed) == []


def test_a_newer_one_is_left_alone_and_said(client: Elasticsearch, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "VERSION", 3)
    install(client, prefix, SOME)
    monkeypatch.undo()
    assert install(client, prefix, MORE) == [f"index template {prefix}: is of a newer version (3) than ours (1): left as it is"]
    assert names_of(client, prefix) == SOME.keys()


def test_fields_are_added_and_those_of_another_worker_stay(client: Elasticsearch, prefix: str) -> None:
    install(client, prefix, MORE)
    other = SOME | {"meta.c.d": "number"}
    assert install(client, prefix, other) == [f"index template {prefix}: fields added"]
    assert names_of(client, prefix) == MORE.keys() | other.keys()
    assert install(client, prefix, other) == install(client, prefix, MORE) == []


@pytest.mark.parametrize("meta", [None, {"managed_by": "somebody"}])
def test_somebody_elses_is_never_replaced(client: Elasticsearch, prefix: str, meta: Any) -> None:
    client.indices.put_index_template(name=prefix, index_patterns=[f"{prefix}-*"], meta=meta, template={"mappings": {}})
    before = installed(client, prefix)
    with pytest.raises(TemplateError) as caught:
        install(client, prefix, SOME)
    assert str(caught.value) == (
        f"index template {prefix}: is somebody else's, so ours is not installed: "
        f"move its settings into the component template {prefix}@custom, and delete it"
    )
    assert installed(client, prefix) == before


@pytest.mark.parametrize("more", [0, 1], ids=["the same priority", "a higher priority"])
def test_another_template_that_would_win_is_named(client: Elasticsearch, prefix: str, more: int) -> None:
    priority = templates.PRIORITY + len(prefix) + more
    client.indices.put_index_template(name=f"{prefix}-own", index_patterns=["x-*", f"{prefix}-1*"], priority=priority)
    with pytest.raises(TemplateError) as caught:
        install(client, prefix, SOME)
    assert str(caught.value) == (
        f"index template {prefix}: would not be in effect, because {prefix}-own (priority {priority}) is for the same indices: "
        f"give that a priority below {priority - more}, or patterns that do not match {prefix}-1970.01.01"
    )
    assert not client.indices.exists_index_template(name=prefix)


def test_one_that_would_win_for_the_indices_of_this_year_is_named(client: Elasticsearch, prefix: str) -> None:
    client.indices.put_index_template(name=f"{prefix}-own", index_patterns=[f"{prefix}-{DAY[:4]}*"], priority=900)
    with pytest.raises(TemplateError, match=rf"{prefix}-own \(priority 900\) is for the same indices: .* do not match {prefix}-{DAY}$"):
        install(client, prefix, SOME, [f"{prefix}-{DAY}"])


def test_one_that_overlaps_elsewhere_with_the_same_priority_is_named_by_the_server(client: Elasticsearch, prefix: str) -> None:
    priority = templates.PRIORITY + len(prefix)
    client.indices.put_index_template(name=f"{prefix}-own", index_patterns=[f"{prefix}-x*"], priority=priority)
    with pytest.raises(TemplateError, match=f"^index template {prefix}: Elasticsearch does not take it: .*{prefix}-own") as caught:
        install(client, prefix, SOME)
    assert "\n" not in str(caught.value)


def test_one_that_loses_against_ours_is_told(client: Elasticsearch, prefix: str) -> None:
    client.indices.put_index_template(name=f"{prefix}-own", index_patterns=[f"{prefix}-*"], priority=1)
    move = f"move its settings into the component template {prefix}@custom"
    assert install(client, prefix, SOME) == [
        f"index template {prefix}: installed",
        f"index template {prefix}-own: is for indices of ours too and not in effect there: {move}",
    ]
    assert install(client, prefix, SOME) == []


def test_feeds_of_which_one_is_called_like_the_beginning_of_the_other_each_have_their_own(client: Elasticsearch, prefix: str) -> None:
    for order in ((prefix, f"{prefix}-tacc"), (f"{prefix}-tacc", prefix)):
        client.options(ignore_status=404).indices.delete_index_template(name=f"{prefix}*")
        for feed in order:
            assert install(client, feed, {f"of_{feed}": "text"}) == [f"index template {feed}: installed"]
        for feed in order:
            answer = client.indices.simulate_index_template(name=f"{feed}-{DAY}")
            assert answer["template"]["mappings"]["properties"].keys() == {f"of_{feed}"}


def test_what_the_site_sets_is_in_effect_and_survives_an_upgrade(
    client: Elasticsearch, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"index": {"number_of_shards": "2", "number_of_replicas": "0", "codec": "best_compression", "refresh_interval": "30s"}}
    mappings = {"properties": {"site": {"type": "keyword"}, "start": {"type": "keyword"}}}
    install(client, prefix, SOME)
    client.cluster.put_component_template(name=f"{prefix}@custom", template={"settings": settings, "mappings": mappings})
    for version in (1, 2):
        monkeypatch.setattr(templates, "VERSION", version)
        install(client, prefix, MORE)
        made = client.indices.simulate_index_template(name=f"{prefix}-{DAY}")["template"]
        assert settings["index"].items() <= made["settings"]["index"].items()
        kinds = dict(leaves(made["mappings"]["properties"]))
        assert kinds == {"meta.a": "keyword", "meta.b": "long", "site": "keyword", "start": "date"}, "ours is what dashboards rely on"
    client.indices.create(index=f"{prefix}-{DAY}")
    made = client.indices.get_settings(index=f"{prefix}-{DAY}")[f"{prefix}-{DAY}"]["settings"]
    assert settings["index"].items() <= made["index"].items()


def test_an_index_of_today_is_given_the_fields_that_it_lacks(client: Elasticsearch, prefix: str) -> None:
    install(client, prefix, SOME)
    client.indices.create(index=f"{prefix}-{DAY}")
    today = [f"{prefix}-{DAY}", f"{prefix}-2023.11.15"]
    assert install(client, prefix, MORE, today) == [f"index template {prefix}: fields added"]
    assert mapping_of(client, f"{prefix}-{DAY}") == {"meta.a": "keyword", "meta.b": "long", "start": "date"}
    assert not client.indices.exists(index=today[1])


def test_an_index_of_today_that_is_mapped_otherwise_stays_as_it_is(client: Elasticsearch, prefix: str) -> None:
    client.indices.create(index=f"{prefix}-{DAY}", mappings={"properties": {"start": {"type": "text"}}})
    first, second = install(client, prefix, SOME, [f"{prefix}-{DAY}"])
    assert first == f"index template {prefix}: installed"
    assert second.startswith(f"index {prefix}-{DAY}: keeps the mapping that it has; the next one will have ours: ")
    assert "start" in second
    assert mapping_of(client, f"{prefix}-{DAY}") == {"start": "text"}


def test_what_the_command_prints_can_be_given_to_the_server(client: Elasticsearch, prefix: str) -> None:
    printed = json.loads(run("fields", "--template", "--prefix", prefix).out)
    client.indices.put_index_template(name=prefix, body=printed)
    assert install(client, prefix, SHIPPED) == []
