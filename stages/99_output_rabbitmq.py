"""99 output rabbitmq: publishes flows to an exchange, persistent, and takes them for stored when the broker confirmed them.

With `shards` the flows of one meta.id all go to one of so many queues: shard number blake2b(meta.id) modulo shards; flows without an id are
all in one shard. Each message that came in becomes one message for every shard that has flows of it, in the order in which they came,
with the id KEY/SHARD. KEY is the digest by which a worker knows the message that came in, so that a repetition has the id of the first.

Reads   *
Writes  nothing
Source  nothing
Drops   nothing
"""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import ClassVar

import orjson
from pydantic import Field, ValidationInfo, field_validator

from netsage_pipeline.config import Output
from netsage_pipeline.documents import document_id, identity
from netsage_pipeline.flow import Delivery, Flow, Stored
from netsage_pipeline.outputs.batches import encoded
from netsage_pipeline.rabbitmq.amqp import Publisher
from netsage_pipeline.rabbitmq.brokers import Broker, Name, named, servers


class Config(Broker, Output):
    for_replays: ClassVar[bool] = False

    exchange: Name = Field("netsage.direct", description="Exchange to publish to; where missing, a durable direct one is created")
    key: Name = Field("netsage_archive_input", description="Routing key of the messages")
    queue: Name | None = Field(
        None,
        description="Queue that is created where it is missing, bound with the key, so that flows wait there for their receiver; "
        "not set: named as the key; empty: none",
    )
    flows_per_message: int = Field(100, ge=1, description="1: each flow is a message, a JSON object; more: arrays of so many flows")
    shards: int = Field(
        0, ge=0, description="For routers: flows go to so many queues, QUEUE.0, QUEUE.1, … with the keys KEY.0, KEY.1, …; 0: to one queue"
    )

    @field_validator("shards")
    @classmethod
    def _leave_room(cls, shards: int, info: ValidationInfo) -> int:
        for name in ("key", "queue") if shards else ():
            try:
                named(info.data.get(name) or "", behind=f".{shards - 1}")
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        return shards


class Messages:
    """Batches of messages; a batch is stored when each of its messages is confirmed."""

    def __init__(self, config: Config) -> None:
        self._exchange = config.exchange
        queue = config.key if config.queue is None else config.queue
        shards = [f".{shard}" for shard in range(config.shards)] or [""]
        self._link = Publisher(servers(config), "output", config.exchange, queue, config.key, shards)
        self._batches: dict[int, Stored] = {}
        self._open: dict[int, int] = {}  # batch → its messages that are not confirmed
        self._stored: list[Stored] = []

    def publish(self, stored: Stored, messages: list[tuple[str, bytes, str]]) -> None:
        """Messages with their routing keys and ids, and what is to be said of them when all are confirmed."""
        if not messages:
            self._stored.append(stored)
            return
        self._batches[stored.batch] = stored
        self._open[stored.batch] = len(messages)
        for key, body, known_as in messages:
            self._link.publish(stored.batch, self._exchange, key, body, known_as)

    def stored(self, seconds: float = 0) -> list[Stored]:
        until = time.monotonic() + seconds
        self._link.turn(0)
        self._collect()
        while not self._stored and time.monotonic() < until:
            self._link.turn(until - time.monotonic())
            self._collect()
        stored, self._stored = self._stored, []
        return stored

    def close(self) -> None:
        self._link.flush(1.0)
        self._link.close(1.0)

    def _collect(self) -> None:
        for batch in self._link.confirmed():
            self._open[batch] -= 1
            if not self._open[batch]:
                del self._open[batch]
                self._stored.append(self._batches.pop(batch))


class RabbitSink:
    """Flows as messages of so many; all of them go to one place."""

    def __init__(self, config: Config) -> None:
        self._key, self._together = config.key, config.flows_per_message
        self._messages = Messages(config)
        self.stored, self.close = self._messages.stored, self._messages.close

    def write(self, batch: int, flows: list[Flow]) -> None:
        bodies, able, refused = encoded(flows, orjson.dumps)
        messages = [(self._key, body, known_as) for body, known_as in _messages(bodies, able, self._together)]
        self._messages.publish(Stored(batch, len(bodies), refused), messages)

    def pass_on(self, batch: int, deliveries: list[Delivery]) -> None:
        """Messages as they came, one out for each one in, under the same ids."""
        messages = [(self._key, body, message_id) for body, message_id, _ in deliveries]
        self._messages.publish(Stored(batch, len(deliveries), []), messages)


class ShardSink:
    """The flows of each message as one message for each shard that has some of them."""

    def __init__(self, config: Config) -> None:
        self._key, self._shards = config.key, config.shards
        self._messages = Messages(config)
        self.stored, self.close = self._messages.stored, self._messages.close

    def split(self, batch: int, flows: list[Flow], message: str) -> None:
        bodies, able, refused = encoded(flows, orjson.dumps)
        parts: dict[int, list[bytes]] = {}
        for flow, body in zip(able, bodies, strict=True):
            parts.setdefault(shard_of(flow, self._shards), []).append(body)
        messages = [(f"{self._key}.{shard}", _array(part), f"{message}/{shard}") for shard, part in parts.items()]
        self._messages.publish(Stored(batch, len(bodies), refused), messages)


def shard_of(flow: Flow, shards: int) -> int:
    """The shard that all flows with this meta.id go to."""
    meta = flow.get("meta")
    known_as = meta.get("id") if meta.__class__ is dict else None
    return int.from_bytes(blake2b(str(known_as or "").encode(), digest_size=8).digest()) % shards


def _messages(bodies: list[bytes], flows: list[Flow], together: int) -> list[tuple[bytes, str]]:
    """Messages with their ids."""
    if together == 1:
        return [(body, document_id(flow)) for body, flow in zip(bodies, flows, strict=True)]
    messages = []
    for at in range(0, len(bodies), together):
        ids = orjson.dumps([identity(flow) for flow in flows[at : at + together]])
        messages.append((_array(bodies[at : at + together]), blake2b(ids, digest_size=16).hexdigest()))
    return messages


def _array(bodies: list[bytes]) -> bytes:
    return b"[" + b",".join(bodies) + b"]"


def sink(config: Config) -> RabbitSink | ShardSink:
    return ShardSink(config) if config.shards else RabbitSink(config)
