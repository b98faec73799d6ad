"""What the chain costs on one core, as a ratio to decoding its input and encoding its output.

    python benchmarks/chain.py [--flows 300000] [--addresses 60000]

The ruler is what any program has to do that takes in these messages (100 flows each) and gives out the enriched ones: `orjson.loads` of all
input messages and `orjson.dumps` of all enriched messages, as the chain made them, in the same process; the best of three. Cold: nothing is
remembered at the first flow. Warm: new flows of the same distribution, after those of the cold run. CPU is that of the whole process, the
start shown apart. Then the cost of each stage.
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
from typing import Any, NamedTuple

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))

BEGAN = time.process_time()

from benchmarks import material  # noqa: E402
from netsage_pipeline import folders  # noqa: E402
from netsage_pipeline.chain import Chain  # noqa: E402
from netsage_pipeline.compose import configured  # noqa: E402
from netsage_pipeline.ends import EndRun  # noqa: E402
from netsage_pipeline.flow import Finished, Flow, Now  # noqa: E402
from netsage_pipeline.tables.tables import Tables  # noqa: E402

WARM, COLD = 8.0, 11.0


def through(chain: Chain, messages: list[bytes]) -> Iterator[list[Flow]]:
    """The enriched messages, 100 flows each; at the end all that is held."""
    ready: list[Finished] = []
    for message in messages:
        chain.now.set(time.time())
        ready += chain.take(message, "benchmark", "0") + chain.tick()
        while len(ready) >= 100:
            yield chain.enrich(ready[:100])
            del ready[:100]
    ready += chain.drain()
    for i in range(0, len(ready), 100):
        yield chain.enrich(ready[i : i + 100])


class Measured(NamedTuple):
    """CPU seconds and counts of one run."""

    chain: float
    decode: float
    encode: float
    written: int
    unstitched: int
    bytes: int
    misses: int


def measured(chain: Chain, other: Chain, messages: list[bytes]) -> Measured:
    """The chain's run, message by message; then the ruler's, on all messages at once, which another chain has made again."""
    misses = chain.steps.runs[0].misses
    cpu = time.process_time
    began = cpu()
    size = sum(len(orjson.dumps(batch)) for batch in through(chain, messages))
    seconds = cpu() - began
    misses = chain.steps.runs[0].misses - misses
    enriched = list(through(other, messages))
    flows = [flow for batch in enriched for flow in batch]
    decode, encode = (min(each) for each in zip(*(ruler(messages, enriched) for _ in range(3)), strict=True))
    return Measured(seconds, decode, encode, len(flows), sum(flow["stitched_flows"] == 1 for flow in flows), size, misses)


def ruler(messages: list[bytes], enriched: list[list[Flow]]) -> tuple[float, float]:
    """CPU seconds of decoding all input messages and of encoding all enriched ones."""
    began = time.process_time()
    decoded = [orjson.loads(message) for message in messages]
    between = time.process_time()
    encoded = [orjson.dumps(batch) for batch in enriched]
    ended = time.process_time()
    assert len(decoded) == len(messages)
    assert len(encoded) == len(enriched)
    return between - began, ended - between


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
    parser.add_argument("--addresses", type=int, default=60_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        material.write_tables(Path(directory))
        rng = random.Random(2)
        hosts = material.Hosts(rng, options.addresses)
        inputs = []
        for number in range(2):
            start = material.START + number * 7_200
            inputs.append(material.messages(material.flows(hosts, rng, options.flows, start)))
        began = time.process_time()
        chain, other = (
            Chain(configured(folders.shipped("conf.d"), [folders.shipped("stages")]), Tables(Path(directory)), Now(judges=False))
            for _ in range(2)
        )
        started = (time.process_time() - began) / 2
        gc.collect()
        gc.freeze()
        gc.disable()
        print(f"{os.uname().machine}, {os.cpu_count()} cores, Python {sys.version.split()[0]}; start of the chain {started:.2f} s")
        for name, messages, limit in (("cold", inputs[0], COLD), ("warm", inputs[1], WARM)):
            run = measured(chain, other, messages)
            each = 1e6 / options.flows
            print(
                f"{name}: {options.flows:,} flows of {sum(map(len, messages)) / options.flows:.0f} bytes in, {run.written:,} of "
                f"{run.bytes / run.written:.0f} bytes out, {run.unstitched / run.written:.0%} unstitched, "
                f"{1 - run.misses / 2 / run.written:.0%} of ends remembered\n"
                f"      {run.chain * each:.1f} µs a flow; ruler: decode {run.decode * each:.2f} + encode {run.encode * each:.2f} µs; "
                f"ratio {run.chain / (run.decode + run.encode):.1f} (limit {limit:.0f})"
            )
        print("warm, by stage, µs a flow that came in:")
        for name, cost in by_stage(other, inputs[1]).items():
            print(f"      {name:<24} {cost / options.flows * 1e6:5.2f}")


if __name__ == "__main__":
    main()
