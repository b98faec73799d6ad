"""What a process of ours serves as metrics, and what `netsage-pipeline health` says of it."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.command import Outcome
from tests.services.load import Limited, Piped
from tests.services.rabbitmq import wait_for

#: Name and labels → value.
Samples = dict[tuple[str, ...], float]


def port_of(worker: Limited) -> int:
    wait_for(lambda: bool(worker.says("serves metrics")), 30)
    return int(worker.says("serves metrics")[-1]["port"])


def text_at(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def samples_at(port: int) -> Samples:
    """All of it: a name with its labels' values, in the order of the labels' names."""
    samples = [sample for family in text_string_to_metric_families(text_at(port)) for sample in family.samples]
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in samples}


def samples_of(worker: Limited) -> Samples:
    return samples_at(port_of(worker))


def labelled(samples: Samples, name: str) -> dict[tuple[str, ...], float]:
    """Labels → value."""
    return {labels: value for (each, *rest), value in samples.items() if each == name for labels in [tuple(rest)]}


def comes_to(worker: Limited, wanted: Mapping[tuple[str, ...], float], seconds: float = 30) -> Samples:
    """Waits until these samples have these values; gives all."""
    found: Samples = {}

    def are_there() -> bool:
        assert worker.lasts(0.1), worker.said
        found.clear()
        found.update(samples_of(worker))
        return all(found.get(name) == value for name, value in wanted.items())

    try:
        wait_for(are_there, seconds)
    except AssertionError:
        raise AssertionError({name: (value, found.get(name)) for name, value in wanted.items() if found.get(name) != value}) from None
    return found


def health_of(run: Piped, *options: str) -> Outcome:
    return run.command("health", *options)


def becomes(run: Piped, words: str, seconds: float = 30) -> str:
    """Waits until health says this; gives all that it says."""
    said: list[str] = []

    def says_so() -> bool:
        said[:] = [health_of(run).out.decode()]
        return words in said[0]

    wait_for(says_so, seconds, lambda: time.sleep(0.2))
    return said[0]


def hang_on(worker: Limited, number: int) -> list[socket.socket]:
    """Connections of scrapers that ask and never read, or do not even ask."""
    made: list[Any] = []
    for each in range(number):
        made.append(socket.create_connection(("127.0.0.1", port_of(worker)), timeout=5))
        if each % 2:
            made[-1].sendall(b"GET /metrics HTTP/1.1\r\n")
    return made
