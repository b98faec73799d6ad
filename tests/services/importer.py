"""An importer with a queue, a state and sensors of its own, which is started, stopped and killed as a real process."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika

from netsage_pipeline import folders
from tests.command import LOOKUPS, surroundings
from tests.services.rabbitmq import Broker, wait_for
from tests.services.worker import Process


class Importing:
    """What processes that follow one another share; at most one runs at a time."""

    def __init__(self, broker: Broker, directory: Path, **environment: str) -> None:
        self.broker, self.directory = broker, directory
        self.queue = f"import-{uuid.uuid4().hex[:12]}"
        self.captures, self.state = directory / "captures", directory / "import"
        self.captures.mkdir(parents=True)
        self.conf = folders.shipped("conf.d") / "import"
        self.environment = {
            "NETSAGE_RABBITMQ_URL": broker.url,
            "NETSAGE_INPUT_QUEUE": self.queue,
            "NETSAGE_IMPORT_STATE": str(self.state),
            "NETSAGE_IMPORT_METRICS": "127.0.0.1:0",
            "NETSAGE_SENSOR": "sensor",
            "NETSAGE_NFCAPD_DIR": str(self.captures),
            "NETSAGE_MIN_BYTES": "0",
            "NETSAGE_MIN_FILE_AGE_S": "0",
            "NETSAGE_LOG_LEVEL": "info",
            **environment,
        }
        self.processes: list[Process] = []
        broker.declare(self.queue)
        with broker.channel() as channel:  # Else one that is killed while it does so leaves a queue that is not bound.
            channel.queue_bind(self.queue, "amq.direct", self.queue)

    def settings(self, text: str) -> None:
        """Settings of its input in place of the shipped ones, behind state and metrics; it looks for files four times a second."""
        self.conf = self.directory / "conf"
        self.conf.mkdir(exist_ok=True)
        shipped = folders.shipped("conf.d") / "import"
        (self.conf / "99_output_rabbitmq.toml").write_bytes((shipped / "99_output_rabbitmq.toml").read_bytes())
        head, _, _ = (shipped / "01_input_nfcapd.toml").read_text("utf-8").partition("# One table")
        (self.conf / "01_input_nfcapd.toml").write_text(f"{head}poll_s = 0.25\n{text}", "utf-8")

    def start(self, **of_process: Any) -> Process:
        log = self.directory / f"importer-{len(self.processes) + 1}.log"
        process = Process(surroundings(LOOKUPS, **self.environment), log, "run", "--conf", str(self.conf), **of_process)
        self.processes.append(process)
        return process

    @property
    def process(self) -> Process:
        return self.processes[-1]

    def stop(self) -> None:
        wait_for(lambda: self.process.has_worked or not self.process.lasts(0.01), 30)
        assert self.process.stop(10) == 0, self.process.said

    def end(self) -> None:
        for process in self.processes:
            if process.code is None:
                process.kill()
        with contextlib.suppress(pika.exceptions.AMQPError), self.broker.channel() as channel:
            channel.queue_delete(self.queue)

    def said(self, event: str = "") -> list[dict[str, Any]]:
        """The log lines of all processes with that event, or all."""
        lines = [line for process in self.processes for line in process.log.read_text("utf-8").splitlines()]
        return [line for line in map(json.loads, lines) if event in ("", line["event"])]

    def flows(self, count: int, seconds: float = 30) -> list[dict[str, Any]]:
        """Empties the queue, when so many flows are in it, repeats of a message left out: sorted by addresses."""
        messages: dict[str, list[dict[str, Any]]] = {}

        def arrived() -> int:
            for properties, body in self.broker.take(self.queue):
                flows = json.loads(body)
                assert properties.delivery_mode == 2
                assert messages.setdefault(str(properties.message_id), flows) == flows, "one id, two contents"
            return sum(map(len, messages.values()))

        wait_for(lambda: arrived() >= count or not self.process.lasts(0.1), seconds)
        assert arrived() == count, self.process.said
        return [flow for message in messages.values() for flow in message]


@contextlib.contextmanager
def importing(broker: Broker, directory: Path, **environment: str) -> Iterator[Importing]:
    made = Importing(broker, directory, **environment)
    try:
        yield made
    finally:
        made.end()
