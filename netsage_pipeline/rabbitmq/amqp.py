"""RabbitMQ: taking messages from a queue, and publishing them with confirms, over links that come back by themselves."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import pika
import structlog

from netsage_pipeline import waits
from netsage_pipeline.flow import Delivery
from netsage_pipeline.rabbitmq.brokers import Server
from netsage_pipeline.rabbitmq.link import Link, Setup

log = structlog.get_logger(__name__)

#: A batch of messages: at most so many, with bodies that are at most so long together, but at least one.
BATCH_MESSAGES = 200
BATCH_BYTES = 2_000_000

#: Messages that the broker sends before one is acknowledged. A chain that holds nothing acknowledges them when their flows are stored.
PREFETCH = 2_000

#: Published and not yet confirmed: at most so many, and no further one once they are so long together.
WINDOW_MESSAGES = 500
WINDOW_BYTES = 32_000_000

#: Seconds until what nobody took is published again, at first and at last.
FIRST_AGAIN, LAST_AGAIN = 1.0, 30.0

#: Bodies that wait to be received are at most so long together, but for the last one; and seconds for which such a heap is kept.
BUFFER_BYTES = 64_000_000
UNWANTED = 10.0


#: The longest short string of AMQP.
SHORT_STRING_BYTES = 255

#: Seconds after which a consumer asks how many messages are left though it has enough of them.
ASKED_S = 5.0

#: Seconds without an answer after which nobody knows what is in the queue: a link that is silent is lost only when heartbeats were missed.
ANSWERED_S = 2.0

#: What a message is acknowledged by: its channel and its number there.
Receipt = tuple[Any, int]


class Consumer(Link):
    """Takes messages from a queue, a batch at a time.

    queue      is created, durable and bound to the exchange with the key, where it is missing
    """

    def __init__(self, servers: list[Server], what: str, queue: str, exchange: str = "", key: str = "") -> None:
        self._queue, self._exchange, self._key = queue, exchange, key
        self._buffer: deque[Delivery] = deque()
        self._buffered_bytes = 0
        self._last_delivery = 0.0
        self._asked = 0.0
        self._answers = True  # whether no question is under way
        self._empty = False
        self._paused = False
        self.waiting: int | None = None  #: messages that nobody was given yet, when it last asked
        self._received = 0.0  # when somebody last asked for messages
        super().__init__(servers, what)

    def receive(self, seconds: float) -> list[Delivery]:
        """The next batch, in order: waits for a first message for at most so many seconds, and for no further one."""
        if self._paused:
            self._go_on()
        self._received = time.monotonic()
        until = self._received + seconds
        if self._received - self._asked >= ASKED_S:
            self._ask()
        self._read()
        while not self._buffer:
            if time.monotonic() - max(self._last_delivery, self._asked) >= 1.0:
                self._ask()
            rest = until - time.monotonic()
            if rest <= 0:
                return []
            super().turn(min(rest, 1.0))
            self._read()
        return self._batch()

    def _read(self) -> None:
        """Takes in what is there, about as much as a batch may hold: a broker that cannot send for 15 s closes the connection."""
        begin = before = self._connection.read_so_far if self._connection is not None else 0
        while not self._full:
            super().turn(0)
            now = self._connection.read_so_far if self._connection is not None else before
            if now == before or now - begin > BATCH_BYTES:
                return
            before = now

    def acknowledge(self, receipt: Receipt) -> None:
        """Acknowledges a message and all before it, unless its channel is gone: then they are going to come again."""
        channel, tag = receipt
        if self._channel is not None and channel is self._channel and self._channel.is_open:
            self._channel.basic_ack(tag, multiple=True)
            super().turn(0)

    def pause(self) -> None:
        """Gives the broker back what is not acknowledged, and takes nothing until the next receive."""
        if self._paused:
            return
        self._paused = True
        channel = self._drop_channel()
        until = time.monotonic() + 0.5
        while channel is not None and not channel.is_closed and time.monotonic() < until:
            super().turn(0.05)

    def _go_on(self) -> None:
        self._paused = False
        if self._channel is None and self._connection is not None:
            self._open_channel(self._connection)
        elif self._channel is not None and self._channel.is_open and self._steps is None:
            self._begin()

    @property
    def connected(self) -> bool:
        return self._ready and not self._paused

    def turn(self, seconds: float = 0.0) -> None:
        """Also takes in what comes, until that is too much to be held; when nobody wants it for long, the broker gets it back."""
        if not self._full:
            super().turn(seconds)
        elif time.monotonic() - self._received < UNWANTED:
            time.sleep(min(seconds, UNWANTED))
        else:
            self.pause()

    @property
    def caught_up(self) -> bool:
        """Whether nothing was delivered for a second, and the queue was empty when it was last asked, after that, and goes on answering."""
        now = time.monotonic()
        answered = self._answers or now - self._asked < ANSWERED_S
        return self.connected and self._empty and answered and not self._buffer and now - self._last_delivery >= 1.0

    @property
    def _full(self) -> bool:
        return self._buffered_bytes >= BUFFER_BYTES

    def _batch(self) -> list[Delivery]:
        batch: list[Delivery] = []
        size = 0
        while self._buffer and len(batch) < BATCH_MESSAGES:
            longer = size + len(self._buffer[0].body)
            if batch and longer > BATCH_BYTES:
                break
            size = longer
            batch.append(self._buffer.popleft())
        self._buffered_bytes -= size
        return batch

    def _ask(self) -> None:
        """Asks how many messages are left."""
        if self._ready and self._answers:
            self._asked, self._answers = time.monotonic(), False
            self._open.queue_declare(self._queue, passive=True, callback=self._on_count)

    def _on_count(self, answer: Any) -> None:
        self._answers = True
        self.waiting = answer.method.message_count
        self._empty = answer.method.message_count == 0 and self._last_delivery < self._asked
        self._events += 1

    def _set_up(self) -> Setup:
        if self._paused:
            return
        yield from self._declared_queue(self._queue, self._exchange, self._key)
        yield lambda done: self._open.basic_qos(prefetch_count=PREFETCH, callback=done)
        yield lambda done: self._open.basic_consume(self._queue, self._on_message, callback=done)

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if channel is not self._channel:
            return
        known_as = properties.message_id or ""
        if known_as.__class__ is bytes:  # Its sender does not write UTF-8.
            known_as = known_as.decode("utf-8", "backslashreplace")
        self._buffer.append(Delivery(body, known_as, (channel, method.delivery_tag)))
        self._buffered_bytes += len(body)
        self._last_delivery = time.monotonic()
        self._empty = False
        self._events += 1

    def _on_loss(self) -> None:
        self._buffer.clear()
        self._buffered_bytes = 0
        self._answers, self._empty, self.waiting = True, False, None


class _Message:
    """A message until it is confirmed."""

    __slots__ = ("body", "exchange", "key", "properties", "returned", "token")

    def __init__(self, token: Any, exchange: str, key: str, body: bytes, properties: pika.BasicProperties) -> None:
        self.token = token
        self.exchange = exchange
        self.key = key
        self.body = body
        self.properties = properties
        self.returned = False


class Publisher(Link):
    """Publishes messages and keeps each until the broker confirmed that it is on disk.

    queue      is created where it is missing, and bound to the exchange with the key; "": none is
    exchange   is created where it is missing; "": the default one, by which messages reach a queue of the name of their key
    shards     what is added to the names of both: so many queues are there instead of one
    """

    def __init__(
        self, servers: list[Server], what: str, exchange: str = "", queue: str = "", key: str = "", shards: Sequence[str] = ("",)
    ) -> None:
        self._exchange = exchange
        self._queues = {f"{queue}{shard}": f"{key}{shard}" for shard in shards} if queue else {}
        self._waiting: deque[_Message] = deque()
        self._written: OrderedDict[int, _Message] = OrderedDict()  # by their numbers on this channel
        self._written_bytes = 0
        self._number = 0
        self._confirms = False  # whether the broker was told to confirm on this channel
        self._held: list[_Message] = []  # what nobody took
        self._confirmed: list[Any] = []
        self._again_after = FIRST_AGAIN
        self._held_until = 0.0
        self._probes = False  # whether one message at a time finds out if they are taken again
        self._says_so = True
        super().__init__(servers, what)

    @property
    def unconfirmed(self) -> int:
        """How many messages were given and are not confirmed."""
        return len(self._waiting) + len(self._written) + len(self._held)

    def publish(self, token: Any, exchange: str, key: str, body: bytes, message_id: str, headers: dict[str, Any] | None = None) -> None:
        """Takes a message in; `confirmed` gives its token when it is stored. Never waits.

        message_id   any text; a digest of it is sent in place of one that is longer than a short string of AMQP
        """
        if len(encoded := message_id.encode()) > SHORT_STRING_BYTES:
            message_id = blake2b(encoded, digest_size=16).hexdigest()
        properties = pika.BasicProperties(content_type="application/json", delivery_mode=2, message_id=message_id, headers=headers)
        self._waiting.append(_Message(token, exchange, key, body, properties))
        if self._ready:
            self._write()

    def confirmed(self) -> list[Any]:
        """The tokens of the messages that are stored by now, each once."""
        confirmed, self._confirmed = self._confirmed, []
        return confirmed

    def flush(self, seconds: float) -> None:
        """Waits until all is confirmed, at most so many seconds."""
        until = time.monotonic() + seconds
        while self.unconfirmed and self._ready and time.monotonic() < until:
            self.turn(until - time.monotonic())

    def _set_up(self) -> Setup:
        made = bool(self._exchange) and (yield from self._declared_exchange(self._exchange))
        for queue, key in self._queues.items():
            missing = yield from self._declared_queue(queue, self._exchange, key)
            if self._exchange and (made or self._probes) and not missing:  # Whoever created it may have died before it was bound.
                yield partial(self._bind, queue, key)
        if not self._confirms:
            yield lambda done: self._open.confirm_delivery(self._on_confirm, callback=done)
            self._confirms = True

    def _bind(self, queue: str, key: str, done: Callable[[Any], None]) -> None:
        self._open.queue_bind(queue, self._exchange, key, callback=done)

    def _on_channel(self, channel: pika.channel.Channel) -> None:
        self._number, self._confirms = 0, False
        channel.add_on_return_callback(self._on_return)

    def _on_ready(self) -> None:
        self._write()

    @property
    def _receiver(self) -> str:
        return f"{self._what} queue"

    def _write(self) -> None:
        """Gives the broker what it may have at once."""
        if self._held_until:
            return
        window = 1 if self._probes else WINDOW_MESSAGES
        while self._waiting and self._ready and not self._blocked and len(self._written) < window:
            if self._written and self._written_bytes >= WINDOW_BYTES:
                return
            message = self._waiting.popleft()
            self._number += 1
            self._written[self._number] = message
            self._written_bytes += len(message.body)
            self._open.basic_publish(message.exchange, message.key, message.body, message.properties, mandatory=True)

    def _on_confirm(self, confirmation: Any) -> None:
        method = confirmation.method
        taken = method.NAME == "Basic.Ack"
        if method.multiple:
            while self._written and next(iter(self._written)) <= method.delivery_tag:
                self._settle(self._written.popitem(last=False)[1], taken)
        else:
            message = self._written.pop(method.delivery_tag, None)
            if message is not None:
                self._settle(message, taken)
        self._write()

    def _settle(self, message: _Message, taken: bool) -> None:
        self._written_bytes -= len(message.body)
        if not taken or message.returned:
            self._hold(message, "" if taken else "the queue refuses messages: it may be full")
            return
        self._confirmed.append(message.token)
        self._events += 1
        if self._probes:
            self._probes, self._again_after = False, FIRST_AGAIN
            waits.end(self._receiver)
            if not self._says_so:
                log.info("goes on with RabbitMQ", link=self._what, server=self._server.name)
            self._says_so = True

    def _on_return(self, _channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        """Comes before the confirmation of the message, which says nothing of it."""
        for message in self._written.values():
            if not message.returned and message.properties.message_id == properties.message_id and message.key == method.routing_key:
                message.returned = True
                return

    def _hold(self, message: _Message, reason: str) -> None:
        """Keeps what nobody took, to be published again."""
        message.returned = False
        self._held.append(message)
        if self._says_so:
            self._says_so = False
            where = f"exchange '{message.exchange}' with key" if message.exchange else "the default exchange with key"
            reason = reason or f"no queue takes messages of {where} '{message.key}': bind one"
            waits.begin(self._receiver, reason)
            log.warning("waits for RabbitMQ", link=self._what, server=self._server.name, reason=reason)
        if not self._held_until:
            self._held_until = time.monotonic() + self._again_after
            self._loop.call_later(self._again_after, self._again)
            self._again_after = min(LAST_AGAIN, 2 * self._again_after)

    def _again(self) -> None:
        """Sets up once more, because the queue may have been deleted, and tries with one message."""
        if self._written and self._ready:
            self._loop.call_later(0.1, self._again)
            return
        self._waiting.extendleft(reversed(self._held))
        self._held.clear()
        self._held_until = 0.0
        self._probes = True
        if self._ready:
            self._begin()

    def _on_loss(self) -> None:
        for message in reversed(self._written.values()):
            message.returned = False
            self._waiting.appendleft(message)
        self._written.clear()
        self._written_bytes = 0
