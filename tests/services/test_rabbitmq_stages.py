"""01 input rabbitmq and 99 output rabbitmq with a real broker."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
import pika
import pytest
from pydantic import ValidationError

from netsage_pipeline.documents import document_id
from netsage_pipeline.flow import Delivery
from tests.conftest import load_stage
from tests.services.rabbitmq import Broker, Proxy, wait_for

source_file = load_stage("01_input_rabbitmq")
sink_file = load_stage("99_output_rabbitmq")


@pytest.fixture
def name() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    stands_between = Proxy(int(broker.url.rsplit(":", 1)[1].strip("/")))
    yield stands_between
    stands_between.close()


@pytest.fixture
def source(broker: Broker, name: str) -> Iterator[Any]:
    made = source_file.source(source_file.Config(url=broker.url, queue=name, dead_letters=f"{name}-letters"))
    yield made
    made.close()


def sink_of(url: str, name: str, **settings: Any) -> Any:
    return sink_file.sink(sink_file.Config(url=url, exchange=f"{name}-x", key=name, **settings))


def flow(number: int) -> dict[str, Any]:
    return {"meta": {"id": f"id-{number}"}, "start": "s", "end": "e", "stitched_flows": 1, "values": {"num_bits": 8, "num_packets": 1}}


def remove(broker: Broker, exchange: str) -> None:
    with broker.channel() as channel:
        channel.exchange_delete(exchange)


def test_a_source_takes_messages_of_its_queue_under_its_name(broker: Broker, source: Any, name: str) -> None:
    assert source.name == name
    wait_for(lambda: source.connected, doing=lambda: source.turn(0.1))
    broker.put(name, [b"1", b"2"])
    got: list[Delivery] = []
    wait_for(lambda: len(got) == 2, doing=lambda: got.extend(source.receive(0.5)))
    assert [each[:2] for each in got] == [(b"1", ""), (b"2", "")]
    assert not source.caught_up
    source.acknowledge(got[-1].receipt)
    wait_for(lambda: source.caught_up, doing=lambda: source.receive(0.1))
    source.close()
    assert broker.count(name) == 0


def test_a_name_may_be_as_long_as_the_broker_takes_it(broker: Broker) -> None:
    """255 bytes; of letters that take two, what one more would make is refused."""
    longest = f"{uuid.uuid4().hex}-{'ü' * 111}"
    source = source_file.source(source_file.Config(url=broker.url, queue=longest, key=longest, dead_letters=longest))
    wait_for(lambda: source.connected, doing=lambda: source.turn(0.1))
    broker.put(longest, [b"1"])
    assert source.receive(20)[0].body == b"1"
    source.close()
    with pytest.raises(ValidationError, match="longer than 255 bytes"):
        source_file.Config(queue=f"{longest}x")


def test_a_source_that_is_closed_gives_back_what_is_not_acknowledged(broker: Broker, source: Any, name: str) -> None:
    wait_for(lambda: source.connected, doing=lambda: source.turn(0.1))
    broker.put(name, [b"1", b"2"])
    assert source.receive(20)
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 2
    wait_for(lambda: broker.count(name) == 2)


def test_turning_takes_nothing(broker: Broker, source: Any, name: str) -> None:
    wait_for(lambda: source.connected, doing=lambda: source.turn(0.1))
    broker.put(name, [b"%d" % number for number in range(50)])
    for _ in range(10):
        source.turn(0.1)
    assert [each.body for each in source.receive(5)] == [b"%d" % number for number in range(50)]


def test_dead_letters_go_to_their_queue_and_are_told_once(broker: Broker, source: Any, name: str) -> None:
    for number in range(300):
        source.bury(number, f"letter-{number}", b'{"number":%d}' % number)
    buried: list[int] = []

    def work() -> None:
        source.turn(0.05)
        buried.extend(source.buried())

    wait_for(lambda: len(buried) == 300, doing=work)
    assert sorted(buried) == list(range(300))
    assert source.buried() == []
    letters = broker.take(f"{name}-letters")
    assert [(properties.message_id, body) for properties, body in letters] == [
        (f"letter-{number}", b'{"number":%d}' % number) for number in range(300)
    ]


def test_dead_letters_are_taken_while_the_broker_is_away(broker: Broker, name: str) -> None:
    source = source_file.source(source_file.Config(url="amqp://127.0.0.1:1/", queue=name, dead_letters=f"{name}-letters"))
    began = time.monotonic()
    source.bury(1, "id", b"{}")
    source.turn(0.1)
    assert source.buried() == []
    source.close()
    assert time.monotonic() - began < 3
    assert broker.url


def test_a_sink_stores_batches(broker: Broker, name: str) -> None:
    sink = sink_of(broker.url, name)
    sink.write(1, [flow(number) for number in range(250)])
    sink.write(2, [])
    stored: list[Any] = []
    wait_for(lambda: len(stored) == 2, doing=lambda: stored.extend(sink.stored(0.5)))
    assert sorted(stored) == [(1, 250, []), (2, 0, [])]
    sink.close()
    messages = [orjson.loads(body) for body in broker.bodies(name)]
    assert [len(message) for message in messages] == [100, 100, 50]
    assert [each for message in messages for each in message] == [flow(number) for number in range(250)]
    remove(broker, f"{name}-x")


def test_single_flows_carry_the_ids_of_their_documents(broker: Broker, name: str) -> None:
    sink = sink_of(broker.url, name, flows_per_message=1)
    sink.write(1, [flow(1), flow(2)])
    wait_for(lambda: bool(sink.stored(0.5)))
    sink.close()
    assert [properties.message_id for properties, _ in broker.take(name)] == [document_id(flow(1)), document_id(flow(2))]
    remove(broker, f"{name}-x")


def test_messages_are_passed_on_whatever_their_ids_are(broker: Broker, source: Any, name: str) -> None:
    """Bytes that are no UTF-8 take four characters each in our words."""
    wait_for(lambda: source.connected, doing=lambda: source.turn(0.1))
    ids: list[Any] = ["an id", b"\xfc" * 255, b"\xfc" * 255, b"\xfd" * 255]
    for known_as in ids:
        broker.put(name, [b"[]"], pika.BasicProperties(message_id=known_as))
    got: list[Delivery] = []
    wait_for(lambda: len(got) == 4, doing=lambda: got.extend(source.receive(0.5)))
    sink = sink_of(broker.url, f"{name}-out")
    sink.pass_on(1, got)
    wait_for(lambda: bool(sink.stored(0.5)))
    sink.close()
    first, second, again, another = [properties.message_id for properties, _ in broker.take(f"{name}-out")]
    assert first == "an id"
    assert second == again != another
    remove(broker, f"{name}-out-x")


def test_nothing_is_stored_that_the_broker_did_not_confirm(broker: Broker, proxy: Proxy, name: str) -> None:
    sink = sink_of(proxy.url, name, flows_per_message=1)
    sink.write(0, [flow(0)])
    wait_for(lambda: bool(sink.stored(0.5)))
    proxy.silent = True
    for batch in range(1, 50):
        sink.write(batch, [flow(batch * 100 + number) for number in range(100)])
        assert sink.stored() == []
    assert sink.stored(0.5) == []
    proxy.silent = False
    proxy.cut()
    stored: list[Any] = []
    wait_for(lambda: len(stored) == 49, doing=lambda: stored.extend(sink.stored(0.5)))
    assert sorted(each.batch for each in stored) == list(range(1, 50))
    sink.close()
    arrived = {orjson.loads(body)["meta"]["id"] for body in broker.bodies(name)}
    assert arrived == {"id-0", *(f"id-{batch * 100 + number}" for batch in range(1, 50) for number in range(100))}
    remove(broker, f"{name}-x")


def test_a_sink_flushes_what_it_can_when_it_is_closed(broker: Broker, name: str) -> None:
    sink = sink_of(broker.url, name, flows_per_message=1)
    sink.write(0, [flow(0)])
    wait_for(lambda: bool(sink.stored(0.5)))
    sink.write(1, [flow(number) for number in range(300)])
    sink.close()
    assert len(broker.bodies(name)) == 301
    remove(broker, f"{name}-x")


def test_a_sink_whose_broker_is_away_waits_and_is_closed_at_once(name: str) -> None:
    sink = sink_of("amqp://127.0.0.1:1/", name)
    sink.write(1, [flow(1)])
    began = time.monotonic()
    assert sink.stored(0.3) == []
    assert 0.2 < time.monotonic() - began < 1.5
    sink.close()
    assert time.monotonic() - began < 4


def test_what_a_sink_writes_a_source_reads(broker: Broker, source: Any, name: str) -> None:
    sink = sink_of(broker.url, name)
    sink.write(1, [flow(number) for number in range(1000)])
    wait_for(lambda: bool(sink.stored(0.5)))
    sink.close()
    got: list[Delivery] = []
    wait_for(lambda: len(got) == 10, doing=lambda: got.extend(source.receive(0.5)))
    assert [each for delivery in got for each in orjson.loads(delivery.body)] == [flow(number) for number in range(1000)]
    assert len({delivery.message_id for delivery in got}) == 10
    remove(broker, f"{name}-x")
