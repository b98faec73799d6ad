"""Bad input and stages that fail, with a real worker: exactly what is bad becomes a dead letter, its neighbours come through."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.documents import document_id
from netsage_pipeline.worker.run import BLAMED, key_of
from tests.command import conf_with, stage_file
from tests.flows import flow
from tests.services.rabbitmq import Broker
from tests.services.running import Pipeline, pipeline

KILL = "import os\nos.kill(os.getpid(), 9)"
EXIT = "import os\nos._exit(1)"

#: So many deaths one poisonous flow may cost: one in a batch, three alone, and two more by chance.
DEATHS = 6


@pytest.fixture
def made(broker: Broker, tmp_path: Path) -> Iterator[Any]:
    """Makes a pipeline with stages of the operator's own, name → body, that ends with the test."""
    open_ones = []

    def make(stages: dict[str, str] | None = None, conf: dict[str, str | None] | None = None) -> Pipeline:
        settings = conf_with(tmp_path, {**dict.fromkeys(stages or {}, ""), **(conf or {})})
        directory = tmp_path / "stages"
        directory.mkdir()
        for name, body in (stages or {}).items():
            stage_file(directory, name, f"{body}\nreturn flow", reads="meta.src_port")
        manager = pipeline(broker, tmp_path / "pipeline", "--conf", settings, "--stages", directory)
        open_ones.append(manager)
        return manager.__enter__()

    yield make
    for each in open_ones:
        each.__exit__(None, None, None)


def on(port: int, what: str) -> str:
    """The body of a stage that does this with the flow of one port."""
    return f"if flow['meta'].get('src_port') == {port}:\n" + "\n".join(f"    {line}" for line in what.splitlines())


def part(port: int, **changes: Any) -> dict[str, Any]:
    """A flow that is not held, known by its port."""
    now = time.time()
    return flow(start=now - 20, end=now - 10, meta={"flow_type": "tstat", "src_port": port}, **changes)


def parts(*ports: int) -> list[dict[str, Any]]:
    return [part(port) for port in ports]


def deaths_until_idle(running: Pipeline, messages: int, seconds: float = 60) -> int:
    """Starts the worker again each time that it dies, as docker does, until all is done; how often it died."""
    deaths = 0
    running.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not running.process.lasts(0.2):
            deaths += 1
            assert deaths < 30, "it dies for ever"
            running.start()
        elif (
            running.ledger.exists() and running.taken() >= messages and not running.state.outbox and not running.broker.count(running.input)
        ):
            return deaths
    raise AssertionError(f"not done within {seconds} s, {deaths} deaths:\n{running.process.said}")


def ports(flows: list[dict[str, Any]]) -> list[int]:
    return sorted(each["meta"]["src_port"] for each in flows)


def blamed(letter: dict[str, Any]) -> int:
    """The port of the flow that was blamed."""
    assert letter["reason"] == BLAMED
    payload = letter["payload"]
    if "base64" in payload:
        payload = json.loads(base64.b64decode(payload["base64"]))
    port: int = payload["meta"]["src_port"]
    return port


@pytest.mark.parametrize(("stage", "what"), [("12_bad", KILL), ("92_bad", EXIT)])
def test_a_flow_that_kills_the_process_is_found_and_its_neighbours_come_through(made: Any, stage: str, what: str) -> None:
    running = made({stage: on(37, what)})
    running.put(parts(*range(100)), parts(100, 101), part(102))
    deaths = deaths_until_idle(running, 3)
    assert 4 <= deaths <= DEATHS
    assert ports(running.flows()) == [port for port in range(103) if port != 37]
    (letter,) = running.letters()
    assert blamed(letter) == 37
    assert letter["stage"] == ("decode" if stage == "12_bad" else "41_leftovers")
    assert deaths_until_idle(running, 3) == 0  # It is over: the next process finds nothing of it.


def test_a_message_of_one_flow_that_kills_the_process_is_found(made: Any) -> None:
    running = made({"12_bad": on(37, KILL)})
    running.put(part(1), part(37), part(2))
    assert 4 <= deaths_until_idle(running, 3) <= DEATHS
    assert ports(running.flows()) == [1, 2]
    assert [blamed(letter) for letter in running.letters()] == [37]


def test_flows_that_kill_the_process_before_and_behind_stitching_and_two_in_one_batch_are_all_found(made: Any) -> None:
    running = made({"12_bad": f"{on(3, KILL)}\n{on(77, KILL)}", "92_bad": f"{on(5, KILL)}\n{on(78, EXIT)}"})
    running.put(parts(*range(100)), parts(100))
    assert 8 <= deaths_until_idle(running, 2, 120) <= 4 * DEATHS
    assert ports(running.flows()) == [port for port in range(101) if port not in (3, 5, 77, 78)]
    assert sorted(blamed(letter) for letter in running.letters()) == [3, 5, 77, 78]


def test_beside_what_is_no_strict_json_a_flow_that_kills_the_process_is_found_too(made: Any) -> None:
    running = made({"12_bad": on(37, KILL)})
    broken = json.dumps(part(50, values={"num_bits": float("nan")}))
    deep = json.dumps(part(51))[:-1] + ', "x": ' + "[" * 300 + "]" * 300 + "}"
    running.put(b"[" + b",".join([json.dumps(part(1)).encode(), broken.encode(), json.dumps(part(37)).encode(), deep.encode()]) + b"]")
    assert 4 <= deaths_until_idle(running, 1) <= DEATHS
    assert ports(running.flows()) == [1]
    reasons = sorted(letter["reason"] for letter in running.letters())
    assert [reasons[0], reasons[2]] == ["NaN or infinity", BLAMED]
    assert reasons[1].startswith("raised TypeError")


def test_a_held_flow_that_kills_the_process_when_it_is_finished_is_found(made: Any) -> None:
    running = made({"92_bad": on(37, KILL)})
    running.environment["NETSAGE_INACTIVITY_TIMEOUT_S"] = "0.5"
    now = time.time()
    running.put([flow(start=now - 20, end=now - 10, meta={"src_port": port}) for port in range(50)])
    deaths = 0
    running.start()
    until = time.monotonic() + 60
    while running.broker.count(running.output) < 1 or running.state.held or running.state.outbox:
        assert time.monotonic() < until, running.process.said
        if not running.process.lasts(0.1):
            deaths += 1
            running.start()
    assert 4 <= deaths <= DEATHS
    assert ports(running.flows()) == [port for port in range(50) if port != 37]
    (letter,) = running.letters()
    assert (blamed(letter), letter["payload"]["stitched_flows"]) == (37, 1)


def test_a_dead_letter_that_kills_the_process_when_it_comes_back_is_a_dead_letter_again(made: Any) -> None:
    running = made({"92_bad": on(37, "raise ValueError")})
    running.put(parts(1, 37))
    assert deaths_until_idle(running, 1) == 0
    running.stop()
    stage_file(running.directory.parent / "stages", "92_bad", f"{on(37, KILL)}\nreturn flow", reads="meta.src_port")
    assert "1 dead letters were put" in running.command("dead-letters", "replay").out.decode()
    assert 4 <= deaths_until_idle(running, 2) <= DEATHS
    running.stop()
    assert ports(running.flows()) == [1]
    stage_file(running.directory.parent / "stages", "92_bad", "return flow")
    assert "1 dead letters were put" in running.command("dead-letters", "replay").out.decode()
    assert deaths_until_idle(running, 3) == 0
    assert ports(running.flows()) == [37]
    assert running.letters() == []


def test_a_flow_that_a_stage_cannot_process_costs_nobody_anything(made: Any) -> None:
    bad = ["raise ValueError('no')", "return 5", "raise SystemExit('128.101.1.77')", "return None", "1 / 0", "raise RecursionError"]
    stages = ["12_bad", "43_bad", "92_bad"]
    causes = dict(enumerate(((stage, what) for stage in stages for what in bad), 10))
    bodies = {name: "\n".join(on(port, what) for port, (stage, what) in causes.items() if stage == name) for name in stages}
    running = made(bodies, {"41_leftovers": None, "99_output_rabbitmq": ALLOWED})
    running.put(*parts(*causes), parts(*(port for port in range(101) if port not in causes)))
    assert deaths_until_idle(running, len(causes) + 1) == 0
    assert ports(running.flows()) == [port for port in range(101) if port not in causes]
    letters = running.letters()
    assert {letter["payload"]["meta"]["src_port"]: letter["stage"] for letter in letters} == {
        port: stage for port, (stage, _) in causes.items()
    }
    assert len(letters) == len(causes)
    for letter in letters:
        assert running.state.totals["refused", letter["stage"], letter["reason"]] >= 1
    assert "128.101.1.77" not in running.said


#: The settings of an output that takes flows of a chain that does not mask everything.
ALLOWED = """url = "${NETSAGE_RABBITMQ_URL}"
exchange = "${NETSAGE_OUTPUT_EXCHANGE}"
key = "${NETSAGE_OUTPUT_KEY}"
allow_full_addresses = true
"""


LETTER = b'{"id":"","reason":"","source":"","position":"p",'


def test_bodies_of_every_kind_become_dead_letters_with_their_reason(made: Any) -> None:
    good = json.dumps(part(1)).encode()
    named: dict[bytes, tuple[str, str]] = {
        b"\x00\xff\xfe no json": ("decode", "not JSON"),
        good[:-5]: ("decode", "not JSON"),
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000: ("decode", "not JSON"),
        b"[" * 100_000 + b"]" * 100_000: ("decode", "not JSON"),
        b'"text"': ("decode", "not an object"),
        b"17": ("decode", "not an object"),
        b"null": ("decode", "not an object"),
        b"[[{}]]": ("decode", "not an object"),
        json.dumps(part(2, values={"num_bits": float("nan")})).encode(): ("decode", "NaN or infinity"),
        json.dumps(part(3, values={"num_bits": float("-inf")})).encode(): ("decode", "NaN or infinity"),
        json.dumps(part(4, note="\ud800")).encode(): ("decode", "lone surrogate in a text"),
        b"{}": ("10_preliminaries", "start: missing"),
        json.dumps(part(5, values={"num_bits": 1 << 70})).encode(): ("10_preliminaries", "values.num_bits: beyond 64 bits"),
        json.dumps(part(6, values={"num_bits": -1})).encode(): ("10_preliminaries", "values.num_bits: negative"),
        json.dumps({**part(7), "meta": {"src_ip": 17}}).encode(): ("10_preliminaries", "meta.src_ip: not a text"),
        json.dumps({**part(8), "meta": "text"}).encode(): ("10_preliminaries", "meta: not an object"),
        LETTER + b'"stage":"50_asn","payload":{"base64":"%"}}': ("decode", "not a dead letter"),
        LETTER + b'"stage":"50_asn","payload":' + b"[" * 300 + b"]" * 300 + b"}": ("decode", "not a dead letter"),
        LETTER + b'"stage":"77_none","payload":{}}': ("77_none", "no such stage in this chain"),
    }
    running = made()
    expected = {}
    for body, reason in named.items():
        together = b"[" + body + b"," + good + b"]"
        running.put(body, together, good)
        alone = "p" if reason[0] == "77_none" else key_of(body, "").hex() + ".0" * (body == b"[[{}]]")
        expected[alone] = reason
        if reason[1] == "not JSON":  # Of an array with something in it that is no JSON at all nothing can be read.
            expected[key_of(together, "").hex()] = reason
        else:
            expected[f"{key_of(together, '').hex()}.0"] = ("10_preliminaries", "start: missing") if body.startswith(LETTER) else reason
    assert deaths_until_idle(running, 3 * len(named)) == 0
    assert {letter["position"]: (letter["stage"], letter["reason"]) for letter in running.letters()} == expected
    readable = sum(reason != "not JSON" for _, reason in named.values())
    assert ports(running.flows()) == [1] * (1 + readable)
    assert running.state.totals["repeated", "", ""] == len(named) - 1


def test_a_message_of_50_mb_is_a_dead_letter_as_it_came_and_comes_in_when_longer_ones_may(made: Any) -> None:
    body = json.dumps([part(port, note="x" * 1_000_000) for port in range(50)]).encode()
    assert len(body) > 50_000_000
    running = made()
    running.put(part(100), body, part(101))
    assert deaths_until_idle(running, 3) == 0
    assert ports(running.flows()) == [100, 101]
    running.stop()
    (shown,) = running.command("dead-letters", "show").flows
    assert (shown["stage"], shown["reason"]) == ("decode", "longer than max_message_bytes")
    assert base64.b64decode(shown["payload"]["base64"]) == body
    (running.directory.parent / "conf.d" / "01_input_rabbitmq.toml").write_text(
        'url = "${NETSAGE_RABBITMQ_URL}"\nqueue = "${NETSAGE_INPUT_QUEUE}"\ndead_letters = "${NETSAGE_DEAD_LETTERS}"\n'
        'state = "${NETSAGE_STATE}"\nmax_message_bytes = 60_000_000\n'
    )
    running.command("dead-letters", "replay")
    assert deaths_until_idle(running, 4) == 0
    assert ports(running.flows()) == list(range(50))
    assert running.letters() == []


def test_random_kills_make_no_dead_letters(made: Any) -> None:
    running = made({"12_slow": "import time\ntime.sleep(0.0005)", "92_slow": "import time\ntime.sleep(0.0005)"})
    for message in range(40):
        running.put(parts(*range(100 * message, 100 * message + 100)))
    chance = random.Random(4)
    for _ in range(8):
        process = running.start()
        assert process.lasts(chance.uniform(0.3, 0.9)), process.said
        process.kill()
    assert deaths_until_idle(running, 40) == 0
    assert running.letters() == []
    assert set(ports(running.flows())) == set(range(4_000))
    assert running.state.totals["read", "", ""] == 4_000


def test_a_poisonous_flow_is_found_although_the_worker_is_also_killed_by_chance(made: Any) -> None:
    running = made({"12_bad": on(37, KILL), "12_slow": "import time\ntime.sleep(0.002)"})
    running.put(parts(*range(100)))
    chance = random.Random(5)
    for _ in range(6):
        process = running.start()
        process.lasts(chance.uniform(0.3, 0.6))
        process.kill()
    assert deaths_until_idle(running, 1) <= DEATHS
    documents = {document_id(flow): flow for flow in running.flows()}  # Whoever is killed may have published before.
    assert ports(list(documents.values())) == [port for port in range(100) if port != 37]
    assert [blamed(letter) for letter in running.letters()] == [37]


def test_a_dead_letter_whose_stage_is_gone_when_its_turn_comes_does_not_pass_unmasked(made: Any) -> None:
    # It is let in while there is such a stage, the worker dies before it is enriched, and the next one has no such stage.
    running = made({"43_gone": on(37, "raise ValueError"), "92_bad": "pass"}, {"41_leftovers": None, "99_output_rabbitmq": ALLOWED})
    running.put(parts(1, 37))
    assert deaths_until_idle(running, 1) == 0
    running.stop()
    assert ports(running.flows()) == [1]
    stages, conf = running.directory.parent / "stages", running.directory.parent / "conf.d"
    stage_file(stages, "43_gone", "return flow")
    stage_file(stages, "92_bad", f"{KILL}\nreturn flow")
    running.command("dead-letters", "replay")
    assert not running.start().lasts(30)
    assert len(running.state.outbox) == 1
    (conf / "43_gone.toml").unlink()
    stage_file(stages, "92_bad", "return flow")
    assert deaths_until_idle(running, 2) == 0
    assert running.flows() == []
    (letter,) = running.letters()
    assert (letter["stage"], letter["reason"]) == ("43_gone", "no such stage in this chain")
