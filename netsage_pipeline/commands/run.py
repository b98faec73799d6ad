"""run: a worker, from an input through a chain to an output, until it is told to stop."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import structlog

from netsage_pipeline import folders, log
from netsage_pipeline.compose import Configured
from netsage_pipeline.config import Input, SettingsError
from netsage_pipeline.flow import Now
from netsage_pipeline.monitoring.metrics import Meter
from netsage_pipeline.options import conf_option, field_table, opened, refuse_full_addresses, refuse_shards, stages_of, stages_option
from netsage_pipeline.signals import stopping
from netsage_pipeline.statedir import StateError
from netsage_pipeline.terminal import NOTHING_READ, refusing_settings, tell
from netsage_pipeline.worker.ledger import Ledger
from netsage_pipeline.worker.relay import PassesOn, Relay
from netsage_pipeline.worker.run import Worker
from netsage_pipeline.worker.transit import Transit

said = structlog.get_logger(__name__)


@click.command()
@conf_option
@stages_option
def run(conf: Path | None, directory: Path | None) -> None:
    """Take messages from the input, run the chain, and hand the flows to the output, until told to stop (SIGTERM).

    Nothing is lost and nothing counted twice, whatever is killed: what is held and owed is in the ledger, in the directory NETSAGE_STATE.
    What it does is told on standard error, as JSON where that is no terminal; NETSAGE_LOG_LEVEL: debug, info (the default) or warning."""
    with refusing_settings(), reporting_ledger(), stopping(0) as stop, working(conf, directory) as worker:
        worker.run(stop)


@contextlib.contextmanager
def working(conf: Path | None, directory: Path | None, *, restarts: bool = True) -> Iterator[Worker | Relay]:
    """A worker with its ledger, input and output open, or a relay where there are no stages and messages can be passed on as they are.

    SettingsError, StateError.

    restarts   whether another one may be started after it with the same output
    """
    stages = stages_of(conf, directory)
    refuse_full_addresses(stages)
    source, sink = the(stages, "source"), the(stages, "sink")
    if restarts:
        refuse_replaced_file(sink)
    log.configure(log.secrets_of(stages))
    settings: Input = source.config  # type: ignore[assignment]
    now = Now(time.time(), clock="arrival")
    chain, tables = opened(stages, now, folders.tables())
    refuse_shards(stages, chain)
    for path in tables.missing:
        said.warning("no such table: its stage goes on as if nothing were found in it (tables are in NETSAGE_LOOKUPS)", table=str(path))
    with contextlib.ExitStack() as open_ones:
        holds = chain.stitching is not None
        ledger = Ledger(settings.state, settings.keys_limit_bytes) if holds else Transit(settings.state)
        open_ones.callback(ledger.close)
        taking = source.file.module.source(source.config)
        open_ones.callback(taking.close)
        giving = sink.file.open_sink(sink.config, partial(field_table, directory, stages))
        open_ones.callback(giving.close)
        meter = Meter(settings.metrics if restarts else "", settings.state)
        open_ones.callback(meter.close)
        is_empty = not any(stage.config.enabled and not stage.file.is_io for stage in stages)
        if restarts and is_empty and isinstance(giving, PassesOn):
            yield Relay(taking, giving, meter)
        else:
            yield Worker(chain, now, taking, giving, ledger, tables, settings.max_message_bytes, meter)


def the(stages: list[Configured], factory: str) -> Configured:
    """The one input ("source") or output ("sink") of a chain. SettingsError if there is none, or more than one."""
    found = at_most_one(stages, factory)
    if found is None:
        raise _not_one(factory, "has none")
    return found


def at_most_one(stages: list[Configured], factory: str) -> Configured | None:
    """The input or output of a chain, which for a replay may have none. SettingsError if there is more than one."""
    running = [stage for stage in stages if stage.config.enabled and stage.file.factory == factory]
    if len(running) > 1:
        raise _not_one(factory, f"has {len(running)}: {', '.join(stage.name for stage in running)}")
    return running[0] if running else None


def _not_one(factory: str, which: str) -> SettingsError:
    word, example = ("input", "01_input_rabbitmq") if factory == "source" else ("output", "99_output_rabbitmq")
    return SettingsError([f"the chain {which}, but it needs one {word}: enable one of them, such as {example}"])


def refuse_replaced_file(sink: Configured) -> None:
    """SettingsError if what an output says is stored is not there after a restart."""
    if not getattr(sink.config, "for_workers", True):
        raise SettingsError(
            [f"{sink.settings_file.path}: replaces its file at every start, so a worker would lose what it wrote: use replay"]
        )


@contextlib.contextmanager
def reporting_ledger() -> Iterator[None]:
    """A ledger that cannot be used ends the program with a line."""
    try:
        yield
    except StateError as error:
        tell(str(error))
        sys.exit(NOTHING_READ)
