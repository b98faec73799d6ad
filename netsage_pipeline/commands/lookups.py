"""lookups: tables fetched, built, converted, what they are, and what they say."""

from __future__ import annotations

import contextlib
import random
import re
import sys
import time
from pathlib import Path

import click

from netsage_pipeline import config, folders
from netsage_pipeline.addresses import parse
from netsage_pipeline.signals import interruptible
from netsage_pipeline.tables import scireg
from netsage_pipeline.tables.content import content
from netsage_pipeline.tables.fetch import NotFetched
from netsage_pipeline.tables.members import convert, list_name
from netsage_pipeline.tables.show import said
from netsage_pipeline.tables.sources import HOW, TABLES, Source, Sources, sources
from netsage_pipeline.tables.update import Refused, Update
from netsage_pipeline.terminal import NOTHING_READ, WRONG_SETTINGS, refusing_settings, say, tell

#: File and kind of each table that our stages look into.
KNOWN = [*TABLES.values(), ("members", "members"), ("sensor_groups.json", "patterns"), ("sensor_types.json", "patterns")]

#: Share of the time between two runs by which they may be earlier or later, so that not all sites ask at once.
JITTER = 0.1

#: Seconds after which what failed is tried again; twice as many after each further failure.
RETRY_S = 60.0


@click.group()
def lookups() -> None:
    """Lookup tables."""


@lookups.command("update")
@click.argument("names", nargs=-1)
@click.option("--conf", type=click.Path(path_type=Path), help="Settings of the sources; default: ours, conf.d/lookups/sources.toml")
@click.option(
    "--every", metavar="HOURS", type=click.FloatRange(min=0, min_open=True), help="Goes on, a run every so many hours; default: one run"
)
@click.option("--force", is_flag=True, help="Take a table also when it has less than half of the entries of the one in use")
def update_tables(names: tuple[str, ...], conf: Path | None, every: float | None, *, force: bool) -> None:
    """Fetch the tables NAME…, by default all that have an address: city, asn, caida, scireg, communities, members/LIST.

    A table is opened and counted before it takes the place of the old one, at once; a worker notices. Exit status 1 if one was refused.
    With --every, what failed is tried again before that: after a minute, and twice as long each time."""
    with refusing_settings(), interruptible("the tables are whole, old or new"):
        chosen, limit = _chosen(conf or folders.shipped("conf.d") / "lookups" / "sources.toml", names)
        if every is None:
            sys.exit(NOTHING_READ if _update(chosen, limit, force=force) else 0)
        with contextlib.suppress(KeyboardInterrupt):  # A service that is stopped did not fail.
            _update_for_ever(chosen, limit, every * 3_600, force=force)


def _update_for_ever(chosen: list[Source], limit: int, every_s: float, *, force: bool) -> None:
    """A run over all of them every so often. What failed is tried again before the next run, ever more rarely: servers limit downloads."""
    due, pause, next_run = chosen, RETRY_S, 0.0
    while True:
        if due is chosen:
            next_run = time.monotonic() + _about(every_s)
        try:
            failed = _update(due, limit, force=force)
        except config.SettingsError as error:  # The directory, which may be free, or writable, the next time.
            failed = due
            for line in error.errors:
                tell(line)
        wait = left = max(0.0, next_run - time.monotonic())
        if failed:
            wait = min(_about(pause), left)
            tell(f"the next try: {time.strftime('%Y-%m-%d %H:%M', time.gmtime(time.time() + wait))} UTC")
        pause = 2 * pause if failed else RETRY_S
        time.sleep(wait)
        due = failed if wait < left else chosen


def _about(seconds: float) -> float:
    return seconds * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311


def _chosen(path: Path, names: tuple[str, ...]) -> tuple[list[Source], int]:
    """The sources to be asked, those without an address told, and the limit in bytes. SettingsError."""
    settings, errors = config.settings_of(Sources, config.read(path))
    if settings is None:
        raise config.SettingsError(errors)
    found = sources(settings)
    known = {source.name for source in found} | {"members"}
    errors = [f"{name}: no such source: there are {', '.join(sorted(known))}" for name in names if name not in known]
    chosen = [source for source in found if not names or {source.name, source.name.partition("/")[0]} & {*names}]
    missing = [f"{source.name}: not fetched: it has no address: set {HOW[source.name]}" for source in chosen if not source.url]
    if names:
        errors += missing
    if errors:
        raise config.SettingsError(errors)
    for line in missing:
        say(line)
    return [source for source in chosen if source.url], settings.limit_bytes


def _update(chosen: list[Source], limit: int, *, force: bool) -> list[Source]:
    """One run over all of them. Those that failed."""
    if not chosen:
        return []
    failed = []
    updating = Update(folders.tables(), limit, force=force)
    with updating.alone():
        for source in chosen:
            try:
                line = updating.update(source)
            except (NotFetched, Refused, OSError) as error:
                failed.append(source)
                why = f"cannot be read or written: {error.strerror}" if isinstance(error, OSError) else str(error)
                table = folders.tables() / source.table
                tell(f"{source.name}: refused: {why}; {table} {'stays as it is' if table.exists() else 'is still missing'}")
            else:
                say(f"{source.name}: {line}")
            for line in updating.left_out():
                tell(line)
    if failed:
        tell(f"{len(failed)} of {len(chosen)} failed")
    return failed


@lookups.command("info")
def show_info() -> None:
    """Show type, date, age, entries and size of each table. Every record is read; exit status 1 if a table is broken."""
    broken = 0
    for name, kind in KNOWN:
        path = folders.tables() / name
        if not path.exists():
            say(f"{name:<22} no such table in {folders.tables()}")
            continue
        try:
            found = content(kind, path)
        except ValueError as error:
            broken += 1
            for line in str(error).splitlines():
                tell(f"{path}: {line}")
            continue
        age = (time.time() - found.built) / 86_400
        say(f"{name:<22} {found.type:<16} {found.day} {age:>7,.1f} days {found.entries:>11,} entries {found.bytes:>13,} bytes")
    if broken:
        sys.exit(NOTHING_READ)


@lookups.group()
def build() -> None:
    """Tables made of something else."""


@build.command("scireg")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="The mmdb; default: scireg.mmdb in NETSAGE_LOOKUPS")
def build_scireg(export: Path, to: Path | None) -> None:
    """Make the science registry's mmdb of its JSON export. What cannot be used is left out, a line each."""
    target = to or folders.tables() / "scireg.mmdb"
    new = target.with_name(f".{target.name}.new")
    try:
        built = scireg.build(export, new)
        new.replace(target)
    except ValueError as error:
        for line in str(error).splitlines():
            tell(f"{export}: {line}")
        sys.exit(NOTHING_READ)
    except OSError as error:
        new.unlink(missing_ok=True)
        tell(f"{error.filename or target}: cannot be read or written: {error.strerror}")
        sys.exit(NOTHING_READ)
    for line in built.errors:
        tell(f"{export}: {line}")
    say(f"{target}: {built.prefixes:,} prefixes")


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
    stem = list_name(file.name)
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
