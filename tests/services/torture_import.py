"""Kills importers again and again while capture files come, grow and are renamed, then compares what is on the queue with the files.

python -m tests.services.torture_import --kills 50 --seed 7
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.services import rabbitmq
from tests.services.importer import Importing
from tests.services.importer_points import POINTS
from tests.services.netflow import Sent, collect, ipfix
from tests.services.rabbitmq import wait_for
from tests.services.torture import as_program
from tests.services.worker import Process

#: Flows that one nfcapd writes.
FLOWS = 1_200

#: Seconds: for a process to pass its point; without any progress, after which a run has failed.
PATIENCE_S, NO_PROGRESS_S = 8, 60

#: A process that does not come to its point is killed all the same, and another one tries, so many times.
MOST_TRIES = 8

#: Kinds of kills from outside: at any time, and within the moments after it was told to stop.
ANY_TIME, AT_STOP = "any time", "stop"


@dataclass
class Figures:
    """How a run went."""

    seed: int
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    files: int = 0
    grown: int = 0  #: by a second nfcapd, after they were there
    renamed: int = 0
    flows: int = 0
    messages: int = 0
    repeats: int = 0
    faults: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield f"seed {self.seed}: {self.kills.total()} kills, {self.flows:,} flows of {self.files} files, {self.seconds:.0f} s"
        yield f"{self.grown} files grew, {self.renamed} were renamed; {self.messages:,} messages, {self.repeats:,} repeated"
        for point, number in sorted(self.kills.items()):
            yield f"{number:>6}  {point}"


class Captures:
    """Capture files as nfcapd makes them, each flow with a 5-tuple and a number of bytes of its own."""

    def __init__(self, importing: Importing, chance: random.Random, figures: Figures) -> None:
        self._importing, self._chance, self._figures = importing, chance, figures
        self._growing: list[tuple[Path, bytes]] = []

    def add(self) -> None:
        """One more file; half of them are going to grow."""
        figures = self._figures
        directory = Path(tempfile.mkdtemp(dir=self._importing.directory))
        contents = [collect(directory, ipfix(self._flows())).read_bytes() for _ in range(self._chance.choice((1, 2)))]
        shutil.rmtree(directory)
        path = self._importing.captures / f"nfcapd.20231114{figures.files:04}"
        path.with_name(f".{path.name}").write_bytes(contents[0])
        path.with_name(f".{path.name}").rename(path)
        figures.files += 1
        self._growing += [(path, content) for content in contents[1:]]

    def change(self) -> None:
        """A file grows, as nfcapd does it: the header comes last. Another one gets a new name."""
        figures = self._figures
        if self._growing:
            path, content = self._growing.pop(0)
            with path.open("r+b") as file:
                end = int.from_bytes(file.read(32)[24:], "little")
                file.seek(end)
                file.write(content[end:])
                file.flush()
                file.seek(0)
                file.write(content[:40])
            figures.grown += 1
        growing = {path for path, _ in self._growing}
        others = [path for path in sorted(self._importing.captures.glob("nfcapd.*")) if path not in growing]
        if others and self._chance.random() < 0.5:
            path = self._chance.choice(others)
            path.rename(path.with_name(f"{path.name[:21]}-{figures.renamed}"))
            figures.renamed += 1

    def _flows(self) -> list[Sent]:
        first = self._figures.flows
        self._figures.flows += FLOWS
        return [flow_of(number) for number in range(first, first + FLOWS)]


def flow_of(number: int) -> Sent:
    return Sent(
        src_port=1 + number % 50_000,
        dst_ip=f"141.211.{number // 50_000}.2",
        octets=100 + number,
        start_ms=1_700_000_000_000 + number,
        end_ms=1_700_000_001_000 + number,
    )


def number_of(flow: dict[str, dict[str, int]]) -> int:
    return flow["values"]["num_bits"] // 8 - 100


class Run:
    """One importer's life, as a sequence of processes."""

    def __init__(self, broker: rabbitmq.Broker, directory: Path, seed: int, kills: int) -> None:
        self._chance = random.Random(seed)
        self._kills = kills
        self._directory = directory
        self._importing = Importing(broker, directory)
        self._importing.settings(
            f'[[sensors]]\nname = "sensor"\ndirectory = "{self._importing.captures}"\nmin_bytes = 0\nmin_file_age_s = 0.2\n'
        )
        self.figures = Figures(seed)
        self._captures = Captures(self._importing, self._chance, self.figures)

    def work(self) -> Figures:
        began = time.monotonic()
        try:
            self._kill_all()
            self._finish()
        finally:
            self._importing.end()
        self.figures.seconds = time.monotonic() - began
        return self.figures

    def _kill_all(self) -> None:
        plan = [*POINTS, *self._chance.choices((ANY_TIME, ANY_TIME, AT_STOP, *POINTS), k=max(0, self._kills - len(POINTS)))]
        plan = plan[: self._kills]
        self._chance.shuffle(plan)
        tries = Counter[str]()
        while plan:
            what = plan.pop()
            for _ in range(2):
                self._captures.add()
            if what not in POINTS:
                self._kill_from_outside(what)
            elif not self._killed_itself(what, tries[what]):
                tries[what] += 1
                assert tries[what] < MOST_TRIES, f"nobody comes to '{what}':\n{self._importing.process.said}"
                plan.insert(self._chance.randrange(len(plan) + 1), what)

    def _killed_itself(self, point: str, tries: int) -> bool:
        nth = self._chance.randint(1, POINTS[point]) if not tries else 1
        process = self._importing.start(point=point, nth=nth, report=self._directory / "hits", module="tests.services.importer_points")
        until = time.monotonic() + PATIENCE_S
        while process.lasts(0.5) and time.monotonic() < until:
            if process.has_worked:  # What was there is imported by now.
                self._captures.change()
        lasts = process.code is None
        if lasts:
            process.kill()
        assert lasts or process.code == -9, f"an importer that was to be killed at '{point}' ended with {process.code}:\n{process.said}"
        self.figures.kills[ANY_TIME if lasts else point] += 1
        return not lasts

    def _kill_from_outside(self, what: str) -> None:
        process = self._importing.start()
        wait_for(lambda: process.has_worked or process.code is not None, 30)
        for _ in range(3):
            self._captures.add()
        process.lasts(self._chance.uniform(0.0, 0.7))
        if what == AT_STOP:
            process.tell_to_stop()
            process.lasts(self._chance.uniform(0, 0.3))
        assert process.code in (None, 0), f"an importer ended with {process.code}:\n{process.said}"
        process.kill()
        self.figures.kills[what] += 1

    def _finish(self) -> None:
        """Nothing more changes, and one that nobody kills imports what is left."""
        for _ in range(self.figures.files):
            self._captures.change()
        process = self._importing.start()
        messages: dict[str, list[int]] = {}
        since = time.monotonic()
        while len(messages) * 100 < self.figures.flows or time.monotonic() - since < 2:
            since = time.monotonic() if self._read(messages) else since
            self._check(process)
            if time.monotonic() - since > NO_PROGRESS_S:
                break
        assert process.stop(20) == 0, process.said
        self._read(messages)
        self._judge(messages)

    def _check(self, process: Process) -> None:
        assert process.lasts(0.1), f"the importer ended with {process.code}:\n{process.said}"

    def _read(self, messages: dict[str, list[int]]) -> bool:
        """Takes what is in the queue; whether there was something."""
        taken = self._importing.broker.take(self._importing.queue)
        for properties, body in taken:
            known_as, numbers = str(properties.message_id), [number_of(flow) for flow in json.loads(body)]
            if known_as in messages:
                self.figures.repeats += 1
                if messages[known_as] != numbers:
                    self.figures.faults.append(f"message {known_as} came with two contents")
            messages[known_as] = numbers
        self.figures.messages = len(messages)
        return bool(taken)

    def _judge(self, messages: dict[str, list[int]]) -> None:
        came = Counter(number for numbers in messages.values() for number in numbers)
        sent = set(range(self.figures.flows))
        missing, twice = sent - set(came), [number for number, times in came.items() if times > 1]
        faults = self.figures.faults
        if missing:
            faults.append(f"{len(missing)} flows are missing, the first is number {min(missing)}")
        if twice:
            faults.append(f"{len(twice)} flows came twice, the first is number {min(twice)}")
        if set(came) - sent:
            faults.append(f"{len(set(came) - sent)} flows were never sent")
        if sum(number * times for number, times in came.items()) != sum(sent):
            faults.append("the sums of bytes differ")


def torture(broker: rabbitmq.Broker, directory: Path, seed: int, kills: int) -> Figures:
    """A run with so many kills."""
    directory.mkdir(parents=True, exist_ok=True)
    return Run(broker, directory, seed, kills).work()


def faults_of(figures: Figures) -> list[str]:
    """What is wrong with a run, also that nothing was put to the test."""
    wrong = list(figures.faults)
    missed = [point for point in POINTS if not figures.kills[point]] if figures.kills.total() >= len(POINTS) else []
    if missed:
        wrong.append(f"nobody was killed at: {', '.join(missed)}")
    counted = {
        "kills": figures.kills.total(),
        "repeats": figures.repeats,
        "files that grew": figures.grown,
        "renamed files": figures.renamed,
    }
    return wrong + [f"there were no {what}" for what, number in counted.items() if not number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    as_program(parser, lambda broker, directory, given: torture(broker, directory, given.seed, given.kills), faults_of)


if __name__ == "__main__":
    main()
