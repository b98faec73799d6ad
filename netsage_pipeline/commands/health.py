"""health: whether the process of a chain is alive and ready, for container health checks and operators."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from netsage_pipeline.commands.run import the
from netsage_pipeline.config import Input
from netsage_pipeline.monitoring.health import look
from netsage_pipeline.options import conf_option, stages_of, stages_option
from netsage_pipeline.terminal import refusing_settings, say

NOT_ALIVE = 1
NOT_READY = 3


@click.command()
@conf_option
@stages_option
@click.option("--ready", is_flag=True, help="Exit status 3 if it is alive but not ready")
def health(conf: Path | None, directory: Path | None, *, ready: bool) -> None:
    """Say whether the process of a chain is alive and ready. It is asked by the directory of its state.

    A process that waits for a broker, Elasticsearch or room on a disk is alive, not ready. Exit status: 0 alive, 1 not alive."""
    with refusing_settings():
        settings: Input = the(stages_of(conf, directory), "source").config  # type: ignore[assignment]
    try:
        found = look(settings.state)
    except OSError as error:
        say(f"not alive: {settings.state}: {error.strerror}: it names the directory of another machine or user, or nothing was started yet")
        sys.exit(NOT_ALIVE)
    say(found.in_words())
    if not found.alive:
        sys.exit(NOT_ALIVE)
    if ready and not found.ready:
        sys.exit(NOT_READY)
