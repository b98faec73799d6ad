"""netsage-pipeline publish with a real broker and a real worker."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from netsage_pipeline import progress
from netsage_pipeline.rabbitmq.amqp import Publisher
from netsage_pipeline.rabbitmq.brokers import Broker as BrokerSettings
from netsage_pipeline.rabbitmq.brokers import servers
from netsage_pipeline.rabbitmq.publish import parcels, publish
from netsage_pipeline.reading.read import Message, find
from tests.command import COMMAND, conf_with, written
from tests.flows import flow
from tests.services.conftest import Collect
from tests.services.netflow import Sent, ipfix
from tests.services.rabbitmq import Broker, wait_for
from tests.services.running import Pipeline, pipeline


@pytest.fixture
def running(broker: Broker, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(broker, tmp_path / "pipeline") as made:
        yield made


def part(port: int, **changes: Any) -> dict[str, Any]:
    """A flow that is not held, known by its port."""
    now = time.time()
    return flow(start=now - 20, end=now - 10, meta={"flow_type": "tstat", "src_port": port}, **changes)


def ports(flows: list[dict[str, Any]]) -> list[int]:
    return sorted(each["meta"]["src_port"] for each in flows)


def test_flows_go_out_by_the_hundred_persistent_and_with_ids(running: Pipeline, tmp_path: Path) -> None:
    flows = [part(port) for port in range(250)]
    outcome = running.command("publish", written(tmp_path / "dump.json", *flows))
    assert outcome.code == 0
    assert re.match(r"published +250  flows of 1 file in 3 messages in \d+\.\d s, [\d,]+ flows/s\n", outcome.err)
    taken = running.broker.take(running.input)
    assert [len(json.loads(body)) for _, body in taken] == [100, 100, 50]
    assert [each for _, body in taken for each in json.loads(body)] == flows
    assert {properties.delivery_mode for properties, _ in taken} == {2}
    assert len({properties.message_id for properties, _ in taken}) == 3
    assert all(str(properties.message_id).startswith("publish/") for properties, _ in taken)


def test_a_file_that_is_published_again_under_whatever_name_and_compressed_is_counted_once(running: Pipeline, tmp_path: Path) -> None:
    file = written(tmp_path / "dump.json", *(part(port) for port in range(250)))
    other = shutil.copy(file, tmp_path / "other.json")
    zipped = tmp_path / "zipped.json.gz"
    zipped.write_bytes(gzip.compress(file.read_bytes()))
    running.start()
    for paths in ([file], [file], [other, zipped]):
        assert running.command("publish", *paths).code == 0
    running.idle(12)
    assert ports(running.flows()) == list(range(250))
    assert running.state.keys == 3
    assert running.state.totals["repeated", "", ""] == 9


def test_equal_lines_of_a_file_are_all_counted(running: Pipeline, tmp_path: Path) -> None:
    same = part(7)
    file = written(tmp_path / "dump.json", *[same] * 230, b"no json", b"no json", *[same] * 10)
    running.start()
    assert running.command("publish", file).code == 0
    running.idle(6)
    assert ports(running.flows()) == [7] * 240
    assert running.state.totals["read", "", ""] == 240
    assert [letter["reason"] for letter in running.letters()] == ["not JSON"] * 2


def test_lines_of_every_kind_are_published_and_cost_no_neighbour(running: Pipeline, tmp_path: Path) -> None:
    letter = {"id": "1" * 32, "stage": "50_asn", "reason": "r", "source": "s", "position": "p", "payload": part(6)}
    deep = json.dumps(part(5))[:-1].encode() + b', "x": ' + b"[" * 300 + b"]" * 300 + b"}"
    lines = [
        part(1),
        b"\xff\xfe",
        part(2),
        [part(port) for port in range(1_000, 1_150)],
        b"[" + json.dumps(part(3)).encode() + b', {"start": NaN}, 7]',
        [part(4), deep.decode()],
        b"[" + deep + b"," + json.dumps(part(8)).encode() + b"]",
        letter,
        b"17",
        b"{",
        part(9),
    ]
    running.start()
    outcome = running.command("publish", written(tmp_path / "dump.json", *lines))
    assert outcome.code == 0, outcome.err
    running.idle(9)
    assert ports(running.flows()) == [1, 2, 3, 4, 6, 8, 9, *range(1_000, 1_150)]
    reasons = Counter(letter["reason"].partition(" (")[0] for letter in running.letters())
    assert reasons == {"not JSON": 2, "NaN or infinity": 1, "not an object": 3, "raised TypeError": 1}


def test_the_ids_of_a_file_s_messages_depend_on_what_stands_before_them() -> None:
    def ids(*bodies: bytes) -> list[str]:
        return [each.message_id for each in parcels(Message(body, "file", "1") for body in bodies)]

    assert ids(b"no json", b"no json") == ids(b"no json", b"no json")
    assert len({*ids(b"1", b"1"), *ids(b"2", b"1")}) == 4
    assert ids(b'{"a":1}') != ids(b'{"a":2}')


def test_an_nfcapd_file_is_published_with_its_sensor_and_counted_once(running: Pipeline, collect: Collect, tmp_path: Path) -> None:
    began = int((time.time() - 600) * 1000)
    sent = [Sent(src_port=1_000 + port, octets=1_000 + port, start_ms=began, end_ms=began + 1_000) for port in range(150)]
    file = tmp_path / "border-1" / "2026" / "nfcapd.202611201200"
    file.parent.mkdir(parents=True)
    shutil.move(collect(tmp_path / "collected", ipfix(sent)), file)
    running.start()
    for _ in range(2):
        outcome = running.command("publish", tmp_path / "border-1")
        assert outcome.code == 0
        assert "150  flows of 1 file in 2 messages" in outcome.err
    running.idle(4)
    running.stop()
    running.drain()
    flows = running.flows()
    assert ports(flows) == [1_000 + port for port in range(150)]
    assert sum(each["values"]["num_bits"] for each in flows) == sum(8 * each.octets for each in sent)
    assert {each["meta"]["sensor_id"] for each in flows} == {"border-1"}
    outcome = running.command("publish", file, "--sensor", "other", "--min-bytes", "1100")
    assert "50  flows of 1 file" in outcome.err
    assert "left out                100  rows of nfdump below the minimum of bytes" in outcome.err
    (body,) = running.broker.bodies(running.input)
    assert {(each["meta"]["sensor_id"], each["values"]["num_bits"] >= 8_800) for each in json.loads(body)} == {("other", True)}


@pytest.mark.parametrize("rate", [1_000, 30_000])
def test_a_rate_holds(running: Pipeline, tmp_path: Path, rate: int) -> None:
    file = written(tmp_path / "dump.json", *[part(1)] * (rate * 3))
    outcome = running.command("publish", file, "--rate", str(rate))
    found = re.search(r"in ([\d.]+) s", outcome.err)
    assert found is not None
    assert 3 * 0.8 <= float(found[1]) <= 3 * 1.2


def test_a_rate_holds_also_when_the_broker_was_away(broker: Broker, running: Pipeline, tmp_path: Path) -> None:
    settings = BrokerSettings(url=broker.url)
    link = Publisher(servers(settings), "publish", "", running.input)
    file = written(tmp_path / "dump.json", *[part(1)] * 2_000)
    wait_for(lambda: link.connected, doing=lambda: link.turn(0.1))
    turn, published = link.turn, link.publish
    times: list[float] = []

    def stands_still_once(seconds: float = 0.0) -> None:
        if len(times) == 5:
            times.append(0.0)
            time.sleep(1.5)
        turn(seconds)

    def notes(*arguments: Any) -> None:
        times.append(time.monotonic())
        published(*arguments)

    link.turn, link.publish = stands_still_once, notes  # type: ignore[assignment, method-assign]
    began = time.monotonic()
    summary = publish(find([str(file)], print), lambda _: None, link, running.input, 1_000, print)
    link.close()
    assert summary.flows == 2_000
    # 2 s of flows and 1.5 s of standing still, of which half a second is made up for.
    assert 2.8 <= time.monotonic() - began <= 4.5


def test_what_cannot_be_read_is_told_and_the_rest_is_published(running: Pipeline, tmp_path: Path) -> None:
    file = written(tmp_path / "dump.json", part(1))
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(json.dumps(part(2)).encode() + b"\n" + bytes(100_000))[:-50])
    outcome = running.command("publish", file, tmp_path / "missing.json", cut)
    assert outcome.code == 0
    told = outcome.err.splitlines()
    assert f"{tmp_path}/missing.json: no such file or directory" in told
    assert any(line.startswith(f"{cut}: is truncated or damaged") for line in told)
    assert any(line.startswith("not read  ") and str(cut) in line for line in told)
    assert 1 in ports([each for body in running.broker.bodies(running.input) for each in json.loads(body) if isinstance(each, dict)])


def test_exit_codes_are_those_of_replay(running: Pipeline, tmp_path: Path) -> None:
    missing = running.command("publish", tmp_path / "missing.json")
    assert (missing.code, missing.err.splitlines()) == (
        1,
        [f"{tmp_path}/missing.json: no such file or directory", "nothing could be read"],
    )
    (tmp_path / "empty.json").write_bytes(b"\n")
    empty = running.command("publish", tmp_path / "empty.json")
    assert (empty.code, empty.err.splitlines()[-1]) == (1, "nothing could be read")
    running.environment["NETSAGE_RABBITMQ_URL"] = "http://localhost/"
    wrong = running.command("publish", tmp_path / "empty.json")
    assert wrong.code == 2
    assert [line.partition(".toml: url: ")[0].rpartition("/")[2] for line in wrong.err.splitlines()] == [
        "01_input_rabbitmq",
        "99_output_rabbitmq",
    ]


def test_what_is_wrong_with_other_stages_does_not_matter(running: Pipeline, tmp_path: Path) -> None:
    running.arguments = ["--conf", str(conf_with(tmp_path, {"43_mine": "", "50_asn": "unknown = 1"}))]
    outcome = running.command("publish", written(tmp_path / "dump.json", part(1)))
    assert (outcome.code, running.broker.count(running.input)) == (0, 1)
    assert running.command("dead-letters", "list").code == 0
    (tmp_path / "conf.d" / "01_input_rabbitmq.toml").write_text("queue = 7\n")
    outcome = running.command("publish", tmp_path / "dump.json")
    assert outcome.code == 2
    assert "01_input_rabbitmq.toml: queue: 7 is not a text" in outcome.err


def test_a_broker_that_is_away_is_waited_for_and_told(broker: Broker, running: Pipeline, tmp_path: Path) -> None:
    file = written(tmp_path / "dump.json", *(part(port) for port in range(250)))
    broker.stop()
    try:
        process = subprocess.Popen([COMMAND, "publish", file], env=running.surroundings, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        assert (line["event"], line["link"]) == ("waits for RabbitMQ", "publish")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    finally:
        broker.start()
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0
    assert '"goes on with RabbitMQ"' in said
    assert "250  flows of 1 file in 3 messages" in said
    assert broker.count(running.input) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("away", [False, True])
def test_an_interruption_ends_it_with_a_line(running: Pipeline, tmp_path: Path, number: signal.Signals, away: bool) -> None:
    file = written(tmp_path / "dump.json", *[part(1)] * 5_000)
    environment = {**running.surroundings, **({"NETSAGE_RABBITMQ_URL": "amqp://127.0.0.1:1/"} if away else {})}
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen([COMMAND, "publish", file, "--rate", "100"], env=environment, stderr=said)
        wait_for(lambda: running.broker.count(running.input) > 1 if not away else "waits for" in (tmp_path / "said").read_text())
        process.send_signal(number)
        assert process.wait(20) == 130
        said.seek(0)
        lines = said.read().splitlines()
    assert lines[-1] == "interrupted: publish it again: what was published already is known by its ids and not counted twice"
    assert "Traceback" not in "".join(lines)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    [mask] = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_an_interruption_while_a_file_is_read_ends_it_with_a_line(running: Pipeline, tmp_path: Path) -> None:
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen([COMMAND, "publish", "-"], env=running.surroundings, stdin=subprocess.PIPE, stderr=said)
        assert process.stdin is not None
        process.stdin.write(orjson.dumps(part(1)) + b"\n")
        process.stdin.flush()
        wait_for(lambda: catches(process.pid, signal.SIGTERM), 30)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        process.stdin.close()
        said.seek(0)
        assert said.read().startswith("interrupted: ")


def test_how_far_it_is_is_told_now_and_then(
    broker: Broker, running: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PROGRESS_S", 0.3)
    file = written(tmp_path / "dump.json", *[part(1)] * 2_000)
    link = Publisher(servers(BrokerSettings(url=broker.url)), "publish", "", running.input)
    publish(find([str(file)], print), lambda _: None, link, running.input, 1_500, print)
    link.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert re.fullmatch(r"(\d+% of the bytes, about [\d,]+ s left; )?[\d,]+ flows read, [\d,]+ a second, now .*/dump.json", lines[0])
