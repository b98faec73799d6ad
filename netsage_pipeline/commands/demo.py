"""demo: the shipped dump through all stages, or onto the input queue."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import structlog

from netsage_pipeline import demo, folders, log
from netsage_pipeline.commands.publish import input_of
from netsage_pipeline.commands.replay import open_private, opening, output_of, reporting_output, run_replay
from netsage_pipeline.flow import Now
from netsage_pipeline.options import opened, stages_of
from netsage_pipeline.rabbitmq.amqp import Publisher
from netsage_pipeline.rabbitmq.brokers import servers
from netsage_pipeline.rabbitmq.publish import ON_THE_WAY, WAIT_S, parcels
from netsage_pipeline.reading.read import find, messages
from netsage_pipeline.replay import Replay
from netsage_pipeline.signals import stopping
from netsage_pipeline.terminal import refusing_settings, say, tell

said = structlog.get_logger(__name__)


@click.command("demo")
@click.option("--to", "directory", default="demo-output", show_default=True, type=click.Path(path_type=Path), help="Directory to write to")
@click.option("--live", is_flag=True, help="Instead put its flows on the input queue, over and over, as if they were of now")
def run_demo(directory: Path, *, live: bool) -> None:
    """Replay the shipped dump of five sensors through all stages, and show what was in it. Needs no broker, database or licence key."""
    shipped = folders.demo()
    if live:
        with refusing_settings(), stopping(0) as stop:
            publish_live(shipped, stop)
        return
    with refusing_settings():
        stages = demo.all_on(stages_of(None, None))
        now = Now(demo.now(shipped))
        chain, _ = opened(stages, now, shipped / "tables")
    output, letters = directory / "flows.ndjson", directory / "dead-letters.ndjson"
    make, _ = output_of([], str(output), None)
    with reporting_output():
        opening(lambda: directory.mkdir(parents=True, exist_ok=True), str(directory), "--to")
        tally = demo.Tally(opening(make, str(output), "--to"))
        refused = opening(lambda: open_private(letters), str(letters), "--to")
        replay = Replay(chain, now, tally, str(output), refused, fixed_now=True)
        summary = run_replay(replay, find([str(shipped / "captures")], tell), lambda _: None)
    for line in [*summary.lines(), "", *tally.lines(), "", f"The enriched flows are in {output}, what was refused and why in {letters}."]:
        say(line)


def publish_live(shipped: Path, stop: Callable[[], bool]) -> None:
    """Puts the flows of each capture file on the input queue when it would be complete; the first round at once, as traffic before now."""
    source = input_of(None)
    config: Any = source.config
    log.configure(log.secrets_of([source]))
    link = Publisher(servers(config), "demo", config.exchange, config.queue, config.key or config.queue)
    on_the_way = 0
    for due, by, dump in demo.rounds(find([str(shipped / "captures")], tell), int(time.time())):
        flows = 0
        moved = (each._replace(body=demo.moved(each.body, by)) for each in messages(dump, None, Counter()))
        for parcel in parcels(moved):
            while not stop() and (on_the_way >= ON_THE_WAY or time.time() < due):
                link.turn(WAIT_S)
                on_the_way -= len(link.confirmed())
            if stop():
                link.close(1)
                return
            link.publish(None, "", config.queue, parcel.body, parcel.message_id)
            on_the_way += 1
            flows += parcel.flows
        said.info("published", flows=flows, file=dump.path.name if dump.path else "", sensor=dump.path.parent.name if dump.path else "")
