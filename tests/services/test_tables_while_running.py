"""Lookup tables that are exchanged while a worker is under load: new values from then on, no flow lost; what is broken is refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import tables_with
from tests.services.load import Load, Piped, as_single, documents, message_of, steadily, sums
from tests.services.rabbitmq import Broker, wait_for

TABLE = "CAIDA-org-lookup.csv"

#: The AS of the destination of all flows.
ASN = 87


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    return tables_with(tmp_path, {TABLE: table("Old University")})


@pytest.fixture
def run(broker: Broker, tmp_path: Path, tables: Path) -> Iterator[Piped]:
    made = Piped(broker, tmp_path / "run", NETSAGE_LOOKUPS=str(tables), NETSAGE_INACTIVITY_TIMEOUT_S="1")
    made.limits = {"run.TABLES_S": 0.3}
    yield made
    made.end()


def table(organization: str) -> bytes:
    return f"{ASN},{organization}\n".encode()


def put(tables: Path, content: bytes) -> None:
    """As an operator does it: the new file takes the place of the old one at once."""
    new = tables / f"{TABLE}.new"
    new.write_bytes(content)
    os.replace(new, tables / TABLE)  # noqa: PTH105


def test_new_values_are_written_from_then_on_and_no_flow_is_lost(run: Piped, tables: Path) -> None:
    worker = run.begin().works()
    load = Load(run.broker, [run.input], steadily(1_000, 50, 1 << 30))
    load.start()
    flows = []

    def organizations() -> set[str]:
        more = run.flows()
        flows.extend(more)
        return {flow["meta"]["dst_organization"] for flow in more}

    wait_for(lambda: organizations() == {"Old University"})
    put(tables, table("New University"))
    wait_for(lambda: len(worker.says("lookup tables were exchanged")) == 1, 20)
    wait_for(lambda: organizations() == {"New University"}, 20)

    put(tables, b"no,csv\nof,this,kind\n\x00\xff\xfe")
    wait_for(lambda: bool(worker.says("refused")), 20)
    time.sleep(1.5)
    assert organizations() == {"New University"}
    [refusal] = worker.says("refused")
    assert refusal["level"] == "warning"
    assert refusal["reason"].startswith(f"{tables / TABLE}: ")
    assert refusal["reason"].endswith("the table read before stays in use")

    put(tables, b"")
    wait_for(lambda: len(worker.says("refused")) == 2, 20)
    assert "is empty" in worker.says("refused")[1]["reason"]
    (tables / TABLE).unlink()
    wait_for(lambda: len(worker.says("refused")) == 3, 20)
    time.sleep(1)
    assert organizations() == {"New University"}

    put(tables, table("Newest University"))
    wait_for(lambda: len(worker.says("lookup tables were exchanged")) == 2, 20)
    wait_for(lambda: organizations() == {"Newest University"}, 20)
    parts = load.stop()
    run.finished()
    organizations()
    worker.tell(signal.SIGTERM)
    assert sums(documents(flows)) == sums(as_single(parts))
    assert len(worker.says("refused")) == 3
    assert not run.letters()

    # Of each of them some, the older ones first.
    flows.sort(key=lambda flow: flow["@exit_time"])
    words = [flow["meta"]["dst_organization"].partition(" ")[0] for flow in flows]
    seen = list(dict.fromkeys(words))
    assert seen == ["Old", "New", "Newest"]
    assert words == sorted(words, key=seen.index), "an old value behind a new one"


def test_a_flow_that_was_held_before_gets_the_new_values(run: Piped, tables: Path) -> None:
    run.environment["NETSAGE_INACTIVITY_TIMEOUT_S"] = "600"
    worker = run.begin().works()
    messages = list(zip(range(3), steadily(1_000, 50, 50), strict=False))
    for _, (_, parts) in messages[:2]:
        run.put(message_of(parts))
    wait_for(lambda: run.taken() == 2)
    put(tables, table("New University"))
    wait_for(lambda: bool(worker.says("exchanged")), 20)
    run.put(message_of(messages[2][1][1]))
    wait_for(lambda: run.taken() == 3)
    worker.tell(signal.SIGTERM)
    run.drain()
    flows = run.flows()
    assert {flow["stitched_flows"] for flow in flows} == {3}
    assert {flow["meta"]["dst_organization"] for flow in flows} == {"New University"}
