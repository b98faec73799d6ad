"""The sink, from RabbitMQ into Elasticsearch, beside the client's bulk with the same documents already serialized.

    python benchmarks/sink.py [--flows 60000] [--rounds 3] [--elasticsearch http://...] [--url amqp://...]

Without addresses it starts nodes of its own, where they are installed. Both write the same documents under the same mapping, each time
into an index of its own, one after the other in turns. The client's bulk takes requests of 1,000 documents one after the other, and then
as many at once as the sink has; the sink takes messages of 100 flows from a queue, acknowledges them, and makes ids and documents of them.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from elasticsearch import Elasticsearch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import material
from benchmarks.chain import through
from benchmarks.queues import fill
from netsage_pipeline import folders
from netsage_pipeline.commands.run import working
from netsage_pipeline.documents import document_id
from netsage_pipeline.elastic import templates
from netsage_pipeline.flow import Flow, Now
from netsage_pipeline.options import field_table, opened, stages_of
from netsage_pipeline.outputs import senders
from netsage_pipeline.worker.run import Worker
from tests.services import elastic, rabbitmq

LIMIT = 0.8
IN = "netsage_archive_input"

#: Documents in a request of the client's bulk.
REQUEST = 1_000


def enriched(directory: Path, count: int) -> list[Flow]:
    """So many flows as the worker publishes them, fewer by what is stitched."""
    material.write_tables(directory)
    rng = random.Random(2)
    rows = material.flows(material.Hosts(rng, 60_000), rng, count, material.START)
    chain, _ = opened(stages_of(None, None), Now(time.time(), judges=False), directory)
    return [flow for batch in through(chain, material.messages(rows)) for flow in batch]


def serialized(flows: list[Flow], index: str) -> list[list[Any]]:
    """Requests: lines of actions and of documents, as the sink writes them."""
    lines: list[bytes] = []
    for flow in flows:
        known_as = document_id(flow)
        lines.append(orjson.dumps({"index": {"_index": index, "_id": known_as}}))
        lines.append(orjson.dumps({**flow, "document_id": known_as}))
    return [lines[at : at + 2 * REQUEST] for at in range(0, len(lines), 2 * REQUEST)]


def client_bulk(client: Elasticsearch, requests: list[list[Any]], at_once: int) -> float:
    """Seconds that the client takes for all requests."""

    def send(request: list[Any]) -> None:
        answer = client.bulk(operations=request, filter_path="errors,items.*.status")
        assert not answer["errors"], "documents were refused"

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        list(threads.map(send, requests))
    return time.perf_counter() - began


def sink(count: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, that the sink takes for what is in the queue."""
    with working(folders.shipped("conf.d") / "sink", None) as work:
        assert isinstance(work, Worker)
        began = cpu = 0.0

        def stop() -> bool:
            nonlocal began, cpu
            if not began and work._source.connected:
                began, cpu = time.perf_counter(), time.process_time()
            return work.state.totals["written", "", ""] >= count

        work.run(stop)
        return time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--elasticsearch", default=os.environ.get("NETSAGE_TEST_ELASTICSEARCH_URL"))
    parser.add_argument("--url", default=os.environ.get("NETSAGE_TEST_RABBITMQ_URL"))
    options = parser.parse_args()
    if not (options.elasticsearch or elastic.available()) or not (options.url or rabbitmq.available()):
        print("Elasticsearch or RabbitMQ is not installed: the sink is not measured")
        return
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        (data / "rabbitmq").mkdir()
        broker = rabbitmq.Broker(rabbitmq.free_port(5780), data / "rabbitmq", options.url or "")
        node = elastic.Node(rabbitmq.free_port(5770), data / "elasticsearch", options.elasticsearch or "")
        if not options.url:
            broker.start()
        try:
            if not options.elasticsearch:
                node.start()
            compare(options, data, broker.url, node)
        finally:
            if not options.url:
                broker.kill9()
            if not options.elasticsearch:
                node.kill9()


def compare(options: argparse.Namespace, data: Path, url: str, node: elastic.Node) -> None:
    (data / "tables").mkdir()
    flows = enriched(data / "tables", options.flows)
    messages = [orjson.dumps(flows[at : at + 100]) for at in range(0, len(flows), 100)]
    os.environ.update(
        NETSAGE_RABBITMQ_URL=url,
        NETSAGE_ELASTICSEARCH_URL=node.url,
        NETSAGE_SINK_STATE=str(data / "state"),
        NETSAGE_LOG_LEVEL="error",
    )
    size = sum(map(len, messages)) / len(flows)
    print(f"{len(flows):,} flows of {size:.0f} bytes")
    rates: dict[str, list[float]] = {"one": [], "several": [], "sink": []}
    with node.client() as client:
        for number in range(options.rounds + 1):  # The first one only warms the server up.
            for index in client.indices.get(index="netsage-benchmark-*"):
                client.indices.delete(index=index)
            for name, at_once in (("one", 1), ("several", senders.SENDERS)):
                prefix = f"netsage-benchmark-{name}-{number}"
                templates.install(client, prefix, field_table(None))
                seconds = client_bulk(client, serialized(flows, f"{prefix}-2023.11.14"), at_once)
                rates[name].append(len(flows) / seconds)
            os.environ["NETSAGE_INDEX_PREFIX"] = f"netsage-benchmark-sink-{number}"
            fill(url, messages, IN)
            seconds, cpu = sink(len(flows))
            rates["sink"].append(len(flows) / seconds)
    one, several, ours = (statistics.median(each[1:]) for each in rates.values())
    print(f"client's bulk, one request at a time  {one:>10,.0f} documents/s")
    print(f"client's bulk, {senders.SENDERS} at once              {several:>10,.0f} documents/s")
    print(f"sink                                  {ours:>10,.0f} documents/s, {cpu / len(flows) * 1e6:.1f} µs CPU a flow")
    print(f"the sink's share of the client's bulk: {ours / one:.2f} (limit {LIMIT}), of {senders.SENDERS} at once {ours / several:.2f}")


if __name__ == "__main__":
    main()
