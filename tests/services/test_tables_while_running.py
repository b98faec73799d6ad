"""Lookup tables that are exchanged while a worker is under load: new values from then on, no flow lost; what is broken is refused."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificates
from tests.command import LOOKUPS, run_real, tables_with
from tests.https import File, archive, far
from tests.lookups.test_mmdb import write
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
    made.limits = {"worker.run:TABLES_S": 0.3}
    yield made
    made.end()


def table(organization: str) -> bytes:
    return f"{ASN},{organization}\n".encode()


def put(tables: Path, content: bytes, name: str = TABLE) -> None:
    """As an operator does it: the new file takes the place of the old one at once."""
    new = tables / f"{name}.new"
    new.write_bytes(content)
    new.replace(tables / name)


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


CITY = "GeoLite2-City.mmdb"


def places(directory: Path, country: str) -> bytes:
    """A City database that has the destination of all flows in this country."""
    record = {
        "country": {"names": {"en": country}},
        "continent": {"names": {"en": "Somewhere"}},
        "location": {"latitude": 1.5, "longitude": 2.5},
    }
    return write(directory / "made.mmdb", {"134.68.0.0/16": record}, "GeoLite2-City").read_bytes()


def test_databases_that_are_fetched_under_load_are_taken_and_what_is_no_such_database_is_refused(
    run: Piped, tables: Path, tmp_path: Path
) -> None:
    """Truncated, of the wrong kind, of the wrong edition although it says that it is the right one: the old one stays."""
    put(tables, places(tmp_path, "Old Country"), CITY)
    worker = run.begin().works()
    load = Load(run.broker, [run.input], steadily(1_000, 50, 1 << 30))
    load.start()
    flows = []

    def countries() -> set[str]:
        more = run.flows()
        flows.extend(more)
        return {flow["meta"]["dst_country_name"] for flow in more}

    def refused(times: int) -> bool:
        return len(worker.says("refused")) == times

    wait_for(lambda: countries() == {"Old Country"})
    wrong = {
        "truncated": (places(tmp_path, "Wrong Country")[:-50], "is no MaxMind DB file, or is truncated"),
        "wrong kind": (b"asn,organization\n1,A\n", "is no MaxMind DB file, or is truncated"),
        "wrong edition": ((LOOKUPS / "GeoLite2-ASN.mmdb").read_bytes(), "is no City database (its type is GeoLite2-ASN;"),
        "wrong content": ((LOOKUPS / "scireg.mmdb").read_bytes(), "is no City database (its type is GeoLite2-City;"),
    }
    for number, (content, why) in enumerate(wrong.values(), 1):
        put(tables, content, CITY)
        wait_for(partial(refused, number), 20)
        assert worker.says("refused")[-1]["reason"].startswith(f"{tables / CITY}: {why}")
        assert worker.says("refused")[-1]["reason"].endswith("the table read before stays in use")
    countries()
    time.sleep(1)
    assert countries() == {"Old Country"}

    authority = certificates(tmp_path)
    with far(authority) as server:
        server.files["/city.tar.gz"] = File(archive(GeoLite2_City__mmdb=places(tmp_path, "New Country")))
        trusting: Any = {"SSL_CERT_FILE": str(authority / "ca.pem"), "NETSAGE_CITY_URL": f"{server.url}/city.tar.gz"}
        outcome = run_real("lookups", "update", "city", lookups=tables, **trusting)
        assert (outcome.code, outcome.err) == (0, "")
        wait_for(lambda: len(worker.says("lookup tables were exchanged")) == 1, 20)
        wait_for(lambda: countries() == {"New Country"}, 20)

        server.files["/city.tar.gz"] = File(archive(GeoLite2_City__mmdb=wrong["wrong content"][0]))
        assert run_real("lookups", "update", "city", lookups=tables, **trusting).code == 1
    time.sleep(1.5)
    parts = load.stop()
    run.finished()
    countries()
    worker.tell(signal.SIGTERM)
    assert sums(documents(flows)) == sums(as_single(parts))
    assert len(worker.says("refused")) == len(wrong)
    assert len(worker.says("lookup tables were exchanged")) == 1
    assert not run.letters()
    flows.sort(key=lambda flow: flow["@exit_time"])
    seen = [flow["meta"]["dst_country_name"] for flow in flows]
    assert list(dict.fromkeys(seen)) == ["Old Country", "New Country"]
    assert seen == sorted(seen, reverse=True), "an old value behind a new one"
