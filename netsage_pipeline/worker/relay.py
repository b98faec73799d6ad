"""The relay: a loop for a chain without stages whose output can pass messages on as they are, such as the importer's.

A message is acknowledged when it is stored where it goes, and all before it. Whatever is killed, it comes again, under the same id.
"""

from __future__ import annotations

import gc
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import structlog

from netsage_pipeline.flow import Delivery, Sink, Source
from netsage_pipeline.monitoring.metrics import Meter, Reading
from netsage_pipeline.worker.run import LAST_WAIT_S, PAUSE_S, PROGRESS_S, SHORT_WAIT_S, WAIT_S

#: Messages that may be on their way, and bytes of them; what is taken at once may go beyond.
ON_THE_WAY = 400
ON_THE_WAY_BYTES = 32_000_000

log = structlog.get_logger(__name__)


@runtime_checkable
class PassesOn(Sink, Protocol):
    """An output that can pass messages on."""

    def pass_on(self, batch: int, deliveries: list[Delivery]) -> None:
        """Takes messages in: each becomes one with the same body and the same id. `stored` tells when all of the batch are."""


class Relay:
    """Passes messages from an input to an output."""

    def __init__(self, source: Source, sink: PassesOn, meter: Meter) -> None:
        self._source, self._sink, self._meter = source, sink, meter
        self._passed: deque[tuple[int, Any, int, int]] = deque()  # batch, its last receipt, messages, bytes
        self._stored: set[int] = set()
        self._batches = 0
        self._messages = self._bytes = 0  # on their way
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._said: Counter[tuple[str, str, str]] = Counter()
        self._took_at = self._said_at = time.monotonic()

    def run(self, stop: Callable[[], bool]) -> None:
        """Works until it is told to stop, and then waits a moment for what is on its way."""
        gc.collect()
        gc.freeze()
        gc.disable()  # Flows hold no cycles.
        log.info("works")
        self._tell()
        while not stop():
            self._turn()
        last = time.monotonic() + LAST_WAIT_S
        while self._passed and time.monotonic() < last:
            self._settle(WAIT_S)
        self._sink.close()
        self._settle(0)
        self._say()
        log.info("stopped", on_the_way=self._messages)

    def _turn(self) -> None:
        now = time.monotonic()
        deliveries: list[Delivery] = []
        if self._messages < ON_THE_WAY and self._bytes < ON_THE_WAY_BYTES:
            self._took_at = now
            deliveries = self._source.receive(0 if self._passed else WAIT_S)
            self._pass_on(deliveries)
        else:
            if now - self._took_at > PAUSE_S:
                self._source.pause()
            self._source.turn(0)
        self._settle(SHORT_WAIT_S if self._passed and not deliveries else 0)
        if self._meter.is_due(now):
            self._tell()
        if now - self._said_at > PROGRESS_S:
            self._say()
            gc.collect(0)  # What pika leaves when a connection is lost.
            gc.freeze()

    def _pass_on(self, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        self._batches += 1
        size = sum(len(each.body) for each in deliveries)
        self._passed.append((self._batches, deliveries[-1].receipt, len(deliveries), size))
        self._messages += len(deliveries)
        self._bytes += size
        self._sink.pass_on(self._batches, deliveries)

    def _settle(self, seconds: float) -> None:
        """Acknowledges what is stored, in order."""
        self._stored.update(each.batch for each in self._sink.stored(seconds))
        receipt = None
        while self._passed and self._passed[0][0] in self._stored:
            batch, receipt, messages, size = self._passed.popleft()
            self._stored.remove(batch)
            self._messages -= messages
            self._bytes -= size
            self._counts["messages", "", ""] += messages
        if receipt is not None:
            self._source.acknowledge(receipt)

    @property
    def _totals(self) -> Counter[tuple[str, str, str]]:
        """What was counted here, and by an input that counts."""
        return self._counts + Counter(getattr(self._source, "counts", {}))

    def _tell(self) -> None:
        """The numbers of now, for metrics and health."""
        self._meter.tell(
            Reading(
                totals=self._totals,
                connected=self._source.connected,
                outbox_rows=self._messages,
                outbox_bytes=self._bytes,
                queue_messages=self._source.waiting,
            )
        )

    def _say(self) -> None:
        """How it goes: what was counted since the last line."""
        totals = self._totals
        counts = {f"{word} {stage} {reason}".strip(): number for (word, stage, reason), number in (totals - self._said).items()}
        log.info("at work", **counts, on_the_way=self._messages)
        self._said, self._said_at = totals, time.monotonic()
