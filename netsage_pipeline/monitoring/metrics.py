"""Metrics for Prometheus, and the file of health, of the numbers that a loop tells once a second.

A scrape reads what the loop told last and nothing else, in a thread of its own: it cannot hold the loop up, and finds numbers of one and
the same moment. Nothing is paid for a flow.
"""

from __future__ import annotations

import platform
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import MetricsHandler
from prometheus_client.metrics_core import Metric

from netsage_pipeline import __version__, waits
from netsage_pipeline.log import Redaction
from netsage_pipeline.monitoring.health import HealthFile
from netsage_pipeline.tables.tables import Nothing, Tables

log = structlog.get_logger(__name__)

#: Seconds between two readings.
EVERY_S = 1.0

#: Series of a metric at most; what is beyond becomes one series, `other`. A stage may make reasons of whatever it reads.
SERIES = 200

#: Characters of a label's value at most.
LONGEST = 200

#: Reasons of dead letters that the file of health holds.
REASONS = 5

OTHER = "other"

#: Counted by (word, stage, reason), as the ledger's totals.
Totals = Mapping[tuple[str, str, str], int]


class Described(NamedTuple):
    """A metric as docs/metrics.md shows it."""

    kind: str  #: counter, gauge or summary
    labels: tuple[str, ...]
    help: str


_GOES_ON = "since the ledger began, or since the start where there is none"

#: Every metric of ours.
METRICS = {
    "netsage_build_info": Described("gauge", ("version", "python"), "1, and what runs"),
    "netsage_ready": Described("gauge", (), "1 if messages can come and nothing is waited for, else 0"),
    "netsage_reading_age_seconds": Described("gauge", (), "Since the loop last told its numbers; a minute: it hangs"),
    "netsage_flows_total": Described(
        "counter", ("direction",), f"Flows: in (taken), stitched (left stitching), out (stored by the output); {_GOES_ON}"
    ),
    "netsage_dropped_flows_total": Described("counter", ("stage", "reason"), f"Flows that a stage dropped; {_GOES_ON}"),
    "netsage_dead_letters_total": Described("counter", ("stage", "reason"), f"Flows and messages that were refused; {_GOES_ON}"),
    "netsage_files_total": Described("counter", ("result",), "Capture files: imported, known, refused, deleted; since the start"),
    "netsage_passed_messages_total": Described("counter", (), "Messages that an importer published; since the start"),
    "netsage_repeated_messages_total": Described("counter", (), f"Messages that were known and not taken again; {_GOES_ON}"),
    "netsage_parts_total": Described("counter", (), f"Parts of flows that stitching took; {_GOES_ON}"),
    "netsage_unbelieved_ends_total": Described("counter", (), f"Flows whose end lies too far in the future to be believed; {_GOES_ON}"),
    "netsage_notes_total": Described("counter", ("note",), f"Ends of flows of which a lookup noted something; {_GOES_ON}"),
    "netsage_ends_total": Described("counter", ("result",), "Ends of flows that were remembered, or looked up; since the start"),
    "netsage_held_flows": Described("gauge", (), "Flows that stitching holds"),
    "netsage_outbox_rows": Described("gauge", (), "Finished flows and dead letters that are owed"),
    "netsage_outbox_bytes": Described("gauge", (), "Their bytes"),
    "netsage_keys": Described("gauge", (), "Keys of messages that are known"),
    "netsage_keys_ratio": Described("gauge", (), "How full the memory for them is, 0 to 1"),
    "netsage_queue_messages": Described(
        "gauge", (), "Messages in the input queue that nobody was given yet, asked every few seconds; of an importer, files"
    ),
    "netsage_newest_end_age_seconds": Described("gauge", (), "Between the newest end of all flows and now"),
    "netsage_commit_seconds": Described("summary", (), "Commits to the ledger; since the start"),
    "netsage_sampled_seconds_total": Described(
        "counter",
        ("stage",),
        "Seconds that a stage took in the batches that were timed, one in 101; "
        "for 40_aggregation also those in which it finished flows by the clock, one time in 101; since the start",
    ),
    "netsage_sampled_flows_total": Described("counter", ("stage",), "Flows in these batches; since the start"),
    "netsage_waiting": Described("gauge", ("what",), "1 while it is waited for, else 0"),
    "netsage_waits_total": Described("counter", ("what",), "How often it was waited for, once at the start among it; since the start"),
    "netsage_waited_seconds_total": Described("counter", ("what",), "For how long; since the start"),
    "netsage_reconnects_total": Described("counter", ("link",), "Connections to RabbitMQ after the first one; since the start"),
    "netsage_table_age_seconds": Described("gauge", ("table",), "Since a lookup table was made, or else written"),
}


#: What an importer counts of files → as netsage_files_total has it.
FILES = {"files": "imported", "known files": "known", "refused files": "refused", "deleted files": "deleted"}


class Reading(NamedTuple):
    """The numbers of a chain at one moment. None: this chain has no such thing, or it is not known."""

    totals: Totals  #: a copy
    connected: bool = True  #: whether messages can come
    held: int | None = None
    outbox_rows: int | None = None
    outbox_bytes: int | None = None
    keys: int | None = None
    keys_ratio: float | None = None
    queue_messages: int | None = None
    newest_end: float | None = None  #: unix seconds
    stitching: Mapping[str, int] = {}  #: as flow.Stitching.counts gives it
    ends: tuple[int, int] | None = None  #: all of enriched flows, and those of them that were looked up
    commits: tuple[int, float] | None = None  #: how many, and their seconds
    sampled: Mapping[str, tuple[float, int]] = {}  #: stage → seconds, flows
    tables: Mapping[str, float] = {}  #: as made_at gives it


class Meter:
    """What a loop tells its numbers to, and what tells them on.

    address    host:port, where metrics are served; port 0: a free one; "": nowhere
    directory  of the chain's state, where the file of health is
    """

    def __init__(self, address: str, directory: Path) -> None:
        self._reading: Reading | None = None
        self._told_at = time.monotonic()
        self._file = HealthFile(directory)
        self._one_scrape = threading.Lock()
        self._bounded = Bounded()
        self._remembered = 0
        self._server = _served(address, self) if address else None

    def is_due(self, now: float) -> bool:
        """Whether the next reading is wanted; now: monotonic seconds."""
        return now - self._told_at >= EVERY_S

    def tell(self, reading: Reading) -> None:
        """Takes the numbers of this moment in."""
        self._reading = reading
        self.alive()

    def alive(self) -> None:
        """For a loop that waits where its numbers are not at rest: they stay as they were told."""
        self._told_at = time.monotonic()
        if self._reading is not None:
            why = waits.under_way()
            self._file.write({"ready": self._reading.connected and not why, "waits": why, "numbers": _in_short(self._reading)})

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._file.close()

    @property
    def port(self) -> int:
        """0 if nothing is served."""
        return int(self._server.server_address[1]) if self._server is not None else 0

    # As a collector of prometheus_client.

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        with self._one_scrape:
            yield from [_metric(name, self._bounded(name, values)) for name, values in self._values() if values]

    def _values(self) -> Iterator[tuple[str, Mapping[tuple[str, ...], Any]]]:
        """Each metric with its values by labels; none: it is not shown."""
        yield "netsage_build_info", {(__version__, platform.python_version()): 1}
        reading = self._reading
        if reading is None:  # Totals that begin with 0 and then jump would be taken for flows of this moment.
            return
        waited = waits.so_far()
        totals = Counter[str]()
        by_reason: dict[str, dict[tuple[str, ...], int]] = {"dropped": {}, "refused": {}, "noted": {}}
        for (word, stage, reason), number in reading.totals.items():
            if word in by_reason:
                by_reason[word][(reason,) if word == "noted" else (stage, reason)] = number
            else:
                totals[word] = number
        yield "netsage_ready", _one(int(reading.connected and not any(each.now for each in waited.values())))
        yield "netsage_reading_age_seconds", _one(time.monotonic() - self._told_at)
        flows = {"in": totals["read"], "stitched": totals["enriched"] if reading.held is not None else None, "out": totals["written"]}
        yield "netsage_flows_total", {(way,): number for way, number in flows.items() if number is not None}
        yield "netsage_dropped_flows_total", by_reason["dropped"]
        yield "netsage_dead_letters_total", by_reason["refused"]
        yield "netsage_files_total", {(result,): totals[word] for word, result in FILES.items() if word in totals}
        yield "netsage_passed_messages_total", _one(totals.get("messages"))
        yield "netsage_repeated_messages_total", _one(totals["repeated"])
        yield "netsage_parts_total", _one(reading.stitching.get("parts"))
        yield "netsage_unbelieved_ends_total", _one(reading.stitching.get("not believed"))
        yield "netsage_notes_total", by_reason["noted"]
        if reading.ends is not None:
            of, looked_up = reading.ends
            self._remembered = max(self._remembered, of - looked_up)  # An end that a stage refuses is looked up more than once.
            yield "netsage_ends_total", {("remembered",): self._remembered, ("looked up",): looked_up}
        yield "netsage_held_flows", _one(reading.held)
        yield "netsage_outbox_rows", _one(reading.outbox_rows)
        yield "netsage_outbox_bytes", _one(reading.outbox_bytes)
        yield "netsage_keys", _one(reading.keys)
        yield "netsage_keys_ratio", _one(reading.keys_ratio)
        yield "netsage_queue_messages", _one(reading.queue_messages)
        yield "netsage_newest_end_age_seconds", _one(None if reading.newest_end is None else time.time() - reading.newest_end)
        yield "netsage_commit_seconds", _one(reading.commits)
        yield "netsage_sampled_seconds_total", {(stage,): seconds for stage, (seconds, _) in reading.sampled.items()}
        yield "netsage_sampled_flows_total", {(stage,): flows for stage, (_, flows) in reading.sampled.items()}
        yield "netsage_waiting", {(what,): int(each.now) for what, each in waited.items()}
        yield "netsage_waits_total", {(what,): each.times for what, each in waited.items()}
        yield "netsage_waited_seconds_total", {(what,): each.seconds for what, each in waited.items()}
        yield "netsage_reconnects_total", {(link,): times for link, times in waits.reconnects().items()}
        yield "netsage_table_age_seconds", {(name,): time.time() - made for name, made in reading.tables.items()}


def _one(value: Any) -> dict[tuple[str, ...], Any]:
    """The value of a metric without labels."""
    return {} if value is None else {(): value}


class Bounded:
    """Keeps the number of series bounded: those that came first stay what they are, all further ones together are `other`.

    What labels hold is masked as in log lines: a stage of an operator may put an address into its reason.
    """

    def __init__(self) -> None:
        self._masked = Redaction(printable=True)
        self._shown: dict[str, dict[tuple[str, ...], tuple[str, ...]]] = {}  # metric → labels → as they are shown

    def __call__(self, name: str, values: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], Any]:
        shown = self._shown.setdefault(name, {})
        bounded: dict[tuple[str, ...], Any] = {}
        for labels, value in values.items():
            place = shown.get(labels)
            if place is None:
                if len(shown) < SERIES - 1:
                    place = shown[labels] = tuple(self._text(each) for each in labels)
                else:
                    place = (OTHER,) * len(labels)
            bounded[place] = bounded[place] + value if place in bounded else value
        return bounded

    def _text(self, label: str) -> str:
        return self._masked.text(label.encode("utf-8", "backslashreplace").decode())[:LONGEST]


def _metric(name: str, values: Mapping[tuple[str, ...], Any]) -> Metric:
    kind, names, words = METRICS[name]
    metric = Metric(name.removesuffix("_total") if kind == "counter" else name, words, kind)
    for labels, value in values.items():
        named = dict(zip(names, labels, strict=True))
        if kind == "summary":
            metric.add_sample(f"{name}_count", named, value[0])
            metric.add_sample(f"{name}_sum", named, value[1])
        else:
            metric.add_sample(name, named, value)
    return metric


def _in_short(reading: Reading) -> dict[str, Any]:
    """What doctor wants to know of a reading, also when the process is gone."""
    refused = {(stage, reason): number for (word, stage, reason), number in reading.totals.items() if word == "refused"}
    return {
        "in": reading.totals.get(("read", "", ""), 0),
        "out": reading.totals.get(("written", "", ""), 0),
        "queue": reading.queue_messages,
        "held": reading.held,
        "owed": reading.outbox_rows,
        "owed_bytes": reading.outbox_bytes,
        "keys_ratio": reading.keys_ratio,
        "refused": sum(refused.values()),
        "reasons": [[f"{stage}: {reason}"[:LONGEST], number] for (stage, reason), number in Counter(refused).most_common(REASONS)],
    }


class _Handler(MetricsHandler):
    timeout = 10  #: seconds for which a connection may say nothing


class _Server(ThreadingHTTPServer):
    """Serves in threads that end with the process."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would ask for the name of the host, which may take long.
        self.server_name, self.server_port = "", 0

    def handle_error(self, _request: Any, _address: Any) -> None:
        log.debug("a scrape was cut off", exc_info=True)


class _ServerIPv6(_Server):
    address_family = socket.AF_INET6


def _served(address: str, meter: Meter) -> ThreadingHTTPServer | None:
    """The server of metrics; None, and a line, if it cannot be there: a worker without metrics is better than none."""
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(meter)
    ProcessCollector(registry=registry)
    kind = _ServerIPv6 if ":" in host else _Server
    try:
        server = kind((host.strip("[]"), int(port)), type("Handler", (_Handler,), {"registry": registry}))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such host"
        log.warning("metrics are not served: give another address (metrics), or see who listens there", port=int(port), reason=reason)
        return None
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    log.info("serves metrics", port=int(server.server_address[1]))
    return server


def made_at(tables: Tables) -> dict[str, float]:
    """File of each table in use → when it was made, as it says itself, or else when it was last written; unix seconds."""
    found = {}
    for (_, path), table in tables.opened.items():
        if not isinstance(table, Nothing):
            made = getattr(table, "built", None) or _written_at(path)
            if made:
                found[path.name] = float(made)
    return found


def _written_at(path: Path) -> float:
    try:
        files = [each for each in path.iterdir() if each.is_file()] if path.is_dir() else [path]
        return max((each.stat().st_mtime for each in files), default=0.0)
    except OSError:
        return 0.0
