"""fields: what a flow holds, and the index template that is made of it."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from netsage_pipeline import fields
from netsage_pipeline.config import SettingsError
from netsage_pipeline.elastic.retention import wrong_with_prefix
from netsage_pipeline.elastic.templates import template
from netsage_pipeline.options import conf_option, stages_of, stages_option, writers
from netsage_pipeline.terminal import refusing_settings, say


@click.command("fields")
@click.option("--template", "as_template", is_flag=True, help="The index template, for PUT _index_template/PREFIX")
@click.option("--prefix", default="om-ns-netsage", show_default=True, help="Beginning of the names of indices, for the template")
@conf_option
@stages_option
def show_fields(prefix: str, conf: Path | None, directory: Path | None, *, as_template: bool) -> None:
    """Show all fields with type, meaning and the stage that writes them, or the index template that is made of them.

    With --conf conf.d/probe: those of its records, which are no flows."""
    with refusing_settings():
        if directory is not None and not directory.is_dir():
            raise SettingsError([f"{directory}: no such directory of stages"])
        files, given = writers(directory, stages_of(conf, directory) if conf else ())
        known = fields.known(files, given)
        wrong = wrong_with_prefix(prefix)
        if wrong:
            raise SettingsError([f"--prefix: {wrong}"])
    if as_template:
        say(orjson.dumps(template(prefix, known), option=orjson.OPT_INDENT_2).decode())
        return
    come_in = {} if given else {**fields.EXPORTED, **fields.TSTAT}
    rows = [fields.Field(name, "comes in", meaning) for name, meaning in come_in.items()]
    rows += [field for file in files if file is given or file.factory != "source" for field in fields.written(file)]
    stored = fields.STORED_OF_RECORD if given else fields.STORED
    rows += [fields.Field(name, "99_output_elasticsearch", meaning) for name, meaning in stored.items()]
    names, by = max(len(row.name) for row in rows), max(len(row.by) for row in rows)
    for row in rows:
        say(f"{row.name:<{names}}  {row.by:<{by}}  {row.meaning}")
