"""Dumps without a server: what a dump writes whatever interrupts it, and sorting more than memory holds."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import orjson
import pytest
from elastic_transport import ConnectionError as NotConnected
from elasticsearch import ApiError, Elasticsearch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsage_pipeline.config import SettingsError
from netsage_pipeline.elastic import dump as dumping
from netsage_pipeline.elastic import spill
from netsage_pipeline.elastic.dump import Counting, NotDumped, Wanted, dump, line_of
from netsage_pipeline.elastic.partfile import PartFile
from netsage_pipeline.elastic.spill import Record, Spill
from netsage_pipeline.folders import shipped
from tests.command import COMMAND, run, surroundings

WANTED = Wanted("flows-*", "2026-01-01T00:00:00.000000Z", "2026-01-02T00:00:00.000000Z", "", "@timestamp", "@timestamp", "document_id")


class Server:
    """Answers like Elasticsearch. What is equal in all else comes in another order from every point in time."""

    def __init__(self, documents: list[dict[str, Any]], *, copies: bool = True, page: int = 5_000) -> None:
        self.documents, self.page = documents, page
        self.copies = copies  #: whether the mapping has the copies of the ids
        self.requests = 0
        self.fails: dict[int, Exception] = {}  #: search → error
        self.loses = 0  #: so many of the last hits of a page are not there
        self.open: dict[str, list[int]] = {}
        self.indices = SimpleNamespace(resolve_index=lambda **_: {"indices": []})

    def options(self, **_: Any) -> Server:
        return self

    def field_caps(self, *, fields: list[str], **_: Any) -> Any:
        known = {"@timestamp": {"date": {"aggregatable": True}}}
        if self.copies:
            known["document_id"] = {"keyword": {"aggregatable": True}}
        return {"indices": ["flows-1"], "fields": {name: known[name] for name in fields if name in known}}

    def open_point_in_time(self, **_: Any) -> Any:
        order = list(range(len(self.documents)))
        random.Random(len(self.open)).shuffle(order)
        self.open[str(len(self.open))] = order
        return {"id": str(len(self.open) - 1)}

    def close_point_in_time(self, *, id: str) -> None:
        self.open[id] = []

    def search(self, *, pit: Any, size: int, query: Any, sort: Any = (), search_after: Any = None, **_: Any) -> Any:
        self.requests += 1
        if self.requests in self.fails:
            raise self.fails[self.requests]
        if "must_not" in query["bool"]:
            return self._answer([], sum("document_id" not in each["_source"] for each in self.documents))
        names = [next(iter(each)) for each in sort]
        found = []
        for place, document in zip(self.open[pit["id"]], self.documents, strict=True):
            values = {**document["_source"], "_index": document["_index"], "_shard_doc": place}
            found.append({**document, "_source": dict(document["_source"]), "sort": [values.get(name) for name in names]})
        found.sort(key=lambda hit: [_last_if_none(value) for value in hit["sort"]])
        if search_after is not None:
            passed = [_last_if_none(value) for value in search_after]
            found = [hit for hit in found if [_last_if_none(value) for value in hit["sort"]] > passed]
        hits = found[: min(size, self.page)]
        return self._answer(hits[: len(hits) - self.loses * (size > 1)], len(self.documents))

    @staticmethod
    def _answer(hits: list[Any], total: int) -> Any:
        return {"timed_out": False, "_shards": {"failed": 0}, "hits": {"total": {"value": total}, "hits": hits}}


def _last_if_none(value: Any) -> tuple[bool, Any]:
    return (value is None, value or 0) if not isinstance(value, str) else (False, value)


def dumped(server: Server, out: PartFile) -> dumping.Summary:
    faked: Any = server
    real: Elasticsearch = faked
    with mock.patch.object(dumping, "PATIENCE_S", -1):
        return dump(real, WANTED, out)


def part(path: Path, **changes: str) -> PartFile:
    return PartFile(path, {**WANTED.options(), **changes})


def document(timestamp: int | None, known_as: str, index: str = "flows-1", *, copy: bool = True, **source: Any) -> dict[str, Any]:
    held = {**({} if timestamp is None else {"@timestamp": timestamp}), **source, **({"document_id": known_as} if copy else {})}
    return {"_id": known_as, "_index": index, "_source": held}


def expected(documents: list[dict[str, Any]]) -> bytes:
    ordered = sorted(documents, key=lambda each: (_last_if_none(each["_source"].get("@timestamp")), each["_id"], each["_index"]))
    return b"".join(
        orjson.dumps({name: value for name, value in each["_source"].items() if name != "document_id"}) + b"\n" for each in ordered
    )


def api_error(status: int, kind: str = "x") -> ApiError:
    meta: Any = SimpleNamespace(status=status)
    body = {"error": {"type": "search_phase_execution_exception", "root_cause": [{"type": kind, "reason": "r"}]}}
    return ApiError("it failed", meta, body)


KEYS = st.tuples(st.one_of(st.none(), st.integers(1, 4)), st.text(max_size=3), st.sampled_from(["flows-1", "flows-2"]))


@settings(max_examples=150, deadline=None)
@given(
    keys=st.lists(KEYS, unique_by=lambda key: key[1:], min_size=1, max_size=40),
    copied=st.sampled_from(["all", "some", "none"]),
    page=st.integers(1, 12),
    failures=st.lists(st.integers(2, 12), max_size=6),
    torn=st.binary(max_size=30),
)
def test_a_dump_that_fails_again_and_again_ends_in_the_same_file(
    keys: list[tuple[int | None, str, str]], copied: str, page: int, failures: list[int], torn: bytes
) -> None:
    documents = [
        document(*key, copy=copied == "all" or (copied == "some" and number % 2 == 0), n=number) for number, key in enumerate(keys)
    ]
    with tempfile.TemporaryDirectory() as directory, mock.patch.object(dumping, "Spill", partial(Spill, limit_bytes=2_000)):
        path = Path(directory) / "file"
        for failure in failures:
            server = Server(documents, copies=copied != "none", page=page)
            server.fails = {failure: NotConnected("lost")}
            try:
                dumped(server, part(path))
                break
            except NotDumped:
                assert not any(server.open.values())
            if path.with_name("file.part").exists():
                with path.with_name("file.part").open("ab") as file:
                    file.write(torn)
        else:
            dumped(Server(documents, copies=copied != "none", page=page), part(path))
        assert path.read_bytes() == expected(documents)
        assert sorted(each.name for each in Path(directory).iterdir()) == ["file"]


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(
        st.builds(Record, st.text(max_size=3), st.sampled_from("ab"), st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")))
    ),
    limit=st.integers(0, 2_000),
    most=st.integers(2, 4),
)
def test_more_than_memory_holds_is_sorted(records: list[Record], limit: int, most: int) -> None:
    with mock.patch.object(spill, "MOST_RUNS", most):
        made = Spill(limit_bytes=limit)
        for _ in range(2):  # It is empty again after each.
            for record in records:
                made.add(record)
            assert list(made.drain()) == sorted(records)


def test_strings_sort_like_keywords_of_the_server() -> None:
    ids = ["\uffff", "\U00010000", "a", "", "é", "Z"]
    assert sorted(ids) == sorted(ids, key=str.encode)


def test_a_short_dump_fails(tmp_path: Path) -> None:
    server = Server([document(n, str(n)) for n in range(1, 500)])
    server.loses = 1
    with pytest.raises(NotDumped, match=r"^flows-\*: holds 499 records, but the dump \d+: remove .*/file.part and run it again$"):
        dumped(server, part(tmp_path / "file"))
    assert not (tmp_path / "file").exists()


def test_records_that_came_between_two_runs_into_what_was_dumped_are_noticed(tmp_path: Path) -> None:
    documents = [document(n, str(n)) for n in range(1, 500)]
    server = Server(documents)
    server.fails = {4: NotConnected("lost")}
    with pytest.raises(NotDumped):
        dumped(server, part(tmp_path / "file"))
    with pytest.raises(NotDumped, match="holds 500 records, but the dump 499: what an earlier run dumped has changed since: remove"):
        dumped(Server([document(0, "late"), *documents]), part(tmp_path / "file"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        pytest.param(NotConnected("Connection refused"), "Elasticsearch: the connection was lost", id="a node that is away"),
        pytest.param(api_error(503, "no_node"), "Elasticsearch: no_node: r (status 503)", id="shards that are away"),
        pytest.param(
            api_error(404, "search_context_missing_exception"),
            "Elasticsearch: it has lost its point in time, as after a restart or 5 minutes in which nothing was asked",
            id="a point in time that is away",
        ),
    ],
)
def test_a_server_that_goes_away_is_a_line(error: Exception, line: str, tmp_path: Path) -> None:
    server = Server([document(n, str(n)) for n in range(1, 500)])
    server.fails = {4: error}
    with pytest.raises(NotDumped) as raised:
        dumped(server, part(tmp_path / "file"))
    assert str(raised.value) == line


def test_a_server_that_is_away_for_a_moment_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    documents = [document(n, str(n)) for n in range(1, 500)]
    server: Any = Server(documents)
    server.fails = {1: api_error(429), 3: NotConnected("lost"), 4: api_error(503), 6: api_error(502)}
    assert dump(server, WANTED, part(tmp_path / "file")).records == 499
    assert (tmp_path / "file").read_bytes() == expected(documents)


def test_a_page_that_is_too_much_for_the_server_gets_small_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when documents of 20 MB come behind thousands of small ones."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(dumping, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    server: Any = Server([document(n, str(n)) for n in range(1, 9_000)])
    answers = server.search

    def limited(*, size: int, search_after: Any = None, **request: Any) -> Any:
        if size > 5 and search_after is not None and search_after[0] > 8_900:
            raise api_error(429, "circuit_breaking_exception")
        return answers(size=size, search_after=search_after, **request)

    server.search = limited
    assert dump(server, WANTED, part(tmp_path / "file")).records == 8_999


def test_a_signal_leaves_no_lock_of_the_client_taken(tmp_path: Path) -> None:
    """Else the request that closes the point in time would wait for ever, with signals held back."""
    server: Any = Server([document(n, str(n)) for n in range(1, 500)])
    answers, closes, lock = server.search, server.close_point_in_time, threading.Lock()

    def interrupted(**request: Any) -> Any:
        lock.acquire()  # As the client does for its list of nodes, in Python code, with nothing that releases it here.
        if server.requests == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        lock.release()
        return answers(**request)

    def close(**known_as: Any) -> None:
        assert lock.acquire(timeout=5)
        closes(**known_as)

    server.search, server.close_point_in_time = interrupted, close
    with pytest.raises(KeyboardInterrupt):
        dump(server, WANTED, part(tmp_path / "file"))
    assert not any(server.open.values())


def test_an_index_whose_field_of_that_name_is_no_copy_of_the_id_is_sorted_here(tmp_path: Path) -> None:
    documents = [document(1, str(n)) for n in range(200)]
    for each in documents:
        each["_source"]["document_id"] = "the same"
    assert dumped(Server(documents), part(tmp_path / "file")).sorted_here
    assert (tmp_path / "file").read_bytes() == b'{"@timestamp":1,"document_id":"the same"}\n' * 200


def test_a_copy_that_is_none_further_on_is_a_line(tmp_path: Path) -> None:
    documents = [document(n, str(n)) for n in range(1, 500)]
    documents[300]["_source"]["document_id"] = "other"
    with pytest.raises(NotDumped, match=r"^flows-1: document_id is not always a copy of the id: --id-field '' does without it$"):
        dumped(Server(documents), part(tmp_path / "file"))


def test_an_index_that_does_not_keep_its_documents_is_a_line(tmp_path: Path) -> None:
    server = Server([document(1, "1")])
    faked: Any = server
    answers = server.search

    def without_source(**request: Any) -> Any:
        answer = answers(**request)
        for hit in answer["hits"]["hits"]:
            del hit["_source"]
        return answer

    faked.search = without_source
    with pytest.raises(NotDumped, match=r"^flows-1: does not keep what was indexed \(_source\), so it cannot be dumped$"):
        dumped(server, part(tmp_path / "file"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_the_count_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    with Counting(200_000, 50_000) as counting:
        time.sleep(0.2)
        counting.show(50_000)
    assert re.search(r"\r 50%\|.*\| 100k/200k \[\d\d:\d\d<\d\d:\d\d, [\d.]+k records/s\]", shown.getvalue())
    assert re.search(r"\r +\r$", shown.getvalue())


def test_elsewhere_a_line_now_and_then_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dumping, "PROGRESS_S", -1)
    with Counting(200_000, 50_000) as counting:
        time.sleep(0.01)
        counting.show(50_000)
    line = r"50% of 200,000 records, about [\d,]+ s left; 100,000 came, [\d,]+ a second\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    dumped(Server([document(1, "a")]), part(tmp_path / "file"))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def interrupted(path: Path) -> None:
    server = Server([document(n, str(n)) for n in range(1, 500)])
    server.fails = {4: NotConnected("lost")}
    with pytest.raises(NotDumped):
        dumped(server, part(path))


def refusal(out: PartFile) -> str:
    with pytest.raises(SettingsError) as refused:
        dumped(Server([document(n, str(n)) for n in range(1, 500)]), out)
    return str(refused.value)


def test_what_is_part_of_another_dump_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "file"
    interrupted(path)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    line = f"{path}.part: is part of a dump with another --to and --query: give the same to go on with it, or remove it"
    assert refusal(part(path, **{"--query": "x", "--to": "y"})) == line
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("state", [None, b"", b"{", b"[]", b'{"of": {}, "whole": {"bites": 1}}'])
def test_a_part_of_which_nothing_is_known_is_not_touched(state: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"somebody's")
    if state is not None:
        (tmp_path / "file.part.json").write_bytes(state)
    assert "is not known to be part of a dump (file.part.json is missing or damaged): remove it" in refusal(part(tmp_path / "file"))
    assert (tmp_path / "file.part").read_bytes() == b"somebody's"


def test_a_part_that_has_become_shorter_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "file")
    os.truncate(tmp_path / "file.part", 10)
    assert "is shorter than it was: remove it, and the dump begins anew" in refusal(part(tmp_path / "file"))


def test_two_dumps_do_not_write_the_same_file(tmp_path: Path) -> None:
    with part(tmp_path / "file"):
        assert "another dump is writing it" in refusal(part(tmp_path / "file"))


def test_a_file_that_is_there_is_replaced_only_when_told_to_and_the_dump_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    line = f"{path}: is there already: name another file with --out, or replace it with --overwrite"
    assert refusal(part(path)) == line
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    with pytest.raises(NotDumped):
        dumped(Server([]), PartFile(path, WANTED.options(), overwrite=True))
    assert path.read_bytes() == b"before"
    dumped(Server([document(1, "a")]), PartFile(path, WANTED.options(), overwrite=True))
    assert path.read_bytes() == b'{"@timestamp":1}\n'
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_no_record_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotDumped, match=r"^flows-\*: no record from 2026-01-01T00:00:00.000000Z to 2026-01-02T00:00:00.000000Z$"):
        dumped(Server([]), part(tmp_path / "file"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "source",
    [
        {"big": 2**70, "low": -(2**70)},
        {"half": "\ud800"},
        {"break": "a\nb\r\u2028", "tab": "\t"},
        {"float": 1.0, "small": 1e-300, "exact": 0.1},
        {"nested": {"a": [1, None, True, {}, []]}},
        {"words": "Infinity", "none": None, "big": 2**70},
    ],
)
def test_whatever_an_index_holds_is_a_line_of_json(source: dict[str, Any]) -> None:
    line = line_of(source)
    assert b"\n" not in line
    assert json.loads(line) == source
    assert list(json.loads(line)) == list(source)


@pytest.mark.parametrize("source", [{"a": [1, {"b": 1e400}]}, {"a": -1e400, "big": 2**70}])
def test_a_number_that_would_be_lost_is_refused(source: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^holds a number beyond 1\.8e308, which would be lost$"):
        line_of(source)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--from", "x"], "--from: 'x' is no time: write 2026-11-20 or 2026-11-20T12:00:00Z"),
        (["--to", "2025"], "--to: '2025' is no time: write 2026-11-20 or 2026-11-20T12:00:00Z"),
        (["--to", "2026-01-01T01:00:00+01:00"], "--to: 2026-01-01T01:00:00+01:00 is not after --from, 2026-01-01"),
        (["--index", ""], "--index: is empty: is a variable empty?"),
        (["--sort", " "], "--sort: is empty: is a variable empty?"),
        (["--query", '{"a": '], "--query: begins like JSON, but is none: Expecting value: line 1 column 6 (char 5)"),
        (["--query", '{"a": NaN}'], "--query: begins like JSON, but is none: NaN is no value"),
        (["--query", '{"a": ' * 300 + "1" + "}" * 300], "--query: is JSON that cannot be sent: nested too deeply: write it in another way"),
        (
            ["--query", '{"a": ' * 9_000 + "1" + "}" * 9_000],
            "--query: is JSON that cannot be sent: nested too deeply: write it in another way",
        ),
        (["--query", '{"a": 1e400}'], "--query: is JSON that cannot be sent: NaN or infinity: write it in another way"),
        (["--index", "a\udcff", "--query", "\udcff"], "--index: is not UTF-8: write it in UTF-8\n--query: is not UTF-8: write it in UTF-8"),
        (["--out", "/"], "/: is a directory: name a file in it with --out"),
        (["--conf", "/nix"], f"/nix: no such directory of settings; ours are in {shipped('conf.d')}"),
    ],
)
def test_wrong_options_are_a_line(options: list[str], line: str) -> None:
    outcome = run("dump", "--from", "2026-01-01", "--to", "2026-01-02", *options)
    assert (outcome.code, outcome.out, outcome.err) == (2, b"", f"{line}\n")


def test_a_chain_that_writes_elsewhere_names_no_cluster() -> None:
    outcome = run("dump", "--from", "2026-01-01", "--to", "2026-01-02", "--conf", "conf.d")
    assert outcome.code == 2
    assert outcome.err == (
        "conf.d/99_output_rabbitmq.toml: writes to no Elasticsearch: --conf names a chain whose output is 99_output_elasticsearch\n"
    )


@pytest.mark.parametrize(("name", "why"), [("nix/file", "No such file or directory"), ("x" * 300, "File name too long")])
def test_a_file_that_cannot_be_written_is_a_line_and_no_server_is_asked(name: str, why: str, tmp_path: Path) -> None:
    outcome = run("dump", "--from", "2026-01-01", "--to", "2026-01-02", "--out", tmp_path / name)
    assert outcome.code == 1
    assert outcome.err == f"{tmp_path}/{name}.part: cannot be written: {why}: make room for it, or name another file with --out\n"


def test_standard_output_that_is_closed_is_a_line() -> None:
    command = [str(COMMAND), "dump", "--from", "2026-01-01", "--to", "2026-01-02"]
    ended = subprocess.run(["sh", "-c", '"$@" >&-', "-", *command], env=surroundings(), stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 1
    assert ended.stderr == b"standard output: cannot be written: it is closed: make room for it, or name another file with --out\n"
