"""netsage-pipeline dump with a real server: complete, in order, and the same file whatever interrupts it."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from elasticsearch import Elasticsearch

from netsage_pipeline.elastic import dump as dumping
from tests.command import COMMAND, LOOKUPS, Outcome, conf_with, run, run_real, surroundings
from tests.conftest import CONFORMANCE
from tests.services.elastic import Node
from tests.services.rabbitmq import free_port

DOCUMENTS = 200_000
DAY = ("--from", "2026-01-01", "--to", "2026-01-02")

#: Of the real indices: what our output adds, what Logstash's netflow module has not.
KINDS = {"dump-with": True, "dump-without": False}


@pytest.fixture(scope="module")
def filled(elastic: Node) -> Iterator[dict[str, bytes]]:
    """Index → what its dump is: so many documents at 5,000 times, in one of them 10,000, over two shards."""
    server = elastic.client()
    files = {}
    for index, copied in KINDS.items():
        create(elastic, index, number_of_shards=2)
        chosen = random.Random(index)
        lines = []
        for start in range(0, DOCUMENTS, 10_000):
            body: list[dict[str, Any]] = []
            for number in range(start, start + 10_000):
                second = 2_500 if number >= DOCUMENTS - 10_000 else number * 7919 % 5_000
                known_as = f"{chosen.getrandbits(64):016x}"
                source = {"@timestamp": f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.000Z", "n": number}
                lines.append(((source["@timestamp"], known_as), orjson.dumps(source)))
                body += [{"index": {"_id": known_as}}, {**source, "document_id": known_as} if copied else source]
            assert not server.bulk(index=index, operations=body)["errors"]
        server.indices.refresh(index=index)
        lines.sort()
        files[index] = b"".join(line + b"\n" for _, line in lines)
    yield files
    clear(server, "dump-*")
    server.close()


def create(node: Node, index: str, **settings: Any) -> None:
    fields = {"@timestamp": {"type": "date"}, "n": {"type": "long"}, "document_id": {"type": "keyword"}, "place": {"type": "geo_point"}}
    with node.client() as server:
        server.indices.create(
            index=index,
            settings={"number_of_replicas": 0, "refresh_interval": -1, **settings},
            mappings={"dynamic": False, "properties": fields},
        )


def clear(server: Elasticsearch, pattern: str) -> None:
    server.indices.delete(index=list(server.indices.get(index=pattern)))


def contexts(node: Node) -> int:
    """Search contexts that are open; one that is at work when it is closed ends a moment later."""
    with node.client() as server:
        for _ in range(50):
            nodes = server.nodes.stats(metric="indices", index_metric="search")["nodes"]
            found = sum(each["indices"]["search"]["open_contexts"] for each in nodes.values())
            if not found:
                break
            time.sleep(0.1)
    return int(found)


def dump(node: Node, *arguments: str | Path, url: str = "") -> Outcome:
    return run("dump", *DAY, *arguments, NETSAGE_ELASTICSEARCH_URL=url or node.url)


@pytest.mark.parametrize("index", KINDS)
def test_a_dump_is_complete_and_in_order(index: str, filled: dict[str, bytes], elastic: Node, tmp_path: Path) -> None:
    outcome = dump(elastic, "--index", index, "--out", tmp_path / "file")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "file").read_bytes() == filled[index]
    assert re.match(r"dumped +200,000  records in \d+\.\d s, [\d,]+ records/s\n", outcome.err)
    assert ("ties were broken here" in outcome.err) == (not KINDS[index])
    assert contexts(elastic) == 0


def test_standard_output_takes_the_same(filled: dict[str, bytes], elastic: Node) -> None:
    for unbuffered in ("", "1"):
        outcome = run_real("dump", *DAY, "--index", "dump-with", NETSAGE_ELASTICSEARCH_URL=elastic.url, PYTHONUNBUFFERED=unbuffered)
        assert outcome.code == 0, outcome.err
        assert outcome.out == filled["dump-with"]


def test_several_indices_come_in_one_order_and_the_range_begins_at_from_and_ends_before_to(filled: dict[str, bytes], elastic: Node) -> None:
    arguments = ["--index", "dump-with*,dump-without", "--from", "2026-01-01T01:10:00+01:00", "--to", "2026-01-01T00:10:02"]
    outcome = dump(elastic, *arguments)
    assert outcome.code == 0, outcome.err
    wanted = [line for each in filled.values() for line in each.splitlines() if b"T00:10:00.000Z" in line or b"T00:10:01.000Z" in line]
    assert len(wanted) == 160 - 8
    assert sorted(outcome.out.splitlines()) == sorted(wanted)
    assert [flow["@timestamp"] for flow in outcome.flows] == sorted(flow["@timestamp"] for flow in outcome.flows)
    assert "ties were broken here" in outcome.err


@pytest.mark.parametrize("query", ["n:[10 TO 19]", '{"range": {"n": {"gte": 10, "lt": 20}}}'])
def test_a_query_is_lucene_s_or_json(query: str, filled: dict[str, bytes], elastic: Node) -> None:
    assert filled
    outcome = dump(elastic, "--index", "dump-with", "--query", query)
    assert sorted(flow["n"] for flow in outcome.flows) == list(range(10, 20))


def test_another_field_sorts(filled: dict[str, bytes], elastic: Node) -> None:
    assert filled
    outcome = dump(elastic, "--index", "dump-*", "--query", "n:[1 TO 700]", "--sort", "n")
    assert [flow["n"] for flow in outcome.flows] == [n for n in range(1, 701) for _ in KINDS]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(
            ["--from", "2025-01-01", "--to", "2025-02-01"],
            "dump-with: no record from 2025-01-01T00:00:00.000000Z to 2025-02-01T00:00:00.000000Z",
            id="an empty range",
        ),
        pytest.param(
            ["--query", "n:77777777"],
            "dump-with: no record from 2026-01-01T00:00:00.000000Z to 2026-01-02T00:00:00.000000Z that the query finds",
            id="an empty query",
        ),
        pytest.param(
            ["--index", "nix"],
            "nix: index_not_found_exception: no such index [nix] (status 404): --index names another",
            id="a wrong index",
        ),
        pytest.param(["--index", "nix-*"], "nix-*: no such index: --index names another", id="a pattern of no index"),
        pytest.param(["--query", "n:(["], "--query: Failed to parse query [n:([]", id="a query that is broken"),
        pytest.param(
            ["--query", '{"nix": {}}'],
            "--query: [bool] failed to parse field [filter]: unknown query [nix]",
            id="a query of no kind",
        ),
        pytest.param(
            ["--sort", "place"],
            "--sort: can't sort on geo_point or point field without using specific sorting feature, like geo_distance",
            id="a field that has no order",
        ),
        pytest.param(
            ["--sort", "place", "--query", "n:1"],
            "--sort: can't sort on geo_point or point field without using specific sorting feature, like geo_distance",
            id="a field that has no order, and a query that is right",
        ),
        pytest.param(["--sort", "nix"], "dump-with: nix is in none of its indices: --sort names another field", id="no field to sort by"),
        pytest.param(["--time", "n"], "dump-with: n is long: --time names a date", id="a time that is none"),
    ],
)
def test_what_is_wrong_is_a_line(arguments: list[str], line: str, filled: dict[str, bytes], elastic: Node, tmp_path: Path) -> None:
    assert filled
    outcome = dump(elastic, "--index", "dump-with", "--out", tmp_path / "file", *arguments)
    assert (outcome.code, outcome.out, outcome.err) == (1, b"", f"{line}\n")
    assert not list(tmp_path.iterdir())
    assert contexts(elastic) == 0


def test_a_server_that_is_not_there_is_a_line(elastic: Node, tmp_path: Path) -> None:
    outcome = dump(elastic, "--out", tmp_path / "file", url=f"http://127.0.0.1:{free_port(6300)}")
    assert (outcome.code, outcome.err) == (1, "Elasticsearch: Connection refused: is it running where the settings say?\n")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_a_line_and_the_dump_goes_on_when_there_is_room(filled: dict[str, bytes], elastic: Node, tmp_path: Path) -> None:
    command = [str(COMMAND), "dump", *DAY, "--index", "dump-with", "--out", "file"]
    script = 'ulimit -f 2000; exec "$@"'
    environment = surroundings(NETSAGE_ELASTICSEARCH_URL=elastic.url)
    ended = subprocess.run(["bash", "-c", script, "-", *command], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == b"file.part: cannot be written: File too large: make room for it, or name another file with --out\n"
    assert contexts(elastic) == 0
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "file").read_bytes() == filled["dump-with"]


def test_an_output_that_takes_no_more_ends_it(filled: dict[str, bytes], elastic: Node) -> None:
    assert filled
    line = "/dev/full: cannot be written: No space left on device: make room for it, or name another file with --out\n"
    assert dump(elastic, "--index", "dump-with", "--out", "/dev/full").err == line
    script = f"'{COMMAND}' dump {' '.join(DAY)} --index dump-with"
    environment = surroundings(NETSAGE_ELASTICSEARCH_URL=elastic.url)
    for behind, said in ((">/dev/full", line.replace("/dev/full", "standard output").encode()), ("| head -c 10", b"")):
        ended = subprocess.run(["bash", "-c", f"{script} {behind}"], env=environment, capture_output=True, check=False)
        assert ended.stderr == said
    assert contexts(elastic) == 0


def started(node: Node, index: str, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [COMMAND, "dump", *DAY, "--index", index, "--out", out],
        env=surroundings(NETSAGE_ELASTICSEARCH_URL=node.url),
        stderr=subprocess.PIPE,
    )


def reached(out: Path) -> int:
    """Records that another run need not fetch again."""
    try:
        return int(orjson.loads(out.with_name(f"{out.name}.part.json").read_bytes())["whole"]["records"])
    except FileNotFoundError:
        return 0


def wait_until_it_is_on_its_way(process: subprocess.Popen[bytes], out: Path, behind: int) -> None:
    while process.poll() is None and reached(out) <= behind:
        time.sleep(0.005)


@pytest.mark.parametrize("index", KINDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_a_signal_interrupts_is_gone_on_with(
    number: signal.Signals, index: str, filled: dict[str, bytes], elastic: Node, tmp_path: Path
) -> None:
    out = tmp_path / "file"
    for _ in range(2):
        process = started(elastic, index, out)
        wait_until_it_is_on_its_way(process, out, reached(out))
        time.sleep(random.random() / 5)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1].decode()
        assert process.returncode == 130, said
        assert said == f"interrupted: run it again: it goes on behind the {reached(out):,} records that {out}.part holds\n"
        assert contexts(elastic) == 0
    assert reached(out) > 0
    outcome = dump(elastic, "--index", index, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "of them were there already" in outcome.err
    assert out.read_bytes() == filled[index]
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_signal_at_any_moment_leaves_no_context_behind(filled: dict[str, bytes], elastic: Node, tmp_path: Path) -> None:
    for moment in range(12):
        process = started(elastic, "dump-with", tmp_path / f"file-{moment}")
        time.sleep(0.4 + moment * 0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert contexts(elastic) == 0
    assert filled


def test_a_server_that_is_killed_is_a_line_and_the_dump_goes_on_when_it_is_back(
    filled: dict[str, bytes], elastic: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumping, "PATIENCE_S", 1.0)
    out = tmp_path / "file"

    def kill() -> None:
        while not reached(out):
            time.sleep(0.005)
        elastic.kill9()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    outcome = dump(elastic, "--index", "dump-without", "--out", out)
    killer.join(60)
    elastic.start()
    behind = f"run it again: it goes on behind the {reached(out):,} records that {out}.part holds\n"
    assert (outcome.code, outcome.err) == (1, f"Elasticsearch: Connection refused: {behind}")

    process = started(elastic, "dump-without", out)
    wait_until_it_is_on_its_way(process, out, reached(out))
    process.send_signal(signal.SIGSTOP)
    elastic.kill9()
    elastic.start()
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=90)[1].decode()
    behind = f"run it again: it goes on behind the {reached(out):,} records that {out}.part holds\n"
    assert (process.returncode, said) == (
        1,
        f"Elasticsearch: it has lost its point in time, as after a restart or 5 minutes in which nothing was asked: {behind}",
    )

    assert dump(elastic, "--index", "dump-without", "--out", out).code == 0
    assert out.read_bytes() == filled["dump-without"]


def test_our_own_flows_come_out_as_they_went_in_and_can_be_replayed(elastic: Node, tmp_path: Path) -> None:
    text = f'url = "{elastic.url}"\nprefix = "dumped-ns"\n'
    conf = conf_with(tmp_path, {"99_output_rabbitmq": None, "99_output_elasticsearch": text})
    dumps = [CONFORMANCE / f"{name}.in.ndjson" for name in ("01-stages-tstat", "02-stages-netflow", "03-stitch")]
    to = tmp_path / "enriched"
    now = ["--now", "1700000000"]
    assert run("replay", *dumps, *now, "--to", to).code == 0
    outcome = run("replay", *dumps, *now, "--conf", conf)
    assert outcome.code == 0, outcome.err
    with elastic.client() as server:
        server.indices.refresh(index="dumped-ns-*")
    out = tmp_path / "dumped"
    outcome = run("dump", "--from", "2000-01-01", "--to", "2100-01-01", "--index", "dumped-ns-*", "--conf", conf, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "ties were broken here" not in outcome.err
    assert sorted(set(out.read_bytes().splitlines())) == sorted(set(to.read_bytes().splitlines()))
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "99_output_elasticsearch.toml").write_text(text.replace("dumped-ns", "again-ns") + "allow_full_addresses = true\n")
    replayed = run("replay", out, *now, "--conf", tmp_path / "back")
    assert replayed.code == 0, replayed.err
    again = tmp_path / "again"
    with elastic.client() as server:
        server.indices.refresh(index="again-ns-*")
    assert run("dump", "--from", "2000-01-01", "--to", "2100-01-01", "--index", "again-ns-*", "--conf", conf, "--out", again).code == 0
    assert again.read_bytes() == out.read_bytes()
    with elastic.client() as server:
        clear(server, "dumped-ns-*")
        clear(server, "again-ns-*")


NETFLOW: dict[str, Any] = {
    "@version": "1",
    "host": "192.0.2.7",
    "type": "netflow",
    "netflow": {
        "version": 9,
        "ipv4_src_addr": "192.0.2.1",
        "ipv4_dst_addr": "198.51.100.2",
        "l4_src_port": 443,
        "l4_dst_port": 40000,
        "in_bytes": 1500,
        "in_pkts": 3,
        "first_switched": "2026-01-01T00:00:00.999Z",
    },
}


def test_what_logstash_wrote_comes_out_and_a_replay_reads_it(elastic: Node, tmp_path: Path) -> None:
    wanted: list[dict[str, Any]] = []
    with elastic.client() as server:
        for day in (1, 2):
            index = f"netflow-2026.01.{day:02}"
            server.indices.create(index=index, mappings={"properties": {"@timestamp": {"type": "date"}}})
            for number in range(50):
                source = {"@timestamp": f"2026-01-0{day}T00:00:0{number % 10}.000Z", **NETFLOW, "geoip": {"n": number}}
                server.index(index=index, document=source)
                wanted.append(source)
        server.indices.refresh(index="netflow-*")
    out = tmp_path / "file"
    outcome = run(
        *("dump", "--from", "2026-01-01", "--to", "2026-01-03", "--index", "netflow-*", "--out", out), NETSAGE_ELASTICSEARCH_URL=elastic.url
    )
    assert outcome.code == 0, outcome.err
    came = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [each["@timestamp"] for each in came] == sorted(each["@timestamp"] for each in wanted)
    assert sorted(each["geoip"]["n"] for each in came) == sorted(each["geoip"]["n"] for each in wanted)
    assert all(list(each) == list(wanted[0]) for each in came)
    replayed = run("replay", out, "--to", tmp_path / "again", "--dead-letters", tmp_path / "letters", lookups=LOOKUPS)
    assert replayed.code == 0, replayed.err
    with elastic.client() as server:
        clear(server, "netflow-*")


def test_types_of_a_field_that_differ_from_index_to_index_sort_together(elastic: Node) -> None:
    with elastic.client() as server:
        for index, kind in (("mixed-1", "date"), ("mixed-2", "date_nanos")):
            server.indices.create(index=index, mappings={"properties": {"@timestamp": {"type": kind}}})
            for number in range(20):
                server.index(index=index, document={"@timestamp": f"2026-01-01T00:00:{number:02}.000{int(index[-1])}Z", "n": number})
        server.indices.refresh(index="mixed-*")
        outcome = dump(elastic, "--index", "mixed-*")
        clear(server, "mixed-*")
    assert outcome.code == 0, outcome.err
    assert [flow["n"] for flow in outcome.flows] == [n for n in range(20) for _ in range(2)]


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("1e400", "record it holds a number beyond 1.8e308, which would be lost: leave it out with --query 'NOT _id:\"it\"'"),
        ("[" * 995 + "]" * 995, "a record is nested too deeply to be read: leave it out with --query"),
    ],
)
def test_what_cannot_be_kept_as_it_is_is_a_line(field: str, line: str, elastic: Node) -> None:
    create(elastic, "odd")
    with elastic.client() as server:
        body = '{"@timestamp": "2026-01-01T00:00:00Z", "a": %s}'
        headers = {"content-type": "application/json", "accept": "application/json"}
        server.perform_request("PUT", "/odd/_doc/it?refresh=true", headers=headers, body=(body % field).encode())
        server.index(index="odd", document={"@timestamp": "2026-01-01T00:00:00Z"}, refresh=True)
        try:
            outcome = dump(elastic, "--index", "odd")
            assert (outcome.code, outcome.out) == (1, b"")
            assert outcome.err.endswith(f": {line}\n")
            assert outcome.err.count("\n") == 1
            assert len(dump(elastic, "--index", "odd", "--query", 'NOT _id:"it"').flows) == 1
        finally:
            clear(server, "odd")


def test_closed_indices_are_named(elastic: Node) -> None:
    with elastic.client() as server:
        for index in ("shut-1", "shut-2"):
            create(elastic, index)
            server.index(index=index, document={"@timestamp": "2026-01-01T00:00:00Z"}, refresh=True)
        server.indices.close(index="shut-2")
        some, none = (dump(elastic, "--index", index) for index in ("shut-*", "shut-2*"))
        server.indices.open(index="shut-2")
        clear(server, "shut-*")
    assert (some.code, len(some.flows)) == (0, 1)
    assert some.err.endswith("  not in it, because they are closed: shut-2\n")
    assert (none.code, none.err) == (1, "shut-2*: is closed: open it\n")


@pytest.mark.parametrize("index", KINDS)
def test_what_is_killed_is_gone_on_with(index: str, filled: dict[str, bytes], elastic: Node, tmp_path: Path) -> None:
    """Last, since nothing closes its contexts for some minutes."""
    out = tmp_path / "file"
    killed = 0
    for _ in range(4):
        process = started(elastic, index, out)
        wait_until_it_is_on_its_way(process, out, reached(out))
        time.sleep(random.random() / 5)
        process.kill()
        process.communicate(timeout=30)
        killed += process.returncode == -signal.SIGKILL
        if out.exists():
            break
    assert killed
    if not out.exists():
        assert dump(elastic, "--index", index, "--out", out).code == 0
    assert out.read_bytes() == filled[index]
