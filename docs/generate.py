"""Writes docs/stages.md, docs/fields.md and docs/settings.md from the stage files and the field table.

    python docs/generate.py [DIRECTORY]

tests/test_docs.py fails when the pages in docs/ are not what this writes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from netsage_pipeline import folders, stagefile
from netsage_pipeline.compose import Configured, configured
from netsage_pipeline.config import shown
from netsage_pipeline.fields import EXPORTED, STORED, TSTAT, TYPES, written
from netsage_pipeline.templates import MAPPED

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
    yield "\n## What Elasticsearch is given besides\n"
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
    yield "\nOne TOML file for each stage in `conf.d/`. Every stage has `enabled` (default true)."
    yield "`netsage-pipeline config` shows what is in effect.\n"
    yield "| stage | setting | default | meaning |\n|---|---|---|---|"
    for name, file in stagefile.find([folders.shipped("stages")]).items():
        for setting, field in file.module.Config.model_fields.items():
            if setting != "enabled":
                default = "required" if field.is_required() else f"`{shown(field.get_default(call_default_factory=True))}`"
                yield f"| {name} | `{setting}` | {default} | {(field.description or '').replace('|', '/')} |"


PAGES = {"stages.md": stages_page, "fields.md": fields_page, "settings.md": settings_page}


def main() -> None:
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, page in PAGES.items():
        (directory / name).write_text("\n".join(page()) + "\n", "utf-8")


if __name__ == "__main__":
    main()
