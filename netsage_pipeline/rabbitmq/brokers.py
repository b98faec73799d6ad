"""How brokers are named in settings and reached, and why one is not, in words for an operator."""

from __future__ import annotations

import contextlib
import logging
import math
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    AMQPHeartbeatTimeout,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    ConnectionOpenAborted,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    StreamLostError,
)
from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator

from netsage_pipeline.certificates import CaFile, usable_pair
from netsage_pipeline.config import Settings, urls_of

#: Seconds: to connect, to shake hands; silence after which a peer is dead.
CONNECT, HANDSHAKE, HEARTBEAT = 3, 8, 30

#: Seconds that a broker has to answer, however many there are.
LEAST = 0.2

#: Bytes that AMQP has for a name.
NAME_BYTES = 255

_PORTS = {"amqp": 5672, "amqps": 5671}


def named(name: str, *, behind: str = "") -> str:
    """A name of a queue or an exchange, or a key, as it came. ValueError if AMQP has no room for it with what will stand behind it."""
    if len(f"{name}{behind}".encode()) > NAME_BYTES:
        raise ValueError(f"is longer than {NAME_BYTES} bytes of UTF-8{behind and f' with {behind} behind it'}: shorten it")
    return name


#: A name of a queue or an exchange, or a key.
Name = Annotated[str, AfterValidator(named)]


class Broker(Settings):
    """How a broker is reached: the part that the Configs of an input and of an output share."""

    url: SecretStr = Field(
        SecretStr("amqp://localhost:5672/"),
        description="amqp://user:password@host:port/vhost, with TLS amqps://; several, separated by commas, are tried in turn "
        "(write a comma in a password as %2C); default: the broker of this machine",
    )
    ca_file: CaFile = Field(None, description="Certificates of the authorities that amqps servers are checked by; not set: the system's")
    client_certificate_file: Path | None = Field(None, description="Certificate that we show an amqps server")
    client_key_file: Path | None = Field(None, validate_default=True, description="Its key, where it is not in the same file")

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: SecretStr) -> SecretStr:
        urls_of(url, _wrong_with, "amqp://user:password@host:5672/vhost")
        return url

    @field_validator("client_key_file")
    @classmethod
    def _has_certificate(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key is not None and info.data.get("client_certificate_file") is None:
            raise ValueError("a key without its certificate: set client_certificate_file too")
        if info.data.get("client_certificate_file") is not None:
            usable_pair(info.data["client_certificate_file"], key)
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
    """The brokers that the settings name, in order."""
    _quieten()
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


def connected(brokers: list[Server], seconds: float = math.inf) -> pika.BlockingConnection:
    """A connection to the first broker of the list that answers. AMQPError.

    seconds   for all together: one that is silent is left after its share of what is left, the last one when it gives up by itself
    """
    until = time.monotonic() + seconds
    for number, each in enumerate(brokers[:-1]):
        share = (until - time.monotonic()) / (len(brokers) - number)
        each.parameters.stack_timeout = min(HANDSHAKE, max(share, LEAST))
        with contextlib.suppress(AMQPError):
            return _connected(each)
    return _connected(brokers[-1])


def _connected(server: Server) -> pika.BlockingConnection:
    try:
        return pika.BlockingConnection(server.parameters)
    except (OSError, AMQPConnectorException) as error:  # As pika gives a name that nobody knows, TLS that fails, a handshake that hangs.
        raise AMQPConnectionError(error) from None


def _context(broker: Broker) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=broker.ca_file)
    if broker.client_certificate_file is not None:
        context.load_cert_chain(broker.client_certificate_file, broker.client_key_file, password="")
    return context


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

#: What is wrong with TLS, by what the error's text holds. With TLS 1.3 a server refuses a client when that believes to be connected.
_TLS_REASONS = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS there: is it a port for amqp://?",
    'StreamLostError: ("Stream connection lost: SSL': "it ended the connection behind the TLS handshake: does it want a client certificate "
    "(client_certificate_file), or another one?",
}


def _causes(error: Any) -> Iterator[BaseException]:
    """An error and what it holds, pika's way, down to what happened first."""
    while isinstance(error, BaseException):
        yield error
        inner: Any = getattr(error, "exceptions", None)
        error = inner[-1] if inner else getattr(error, "exception", None) or (error.args[0] if error.args else None)


def is_refusal(error: Any) -> bool:
    """Whether only somebody can change what is wrong."""
    refusals = (ProbableAuthenticationError, ProbableAccessDeniedError, IncompatibleProtocolError, ssl.SSLError)
    return any(isinstance(cause, refusals) or getattr(cause, "reply_code", 0) in (403, 406) for cause in _causes(error))


def reason_of(error: Any) -> str:
    """Why a connection is not there, in a line."""
    causes = list(_causes(error))
    for cause in causes:
        for mark, words in _TLS_REASONS.items():
            if isinstance(cause, ssl.SSLError | IncompatibleProtocolError) and mark in str(cause):
                return words
        for kind, words in _REASONS:
            if isinstance(cause, kind):
                more = getattr(cause, "verify_message", "")
                return f"{words}: {in_a_line(more)}" if more else words
        if isinstance(cause, ConnectionClosedByBroker | ChannelClosedByBroker):
            return in_a_line(cause.reply_text)
    last = causes[-1] if causes else None
    if isinstance(last, StreamLostError) or last is None:
        return "the connection was lost"
    if isinstance(last, OSError) and last.strerror:
        return in_a_line(last.strerror)
    return "it does not answer" if "Timeout" in type(last).__name__ else in_a_line(str(last))


def in_a_line(text: Any) -> str:
    return " ".join(str(text).split())[:300]
