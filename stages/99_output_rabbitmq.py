"""99 output rabbitmq: publishes flows to an exchange, persistent, and takes them for stored when the broker confirmed them.

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
from pydantic import Field

from netsage_pipeline.config import Output
from netsage_pipeline.documents import document_id, identity
from netsage_pipeline.flow import Delivery, Flow, Refusal, Stored
from netsage_pipeline.jsonvalues import fault
from netsage_pipeline.rabbitmq.amqp import Publisher
from netsage_pipeline.rabbitmq.brokers import Broker, servers


class Config(Broker, Output):
    for_replays: ClassVar[bool] = False

    exchange: str = Field(
        "netsage.direct", max_length=255, description="Exchange to publish to; where missing, a durable direct one is created"
    )
    key: str = Field("netsage_archive_input", max_length=255, description="Routing key of the messages")
    queue: str | None = Field(
        None,
        max_length=255,
        description="Queue that is created where it is missing, bound with the key, so that flows wait there for their receiver; "
        "not set: named as the key; empty: none",
    )
    flows_per_message: int = Field(100, ge=1, description="1: each flow is a message, a JSON object; more: arrays of so many flows")


class RabbitSink:
    """Batches of flows as messages; a batch is stored when each of its messages is confirmed."""

    def __init__(self, config: Config) -> None:
        self._exchange, self._key, self._together = config.exchange, config.key, config.flows_per_message
        queue = config.key if config.queue is None else config.queue
        self._link = Publisher(servers(config), "output", config.exchange, queue, config.key)
        self._batches: dict[int, Stored] = {}
        self._open: dict[int, int] = {}  # batch → its messages that are not confirmed
        self._stored: list[Stored] = []

    def write(self, batch: int, flows: list[Flow]) -> None:
        bodies, written, refused = _encoded(flows)
        messages = _messages(bodies, written, self._together)
        stored = Stored(batch, len(bodies), refused)
        if not messages:
            self._stored.append(stored)
            return
        self._batches[batch] = stored
        self._open[batch] = len(messages)
        for body, known_as in messages:
            self._link.publish(batch, self._exchange, self._key, body, known_as)

    def pass_on(self, batch: int, deliveries: list[Delivery]) -> None:
        """Messages as they came, one out for each one in, under the same ids."""
        self._batches[batch] = Stored(batch, len(deliveries), [])
        self._open[batch] = len(deliveries)
        for body, message_id, _ in deliveries:
            self._link.publish(batch, self._exchange, self._key, body, message_id)

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


def _encoded(flows: list[Flow]) -> tuple[list[bytes], list[Flow], list[Refusal]]:
    """The flows that can be written, as JSON and as they are, and the others."""
    try:
        return [orjson.dumps(flow) for flow in flows], flows, []
    except TypeError:
        reasons = [(flow, fault(flow)) for flow in flows]
        written = [flow for flow, reason in reasons if not reason]
        return [orjson.dumps(flow) for flow in written], written, [(flow, reason) for flow, reason in reasons if reason]


def _messages(bodies: list[bytes], flows: list[Flow], together: int) -> list[tuple[bytes, str]]:
    """Messages with their ids."""
    if together == 1:
        return [(body, document_id(flow, _otherwise(flow, body))) for body, flow in zip(bodies, flows, strict=True)]
    messages = []
    for at in range(0, len(bodies), together):
        some = bodies[at : at + together]
        ids = orjson.dumps([identity(flow, _otherwise(flow, body)) for flow, body in zip(flows[at : at + together], some, strict=True)])
        messages.append((b"[" + b",".join(some) + b"]", blake2b(ids, digest_size=16).hexdigest()))
    return messages


def _otherwise(flow: Flow, body: bytes) -> str:
    """A flow without meta.id is known by all that it holds: two of them are not to be taken for one by who drops repeats."""
    meta = flow.get("meta")
    return "" if meta.__class__ is dict and meta.get("id") else blake2b(body, digest_size=16).hexdigest()


def sink(config: Config) -> RabbitSink:
    return RabbitSink(config)
