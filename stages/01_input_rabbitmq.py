"""01 input rabbitmq: takes messages of flows from a queue.

Reads   nothing
Writes  nothing
Source  RabbitMQ: a queue, taken as it is, or created durable and bound to an exchange where it is missing
Drops   nothing; what cannot be processed goes to the queue of dead letters
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from netsage_pipeline.config import Input
from netsage_pipeline.flow import Delivery
from netsage_pipeline.rabbitmq.amqp import Consumer, Publisher, Receipt
from netsage_pipeline.rabbitmq.brokers import Broker, Name, named, servers


class Config(Broker, Input):
    shard: int | None = Field(
        None,
        ge=0,
        description="Number of a shard, for a worker behind routers: is added, as .NUMBER, to queue, key and dead_letters; not set: none",
    )
    queue: Name = Field("netsage_deidentifier_raw", min_length=1, validate_default=True, description="Queue to take messages from")
    exchange: Name = Field("amq.direct", description="Exchange that the queue is bound to when it is created; empty: none")
    key: Name = Field("", description="Key that it is bound with; empty: the name of the queue")
    dead_letters: Name = Field("netsage_dead_letters", min_length=1, validate_default=True, description="Queue for dead letters")

    @field_validator("shard", mode="before")
    @classmethod
    def _may_be_empty(cls, shard: Any) -> Any:
        return None if shard == "" else shard

    @field_validator("queue", "key", "dead_letters")
    @classmethod
    def _of_shard(cls, name: str, info: ValidationInfo) -> str:
        shard = info.data.get("shard")
        if shard is None or not name:
            return name
        behind = f".{shard}"
        return named(name, behind=behind) + behind


class QueueSource:
    """Messages of one queue; dead letters go to another one by a connection of their own, opened for the first of them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._servers = servers(config)
        self._consumer = Consumer(self._servers, "input", config.queue, config.exchange, config.key or config.queue)
        self._letters: Publisher | None = None

    @property
    def name(self) -> str:
        return self._config.queue

    @property
    def caught_up(self) -> bool:
        return self._consumer.caught_up

    @property
    def connected(self) -> bool:
        return self._consumer.connected

    @property
    def waiting(self) -> int | None:
        return self._consumer.waiting

    def receive(self, seconds: float) -> list[Delivery]:
        return self._consumer.receive(seconds)

    def turn(self, seconds: float) -> None:
        if self._letters is None or not self._letters.unconfirmed:
            self._consumer.turn(seconds)
        else:
            self._consumer.turn()
            self._letters.turn(seconds)

    def acknowledge(self, receipt: Receipt) -> None:
        self._consumer.acknowledge(receipt)

    def pause(self) -> None:
        self._consumer.pause()

    def bury(self, number: int, message_id: str, letter: bytes) -> None:
        if self._letters is None:
            self._letters = Publisher(self._servers, "dead letters", queue=self._config.dead_letters)
        self._letters.publish(number, "", self._config.dead_letters, letter, message_id)

    def buried(self) -> list[int]:
        if self._letters is None:
            return []
        self._letters.turn()
        return self._letters.confirmed()

    def close(self) -> None:
        self._consumer.close(1.0)
        if self._letters is not None:
            self._letters.close(1.0)


def source(config: Config) -> QueueSource:
    return QueueSource(config)
