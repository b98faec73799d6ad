"""Messages to and from a real worker: twice is once, no full address comes out, and other settings lose nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsage_pipeline.documents import document_id
from tests.command import conf_with, stage_file
from tests.flows import flow
from tests.services.rabbitmq import Broker, Proxy, wait_for
from tests.services.running import Pipeline, pipeline


@pytest.fixture
def running(broker: Broker, tmp_path: Path) -> Iterator[Pipeline]:
    with pipeline(broker, tmp_path / "pipeline") as made:
        yield made


def part(port: int, **meta: Any) -> dict[str, Any]:
    """A part that is held, known by its port."""
    now = time.time()
    return flow(start=now - 20, end=now - 10, meta={"src_port": port, **meta})


def whole(port: int, **meta: Any) -> dict[str, Any]:
    """A flow that is not held."""
    return part(port, flow_type="tstat", **meta)


def stitched(flows: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
    """Port → parts and bits, over distinct documents."""
    found: dict[int, tuple[int, int]] = {}
    for each in {document_id(each): each for each in flows}.values():
        parts, bits = found.get(each["meta"]["src_port"], (0, 0))
        found[each["meta"]["src_port"]] = (parts + each["stitched_flows"], bits + each["values"]["num_bits"])
    return found


# Twice is once.


class OneWay(Proxy):
    """A proxy that can keep from the client what the server says (deaf), and from the server what the client says (mute)."""

    deaf = mute = False
    cuts = 0

    def _abort(self) -> None:
        super()._abort()
        self.cuts += 1

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_client = writer.get_extra_info("sockname")[1] == self.port
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                while self.deaf if to_client else self.mute:
                    await asyncio.sleep(0.05)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@pytest.mark.parametrize("message_ids", [False, True])
def test_each_message_published_twice_is_counted_once(running: Pipeline, message_ids: bool) -> None:
    messages = [[part(port) for port in range(10 * number, 10 * number + 10)] for number in range(20)]
    running.start()
    for number, message in enumerate([*messages, *messages]):
        running.put(message, message_id=f"id-{number % 20}" if message_ids else None)
    running.idle(40)
    running.stop()
    running.put(*messages[:5]) if not message_ids else running.put(messages[0], message_id="id-0")
    running.start()
    running.idle(41 if message_ids else 45)
    running.stop()
    running.drain()
    assert stitched(running.flows()) == dict.fromkeys(range(200), (1, 8_000))
    assert running.state.totals["read", "", ""] == 200
    assert running.state.keys == 20


def test_another_message_id_is_another_message_and_no_id_goes_by_the_body(running: Pipeline) -> None:
    message = [part(1)]
    for message_id in ("one", "two", None, None, "one", "two"):
        running.put(message, message_id=message_id)
    spaced = json.dumps(message, indent=1).encode()
    running.put(spaced, spaced)
    running.put([part(2)], message_id="one")  # Its sender says that it is that message.
    running.start()
    running.idle(9)
    running.stop()
    running.drain()
    assert stitched(running.flows()) == {1: (4, 32_000)}


@pytest.mark.parametrize("message_ids", [False, True])
def test_each_message_delivered_twice_is_counted_once(broker: Broker, running: Pipeline, message_ids: bool) -> None:
    for number in range(40):
        running.put([part(port) for port in range(10 * number, 10 * number + 10)], message_id=f"id-{number}" if message_ids else None)
    # Somebody took them all, and died.
    with broker.channel() as channel:
        while channel.basic_get(running.input)[0] is not None:
            pass
    wait_for(lambda: broker.count(running.input) == 40)
    # The worker's connection is lost again and again, and it is killed, with what is in the ledger and is not acknowledged.
    proxy = OneWay(broker.port)
    running.environment["NETSAGE_RABBITMQ_URL"] = proxy.url
    try:
        running.start()
        running.idle(40)
        for number in range(40, 80):
            if number % 5 == 0:
                proxy.mute = True
            running.put([part(port) for port in range(10 * number, 10 * number + 10)], message_id=f"id-{number}" if message_ids else None)
            if number % 5 == 4:
                wanted = number + 1
                running.until(lambda state, wanted=wanted: state.keys == wanted, 30)  # type: ignore[misc]
                if number % 10 == 9:
                    running.process.kill()
                proxy.cut()
                wait_for(lambda: proxy.cuts == (wanted - 40) // 5)  # noqa: B023
                proxy.mute = False
                if number % 10 == 9:
                    running.start()
                running.idle(40 + 2 * (wanted - 40))
        running.stop()
    finally:
        running.environment["NETSAGE_RABBITMQ_URL"] = broker.url
        proxy.close()
    running.drain()
    assert running.state.keys == 80
    assert running.state.totals["repeated", "", ""] == 40
    assert stitched(running.flows()) == dict.fromkeys(range(800), (1, 8_000))


# What goes out.


@pytest.mark.parametrize("together", [1, 100])
def test_flows_go_out_as_the_setting_says_persistent_with_ids_that_a_repeat_has_too(broker: Broker, tmp_path: Path, together: int) -> None:
    conf = conf_with(tmp_path, {})
    output = conf / "99_output_rabbitmq.toml"
    output.write_text(f"{output.read_text()}flows_per_message = {together}\n")
    with pipeline(broker, tmp_path / "pipeline", "--conf", conf) as running:
        # It is killed with all of it published and, because nothing is confirmed, owed.
        proxy = OneWay(broker.port)
        output.write_text(output.read_text().replace("${NETSAGE_RABBITMQ_URL:-amqp://localhost:5672/}", proxy.url))
        running.start()
        running.put([whole(1_000)])
        running.idle(1)
        assert len(broker.take(running.output)) == 1
        running.put([whole(port) for port in range(250)])
        proxy.deaf = True
        wait_for(lambda: broker.count(running.output) == (250 if together == 1 else 3))
        running.process.kill()
        assert len(running.state.outbox) == 250
        first = broker.take(running.output)
        proxy.deaf = False
        running.start()
        running.idle(2)
        running.stop()
        proxy.close()
        second = broker.take(running.output)
    assert [properties.message_id for properties, _ in first] == [properties.message_id for properties, _ in second]
    assert len({properties.message_id for properties, _ in first}) == len(first)
    assert {properties.delivery_mode for properties, _ in [*first, *second]} == {2}
    assert {properties.content_type for properties, _ in [*first, *second]} == {"application/json"}
    bodies = [json.loads(body) for _, body in first]
    if together == 1:
        assert [properties.message_id for properties, _ in first] == [document_id(body) for body in bodies]
        assert len(bodies) == 250
    else:
        assert [len(body) for body in bodies] == [100, 100, 50]
        again = [each for _, body in second for each in json.loads(body)]
        assert [document_id(each) for body in bodies for each in body] == [document_id(each) for each in again]


# No full address.

_CANDIDATE = re.compile(r"[0-9A-Fa-f:.]{3,}|0[xX][0-9A-Fa-f]{8,32}|[0-9A-Fa-f]{32}|\d{8,39}")

SECRETS = [
    "128.101.2.77",
    "134.68.22.91",
    "2001:468:1:2:3:4:5:6077",
    "2002:8065:24d::aa77",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "::ffff:150.1.6.88",
]


def addresses_in(text: str) -> set[str]:
    """Every address that can be read in a text, in whatever notation, plain; mapped ones as IPv4."""
    found = set()
    for match in _CANDIDATE.finditer(text):
        row = match[0]
        for begin in range(len(row)):
            for end in range(begin + 2, min(len(row), begin + 45) + 1):
                try:
                    address = ipaddress.ip_address(row[begin:end])
                except ValueError:
                    continue
                mapped = getattr(address, "ipv4_mapped", None)
                found.add(str(mapped or address))
    return found


def plain(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def found_in(text: str) -> set[str]:
    """Which of the secrets are in a text, also as numbers and as rows of hexadecimal digits."""
    lowered = text.lower()
    wanted = {plain(each): ipaddress.ip_address(plain(each)) for each in SECRETS}
    found = addresses_in(text) & wanted.keys()
    for name, address in wanted.items():
        if address.packed.hex() in lowered or re.search(rf"(?<!\d){int(address)}(?!\d)", text) or address.exploded.lower() in lowered:
            found.add(name)
    return found


def test_the_search_finds_addresses() -> None:
    for address in SECRETS:
        parsed = ipaddress.ip_address(plain(address))
        for notation in (
            address,
            address.upper(),
            parsed.exploded,
            str(int(parsed)),
            parsed.packed.hex(),
            f"[{address}]:80",
            f"x{address}/64",
        ):
            assert plain(address) in found_in(f"some {notation} text"), notation
    assert not found_in("128.101.2.x 2001:468:1:2:x:x:x:x 128.101.2.7 128.101.2.177")


def strange(port: int, source: str, destination: str) -> dict[str, Any]:
    """A flow with its addresses in fields that nobody knows."""
    made = whole(port, src_ip=source, dst_ip=destination)
    made["note"] = f"from {source} to {destination}"
    made["list"] = [source, {"deep": [destination.upper()]}, f"[{source}]:443", f"{destination}:80", f"http://[{source}]/"]
    made["meta"]["exporter"] = source
    made["meta"]["peer"] = {source: destination, "of": ipaddress.ip_address(source).exploded}
    made["values"]["remark"] = f"{destination}/32,{source}"
    made["mapped"] = f"::ffff:{source}" if ":" not in source else f"a{source}"
    made[source] = 1
    return made


def test_behind_stage_70_no_full_address_is_anywhere(broker: Broker, tmp_path: Path) -> None:
    text = "f\"{flow} {flow['meta']['src_ip']}\""
    by_port = "if flow['meta']['src_port'] == {}:\n    raise {}\n"
    stages = stage_file(
        tmp_path / "stages", "12_early", by_port.format(90, "ValueError(flow['meta']['src_ip'])") + "return flow", reads="*"
    )
    stage_file(
        stages, "92_late", by_port.format(91, f"ValueError({text})") + by_port.format(92, f"SystemExit({text})") + "return flow", reads="*"
    )
    body = "if end['side'] == config.label and str(end['asn']) == '93':\n    raise KeyError(end)"
    stage_file(stages, "75_end", body, kind="end")
    stage_file(stages, "76_end", body.replace("93", "94").replace("config.label", "'dst'"), kind="end")
    # It ends the process in which it runs, with what it knows as its last words.
    kills = f"if flow['meta']['src_port'] == 95:\n    raise KeyboardInterrupt({text})\nif flow['meta']['src_port'] == 96:\n"
    stage_file(stages, "93_kills", f"{kills}    raise BaseException({text})\nreturn flow", reads="*")
    conf = conf_with(
        tmp_path,
        {"12_early": "", "75_end": 'label = "src"', "76_end": "", "92_late": "", "93_kills": "", "41_ip_version": "enabled = true"},
    )
    with pipeline(broker, tmp_path / "pipeline", "--conf", conf, "--stages", stages, NETSAGE_LOG_LEVEL="debug") as running:
        pairs = [(source, destination) for source in SECRETS for destination in SECRETS]
        running.put([strange(port, *pair) for port, pair in enumerate(pairs)])
        for port in (90, 91, 92, 95, 96):
            running.put([strange(port, SECRETS[0], SECRETS[2]), strange(port + 100, SECRETS[1], SECRETS[3])])
        for port, asn in ((93, 93), (94, 94)):
            odd = strange(port, SECRETS[2], SECRETS[0])
            odd["meta"].update({"src_asn": asn, "dst_asn": asn})
            running.put([odd])
        running.put(f"no json of {SECRETS[0]}".encode())
        running.start()
        deadline = time.monotonic() + 60
        while running.taken() < 9 or running.state.outbox if running.ledger.exists() else True:
            assert time.monotonic() < deadline, running.said[-5_000:]
            if not running.process.lasts(0.2):
                running.start()
        running.stop()
        flows = running.flows()
        letters = running.letters()
        listed = running.command("dead-letters", "list")
        shown = running.command("ledger", "show")
        said = running.said + listed.err + listed.out.decode() + shown.out.decode() + shown.err
    assert Counter(each["meta"]["src_port"] for each in flows) == Counter([*range(len(pairs)), 190, 191, 192, 195, 196])
    for each in flows:
        assert found_in(json.dumps(each)) == set(), each
    assert found_in(said) == set()
    assert "Traceback" in said  # Of what ended the process.
    late = {letter["payload"]["meta"]["src_port"]: letter for letter in letters if "75" <= letter["stage"] < "99"}
    assert {port: letter["stage"] for port, letter in late.items()} == {91: "92_late", 92: "92_late", 93: "75_end", 94: "76_end"}
    for letter in late.values():
        assert found_in(json.dumps(letter)) == set(), letter
    early = [letter for letter in letters if letter["stage"] < "75" or letter["stage"] == "decode"]
    for letter in letters:
        assert found_in(json.dumps({name: value for name, value in letter.items() if name != "payload"})) == set()
    # Those of stages before 70 hold them, or nothing could be replayed.
    assert any(found_in(json.dumps(letter["payload"])) for letter in early)


# Other settings.


def test_other_settings_after_a_kill_lose_nothing_and_count_nothing_twice(broker: Broker, tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {})
    settings = [
        {"10_preliminaries": "", "40_aggregation": "inactivity_timeout_s = 630", "42_communities": ""},
        {"10_preliminaries": 'private_networks = ["192.0.2.0/24"]', "40_aggregation": "inactivity_timeout_s = 1"},
        {
            "10_preliminaries": "",
            "40_aggregation": "inactivity_timeout_s = 3",
            "50_asn": "enabled = false",
            "41_ip_version": "enabled = true",
        },
        {"10_preliminaries": 'private_networks = ["198.51.100.0/24"]', "40_aggregation": "inactivity_timeout_s = 86400\ntimeout_s = 2"},
        {"10_preliminaries": "", "50_asn": "enabled = true", "55_member_orgs": "enabled = false", "40_aggregation": "timeout_s = 86400"},
    ]
    sources = ["192.0.2.1", "128.101.2.77", "134.68.22.91"]
    destinations = ["198.51.100.2", "139.130.1.9"]
    expected: dict[int, tuple[int, int]] = {}
    dropped = messages = 0
    with pipeline(broker, tmp_path / "pipeline", "--conf", conf) as running:
        for turn, changes in enumerate(settings):
            for name, text in changes.items():
                (conf / f"{name}.toml").write_text(text + "\n")
            running.start()
            for number in range(12):
                flows = []
                for each in range(100):
                    port = each + (1_000 * turn if each >= 50 else 0)  # Half of them begin under these settings.
                    source, destination = sources[each % 3], destinations[each % 2]
                    bits = 8_000 + port + 1_000 * number + 100_000 * turn
                    now = time.time()
                    meta = {"src_port": port, "src_ip": source, "dst_ip": destination}
                    flows.append(flow(start=now - 20, end=now - 10, meta=meta, values={"num_bits": bits}))
                    if (turn == 1 and source == "192.0.2.1") or (turn == 3 and destination == "198.51.100.2"):
                        dropped += 1
                    else:
                        parts, sums = expected.get(port, (0, 0))
                        expected[port] = (parts + 1, sums + bits)
                running.put(flows)
                messages += 1
            wanted = messages
            running.until(lambda state, wanted=wanted: state.keys >= wanted, 60)  # type: ignore[misc]
            if turn in (1, 2):  # Some are finished under these settings.
                running.until(lambda state: state.totals["written", "", ""] > 0, 60)
            running.process.kill()
        running.start()
        running.idle(messages)
        running.stop()
        running.drain()
        flows = running.flows()
        state = running.state
        letters = running.letters()
    assert stitched(flows) == expected
    assert state.totals["dropped", "10_preliminaries", "private address"] == dropped
    assert state.totals["read", "", ""] == 6_000
    assert letters == []
    ids: dict[str, tuple[int, int]] = {}
    for document in {document_id(each): each for each in flows}.values():
        parts, bits = ids.get(document["meta"]["id"], (0, 0))
        ids[document["meta"]["id"]] = (parts + document["stitched_flows"], bits + document["values"]["num_bits"])
    assert sorted(ids.values()) == sorted(expected.values())
    assert {"ip_version" in document["meta"] for document in flows} == {True, False}


def test_without_the_stage_that_holds_flows_a_worker_does_not_lose_them(broker: Broker, tmp_path: Path) -> None:
    conf = conf_with(tmp_path, {})
    with pipeline(broker, tmp_path / "pipeline", "--conf", conf) as running:
        running.put([part(1)])
        running.start()
        running.idle(1)
        running.process.kill()
        (conf / "40_aggregation.toml").write_text("enabled = false\n")
        output = conf / "99_output_rabbitmq.toml"
        output.write_text(f"{output.read_text('utf-8')}\nallow_full_addresses = true\n")
        process = running.start()
        assert not process.lasts(30)
        assert process.code == 2
        assert "holds flows, but no stage of this chain does: enable 40_aggregation" in process.said
        (conf / "40_aggregation.toml").write_text("\n")
        running.drain()
        assert stitched(running.flows()) == {1: (1, 8_000)}
