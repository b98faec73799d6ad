"""fields: what a flow holds, and the index template that is made of it."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from netsage_pipeline import fields, folders, stagefile
from netsage_pipeline.config import SettingsError
from netsage_pipeline.options import stages_option
from netsage_pipeline.retention import wrong_with_prefix
from netsage_pipeline.templates import template
from netsage_pipeline.terminal import refusing_settings, say


@click.command("fields")
@click.option("--template", "as_template", is_flag=True, help="The index template, for PUT _index_template/PREFIX")
@click.option("--prefix", default="om-ns-netsage", show_default=True, help="Beginning of the names of indices, for the template")
@stages_option
def show_fields(prefix: str, directory: Path | None, *, as_template: bool) -> None:
    """Show all fields with type, meaning and the stage that writes them, or the index template that is made of them."""
    with refusing_settings():
        files = files_of(directory)
        known = fields.known(files)
        wrong = wrong_with_prefix(prefix)
        if wrong:
            raise SettingsError([f"--prefix: {wrong}"])
    if as_template:
        say(orjson.dumps(template(prefix, known), option=orjson.OPT_INDENT_2).decode())
        return
    rows = [fields.Field(name, "comes in", meaning) for name, meaning in {**fields.EXPORTED, **fields.TSTAT}.items()]
    rows += [field for file in files for field in fields.written(file)]
    rows += [fields.Field(name, "99_output_elasticsearch", meaning) for name, meaning in fields.STORED.items()]
    names, writers = max(len(row.name) for row in rows), max(len(row.by) for row in rows)
    for row in rows:
        say(f"{row.name:<{names}}  {row.by:<{writers}}  {row.meaning}")


def files_of(directory: Path | None) -> list[stagefile.StageFile]:
    """All stage files that are found, ours and those in an operator's directory, whether they run or not."""
    if directory is not None and not directory.is_dir():
        raise SettingsError([f"{directory}: no such directory of stages"])
    return list(stagefile.find([folders.shipped("stages"), *([directory] if directory else [])]).values())
