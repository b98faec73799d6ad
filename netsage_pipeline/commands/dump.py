"""dump: records out of Elasticsearch."""

from __future__ import annotations

import contextlib
import json
import signal
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from netsage_pipeline import folders
from netsage_pipeline.commands.run import the
from netsage_pipeline.config import SettingsError
from netsage_pipeline.elastic.cluster import Cluster, client
from netsage_pipeline.elastic.dump import NotDumped, Unanswered, Wanted, dump
from netsage_pipeline.elastic.partfile import Out, PartFile, Stream
from netsage_pipeline.jsonvalues import fault
from netsage_pipeline.options import conf_option, stages_of
from netsage_pipeline.terminal import INTERRUPTED, NOTHING_READ, leave_standard_output, refusing_settings, tell


@click.command("dump")
@click.option("--from", "since", required=True, help="The first time: 2026-11-20 or 2026-11-20T12:00:00+01:00; without a zone it is UTC")
@click.option("--to", "until", required=True, help="The time before which it ends")
@click.option("--index", default="om-ns-netsage-*", show_default=True, help="Names and patterns, separated by commas")
@click.option("--query", default="", help="Only what this finds: Lucene's syntax, or Elasticsearch's JSON")
@click.option("--out", type=click.Path(path_type=Path), default="-", help="File for the records, - for standard output (the default)")
@click.option("--overwrite", is_flag=True, help="Replace the file when the dump is complete")
@click.option("--sort", default="@timestamp", show_default=True, help="Sort by this date, number or keyword; records without it come last")
@click.option("--time", default="@timestamp", show_default=True, help="The date that --from and --to are about")
@click.option("--id-field", default="document_id", show_default=True, help="Keyword copy of the id, which breaks ties; '' for none")
@conf_option
def dump_records(
    since: str,
    until: str,
    index: str,
    query: str,
    out: Path,
    overwrite: bool,
    sort: str,
    time: str,
    id_field: str,
    conf: Path | None,
) -> None:
    """Dump the records of a range of time out of Elasticsearch, one JSON object a line, sorted. Our own flows go back as they
    are with replay --conf conf.d/sink; records of Logstash's netflow module are flows for replay.

    A record is written as it was indexed, but for the copy of its id that our output adds. The order is that of --sort, then of the ids:
    the same records make the same file, byte for byte. Their number is checked against the indices as they were when the dump began.

    FILE.part and FILE.part.json become FILE when all is there. When a dump was interrupted, the same command goes on with it. The file is
    for its owner alone, since an index may hold full addresses.

    The server is that of the chain in --conf whose output is 99_output_elasticsearch; default: conf.d/sink of ours."""
    with refusing_settings():
        texts = {"--index": index, "--query": query, "--sort": sort, "--time": time, "--id-field": id_field}
        if wrong := [f"{option}: is not UTF-8: write it in UTF-8" for option, text in texts.items() if fault(text)]:
            raise SettingsError(wrong)
        wanted = Wanted(index, *_span(since, until), _query(query), sort, time, id_field)
        for option, text in (("--index", index), ("--sort", sort), ("--time", time)):
            if not text.strip():
                raise SettingsError([f"{option}: is empty: is a variable empty?"])
        server = client(cluster_of(conf))
        to: Out = Stream(None if str(out) == "-" else out) if _is_stream(out) else PartFile(out, wanted.options(), overwrite=overwrite)
        with reporting(to):
            summary = dump(server, wanted, to)
    for line in summary.lines():
        tell(line)


@contextlib.contextmanager
def reporting(out: Out) -> Iterator[None]:
    """A server that does not answer, an output that cannot be written, or a signal ends the program with a line that says what to do."""
    stops = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # With nohup it is ignored.
        stops.append(signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in stops}
    try:
        yield
    except KeyboardInterrupt:
        tell(f"interrupted: {out.again}")
        if isinstance(out, Stream):
            leave_standard_output()
        sys.exit(INTERRUPTED)
    except Unanswered as error:
        tell(f"{error}: {out.again}")
        sys.exit(NOTHING_READ)
    except NotDumped as error:
        tell(str(error))
        sys.exit(NOTHING_READ)
    except RecursionError:  # Elasticsearch takes in what is nested a thousand deep, Python reads a little less.
        tell("Elasticsearch: a record is nested too deeply to be read: leave it out with --query")
        sys.exit(NOTHING_READ)
    except BrokenPipeError:  # Whoever reads it has enough.
        leave_standard_output()
        sys.exit(NOTHING_READ)
    except OSError as error:
        tell(f"{error.filename or out.name}: cannot be written: {error.strerror}: make room for it, or name another file with --out")
        if isinstance(out, Stream):
            leave_standard_output()
        sys.exit(NOTHING_READ)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _span(since: str, until: str) -> tuple[str, str]:
    first, behind = _moment("--from", since), _moment("--to", until)
    if first >= behind:
        raise SettingsError([f"--to: {until} is not after --from, {since}"])
    return first, behind


def _moment(option: str, text: str) -> str:
    """In UTC, with microseconds."""
    try:
        moment = datetime.fromisoformat(text)
        utc = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise SettingsError([f"{option}: {text!r} is no time: write 2026-11-20 or 2026-11-20T12:00:00Z"]) from None
    return utc.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _query(text: str) -> str:
    text = text.strip()
    if text.startswith("{"):
        try:
            wrong = fault(json.loads(text, parse_int=float, parse_constant=_no_json))  # Integers may have any length.
        except RecursionError:
            wrong = "nested too deeply"
        except ValueError as error:
            raise SettingsError([f"--query: begins like JSON, but is none: {error}"]) from None
        if wrong:
            raise SettingsError([f"--query: is JSON that cannot be sent: {wrong}: write it in another way"])
    return text


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no value")


def _is_stream(out: Path) -> bool:
    try:
        mode = out.stat().st_mode
    except OSError:  # If it is out of reach, that is said when it is opened.
        return str(out) == "-"
    if stat.S_ISDIR(mode):
        raise SettingsError([f"{out}: is a directory: name a file in it with --out"])
    return str(out) == "-" or not stat.S_ISREG(mode)


def cluster_of(conf: Path | None) -> Cluster:
    """The cluster that a chain writes to; nobody wants to know what is wrong with other stages. SettingsError if it writes elsewhere."""
    try:
        stages = stages_of(conf or folders.shipped("conf.d") / "sink", None)
    except SettingsError as error:  # One of the operator's own, for which there is no --stages here.
        stages = error.usable
        if not any(stage.file.factory == "sink" for stage in stages):
            raise
    sink = the(stages, "sink")
    if not isinstance(sink.config, Cluster):
        raise SettingsError(
            [f"{sink.settings_file.path}: writes to no Elasticsearch: --conf names a chain whose output is 99_output_elasticsearch"]
        )
    return sink.config
