"""A worker in a process of its own that can be killed: at a named point of its loop, from within, or at any time, from outside.

As a program it runs netsage-pipeline and ends itself with SIGKILL at the n-th passage of a point, counting only passages at which flows are
held and rows are owed. Nothing in the package knows of it: the methods at which the points lie are wrapped.

    python -m tests.services.worker POINT NTH REPORT run
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from netsage_pipeline.chain import Chain
from netsage_pipeline.cli import main
from netsage_pipeline.flow import Splits
from netsage_pipeline.outputs.batches import Batches
from netsage_pipeline.rabbitmq import amqp
from netsage_pipeline.worker import ledger, run
from netsage_pipeline.worker.at_work import AtWork

ROOT = Path(__file__).parent.parent.parent
COMMAND = Path(sys.executable).with_name("netsage-pipeline")

#: Point → the highest number of passages that is worth waiting for.
POINTS = {
    "received": 10,
    "marked as at work": 10,
    "decoding": 60,
    "decoded": 10,
    "before the commit": 10,
    "commit cut off": 10,
    "after the commit": 10,
    "acknowledged": 10,
    "enriching": 10,
    "enriched": 10,
    "published": 10,
    "partly confirmed": 10,
    "confirmed": 10,
    "noted as confirmed": 10,
    "before the outbox is emptied": 10,
    "after the outbox is emptied": 10,
    "letter published": 3,
    "letter confirmed": 3,
    "segment cut off": 2,
    "segment begun": 2,
    "checkpoint under way": 4,
    "before a checkpoint ends": 1,
    "after a checkpoint ends": 1,
    "segments being deleted": 1,
    "recovering": 20,
    "recovered": 1,
    "restored": 1,
}

#: Those that lie at the output and behind it.
OUTPUT_POINTS = (
    "enriched",
    "published",
    "partly confirmed",
    "confirmed",
    "noted as confirmed",
    "before the outbox is emptied",
    "after the outbox is emptied",
)

#: Those that a router passes with flows that are not acknowledged.
ROUTER_POINTS = ("enriching", "enriched", "published", "partly confirmed", "confirmed", "noted as confirmed", "letter published")

#: In a process that kills itself segments and steps of checkpoints are small, so that there are many, and so is the window.
SEGMENT_BYTES, CHECKPOINT_STEP = 100_000, 200
ON_THE_WAY, BATCH = 600, 250

#: Rows that may be on their way when such a process dies, and a real one.
WINDOW = ON_THE_WAY + BATCH
REAL_WINDOW = run.ON_THE_WAY + run.BATCH


class Hit(NamedTuple):
    """What a process said of its death."""

    point: str
    held: int
    owed: int
    redelivered: int  #: messages that the broker had delivered to somebody before


def hits(report: Path) -> list[Hit]:
    lines = report.read_text("utf-8").splitlines() if report.exists() else []
    return [Hit(point, *map(int, numbers)) for point, *numbers in (line.split("\t") for line in lines)]


class Process:
    """A worker, or another command on its ledger. Its output goes to a file."""

    def __init__(
        self,
        environment: Mapping[str, str],
        log: Path,
        *command: str,
        point: str = "",
        nth: int = 1,
        report: Path = Path(),
        module: str = "tests.services.worker",
        before: Sequence[str] = (),
    ) -> None:
        """module: the program that knows the point; before: what stands before its command line."""
        self.point, self.log = point, log
        self.window = WINDOW if point else REAL_WINDOW
        self.started = time.time()
        words = [sys.executable, "-m", module, point, str(nth), str(report)] if point else [str(COMMAND)]
        with log.open("wb") as output:
            self._process = subprocess.Popen([*before, *words, *command], cwd=ROOT, env=environment, stdout=output, stderr=output)

    def lasts(self, seconds: float) -> bool:
        """Whether it still runs after so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(60)

    def tell_to_stop(self) -> None:
        self._process.terminate()

    def stop(self, seconds: float = 60) -> int:
        """As a service manager does it; its exit status."""
        self.tell_to_stop()
        assert not self.lasts(seconds), f"did not stop within {seconds:.0f} s:\n{self.said}"
        return self._process.returncode

    @property
    def has_worked(self) -> bool:
        """Whether it came to its loop."""
        return b'"works"' in self.log.read_bytes()

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")[-6_000:]


class Killer:
    """Ends this process at a point.

    holds   whether its chain holds flows: a router's does not
    """

    def __init__(self, point: str, nth: int, report: str) -> None:
        self._point, self._left = point, nth
        self._report = os.open(report, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        self.state = ledger.State()
        self.holds = True
        self.redelivered = 0

    def is_due(self, point: str) -> bool:
        """Whether this is the passage at which to die."""
        if point != self._point or (self.holds and not self.state.held) or not self.state.outbox:
            return False
        self._left -= 1
        return self._left <= 0

    def passes(self, point: str) -> None:
        if self.is_due(point):
            self.die()

    def die(self) -> None:
        line = f"{self._point}\t{len(self.state.held)}\t{len(self.state.outbox)}\t{self.redelivered}\n"
        os.write(self._report, line.encode())
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None) -> None:
    """Wraps a function: `before` gets its arguments, `after` its result and its arguments."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before:
            before(*arguments, **named)
        result = inner(*arguments, **named)
        if after:
            after(result, *arguments, **named)
        return result

    setattr(owner, name, wrapped)


def place(killer: Killer) -> None:
    """Puts the points where they lie."""
    passes = killer.passes

    def knows(_: None, state: ledger.State) -> None:
        killer.state = state

    around(ledger.State, "__init__", after=knows)
    _place_in_worker(killer)
    _place_in_ledger(killer)

    def counts(_link: Any, _channel: Any, method: Any, *_: Any) -> None:
        killer.redelivered += method.redelivered

    around(amqp.Consumer, "_on_message", before=counts)
    around(amqp.Publisher, "_on_confirm", after=lambda _, link, *__: link._what == "output" and passes("partly confirmed"))
    around(Batches, "write_down", after=lambda *_: passes("partly confirmed"))
    around(AtWork, "begin", after=lambda *_: passes("marked as at work"))
    around(Chain, "let_in", after=lambda *_: passes("decoding"))
    around(Chain, "take_one", after=lambda *_: passes("decoding"))
    around(Chain, "enrich", after=lambda *_: passes("enriching"))


def _place_in_worker(killer: Killer) -> None:
    passes = killer.passes

    def if_any(point: str) -> Callable[..., None]:
        return lambda result, *_: passes(point) if result else None

    def made(_: None, worker: run.Worker, *__: Any) -> None:
        source, sink = worker._source, worker._sink
        around(source, "acknowledge", after=lambda *_: passes("acknowledged"))
        around(source, "bury", after=lambda *_: passes("letter published"))
        around(source, "buried", after=if_any("letter confirmed"))
        killer.holds = worker._chain.stitching is not None
        around(
            sink,
            "split" if isinstance(sink, Splits) else "write",
            before=lambda *_: passes("enriched"),
            after=lambda *_: passes("published"),
        )
        around(sink, "stored", after=if_any("confirmed"))
        passes("restored")

    around(run.Worker, "__init__", after=made)
    around(run.Worker, "_receive", after=if_any("received"))
    around(run.Worker, "_take", after=lambda result, *_: passes("decoded") if result[0] else None)
    around(run.Worker, "_gather", after=lambda _, worker, *__: passes("noted as confirmed") if worker._done else None)


def _place_in_ledger(killer: Killer) -> None:
    passes = killer.passes
    writes_head = False

    def before_write(book: ledger.Ledger, _: bytes) -> None:
        record = book._record
        if "keys" in record:
            passes("before the commit")
        if "done" in record:
            passes("before the outbox is emptied")
        if "complete" in record:
            passes("before a checkpoint ends")

    def after_write(_: None, book: ledger.Ledger, __: bytes) -> None:
        record = book._record
        if "keys" in record:
            passes("after the commit")
        if "done" in record:
            passes("after the outbox is emptied")
        if "held" in record or "slices" in record:
            passes("checkpoint under way")

    def before_segment(_: ledger.Ledger) -> None:
        nonlocal writes_head
        writes_head = True

    def after_segment(_: None, __: ledger.Ledger) -> None:
        nonlocal writes_head
        writes_head = False
        passes("segment begun")

    def before_bytes(file: int, content: bytes) -> None:
        if killer.is_due("segment cut off" if writes_head else "commit cut off"):
            os.write(file, content[: int(len(content) * (time.time() % 1))])
            killer.die()

    def before_deletion(book: ledger.Ledger, number: int) -> None:
        passes("after a checkpoint ends")
        old = [path for each, path in ledger.segments(book.directory).items() if each < number]
        if len(old) > 1 and killer.is_due("segments being deleted"):
            old[0].unlink()
            killer.die()

    around(ledger.Ledger, "write", before=before_write, after=after_write)
    around(ledger.Ledger, "_begin_segment", before=before_segment, after=after_segment)
    around(ledger.Ledger, "_delete_before", before=before_deletion)
    around(ledger, "_write_all", before=before_bytes)
    around(ledger.State, "apply", after=lambda *_: passes("recovering"))
    around(ledger, "recovered", after=lambda *_, **__: passes("recovered"))


if __name__ == "__main__":
    point, nth, report, *command = sys.argv[1:]
    ledger.SEGMENT_BYTES, ledger.CHECKPOINT_STEP = SEGMENT_BYTES, CHECKPOINT_STEP
    run.ON_THE_WAY, run.BATCH = ON_THE_WAY, BATCH
    place(Killer(point, int(nth), report))
    main(command)
