"""What is remembered of ends: it changes nothing that comes out, popular ends stay, and it is bounded."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.ends import EndRun, EndStage, Memory
from netsage_pipeline.flow import End, Flow, Now
from netsage_pipeline.tables.tables import Tables
from tests.conftest import CONFORMANCE
from tests.flows import MISSING, NOW, flow

DOCSTRING = '''"""{name}: of an operator.

Reads   {reads}
Writes  {writes}
Source  nothing
Drops   nothing
"""

from netsage_pipeline.config import Settings


class Config(Settings):
    pass


'''

#: A flow stage that changes what ends begin with, and what they are given, nested values among it.
MEDDLING = """
def stage(config, lookups):
    def process(flow):
        meta = flow["meta"]
        for side in ("src", "dst"):
            location = meta.get(f"{side}_location")
            if location:
                location["lat"] = meta["src_port"]
                location["more"] = [side]
            scireg = meta.get("scireg", {}).get(side)
            if scireg:
                scireg["projects"] = None
                scireg.setdefault("names", []).append(meta["src_port"])
            if isinstance(meta.get(side), dict) and isinstance(meta[side].get("community"), list):
                meta[side]["community"].append(meta["src_port"])
            if meta.get(f"{side}_list"):
                meta[f"{side}_list"][0]["deep"][0] += meta["src_port"]
        if meta["src_port"] % 3 == 0:
            meta["src_asn"] = 7575
            meta["dst_organization"] = "changed"
            meta.pop("src_country_name", None)
        flow.setdefault("tags", []).append("meddled")
        flow.setdefault("PRIVATE", {})["mine"] = meta["src_port"]
        return flow

    return process
"""

#: An end stage that writes nested values, tags and notes, and keeps what it writes to change it later.
WRITING = """
def end(config, lookups):
    def process(end):
        end["list"] = [{"deep": [1, [2]], "of": end["ip"][:1]}]
        end["object"] = {"flat": 1}
        end["null"] = None
        end.setdefault("tags", []).append(f"tagged {end['side']}")
        end.setdefault("notes", []).append(f"noted {end['side']}")
        end.setdefault("private", {})[f"{end['side']}_mine"] = {"nested": [1]}

    return process
"""

#: An end stage that removes what earlier ones wrote, wherever it lies, of some ends.
REMOVING = """
def end(config, lookups):
    def process(end):
        for name in ("scireg", "community", "object"):
            if len(end["ip"]) % 2:
                end.pop(name, None)

    return process
"""

NOTHING_DONE = """
def stage(config, lookups):
    return lambda flow: flow
"""

REFUSING = """
def end(config, lookups):
    def process(end):
        raise ValueError

    return process
"""

#: What these read and write.
DECLARED = {
    MEDDLING: ("meta", "nothing"),
    WRITING: ("side, ip", "list, object, null  object\n        tags, notes  texts\n        private  object"),
    REMOVING: ("side, ip", "scireg, object  object\n        community  texts"),
    NOTHING_DONE: ("meta", "nothing"),
    REFUSING: ("ip", "nothing"),
}


@cache
def lookups(name: str) -> Tables:
    return Tables({"demo": folders.demo() / "tables", "conformance": CONFORMANCE / "lookups"}[name])


Stages = Callable[[], list[Configured]]


def conf_with(directory: Path, layout: str = "1", **mine: str) -> list[Configured]:
    """Our chain with all stages on, and an operator's: name → code. What the science registry knows is written in this layout."""
    conf = directory / "conf.d"
    conf.mkdir()
    for file in folders.shipped("conf.d").glob("*.toml"):
        private = "keep_private = true\n" if file.stem in ("70_deidentify", "80_privatize_org") else ""
        of_60 = f'layout = "{layout}"\n' if file.stem == "60_scireg" else ""
        (conf / file.name).write_text(private + of_60 + file.read_text().replace("enabled = false\n", ""))
    for name, code in mine.items():
        reads, writes = DECLARED[code]
        (directory / f"{name[1:]}.py").write_text(DOCSTRING.format(name=name, reads=reads, writes=writes) + code)
        (conf / f"{name[1:]}.toml").touch()
    return configured(conf, [folders.shipped("stages"), directory])


@pytest.fixture(scope="session")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Configured]]:
    made = {
        "ours": conf_with(tmp_path_factory.mktemp("operator")),
        "writing": conf_with(tmp_path_factory.mktemp("operator"), _48_writing=WRITING),
        "meddling behind": conf_with(tmp_path_factory.mktemp("operator"), _48_writing=WRITING, _89_meddling=MEDDLING),
        "meddling at 52": conf_with(tmp_path_factory.mktemp("operator"), _48_writing=WRITING, _52_meddling=MEDDLING),
        "meddling at 65 and 75": conf_with(
            tmp_path_factory.mktemp("operator"), _48_writing=WRITING, _65_meddling=MEDDLING, _75_meddling=MEDDLING, _77_writing=WRITING
        ),
        "meddling in front": conf_with(tmp_path_factory.mktemp("operator"), _43_meddling=MEDDLING, _89_writing=WRITING),
    }
    return lambda name: made[name]


CHAINS = ["ours", "writing", "meddling behind", "meddling at 52", "meddling at 65 and 75", "meddling in front"]

#: Few addresses, so that most ends are remembered: in all tables, in some, in none, private to the rule of 80, multicast, none at all.
ADDRESSES = [
    *(
        "128.101.2.7",
        "128.101.15.3",
        "139.130.1.5",
        "134.68.3.4",
        "196.0.0.1",
        "2001:468:1::1",
        "2001:388:1::9",
        "188.184.9.234",
        "150.203.1.1",
    ),
    *("224.0.0.5", "ff1e::1", "203.0.113.9", "::ffff:128.101.2.7", "nowhere", "12.81.92.9", "111.22.33.129"),
]


@st.composite
def flows_of_few_ends(draw: st.DrawFn) -> list[bytes]:
    made = []
    for port in range(draw(st.integers(2, 30))):
        meta: dict[str, Any] = {"src_port": port, "flow_type": draw(st.sampled_from(("tstat", "netflow")))}
        for side in ("src", "dst"):
            meta[f"{side}_ip"] = draw(st.sampled_from(ADDRESSES))
            meta[f"{side}_asn"] = draw(st.sampled_from((MISSING, 0, 217, 7575, 3356, -1)))
        for name in draw(
            st.lists(st.sampled_from(("src_location", "dst_organization", "scireg", "src", "dst_list", "src_object")), max_size=2)
        ):
            meta[name] = draw(st.sampled_from((None, "x", 1, [], {"src": {"a": []}}, ["y"])))
        more: dict[str, Any] = draw(
            st.sampled_from(({}, {"tags": ["t"]}, {"tags": "t"}, {"tags": None}, {"PRIVATE": {"src_ip": 1}}, {"PRIVATE": 1}))
        )
        made.append(orjson.dumps(flow(meta=meta, **more)))
    return made


def through(chain: Chain, bodies: list[bytes], batch: int = 7) -> list[bytes]:
    finished = [done for number, each in enumerate(bodies) for done in chain.take(each, "test", str(number))] + chain.drain()
    flows = [done for i in range(0, len(finished), batch) for done in chain.enrich(finished[i : i + batch])]
    return [*map(orjson.dumps, flows), *chain.dead]


@pytest.mark.parametrize("tables", ["demo", "conformance"])
@pytest.mark.parametrize("name", CHAINS)
def test_remembering_changes_nothing(name: str, tables: str, chains: Callable[[str], list[Configured]]) -> None:
    @given(flows_of_few_ends())
    @settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    def check(bodies: list[bytes]) -> None:
        on, off = (Chain(chains(name), lookups(tables), Now(NOW), remember=remember) for remember in (True, False))
        twice = bodies + [each.replace(b'"sensor"', b'"sensor 2"') for each in bodies]
        assert through(on, twice) == through(off, twice)
        assert on.notes == off.notes
        assert on.refused == off.refused
        assert on.steps.runs[0].misses < off.steps.runs[0].misses

    check()


@pytest.mark.parametrize("tables", ["demo", "conformance"])
@pytest.mark.parametrize("name", CHAINS)
def test_remembering_changes_nothing_in_the_conformance_sets(name: str, tables: str, chains: Callable[[str], list[Configured]]) -> None:
    bodies = [line for file in sorted(CONFORMANCE.glob("*.in.ndjson")) for line in file.read_bytes().splitlines()]
    on, off = (Chain(chains(name), lookups(tables), Now(NOW), remember=remember) for remember in (True, False))
    assert through(on, bodies, 50) == through(off, bodies, 50)
    assert on.notes == off.notes


@pytest.mark.parametrize("layout", ["1", "2"])
@pytest.mark.parametrize("position", ["46", "49", "52", "54", "57", "65", "75", "85"])
def test_a_flow_stage_that_does_nothing_changes_nothing_wherever_it_stands(position: str, layout: str, tmp_path: Path) -> None:
    """Behind it ends begin with the flow as it is, and are given the same. The order of tags alone may be another."""
    bodies = [line for file in sorted(CONFORMANCE.glob("0[12]*.in.ndjson")) for line in file.read_bytes().splitlines()]
    bodies += [orjson.dumps(flow(meta={"src_ip": ip, "dst_ip": "nowhere", "src_asn": 7575})) for ip in ADDRESSES]
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    stages = conf_with(tmp_path / "with", layout, _48_writing=WRITING, _83_removing=REMOVING, **{f"_{position}_nothing": NOTHING_DONE})
    with_it = Chain(stages, lookups("conformance"), Now(NOW))
    without = Chain(conf_with(tmp_path / "without", layout, _48_writing=WRITING, _83_removing=REMOVING), lookups("conformance"), Now(NOW))

    def normal(chain: Chain) -> Counter[str]:
        flows = [orjson.loads(each) for each in through(chain, bodies)]
        for each in flows:
            each.get("tags", []).sort()
        return Counter(json.dumps(each, sort_keys=True) for each in flows)

    assert normal(with_it) == normal(without)
    assert with_it.notes == without.notes


PRIVATE_END = orjson.dumps(flow(meta={"src_ip": "139.130.1.5", "src_asn": 7575}))


def test_what_80_removes_is_gone_where_a_dead_letter_enters_there(tmp_path: Path) -> None:
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    refusing = Chain(conf_with(tmp_path / "with", "2", _79_refusing=REFUSING), lookups("conformance"), Now(NOW))
    [letter] = through(refusing, [PRIVATE_END])
    assert orjson.loads(letter)["payload"]["meta"]["src_project_names"]
    chain = Chain(conf_with(tmp_path / "without", "2"), lookups("conformance"), Now(NOW))
    [flow] = chain.enrich(chain.let_in(letter.replace(b"79_refusing", b"80_privatize_org"), "test", "1"))
    [expected] = map(orjson.loads, through(chain, [PRIVATE_END]))
    assert flow == expected
    assert flow["meta"]["src_ip"] == "xx.xx.xx.xx"
    assert "src_project_names" not in flow["meta"]


def test_what_80_removed_is_gone_in_the_dead_letter_of_a_later_stage_too(tmp_path: Path) -> None:
    stages = conf_with(tmp_path, "2", _75_nothing=NOTHING_DONE, _89_refusing=REFUSING)
    [letter] = through(Chain(stages, lookups("conformance"), Now(NOW)), [PRIVATE_END])
    assert orjson.loads(letter)["stage"] == "89_refusing"
    assert "src_project_names" not in orjson.loads(letter)["payload"]["meta"]


def test_what_the_input_says_in_fields_that_end_stages_write_is_discarded(chains: Callable[[str], list[Configured]]) -> None:
    said: dict[str, Any] = {
        "src_organization": "forged",
        "dst_location": {"lat": 1.0},
        "scireg": {"src": {"org_name": "forged"}},
        "src": "forged",
    }
    said |= {
        "src_preferred_location": 1,
        "dst_preferred_org": "forged",
        "src_list": [1],
        "src_country_name": "forged",
        "dst_discipline": "forged",
    }
    for name in ("writing", "meddling at 52"):
        one, other = (Chain(chains(name), lookups("demo"), Now(NOW)) for _ in range(2))
        forged = flow(meta=said, PRIVATE={"src_ip": "forged"})
        assert sorted(map(_sorted, through(one, [orjson.dumps(forged)]))) == sorted(map(_sorted, through(other, [orjson.dumps(flow())])))


def _sorted(given: bytes) -> bytes:
    return orjson.dumps(orjson.loads(given), option=orjson.OPT_SORT_KEYS)


def test_tags_and_notes_are_given_to_every_flow(chains: Callable[[str], list[Configured]]) -> None:
    chain = Chain(chains("writing"), lookups("demo"), Now(NOW))
    bodies = [orjson.dumps(flow(meta={"src_port": port})) for port in range(10)]
    for each in map(orjson.loads, through(chain, bodies, 1)):
        assert each["tags"].count("tagged src") == each["tags"].count("tagged dst") == 1
        assert each["tags"].count("_geoip_lookup_failure - src IP not in CITY db") == 1
    assert chain.notes["noted src"] == chain.notes["noted dst"] == 10
    assert chain.notes["60_scireg: not in the registry"] == 20
    assert chain.steps.runs[0].misses == 2
    assert chain.hit_rate() == 0.9


def test_flows_share_nothing_that_can_change(chains: Callable[[str], list[Configured]]) -> None:
    chain = Chain(chains("writing"), lookups("conformance"), Now(NOW))
    bodies = [orjson.dumps(flow(meta={"src_ip": "128.101.2.7", "dst_ip": "128.101.2.7", "src_port": port})) for port in range(3)]
    for body in bodies:
        chain.take(body, "test", "1")
    flows = chain.enrich(chain.drain())
    seen = [id(value) for each in flows for value in _nested(each)]
    assert len(seen) == len(set(seen))
    assert len(seen) > 30


def _nested(value: Any) -> list[Any]:
    inner = list(value.values()) if isinstance(value, dict) else list(value)
    nested = [each for each in inner if isinstance(each, dict | list)]
    return nested + [deeper for each in nested for deeper in _nested(each)]


# The memory itself


def run_of(process: Callable[[End], None], limit_bytes: int | None) -> EndRun:
    """A run of one stage that writes place, scireg, tags and notes."""
    stages = [EndStage("45_mine", process, frozenset({"place", "scireg", "tags", "notes"}))]
    return EndRun(stages, (), Memory(limit_bytes) if limit_bytes else None, Counter())


def meet(run: EndRun, source: int, destination: int = 0, ip: str = "{}") -> Flow:
    return run({"meta": {"src_ip": ip.format(_address(source)), "dst_ip": ip.format(_address(destination)), "dst_asn": 1}})


def _address(number: int) -> str:
    return f"{number >> 16}.{number >> 8 & 255}.{number & 255}.9"


def place(end: End) -> None:
    """Most ends share what is said of them."""
    end["place"] = f"place {hash(end['ip']) % 10}"


def own_place(end: End) -> None:
    """Each end has a record of its own, of some 3,000 bytes in memory."""
    end["place"] = f"place of {end['ip']}"
    end["scireg"] = {f"{name} of {end['ip']}": f"a text on {end['ip']}" for name in range(15)}


def test_a_scan_does_not_empty_the_memory_of_popular_ends() -> None:
    run = run_of(place, 400_000)
    popular = range(1, 51)
    scanned = range(1_000, 21_000)
    for number, each in enumerate(scanned):
        meet(run, each)
        meet(run, popular[number % len(popular)])
    assert run.misses == len(popular) + len(scanned) + 1


def test_an_end_that_is_not_met_for_long_is_forgotten() -> None:
    run = run_of(place, 400_000)
    meet(run, 1)
    for each in range(1_000, 6_000):
        meet(run, each)
    before = run.misses
    meet(run, 1)
    assert run.misses == before + 1


def test_an_end_met_again_and_again_is_worked_out_once() -> None:
    run = run_of(place, 400_000)
    for _ in range(3):
        for each in range(100):
            meet(run, each)
    assert run.misses == 101  # 0 is a source and a destination.


def test_nothing_is_remembered_without_a_memory() -> None:
    run = run_of(place, None)
    for _ in range(3):
        meet(run, 1)
    assert run.misses == 6


def test_ends_differ_by_side_and_asn() -> None:
    def process(end: End) -> None:
        end["place"] = f"{end['side']} {end['asn']}"

    run = run_of(process, 400_000)
    for asn in (None, 1, 2):
        asns = {} if asn is None else {"src_asn": asn, "dst_asn": asn}
        meta = run({"meta": {"src_ip": "a", "dst_ip": "a", **asns}})["meta"]
        assert (meta["src_place"], meta["dst_place"]) == (f"src {asn}", f"dst {asn}")


LIMIT = 4_000_000


@pytest.mark.parametrize(
    ("process", "ip"),
    [
        pytest.param(place, "{}", id="records that are shared"),
        pytest.param(own_place, "{}", id="records of their own"),
        pytest.param(place, "{}" + "x" * 20_000, id="long texts that are no addresses"),
        pytest.param(place, "{}" + "\U00010348" * 200, id="texts of four bytes a character"),
    ],
)
@pytest.mark.parametrize("popular", [pytest.param(1, id="a scan"), pytest.param(3_000, id="ends that are met again and again")])
@pytest.mark.parametrize("filler", [4_000, 20_000])
def test_the_memory_is_bounded_in_bytes(process: Callable[[End], None], ip: str, popular: int, filler: int) -> None:
    """Ends that stay because they are popular count with all that is kept for them."""
    run = run_of(process, LIMIT)
    gc.collect()
    tracemalloc.start()
    try:
        most = 0
        for number in range(filler):
            meet(run, 100_000 + number, ip=ip)
            meet(run, number % popular, ip=ip)
            if number % 500 == 0:
                most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert most < 2 * LIMIT
    assert most > LIMIT / 8


def test_an_end_that_cannot_be_compared_is_remembered_all_the_same() -> None:
    def process(end: End) -> None:
        end["place"] = Path("no value of JSON")

    run = run_of(process, LIMIT)
    for _ in range(3):
        assert meet(run, 1)["meta"]["src_place"] == Path("no value of JSON")
    assert run.misses == 2
