"""retain: old indices of a feed go."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import click
from elastic_transport import TransportError
from elasticsearch import ApiError, Elasticsearch, NotFoundError

from netsage_pipeline.commands.dump import cluster_of
from netsage_pipeline.config import SettingsError
from netsage_pipeline.elastic.cluster import answered, client, reason_of
from netsage_pipeline.elastic.retention import age_of, decide, wrong_with_pattern, wrong_with_prefix
from netsage_pipeline.options import conf_option
from netsage_pipeline.signals import interruptible
from netsage_pipeline.terminal import NOTHING_READ, refusing_settings, say, tell


class Index(NamedTuple):
    """An index as the server lists it; of a closed one it knows no sizes."""

    name: str
    documents: int
    bytes: int


@click.command()
@click.option("--prefix", required=True, help="Beginning of the names of the indices, without the '-' before the date")
@click.option("--older-than", required=True, help="How long the time that an index is of must be over: 30d, 4w or 12h")
@click.option("--pattern", default="%Y.%m.%d", show_default=True, help="Form of the date, all that follows the prefix")
@click.option("--dry-run", is_flag=True, help="Only say what would go and what would stay, and why")
@conf_option
def retain(prefix: str, older_than: str, pattern: str, conf: Path | None, *, dry_run: bool) -> None:
    """Delete the indices PREFIX-date that are old enough, and say of each whether it goes or stays, and why.

    The server is that of the output in --conf, by default ours for the queue and Elasticsearch."""
    with refusing_settings(), interruptible("what was said to be deleted is; run it again for the rest"):
        age = checked(prefix, older_than, pattern)
        server = client(cluster_of(conf))
        try:
            failed = retained(server, prefix, pattern, age, datetime.now(UTC), dry_run=dry_run)
        except (ApiError, TransportError) as error:
            tell(f"Elasticsearch: {reason_of(error)}: it ended there: run it again when that is mended")
            sys.exit(NOTHING_READ)
    if failed:
        sys.exit(NOTHING_READ)


def checked(prefix: str, older_than: str, pattern: str) -> timedelta:
    """The age. SettingsError has all that is wrong with the options."""
    age = age_of(older_than)
    faults = {
        "--prefix": wrong_with_prefix(prefix),
        "--older-than": "" if age else f"{older_than!r} is no time: write 30d (days), 4w (weeks) or 12h (hours)",
        "--pattern": wrong_with_pattern(pattern),
    }
    if age is None or any(faults.values()):
        raise SettingsError([f"{option}: {wrong}" for option, wrong in faults.items() if wrong])
    return age


def retained(server: Elasticsearch, prefix: str, pattern: str, age: timedelta, now: datetime, *, dry_run: bool) -> int:
    """Decides about all indices that begin as the prefix does, and deletes those that go. The number of those that could not be."""
    gone: list[Index] = []
    stay = failed = 0
    for index in listed(server, prefix):
        goes, why = decide(index.name, prefix, pattern, now, age)
        if not goes:
            stay += 1
            say(f"stays     {index.name}  {why}")
        elif dry_run:
            gone.append(index)
            say(f"would go  {index.name}  {why}")
        else:
            wrong = delete(server, index.name)
            if wrong:
                failed += 1
                tell(f"{index.name}: could not be deleted: {wrong}: the next run tries it again")
            else:
                gone.append(index)
            say(f"{'failed  ' if wrong else 'deleted '}  {index.name}  {why}")
    documents, gigabytes = sum(index.documents for index in gone), sum(index.bytes for index in gone) / 1e9
    what = "would go" if dry_run else "deleted"
    say(f"{len(gone)} {what} ({documents:,} documents, {gigabytes:,.2f} GB), {stay} stay" + (f", {failed} failed" if failed else ""))
    return failed


def listed(server: Elasticsearch, prefix: str) -> list[Index]:
    """Indices, open and closed, by name; an alias and a data stream give those behind them, under their own names."""
    columns = "index,docs.count,store.size"
    rows = answered(
        lambda: server.cat.indices(index=f"{prefix}*", expand_wildcards=["open", "closed"], h=columns, bytes="b", format="json")
    )
    found = [Index(str(row["index"]), int(row["docs.count"] or 0), int(row["store.size"] or 0)) for row in rows]  # type: ignore[index]
    return sorted(found)


def delete(server: Elasticsearch, name: str) -> str:
    """Deletes the index of exactly this name. Why it could not be, "" if it is gone. The connection's errors go through."""
    try:
        answered(lambda: server.indices.delete(index=name, expand_wildcards="none"))
    except NotFoundError:
        return ""
    except ApiError as error:
        return reason_of(error)
    return ""
