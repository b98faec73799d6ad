"""Writes docs/stages.md, docs/fields.md, docs/settings.md, docs/metrics.md and docs/commands.md from the code.

    python docs/generate.py [DIRECTORY]

tests/test_docs.py fails when the pages in docs/ are not what this writes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from netsage_pipeline import folders, stagefile
from netsage_pipeline.cli import main as main_command
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.config import shown
from netsage_pipeline.elastic.templates import MAPPED
from netsage_pipeline.fields import EXPORTED, STORED, STORED_OF_RECORD, TSTAT, TYPES, written
from netsage_pipeline.monitoring.metrics import EVERY_S, METRICS, SERIES
from netsage_pipeline.pmacct_plugin.settings import Plugin
from netsage_pipeline.tables.sources import Sources

GENERATED = "<!-- Written by docs/generate.py; do not edit. -->"


def chain() -> list[Configured]:
    return configured(folders.shipped("conf.d"), [folders.shipped("stages")])


def stages_page() -> Iterator[str]:
    yield "# Stages"
    yield GENERATED
    yield "\nIn order. A *flow* stage sees the flow, an *end* stage one end of it: `side`, `ip`, `asn`, and what earlier end stages wrote."
    for name, file in stagefile.find([folders.shipped("stages")]).items():
        kind = {"stage": "flow stage", "end": "end stage", "source": "input", "sink": "output"}[file.factory]
        off = ", switched off" if any(stage.name == name and not stage.config.enabled for stage in chain()) else ""
        yield f"\n## {name} ({kind}{off})\n"
        yield f"```\n{file.docstring.rstrip()}\n```"


def fields_page() -> Iterator[str]:
    yield "# Fields"
    yield GENERATED
    yield "\n## What comes in\n"
    yield from _table({**EXPORTED, **TSTAT})
    yield "\n## What the stages write\n"
    yield "What an end stage writes as `x` is `meta.src_x` and `meta.dst_x` in a flow.\n"
    yield "| field | written by | type and meaning |\n|---|---|---|"
    for stage in chain():
        for field in written(stage.file):
            yield f"| `{field.name}` | {field.by} | {field.meaning} |"
    for name, file in stagefile.find([folders.shipped("stages")]).items():
        if file.factory == "source" and file.writes:
            yield f"\n## What records of {name} hold, which are no flows\n"
            yield from _table({**file.writes, **STORED_OF_RECORD})
    yield "\n## What Elasticsearch is given with a flow\n"
    yield from _table(STORED)
    yield "\n## How Elasticsearch takes them\n"
    yield "Whatever lies in no field of these tables or of an operator's stage is stored and shown, but cannot be searched for.\n"
    yield "| type word | mapped as |\n|---|---|"
    for word in TYPES:
        yield f"| {word} | {MAPPED[word]['type'] if word in MAPPED else 'nothing'} |"


def _table(fields: dict[str, str]) -> Iterator[str]:
    yield "| field | type and meaning |\n|---|---|"
    for name, meaning in fields.items():
        yield f"| `{name}` | {meaning} |"


def settings_page() -> Iterator[str]:
    yield "# Settings"
    yield GENERATED
    yield "\nOne TOML file for each stage in `conf.d/`. Every stage has `enabled` (default true). Where tables are"
    yield "fetched from is in `conf.d/lookups/sources.toml`."
    yield "`netsage-pipeline config` shows what of a chain is in effect.\n"
    yield "| stage | setting | default | meaning |\n|---|---|---|---|"
    of_stages = [(name, file.module.Config) for name, file in stagefile.find([folders.shipped("stages")]).items()]
    of_commands = [("plugins of `netsage-pipeline pmacct`", Plugin), ("sources of `netsage-pipeline lookups update`", Sources)]
    for name, model in [*of_stages, *of_commands]:
        for setting, field in model.model_fields.items():
            if setting != "enabled":
                default = "required" if field.is_required() else f"`{shown(field.get_default(call_default_factory=True))}`"
                yield f"| {name} | `{setting}` | {default} | {(field.description or '').replace('|', '/')} |"


def metrics_page() -> Iterator[str]:
    yield "# Metrics"
    yield GENERATED
    yield "\nEvery process that `netsage-pipeline run` starts serves them for Prometheus, at the address of its setting `metrics`: the"
    yield "worker at `http://127.0.0.1:9751/metrics`, the sink at port 9752, the importer at 9753. A metric for which a chain has nothing"
    yield f"is not shown. Numbers are read from the loop every {EVERY_S:g} s; a scrape never waits for it. Of a metric there are at most"
    yield f"{SERIES} series; what is beyond is one of them, all labels of which are `other`. Addresses in labels are masked. Those of the"
    yield "process are there too (`process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_start_time_seconds`, …).\n"
    yield "| metric | type | labels | meaning |\n|---|---|---|---|"
    for name, (kind, labels, meaning) in METRICS.items():
        yield f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"


def commands_page() -> Iterator[str]:
    yield "# Commands"
    yield GENERATED
    yield "\nEvery command has `--help`. What one needs stands in capitals, what may be left out in brackets."
    yield from _commands(main_command, click.Context(main_command, info_name="netsage-pipeline"))


def _commands(command: click.Command, context: click.Context) -> Iterator[str]:
    """The sections of a command and of those below it."""
    yield f"\n## {context.command_path}\n"
    yield f"    {' '.join([context.command_path, *command.collect_usage_pieces(context)])}\n"
    yield inspect.cleandoc(command.help or "")
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    if options:
        yield "\n| option | default | meaning |\n|---|---|---|"
        for option in options:
            usage, help_text = (text.replace("|", "\\|") for text in option.get_help_record(context) or ("", ""))
            meaning, _, extra = help_text.removesuffix("]").partition("  [")
            default, required, limits = (
                found[1] if (found := re.search(pattern, extra)) else ""
                for pattern in (r"default: ([^;]+)", "(required)", r"(\S*x[<>]\S*)")
            )
            yield f"| `{usage}` | {f'`{default}`' if default else required} | {meaning}{limits and f' ({limits})'} |"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _commands(below, click.Context(below, info_name=name, parent=context))


PAGES = {
    "stages.md": stages_page,
    "fields.md": fields_page,
    "settings.md": settings_page,
    "metrics.md": metrics_page,
    "commands.md": commands_page,
}


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, page in PAGES.items():
        (directory / name).write_text("\n".join(page()) + "\n", "utf-8")


if __name__ == "__main__":
    main()
