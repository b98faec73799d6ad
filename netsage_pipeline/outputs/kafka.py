"""Flows into a Kafka topic, through an idempotent producer that waits for all replicas, for ever.

Within a process every message is in the topic once, and flows of one id are in order. Only what Kafka refuses because of the message itself
is given back; a refusal is of a whole batch of messages, so a message is to blame when it is refused alone.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from functools import partial
from typing import Any, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from netsage_pipeline import waits
from netsage_pipeline.documents import Written, written
from netsage_pipeline.flow import Flow, Stored
from netsage_pipeline.outputs.batches import Batches, encoded

log = structlog.get_logger(__name__)

#: Seconds that a request may take.
REQUEST_S = 30.0

#: Seconds until what Kafka gave back is tried again: a random part of a time that doubles.
FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0

#: Seconds of waiting after which it says so, and for which it goes on when it is told to leave.
PATIENCE_S = 2.0
LEAVING_S = 0.7

#: Seconds that it waits at a time for what comes back.
_POLL_S = 0.1

#: What is refused for what a message holds, and why, in words.
_OF_THE_MESSAGE = {
    KafkaError.MSG_SIZE_TOO_LARGE: "longer than the topic takes, or than max_message_bytes (MSG_SIZE_TOO_LARGE)",
    KafkaError.RECORD_LIST_TOO_LARGE: "longer than a segment of the topic (RECORD_LIST_TOO_LARGE)",
    KafkaError.INVALID_RECORD: "not as the topic demands it (INVALID_RECORD)",
}

#: Why nothing is confirmed, where Kafka's own words do not say what to do.
_PERMISSION = "this user may not write to the topic: give it the permission to (Write)"
_REASONS = {
    KafkaError._ALL_BROKERS_DOWN: "no broker can be reached: see that one runs, and brokers and tls",
    KafkaError._TRANSPORT: "there is no connection: see that a broker runs, and brokers and tls",
    KafkaError._BAD_MSG: "what answers there is no Kafka: correct brokers",
    KafkaError._RESOLVE: "the name of a broker is not known: correct brokers, or see to DNS",
    KafkaError._TIMED_OUT: "it does not answer",
    KafkaError._TIMED_OUT_QUEUE: "it does not answer",
    KafkaError._MSG_TIMED_OUT: "it does not answer",
    KafkaError._AUTHENTICATION: "it refuses the user or the password, or asks for them: correct the settings",
    KafkaError._SSL: "its certificate is not to be trusted, or it does not speak TLS there: see tls and ca_file",
    KafkaError._UNKNOWN_TOPIC: "there is no such topic: create it",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "there is no such topic: create it",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: _PERMISSION,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: _PERMISSION,
}

#: What follows from something that was said before.
_SECONDARY = {KafkaError._ALL_BROKERS_DOWN, KafkaError._FATAL, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}

#: What only somebody can change.
_AT_ONCE = {
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
}


class Message(NamedTuple):
    """A message on its way."""

    batch: int
    key: str | None
    flows: list[Written]
    alone: bool = False  #: whether no other one is in its batch of Kafka's

    @property
    def body(self) -> bytes:
        return self.flows[0].body if len(self.flows) == 1 else b"[" + b",".join(each.body for each in self.flows) + b"]"


class KafkaSink:
    """Batches of flows as messages; a batch is stored when each of its messages is confirmed or refused.

    settings  the client's, as librdkafka names them
    together  flows in a message: 1 with the flow's meta.id as key and its document_id as header; more as an array, without
    """

    def __init__(self, settings: dict[str, Any], topic: str, together: int) -> None:
        self._settings, self._topic, self._together = settings, topic, together
        self._batches = Batches()
        self._waiting: deque[Message] = deque()
        self._back: list[Message] = []  # given back by Kafka for reasons of its own
        self._not_before = 0.0  # monotonic seconds
        self._under_way = 0
        self._refused: Counter[str] = Counter()
        self._pause = FIRST_PAUSE
        self._reason = ""
        self._told: set[str] = set()
        self._moved = time.monotonic()  # when something was last confirmed, or nothing was to be
        self._broken = self._closed = False
        self._shared = self._producer()
        self._single: Producer | None = None  # for messages that are alone in their batches

    def write(self, batch: int, flows: list[Flow]) -> None:
        made, able, refused = encoded(flows, written)
        self._batches.open(batch, len(made), refused)
        if self._together == 1:
            self._waiting += [Message(batch, _key_of(flow), [each]) for flow, each in zip(able, made, strict=True)]
        else:
            self._waiting += [Message(batch, None, made[at : at + self._together]) for at in range(0, len(made), self._together)]
        self._hand_over()

    def stored(self, seconds: float = 0) -> list[Stored]:
        until = time.monotonic() + seconds
        self._turn(0)
        while not self._batches.any_stored and time.monotonic() < until:
            self._turn(min(_POLL_S, until - time.monotonic()))
        return self._batches.stored()

    def close(self) -> None:
        if self._closed:
            return
        until = time.monotonic() + LEAVING_S
        while (self._waiting or self._under_way) and time.monotonic() < until:
            self._turn(_POLL_S)
        self._closed = True
        for producer in filter(None, (self._shared, self._single)):
            producer.purge()
            self._poll(producer, 0)

    # Messages.

    def _turn(self, seconds: float) -> None:
        if self._closed:
            return
        if self._broken and time.monotonic() > self._not_before:
            self._make_anew()
        self._hand_over()
        self._poll(self._shared, max(0.0, seconds))
        if self._single is not None:
            self._poll(self._single, 0)
        self._look()

    def _poll(self, producer: Producer, seconds: float) -> None:
        """Lets the client tell what became of messages."""
        try:
            producer.poll(seconds)
        except KafkaException as error:
            self._give_up(error.args[0])
        except SystemError:  # The client sometimes loses the exception of a signal.
            raise KeyboardInterrupt from None

    def _hand_over(self) -> None:
        """Gives the client what is there, as much as it takes; what Kafka gave back goes first, after a while, so that order is kept."""
        if self._broken or time.monotonic() < self._not_before:
            return
        self._waiting.extendleft(reversed(self._back))
        self._back.clear()
        while self._waiting and not self._broken:
            message = self._waiting.popleft()
            headers: dict[str, str | bytes | None] = {"document_id": message.flows[0].known_as} if self._together == 1 else {}
            self._under_way += 1
            try:
                self._producer_for(message).produce(
                    self._topic, message.body, message.key, on_delivery=partial(self._settle, message), headers=headers
                )
            except BufferError:
                self._under_way -= 1
                self._waiting.appendleft(message)
                return
            except KafkaException as error:  # The client found it without asking: if it is about a message, about this one.
                [why] = error.args
                self._settle(message, why, None, of_this_one=True)

    def _producer_for(self, message: Message) -> Producer:
        if not message.alone:
            return self._shared
        if self._single is None:
            log.warning("Kafka refuses batches that are shorter than max_message_bytes: set it to the topic's max.message.bytes")
            self._single = self._producer(**{"batch.num.messages": 1})
        return self._single

    def _settle(self, message: Message, error: KafkaError | None, _: Any, *, of_this_one: bool = False) -> None:
        """What became of a message."""
        self._under_way -= 1
        if error is None:
            self._batches.write_down(message.batch, len(message.flows))
            self._goes_on()
        elif error.code() not in _OF_THE_MESSAGE:
            if not self._back:
                self._rest()
            self._back.append(message)
            if error.fatal() or error.code() == KafkaError._FATAL:
                self._give_up(error)
            else:
                self._hear(error)
        elif not (message.alone or of_this_one):
            self._waiting.append(message._replace(alone=True))
        elif len(message.flows) > 1:
            half = len(message.flows) // 2
            self._waiting += [message._replace(flows=flows) for flows in (message.flows[:half], message.flows[half:])]
        else:
            reason = _OF_THE_MESSAGE[error.code()]
            self._refused[reason] += 1
            self._batches.refuse(message.batch, (message.flows[0].flow, reason))
            self._goes_on()

    # Producers.

    def _producer(self, **more: Any) -> Producer:
        silent = logging.getLogger(f"{__name__}.client")  # It names addresses; what an operator needs is said here.
        silent.disabled = True
        own = {
            "client.id": "netsage-pipeline",
            "enable.idempotence": True,
            "acks": "all",
            "message.timeout.ms": 0,
            "request.timeout.ms": int(REQUEST_S * 1000),
            "socket.timeout.ms": int(REQUEST_S * 1000),
            "socket.keepalive.enable": True,
            "topic.metadata.propagation.max.ms": 3_000,  # Until it says that there is no such topic.
            "partitioner": "murmur2_random",
            "error_cb": self._hear,
        }
        return Producer({**own, **self._settings, **more}, logger=silent)

    def _give_up(self, error: KafkaError) -> None:
        """A producer failed in a way that it does not come back from."""
        self._hear(error)
        if not self._broken:
            self._broken = True
            self._rest()

    def _make_anew(self) -> None:
        """What was not confirmed goes again, when all of it came back."""
        for producer in filter(None, (self._shared, self._single)):
            producer.purge()
            self._poll(producer, 0)
        if not self._under_way:
            self._shared, self._single, self._broken = self._producer(), None, False

    def _rest(self) -> None:
        """Gives nothing to the client for a while."""
        self._not_before = time.monotonic() + random.uniform(0, self._pause)  # noqa: S311

    # What it says.

    def _hear(self, error: KafkaError) -> None:
        """Takes note of why nothing is confirmed."""
        code = error.code()
        if code in _SECONDARY and self._reason:
            return
        self._reason = _REASONS.get(code) or KafkaError(code).str()  # Not error.str(), which may name addresses.
        if code in _AT_ONCE:
            self._waits()

    def _look(self) -> None:
        now = time.monotonic()
        for reason, count in self._refused.items():
            log.warning(f"{count} refused by Kafka: {reason}")
        self._refused.clear()
        if not (self._under_way or self._waiting or self._back):
            self._moved, self._reason = now, ""
        elif now - self._moved > PATIENCE_S:
            self._reason = self._reason or "it does not answer"
            self._waits()
        self._pause = min(LAST_PAUSE, max(FIRST_PAUSE, now - self._moved))

    def _waits(self) -> None:
        if self._closed:
            return
        waits.begin("Kafka", self._reason)
        if self._reason not in self._told:
            self._told.add(self._reason)
            log.warning("waits for Kafka", reason=self._reason)

    def _goes_on(self) -> None:
        self._moved, self._reason = time.monotonic(), ""
        if self._told and not self._closed:
            self._told.clear()
            waits.end("Kafka")
            log.info("goes on with Kafka")


def _key_of(flow: Flow) -> str | None:
    meta = flow.get("meta")
    known_as = meta.get("id") if meta.__class__ is dict else None
    return known_as if known_as.__class__ is str else None
