"""pmacct: a plugin's records into Elasticsearch."""

from __future__ import annotations

import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from netsage_pipeline import config, log
from netsage_pipeline.config import SettingsError, SettingsFile
from netsage_pipeline.elastic.cluster import client
from netsage_pipeline.pmacct_plugin import settings as plugins
from netsage_pipeline.pmacct_plugin.indexing import Indexing
from netsage_pipeline.pmacct_plugin.settings import Plugin
from netsage_pipeline.pmacct_plugin.snapshot import Snapshot, snapshots
from netsage_pipeline.pmacct_plugin.templates import NotInstalled, install, install_patiently, name_of, template_of
from netsage_pipeline.pmacct_plugin.transformations import AddFieldLookup, Record, transforming
from netsage_pipeline.signals import stopping
from netsage_pipeline.terminal import NOTHING_READ, refusing_settings, say, tell

#: Where a plugin that reads standard input keeps its dead letters.
_STATE = Path("/var/lib/netsage/pmacct")


@click.command("pmacct")
@click.argument("plugin")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--conf", type=click.Path(path_type=Path), default="/etc/netsage/pmacct", show_default=True, help="Directory of plugins' settings"
)
@click.option("--input", "given", help="File to read in place of the plugin's, such as its dead letters; - for standard input")
def pmacct_records(plugin: str, file: Path | None, conf: Path, given: str | None) -> None:
    """Write the records of a pmacct plugin (print or memory, JSON or CSV) into Elasticsearch: for a trigger script or cron.

    Its settings are DIR/PLUGIN.toml, or DIR/PLUGIN.conf of pmacct-to-elasticsearch; `pmacct convert DIR/PLUGIN.conf` writes the one from
    the other. The same file again changes nothing. What is refused is kept in a file of dead letters, with the reason.

    Exit status: 0 done, also when records were refused; 1 not all could be read or written; 2 something is wrong with the settings."""
    with refusing_settings():
        if plugin == "convert" and file is not None:
            _convert(file)
            return
        if file is not None:
            raise SettingsError([f"{file}: one plugin at a time: a file to read is named with --input"])
        settings, where, remarks = plugins.read(plugin, conf)
        source = _source(given, settings)
        letters = settings.dead_letters or Path(f"{settings.input_file or _STATE / plugin}.dead-letters.ndjson")
        if source and source.resolve() == letters.resolve():
            raise SettingsError([f"{source}: is where refused records are kept, so it cannot be read: move it away first"])
        if _is_endless(letters):
            raise SettingsError([f"{where.path}: dead_letters: {letters} is no regular file: name one, or one that is not there yet"])
        log.configure([secret.get_secret_value() for secret in (settings.password, settings.api_key) if secret])
        transform, template = _opened(settings, where)
    for remark in remarks:
        tell(remark)
    if not settings.enabled:
        tell(f"{where.path}: is switched off: enabled = true switches it on")
        return
    name = str(source) if source else "standard input"
    try:
        files = snapshots(source) if source else []
    except OSError as error:
        tell(f"{name}: cannot be read: {error.strerror}")
        sys.exit(NOTHING_READ)
    server = client(settings)
    with stopping() as stop:
        indexing = Indexing(settings, server, lambda: install(server, settings, plugin, template), transform, letters, stop)
        try:
            _prepare(indexing, lambda: install_patiently(server, settings, plugin, template, stop), name_of(settings))
            _take(indexing, files, name)
            indexing.finish()
        except OSError as error:
            tell(f"{error.filename or name}: cannot be read or written: {error.strerror}")
            sys.exit(NOTHING_READ)
        finally:
            for each in files:
                each.file.close()
            kept = _close(indexing)
            for line in indexing.summary.told(name, letters if kept else None):
                tell(line)
    if indexing.summary.put_aside or not kept or any(each.rewritten for each in files):
        sys.exit(NOTHING_READ)


def _source(given: str | None, settings: Plugin) -> Path | None:
    """The file to be read; None for standard input."""
    if given == "":
        raise SettingsError(["--input: is empty: is a variable empty?"])
    path = Path(given) if given else settings.input_file
    if path is not None and str(path) != "-":
        return path
    if sys.stdin.isatty():
        raise SettingsError(["standard input: is a terminal: give it what pmacct writes, or name a file with --input or input_file"])
    return None


def _is_endless(letters: Path) -> bool:
    """Whether dead letters would go to a device or a pipe: what is there already is read first, and of these it may have no end."""
    try:
        return not stat.S_ISREG(letters.stat().st_mode)
    except OSError:  # There is none yet, or that is said when it is written.
        return False


def _opened(settings: Plugin, where: SettingsFile) -> tuple[Callable[[Record], None], dict[str, Any]]:
    """What changes a record, and the index template, with all files read. SettingsError with all that is wrong."""
    errors: list[str] = []

    def table(place: str, action: AddFieldLookup) -> Mapping[str, Any]:
        try:
            return plugins.table(where.path, place, action)
        except SettingsError as error:
            errors.extend(error.errors)
            return {}

    transform = transforming(settings.transformations, table)
    template = {}
    try:
        template = template_of(settings, where.path)
    except SettingsError as error:
        errors.extend(error.errors)
    if errors:
        raise SettingsError(errors)
    return transform, template


def _prepare(indexing: Indexing, prepare: Callable[[], str], name: str) -> None:
    """Sees to the index template. Without it indices would get another mapping, so all records are put aside then."""
    try:
        if done := prepare():
            tell(f"index template {name}: {done}")
    except NotInstalled as error:
        tell(str(error))
        indexing.give_up()


def _take(indexing: Indexing, files: list[Snapshot], name: str) -> None:
    if not files:
        indexing.take(enumerate(sys.stdin.buffer, 1), name, time.time())
    for each in files:
        end = indexing.take(enumerate(each.file, 1), name, each.modified)
        if each.rewritten:
            tell(f"{name}: was rewritten while it was read, behind line {end:,}: the rest is lost, what stands there now follows")


def _close(indexing: Indexing) -> bool:
    """Whether all that is not written is kept."""
    try:
        indexing.close()
    except OSError as error:
        tell(f"{error.filename}: cannot be written, and some refused records would have to be kept in it: {error.strerror}")
        return False
    return True


def _convert(file: Path) -> None:
    """Writes the settings of pmacct-to-elasticsearch as ours."""
    settings, where, remarks = plugins.read_p2es(file)
    target = file.with_suffix(".toml")
    if target == file or target.exists():
        raise SettingsError([f"{target}: is there already: move it away first"])
    _opened(settings, where)
    if "%" in settings.index and plugins.INDEX_MACRO in str(plugins.json_of(file, "").get("InputFile")):
        raise SettingsError(
            [f"{file}: InputFile: {plugins.INDEX_MACRO} holds the date, which TOML would not say: keep {file.name}, it is read as it is"]
        )
    try:
        target.touch(0o600)  # A password may be in it.
        target.write_text(plugins.as_toml(where, remarks.values()), "utf-8")
    except OSError as error:
        tell(f"{target}: cannot be written: {error.strerror}")
        sys.exit(NOTHING_READ)
    if config.settings_of(Plugin, config.read(target))[0] != settings:
        target.unlink()
        raise SettingsError([f"{file}: null, NaN or ${{NAME}} is in it, which TOML would not say: keep {file.name}, it is read as it is"])
    for remark in remarks.values():
        tell(remark)
    say(f"{target}: written; {file} is not read any more")
