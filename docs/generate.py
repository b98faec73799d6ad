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
from netsage_pipeline.ends import meta_name
from netsage_pipeline.fields import EXPORTED

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
    yield "| field | type and meaning |\n|---|---|"
    for name, meaning in EXPORTED.items():
        yield f"| `{name}` | {meaning} |"
    yield "\n## What the stages write\n"
    yield "What an end stage writes as `x` is `meta.src_x` and `meta.dst_x` in a flow.\n"
    yield "| field | written by | type and meaning |\n|---|---|---|"
    for stage in chain():
        for name, meaning in stage.file.writes.items():
            if stage.file.is_end:
                shown_as = meta_name(name)
                if shown_as is None:
                    continue
                shown_as = shown_as.replace("{side}", "{src,dst}")
            else:
                shown_as = name
            yield f"| `{shown_as}` | {stage.name} | {meaning} |"


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
