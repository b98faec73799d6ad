"""What is to be said of each hop that flows take: fine, waiting or broken, with counts, and what to do.

It looks at the things themselves: directories, queues, indices, tables. Nothing is changed or taken: dead letters are counted without
looking at them, because a broker counts each look as a delivery.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from elasticsearch import Elasticsearch, NotFoundError
from pika.exceptions import AMQPError, ChannelClosedByBroker

from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured
from netsage_pipeline.config import Input, SettingsError
from netsage_pipeline.elastic import templates
from netsage_pipeline.elastic.cluster import Cluster, client
from netsage_pipeline.elastic.cluster import reason_of as reason_of_cluster
from netsage_pipeline.flow import Now
from netsage_pipeline.log import Redaction, secrets_of
from netsage_pipeline.monitoring.health import look
from netsage_pipeline.monitoring.metrics import made_at
from netsage_pipeline.rabbitmq.brokers import Broker, connected, is_refusal, servers
from netsage_pipeline.rabbitmq.brokers import reason_of as reason_of_broker
from netsage_pipeline.reading.read import PASSED_OVER, stamped
from netsage_pipeline.statedir import StateError
from netsage_pipeline.tables.tables import Tables
from netsage_pipeline.times import day_of
from netsage_pipeline.worker.ledger import recovered, segments, size

FINE, WAITING, BROKEN = "fine", "waiting", "broken"

#: Seconds that a hop may take, and a request to Elasticsearch.
HOP_S = 6.0
REQUEST_S = 4

#: Seconds after which it is said that nothing came.
QUIET_S = 3_600

#: Seconds after which a table that is published anew is old.
OLD_TABLE_S = 30 * 86_400

#: Kinds of tables that are a site's own and may be of any age.
OWN_TABLES = ("patterns", "members")

#: A ledger that nobody has in use is read if it is no longer, bytes; and the least room on its disk.
READ_BYTES = 100_000_000
ROOM_BYTES = 200_000_000


class Said(NamedTuple):
    """What is said of a hop."""

    state: str  #: FINE, WAITING or BROKEN
    words: str


class Hop(NamedTuple):
    """A place on the way of flows."""

    name: str
    look: Callable[[], Said]


def said_of(hops: Sequence[Hop], stages: Iterable[Configured]) -> Iterator[tuple[str, Said]]:
    """What is to be said of each hop, in order. All are looked at together; one that takes too long is broken.

    stages   whose secrets are not to be said
    """
    masked = Redaction(secrets_of(stages))
    answers: list[list[Said]] = [[] for _ in hops]

    def answer(number: int) -> None:
        try:
            said = hops[number].look()
        except Exception as error:
            said = Said(BROKEN, f"cannot be looked at: {type(error).__name__}")
        answers[number].append(said)

    threads = [threading.Thread(target=answer, args=(number,), daemon=True) for number in range(len(hops))]
    until = time.monotonic() + HOP_S
    for thread in threads:
        thread.start()
    for number, thread in enumerate(threads):
        thread.join(max(0.0, until - time.monotonic()))
        state, words = (
            answers[number][0] if answers[number] else Said(BROKEN, f"does not answer within {HOP_S:.0f} s: see if it is overloaded")
        )
        yield hops[number].name, Said(state, masked.text(words))


def hops_of(chains: Sequence[tuple[Path, list[Configured]]], lookups: Path) -> list[Hop]:
    """The hops of chains, in the order in which flows pass them: directory of settings, stages."""
    hops: dict[Any, Hop] = {}
    for conf, stages in sorted(chains, key=lambda chain: _place(chain[1])):
        running = [stage for stage in stages if stage.config.enabled]
        source: Any = next((stage.config for stage in running if stage.file.factory == "source"), None)
        sink: Any = next((stage.config for stage in running if stage.file.factory == "sink"), None)
        if source is None:
            continue
        shards = getattr(sink, "shards", 0)
        into_index = "sink" if isinstance(source, Broker) else "probe"
        name = "router" if shards else ("importer", "worker", into_index)[_place(stages)]
        holds = not shards and any(not stage.file.is_io for stage in running)
        for sensor in getattr(source, "sensors", ()):
            hops["files", sensor.name] = Hop("files", partial(files, sensor.name, sensor.directory))
        if isinstance(source, Broker):
            queue = source.queue  # type: ignore[attr-defined]
            hops["queue", queue] = Hop("queue", partial(queued, source, queue, alone=holds))
        hops["process", conf] = Hop(name, partial(process, source, conf))
        if holds:
            hops["ledger", conf] = Hop("ledger", partial(ledger, source.state))
        if isinstance(source, Broker):
            hops["dead letters", conf] = Hop("dead letters", partial(dead_letters, source, conf))
        if isinstance(sink, Broker):
            whole = sink.key if sink.queue is None else sink.queue  # type: ignore[attr-defined]
            for queue in [f"{whole}.{shard}" for shard in range(shards)] or [whole]:
                hops.setdefault(("queue", queue), Hop("queue", partial(queued, sink, queue)))
        if isinstance(sink, Cluster):
            hops["index", conf] = Hop("index", partial(index, sink, sink.prefix))  # type: ignore[attr-defined]
    hops["tables", None] = Hop("tables", partial(tables, [stages for _, stages in chains], lookups))
    return list(hops.values())


def _place(stages: list[Configured]) -> int:
    """0 for a chain that imports, 2 for one into an index, 1 for what is between."""
    running = [stage for stage in stages if stage.config.enabled]
    if any(hasattr(stage.config, "sensors") for stage in running):
        return 0
    return 2 if any(isinstance(stage.config, Cluster) for stage in running) else 1


# The hops.


def files(sensor: str, directory: Path) -> Said:
    """The capture files of a sensor."""
    newest, last, number = 0.0, 0.0, 0
    waiting = [directory]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith(PASSED_OVER):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                        continue
                    with suppress(FileNotFoundError):  # A link to nothing, or deleted at this moment.
                        named = stamped(entry.name) or inf
                        if named > last:  # When it was written: its name may be of any time zone, and only tells which one is worth a look.
                            newest = max(newest, entry.stat().st_mtime)
                            last = named if named < inf else last
                        number += 1
    except OSError as error:
        return Said(BROKEN, f"{sensor}: {error.filename}: {error.strerror}: see to it, or correct the directory in the settings")
    if not number:
        return Said(WAITING, f"{sensor}: {directory} holds no file yet: does nfcapd write there?")
    words = f"{sensor}: {number:,} files, the newest of {_ago(time.time() - newest)} ago"
    if time.time() - newest > QUIET_S:
        return Said(WAITING, f"{words}: does nfcapd run, and does the router send to it?")
    return Said(FINE, words)


def process(settings: Input, conf: Path) -> Said:
    """The process of a chain."""
    start = f"start it: netsage-pipeline run --conf {conf}"
    try:
        health = look(settings.state)
    except OSError as error:
        takers = _takers(settings)
        if takers:
            whose = f"{takers} {_s('process takes', takers, 'processes take')} from its queue"
            return Said(FINE, f"{whose}; its directory is not of this machine or container")
        if isinstance(error, PermissionError):
            return Said(BROKEN, f"{settings.state}: {error.strerror}: ask as its user, or as root")
        return Said(BROKEN, f"not alive: {settings.state}: {error.strerror}: {start}")
    numbers = health.numbers
    counts = f"{numbers['in']:,} flows in, {numbers['out']:,} out" if numbers else "nothing counted yet"
    if numbers and isinstance(numbers.get("queue"), int) and not isinstance(settings, Broker):
        counts += f", {numbers['queue']:,} files wait"
    if not health.alive:
        return Said(BROKEN, f"{health.in_words().partition(':')[0]}: {start if not health.pid else 'it hangs: restart it'} ({counts})")
    return Said(FINE if health.ready else WAITING, f"{health.in_words()} ({counts})")


def _takers(settings: Any) -> int:
    """How many take from the queue of an input."""
    if not isinstance(settings, Broker):
        return 0
    try:
        return _declared(settings, settings.queue)[1]  # type: ignore[attr-defined]
    except AMQPError:
        return 0


def queued(broker: Broker, queue: str, *, alone: bool = False) -> Said:
    """A queue. alone: whether only one process may take from it."""
    try:
        messages, takers = _declared(broker, queue)
    except AMQPError as error:
        if _is_missing(error):
            return Said(WAITING, f"{queue}: there is no such queue yet: who takes from it, or publishes to it, makes it when it starts")
        return Said(BROKEN, f"{queue}: RabbitMQ: {_why(error)}")
    words = f"{queue}: {messages:,} {_s('message', messages)}, {takers} {_s('consumer', takers)}"
    if not takers:
        return Said(WAITING, f"{words}: nobody takes from it: see the next process")
    if alone and takers > 1:
        what = "stop all but one, or give each a queue (if they are routers, set NETSAGE_SHARD)"
        return Said(BROKEN, f"{words}: parts of one flow come to different processes: {what}")
    return Said(FINE, words)


def dead_letters(settings: Any, conf: Path) -> Said:
    """What a chain refused."""
    queue = settings.dead_letters
    try:
        number = _declared(settings, queue)[0]
    except AMQPError as error:
        if _is_missing(error):
            return Said(FINE, f"{queue}: there is none")
        return Said(BROKEN, f"{queue}: RabbitMQ: {_why(error)}")
    if not number:
        return Said(FINE, f"{queue}: there is none")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in _numbers(settings.state).get("reasons", []))
    since = f" (refused so far: {reasons})" if reasons else ""
    return Said(WAITING, f"{queue}: {number:,} {_s('letter', number)}{since}: netsage-pipeline dead-letters list --conf {conf}")


def _declared(broker: Broker, queue: str) -> tuple[int, int]:
    """Messages and consumers of a queue. AMQPError."""
    connection = connected(servers(broker), HOP_S)
    try:
        method = connection.channel().queue_declare(queue, passive=True).method
        return int(method.message_count), int(method.consumer_count)
    finally:
        if connection.is_open:
            connection.close()


def _why(error: AMQPError) -> str:
    """Why a broker is not reached. A refusal says itself what to do."""
    reason = reason_of_broker(error)
    return reason if is_refusal(error) else f"{reason}: start it, or correct its url in the settings"


def _is_missing(error: AMQPError) -> bool:
    return isinstance(error, ChannelClosedByBroker) and error.reply_code == 404


def ledger(directory: Path) -> Said:
    """What a worker keeps."""
    try:
        found = segments(directory)
        changed = max((path.stat().st_mtime for path in found.values()), default=0.0)
        room = shutil.disk_usage(directory).free
        health = look(directory)
    except PermissionError as error:
        return Said(BROKEN, f"{directory}: {error.strerror}: ask as its user, or as root")
    except OSError as error:
        return Said(WAITING, f"{directory}: {error.strerror}: a worker makes it when it starts")
    if not found:
        return Said(WAITING, f"{directory}: there is none yet: a worker makes it when it starts")
    if not health.pid and size(directory) < READ_BYTES:
        try:
            recovered(directory, touch=False)
        except StateError as error:
            return Said(BROKEN, str(error))
    numbers = health.numbers
    held = f"{numbers['held'] or 0:,} held, {numbers['owed']:,} owed, " if numbers else ""
    words = f"{held}{size(directory) / 1e6:,.1f} MB, changed {_ago(time.time() - changed)} ago, {room / 1e9:,.1f} GB of room"
    if room < ROOM_BYTES:
        return Said(BROKEN, f"{words}: make room on its disk")
    if numbers and (numbers.get("keys_ratio") or 0) > 0.8:
        return Said(WAITING, f"{words}: keys of messages fill {numbers['keys_ratio']:.0%} of their memory: raise keys_limit_bytes")
    return Said(FINE, words)


def index(cluster: Cluster, prefix: str) -> Said:
    """The indices of a sink."""
    elastic = client(cluster).options(request_timeout=REQUEST_S)
    try:
        return _of_indices(elastic, prefix)
    except Exception as error:
        return Said(BROKEN, f"{prefix}: Elasticsearch: {reason_of_cluster(error)}: start it, or correct the settings of the sink")
    finally:
        elastic.close()


def _of_indices(elastic: Elasticsearch, prefix: str) -> Said:
    every, today = f"{prefix}-*", f"{prefix}-{day_of(time.time())}"
    answer = elastic.search(index=every, size=0, track_total_hits=True, aggregations={"newest": {"max": {"field": "@timestamp"}}})
    total, newest = answer["hits"]["total"]["value"], answer.get("aggregations", {}).get("newest", {}).get("value")
    of_today = elastic.count(index=today, ignore_unavailable=True)["count"]
    words = f"{prefix}: {total:,} {_s('document', total)}, {of_today:,} in the index of today"
    if newest:
        words += f", the newest of {_ago(time.time() - newest / 1000)} ago"
    if wrong := _wrong_with_template(elastic, prefix, total):
        return Said(BROKEN, f"{words}; {wrong}")
    settings = elastic.indices.get_settings(index=every, name="index.blocks.*", flat_settings=True, expand_wildcards="open").body
    blocked = sorted(name for name, each in settings.items() if "true" in each.get("settings", {}).values())
    if blocked:
        return Said(BROKEN, f"{words}; {blocked[-1]} may not be written (a full disk?): make room, then take the block off its settings")
    if not total:
        return Said(WAITING, f"{words}: nothing came yet: see the hops before")
    if newest and time.time() - newest / 1000 > QUIET_S:
        return Said(WAITING, f"{words}: see the hops before")
    return Said(FINE, words)


def _wrong_with_template(elastic: Elasticsearch, prefix: str, total: int) -> str:
    try:
        found = elastic.indices.get_index_template(name=prefix)["index_templates"][0]["index_template"]
    except NotFoundError:
        return "its index template is gone: restart the sink, or install what netsage-pipeline fields --template prints" if total else ""
    if found.get("_meta", {}).get("managed_by") != templates.MANAGED_BY:
        return f"its index template is not ours: move its settings into the component template {prefix}@custom, and delete it"
    return ""


def tables(chains: Sequence[list[Configured]], directory: Path) -> Said:
    """The lookup tables that chains ask for."""
    opened = Tables(directory)
    for stages in chains:
        if any(not stage.file.is_io for stage in stages):
            try:
                Chain(stages, opened, Now())
            except SettingsError as error:
                return Said(BROKEN, error.errors[0])
    number = len(opened.opened) - len(opened.missing) - len(opened.broken)
    words = f"{number} in {directory}"
    if opened.broken:
        return Said(BROKEN, f"{words}; {opened.broken[0]}{_and_more(opened.broken)}")
    own = {path.name for kind, path in opened.opened if kind in OWN_TABLES}
    ages = {name: time.time() - made for name, made in made_at(opened).items() if name not in own}
    if opened.missing:
        missing = sorted(path.name for path in opened.missing)
        return Said(WAITING, f"{words}; missing: {', '.join(missing)}: put them there, or: netsage-pipeline lookups update")
    oldest = max(ages, key=lambda name: ages[name], default="")
    if oldest:
        words += f", the oldest {oldest} of {_ago(ages[oldest])} ago"
    if oldest and ages[oldest] > OLD_TABLE_S:
        return Said(WAITING, f"{words}: fetch a newer one: netsage-pipeline lookups update")
    return Said(FINE, words)


def _numbers(directory: Path) -> dict[str, Any]:
    try:
        return look(directory).numbers
    except OSError:
        return {}


def _and_more(lines: Sequence[str]) -> str:
    return f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""


def _s(word: str, number: int, many: str = "") -> str:
    return word if number == 1 else many or f"{word}s"


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
