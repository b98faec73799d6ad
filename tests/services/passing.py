"""A worker whose chain is an input and an output alone: what was put on its queue, and what of it its receiver got."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
import pika

from netsage_pipeline.documents import document_id
from tests.services.load import Piped
from tests.services.rabbitmq import Broker, wait_for
from tests.services.sink import CONF

#: Flows a message of the queue.
TOGETHER = 50


class Passing(Piped):
    """A queue of its own, a chain without stages, and an output.

    name, output   the output and its settings, as TOML
    waits_for      how its log lines call the receiver
    """

    def __init__(self, broker: Broker, directory: Path, name: str, output: str, receiver: str) -> None:
        conf = directory / "conf.d"
        conf.mkdir(parents=True)
        (conf / "01_input_rabbitmq.toml").write_bytes((CONF / "01_input_rabbitmq.toml").read_bytes())
        self.settings = conf / f"99_output_{name}.toml"
        self.settings.write_text(f"allow_full_addresses = true\n{output}")
        super().__init__(broker, directory, "--conf", conf)
        self._receiver = receiver
        self._number = 0
        self.published: dict[str, dict[str, Any]] = {}  # document id → flow
        self.environment |= {
            "NETSAGE_OUTPUT_KEY": self.input,
            "NETSAGE_SINK_DEAD_LETTERS": self.dead,
            "NETSAGE_SINK_STATE": str(self.ledger),
        }

    def flow(self, **more: Any) -> dict[str, Any]:
        """A flow as a worker hands it out, with bits that no other one has; several have one id."""
        self._number += 1
        number = self._number
        return {
            "type": "flow",
            "start": f"2026-11-01T00:00:{number / 1_000_000:09.6f}Z",
            "end": "2026-11-01T00:05:00.000Z",
            "stitched_flows": 1,
            "meta": {"id": f"{number % 1_000:064x}", "src_ip": "128.101.1.x", "dst_ip": "134.68.22.x", "number": number},
            "values": {"num_bits": 1 + number * 7_919, "num_packets": 1 + number % 99, "duration": 1.0},
            **more,
        }

    def publish(self, flows: int) -> None:
        self.publish_all([self.flow() for _ in range(flows)])

    def publish_all(self, flows: list[dict[str, Any]], *, expected: bool = True) -> None:
        """Puts flows on the queue, in messages of several."""
        if expected:
            self.published |= {document_id(flow): flow for flow in flows}
        with self.broker.channel() as channel:
            for at in range(0, len(flows), TOGETHER):
                body = orjson.dumps(flows[at : at + TOGETHER])
                channel.basic_publish("", self.input, body, pika.BasicProperties(delivery_mode=2))

    def until_done(self, arrived: Callable[[], int], dead: int = 0, seconds: float = 120) -> None:
        """Waits until all that was published arrived, and so many dead letters are there; ends the worker, which acknowledged all."""

        def is_done() -> bool:
            assert self.worker.lasts(0.2), f"it ended with {self.worker.code}:\n{self.worker.said}"
            return not self.broker.count(self.input) and arrived() >= len(self.published) and self.broker.count(self.dead) >= dead

        try:
            wait_for(is_done, seconds)
        except AssertionError:
            raise AssertionError(f"{arrived()} of {len(self.published)}\n{self.worker.said}") from None
        self.worker.tell(signal.SIGTERM)
        assert self.broker.count(self.input) == 0
        assert self.worker.says("stopped")[0]["owed"] == 0

    def compare(self, documents: Iterable[dict[str, Any]]) -> int:
        """Compares what arrived, repetitions of a document once, with what was published; gives how many repetitions there were."""
        found: dict[str, dict[str, Any]] = {}
        number = 0
        for each in documents:
            number += 1
            plain = dict(each)
            known_as = plain.pop("document_id")
            assert known_as not in found or found[known_as] == plain
            found[known_as] = plain
        assert len(found) == len(self.published)
        assert found == self.published
        return number - len(found)

    # What it says.

    def waits_for(self, text: str, seconds: float = 60) -> str:
        """Waits until it says that it waits for its receiver because of this; gives the whole reason."""
        found: list[str] = []

        def says_so() -> bool:
            assert self.worker.lasts(0.1), f"it ended with {self.worker.code}:\n{self.worker.said}"
            found[:] = [event["reason"] for event in self.worker.says(f"waits for {self._receiver}") if text in event["reason"]]
            return bool(found)

        wait_for(says_so, seconds)
        return found[-1]

    def goes_on(self, times: int = 1, seconds: float = 60) -> None:
        wait_for(lambda: len(self.worker.says(f"goes on with {self._receiver}")) >= times, seconds, lambda: self.worker.lasts(0.1))
