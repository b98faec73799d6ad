"""The Reads and Writes lines of every stage, held against what the stage touches: nothing that they do not name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.flow import Flow, Lookups, Now
from netsage_pipeline.stagefile import StageFile, find
from netsage_pipeline.tables.members import convert
from netsage_pipeline.tables.tables import Tables
from tests.conftest import CONFORMANCE
from tests.flows import MISSING, NOW, flow

TYPE_WORDS = {"text", "texts", "integer", "number", "date", "location", "object", "ip", "ip-masked", "removed"}

#: Objects that every stage goes through to what is in them: to touch them says nothing.
CONTAINERS = {"meta", "values"}

STAGES = find([folders.shipped("stages")])


class Touched:
    """The names of fields that a stage read and wrote, and what it wrote."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.written: defaultdict[str, list[Any]] = defaultdict(list)


GONE: Any = object()


class Recording(dict[str, Any]):
    """An object of a flow, or an end, that notes which fields are read and written, also those of objects in it.

    Taking a field out with pop or del only writes it; that an object in it is gone through is no reading of it.
    """

    def __init__(self, values: dict[str, Any], touched: Touched, path: str = "", *, passed_on: bool = False) -> None:
        super().__init__()
        self._touched, self._path, self._passed_on = touched, path, passed_on
        for name, value in values.items():
            super().__setitem__(name, Recording(value, touched, self._name(name)) if isinstance(value, dict) else value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # Stages ask for the class: a flow is a dict.
        return dict

    def _name(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _read(self, name: str) -> None:
        if self._name(name) not in CONTAINERS or not isinstance(super().get(name), dict):
            self._touched.read.add(self._name(name))

    def _write(self, name: str, value: Any) -> None:
        self._touched.written[self._name(name)].append(value)

    def __getitem__(self, name: str) -> Any:
        self._read(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self._read(str(name))
        return super().__contains__(name)

    def values(self) -> Any:
        for name in self.keys():
            self._read(name)
        return super().values()

    def items(self) -> Any:
        for name in () if self._passed_on else self.keys():
            self._read(name)
        return super().items()

    def __setitem__(self, name: str, value: Any) -> None:
        self._write(name, value)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        self._write(name, GONE)
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        if super().__contains__(name):
            self._write(name, GONE)
        return super().pop(name, *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        if not super().__contains__(name):
            self[name] = default
        return super().__getitem__(name)

    def update(self, *args: Any, **more: Any) -> None:
        for name, value in dict(*args, **more).items():
            self[name] = value


def plain(value: Any) -> Any:
    """Without the recording."""
    if isinstance(value, dict):
        return {name: plain(dict.__getitem__(value, name)) for name in dict.keys(value)}
    return [plain(each) for each in value] if isinstance(value, list) else value


class Recorded:
    """A stage's callable, shown recordings of what it is called with."""

    def __init__(self, process: Any, touched: Touched, *, is_end: bool) -> None:
        self._process, self._touched, self._is_end = process, touched, is_end
        self._parts: dict[bytes, Flow] = {}

    def __call__(self, given: dict[str, Any]) -> Any:
        if hasattr(self._process, "drain"):
            return self._hold(given)
        recording = Recording(given, self._touched)
        after = self._process(recording)
        if self._is_end:
            given.clear()
            given.update(plain(recording))
            return None
        return plain(after)

    def _hold(self, given: Flow) -> Any:
        """Stitching passes on the fields that it does not know: that it goes through them is no reading."""
        self._parts[_who(given)] = plain(given)
        return self._process(Recording(given, self._touched, passed_on=True))

    def flow(self, finished: Any) -> Flow:
        """What stitching makes of a flow, against the part that came first."""
        made: Flow = self._process.flow(finished)
        for path, value in _differences(self._parts[_who(orjson.loads(finished[0]))], made):
            self._touched.written[path].append(value)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)


def _who(part: Flow) -> bytes:
    return orjson.dumps([part.get(name) for name in ("interval", "meta", "values", "start", "end")])


def _differences(before: dict[str, Any], after: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name, GONE), after.get(name, GONE)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{path}{name}.")
        elif old is GONE or new is GONE or old != new:
            yield f"{path}{name}", new


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Tables]:
    """The conformance tables, with the member lists converted, and those of the demo."""
    directory = tmp_path_factory.mktemp("tables")
    for table in (CONFORMANCE / "lookups").iterdir():
        if table.is_file():
            (directory / table.name).write_bytes(table.read_bytes())
    (directory / "members").mkdir()
    for path in sorted((CONFORMANCE / "lookups" / "reference").glob("*.rb")):
        for converted in convert(path):
            (directory / "members" / f"{path.stem}.toml").write_text(converted.text)
    return [Tables(directory), Tables(folders.demo() / "tables")]


#: Settings with which stages do all that they can.
SETTINGS = {
    "10_preliminaries": "short_duration_s = 1\n",
    "15_sensor_specific": """
rename = [{ sensor = "sensor", ifindex = 1, name = "renamed" }]
sampling = [{ sensor = "sensor.example.net", factor = 10 }, { sensor = "renamed", factor = 2.5 }]
[ifindex_filter]
mode = "exclude"
by_sensor = { "sensor.example.net" = [103], "sensor" = [77] }
[subnet_filter]
mode = "exclude"
all = ["198.51.100.0/24"]
""",
    "40_aggregation": "inactivity_timeout_by_sensor_s = { TACC = 1000 }\n",
    "41_leftovers": 'keep = ["meta.kept"]\n',
    "70_deidentify": "keep_private = true\n",
    "80_privatize_org": "keep_private = true\n",
}


#: An operator's stage behind which ports are texts.
PORTS_AS_TEXTS = '''"""93 texts: ports as texts.

Reads   meta.src_port, meta.dst_port
Writes  meta.src_port, meta.dst_port  text
Source  nothing
Drops   nothing
"""
from netsage_pipeline.config import Settings

class Config(Settings):
    pass

def stage(config, lookups):
    def process(flow):
        for name in ("src_port", "dst_port"):
            flow["meta"][name] = str(flow["meta"].get(name))
        return flow

    return process
'''


@pytest.fixture(scope="module")
def configurations(tmp_path_factory: pytest.TempPathFactory) -> list[list[Configured]]:
    """All stages as they are shipped, with all that they can do, and in 2.x's layout with an operator's stage among them."""
    directory = tmp_path_factory.mktemp("operator")
    (directory / "93_texts.py").write_text(PORTS_AS_TEXTS)
    made = []
    for changes in ({}, SETTINGS, {"60_scireg": 'layout = "2"\n'}):
        conf = tmp_path_factory.mktemp("conf.d")
        for file in folders.shipped("conf.d").glob("*.toml"):
            (conf / file.name).write_text(changes.get(file.stem, "") + file.read_text().replace("enabled = false\n", ""))
        if "60_scireg" in changes:
            (conf / "93_texts.toml").touch()
        made.append(configured(conf, [folders.shipped("stages"), directory]))
    return made


Make = Callable[[StageFile, Any, Lookups, Now], Any]


@pytest.fixture(scope="module")
def touched(configurations: list[list[Configured]], tables: list[Tables]) -> dict[str, Touched]:
    """What each stage of ours touches while all flows go through."""
    touched: dict[str, Touched] = defaultdict(Touched)
    make: Make = StageFile.make

    def recorded(file: StageFile, config: Any, lookups: Lookups, now: Now) -> Any:
        return Recorded(make(file, config, lookups, now), touched[file.name], is_end=file.is_end)

    patch = pytest.MonkeyPatch()
    patch.setattr(StageFile, "make", recorded)
    try:
        for stages in configurations:
            for lookups in tables:
                for remember in (True, False):
                    _run(Chain(stages, lookups, Now(NOW), remember=remember), conformance_flows())
                _run_drawn(stages, lookups)
    finally:
        patch.undo()
    return touched


def _run(chain: Chain, bodies: Iterable[bytes]) -> None:
    for number, body in enumerate(bodies):
        chain.enrich(chain.take(body, "test", str(number)))
    flows = chain.enrich(chain.drain())
    assert not [letter for letter in chain.dead if b"raised" in letter], chain.dead
    assert all(type(each) is dict for each in flows)


@cache
def conformance_flows() -> list[bytes]:
    return [line for file in sorted(CONFORMANCE.glob("*.in.ndjson")) for line in file.read_bytes().splitlines()]


def _run_drawn(stages: list[Configured], lookups: Lookups) -> None:
    @given(st.randoms(use_true_random=True))
    @settings(max_examples=20, derandomize=True, deadline=None, database=None)
    def run(chance: Random) -> None:
        flows = [varied_flow(chance) for _ in range(30)]
        _run(Chain(stages, lookups, Now(NOW)), [orjson.dumps(each | {"interval": number}) for number, each in enumerate(flows)])

    run()


#: In all tables, in some, in none, private, multicast, no address; the first ones often.
ADDRESSES = [
    *("128.101.2.7", "128.141.1.1", "203.0.113.1", "139.130.1.5") * 4,
    *("2001:468:1::1", "224.0.0.5", "ff1e::1", "nowhere", "10.1.1.1", "198.51.100.9", "150.203.1.1", "12.81.92.9", None),
]
ADDED: list[dict[str, Any]] = [
    *({}, {"tags": ["t"]}, {"@x": 1}, {"note": "128.101.2.7"}, {"PRIVATE": {"a": 1}}, {"es_doc_id": "x"}, {"@ingest_time": "x"}),
]
TIMES: list[dict[str, Any]] = [
    *[{}] * 6,
    *({"start": str(NOW - 100)}, {"end": int(NOW * 1000)}, {"start": None}, {"end": NOW - 200}, {"end": NOW - 100}),
]
IN_META = ("kept", "unknown", "ip_version", "country_scope", "scireg", "sensor_group", "instance_id")


def varied_flow(chance: Random) -> Flow:
    """Flows that make stages do all that they do, among them broken ones."""
    values = {name: chance.choice((None, MISSING, 10, "10", 99.9)) for name in chance.sample(sorted(flow()["values"]), chance.randrange(2))}
    if chance.random() < 0.03:
        return flow(meta=chance.choice((None, MISSING, 1)), values=chance.choice((None, MISSING, 1)))
    meta: dict[str, Any] = {
        name: chance.choice((None, "x", {"src": {"latitude": "x"}})) for name in chance.sample(IN_META, chance.randrange(3))
    }
    meta["flow_type"] = chance.choice(("tstat", "netflow", None))
    meta["protocol"] = chance.choice(("tcp", "udp", None))
    meta["sensor_id"] = chance.choice(("sensor", "sensor.example.net", "TACC", 7, None, MISSING))
    for side in ("src", "dst"):
        meta[f"{side}_ip"] = chance.choice(ADDRESSES)
        meta[f"{side}_port"] = chance.choice((1, 5201, "80", None))
        meta[f"{side}_asn"] = chance.choice((MISSING, None, 0, 217, "7575", 3356))
        meta[f"{side}_ifindex"] = chance.choice((MISSING, None, 1, 77, "2"))
    return flow(meta=meta, values=values, **chance.choice(TIMES), **chance.choice(ADDED))


def is_named(path: str, names: Iterable[str]) -> bool:
    """Whether a field, or an object that it is in, is among the names; "@*" names all that begin with @."""
    return any(name == path or path.startswith(f"{name}.") or (name.endswith("*") and path.startswith(name[:-1])) for name in names)


def ours(*, io: bool = False) -> list[str]:
    return [name for name, file in STAGES.items() if io or not file.is_io]


@pytest.mark.parametrize("name", ours())
def test_a_stage_reads_only_what_it_names(name: str, touched: dict[str, Touched]) -> None:
    """What it writes it may read back."""
    names = [*STAGES[name].reads, *STAGES[name].writes]
    read = touched[name].read
    assert read
    assert sorted(path for path in read if not is_named(path, names)) == []


@pytest.mark.parametrize("name", ours())
def test_a_stage_writes_only_what_it_names(name: str, touched: dict[str, Touched]) -> None:
    assert sorted(path for path in touched[name].written if not is_named(path, STAGES[name].writes)) == []


@pytest.mark.parametrize("name", ours())
def test_a_stage_reads_all_that_it_names(name: str, touched: dict[str, Touched]) -> None:
    """A name that no flow makes the stage touch is stale."""
    names = [each for each in STAGES[name].reads if each != "*" and each not in CONTAINERS]
    paths = touched[name].read | touched[name].written.keys()
    assert [each for each in names if not any(is_named(path, [each]) for path in paths)] == []


@pytest.mark.parametrize("name", ours())
def test_a_stage_writes_all_that_it_names(name: str, touched: dict[str, Touched]) -> None:
    names = [each for each in STAGES[name].writes if each != "*"]
    assert [each for each in names if not any(is_named(path, [each]) for path in touched[name].written)] == []


@pytest.mark.parametrize("name", ours())
def test_what_a_stage_writes_is_of_the_type_that_it_names(name: str, touched: dict[str, Touched]) -> None:
    for path, values in touched[name].written.items():
        meaning = STAGES[name].writes.get(path)
        if meaning is not None:
            wrong = [value for value in values if not is_of_type(plain(value), meaning)]
            assert wrong == [], path


def is_of_type(value: Any, meaning: str) -> bool:
    if value is GONE:
        return True
    words = meaning.split(",", maxsplit=1)[0].split()
    return any(OF_TYPE[word](value) for word in words if word in OF_TYPE)


OF_TYPE: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "texts": lambda value: isinstance(value, list) and all(each is None or isinstance(each, str) for each in value),
    "integer": lambda value: type(value) is int,
    "number": lambda value: type(value) in (int, float),
    "date": lambda value: isinstance(value, str) and value.endswith("Z") and len(value) == 24,
    "location": lambda value: isinstance(value, dict) and {"lat", "lon"} <= value.keys() and type(value["lat"]) in (int, float),
    "object": lambda value: isinstance(value, dict),
    "ip-masked": lambda value: isinstance(value, str) and (value.endswith("x") or value == "INVALID IP"),
}


@pytest.mark.parametrize("name", ours(io=True))
def test_a_docstring_has_all_sections(name: str) -> None:
    file = STAGES[name]
    assert file.docstring.startswith(f"{name.replace('_', ' ')}: ") or file.docstring.startswith(f"{name[:2]} {name[3:]}: ")
    assert file.docstring.split("\n\n")[0].endswith(".")
    for section in ("Reads", "Writes", "Source", "Drops"):
        assert file.section(section), section


@pytest.mark.parametrize("name", ours(io=True))
def test_every_line_of_writes_has_a_type_word(name: str) -> None:
    for line in STAGES[name].section("Writes"):
        field, _, meaning = line.partition("  ")
        if line != "nothing":
            assert field
            assert set(meaning.replace(",", " ").split()[:1]) <= TYPE_WORDS, line
            assert meaning, line


def test_every_reason_to_drop_is_named(configurations: list[list[Configured]], tables: list[Tables]) -> None:
    dropped = set()
    for stages in configurations:
        chain = Chain(stages, tables[0], Now(NOW))
        for body in [*conformance_flows(), *map(orjson.dumps, [flow(meta={"src_ifindex": 77}), flow()])]:
            chain.take(body, "test", "1")
        dropped |= set(chain.dropped)
    named = {(name, reason.strip()) for name in ours() for reason in " ".join(STAGES[name].section("Drops")).split(",")}
    assert dropped == {(name, reason) for name, reason in named if reason != "nothing"}


def test_a_recording_notes_what_is_touched() -> None:
    touched = Touched()
    recording = Recording({"meta": {"src_ip": "a", "old": 1}, "b": 2}, touched)
    recording["meta"]["src_ip"] = recording["b"]
    recording["meta"].pop("old")
    assert "c" not in recording
    assert (touched.read, dict(touched.written)) == ({"b", "c"}, {"meta.src_ip": [2], "meta.old": [GONE]})
    assert plain(recording) == {"meta": {"src_ip": 2}, "b": 2}
