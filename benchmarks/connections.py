"""What a snapshot of the probe costs, beside psutil's list of the same connections, which has neither users nor inodes.

    pip install psutil
    python benchmarks/connections.py [--sockets 5000] [--processes 20]

Connections over the loopback interface, both ends on this machine, held by some processes. Each is measured several times, and the shortest
CPU time counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import socket
import sys
import time
from collections.abc import Callable, Sized
from multiprocessing.synchronize import Event
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from netsage_pipeline.probe.connections import connections

TIMES = 7


def holding(pairs: int, ready: Event, done: Event) -> None:
    """A process that is connected with itself."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with socket.create_server(("127.0.0.1", 0), backlog=pairs) as server:
        held = []
        for _ in range(pairs):
            held += [socket.create_connection(server.getsockname()), server.accept()[0]]
        ready.set()
        done.wait()
        for each in held:
            each.close()


def shortest(call: Callable[[], Sized]) -> tuple[float, int]:
    """CPU seconds of the fastest call, and how many it gave."""
    seconds = []
    for _ in range(TIMES):
        began = time.process_time()
        number = len(call())
        seconds.append(time.process_time() - began)
    return min(seconds), number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sockets", type=int, default=5_000)
    parser.add_argument("--processes", type=int, default=20)
    options = parser.parse_args()
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        psutil = None
    done = multiprocessing.Event()
    holders = []
    for _ in range(options.processes):
        ready = multiprocessing.Event()
        holders.append(multiprocessing.Process(target=holding, args=(options.sockets // options.processes // 2, ready, done)))
        holders[-1].start()
        ready.wait()
    try:
        measured = {"probe": shortest(lambda: connections().records)}
        if psutil is not None:
            measured["psutil"] = shortest(lambda: psutil.net_connections("inet"))
            names: dict[int, str] = {}

            def named() -> list[str]:
                found = []
                for each in psutil.net_connections("inet"):
                    if each.pid is not None and each.pid not in names:
                        process = psutil.Process(each.pid)
                        names[each.pid] = process.name() + process.exe()
                    found.append(names.get(each.pid, ""))
                names.clear()
                return found

            measured["psutil, with name and path of each process"] = shortest(named)
    finally:
        done.set()
        for each in holders:
            each.join()
    for what, (seconds, number) in measured.items():
        print(f"{what:<45} {1e3 * seconds:7.1f} ms CPU  {number:6} entries")


if __name__ == "__main__":
    main()
