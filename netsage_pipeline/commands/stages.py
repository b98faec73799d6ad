"""stages: the chain in order; a new stage; one flow through stages, and what each made of it."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import click
import orjson

from netsage_pipeline import authoring, folders
from netsage_pipeline.compose import Configured
from netsage_pipeline.config import SettingsError
from netsage_pipeline.deadletters import is_envelope
from netsage_pipeline.flow import Flow, Now
from netsage_pipeline.jsonvalues import fault
from netsage_pipeline.options import conf_option, stages_of, stages_option
from netsage_pipeline.reading.read import Dump, DumpError, messages
from netsage_pipeline.tables.tables import Tables
from netsage_pipeline.terminal import NOTHING_READ, refusing_settings, say, tell
from netsage_pipeline.trial import Tried, tried


@click.group(invoke_without_command=True)
@conf_option
@stages_option
@click.pass_context
def stages(context: click.Context, conf: Path | None, directory: Path | None) -> None:
    """Show the chain in order: file, enabled, what each stage reads and writes."""
    if context.invoked_subcommand is not None:
        if conf is not None or directory is not None:
            raise click.UsageError(f"write --conf and --stages behind {context.invoked_subcommand}")
        return
    with refusing_settings():
        chain = stages_of(conf, directory)
    for stage in chain:
        kind = {"stage": "flow", "end": "end", "source": "input", "sink": "output"}[stage.file.factory]
        say(f"{stage.name:<22} {'on ' if stage.config.enabled else 'off'}  {kind:<6}  {stage.file.path}")
        say(f"    reads   {', '.join(stage.file.reads) or 'nothing'}")
        say(f"    writes  {', '.join(stage.file.writes) or 'nothing'}")


@stages.command()
@click.argument("name", metavar="NN_NAME")
@click.option("--end", "is_end", is_flag=True, help="A stage that sees one end of a flow; default: one that sees the flow")
@click.option("--stages", "directory", type=click.Path(path_type=Path), help="Directory of your own stage files; default: my-stages")
@click.option(
    "--conf", type=click.Path(path_type=Path), help="Directory of settings, made as a copy of ours if it is not there; default: my-conf.d"
)
def new(name: str, directory: Path | None, conf: Path | None, *, is_end: bool) -> None:
    """Write a stage, its settings and its test, to be changed; in a checkout among ours, unless --stages or --conf says otherwise."""
    with refusing_settings():
        place = authoring.place_of(directory, conf)
        for path in authoring.written(name, place, is_end=is_end):
            say(str(path))
    tell(f"try it: netsage-pipeline stages try {name}{place.options} < flow.json")
    tell(f"test it: python -m pytest {place.tests}")
    if not place.options:
        tell("document it: make docs")


@stages.command("try")
@click.argument("name", metavar="[NN_NAME]", required=False)
@conf_option
@stages_option
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object for each stage, and one with the flow; changed: field → [before, after]"
)
def try_flow(name: str | None, conf: Path | None, directory: Path | None, *, as_json: bool) -> None:
    """Show what the stages make of a flow, or one stage of a flow as it stands before it: added, changed, removed fields (+ ~ -).

    The flow is the first one of standard input: JSON, an array or several lines; of a dead letter the flow in it."""
    flow, entry = _first_flow()
    tables = Tables(folders.tables())
    with refusing_settings():
        chain = stages_of(conf, directory)
        if name is not None:
            _refuse_to_try(name, chain, flow)
            entry = name
        elif entry not in [stage.name for stage in chain]:
            entry = ""  # An output refused it, or a stage that is there no more.
        every = tried(chain, flow, entry, tables, Now(time.time(), judges=False))
        made = list(islice(every, None if name is None else 1))
        if tables.broken:
            raise SettingsError(tables.broken)
    for path in tables.missing:
        tell(f"{path}: no such table: its stage goes on as if nothing were found in it (tables are in NETSAGE_LOOKUPS)")
    for each in made:
        for line in _as_json(each) if as_json else _as_text(each):
            say(line)
    left = made[-1].flow if made else flow
    if as_json:
        say(_shown({"flow": left}))
    elif left is not None:
        say(f"the flow\n{_shown(left, indent=2)}")
    if left is not None and fault(left):
        tell(f"an output would refuse this flow: {fault(left)}")


def _first_flow() -> tuple[Flow, str]:
    """The first flow of standard input, and of a dead letter the stage that it names."""
    if sys.stdin.isatty():
        tell("standard input: a flow as JSON, then Ctrl-D")
    try:
        message = next(messages(Dump(None, 0, 0), None, Counter()), None)
    except DumpError as error:
        _leave(str(error))
    if message is None:
        _leave("standard input: is empty: give it a flow as JSON")
    try:
        value: Any = orjson.loads(message.body)
    except orjson.JSONDecodeError as error:
        _leave(f"standard input: is not JSON: {error}")
    if isinstance(value, list) and value:
        value = value[0]
    entry = ""
    if is_envelope(value):
        entry, value = value["stage"], value["payload"]
    if not isinstance(value, dict):
        _leave("standard input: its first value is not a flow: give it a JSON object, as in docs/fields.md")
    if fault(value):
        _leave(f"standard input: no flow: {fault(value)}")
    return value, entry


def _leave(line: str) -> NoReturn:
    tell(line)
    sys.exit(NOTHING_READ)


def _refuse_to_try(name: str, chain: list[Configured], flow: Flow) -> None:
    """SettingsError if the stage cannot be tried alone."""
    stage = next((each for each in chain if each.name == name), None)
    if stage is None:
        raise SettingsError([f"{name}: no such stage in this chain, which has {', '.join(each.name for each in chain)}"])
    if stage.file.is_io:
        raise SettingsError([f"{name}: is an input or output, no flow goes through it: name another stage"])
    if not stage.config.enabled:
        raise SettingsError([f"{name}: is switched off: write enabled = true into {stage.settings_file.path}"])
    meta = flow.get("meta")
    if stage.file.is_end and not (isinstance(meta, dict) and {"src_ip", "dst_ip"} <= meta.keys()):
        raise SettingsError([f"{name}: sees the ends of a flow: give it one with meta.src_ip and meta.dst_ip"])


def _as_text(tried: Tried) -> Iterator[str]:
    yield tried.stage
    for name, value in tried.added.items():
        yield f"    + {name}  {_shown(value)}"
    for name, (before, after) in tried.changed.items():
        yield f"    ~ {name}  {_shown(before)} → {_shown(after)}"
    for name, value in tried.removed.items():
        yield f"    - {name}  {_shown(value)}"
    for note in tried.noted:
        yield f"    noted    {note}"
    if tried.flow is None:
        yield f"    dropped  {tried.dropped}" if tried.dropped else f"    refused  {tried.refused}"
    elif not (tried.added or tried.changed or tried.removed or tried.noted):
        yield "    nothing"


def _as_json(tried: Tried) -> Iterator[str]:
    yield _shown({name: value for name, value in tried._asdict().items() if name != "flow" and value})


def _shown(value: Any, indent: int | None = None) -> str:
    """As JSON, also what a stage wrote that is none."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=repr, skipkeys=True)
    return text.encode("utf-8", "backslashreplace").decode()
