"""A link to RabbitMQ that comes back by itself: one connection with one channel.

Nothing runs by itself: whoever owns a link calls `turn`, or a method that does, at least every ten seconds, or the broker takes the link
for dead and gives its messages to somebody else. No call waits for the broker any longer than it was told to. What exists on the broker
is taken as it is; only what is missing is declared.
"""

from __future__ import annotations

import contextlib
import random
import struct
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import pika
import structlog
from pika import frame, spec
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.exceptions import ChannelClosedByBroker

from netsage_pipeline import waits
from netsage_pipeline.rabbitmq.brokers import CONNECT, Server, in_a_line, is_refusal, reason_of

log = structlog.get_logger(__name__)

#: Seconds: for an attempt to connect, names and handshakes included; for leaving politely.
ATTEMPT, LEAVING = 15, 2.0

#: Seconds for the broker to answer all that a setup asks, at first; twice as many each time it did not.
ANSWER = 15.0

#: Seconds between two attempts at all servers: at most so many at first, then twice as many, up to the last.
FIRST_DELAY, LAST_DELAY = 0.2, 15.0

#: A connection that was up for so many seconds was no failure.
STEADY = 5.0


class _MissingError(Exception):
    """Thrown into a setup where what it asked for is not there."""


#: What a link does when it has a channel, a step at a time: yields a call that takes what to call with the answer.
Step = Callable[[Callable[[Any], None]], Any]
Setup = Generator[Step, Any, None]


class Link:
    """A connection with a channel that is there whenever a broker is.

    what   the words for it in logs: "input"
    """

    def __init__(self, servers: list[Server], what: str) -> None:
        self._servers = servers
        self._what = what
        self._loop = IOLoop()
        self._loop.activate_poller()
        self._connection: _Connection | None = None
        self._channel: pika.channel.Channel | None = None
        self._steps: Setup | None = None
        self._ready = False
        self._ready_since = 0.0
        self._turn_of = 0  # which of the servers
        self._failures = 0
        self._unanswered = 0  # Setups, one after the other.
        self._waits_since = 0.0
        self._told: set[str] = set()
        self._events = 0  # Counts what somebody may wait for.
        self._blocked = False
        self._closed = False
        self._was_open = False
        waits.begin(self._broker, "is being connected to")
        self._connect()

    @property
    def connected(self) -> bool:
        """Whether it is set up on a live connection."""
        return self._ready

    def turn(self, seconds: float = 0.0) -> None:
        """Does what is to be done, for at most so many seconds; returns as soon as something happened. 0: what is there now."""
        if not self._closed:
            self._pump(seconds)

    def _pump(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        before = self._events
        while True:
            timer = self._loop.call_later(max(0.0, until - time.monotonic()), _nothing)
            self._loop.poll()
            self._loop.process_timeouts()
            self._loop.remove_timeout(timer)
            if self._events != before or time.monotonic() >= until:
                return

    def close(self, seconds: float = LEAVING) -> None:
        """Leaves, politely if that takes no longer than so many seconds."""
        if self._closed:
            return
        self._closed = True
        until = time.monotonic() + seconds
        connection, self._connection = self._connection, None
        self._lost()
        if connection is not None:
            _leave(connection)
            with contextlib.suppress(Exception):  # pika raises where a connection is closed while it is being made.
                while not connection.is_closed and time.monotonic() < until:
                    self._pump(0.05)
            with contextlib.suppress(Exception):
                if not connection.is_closed:
                    _tear_down(connection)
                    self._pump(0)
                    self._pump(0)
        with contextlib.suppress(Exception):
            self._loop.close()

    @property
    def _broker(self) -> str:
        """What it waits for, for metrics and health."""
        return f"{self._what} broker"

    # What a kind of link does for itself.

    def _set_up(self) -> Setup:
        """The steps from a new channel to a link that can be used."""
        raise NotImplementedError

    def _on_channel(self, channel: pika.channel.Channel) -> None:
        """A channel was opened; nothing was asked of it yet."""

    def _on_ready(self) -> None:
        """It is set up."""

    def _on_loss(self) -> None:
        """The channel is gone, with all that was under way on it."""

    # Connections.

    @property
    def _server(self) -> Server:
        return self._servers[self._turn_of]

    def _connect(self) -> None:
        if self._closed or self._connection is not None:
            return
        self._connection = connection = _Connection(
            self._server.parameters,
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_open_error,
            on_close_callback=self._on_close,
            custom_ioloop=self._loop,
        )
        self._loop.call_later(ATTEMPT, partial(self._give_up, connection))

    def _give_up(self, connection: SelectConnection) -> None:
        """Ends an attempt that pika does not end, as where the resolver of names is silent."""
        if self._connection is connection and not connection.is_open:
            self._on_open_error(connection, TimeoutError("no answer"))
            _leave(connection)

    def _on_open(self, connection: SelectConnection) -> None:
        if connection is not self._connection:
            _leave(connection)
            return
        if self._was_open:
            waits.reconnected(self._what)
        self._was_open = True
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._open_channel(connection)

    def _on_open_error(self, connection: SelectConnection, error: BaseException | str | None) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._events += 1
        self._waits(reason_of(error), at_once=is_refusal(error))
        self._turn_of = (self._turn_of + 1) % len(self._servers)
        if self._turn_of:  # Another one may be there: it is asked at once.
            self._loop.call_later(0, self._connect)
            return
        self._loop.call_later(self._delay(), self._connect)

    def _on_close(self, connection: SelectConnection, error: BaseException) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._waits(reason_of(error))
        self._lost()
        self._turn_of = (self._turn_of + 1) % len(self._servers)
        self._loop.call_later(self._delay(), self._connect)

    def _delay(self) -> float:
        most = min(LAST_DELAY, FIRST_DELAY * 2 ** min(self._failures, 10))
        self._failures += 1
        return random.uniform(0, most)  # noqa: S311

    def _lost(self) -> None:
        if self._ready and time.monotonic() - self._ready_since > STEADY:
            self._failures = 0
        self._ready = False
        self._channel = None
        self._steps = None
        self._blocked = False
        self._events += 1
        self._on_loss()

    def _on_blocked(self, _connection: Any, method: Any) -> None:
        self._blocked = True
        self._events += 1
        reason = f"it is {in_a_line(method.method.reason)}"
        waits.begin(self._broker, reason)
        log.warning("waits for RabbitMQ", link=self._what, server=self._server.name, reason=reason)

    def _on_unblocked(self, _connection: Any, _method: Any) -> None:
        self._blocked = False
        self._events += 1
        waits.end(self._broker)
        log.info("goes on with RabbitMQ", link=self._what, server=self._server.name)

    # Channels.

    def _open_channel(self, connection: SelectConnection, then: Callable[[], None] | None = None) -> None:
        if connection is self._connection and connection.is_open and self._channel is None:
            self._channel = connection.channel(on_open_callback=partial(self._on_channel_open, then))
            self._channel.add_on_close_callback(self._on_channel_closed)
            self._channel.add_on_cancel_callback(self._on_cancelled)
            self._expect_answer(partial(self._opens, self._channel))

    def _on_channel_open(self, then: Callable[[], None] | None, channel: pika.channel.Channel) -> None:
        if channel is not self._channel:
            return
        self._on_channel(channel)
        if then:
            then()
        else:
            self._begin()

    def _on_channel_closed(self, channel: pika.channel.Channel, error: BaseException) -> None:
        """A channel that is closed because its connection is has nothing to say; one that failed is opened once more."""
        connection = self._connection
        if channel is not self._channel or connection is None or not connection.is_open:
            return
        steps = self._steps
        if steps is not None and isinstance(error, ChannelClosedByBroker) and error.reply_code == 404:
            self._channel = None
            self._loop.call_later(0, partial(self._open_channel, connection, partial(self._advance, steps, missing=error)))
            return
        self._waits(reason_of(error), at_once=is_refusal(error))
        self._lost()
        self._loop.call_later(self._delay(), partial(self._open_channel, connection))

    def _on_cancelled(self, _method: Any) -> None:
        """The queue of a consumer was deleted, or its node went down."""
        self._waits("the queue is gone")
        self._open_anew()

    def _open_anew(self) -> None:
        self._drop_channel()
        if self._connection is not None:
            self._loop.call_later(self._delay(), partial(self._open_channel, self._connection))

    def _drop_channel(self) -> pika.channel.Channel | None:
        channel = self._channel
        self._lost()
        if channel is not None and channel.is_open:
            channel.close()
        return channel

    # Setup.

    def _begin(self) -> None:
        self._ready = False
        self._steps = self._set_up()
        self._loop.call_later(CONNECT, partial(self._still_asks, self._steps))
        self._expect_answer(partial(self._asks, self._steps))
        self._advance(self._steps)

    def _opens(self, channel: pika.channel.Channel) -> bool:
        return channel is self._channel and channel.is_opening

    def _asks(self, steps: Setup) -> bool:
        return steps is self._steps

    def _still_asks(self, steps: Setup) -> None:
        if self._asks(steps):
            self._waits("it does not answer what was asked of a queue or an exchange")

    def _expect_answer(self, misses: Callable[[], bool]) -> None:
        seconds = ANSWER * 2 ** min(self._unanswered, 3)
        self._loop.call_later(seconds, partial(self._give_up_asking, misses))

    def _give_up_asking(self, misses: Callable[[], bool]) -> None:
        """Connects anew: a connection whose broker lost what should answer lives on for ever."""
        connection = self._connection
        if connection is None or not misses():
            return
        if self._blocked:  # It does not even read.
            self._expect_answer(misses)
            return
        self._unanswered += 1
        self._on_close(connection, TimeoutError())
        _tear_down(connection)  # Closing politely would wait for the channel.

    def _advance(self, steps: Setup, answer: Any = None, missing: ChannelClosedByBroker | None = None) -> None:
        if steps is not self._steps:
            return
        try:
            step = steps.send(answer) if missing is None else steps.throw(_MissingError())
        except StopIteration:
            self._steps = None
            self._goes_on()
            return
        except _MissingError:  # Nothing can be created in its stead.
            self._waits(reason_of(missing), at_once=True)
            self._open_anew()
            return
        step(partial(self._advance, steps))

    def _goes_on(self) -> None:
        self._ready = True
        self._ready_since = time.monotonic()
        self._events += 1
        if self._waits_since:
            seconds = round(time.monotonic() - self._waits_since, 1)
            log.info("goes on with RabbitMQ", link=self._what, server=self._server.name, after_s=seconds)
        if not self._blocked:
            waits.end(self._broker)
        self._waits_since = 0.0
        self._unanswered = 0
        self._told.clear()
        self._on_ready()

    def _waits(self, reason: str, *, at_once: bool = False) -> None:
        """Says once what is waited for, and once more what only somebody can change."""
        said = bool(self._waits_since)
        self._waits_since = self._waits_since or time.monotonic()
        key = f"{self._server.name} {reason}"
        if not self._closed:
            waits.begin(self._broker, reason)
        if not self._closed and (not said or (at_once and key not in self._told)):
            log.warning("waits for RabbitMQ", link=self._what, server=self._server.name, reason=reason)
            self._told.add(key)

    def _declared_queue(self, queue: str, exchange: str = "", key: str = "") -> Generator[Step, Any, bool]:
        """Steps that create a durable queue where it is missing, bound where an exchange is named. Whether it was missing."""
        try:
            yield lambda done: self._open.queue_declare(queue, passive=True, callback=done)
            return False
        except _MissingError:
            if not exchange:
                yield lambda done: self._open.queue_declare(queue, durable=True, callback=done)
                return True
        yield from self._declared_exchange(exchange)
        yield partial(self._create_bound, queue, exchange, key)
        return True

    def _create_bound(self, queue: str, exchange: str, key: str, done: Callable[[Any], None]) -> None:
        """Without waiting between the two: nobody binds a queue that is there."""
        self._open.queue_declare(queue, durable=True)
        self._open.queue_bind(queue, exchange, key, callback=done)

    def _declared_exchange(self, exchange: str) -> Generator[Step, Any, bool]:
        """Steps that create a durable direct exchange where it is missing. Whether it was."""
        try:
            yield lambda done: self._open.exchange_declare(exchange, passive=True, callback=done)
            return False
        except _MissingError:
            yield lambda done: self._open.exchange_declare(exchange, "direct", durable=True, callback=done)
            return True

    @property
    def _open(self) -> pika.channel.Channel:
        assert self._channel is not None
        return self._channel


class _Connection(SelectConnection):
    """pika's, except that headers of a message that it cannot read, by which anybody could stop a receiver, are left out."""

    @property
    def read_so_far(self) -> int:
        """Bytes, those of a frame that is not complete yet among them."""
        return int(self.bytes_received) + len(self._frame_buffer)  # type: ignore[attr-defined]

    def _on_connection_workflow_done(self, result: Any) -> None:
        """An error may come as its class, where a handshake is given up: pika takes that for a connection, and fails."""
        super()._on_connection_workflow_done(result() if isinstance(result, type) else result)  # type: ignore[misc]

    def _read_frame(self) -> tuple[int, Any]:
        try:
            return frame.decode_frame(self._frame_buffer)  # type: ignore[attr-defined]
        except Exception:
            buffer: bytes = self._frame_buffer  # type: ignore[attr-defined]
            kind, channel, size = struct.unpack_from(">BHL", buffer)
            payload = buffer[7 : 7 + size]
            if kind != spec.FRAME_HEADER:
                raise
            _, _, body_size = struct.unpack_from(">HHQ", payload)
            return size + 8, frame.Header(channel, body_size, _readable_properties(payload))


def _readable_properties(payload: bytes) -> pika.BasicProperties:
    """The message_id among the properties of a content header."""
    (flags,) = struct.unpack_from(">H", payload, 12)
    at = 14
    for flag, size in _BEFORE_MESSAGE_ID:
        if flags & flag:
            at += size or (payload[at] + 1 if flag != pika.BasicProperties.FLAG_HEADERS else struct.unpack_from(">L", payload, at)[0] + 4)
    if not flags & pika.BasicProperties.FLAG_MESSAGE_ID:
        return pika.BasicProperties()
    return pika.BasicProperties(message_id=payload[at + 1 : at + 1 + payload[at]].decode("utf-8", "backslashreplace"))


#: The properties that stand before message_id, with their sizes; 0: they begin with their length.
_BEFORE_MESSAGE_ID = [
    (pika.BasicProperties.FLAG_CONTENT_TYPE, 0),
    (pika.BasicProperties.FLAG_CONTENT_ENCODING, 0),
    (pika.BasicProperties.FLAG_HEADERS, 0),
    (pika.BasicProperties.FLAG_DELIVERY_MODE, 1),
    (pika.BasicProperties.FLAG_PRIORITY, 1),
    (pika.BasicProperties.FLAG_CORRELATION_ID, 0),
    (pika.BasicProperties.FLAG_REPLY_TO, 0),
    (pika.BasicProperties.FLAG_EXPIRATION, 0),
]


def _nothing() -> None:
    pass


def _leave(connection: SelectConnection) -> None:
    with contextlib.suppress(Exception):  # It may be closed, or closing, or not open yet.
        connection.close()


def _tear_down(connection: SelectConnection) -> None:
    with contextlib.suppress(Exception):
        connection._terminate_stream(TimeoutError())  # type: ignore[attr-defined]
