"""The options that several commands have, and what they name: stages with their settings, and a chain of them with its tables open."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from netsage_pipeline import config, fields, folders, stagefile
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured, sees_addresses
from netsage_pipeline.flow import Now
from netsage_pipeline.tables.tables import Tables
from netsage_pipeline.terminal import tell

conf_option = click.option("--conf", type=click.Path(path_type=Path), help="Directory of settings; default: ours")
stages_option = click.option(
    "--stages", "directory", type=click.Path(path_type=Path), help="Directory of your own stage files, beside ours"
)


def stages_of(conf: Path | None, directory: Path | None, unused: tuple[str, ...] = ()) -> list[Configured]:
    if directory is not None and not directory.is_dir():
        raise config.SettingsError([f"{directory}: no such directory of stages"])
    settings = conf or folders.shipped("conf.d")
    stages = configured(settings, [folders.shipped("stages"), *([directory] if directory else [])], unused)
    for name, file in stagefile.find([directory] if directory else []).items():
        if not any(stage.name == name for stage in stages):
            tell(f"{file.path}: does not run: {settings / name}.toml is missing; an empty file means defaults")
    return stages


def opened(stages: list[Configured], now: Now, directory: Path) -> tuple[Chain, Tables]:
    """The chain with its tables open. SettingsError if a table or a factory is broken."""
    tables = Tables(directory)
    chain = Chain(stages, tables, now)
    if tables.broken:
        raise config.SettingsError(tables.broken)
    return chain, tables


def field_table(directory: Path | None, stages: Iterable[Configured] = ()) -> dict[str, str]:
    """Every field that a stage of ours, or of the operator's directory, may write → its type word. SettingsError.

    stages   a chain; where its input says what its records hold, they are no flows: then only fields of that chain
    """
    return fields.known(*writers(directory, stages))


def writers(directory: Path | None, stages: Iterable[Configured] = ()) -> tuple[list[stagefile.StageFile], stagefile.StageFile | None]:
    """The stage files whose fields may be there, as in `field_table`, and that of an input which says what its records hold, if it does."""
    running = [stage.file for stage in stages if stage.config.enabled]
    given = next((file for file in running if file.factory == "source" and file.writes), None)
    if given is not None:
        return running, given
    found = stagefile.find([folders.shipped("stages"), *([directory] if directory else [])]).values()
    return list(found), None


def refuse_full_addresses(stages: list[Configured]) -> None:
    outputs = [stage for stage in stages if stage.file.factory == "sink" and stage.config.enabled]
    seen = sees_addresses(stages)
    if seen and not any(getattr(stage.config, "allow_full_addresses", False) for stage in outputs):
        where = outputs[0].settings_file.path if outputs else "the settings of an output (99_output_file.toml)"
        raise config.SettingsError(
            [f"the output could see full addresses: {each}, or write allow_full_addresses = true into {where}" for each in seen]
        )


def refuse_shards(stages: list[Configured], chain: Chain) -> None:
    """A router holds no flows, and a worker behind routers does not repeat what must not be done twice. SettingsError."""
    running = [stage for stage in stages if stage.config.enabled]
    held_by, lines = chain.steps.held_by, []
    for stage in running:
        path = stage.settings_file.path
        if getattr(stage.config, "shards", 0) and held_by:
            lines.append(f"{path}: shards: flows go to shards before {held_by} holds them: set it in conf.d/router alone")
        if getattr(stage.config, "shard", None) is not None:
            lines += [
                f"{each.settings_file.path}: runs in the routers, and must not run once more behind them: enabled = false"
                for each in running
                if each.name < "20" and not each.file.is_io and each.name != "10_preliminaries"
            ]
    if lines:
        raise config.SettingsError(lines)
