"""How Elasticsearch is named in settings and reached, and why it is not, in words for an operator."""

from __future__ import annotations

import logging
import re
import signal
import ssl
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import elasticsearch
from elastic_transport import ConnectionError as NotConnected
from elastic_transport import ConnectionTimeout, SerializationError, TlsError
from elastic_transport.client_utils import DEFAULT
from elasticsearch import ApiError, Elasticsearch
from pydantic import Field, SecretStr, ValidationInfo, field_validator

from netsage_pipeline.certificates import CaFile
from netsage_pipeline.config import Settings, urls_of, with_user
from netsage_pipeline.weburls import unconnected, untrusted, wrong_with

#: Seconds that a request may take.
REQUEST_S = 60

#: Signals that end a command.
STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

T = TypeVar("T")


class Cluster(Settings):
    """How a cluster is reached: the part of an output's Config that its users share."""

    url: SecretStr = Field(
        SecretStr("http://localhost:9200"),
        description="https://host:9200; several nodes of one cluster, separated by commas, take turns; default: this machine's",
    )
    user: str = Field("", description="User name; empty: no password is given")
    password: SecretStr | None = Field(None, validate_default=True, description="Its password")
    api_key: SecretStr | None = Field(None, description="API key (the encoded form), instead of user and password")
    ca_file: CaFile = Field(None, description="Certificates of the authorities that https servers are checked by; not set: the system's")

    @field_validator("url")
    @classmethod
    def _is_url(cls, url: SecretStr) -> SecretStr:
        each = urls_of(url, _wrong_with, "https://host:9200 (user and password have settings of their own)")
        if len({one.partition(":")[0].lower() for one in each}) > 1:
            raise ValueError("some begin with http:// and some with https://: write them alike")
        return url

    _has_user = field_validator("password")(with_user)

    @field_validator("api_key")
    @classmethod
    def _is_alone(cls, key: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if key is not None and key.get_secret_value() and info.data.get("user"):
            raise ValueError("an API key and a user: set one of them")
        return key


def _wrong_with(url: str) -> str:
    return wrong_with(url) or ("has something behind the path" if urlsplit(url).query else "")


def client(cluster: Cluster) -> Elasticsearch:
    """The official client; it tries each request once, but for a node that cannot be reached: then the next one is asked."""
    for name in ("elastic_transport", "elasticsearch"):  # They say each request; what an operator needs is said here.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    urls = [_with_port(url.strip()) for url in cluster.url.get_secret_value().split(",")]
    context = ssl.create_default_context(cafile=cluster.ca_file) if any(url.startswith("https:") for url in urls) else None
    key = cluster.api_key.get_secret_value() if cluster.api_key else ""
    password = cluster.password.get_secret_value() if cluster.password else ""
    return Elasticsearch(
        urls,
        api_key=key or None,
        basic_auth=(cluster.user, password) if cluster.user else None,
        ssl_context=context or DEFAULT,
        max_retries=len(urls) - 1,
        retry_on_status=(),
        request_timeout=REQUEST_S,
    )


def _with_port(url: str) -> str:
    parts = urlsplit(url)
    return url if parts.port else parts._replace(netloc=f"{parts.netloc}:{443 if parts.scheme == 'https' else 80}").geturl()


def answered(ask: Callable[[], T]) -> T:
    """What a request gives. It is made by a thread of its own: a signal that interrupts the client may leave one of its locks taken for
    ever, and whoever asks for that next, another request or Python's own end, would wait for it."""
    answers: SimpleQueue[tuple[T, None] | tuple[None, Exception]] = SimpleQueue()  # Its own lock is in C, where no signal comes between.

    def work() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:
            answers.put((None, error))

    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # The thread has the mask of its maker.
    try:
        threading.Thread(target=work, daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    answer, error = answers.get()
    if error is not None:
        raise error
    return cast(T, answer)


def is_refusal(error: Exception) -> bool:
    """Whether only somebody can change what is wrong: a password, a permission, a certificate."""
    return isinstance(error, TlsError) or (isinstance(error, ApiError) and error.status_code in (401, 403) and not _is_block(error))


def _is_block(error: ApiError) -> bool:
    return isinstance(error.body, dict) and "block" in str(error.body.get("error"))


def reason_of(error: Exception) -> str:
    """Why a request failed, in a line that holds nothing of a document."""
    if isinstance(error, ConnectionTimeout):
        return "it does not answer"
    if isinstance(error, TlsError):
        if "CERTIFICATE_VERIFY_FAILED" in error.message:
            return f"its certificate is not to be trusted: {untrusted(error.message) or 'see ca_file'}"
        return "it does not speak TLS there: is it a port for http?"
    if isinstance(error, NotConnected):
        return in_a_line(unconnected(error.message) or "the connection was lost")
    if isinstance(error, elasticsearch.AuthenticationException):
        return "it refuses the user, the password or the API key (401): correct them in the settings"
    if isinstance(error, (elasticsearch.UnsupportedProductError, SerializationError)):  # The client quotes it.
        return "its answer is not that of Elasticsearch: is the URL that of something else?"
    if isinstance(error, ApiError):
        return _of_answer(error)
    return in_a_line(error)


def _of_answer(error: ApiError) -> str:
    body = error.body
    cause: Any = body.get("error") if isinstance(body, dict) else None
    status = error.status_code
    return f"{refusal_of(cause)} (status {status})" if isinstance(cause, dict) else f"it answers with status {status}"


#: Which field Elasticsearch names, in the ways it does so.
_FIELD = re.compile(
    r"failed to parse field \[(?P<parsed>[^\]]*)\]|object mapping for \[(?P<object>[^\]]*)\]|in field=\"(?P<term>[^\"]*)\""
    r"|dynamic introduction of \[(?P<new>[^\]]*)\] within \[(?P<within>[^\]]*)\]"
)

#: What it quotes of a document: behind these words, between these marks, and where in it something stands.
_BEHIND = re.compile(r"(?: in document with id '|\.? ?Preview of field's value|(?<!\s)\s*at \[Source).*", re.DOTALL)
_MARKED = [(re.compile(mark, re.DOTALL), f"{mark[-1]}…{mark[-1]}") for mark in ('".*"', "'.*'")]
_PLACES = re.compile(r"\[\d+:\d+\] | at \d+:\d+\b")

#: In causes it also writes values into brackets; START_OBJECT and the like are its own.
_IN_BRACKETS = [(re.compile(r"\[.*\]", re.DOTALL), "[…]"), (re.compile(r"\((?![A-Z]+_[A-Z_]+\))[^()]*\)"), "(…)")]


def refusal_of(cause: dict[str, Any]) -> str:
    """Elasticsearch's type and reason of an error and of what caused it, behind the field that it is about; nothing of a document's values.

    The same for all documents in which the same thing is wrong.
    """
    parts: list[str] = []
    inner: Any = cause
    while isinstance(inner, dict) and len(parts) < 3:
        reason = _without_values(str(inner.get("reason") or ""), is_cause=bool(parts))
        parts.append(f"{inner.get('type')}: {reason}" if reason else str(inner.get("type")))
        inner = inner.get("caused_by")
    field = _field_of(cause)
    return in_a_line(": ".join([field, *parts] if field else parts))


def _field_of(cause: dict[str, Any]) -> str:
    found = _FIELD.search(str(cause.get("reason")))
    if found is None:
        return ""
    if found["new"] is not None:
        return found["new"] if found["within"] == "_doc" else f"{found['within']}.{found['new']}"
    return found["parsed"] or found["object"] or found["term"] or ""


def _without_values(reason: str, *, is_cause: bool) -> str:
    reason = _PLACES.sub("", _BEHIND.sub("", reason))
    own, colon, inner = reason.partition("failed to parse: ")
    if colon:  # The cause, once more.
        return f"{own}{colon}{_without_values(inner, is_cause=True)}"
    for quoted, dots in _MARKED + (_IN_BRACKETS if is_cause else []):
        reason = quoted.sub(dots, reason)
    return reason


def in_a_line(text: Any) -> str:
    return " ".join(str(text).split())[:300]
