"""publish: dumps to the input queue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from netsage_pipeline import log
from netsage_pipeline.commands.replay import flow_type_option, min_bytes_option, rows_of, sensor_option
from netsage_pipeline.commands.run import the
from netsage_pipeline.compose import Configured
from netsage_pipeline.config import SettingsError
from netsage_pipeline.options import conf_option, stages_of
from netsage_pipeline.rabbitmq.amqp import Publisher
from netsage_pipeline.rabbitmq.brokers import Broker, servers
from netsage_pipeline.rabbitmq.publish import publish
from netsage_pipeline.reading.nfdump import FlowType
from netsage_pipeline.reading.read import find
from netsage_pipeline.signals import interruptible
from netsage_pipeline.terminal import NOTHING_READ, refusing_settings, tell


@click.command("publish")
@click.argument("paths", nargs=-1, required=True)
@conf_option
@click.option(
    "--rate", type=click.FloatRange(min=0, min_open=True), help="Flows a second at most; default: as fast as the broker takes them"
)
@sensor_option
@flow_type_option
@min_bytes_option
def publish_dumps(
    paths: tuple[str, ...], conf: Path | None, rate: float | None, sensor: str | None, flow_type: FlowType, min_bytes: int
) -> None:
    """Put dumps on the input queue: files as for replay, 100 flows a message, persistent and confirmed.

    Publishing the same file again, within the 24 h of work for which the worker knows what it took, changes nothing."""

    with refusing_settings(), interruptible("publish it again: what was published already is known by its ids and not counted twice"):
        source = input_of(conf)
        config: Any = source.config
        log.configure(log.secrets_of([source]))
        dumps = find(list(paths), tell)
        if not dumps:
            tell("nothing could be read")
            sys.exit(NOTHING_READ)
        link = Publisher(servers(config), "publish", config.exchange, config.queue, config.key or config.queue)
        summary = publish(dumps, rows_of(sensor, flow_type, min_bytes), link, config.queue, rate, tell)
        link.close()
    for line in summary.lines():
        tell(line)
    if not summary.messages:
        tell("nothing could be read")
        sys.exit(NOTHING_READ)


def input_of(conf: Path | None) -> Configured:
    """The chain's input, which is a queue; nobody wants to know what is wrong with other stages. SettingsError if it is anything else."""
    try:
        stages = stages_of(conf, None)
    except SettingsError as error:  # One of the operator's own, for which there is no --stages here.
        stages = error.usable
        if not any(stage.file.factory == "source" for stage in stages):
            raise
    source = the(stages, "source")
    if not isinstance(source.config, Broker):
        raise SettingsError([f"{source.settings_file.path}: takes from no queue: --conf names a chain whose input is 01_input_rabbitmq"])
    return source
