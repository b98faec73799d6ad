"""check, config: which settings are in effect, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from netsage_pipeline import config, folders
from netsage_pipeline.chain import Chain
from netsage_pipeline.commands.run import at_most_one, refuse_replaced_file, the
from netsage_pipeline.flow import Now
from netsage_pipeline.options import conf_option, refuse_full_addresses, refuse_shards, stages_of, stages_option
from netsage_pipeline.tables.tables import Tables
from netsage_pipeline.terminal import refusing_settings, say, tell


@click.command()
@conf_option
@stages_option
def check(conf: Path | None, directory: Path | None) -> None:
    """Check settings and lookup tables; all errors at once.

    A chain that replay takes and run does not, because it has no input or no output, or writes to a file, is right; that is said."""
    errors: list[str] = []
    tables = Tables(folders.tables())
    try:
        stages = stages_of(conf, directory)
    except config.SettingsError as error:
        errors, stages = error.errors, error.usable
    try:
        chain = Chain(stages, tables, Now())
        refuse_shards(stages, chain)
        if not errors:  # A stage that cannot be used might be the one that masks.
            refuse_full_addresses(stages)
    except config.SettingsError as error:
        errors = errors + error.errors
    errors = errors + _refused(lambda: at_most_one(stages, "source"), lambda: at_most_one(stages, "sink")) + tables.broken
    if errors:
        with refusing_settings():
            raise config.SettingsError(errors)
    for line in _refused(lambda: the(stages, "source"), lambda: refuse_replaced_file(the(stages, "sink"))):
        tell(f"for replays only: {line}")
    for path in tables.missing:
        tell(f"{path}: no such table: its stage would go on as if nothing were found in it (tables are in NETSAGE_LOOKUPS)")
    running = sum(stage.config.enabled for stage in stages)
    opened_tables = len(tables.opened) - len(tables.missing)
    say(f"{len(stages)} settings files, {running} stages run, {opened_tables} tables opened, {len(tables.missing)} missing: no errors")


def _refused(*calls: Callable[[], object]) -> list[str]:
    """What is wrong with the settings by each of the calls."""
    lines = []
    for call in calls:
        try:
            call()
        except config.SettingsError as error:
            lines += error.errors
    return lines


@click.command("config")
@click.argument("stage", required=False)
@conf_option
@stages_option
def show_config(stage: str | None, conf: Path | None, directory: Path | None) -> None:
    """Show every setting in effect, where it comes from, its default and meaning."""
    with refusing_settings():
        chain = stages_of(conf, directory)
        names = [each.name for each in chain]
        if stage is not None and stage not in names:
            raise config.SettingsError([f"{stage}: no such stage in this chain, which has {', '.join(names)}"])
    for each in chain:
        if stage is None or each.name == stage:
            say(f"# {each.settings_file.path}")
            for line in config.described(each.config, each.settings_file):
                say(line)
            say("")
