"""What the ledger costs, beside what else it could have been made of: CPU and real time a flow.

    pip install lmdb rocksdict
    python benchmarks/ledger.py [--held 100000] [--batches 100]

Every store gets the same commits, each durable before the next: 2,000 flows opened, 500 grown by a part, 1,500 ended, which are then owed,
1,500 confirmed, 20 keys. A held flow is 500 bytes of JSON and eleven numbers, under a random id of 64 hex digits, as stitching holds it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

sys.path.insert(0, str(Path(__file__).parent.parent))

from netsage_pipeline.flow import Changes, Finished
from netsage_pipeline.worker.ledger import Commit, Ledger

OPENED, GROWN, ENDED, KEYS = 2_000, 500, 1_500, 20


class Step(NamedTuple):
    """One commit."""

    opened: dict[str, list[Any]]
    grown: dict[str, list[Any]]
    ended: list[str]
    rows: list[Finished]
    first: int  #: number of the first row
    done: list[int]
    keys: list[bytes]


def steps(held: int, batches: int) -> Iterator[Step]:
    """First what is held, in one commit, then the commits that are measured."""
    rng = random.Random(1)
    flows: dict[str, list[Any]] = {}

    def opened(count: int) -> dict[str, list[Any]]:
        return {
            rng.randbytes(32).hex(): [rng.randbytes(250).hex().encode(), 1, 1.7e9, 1.7e9, 10**9, 10**6, 1, 1, 1.7e9, 1.7e9, 630.0, 1]
            for _ in range(count)
        }

    flows |= (before := opened(held))
    yield Step(before, {}, [], [], 0, [], [])
    number = 0
    done: list[int] = []
    for _ in range(batches):
        new = opened(OPENED)
        flows |= new
        ids = rng.sample(sorted(flows.keys() - new.keys()) if held < 10_000 else list(flows)[: held // 2], GROWN + ENDED)
        grown = {each: flows[each][1:] for each in ids[:GROWN]}
        ended = ids[GROWN:]
        rows: list[Finished] = [(flows.pop(each)[0], 1, 1.7e9, 1.7e9, 10**9, 10**6, "2026-11-20T00:00:00.000Z", "") for each in ended]
        yield Step(new, grown, ended, rows, number, done, [rng.randbytes(16) for _ in range(KEYS)])
        done = list(range(number, number + ENDED))
        number += ENDED


def journal(directory: Path) -> Callable[[Step], object]:
    ledger = Ledger(directory)

    def commit(step: Step) -> None:
        held = ledger.state.held
        held.update(step.opened)
        for each in step.ended:
            del held[each]
        changes = Changes(step.opened, step.grown, step.ended, [0.0] * 8)
        ledger.write(ledger.encode(Commit(step.keys, changes, step.rows, [], step.done, Counter(), 1.0, 1.0)))

    return commit


def sqlite(directory: Path) -> Callable[[Step], object]:
    base = sqlite3.connect(directory / "ledger.sqlite", isolation_level=None)
    base.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-200000;"
        "CREATE TABLE held (id BLOB PRIMARY KEY, flow BLOB) WITHOUT ROWID; CREATE TABLE outbox (number INTEGER PRIMARY KEY, row BLOB);"
        "CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID;"
    )
    pack = msgpack.packb

    def commit(step: Step) -> None:
        base.execute("BEGIN")
        base.executemany("INSERT INTO held VALUES (?, ?)", ((bytes.fromhex(name), pack(flow)) for name, flow in step.opened.items()))
        base.executemany("UPDATE held SET flow = ? WHERE id = ?", ((pack(flow), bytes.fromhex(name)) for name, flow in step.grown.items()))
        base.executemany("DELETE FROM held WHERE id = ?", ((bytes.fromhex(name),) for name in step.ended))
        base.executemany("INSERT INTO outbox VALUES (?, ?)", ((step.first + place, pack(row)) for place, row in enumerate(step.rows)))
        base.executemany("DELETE FROM outbox WHERE number = ?", ((number,) for number in step.done))
        base.executemany("INSERT INTO keys VALUES (?)", ((key,) for key in step.keys))
        base.execute("COMMIT")

    return commit


def lmdb(directory: Path) -> Callable[[Step], object]:
    import lmdb as library  # noqa: PLC0415 - may not be there.

    environment = library.open(str(directory), map_size=1 << 35, max_dbs=3)
    held, outbox, keys = (environment.open_db(name) for name in (b"held", b"outbox", b"keys"))
    pack = msgpack.packb

    def commit(step: Step) -> None:
        with environment.begin(write=True) as transaction:
            for name, flow in (step.opened | step.grown).items():
                transaction.put(bytes.fromhex(name), pack(flow), db=held)
            for name in step.ended:
                transaction.delete(bytes.fromhex(name), db=held)
            for place, row in enumerate(step.rows):
                transaction.put((step.first + place).to_bytes(8), pack(row), db=outbox)
            for number in step.done:
                transaction.delete(number.to_bytes(8), db=outbox)
            for key in step.keys:
                transaction.put(key, b"", db=keys)

    return commit


def rocksdb(directory: Path) -> Callable[[Step], object]:
    import rocksdict  # noqa: PLC0415 - may not be there.

    base = rocksdict.Rdict(str(directory), rocksdict.Options(raw_mode=True))
    synced = rocksdict.WriteOptions()
    synced.sync = True
    pack = msgpack.packb

    def commit(step: Step) -> None:
        batch = rocksdict.WriteBatch(raw_mode=True)
        for name, flow in (step.opened | step.grown).items():
            batch.put(b"h" + bytes.fromhex(name), pack(flow))
        for name in step.ended:
            batch.delete(b"h" + bytes.fromhex(name))
        for place, row in enumerate(step.rows):
            batch.put(b"o" + (step.first + place).to_bytes(8), pack(row))
        for number in step.done:
            batch.delete(b"o" + number.to_bytes(8))
        for key in step.keys:
            batch.put(b"k" + key, b"")
        base.write(batch, synced)

    return commit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--held", type=int, default=100_000)
    parser.add_argument("--batches", type=int, default=100)
    options = parser.parse_args()
    print(f"{options.held:,} held, {options.batches} commits of {OPENED:,} flows")
    for store in (journal, sqlite, lmdb, rocksdb):
        directory = Path(tempfile.mkdtemp(dir=os.environ.get("NETSAGE_STATE")))
        try:
            commit = store(directory)
        except ModuleNotFoundError as error:
            print(f"{store.__name__:<8} {error.name} is not installed")
            continue
        cpu = real = worst = 0.0
        for number, step in enumerate(steps(options.held, options.batches)):
            before, began = time.process_time(), time.perf_counter()
            commit(step)
            if number:
                cpu += time.process_time() - before
                worst = max(worst, time.perf_counter() - began)
                real += time.perf_counter() - began
        each = 1e6 / options.batches / OPENED
        size = sum(file.stat().st_size for file in directory.iterdir()) / 1e6
        print(
            f"{store.__name__:<8} {cpu * each:6.1f} µs CPU a flow, {real * each:6.1f} µs, the longest commit {worst * 1e3:6.0f} ms, "
            f"{size:6.0f} MB on disk"
        )
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
