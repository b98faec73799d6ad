"""Links to a real RabbitMQ: batches, confirmations, and everything that goes wrong between two machines."""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pika
import pytest
import structlog
from pydantic import SecretStr

import netsage_pipeline.rabbitmq.link
from netsage_pipeline.flow import Delivery
from netsage_pipeline.rabbitmq import amqp, brokers
from netsage_pipeline.rabbitmq.amqp import Consumer, Publisher
from netsage_pipeline.rabbitmq.brokers import servers
from netsage_pipeline.rabbitmq.link import Link, Setup
from tests.certificates import certificates
from tests.services.rabbitmq import Broker, Proxy, wait_for

#: Makes links and closes them at the end of the test.
Links = Callable[..., Any]


@pytest.fixture
def queue() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def said() -> Iterator[list[Any]]:
    """What was logged."""
    with structlog.testing.capture_logs() as logged:
        yield logged


@pytest.fixture
def link() -> Iterator[Links]:
    made: list[Link] = []

    def make(kind: type[Link], url: str, *arguments: str, **settings: Any) -> Link:
        made.append(kind(servers(brokers.Broker(url=SecretStr(url), **settings)), "test", *arguments))
        return made[-1]

    yield make
    for each in made:
        each.close(1)


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    port = pika.URLParameters(broker.url).port
    stands_between = Proxy(port)
    yield stands_between
    stands_between.close()


def ready(link: Link, seconds: float = 60) -> None:
    wait_for(lambda: link.connected, seconds, link.turn)


def acknowledge(consumer: Consumer, deliveries: list[Delivery]) -> None:
    if deliveries:
        consumer.acknowledge(deliveries[-1].receipt)


def received(consumer: Consumer, number: int, seconds: float = 60) -> list[Delivery]:
    """So many messages or more, acknowledged."""
    got: list[Delivery] = []
    until = time.monotonic() + seconds
    while len(got) < number:
        assert time.monotonic() < until, f"{len(got)} of {number} within {seconds} s"
        got += consumer.receive(0.1)
        acknowledge(consumer, got)
    return got


def confirmed(publisher: Publisher, number: int, seconds: float = 60) -> list[Any]:
    got: list[Any] = []

    def collect() -> None:
        publisher.turn(0.05)
        got.extend(publisher.confirmed())

    wait_for(lambda: len(got) >= number, seconds, collect)
    return got


def publish(publisher: Publisher, queue: str, numbers: range, size: int = 0) -> None:
    for number in numbers:
        publisher.publish(number, "", queue, b"%d" % number + bytes(size), f"id-{number}")


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [each.body for each in deliveries]


# What goes well


def test_what_is_published_arrives_once_and_in_order_with_its_id(broker: Broker, link: Links, queue: str) -> None:
    publisher = link(Publisher, broker.url, "", queue)
    publish(publisher, queue, range(1000))
    assert sorted(confirmed(publisher, 1000)) == list(range(1000))
    assert (publisher.unconfirmed, publisher.confirmed()) == (0, [])
    consumer = link(Consumer, broker.url, queue)
    got = received(consumer, 1000)
    assert [each[:2] for each in got] == [(b"%d" % number, f"id-{number}") for number in range(1000)]
    assert consumer.receive(0.2) == []
    consumer.close()
    assert broker.count(queue) == 0


def test_a_message_is_persistent_and_says_what_it_is(broker: Broker, link: Links, queue: str) -> None:
    publisher = link(Publisher, broker.url, "", queue)
    publisher.publish(1, "", queue, b"{}", "an id", {"shard": 3})
    confirmed(publisher, 1)
    [(properties, body)] = broker.take(queue)
    told = (properties.delivery_mode, properties.content_type, properties.message_id, properties.headers, body)
    assert told == (2, "application/json", "an id", {"shard": 3}, b"{}")


@pytest.mark.parametrize("known_as", ["x" * 256, "é" * 128, "\\xfc" * 255, "replay/" + "x" * 255])
def test_a_message_id_that_is_too_long_is_replaced_by_the_same_one_each_time(
    broker: Broker, link: Links, queue: str, known_as: str
) -> None:
    publisher = link(Publisher, broker.url, "", queue)
    for number, each in enumerate((known_as, known_as, f"{known_as}!", "é" * 127 + "x")):
        publisher.publish(number, "", queue, b"", each)
    assert sorted(confirmed(publisher, 4)) == [0, 1, 2, 3]
    first, again, another, longest = [properties.message_id for properties, _ in broker.take(queue)]
    assert re.fullmatch("[0-9a-f]{32}", str(first))
    assert first == again != another
    assert longest == "é" * 127 + "x"


def test_a_batch_ends_at_200_messages(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"x"] * 450)
    consumer = link(Consumer, broker.url, queue)
    ready(consumer)
    time.sleep(0.5)
    batches = [consumer.receive(1) for _ in range(3)]
    assert [len(batch) for batch in batches] == [200, 200, 50]
    acknowledge(consumer, batches[1])
    consumer.close()
    assert broker.count(queue) == 50


def test_a_batch_ends_before_two_million_bytes(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [bytes(900_000)] * 5 + [bytes(3_000_000), b"x"])
    consumer = link(Consumer, broker.url, queue)
    batches: list[list[int]] = []

    def take() -> None:
        until = time.monotonic() + 0.5  # What lies on the way has time to arrive.
        while time.monotonic() < until:
            consumer.turn(0.1)
        batches.append([len(each.body) for each in consumer.receive(1)])

    wait_for(lambda: sum(map(len, batches)) == 7, doing=take)
    assert all(sum(batch) <= amqp.BATCH_BYTES or len(batch) == 1 for batch in batches)
    assert batches[0] == [900_000] * 2
    assert [size for batch in batches for size in batch] == [900_000] * 5 + [3_000_000, 1]


def test_receive_waits_no_longer_than_it_was_told_to(broker: Broker, link: Links, queue: str) -> None:
    consumer = link(Consumer, broker.url, queue)
    ready(consumer)
    began = time.monotonic()
    assert consumer.receive(0.5) == []
    assert 0.4 < time.monotonic() - began < 2
    began = time.monotonic()
    assert consumer.receive(0) == []
    assert time.monotonic() - began < 0.2


def test_receive_returns_as_soon_as_a_message_is_there(broker: Broker, link: Links, queue: str) -> None:
    consumer = link(Consumer, broker.url, queue)
    ready(consumer)
    broker.put(queue, [b"x"])
    began = time.monotonic()
    assert bodies(consumer.receive(20)) == [b"x"]
    assert time.monotonic() - began < 5


def test_a_consumer_that_nobody_receives_from_gives_back_what_it_cannot_hold(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [bytes(1_000_000)] * 100)
    consumer = link(Consumer, broker.url, queue)
    assert len(consumer.receive(20)) <= 2
    most, until = 0, time.monotonic() + 5
    while time.monotonic() < until:
        consumer.turn(0.05)
        most = max(most, consumer._buffered_bytes)
    assert amqp.BUFFER_BYTES <= most < amqp.BUFFER_BYTES + 2_000_000
    wait_for(lambda: not consumer.connected, doing=lambda: consumer.turn(0.1))
    assert consumer._buffered_bytes == 0
    wait_for(lambda: broker.count(queue) == 100, doing=lambda: consumer.turn(0.1))
    assert len(received(consumer, 100)) == 100


def test_a_consumer_that_nobody_receives_from_keeps_what_it_can_hold(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    broker.declare(queue)
    broker.put(queue, [bytes(100_000)] * 500)
    consumer = link(Consumer, broker.url, queue)
    taken = consumer.receive(20)
    assert taken
    until = time.monotonic() + 25  # Longer than a broker tries to send.
    while time.monotonic() < until:
        consumer.turn(0.05)
    acknowledge(consumer, taken)
    assert consumer.connected
    received(consumer, 450)
    assert said == []


@pytest.mark.parametrize("size", [0, 131_064, 131_065, 70_000_000])
def test_a_message_may_be_of_any_size(broker: Broker, link: Links, queue: str, size: int) -> None:
    body = os.urandom(size)
    publisher = link(Publisher, broker.url, "", queue)
    publisher.publish(7, "", queue, body, "huge")
    assert confirmed(publisher, 1) == [7]
    [delivery] = received(link(Consumer, broker.url, queue), 1)
    assert delivery.body == body


def test_a_message_id_in_latin_1_and_unreadable_headers_stop_nobody(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"latin"], RawProperties(0x0080, b"\x04M\xfcll"))
    endless = b"\x01t" + b"T" + struct.pack(">Q", 1 << 62)
    table = struct.pack(">L", len(endless)) + endless
    broker.put(queue, [b"years"], RawProperties(0x8000 | 0x2000 | 0x1000 | 0x0080, b"\x01j" + table + b"\x02" + b"\x02id"))
    broker.put(queue, [b"no id"], RawProperties(0x2000, table))
    assert [each[:2] for each in received(link(Consumer, broker.url, queue), 3)] == [
        (b"latin", "M\\xfcll"),
        (b"years", "id"),
        (b"no id", ""),
    ]


class RawProperties(pika.BasicProperties):
    """Properties as somebody else's client may write them."""

    def __init__(self, flags: int, values: bytes) -> None:
        super().__init__()
        self._raw = struct.pack(">H", flags) + values

    def encode(self) -> list[bytes]:
        return [self._raw]


# Acknowledging


def test_what_was_not_acknowledged_comes_again(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"%d" % number for number in range(300)])
    first = link(Consumer, broker.url, queue)
    ready(first)
    time.sleep(0.5)
    taken = first.receive(1)
    assert len(taken) == 200
    assert len(first.receive(1)) == 100
    acknowledge(first, taken)
    first.close()
    assert bodies(received(link(Consumer, broker.url, queue), 100)) == [b"%d" % number for number in range(200, 300)]


def test_nothing_is_acknowledged_that_was_not_returned(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"x"] * 350)
    consumer = link(Consumer, broker.url, queue)
    ready(consumer)
    time.sleep(0.5)
    taken = consumer.receive(1)
    assert len(taken) == 200
    acknowledge(consumer, taken)
    consumer.turn(0.2)
    consumer.close()
    assert broker.count(queue) == 150


def test_acknowledging_on_another_connection_does_nothing(proxy: Proxy, broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"1", b"2", b"3"])
    consumer = link(Consumer, proxy.url, queue)
    taken = consumer.receive(20)
    assert bodies(taken) == [b"1", b"2", b"3"]
    proxy.cut()
    wait_for(lambda: not consumer.connected, doing=consumer.turn)
    acknowledge(consumer, taken)
    ready(consumer)
    acknowledge(consumer, taken)
    assert bodies(received(consumer, 3)) == [b"1", b"2", b"3"]
    assert consumer.receive(0.5) == []


def test_messages_of_a_lost_connection_that_nobody_saw_come_once(proxy: Proxy, broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"%d" % number for number in range(100)])
    consumer = link(Consumer, proxy.url, queue)
    wait_for(lambda: len(consumer._buffer) == 100, doing=consumer.turn)
    proxy.cut()
    wait_for(lambda: not consumer.connected, doing=consumer.turn)
    assert bodies(received(consumer, 100)) == [b"%d" % number for number in range(100)]
    assert consumer.receive(0.5) == []


def test_a_pause_gives_everything_back_until_the_next_receive(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"%d" % number for number in range(300)])
    consumer = link(Consumer, broker.url, queue)
    assert consumer.receive(20)
    consumer.pause()
    consumer.pause()
    wait_for(lambda: broker.count(queue) == 300, doing=consumer.turn)
    consumer.turn(0.5)
    assert (broker.count(queue), consumer.connected, consumer.caught_up) == (300, False, False)
    assert bodies(received(consumer, 300)) == [b"%d" % number for number in range(300)]


def test_a_pause_lasts_over_a_lost_connection(proxy: Proxy, broker: Broker, link: Links, queue: str) -> None:
    consumer = link(Consumer, proxy.url, queue)
    ready(consumer)
    consumer.pause()
    accepted = proxy.accepted
    proxy.cut()
    wait_for(lambda: proxy.accepted > accepted, doing=consumer.turn)
    broker.put(queue, [b"x"])
    consumer.turn(1)
    assert (broker.count(queue), consumer.connected) == (1, False)
    assert bodies(received(consumer, 1)) == [b"x"]


# Caught up


def test_a_consumer_has_caught_up_a_second_after_an_empty_queue(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"x"] * 10)
    consumer = link(Consumer, broker.url, queue)
    assert not consumer.caught_up
    assert len(received(consumer, 10)) == 10
    assert not consumer.caught_up
    began = time.monotonic()
    wait_for(lambda: consumer.caught_up, doing=lambda: consumer.receive(0.1))
    assert time.monotonic() - began > 0.9
    broker.put(queue, [b"y"])
    assert consumer.receive(20)
    assert not consumer.caught_up


def test_a_consumer_has_not_caught_up_while_messages_are_left(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    broker.put(queue, [b"x"] * (amqp.PREFETCH + 100))
    consumer = link(Consumer, broker.url, queue)
    got = 0
    until = time.monotonic() + 4
    while time.monotonic() < until:  # Without acknowledging: the broker keeps 100.
        got += len(consumer.receive(0.2))
        assert not consumer.caught_up
    assert got == amqp.PREFETCH


def test_a_consumer_that_is_cut_off_has_not_caught_up(proxy: Proxy, link: Links, queue: str) -> None:
    consumer = link(Consumer, proxy.url, queue)
    wait_for(lambda: consumer.caught_up, doing=lambda: consumer.receive(0.1))
    proxy.cut()
    wait_for(lambda: not consumer.connected, doing=lambda: consumer.receive(0))
    assert not consumer.caught_up


def test_a_consumer_that_gets_no_answer_has_not_caught_up(proxy: Proxy, link: Links, queue: str) -> None:
    consumer = link(Consumer, proxy.url, queue)
    wait_for(lambda: consumer.caught_up, doing=lambda: consumer.receive(0.1))
    proxy.silent = True
    wait_for(lambda: not consumer.caught_up, 5, lambda: consumer.receive(0.1))
    assert consumer.connected  # Its heartbeats were not missed yet.
    proxy.silent = False
    wait_for(lambda: consumer.caught_up, doing=lambda: consumer.receive(0.1))


# What is there and what is not


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"x-max-length": 1_000_000}, id="limited"),
        pytest.param({"x-queue-type": "quorum"}, id="quorum"),
        pytest.param({"x-queue-mode": "lazy", "x-message-ttl": 600_000}, id="lazy"),
    ],
)
def test_an_existing_queue_of_another_kind_is_taken_as_it_is(broker: Broker, link: Links, queue: str, arguments: dict[str, Any]) -> None:
    broker.declare(queue, **arguments)
    publisher = link(Publisher, broker.url, "", queue)
    publish(publisher, queue, range(10))
    confirmed(publisher, 10)
    assert len(received(link(Consumer, broker.url, queue), 10)) == 10
    broker.declare(queue, **arguments)  # Fails if it is of another kind by now.


def test_an_existing_exchange_of_another_kind_is_taken_as_it_is(broker: Broker, link: Links, queue: str) -> None:
    with broker.channel() as channel:
        channel.exchange_declare(f"{queue}-x", "topic", durable=False)
    publisher = link(Publisher, broker.url, f"{queue}-x", queue, "key")
    publisher.publish(1, f"{queue}-x", "key", b"x", "id")
    assert confirmed(publisher, 1) == [1]
    assert broker.bodies(queue) == [b"x"]
    with broker.channel() as channel:
        channel.exchange_delete(f"{queue}-x")


def test_a_missing_input_queue_is_created_durable_and_bound(broker: Broker, link: Links, queue: str) -> None:
    consumer = link(Consumer, broker.url, queue, "amq.direct", "key")
    ready(consumer)
    with broker.channel() as channel:
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("amq.direct", "key", b"x", mandatory=True)
    assert bodies(received(consumer, 1)) == [b"x"]


def test_a_missing_output_exchange_and_queue_are_created_and_bound(broker: Broker, link: Links, queue: str) -> None:
    publisher = link(Publisher, broker.url, f"{queue}-x", queue, "key")
    publisher.publish(1, f"{queue}-x", "key", b"x", "id")
    assert confirmed(publisher, 1) == [1]
    assert broker.bodies(queue) == [b"x"]
    with broker.channel() as channel:
        channel.exchange_declare(f"{queue}-x", "direct", durable=True)
        channel.queue_declare(queue, durable=True)
        channel.exchange_delete(f"{queue}-x")


def test_an_existing_queue_is_bound_to_an_exchange_that_was_missing(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    publisher = link(Publisher, broker.url, f"{queue}-x", queue, "key")
    publisher.publish(1, f"{queue}-x", "key", b"x", "id")
    assert confirmed(publisher, 1) == [1]
    with broker.channel() as channel:
        channel.exchange_delete(f"{queue}-x")


def test_a_queue_that_somebody_created_and_died_before_it_was_bound_is_bound(broker: Broker, link: Links, queue: str) -> None:
    broker.declare(queue)
    with broker.channel() as channel:
        channel.exchange_declare(f"{queue}-x", "direct", durable=True)
    publisher = link(Publisher, broker.url, f"{queue}-x", queue, "key")
    publisher.publish(1, f"{queue}-x", "key", b"x", "id")
    assert confirmed(publisher, 1) == [1]
    assert broker.bodies(queue) == [b"x"]
    with broker.channel() as channel:
        channel.exchange_delete(f"{queue}-x")


def test_a_queue_that_is_deleted_is_created_once_more(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    consumer = link(Consumer, broker.url, queue)
    ready(consumer)
    with broker.channel() as channel:
        channel.queue_delete(queue)
    wait_for(lambda: not consumer.connected, doing=consumer.turn)
    ready(consumer)
    broker.put(queue, [b"x"])
    assert bodies(received(consumer, 1)) == [b"x"]
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]
    assert said[0]["reason"] == "the queue is gone"


def test_a_queue_that_somebody_else_has_for_himself_is_waited_for(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    with broker.channel() as channel:
        channel.queue_declare(queue, exclusive=True)
        consumer = link(Consumer, broker.url, queue)
        wait_for(lambda: bool(said), doing=consumer.turn)
        assert "RESOURCE_LOCKED" in said[0]["reason"]
        assert not consumer.connected
    ready(consumer)
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]


def test_messages_that_no_queue_takes_wait_until_one_is_bound(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    exchange = f"{queue}-x"
    publisher = link(Publisher, broker.url, exchange)
    for number in range(700):
        publisher.publish(number, exchange, "key", b"%d" % number, f"id-{number % 3}")
    wait_for(lambda: bool(said), doing=lambda: publisher.turn(0.1))
    publisher.turn(3)
    assert (publisher.confirmed(), publisher.unconfirmed) == ([], 700)
    with broker.channel() as channel:
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, exchange, "key")
    assert confirmed(publisher, 700) == list(range(700))
    assert broker.bodies(queue) == [b"%d" % number for number in range(700)]
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]
    assert said[0]["reason"] == f"no queue takes messages of exchange '{exchange}' with key 'key': bind one"
    with broker.channel() as channel:
        channel.exchange_delete(exchange)


def test_messages_that_a_full_queue_refuses_wait_until_there_is_room(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    broker.declare(queue, **{"x-max-length": 10, "x-overflow": "reject-publish"})
    publisher = link(Publisher, broker.url, "", queue)
    publish(publisher, queue, range(100))
    taken = confirmed(publisher, 10)
    arrived: list[bytes] = []

    def make_room() -> None:
        publisher.turn(0.2)
        taken.extend(publisher.confirmed())
        arrived.extend(broker.bodies(queue))

    wait_for(lambda: len(taken) == 100, 120, make_room)
    arrived += broker.bodies(queue)
    assert sorted(taken) == list(range(100))
    assert {int(body) for body in arrived} == set(range(100))
    assert said[0]["reason"].startswith("the queue refuses messages")


def test_a_dead_letter_queue_that_is_deleted_is_created_once_more(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    publisher = link(Publisher, broker.url, "", queue)
    ready(publisher)
    with broker.channel() as channel:
        channel.queue_delete(queue)
    publish(publisher, queue, range(5))
    assert sorted(confirmed(publisher, 5)) == list(range(5))
    assert sorted(broker.bodies(queue)) == [b"0", b"1", b"2", b"3", b"4"]
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]


def test_a_publisher_lets_no_more_out_than_its_window(proxy: Proxy, link: Links, queue: str) -> None:
    publisher = link(Publisher, proxy.url, "", queue)
    ready(publisher)
    proxy.silent = True
    publish(publisher, queue, range(2000), size=100)
    publisher.turn(0.5)
    assert (len(publisher._written), publisher.unconfirmed) == (amqp.WINDOW_MESSAGES, 2000)
    proxy.silent = False
    assert sorted(confirmed(publisher, 2000)) == list(range(2000))
    proxy.silent = True
    publish(publisher, queue, range(60), size=1_000_000)
    publisher.turn(0.5)
    assert amqp.WINDOW_BYTES <= publisher._written_bytes < amqp.WINDOW_BYTES + 1_000_010
    proxy.silent = False
    assert sorted(confirmed(publisher, 60)) == list(range(60))


# Connections that are lost


def test_a_publisher_that_is_cut_off_publishes_again_what_was_not_confirmed(
    proxy: Proxy, broker: Broker, link: Links, queue: str, said: list[Any]
) -> None:
    publisher = link(Publisher, proxy.url, "", queue)
    taken: list[int] = []
    for number in range(5000):
        publisher.publish(number, "", queue, b"%d" % number, str(number))
        if number % 50 == 0:
            publisher.turn(0.01)
            taken += publisher.confirmed()
        if number % 1000 == 500:
            proxy.cut()
    taken += confirmed(publisher, 5000 - len(taken))
    assert sorted(taken) == list(range(5000))
    arrived = broker.bodies(queue)
    assert {int(body) for body in arrived} == set(range(5000))
    first_times = list(dict.fromkeys(int(body) for body in arrived))
    assert first_times == list(range(5000))
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"] * (len(said) // 2)
    assert len(said) >= 2


def test_connections_that_the_broker_closes_come_back(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    publisher = link(Publisher, broker.url, "", queue)
    consumer = link(Consumer, broker.url, queue)
    ready(publisher)
    ready(consumer)
    broker.ctl("close_all_connections", "maintenance")
    wait_for(lambda: len(said) >= 2, doing=lambda: (publisher.turn(), consumer.turn()))
    ready(publisher)
    ready(consumer)
    publish(publisher, queue, range(1))
    confirmed(publisher, 1)
    assert bodies(received(consumer, 1)) == [b"0"]
    assert sum(each["event"] == "waits for RabbitMQ" for each in said) == 2
    assert all("maintenance" in each["reason"] for each in said if "reason" in each)


class Unheard(Consumer):
    """Asks first what nobody answers, on its first channel."""

    heard = False

    def _set_up(self) -> Setup:
        if not self.heard:
            self.heard = True
            yield lambda _done: None
        yield from super()._set_up()


def test_a_link_whose_setup_is_not_answered_connects_anew(
    proxy: Proxy, broker: Broker, link: Links, queue: str, said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netsage_pipeline.rabbitmq.link, "ANSWER", 4.0)
    consumer = link(Unheard, proxy.url, queue)
    ready(consumer, 20)
    broker.put(queue, [b"x"])
    assert bodies(received(consumer, 1)) == [b"x"]
    assert proxy.accepted == 2
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]
    assert said[0]["reason"] == "it does not answer what was asked of a queue or an exchange"


def test_a_link_whose_channel_is_not_opened_connects_anew(
    proxy: Proxy, link: Links, queue: str, said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netsage_pipeline.rabbitmq.link, "ANSWER", 1.0)
    monkeypatch.setattr(pika.channel.Channel, "open", lambda channel: channel._set_state(channel.OPENING))
    consumer = link(Consumer, proxy.url, queue)
    wait_for(lambda: consumer._channel is not None, doing=consumer.turn)
    monkeypatch.undo()
    ready(consumer, 40)
    assert proxy.accepted == 2
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]


@pytest.mark.parametrize("end", ["stop", "kill9"])
def test_a_broker_that_ends_and_comes_back_under_load_loses_nothing(
    broker: Broker, link: Links, queue: str, end: str, said: list[Any]
) -> None:
    broker.declare(queue)
    time.sleep(5)  # RabbitMQ 3 may forget a queue that it is killed within two seconds after.
    publisher = link(Publisher, broker.url, "", queue)
    consumer = link(Consumer, broker.url, queue)
    ready(publisher)
    ready(consumer)
    numbers, given, taken, got = count(), 0, set[int](), list[int]()

    def work(most: int) -> None:
        nonlocal given
        while publisher.unconfirmed < 1000 and given < most:
            number = next(numbers)
            publisher.publish(number, "", queue, b"%d" % number, str(number))
            given += 1
        publisher.turn(0.01)
        taken.update(publisher.confirmed())
        deliveries = consumer.receive(0.01)
        got.extend(int(each.body) for each in deliveries)
        acknowledge(consumer, deliveries)

    wait_for(lambda: len(got) > 2000, doing=lambda: work(1 << 30))
    getattr(broker, end)()
    wait_for(lambda: not publisher.connected and not consumer.connected, doing=lambda: work(1 << 30))
    broker.start()
    most = given + 2000
    wait_for(lambda: len(taken) == most and set(got) >= taken, 120, lambda: work(most))
    assert taken == set(range(most))
    assert sum(each["event"] == "waits for RabbitMQ" for each in said) == 2
    assert sum(each["event"] == "goes on with RabbitMQ" for each in said) == 2


def test_a_broker_that_is_short_of_memory_is_waited_for(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    publisher = link(Publisher, broker.url, "", queue)
    consumer = link(Consumer, broker.url, queue)
    ready(publisher)
    ready(consumer)
    broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        publish(publisher, queue, range(3000))
        wait_for(lambda: bool(said), doing=lambda: publisher.turn(0.1))
        publisher.turn(1)
        assert publisher.unconfirmed >= 2000
        assert said[0]["reason"] == "it is low on memory"
        began = time.monotonic()
        publisher.turn(0.1)
        assert time.monotonic() - began < 1
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.6")
    left = 3000 - len(publisher.confirmed())
    confirmed(publisher, left)
    assert {int(body) for body in bodies(received(consumer, 3000))} == set(range(3000))
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]


def test_a_link_that_the_broker_does_not_read_from_is_closed_nevertheless(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    publisher = link(Publisher, broker.url, "", queue)
    ready(publisher)
    broker.ctl("set_vm_memory_high_watermark", "0.00001")
    try:
        publish(publisher, queue, range(100))
        wait_for(lambda: bool(said), doing=lambda: publisher.turn(0.1))
        began = time.monotonic()
        publisher.close()
        assert time.monotonic() - began < 4
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.6")


def test_a_broker_that_is_not_there_yet_is_waited_for(link: Links, queue: str, said: list[Any]) -> None:
    port = socket_that(listens=False)
    began = time.monotonic()
    consumer = link(Consumer, f"amqp://u:hush@localhost:{port[1]}/", queue)
    assert consumer.receive(1) == []
    consumer.pause()
    assert 0.9 < time.monotonic() - began < 3
    assert [(each["event"], each["server"], each["reason"]) for each in said] == [
        ("waits for RabbitMQ", f"localhost:{port[1]}", "Connection refused")
    ]
    port[0].close()


def socket_that(*, listens: bool) -> tuple[socket.socket, int]:
    """A port that refuses connections, or one at which nobody answers, because too many are waiting already."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    if listens:
        held.listen(0)
    return held, held.getsockname()[1]


def test_of_several_servers_the_one_that_is_there_is_taken(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    held, port = socket_that(listens=False)
    began = time.monotonic()
    consumer = link(Consumer, f"amqp://u:hush@127.0.0.1:{port}/,{broker.url}", queue)
    ready(consumer)
    assert time.monotonic() - began < 5
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]
    assert said[0]["server"] == f"127.0.0.1:{port}"
    assert said[1]["server"] == f"127.0.0.1:{pika.URLParameters(broker.url).port}"
    assert "hush" not in str(said)
    held.close()


def test_a_server_that_swallows_packets_holds_nothing_up(broker: Broker, link: Links, queue: str) -> None:
    held, port = socket_that(listens=True)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
        fillers.append(filler)
    began = time.monotonic()
    consumer = link(Consumer, f"amqp://127.0.0.1:{port}/,{broker.url}", queue)
    longest = 0.0
    while not consumer.connected and time.monotonic() - began < 30:
        turned = time.monotonic()
        consumer.receive(0.1)
        longest = max(longest, time.monotonic() - turned)
    assert 2 < time.monotonic() - began < 8
    assert longest < 1
    for each in (held, *fillers):
        each.close()


def test_a_server_that_accepts_and_says_nothing_is_left(proxy: Proxy, broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    proxy.silent = True
    consumer = link(Consumer, f"{proxy.url},{broker.url}", queue)
    ready(consumer, 20)
    assert said[0]["reason"] == "it does not answer"


def test_an_attempt_that_is_given_up_in_the_middle_of_a_handshake_is_followed_by_another(
    proxy: Proxy, link: Links, queue: str, said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(netsage_pipeline.rabbitmq.link, "ATTEMPT", 1.0)
    proxy.silent = True
    consumer = link(Consumer, proxy.url, queue)
    wait_for(lambda: proxy.accepted == 2, 20, lambda: consumer.turn(0.1))
    proxy.silent = False
    ready(consumer, 20)
    assert [each["event"] for each in said] == ["waits for RabbitMQ", "goes on with RabbitMQ"]


@pytest.mark.parametrize(
    ("user", "vhost", "reason"),
    [
        pytest.param("guest:geheim", "", "it refuses the user or the password: correct them in the url", id="password"),
        pytest.param("nobody:geheim", "", "it refuses the user or the password: correct them in the url", id="user"),
        pytest.param(
            "guest:guest",
            "nowhere",
            "it has no such virtual host, or the user may not use it: correct the url or its permissions",
            id="virtual host",
        ),
    ],
)
def test_what_only_somebody_can_correct_is_said_once(
    broker: Broker, link: Links, queue: str, said: list[Any], user: str, vhost: str, reason: str
) -> None:
    port = pika.URLParameters(broker.url).port
    consumer = link(Consumer, f"amqp://{user}@127.0.0.1:{port}/{vhost}", queue)
    consumer.receive(0.1)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        consumer.receive(0.1)
    assert said == [
        {"event": "waits for RabbitMQ", "log_level": "warning", "link": "test", "server": f"127.0.0.1:{port}", "reason": reason}
    ]


def test_a_name_that_nobody_knows_is_said_once(link: Links, queue: str, said: list[Any]) -> None:
    consumer = link(Consumer, "amqp://rabbit.invalid/", queue)
    wait_for(lambda: bool(said), 30, lambda: consumer.receive(0.1))
    assert (said[0]["server"], len(said)) == ("rabbit.invalid:5672", 1)
    assert "known" in said[0]["reason"] or "resol" in said[0]["reason"]


def test_a_port_that_speaks_something_else_is_said(link: Links, queue: str, said: list[Any]) -> None:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.listen()
    held.setblocking(False)
    consumer = link(Consumer, f"amqp://127.0.0.1:{held.getsockname()[1]}/", queue)
    accepted: list[socket.socket] = []

    def answer() -> None:
        consumer.turn(0.05)
        try:
            client, _ = held.accept()
        except BlockingIOError:
            return
        client.sendall(b"220 mail.example.net ESMTP\r\n")
        client.close()
        accepted.append(client)

    wait_for(lambda: bool(said), 30, answer)
    assert said[0]["reason"].startswith("it does not speak AMQP 0-9-1 there")
    held.close()


# TLS


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("certificates"), names="DNS:localhost")


@pytest.fixture
def tls_proxy(broker: Broker, issued: Path) -> Iterator[Proxy]:
    """Speaks TLS for the broker, to clients with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(issued / "ca.pem"))
    context.load_cert_chain(issued / "server.pem", issued / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    stands_between = Proxy(pika.URLParameters(broker.url).port, context)
    yield stands_between
    stands_between.close()


def of_client(issued: Path, authority: str = "ca") -> dict[str, Path]:
    return {
        "ca_file": issued / f"{authority}.pem",
        "client_certificate_file": issued / "client.pem",
        "client_key_file": issued / "client.key",
    }


def test_tls_with_certificates_on_both_sides(tls_proxy: Proxy, issued: Path, link: Links, queue: str) -> None:
    settings = of_client(issued)
    publisher = link(Publisher, tls_proxy.url, "", queue, **settings)
    publish(publisher, queue, range(2000), size=1000)
    publisher.publish(2000, "", queue, b"2000" + os.urandom(5_000_000), "huge")
    assert sorted(confirmed(publisher, 2001)) == list(range(2001))
    got = received(link(Consumer, tls_proxy.url, queue, **settings), 2001)
    assert [int(each.body[:4].rstrip(b"\0")) for each in got] == list(range(2001))
    tls_proxy.cut()
    publish(publisher, queue, range(10))
    assert sorted(confirmed(publisher, 10)) == list(range(10))


def test_a_server_with_a_certificate_of_somebody_else_is_not_trusted(
    tls_proxy: Proxy, issued: Path, link: Links, queue: str, said: list[Any]
) -> None:
    consumer = link(Consumer, tls_proxy.url, queue, **of_client(issued, "other"))
    wait_for(lambda: bool(said), doing=lambda: consumer.receive(0.1))
    consumer.receive(2)
    assert (len(said), consumer.connected) == (1, False)
    assert said[0]["reason"].startswith("its certificate is not to be trusted: ")


def test_a_server_with_a_certificate_for_another_name_is_not_trusted(
    tls_proxy: Proxy, issued: Path, link: Links, queue: str, said: list[Any]
) -> None:
    consumer = link(Consumer, tls_proxy.url.replace("localhost", "127.0.0.1"), queue, **of_client(issued))
    wait_for(lambda: bool(said), doing=lambda: consumer.receive(0.1))
    assert re.match(r"its certificate is not to be trusted: .*127\.0\.0\.1", said[0]["reason"])


def test_a_server_that_wants_a_certificate_is_waited_for_without_one(
    tls_proxy: Proxy, issued: Path, link: Links, queue: str, said: list[Any]
) -> None:
    consumer = link(Consumer, tls_proxy.url, queue, ca_file=issued / "ca.pem")
    wait_for(lambda: bool(said), doing=lambda: consumer.receive(0.1))
    assert not consumer.connected
    assert said[0]["reason"].startswith("it ended the connection behind the TLS handshake: does it want a client certificate")


def test_a_port_without_tls_is_said(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    consumer = link(Consumer, f"amqps://guest:guest@127.0.0.1:{pika.URLParameters(broker.url).port}/", queue)
    wait_for(lambda: bool(said), doing=lambda: consumer.receive(0.1))
    assert said[0]["reason"] == "it does not speak TLS there: is it a port for amqp://?"


def test_a_message_longer_than_the_broker_takes_is_kept_and_said(broker: Broker, link: Links, queue: str, said: list[Any]) -> None:
    publisher = link(Publisher, broker.url, "", queue)
    publisher.publish(1, "", queue, bytes(140_000_000), "too long")
    wait_for(lambda: bool(said), doing=lambda: publisher.turn(0.1))
    assert "message size" in said[0]["reason"]
    assert (publisher.confirmed(), publisher.unconfirmed) == ([], 1)


def test_pika_says_nothing(broker: Broker, link: Links, queue: str, caplog: pytest.LogCaptureFixture) -> None:
    consumer = link(Consumer, f"amqp://127.0.0.1:1/,{broker.url}", queue)
    ready(consumer)
    consumer.close()
    assert caplog.records == []
