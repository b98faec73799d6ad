"""dead-letters: what was refused, by reason and stage, and back into the chain."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPError, ChannelClosedByBroker
from tqdm import tqdm

from netsage_pipeline import log
from netsage_pipeline.commands.publish import input_of
from netsage_pipeline.deadletters import DECODE, body_of, is_envelope
from netsage_pipeline.options import conf_option
from netsage_pipeline.rabbitmq.amqp import Publisher
from netsage_pipeline.rabbitmq.brokers import connected, reason_of, servers
from netsage_pipeline.rabbitmq.publish import ON_THE_WAY
from netsage_pipeline.signals import interruptible
from netsage_pipeline.terminal import NOTHING_READ, refusing_settings, say, tell

stage_option = click.option("--stage", help="Only those that this stage refused")
reason_option = click.option("--reason", help="Only those whose reason holds this text")
id_option = click.option("--id", "letter_id", help="Only the one with this id")


class Letter(NamedTuple):
    """A dead letter in its queue."""

    tag: int
    known_as: str  #: message id
    body: bytes
    envelope: dict[str, Any] | None  #: None if somebody else put it there


@click.group("dead-letters")
def dead_letters() -> None:
    """What was refused and waits in the queue of dead letters. Letters of stages before 70 hold full addresses.

    With --conf conf.d/sink: what Elasticsearch refused."""


@dead_letters.command("list")
@conf_option
@stage_option
@reason_option
def list_letters(conf: Path | None, stage: str | None, reason: str | None) -> None:
    """Count dead letters by stage and reason."""
    counts: Counter[tuple[str, str]] = Counter()
    with _queue(conf) as (channel, config):
        for letter in _letters(channel, config.dead_letters, stage, reason, None):
            counts[_stage_and_reason(letter)] += 1
    for (refused_by, why), number in sorted(counts.items()):
        say(f"{number:>12,}  {refused_by}: {why}")
    say(f"{counts.total():>12,}  dead letters")


@dead_letters.command("show")
@conf_option
@stage_option
@reason_option
@id_option
@click.option("--most", type=click.IntRange(1), default=10, show_default=True, help="So many at most")
def show_letters(conf: Path | None, stage: str | None, reason: str | None, letter_id: str | None, most: int) -> None:
    """Show dead letters, one JSON object a line. They stay in their queue."""
    with _queue(conf) as (channel, config):
        for number, letter in enumerate(_letters(channel, config.dead_letters, stage, reason, letter_id)):
            if number == most:
                tell(f"there are more: --most shows more than {most}")
                break
            say(letter.body.decode("utf-8", "replace"))


@dead_letters.command("replay")
@conf_option
@stage_option
@reason_option
@id_option
def replay_letters(conf: Path | None, stage: str | None, reason: str | None, letter_id: str | None) -> None:
    """Put dead letters back on the input queue: each enters the chain at the stage that refused it."""
    replayed = 0
    again = "run it again: what was put back already is known by its id and not counted twice"
    with interruptible(again), _queue(conf) as (channel, config):
        link = Publisher(servers(config), "replay", config.exchange, config.queue, config.key or config.queue)

        def settle(most: int) -> None:
            """Waits until so many are on their way at most, and takes what arrived out of the queue of dead letters."""
            nonlocal replayed
            while True:
                for tag in link.confirmed():
                    channel.basic_ack(tag)
                    replayed += 1
                if link.unconfirmed <= most:
                    return
                link.turn(0.1)
                channel.connection.process_data_events(0)  # The broker closes a connection that is silent for long.

        for letter in _letters(channel, config.dead_letters, stage, reason, letter_id):
            if letter.envelope is not None:
                link.publish(letter.tag, "", config.queue, _message(letter.envelope, letter.body), f"replay/{letter.known_as}")
                settle(ON_THE_WAY)
        settle(0)
        link.close()
    say(f"{replayed:,} dead letters were put on {config.queue}")


def _message(envelope: dict[str, Any], body: bytes) -> bytes:
    """What is put on the input queue: the envelope; a message that could not be read as it came, so that letters never hold letters."""
    if envelope["stage"] == DECODE and isinstance(envelope["payload"], dict) and "base64" in envelope["payload"]:
        return body_of(envelope["payload"])
    return body


@contextlib.contextmanager
def _queue(conf: Path | None) -> Iterator[tuple[BlockingChannel, Any]]:
    """A channel, and the settings of the input, which name the dead letter queue. What was not acknowledged goes back when it is left."""
    with refusing_settings():
        source = input_of(conf)
        config: Any = source.config
        log.configure(log.secrets_of([source]))
        brokers = servers(config)
    connection = None
    try:
        connection = connected(brokers)
        yield connection.channel(), config
    except AMQPError as error:
        if isinstance(error, ChannelClosedByBroker) and error.reply_code == 404:
            tell(f"{config.dead_letters}: no such queue: no dead letter was written yet, or the settings name another one (dead_letters)")
        else:
            tell(f"RabbitMQ at {', '.join(each.name for each in brokers)}: {reason_of(error)}")
        sys.exit(NOTHING_READ)
    finally:
        if connection is not None and connection.is_open:
            connection.close()


def _letters(channel: BlockingChannel, queue: str, stage: str | None, reason: str | None, letter_id: str | None) -> Iterator[Letter]:
    """The letters that are there now and that are wanted; none is taken out."""
    there = channel.queue_declare(queue, passive=True).method.message_count
    for _ in tqdm(range(there), unit=" letters", leave=False, disable=not sys.stderr.isatty()):
        method, properties, body = channel.basic_get(queue)
        if method is None or properties is None or body is None:
            return
        known_as = properties.message_id or blake2b(body, digest_size=16).hexdigest()
        assert method.delivery_tag is not None
        letter = Letter(method.delivery_tag, known_as, body, _envelope(body))
        refused_by, why = _stage_and_reason(letter)
        wanted = stage in (None, refused_by) and (reason is None or reason in why)
        if wanted and letter_id in (None, letter.envelope and letter.envelope["id"]):
            yield letter


def _stage_and_reason(letter: Letter) -> tuple[str, str]:
    return (letter.envelope["stage"], letter.envelope["reason"]) if letter.envelope else ("(unknown)", "not a dead letter of ours")


def _envelope(body: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if is_envelope(value) else None
