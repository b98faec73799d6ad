"""The command netsage-pipeline."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from netsage_pipeline import __version__, config, demo, folders, stagefile
from netsage_pipeline.addresses import parse
from netsage_pipeline.chain import Chain
from netsage_pipeline.compose import Configured, configured, sees_addresses
from netsage_pipeline.flow import Now, Sink
from netsage_pipeline.members import convert
from netsage_pipeline.nfdump import Rows
from netsage_pipeline.read import Dump, find
from netsage_pipeline.replay import OutputError, Replay, Summary
from netsage_pipeline.show import said
from netsage_pipeline.tables import Tables

NOTHING_READ = 1
WRONG_SETTINGS = 2
INTERRUPTED = 130

EPILOG = """\b
Examples:
  netsage-pipeline demo
  netsage-pipeline replay flows.ndjson.gz --to enriched.ndjson --dead-letters refused.ndjson
  netsage-pipeline replay /data/nfcapd/ --sensor campus-border --to - | jq .meta.src_organization
  zstdcat *.zst | netsage-pipeline replay - --now 1700000000
  netsage-pipeline replay refused.ndjson
  netsage-pipeline check --conf /etc/netsage/conf.d
  netsage-pipeline stages --stages /etc/netsage/stages
  netsage-pipeline config 40_aggregation
  netsage-pipeline lookups convert networkA-members-list.rb
  netsage-pipeline lookups show 198.51.100.7

Lookup tables are read from the directory NETSAGE_LOOKUPS. Exit status: 0 done (also when flows were refused), 1 nothing could be read or
written, 2 something is wrong with the settings, 130 interrupted.
"""

conf_option = click.option("--conf", type=click.Path(path_type=Path), help="Directory of settings; default: ours")
stages_option = click.option(
    "--stages", "directory", type=click.Path(path_type=Path), help="Directory of your own stage files, beside ours"
)


def tell(line: str) -> None:
    click.echo(line, err=True)


def say(line: str) -> None:
    try:
        click.echo(line)
    except BrokenPipeError:
        raise  # click leaves quietly
    except OSError as error:
        tell(f"standard output: cannot be written: {error.strerror}: make room and run it again")
        _leave_standard_output()
        sys.exit(NOTHING_READ)


@contextlib.contextmanager
def refusing_settings() -> Iterator[None]:
    """Wrong settings end the program with a line for each error."""
    try:
        yield
    except config.SettingsError as error:
        for line in error.errors:
            tell(line)
        sys.exit(WRONG_SETTINGS)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
def main() -> None:
    """Flow records in, stitched and enriched flows without personal addresses out."""


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


@main.command()
@click.argument("paths", nargs=-1, required=True)
@conf_option
@stages_option
@click.option(
    "--now", "at", default=None, help="Unix time that flows are compared with and that is written as the time of processing; default: off"
)
@click.option("--clock", type=click.Choice(["event", "arrival"]), default="event", show_default=True, help="What stitching goes by")
@click.option("--to", "to", help="File for the enriched flows, - for standard output (the default)")
@click.option("--dead-letters", "dead_letters", type=click.Path(path_type=Path), help="File for the flows that are refused")
@click.option("--sensor", help="Sensor name for nfcapd files; default: the nearest directory above them whose name is not a number")
@click.option("--flow-type", default="netflow", show_default=True, help="Flow type for nfcapd files")
@click.option("--min-bytes", default=0, show_default=True, help="Leave out rows of nfcapd files with fewer bytes, after aggregation")
def replay(
    paths: tuple[str, ...],
    conf: Path | None,
    directory: Path | None,
    at: str | None,
    clock: str,
    to: str | None,
    dead_letters: Path | None,
    sensor: str | None,
    flow_type: str,
    min_bytes: int,
) -> None:
    """Run dumps through the chain: JSON, NDJSON, .gz, .zst, nfcapd files, dead letters, directories of them, - for standard input."""
    with refusing_settings():
        fixed = _unix_time(at)
        stages = stages_of(conf, directory, ("01_", "99_") if to else ("01_",))
        now = Now(fixed if fixed is not None else time.time(), judges=fixed is not None, clock=clock)
        chain, tables = opened(stages, now, folders.tables())
        _refuse_full_addresses(stages)
        made, settings, output = _output(stages if conf else [], to)
        dumps = find(list(paths), tell)
        _refuse_overwriting(dumps, {"--to": Path(output), "--dead-letters": dead_letters})
        if dead_letters is not None and dead_letters.absolute() == Path(output).absolute():
            raise config.SettingsError([f"{dead_letters}: cannot take both the flows and the dead letters: name another file"])
    for path in tables.missing:
        tell(f"{path}: no such table: its stage goes on as if nothing were found in it (tables are in NETSAGE_LOOKUPS)")

    def rows(dump: Dump) -> Rows:
        return Rows(sensor_id=sensor or sensor_of(dump), flow_type=flow_type, minimum_bytes=min_bytes)

    if not dumps:  # The output is not opened, because that would empty it.
        tell("nothing could be read")
        sys.exit(NOTHING_READ)
    with reporting_output():
        sink = _opened(lambda: made(settings), output, "--to")
        letters = _opened(lambda: _open_private(dead_letters), str(dead_letters), "--dead-letters") if dead_letters else None
        summary = run_replay(Replay(chain, now, sink, output, letters, fixed_now=fixed is not None), dumps, rows)
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except OutputError as error:
        tell(str(error))
        _leave_standard_output()
        sys.exit(NOTHING_READ)
    except KeyboardInterrupt:
        tell("interrupted: the output is not complete, and flows that were held are not in it: run it again")
        sys.exit(INTERRUPTED)


def _open_private(path: Path) -> BinaryIO:
    """Dead letters of stages before 70 hold full addresses: the file is for its owner alone."""

    def opener(name: str, flags: int) -> int:
        file = os.open(name, flags, 0o600)
        if stat.S_ISREG(os.fstat(file).st_mode):  # It may have been there before, for others to read.
            os.fchmod(file, 0o600)
        return file

    return open(path, "wb", opener=opener)


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


def _refuse_full_addresses(stages: list[Configured]) -> None:
    outputs = [stage for stage in stages if stage.file.factory == "sink" and stage.config.enabled]
    seen = sees_addresses(stages)
    if seen and not any(getattr(stage.config, "allow_full_addresses", False) for stage in outputs):
        where = outputs[0].settings_file.path if outputs else "the settings of an output (99_output_file.toml)"
        raise config.SettingsError(
            [f"the output could see full addresses: {each}, or write allow_full_addresses = true into {where}" for each in seen]
        )


def _output(stages: list[Configured], to: str | None) -> tuple[Callable[[Any], Sink], Any, str]:
    """The output's factory, settings and name: --to, else the settings' own, else standard output."""
    for stage in stages:
        if to is None and stage.file.factory == "sink" and stage.config.enabled:
            path = getattr(stage.config, "path", stage.name)
            return stage.file.module.sink, stage.config, "standard output" if path == "-" else str(path)
    file = stagefile.find([folders.shipped("stages")])["99_output_file"]
    return file.module.sink, file.module.Config(path=to or "-"), "standard output" if to in (None, "-") else str(to)


def _refuse_overwriting(dumps: list[Dump], written: dict[str, Path | None]) -> None:
    for option, path in written.items():
        if path is not None and path.is_file() and any(dump.path is not None and path.samefile(dump.path) for dump in dumps):
            raise config.SettingsError([f"{path}: is read, so it cannot be written: name another file with {option}"])


T = TypeVar("T")


def _opened(opening: Callable[[], T], name: str, option: str) -> T:
    try:
        return opening()
    except OSError as error:
        raise OutputError(f"{name}: cannot be written: {error.strerror}: name another file with {option}") from None


def _leave_standard_output() -> None:
    """Python would try to write what is left in the buffer once more at exit, and print a traceback."""
    with contextlib.suppress(OSError, AttributeError):  # It may be closed, and then is None.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@main.command("demo")
@click.option("--to", "directory", default="demo-output", show_default=True, type=click.Path(path_type=Path), help="Directory to write to")
def run_demo(directory: Path) -> None:
    """Replay the shipped dump of five sensors through all stages, and show what was in it. Needs no broker, database or licence key."""
    shipped = folders.demo()
    with refusing_settings():
        stages = demo.all_on(stages_of(None, None))
        now = Now(demo.now(shipped))
        chain, _ = opened(stages, now, shipped / "tables")
    output, letters = directory / "flows.ndjson", directory / "dead-letters.ndjson"
    made, settings, _ = _output([], str(output))
    with reporting_output():
        _opened(lambda: directory.mkdir(parents=True, exist_ok=True), str(directory), "--to")
        tally = demo.Tally(_opened(lambda: made(settings), str(output), "--to"))
        refused = _opened(lambda: _open_private(letters), str(letters), "--to")
        replay = Replay(chain, now, tally, str(output), refused, fixed_now=True)
        summary = run_replay(replay, find([str(shipped / "captures")], tell), lambda _: None)
    for line in [*summary.lines(), "", *tally.lines(), "", f"The enriched flows are in {output}, what was refused and why in {letters}."]:
        say(line)


@main.command()
@conf_option
@stages_option
def check(conf: Path | None, directory: Path | None) -> None:
    """Check settings and lookup tables; all errors at once."""
    errors: list[str] = []
    tables = Tables(folders.tables())
    try:
        stages = stages_of(conf, directory)
    except config.SettingsError as error:
        errors, stages = error.errors, error.usable
    try:
        Chain(stages, tables, Now())
        if not errors:  # A stage that cannot be used might be the one that masks.
            _refuse_full_addresses(stages)
    except config.SettingsError as error:
        errors = errors + error.errors
    errors = errors + tables.broken
    if errors:
        with refusing_settings():
            raise config.SettingsError(errors)
    for path in tables.missing:
        tell(f"{path}: no such table: its stage would go on as if nothing were found in it (tables are in NETSAGE_LOOKUPS)")
    running = sum(stage.config.enabled for stage in stages)
    opened_tables = len(tables.opened) - len(tables.missing)
    say(f"{len(stages)} settings files, {running} stages run, {opened_tables} tables opened, {len(tables.missing)} missing: no errors")


@main.command()
@conf_option
@stages_option
def stages(conf: Path | None, directory: Path | None) -> None:
    """Show the chain in order: file, enabled, what each stage reads and writes."""
    with refusing_settings():
        chain = stages_of(conf, directory)
    for stage in chain:
        kind = {"stage": "flow", "end": "end", "source": "input", "sink": "output"}[stage.file.factory]
        say(f"{stage.name:<22} {'on ' if stage.config.enabled else 'off'}  {kind:<6}  {stage.file.path}")
        say(f"    reads   {', '.join(stage.file.reads) or 'nothing'}")
        say(f"    writes  {', '.join(stage.file.writes) or 'nothing'}")


@main.command("config")
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


@main.group()
def lookups() -> None:
    """Lookup tables."""


@lookups.command("convert")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def convert_lists(files: tuple[Path, ...]) -> None:
    """Convert the reference's *-members-list.rb files to NETSAGE_LOOKUPS/members/. They are read as text, never executed."""
    directory = folders.tables() / "members"
    written = 0
    for file in files:
        try:
            converted = convert(file)
            directory.mkdir(parents=True, exist_ok=True)
            for number, each in enumerate(converted, 1):
                for line in each.errors:
                    tell(line)
                if each.name:
                    target = directory / f"{_file_name(file, each.name, number if len(converted) > 1 else 0)}.toml"
                    target.write_text(each.text, "utf-8")
                    say(f"{target}: {each.members} members of {each.name}")
                    written += 1
        except OSError as error:
            tell(f"{error.filename or file}: cannot be read or written: {error.strerror}")
        except UnicodeDecodeError as error:
            tell(f"{file}: is not UTF-8 (byte {error.start}): save it as UTF-8")
    if not written:
        sys.exit(NOTHING_READ)


def _file_name(file: Path, name: str, number: int) -> str:
    """Lists are asked in order of file name, so the reference's order of files, and of lists in a file, is kept."""
    stem = file.name.removesuffix(".rb").removesuffix("-members-list")
    return re.sub(r"[^\w.-]", "_", f"{stem}-{number:02}-{name}") if number else stem


@lookups.command("show")
@click.argument("ip")
def show_address(ip: str) -> None:
    """Show what each lookup table says of an address."""
    if parse(ip) is None:
        tell(f"'{ip}' is not an IP address")
        sys.exit(WRONG_SETTINGS)
    for name, answer in said(ip, folders.tables()):
        say(f"{name:<22} {answer}")
