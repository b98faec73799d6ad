"""Flows to an HTTP server, by threads that post what is there, until each flow is stored or refused for what it holds.

A request is cut once, and is the same at each repetition, also its key; what an answer does not say is sent again, for ever. Only what the
server refuses because of what a request holds is given back, when the flow that is to blame is alone in it.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import urllib3
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ReadTimeoutError, SSLError

from netsage_pipeline import __version__
from netsage_pipeline.documents import Written, written
from netsage_pipeline.flow import Flow, Stored
from netsage_pipeline.outputs.batches import encoded
from netsage_pipeline.outputs.senders import SENDERS, Answer, Senders, Trouble
from netsage_pipeline.weburls import unconnected, untrusted

#: Seconds that a server may ask to be left alone for.
LONGEST_RETRY_AFTER = 3_600.0

#: Bytes of an answer that are read, so that its connection can be used again; behind a longer one it is closed.
ANSWER_BYTES = 65_536

#: What is no fault of the flows, though its status is 4xx: too busy; and what only somebody can change, in words.
_BUSY = {408, 409, 425, 429}
_OF_THE_SERVER = {
    401: "it refuses the token or the headers (401): correct them in the settings",
    402: "it wants to be paid (402)",
    403: "it refuses the token or the headers, or what they may do (403): correct them in the settings",
    404: "there is nothing at that URL (404): correct it in the settings",
    405: "nothing can be posted to that URL (405): correct it in the settings",
    407: "a proxy asks for a password (407)",
    410: "there is nothing at that URL any more (410): correct it in the settings",
    415: "it does not take flows in this form (415): correct format or the URL in the settings",
    431: "it takes no headers that are so long (431): correct them in the settings",
}


class Post(NamedTuple):
    """A flow on its way."""

    batch: int
    flow: Written

    @property
    def size(self) -> int:
        return len(self.flow.body)


class Judged(NamedTuple):
    """What an answer says of a request that is not to be sent again: why it is refused for what it holds; "": it is stored."""

    reason: str = ""
    too_long: bool = False


class HttpSink:
    """Batches of flows as requests; a batch is stored when each of its flows was in a request that was answered with 2xx, or is refused.

    together  flows in a request at most
    lines     whether a request is NDJSON, not an array
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], *, together: int, lines: bool, timeout_s: float, ca_file: Path | None = None
    ) -> None:
        self._url, self._together, self._lines = url, together, lines
        kind = "application/x-ndjson" if lines else "application/json"
        self._headers = {"User-Agent": f"netsage-pipeline/{__version__}", **headers, "Content-Type": kind}
        logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # It names the URL; what an operator needs is said here.
        context = ssl.create_default_context(cafile=ca_file)
        # Python counts the time for all of a body that is sent, and that for each part of an answer.
        timeout = urllib3.Timeout(connect=timeout_s, read=timeout_s)
        self._pool = urllib3.PoolManager(maxsize=SENDERS, ssl_context=context, timeout=timeout, retries=False)
        self._senders = Senders("the HTTP server", self._send, together, lambda _: "the HTTP server")

    def write(self, batch: int, flows: list[Flow]) -> None:
        made, _, refused = encoded(flows, written)
        self._senders.write(batch, [Post(batch, each) for each in made], refused)

    def stored(self, seconds: float = 0) -> list[Stored]:
        return self._senders.stored(seconds)

    def close(self) -> None:
        self._senders.close()
        self._pool.clear()

    def _send(self, posts: list[Post]) -> Answer[Post]:
        """One request."""
        verdict = self._post(posts)
        if isinstance(verdict, Trouble):
            return Answer([], [], [posts], verdict)
        if not verdict.reason:
            return Answer(posts, [], [])
        if len(posts) > 1:
            return Answer([], [], self._senders.halves(posts, too_long=verdict.too_long))
        return Answer([], [(posts[0], posts[0].flow.flow, verdict.reason)], [])

    def _post(self, posts: list[Post]) -> Judged | Trouble:
        flows = [each.flow.body for each in posts]
        body = b"".join(b"%s\n" % flow for flow in flows) if self._lines else b"[%s]" % b",".join(flows)
        key = blake2b("".join(each.flow.known_as for each in posts).encode(), digest_size=16).hexdigest()
        headers = {**self._headers, "Idempotency-Key": key}
        try:
            response = self._pool.request("POST", self._url, body=body, headers=headers, redirect=False, preload_content=False)
        except Exception as error:  # Whatever it is, a sender that ends would leave its flows for ever.
            return Trouble(_reason_of(error), at_once=isinstance(error, SSLError))
        verdict = _verdict(response.status, response.headers.get("Retry-After", ""))
        try:
            whole = len(response.read(ANSWER_BYTES, decode_content=False)) < ANSWER_BYTES
        except Exception:  # What it says is known already.
            whole = False
        if whole:
            response.release_conn()
        else:
            response.close()
        return verdict


def _verdict(status: int, retry_after: str) -> Judged | Trouble:
    if 200 <= status < 300:
        return Judged()
    if status in _OF_THE_SERVER:
        return Trouble(_OF_THE_SERVER[status], at_once=True)
    if 300 <= status < 400:
        return Trouble(f"it redirects ({status}): set the URL that it redirects to", at_once=True)
    if 400 <= status < 500 and status not in _BUSY:
        return Judged(f"the server refuses it with status {status}", too_long=status == 413)
    return Trouble(f"it answers with status {status}", after_s=min(_seconds_of(retry_after), LONGEST_RETRY_AFTER))


def _seconds_of(retry_after: str) -> float:
    """How long to wait, as a header Retry-After says it, in seconds or as a date; 0 if it says nothing that can be read."""
    if re.fullmatch(r" *[0-9]{1,9} *", retry_after):
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _reason_of(error: Exception) -> str:
    """Why there was no answer, in words that hold nothing of the URL."""
    if isinstance(error, SSLError):
        if why := untrusted(str(error)):
            return f"its certificate is not to be trusted: {why}: see ca_file"
        return "it does not speak TLS there: is it a port for http?"
    if isinstance(error, NameResolutionError):
        return "its name is not known: correct the URL, or see to DNS"
    if isinstance(error, NewConnectionError):
        why = unconnected(str(error))
        return f"there is no connection ({why})" if why else "there is no connection"
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError | TimeoutError):
        return "it does not answer"
    return "the connection was lost"
