"""The demo: its summary holds the numbers that were planted, and its script makes the shipped files again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest

from netsage_pipeline import demo, folders, stagefile
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import configured
from netsage_pipeline.flow import Flow, Now
from netsage_pipeline.reading.read import Dump, find
from netsage_pipeline.replay import Replay, Summary
from netsage_pipeline.tables.tables import Tables

DEMO = folders.demo()
EXPECTED: dict[str, Any] = json.loads((DEMO / "expected.json").read_text("utf-8"))


class Replayed:
    """What came of the dump: the summary, the flows, the dead letters."""

    def __init__(self, summary: Summary, flows: list[Flow], letters: list[dict[str, Any]]) -> None:
        self.summary, self.flows, self.letters = summary, flows, letters


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """A replay through all stages, also those that are shipped switched off."""
    directory = tmp_path_factory.mktemp("demo")
    conf, written, refused = directory / "conf.d", directory / "written.ndjson", directory / "refused.ndjson"
    conf.mkdir()
    for file in folders.shipped("conf.d").glob("*.toml"):
        (conf / file.name).write_text(file.read_text().replace("enabled = false\n", ""))
    stages = configured(conf, [folders.shipped("stages")])
    assert all(stage.config.enabled for stage in stages)
    assert {"15_sensor_specific", "41_ip_version", "42_communities"} <= {stage.name for stage in stages}
    now = Now(EXPECTED["now"])
    tables = Tables(DEMO / "tables")
    chain = Chain(stages, tables, now)
    assert tables.missing == []
    assert tables.broken == []
    output = stagefile.find([folders.shipped("stages")])["99_output_file"].module
    told: list[str] = []
    with refused.open("wb") as letters:
        sink = output.sink(output.Config(path=str(written)))
        replay = Replay(chain, now, sink, str(written), letters, fixed_now=True)
        summary = replay.run(find([str(DEMO / "captures")], told.append), lambda _: None, told.append)
    assert told == []
    return Replayed(summary, *([orjson.loads(line) for line in path.read_bytes().splitlines()] for path in (written, refused)))


def test_all_files_and_flows_are_read(replayed: Replayed) -> None:
    assert replayed.summary.files == EXPECTED["files"] == len(list(DEMO.glob("captures/*/*")))
    assert replayed.summary.read == EXPECTED["read"]
    assert replayed.summary.not_read == []


def test_flows_are_dropped_for_the_reasons_planted(replayed: Replayed) -> None:
    assert replayed.summary.dropped == {("10_preliminaries", reason): number for reason, number in EXPECTED["dropped"].items()}


def test_flows_are_refused_for_the_reasons_planted(replayed: Replayed) -> None:
    assert {f"{stage}: {reason}": number for (stage, reason), number in replayed.summary.refused.items()} == EXPECTED["dead_lettered"]
    assert Counter(f"{letter['stage']}: {letter['reason']}" for letter in replayed.letters) == EXPECTED["dead_lettered"]
    assert replayed.summary.refused["decode", "not JSON"] == EXPECTED["messages_refused"]


def test_parts_are_stitched_as_planted(replayed: Replayed) -> None:
    expected = EXPECTED["stitching"] | {"passed": EXPECTED["not_stitched"], "late": 0, "not believed": 0, "held": 0}
    assert replayed.summary.stitching.items() >= expected.items()
    parts = [flow["stitched_flows"] for flow in replayed.flows]
    assert sum(parts) == EXPECTED["stitching"]["parts"]
    assert len(parts) - parts.count(0) == EXPECTED["stitching"]["flows"]
    assert parts.count(0) == EXPECTED["not_stitched"]
    assert max(parts) > 5


def test_all_flows_are_written(replayed: Replayed) -> None:
    assert replayed.summary.written == len(replayed.flows) == EXPECTED["written"]


def test_every_flow_is_accounted_for(replayed: Replayed) -> None:
    summary = replayed.summary
    refused = summary.refused.total() - summary.refused["decode", "not JSON"]
    parts = sum(max(1, flow["stitched_flows"]) for flow in replayed.flows)
    assert summary.read == summary.dropped.total() + refused + parts


@pytest.mark.parametrize("name", ["num_bits", "num_packets"])
def test_sums_are_those_planted(name: str, replayed: Replayed) -> None:
    assert sum(flow["values"][name] for flow in replayed.flows) == EXPECTED["sums"][name]


def test_the_summary_says_these_numbers(replayed: Replayed) -> None:
    text = "\n".join(replayed.summary.lines())
    stitching = EXPECTED["stitching"]
    assert f"{EXPECTED['read']:,}  flows of {EXPECTED['files']} files" in text
    assert f"{stitching['parts']:,}  parts → {stitching['flows']:,} flows" in text
    assert f"{EXPECTED['written']:,}  flows" in text
    for reason, number in EXPECTED["dropped"].items():
        assert f"{number:,}  10_preliminaries: {reason}" in text
    for reason, number in EXPECTED["dead_lettered"].items():
        assert f"{number:,}  {reason}" in text


def test_country_scopes_are_those_planted(replayed: Replayed) -> None:
    assert by_bits((flow["meta"].get("country_scope", "(none)"), flow) for flow in replayed.flows) == EXPECTED["tables"]["country_scope"]


def test_disciplines_are_those_planted(replayed: Replayed) -> None:
    """A flow counts once for each discipline at its ends."""
    of_flows = [
        (discipline, flow)
        for flow in replayed.flows
        for discipline in {end["discipline"] for end in flow["meta"].get("scireg", {}).values() if end.get("discipline")}
    ]
    assert by_bits(of_flows) == EXPECTED["tables"]["disciplines"]


def test_top_pairs_of_organizations_are_those_planted(replayed: Replayed) -> None:
    pairs: Counter[tuple[str, str]] = Counter()
    for flow in replayed.flows:
        meta = flow["meta"]
        pairs[meta["src_preferred_org"], meta["dst_preferred_org"]] += flow["values"]["num_bits"]
    top = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:10]
    assert [[source, destination, bits] for (source, destination), bits in top] == EXPECTED["tables"]["organization_pairs"]


def by_bits(flows: Any) -> list[list[Any]]:
    """Name, flows and bits, most bits first."""
    table: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, flow in flows:
        table[name][0] += 1
        table[name][1] += flow["values"]["num_bits"]
    return sorted(([name, *sums] for name, sums in table.items()), key=lambda row: (-row[2], row[0]))


def test_every_stage_left_its_mark(replayed: Replayed) -> None:
    """Of those that the tables above say nothing of."""
    metas = [flow["meta"] for flow in replayed.flows]
    assert {meta["ip_version"] for meta in metas} == {"4", "6"}
    assert sum(meta["src"]["community"] != "None" for meta in metas) > 1_000
    assert all(meta["src_ip"].endswith("x") for meta in metas)
    assert {meta["dst_ip"] for meta in metas if not meta["dst_ip"].endswith("x")} == {"INVALID IP"}
    assert any(meta["src_ip"] == "xx.xx.xx.xx" for meta in metas)
    assert {meta["is_network_testing"] for meta in metas} == {"yes", "no"}
    assert {"sensor_group", "sensor_type"} <= {name for meta in metas for name in meta}
    assert {"type", "interval", "src_ifindex"}.isdisjoint(name for flow in replayed.flows[:1_000] for name in [*flow, *flow["meta"]])
    assert all(flow["@pipeline_ver"] and flow["es_doc_id"] and flow["end"].endswith("Z") for flow in replayed.flows)


def test_the_flows_lie_in_more_than_an_hour_on_several_sensors(replayed: Replayed) -> None:
    assert len(replayed.flows) >= 50_000
    assert len({flow["meta"]["sensor_id"] for flow in replayed.flows}) >= 3
    times = sorted(flow["end"] for flow in replayed.flows)
    assert times[-1][:13] > times[0][:13]
    assert sum(file.stat().st_size for file in DEMO.rglob("captures/*/*")) <= 3 * 2**20


def test_make_writes_the_shipped_files_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(DEMO / "make.py"), str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "expected.json").read_bytes() == (DEMO / "expected.json").read_bytes()
    for folder in ("captures", "tables"):
        made, shipped = (
            sorted(path.relative_to(root) for path in (root / folder).rglob("*") if path.is_file()) for root in (tmp_path, DEMO)
        )
        assert made == shipped
        for path in made:
            assert (tmp_path / path).read_bytes() == (DEMO / path).read_bytes(), path


def test_live_the_files_come_over_and_over_and_end_now() -> None:
    dumps = [Dump(Path(f"{captured}"), captured, 1) for captured in (600.0, 600.0, 900.0)]
    found = list(islice(demo.rounds(dumps, 10_000), 9))
    assert [(due, by) for due, by, _ in found] == [
        *[(9_700, 8_800), (9_700, 8_800), (10_000, 8_800)],
        *[(10_300, 9_400), (10_300, 9_400), (10_600, 9_400)],
        *[(10_900, 10_000), (10_900, 10_000), (11_200, 10_000)],
    ]
    assert [dump for _, _, dump in found] == dumps * 3


def test_live_only_the_times_of_flows_are_moved() -> None:
    given = b'[{"start":1605009652.494,"end":1605009660,"a":1},{"start":"x"},3]'
    assert orjson.loads(demo.moved(given, 300)) == [{"start": 1605009952.494, "end": 1605009960, "a": 1}, {"start": "x"}, 3]
    assert demo.moved(b'{"end": 1.5}', 0.25) == b'{"end":1.75}'
    assert demo.moved(b"no json", 300) == b"no json"
