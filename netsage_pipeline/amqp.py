"""RabbitMQ: links that come back by themselves, for an input that takes messages and an output that publishes them.

A link is one connection with one channel. Nothing runs by itself: whoever owns a link calls `turn`, or a method that does, at least
every ten seconds, or the broker takes the link for dead and gives its messages to somebody else. No call waits for the broker any
longer than it was told to. What exists on the broker is taken as it is; only what is missing is declared.
"""

from __future__ import annotations

import contextlib
import logging
import random
import ssl
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pika
import structlog
from pika import frame, spec
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.exceptions import (
    AMQPHeartbeatTimeout,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionOpenAborted,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)
from pydantic import Field, SecretStr, ValidationInfo, field_validator

from netsage_pipeline.config import Settings, SettingsError
from netsage_pipeline.flow import Delivery

log = structlog.get_logger(__name__)

#: A batch of messages: at most so many, with bodies that are at most so long together, but at least one.
BATCH_MESSAGES = 200
BATCH_BYTES = 2_000_000

#: Published and not yet confirmed: at most so many, and no further one once they are so long together.
WINDOW_MESSAGES = 500
WINDOW_BYTES = 32_000_000

#: Seconds: to connect, to shake hands, to resolve a name and all of it; silence after which a peer is dead; leaving politely.
CONNECT, HANDSHAKE, ATTEMPT, HEARTBEAT, LEAVING = 3, 8, 15, 30, 2.0

#: Seconds between two attempts at all servers: at most so many at first, then twice as many, up to the last.
FIRST_DELAY, LAST_DELAY = 0.2, 15.0

#: Seconds until what nobody took is published again, at first and at last.
FIRST_AGAIN, LAST_AGAIN = 1.0, 30.0

#: Bodies that wait to be received are at most so long together, but for the last one; and seconds for which such a heap is kept.
BUFFER_BYTES = 64_000_000
UNWANTED = 10.0

#: A connection that was up for so many seconds was no failure.
STEADY = 5.0

_PORTS = {"amqp": 5672, "amqps": 5671}


class Broker(Settings):
    """How a broker is reached: the part that the Configs of an input and of an output share."""

    url: SecretStr = Field(
        SecretStr("amqp://localhost:5672/"),
        description="amqp://user:password@host:port/vhost, with TLS amqps://; several, separated by commas, are tried in turn "
        "(write a comma in a password as %2C); default: the broker of this machine",
    )
    ca_file: Path | None = Field(
        None, description="Certificates of the authorities that amqps servers are checked by; not set: the system's"
    )
    client_certificate_file: Path | None = Field(None, description="Certificate that we show an amqps server")
    client_key_file: Path | None = Field(None, description="Its key, where it is not in the same file")

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: SecretStr) -> SecretStr:
        each = url.get_secret_value().split(",")
        for number, one in enumerate(each, 1):
            wrong = _wrong_with(one.strip())
            if wrong:
                where = f"URL {number} of {len(each)} " if len(each) > 1 else "it "
                raise ValueError(f"{where}{wrong}: write amqp://user:password@host:5672/vhost")
        return url

    @field_validator("client_key_file")
    @classmethod
    def _has_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key is not None and info.data.get("client_certificate_file") is None:
            raise ValueError("a key without its certificate: set client_certificate_file too")
        return key


def _wrong_with(url: str) -> str:
    """What is wrong with a URL, in words that hold nothing of it; "" if nothing is."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS:
            return "does not begin with amqp:// or amqps://"
        if not parts.hostname:
            return "names no host"
        if parts.port == 0:
            return "names no port that can be used"
        if "@" in parts.path + parts.query + parts.fragment:  # The password went on: what looks like the host is a part of it.
            raise ValueError
        pika.URLParameters(url)
    except Exception:  # Its text may hold the password.
        return "is no URL (a special character in a user name or password is written as %40 for @, %2F for /, %3A for :)"
    return ""


class Server(NamedTuple):
    """One broker of the list: `name` is host:port, for logs."""

    name: str
    parameters: pika.connection.Parameters


def servers(broker: Broker) -> list[Server]:
    """The brokers that the settings name, in order. SettingsError if a file for TLS cannot be used."""
    context = _context(broker) if "amqps:" in broker.url.get_secret_value() else None
    return [_server(url.strip(), context) for url in broker.url.get_secret_value().split(",")]


def _server(url: str, context: ssl.SSLContext | None) -> Server:
    parts = urlsplit(url)
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = CONNECT
    parameters.stack_timeout = HANDSHAKE
    parameters.connection_attempts = 1
    parameters.blocked_connection_timeout = None
    if "heartbeat=" not in parts.query:
        parameters.heartbeat = HEARTBEAT
    if parts.scheme == "amqps" and context is not None:
        parameters.ssl_options = pika.SSLOptions(context, parts.hostname)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return Server(f"{host}:{parts.port or _PORTS[parts.scheme]}", parameters)


def _context(broker: Broker) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=broker.ca_file)
    except OSError as error:
        raise SettingsError([f"ca_file: {broker.ca_file}: {_unusable(error)}"]) from None
    if broker.client_certificate_file is not None:
        try:
            context.load_cert_chain(broker.client_certificate_file, broker.client_key_file, password="")
        except (OSError, ValueError) as error:
            files = ", ".join(str(file) for file in (broker.client_certificate_file, broker.client_key_file) if file)
            raise SettingsError([f"client_certificate_file: {files}: {_unusable(error)}"]) from None
    return context


def _unusable(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "is no certificate, or does not fit its key: give them as PEM, the key without a passphrase"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


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
        _quieten()
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
        self._waits_since = 0.0
        self._told: set[str] = set()
        self._events = 0  # Counts what somebody may wait for.
        self._blocked = False
        self._closed = False
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
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._open_channel(connection)

    def _on_open_error(self, connection: SelectConnection, error: BaseException | str | None) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._events += 1
        self._waits(reason_of(error), at_once=_is_refusal(error))
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
        log.warning("waits for RabbitMQ", link=self._what, server=self._server.name, reason=f"it is {_line(method.method.reason)}")

    def _on_unblocked(self, _connection: Any, _method: Any) -> None:
        self._blocked = False
        self._events += 1
        log.info("goes on with RabbitMQ", link=self._what, server=self._server.name)

    # Channels.

    def _open_channel(self, connection: SelectConnection, then: Callable[[], None] | None = None) -> None:
        if connection is self._connection and connection.is_open and self._channel is None:
            self._channel = connection.channel(on_open_callback=partial(self._on_channel_open, then))
            self._channel.add_on_close_callback(self._on_channel_closed)
            self._channel.add_on_cancel_callback(self._on_cancelled)

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
        self._waits(reason_of(error), at_once=_is_refusal(error))
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
        self._advance(self._steps)

    def _still_asks(self, steps: Setup) -> None:
        if steps is self._steps:
            self._waits("it does not answer what was asked of a queue or an exchange")

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
        self._waits_since = 0.0
        self._told.clear()
        self._on_ready()

    def _waits(self, reason: str, *, at_once: bool = False) -> None:
        """Says once what is waited for, and once more what only somebody can change."""
        said = bool(self._waits_since)
        self._waits_since = self._waits_since or time.monotonic()
        key = f"{self._server.name} {reason}"
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


class Consumer(Link):
    """Takes messages from a queue, a batch at a time.

    queue      is created, durable and bound to the exchange with the key, where it is missing
    """

    def __init__(self, servers: list[Server], what: str, queue: str, exchange: str = "", key: str = "") -> None:
        self._queue, self._exchange, self._key = queue, exchange, key
        self._buffer: deque[tuple[int, Delivery]] = deque()
        self._buffered_bytes = 0
        self._last_tag = 0  # of what receive returned last, on this channel
        self._acknowledged = 0
        self._last_delivery = 0.0
        self._asked = 0.0
        self._answers = True  # whether no question is under way
        self._empty = False
        self._paused = False
        self._received = 0.0  # when somebody last asked for messages
        super().__init__(servers, what)

    def receive(self, seconds: float) -> list[Delivery]:
        """The next batch, in order: waits for a first message for at most so many seconds, and for no further one."""
        if self._paused:
            self._go_on()
        self._received = time.monotonic()
        until = self._received + seconds
        self._read()
        while not self._buffer:
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

    def acknowledge(self) -> None:
        """Acknowledges all that receive returned, unless its connection was lost: then it is going to come again."""
        if self._last_tag > self._acknowledged and self._channel is not None and self._channel.is_open:
            self._channel.basic_ack(self._last_tag, multiple=True)
            self._acknowledged = self._last_tag
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
        """Whether nothing was delivered for a second and the queue was empty when it was last asked, after that."""
        return self.connected and self._empty and not self._buffer and time.monotonic() - self._last_delivery >= 1.0

    @property
    def _full(self) -> bool:
        return self._buffered_bytes >= BUFFER_BYTES

    def _batch(self) -> list[Delivery]:
        batch: list[Delivery] = []
        size = 0
        while self._buffer and len(batch) < BATCH_MESSAGES:
            longer = size + len(self._buffer[0][1].body)
            if batch and longer > BATCH_BYTES:
                break
            size = longer
            self._last_tag, delivery = self._buffer.popleft()
            batch.append(delivery)
        self._buffered_bytes -= size
        return batch

    def _ask(self) -> None:
        """Asks how many messages are left, where that is worth knowing."""
        now = time.monotonic()
        if self._ready and self._answers and now - max(self._last_delivery, self._asked) >= 1.0:
            self._asked, self._answers = now, False
            self._open.queue_declare(self._queue, passive=True, callback=self._on_count)

    def _on_count(self, answer: Any) -> None:
        self._answers = True
        self._empty = answer.method.message_count == 0 and self._last_delivery < self._asked
        self._events += 1

    def _set_up(self) -> Setup:
        if self._paused:
            return
        yield from self._declared_queue(self._queue, self._exchange, self._key)
        yield lambda done: self._open.basic_qos(prefetch_count=2 * BATCH_MESSAGES, callback=done)
        yield lambda done: self._open.basic_consume(self._queue, self._on_message, callback=done)

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        if channel is not self._channel:
            return
        known_as = properties.message_id or ""
        if known_as.__class__ is bytes:  # Its sender does not write UTF-8.
            known_as = known_as.decode("utf-8", "backslashreplace")
        self._buffer.append((method.delivery_tag, Delivery(body, known_as)))
        self._buffered_bytes += len(body)
        self._last_delivery = time.monotonic()
        self._empty = False
        self._events += 1

    def _on_loss(self) -> None:
        self._buffer.clear()
        self._buffered_bytes = self._last_tag = self._acknowledged = 0
        self._answers, self._empty = True, False


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
    """

    def __init__(self, servers: list[Server], what: str, exchange: str = "", queue: str = "", key: str = "") -> None:
        self._exchange, self._queue, self._key = exchange, queue, key
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
        """Takes a message in; `confirmed` gives its token when it is stored. Never waits."""
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
        if self._queue:
            missing = yield from self._declared_queue(self._queue, self._exchange, self._key)
            if self._exchange and (made or self._probes) and not missing:  # Whoever created it may have died before it was bound.
                yield lambda done: self._open.queue_bind(self._queue, self._exchange, self._key, callback=done)
        if not self._confirms:
            yield lambda done: self._open.confirm_delivery(self._on_confirm, callback=done)
            self._confirms = True

    def _on_channel(self, channel: pika.channel.Channel) -> None:
        self._number, self._confirms = 0, False
        channel.add_on_return_callback(self._on_return)

    def _on_ready(self) -> None:
        self._write()

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


class _Connection(SelectConnection):
    """pika's, except that headers of a message that it cannot read, by which anybody could stop a receiver, are left out."""

    @property
    def read_so_far(self) -> int:
        """Bytes, those of a frame that is not complete yet among them."""
        return int(self.bytes_received) + len(self._frame_buffer)  # type: ignore[attr-defined]

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


def _quieten() -> None:
    """pika says each thing several times and names what it was given; what an operator needs is said here."""
    verbose = logging.getLogger().isEnabledFor(logging.DEBUG)
    logging.getLogger("pika").setLevel(logging.INFO if verbose else logging.CRITICAL)


_REASONS: list[tuple[type[BaseException], str]] = [
    (ProbableAuthenticationError, "it refuses the user or the password: correct them in the url"),
    (ProbableAccessDeniedError, "it has no such virtual host, or the user may not use it: correct the url or its permissions"),
    (IncompatibleProtocolError, "it does not speak AMQP 0-9-1 there: is it a port for TLS (amqps), or for something else?"),
    (ssl.SSLCertVerificationError, "its certificate is not to be trusted"),
    (AMQPHeartbeatTimeout, "it was silent"),
    (TimeoutError, "it does not answer"),
    (ConnectionOpenAborted, "it does not answer"),
]


def _causes(error: Any) -> Iterator[BaseException]:
    """An error and what it holds, pika's way, down to what happened first."""
    while isinstance(error, BaseException):
        yield error
        inner: Any = getattr(error, "exceptions", None)
        error = inner[-1] if inner else getattr(error, "exception", None) or (error.args[0] if error.args else None)


def _is_refusal(error: Any) -> bool:
    """Whether only somebody can change what is wrong."""
    refusals = (ProbableAuthenticationError, ProbableAccessDeniedError, IncompatibleProtocolError, ssl.SSLError)
    return any(isinstance(cause, refusals) or getattr(cause, "reply_code", 0) in (403, 406) for cause in _causes(error))


def reason_of(error: Any) -> str:
    """Why a connection is not there, in a line."""
    causes = list(_causes(error))
    for cause in causes:
        for kind, words in _REASONS:
            if isinstance(cause, kind):
                more = getattr(cause, "verify_message", "")
                return f"{words}: {_line(more)}" if more else words
        if isinstance(cause, ConnectionClosedByBroker | ChannelClosedByBroker):
            return _line(cause.reply_text)
    last = causes[-1] if causes else None
    if isinstance(last, StreamLostError) or last is None:
        return "the connection was lost"
    if isinstance(last, OSError) and last.strerror:
        return _line(last.strerror)
    return "it does not answer" if "Timeout" in type(last).__name__ else _line(str(last))


def _line(text: Any) -> str:
    return " ".join(str(text).split())[:300]
