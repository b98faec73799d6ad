"""What is kept in memory: bytes a held flow, with a million of them, also after a restart; a remembered end; a message's key.

    python benchmarks/memory.py [--flows 1000000]

Each is measured as growth of the resident memory of a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import material
from netsage_pipeline import folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import configured
from netsage_pipeline.ends import EndRun, Memory
from netsage_pipeline.flow import Now
from netsage_pipeline.tables.tables import Tables
from netsage_pipeline.worker.ledger import KEY_BYTES, Commit, Ledger


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def a_chain(directory: str) -> Chain:
    return Chain(configured(folders.shipped("conf.d"), [folders.shipped("stages")]), Tables(Path(directory)), Now(judges=False))


def hold(directory: str, count: int, ledger: Ledger | None = None) -> None:
    chain = a_chain(directory)
    rng = random.Random(3)
    hosts = material.Hosts(rng, 60_000)
    assert chain.stitching is not None
    before = resident()
    number = 0
    if ledger is not None:
        chain.stitching.restore(ledger.state.held, [])
    while chain.stitching.counts()["held"] < count:
        for message in material.messages(material.flows(hosts, rng, 20_000, material.START + number)):
            chain.take(message, "benchmark", "0")
        if ledger is not None:
            ledger.write(ledger.encode(Commit([], chain.stitching.changes(), [], [], [], Counter(), 0.0, 0.0)))
        number += 1
    if ledger is None:
        held = chain.stitching.counts()["held"]
        print(f"held: {held:,} flows, {(resident() - before) / 1e6:,.0f} MB, {(resident() - before) / held:,.0f} bytes each")


def store(directory: str, count: int) -> None:
    """For `recover`."""
    ledger = Ledger(Path(directory) / "state")
    hold(directory, count, ledger)
    ledger.close()


def recover(directory: str, _: int) -> None:
    chain = a_chain(directory)
    assert chain.stitching is not None
    before = resident()
    state = Ledger(Path(directory) / "state").state
    chain.stitching.restore(state.held, state.stitching)
    held = len(state.held)
    print(f"recovered: {held:,} flows, {(resident() - before) / 1e6:,.0f} MB, {(resident() - before) / held:,.0f} bytes each")


def know(directory: str, limit: int) -> None:
    ledger = Ledger(Path(directory) / "keys", limit)
    before = resident()
    number = 0
    while ledger.keys_full < 1 - 1 / 24:
        keys = [number.to_bytes(8) + random.randbytes(8) for number in range(number, number + 1_000)]
        ledger.write(ledger.encode(Commit(keys, None, [], [], [], Counter(), 0.0, 0.0)))
        number += len(keys)
    keys_known = ledger.state.keys
    print(
        f"keys: {keys_known:,} in {len(ledger.state.slices)} slices, {(resident() - before) / 1e6:,.0f} MB, "
        f"{(resident() - before) / keys_known:,.0f} bytes each; accounted for: {keys_known * KEY_BYTES / 1e6:,.0f} MB"
    )


def remember(directory: str, count: int) -> None:
    chain = a_chain(directory)
    memory = Memory(1 << 60)
    run = EndRun(chain.steps.runs[0].stages, (), memory, Counter())
    hosts = material.Hosts(random.Random(4), count).hosts
    before = resident()
    for (src, src_asn), (dst, dst_asn) in zip(hosts[::2], hosts[1::2], strict=True):
        run({"meta": {"src_ip": src, "src_asn": src_asn, "dst_ip": dst, "dst_asn": dst_asn}})
    ends = len(memory.young)
    print(
        f"remembered: {ends:,} ends of {material.NETWORKS:,} networks, {(resident() - before) / 1e6:,.0f} MB, "
        f"{(resident() - before) / ends:,.0f} bytes each; accounted for: {memory.bytes / 1e6:,.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        material.write_tables(Path(directory))
        for measure, count in ((hold, options.flows), (store, options.flows), (recover, 0), (remember, 100_000), (know, 200_000_000)):
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(directory, count))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
