"""The sink while it is killed, and while Elasticsearch is killed, away, hung, overloaded or silent: each flow is stored once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.elastic import Node
from tests.services.rabbitmq import Broker, wait_for
from tests.services.sink import REQUEST_S, Front, Sinking, front
from tests.services.test_outages import Watch

#: The full number is a million: NETSAGE_TEST_SINK_FLOWS=1000000.
FLOWS = int(os.environ.get("NETSAGE_TEST_SINK_FLOWS") or 100_000)

#: Seconds for which the server is away, or hung.
AWAY_S = float(os.environ.get("NETSAGE_TEST_SINK_AWAY_S") or 12)

#: Seconds after which it is clear that it does not come to an end.
END_S = 200 + FLOWS / 500

DAYS = (0, 1, 2)

#: Bytes: what the sink takes at most, and by how much it may grow while nothing is stored.
RESIDENT, GROWTH = 300_000_000, 120_000_000


@pytest.fixture
def before(elastic: Node) -> Iterator[Front]:
    with front(elastic) as made:
        yield made


@pytest.fixture
def running(broker: Broker, elastic: Node, before: Front, tmp_path: Path) -> Iterator[Sinking]:
    run = Sinking(broker, elastic, tmp_path / "sink", url=before.url)
    run.limits = {"worker.run:PAUSE_S": 4, REQUEST_S: 5}
    run.begin()
    yield run
    run.end()


def under_load(run: Sinking, before: Front, share: float) -> None:
    """Publishes a part of all flows; it is at work on them, and far from done, when this returns."""
    count, before.delay_s = run.count(), 0.5
    run.publish(round(FLOWS * share), DAYS)
    wait_for(lambda: run.count() > count, 120, lambda: run.worker.lasts(0.05))
    before.delay_s = 0
    assert run.count() < sum(each.documents for each in run.expected.values()) * 0.9, "nothing is left to be at work on"


def stopped_and_started_again(run: Sinking) -> None:
    """Within 10 s, though nobody answers; what it did not store comes again."""
    run.worker.tell(signal.SIGTERM, within=10)
    assert run.comes_again()
    run.begin().works()


def test_every_flow_is_stored_once_whatever_fails_and_once_more_changes_nothing(running: Sinking, elastic: Node, before: Front) -> None:
    run = running

    for _ in range(2):
        under_load(run, before, 0.08)
        run.worker.kill()
        wait_for(run.comes_again)
        run.begin()

    under_load(run, before, 0.4)
    watch = Watch(run.worker)
    watch.start()
    elastic.kill9()
    try:
        run.waits_for("the connection was lost")
        time.sleep(AWAY_S)
        grown = watch.stop() - watch.first
        print(f"resident {watch.most / 1e6:.0f} MB, {grown / 1e6:.0f} MB more than before the server was away")
        assert grown < GROWTH
        assert watch.most < RESIDENT
        assert run.worker.says("waits for the output"), run.worker.said
        wait_for(run.comes_again)  # It gave back what it could not store.
        stopped_and_started_again(run)
        elastic.start("indexing_pressure.memory.limit: 1kb")
        run.waits_for("es_rejected_execution_exception")
        elastic.stop()
    finally:
        elastic.start()

    under_load(run, before, 0.22)
    elastic.signal(signal.SIGSTOP)
    try:
        run.waits_for("it does not answer")
        stopped_and_started_again(run)
        time.sleep(AWAY_S / 2)
    finally:
        elastic.signal(signal.SIGCONT)

    under_load(run, before, 0.22)
    writes, count, forgotten = run.writes(), run.count(), before.forgotten
    before.forgetful = True
    wait_for(lambda: before.forgotten >= forgotten + 4, 60, lambda: run.worker.lasts(0.05))
    before.forgetful = False
    run.wait_until_stored(END_S)
    assert run.writes() - writes > run.count() - count, "nothing was written twice, so nothing was put to the test"
    assert "goes on with Elasticsearch" in run.worker.whole_log

    written = run.writes()
    run.publish_again()
    wait_for(lambda: run.writes() >= written + FLOWS, END_S, lambda: run.worker.lasts(0.3))
    run.stop_when_done()
    assert run.found() == run.expected
    assert sum(each.documents for each in run.expected.values()) == FLOWS
    assert run.letters() == []
    assert "refused by" not in run.said


def test_what_the_server_refuses_for_reasons_of_its_own_waits_until_they_are_gone(broker: Broker, elastic: Node, tmp_path: Path) -> None:
    run = Sinking(broker, elastic, tmp_path)
    new = f"{run.prefix}-2026.11.06"
    index = [f"{run.prefix}-2026.11.0{day + 1}" for day in range(5)]
    cluster = {"cluster.max_shards_per_node": "1", "action.auto_create_index": "false", "cluster.blocks.read_only": "true"}
    watches = {
        "cluster.info.update.interval": "1h"
    }  # Else the server takes back the block of a full disk when it sees that it is not full.
    with elastic.client() as client:
        try:
            client.cluster.put_settings(persistent=watches)
            run.publish(100, (0, 1, 2, 3, 4))
            run.begin()
            run.wait_until_stored()
            for name, setting in zip(index[:3], ("write", "read_only", "read_only_allow_delete"), strict=True):
                client.indices.put_settings(index=name, settings={f"index.blocks.{setting}": True})
            client.indices.close(index=index[3])
            client.indices.put_settings(index=index[4], settings={"index.default_pipeline": "missing"})
            client.cluster.put_settings(persistent=cluster)

            run.put([run.flow(day) for day in (0, 1, 2, 3, 4, 5)])  # The last one is what it tells of.
            for text, name, settings in (
                ("cluster read-only", "", {"cluster.blocks.read_only": None}),
                ("no such index", "", {"action.auto_create_index": None}),
                ("maximum normal shards open", "", {"cluster.max_shards_per_node": None}),
                ("pipeline with id", index[4], {"index.default_pipeline": None}),
                ("index_closed_exception", index[3], {}),
                ("flood-stage", index[2], {"index.blocks.read_only_allow_delete": None}),
                ("index read-only", index[1], {"index.blocks.read_only": None}),
                ("index write", index[0], {"index.blocks.write": None}),
            ):
                run.waits_for(text)
                assert not run.worker.says("goes on with Elasticsearch")
                if not name:
                    client.cluster.put_settings(persistent=settings)
                elif settings:
                    client.indices.put_settings(index=name, settings=settings)
                else:
                    client.indices.open(index=name)
            wait_for(lambda: len(run.found()) == 6 and run.count() == 106, 60, lambda: time.sleep(0.2))
            run.stop_when_done()
            assert run.found()[new].documents == 1
            assert run.letters() == []
            assert len(run.worker.says("waits for Elasticsearch")) == 8
            assert len(run.worker.says("goes on with Elasticsearch")) == 1
        finally:
            client.cluster.put_settings(persistent=dict.fromkeys(cluster | watches))
            run.end()
