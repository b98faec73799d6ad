"""Whatever an address is written like and wherever it stands, it is not seen behind stage 70."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsage_pipeline import folders
from netsage_pipeline.addresses import parse, unmapped
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.flow import Flow, Lookups
from netsage_pipeline.replay import Summary
from netsage_pipeline.tables.tables import Nothing
from tests.flows import flow
from tests.invariants import REFUSING, body, chain_of, copy_conf, demo_tables, examples, shipped, through


def packed_addresses() -> st.SearchStrategy[bytes]:
    """Addresses that no table and no rule knows: IPv4, IPv6 of several shapes, and such as carry an IPv4 address."""
    hosts = st.binary(min_size=8, max_size=8).filter(lambda host: host[0] > 15 and host[7] > 15 and host[6] > 15)
    public = st.tuples(st.integers(11, 99), st.integers(0, 255), st.integers(0, 255), st.integers(1, 255)).map(bytes)
    return st.one_of(
        public,
        public.map(lambda ip: bytes(10) + b"\xff\xff" + ip),
        st.tuples(st.sampled_from(["2001:db8::", "2607:f8b0:1::", "2a02:d0c0:0:7::"]), hosts).map(
            lambda t: socket.inet_pton(socket.AF_INET6, t[0])[:8] + t[1]
        ),
        st.integers(16, 2**16 - 1).map(lambda host: socket.inet_pton(socket.AF_INET6, f"2001:db8:0:1::{host:x}")),
        st.tuples(public, hosts).map(lambda t: b"\x20\x02" + t[0] + b"\0\x07" + t[1]),
        st.tuples(public, hosts).map(lambda t: b"\x20\x01\0\0" + t[0] + t[1]),
    )


def notations(packed: bytes) -> list[str]:
    """Ways to write an address."""
    if len(packed) == 4:
        return [socket.inet_ntop(socket.AF_INET, packed)]
    address = ipaddress.IPv6Address(packed)
    tail = ".".join(map(str, packed[12:]))
    plain = [f"{packed[i] << 8 | packed[i + 1]:x}" for i in range(0, 16, 2)]
    return [
        address.compressed,
        address.compressed.upper(),
        address.exploded,
        address.exploded.upper(),
        ":".join(plain),
        ":".join(plain).upper(),
        ":".join([*plain[:6], tail]),
        *([f"::ffff:{tail}", f"::FFFF:{tail}", tail] if address.ipv4_mapped else []),
    ]


AT_AN_END = ["{}", "{}", "{}", "[{}]", "{}%eth0", "{}/32", " {}", "{}\n", "host {}", '"{}"', "src:{}", "{};"]
WITHIN = [
    "{}",
    "{}",
    "from {} to all",
    "[{}]:443",
    "{}.",
    "({}),",
    "ip={}",
    "http://[{}]/",
    "{}/64",
    "{}%eth0",
    "src:{}",
    "x{}",
    "{}x",
    "{}-{}",
    "a.{}",
    "{}:443",
]

Copy = tuple[str, str]  # Where it stands, and the text.


def planted(made: Flow, where: str, text: str) -> None:
    """Puts a text into a field that nobody knows."""
    holders = {"meta": made["meta"], "values": made["values"]}
    holder = holders.get(where.split(" ", maxsplit=1)[0], made)
    kind = where.rpartition(" ")[2]
    note = {"text": text, "nested": [{"a": {"b": [text]}}], "key": {text: 1}, "name": 1}[kind]
    holder[text if kind == "name" else f"note {len(holder)}"] = note


WHERE = [f"{holder} {kind}" for holder in ("flow", "meta", "values") for kind in ("text", "nested", "key", "name")]


@lru_cache(maxsize=100_000)
def _addresses_in(run: str) -> frozenset[bytes]:
    """Each address that any part of a text is."""
    found = {parse(run[i:j]) for i in range(len(run)) for j in range(i + 2, min(len(run), i + 45) + 1)}
    return frozenset(unmapped(packed) for packed in found if packed)


def leaks(text: str, packed: bytes) -> list[str]:
    """The runs of a text in which an address stands, in whatever notation."""
    runs = [run for run in re.findall(r"[0-9A-Fa-f:.]{2,}", text) if ":" in run or "." in run]
    return [run for run in runs if unmapped(packed) in _addresses_in(run)]


class Registry:
    """A science registry and communities whose records hold the very address, in several notations."""

    def get(self, ip: str) -> Any:
        packed = parse(ip)
        texts = notations(packed) if packed else [ip]
        record = {
            "org_name": f"Laboratory at {texts[0]}",
            "addresses": texts,
            "addresses_str": ", ".join(texts),
            "resource": f"host [{texts[-1]}]",
            "projects": [{"project_name": f"on {texts[0]}", "project_abbr": texts[0]}],
            "discipline": f"of {texts[0]}",
            texts[0]: "a key",
            "community": [f"of {texts[0]}"],
        }
        return {"city": {"names": {"en": orjson.dumps(record).decode()}}}


def registry(kind: str, path: Path) -> Any:  # noqa: ARG001
    return Registry() if path.name in ("scireg.mmdb", "communities.mmdb") else Nothing()


Seen = Callable[[Flow, Lookups], dict[str, str]]


@pytest.fixture(scope="session")
def seen_behind_70(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What can be seen of a flow in chains in which it comes out, or a stage behind 70 refuses it, an end's or a flow's."""
    chains = {}
    for name, kind in {"comes out": "", "75_mine": "end", "92_mine": "stage"}.items():
        directory = tmp_path_factory.mktemp("operator")
        conf = directory / "conf.d"
        copy_conf(conf, _42_communities="enabled = true", _41_ip_version="enabled = true")
        if kind:
            (directory / f"{name}.py").write_text(REFUSING.format(kind=kind, condition="True"))
            (conf / f"{name}.toml").touch()
        chains[name] = configured(conf, [folders.shipped("stages"), directory])
    return lambda given, lookups: {name: shown(stages, given, lookups) for name, stages in chains.items()}


def shown(stages: list[Configured], given: Flow, lookups: Lookups) -> str:
    """All that can be seen of a flow behind stage 70: output, dead letters, reasons, the summary."""
    chain = chain_of(stages=stages, lookups=lookups)
    flows = through(chain, [body(given), body([given])])
    assert len(flows) + len(chain.dead) == (2 if given["meta"]["flow_type"] == "tstat" else 1)
    assert not {stage for stage, _ in chain.refused if stage < "70"}
    summary = Summary(read=chain.read, dropped=chain.dropped, refused=chain.refused, notes=chain.notes)
    return "\n".join([json.dumps(flows, ensure_ascii=False), *(letter.decode() for letter in chain.dead), *summary.lines()])


def knows_nothing(kind: str, path: Path) -> Any:  # noqa: ARG001
    return Nothing()


@given(
    ends=st.tuples(packed_addresses(), packed_addresses()),
    ways=st.lists(st.integers(0, 100), min_size=2, max_size=2),
    copies=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 100), st.sampled_from(WITHIN), st.sampled_from(WHERE)), max_size=4),
    tstat=st.booleans(),
)
@examples(150)
def test_no_address_comes_out_behind_70(
    ends: tuple[bytes, bytes],
    ways: list[int],
    copies: list[tuple[int, int, str, str]],
    tstat: bool,
    seen_behind_70: Seen,
) -> None:
    """An address in any notation, and copies of it in any other, in fields that nobody knows."""
    given = _with_ends(ends, ["{}", "{}"], ways, copies, tstat=tstat)
    for name, text in seen_behind_70(given, knows_nothing).items():
        assert [leaks(text, packed) for packed in ends] == [[], []], name


@given(
    ends=st.tuples(packed_addresses(), packed_addresses()),
    ways=st.lists(st.integers(0, 100), min_size=2, max_size=2),
    around=st.tuples(st.sampled_from(AT_AN_END), st.sampled_from(AT_AN_END)),
    copies=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 100), st.sampled_from(WITHIN), st.sampled_from(WHERE)), max_size=3),
)
@examples(150)
def test_no_address_comes_out_that_stands_within_a_text_at_an_end(
    ends: tuple[bytes, bytes],
    ways: list[int],
    around: tuple[str, str],
    copies: list[tuple[int, int, str, str]],
    seen_behind_70: Seen,
) -> None:
    """A zone, brackets, a mask or anything else around it makes it no address, but it is one all the same."""
    given = _with_ends(ends, list(around), ways, copies)
    for name, text in seen_behind_70(given, knows_nothing).items():
        assert [leaks(text, packed) for packed in ends] == [[], []], name


@given(ends=st.tuples(packed_addresses(), packed_addresses()), ways=st.lists(st.integers(0, 100), min_size=2, max_size=2))
@examples(60)
def test_no_address_comes_out_that_a_table_says(ends: tuple[bytes, bytes], ways: list[int], seen_behind_70: Seen) -> None:
    given = _with_ends(ends, ["{}", "{}"], ways, [])
    for name, text in seen_behind_70(given, registry).items():
        assert [leaks(text, packed) for packed in ends] == [[], []], name


def _with_ends(
    ends: tuple[bytes, bytes], around: list[str], ways: list[int], copies: list[tuple[int, int, str, str]], *, tstat: bool = False
) -> Flow:
    """A flow between two addresses with copies of them: of which end, in which notation, in which text, where."""
    written = [text.replace("{}", _chosen(packed, way)) for packed, way, text in zip(ends, ways, around, strict=True)]
    made = flow(meta={"src_ip": written[0], "dst_ip": written[1], "flow_type": "tstat" if tstat else "netflow"})
    for end, way, text, where in copies:
        planted(made, where, text.replace("{}", _chosen(ends[end], way)))
    return made


def _chosen(packed: bytes, way: int) -> str:
    ways = notations(packed)
    return ways[way % len(ways)]


@pytest.mark.parametrize(
    "name", ["meta.ip_version", "meta.id", "stitched_flows", "@timestamp", "@ingest_time", "PRIVATE", "tags", "es_doc_id"]
)
@pytest.mark.parametrize("flow_type", ["netflow", "tstat"])
def test_a_field_that_a_stage_writes_does_not_carry_an_address_from_the_input(name: str, flow_type: str) -> None:
    """Also when that stage is switched off, as 41_ip_version is."""
    given = flow(meta={"src_ip": "198.51.100.77", "flow_type": flow_type})
    holder, _, field = name.rpartition(".")
    (given[holder] if holder else given)[field] = "198.51.100.77"
    assert leaks(shown(shipped(), given, demo_tables()), bytes([198, 51, 100, 77])) == []


@pytest.mark.parametrize("name", ["type", "interval"])
def test_a_field_that_95_removes_does_not_carry_an_address_into_a_dead_letter(name: str, seen_behind_70: Seen) -> None:
    given = flow(meta={"src_ip": "198.51.100.77"}, **{name: "of 198.51.100.77"})
    for text in seen_behind_70(given, demo_tables()).values():
        assert leaks(text, bytes([198, 51, 100, 77])) == []


def test_a_leak_would_be_found() -> None:
    packed = socket.inet_pton(socket.AF_INET6, "2001:db8::a:1")
    found = [leaks(f"x{each}y", packed) for each in notations(packed)]
    assert all(found)
    assert leaks("2001:db8:0:0:x:x:x:x 2001:db8::a:2", packed) == []
