"""Threads that send what is there, in requests, until the other side has stored it, or refuses it for what it holds.

Requests grow with the load, and while one is answered the next is on its way. What an answer does not say is sent again, for ever.
A batch is in one request, unless it is longer: so that it is not stored in part when the process is told to leave.
"""

from __future__ import annotations

import random
import re
import threading
import time
from bisect import bisect
from collections import Counter, deque
from collections.abc import Callable
from itertools import accumulate
from typing import Generic, NamedTuple, Protocol, TypeVar

import structlog

from netsage_pipeline import waits
from netsage_pipeline.flow import Flow, Refusal, Stored
from netsage_pipeline.outputs.batches import Batches

log = structlog.get_logger(__name__)

#: A request holds no further item once it is so long, bytes.
REQUEST_BYTES = 4_000_000

#: Requests that may be under way at once.
SENDERS = 2

#: Seconds until what failed is tried again: a random part of a time that doubles, so that senders do not come all at once.
FIRST_PAUSE, LAST_PAUSE = 0.5, 10.0

#: Seconds of waiting after which it says so.
PATIENCE_S = 2.0

#: Seconds for which a sender may go on when it is told to leave.
LEAVING_S = 0.9


class Item(Protocol):
    """Something on its way."""

    @property
    def batch(self) -> int: ...

    @property
    def size(self) -> int:
        """Bytes of it in a request."""


T = TypeVar("T", bound=Item)


class Trouble(NamedTuple):
    """Why a request, or a part of it, is to be sent again after a while."""

    reason: str
    at_once: bool = False  #: whether that is worth saying at once
    after_s: float = 0.0  #: not before so many seconds, by any sender


class Answer(NamedTuple, Generic[T]):
    """What became of a request. What is in none of these lists has to be in `left`."""

    stored: list[T]
    refused: list[tuple[T, Flow, str]]  #: each with its flow, and why
    left: list[list[T]]  #: what is to be sent, in requests of its own
    trouble: Trouble | None = None  #: why that has to wait, unless it has not


class Senders(Generic[T]):
    """The threads, and what became of each batch.

    name   of the other side, as it is said
    send   one request; is called by several threads, and raises nothing
    most   items in a request
    by     who refused an item, for the lines about it; None: refusals are not told here
    """

    def __init__(self, name: str, send: Callable[[list[T]], Answer[T]], most: int, by: Callable[[T], str] | None) -> None:
        self._name, self._send, self._most, self._by = name, send, most, by
        self._changed = threading.Condition()
        self._batches = Batches()
        self._most_bytes = REQUEST_BYTES
        self._not_before = 0.0  # monotonic seconds
        self._waiting: deque[list[T]] = deque()  # each of one batch
        self._troubled: set[int] = set()  # the senders that wait for long
        self._told: set[str] = set()
        self._closed = False
        self._senders = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(SENDERS)]
        for sender in self._senders:
            sender.start()

    def write(self, batch: int, items: list[T], refusals: list[Refusal]) -> None:
        """Takes a batch in; the refusals are those that were found before it came here."""
        with self._changed:
            self._batches.open(batch, len(items), refusals)
            if items:
                self._waiting.append(items)
            self._changed.notify_all()

    def stored(self, seconds: float) -> list[Stored]:
        """The batches of which every item is settled by now, each once; waits for at most so many seconds until there is one."""
        with self._changed:
            if seconds:
                self._changed.wait_for(lambda: self._batches.any_stored, seconds)
            return self._batches.stored()

    def halves(self, items: list[T], *, too_long: bool) -> list[list[T]]:
        """The two requests in place of one that was refused as a whole; later ones are shorter, too, if it was too long."""
        if too_long:
            self._most_bytes = max(1, min(self._most_bytes, sum(each.size for each in items)) // 2)
        half = len(items) // 2
        return [items[half:], items[:half]]

    def close(self) -> None:
        """Leaves; what is not settled by then is not."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + LEAVING_S
        for sender in self._senders:
            sender.join(max(0.0, until - time.monotonic()))

    # A sender.

    def _work(self, number: int) -> None:
        while items := self._next():
            self._store(number, items)

    def _next(self) -> list[T]:
        """What is there, as much as a request may hold; waits for it. Empty when it is to leave."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            items = list(self._waiting.popleft())
            sizes = list(accumulate(each.size for each in items))
            fit = max(1, min(self._most, bisect(sizes, self._most_bytes)))
            if fit < len(items):
                self._waiting.appendleft(items[fit:])
                return items[:fit]
            size = sizes[-1]
            while self._waiting:
                size += sum(each.size for each in self._waiting[0])
                if size > self._most_bytes or len(items) + len(self._waiting[0]) > self._most:
                    break
                items += self._waiting.popleft()
        return items

    def _store(self, number: int, items: list[T]) -> None:
        """Sends items until each is settled, or it is to leave."""
        requests = [items]
        refused: Counter[str] = Counter()
        failing_since = 0.0
        pause = FIRST_PAUSE
        while requests and not self._closed:
            began = time.monotonic()
            if began < self._not_before:
                self._rest(self._not_before - began)
                continue
            sent = requests.pop()
            answer = self._send(sent)
            self._settle(answer)
            if self._by:
                refused.update(f"{self._by(item)}: {reason}" for item, _, reason in answer.refused)
            requests += answer.left
            trouble = answer.trouble
            if trouble is None:
                failing_since, pause = 0.0, FIRST_PAUSE
                continue
            if sum(map(len, answer.left)) < len(sent):
                pause = FIRST_PAUSE
            failing_since = failing_since or began
            if trouble.after_s:
                self._not_before = max(self._not_before, time.monotonic() + trouble.after_s)
            if trouble.at_once or time.monotonic() - failing_since > PATIENCE_S or trouble.after_s > PATIENCE_S:
                self._waits(number, trouble.reason)
            _tell(refused, len(items))
            self._rest(random.uniform(0, pause))  # noqa: S311
            pause = min(2 * pause, LAST_PAUSE)
        _tell(refused, len(items))
        self._goes_on(number)

    def _settle(self, answer: Answer[T]) -> None:
        with self._changed:
            for batch, count in Counter(each.batch for each in answer.stored).items():
                self._batches.write_down(batch, count)
            for item, flow, reason in answer.refused:
                self._batches.refuse(item.batch, (flow, reason))
            self._changed.notify_all()

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    # What it says.

    def _waits(self, number: int, reason: str) -> None:
        with self._changed:
            if self._closed:
                return
            self._troubled.add(number)
            waits.begin(self._name, reason)
            known_as = re.sub(r"\d+", "", reason)  # Some tell how much memory is taken.
            if known_as in self._told:
                return
            self._told.add(known_as)
        log.warning(f"waits for {self._name}", reason=reason)

    def _goes_on(self, number: int) -> None:
        with self._changed:
            self._troubled.discard(number)
            if self._troubled or not self._told or self._closed:
                return
            self._told.clear()
            waits.end(self._name)
        log.info(f"goes on with {self._name}")


def _tell(refused: Counter[str], of: int) -> None:
    """A line for each distinct reason, once."""
    for reason, count in refused.items():
        log.warning(f"{count} of {of} refused by {reason}")
    refused.clear()
