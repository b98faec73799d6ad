"""The worker: one queue in, a chain, one output, with a ledger between, so that nothing is lost and nothing counted twice.

A turn takes a batch of messages in (`_take`), stores what came of it (`_store`), acknowledges it, and hands what is owed out (`_hand_out`).
A chain that holds no flows has no ledger (transit.py): what it took is acknowledged when all that came of it is out.
An output that splits messages (a router's) is given all that came of one message at once, with its key.
Killed before it is stored, the messages come again, and nothing of them is known; killed behind it, they come again and are known by
their keys. What is owed is handed out again by the next process, as the same documents, until its receiver has confirmed it.
"""

from __future__ import annotations

import gc
import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import structlog

from netsage_pipeline.chain import SAMPLED, Chain
from netsage_pipeline.config import SettingsError
from netsage_pipeline.flow import Delivery, Finished, Now, Sink, Source, Splits
from netsage_pipeline.monitoring.metrics import Meter, Reading, made_at
from netsage_pipeline.statedir import NoRoom, StateError
from netsage_pipeline.tables.tables import Tables
from netsage_pipeline.waits import Wait
from netsage_pipeline.worker.at_work import AtWork
from netsage_pipeline.worker.ledger import Commit, Ledger, State
from netsage_pipeline.worker.transit import Transit

#: No message is taken while more is owed: rows of the outbox, and their bytes.
OUTBOX_ROWS = 20_000
OUTBOX_BYTES = 64_000_000

#: Flows that are enriched and handed out at once, and that may be on their way to the output.
BATCH = 100
ON_THE_WAY = 5_000

#: Flows that are finished at once when the ledger is drained.
AT_ONCE = 5_000

#: Seconds without taking a message after which all are given back: a broker closes a channel that keeps them for half an hour.
PAUSE_S = 60

#: Seconds that a turn waits for messages, and while something is on its way to the output.
WAIT_S = 0.1
SHORT_WAIT_S = 0.01

#: Seconds between two times that the clock is stored, tables are looked at, and a line says how it goes.
CLOCK_S = 10
TABLES_S = 10
PROGRESS_S = 60

#: Seconds that the arrival clock goes with this machine's in a turn at most. One that takes longer was frozen, or the disk stuck.
TURN_S = 1

#: Seconds by which this machine's time differs from what has passed when somebody has set it.
SET_S = 1

#: The stage that metrics and dead letters name where the output is meant.
OUTPUT = "99_output"

#: Seconds for which a worker that was told to stop waits for confirmations.
LAST_WAIT_S = 3

log = structlog.get_logger(__name__)


class Outgoing(NamedTuple):
    """Rows of the outbox that are on their way to the output, and what enriching them led to."""

    rows: list[int]
    letters: list[bytes]
    counts: Counter[tuple[str, str, str]]


class Worker:
    """One chain between an input and an output. Everything that it must not forget is in the ledger."""

    def __init__(
        self,
        chain: Chain,
        now: Now,
        source: Source,
        sink: Sink | Splits,
        ledger: Ledger | Transit,
        tables: Tables,
        max_message_bytes: int,
        meter: Meter,
    ) -> None:
        self._chain, self._now = chain, now
        self._source, self._sink = source, sink
        self._splits = isinstance(sink, Splits)
        self._ledger, self._tables = ledger, tables
        self._max_message_bytes = max_message_bytes
        self._meter = meter
        self._tables_made = made_at(tables)
        self._commits, self._commit_seconds = 0, 0.0
        mark = ledger.directory / "at-work"
        try:
            self._at_work = AtWork(mark)
        except OSError as error:
            raise StateError(f"{mark}: cannot be written: {error.strerror}: see to the directory, then start again") from None
        state = ledger.state
        if chain.stitching is not None:
            chain.stitching.restore(state.held, state.stitching)
        self._arrival = now.arrival = state.arrival or time.time()
        self._ahead = max(0.0, self._arrival - time.time())  # of this machine's time, as far as that was set back
        self._worked = state.worked
        self._gone = chain.stitching.gone if chain.stitching is not None else 0.0
        self._looked = time.monotonic()
        self._to_send = deque(state.outbox)
        self._messages: deque[tuple[int, str]] = deque()  # to be split: number of the row behind those of a message → its key
        self._receipts: deque[tuple[int, Any]] = deque()  # number of the row behind those of a batch → receipt of its last message
        self._outgoing: dict[int, Outgoing] = {}
        self._on_the_way = 0
        self._batches = 0
        self._done: list[int] = []
        self._letters: list[bytes] = []
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._since = Counter(state.totals)  # for the lines about how it goes
        self._stored_at = self._said_at = self._tables_at = self._took_at = self._looked
        self._for_output = Wait("the output")
        self._for_room = Wait("room on the disk of the ledger")

    @property
    def state(self) -> State:
        """What is held and owed."""
        return self._ledger.state

    def run(self, stop: Callable[[], bool]) -> None:
        """Works until it is told to stop, then finishes the batch at hand. StateError if the ledger cannot be written any more."""
        gc.collect()
        gc.freeze()
        gc.disable()  # Flows hold no cycles; looking for some among a million held flows would stop everything for a second.
        state = self._ledger.state
        log.info("works", held=len(state.held), owed=len(state.outbox), keys=state.keys, suspects=len(self._at_work.suspects))
        self._tell()
        stored = True
        while stored and not stop():
            stored = self._turn(stop)
        if stored:
            self._leave()
        self._say()
        log.info("stopped", held=len(state.held), owed=len(state.outbox))

    def drain(self, stop: Callable[[], bool]) -> None:
        """Finishes all flows that are held, hands everything out, and returns when nothing is owed any more."""
        while not stop():
            self._look_at_the_clock()
            rows = self._chain.drain(AT_ONCE) if len(self._ledger.state.outbox) < OUTBOX_ROWS else []
            if (rows or self._is_something_to_store()) and not self._store([], rows, stop):
                return
            self._hand_out()
            self._gather(0 if rows else WAIT_S)
            if self._meter.is_due(self._looked):
                self._tell()
            if not rows and not self._ledger.state.outbox and not self._done and not self._letters:
                return
        self._leave()

    def _leave(self) -> None:
        """Waits a moment for what is on its way, and stores what has arrived when nothing more is sent: it is not to come again."""
        last = time.monotonic() + LAST_WAIT_S
        while (self._outgoing or self._unburied()) and time.monotonic() < last:
            self._gather(WAIT_S)
        self._sink.close()
        self._gather(0)
        if self._store([], [], lambda: time.monotonic() > last):
            self._acknowledge()

    def _turn(self, stop: Callable[[], bool]) -> bool:
        """False if it was told to stop before what it took could be stored: that is forgotten here, and will come again."""
        self._look_at_the_clock()
        deliveries = self._receive()
        keys, rows = self._take(deliveries)
        if keys or rows or self._is_something_to_store():
            if not self._store(keys, rows, stop):
                return False
            if keys:
                self._at_work.done(key.hex() for key in keys)
        if deliveries:
            self._receipts.append((self._ledger.state.next, deliveries[-1].receipt))
        self._acknowledge()
        self._hand_out()
        self._gather(0)
        self._look_after()
        return True

    def _acknowledge(self) -> None:
        """Acknowledges the messages that are stored: in the ledger, or without one all that came of them where it is to go."""
        state = self._ledger.state
        settled = state.next if self._ledger.durable else next(iter(state.outbox), state.next)
        receipt = None
        while self._receipts and self._receipts[0][0] <= settled:
            receipt = self._receipts.popleft()[1]
        if receipt is not None:
            self._source.acknowledge(receipt)

    def _look_at_the_clock(self) -> None:
        """Moves the time of the batch. The arrival clock goes with this machine's where nothing is left in the queue.

        So it does before the newest end can be believed, or a queue that is never empty would let no flow finish. When the machine's
        is set back it goes on from where it is, or what is held would be held for as much longer.
        """
        looked = time.monotonic()
        passed, self._looked = looked - self._looked, looked
        now = time.time()
        if abs(now - self._now.seconds - passed) > SET_S:
            self._ahead = max(0.0, self._arrival - now)
        self._now.set(now)
        if self._source.connected:
            self._worked += min(passed, PAUSE_S)
        if (self._source.caught_up or (self._source.connected and not self._gone)) and not self._is_full():
            self._arrival += min(passed, TURN_S)
        self._go_on()

    def _go_on(self) -> None:
        """The arrival clock goes by as much as the newest end did, and never ahead of this machine's time, unless that was set back."""
        if self._chain.stitching is not None:
            gone, before = self._chain.stitching.gone, self._gone
            self._gone = gone
            if before:  # Else it is believed just now, and all that went by at once: what is held came meanwhile.
                self._arrival += gone - before
        self._arrival = self._now.arrival = min(self._arrival, self._now.seconds + self._ahead)

    def _is_full(self) -> bool:
        outbox = self._ledger.state.outbox
        return len(outbox) > OUTBOX_ROWS or self._ledger.state.owed_bytes > OUTBOX_BYTES

    def _receive(self) -> list[Delivery]:
        if self._is_full():
            self._for_output.goes_on("what is owed has reached its limit")
            if self._looked - self._took_at > PAUSE_S:
                self._source.pause()
            self._source.turn(SHORT_WAIT_S)
            return []
        self._for_output.is_over()
        self._took_at = self._looked
        if self._to_send or self._outgoing:
            return self._source.receive(SHORT_WAIT_S if self._on_the_way >= ON_THE_WAY or not self._to_send else 0)
        return self._source.receive(0 if self._ledger.checkpointing else WAIT_S)

    def _take(self, deliveries: list[Delivery]) -> tuple[list[bytes], list[Finished]]:
        """Runs the stages up to stitching. Gives the keys of the messages that are new, and the flows that were finished."""
        fresh: dict[bytes, bytes] = {}
        for body, message_id, _ in deliveries:
            key = key_of(body, message_id)
            if key in fresh or self._ledger.state.knows(key):
                self._counts["repeated", "", ""] += 1
            else:
                fresh[key] = body
        if fresh:
            self._at_work.begin(key.hex() for key in fresh)
        rows: list[Finished] = []
        for key, body in fresh.items():
            name, before = key.hex(), len(rows)
            if len(body) > self._max_message_bytes:
                self._chain.refuse_message("longer than max_message_bytes", body, self._source.name, name)
            elif name in self._at_work.suspects:
                rows += self._take_carefully(body, name)
            else:
                rows += self._chain.let_in(body, self._source.name, name)
            if self._splits and len(rows) > before:
                self._messages.append((self._ledger.state.next + len(rows), name))
            self._go_on()
        if not self._is_full():  # Once for the batch: when the clock leaps, all that is held may have finished.
            rows += self._chain.tick()
        return list(fresh), rows

    def _take_carefully(self, body: bytes, name: str) -> list[Finished]:
        """The same for a message that was at work when the process died: first the message, then each flow in it alone."""
        chain, at_work, source = self._chain, self._at_work, self._source.name
        if not at_work.alone(name):
            chain.refuse_message(BLAMED, body, source, name)
            return []
        values = chain.values_of(body)
        if values is None:
            rows = chain.let_in(body, source, name)
            at_work.survived(name)
            return rows
        at_work.survived(name)
        rows = []
        for index, value in enumerate(values):
            one = f"{name}.{index}"
            if at_work.alone(one):
                rows += chain.take_one(value, source, one)
                at_work.survived(one)
            else:
                chain.read += 1
                chain.refuse_message(BLAMED, value, source, one)
        return rows

    def _is_something_to_store(self) -> bool:
        return bool(
            self._done
            or self._letters
            or self._chain.dead
            or self._ledger.checkpointing
            or self._counts
            or self._looked - self._stored_at > CLOCK_S
        )

    def _store(self, keys: list[bytes], rows: list[Finished], stop: Callable[[], bool]) -> bool:
        """Commits to the ledger, waiting until it has room. False if it was told to stop before: then nothing was stored."""
        ledger, stitching = self._ledger, self._chain.stitching
        letters, self._letters = self._letters + self._chain.dead, []
        self._chain.dead = []
        done, self._done = self._done, []
        counts, self._counts = self._counts + self._chain.settle(), Counter()
        first = ledger.state.next
        changes = stitching.changes() if stitching is not None else None
        record = ledger.encode(Commit(keys, changes, rows, letters, done, counts, self._arrival, self._worked))
        while True:
            began = time.perf_counter()
            try:
                ledger.write(record)
                break
            except NoRoom as error:
                self._for_room.goes_on(str(error))
                if stop():
                    return False
                self._source.turn(WAIT_S)
                self._gather(WAIT_S)
                if self._meter.is_due(time.monotonic()):
                    self._meter.alive()  # The totals count what is not stored yet.
                self._looked = time.monotonic()  # The arrival clock stands still.
        self._commits += 1
        self._commit_seconds += time.perf_counter() - began
        self._for_room.is_over()
        self._stored_at = self._looked
        self._to_send.extend(range(first, ledger.state.next))
        return True

    def _hand_out(self) -> None:
        """Enriches what is owed and gives it to the output; dead letters go to where the input keeps them."""
        outbox = self._ledger.state.outbox
        while self._to_send and self._on_the_way < ON_THE_WAY:
            numbers: list[int] = []
            behind, message = self._messages.popleft() if self._messages else (self._ledger.state.next, "")
            most = math.inf if message else min(BATCH, ON_THE_WAY - self._on_the_way)
            while self._to_send and self._to_send[0] < behind and len(numbers) < most:
                number = self._to_send.popleft()
                row = outbox[number]
                if isinstance(row, bytes):
                    self._source.bury(number, self._ledger.letter_id(number, row), row)
                else:
                    numbers.append(number)
            if numbers:
                self._enrich(numbers, message)

    def _enrich(self, numbers: list[int], message: str) -> None:
        chain, at_work, outbox = self._chain, self._at_work, self._ledger.state.outbox
        before = chain.dead
        chain.dead = []
        self._counts += chain.settle()
        names = [f"row {number}" for number in numbers]
        at_work.begin(names)
        rows: list[Finished] = [outbox[number] for number in numbers]  # type: ignore[misc]
        if at_work.suspects.isdisjoint(names):
            flows = chain.enrich(rows)
        else:
            flows = []
            for name, row in zip(names, rows, strict=True):
                if at_work.alone(name):
                    flows += chain.enrich([row])
                    at_work.survived(name)
                else:
                    chain.refuse_finished(BLAMED, row)
        at_work.done(names)
        self._batches += 1
        self._outgoing[self._batches] = Outgoing(numbers, chain.dead, chain.settle())
        self._on_the_way += len(numbers)
        chain.dead = before
        began = 0.0 if self._batches % SAMPLED else time.perf_counter()
        if isinstance(self._sink, Splits):
            self._sink.split(self._batches, flows, message)
        else:
            self._sink.write(self._batches, flows)
        if began:
            chain.took(OUTPUT, time.perf_counter() - began, len(flows))

    def _gather(self, seconds: float) -> None:
        """Takes note of what the output and the keeper of dead letters confirmed."""
        for batch, flows, refusals in self._sink.stored(seconds):
            rows, letters, counts = self._outgoing.pop(batch)
            self._on_the_way -= len(rows)
            for flow, reason in refusals:
                self._chain.refuse(OUTPUT, reason, flow, self._source.name)
            self._done += rows
            self._letters += letters
            self._counts += counts
            self._counts["written", "", ""] += flows
        self._done += self._source.buried()

    def _unburied(self) -> bool:
        return any(isinstance(row, bytes) for row in islice(self._ledger.state.outbox.values(), 100))

    def _look_after(self) -> None:
        """What is to be done now and then."""
        if self._meter.is_due(self._looked):
            self._tell()
        if self._looked - self._tables_at > TABLES_S:
            self._tables_at = self._looked
            self._exchange_tables()
        if self._looked - self._said_at > PROGRESS_S:
            self._said_at = self._looked
            self._say()
            gc.collect(0)  # What pika leaves when a connection is lost.
            gc.freeze()

    def _exchange_tables(self) -> None:
        changed = self._tables.changed()
        for line in self._tables.refused:
            log.warning("a lookup table was refused, the old one stays in use", reason=line)
        if changed is None:
            return
        try:
            self._chain.exchange(changed)
        except SettingsError as error:
            for line in error.errors:
                log.warning("lookup tables were refused, the old ones stay in use", reason=line)
        else:
            log.info("lookup tables were exchanged")
        self._tables = changed
        self._tables_made = made_at(changed)

    def _tell(self) -> None:
        """The numbers of now, for metrics and health."""
        state, stitching, runs = self._ledger.state, self._chain.stitching, self._chain.steps.runs
        newest_end = getattr(stitching, "newest_end", -math.inf)
        self._meter.tell(
            Reading(
                totals=dict(state.totals),
                connected=self._source.connected,
                held=len(state.held) if stitching is not None else None,
                outbox_rows=len(state.outbox),
                outbox_bytes=state.owed_bytes,
                keys=state.keys if self._ledger.durable else None,
                keys_ratio=self._ledger.keys_full if self._ledger.durable else None,
                queue_messages=self._source.waiting,
                newest_end=newest_end if newest_end > -math.inf else None,
                stitching=stitching.counts() if stitching is not None else {},
                ends=(2 * self._chain.enriched, runs[0].misses) if runs else None,
                commits=(self._commits, self._commit_seconds) if self._ledger.durable else None,
                sampled=dict(self._chain.timed),
                tables=self._tables_made,
            )
        )

    def _say(self) -> None:
        """How it goes: what was counted since the last line, and what is held and owed now."""
        state = self._ledger.state
        counts, self._since = state.totals - self._since, Counter(state.totals)
        values = {word: number for (word, stage, reason), number in counts.items() if not reason}
        reasons = {f"{word} {stage} {reason}".replace("  ", " "): number for (word, stage, reason), number in counts.items() if reason}
        log.info("at work", **values, **({"reasons": reasons} if reasons else {}), held=len(state.held), owed=len(state.outbox))
        if self._ledger.keys_full > WARN_KEYS:
            log.warning(
                "the memory for keys of messages is nearly full: repeats may be known for less than 24 h", full=self._ledger.keys_full
            )


#: Why a flow or message is refused that was alone at work when the process died, three times.
BLAMED = "the process died three times while it was at work on this"

#: Share of the memory for keys from which on it is said that it gets full.
WARN_KEYS = 0.8


def key_of(body: bytes, message_id: str) -> bytes:
    """What a message is known by, 16 bytes: its sender's id, else its body. Byte-identical messages without id are one message."""
    if message_id:
        return hashlib.blake2b(message_id.encode(), digest_size=16, person=b"id").digest()
    return hashlib.blake2b(body, digest_size=16, person=b"body").digest()
