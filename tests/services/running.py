"""A pipeline with queues, a ledger and settings of its own, whose worker is started, stopped and killed as a real process."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika

from netsage_pipeline.statedir import StateError
from netsage_pipeline.worker.ledger import State, recovered
from tests.command import LOOKUPS, Outcome, run_real, surroundings
from tests.services.rabbitmq import Broker, wait_for
from tests.services.worker import Process


class Pipeline:
    """What processes that follow one another share. At most one worker runs at a time, `process`.

    arguments    of `netsage-pipeline run` and of every other command: --conf, --stages
    environment  of all of them; may be changed between two
    """

    def __init__(self, broker: Broker, directory: Path, *arguments: str | Path, lookups: Path = LOOKUPS, **environment: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"run-{uuid.uuid4().hex[:12]}"
        self.broker, self.directory = broker, directory
        self.input, self.output, self.dead, self.exchange = f"{name}-in", f"{name}-out", f"{name}-dead", f"{name}-exchange"
        self.ledger = directory / "state"
        self.arguments = [str(argument) for argument in arguments]
        self.environment = {
            "NETSAGE_RABBITMQ_URL": broker.url,
            "NETSAGE_INPUT_QUEUE": self.input,
            "NETSAGE_DEAD_LETTERS": self.dead,
            "NETSAGE_OUTPUT_EXCHANGE": self.exchange,
            "NETSAGE_OUTPUT_KEY": self.output,
            "NETSAGE_STATE": str(self.ledger),
            "NETSAGE_METRICS": "127.0.0.1:0",
            "NETSAGE_SINK_METRICS": "127.0.0.1:0",
            **environment,
        }
        self._lookups = lookups
        self.processes: list[Process] = []
        for queue in (self.input, self.output, self.dead):
            broker.declare(queue)
        with broker.channel() as channel:  # Else a worker that is killed while it does so leaves a queue that is not bound.
            channel.exchange_declare(self.exchange, "direct", durable=True)
            channel.queue_bind(self.output, self.exchange, self.output)

    # Processes.

    @property
    def surroundings(self) -> dict[str, str]:
        """The environment of a process, all of it."""
        return surroundings(self._lookups, **self.environment)

    @property
    def process(self) -> Process:
        return self.processes[-1]

    def start(self) -> Process:
        """A worker. It is at work when its log says so, a second or two later: see `idle`."""
        log = self.directory / f"worker-{len(self.processes) + 1}.log"
        process = Process(self.surroundings, log, "run", *self.arguments)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """As a service manager does it, when the worker has said that it works: before, the signal just ends it."""
        log = self.process.log
        if self.environment.get("NETSAGE_LOG_LEVEL", "info") in ("info", "debug"):
            wait_for(lambda: '"works"' in log.read_text("utf-8", "replace") or not self.process.lasts(0.01), 30)
        assert self.process.stop() == 0, self.process.said

    def command(self, *words: str | Path) -> Outcome:
        """Another command, with the same settings; it has ended."""
        stages_too = self.arguments if words[0] == "ledger" else _without_stages(self.arguments)
        return run_real(*words, *stages_too, stdin=b"", lookups=self._lookups, **self.environment)

    def drain(self) -> None:
        """Hands out what the ledger holds, when the worker has ended."""
        outcome = self.command("ledger", "drain")
        assert outcome.code == 0, outcome.err

    def end(self) -> None:
        """Kills what still runs, and deletes the queues."""
        for process in self.processes:
            if process.code is None:
                process.kill()
        with contextlib.suppress(pika.exceptions.AMQPError), self.broker.channel() as channel:
            for queue in (self.input, self.output, self.dead):
                channel.queue_delete(queue)
            channel.exchange_delete(self.exchange)

    # What it did.

    @property
    def state(self) -> State:
        """What the ledger holds at the moment."""
        with contextlib.suppress(StateError, FileNotFoundError):  # A checkpoint may just have ended.
            return recovered(self.ledger, touch=False)[0]
        return recovered(self.ledger, touch=False)[0]

    def taken(self) -> int:
        """How many messages are in the ledger, each time that one was known again among them."""
        state = self.state
        return state.keys + state.totals["repeated", "", ""]

    def idle(self, messages: int = 0, seconds: float = 60) -> None:
        """Waits until so many messages are in the ledger, all told, and nothing is in the input or owed any more."""

        def is_idle() -> bool:
            assert self.process.lasts(0.1), f"the worker ended with {self.process.code}:\n{self.process.said}"
            return self.taken() >= messages and not self.state.outbox and not self.broker.count(self.input)

        wait_for(is_idle, seconds)

    def until(self, condition: Callable[[State], bool], seconds: float = 60) -> None:
        """Waits until the ledger is as it should be; the worker may end meanwhile."""
        wait_for(lambda: self.ledger.exists() and condition(self.state), seconds, lambda: self.process.lasts(0.1))

    @property
    def said(self) -> str:
        """All log lines of all workers."""
        return "".join(process.log.read_text("utf-8", "replace") for process in self.processes)

    # Messages.

    def put(self, *messages: Any, message_id: str | None = None) -> None:
        """Messages on the input queue: bytes as they are, anything else as JSON."""
        bodies = [message if isinstance(message, bytes) else json.dumps(message).encode() for message in messages]
        self.broker.put(self.input, bodies, pika.BasicProperties(delivery_mode=2, message_id=message_id))

    def flows(self) -> list[dict[str, Any]]:
        """Empties the output queue: the flows in it, one behind the other."""
        return [flow for body in self.broker.bodies(self.output) for flow in _listed(json.loads(body))]

    def letters(self) -> list[dict[str, Any]]:
        """Empties the queue of dead letters."""
        return [json.loads(body) for body in self.broker.bodies(self.dead)]


@contextlib.contextmanager
def pipeline(broker: Broker, directory: Path, *arguments: str | Path, **environment: Any) -> Iterator[Pipeline]:
    """A pipeline that ends with the test."""
    made = Pipeline(broker, directory, *arguments, **environment)
    try:
        yield made
    finally:
        made.end()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _without_stages(arguments: list[str]) -> list[str]:
    if "--stages" not in arguments:
        return arguments
    at = arguments.index("--stages")
    return arguments[:at] + arguments[at + 2 :]
