"""The importer, from capture files into RabbitMQ, beside nfdump writing the same rows to nowhere.

    python benchmarks/importer.py [--files 12] [--rows 40000] [--url amqp://...]

Without --url it starts a RabbitMQ node of its own, where rabbitmq-server is installed; nfcapd makes the files of IPFIX datagrams. All rows
are imported (no minimum of bytes), 100 a message, persistent and confirmed. What counts is CPU: the importer's and that of the nfdump
it calls, beside that of nfdump alone. Each goes over the same files several times in turns.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import material
from benchmarks.queues import fill
from netsage_pipeline import folders
from netsage_pipeline.commands.run import working
from netsage_pipeline.reading.nfdump import ROW
from tests.services import rabbitmq
from tests.services.netflow import Sent, collect, ipfix

LIMIT = 3.0
ROUNDS = 5


def flows(count: int, seed: int) -> Iterator[Sent]:
    """Rows of popular addresses, a fifth of them IPv6, 5-tuples all different."""
    rng = random.Random(seed)
    hosts = material.Hosts(rng, 20_000)
    by_version: dict[int, list[tuple[str, int]]] = {4: [], 6: []}
    for address, asn in hosts.hosts:
        by_version[ip_address(address).version].append((address, asn))
    for number in range(count):
        of_version = by_version[6 if rng.random() < 0.2 else 4]
        (src, src_asn), (dst, dst_asn) = rng.choices(of_version, k=2)
        start = 1_700_000_000_000 + rng.randrange(300_000)
        yield Sent(
            src_ip=src,
            dst_ip=dst,
            src_port=1_024 + number % 64_000,
            dst_port=rng.choice((443, 22, 1094, 2811)),
            packets=rng.randrange(1, 1_000_000),
            octets=int(rng.paretovariate(1.1) * 100_000),
            start_ms=start,
            end_ms=start + rng.randrange(90_000),
            src_asn=src_asn,
            dst_asn=dst_asn,
            in_if=513,
            out_if=514,
        )


def make(directory: Path, files: int, rows: int) -> int:
    """Capture files; their rows."""
    directory.mkdir()
    for number in range(files):
        collected = collect(directory.parent / f"collected-{number}", ipfix(list(flows(rows, number))))
        shutil.move(collected, directory / f"nfcapd.20231114{number // 12:02}{number % 12 * 5:02}")
    return files * rows


def nfdump_alone(directory: Path) -> float:
    """CPU seconds."""
    before = children()
    for path in sorted(directory.iterdir()):
        command = ["nfdump", "-r", str(path), "-a", "-6", "-N", "-q", "-o", f"fmt:{ROW}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return children() - before


def imported(state: Path, rows: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds of the importer, and of its nfdump."""
    os.environ["NETSAGE_IMPORT_STATE"] = str(state)
    with working(folders.shipped("conf.d") / "import", None) as relay:
        source: Any = relay._source
        began, own, theirs = time.perf_counter(), time.process_time(), children()
        relay.run(lambda: source.counts["written", "", ""] >= rows)
        return time.perf_counter() - began, time.process_time() - own, children() - theirs


def children() -> float:
    """CPU seconds of programs that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--url", default=os.environ.get("NETSAGE_TEST_RABBITMQ_URL"))
    options = parser.parse_args()
    if not (options.url or rabbitmq.available()) or not (shutil.which("nfdump") and shutil.which("nfcapd")):
        print("rabbitmq-server or nfdump is not installed: the importer is not measured")
        return
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        (data / "rabbitmq").mkdir()
        node = rabbitmq.Broker(rabbitmq.free_port(5760), data / "rabbitmq", options.url or "")
        if not options.url:
            node.start()
        try:
            compare(options, data, node.url)
        finally:
            if not options.url:
                node.kill9()


def compare(options: argparse.Namespace, data: Path, url: str) -> None:
    rows = make(data / "captures", options.files, options.rows)
    os.environ.update(
        NETSAGE_RABBITMQ_URL=url,
        NETSAGE_SENSOR="benchmark",
        NETSAGE_NFCAPD_DIR=str(data / "captures"),
        NETSAGE_MIN_BYTES="0",
        NETSAGE_MIN_FILE_AGE_S="0",
        NETSAGE_IMPORT_METRICS="127.0.0.1:0",
        NETSAGE_LOG_LEVEL="error",
    )
    alone, ours, nfdump, seconds = [], [], [], []
    for number in range(ROUNDS + 1):  # The first one only warms up.
        fill(url, [])
        alone.append(nfdump_alone(data / "captures") / rows * 1e6)
        real, own, theirs = imported(data / f"state-{number}", rows)
        ours.append(own / rows * 1e6)
        nfdump.append(theirs / rows * 1e6)
        seconds.append(real)
    ratios = [(own + theirs) / one for own, theirs, one in zip(ours[1:], nfdump[1:], alone[1:], strict=True)]
    print(f"{rows:,} rows of {options.files} files")
    print(f"nfdump to nowhere          {statistics.median(alone[1:]):5.2f} µs CPU a row")
    print(f"importer into RabbitMQ     {statistics.median(ours[1:]):5.2f} µs CPU a row, and its nfdump {statistics.median(nfdump[1:]):.2f}")
    print(f"rate                       {rows / statistics.median(seconds[1:]):,.0f} rows/s")
    print(f"the importer's share: {statistics.median(ratios):.2f} times nfdump (limit {LIMIT}), {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
