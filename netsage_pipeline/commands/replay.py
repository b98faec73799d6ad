"""replay: dumps through the chain, with no broker and no database."""

from __future__ import annotations

import contextlib
import gc
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar, get_args

import click

from netsage_pipeline import config, folders, log, stagefile
from netsage_pipeline.compose import Configured
from netsage_pipeline.flow import Now, Sink
from netsage_pipeline.folders import shown
from netsage_pipeline.options import conf_option, field_table, opened, refuse_full_addresses, stages_of, stages_option
from netsage_pipeline.reading.nfdump import FlowType, Rows
from netsage_pipeline.reading.read import Dump, find
from netsage_pipeline.replay import OutputError, Replay, Summary
from netsage_pipeline.signals import interruptible
from netsage_pipeline.terminal import NOTHING_READ, leave_standard_output, refusing_settings, tell

sensor_option = click.option(
    "--sensor",
    help="Sensor name for nfcapd files and records of pmacct and the netflow module; default: what the record says (label, tag, host), "
    "else the nearest directory above the file whose name is not a number",
)
flow_type_option = click.option(
    "--flow-type", type=click.Choice(get_args(FlowType)), default="netflow", show_default=True, help="Flow type for the same"
)
min_bytes_option = click.option(
    "--min-bytes", default=0, show_default=True, help="Leave out rows of nfcapd files with fewer bytes, after aggregation"
)


@click.command()
@click.argument("paths", nargs=-1, required=True)
@conf_option
@stages_option
@click.option(
    "--now", "at", default=None, help="Unix time that flows are compared with and that is written as the time of processing; default: off"
)
@click.option("--clock", type=click.Choice(["event", "arrival"]), default="event", show_default=True, help="What stitching goes by")
@click.option("--to", "to", help="File for the enriched flows, - for standard output (the default)")
@click.option("--dead-letters", "dead_letters", type=click.Path(path_type=Path), help="File for the flows that are refused")
@sensor_option
@flow_type_option
@min_bytes_option
def replay(
    paths: tuple[str, ...],
    conf: Path | None,
    directory: Path | None,
    at: str | None,
    clock: str,
    to: str | None,
    dead_letters: Path | None,
    sensor: str | None,
    flow_type: FlowType,
    min_bytes: int,
) -> None:
    """Run dumps through the chain: JSON, NDJSON, .gz, .zst, nfcapd files, records of pmacct (JSON, CSV) and of Logstash's netflow
    module, dead letters, directories of them, - for standard input.

    With --conf conf.d/probe: saved output of netstat -nte and ss -tunp."""
    with refusing_settings():
        fixed = _unix_time(at)
        stages = stages_of(conf, directory, ("01_", "99_") if to else ("01_",))
        log.configure(log.secrets_of(stages))
        now = Now(fixed if fixed is not None else time.time(), judges=fixed is not None, clock=clock)
        chain, tables = opened(stages, now, folders.tables())
        refuse_full_addresses(stages)
        make, output = output_of(stages if conf else [], to, directory)
        dumps = find(list(paths), tell)
        _refuse_overwriting(dumps, {"--to": Path(output), "--dead-letters": dead_letters})
        if dead_letters is not None and dead_letters.absolute() == Path(output).absolute():
            raise config.SettingsError([f"{dead_letters}: cannot take both the flows and the dead letters: name another file"])
    for path in tables.missing:
        tell(f"{path}: no such table: its stage goes on as if nothing were found in it (tables are in NETSAGE_LOOKUPS)")

    if not dumps:  # The output is not opened, because that would empty it.
        tell("nothing could be read")
        sys.exit(NOTHING_READ)
    with reporting_output():
        sink = opening(make, output, "--to")
        letters = opening(lambda: open_private(dead_letters), str(dead_letters), "--dead-letters") if dead_letters else None
        summary = run_replay(
            Replay(chain, now, sink, output, letters, fixed_now=fixed is not None), dumps, rows_of(sensor, flow_type, min_bytes)
        )
    for line in summary.lines():
        tell(line)
    if chain.refused and not dead_letters:
        tell("the refused flows were only counted: --dead-letters FILE keeps them")
    if not summary.read and not chain.refused and not summary.rows["below_minimum"]:
        tell("nothing could be read")
        sys.exit(NOTHING_READ)


@contextlib.contextmanager
def reporting_output() -> Iterator[None]:
    """An output that cannot be written, or a signal, ends the program with a line that says how far it came."""
    with interruptible("the output is not complete, and flows that were held are not in it: run it again"):
        try:
            yield
        except OutputError as error:
            tell(str(error))
            leave_standard_output()
            sys.exit(NOTHING_READ)


def open_private(path: Path) -> BinaryIO:
    """Dead letters of stages before 70 hold full addresses: the file is for its owner alone."""

    def opener(name: str, flags: int) -> int:
        file = os.open(name, flags, 0o600)
        if stat.S_ISREG(os.fstat(file).st_mode):  # It may have been there before, for others to read.
            os.fchmod(file, 0o600)
        return file

    return open(path, "wb", opener=opener)


def rows_of(sensor: str | None, flow_type: FlowType, min_bytes: int) -> Callable[[Dump], Rows]:
    """How the rows of an nfcapd file, and the records of other programs, become flows."""
    return lambda dump: Rows(
        sensor_id=shown(sensor or sensor_of(dump)), flow_type=flow_type, minimum_bytes=min_bytes, overrides=bool(sensor)
    )


def sensor_of(dump: Dump) -> str:
    """The nearest directory above a file whose name is no number: border-1 for border-1/2026/11/nfcapd.202611201200."""
    parents = dump.path.resolve().parents if dump.path else ()
    return next((parent.name for parent in parents if parent.name and not parent.name.isdigit()), "")


def run_replay(replay: Replay, dumps: list[Dump], rows: Callable[[Dump], Rows | None]) -> Summary:
    """Replays with the garbage collector off: flows hold no cycles, and looking for some among a million held flows takes half the time."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        return replay.run(dumps, rows, tell)
    finally:
        gc.enable()
        gc.unfreeze()


def _unix_time(text: str | None) -> float | None:
    if text is None or text == "off":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 1e10:
        raise config.SettingsError([f"--now: '{text}' is neither a unix time in seconds nor off"])
    return seconds


def output_of(stages: list[Configured], to: str | None, directory: Path | None) -> tuple[Callable[[], Sink], str]:
    """What opens the output, and its name: --to, else the settings' own, else standard output."""
    for stage in stages:
        if to is None and stage.file.factory == "sink" and stage.config.enabled and getattr(stage.config, "for_replays", True):
            path = getattr(stage.config, "path", stage.name)
            opens = partial(stage.file.open_sink, stage.config, partial(field_table, directory, stages))
            return opens, "standard output" if path == "-" else str(path)
    file = stagefile.find([folders.shipped("stages")])["99_output_file"]
    settings = file.module.Config(path=to or "-")
    return partial(file.open_sink, settings, dict), "standard output" if to in (None, "-") else str(to)


def _refuse_overwriting(dumps: list[Dump], written: dict[str, Path | None]) -> None:
    for option, path in written.items():
        if path is not None and path.is_file() and any(dump.path is not None and path.samefile(dump.path) for dump in dumps):
            raise config.SettingsError([f"{path}: is read, so it cannot be written: name another file with {option}"])


T = TypeVar("T")


def opening(call: Callable[[], T], name: str, option: str) -> T:
    """What the call opens. OutputError if it cannot."""
    try:
        return call()
    except OSError as error:
        raise OutputError(f"{name}: cannot be written: {error.strerror}: name another file with {option}") from None
