"""What the chain costs on one core, as a ratio to decoding its input and encoding its output.

    python benchmarks/chain.py [--flows 300000] [--addresses 150000]

The ruler is `orjson.loads` of the input messages (100 flows each), one after the other, and `orjson.dumps` of the enriched messages that
come of them, as the chain made them and all in memory, in the same process. Cold: nothing is remembered at the first flow. Warm: new flows
of the same distribution, after those of the cold run. CPU is that of the whole process, the start shown apart. Then the cost of each stage.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))

BEGAN = time.process_time()

from benchmarks import material  # noqa: E402
from netsage_pipeline import folders  # noqa: E402
from netsage_pipeline.chain import Chain  # noqa: E402
from netsage_pipeline.compose import configured  # noqa: E402
from netsage_pipeline.ends import EndRun  # noqa: E402
from netsage_pipeline.flow import Finished, Flow, Now  # noqa: E402
from netsage_pipeline.tables import Tables  # noqa: E402

WARM, COLD = 8.0, 11.0


def through(chain: Chain, messages: list[bytes]) -> Iterator[list[Flow]]:
    """The enriched messages, 100 flows each."""
    ready: list[Finished] = []
    for message in messages:
        chain.now.set(time.time())
        ready += chain.take(message, "benchmark", "0")
        while len(ready) >= 100:
            yield chain.enrich(ready[:100])
            del ready[:100]
    ready += chain.drain()
    for i in range(0, len(ready), 100):
        yield chain.enrich(ready[i : i + 100])


def ruler(messages: list[bytes], enriched: list[list[Flow]]) -> tuple[float, float]:
    """CPU seconds of decoding the input and of encoding the output."""
    began = time.process_time()
    for message in messages:
        orjson.loads(message)
    decoded = time.process_time()
    for batch in enriched:
        orjson.dumps(batch)
    return decoded - began, time.process_time() - decoded


def by_stage(chain: Chain, messages: list[bytes]) -> dict[str, float]:
    """CPU seconds by stage: each message goes through one stage after the other, all its flows at once."""
    seconds: dict[str, float] = {}

    clock = time.perf_counter

    def add(name: str, began: float) -> None:
        seconds[name] = seconds.get(name, 0.0) + clock() - began

    def enrich(finished: list[Finished]) -> None:
        assert chain.stitching is not None
        for i in range(0, len(finished), 100):
            began = clock()
            flows: list[Any] = [chain.stitching.flow(each) for each in finished[i : i + 100]]
            add("held form to flow", began)
            for name, process in chain.steps.behind:
                began = clock()
                flows = [process(flow) for flow in flows]
                add(f"{name} to {process.stages[-1].name}" if isinstance(process, EndRun) else name, began)
            began = clock()
            orjson.dumps(flows)
            add("encode", began)

    assert chain.stitching is not None
    for message in messages:
        began = clock()
        flows = orjson.loads(message)
        add("decode", began)
        for name, process in chain.steps.before:
            began = clock()
            flows = [process(flow) for flow in flows]
            add(name, began)
        began = clock()
        finished = [done for done in map(chain.stitching, flows) if done is not None] + chain.tick()
        add(chain.steps.held_by, began)
        enrich(finished)
    enrich(chain.drain())
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=300_000)
    parser.add_argument("--addresses", type=int, default=150_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        material.write_tables(Path(directory))
        rng = random.Random(2)
        hosts = material.Hosts(rng, options.addresses)
        inputs = []
        for run in range(2):
            start = material.START + run * 7_200
            inputs.append(material.messages(material.flows(hosts, rng, options.flows, start)))
        began = time.process_time()
        chain = Chain(configured(folders.shipped("conf.d"), [folders.shipped("stages")]), Tables(Path(directory)), Now(judges=False))
        started = time.process_time() - began
        gc.collect()
        gc.freeze()
        gc.disable()
        print(f"{os.uname().machine}, {os.cpu_count()} cores, Python {sys.version.split()[0]}; start of the chain {started:.2f} s")
        for name, messages, limit in (("cold", inputs[0], COLD), ("warm", inputs[1], WARM)):
            before, misses = chain.enriched, chain.steps.runs[0].misses
            began = time.process_time()
            size = sum(len(orjson.dumps(batch)) for batch in through(chain, messages))
            seconds = time.process_time() - began
            written, misses = chain.enriched - before, chain.steps.runs[0].misses - misses
            enriched = list(through(chain, messages))
            decode, encode = (min(each) for each in zip(*(ruler(messages, enriched) for _ in range(3)), strict=True))
            unstitched = sum(flow["stitched_flows"] == 1 for batch in enriched for flow in batch) / written
            print(
                f"{name}: {options.flows:,} flows of {sum(map(len, messages)) / options.flows:.0f} bytes in, {written:,} of "
                f"{size / written:.0f} bytes out, {unstitched:.0%} unstitched, {1 - misses / 2 / written:.0%} of ends remembered\n"
                f"      {seconds / options.flows * 1e6:.1f} µs a flow; ruler: decode {decode / options.flows * 1e6:.1f} + encode "
                f"{encode / options.flows * 1e6:.1f} µs; ratio {seconds / (decode + encode):.1f} (limit {limit:.0f})"
            )
        print("warm, by stage, µs a flow that came in:")
        for name, cost in by_stage(chain, inputs[1]).items():
            print(f"      {name:<24} {cost / options.flows * 1e6:5.2f}")


if __name__ == "__main__":
    main()
