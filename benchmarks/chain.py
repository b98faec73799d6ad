"""What the chain costs on one core, as a ratio to decoding its input and encoding its output.

    python benchmarks/chain.py [--flows 300000] [--addresses 150000]

The ruler is `orjson.loads` of the input messages (100 flows each) and `orjson.dumps` of the enriched messages that come of them, in the
same process. Cold: nothing is remembered at the first flow. Warm: new flows of the same distribution, after those of the cold run. CPU
is that of the whole process, the start shown apart.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))

BEGAN = time.process_time()

from benchmarks import material  # noqa: E402
from netsage_pipeline import folders  # noqa: E402
from netsage_pipeline.chain import Chain, configured  # noqa: E402
from netsage_pipeline.flow import Now  # noqa: E402
from netsage_pipeline.tables import Tables  # noqa: E402

WARM, COLD = 8.0, 11.0


def through(chain: Chain, messages: list[bytes]) -> list[bytes]:
    """The enriched messages, 100 flows each, as replay and worker make them."""
    out = []
    ready = []
    for message in messages:
        chain.now.set(time.time())
        ready += chain.take(message, "benchmark", "0")
        while len(ready) >= 100:
            out.append(orjson.dumps(chain.enrich(ready[:100])))
            del ready[:100]
    ready += chain.drain()
    for i in range(0, len(ready), 100):
        out.append(orjson.dumps(chain.enrich(ready[i : i + 100])))
    return out


def ruler(messages: list[bytes], out: list[bytes]) -> float:
    """CPU seconds of decoding the input and encoding the output."""
    flows = [orjson.loads(each) for each in out]
    began = time.process_time()
    for message in messages:
        orjson.loads(message)
    for batch in flows:
        orjson.dumps(batch)
    return time.process_time() - began


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
            start = material.START + run * 86_400
            inputs.append(material.messages(material.flows(hosts, rng, options.flows, start)))
        began = time.process_time()
        chain = Chain(configured(folders.shipped("conf.d"), [folders.shipped("stages")]), Tables(Path(directory)), Now(judges=False))
        started = time.process_time() - began
        gc.collect()
        gc.freeze()
        gc.disable()
        print(f"{os.uname().machine}, {os.cpu_count()} cores, Python {sys.version.split()[0]}; start of the chain {started:.2f} s")
        for name, messages, limit in (("cold", inputs[0], COLD), ("warm", inputs[1], WARM)):
            enriched, misses = chain.enriched, chain.runs[0].misses
            began = time.process_time()
            out = through(chain, messages)
            seconds = time.process_time() - began
            measure = min(ruler(messages, out) for _ in range(3))
            written = chain.enriched - enriched
            unstitched = sum(flow["stitched_flows"] == 1 for each in out for flow in orjson.loads(each)) / written
            print(
                f"{name}: {options.flows:,} flows of {sum(map(len, messages)) / options.flows:.0f} bytes in, "
                f"{written:,} of {sum(map(len, out)) / written:.0f} bytes out, {unstitched:.0%} unstitched, "
                f"{1 - (chain.runs[0].misses - misses) / 2 / written:.0%} of ends remembered\n"
                f"      {seconds / options.flows * 1e6:.1f} µs a flow, ruler {measure / options.flows * 1e6:.1f} µs, "
                f"ratio {seconds / measure:.1f} (limit {limit:.0f})"
            )


if __name__ == "__main__":
    main()
