"""doctor: one line for each hop that flows take."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from netsage_pipeline import config, folders
from netsage_pipeline.compose import Configured
from netsage_pipeline.doctor import BROKEN, WAITING, hops_of, said_of
from netsage_pipeline.options import stages_of, stages_option
from netsage_pipeline.terminal import NOTHING_READ, refusing_settings, say

#: Chains that lie in a directory of settings, as ours do.
WITHIN = ("import", "sink")


@click.command()
@click.option(
    "--conf",
    "confs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Directory of settings, with sink and import in it; default: ours",
)
@stages_option
def doctor(confs: tuple[Path, ...], directory: Path | None) -> None:
    """Say of each hop whether it is fine, waiting or broken, with counts and what to do.

    Hops: files, importer, queue, worker, ledger, dead letters, queue, sink, index, tables, as far as there are settings for them.
    Nothing is changed or taken, and each hop has a few seconds. Exit status: 0 nothing is broken, 1 something is."""
    chains: list[tuple[Path, list[Configured]]] = []
    unusable: list[tuple[Path, str]] = []
    with refusing_settings():
        for conf in confs or (folders.shipped("conf.d"),):
            chains.append((conf, stages_of(conf, directory)))
            for within in (conf / name for name in WITHIN):
                if within.is_dir():
                    try:
                        chains.append((within, stages_of(within, None)))
                    except config.SettingsError as error:
                        unusable.append((within, error.errors[0]))
    broken = False
    for name, said in said_of(hops_of(chains, folders.tables()), [stage for _, stages in chains for stage in stages]):
        _show(name, said.state, said.words)
        broken = broken or said.state == BROKEN
    for conf, line in unusable:  # Many sites have no importer.
        _show(conf.name, WAITING if conf.name == "import" else BROKEN, f"is not set up: {line}")
        broken = broken or conf.name != "import"
    if broken:
        sys.exit(NOTHING_READ)


def _show(name: str, state: str, words: str) -> None:
    say(f"{name:<13} {state:<8} {words}")
