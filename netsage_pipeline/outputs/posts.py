"""Flows to an HTTP server, by threads that post what is there, until each flow is stored or refused for what it holds.

A request is cut once, and is the same at each repetition, also its key; what an answer does not say is sent again, for ever. Only what the
server refuses because of what a request holds is given back, when the flow that is to blame is alone in it.
"""

from __future__ import annotations

import logging
import random
import re
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import structlog
import urllib3
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError, ReadTimeoutError, SSLError

from netsage_pipeline import __version__, waits
from netsage_pipeline.documents import Written
from netsage_pipeline.flow import Flow, Stored
from netsage_pipeline.outputs.batches import Batches, encoded

log = structlog.get_logger(__name__)

#: A request holds no further flow once it is so long.
REQUEST_BYTES = 4_000_000

#: Requests that may be under way at once: while one is answered the next is on its way.
SENDERS = 2

#: Seconds until what failed is tried again: a random part of a time that doubles, so that senders do not come all at once.
FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0

#: Seconds that a server may ask to be left alone for.
LONGEST_RETRY_AFTER = 3_600.0

#: Seconds of waiting after which it says so.
PATIENCE_S = 2.0

#: Seconds for which a sender may go on when it is told to leave.
LEAVING_S = 0.9

#: Bytes of an answer that are read, so that its connection can be used again; behind a longer one it is closed.
ANSWER_BYTES = 65_536

#: What is no fault of the flows, though its status is 4xx: too busy; and what only somebody can change, in words.
_BUSY = {408, 409, 425, 429}
_OF_THE_SERVER = {
    401: "it refuses the token or the headers (401): correct them in the settings",
    403: "it refuses the token or the headers, or what they may do (403): correct them in the settings",
    404: "there is nothing at that URL (404): correct it in the settings",
    405: "nothing can be posted to that URL (405): correct it in the settings",
    407: "a proxy asks for a password (407)",
    410: "there is nothing at that URL any more (410): correct it in the settings",
}


class Post(NamedTuple):
    """A flow on its way."""

    batch: int
    flow: Written


class Verdict(NamedTuple):
    """What an answer says of a request: that it is stored, or that it is refused for what it holds, or else why it is to be sent again."""

    stored: bool = False
    refused: str = ""
    too_long: bool = False
    again: str = ""
    at_once: bool = False  #: whether that is worth saying at once
    after_s: float = 0.0  #: not before so many seconds


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
        self._changed = threading.Condition()
        self._batches = Batches()
        self._most_bytes = REQUEST_BYTES
        self._not_before = 0.0  # monotonic seconds
        self._waiting: deque[Post] = deque()
        self._troubled: set[int] = set()  # the senders that wait for long
        self._told: set[str] = set()
        self._closed = False
        self._senders = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(SENDERS)]
        for sender in self._senders:
            sender.start()

    def write(self, batch: int, flows: list[Flow]) -> None:
        able, refused = encoded(flows)
        with self._changed:
            self._batches.open(batch, len(able), refused)
            self._waiting += [Post(batch, each) for each in able]
            self._changed.notify_all()

    def stored(self, seconds: float = 0) -> list[Stored]:
        with self._changed:
            if seconds:
                self._changed.wait_for(lambda: self._batches.any_stored, seconds)
            return self._batches.stored()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + LEAVING_S
        for sender in self._senders:
            sender.join(max(0.0, until - time.monotonic()))
        self._pool.clear()

    # A sender.

    def _work(self, number: int) -> None:
        while posts := self._next():
            self._store(number, posts)

    def _next(self) -> list[Post]:
        """What is there, as much as a request may hold; waits for it. Empty when it is to leave."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            posts: list[Post] = []
            size = 0
            while self._waiting and not self._closed and len(posts) < self._together and size < self._most_bytes:
                posts.append(self._waiting.popleft())
                size += len(posts[-1].flow.body)
        return posts

    def _store(self, number: int, posts: list[Post]) -> None:
        """Sends flows until each is settled, or it is to leave."""
        requests = [posts]
        refused: Counter[str] = Counter()
        failing_since = 0.0
        pause = FIRST_PAUSE
        while requests and not self._closed:
            began = time.monotonic()
            if began < self._not_before:
                self._rest(self._not_before - began)
                continue
            sent = requests.pop()
            verdict = self._send(sent)
            if not verdict.again:
                left = self._settled(sent, verdict)
                refused[verdict.refused] += not left
                requests += left
                failing_since, pause = 0.0, FIRST_PAUSE
                continue
            requests.append(sent)
            failing_since = failing_since or began
            if verdict.after_s:
                self._not_before = max(self._not_before, time.monotonic() + min(verdict.after_s, LONGEST_RETRY_AFTER))
            if verdict.at_once or time.monotonic() - failing_since > PATIENCE_S or verdict.after_s > PATIENCE_S:
                self._waits(number, verdict.again)
            self._rest(random.uniform(0, pause) + max(0.0, self._not_before - time.monotonic()))  # noqa: S311
            pause = min(2 * pause, LAST_PAUSE)
        for reason, count in refused.items():
            if reason:
                log.warning(f"{count} of {len(posts)} refused by the HTTP server: {reason}")
        self._goes_on(number)

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def _send(self, posts: list[Post]) -> Verdict:
        """One request."""
        flows = [each.flow.body for each in posts]
        body = b"".join(b"%s\n" % flow for flow in flows) if self._lines else b"[%s]" % b",".join(flows)
        key = blake2b("".join(each.flow.known_as for each in posts).encode(), digest_size=16).hexdigest()
        headers = {**self._headers, "Idempotency-Key": key}
        try:
            response = self._pool.request("POST", self._url, body=body, headers=headers, redirect=False, preload_content=False)
        except Exception as error:  # Whatever it is, a sender that ends would leave its flows for ever.
            return Verdict(again=_reason_of(error), at_once=isinstance(error, SSLError))
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

    def _settled(self, posts: list[Post], verdict: Verdict) -> list[list[Post]]:
        """Takes note of what is stored or refused; gives what is to be sent, in requests of its own."""
        if verdict.refused and len(posts) > 1:
            half = len(posts) // 2
            if verdict.too_long:
                self._most_bytes = max(1, min(self._most_bytes, sum(len(each.flow.body) for each in posts)) // 2)
            return [posts[half:], posts[:half]]
        with self._changed:
            if verdict.refused:
                [post] = posts
                self._batches.refuse(post.batch, (post.flow.flow, verdict.refused))
            else:
                for batch, count in Counter(each.batch for each in posts).items():
                    self._batches.write_down(batch, count)
            self._changed.notify_all()
        return []

    # What it says.

    def _waits(self, number: int, reason: str) -> None:
        with self._changed:
            if self._closed:
                return
            self._troubled.add(number)
            waits.begin("HTTP server", reason)
            if reason in self._told:
                return
            self._told.add(reason)
        log.warning("waits for the HTTP server", reason=reason)

    def _goes_on(self, number: int) -> None:
        with self._changed:
            self._troubled.discard(number)
            if self._troubled or not self._told or self._closed:
                return
            self._told.clear()
            waits.end("HTTP server")
        log.info("goes on with the HTTP server")


def _verdict(status: int, retry_after: str) -> Verdict:
    if 200 <= status < 300:
        return Verdict(stored=True)
    if status in _OF_THE_SERVER:
        return Verdict(again=_OF_THE_SERVER[status], at_once=True)
    if 300 <= status < 400:
        return Verdict(again=f"it redirects ({status}): set the URL that it redirects to", at_once=True)
    if 400 <= status < 500 and status not in _BUSY:
        return Verdict(refused=f"the server refuses it with status {status}", too_long=status == 413)
    return Verdict(again=f"it answers with status {status}", after_s=_seconds_of(retry_after))


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
        found = re.search(r"verify failed: (.*?) \(_ssl", str(error))
        if found:
            return f"its certificate is not to be trusted: {found[1]}: see ca_file"
        return "it does not speak TLS there: is it a port for http?"
    if isinstance(error, NameResolutionError):
        return "its name is not known: correct the URL, or see to DNS"
    if isinstance(error, NewConnectionError):
        found = re.search(r"\[Errno -?\d+\] ([^\])'\"]+)", str(error))
        return f"there is no connection ({found[1]})" if found else "there is no connection"
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError | TimeoutError):
        return "it does not answer"
    return "the connection was lost"
